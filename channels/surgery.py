"""Cuts channels out of a network: narrower layers, the operations that fit them, and the same
network with those channels at zero, to compare with.

    small = copy.deepcopy(model)
    graph = cut_channels(small, structure, before, after)   # bool tensors: which numbers are alive
"""

from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import fx, nn

from channels.layers import narrow
from channels.numbering import ADDS
from channels.trace import along, compute, decided, moves, name_of, title
from common.made import made_class

KEPT_INDEX = "_left_"  # begins the names of buffers that say which channels an operation keeps


class CannotCut(ValueError):
    """An operation cannot be made to compute with fewer channels. node: of the graph."""

    def __init__(self, node, why=None):
        super().__init__(why or f"{title(node)} cannot be cut")
        self.node = node


def cut_channels(model, structure, before, after):
    """Remove from a network, in place, all channels whose numbers are alive `before` and not
    `after`. Returns its new graph, whose nodes have their "channels" in node.meta. Raises
    ValueError where a layer would have none left, or an operation cannot be made to fit."""
    for name, layer in structure.layers.items():
        if not after[layer.writes if layer.reads is None else layer.reads].any():
            raise ValueError(f"{name} would have no inputs left")
        layer = layer.where(before)
        outs, ins = (
            None if numbers is None or after[numbers].all() else after[numbers].nonzero().flatten()
            for numbers in (layer.writes, layer.reads)
        )
        if outs is not None or ins is not None:
            _narrow(model, name, layer, ins, outs)
    return _Surgery(structure, after, model).graph


def _narrow(model, name, layer, ins, outs):
    owner, _, own = name.rpartition(".")
    parent = model.get_submodule(owner)
    if own not in parent._parameters and own not in parent._buffers:
        return narrow(model.get_submodule(name), layer, ins, outs)
    tensor = getattr(parent, own)
    dim = next(d for d, size in enumerate(tensor.shape) if size > 1)
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
        self.graph.output(self.graph.graph_copy(structure.graph, self.copies))
        for node in structure.graph.nodes:
            if node in self.copies:
                self.values[node] = self._fit(node)
            if node.target is decided:
                self._fit_decision(node)
        if self.changed:
            self.graph.owning_module = model  # asked whether operations have effects of their own
            self.graph.eliminate_dead_code()
            self.graph.owning_module = None
        model.__class__ = (
            _with_forward(structure.kind, self.graph) if self.changed else (structure.kind)
        )

    def _fit(self, node):
        """Make the copy of a node compute what is wanted; its value, on the meta device."""
        channels, own = node.meta["channels"], self.copies[node]
        if channels is None:  # sizes, and what is on its way from one view to the next
            try:
                return compute(node, self.structure.skeleton, self.values.get)
            except Exception:  # then what follows gets another operation
                return None
        (dim, vector), shape = channels, list(node.meta["value"].shape)
        left = self.alive[vector]
        own.meta |= {"channels": (dim, vector[left]), "name": node.name}
        shape[dim] = int(left.sum())
        try:
            if moves(node, self.structure.skeleton) and node.op != "get_attr":
                self._fit_move(node, shape)
            elif name_of(node) in ADDS and node.op != "call_module":
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

    def _fit_move(self, node, shape):
        """Run it on the places of its arguments: is what is left what is wanted?"""
        dim, vector = node.meta["channels"]
        whole, left, start, sources = {}, {}, 0, _sources(node)
        if all(self.alive[n.meta["channels"][1]].all() for n in (node, *sources)) and all(
            other.meta["numbers"] is not None for other in node.all_input_nodes
        ):
            return  # nothing has gone, no size has changed
        for source in sources:
            places = torch.arange(start, start + source.meta["value"].numel())
            start += len(places)
            whole[source] = places.view(source.meta["value"].shape)
            axis, numbers = source.meta["channels"]
            left[source] = whole[source].index_select(axis, self.alive[numbers].nonzero().flatten())
        wanted = self._moved(node, whole, lambda other: other.meta["value"]).index_select(
            dim, self.alive[vector].nonzero().flatten()
        )
        if self._gives(wanted, lambda: self._moved(node, left, self.values.get)):
            return
        source = node.args[0]
        if name_of(node) in ("view", "reshape") and source in left:
            sizes = node.args[1:] if len(node.args) > 2 else node.args[1]
            sizes = [
                size
                if size == -1
                else self.copies[size]
                if isinstance(size, fx.Node) and self.values[size] == count
                else count
                if k
                else -1
                for k, (size, count) in enumerate(zip(sizes, shape))
            ]
            if self._gives(
                wanted,
                lambda: left[source].reshape(
                    [
                        count if isinstance(size, fx.Node) else size
                        for size, count in zip(sizes, shape)
                    ]
                ),
            ):
                return self._replace(node, torch.reshape, self.copies[source], tuple(sizes))
        self._gather(node, left, wanted, dim)

    def _moved(self, node, places, values):
        def look(other):
            if other in places:
                return places[other]
            return (
                values(other)
                if other.meta["numbers"] is None
                else compute(other, self.structure.skeleton, look)
            )

        return compute(node, self.structure.skeleton, look)

    @staticmethod
    def _gives(wanted, operation):
        try:
            return torch.equal(operation(), wanted)
        except Exception:  # the sizes do not fit what is left
            return False

    def _gather(self, node, left, wanted, dim):
        """Take the channels that are wanted out of what is left of the arguments."""
        sources = [self.copies[source] for source in left]
        joined = torch.cat(list(left.values()), dim)
        first = (*(0,) * dim, slice(None), *(0,) * (joined.dim() - dim - 1))
        place = {p: i for i, p in enumerate(joined[first].tolist())}
        index = [place.get(p, 0) for p in wanted[first].tolist()]
        chosen = torch.tensor(index, dtype=torch.long)
        if not self._gives(wanted, lambda: joined.index_select(dim, chosen)):
            raise CannotCut(node)
        with self.graph.inserting_before(self.copies[node]):
            whole = (
                sources[0]
                if len(sources) == 1
                else self.graph.call_function(torch.cat, (sources, dim))
            )
        start = index[0] if index else 0
        if index == list(range(start, start + len(index))):
            self._replace(node, torch.narrow, whole, dim, start, len(index))
        else:
            self._replace(
                node, torch.index_select, whole, dim, self._index(chosen, self.copies[node])
            )

    def _fit_addition(self, node, dim, vector):
        parts = [other for other in node.all_input_nodes if other.meta["channels"]]
        if len(parts) < 2:
            return
        left, stays = self.alive[vector], []
        for part in parts:
            own = along(part.meta["numbers"].expand(node.meta["value"].shape), dim)
            stays.append(
                torch.ones_like(left[left])
                if part.meta["value"].numel() == 1
                else self.alive[own][left]
            )
        if not all(each.all() for each in stays):
            arguments = []
            for part, each in zip(parts, stays):
                index = (
                    None if each.all() else self._index(each.nonzero().flatten(), self.copies[node])
                )
                arguments += [self.copies[part], index]
            self._replace(node, indexed_add, *arguments, len(stays[0]), dim)

    def _index(self, channels, before):
        """A node that gives these indices, which are a buffer of the network, but not in files."""
        name = f"{KEPT_INDEX}{sum(each.startswith(KEPT_INDEX) for each in self.model._buffers)}"
        device = next(self.model.parameters()).device
        self.model.register_buffer(name, channels.to(device), persistent=False)
        with self.graph.inserting_before(before):
            return self.graph.get_attr(name)


