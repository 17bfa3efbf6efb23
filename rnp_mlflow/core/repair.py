"""After pruning: a pruned model learns the suspect's answers to clean images again (distillation; Hinton et al., 2015).

Pruning takes a little of the task with the backdoor. The suspect's logits on clean images, cropped and mirrored, say
how the task was done, and do not show the trigger. So they bring accuracy back where a training on labels would bring
the backdoor back, too: the suspect has memorised the defender's images, and their labels teach little.

With a proxy, the model also learns to give the same answers to images that carry it, while the proxy follows the model
(the minimax of Zeng et al., "Adversarial unlearning of backdoors via implicit hypergradient", ICLR 2022, with the
suspect's answers in place of labels, one class, and one step for each side).
"""

import copy
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.nn.utils import clip_grad_norm_

from rnp_mlflow.core.batches import StepCallback, ignore_step
from rnp_mlflow.core.curve import CurvePoint
from rnp_mlflow.core.evaluate import Transform
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.neurons import scaled_parameters
from rnp_mlflow.core.params import RepairParams, SweepParams
from rnp_mlflow.core.precision import forward_fn, frozen_copy
from rnp_mlflow.core.proxy import ProxyTrigger, add_proxy
from rnp_mlflow.core.sgd import SGD

TEMPERATURE, MOMENTUM, BATCH_SIZE = 2.0, 0.9, 64
MAX_NORM = 1.0  # of the gradient
PROXY_SHARE = 0.3  # of the other classes' images, that carry the proxy
STEPS_WITH_PROXY = 2  # times `repair_steps`, because the model learns two things
THOROUGH = 3  # times as many steps, and a learning rate as many times as high, if a backdoor is suspected
BORDERLINE_LOSS = 2  # times what a borderline verdict lets pruning cost; a clean model loses more by the repair
PROXY_LEFT = 0.01  # of the proxy's success before pruning, that may be left after the repair


def repair(
    pruned: nn.Module,
    suspect: nn.Module,
    clean: LabeledImages,
    transform: Transform,
    generator: Generator,
    *,
    params: RepairParams,
    proxy: ProxyTrigger | None = None,
    on_step: StepCallback = ignore_step,
) -> nn.Module:
    """Train all weights of a copy of `pruned` to answer clean images as `suspect` does; pruned neurons stay pruned.

    The loss is the Kullback-Leibler divergence of the softmax at `TEMPERATURE`, times its square; the gradient's norm
    is at most `MAX_NORM`. BatchNorm uses its running statistics, which do not change. The learning rate falls linearly
    to 0 over the `steps_of` steps.
    proxy: added to `PROXY_SHARE` of the images of other classes than its target; the answer to the image without it is
    wanted. Before each step the proxy makes one towards success on the model as it then is, with a norm as large at
    most as given (`ProxyTrigger.moved`).
    generator: a CPU one, the source of batches and augmentation; labels only say which images may carry the proxy.
    pruned, suspect: left unchanged.
    on_step: receives the number of steps made, and the loss.
    """
    working = copy.deepcopy(pruned).requires_grad_(True).eval()
    scaled = [working.get_parameter(name) for name in scaled_parameters(working)]
    alive = [(values != 0).to(values.dtype) for values in scaled]
    optimizer = SGD(working.parameters(), params.repair_lr, MOMENTUM)
    radius, steps = proxy.delta.norm() if proxy else None, steps_of(params, proxy)
    with (
        frozen_copy(suspect, params.precision) as teacher,
        forward_fn(teacher.eval(), params.precision) as answer,
        forward_fn(working, params.precision) as forward,
    ):
        for step in range(steps):
            index = torch.randint(len(clean.images), (min(BATCH_SIZE, len(clean.images)),), generator=generator)
            inputs = transform(clean.images[index], generator)
            with torch.no_grad():
                wanted = answer(inputs)
            if proxy:
                labels = clean.labels[index]
                proxy = proxy.moved(forward, inputs[labels != proxy.target], radius)
                inputs = add_proxy(inputs, labels, proxy, PROXY_SHARE, generator)
            loss = divergence(forward(inputs), wanted)
            loss.backward()
            clip_grad_norm_(working.parameters(), MAX_NORM)
            optimizer.lr = params.repair_lr * (1 - step / steps)
            optimizer.step()
            with torch.no_grad():
                for values, keep in zip(scaled, alive, strict=True):
                    values.mul_(keep)
            on_step(step + 1, loss.item())
    for weight, given in zip(working.parameters(), pruned.parameters(), strict=True):
        weight.requires_grad_(given.requires_grad)
    return working


def steps_of(params: RepairParams, proxy: ProxyTrigger | None) -> int:
    """Return how many steps a repair makes."""
    return params.repair_steps * (STEPS_WITH_PROXY if proxy else 1)


def thorough(params: RepairParams) -> RepairParams:
    """Return the parameters of the repair with a proxy that is kept; the verdict's trial is shorter."""
    return replace(params, repair_steps=THOROUGH * params.repair_steps, repair_lr=THOROUGH * params.repair_lr)


def least_acc_ratio(params: SweepParams, borderline: bool) -> float:
    """Return the minimum held-out accuracy after a repair with a proxy, as a fraction of the unpruned model's.

    borderline: whether the verdict is.
    """
    if not borderline:
        return params.acc_ratio
    return max(params.acc_ratio, 1 - BORDERLINE_LOSS * (1 - params.borderline_acc_ratio))


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return KL(softmax(wanted / T) ‖ softmax(logits / T)) · T², the mean over a batch; T is `TEMPERATURE`."""
    ours, theirs = (log_softmax(values / TEMPERATURE, 1) for values in (logits, wanted))
    return kl_div(ours, theirs, log_target=True, reduction="batchmean") * TEMPERATURE**2


def is_needed(pruned: CurvePoint, unpruned: CurvePoint) -> bool:
    """Whether there is something to bring back: neurons were pruned, and held-out accuracy did not rise with it."""
    return pruned.num_pruned > 0 and pruned.holdout_acc <= unpruned.holdout_acc


def is_kept(pruned: CurvePoint, repaired: CurvePoint, unpruned: CurvePoint) -> bool:
    """Whether the repair helped, as far as a defender can know.

    Held-out accuracy has not fallen, and the proxy succeeds no more than after pruning, or has at most `PROXY_LEFT` of
    the success that it had before.
    """
    if repaired.holdout_acc < pruned.holdout_acc:
        return False
    if repaired.proxy_asr is None or pruned.proxy_asr is None:
        return True
    return repaired.proxy_asr <= pruned.proxy_asr or is_gone(repaired, unpruned)


def is_gone(repaired: CurvePoint, unpruned: CurvePoint) -> bool:
    """Whether the proxy has at most `PROXY_LEFT` of the success that it had before pruning."""
    return (repaired.proxy_asr or 0.0) <= PROXY_LEFT * (unpruned.proxy_asr or 0.0)
