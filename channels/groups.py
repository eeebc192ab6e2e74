"""What can be pruned in a network, and what it costs.

    for group in filter_groups(model):
        print(group.name, len(group.channels), group.stream.readers)

One idea carries the suite: every filter writes one channel of a *stream*, and the layers behind
read that stream. In a plain chain a stream has one writer; in a ResNet all blocks of a stage write
into the same one. Nobody declares this: `Structure` finds it in the graph of a network's
operations. Estimators, selection, surgery and reports are loops over `filter_groups`.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn

from channels.attention import rows_of
from channels.layers import by_filter, has_hooks
from channels.structure import LINEAR_LAYERS, Structure
from channels.surgery import KEPT_INDEX
from common.terminal import counted


@dataclass(frozen=True)
class Stream:
    """Channels on their way from the filters that write them to the layers that read them."""

    name: str
    width: int
    readers: tuple  # dotted names of the modules whose input channels these are


@dataclass(frozen=True, eq=False)
class FilterGroup:
    """The filters of one convolution, or of one linear layer, where they are rows of its weight.

    name      dotted name of the layer: the key of scores, widths, logs and checkpoints
    layer     the layer; of an nn.MultiheadAttention one with its packed parameters
    bn        the BatchNorm that reads this layer alone, or None
    stream    where the outputs go
    channels  the stream channel that filter i writes, ascending
    dense     number of filters in the unpruned network
    costs     how many filters go when filter i goes: itself, and those of depthwise convolutions
              and gates that follow it
    fixed     whether filter i is never pruned
    """

    name: str
    layer: nn.Module
    bn: nn.Module
    stream: Stream
    channels: list
    dense: int
    costs: list
    fixed: list

    @property
    def conv(self):
        """The layer, as it was called when all were convolutions."""
        return self.layer

    @property
    def is_fixed(self):
        """Whether the whole layer is never pruned."""
        return all(self.fixed)

    @property
    def floor(self):
        """The fewest filters that the layer keeps: 5% of the unpruned layer's, plus one."""
        return max(sum(self.fixed), self.dense // 20 + 1)


@dataclass(frozen=True)
class Remains:
    """What is left of an unpruned network.

    filters: layer -> indices, rising, of the filters that it has left of the unpruned one's.
    graph: of the operations, whose traits have the channels that are left. signature: of the
    network, which may be changed later.
    """

    structure: Structure
    filters: dict
    graph: object
    signature: list

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):  # it is found again, and need not be in a user's files
        return type(None), ()


def signature(model):
    """What tells whether the layers of a network are still those that were looked at."""
    layers = []
    for name, module in model.named_modules():
        if name:
            shapes = [parameter.shape for parameter in module.parameters(recurse=False)]
            layers.append((name, type(module), *shapes))
    return layers


def remains_of(model: nn.Module, example=None) -> Remains:
    """The Remains of a network; its graph is looked at where it was not yet, or layers are others
    now. example: what it is called with: a tensor, or a tuple or dict of tensors, or the pixels of
    images. Raises ValueError where its graph cannot be understood."""
    known = model.__dict__.get("_remains")
    if known is None or known.signature != signature(model):
        known = _look_at(model, example)
    return known


def keep_whole(model: nn.Module, reasons: dict[str, str]) -> None:
    """From now on the channels that some operations read and write are fixed, in an unpruned
    network. reasons: names of nodes of the graph -> why, in words. Raises ValueError where nothing
    is left that can be pruned."""
    structure = remains_of(model).structure
    _look_at(model, example_of(structure), structure.fixed_operations | reasons)


def example_of(structure: Structure):
    """What lets the structure of a network be found again: the pixels of images, or tensors."""
    return structure.image_shape[-1] if structure.image_shape else structure.example


def share_structure(model: nn.Module, other: nn.Module) -> None:
    """Let `model`, which is unpruned, have the Structure of `other`: a network like it, or one that
    was pruned from such a network."""
    _set_structure(model, remains_of(other).structure)


def _look_at(model, example=None, fixed_operations=()):
    if any(name.startswith(KEPT_INDEX) for name, _ in model.named_buffers(recurse=False)):
        raise ValueError(
            f"{type(model).__name__} was pruned, and then pickled or given other "
            "layers, so it no longer knows what it was pruned from; save_network "
            "keeps that"
        )
    origin = getattr(model, "origin", None)
    key = type(model), origin, tuple(sorted(dict(fixed_operations).items()))
    structure = _STRUCTURES.get(key)
    if not structure or _form(model) != _form(structure.skeleton):
        structure = Structure(model, example, fixed_operations)
        if not structure.filters:
            lines = fixed_text(structure) or ["it has no convolutions and no hidden linear layers"]
            raise ValueError(f"nothing can be pruned in {structure.kind.__name__}: {lines[0]}")
        if origin:
            _STRUCTURES[key] = structure
    return _set_structure(model, structure)


def _set_structure(model, structure):
    model._remains = Remains(structure, structure.all_filters(), structure.graph, signature(model))
    return model._remains


_STRUCTURES = {}  # of networks that this process has built, which it often builds again


def _form(model):
    """In what networks of one origin may differ: the shapes of parameters, and hooks."""
    shapes = [(name, parameter.shape) for name, parameter in model.named_parameters()]
    hooked = [name for name, module in model.named_modules() if has_hooks(module)]
    return shapes, hooked


