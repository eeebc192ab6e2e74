"""A layer, the numbers of its channels, and the same layer with fewer of them."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from channels.running import as_real

# What layers call the number of their outputs.
OUTPUTS = "out_channels", "out_features", "num_features", "num_parameters", "num_channels"

# Layers of these very classes are known to compute each output by itself.
PLAIN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class Layer:
    """A layer, or a parameter, of the graph, and the numbers of its channels, as vectors.

    reads, writes  inputs and outputs; None where its weights have no dimension for them
    groups         that its channels are in, as of a grouped convolution
    order          of the dimensions of its weights: "writes" first, but of a transposed convolution
    """

    reads: torch.Tensor
    writes: torch.Tensor
    groups: int = 1
    order: tuple = ("writes", "reads")

    def where(self, alive):
        """The same layer with the channels that are alive."""
        writes = self.writes[alive[self.writes]]
        reads = None if self.reads is None else self.reads[alive[self.reads]]
        groups = max(1, self.groups * len(writes) // len(self.writes))
        return Layer(reads, writes, groups, self.order)

    def dims_of(self, shape):
        """Which dimensions of one of its weights have channels: {"writes" or "reads": dimension}.

        The first has all of a side, the second those of one group, which stay with several. A
        scalar has none."""
        if not shape:
            return {}
        long = [dim for dim, size in enumerate(shape) if size > 1] or [0]
        if len(long) == 1 and math.prod(shape) == len(self.writes):  # one value for each channel
            return {"writes": long[0]}
        dims = {}
        for dim, side in enumerate(self.order[: 2 if self.groups == 1 else 1]):
            channels = getattr(self, side)
            if channels is not None and tuple(shape[dim : dim + 1]) == (len(channels),):
                dims[side] = dim
        return dims


def order_of(module):
    """Which sides the first two dimensions of the weight of a layer are; see `Layer`."""
    is_transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    return ("reads", "writes") if is_transposed else ("writes", "reads")


def by_filter(module, weights):
    """A tensor like the weights of a convolution or linear layer with its filters along the first
    dimension, what they read along the second: a view, or a copy where it is transposed."""
    if order_of(module)[0] == "writes":
        return weights
    groups = weights.unflatten(0, (module.groups, -1))
    return groups.transpose(1, 2).flatten(0, 1)


def narrow(module, layer, ins=None, outs=None):
    """Leave a layer, in place, only some of its inputs and outputs: indices, None for all."""
    for tensors in (module._parameters, module._buffers):
        for name, tensor in tensors.items():
            if tensor is None or tensor.dim() == 0:
                continue
            cut = _narrowed(tensor.detach(), layer, ins, outs)
            if tensors is module._parameters:
                cut = nn.Parameter(cut, tensor.requires_grad)
            tensors[name] = cut
    for name, size in _sizes_after(layer, ins, outs).items():
        if hasattr(module, name):
            setattr(module, name, size)


def _narrowed(tensor, layer, ins, outs):
    """A layer's tensor without the other inputs and outputs, in the same layout."""
    cut, left = tensor, {"writes": outs, "reads": ins}
    for side, dim in layer.dims_of(tensor.shape).items():
        if left[side] is not None:
            cut = cut.index_select(dim, left[side].to(tensor.device))
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        cut = cut.contiguous().to(memory_format=torch.channels_last)
    return cut


def _sizes_after(layer, ins, outs):
    """What a narrowed layer says of its sizes: names of attributes -> values, also of those that
    only other kinds of layers have."""
    sizes = {}
    if outs is not None:
        for name in OUTPUTS:
            sizes[name] = len(outs)
        if layer.groups > 1:
            groups = layer.groups * len(outs) // len(layer.writes)
            sizes |= {"groups": groups, "num_groups": groups}
        if layer.reads is None:
            sizes["in_channels"] = len(outs)
    if ins is not None:
        sizes |= {"in_channels": len(ins), "in_features": len(ins)}
    return sizes


def elsewhere(name, root, read):
    """What else has or reads the parameters of the layer `name` of `root`, from which a cut would
    part them, in words; None where nothing does. read: names of parameters that are read alone."""
    parameters = root.get_submodule(name)._parameters
    for own in parameters:
        if f"{name}.{own}" in read:
            return f"its {own} is read elsewhere, too"
    weight = parameters.get("weight")
    if weight is None:
        return None
    weights = [module._parameters.get("weight") for module in root.modules()]
    if sum(other is weight for other in weights) > 1:
        return "another layer has the same weight"
    return None


def has_hooks(module):
    return bool(module._forward_hooks or module._forward_pre_hooks)


def can_be_cut(module):
    """(inputs, outputs): whether a convolution or linear layer, also of a subclass, computes with
    some of them what it computes with the others at zero, or without the others."""
    if type(module) in PLAIN:
        return True, True
    real = as_real(module)
    inputs, outputs, groups = sides_of(real)
    reads = None if groups == outputs else torch.arange(inputs)
    layer = Layer(reads, torch.arange(outputs), groups, order_of(real))
    if groups > 1:  # whole groups, so that inputs and outputs leave together
        kept = -(-groups // 2)
        ins = torch.arange(kept * inputs // groups)
        outs = torch.arange(kept * outputs // groups)
        both = _cuts(real, layer, ins, outs, ins)
        return both, both
    ins, outs = torch.arange(0, inputs, 2), torch.arange(0, outputs, 2)
    return _cuts(real, layer, ins, None, ins), _cuts(real, layer, None, outs, None)


def sides_of(module):
    """(inputs, outputs, groups) of a convolution or linear layer."""
    groups = getattr(module, "groups", 1)
    filters, columns = by_filter(module, module.weight).shape[:2]
    return columns * groups, filters, groups


def _cuts(real, layer, ins, outs, given):
    """Whether a layer with only some inputs and outputs computes what the whole one does, of images
    that are zero in all inputs but those that are `given`."""
    size = []
    if isinstance(real, nn.modules.conv._ConvNd):
        size = [2 * side * step + 8 for side, step in zip(real.kernel_size, real.dilation)]
    inputs = sides_of(real)[0]
    images = torch.randn(2, inputs, *size, generator=torch.Generator().manual_seed(0))
    part = images
    if given is not None:
        part = images[:, given]
        images = torch.zeros_like(images).index_copy_(1, given, part)
    small = copy.deepcopy(real)
    narrow(small, layer, ins, outs)
    try:
        with torch.no_grad():
            wanted, result = real(images), small(part)
        wanted = wanted if outs is None else wanted[:, outs]
        return torch.allclose(result, wanted, rtol=1e-3, atol=1e-4)
    except Exception:  # its forward may ask for shapes
        return False
