"""Step 2: a mask that brings clean accuracy back to the unlearned model (RNP, equation 3).

All weights are frozen; one mask value per neuron starts at 1, scales γ alone, and is kept in [0, 1].
What recovery does not need stays low: the backdoor's neurons.
"""

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from rnp_mlflow.core.batches import NO_HOOKS, EpochRecord, TrainingHooks
from rnp_mlflow.core.course import Course, copy_into, prefixed
from rnp_mlflow.core.evaluate import Transform
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.keeping import State
from rnp_mlflow.core.neurons import Mask, comparable, masked_parameters, ones_mask
from rnp_mlflow.core.params import RecoverParams
from rnp_mlflow.core.precision import Forward, forward_fn, frozen_copy
from rnp_mlflow.core.proxy import ProxyTrigger, add_proxy
from rnp_mlflow.core.sgd import SGD
from rnp_mlflow.core.units import norm_layers, train_mode

MOMENTUM = 0.9  # the reference's


@dataclass(frozen=True)
class RecoveryResult:
    """The mask, layer → (channels,) float32 on the CPU, and the history of the epochs."""

    mask: Mask
    history: list[EpochRecord]


def recover(
    model: nn.Module,
    clean: LabeledImages,
    transform: Transform,
    generator: Generator,
    params: RecoverParams,
    *,
    proxy: ProxyTrigger | None = None,
    suspect: nn.Module | None = None,
    hooks: TrainingHooks = NO_HOOKS,
) -> RecoveryResult:
    """Minimise alpha × cross-entropy over the mask of an unlearned model, which is left unchanged.

    generator: a CPU one, the source of batch order and augmentation. BatchNorm runs in train mode, on a copy. The mask
    is clamped to [0, 1] after every SGD step.
    proxy: added to `params.proxy_share` of the images, which keep their label, so that the neurons it needs are not
    recovered. suspect: the model before unlearning. If both are given, each step on the unlearned model is followed by
    `params.suspect_steps` on the suspect: the same mask has to restore the accuracy of the one and to remove the
    proxy's effect from the other. The mean of the mask over all steps ranks neurons by how soon and how surely they
    fall, while many last values are 0. hooks: `on_model` gets the unlearned model with the mask applied.
    Without BatchNorm, a few neurons are enough to make one proxy fail. So the proxy follows the mask: after each step
    on the suspect it makes one, too (`ProxyTrigger.moved`). Mask values are made comparable between kinds of neurons
    (`core.neurons.comparable`).

    Raises:
        ModelError: the model has no neurons.
    """
    images, labels = clean
    proxy = proxy if params.proxy_share else None
    step_schedule = [(model, params.alpha)]
    if suspect and proxy:
        step_schedule += params.suspect_steps * [(suspect, params.alpha * params.suspect_weight)]
    mask = {name: values.requires_grad_() for name, values in ones_mask(model).items()}
    optimizer = SGD(mask.values(), params.recovering_lr, MOMENTUM)
    total, steps = {name: torch.zeros_like(values) for name, values in mask.items()}, 0
    with ExitStack() as stack:
        copies = [(net, stack.enter_context(frozen_copy(net, params.precision))) for net in dict(step_schedule)]
        working = {net: train_mode(copied) for net, copied in copies}
        forward = {net: stack.enter_context(forward_fn(copied, params.precision)) for net, copied in working.items()}

        def changing() -> dict[str, Tensor]:
            found = prefixed("mask/", mask) | prefixed("total/", total)
            for k, net in enumerate(working.values()):
                found |= prefixed(f"buffer{k}/", dict(net.named_buffers()))
            return found

        def capture() -> State:
            moved = {"proxy": proxy.delta} if proxy else {}
            return State(changing() | optimizer.state() | moved, {"steps": steps})

        def restore(state: State) -> None:
            nonlocal proxy, steps
            copy_into(changing(), state.tensors, "")
            optimizer.restore(state.tensors)
            steps = state.values["steps"]
            proxy = replace(proxy, delta=state.tensors["proxy"].to(proxy.delta)) if proxy else None

        course = Course(hooks.keeper, generator, capture, restore)
        history = course.history
        for meter in course.epochs(params.recovering_epochs, hooks.on_step, hooks.on_epoch):
            for index in course.batches(len(images), params.recovering_batch_size):
                inputs = transform(images[index], generator)
                if proxy:
                    inputs = add_proxy(inputs, labels[index], proxy, params.proxy_share, generator)
                net, weight = step_schedule[steps % len(step_schedule)]
                logits = forward[net](inputs, masked_parameters(working[net], mask))
                loss = cross_entropy(logits, labels[index])
                (weight * loss).backward()
                optimizer.step()
                with torch.no_grad():
                    for name, values in mask.items():
                        total[name] += values.clamp_(0, 1)
                if proxy and net is not model and not norm_layers(net):
                    fixed = {name: values.detach() for name, values in masked_parameters(working[net], mask).items()}
                    plain = transform(images[index], None)[labels[index] != proxy.target]
                    proxy = proxy.moved(partial(masked_logits, forward[net], fixed), plain)
                steps += 1
                meter.add(loss, logits, labels[index])
            history.append(meter.record())
            hooks.on_epoch(history[-1])
            hooks.on_model(steps, history[-1].accuracy, lambda: with_mask_applied(model, working[model], mask))
    averaged = params.mask_averaging == "steps"
    found = {name: values / steps for name, values in total.items()} if averaged else mask
    found = {name: values.detach().cpu() for name, values in found.items()}
    return RecoveryResult(found if norm_layers(model) else comparable(model, found), history)


def masked_logits(forward: Forward, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the logits with these parameters in place of the model's own."""
    return forward(inputs, parameters)


def with_mask_applied(model: nn.Module, working: nn.Module, mask: Mask) -> nn.Module:
    """Return a copy of `model` with the mask on its neurons and the running statistics of `working`, its copy."""
    result = copy.deepcopy(model)
    result.load_state_dict(working.state_dict())
    with torch.no_grad():
        for name, values in masked_parameters(working, mask).items():
            result.get_parameter(name).copy_(values)
    return result
