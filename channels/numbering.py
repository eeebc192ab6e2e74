"""Which channel each place of each tensor of a network belongs to, and which leave together.

numbers = number_channels(graph, skeleton)   # of trace.py; running.py has computed all values
"""

from dataclasses import dataclass

import torch
from torch import fx, nn

from channels.attention import has_packed_heads
from channels.layers import Layer, can_be_cut, elsewhere, has_hooks, order_of, sides_of
from channels.modes import ends_of
from channels.operations import LEAVES, PAIRED, Kind, kind_of, name_of, path_of, works_in_place
from channels.running import along, as_real, compute, keeps_apart, spread, varies
from channels.traits import give, map_tensors, traits_of
from common.inputs import tensors_in

# Kinds of numbers: of what never leaves, a convolution's filters, an addition, a linear layer's
# filters, a learned scale or shift, and a matrix of products, as of the queries and keys of a head.
FIXED, FILTER, SUM, LINEAR, SCALE, MATRIX = range(6)
FILTERS = torch.tensor((FILTER, LINEAR))  # kinds of what has a score
WRITTEN = torch.tensor((FILTER, LINEAR, SUM))  # of what filters write
READERS = (
    nn.modules.conv._ConvNd,
    nn.Linear,
)  # layers that compute new channels from those that they read
WHOLE = nn.LayerNorm, nn.RMSNorm  # layers whose weights are of no channels that they keep apart
OUTPUT = "they are the network's output"  # a reason


@dataclass(frozen=True)
class Sets:
    """Numbers that belong together, as disjoint sets. pairs: 2 x N tensors."""

    pairs: tuple = ()

    def joined(self, first, second):
        """The same sets, with the numbers of two vectors put together, pair by pair."""
        return Sets((*self.pairs, torch.stack((first, second))))

    def members(self):
        """The numbers that have been put together with others, as a vector."""
        return self._all_pairs().unique()

    def _all_pairs(self):
        return torch.cat([torch.empty(2, 0, dtype=torch.long), *self.pairs], 1)

    def roots(self, count):
        """The smallest number of each number's set, as a vector. count: of all numbers."""
        roots = torch.arange(count)
        pairs = self._all_pairs()
        while True:
            least = roots[pairs].amin(0)
            new = roots.scatter_reduce(0, roots[pairs].flatten(), least.repeat(2), "amin")
            new = new[new]
            if torch.equal(new, roots):
                return roots
            roots = new


@dataclass(frozen=True)
class Numbers:
    """The numbers of all channels in a network's graph, and what ties them together.

    kinds       FIXED, FILTER ... of each number, as a vector. Number 0 never leaves
    same        of each number, the one that it became: what goes with a filter, as a gate does,
                has the filter's number
    streams     Sets: the number of a sum, and those that are added
    units       Sets: numbers that leave together
    fixed       list of (numbers, reason): these never leave
    layers      dotted name -> Layer
    parameters  names of the layers that are single parameters
    additions   list of (path of the module that adds, numbers of the sum)
    reordered   vectors of numbers that are told apart by where they stand
    """

    kinds: torch.Tensor
    same: torch.Tensor
    streams: Sets
    units: Sets
    fixed: list
    layers: dict
    parameters: set
    additions: list
    reordered: list


def number_channels(graph: fx.Graph, skeleton: nn.Module, fixed=()) -> Numbers:
    """Give each channel in a graph a number. Returns Numbers; nodes get their traits `numbers`,
    `channels` and `in_part`.

    Each filter of a convolution gets a number, and each tensor of the graph a tensor of its shape
    that says for each place which channel it belongs to. Operations that only move data are run on
    the numbers; those that keep channels apart hand them on. An addition makes new ones.
    fixed: name of a node -> why the channels that it reads and writes never leave.
    """
    numbering = _Numbering(graph, skeleton)
    fixed = dict(fixed)
    for node in graph.nodes:
        numbering.visit(node)
        if node.name in fixed:
            numbering.mixed(node, [node, *_behind(node)], fixed[node.name])
    return numbering.result()


