"""Layers by their names, in which * stands for anything.

layers_like(model, ["layer1.*", "head.*"])
"""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from channels.groups import filter_groups, remains_of

NEAR = 3  # names that a pattern without a layer is told


def layers_like(model: nn.Module, patterns: str | Iterable[str]) -> set[str]:
    """The names of the prunable layers that some patterns name, as a set.

    A depthwise convolution, which loses what the layer before it loses, stands for that layer.
    Raises ValueError, which has near names, where a pattern names no prunable layer.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        return set()
    layers_of = {group.name: {group.name} for group in filter_groups(model)}
    layers_of |= _followers(model)
    layers = set()
    for pattern in patterns:
        named = [name for name in layers_of if fnmatchcase(name, pattern)]
        if not named:
            raise ValueError(
                f"keep={pattern!r} names no layer that can be pruned; {_near(pattern, layers_of)}"
            )
        for name in named:
            layers |= layers_of[name]
    return layers


def _followers(model):
    """Depthwise convolution -> the prunable layers that it loses its filters with."""
    structure = remains_of(model).structure
    writers = {}
    for name, numbers in structure.filters.items():
        writers |= dict.fromkeys(structure.root[numbers].tolist(), name)
    modules, followers = dict(structure.skeleton.named_modules()), {}
    for name, layer in structure.layers.items():
        if layer.reads is None and isinstance(modules.get(name), nn.modules.conv._ConvNd):
            channels = structure.root[layer.writes].tolist()
            layers = {writers[channel] for channel in channels if channel in writers}
            if layers:
                followers[name] = layers
    return followers


def _near(pattern, names):
    """What a pattern may have meant, in words."""
    known = dict.fromkeys(names)
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            known[".".join([*parts[:depth], "*"])] = None
    near = difflib.get_close_matches(pattern, known, NEAR, 0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(list(names)[:NEAR])} and others"