def _sources(node):
    """The tensors, with channels of their own, that a move gets its data from, by way of others."""
    found = {}
    for other in node.all_input_nodes:
        if other.meta["channels"] is not None:
            found[other] = None
        elif other.meta["numbers"] is not None:
            found |= dict.fromkeys(_sources(other))
    return list(found)


def _with_forward(kind, graph):
    """The class `kind` with the operations of `graph`."""
    code = graph.python_code("self")
    module = compile(code.src, f"<{kind.__name__}, pruned>", "exec")
    function = next(each for each in module.co_consts if hasattr(each, "co_names"))
    called = [
        (name, _Module(value.__name__) if isinstance(value, ModuleType) else value)
        for name, value in code.globals.items()
        if name in (*function.co_names, *module.co_names)
    ]
    return _pruned_class(kind, code.src, tuple(called))


@lru_cache(maxsize=256)
def _pruned_class(kind, source, called):
    """`kind` with a forward of this source. called: (name, what it stands for) of what it uses."""
    names = {
        name: import_module(value.name) if isinstance(value, _Module) else value
        for name, value in called
    }
    exec(compile(source, f"<{kind.__name__}, pruned>", "exec"), names)
    return made_class(_pruned_class, kind, (source, called), {"forward": names["forward"]})


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
        return tracer.create_proxy(
            "call_function", indexed_add, (a, a_channels, b, b_channels, channels, dim), {}
        )
    if b_channels is None:
        a, a_channels, b, b_channels = b, b_channels, a, a_channels
    rows = a.dim() == b.dim() == 4 and dim == 1
    if not rows or a.shape[:1] + a.shape[2:] != b.shape[:1] + b.shape[2:]:
        a, b = _broadcast(a, b, dim)
    if a_channels is None and a.shape[dim] != channels:
        a = a.expand(*a.shape[:dim], channels, *a.shape[dim + 1 :])
    if rows:  # of pixels
        size, a, b = (a.shape[0], *a.shape[2:]), _pixels(a), _pixels(b)
    if a_channels is not None:  # neither has all
        shape = list(a.shape)
        shape[dim] = channels
        a = a.new_zeros(shape).index_add_(dim, a_channels, a)
    a = a.index_add(dim, b_channels, b)
    return a.unflatten(0, size).permute(0, 3, 1, 2) if rows else a


