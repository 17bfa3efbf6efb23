"""Three architectures from papers on CIFAR, with the module names of their usual PyTorch implementations."""

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad, relu_

from rnp_mlflow.models.resnet import PreActBlock, SmallImageResNet, conv3x3, projection


class PaddedBlock(nn.Module):
    """Two 3 × 3 convolutions; if the shape changes, the shortcut takes every second pixel and pads with zeros.

    Source: He et al., CVPR 2016, section 4.2 (option A, no weights). Equally many zero channels are added before and
    after.
    """

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.added = stride, (planes - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(relu_(self.bn1(self.conv1(x)))))
        if self.added:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return relu_(out + x)


class ThreeStageResNet(nn.Module):
    """ResNet of 6 n + 2 layers in three stages of 1, 2 and 4 times `width` channels (He et al., CVPR 2016, 4.2).

    n: blocks per stage (3 for ResNet-20). width: 16 as published. H, W ≥ 4.
    """

    def __init__(self, n: int, classes: int, channels: int = 3, width: int = 16):
        super().__init__()
        self.conv1 = conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(n, width, width, 1)
        self.layer2 = stage(n, width, 2 * width, 2)
        self.layer3 = stage(n, 2 * width, 4 * width, 2)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(relu_(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def stage(n: int, inputs: int, planes: int, stride: int) -> nn.Sequential:
    return nn.Sequential(PaddedBlock(inputs, planes, stride), *(PaddedBlock(planes, planes, 1) for _ in range(n - 1)))


class GroupedBlock(nn.Module):
    """1 × 1, grouped 3 × 3 and 1 × 1 convolutions; the last doubles the width (Xie et al., CVPR 2017, figure 3c)."""

    def __init__(self, inputs: int, planes: int, groups: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 2 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * planes)
        self.shortcut = projection(inputs, 2 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = relu_(self.bn2(self.conv2(relu_(self.bn1(self.conv1(x))))))
        return relu_(self.bn3(self.conv3(out)) + self.shortcut(x))


class ResNeXt29(nn.Module):
    """ResNeXt-29 (Xie et al., CVPR 2017, section 5.2) with 2 groups and a 1 × 1 stem, like BackdoorBench's model.

    width: channels per group in the first stage (64 in 2 × 64d). H, W ≥ 4.
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 64):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        stages: list[nn.Sequential] = []
        for level in range(3):
            planes = 2 * width * 2**level
            blocks: list[nn.Module] = []
            for k in range(3):
                blocks.append(GroupedBlock(inputs, planes, 2, stride=2 if level and not k else 1))
                inputs = 2 * planes
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(relu_(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class SqueezeBlock(PreActBlock):
    """A pre-activated block with squeeze-and-excitation (Hu et al., CVPR 2018); reduction ratio 16."""

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__(inputs, planes, stride)
        self.fc1 = nn.Conv2d(planes, max(1, planes // 16), 1)
        self.fc2 = nn.Conv2d(max(1, planes // 16), planes, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = relu_(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(relu_(self.bn2(self.conv1(out))))
        weight = torch.sigmoid(self.fc2(relu_(self.fc1(adaptive_avg_pool2d(out, 1)))))
        summed: Tensor = out * weight + skip
        return summed


class SENet18(SmallImageResNet):
    """Four stages of two `SqueezeBlock`s; norm and ReLU follow the stem but not the last block."""

    def __init__(self, classes: int, channels: int = 3, width: int = 64):
        super().__init__(SqueezeBlock, (2, 2, 2, 2), classes, channels, width, stem_norm=True)
