"""Cuts channels out of a network: narrower layers, the operations that fit them, and the same
network with those channels at zero, to compare with.

small = copy.deepcopy(model)
graph = cut_channels(small, structure, before, after)   # bool tensors: which numbers are alive
"""

from functools import lru_cache, wraps
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import fx, nn

from channels.attention import drop_heads
from channels.layers import narrow
from channels.modes import in_mode, modes_of
from channels.operations import Kind, kind_of, name_of, title
from channels.running import along, compute
from channels.trace import decided
from channels.traits import give, traits_of
from common.made import made_class

KEPT_INDEX = "_left_"  # begins the names of buffers that say which channels an operation keeps


class CannotCut(ValueError):
    """An operation cannot be made to compute with fewer channels. node: of the graph."""

    def __init__(self, node, why=None):
        super().__init__(why or f"{title(node)} cannot be cut")
        self.node = node


def cut_channels(
    model: nn.Module, structure, before: torch.Tensor, after: torch.Tensor
) -> fx.Graph:
    """Remove from a network, in place, all channels whose numbers are alive `before` and not
    `after`. Returns its new graph, whose nodes have the trait `channels`. Raises ValueError where a
    layer would have none left, or an operation cannot be made to fit."""
    for name, layer in structure.layers.items():
        if not after[layer.writes if layer.reads is None else layer.reads].any():
            raise ValueError(f"{name} would have no inputs left")
        layer = layer.where(before)
        outs, ins = _places_left(layer.writes, after), _places_left(layer.reads, after)
        if outs is not None or ins is not None:
            _narrow(model, name, layer, ins, outs)
    return _Surgery(structure, after, model).graph


def _places_left(numbers, alive):
    """Where in a vector of numbers those are that are alive; None where all are."""
    if numbers is None or alive[numbers].all():
        return None
    return alive[numbers].nonzero().flatten()


def _narrow(model, name, layer, ins, outs):
    owner, _, own = name.rpartition(".")
    parent = model.get_submodule(owner)
    if own not in parent._parameters and own not in parent._buffers:
        narrow(module := model.get_submodule(name), layer, ins, outs)
        if isinstance(module, nn.MultiheadAttention):
            drop_heads(module)
        return
    tensor = getattr(parent, own)
    dim = next(dim for dim, size in enumerate(tensor.shape) if size > 1)
    tensor = tensor.detach().index_select(dim, outs.to(tensor.device))
    setattr(parent, own, nn.Parameter(tensor) if own in parent._parameters else tensor)