def unused_parameters(model: nn.Module) -> list[str]:
    """The names of parameters that the network's forward does not compute with, as a list."""
    graph = remains_of(model).graph
    read = graph.find_nodes(op="call_module") + graph.find_nodes(op="get_attr")
    used = tuple(f"{node.target}." for node in read)  # a layer, and whatever it has inside
    return [name for name, _ in model.named_parameters() if not f"{name}.".startswith(used)]


def layers_without_images(model: nn.Module) -> set[str]:
    """The dotted names of layers that a network calls on something else than what it makes of its
    images, as on a table of positions."""
    reached = set()
    alone = set()
    for node in remains_of(model).graph.nodes:
        if node.op == "placeholder" or not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
        elif node.op == "call_module":
            alone.add(str(node.target))
    return alone


def fixed_text(structure: Structure) -> list[str]:
    """Which filters are fixed, and why, as lines: one for each convolution, and one for all linear
    layers that are fixed for the same reason."""
    lines = []
    linear = {}  # reason -> {layer: Fixed}
    for name, fixed in structure.fixed.items():
        if isinstance(structure.skeleton.get_submodule(name), LINEAR_LAYERS):
            linear.setdefault(fixed.reason, {})[name] = fixed
        else:
            lines.append(_fixed_line({name: fixed}))
    return lines + [_fixed_line(layers) for layers in linear.values()]


def _fixed_line(layers):
    """A line on layers, name -> Fixed, that are fixed for the same reason."""
    names = list(layers)
    counts, totals, reasons = zip(*layers.values())
    if len(names) == 1:
        return f"{names[0]} keeps {_share(counts[0], 'its', totals[0])}: {reasons[0]}"
    share = _share(sum(counts), "their", sum(totals))
    return f"{len(names)} linear layers, {names[0]} to {names[-1]}, keep {share}: {reasons[0]}"


def _share(count, whose, total):
    whole = f"{whose} {counted(total, 'filter')}"
    return whole if count == total else f"{count:,} of {whole}"


def filter_groups(model: nn.Module, example=None) -> list[FilterGroup]:
    """All prunable layers of a network in order, as a list of FilterGroup, made afresh on each
    call. example: see `remains_of`; the first call of any function on a network is the one that
    needs it. Raises ValueError where nothing can be pruned."""
    remains = remains_of(model, example)
    structure = remains.structure
    groups = []
    streams = {}
    alive = structure.alive(remains.filters)
    written = torch.zeros_like(alive)
    written[structure.stream[alive.nonzero().flatten()]] = True
    for name, kept in remains.filters.items():
        whole = structure.streams[name]
        left = whole.channels[written[whole.channels]].tolist()
        stream = streams.setdefault(whole.root, Stream(whole.name, len(left), whole.readers))
        places = dict(zip(left, range(len(left))))
        numbers = structure.filters[name][kept]
        fixed = torch.tensor(structure.fixed_filters[name])
        norm = structure.norms.get(name)
        groups.append(
            FilterGroup(
                name=name,
                layer=rows_of(model.get_submodule(name)),
                bn=norm and model.get_submodule(norm),
                stream=stream,
                channels=[places[channel] for channel in structure.stream[numbers].tolist()],
                dense=len(structure.filters[name]),
                costs=structure.costs[numbers].tolist(),
                fixed=fixed[kept].tolist(),
            )
        )
    return groups


def filter_count(model: nn.Module) -> tuple[int, int]:
    """(filters now, filters in the unpruned network), those that follow others counted."""
    remains = remains_of(model)
    structure = remains.structure
    now = structure.count_filters(structure.alive(remains.filters))
    return now, structure.count_filters(structure.alive(structure.all_filters()))


def all_filters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Layer -> indices of all filters that the unpruned network has."""
    return remains_of(model).structure.all_filters()


def dense_widths(model: nn.Module) -> dict[str, int]:
    """Layer -> filters in the unpruned network."""
    return {name: len(numbers) for name, numbers in remains_of(model).structure.filters.items()}


def widths_of(model: nn.Module) -> dict[str, int | list[int]]:
    """Enough to rebuild a network: layer -> number of filters, or, where these would not do, the
    list of the channels of its stream that it writes, or of its filters."""
    remains = remains_of(model)
    structure = remains.structure
    widths = {}
    rebuilt = {}  # what a network has that is built from these
    for group in filter_groups(model):
        places = remains.filters[group.name].tolist()
        is_whole = places == list(range(len(places)))
        if structure.streams[group.name].is_aligned:
            places = group.channels
            is_whole = len(places) == group.stream.width
        if is_whole:
            widths[group.name] = len(places)
            rebuilt[group.name] = torch.arange(len(places))
        else:
            widths[group.name] = places
            rebuilt[group.name] = torch.tensor(places)
    if structure.alike(rebuilt, remains.filters):
        return widths
    return {name: filters.tolist() for name, filters in remains.filters.items()}


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], strict: bool = True) -> None:
    """Load a plain dict of tensors, which need not have the versions that some networks ask for."""
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata
    model.load_state_dict(versioned, strict=strict)


def kernel_matrix(layer: nn.Module) -> torch.Tensor:
    """A layer's kernels as the rows of a matrix: filters x weights of one filter, those of a
    convolution in their order in channels-last memory."""
    return by_filter(layer, layer.weight).movedim(1, -1).flatten(1)


def filter_matrix(layer: nn.Module) -> torch.Tensor:
    """`kernel_matrix`, with the bias as one more column where the layer has one."""
    matrix = kernel_matrix(layer)
    return matrix if layer.bias is None else torch.cat((matrix, layer.bias[:, None]), 1)
