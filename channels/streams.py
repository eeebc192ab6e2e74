"""Streams: channels on their way from the filters that write them to the layers that read them.

streams = find_streams(structure, numbers)   # convolution -> ChannelStream
"""

import os
from dataclasses import dataclass

import torch

from channels.numbering import Sets


@dataclass(frozen=True)
class ChannelStream:
    """Channels of an unpruned network that some convolutions write, also by way of additions.

    root        the first of these convolutions
    name        of the modules whose additions write it, or its root's
    channels    their numbers in Structure.stream, in order, as a vector
    is_aligned  whether each convolution writes all of them, in this order
    readers     dotted names of the layers that read some of them
    """

    root: str
    name: str
    channels: torch.Tensor
    is_aligned: bool
    readers: tuple


def find_streams(structure, numbers):
    """Convolution -> its ChannelStream. numbers: Numbers of the structure's graph."""
    roots, root_of = _roots(structure)
    writers = {}  # root -> the convolutions that write its stream
    for name, root in zip(structure.filters, roots):
        writers.setdefault(root, []).append(name)
    moved = torch.cat([torch.empty(0, dtype=torch.long), *numbers.reordered])
    reordered = _roots_in(root_of[moved])
    readers = _readers(structure, root_of)
    adders = _adders(numbers.additions, root_of)
    streams = dict.fromkeys(structure.filters)
    taken = []
    for root, names in writers.items():
        channels, is_aligned = _channels_of(structure, names)
        stream = ChannelStream(
            root=names[0],
            name=_stream_name(adders.get(root), taken, names) or names[0],
            channels=channels,
            is_aligned=is_aligned and root not in reordered,
            readers=tuple(readers.get(root, ())),
        )
        taken.append(stream.name)
        streams |= dict.fromkeys(names, stream)
    return streams


def _roots(structure):
    """(of each convolution the place of its stream's first one, of each number the same or -1)."""
    owner = torch.full_like(structure.stream, -1)
    joined = Sets()
    for place, filters in enumerate(structure.filters.values()):
        channels = structure.stream[filters]
        known = owner[channels]
        others = known[known >= 0]
        joined = joined.joined(others, torch.full_like(others, place))
        owner[channels] = torch.where(known >= 0, known, place)
    roots = joined.roots(len(structure.filters))
    root_of = torch.where(owner >= 0, roots[owner], -1)[structure.stream]
    return roots.tolist(), root_of


def _roots_in(roots):
    """Each root of a vector once, without -1."""
    return roots[roots >= 0].unique().tolist()


def _readers(structure, root_of):
    """Root of a stream -> dotted names of the layers that read it."""
    readers = {}
    for name, layer in structure.layers.items():
        if layer.reads is not None:
            for root in _roots_in(root_of[structure.root[layer.reads]]):
                readers.setdefault(root, []).append(name)
    return readers


def _adders(additions, root_of):
    """Root of a stream -> paths of the modules whose additions write it."""
    adders = {}
    for path, sums in additions:
        for root in _roots_in(root_of[sums]):
            adders.setdefault(root, []).append(path)
    return adders


def _channels_of(structure, writers):
    """(numbers of a stream's channels, whether each convolution that writes it writes all of them
    in the same order)."""
    written = [structure.stream[structure.filters[name]] for name in writers]
    if all(torch.equal(channels, written[0]) for channels in written):
        return written[0], True
    return torch.tensor(list(dict.fromkeys(torch.cat(written).tolist()))), False


def _stream_name(paths, taken, writers):
    """A name for the stream that the additions in some modules write; None of a chain."""
    if not paths:
        return None
    name = ".".join(os.path.commonprefix([path.split(".") for path in paths]))
    if name and name not in taken:
        return name
    if not paths[0] or paths[0] == paths[-1]:  # the network itself adds
        paths = writers
    return f"{paths[0]} to {paths[-1]}"
