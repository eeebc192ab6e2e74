"""The proof of a cut: the pruned network computes what the whole one does with those filters at 0.

check(model, small, filters)   # raises ValueError where it does not
"""

from contextlib import suppress

import torch
from torch import fx, nn

from channels.attention import MaskedHeads
from channels.groups import remains_of
from channels.modes import in_mode, modes_of
from channels.operations import Kind, kind_of, title
from channels.running import in_order
from channels.surgery import CannotCut, indexed_add
from channels.traits import give, traits_of
from common.copies import copy_of
from common.inputs import call, moved, noise_like, tensors_in
from common.modes import evaluating


class Masked:
    """A network in which the outputs of some filters are zero wherever they are read.

        masked = Masked(model)
        masked.keep(kept)              # layer name -> indices, as for `prune`
        logits = masked.network(images)

    It shares its layers with `model`, and is for eval mode only. training: whether it has the
    operations of training, where these are others, which its layers compute as in evaluation.
    """

    def __init__(self, model, training=False):
        self.remains = remains_of(model)
        graph = in_mode(self.remains.graph, training)
        self.graph = MaskedGraph(model, graph, self.remains.structure)
        self.network = self.graph.network

    def keep(self, kept):
        """From now on only these filters count: layer name -> their indices in `model`. Layers that
        it does not name have all."""
        left = dict(self.remains.filters)
        for name, index in kept.items():
            left[name] = left[name][index.cpu()]
        self.graph.set(self.remains.structure.alive(left))


def check(
    model: nn.Module,
    small: nn.Module,
    filters: dict[str, torch.Tensor],
    images=None,
) -> None:
    """Raise ValueError, which says where it begins, where the network `small` gives something else
    than `model` with all filters but some at zero. filters: layer -> indices, in the unpruned
    network, of these. images: some inputs that it is to be tried with; else noise."""
    if images is None:
        structure = remains_of(model).structure
        images = noise_like(structure.example, 4 if structure.image_shape else None)
    parameter = next(model.parameters())
    networks = [model, small]
    place = _disagreement(networks, filters, moved(images, parameter))
    if place:  # rounding is no fault
        networks = [copy_of(network).double() for network in networks]
        place = _disagreement(networks, filters, moved(images, parameter.double()))
    if place:
        if isinstance(place, str):
            raise ValueError(
                f"{type(model).__name__}, pruned, computes something else than with "
                f"its filters at zero, from {place} on; it cannot be pruned"
            )
        raise CannotCut(place, f"{title(place)} computes something else without them")


def _disagreement(networks, filters, images):
    """Where a network with all filters but some at zero and the pruned one differ: a node, or in
    words; None where they do not."""
    model, small = networks
    with evaluating(*networks), torch.no_grad():
        outputs = call(model, images)
        if not same(outputs, call(model, images)):
            raise ValueError(
                f"{type(model).__name__} gives other logits each time, in eval mode, "
                "too; F.dropout, for one, needs training=self.training"
            )
        for training in modes_of(remains_of(model).graph):
            masked = Masked(model, training)
            if not training and not same(outputs, call(masked.network, images)):
                return "the graph of its operations"
            masked.graph.set(masked.remains.structure.alive(filters))
            graph = in_mode(remains_of(small).graph, training)
            cut = fx.GraphModule(small, graph) if training else small
            if not _compute_the_same(masked.network, cut, images):
                return first_difference(masked.graph, small, graph, images) or "its end"
    return None


def _compute_the_same(network, other, inputs):
    wanted = call(network, inputs)
    try:
        return same(wanted, call(other, inputs))
    except Exception:  # an operation that does not fit what is left
        return False


# ------------------------------------------------------------------------- masks, and differences


