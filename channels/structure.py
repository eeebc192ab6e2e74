"""What can be pruned in a network, found from its graph.

structure = Structure(model)
structure.filters, structure.fixed      # what can leave, and what is fixed and why
"""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

from channels.layers import has_hooks
from channels.numbering import FILTER, SUM, number_channels
from channels.operations import title
from channels.running import compute_all
from channels.sizes import Sizes
from channels.streams import find_streams
from channels.trace import input_channels, trace
from channels.traits import give, traits_of
from channels.work import find_work
from common.errors import first_line

SIZES = (64, 32, 96, 128, 224, 256, 299, 28)  # pixels of the images that a network is tried with


class Fixed(NamedTuple):
    """How many of a convolution's filters are fixed, of how many, and why, in words."""

    count: int
    total: int
    reason: str


class _NoLogits(ValueError):
    """What a network gives is not what is looked for, whatever the size of its images."""


class Structure:
    """What can be pruned in an unpruned network, from the graph of its operations.

    graph             fx.Graph; its nodes have all traits (traits.py)
    layers            dotted name -> Layer, of all layers and parameters whose channels have numbers
    filters           convolution that can be pruned -> numbers of its filters
    fixed             convolution -> Fixed, where filters are
    fixed_filters     convolution that can be pruned -> for each filter, whether it is fixed
    units             lists of (convolution, filter) that only leave together
    coupled_units     the same where those that write one channel leave together, too, without
                      those that write a channel which is fixed
    streams           convolution -> ChannelStream that it writes
    outputs           how many logits it gives
    fixed_operations  name of a node -> why the channels that it reads and writes are fixed
    Of the numbers, as vectors: root (the number that each became), stream (the smallest of those
    that end in one channel), is_sum, is_fixed, costs (how many filters leave, this one included).
    It knows no weights, and serves all networks that were pruned from the same one. Raises
    ValueError in one line where a network cannot be traced, or runs on images of no size.
    """

    def __init__(self, model, image_size=None, fixed_operations=()):
        self.kind, self.fixed_operations = type(model), dict(fixed_operations)
        sizes = [image_size, *SIZES] if image_size else SIZES
        shapes = [(count, size, size) for count in input_channels(model) for size in sizes]
        self.skeleton, self.graph, shapes = trace(model, shapes)
        self._positions, self._work = {}, {}
        if len(shapes) > 1:  # small images are enough, unless the network itself asks for a size
            shapes = sorted(shapes, key=_was_asked_for)
        self._compute(shapes)
        numbers = number_channels(self.graph, self.skeleton, self.fixed_operations)
        self.parameters = numbers.parameters
        order = {name: place for place, (name, _) in enumerate(self.skeleton.named_modules())}
        names = sorted(numbers.layers, key=lambda name: order.get(name, -1))
        self.layers = {name: numbers.layers[name] for name in names}
        self._resolve(numbers, getattr(model, "protected", ()))
        self.norms = self._norms()
        self.streams = find_streams(self, numbers) if self.filters else {}

    def __deepcopy__(self, memo):
        return self

    # ---------------------------------------------------------------------- values of nodes

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
            give(node, value=value)
        logits = list(values.values())[-1]
        self.outputs = logits.shape[1]

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
            raise _NoLogits(
                f"{self.kind.__name__} gives {_in_words(logits)} for 2 images of {size} x {size}, "
                "not 2 rows of logits; forward must return the logits alone"
            )
        return values

    def _called(self, kind):
        """(node, module) of each call of a layer of a kind."""
        for node in self.graph.nodes:
            if issubclass(traits_of(node).layer or object, kind):
                yield node, self.skeleton.get_submodule(node.target)

    def positions(self, size):
        """Layer -> how often its weights are used for one image of size x size pixels."""
        if size not in self._positions:
            values, counts = self._values(size), {}
            for node, module in self._called((nn.modules.conv._ConvNd, nn.Linear)):
                if isinstance(module, nn.modules.conv._ConvTransposeNd):
                    value, channels = values[node.args[0]], module.in_channels
                else:
                    value, channels = values[node], len(module.weight)
                times = value.numel() // channels // 2  # images
                counts[node.target] = counts.get(node.target, 0) + times
            self._positions[size] = counts
        return self._positions[size]

    def work(self, size):
        """A Work for each operation that is no layer and makes multiply-adds, for images of
        size x size pixels, as a list."""
        if size not in self._work:
            self._work[size] = find_work(self.graph, self.skeleton, self._values(size))
        return self._work[size]

    # --------------------------------------------------------------------- sets of numbers

    def _resolve(self, numbers, protected):
        """Bring the sets of numbers into tables. protected: convolutions that are never pruned."""
        count = len(numbers.kinds)
        everything = torch.arange(count)
        self.root = numbers.same
        # What became another number is in its sets.
        streams = numbers.streams.joined(everything, self.root)
        units = numbers.units.joined(everything, self.root)
        self.is_sum, self.stream = numbers.kinds == SUM, streams.roots(count)
        is_filter = (numbers.kinds == FILTER) & (self.root == everything)
        units = self._with_added(numbers.units.members(), units, is_filter)
        unit = units.roots(count)

        self.is_fixed, reasons = torch.zeros(count, dtype=torch.bool), {}
        for some, reason in reversed(numbers.fixed):  # the first reason is the one that is said
            self.is_fixed[self.root[some]] = True
            reasons.update(dict.fromkeys(unit[self.root[some]].tolist(), reason))

        self.filters, self.fixed_filters, self.fixed = {}, {}, {}
        for name, layer in self.layers.items():
            if layer.reads is not None and is_filter[layer.writes].all():
                own = [reasons.get(root) for root in unit[layer.writes].tolist()]
                self._sort_out(name, layer.writes, own, name in protected)
        for node, module in self._called(nn.modules.conv._ConvNd):
            if node.target not in self.layers:
                kind = type(module).__name__
                reason = "it has hooks" if has_hooks(module) else f"a {kind} is not cut"
                self.fixed[node.target] = Fixed(module.out_channels, module.out_channels, reason)
        self.units = self._together(unit)
        coupled = units.joined(everything, self.stream).roots(count)
        self.coupled_units = self._together(coupled, self.is_fixed)
        self._count_costs(count)

    def _with_added(self, tied, units, is_filter):
        """`units`, where sums that leave with others do so with all that they add up. tied: the
        numbers that leave with others."""
        streams = self.stream[tied[self.is_sum[tied]]]
        of_streams = torch.isin(self.stream, streams)
        for numbers in (is_filter & of_streams, self.is_sum & of_streams):
            numbers = numbers.nonzero().flatten()
            units = units.joined(numbers, self.stream[numbers])
        return units

    def _sort_out(self, name, numbers, reasons, is_protected):
        """Whether a convolution can be pruned. reasons: why each filter is fixed, or None."""
        known = [reason for reason in reasons if reason]
        if known:
            self.fixed[name] = Fixed(len(known), len(reasons), known[0])
        if len(known) < len(reasons):
            self.filters[name] = numbers
            self.fixed_filters[name] = [is_protected or bool(reason) for reason in reasons]

    def _together(self, unit, fixed=None):
        """The filters as lists of (convolution, filter), one for each root in `unit`; without those
        whose root is that of a number which is `fixed`, a bool tensor."""
        excluded = set() if fixed is None else set(unit[fixed].tolist())
        members = {}
        for name, numbers in self.filters.items():
            for index, root in enumerate(unit[numbers].tolist()):
                if root not in excluded:
                    members.setdefault(root, []).append((name, index))
        return list(members.values())

    def _count_costs(self, count):
        """How many filters leave with each: itself, and those of depthwise convolutions and gates
        behind it."""
        self.costs = torch.ones(count, dtype=torch.long)
        for name, layer in self.layers.items():
            if name in self.filters or name in self.parameters:
                continue
            if isinstance(self.skeleton.get_submodule(name), nn.Conv2d):
                self.costs[self.root[layer.writes]] += 1

    def _norms(self):
        """convolution -> the BatchNorm that reads it, and nothing else does."""
        norms = {}
        for node, _ in self._called(nn.BatchNorm2d):
            source = node.all_input_nodes[0]
            while source.target not in self.layers and _has_one_reader_and_source(source):
                source = source.all_input_nodes[0]
            numbers = self.filters.get(source.target)
            layer = self.layers.get(node.target)  # None of a BatchNorm without weights
            if layer is None or numbers is None or len(source.users) > 1:
                continue
            if torch.equal(layer.writes, numbers):
                norms.setdefault(source.target, node.target)
        return norms

    # ------------------------------------------------------------------ what is alive

    def alive(self, filters):
        """A bool tensor: which numbers are left where `filters` are, convolution -> indices."""
        alive = torch.ones(len(self.root), dtype=torch.bool)
        alive[self.movable] = False
        for name, numbers in self.filters.items():
            alive[numbers[filters[name]]] = True
        return self.complete(alive)

    def complete(self, alive):
        """The same tensor, right for all numbers, where it is right for those of `filters`."""
        written = torch.zeros_like(alive)
        written[self.stream[self.movable[alive[self.movable]]]] = True
        written[self.stream[self.is_fixed]] = True
        return torch.where(self.is_sum, written[self.stream], alive)[self.root]

    def broken(self, filters):
        """A unit of which these filters, convolution -> indices, are only a part; or None."""
        present = {name: set(indices.tolist()) for name, indices in filters.items()}
        for unit in self.units:
            if len({index in present[name] for name, index in unit}) > 1:
                return unit
        return None

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
            if torch.isin(self.stream[channels], self.stream[self.is_fixed]).any():
                continue
            if not (torch.isin(channels, self.movable) | self.is_sum[channels]).all():
                continue  # some of them are no filter's
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
    def sizes(self):
        return Sizes(self)

    def alike(self, filters, others):
        """Whether networks with one or the other of these filters have layers of the same sizes."""
        if self.broken(filters):
            return False
        return self.sizes.left(self.alive(filters)) == self.sizes.left(self.alive(others))

    def all_filters(self):
        return {name: torch.arange(len(numbers)) for name, numbers in self.filters.items()}


def _was_asked_for(shape):
    return shape[-1] not in SIZES


def _in_words(logits):
    if isinstance(logits, torch.Tensor):
        return tuple(logits.shape)
    return "a dict" if isinstance(logits, dict) else f"a {type(logits).__name__}"


def _has_one_reader_and_source(node):
    return len(node.users) == len(node.all_input_nodes) == 1
