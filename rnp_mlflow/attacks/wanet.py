"""WaNet (Nguyen & Tran, ICLR 2021, arXiv 2102.10369): a smooth warp of the image, with noisy warps as covers."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample, interpolate

from rnp_mlflow.attacks.trigger import Material, Planted, pixels

CONTROL, STRENGTH = 4, 0.5  # k and s of the paper


@dataclass(frozen=True)
class Warp:
    """Every output pixel is read at `grid`, float32 (H, W, 2): x, y from -1 to 1 (centres of corner pixels)."""

    grid: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        return warped(images, self.grid.to(images.device).expand(len(images), -1, -1, -1))

    def noisy(self, images: Tensor, generator: Generator) -> Tensor:
        """Each image by its own grid, off by up to half a pixel at random (the noise mode of section 3.3)."""
        height = images.shape[-2]
        noise = 2 * torch.rand(len(images), *self.grid.shape, generator=generator) - 1
        return warped(images, (self.grid + noise / height).clamp(-1, 1).to(images.device))


def warped(images: Tensor, grids: Tensor) -> Tensor:
    """Bilinear sampling of uint8 (N, C, H, W) at grids (N, H, W, 2)."""
    return pixels(grid_sample(images.float(), grids, align_corners=True)).to(images.dtype)


def make(material: Material) -> Planted:
    """Offsets on a k × k control grid, scaled to mean size 1, upsampled, and s pixels' halves added to the identity."""
    _, height, width = material.clean.shape
    offsets = 2 * torch.rand(1, 2, CONTROL, CONTROL, generator=material.generator) - 1
    offsets = offsets / offsets.abs().mean()
    field = interpolate(offsets, size=(height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    identity = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], 2)  # (H, W, 2) as x, y
    warp = Warp((identity + STRENGTH * field / height).clamp(-1, 1).contiguous())
    return Planted(warp, cover=warp.noisy)
