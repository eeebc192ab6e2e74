"""A layer, the numbers of its channels, and the same layer with fewer of them."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from channels.running import as_real

# What layers call the number of their outputs.
OUTPUTS = "out_channels", "out_features", "num_features", "num_parameters", "num_channels"


@dataclass(frozen=True)
class Layer:
    """A layer, or a parameter, of the graph, and the numbers of its channels, as vectors.

    reads, writes  inputs and outputs; None where its weights have no dimension for them
    groups         that its channels are in, as of a grouped convolution
    """

    reads: torch.Tensor
    writes: torch.Tensor
    groups: int = 1

    def where(self, alive):
        """The same layer with the channels that are alive."""
        writes = self.writes[alive[self.writes]]
        reads = None if self.reads is None else self.reads[alive[self.reads]]
        return Layer(reads, writes, max(1, self.groups * len(writes) // len(self.writes)))

    def sides_of(self, shape):
        """Which channels the first two dimensions of one of its weights are: "writes" and "reads",
        or None where they are others."""
        if math.prod(shape) == len(self.writes):  # one value for each channel, in any dimension
            return "writes", None
        first = "writes" if shape[:1] == (len(self.writes),) else None
        has_reads = self.reads is not None and self.groups == 1 and len(shape) > 1
        second = "reads" if has_reads and shape[1] == len(self.reads) else None
        return first, second


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
    cut = tensor
    if outs is not None and tensor.shape[0] == len(layer.writes):
        cut = cut.index_select(0, outs.to(tensor.device))
    has_inputs = layer.reads is not None and layer.groups == 1
    if ins is not None and has_inputs and tensor.shape[1:2] == (len(layer.reads),):
        cut = cut.index_select(1, ins.to(tensor.device))
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
    if type(module) in (nn.Conv2d, nn.Linear):
        return True, True
    real = as_real(module)
    outputs, groups = len(real.weight), getattr(real, "groups", 1)
    inputs = real.weight.shape[1] * groups
    reads = None if groups == outputs else torch.arange(inputs)
    layer = Layer(reads, torch.arange(outputs), groups)
    if groups > 1:  # whole groups, so that inputs and outputs leave together
        kept = -(-groups // 2)
        ins = torch.arange(kept * inputs // groups)
        outs = torch.arange(kept * outputs // groups)
        both = _cuts(real, layer, ins, outs, ins)
        return both, both
    ins, outs = torch.arange(0, inputs, 2), torch.arange(0, outputs, 2)
    return _cuts(real, layer, ins, None, ins), _cuts(real, layer, None, outs, None)


def _cuts(real, layer, ins, outs, given):
    """Whether a layer with only some inputs and outputs computes what the whole one does, of images
    that are zero in all inputs but those that are `given`."""
    size = []
    if isinstance(real, nn.Conv2d):
        size = [2 * side * step + 8 for side, step in zip(real.kernel_size, real.dilation)]
    inputs = real.weight.shape[1] * layer.groups
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
