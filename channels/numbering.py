"""Which channel each place of each tensor of a network belongs to, and which leave together.

numbering = Numbering(graph, skeleton)   # of channels/trace.py, where all values are computed
"""

import torch
from torch import nn
from torch.fx import Node, map_arg

from channels.layers import Layer, can_be_cut, elsewhere
from channels.trace import (
    LEAVES,
    along,
    as_real,
    compute,
    in_place,
    keeps_apart,
    moves,
    name_of,
    path_of,
    spread,
    varies,
)

# Kinds of numbers: of what never leaves, a convolution's filters, an addition, the outputs of a
# linear layer, and a learned scale or shift.
FIXED, FILTER, SUM, LINEAR, SCALE = range(5)
ADDS = {"add", "add_", "iadd"}
MULTIPLIES = {"mul", "mul_", "imul"}
DIVIDES = {"truediv", "itruediv", "div", "div_"}
COMPARES = {"sub", "sub_", "isub", "maximum", "minimum"}  # of two zeros they give zero
PAIRS = ADDS | MULTIPLIES | DIVIDES | COMPARES
CHANNELWISE = {
    nn.BatchNorm2d,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.Hardswish,
    nn.Identity,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
}  # of images; they need no question


class Sets:
    """Numbers that belong together, as disjoint sets."""

    def __init__(self):
        self.pairs = []

    def join(self, first, second):
        """Put the numbers of two vectors together, pair by pair."""
        self.pairs.append(torch.stack((first, second)))

    def roots(self, count):
        """The smallest number of each number's set, as a vector."""
        roots = torch.arange(count)
        pairs = torch.cat(self.pairs, 1) if self.pairs else torch.empty(2, 0, dtype=torch.long)
        while True:
            least = roots[pairs].amin(0)
            new = roots.scatter_reduce(0, roots[pairs].flatten(), least.repeat(2), "amin")
            new = new[new]
            if torch.equal(new, roots):
                return roots
            roots = new


