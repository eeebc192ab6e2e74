"""What can be pruned in a network, found from its graph.

structure = Structure(model)
structure.filters, structure.stays      # what can leave, and what stays and why
"""

import os
from functools import cached_property

import torch
from torch import nn

from channels.numbering import FILTER, SUM, Numbering, Sets
from channels.trace import compute_all, input_channels, title, trace
from common.errors import first_line

SIZES = (64, 32, 96, 128, 224, 256, 299, 28)  # pixels of the images that a network is tried with


class _NoLogits(ValueError):
    """What a network gives is not what is looked for, whatever the size of its images."""


class Structure:
    """What can be pruned in an unpruned network, from the graph of its operations.

    graph    fx.Graph; node.meta has, of each result, the "value" (on the meta device) and the
             "numbers" of its channels (channels/numbering.py)
    layers   dotted name -> Layer, of all layers and parameters whose channels have numbers
    filters  convolution that can be pruned -> numbers of its filters
    locked   convolution that can be pruned -> for each filter, whether it is never pruned
    stays    convolution -> how many of its filters stay, and why, in words
    units    lists of (convolution, filter) that only leave together; coupled_units: where those
             that write the same channel do, too, and those that write one that stays are left out
    outputs  how many logits it gives
    whole    name of an operation -> why the channels that it reads and writes stay, to be given
    It knows no weights, and serves all networks that were pruned from the same one. Raises
    ValueError in one line where a network cannot be traced, or runs on images of no size.
    """

    def __init__(self, model, image_size=None, whole=()):
        self.kind, self.whole = type(model), dict(whole)
        channels = input_channels(model)
        sizes = [*([image_size] if image_size else []), *SIZES]
        self.skeleton, self.graph, shapes = trace(
            model, [(each, size, size) for each in channels for size in sizes]
        )
        self._positions = {}
        for node in self.graph.nodes:
            if node.op == "call_module":
                node.meta["class"] = type(self.skeleton.get_submodule(node.target))
        # Small images are enough, unless the network itself asks for their size.
        self._compute(
            shapes if len(shapes) == 1 else sorted(shapes, key=lambda shape: shape[-1] not in SIZES)
        )
        numbering = Numbering(self.graph, self.skeleton, self.whole)
        order = {name: place for place, (name, _) in enumerate(self.skeleton.named_modules())}
        self.layers = dict(
            sorted(numbering.layers.items(), key=lambda item: order.get(item[0], -1))
        )
        self.additions = numbering.additions
        self.parameters = numbering.parameters
        self._resolve(numbering, getattr(model, "protected", ()))
        if self.filters:
            self._find_streams(numbering.reordered)

    def __deepcopy__(self, memo):
        return self

    def _compute(self, shapes):
        """Every node's value for images of the first of some shapes that the network takes."""
        failure = None
        for self.image_shape in shapes:
            try:
                values = self._values(self.image_shape[-1])
                break
            except ValueError as error:
                failure = failure or error
        else:
            if isinstance(failure, _NoLogits):
                raise failure
            raise ValueError(
                f"{failure}; where it takes another size, filter_groups(network, "
                "image_size=N) says which"
            ) from failure
        for node, value in values.items():
            node.meta["value"] = value
        self.outputs = value.shape[1]

    def _values(self, size):
        """compute_all for images of size x size pixels. Raises ValueError, in words."""
        try:
            values = compute_all(self.graph, self.skeleton, (self.image_shape[0], size, size))
        except Exception as error:  # whatever an operation may raise
            raise ValueError(
                f"{self.kind.__name__} cannot take images of {size} x {size}: "
                f"{title(error.node)}: {first_line(error)}"
            ) from error
        logits = list(values.values())[-1]
        if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != 2:
            kind = "dict" if isinstance(logits, dict) else type(logits).__name__
            given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"a {kind}"
            raise _NoLogits(
                f"{self.kind.__name__} gives {given} for 2 images of {size} x {size}, "
                "not 2 rows of logits; forward must return the logits alone"
            )
        return values

    def _called(self, kind):
        """(node, module) of each call of a layer of a kind."""
        for node in self.graph.nodes:
            module = node.op == "call_module" and self.skeleton.get_submodule(node.target)
            if isinstance(module, kind):
                yield node, module

    def positions(self, size):
        """Layer -> how often its weights are used for one image of size x size pixels."""
        if size not in self._positions:
            values, found = self._values(size), {}
            for node, module in self._called((nn.modules.conv._ConvNd, nn.Linear)):
                transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
                value = values[node.args[0] if transposed else node]
                channels = module.in_channels if transposed else len(module.weight)
                found[node.target] = found.get(node.target, 0) + value.numel() // channels // 2
            self._positions[size] = found
        return self._positions[size]

    def _resolve(self, numbering, protected):
        """Bring the sets of numbers into tables."""
        kinds, count = numbering.kinds, len(numbering.kinds)
        self.root = numbering.same
        for sets in (numbering.streams, numbering.units):  # of numbers that became others
            sets.join(torch.arange(count), self.root)
        self.is_sum, self.stream = kinds == SUM, numbering.streams.roots(count)
        own = (kinds == FILTER) & (self.root == torch.arange(count))
        tied = torch.cat([*numbering.units.pairs[:-1], torch.empty(2, 0, dtype=torch.long)], 1)
        tied = self.stream[tied.unique()[self.is_sum[tied.unique()]]]  # with all that they add up
        members = (own & torch.isin(self.stream, tied)).nonzero().flatten()
        sums = (self.is_sum & torch.isin(self.stream, tied)).nonzero().flatten()
        for numbers in (members, sums):
            numbering.units.join(numbers, self.stream[numbers])
        unit = numbering.units.roots(count)
        self.pinned = torch.zeros(count, dtype=torch.bool)
        held = {}
        for numbers, why in reversed(numbering.why):
            self.pinned[self.root[numbers]] = True
            held.update(dict.fromkeys(unit[self.root[numbers]].tolist(), why))

        self.filters, self.locked, self.stays = {}, {}, {}
        for name, layer in self.layers.items():
            if layer.reads is None or not own[layer.writes].all():
                continue
            reasons = [held.get(number) for number in unit[layer.writes].tolist()]
            found = list(filter(None, reasons))
            if found:
                self.stays[name] = len(found), len(reasons), found[0]
            if len(found) == len(reasons):
                continue
            self.filters[name] = layer.writes
            self.locked[name] = [bool(reason) or name in protected for reason in reasons]
        for node, module in self._called(nn.modules.conv._ConvNd):
            if node.target not in self.layers:
                hooks = module._forward_hooks or module._forward_pre_hooks
                self.stays[node.target] = (
                    module.out_channels,
                    module.out_channels,
                    ("it has hooks" if hooks else f"a {type(module).__name__} is not cut"),
                )
        self.units = self._together(unit)
        numbering.units.join(torch.arange(count), self.stream)
        self.coupled_units = self._together(numbering.units.roots(count), self.pinned)
        self._count_costs(kinds)
        self._find_norms()

    def _together(self, unit, stays=None):
        """The filters as lists of (convolution, filter), one for each root in `unit`; without those
        that have a number which `stays`, a bool tensor."""
        held = set() if stays is None else set(unit[stays].tolist())
        grouped = {}
        for name, numbers in self.filters.items():
            for index, number in enumerate(unit[numbers].tolist()):
                if number not in held:
                    grouped.setdefault(number, []).append((name, index))
        return list(grouped.values())

    def _find_norms(self):
        """convolution -> the BatchNorm that reads it, and nothing else does."""
        self.norms = {}
        for node in self.graph.nodes:
            if node.op != "call_module" or not issubclass(node.meta["class"], nn.BatchNorm2d):
                continue
            source = node.all_input_nodes[0]
            while (
                source.target not in self.filters
                and source.target not in self.layers
                and (len(source.users) == len(source.all_input_nodes) == 1)
            ):
                source = source.all_input_nodes[0]
            numbers = self.filters.get(source.target)
            layer = self.layers.get(node.target)  # None of a BatchNorm without weights
            if (
                layer
                and numbers is not None
                and len(source.users) == 1
                and torch.equal(layer.writes, numbers)
            ):
                self.norms.setdefault(source.target, node.target)

    def _count_costs(self, kinds):
        """number -> filters that go when this one goes: itself, those of depthwise convolutions
        and gates behind it."""
        self.costs = torch.ones(len(kinds), dtype=torch.long)
        for name, layer in self.layers.items():
            if (
                name not in self.filters
                and name not in self.parameters
                and isinstance(self.skeleton.get_submodule(name), nn.Conv2d)
            ):
                self.costs[self.root[layer.writes]] += 1

    def _find_streams(self, reordered):
        """Streams: convolutions that write the same channels, directly or by way of others."""
        owner, joined = torch.full_like(self.stream, -1), Sets()
        for place, numbers in enumerate(self.filters.values()):
            channels = self.stream[numbers]
            known = owner[channels]
            joined.join(known[known >= 0], torch.full_like(known[known >= 0], place))
            owner[channels] = torch.where(known >= 0, known, place)
        names, roots = list(self.filters), joined.roots(len(self.filters)).tolist()
        owner = torch.where(owner >= 0, torch.tensor(roots)[owner], -1)[self.stream]
        self.stream_of = {name: names[root] for name, root in zip(names, roots)}
        moved = torch.cat([torch.empty(0, dtype=torch.long), *reordered])
        self.ranks, self.aligned = {}, {}
        for name, numbers in self.filters.items():
            root, channels = self.stream_of[name], self.stream[numbers]
            known = self.ranks.setdefault(root, channels)
            same = torch.equal(known[: len(channels)], channels) and len(known) == len(channels)
            self.aligned[root] = same and self.aligned.get(
                root, not torch.isin(owner[moved], names.index(root)).any()
            )
            if not same:
                self.ranks[root] = torch.tensor(
                    list(dict.fromkeys(known.tolist() + channels.tolist()))
                )
        self.readers = {root: [] for root in self.ranks}
        for name, layer in self.layers.items():
            if layer.reads is not None:
                for place in owner[self.root[layer.reads]].unique().tolist():
                    if place >= 0:
                        self.readers[names[place]].append(name)
        paths = {}
        for path, numbers in self.additions:
            for place in owner[numbers].unique().tolist():
                if place >= 0:
                    paths.setdefault(names[place], []).append(path)
        self.names = {}
        for root in self.ranks:
            writers = [name for name, own in self.stream_of.items() if own == root]
            self.names[root] = _stream_name(paths.get(root), self.names.values(), writers) or root

    def alive(self, filters):
        """A bool tensor: which numbers are left where `filters` are, convolution -> indices."""
        alive = torch.ones(len(self.root), dtype=torch.bool)
        alive[self.movable] = False
        alive[torch.cat([numbers[filters[name]] for name, numbers in self.filters.items()])] = True
        return self.complete(alive)

    def complete(self, alive):
        """The same tensor, right for all numbers, where it is right for those of `filters`."""
        written = torch.zeros_like(alive)
        written[self.stream[self.movable[alive[self.movable]]]] = True
        written[self.stream[self.pinned]] = True
        return torch.where(self.is_sum, written[self.stream], alive)[self.root]

    def broken(self, filters):
        """A unit of which these filters, convolution -> indices, are only a part; or None."""
        present = {name: set(indices.tolist()) for name, indices in filters.items()}
        return next(
            (
                unit
                for unit in self.units
                if len({index in present[name] for name, index in unit}) > 1
            ),
            None,
        )

    def alike(self, filters, others):
        """Whether networks with one or the other of these filters have layers of the same sizes."""
        if self.broken(filters):
            return False
        numbers, owners, *_ = self.weights
        counts = [
            torch.zeros(int(owners[-1]) + 1, dtype=torch.long).index_add_(
                0, owners, self.alive(each)[numbers].long()
            )
            for each in (filters, others)
        ]
        return torch.equal(*counts)

    def count_filters(self, alive):
        """How many filters are left, those that follow others counted."""
        return int(self.costs[self.movable[alive[self.movable]]].sum())

    def shared_out(self, amounts, alive):
        """What leaves with each filter of some amounts that channels have: those of its own channel
        and of what follows it, and, of a stream's channel, an equal part for each filter that
        writes it. amounts: a float tensor over the numbers; the result is one that is right for
        the numbers of `filters` that are alive."""
        writers = self.movable[alive[self.movable]]
        zeros = torch.zeros_like(amounts)
        count = zeros.index_add(0, self.stream[writers], torch.ones_like(amounts[writers]))
        in_stream = self.is_sum[self.root]
        own = zeros.index_add(0, self.root, amounts * ~in_stream)
        pooled = zeros.index_add(0, self.stream[self.root], amounts * in_stream)
        return own + (pooled / count.clamp_min(1))[self.stream]

    @cached_property
    def movable(self):
        """The numbers of `filters`, as one vector."""
        return torch.cat(list(self.filters.values()))

    @cached_property
    def partial_inputs(self):
        """The channels of each layer that has not all filters of some convolution behind it, so
        that it might be left with none."""
        lengths = torch.tensor([len(numbers) for numbers in self.filters.values()])
        owners, partial = torch.repeat_interleave(lengths), []
        for layer in self.layers.values():
            channels = self.root[layer.writes if layer.reads is None else layer.reads]
            if (
                torch.isin(self.stream[channels], self.stream[self.pinned]).any()
                or not (torch.isin(channels, self.movable) | self.is_sum[channels]).all()
            ):
                continue  # some of them always stay
            behind = self.behind(channels, self.movable).long()
            whole = torch.zeros_like(lengths).index_add_(0, owners, behind) == lengths
            if not whole.any():
                partial.append(channels)
        return partial

    def behind(self, channels, filters):
        """Which of some filters write these channels, directly or by way of additions."""
        own, sums = torch.zeros(2, len(self.root), dtype=torch.bool)
        own[channels] = True
        sums[self.stream[channels[self.is_sum[channels]]]] = True
        return own[filters] | sums[self.stream[filters]]

    @cached_property
    def weights(self):
        """(numbers, owners, parameters, kernels) to count what is left: for each vector of numbers
        that a layer has, in `numbers`, its place in `owners`; and of each parameter, and of the
        weight of each convolution and linear layer, however that is stored, (layer, what its size
        is beside those two dimensions, the places of their vectors)."""
        vectors, places = [torch.zeros(1, dtype=torch.long)], {}  # the first: a dimension of 1
        for name, layer in self.layers.items():
            for side, numbers in (("writes", layer.writes), ("reads", layer.reads)):
                if numbers is not None:
                    places[name, side] = len(vectors)
                    vectors.append(numbers)

        def entry(key, tensor):
            size, sides = tensor.numel(), [0, 0]
            if key in self.layers:
                for k, side in enumerate(self.layers[key].sides_of(tensor.shape)):
                    if side:
                        sides[k] = places[key, side]
                        size //= len(vectors[sides[k]])
            return key, size, *sides

        parameters = [
            entry(name if name in self.parameters else name.rpartition(".")[0], tensor)
            for name, tensor in self.skeleton.named_parameters()
        ]
        kernels = [
            entry(name, module.weight)
            for name, module in self.skeleton.named_modules()
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
        ]
        owners = torch.repeat_interleave(torch.tensor([len(each) for each in vectors]))
        return torch.cat(vectors), owners, parameters, kernels

    def all_filters(self):
        return {name: torch.arange(len(numbers)) for name, numbers in self.filters.items()}


def _stream_name(paths, taken, writers):
    """A name for the stream that the additions in some modules write; None of a chain."""
    if not paths:
        return None
    name = ".".join(os.path.commonprefix([path.split(".") for path in paths]))
    if name and name not in taken:
        return name
    ends = paths if paths[0] and paths[0] != paths[-1] else writers  # the network itself adds
    return f"{ends[0]} to {ends[-1]}"
