"""ResNets for re-identification: without pooling and classifier, with a last stride of 1.

The networks are those of He et al., CVPR 2016, with a bottleneck's stride in its 3x3 convolution; the last
stride of 1 is from Luo et al., CVPR Workshops 2019. Modules are named as in torchvision, so that its ImageNet
weights can be loaded.
"""

from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)
        nn.init.zeros_(self.bn2.weight)  # every block starts as its shortcut

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``[frame, inputs, rows, columns]`` to ``[frame, width, rows / stride, columns / stride]``."""
        inner = functional.relu(self.bn1(self.conv1(maps)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.downsample(maps))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut; outputs four times ``width`` channels."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)
        nn.init.zeros_(self.bn3.weight)  # every block starts as its shortcut

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``[frame, inputs, rows, columns]`` to ``[frame, 4 width, rows / stride, columns / stride]``."""
        inner = functional.relu(self.bn1(self.conv1(maps)))
        inner = functional.relu(self.bn2(self.conv2(inner)))
        return functional.relu(self.bn3(self.conv3(inner)) + self.downsample(maps))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
"""Block type of each network, and the number of blocks in its four layers."""


class ResNet(nn.Module):
    """Network of `RESNETS` from stem to last map, for frames with ``channels`` channels."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        block, (first, second, third, fourth) = RESNETS[name]
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _layer(block, 64, 64, first, stride=1)
        self.layer2 = _layer(block, 64 * block.expansion, 128, second, stride=2)
        self.layer3 = _layer(block, 128 * block.expansion, 256, third, stride=2)
        self.layer4 = _layer(block, 256 * block.expansion, 512, fourth, stride=1)
        self.map_channels = 512 * block.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, frames: Tensor) -> Tensor:
        """Map ``[frame, channels, height, width]`` to ``[frame, map_channels, height / 16, width / 16]``."""
        maps = functional.relu(self.bn1(self.conv1(frames)))
        maps = functional.max_pool2d(maps, 3, 2, padding=1)
        last: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        return last


def _layer(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, count: int, stride: int
) -> nn.Sequential:
    rest = (block(width * block.expansion, width, 1) for _ in range(count - 1))
    return nn.Sequential(block(inputs, width, stride), *rest)
