"""Multiply-adds of operations that are no layers: functional convolutions, matrix products,
attention.

for work in find_work(graph, skeleton, values):
    print(title(work.node), work.macs)
"""

import math
from typing import NamedTuple

import torch
import torchvision  # noqa: F401, which registers deform_conv2d
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from channels.operations import kind_of, name_of, works_in_place
from channels.running import compute
from channels.traits import tensors_in, traits_of

LAYERS = nn.modules.conv._ConvNd, nn.Linear  # which are counted by the sizes of their weights


class Work(NamedTuple):
    """What an operation computes. macs: multiply-adds for one image. reads: the numbers of the
    channels that it reads, as a vector."""

    node: fx.Node
    macs: int
    reads: torch.Tensor

    def has_inside(self, layer):
        """Whether it calls the module that is, or has, the layer of a dotted name."""
        is_module = self.node.op == "call_module"
        return is_module and f"{layer}.".startswith(f"{self.node.target}.")


def find_work(graph: fx.Graph, skeleton: nn.Module, values: dict) -> list[Work]:
    """The Work of all operations of a graph that make multiply-adds and are no layers. values: what
    each node gives for two images, on the meta device."""
    found = []
    with FlopCounterMode(display=False, custom_mapping=_further_counts()) as counter:
        for node in filter(_may_multiply, graph.nodes):
            if works_in_place(node, skeleton) and "mm" not in name_of(node):
                continue  # it would change a value once more
            before = counter.get_total_flops()
            compute(node, skeleton, values.__getitem__)
            flops = counter.get_total_flops() - before
            if flops:
                found.append(Work(node, flops // 4, _reads(node)))  # of two images
    return found


def _may_multiply(node):
    is_call = node.op in ("call_function", "call_method", "call_module")
    return (
        is_call
        and kind_of(node) is None
        and not issubclass(traits_of(node).layer or object, LAYERS)
    )


def _reads(node):
    numbers = [torch.empty(0, dtype=torch.long)]
    for source in node.all_input_nodes:
        channels = traits_of(source).channels
        own = [channels[1]] if channels else tensors_in(traits_of(source).numbers)
        numbers += [each.flatten() for each in own]
    return torch.cat(numbers).unique()


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