class _Numbering:
    """Goes through a graph once."""

    def __init__(self, graph, skeleton):
        self.graph = graph
        self.skeleton = skeleton
        self.kinds = torch.tensor([FIXED])
        self.same = torch.tensor([0])
        self.streams = Sets()
        self.units = Sets()
        self.fixed = []
        self.layers = {}
        self.parameters = set()
        self.additions = []
        self.reordered = []
        self.writers = [None]  # of each number the name of the layer that writes it, or None
        self.before = {}  # node -> a bit for each node that it is computed from, and its own
        self.answers = {}  # operation and what it is run on -> where channels go
        self.ends = set(ends_of(graph))
        self.read = set(filter(None, map(_parameter_read_by_operations, graph.nodes)))

    def result(self):
        return Numbers(
            kinds=self.kinds,
            same=self.same,
            streams=self.streams,
            units=self.units,
            fixed=self.fixed,
            layers=self.layers,
            parameters=self.parameters,
            additions=self.additions,
            reordered=self.reordered,
        )

    def visit(self, node):
        self.before[node] = 1 << len(self.before)
        for source in node.all_input_nodes:
            self.before[node] |= self.before[source]
        if node in self.ends:
            self.mixed(node, node.all_input_nodes, OUTPUT)
        elif tensors_in(traits_of(node).value):
            numbers = self._numbers_of(node)
            give(node, numbers=numbers, channels=varies(numbers))

    def _numbers_of(self, node):
        """The numbers of what a node gives: one row of questions, each asked of what is left."""
        sources = [node for node in node.all_input_nodes if traits_of(node).numbers is not None]
        value = traits_of(node).value
        kind = kind_of(node)
        if works_in_place(node, self.skeleton) and self._changes_a_part(node):
            give(node, in_part=True)
            return self.mixed(node, [*sources, *_behind(node.args[0])])
        if node.op == "get_attr":
            return self._parameter(node, value)
        if kind is Kind.MOVES and sources:
            return self._move(node, sources)
        if not isinstance(value, torch.Tensor):
            self._number_packed_heads(node)
            return self.mixed(node, sources)
        if node.op == "call_module" and len(sources) == 1:
            return self._layer(node, sources[0])
        if kind is Kind.ATTENDS:
            return self._attended(node, sources)
        if kind in PAIRED and len(sources) == 2 and not node.kwargs:
            return self._pair(node, *sources)
        if kind in PAIRED and len(sources) == 1:
            if traits_of(sources[0]).value.shape == value.shape:  # the other one is a plain number
                return self._handed_on(node, sources)
        return self._asked(node, sources)

    # ------------------------------------------------------------------ numbers, and their ties

    def _new(self, count, kind, layer=None):
        self.writers += [layer] * count
        numbers = torch.arange(len(self.kinds), len(self.kinds) + count)
        self.kinds = torch.cat((self.kinds, torch.full((count,), kind)))
        self.same = torch.cat((self.same, numbers))
        return numbers

    def _fix(self, numbers, reason):
        self.fixed.append((_distinct(numbers), reason))

    def mixed(self, node, sources, reason=None):
        """What is not understood: all channels that a node reads from `sources` are fixed. Returns
        the numbers of what it gives."""
        for source in sources:
            for numbers in tensors_in(traits_of(source).numbers):
                self._fix(numbers, reason or f"{self._what_mixes(node, source)} mixes them")
        return map_tensors(_all_fixed, traits_of(node).value)

    def _what_mixes(self, node, source):
        """The name of the operation: `node`, but where `source` has moved data so that channels are
        no longer along one dimension, that one."""
        numbers = traits_of(source).numbers
        has_moved = kind_of(source) is Kind.MOVES and isinstance(numbers, torch.Tensor)
        if has_moved and varies(numbers) is None:
            return name_of(source)
        return name_of(node)

    def _together(self, first, second, follow=False):
        """Two channels each, of two vectors, leave together. follow: the second has no score of
        its own, and becomes the same."""
        first, second = self.same[first], self.same[second]
        differ = first != second
        first, second = first[differ], second[differ]
        if follow and self._can_follow(first, second):
            self.same[second] = first
            self.same = self.same[self.same]
        elif self._are_written(first) and self._are_written(second):
            self.units = self.units.joined(first, second)
        else:
            self._fix(torch.cat((first, second)), "they go with what stays")

    def _are_written(self, numbers):
        return torch.isin(self.kinds[numbers], WRITTEN).all()

    def _can_follow(self, first, second):
        kinds = self.kinds[second]
        return (
            (self.kinds[first] != FIXED).all()
            and ((kinds != FIXED) & (kinds != SUM)).all()
            and len(second.unique()) == len(second)
        )

    def _tie_rows(self, rows):
        """The channels of each row of a matrix leave together."""
        self._together(rows[:, :-1].flatten(), rows[:, 1:].flatten())

    def _channels_of(self, node, dim=1, dims=4):
        """(dimension, vector) of the numbers of what a node gives, or None.

        Of images whose channels have several numbers each, as PixelShuffle makes them and as heads
        have them, those of one channel leave together, and the smallest stands for them. dim: of
        these channels; dims: of a tensor that may have such ones.
        """
        traits = traits_of(node)
        may_be_tied = isinstance(traits.numbers, torch.Tensor) and traits.numbers.dim() == dims
        if traits.channels is None and may_be_tied:
            tied = _numbers_of_each_channel(traits.numbers, dim, len(self.kinds))
            if tied is not None:
                smallest = tied.amin(1)
                pairs = (smallest[:, None] * len(self.kinds) + tied).unique()
                self._together(pairs // len(self.kinds), pairs % len(self.kinds))
                numbers = spread(smallest, traits.value.shape, dim)
                give(node, numbers=numbers, channels=(dim, smallest))
        return traits_of(node).channels

    # ----------------------------------------------------- operations that read one tensor

    def _handed_on(self, node, sources, numbers=None):
        """The numbers of the first source, or these, where channels are along one dimension."""
        if numbers is None:
            self._channels_of(sources[0])
            numbers = traits_of(sources[0]).numbers
        if varies(numbers) is None:
            return self.mixed(node, sources)
        return numbers

    def _parameter(self, node, value):
        """Of a parameter that is computed with: a scale or shift of each channel has numbers."""
        if node.target not in self.layers:
            owner = self.skeleton.get_submodule(node.target.rpartition(".")[0])
            is_vector = sum(size > 1 for size in value.shape) <= 1
            # A layer whose weights are read elsewhere stays: see `elsewhere`.
            if isinstance(owner, LEAVES) or not is_vector or not value.is_floating_point():
                return _all_fixed(value)
            self.layers[node.target] = Layer(None, self._new(value.numel(), SCALE))
            self.parameters.add(node.target)
        return self.layers[node.target].writes.view(value.shape)

    def _move(self, node, sources):
        """Run it on the places of its arguments, and look up the numbers there."""
        values = tensors_in([traits_of(source).value for source in sources])
        if not all(tensor.is_floating_point() for tensor in values):
            return self.mixed(node, sources)
        inputs = [traits_of(source).numbers for source in sources]
        numbers = tensors_in(inputs)
        if not any(_once(tensor).any() for tensor in numbers):  # wherever they go, they stay
            return map_tensors(_all_fixed, traits_of(node).value)
        places = dict(zip(sources, _places(inputs)))
        table = torch.cat([tensor.flatten() for tensor in numbers])

        def look(other):
            return places.get(other, traits_of(other).value)

        def number_at(place):
            return _slim(table[place])

        result = map_tensors(number_at, compute(node, self.skeleton, look))
        if len(sources) == 1 and not _in_order(traits_of(sources[0]).numbers, result):
            self.reordered.append(torch.cat([_distinct(tensor) for tensor in numbers]).unique())
        return result

    def _changes_a_part(self, node):
        """Whether what an operation changes in place is a view, maybe of a part, of a tensor that
        others read, too."""
        viewed = node.args[0]
        is_shared = False
        while kind_of(viewed) is Kind.MOVES and isinstance(viewed.args[0], fx.Node):
            viewed = viewed.args[0]
            is_shared |= len(viewed.users) > 1
        return is_shared

    def _asked(self, node, sources):
        """An operation that nobody listed: does it keep channels apart?"""
        if len(sources) != 1:
            return self.mixed(node, sources)
        channels = self._channels_of(sources[0])
        if channels is None or not channels[1].any():
            return self.mixed(node, sources)
        dim, vector = channels
        new_dim = self._dim_after(node, sources[0], dim)
        if new_dim is None:
            return self.mixed(node, sources)
        return spread(vector, traits_of(node).value.shape, new_dim)

    def _dim_after(self, node, source, dim):
        """The dimension that the channels along `dim` of a tensor go to, or None; see keeps_apart.
        Operations that are alike are asked once."""
        if node.op == "call_module" and kind_of(node) is Kind.APART and dim == 1:  # of images
            return 1
        module = None
        operation = node.op, node.target
        if node.op == "call_module":
            module = self.skeleton.get_submodule(node.target)
            operation = type(module), repr(module)
        values = {other: traits_of(other).value for other in node.all_input_nodes}
        arguments = fx.map_arg((node.args, node.kwargs), (values | {source: None}).get)
        question = operation, repr(arguments), values[source].shape, dim
        if question not in self.answers:
            self.answers[question] = self._try_out(node, source, dim, module)
        return self.answers[question]

    def _try_out(self, node, source, dim, module):
        """What keeps_apart says of an operation. module: the layer that it calls, or None."""
        values = {other: traits_of(other).value for other in node.all_input_nodes}
        if module is not None:
            module = as_real(module)

        def run(images):
            return compute(node, self.skeleton, (values | {source: images}).get, module)

        return keeps_apart(run, values[source].shape, dim)

    # ------------------------------------------------------------------------------ layers

    def _layer(self, node, source):
        module = self.skeleton.get_submodule(node.target)
        self._channels_of(source)
        if has_hooks(module):
            return self.mixed(node, [source], f"{node.target} has hooks")
        reason = elsewhere(node.target, self.skeleton, self.read)
        if reason and not isinstance(module, READERS):
            return self.mixed(node, [source], reason)
        if isinstance(module, READERS):
            layer, dim = self._reader(node, module, source, reason)
        elif isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            layer, dim = self._grouped(module, traits_of(source).numbers), 1
        elif not _weights_for_each_channel(module) or isinstance(module, WHOLE):
            return self._asked(node, [source])
        else:
            layer, dim = self._channelwise(node, module, source)
        if layer is None:
            return self.mixed(node, [source])
        self._use(node.target, layer)
        return spread(layer.writes, traits_of(node).value.shape, dim)

    def _use(self, name, layer):
        known = self.layers.setdefault(name, layer)
        if known is not layer:  # used before: both uses lose the same channels
            if known.reads is not None:
                self._together(known.reads, layer.reads)
            self._together(known.writes, layer.writes)

    def _reader(self, node, module, source, reason):
        """(Layer, dimension) of a convolution or a linear layer. reason: why it stays as it is, or
        None."""
        inputs, outputs, groups = sides_of(module)
        dim = traits_of(source).numbers.dim() - (module.weight.dim() - 1)
        reads = self._read_along(dim, node, source, inputs)
        cuts_inputs = False
        cuts_outputs = False
        if not reason:
            cuts_inputs, cuts_outputs = can_be_cut(module)
            reason = f"{name_of(node)} mixes them"
        if groups == outputs == len(reads) > 1:  # depthwise
            if not cuts_outputs:
                self._fix(reads, reason)
            return Layer(None, reads, groups), dim
        writes = self._written_by(node, module, outputs)
        if not cuts_inputs:
            self._fix(reads, reason)
        if not cuts_outputs:
            self._fix(writes, reason)
        if groups > 1:
            self._tie_rows(torch.cat((reads.view(groups, -1), writes.view(groups, -1)), 1))
        return Layer(reads, writes, groups, order_of(module)), dim

    def _read_along(self, dim, node, source, count):
        """The numbers that a convolution or a linear layer reads along a dimension, `count` of
        them; what it mixes with others is fixed."""
        numbers = traits_of(source).numbers
        reads = along(numbers, dim)
        if reads is None:
            self._fix(numbers, f"{self._what_mixes(node, source)} mixes them")
            return torch.zeros(count, dtype=torch.long)
        if self._are_matrices(reads).any():
            self._fix(reads, f"{node.target} mixes heads")
        return reads

    def _written_by(self, node, module, count):
        """The numbers of a layer's filters: new ones, but where it is called once more."""
        if node.target in self.layers:
            return self.layers[node.target].writes
        kind = LINEAR if isinstance(module, nn.Linear) else FILTER
        return self._new(count, kind, node.target)

    def _grouped(self, module, numbers):
        """A GroupNorm, whose groups leave whole; None where channels are along no dimension."""
        vector = along(numbers, 1)
        if vector is None:
            return None
        self._tie_rows(vector.view(module.num_groups, -1))
        return Layer(None, vector, module.num_groups)

    def _channelwise(self, node, module, source):
        """(Layer, dimension) of a layer with a weight for each channel; (None, None) where it does
        not keep them apart."""
        channels = varies(self._asked(node, [source]))
        weights = _weights_for_each_channel(module)
        if channels is None or any(weight.shape != channels[1].shape for weight in weights):
            return None, None
        dim, vector = channels
        return Layer(None, vector), dim

    # ------------------------------------------------------------------------- attention

    def _attended(self, node, sources):
        """A product of matrices, or attention. Where it has several of them, as one for each head,
        they are kept apart; queries, keys and values of one leave together."""
        factors = _factors(node)
        heads = [self._heads_of(factor) for factor in factors]
        if not heads or None in heads:  # none are given by position
            return self.mixed(node, sources)
        dims, vectors = zip(*heads)
        if len(set(dims)) > 1 or len(set(map(len, vectors))) > 1:
            return self.mixed(node, sources)
        dim, first = heads[0]
        for source in sources:
            if source not in factors and not self._is_bias_of(source, node, dim, first):
                return self.mixed(node, sources, f"{name_of(node)} adds what stays for each head")
        for other in vectors[1:]:
            self._together(first, other)
        values = [vector for vector in vectors if not self._are_matrices(vector).all()]
        if len(values) == len(heads) == 2:  # queries and keys
            result = self._new(len(first), MATRIX)
            self._together(first, result, follow=True)
        elif values:
            result = values[-1]
        else:
            result = first
        return spread(result, traits_of(node).value.shape, dim)

    def _is_bias_of(self, source, node, dim, heads):
        """Whether what an attention adds is the same for all heads, or leaves with them; then it
        does from now on. dim: along which heads are."""
        shape = traits_of(node).value.shape
        numbers = traits_of(source).numbers
        if _size_along(source, dim, shape) == 1:
            return not numbers.any()
        vector = along(numbers, dim - len(shape) + numbers.dim())
        if vector is None or not self._are_written(self.same[vector]):
            return False
        self._together(heads, vector)
        return True

    def _number_packed_heads(self, node):
        """Give the heads of an nn.MultiheadAttention numbers: rows of its packed weights are its
        filters, and its output reads those of the values."""
        if node.op != "call_module" or node.target in self.layers:
            return
        name = str(node.target)
        module = self.skeleton.get_submodule(name)
        if not has_packed_heads(module, node.args, node.kwargs):
            return
        projection = f"{name}.out_proj"
        for layer in (name, projection):
            if has_hooks(self.skeleton.get_submodule(layer)):
                return
            if elsewhere(layer, self.skeleton, self.read):
                return
        rows = self._new(3 * module.embed_dim, LINEAR, name)
        fixed = torch.zeros(module.embed_dim, dtype=torch.long)
        heads = rows.view(3, module.num_heads, -1)
        self._tie_rows(heads.transpose(0, 1).flatten(1))
        self.layers[name] = Layer(fixed, rows)
        self.layers[projection] = Layer(heads[2].flatten(), fixed)

    def _heads_of(self, node):
        """(dimension, vector) of the matrices that a node gives, where they are several and
        removable; else None."""
        traits = traits_of(node)
        if not isinstance(traits.numbers, torch.Tensor):
            return None
        dims = traits.numbers.dim()
        for dim in range(1, dims - 2):
            if traits.value.shape[dim] > 1:
                self._channels_of(node, dim, dims)
        channels = traits_of(node).channels
        if channels is None:
            return None
        dim, vector = channels
        if not 0 < dim < dims - 2 or not vector.all():
            return None
        return channels

    def _are_matrices(self, numbers):
        return self.kinds[numbers] == MATRIX

    def _joined_to_matrices(self, first, second):
        """The numbers of products of queries and keys with something for each head added, or
        multiplied with it; None where that stays."""
        if not self._are_written(self.same[first]) or not self._are_written(self.same[second]):
            return None
        self._together(first, second)
        return first if self._are_matrices(first).all() else second

    # ----------------------------------------------------- operations that read two tensors

    def _pair(self, node, a, b):
        self._channels_of(a)
        self._channels_of(b)
        numbers = traits_of(a).numbers
        others = traits_of(b).numbers
        if not isinstance(numbers, torch.Tensor) or not isinstance(others, torch.Tensor):
            return self.mixed(node, [a, b])
        shape = traits_of(node).value.shape
        numbers = numbers.expand(shape)
        others = others.expand(shape)
        if torch.equal(numbers, others):
            return self._handed_on(node, [a, b], numbers)
        dim = _common_dim(varies(numbers), varies(others))
        if dim is None:
            return self.mixed(node, [a, b])
        first = along(numbers, dim)
        second = along(others, dim)
        if first is None or second is None:
            return self.mixed(node, [a, b])
        if _size_along(a, dim, shape) != shape[dim]:
            return self._spread_out(node, [a, b], a, first, second, dim)
        if _size_along(b, dim, shape) != shape[dim]:
            return self._spread_out(node, [a, b], b, second, first, dim)
        result = self._joined(node, a, b, first, second)
        if result is None:
            return self.mixed(node, [a, b])
        return spread(result, shape, dim)

    def _spread_out(self, node, pair, source, vector, other, dim):
        """One channel, of `source`, meets all channels of the other tensor."""
        kind = kind_of(node)
        shape = traits_of(node).value.shape
        self._fix(vector, f"{name_of(node)} spreads it over other channels")
        if self._are_matrices(other).all():  # whatever is added, it is nothing without the values
            return spread(other, shape, dim)
        is_factor = kind is Kind.MULTIPLIES or (kind is Kind.DIVIDES and source is pair[1])
        if is_factor or traits_of(source).value.numel() == 1:  # what is zero stays zero
            return spread(other, shape, dim)
        if kind is not Kind.ADDS:
            return self.mixed(node, pair)
        return spread(self._sum(node, other, torch.zeros_like(other)), shape, dim)

    def _joined(self, node, a, b, first, second):
        """The numbers of what two tensors give, channel by channel; None where it is not known."""
        kind = kind_of(node)
        if self._are_learned(second):
            self._together(first, second, follow=True)
            return first
        if self._are_learned(first) and kind is not Kind.DIVIDES:
            self._together(second, first, follow=True)
            return second
        if self._are_matrices(first).all() or self._are_matrices(second).all():
            result = self._joined_to_matrices(first, second)
            if result is not None:
                return result
        if kind is Kind.ADDS:
            return self._sum(node, first, second)
        if kind is Kind.MULTIPLIES:
            return self._product(node, a, b, first, second)
        if kind is Kind.COMPARES:
            self._together(first, second)
            return first
        return None

    def _are_learned(self, vector):
        """Whether these are a learned scale or shift of each channel."""
        return (self.kinds[vector] == SCALE).all()

    def _sum(self, node, a, b):
        total = self._new(len(a), SUM)
        self.additions.append((path_of(node), total))
        for part in self.same[a], self.same[b]:
            free = torch.isin(self.kinds[part], WRITTEN)
            self.streams = self.streams.joined(total[free], part[free])
            if not free.all():
                self._fix(torch.cat((total[~free], part[~free])), "they are added to what stays")
        return total

    def _product(self, node, a, b, first, second):
        """A gate follows what it multiplies; other factors go together. Returns the numbers of the
        product."""
        first_is_gate = self._is_gate(node, a, b, first, second)
        second_is_gate = self._is_gate(node, b, a, second, first)
        if first_is_gate and not second_is_gate:
            first, second = second, first
        self._together(first, second, follow=first_is_gate or second_is_gate)
        return first

    def _is_gate(self, node, own, other, numbers, others):
        """Whether a factor serves this multiplication alone, and is computed from the other one or,
        where that is no linear layer's, by a linear layer."""
        if not self._serves(node, numbers):
            return False
        if self.before[other] & ~self.before[own] == 0:
            return True
        return self._are_linear(numbers) and not self._are_linear(others)

    def _are_linear(self, numbers):
        return bool((self.kinds[numbers] == LINEAR).all())

    def _serves(self, node, numbers):
        """Whether the layers that write these channels serve nothing else than this operation."""
        writers = {self.writers[number] for number in numbers.unique().tolist()}
        if None in writers:
            return False
        todo = [other for other in self.graph.nodes if other.target in writers]
        seen = set()
        while todo:
            for user in todo.pop().users:
                if user is node or user in seen or not tensors_in(traits_of(user).value):
                    continue
                if user in self.ends or issubclass(traits_of(user).layer or object, READERS):
                    return False
                seen.add(user)
                todo.append(user)
        return True


def _parameter_read_by_operations(node):
    """The name of a parameter that more is read of than its size; else None."""
    if node.op == "get_attr" and any(tensors_in(traits_of(user).value) for user in node.users):
        return node.target
    return None


def _behind(node):
    """The nodes with channels that a node reads, also by way of views and sizes."""
    nodes = []
    for source in node.all_input_nodes:
        traits = traits_of(source)
        if traits.numbers is not None:
            nodes.append(source)
        if traits.channels is None:
            nodes += _behind(source)
    return nodes


def _distinct(numbers):
    """The numbers in a tensor, each once."""
    return _once(numbers).unique()


def _once(numbers):
    """A tensor, but for what is the same along a dimension without memory."""
    for dim, step in enumerate(numbers.stride()):
        if step == 0:
            numbers = numbers.narrow(dim, 0, min(1, numbers.shape[dim]))
    return numbers


def _factors(node):
    """The matrices that are multiplied, or queries, keys and values."""
    if name_of(node) != "scaled_dot_product_attention":
        return node.args[:2]
    named = [node.kwargs[name] for name in ("query", "key", "value") if name in node.kwargs]
    return [*node.args, *named][:3]


def _all_fixed(tensor):
    return torch.zeros((), dtype=torch.long).expand(tensor.shape)


def _weights_for_each_channel(module):
    """A layer's tensors with several values, and all vectors of a norm, maybe of one channel."""
    is_norm = isinstance(module, nn.modules.batchnorm._NormBase)
    weights = []
    for tensor in module.state_dict().values():
        is_vector_of_norm = is_norm and tensor.dim() == 1
        if tensor.numel() > 1 or is_vector_of_norm:
            weights.append(tensor)
    return weights


def _size_along(node, dim, shape):
    """The size of what a node gives along a dimension of a shape that it is broadcast to."""
    own = traits_of(node).value.shape
    missing = len(shape) - len(own)
    return 1 if dim < missing else own[dim - missing]


def _common_dim(first, second):
    """The dimension along which the numbers of two tensors vary, each given as by `varies`; None
    where one of them varies along several. A tensor of equal numbers leaves it to the other."""
    if first is None or second is None:
        return None
    for dim, vector in (first, second):
        if len(vector.unique()) > 1:
            return dim
    return first[0]


def _numbers_of_each_channel(numbers, dim, count):
    """Channels x numbers of each, of a tensor that has several in a channel along `dim`, and none
    in two channels; else None. count: of all numbers."""
    if along(numbers, dim) is not None:
        return None
    rows = _once(numbers.transpose(0, dim)).flatten(1)
    index = torch.arange(len(rows))[:, None].expand_as(rows)
    owner = torch.zeros(count, dtype=torch.long)
    owner[rows] = index
    return rows if torch.equal(owner[rows], index) else None


def _places(numbers):
    """The same nested tuples of tensors, with places that count on from one to the next."""
    start = 0

    def lay(tensor):
        nonlocal start
        places = torch.arange(start, start + tensor.numel()).view(tensor.shape)
        start += tensor.numel()
        return places

    return map_tensors(lay, numbers)


def _slim(numbers):
    """The same numbers, in less memory where they vary along one dimension only."""
    channels = varies(numbers)
    if channels is None:
        return numbers
    dim, vector = channels
    return spread(vector, numbers.shape, dim)


def _in_order(before, after):
    """Whether a tensor has the channels of another one in the same order, each as often."""
    channels = varies(before), varies(after)
    if None in channels:
        return False
    (_, before), (_, after) = channels
    times, rest = divmod(len(after), len(before))
    return rest == 0 and torch.equal(before.repeat_interleave(times), after)