class MaskedGraph:
    """A network in which some channels are zero wherever they are read: by convolutions, linear
    layers and additions. `network` shares its layers with `model`, and is for eval mode only."""

    def __init__(self, model, whole, structure):
        graph, copies = fx.Graph(), {}
        graph.output(graph.graph_copy(whole, copies))
        self.follow = structure.root != torch.arange(len(structure.root))
        self.network, self.masks = fx.GraphModule(model, graph), {}
        self.alive = structure.alive(remains_of(model).filters)
        parameter = next(model.parameters())
        for node, own in copies.items():
            give(own, original=traits_of(node).original or node.name)
            if issubclass(traits_of(node).layer or object, nn.MultiheadAttention):
                self._mask_heads(own, structure, parameter)
            if not _counts_channels(node, structure):
                continue
            for source in node.all_input_nodes:
                channels = traits_of(source).channels
                if channels and channels[1].any():
                    self._mask(own, copies[source], *channels, parameter)
        self.network.recompile()

    def _mask(self, node, source, dim, numbers, parameter):
        """Multiply what a node reads from a source with a mask over its channels, which is of the
        device and type of a parameter."""
        graph = self.network.graph
        name = f"_mask_{len(self.masks)}"
        shape = [1] * (traits_of(source).value.dim() - dim)
        shape[0] = -1
        ones = torch.ones(len(numbers), device=parameter.device, dtype=parameter.dtype)
        self.network.register_buffer(name, ones.view(shape))
        self.masks[name] = numbers
        with graph.inserting_before(node):
            masked = graph.call_function(torch.mul, (source, graph.get_attr(name)))
        node.replace_input_with(source, masked)

    def _mask_heads(self, node, structure, parameter):
        """Let a node call an attention whose heads can be zero in place of its own."""
        output = structure.layers.get(f"{node.target}.out_proj")
        if output is None:
            return
        attention = self.network.get_submodule(node.target)
        numbers = output.reads[self.alive[output.reads]]
        ones = torch.ones(len(numbers), device=parameter.device, dtype=parameter.dtype)
        name = f"_mask_{len(self.masks)}"
        self.network.add_submodule(name, MaskedHeads(attention, ones))
        self.masks[f"{name}.mask"] = numbers
        node.target = name

    def set(self, alive):
        """From now on only these channels count. alive: a bool tensor over their numbers. Gates and
        shifts, which follow others, count everywhere: a wrong one must not be hidden here."""
        for name, numbers in self.masks.items():
            mask = self.network.get_buffer(name)
            mask.copy_((alive | self.follow)[numbers].view(mask.shape))


def _counts_channels(node, structure):
    """Whether an operation must read zeros in place of channels that have gone."""
    if traits_of(node).in_part:
        return False  # a factor would make a copy of what is to be changed
    layer = structure.layers.get(node.target)
    if layer is not None and layer.reads is not None:
        return True
    return kind_of(node) is Kind.ADDS or node.target is indexed_add


def same(wanted, result) -> bool:
    """Whether nested tensors are equal, each to 1e-4 of its largest value."""
    wanted, result = tensors_in(wanted), tensors_in(result)
    return len(wanted) == len(result) and all(map(_are_equal, wanted, result))


def _are_equal(wanted, result):
    if not wanted.numel():
        return wanted.shape == result.shape
    if not wanted.is_floating_point():
        wanted, result = wanted.double(), result.double()
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
        traits = traits_of(node)
        if traits.channels and "_mask_" not in node.name:
            self.results[traits.original or node.name] = node, result.clone()
        return result


def first_difference(masked, small, graph, images):
    """The node of `graph`, which has the operations of `small`, that first computes something else
    than `masked`, a MaskedGraph; None where only the end does."""
    records = [_Recorder(masked.network, masked.network.graph), _Recorder(small, graph)]
    for record in records:
        with suppress(Exception):
            record.run(*in_order(graph, images))
    for name, (node, result) in records[1].results.items():
        theirs, wanted = records[0].results.get(name, (None, None))
        if theirs is None:
            continue
        dim, all_numbers = traits_of(theirs).channels
        _, numbers = traits_of(node).channels
        left = torch.isin(all_numbers, numbers).nonzero().flatten().to(result.device)
        wanted = wanted.index_select(dim, left)
        if wanted.shape != result.shape or not same(wanted, result):
            return node
    return records[1].failed
