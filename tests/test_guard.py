"""An imported model that is fed otherwise than it was trained is found out, and told what would be better."""

from collections.abc import Iterator
from pathlib import Path

import outside_files as files
import pytest
import torch
from stores import enter, newest
from torch import Tensor, nn

from rnp_mlflow.cli import main
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.preprocess import Preprocess
from rnp_mlflow.errors import ModelError
from rnp_mlflow.models import store as model_store
from rnp_mlflow.steps import guard, importing

CIFAR = Preprocess(files.MEAN, files.STD)
TEXT_ORDER = ("1", "10", "2", "20")  # as numbers: 1, 2, 10, 20


class Colours(nn.Module):
    """Answers the colour level (0 to 7) of the first channel, if it is fed with `transform` and these channels."""

    def __init__(self, transform: Preprocess, bgr: bool = False):
        super().__init__()
        self.transform, self.bgr, self.unused = transform, bgr, nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.bgr:
            inputs = inputs.flip(1)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.transform.mean, self.transform.std))
        levels = (inputs * std + mean)[:, 0].mean((1, 2)) * 255 / 32
        return -((levels[:, None] - torch.arange(8) - 0.5) ** 2)


def colours() -> guard.Images:
    """64 plain images; the class is the level of red, the other channels are another level."""
    labels = torch.arange(64) % 8
    images = torch.full((64, 3, 4, 4), 16, dtype=torch.uint8)
    images[:, 0] = (labels * 32 + 16).view(-1, 1, 1).to(torch.uint8)
    return guard.Images(ImageSet(images, labels), tuple("abcdefgh"))


@pytest.mark.parametrize("name", guard.NORMALISATIONS)
def test_the_normalisation_that_a_model_was_trained_with_is_found(name: str) -> None:
    mean, std = guard.NORMALISATIONS[name]
    model = Colours(Preprocess(mean, std))
    tried = guard.alternatives(model, colours(), Preprocess((0.2,) * 3, (0.9,) * 3))
    best = tried[0]
    assert (best.name, best.acc, best.better) == (name, 1.0, True)
    assert best.give == f"mean={','.join(map(str, mean))} std={','.join(map(str, std))}"
    given = tuple(tuple(map(float, part.split("=")[1].split(","))) for part in best.give.split())
    assert given == (mean, std)
    assert all(each.acc < 1 for each in tried[1:])


def test_channels_the_other_way_round_are_found() -> None:
    best = guard.alternatives(Colours(CIFAR, bgr=True), colours(), Preprocess(CIFAR.mean[::-1], CIFAR.std[::-1]))[0]
    assert (best.name, best.better) == ("channels as BGR", True)
    assert best.acc == 1.0


def test_a_model_that_is_fed_as_it_was_trained_has_no_better_alternative() -> None:
    tried, clean = guard.alternatives(Colours(CIFAR), colours(), CIFAR), colours().clean
    assert not any(each.better for each in tried)
    assert guard.warning(1.0, 0.99, guard.near_chance(1.0, clean.labels, 8), 64, tried) == []


def test_the_other_order_of_numbers_is_known_where_there_is_one() -> None:
    assert guard.other_order(("1", "2", "10", "20")) == ("text", [0, 2, 1, 3])
    assert guard.other_order(TEXT_ORDER) == ("number", [0, 2, 1, 3])
    assert guard.other_order(("0", "1", "2")) is None
    assert guard.other_order(("ant", "bee")) is None


@pytest.mark.parametrize(
    ("acc", "counts", "chance"),
    [
        (0.10, [50] * 10, 0.1), (0.28, [50] * 10, 0.1), (0.29, [50] * 10, None),
        (0.6, [50, 50], 0.5), (0.61, [50, 50], None), (0.8, [90, 10], 0.9), (0.93, [90, 10], None),
    ],
)  # fmt: skip
def test_near_chance_is_near_the_answer_that_needs_no_model(
    acc: float, counts: list[int], chance: float | None
) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    assert guard.near_chance(acc, labels, len(counts)) == pytest.approx(chance)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store of its own; a suspect's weights, and clean images whose folders are its classes in text order."""
    folder = tmp_path_factory.mktemp("guard")
    torch.save(files.suspect().state_dict(), folder / "suspect.pt")
    files.image_folder(folder / "images", names=TEXT_ORDER)
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        yield folder


