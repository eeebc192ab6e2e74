"""What can be pruned in a network, and what it costs.

    for group in filter_groups(model):
        print(group.name, group.conv.out_channels, group.stream.readers)

One idea carries the suite: every filter writes one channel of a *stream*, and the layers behind
read that stream. In a plain chain a stream has one writer; in a ResNet all blocks of a stage write
into the same one. Nobody declares this: `Structure` finds it in the graph of a network's
operations. Estimators, selection, surgery and reports are loops over `filter_groups`.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn

from channels.structure import Structure
from channels.surgery import KEPT_INDEX


@dataclass(frozen=True)
class Stream:
    """Channels on their way from the filters that write them to the layers that read them."""

    name: str
    width: int
    readers: tuple  # dotted names of the modules whose input channels these are


@dataclass(frozen=True, eq=False)
class FilterGroup:
    """The filters of one convolution.

    name      dotted name of the convolution: the key of scores, widths, logs and checkpoints
    conv      the convolution
    bn        the BatchNorm that reads this convolution alone, or None
    stream    where the outputs go
    channels  the stream channel that filter i writes, ascending
    dense     number of filters in the unpruned network
    costs     how many filters go when filter i goes: itself, and those of depthwise convolutions
              and gates that follow it
    locked    whether filter i is never pruned
    """

    name: str
    conv: nn.Module
    bn: nn.Module
    stream: Stream
    channels: list
    dense: int
    costs: list
    locked: list

    @property
    def protected(self):
        return all(self.locked)

    @property
    def floor(self):
        """The fewest filters that the layer keeps: 5% of the unpruned layer's, plus one."""
        return max(sum(self.locked), self.dense // 20 + 1)


@dataclass(frozen=True)
class Remains:
    """What is left of an unpruned network. filters: convolution -> indices, rising, of the filters
    that it has left of the unpruned one's. graph: of the operations, with the numbers of what is
    left in node.meta, as in Structure. signature: of the network, which may be changed later."""

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
    return [
        (name, type(module), *(p.shape for p in module.parameters(recurse=False)))
        for name, module in model.named_modules()
        if name
    ]


def remains_of(model, image_size=None):
    """The Remains of a network; its graph is looked at where it was not yet, or layers are others
    now. image_size: pixels, one that the network takes. Raises ValueError where its graph cannot be
    understood."""
    known = model.__dict__.get("_remains")
    if known is None or known.signature != signature(model):
        known = _look_at(model, image_size)
    return known


def keep_whole(model, whole):
    """From now on the channels that some operations read and write stay, in an unpruned network.
    whole: names of nodes of the graph -> why, in words. Raises ValueError where nothing is left
    that can be pruned."""
    structure = remains_of(model).structure
    _look_at(model, structure.image_shape[-1], structure.whole | whole)


def share_structure(model, other):
    """Let `model`, which is unpruned, have the Structure of `other`: a network like it, or one that
    was pruned from such a network."""
    _set_structure(model, remains_of(other).structure)


def _look_at(model, image_size=None, whole=()):
    origin = getattr(model, "origin", None)
    key = type(model), origin, tuple(sorted(dict(whole).items()))
    structure = _STRUCTURES.get(key)
    if any(name.startswith(KEPT_INDEX) for name, _ in model.named_buffers(recurse=False)):
        raise ValueError(
            f"{type(model).__name__} was pruned, and then pickled or given other "
            "layers, so it no longer knows what it was pruned from; save_network "
            "keeps that"
        )
    if not structure or _form(model) != _form(structure.skeleton):
        structure = Structure(model, image_size, whole)
        if not structure.filters:
            lines = stays_text(structure) or ["it has no convolutions"]
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
    return [(name, parameter.shape) for name, parameter in model.named_parameters()], [
        name
        for name, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]


def unused_parameters(model):
    """The names of parameters that the network's forward does not compute with, as a list."""
    used = [
        str(node.target)
        for node in remains_of(model).graph.nodes
        if node.op in ("call_module", "get_attr")
    ]
    return [
        name
        for name, _ in model.named_parameters()
        if not any(name == each or name.startswith(f"{each}.") for each in used)
    ]


def stays_text(structure):
    """Which filters stay, and why, as lines."""
    lines = []
    for name, (count, of, why) in structure.stays.items():
        share = f"its {of:,}" if count == of else f"{count:,} of its {of:,}"
        lines.append(f"{name} keeps {share} filters: {why}")
    return lines


def filter_groups(model, image_size=None):
    """All prunable layers of a network in order, as a list of FilterGroup, made afresh on each
    call. image_size: see `remains_of`. Raises ValueError where nothing can be pruned."""
    remains = remains_of(model, image_size)
    structure, groups, streams = remains.structure, [], {}
    alive = structure.alive(remains.filters)
    written = torch.zeros_like(alive)
    written[structure.stream[alive.nonzero().flatten()]] = True
    for root, channels in structure.ranks.items():
        left = channels[written[channels]]
        streams[root] = Stream(structure.names[root], len(left), tuple(structure.readers[root]))
    for name, kept in remains.filters.items():
        root, numbers = structure.stream_of[name], structure.filters[name][kept]
        left = structure.ranks[root][written[structure.ranks[root]]]
        order = {channel: i for i, channel in enumerate(left.tolist())}
        norm = structure.norms.get(name)
        groups.append(
            FilterGroup(
                name,
                model.get_submodule(name),
                norm and model.get_submodule(norm),
                streams[root],
                [order[c] for c in structure.stream[numbers].tolist()],
                len(structure.filters[name]),
                structure.costs[numbers].tolist(),
                [structure.locked[name][i] for i in kept.tolist()],
            )
        )
    return groups


def filter_count(model):
    """(filters now, filters in the unpruned network), those that follow others counted."""
    remains = remains_of(model)
    structure = remains.structure
    return tuple(
        structure.count_filters(structure.alive(filters))
        for filters in (remains.filters, structure.all_filters())
    )


def all_filters(model):
    """Layer -> indices of all filters that the unpruned network has."""
    return remains_of(model).structure.all_filters()


def dense_widths(model):
    """Layer -> filters in the unpruned network."""
    return {name: len(numbers) for name, numbers in remains_of(model).structure.filters.items()}


def widths_of(model):
    """Enough to rebuild a network: layer -> number of filters, or, where these would not do, the
    list of the channels of its stream that it writes, or of its filters."""
    remains = remains_of(model)
    structure, widths, same = remains.structure, {}, {}
    for group in filter_groups(model):
        own = remains.filters[group.name].tolist()
        if structure.aligned[structure.stream_of[group.name]]:
            full = len(group.channels) == group.stream.width
            widths[group.name] = group.stream.width if full else group.channels
        else:
            widths[group.name] = len(own) if own == list(range(len(own))) else own
        width = widths[group.name]
        same[group.name] = torch.arange(width) if type(width) is int else torch.tensor(width)
    if structure.alike(same, remains.filters):
        return widths
    return {name: filters.tolist() for name, filters in remains.filters.items()}


def measure_cost(model, image_size=32, filters=None):
    """What a network costs for one image, as a dict.

    "filters": of all prunable layers, those that follow them included; "parameters"; "macs":
    multiply-adds of convolutions and linear layers; "flops": two for each; "layer_macs": dotted
    name -> multiply-adds of each of these.
    filters: what would be left instead, convolution -> indices in the unpruned network.
    """
    remains = remains_of(model, image_size)
    structure = remains.structure
    return cost_of(structure, structure.alive(filters or remains.filters), image_size)


def cost_of(structure, alive, image_size):
    """`measure_cost` of what is left of a network where these numbers are alive."""
    numbers, owners, parameters, kernels = structure.weights
    left = (
        torch.zeros(int(owners[-1]) + 1, dtype=torch.long)
        .index_add_(0, owners, alive[numbers].long())
        .tolist()
    )
    positions = structure.positions(image_size)
    macs = {
        layer: positions[layer] * size * left[outs] * left[ins]
        for layer, size, outs, ins in kernels
        if layer in positions
    }
    total = sum(macs.values())
    return {
        "filters": structure.count_filters(alive),
        "parameters": sum(size * left[outs] * left[ins] for _, size, outs, ins in parameters),
        "macs": total,
        "flops": 2 * total,
        "layer_macs": macs,
    }


def filter_costs(model, budget="macs", image_size=32, layer_times=None):
    """What a network saves, to first order, when one of its filters goes: layer -> 1-D tensor.

    It counts the filter's own row of weights, what follows it, and its part of the readers: all of
    it where the filter alone writes the channel that they read, else an equal part of what all
    that write the channel save together; nothing where one of these never leaves.
    budget: "filters", "macs" (multiply-adds of an image of image_size x image_size pixels),
    "params", or "latency", of which layer_times, layer -> milliseconds, says what is spent where.
    """
    remains = remains_of(model, image_size)
    structure = remains.structure
    alive = structure.alive(remains.filters)
    if budget == "filters":
        costs = structure.costs.double()
    else:
        spent = _costs_of_sides(structure, alive, budget, image_size, layer_times)
        costs = structure.shared_out(_may_leave(structure, spent), alive)
    return {name: costs[structure.filters[name][kept]] for name, kept in remains.filters.items()}


def _costs_of_sides(structure, alive, budget, image_size, layer_times):
    """What each channel costs in the layers that write and that read it: a tensor over numbers."""
    numbers, owners, parameters, kernels = structure.weights
    left = (
        torch.zeros(int(owners[-1]) + 1, dtype=torch.long)
        .index_add_(0, owners, alive[numbers].long())
        .tolist()
    )
    if budget == "params":
        spent = [(size * left[outs] * left[ins], outs, ins) for _, size, outs, ins in parameters]
    else:
        times = layer_times or cost_of(structure, alive, image_size)["layer_macs"]
        spent = [(times[layer], outs, ins) for layer, _, outs, ins in kernels if layer in times]
    each = torch.zeros(len(left), dtype=torch.double)
    for amount, *places in spent:
        for place in filter(None, places):
            each[place] += amount / left[place]
    return torch.zeros(len(structure.root), dtype=torch.double).index_add_(
        0, numbers, each[owners] * alive[numbers]
    )


def _may_leave(structure, spent):
    """The costs of channels, with none for those of a stream that some filter always writes."""
    stays = structure.pinned.clone()
    for name, numbers in structure.filters.items():
        stays[numbers[torch.tensor(structure.locked[name])]] = True
    always = torch.zeros_like(stays)
    always[structure.stream[stays]] = True
    in_stream = structure.is_sum[structure.root]
    return torch.where(in_stream & always[structure.stream[structure.root]], 0.0, spent)


def group_norms(model):
    """The L2 norm of each filter together with its group: its weights, the scale of its BatchNorm,
    what follows it, and the weights that read its channel. Each filter that writes the channel has
    an equal part of the square of these, also where the channel stays without it. Biases and shifts
    do not count. layer -> 1-D tensor. (Fang et al. 2023, arXiv 2301.12900, of groups of
    parameters.)"""
    remains = remains_of(model)
    structure = remains.structure
    alive = structure.alive(remains.filters)
    squares = torch.zeros(len(structure.root), dtype=torch.double)
    for name, layer in structure.layers.items():
        weight = _weight_of(model, name)
        if weight is None:
            continue
        square, layer = weight.detach().cpu().double().square(), layer.where(alive)
        outs, ins = layer.sides_of(square.shape)
        if outs:
            squares.index_add_(0, layer.writes, square.flatten().view(len(layer.writes), -1).sum(1))
        if ins:
            squares.index_add_(0, layer.reads, square.transpose(0, 1).flatten(1).sum(1))
    norms = structure.shared_out(squares, alive).sqrt()
    return {name: norms[structure.filters[name][kept]] for name, kept in remains.filters.items()}


def _weight_of(model, name):
    """The weight of a layer, or the parameter itself that is a layer; None where it has none."""
    owner, _, own = name.rpartition(".")
    parent = model.get_submodule(owner)
    if own in parent._buffers:
        return None
    return parent._parameters.get(own, getattr(parent._modules.get(own), "weight", None))


def load_weights(model, state, strict=True):
    """Load a plain dict of tensors, which need not have the versions that some networks ask for."""
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata
    model.load_state_dict(versioned, strict=strict)


def kernel_matrix(conv):
    """A convolution's kernels as the rows of a matrix: out_channels x weights of one filter, in
    their order in channels-last memory."""
    return conv.weight.permute(0, 2, 3, 1).flatten(1)


def filter_matrix(conv):
    """`kernel_matrix`, with the bias as one more column where the convolution has one."""
    matrix = kernel_matrix(conv)
    return matrix if conv.bias is None else torch.cat((matrix, conv.bias[:, None]), 1)
