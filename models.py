"""The four networks as ordinary PyTorch.

model = build_model("resnet", num_classes=10)
for group in filter_groups(model):          # of channels/groups.py: what can be pruned in it
    print(group.name, len(group.channels), group.stream.readers)
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from channels.attention import PackedRows  # noqa: F401
from channels.costs import filter_costs, group_norms, measure_cost  # noqa: F401
from channels.groups import (  # noqa: F401
    FilterGroup,
    Stream,
    all_filters,
    dense_widths,
    filter_count,
    filter_groups,
    filter_matrix,
    keep_whole,
    kernel_matrix,
    layers_without_images,
    widths_of,
)
from channels.layers import by_filter  # noqa: F401

# ------------------------------------------------------------------------------- the four networks


def _scaled(filters, width):
    return max(1, round(filters * width))


class VGG(nn.Module):
    """VGG-13 (Simonyan and Zisserman 2015) with conv, ReLU, BatchNorm in this order."""

    layout = (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")

    def __init__(self, num_classes=100, width=1.0):
        super().__init__()
        layers, channels = [], 3
        for item in self.layout:
            if item == "M":
                layers.append(nn.MaxPool2d(2, ceil_mode=True))  # so that small images survive
                continue
            filters = _scaled(item, width)
            layers += [
                nn.Conv2d(channels, filters, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.BatchNorm2d(filters),
            ]
            channels = filters
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class DepthwiseConv2d(nn.Conv2d):
    def __init__(self, channels, stride):
        super().__init__(channels, channels, 3, stride, 1, groups=channels, bias=False)

    def forward(self, x):
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # In bfloat16 it is slower there, and its gradient holds whatever is in memory where
            # weights see nothing but padding.
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class DepthwiseSeparable(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = DepthwiseConv2d(inputs, stride)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)), inplace=True)


class MobileNet(nn.Module):
    """MobileNet-V1 (Howard et al. 2017) for small images: the stem has stride 1."""

    layout = (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    )

    def __init__(self, num_classes=100, width=1.0):
        super().__init__()
        channels = _scaled(32, width)
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        widths = [channels, *(_scaled(filters, width) for filters, _ in self.layout)]
        self.layers = nn.Sequential(
            *(
                DepthwiseSeparable(inputs, outputs, stride)
                for inputs, outputs, (_, stride) in zip(widths, widths[1:], self.layout)
            )
        )
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.linear(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, and a shortcut where the shape changes."""

    def __init__(self, inputs, outputs, stride=1, shortcut=False):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(
            *[nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            if shortcut
            else []
        )

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        # Every second pixel, then a 1x1 convolution of stride 1: the same as stride 2. The CPU
        # kernel for the weights of a strided 1x1 convolution writes past its memory in
        # channels-last (torch 2.15, batches of 3, 5 and 7 of 8 x 16 x 16).
        strided = x[:, :, :: self.stride, :: self.stride] if self.stride > 1 else x
        return F.relu(self.shortcut(strided) + out, inplace=True)


class ResNet(nn.Module):
    """ResNets of basic blocks (He et al. 2016) for small images; `layout` is (blocks, filters)."""

    layout = None
    protected = ("conv1",)  # as published: the stem is never pruned

    def __init__(self, num_classes=100, width=1.0):
        super().__init__()
        channels = _scaled(self.layout[0][1], width)
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for stage, (count, filters) in enumerate(self.layout, 1):
            inputs, channels = channels, _scaled(filters, width)
            first = BasicBlock(inputs, channels, *((2, True) if stage > 1 else ()))
            setattr(
                self,
                f"layer{stage}",
                nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(count - 1))),
            )
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in range(1, len(self.layout) + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))


class ResNet34(ResNet):
    layout = ((3, 64), (4, 128), (6, 256), (3, 512))


class ResNet56(ResNet):
    layout = ((9, 16), (9, 32), (9, 64))


NETWORKS = {"vgg": VGG, "mobilenet": MobileNet, "resnet": ResNet34, "resnet-56": ResNet56}


@dataclass(frozen=True)
class Origin:
    """How the unpruned network is built: its name, its outputs, or None where that takes no such
    number, and the multiplier of its widths."""

    name: str
    num_classes: int | None
    width: float = 1.0


def build_model(name: str, num_classes: int = 100, width: float = 1.0) -> nn.Module:
    """Build one of the four networks, unpruned, with fresh weights in channels-last memory.

    name: "vgg", "mobilenet", "resnet" (ResNet-34) or "resnet-56". width: multiplies its widths.
    Input of the network: N x 3 x H x W, any H and W; output: N x num_classes logits. Its `origin`
    says how it was built. Raises ValueError for an unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    model = NETWORKS[name](num_classes, width).to(memory_format=torch.channels_last)
    model.origin = Origin(name, num_classes, width)
    return model