def _broadcast(a, b, dim):
    """Two tensors of the same size in all dimensions but `dim`, of which the larger has more."""
    most = max(a.dim(), b.dim())
    a, b = (each.reshape(*(1,) * (most - each.dim()), *each.shape) for each in (a, b))
    shape = [max(sizes) for sizes in zip(a.shape, b.shape)]
    return (each.expand(*shape[:dim], each.shape[dim], *shape[dim + 1 :]) for each in (a, b))


def _pixels(x):
    """N x C x H x W -> NHW x C: a view of channels-last memory. index_add on four dimensions
    answers in the default layout, which the next convolution would have to copy back."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


# ------------------------------------------------------------------------------------- the check


class MaskedGraph:
    """A network in which some channels are zero wherever they are read: by convolutions, linear
    layers and additions. `network` shares its layers with `model`, and is for eval mode only."""

    def __init__(self, model, whole, structure):
        self.masks, copies, masks, layers = {}, {}, {}, structure.layers
        parameter, graph = next(model.parameters()), fx.Graph()
        device, self.follow = parameter.device, structure.root != torch.arange(len(structure.root))
        graph.output(graph.graph_copy(whole, copies))
        for node, own in copies.items():
            own.meta["name"] = node.meta.get("name", node.name)
            layer = layers.get(node.target)
            reads = layer is not None and layer.reads is not None
            if node.meta.get("in_part"):
                continue  # a factor would make a copy of what is to be changed
            if reads or node.op != "call_module" and name_of(node) in ADDS | {"indexed_add"}:
                for other in node.all_input_nodes:
                    if other.meta.get("channels") and other.meta["channels"][1].any():
                        masks[own, copies[other]] = other.meta["channels"]
        self.network = fx.GraphModule(model, graph)
        for number, ((node, source), (dim, numbers)) in enumerate(masks.items()):
            name, shape = f"_mask_{number}", [1] * (source.meta["value"].dim() - dim)
            shape[0] = -1
            self.masks[name] = numbers
            mask = torch.ones(len(numbers), device=device, dtype=parameter.dtype).view(shape)
            self.network.register_buffer(name, mask)
            with graph.inserting_before(node):
                node.replace_input_with(
                    source, graph.call_function(torch.mul, (source, graph.get_attr(name)))
                )
        self.network.recompile()

    def set(self, alive):
        """From now on only these channels count; alive: a bool tensor over their numbers. Gates and
        shifts, which follow others, count everywhere: a wrong one must not be hidden here."""
        for name, numbers in self.masks.items():
            mask = getattr(self.network, name)
            mask.copy_((alive | self.follow)[numbers].view(mask.shape))


def same(wanted, result):
    """Whether two tensors are equal to 1e-4 of the largest value."""
    return ((wanted - result).abs().max() <= 1e-4 * wanted.abs().max()).item()


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps its results, up to where it fails."""

    def __init__(self, network, graph):
        super().__init__(network, graph=graph)
        self.results, self.failed = {}, None

    def run_node(self, node):
        try:
            result = super().run_node(node)
        except Exception:
            self.failed = node
            raise
        if node.meta.get("channels") and "_mask_" not in node.name:
            self.results[node.meta.get("name", node.name)] = node, result.clone()
        return result


def first_difference(masked, small, graph, images):
    """The node of `graph`, which has the operations of `small`, that first computes something else
    than `masked`, a MaskedGraph; None where only the end does."""
    records = [_Recorder(masked.network, masked.network.graph), _Recorder(small, graph)]
    for record in records:
        with suppress(Exception):
            record.run(images)
    for name, (node, result) in records[1].results.items():
        theirs, wanted = records[0].results.get(name, (None, None))
        if theirs is None:
            continue
        (dim, all_numbers), numbers = theirs.meta["channels"], node.meta["channels"][1]
        left = torch.isin(all_numbers, numbers).nonzero().flatten().to(result.device)
        wanted = wanted.index_select(dim, left)
        if wanted.shape != result.shape or not same(wanted, result):
            return node
    return records[1].failed