class Numbering:
    """Numbers for all channels in the graph of a network, and what ties them together.

    Each filter of a convolution gets a number, and each tensor of the graph a tensor of its shape
    that says for each place which channel it belongs to (node.meta["numbers"]). Operations that
    only move data are run on the numbers; channelwise ones hand them on. An addition makes new
    ones, SUM, joined in `streams` with those that are added. What must go together is joined in
    `units`; what goes with a filter, as a gate does, becomes the same number (`same`). Number 0
    never leaves; `why` says of others why they stay. whole: names of nodes that are not to be
    changed -> why.
    """

    def __init__(self, graph, skeleton, whole=()):
        self.skeleton, self.layers, self.why, self.additions = skeleton, {}, [], []
        self.graph, self.before, self.asked = graph, {}, {}
        self.owners = [(0, None)]  # first number, and the layer that it and those after it are of
        self.kinds, self.same = torch.tensor([FIXED]), torch.tensor([0])
        self.streams, self.units = Sets(), Sets()
        self.parameters = set()  # those of the layers that are single parameters
        self.read = {
            node.target
            for node in graph.nodes
            if node.op == "get_attr" and any(flat(user.meta["value"]) for user in node.users)
        }  # not its size alone
        self.reordered = []  # vectors of numbers that are told apart by where they stand
        for place, node in enumerate(graph.nodes):
            self.before[node] = 1 << place
            for other in node.all_input_nodes:
                self.before[node] |= self.before[other]
            value, numbers = node.meta["value"], None
            if node.op == "output":
                self.keep(node.args[0].meta["numbers"], "they are the network's output")
            elif flat(value):
                numbers = self._numbers_of(node, value)
            node.meta["numbers"] = numbers
            # What has channels of its own; None of sizes, tuples, and what is on its way between
            # views.
            node.meta["channels"] = varies(numbers) if isinstance(numbers, torch.Tensor) else None
            if node.name in whole:
                self._mixed(node, [node, *behind(node)], whole[node.name])

    def new(self, count, kind, layer=None):
        self.owners.append((len(self.kinds), layer))
        numbers = torch.arange(len(self.kinds), len(self.kinds) + count)
        self.kinds = torch.cat((self.kinds, torch.full((count,), kind)))
        self.same = torch.cat((self.same, numbers))
        return numbers

    def keep(self, numbers, why):
        self.why.append((numbers.unique(), why))

    def _numbers_of(self, node, value):
        inputs = [n for n in node.all_input_nodes if n.meta["numbers"] is not None]
        if in_place(node, self.skeleton) and self._is_shared_view(node.args[0]):
            node.meta["in_part"] = True
            return self._mixed(node, [*inputs, *behind(node.args[0])])
        if node.op == "get_attr":
            return self._parameter(node, value)
        if moves(node, self.skeleton) and inputs:
            data = [t.is_floating_point() for n in inputs for t in flat(n.meta["value"])]
            return self._move(node, inputs) if all(data) else self._mixed(node, inputs)
        if not isinstance(value, torch.Tensor):
            return self._mixed(node, inputs)
        if node.op == "call_module" and len(inputs) == 1:
            return self._layer(node, inputs[0], value)
        name = name_of(node)
        if name in PAIRS and len(inputs) == 2 and not node.kwargs:
            return self._pair(node, name, *inputs, value.shape)
        if name in PAIRS and len(inputs) == 1 and (inputs[0].meta["value"].shape == value.shape):
            return self._handed_on(node, inputs)
        return self._asked(node, inputs, value)

    def _mixes(self, node, numbers, why=None):
        self.keep(numbers, why or f"{name_of(node)} mixes them")

    def _mixed(self, node, inputs, why=None):
        """What is not understood: all channels that it reads stay."""
        for each in inputs:
            for numbers in flat(each.meta["numbers"]):
                self._mixes(node, numbers, why)
        return nested(
            lambda t: torch.zeros((), dtype=torch.long).expand(t.shape), node.meta["value"]
        )

    def _is_shared_view(self, node):
        """Whether a tensor is a view, maybe of a part, of one that others read, too."""
        shared = False
        while moves(node, self.skeleton) and isinstance(node.args[0], Node):
            node = node.args[0]
            shared |= len(node.users) > 1
        return shared

    def _handed_on(self, node, inputs, numbers=None):
        numbers = inputs[0].meta["numbers"] if numbers is None else numbers
        return self._mixed(node, inputs) if varies(numbers) is None else numbers

    def _parameter(self, node, value):
        owner = self.skeleton.get_submodule(node.target.rpartition(".")[0])
        if node.target not in self.layers:
            if (
                isinstance(owner, LEAVES)
                or sum(size > 1 for size in value.shape) > 1
                or (not value.is_floating_point())
            ):  # a layer that is read stays: see `elsewhere`
                return torch.zeros((), dtype=torch.long).expand(value.shape)
            numbers = self.new(value.numel(), SCALE)
            self.layers[node.target] = Layer(None, numbers)
            self.parameters.add(node.target)
        return self.layers[node.target].writes.view(value.shape)

    def _move(self, node, inputs):
        """Run it on the places of its arguments, and look up the numbers there."""
        start, places = 0, {}
        for each in inputs:

            def lay(numbers):
                nonlocal start
                start += numbers.numel()
                return torch.arange(start - numbers.numel(), start).view(numbers.shape)

            places[each] = nested(lay, each.meta["numbers"])
        table = torch.cat([n.flatten() for each in inputs for n in flat(each.meta["numbers"])])
        moved = compute(
            node, self.skeleton, lambda n: places[n] if n in places else n.meta["value"]
        )
        result = nested(lambda place: slim(table[place]), moved)
        if len(inputs) == 1 and not _in_order(inputs[0].meta["numbers"], result):
            self.reordered.append(table.unique())
        return result

    def _asked(self, node, inputs, value):
        """An operation that nobody listed: does it keep channels apart?"""
        if len(inputs) != 1 or not isinstance(inputs[0].meta["numbers"], torch.Tensor):
            return self._mixed(node, inputs)
        (source,) = inputs
        found = varies(source.meta["numbers"])
        if found is None or not found[1].any():
            return self._mixed(node, inputs)
        (dim, vector), shape = found, source.meta["value"].shape
        if node.op == "call_module" and node.meta["class"] in CHANNELWISE:
            return spread(vector, value.shape, dim) if dim == 1 else self._mixed(node, inputs)
        module = self.skeleton.get_submodule(node.target) if node.op == "call_module" else None

        def look(other, images=None):
            return images if other is source else other.meta["value"]

        operation = (type(module), repr(module)) if module else (node.op, node.target)
        key = (*operation, repr(map_arg((node.args, node.kwargs), look)), shape, dim)
        if key not in self.asked:
            real = as_real(module) if module else None
            self.asked[key] = keeps_apart(
                lambda images: compute(node, self.skeleton, lambda n: look(n, images), real),
                shape,
                dim,
            )
        if self.asked[key] is None:
            return self._mixed(node, inputs)
        return spread(vector, value.shape, self.asked[key])

    # ------------------------------------------------------------------------------ layers

    def _layer(self, node, source, value):
        module, numbers = self.skeleton.get_submodule(node.target), source.meta["numbers"]
        if module._forward_hooks or module._forward_pre_hooks:
            return self._mixed(node, [source], f"{node.target} has hooks")
        is_norm = isinstance(module, nn.modules.batchnorm._NormBase)  # maybe of one channel
        weights = [
            t for t in module.state_dict().values() if t.numel() > 1 or is_norm and t.dim() == 1
        ]
        why = elsewhere(node.target, self.skeleton, self.read)
        if why and not isinstance(module, (nn.Conv2d, nn.Linear)):
            return self._mixed(node, [source], why)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            layer, dim = self._reader(node, module, numbers, why)
        elif isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            layer, dim = self._grouped(module, numbers), 1
        elif not weights:
            return self._asked(node, [source], value)
        else:
            result = self._asked(node, [source], value)
            found = varies(result)
            if found is None or any(t.shape != found[1].shape for t in weights):
                return self._mixed(node, [source])
            layer, dim = Layer(None, found[1]), found[0]
        if layer is None:
            return self._mixed(node, [source])
        known = self.layers.setdefault(node.target, layer)
        if known is not layer:  # used before: both uses lose the same channels
            for first, second in ((known.reads, layer.reads), (known.writes, layer.writes)):
                if first is not None:
                    self._together(first, second)
        return spread(layer.writes, value.shape, dim)

    def _reader(self, node, module, numbers, why):
        """A convolution or a linear layer. why: it stays as it is, or None."""
        conv, inputs = isinstance(module, nn.Conv2d), module.weight.shape[1]
        dim = 1 if conv else numbers.dim() - 1
        groups = module.groups if conv else 1
        vector = along(numbers, dim)
        if vector is None:
            self._mixes(node, numbers)
            vector = torch.zeros(inputs * groups, dtype=torch.long)
        cuts_inputs, cuts_outputs = (False, False) if why else can_be_cut(module)
        if groups == module.weight.shape[0] == len(vector) > 1:  # depthwise
            if not cuts_outputs:
                self._mixes(node, vector, why)
            return Layer(None, vector, groups), dim
        if node.target in self.layers:
            writes = self.layers[node.target].writes
        else:
            writes = self.new(len(module.weight), FILTER if conv else LINEAR, node.target)
        if not cuts_inputs:
            self._mixes(node, vector, why)
        if not cuts_outputs:
            self._mixes(node, writes, why)
        if groups > 1:
            self._tie_rows(torch.cat((vector.view(groups, -1), writes.view(groups, -1)), 1))
        return Layer(vector, writes, groups), dim

    def _grouped(self, module, numbers):
        vector = along(numbers, 1)
        if vector is None:
            return None
        self._tie_rows(vector.view(module.num_groups, -1))
        return Layer(None, vector, module.num_groups)

    def _tie_rows(self, groups):
        """The channels of each row of a matrix leave together."""
        self._together(groups[:, :-1].flatten(), groups[:, 1:].flatten())

    # ------------------------------------------------------- operations on two tensors

    def _pair(self, node, name, a, b, shape):
        numbers = [each.meta["numbers"] for each in (a, b)]
        if not all(isinstance(each, torch.Tensor) for each in numbers):
            return self._mixed(node, [a, b])
        numbers = [each.expand(shape) for each in numbers]
        if torch.equal(*numbers):
            return self._handed_on(node, [a, b], numbers[0])
        found = [varies(each) for each in numbers]
        if None in found:
            return self._mixed(node, [a, b])
        dim = next((d for d, vector in found if len(vector.unique()) > 1), found[0][0])
        first, second = (along(each, dim) for each in numbers)
        if first is None or second is None:
            return self._mixed(node, [a, b])
        for own, vector, other in ((a, first, second), (b, second, first)):
            size = ([1] * len(shape) + list(own.meta["value"].shape))[-len(shape) :][dim]
            if size == shape[dim]:
                continue
            # One channel for all: where it multiplies, what is zero stays zero.
            self.keep(vector, f"{name_of(node)} spreads it over other channels")
            if name in MULTIPLIES or name in DIVIDES and own is b or own.meta["value"].numel() == 1:
                return spread(other, shape, dim)
            if name not in ADDS:
                return self._mixed(node, [a, b])
            return spread(self._sum(node, other, torch.zeros_like(other)), shape, dim)
        if self._learned(second):
            self._together(first, second, follow=True)
            result = first
        elif self._learned(first) and name not in DIVIDES:
            self._together(second, first, follow=True)
            result = second
        elif name in ADDS:
            result = self._sum(node, first, second)
        elif name in MULTIPLIES:
            result = self._product(node, a, b, first, second)
        elif name in COMPARES:
            self._together(first, second)
            result = first
        else:
            return self._mixed(node, [a, b])
        return spread(result, shape, dim)

    def _learned(self, vector):
        """Whether these are a learned scale or shift of each channel."""
        return (self.kinds[vector] == SCALE).all()

    def _sum(self, node, a, b):
        total = self.new(len(a), SUM)
        self.additions.append((path_of(node), total))
        for part in self.same[a], self.same[b]:
            free = (self.kinds[part] == FILTER) | (self.kinds[part] == SUM)
            self.streams.join(total[free], part[free])
            if not free.all():
                self.keep(torch.cat((total[~free], part[~free])), "they are added to what stays")
        return total

    def _product(self, node, a, b, first, second):
        """A gate, which serves this multiplication alone, follows what it multiplies; other factors
        go together. Returns the numbers of the product."""
        gates = [
            self._serves(node, numbers)
            and (
                self.before[other] & ~self.before[own] == 0  # it is computed from the other
                or bool((self.kinds[numbers] == LINEAR).all())
            )
            for own, other, numbers in ((a, b, first), (b, a, second))
        ]
        if gates == [True, False]:
            first, second = second, first
        self._together(first, second, follow=any(gates))
        return first

    def _serves(self, node, numbers):
        """Whether the layers that write these channels serve nothing else than this operation."""
        starts = torch.tensor([start for start, _ in self.owners])
        owners = {
            self.owners[place][1]
            for place in (torch.searchsorted(starts, numbers.unique(), right=True) - 1).tolist()
        }
        todo, seen = [n for n in self.graph.nodes if n.target in owners], {}
        if None in owners:
            return False
        while todo:
            for user in todo.pop().users:
                if user is node or user in seen or not flat(user.meta["value"]):
                    continue
                if (
                    user.op == "output"
                    or user.op == "call_module"
                    and isinstance(self.skeleton.get_submodule(user.target), (nn.Conv2d, nn.Linear))
                ):
                    return False
                seen[user] = None
                todo.append(user)
        return True

    def _together(self, first, second, follow=False):
        """Two channels each, of two vectors, leave together. follow: the second has no score of
        its own, and becomes the same."""
        first, second = self.same[first], self.same[second]
        first, second = first[first != second], second[first != second]
        kinds = self.kinds[first], self.kinds[second]
        if (
            follow
            and (kinds[0] != FIXED).all()
            and ((kinds[1] != FIXED) & (kinds[1] != SUM)).all()
            and (len(second.unique()) == len(second))
        ):
            self.same[second] = first
            self.same = self.same[self.same]
        elif all(((kind == FILTER) | (kind == SUM)).all() for kind in kinds):
            self.units.join(first, second)
        else:
            self.keep(torch.cat((first, second)), "they go with what stays")


def behind(node):
    """The nodes with channels that a node reads, also by way of views and sizes."""
    found = []
    for other in node.all_input_nodes:
        found += (
            [other]
            if other.meta["channels"] is not None
            else [*([other] if other.meta["numbers"] is not None else ()), *behind(other)]
        )
    return found


def flat(value):
    """The tensors in nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        return [tensor for each in value for tensor in flat(each)]
    return [value] if isinstance(value, torch.Tensor) else []


def nested(function, value):
    """The same nested tuples, with function(tensor) for each tensor and None for all else."""
    if isinstance(value, (tuple, list)):
        return tuple(nested(function, each) for each in value)
    return function(value) if isinstance(value, torch.Tensor) else None


def slim(numbers):
    """The same numbers, in less memory where they vary along one dimension only."""
    found = varies(numbers)
    return numbers if found is None else spread(found[1], numbers.shape, found[0])


def _in_order(before, after):
    """Whether a tensor has the channels of another one in the same order, each as often."""
    if not (isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)):
        return False
    found = varies(before), varies(after)
    if None in found:
        return False
    (_, before), (_, after) = found
    return len(after) % len(before) == 0 and torch.equal(
        before.repeat_interleave(len(after) // len(before)), after
    )