class _Surgery:
    """Gives a network whose layers have been narrowed the operations that fit them.

    An operation stays where running it on what is left gives what is wanted: of each tensor, the
    channels that are alive, in their order. Where it does not, another one takes its place: views
    get other sizes, a shuffle or an old boundary becomes a gather, and an addition of sides that
    differ an indexed one.
    """

    def __init__(self, structure, alive, model):
        self.structure, self.alive, self.model = structure, alive, model
        for name in [name for name in model._buffers if name.startswith(KEPT_INDEX)]:
            del model._buffers[name]
        self.graph, self.copies, self.values, self.changed = fx.Graph(), {}, {}, False
        self.left = {}  # node -> (dimension, indices of what is left of it) pairs
        self.graph.output(self.graph.graph_copy(structure.graph, self.copies))
        for node in structure.graph.nodes:
            if node in self.copies:
                self.values[node] = self._fit(node)
            if node.target is decided:
                self._fit_decision(node)
        kind = structure.kind
        if issubclass(kind, fx.GraphModule):
            kind = _without_own_graph(model)
            self.changed = True
        if self.changed:
            self.graph.owning_module = model  # asked whether operations have effects of their own
            self.graph.eliminate_dead_code()
            self.graph.owning_module = None
            kind = _with_forward(kind, self.graph)
        model.__class__ = kind

    def _fit(self, node):
        """Make the copy of a node compute what is wanted; its value, on the meta device."""
        channels = traits_of(node).channels
        if channels is None:  # sizes, and what is on its way from one view to the next
            if self._splits_what_has_gone(node) and self._fit_split(node):
                return torch.empty([len(index) for _, index in self.left[node]], device="meta")
            try:
                return compute(node, self.structure.skeleton, self.values.get)
            except Exception:  # then what follows gets another operation
                return None
        dim, vector = channels
        left = self.alive[vector]
        self.left[node] = [(dim, self._indices_left(vector))]
        give(self.copies[node], channels=(dim, vector[left]), original=node.name)
        shape = list(traits_of(node).value.shape)
        shape[dim] = int(left.sum())
        kind = kind_of(node)
        try:
            if kind is Kind.MOVES:
                self._fit_move(node, shape)
            elif kind is Kind.ADDS:
                self._fit_addition(node, dim, vector)
        except Exception as error:  # whatever an operation on places may raise
            raise CannotCut(node) from error
        return torch.empty(shape, device="meta")

    def _fit_decision(self, node):
        """A condition on how many channels there are keeps its outcome, and is asked no more."""
        condition, outcome = node.args
        if bool(self.values[condition]) != outcome:
            self.graph.erase_node(self.copies[node])
            self.changed = True

    def _replace(self, node, function, *args):
        with self.graph.inserting_after(self.copies[node]):
            new = self.graph.call_function(function, args)
        new.meta |= self.copies[node].meta
        self.copies[node].replace_all_uses_with(new)
        self.graph.erase_node(self.copies[node])
        self.copies[node], self.changed = new, True

    # --------------------------------------------------------------------------------- moves

    def _fit_move(self, node, shape):
        """Run it on the places of its arguments: is what is left what is wanted?"""
        if self._loses_nothing(node):
            return
        dim, _ = traits_of(node).channels
        left, wanted = self._wanted(node)
        if _gives(wanted, lambda: self._moved(node, left, self.values.get)):
            return
        if name_of(node) in ("view", "reshape") and node.args[0] in left:
            if self._view_anew(node, left[node.args[0]], shape, wanted):
                return
        self._gather(node, left, wanted, dim)

    def _loses_nothing(self, node):
        """Whether nothing has gone of what a move gives and reads, and no size has changed."""
        if any(traits_of(source).numbers is None for source in node.all_input_nodes):
            return False
        channels = [traits_of(other).channels for other in (node, *self._sources(node))]
        return None not in channels and all(self.alive[vector].all() for _, vector in channels)

    def _splits_what_has_gone(self, node):
        """Whether a view puts channels, some of which have gone, along several dimensions, as it
        does for heads."""
        source = node.args[0] if node.args else None
        if name_of(node) not in ("view", "reshape", "unflatten") or source not in self.left:
            return False
        vector = traits_of(source).channels and traits_of(source).channels[1]
        return vector is not None and not self.alive[vector].all()

    def _fit_split(self, node):
        """Give such a view the sizes that fit what is left. Whether that is possible."""
        self.left[node] = _grid(self.alive[traits_of(node).numbers])
        if self.left[node] is not None:
            left, wanted = self._wanted(node)
            source, shape = node.args[0], list(wanted.shape)
            if _gives(wanted, lambda: self._moved(node, left, self.values.get)):
                return True
            if name_of(node) == "unflatten":
                dim, sizes = node.args[1:]
                sizes = tuple(shape[dim:][: len(sizes)])
                if _gives(wanted, lambda: left[source].unflatten(dim, sizes)):
                    self._replace(node, torch.unflatten, self.copies[source], dim, sizes)
                    return True
            elif self._view_anew(node, left[source], shape, wanted):
                return True
        del self.left[node]
        return False

    def _wanted(self, node):
        """(source -> places of what is left of it, those that a move is to give)."""
        whole, left = self._places(node)
        wanted = self._moved(node, whole, lambda other: traits_of(other).value)
        return left, _selected(wanted, self.left[node])

    def _sources(self, node):
        """The tensors, with channels of their own, that a move gets its data from, by way of
        others."""
        sources = {}
        for other in node.all_input_nodes:
            if other in self.left:
                sources[other] = None
            elif traits_of(other).numbers is not None:
                sources |= dict.fromkeys(self._sources(other))
        return list(sources)

    def _indices_left(self, vector):
        return self.alive[vector].nonzero().flatten()

    def _places(self, node):
        """(source -> its places, source -> those of what is left of it) of what a move reads."""
        whole, left, start = {}, {}, 0
        for source in self._sources(node):
            shape = traits_of(source).value.shape
            whole[source] = torch.arange(start, start + shape.numel()).view(shape)
            start += shape.numel()
            left[source] = _selected(whole[source], self.left[source])
        return whole, left

    def _moved(self, node, places, value_of):
        """What a move makes of places. value_of: of nodes that give sizes."""

        def look(other):
            if other in places:
                return places[other]
            if traits_of(other).numbers is None:
                return value_of(other)
            return compute(other, self.structure.skeleton, look)

        return compute(node, self.structure.skeleton, look)

    def _view_anew(self, node, places, shape, wanted):
        """Give a view the sizes that fit what is left. Whether that is possible."""
        asked = node.args[1:] if len(node.args) > 2 else node.args[1]
        sizes, tried = [], []  # as in the graph, and as numbers
        for dim, (size, count) in enumerate(zip(asked, shape)):
            if isinstance(size, fx.Node) and self.values[size] == count:
                sizes.append(self.copies[size])
                tried.append(count)
            else:
                sizes.append(-1 if size == -1 or dim == 0 else count)
                tried.append(sizes[-1])
        if not _gives(wanted, lambda: places.reshape(tried)):
            return False
        self._replace(node, torch.reshape, self.copies[node.args[0]], tuple(sizes))
        return True

    def _gather(self, node, left, wanted, dim):
        """Take the channels that are wanted out of what is left of the arguments."""
        sources = [self.copies[source] for source in left]
        joined = torch.cat(list(left.values()), dim)
        first = [0] * joined.dim()
        first[dim] = slice(None)
        first = tuple(first)
        place_of = {place: index for index, place in enumerate(joined[first].tolist())}
        index = [place_of.get(place, 0) for place in wanted[first].tolist()]
        chosen = torch.tensor(index, dtype=torch.long)
        if not _gives(wanted, lambda: joined.index_select(dim, chosen)):
            raise CannotCut(node)
        with self.graph.inserting_before(self.copies[node]):
            whole = sources[0]
            if len(sources) > 1:
                whole = self.graph.call_function(torch.cat, (sources, dim))
        start = index[0] if index else 0
        if index == list(range(start, start + len(index))):
            self._replace(node, torch.narrow, whole, dim, start, len(index))
        else:
            buffer = self._index(chosen, self.copies[node])
            self._replace(node, torch.index_select, whole, dim, buffer)

    # ----------------------------------------------------------------------------- additions

    def _fit_addition(self, node, dim, vector):
        """Where a side lacks some of the sum's channels, the addition becomes an indexed one."""
        sides = [other for other in node.all_input_nodes if traits_of(other).channels]
        if len(sides) < 2 or not vector.any():
            return
        left = self.alive[vector]
        present = [self._present(side, node, dim)[left] for side in sides]
        if all(mask.all() for mask in present):
            return
        arguments = []
        for side, mask in zip(sides, present):
            index = None
            if not mask.all():
                index = self._index(mask.nonzero().flatten(), self.copies[node])
            arguments += [self.copies[side], index]
        self._replace(node, indexed_add, *arguments, len(present[0]), dim)

    def _present(self, side, node, dim):
        """Of each channel of a sum, whether a side has it."""
        traits, shape = traits_of(side), traits_of(node).value.shape
        if traits.value.numel() == 1:
            return torch.ones(shape[dim], dtype=torch.bool)
        return self.alive[along(traits.numbers.expand(shape), dim)]

    def _index(self, channels, before):
        """A node that gives these indices, which are a buffer of the network, but not in files."""
        count = sum(name.startswith(KEPT_INDEX) for name in self.model._buffers)
        device = next(self.model.parameters()).device
        name = f"{KEPT_INDEX}{count}"
        self.model.register_buffer(name, channels.to(device), persistent=False)
        with self.graph.inserting_before(before):
            return self.graph.get_attr(name)


