"""How large the layers of a network are when some channels are left, without building it.

structure.sizes.left(alive)
"""

from typing import NamedTuple

import torch
from torch import nn

from channels.attention import weight_of

# Layers whose multiply-adds are counted; of an nn.MultiheadAttention those of its linear layers.
KERNELS = nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention


class Size(NamedTuple):
    """Of a parameter, or of the weight of a layer.

    layer: dotted name. rest: what its size is beside the dimensions for channels. outs, ins: where
    the sizes of those stand in what Sizes.left gives.
    """

    layer: str
    rest: int
    outs: int
    ins: int

    def numel(self, left):
        return self.rest * left[self.outs] * left[self.ins]


class Sizes:
    """The sizes of all layers.

    vectors     numbers of channels, a vector for each side of each layer; the first stands for a
                dimension of one
    parameters  a Size for each parameter
    kernels     a Size for the weight of each convolution and linear layer, however it is stored
    """

    def __init__(self, structure):
        self.vectors, self._places = [torch.zeros(1, dtype=torch.long)], {}
        for name, layer in structure.layers.items():
            self._add(name, "writes", layer.writes)
            self._add(name, "reads", layer.reads)
        self.numbers = torch.cat(self.vectors)
        lengths = torch.tensor([len(vector) for vector in self.vectors])
        self.owners = torch.repeat_interleave(lengths)  # of each number, its vector's place
        self.parameters, self.kernels = [], []
        for name, tensor in structure.skeleton.named_parameters():
            layer = name if name in structure.parameters else name.rpartition(".")[0]
            self.parameters.append(self._size(layer, tensor, structure))
        for name, module in structure.skeleton.named_modules():
            if isinstance(module, KERNELS):
                self.kernels.append(self._size(name, weight_of(module), structure))

    def _add(self, name, side, numbers):
        if numbers is not None:
            self._places[name, side] = len(self.vectors)
            self.vectors.append(numbers)

    def _size(self, name, tensor, structure):
        rest, places = tensor.numel(), [0, 0]
        layer = structure.layers.get(name)
        dims = layer.dims_of(tensor.shape) if layer else {}
        for place, side in enumerate(("writes", "reads")):
            if side in dims:
                places[place] = self._places[name, side]
                rest //= len(self.vectors[places[place]])
        return Size(name, rest, *places)

    def left(self, alive):
        """How many numbers of each vector are alive, as a list. alive: a bool tensor."""
        counts = torch.zeros(len(self.vectors), dtype=torch.long)
        return counts.index_add_(0, self.owners, alive[self.numbers].long()).tolist()

    def summed(self, amounts, alive):
        """Of each number, the sum of what its places have. amounts: a float tensor, for each vector
        the amount of each of its places."""
        zeros = torch.zeros(len(alive), dtype=amounts.dtype)
        return zeros.index_add_(0, self.numbers, amounts[self.owners] * alive[self.numbers])
