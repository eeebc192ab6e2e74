"""A network without some filters, of which only what these change is computed.

partial = Partial(model)
logits = partial.begin(images)          # of the whole network
logits = partial.without(kept)          # layer name -> indices of the filters that are left
"""

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from channels.checking import Masked
from channels.operations import works_in_place
from channels.traits import traits_of
from common.inputs import tensors_in


class Partial:
    """Answers of a network, in eval mode, with the outputs of some filters at zero wherever they
    are read. What does not read these filters is taken from the whole network's computation, of
    which all values are held, for one batch at a time."""

    def __init__(self, model: nn.Module):
        masked = Masked(model)
        self.remains, self.graph = masked.remains, masked.graph
        _fold_normalization(masked.network)
        self.run = _Run(masked.network)
        nodes = masked.network.graph.nodes
        self.readers, self.factors = {}, {}  # mask -> the node that reads it, the factor that it is
        for node in nodes:
            if node.target in self.graph.masks:
                self.readers[node.target] = node
                self.factors[node.target] = next(iter(node.users))
            elif f"{node.target}.mask" in self.graph.masks:  # within an attention
                self.readers[f"{node.target}.mask"] = node
        self.outputs = [node for node in nodes if node.op == "output"]
        self.in_part = any(traits_of(node).in_part for node in nodes)
        self.behind = {}  # masks -> the nodes that read them, also by way of others
        self.images = self.values = None

    @torch.inference_mode()
    def begin(self, images: torch.Tensor) -> torch.Tensor:
        """The logits of the whole network for a batch of images."""
        self.images = images
        logits, self.values = self.run.compute(images, {}, set(self.factors.values()))
        return logits

    @torch.inference_mode()
    def without(self, kept: dict[str, torch.Tensor]) -> torch.Tensor:
        """The logits for the same images with only some filters, as for `Masked.keep`."""
        masks = self._masks(kept)
        changed = self._nodes_behind(frozenset(masks))
        known = {node: value for node, value in self.values.items() if node not in changed}
        idle = {factor for name, factor in self.factors.items() if name not in masks}
        try:
            for name, mask in masks.items():
                self.graph.network.get_buffer(name).copy_(mask)
            return self.run.compute(self.images, known, idle)[0]
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
            nodes = self.graph.network.graph.nodes
            changed = {self.readers[name] for name in names} | set(self.outputs)
            for node in nodes:
                if self.in_part or not changed.isdisjoint(node.all_input_nodes):
                    changed.add(node)
            self.behind[names] = changed
        return self.behind[names]


def _fold_normalization(network: fx.GraphModule) -> None:
    """Let each convolution that only a BatchNorm reads multiply and shift in its place."""
    modules = dict(network.named_modules())
    for node in list(network.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_var is None:
            continue
        source = node.args[0]
        layer = modules.get(source.target) if source.op == "call_module" else None
        if isinstance(layer, nn.modules.conv._ConvNd) and len(source.users) == 1:
            source.target = f"_folded_{source.name}"
            folded = fuse_conv_bn_eval(layer, norm, layer.transposed)
            network.add_submodule(source.target, folded)
            node.replace_all_uses_with(source)
            network.graph.erase_node(node)
    network.recompile()


class _Run(fx.Interpreter):
    """Runs a masked graph, and keeps what it computes."""

    def __init__(self, network):
        super().__init__(network, garbage_collect_values=False)
        self.idle, self.held = frozenset(), None

    def compute(self, images, known, idle):
        """(logits, node -> value) where some values are known. idle: factors that are ones."""
        self.idle, self.held = idle, known
        logits = super().run(images, initial_env=dict(known))
        values, self.env = self.env, {}
        return logits, values

    def run_node(self, node):
        if node in self.idle:
            return self.env[node.args[0]]
        return super().run_node(node)

    def fetch_args_kwargs_from_env(self, node):
        """What is changed in place is changed in a copy where it is needed again."""
        args, kwargs = super().fetch_args_kwargs_from_env(node)
        is_held = not self.held or node.args and node.args[0] in self.held
        if is_held and works_in_place(node, self.module) and not traits_of(node).in_part:
            args = (args[0].clone(), *args[1:])
        return args, kwargs
