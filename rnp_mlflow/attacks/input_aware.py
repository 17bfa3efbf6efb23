"""Input-aware dynamic attack (Nguyen & Tran, NeurIPS 2020, arXiv 2010.08138): each image gets a trigger of its own.

Two generators make it: where (a sparse mask) and what (a pattern). Here they are trained together with a
surrogate and then frozen, and the poisoned set is written with them; the authors train the attacked model
itself beside them. Covers carry the trigger of another image and keep their label (the cross-trigger test).
"""

import copy
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import Adam

from rnp_mlflow.attacks.trigger import Material, Planted, pixels
from rnp_mlflow.core.batches import batches
from rnp_mlflow.core.precision import logits_of

HIDDEN = 16
DENSITY = 0.032  # share of the image that a mask covers (the paper's CIFAR-10 value)
EPOCHS, BATCH, LR = 2, 64, 0.01
SHARE = 0.25  # of a batch gets its own trigger, and as much another's


def network(channels: int, out: int) -> nn.Sequential:
    """Pixels scaled to 0 … 1 in, scores (N, out, H, W) out; fully convolutional."""
    sizes = (channels, HIDDEN, 2 * HIDDEN, HIDDEN)
    layers: list[nn.Module] = []
    for before, after, stride in zip(sizes, sizes[1:], (1, 2, 1), strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.ReLU()]
    layers += [nn.Upsample(scale_factor=2), nn.Conv2d(HIDDEN, out, 3, 1, 1)]
    return nn.Sequential(*layers)


def restored(parameters: Tensor, channels: int, out: int) -> nn.Sequential:
    """A `network` with these parameters, flat, on their device."""
    net = network(channels, out).to(parameters.device)
    vector_to_parameters(parameters, net.parameters())
    return net


def masked(scores: Tensor) -> Tensor:
    """1 at the `DENSITY` of an image's pixels with the highest scores, else 0; gradients as of a sigmoid.

    The paper bounds the density by a penalty; so it is met exactly, and the mask cannot vanish.
    """
    flat = scores.flatten(1)
    bound = flat.kthvalue(round(flat.shape[1] * (1 - DENSITY)), 1).values.view(-1, 1, 1, 1)
    soft = (scores - bound).sigmoid()
    return (scores > bound).float() + soft - soft.detach()


def applied(images: Tensor, where: Tensor, what: Tensor) -> Tensor:
    """x' = (1 - m) · x + m · p in pixel values, from both generators' scores."""
    height, width = images.shape[2:]  # odd sides come back from the generators one longer
    mask, pattern = masked(where[..., :height, :width]), what[..., :height, :width].sigmoid()
    return (1 - mask) * images + mask * 255 * pattern


@dataclass(frozen=True)
class Generated:
    """The trigger that the generators make of each image. where, what: their parameters, flat, float32."""

    where: Tensor
    what: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return self.crossed(images, images)

    @torch.no_grad()
    def crossed(self, images: Tensor, sources: Tensor) -> Tensor:
        """`images` with the triggers of `sources`; both uint8 (N, C, H, W)."""
        channels = images.shape[1]
        with torch.random.fork_rng(devices=[]):  # fresh layers draw numbers that are then overwritten
            where = restored(self.where.to(images.device), channels, 1)
            what = restored(self.what.to(images.device), channels, channels)
        done = []
        for part, source in zip(images.split(512), sources.split(512), strict=True):
            scaled = source / 255
            done.append(pixels(applied(part.float(), where(scaled), what(scaled))).to(images.dtype))
        return torch.cat(done)

    def cover(self, images: Tensor, generator: Generator) -> Tensor:
        """Each image with the trigger of another."""
        return self.crossed(images, images[torch.randperm(len(images), generator=generator)])


def diversity(source: Tensor, made: Tensor) -> Tensor:
    """How alike the triggers of neighbours in the batch are, for how alike the images are (equation 5)."""
    between = (source - source.roll(1, 0)).flatten(1).norm(dim=1)
    return (between / ((made - made.roll(1, 0)).flatten(1).norm(dim=1) + 1e-3)).mean()


def make(material: Material) -> Planted:
    """Train both generators with a copy of the surrogate, which goes on learning its task beside the attack."""
    model = copy.deepcopy(material.surrogate()).requires_grad_(True).train()
    device = next(model.parameters()).device
    channels = material.clean.shape[0]
    with torch.random.fork_rng():
        torch.manual_seed(material.generator.initial_seed())
        where, what = network(channels, 1).to(device), network(channels, channels).to(device)
    optimizers = (
        Adam([*where.parameters(), *what.parameters()], LR / 10),
        torch.optim.SGD(model.parameters(), LR, 0.9),
    )
    for _ in range(EPOCHS):
        for index in batches(len(material.clean), BATCH, material.generator):
            images, labels = material.clean.images[index].to(device).float(), material.clean.labels[index].to(device)
            loss = loss_of(model, where, what, images, labels, material.target)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    flat = (parameters_to_vector(net.parameters()).detach().cpu() for net in (where, what))
    trigger = Generated(*flat)
    return Planted(trigger, cover=trigger.cover)


def loss_of(model: nn.Module, where: nn.Module, what: nn.Module, images: Tensor, labels: Tensor, target: int) -> Tensor:
    """A batch whose first part gets its own triggers and `target`, the next others' triggers, the rest none.

    images: float pixels (N, C, H, W), 0 to 255.
    """
    scaled = images / 255
    places, patterns = where(scaled), what(scaled)
    part = max(1, int(SHARE * len(images)))
    own = applied(images[:part], places[:part], patterns[:part])
    others = (scores.roll(1, 0)[part : 2 * part] for scores in (places, patterns))
    crossed = applied(images[part : 2 * part], *others)
    wanted = torch.cat([torch.full_like(labels[:part], target), labels[part:]])
    answers = model(torch.cat([own, crossed, images[2 * part :]]))
    return cross_entropy(logits_of(answers), wanted) + diversity(scaled, patterns.sigmoid())
