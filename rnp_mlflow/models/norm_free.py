"""Networks for small images without BatchNorm: a vision transformer, a ConvNeXt, a GroupNorm ResNet, a plain VGG.

Torchvision is imported inside the functions, as in `torchvision_nets`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.modules.batchnorm import _BatchNorm

from rnp_mlflow.models.resnet import BasicBlock, SmallImageResNet

HEAD = 16  # channels of an attention head


class Attention(nn.Module):
    """Multi-head self-attention over tokens (N, L, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, width = x.shape
        q, k, v = self.qkv(x).view(images, tokens, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(images, tokens, width)
        projected: Tensor = self.proj(mixed)
        return projected


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after a norm and added to its input."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        summed: Tensor = x + self.mlp(self.norm2(x))
        return summed


class SmallViT(nn.Module):
    """Vision transformer of four blocks with fixed positions and average pooling (Beyer et al., arXiv 2205.01580).

    Two strided convolutions make the tokens (Xiao et al., NeurIPS 2021). Positions are computed, so any image size from
    4 on fits. width: of a token, a multiple of 16.
    """

    def __init__(self, classes: int, channels: int, width: int):
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, 2, 1)
        self.merge = nn.Conv2d(width, width, 2, 2)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = self.merge(nn.functional.gelu(x))
        tokens = x.flatten(2).transpose(1, 2) + positions(x)
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def positions(x: Tensor) -> Tensor:
    """Return sine and cosine positions (H·W, width) of a map (N, width, H, W); width is a multiple of 4."""
    width, height, across = x.shape[1:]
    speed = 10_000 ** -(torch.arange(width // 4, device=x.device, dtype=x.dtype) / max(width // 4 - 1, 1))
    sides = [torch.arange(n, device=x.device, dtype=x.dtype)[:, None] * speed for n in (height, across)]
    rows, columns = sides[0].repeat_interleave(across, 0), sides[1].repeat(height, 1)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], 1)


def small_convnext(classes: int, channels: int, width: int) -> nn.Module:
    """Build a ConvNeXt (Liu et al., CVPR 2022) of three stages of two blocks, with a stem of stride 2. H, W ≥ 8."""
    from torchvision.models import ConvNeXt
    from torchvision.models.convnext import CNBlockConfig

    widths = ((width, 2 * width), (2 * width, 4 * width), (4 * width, None))
    stages = [CNBlockConfig(inputs, outputs, 2) for inputs, outputs in widths]
    model = ConvNeXt(stages, num_classes=classes, layer_scale=1.0)
    model.features[0][0] = nn.Conv2d(channels, width, 2, 2)
    built: nn.Module = model
    return built


def group_norm_resnet18(classes: int, channels: int, width: int) -> nn.Module:
    """Build our ResNet18 with GroupNorm (Wu & He, ECCV 2018) of up to eight groups in place of BatchNorm. H, W ≥ 8."""
    model = SmallImageResNet(BasicBlock, (2, 2, 2, 2), classes, channels, width)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                groups = next(k for k in (8, 4, 2, 1) if child.num_features % k == 0)
                setattr(module, name, nn.GroupNorm(groups, child.num_features))
    return model


def plain_vgg8(classes: int, channels: int, width: int) -> nn.Module:
    """Build a VGG (Simonyan & Zisserman, 2015) of six convolutions and two linear layers, without norms. H, W ≥ 8."""
    from torchvision.models import VGG
    from torchvision.models.vgg import make_layers

    plan: list[str | int] = [width, width, "M", 2 * width, 2 * width, "M", 4 * width, 4 * width, "M"]
    model = VGG(make_layers(plan), num_classes=classes, init_weights=True)
    if channels != 3:
        model.features[0] = nn.Conv2d(channels, width, 3, padding=1)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(4 * width, 8 * width), nn.ReLU(), nn.Linear(8 * width, classes))
    built: nn.Module = model
    return built
