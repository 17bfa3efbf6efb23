"""Twenty architectures of torchvision and ten of timm: taken in, masked, pruned, exported and served, small."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rnp_mlflow.core.neurons import copy_sharing_weights, masked_parameters, ones_mask
from rnp_mlflow.core.precision import functional_logits
from rnp_mlflow.core.prune import keep_mask, originals, prune_
from rnp_mlflow.core.units import units_of
from rnp_mlflow.loading import read_checkpoint
from rnp_mlflow.models.fit import candidates
from rnp_mlflow.models.pixel_input import PixelInputModel
from rnp_mlflow.models.registry import build

N, H, A = "norm", "hidden", "head"
# name → the kinds of its neurons, and the side of the images
ARCHITECTURES: dict[str, tuple[set[str], int]] = {
    "alexnet": ({H}, 64), "convnext_tiny": ({N, H}, 32), "densenet121": ({N}, 32), "efficientnet_b0": ({N}, 32),
    "efficientnet_v2_s": ({N}, 32), "googlenet": ({N}, 32), "inception_v3": ({N}, 80), "mnasnet0_5": ({N}, 32),
    "torchvision/mobilenet_v2": ({N}, 32), "mobilenet_v3_small": ({N}, 32), "regnet_y_400mf": ({N}, 32),
    "torchvision/resnet18": ({N}, 32), "resnext50_32x4d": ({N}, 32), "shufflenet_v2_x0_5": ({N}, 32),
    "squeezenet1_1": ({H}, 32), "swin_t": ({N, H, A}, 32), "swin_v2_t": ({N, H, A}, 32), "vgg11": ({H}, 32),
    "vgg11_bn": ({N}, 32), "vit_b_16@32": ({H, A}, 32),
    "timm/vit_tiny_patch16_224@32": ({H, A}, 32), "timm/deit_tiny_patch16_224": ({H, A}, 48),
    "timm/convnext_atto": ({N, H}, 32), "timm/convnextv2_atto": ({N, H}, 32), "timm/mixer_s32_224": ({H}, 48),
    "timm/resnet26t": ({N}, 32), "timm/resnet50_gn": ({N}, 32), "timm/poolformer_s12": ({H}, 32),
    "timm/xcit_nano_12_p16_224": ({N}, 32), "timm/swin_tiny_patch4_window7_224": ({N, H, A}, 48),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    kinds, side = ARCHITECTURES[name]
    torch.manual_seed(0)
    fresh = build(name, 4, 3)
    classifier = [value for value in fresh.parameters() if value.ndim > 1 and len(value) == 4][-1]
    nn.init.normal_(classifier)  # some begin with zeros
    save_file(fresh.state_dict(), tmp_path / "w.safetensors")
    weights = read_checkpoint(tmp_path / "w.safetensors").weights
    [found] = candidates(name, weights, exact=True)
    model, spec = found.build(tuple("abcd"), (3, side, side), (0.5,) * 3, (0.25,) * 3)
    assert {layer.kind for layer in units_of(model).values()} == kinds

    images = torch.randn(2, 3, side, side)
    mask = ones_mask(model)
    with torch.no_grad():
        plain = functional_logits(model, images, {})
        assert torch.equal(functional_logits(model, images, masked_parameters(model, mask)), plain)
        mask = {key: (torch.rand(values.shape) > 0.05).float() for key, values in mask.items()}
        wanted = functional_logits(model, images, masked_parameters(model, mask))
        pruned = copy_sharing_weights(model)
        zeros = sum(int((values == 0).sum()) for values in mask.values())
        prune_(pruned, originals(pruned), keep_mask(mask, zeros))
        torch.testing.assert_close(functional_logits(pruned, images, {}), wanted)
        assert not torch.equal(wanted, plain) or name == "googlenet"  # untrained, it answers all images alike

    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, side, side)).astype(np.uint8))
    served = PixelInputModel(pruned, spec).eval()
    size = {0: torch.export.Dim("batch")}
    exported = torch.export.export(served, (pixels,), dynamic_shapes=(size,), strict=False).module()
    with torch.no_grad():
        for count in (2, 1):
            torch.testing.assert_close(exported(pixels[:count]), served(pixels[:count]), rtol=1e-4, atol=1e-4)
