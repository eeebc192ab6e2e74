"""What is known of the nodes of a graph, beside what torch.fx keeps.

give(node, value=tensor)
traits_of(node).value
"""

from dataclasses import dataclass, replace

import torch

KEY = "traits"  # in node.meta, which torch.fx copies with a node


@dataclass(frozen=True)
class Traits:
    """What is known of a node of the graph, and of what it gives.

    layer     the class of the layer that it calls; None of other operations
    value     what it gives for two images, on the meta device; tuples and lists of tensors as well
    numbers   of the same shape: for each place, the number of its channel (numbering.py); None of
              what is no tensor, such as sizes
    channels  (dimension, vector of numbers) where its numbers vary along one dimension; None of
              sizes, of tuples, and of what is on its way from one view to the next
    in_part   whether it changes a part of a tensor that others read, too
    original  name of the node of the unpruned network's graph that it stands for
    mode      "training" or "evaluation" where only one of them computes it
    """

    layer: type = None
    value: object = None
    numbers: object = None
    channels: tuple = None
    in_part: bool = False
    original: str = None
    mode: str = None


_NOTHING = Traits()


def traits_of(node):
    return node.meta.get(KEY, _NOTHING)


def give(node, **changes):
    """Change what is known of a node. changes: fields of Traits."""
    node.meta[KEY] = replace(traits_of(node), **changes)


def map_tensors(function, value):
    """The same nested tuples, with function(tensor) for each tensor and None for all else."""
    if isinstance(value, (tuple, list)):
        return tuple(map_tensors(function, part) for part in value)
    return function(value) if isinstance(value, torch.Tensor) else None