KNOWN = ("import", "--checkpoint=suspect.pt", "--model=preactresnet18", "--dataset=cifar10", "--data=images")


def test_an_import_says_which_order_of_the_classes_would_be_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*KNOWN]) == 0
    said = capsys.readouterr().err
    assert "warning: ACC 0.5000 on 80 clean images" in said
    assert "classes sorted as text (class_order=text): ACC 1.0000  <- better" in said
    assert main([*KNOWN, "--class_order=text"]) == 0
    said = capsys.readouterr().err
    assert "ACC 1.0000" in said
    assert "warning" not in said


def test_a_required_accuracy_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*KNOWN, "--require_acc=0.9"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ACC 0.5000 on 80 clean images is below require_acc=0.9")
    assert "class_order=text would give 1.0000" in last
    run = newest("import")
    assert run.info.status == "FAILED"
    assert main([*KNOWN, "--require_acc=0.9", "--class_order=text"]) == 0


def test_what_is_advised_can_be_given() -> None:
    """A normalisation that stands in the model, or beside it, is no choice; labels of an npz have no folders."""
    fixed = guard.Images(colours().clean, tuple("abcdefgh"), folders=False, open_norm=False)
    assert [each.name for each in guard.alternatives(Colours(CIFAR), fixed, CIFAR)] == ["channels as BGR"]
    numbers = guard.Images(colours().clean, ("0", "1", "2", "3", "4", "5", "6", "10"), folders=False)
    order = next(each for each in guard.alternatives(Colours(CIFAR), numbers, CIFAR) if "sorted" in each.name)
    assert "class_order" not in order.give


@pytest.mark.parametrize(
    ("model", "images", "words"),
    [
        (("0", "1", "10", "2"), ("0", "1", "2", "10"), "give the other class_order"),
        (("1", "10", "2"), ("1", "2", "10"), "give the other class_order"),
        (("0", "10", "1", *map(str, range(2, 10))), tuple(map(str, range(11))), "give the other class_order"),
        (("ant", "bee"), ("bee", "ant"), "in order, bee, ant"),
        (("1", "2"), ("3", "4"), "in order, 3, 4"),
        (("ant", "bee"), ("ant", "bee", "cat"), "2 classes"),
        (("ant", "bee"), ("0", "1"), None),
        (("0", "1"), ("ant", "bee"), None),
        (("1", "2"), ("0", "1"), None),
        (("1", "10", "2"), ("1", "10", "2"), None),
    ],
)
def test_the_classes_of_a_models_record_are_held_to_the_images(
    model: tuple[str, ...], images: tuple[str, ...], words: str | None
) -> None:
    if words is None:
        importing.hold_to_classes(model, images)
        return
    with pytest.raises(ModelError, match=words):
        importing.hold_to_classes(model, images)


@pytest.mark.parametrize("given", ["--dataset=cifar10", "--mean=0.1,0.1,0.1", "--std=0.5,0.5,0.5", "--image_size=32"])
def test_what_a_models_record_says_is_not_overridden(
    given: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = model_store.ModelSpec("preactresnet18", 4, TEXT_ORDER, (3, 8, 8), (0.5,) * 3, (0.25,) * 3)
    model_store.save(home / "ours", files.suspect(), spec)
    own = ["import", "--checkpoint=ours", "--data=images", "--class_order=text"]
    assert main([*own, given]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert given.split("=")[0].removeprefix("--") in last
    assert main(own) == 0


def test_what_our_own_record_says_of_a_model_is_held_against_its_accuracy_here(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of ours says ACC 1.0 of its model; on labels that are turned by one it has 0."""
    assert main([*KNOWN, "--class_order=text"]) == 0
    run = newest("import")
    for k, name in enumerate(TEXT_ORDER):
        target = home / "turned" / TEXT_ORDER[(k + 1) % 4]
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(home / "images" / name)
    capsys.readouterr()
    assert main(["import", f"--model_uri=runs:/{run.info.run_id}/model", "--data=turned", "--class_order=text"]) == 0
    assert "ACC 0.0000 on 80 clean images is far below the 1.0000" in capsys.readouterr().err
