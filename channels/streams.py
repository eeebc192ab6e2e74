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
    convolutions = list(structure.filters)
    roots, place_of = _roots(structure)
    moved = torch.cat([torch.empty(0, dtype=torch.long), *numbers.reordered])
    moved_streams = {convolutions[place] for place in _places_in(place_of[moved])}
    readers = _readers(structure, place_of)
    adders = _adders(numbers.additions, place_of)
    streams, taken = {}, []
    for place in dict.fromkeys(roots):
        root = convolutions[place]
        writers = [name for name, own in zip(convolutions, roots) if own == place]
        channels, is_aligned = _channels_of(structure, writers)
        name = _stream_name(adders.get(place), taken, writers) or root
        taken.append(name)
        is_aligned = is_aligned and root not in moved_streams
        streams[place] = ChannelStream(
            root, name, channels, is_aligned, tuple(readers.get(place, ()))
        )
    return {name: streams[place] for name, place in zip(convolutions, roots)}


def _roots(structure):
    """(of each convolution the place of its stream's first one, of each number the same or -1)."""
    owner, joined = torch.full_like(structure.stream, -1), Sets()
    for place, filters in enumerate(structure.filters.values()):
        channels = structure.stream[filters]
        known = owner[channels]
        others = known[known >= 0]
        joined = joined.joined(others, torch.full_like(others, place))
        owner[channels] = torch.where(known >= 0, known, place)
    roots = joined.roots(len(structure.filters))
    place_of = torch.where(owner >= 0, roots[owner], -1)[structure.stream]
    return roots.tolist(), place_of


def _places_in(places):
    return [place for place in places.unique().tolist() if place >= 0]


def _readers(structure, place_of):
    """Place of a stream's root -> dotted names of the layers that read it."""
    readers = {}
    for name, layer in structure.layers.items():
        if layer.reads is not None:
            for place in _places_in(place_of[structure.root[layer.reads]]):
                readers.setdefault(place, []).append(name)
    return readers


def _adders(additions, place_of):
    """Place of a stream's root -> paths of the modules whose additions write it."""
    adders = {}
    for path, sums in additions:
        for place in _places_in(place_of[sums]):
            adders.setdefault(place, []).append(path)
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
    ends = paths if paths[0] and paths[0] != paths[-1] else writers  # the network itself adds
    return f"{ends[0]} to {ends[-1]}"
