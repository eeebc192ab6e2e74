"""A layer, the numbers of its channels, and the same layer with fewer of them."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from channels.trace import as_real


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
        reads, writes = (
            None if numbers is None else numbers[alive[numbers]]
            for numbers in (self.reads, self.writes)
        )
        return Layer(reads, writes, max(1, self.groups * len(writes) // len(self.writes)))

    def sides_of(self, shape):
        """Which channels the first two dimensions of one of its weights are: "writes" and "reads",
        or None where they are others."""
        if math.prod(shape) == len(self.writes):  # one value for each channel, in any dimension
            return "writes", None
        inputs = (
            self.reads is not None
            and self.groups == 1
            and len(shape) > 1
            and (shape[1] == len(self.reads))
        )
        return ("writes" if shape[:1] == (len(self.writes),) else None, "reads" if inputs else None)


def narrow(module, layer, ins=None, outs=None):
    """Leave a layer, in place, only some of its inputs and outputs: indices, None for all."""
    old = {0: len(layer.writes), 1: None if layer.reads is None else len(layer.reads)}
    for kind in (module._parameters, module._buffers):
        for name, tensor in kind.items():
            if tensor is None or tensor.dim() == 0:
                continue
            cut = tensor.detach()
            if outs is not None and tensor.shape[0] == old[0]:
                cut = cut.index_select(0, outs.to(tensor.device))
            if ins is not None and layer.groups == 1 and tensor.shape[1:2] == (old[1],):
                cut = cut.index_select(1, ins.to(tensor.device))
            if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
                cut = cut.contiguous().to(memory_format=torch.channels_last)
            kind[name] = (
                nn.Parameter(cut, tensor.requires_grad) if (kind is module._parameters) else cut
            )
    sizes = {}
    if outs is not None:
        left = len(outs)
        sizes = dict.fromkeys(
            ("out_channels", "out_features", "num_features", "num_parameters", "num_channels"), left
        )
        if layer.groups > 1:
            sizes |= dict.fromkeys(("groups", "num_groups"), layer.groups * left // old[0])
        if layer.reads is None:
            sizes["in_channels"] = left
    if ins is not None:
        sizes |= dict.fromkeys(("in_channels", "in_features"), len(ins))
    for name, size in sizes.items():
        if hasattr(module, name):
            setattr(module, name, size)


def elsewhere(name, root, read):
    """What else has or reads the parameters of the layer `name` of `root`, from which a cut would
    part them, in words; None where nothing does. read: names of parameters that are read alone."""
    parameters = root.get_submodule(name)._parameters
    for own in parameters:
        if f"{name}.{own}" in read:
            return f"its {own} is read elsewhere, too"
    weight = parameters.get("weight")
    if (
        weight is not None
        and sum(each._parameters.get("weight") is weight for each in root.modules()) > 1
    ):
        return "another layer has the same weight"
    return None


def can_be_cut(module):
    """(inputs, outputs): whether a convolution or linear layer, also of a subclass, computes with
    some of them what it computes with the others at zero, or without the others."""
    if type(module) in (nn.Conv2d, nn.Linear):
        return True, True
    real = as_real(module)
    outputs, groups = len(real.weight), getattr(real, "groups", 1)
    inputs = real.weight.shape[1] * groups
    layer = Layer(
        None if groups == outputs else torch.arange(inputs), torch.arange(outputs), groups
    )
    size = (
        [2 * k * d + 8 for k, d in zip(real.kernel_size, real.dilation)]
        if isinstance(real, nn.Conv2d)
        else []
    )
    images = torch.randn(2, inputs, *size, generator=torch.Generator().manual_seed(0))
    kept = -(-groups // 2) if groups > 1 else 0
    ins = torch.arange(kept * inputs // groups) if kept else torch.arange(0, inputs, 2)
    outs = torch.arange(kept * outputs // groups) if kept else torch.arange(0, outputs, 2)
    answers = []
    for some_ins, some_outs in ((ins, outs if kept else None), (ins if kept else None, outs)):
        small, given, part = copy.deepcopy(real), images.clone(), images
        if some_ins is not None:
            given[:, [i for i in range(inputs) if i not in set(ins.tolist())]] = 0
            part = images[:, ins]
        narrow(small, layer, some_ins, some_outs)
        try:
            with torch.no_grad():
                wanted, result = real(given), small(part)
            wanted = wanted if some_outs is None else wanted[:, outs]
            answers.append(torch.allclose(result, wanted, rtol=1e-3, atol=1e-4))
        except Exception:  # its forward may ask for shapes
            answers.append(False)
    return tuple(answers)
