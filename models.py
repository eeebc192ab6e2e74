"""The four networks, each built from its widths, and what can be pruned in them.

    from models import build_model
    model = build_model("resnet", num_classes=10)
    for group in model.filter_groups():
        print(group.name, group.conv.out_channels, group.stream.readers)

One idea carries the suite: every filter writes one channel of a *stream*, and the layers behind
read that stream. In a plain chain a stream has one writer; in a ResNet all blocks of a stage write
into the same one. Each network lists its filters in `filter_groups()`; penalty, estimators,
selection, surgery and reports are loops over that list.
"""
import reprlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Stream:
    """Channels on their way from the filters that write them to the layers that read them."""
    name: str
    width: int
    readers: tuple  # dotted names of the modules whose input channels these are


@dataclass(frozen=True, eq=False)
class FilterGroup:
    """The filters of one convolution, and all that goes with them when they go.

    name       dotted name of the convolution: the key of scores, widths, logs and checkpoints
    modules    dotted name -> module of everything that loses output i together with filter i:
               the convolution, its BatchNorm, and the depthwise pair carried behind them
    stream     where the outputs go
    channels   the stream channel that filter i writes, ascending
    dense      number of filters in the unpruned network
    protected  never pruned
    """
    name: str
    modules: dict
    stream: Stream
    channels: list
    dense: int
    protected: bool = False

    @property
    def conv(self):
        return self.modules[self.name]

    @property
    def bns(self):
        """The BatchNorms: the filter's own first, a carried depthwise one behind it."""
        return [m for m in self.modules.values() if isinstance(m, nn.BatchNorm2d)]

    @property
    def bn(self):
        return self.bns[0]

    @property
    def cost(self):
        """How many filters go when one of this group goes: 2 where it carries a depthwise one."""
        return len(self.modules) - len(self.bns)

    @property
    def floor(self):
        """The fewest filters that the layer keeps: 5% of the unpruned layer's, plus one."""
        return self.dense if self.protected else self.dense // 20 + 1


class Network(nn.Module):
    """What the four networks share. Subclasses build themselves with `_width`/`_channels`.

    num_classes  outputs of the classifier
    width        multiplier of all widths of the unpruned network; 1 is the published one
    dense        filter group's name -> filters in the unpruned network
    """
    name = None

    def __init__(self, num_classes, widths, width):
        super().__init__()
        self.num_classes, self.width, self.dense = num_classes, width, {}
        self._plan = dict(widths or {})
        self._build()
        unknown = set(self._plan) - set(self.dense)
        if unknown:
            raise ValueError(f"{self.name} has no layer {sorted(unknown)[0]!r}")
        del self._plan

    def _channels(self, name, full):
        """The channels that layer `name` writes, ascending; all of them unless widths say less."""
        self.dense[name] = max(1, round(full * self.width))
        most = self.dense[name]
        plan = self._plan.get(name, most)
        if type(plan) is int and 1 <= plan <= most:
            return list(range(plan))
        if not isinstance(plan, (list, tuple)) or not plan or not all(
                type(c) is int and 0 <= c < most for c in plan) or sorted(set(plan)) != list(plan):
            raise ValueError(f"the width of {name} must be a number from 1 to {most} or a rising "
                             f"list of its stream's channels below that, not {reprlib.repr(plan)}")
        return list(plan)

    def _width(self, name, full):
        return len(self._channels(name, full))

    def _group(self, name, bn, readers, carries=(), stream=None, channels=None, protected=False):
        modules = {n: self.get_submodule(n) for n in (name, bn, *carries)}
        count = modules[name].out_channels
        return FilterGroup(name, modules, stream or Stream(name, count, tuple(readers)),
                           list(range(count)) if channels is None else channels,
                           self.dense[name], protected)

    def filter_groups(self):
        """All prunable layers in order, as a list of FilterGroup, made afresh on each call."""
        raise NotImplementedError

    def published_widths(self, cfg):
        """Layer -> filters, from the `cfg` of a published checkpoint of this network. Layers that
        write into a residual stream are left out: there all filters stay, removed ones as zeros.
        Raises ValueError and others where it does not fit."""
        raise NotImplementedError

    @property
    def widths(self):
        """Enough to rebuild the network: layer -> number of filters, or, where it writes only
        some channels of its stream, the list of these."""
        return {g.name: g.channels if len(g.channels) < g.stream.width else g.stream.width
                for g in self.filter_groups()}

    def filter_count(self):
        """(filters now, filters in the unpruned network), carried depthwise ones counted."""
        groups = self.filter_groups()
        return (sum(g.conv.out_channels * g.cost for g in groups),
                sum(g.dense * g.cost for g in groups))


