"""A network without some filters, of which only what these change is computed.

partial = Partial(model)
outputs = partial.begin(inputs)         # of the whole network
outputs = partial.without(kept)         # layer name -> indices of the filters that are left
"""

import torch
from torch import fx, nn

from channels.checking import Masked
from channels.lowering import fold_normalization
from channels.operations import works_in_place
from channels.running import in_order
from channels.traits import traits_of
from common.inputs import tensors_in

# Layers that give a tensor of its own.
COMPUTING = nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.Linear


class Partial:
    """Outputs of a network, in eval mode, with the outputs of some filters at zero wherever they
    are read. What does not read these filters is taken from the whole network's computation, of
    which what others read is held, for one batch at a time. BatchNorms that are in train mode
    normalise by the batch."""

    def __init__(self, model: nn.Module):
        masked = Masked(model)
        self.remains, self.graph = masked.remains, masked.graph
        fold_normalization(masked.network)
        self.nodes = list(masked.network.graph.nodes)
        self.readers, self.factors = {}, {}  # mask -> the node that reads it, the factor that it is
        for node in self.nodes:
            if node.target in self.graph.masks:
                self.readers[node.target] = node
                self.factors[node.target] = next(iter(node.users))
            elif f"{node.target}.mask" in self.graph.masks:  # within an attention
                self.readers[f"{node.target}.mask"] = node
        self.in_part = any(traits_of(node).in_part for node in self.nodes)
        self.behind = {}  # masks -> the nodes that read them, also by way of others
        self.run = _Run(masked.network, self._held_nodes())
        self.inputs = self.values = None

    @torch.inference_mode()
    def begin(self, inputs):
        """The outputs of the whole network for a batch: a tensor, a tuple or a dict of them."""
        self.inputs = in_order(self.graph.network.graph, inputs)
        outputs, self.values = self.run.compute(self.inputs, {}, set(self.factors.values()))
        return outputs

    @torch.inference_mode()
    def without(self, kept: dict[str, torch.Tensor]):
        """The outputs for the same batch with only some filters, as for `Masked.keep`."""
        masks = self._masks(kept)
        changed = self._nodes_behind(frozenset(masks))
        # None stands for what nobody reads any more.
        known = {node: self.values.get(node) for node in self.nodes if node not in changed}
        idle = {factor for name, factor in self.factors.items() if name not in masks}
        try:
            for name, mask in masks.items():
                self.graph.network.get_buffer(name).copy_(mask)
            return self.run.compute(self.inputs, known, idle)[0]
        finally:
            for name in masks:
                self.graph.network.get_buffer(name).fill_(1)

    @property
    def held_bytes(self):
        """What the values of the batch take."""
        values = tensors_in(list(self.values.values()))
        return sum(value.numel() * value.element_size() for value in values)

    def _masks(self, kept):
        """Name -> mask, of those that are not ones everywhere."""
        left = dict(self.remains.filters)
        for name, index in kept.items():
            left[name] = left[name][index.cpu()]
        counted = self.remains.structure.alive(left) | self.graph.follow
        masks = {}
        for name, numbers in self.graph.masks.items():
            if not counted[numbers].all():
                ones = self.graph.network.get_buffer(name)
                masks[name] = counted[numbers].view(ones.shape).to(ones)
        return masks

    def _nodes_behind(self, names):
        """The nodes that some masks change. Where a part of a tensor is changed in place, which
        others see, all of them."""
        if names not in self.behind:
            changed = {self.readers[name] for name in names}
            for node in self.nodes:
                is_output = node.op == "output"
                if is_output or self.in_part or not changed.isdisjoint(node.all_input_nodes):
                    changed.add(node)
            self.behind[names] = changed
        return self.behind[names]

    def _held_nodes(self):
        """What is read by the nodes that a mask changes, and is not changed itself."""
        held = set()
        for name in (*self.readers, None):
            changed = self._nodes_behind(frozenset([name] if name else []))
            for node in changed:
                held.update(source for source in node.all_input_nodes if source not in changed)
        return held


class _Run(fx.Interpreter):
    """Runs a masked graph, and holds what some nodes give. Another value lives until its last
    use."""

    def __init__(self, network, held):
        super().__init__(network)
        self.idle, self.held = frozenset(), held
        for last_used in self.user_to_last_uses.values():
            last_used[:] = [node for node in last_used if node not in held]

    def compute(self, inputs, known, idle):
        """(outputs, node -> value) where some values are known. idle: factors that are ones."""
        self.idle = idle
        outputs = super().run(*inputs, initial_env=dict(known))
        values, self.env = self.env, {}
        return outputs, values

    def run_node(self, node):
        if node in self.idle:
            return self.env[node.args[0]]
        return super().run_node(node)

    def fetch_args_kwargs_from_env(self, node):
        """What is changed in place is changed in a copy where it may be needed again."""
        args, kwargs = super().fetch_args_kwargs_from_env(node)
        if works_in_place(node, self.module) and not traits_of(node).in_part:
            if not self._is_new(node.args[0]):
                args = (args[0].clone(), *args[1:])
        return args, kwargs

    def _is_new(self, node):
        """Whether what a node gives shares no memory with what is held."""
        layer = self.submodules.get(node.target) if node.op == "call_module" else None
        return isinstance(layer, COMPUTING) and node not in self.held
