"""Input-aware dynamic attack (Nguyen & Tran, NeurIPS 2020, arXiv 2010.08138): each image gets its own trigger.

Two generators produce the trigger: one a sparse mask, the other a pattern. Here they are trained together with a
surrogate model, frozen, and then used to poison the training set. The authors train them together with the attacked
model itself. Covers carry the trigger of another image and keep their label (the cross-trigger test).
"""

import copy
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import Adam

from rnp_mlflow.attacks.trigger import AttackContext, AttackEntry, PoisoningAttack, to_pixels
from rnp_mlflow.core.batches import batches
from rnp_mlflow.core.precision import logits_of

HIDDEN = 16
DENSITY = 0.032  # fraction of the pixels that a mask covers (the paper's CIFAR-10 value)
EPOCHS, BATCH, LR = 2, 64, 0.01
SHARE = 0.25  # fraction of a batch that gets its own trigger; the same fraction gets another image's


def generator_network(channels: int, out: int) -> nn.Sequential:
    """Build a fully convolutional network from pixels in [0, 1] to scores (N, out, H, W)."""
    sizes = (channels, HIDDEN, 2 * HIDDEN, HIDDEN)
    layers: list[nn.Module] = []
    for before, after, stride in zip(sizes, sizes[1:], (1, 2, 1), strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU()]
    layers += [nn.Upsample(scale_factor=2), nn.Conv2d(HIDDEN, out, 3, 1, 1)]
    return nn.Sequential(*layers)


def generator_from(parameters: Tensor, channels: int, out: int) -> nn.Sequential:
    """Build a `generator_network` from its flat parameters, on their device."""
    net = generator_network(channels, out).to(parameters.device)
    vector_to_parameters(parameters, net.parameters())
    return net


def densest_mask(scores: Tensor) -> Tensor:
    """Return 1 at the fraction `DENSITY` of pixels with the highest scores, else 0; the gradient is a sigmoid's.

    The paper bounds the density by a penalty. Here the density is exact, so the mask cannot vanish.
    """
    flat = scores.flatten(1)
    bound = flat.kthvalue(round(flat.shape[1] * (1 - DENSITY)), 1).values.view(-1, 1, 1, 1)
    soft = (scores - bound).sigmoid()
    return (scores > bound).float() + soft - soft.detach()


def apply_trigger(images: Tensor, mask_scores: Tensor, pattern_scores: Tensor) -> Tensor:
    """Return (1 - m) · x + m · p in pixel values, from the scores of both generators."""
    height, width = images.shape[2:]  # the generators return odd sides one pixel longer
    mask = densest_mask(mask_scores[..., :height, :width])
    pattern = pattern_scores[..., :height, :width].sigmoid()
    return (1 - mask) * images + mask * 255 * pattern


@dataclass(frozen=True)
class GeneratedTrigger:
    """Add the trigger that the generators produce for each image.

    where, what: flat float32 parameters of the mask and the pattern generator (these names are in stored files).
    """

    where: Tensor
    what: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return self.with_triggers_of(images, images)

    @torch.no_grad()
    def with_triggers_of(self, images: Tensor, sources: Tensor) -> Tensor:
        """Add the triggers of `sources` to `images`; both uint8 (N, C, H, W)."""
        channels = images.shape[1]
        with torch.random.fork_rng(devices=[]):  # new layers draw random weights, which are then overwritten
            mask_net = generator_from(self.where.to(images.device), channels, 1)
            pattern_net = generator_from(self.what.to(images.device), channels, channels)
        done = []
        for part, source in zip(images.split(512), sources.split(512), strict=True):
            scaled = source / 255
            triggered = apply_trigger(part.float(), mask_net(scaled), pattern_net(scaled))
            done.append(to_pixels(triggered).to(images.dtype))
        return torch.cat(done)

    def cover(self, images: Tensor, generator: Generator) -> Tensor:
        """Add to each image the trigger of another image."""
        return self.with_triggers_of(images, images[torch.randperm(len(images), generator=generator)])


def diversity(images: Tensor, patterns: Tensor) -> Tensor:
    """Return the mean ratio of image distance to trigger distance between neighbours in the batch (equation 5)."""
    between = (images - images.roll(1, 0)).flatten(1).norm(dim=1)
    found: Tensor = (between / ((patterns - patterns.roll(1, 0)).flatten(1).norm(dim=1) + 1e-3)).mean()
    return found


def build(context: AttackContext) -> PoisoningAttack:
    """Train both generators with a copy of the surrogate, which keeps learning its task during the attack."""
    model = copy.deepcopy(context.surrogate()).requires_grad_(True).train()
    device = next(model.parameters()).device
    channels = context.clean.shape[0]
    with torch.random.fork_rng():
        torch.manual_seed(context.generator.initial_seed())
        mask_net, pattern_net = generator_network(channels, 1), generator_network(channels, channels)
    mask_net, pattern_net = mask_net.to(device), pattern_net.to(device)
    optimizers = (
        Adam([*mask_net.parameters(), *pattern_net.parameters()], LR / 10),
        torch.optim.SGD(model.parameters(), LR, 0.9),
    )
    for _ in range(EPOCHS):
        for index in batches(len(context.clean), BATCH, context.generator):
            images, labels = context.clean.images[index].to(device).float(), context.clean.labels[index].to(device)
            loss = loss_of(model, mask_net, pattern_net, images, labels, target=context.target)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    flat = (parameters_to_vector(net.parameters()).detach().cpu() for net in (mask_net, pattern_net))
    trigger = GeneratedTrigger(*flat)
    return PoisoningAttack(trigger, cover=trigger.cover)


def loss_of(
    model: nn.Module, mask_net: nn.Module, pattern_net: nn.Module, images: Tensor, labels: Tensor, *, target: int
) -> Tensor:
    """Return the loss of one batch: cross-entropy plus diversity.

    The first part of the batch gets its own triggers and the label `target`. The next part gets other images'
    triggers and keeps its labels. The rest stays clean. images: float pixels (N, C, H, W), 0 to 255.
    """
    scaled = images / 255
    masks, patterns = mask_net(scaled), pattern_net(scaled)
    part = max(1, int(SHARE * len(images)))
    own = apply_trigger(images[:part], masks[:part], patterns[:part])
    others = (scores.roll(1, 0)[part : 2 * part] for scores in (masks, patterns))
    crossed = apply_trigger(images[part : 2 * part], *others)
    wanted = torch.cat([torch.full_like(labels[:part], target), labels[part:]])
    output = model(torch.cat([own, crossed, images[2 * part :]]))
    return cross_entropy(logits_of(output), wanted) + diversity(scaled, patterns.sigmoid())


ENTRY = AttackEntry(build, GeneratedTrigger, covers=1.0, one_target=True)
