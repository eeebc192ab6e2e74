"""What can be pruned in a network, found from its graph.

structure = Structure(model)
structure.filters, structure.fixed      # what can leave, and what is fixed and why
"""

import itertools
import re
from functools import cached_property
from typing import NamedTuple

import torch
from torch import fx, nn

from channels.layers import has_hooks, order_of
from channels.modes import by_mode
from channels.numbering import FILTERS, LINEAR, OUTPUT, SUM, number_channels
from channels.operations import title
from channels.running import compute_all
from channels.sizes import Sizes
from channels.streams import find_streams
from channels.trace import input_channels, runs_on_some, trace
from channels.traits import give, traits_of
from channels.work import find_work
from common.errors import first_line
from common.inputs import batch_size, check_inputs, map_inputs, moved, tensors_in

LINEAR_LAYERS = nn.Linear, nn.MultiheadAttention
COLOURS = 3
SIZES = (64, 32, 96, 128, 224, 256, 299, 28)  # pixels of the images that a network is tried with


class Fixed(NamedTuple):
    """How many of a convolution's filters are fixed, of how many, and why, in words."""

    count: int
    total: int
    reason: str


class NoLogits(ValueError):
    """A network gives something else than a row of logits for each image."""


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
    example           what it is called with: tensors on the meta device
    image_shape       (channels, height, width) where that is a tensor of images; else None
    outputs           how many logits it gives; None where it gives something else
    fixed_operations  name of a node -> why the channels that it reads and writes are fixed
    Of the numbers, as vectors: root (the number that each became), stream (the smallest of those
    that end in one channel), is_sum, is_fixed, costs (how many filters leave, this one included).
    It knows no weights, and serves all networks that were pruned from the same one. Raises
    ValueError in one line where a network cannot be traced, or runs on images of no size.

    example: what the network is called with: a tensor, or a tuple or dict of tensors, or the pixels
    of images. By default images of several sizes are tried.
    """

    def __init__(self, model, example=None, fixed_operations=()):
        self.kind, self.fixed_operations = type(model), dict(fixed_operations)
        examples = _examples(model, example)
        self.skeleton, self.graph, examples = trace(model, examples)
        self._positions, self._work, self._values_at = {}, {}, {}
        is_size = example is None or isinstance(example, int)
        if is_size and len(examples) > 1:
            # Small images are enough, unless the network itself asks for a size.
            examples = sorted(examples, key=_was_asked_for)
        self._compute(examples)
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

    def _compute(self, examples):
        """Every node's value for the first of some inputs that the network takes, if possible for
        one of images that gives a row of logits for each."""
        failure = None
        trial = None  # the example that is taken, and what each node gives for it
        for example in examples:
            try:
                values = self._values(example)
            except ValueError as error:
                failure = failure or error
                continue
            result = list(values.values())[-1]
            if _is_vector_each(result, example):
                trial = example, values
                break
            trial = trial or (example, values)
            if not _is_matrix(result):
                break
        if trial is None:
            hint = ""
            if self._takes_images(examples[0]):
                hint = "; where it takes another size, filter_groups(network, N) says which"
            raise ValueError(f"{failure}{hint}") from failure
        self.example, values = trial
        for node, value in values.items():
            give(node, value=value)
        result = list(values.values())[-1]
        self.outputs = result.shape[1] if _is_vector_each(result, self.example) else None
        is_image = self._takes_images(self.example)
        self.image_shape = tuple(self.example.shape[1:]) if is_image else None

    def require_logits(self):
        """Raise NoLogits where the network gives something else than a row of logits for each
        image, in evaluation or in training, or takes something else than images."""
        if not self.image_shape:
            raise NoLogits(
                f"{self.kind.__name__} is called with {_described(self.example)}, not with images"
            )
        (end,) = next(reversed(self.graph.nodes)).args
        results = {"": end}
        if isinstance(end, fx.Node) and end.target is by_mode:
            _, trained, evaluated = end.args
            results = {"": evaluated, " in training": trained}
        for mode, nodes in results.items():
            result = fx.map_arg(nodes, _value_of)
            if _is_vector_each(result, self.example):
                continue
            raise NoLogits(
                f"{self.kind.__name__} gives {_in_words(result)}{mode} for 2 "
                f"{_described(self.example)}, not 2 rows of logits; forward must return the "
                "logits alone"
            )

    @staticmethod
    def _takes_images(example):
        return isinstance(example, torch.Tensor) and example.dim() == 4

    def _values(self, example):
        """compute_all, for inputs on the meta device. Raises ValueError, in words."""
        try:
            return compute_all(self.graph, self.skeleton, example)
        except Exception as error:  # whatever an operation may raise
            raise ValueError(
                f"{self.kind.__name__} cannot take {_described(example)}: "
                f"{title(error.node)}: {_without_proxies(first_line(error))}"
            ) from error

    def _called(self, kind):
        """(node, module) of each call of a layer of a kind."""
        for node in self.graph.nodes:
            if issubclass(traits_of(node).layer or object, kind):
                yield node, self.skeleton.get_submodule(node.target)

    def positions(self, size):
        """Layer -> how often its weights are used for one image of size x size pixels, or, where
        the network takes others than images, for one sample of its example."""
        if size not in self._positions:
            (values, samples), counts = self._run_at(size), {}
            for node, module in self._called(nn.MultiheadAttention):
                if node.target in self.layers:
                    times = values[node][0].numel() // module.embed_dim // samples
                    for name in (node.target, f"{node.target}.out_proj"):
                        counts[name] = counts.get(name, 0) + times
            for node, module in self._called((nn.modules.conv._ConvNd, nn.Linear)):
                # A transposed convolution uses its weights once for each place that it reads.
                first = order_of(module)[0]
                value = values[node.args[0]] if first == "reads" else values[node]
                times = value.numel() // len(module.weight) // samples
                counts[node.target] = counts.get(node.target, 0) + times
            self._positions[size] = counts
        return self._positions[size]

    def work(self, size):
        """A Work for each operation that is no layer and makes multiply-adds, as a list; of a
        module that has layers in it, as attention has, without what these compute. size: as for
        `positions`."""
        if size not in self._work:
            values, samples = self._run_at(size)
            works = find_work(self.graph, self.skeleton, values, samples)
            self._work[size] = [self._beside_layers(work, self.positions(size)) for work in works]
        return self._work[size]

    def _beside_layers(self, work, positions):
        """A Work without what the layers inside of its operation compute."""
        macs, reads = work.macs, work.reads
        for kernel in self.sizes.kernels:
            if work.has_inside(kernel.layer) and kernel.layer in positions:
                macs -= positions[kernel.layer] * kernel.numel(self._whole)
        heads = self.layers.get(f"{work.node.target}.out_proj")
        if heads is not None:  # of an attention that is one module
            reads = heads.reads.unique()
        return work._replace(macs=macs, reads=reads)

    @cached_property
    def _whole(self):
        """`Sizes.left` of the unpruned network."""
        return self.sizes.left(torch.ones(len(self.root), dtype=torch.bool))

    def _run_at(self, size):
        """(every node's value where the network's images have size x size pixels, how many samples
        it is called with)."""
        if size not in self._values_at:
            example = self.example
            if self.image_shape:
                example = example.new_empty(2, self.image_shape[0], size, size)
            self._values_at[size] = self._values(example), 2 if _has_two(example) else 1
        return self._values_at[size]

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
        is_filter = torch.isin(numbers.kinds, FILTERS) & (self.root == everything)
        units = self._with_added(numbers.units.members(), units, is_filter)
        unit = units.roots(count)

        writers = {}  # layer -> numbers of its filters
        for name, layer in self.layers.items():
            if layer.reads is not None and is_filter[layer.writes].any():
                writers[name] = layer.writes
        reasons = self._reasons(numbers, writers, unit, is_filter)
        self.filters, self.fixed_filters, self.fixed = {}, {}, {}
        for name, own in writers.items():
            known = [reasons.get(root) for root in unit[own].tolist()]
            self._sort_out(name, own, known, name in protected)
        for node, module in self._called(nn.modules.conv._ConvNd):
            if node.target not in self.layers:
                kind = type(module).__name__
                reason = "it has hooks" if has_hooks(module) else f"a {kind} is not cut"
                self.fixed[node.target] = Fixed(module.out_channels, module.out_channels, reason)
        lost = is_filter.clone()  # what no layer in `filters` writes
        lost[self.movable] = False
        self.is_fixed |= lost
        self.units = self._together(unit)
        coupled = units.joined(everything, self.stream).roots(count)
        self.coupled_units = self._together(coupled, self.is_fixed)
        self._count_costs(count)

    def _reasons(self, numbers, writers, unit, is_filter):
        """Why units are fixed: their smallest number -> reason. Sets is_fixed. writers: layer ->
        numbers of its filters."""
        self.is_fixed = torch.zeros_like(is_filter)
        reasons, of_streams = {}, {}
        fixed = list(numbers.fixed)
        for own in writers.values():
            if not is_filter[own].all():  # a layer is a gate as a whole, or not at all
                fixed.append((own[is_filter[own]], "others of its filters are gates"))
        for some, reason in reversed(fixed):  # the first reason is the one that is said
            some = self.root[some]
            self.is_fixed[some] = True
            reasons.update(dict.fromkeys(unit[some].tolist(), reason))
            of_streams.update(dict.fromkeys(self.stream[some].tolist(), reason))
        linear = (is_filter & (numbers.kinds == LINEAR)).nonzero().flatten()
        for number, stream in zip(linear.tolist(), self.stream[linear].tolist()):
            if stream in of_streams:
                self.is_fixed[number] = True
                reasons.setdefault(int(unit[number]), of_streams[stream])
        return reasons

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
        """Whether a layer can be pruned. reasons: why each filter is fixed, or None."""
        known = [reason for reason in reasons if reason]
        is_linear = isinstance(self.skeleton.get_submodule(name), LINEAR_LAYERS)
        is_classifier = is_linear and set(reasons) == {OUTPUT}  # which nobody expects to be pruned
        if known and not is_classifier:
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
            if isinstance(self.skeleton.get_submodule(name), nn.modules.conv._ConvNd):
                self.costs[self.root[layer.writes]] += 1

    def _norms(self):
        """convolution -> the BatchNorm that reads it, and nothing else does."""
        norms = {}
        for node, _ in self._called(nn.modules.batchnorm._BatchNorm):
            source = node.all_input_nodes[0]
            while source.target not in self.layers and _has_one_reader_and_source(source):
                source = source.all_input_nodes[0]
            numbers = self.filters.get(source.target)
            layer = self.layers.get(node.target)  # None of a BatchNorm without weights
            if layer is None or numbers is None or len(source.users) > 1:
                continue
            is_linear = issubclass(traits_of(source).layer, nn.Linear)
            if not is_linear and traits_of(source).value.dim() != traits_of(node).value.dim():
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
        return torch.cat([torch.empty(0, dtype=torch.long), *self.filters.values()])

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


def _examples(model, example):
    """What a network may be called with, as a list of inputs on the meta device."""
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    like = torch.empty((), device="meta", dtype=dtype)
    if example is None or isinstance(example, int):
        sizes = SIZES if example is None else [example, *SIZES]
        counts = input_channels(model)
        coloured = (like.new_empty(2, COLOURS, size, size) for size in sizes)
        if counts[0] != COLOURS and runs_on_some(model, coloured):  # it makes them grey itself
            counts = sorted(counts, key=lambda count: count != COLOURS)
        shapes = itertools.product(counts, sizes)
        return [like.new_empty(2, count, size, size) for count, size in shapes]
    check_inputs(example)
    given = moved(example, like)
    if len({tensor.shape[:1] for tensor in tensors_in(given)}) > 1:
        return [given]  # the first dimension is not that of samples

    def two_of(tensor):
        return tensor.new_empty(2, *tensor.shape[1:])

    return [map_inputs(two_of, given), given]


def _was_asked_for(images):
    return images.shape[-1] not in SIZES


def _has_two(inputs):
    return all(tensor.shape[:1] == (2,) for tensor in tensors_in(inputs))


def _is_matrix(result):
    return isinstance(result, torch.Tensor) and result.dim() == 2


def _is_vector_each(result, inputs):
    """Whether a result has a row of numbers for each sample of some inputs."""
    return _is_matrix(result) and len(result) == batch_size(inputs)


def _value_of(node):
    return traits_of(node).value


def _described(inputs):
    """Inputs in words, as in "images of 64 x 64"."""
    if isinstance(inputs, torch.Tensor) and inputs.dim() == 4:
        return f"images of {inputs.shape[-2]} x {inputs.shape[-1]}"
    return " and ".join(" x ".join(map(str, tensor.shape)) for tensor in tensors_in(inputs))


def _without_proxies(text):
    """A network's own message, without what stood for its sizes when it was traced."""
    return re.sub(r" ?\(?Proxy\(\w*\)\)?", "", text).removesuffix(".")


def _in_words(result):
    if isinstance(result, torch.Tensor):
        return tuple(result.shape)
    kind = "dict" if isinstance(result, dict) else type(result).__name__
    return "a list" if isinstance(result, list) else f"a {kind}"


def _has_one_reader_and_source(node):
    return len(node.users) == len(node.all_input_nodes) == 1
