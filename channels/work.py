"""Multiply-adds of operations that are no layers: functional convolutions, matrix products,
attention.

for work in find_work(graph, skeleton, values, samples):
    print(title(work.node), work.macs)
"""

import math
from typing import NamedTuple

import torch
import torchvision  # noqa: F401, which registers deform_conv2d
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from channels.operations import PAIRED, Kind, kind_of, name_of, works_in_place
from channels.running import compute
from channels.traits import traits_of
from common.inputs import tensors_in

LAYERS = nn.modules.conv._ConvNd, nn.Linear  # which are counted by the sizes of their weights
FREE = {Kind.MOVES, Kind.APART, *PAIRED}  # kinds of operations without any


class Work(NamedTuple):
    """What an operation computes. macs: multiply-adds for one sample. reads: the numbers of the
    channels that it reads, as a vector."""

    node: fx.Node
    macs: int
    reads: torch.Tensor

    def has_inside(self, layer):
        """Whether it calls the module that is, or has, the layer of a dotted name."""
        is_module = self.node.op == "call_module"
        return is_module and f"{layer}.".startswith(f"{self.node.target}.")


def find_work(graph: fx.Graph, skeleton: nn.Module, values: dict, samples: int) -> list[Work]:
    """The Work of all operations of a graph that make multiply-adds and are no layers. values: what
    each node gives for so many samples, on the meta device."""
    works = []
    with FlopCounterMode(display=False, custom_mapping=_further_counts()) as counter:
        for node in filter(_may_multiply, graph.nodes):
            if works_in_place(node, skeleton) and "mm" not in name_of(node):
                continue  # it would change a value once more
            before = counter.get_total_flops()
            compute(node, skeleton, values.__getitem__)
            flops = counter.get_total_flops() - before
            if flops:
                works.append(Work(node, flops // (2 * samples), _reads(node)))
    return works


def _may_multiply(node):
    if node.op not in ("call_function", "call_method", "call_module") or kind_of(node) in FREE:
        return False
    return not issubclass(traits_of(node).layer or object, LAYERS)


def _reads(node):
    numbers = [torch.empty(0, dtype=torch.long)]
    for source in node.all_input_nodes:
        channels = traits_of(source).channels
        own = [channels[1]] if channels else tensors_in(traits_of(source).numbers)
        numbers += [vector.flatten() for vector in own]
    numbers = torch.cat(numbers).unique()
    return numbers[numbers > 0]  # 0 stands for all that never leave


def _further_counts():
    """What torch's counter does not know: operations -> functions of what they are called with."""
    return {
        torch.ops.torchvision.deform_conv2d: _deformed,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    }


def _deformed(_images, weight, *_, out_shape=None, **__):
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _attention(queries, keys, values, *_, **__):
    *outer, length, width = queries
    return 2 * math.prod(outer) * length * keys[-2] * (width + values[-1])
