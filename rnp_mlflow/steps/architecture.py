"""Which of several architectures that the weights fit is the model's: the clean images tell."""

from torch import Tensor, nn

from rnp_mlflow.core.evaluate import ahead, evenly_spaced, predict
from rnp_mlflow.data.imageset import Dataset
from rnp_mlflow.errors import ModelError
from rnp_mlflow.models import store
from rnp_mlflow.models.fit import Candidate, unambiguous_name
from rnp_mlflow.steps import runtime, subject

IMAGES = 1000  # that tell candidates apart, at most
Built = tuple[nn.Module, store.ModelSpec]


def settle_architecture(found: list[Candidate], classes: tuple[str, ...], data: Dataset) -> Built:
    """Return the model and spec of the only candidate or, of several, of the one that is clearly more accurate.

    It must be ahead of every other by more than two standard errors of the difference, on the same clean images
    (`ahead`). What each reaches is said.

    Raises:
        ModelError: none of them can take the images, or the images do not tell them apart.
    """
    if len(found) == 1:
        return found[0].build(classes, data.train.shape, data.mean, data.std)
    built, failed = [], []
    for candidate in found:
        try:
            built.append(candidate.build(classes, data.train.shape, data.mean, data.std))
        except ModelError as error:
            failed.append(error)
    if not built:
        raise failed[0]
    if len(built) == 1:
        runtime.log(
            f"  the model is taken for {unambiguous_name(built[0][1].architecture)}; another that fits: {failed[0]}"
        )
        return built[0]
    right = [answered_right(model, spec, data) for model, spec in built]
    order = sorted(range(len(built)), key=lambda k: int(right[k].sum()), reverse=True)
    best, others = order[0], order[1:]
    count = len(right[best])
    reached = " and ".join(
        f"{unambiguous_name(built[k][1].architecture)} (ACC {right[k].sum() / count:.4f})" for k in order
    )
    if not all(ahead(right[best], right[k]) for k in others):
        ways = " or ".join(f"model={unambiguous_name(built[k][1].architecture)}" for k in order)
        raise ModelError(
            f"the weights fit {reached} by key and shape, and {count} clean images do not tell which it is: give {ways}"
        )
    taken = unambiguous_name(built[best][1].architecture)
    runtime.log(f"  the weights fit {reached}: {taken} is taken, because it is more accurate on {count} clean images")
    return built[best]


def answered_right(model: nn.Module, spec: store.ModelSpec, data: Dataset) -> Tensor:
    """Return whether the model is right on each clean image, or on `IMAGES` of them, evenly spaced; bool (N,)."""
    images = data.test or data.train
    some = evenly_spaced(len(images), IMAGES)
    part = images[some]
    return predict(model, part.images, subject.preprocess(spec, data)) == part.labels.cpu()