def _grid(mask):
    """(dimension, indices) of each dimension, where a mask is True at all of their combinations and
    nowhere else; else None."""
    grid, count = [], 1
    for dim in range(mask.dim()):
        index = mask.transpose(0, dim).flatten(1).any(1).nonzero().flatten()
        grid.append((dim, index))
        count *= len(index)
    return grid if count == mask.sum() else None


def _selected(tensor, left):
    """What is left of a tensor. left: (dimension, indices) pairs."""
    for dim, index in left:
        if len(index) < tensor.shape[dim]:
            tensor = tensor.index_select(dim, index)
    return tensor


def _gives(wanted, operation):
    try:
        return torch.equal(operation(), wanted)
    except Exception:  # the sizes do not fit what is left
        return False


class FromGraph(nn.Module):
    """What is made of an fx.GraphModule, which writes its forward anew from a graph of its own
    whenever its mode changes, as torchvision's feature extractors do."""


def _without_own_graph(model):
    """Take from an fx.GraphModule what makes it one; the class that it gets."""
    usual = vars(fx.GraphModule(nn.Module(), fx.Graph())).keys() - vars(nn.Module()).keys()
    for name, value in list(vars(model).items()):
        if name in usual or isinstance(value, fx.Graph):
            del model.__dict__[name]
    return FromGraph