class VGG(Network):
    """VGG-13 (Simonyan and Zisserman 2015) with conv, ReLU, BatchNorm in this order."""
    name = "vgg"
    layout = (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")

    def _build(self):
        layers, channels = [], 3
        for item in self.layout:
            if item == "M":
                layers.append(nn.MaxPool2d(2, ceil_mode=True))  # so that small images survive
                continue
            width = self._width(f"features.{len(layers)}", item)
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True),
                       nn.BatchNorm2d(width)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, self.num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))

    def filter_groups(self):
        names = list(self.dense)
        return [self._group(name, f"features.{int(name.split('.')[1]) + 2}", [reader])
                for name, reader in zip(names, names[1:] + ["classifier"])]

    def published_widths(self, cfg):  # [64, 64, "M", 128, ...]
        if [item == "M" for item in cfg] != [item == "M" for item in self.layout]:
            raise ValueError(f"cfg is {reprlib.repr(cfg)}; {self.name} has the layers "
                             f"{list(self.layout)}")
        return dict(zip(self.dense, (item for item in cfg if item != "M")))


class DepthwiseSeparable(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # In bfloat16 it is slower there, and its gradient holds whatever is in memory where
            # weights see nothing but padding.
            with torch.autocast("cpu", enabled=False):
                x = self.conv1(x.float())
        else:
            x = self.conv1(x)
        x = F.relu(self.bn1(x), inplace=True)
        return F.relu(self.bn2(self.conv2(x)), inplace=True)


class MobileNet(Network):
    """MobileNet-V1 (Howard et al. 2017) for small images: the stem has stride 1."""
    name = "mobilenet"
    layout = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
              (1024, 2), (1024, 1))

    def _build(self):
        channels = self._width("conv1", 32)
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        blocks = []
        for full, stride in self.layout:
            width = self._width(f"layers.{len(blocks)}.conv2", full)
            blocks.append(DepthwiseSeparable(channels, width, stride))
            channels = width
        self.layers = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, self.num_classes)

    def forward(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.linear(x.mean((2, 3)))

    def filter_groups(self):
        def group(name, bn, block):  # `block` is the one behind, whose depthwise layer is carried
            return self._group(name, bn, [f"{block}.conv2"],
                               carries=(f"{block}.conv1", f"{block}.bn1"))

        last = len(self.layers) - 1
        return [group("conv1", "bn1", "layers.0"),
                *(group(f"layers.{i}.conv2", f"layers.{i}.bn2", f"layers.{i + 1}")
                  for i in range(last)),
                self._group(f"layers.{last}.conv2", f"layers.{last}.bn2", ["linear"])]

    def published_widths(self, cfg):  # [32, 64, (128, 2), 128, ...]
        items = [item if isinstance(item, (list, tuple)) else (item, 1) for item in cfg]
        if [stride for _, stride in items] != [1] + [stride for _, stride in self.layout]:
            raise ValueError(f"cfg is {reprlib.repr(cfg)}; its strides are not {self.name}'s")
        return dict(zip(self.dense, (width for width, _ in items)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut that both write into the residual stream.

    `outputs` and `shortcut` list the stream channels that the second convolution and the
    shortcut's convolution write (shortcut None: the incoming stream passes through).
    """

    def __init__(self, inputs, middle, outputs, shortcut, stream, stride):
        super().__init__()
        self.stream, self.stride = stream, stride
        self.outputs, self.shortcut_outputs = outputs, shortcut
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, len(outputs), 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(len(outputs))
        self.shortcut = nn.Sequential() if shortcut is None else nn.Sequential(
            nn.Conv2d(inputs, len(shortcut), 1, bias=False), nn.BatchNorm2d(len(shortcut)))
        # None where all channels are written: then the addition needs no index. The lists travel
        # in the widths, not in the state dict, whose keys are those of the published networks.
        for name, channels in (("conv2_channels", outputs), ("shortcut_channels", shortcut)):
            partial = channels is not None and len(channels) < stream
            self.register_buffer(name, torch.tensor(channels) if partial else None,
                                 persistent=False)

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        # Every second pixel, then a 1x1 convolution of stride 1: the same as stride 2. The CPU
        # kernel for the weights of a strided 1x1 convolution writes past its memory in
        # channels-last (torch 2.15, batches of 3, 5 and 7 of 8 x 16 x 16).
        strided = x[:, :, ::self.stride, ::self.stride] if self.stride > 1 else x
        return F.relu(self._add(self.shortcut(strided), self.shortcut_channels,
                                out, self.conv2_channels), inplace=True)

    def _add(self, a, a_channels, b, b_channels):
        if b_channels is None:
            a, a_channels, b, b_channels = b, b_channels, a, a_channels
        if b_channels is None:
            return a + b
        size, a, b = (a.shape[0], *a.shape[2:]), _pixels(a), _pixels(b)
        if a_channels is not None:  # neither covers the stream
            a = a.new_zeros(a.shape[0], self.stream).index_add_(1, a_channels, a)
        return a.index_add(1, b_channels, b).unflatten(0, size).permute(0, 3, 1, 2)


def _pixels(x):
    """N x C x H x W -> NHW x C: a view of channels-last memory. index_add on four dimensions
    answers in the default layout, which the next convolution would have to copy back."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


class ResNet(Network):
    """ResNets of basic blocks (He et al. 2016) for small images; `layout` is (blocks, filters)."""
    layout = None

    def _build(self):
        stem = self.layout[0][1]
        stream = self._width("conv1", stem)
        self.conv1 = nn.Conv2d(3, stream, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stream)
        for stage, (count, full) in enumerate(self.layout, 1):
            plans = [self._plan_block(f"layer{stage}.{i}", full, shortcut=stage > 1 and i == 0)
                     for i in range(count)]
            writers = [channels for _, outputs, shortcut in plans
                       for channels in (outputs, shortcut) if channels is not None]
            needed = 1 + max(channels[-1] for channels in writers)
            inputs, stream = stream, needed if stage > 1 else stream
            if needed > stream or (stage > 1 and len(set().union(*writers)) < needed):
                raise ValueError(f"layer{stage}: the widths do not fill its residual stream")
            blocks = []
            for i, plan in enumerate(plans):
                first = stage > 1 and i == 0
                blocks.append(BasicBlock(inputs if first else stream, *plan, stream,
                                         stride=2 if first else 1))
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(stream, self.num_classes)

    def _plan_block(self, name, full, shortcut):
        return (self._width(f"{name}.conv1", full), self._channels(f"{name}.conv2", full),
                self._channels(f"{name}.shortcut.0", full) if shortcut else None)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in range(1, len(self.layout) + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))

    def filter_groups(self):
        stages = len(self.layout)
        groups = []
        for stage in range(1, stages + 1):
            blocks = getattr(self, f"layer{stage}")
            readers = [f"layer{stage}.{i}.conv1" for i in range(len(blocks)) if stage == 1 or i]
            readers += ([f"layer{stage + 1}.0.conv1", f"layer{stage + 1}.0.shortcut.0"]
                        if stage < stages else ["linear"])
            stream = Stream(f"layer{stage}", blocks[0].stream, tuple(readers))
            if stage == 1:
                groups.append(self._group("conv1", "bn1", (), stream=stream, protected=True))
            for i, block in enumerate(blocks):
                name = f"layer{stage}.{i}"
                groups.append(self._group(f"{name}.conv1", f"{name}.bn1", [f"{name}.conv2"]))
                groups.append(self._group(f"{name}.conv2", f"{name}.bn2", (), stream=stream,
                                          channels=block.outputs))
                if len(block.shortcut):
                    groups.append(self._group(f"{name}.shortcut.0", f"{name}.shortcut.1", (),
                                              stream=stream,
                                              channels=block.shortcut_outputs))
        return groups

    def published_widths(self, cfg):  # {"base": .., "l1": [conv1, conv2, conv1, ..], "l2s": ..}
        widths = {}
        for stage, (count, _) in enumerate(self.layout, 1):
            if len(cfg[f"l{stage}"]) != 2 * count:
                raise ValueError(f"cfg names {len(cfg[f'l{stage}'])} layers in stage {stage}; "
                                 f"{self.name} has {2 * count}")
            widths.update((f"layer{stage}.{i}.conv1", width)
                          for i, width in enumerate(cfg[f"l{stage}"][::2]))
        return widths


class ResNet34(ResNet):
    name = "resnet"
    layout = ((3, 64), (4, 128), (6, 256), (3, 512))


class ResNet56(ResNet):
    name = "resnet-56"
    layout = ((9, 16), (9, 32), (9, 64))


NETWORKS = {network.name: network for network in (VGG, MobileNet, ResNet34, ResNet56)}


def build_model(name, num_classes=100, widths=None, width=1.0):
    """Build one of the four networks, with fresh weights in channels-last memory.

    name: "vgg", "mobilenet", "resnet" (ResNet-34) or "resnet-56".
    widths: None for the unpruned network; else layer -> number of filters, or, for a layer that
        writes into a residual stream, the rising list of channels that it writes. `model.widths`
        of any network is such a plan. Layers that it does not name keep their full width.
    width: multiplier of the unpruned network's widths, which percentages and floors refer to.
    Input of the network: N x 3 x H x W, any H and W; output: N x num_classes logits.
    Raises ValueError for an unknown name or a plan that does not fit.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    return NETWORKS[name](num_classes, widths, width).to(memory_format=torch.channels_last)


def unpruned_twin(network):
    """The unpruned network that `network` was pruned from, with fresh weights."""
    return build_model(network.name, network.num_classes, width=network.width)


def measure_cost(network, image_size=32, widths=None):
    """What a network costs for one image, as a dict.

    "filters": of all prunable layers, carried depthwise ones included; "parameters"; "macs":
    multiply-adds of convolutions and linear layers; "flops": two for each, counted by torch's
    FlopCounterMode; "layer_macs": dotted name -> multiply-adds of each of these.
    widths: those of another network of its kind, instead of its own.
    """
    widths = tuple((name, width if isinstance(width, int) else tuple(width))
                   for name, width in (widths or network.widths).items())  # hashable
    cost = _cost_of(network.name, network.num_classes, widths, network.width, image_size)
    return {**cost, "layer_macs": dict(cost["layer_macs"])}


@lru_cache
def _cost_of(name, num_classes, widths, width, image_size):
    with torch.device("meta"), torch.no_grad():  # shapes only: nothing is computed
        twin = build_model(name, num_classes, widths, width).eval()
        with FlopCounterMode(display=False) as counter:
            twin(torch.empty(1, 3, image_size, image_size))
    flops, by_module = counter.get_total_flops(), counter.get_flop_counts()
    return {"filters": twin.filter_count()[0],
            "parameters": sum(p.numel() for p in twin.parameters()),
            "macs": flops // 2, "flops": flops,
            "layer_macs": {n: sum(by_module[f"{type(twin).__name__}.{n}"].values()) // 2
                       for n, module in twin.named_modules()
                       if isinstance(module, (nn.Conv2d, nn.Linear))}}


def kernel_matrix(conv):
    """A convolution's kernels as the rows of a matrix: out_channels x weights of one filter, in
    their order in channels-last memory."""
    return conv.weight.permute(0, 2, 3, 1).flatten(1)


def filter_matrix(conv):
    """`kernel_matrix`, with the bias as one more column where the convolution has one."""
    matrix = kernel_matrix(conv)
    return matrix if conv.bias is None else torch.cat((matrix, conv.bias[:, None]), 1)
