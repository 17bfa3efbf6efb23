"""WaNet (Nguyen & Tran, ICLR 2021, arXiv 2102.10369): a smooth warp of the image, with noisy warps as covers."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample, interpolate

from rnp_mlflow.attacks.trigger import AttackContext, AttackEntry, PoisoningAttack, to_pixels

CONTROL, STRENGTH = 4, 0.5  # k and s of the paper


@dataclass(frozen=True)
class WarpTrigger:
    """Sample every output pixel at `grid`, float32 (H, W, 2): x, y from -1 to 1 (centres of corner pixels)."""

    grid: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return warp_images(images, self.grid.to(images.device).expand(len(images), -1, -1, -1))

    def with_noise(self, images: Tensor, generator: Generator) -> Tensor:
        """Warp each image by its own grid, randomly shifted by up to half a pixel (noise mode, section 3.3)."""
        height = images.shape[-2]
        noise = 2 * torch.rand(len(images), *self.grid.shape, generator=generator) - 1
        return warp_images(images, (self.grid + noise / height).clamp(-1, 1).to(images.device))


def warp_images(images: Tensor, grids: Tensor) -> Tensor:
    """Sample uint8 (N, C, H, W) bilinearly at grids (N, H, W, 2)."""
    return to_pixels(grid_sample(images.float(), grids, align_corners=True)).to(images.dtype)


def build(context: AttackContext) -> PoisoningAttack:
    """Build the attack: random offsets on a k × k control grid, upsampled and added to the identity grid.

    Offsets are scaled to mean absolute value 1 and then to s half-pixels.
    """
    _, height, width = context.clean.shape
    offsets = 2 * torch.rand(1, 2, CONTROL, CONTROL, generator=context.generator) - 1
    offsets = offsets / offsets.abs().mean()
    field = interpolate(offsets, size=(height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    identity = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], 2)  # (H, W, 2) as x, y
    warp = WarpTrigger((identity + STRENGTH * field / height).clamp(-1, 1).contiguous())
    return PoisoningAttack(warp, cover=warp.with_noise)


ENTRY = AttackEntry(build, WarpTrigger, covers=2.0)