def _with_forward(kind, graph):
    """The class `kind` with the operations of `graph`."""
    forwards = [_forward_of(kind, in_mode(graph, training)) for training in modes_of(graph)]
    return _pruned_class(kind, *forwards[0], *forwards[1:])


def _forward_of(kind, graph):
    """(source of a forward, what it uses as (name, what it stands for)) of a graph."""
    code = graph.python_code("self")
    module = compile(code.src, f"<{kind.__name__}, pruned>", "exec")
    function = next(constant for constant in module.co_consts if hasattr(constant, "co_names"))
    names = {*function.co_names, *module.co_names}
    called = []
    for name, value in code.globals.items():
        if name in names:
            is_module = isinstance(value, ModuleType)
            called.append((name, _Module(value.__name__) if is_module else value))
    return code.src, tuple(called)


@lru_cache(maxsize=256)
def _pruned_class(kind, source, called, trained=None):
    """`kind` with a forward of this source. called: (name, what it stands for) of what it uses.
    trained: (source, called) of the forward in training, where that is another."""
    members = {"forward": _compiled(kind, source, called)}
    given = source, called
    if trained is not None:
        members["forward"] = _forward_by_mode(members["forward"], _compiled(kind, *trained))
        given = *given, trained
    return made_class(_pruned_class, kind, given, members)


def _compiled(kind, source, called):
    names = {
        name: import_module(value.name) if isinstance(value, _Module) else value
        for name, value in called
    }
    exec(compile(source, f"<{kind.__name__}, pruned>", "exec"), names)
    return names["forward"]


def _forward_by_mode(evaluated, trained):
    @wraps(evaluated)
    def forward(self, *args, **kwargs):
        return (trained if self.training else evaluated)(self, *args, **kwargs)

    return forward


class _Module(NamedTuple):
    """Stands for a module, which cannot be pickled."""

    name: str


def indexed_add(a, a_channels, b, b_channels, channels, dim=1):
    """The sum of two tensors that each hold some of a stream's channels along `dim`, and are
    broadcast along the other dimensions.

    a_channels, b_channels: which, as indices; None: all `channels` of them, or one for all.
    """
    if isinstance(a, fx.Proxy) or isinstance(b, fx.Proxy):  # a pruned network is traced
        tracer = (a if isinstance(a, fx.Proxy) else b).tracer
        arguments = a, a_channels, b, b_channels, channels, dim
        return tracer.create_proxy("call_function", indexed_add, arguments, {})
    if b_channels is None:
        a, a_channels, b, b_channels = b, b_channels, a, a_channels
    are_images = a.dim() == b.dim() == 4 and dim == 1
    if not are_images or a.shape[:1] + a.shape[2:] != b.shape[:1] + b.shape[2:]:
        a, b = _broadcast(a, b, dim)
    if a_channels is None and a.shape[dim] != channels:
        a = a.expand(*a.shape[:dim], channels, *a.shape[dim + 1 :])
    if are_images:
        size = (a.shape[0], *a.shape[2:])
        a, b = _pixels(a), _pixels(b)
    if a_channels is not None:  # neither has all
        shape = list(a.shape)
        shape[dim] = channels
        a = a.new_zeros(shape).index_add_(dim, a_channels, a)
    a = a.index_add(dim, b_channels, b)
    return a.unflatten(0, size).permute(0, 3, 1, 2) if are_images else a


def _broadcast(a, b, dim):
    """Two tensors of the same size in all dimensions but `dim`. They may have had fewer."""
    most = max(a.dim(), b.dim())
    a = a.reshape(*[1] * (most - a.dim()), *a.shape)
    b = b.reshape(*[1] * (most - b.dim()), *b.shape)
    shape = [max(sizes) for sizes in zip(a.shape, b.shape)]
    return _expanded(a, shape, dim), _expanded(b, shape, dim)


def _expanded(tensor, shape, dim):
    return tensor.expand(*shape[:dim], tensor.shape[dim], *shape[dim + 1 :])


def _pixels(x):
    """N x C x H x W -> NHW x C: a view of channels-last memory. index_add on four dimensions
    answers in the default layout, which the next convolution would have to copy back."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)
