"""ResNets for small images: He et al. 2016 (CVPR) and, pre-activated, He et al. 2016 (ECCV).

Module names equal those of the CIFAR models of BackdoorBench and the RNP authors, so their weights load: `conv1`,
`layer1..4.K.{bn,conv}N`, `shortcut.0`, `linear`. The pre-activated network has no norm after its last block, like
BackdoorBench's and unlike the ECCV paper's.
"""

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu_


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions, norm after each, added to the (projected) input."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = projection(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(relu_(self.bn1(self.conv1(x)))))
        return relu_(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3, 1 × 1 convolutions; the last widens by `expansion`."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = relu_(self.bn2(self.conv2(relu_(self.bn1(self.conv1(x))))))
        return relu_(self.bn3(self.conv3(out)) + self.shortcut(x))


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return the identity if the shape stays the same, else a strided 1 × 1 convolution and norm."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class PreActBlock(nn.Module):
    """Norm and ReLU before each convolution; a projecting shortcut takes the activated input."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.shortcut = preact_projection(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = relu_(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        summed: Tensor = self.conv2(relu_(self.bn2(self.conv1(out)))) + skip
        return summed


class PreActBottleneck(nn.Module):
    """The pre-activated block of three convolutions; the last widens by `expansion`."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        outputs = planes * self.expansion
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.shortcut = preact_projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = relu_(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(relu_(self.bn2(self.conv1(out))))
        summed: Tensor = self.conv3(relu_(self.bn3(out))) + skip
        return summed


def preact_projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Return a strided 1 × 1 convolution if the shape changes, else None; the block's first norm serves it."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))


Block = BasicBlock | Bottleneck | PreActBlock | PreActBottleneck


class SmallImageResNet(nn.Module):
    """Stem of one 3 × 3 convolution, four stages (strides 1, 2, 2, 2), average pool, `linear`.

    width: channels of the first stage; each later stage doubles it. stem_norm: whether norm and ReLU follow the stem;
    None: only if the blocks do not begin with them. Input (N, channels, H, W) with H, W ≥ 8; output logits
    (N, classes).
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: type[Block],
        depths: tuple[int, ...],
        classes: int,
        channels: int = 3,
        width: int = 64,
        *,
        stem_norm: bool | None = None,
    ):
        super().__init__()
        self.conv1 = conv3x3(channels, width)
        preact = issubclass(block, PreActBlock | PreActBottleneck)
        self.bn1 = nn.BatchNorm2d(width) if stem_norm or (stem_norm is None and not preact) else None
        inputs = width
        for stage, depth in enumerate(depths):
            planes = width * 2**stage
            blocks: list[nn.Module] = []
            for k in range(depth):
                blocks.append(block(inputs, planes, stride=2 if stage and not k else 1))
                inputs = planes * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if self.bn1 is not None:
            x = relu_(self.bn1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
