"""A network in plain operators and whole blocks: the same logits, as runtimes are fast at them.

    network = lower(model, images)   # an fx.GraphModule, for torch.onnx.export

ONNX Runtime and others compute convolutions a block of channels at a time, in a layout of their
own. They leave it, and come back to it, around a convolution that reads another number of channels
than whole blocks, and around operations on single channels; some lack an addition by index, or
compute it wrongly. So widths are filled up with zeros, and channels are put in their places by
convolutions.
"""

import copy
import operator
from contextlib import suppress

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from channels.groups import filter_count, remains_of
from channels.layers import has_hooks
from channels.modes import in_mode
from channels.operations import Kind, kind_of, layer_of, name_of
from channels.surgery import indexed_add
from channels.trace import decided
from channels.traits import give, traits_of

BLOCK, SMALL_BLOCK = 16, 8  # channels: with AVX-512; with AVX2, and of layers below 16 filters
# A convolution that puts channels in place costs another pass over its images, so its MACs count
# this many times.
PASS = 1.5
# Operations that compute each channel by itself, of several tensors the same ones together.
CHANNELWISE = Kind.APART, Kind.ADDS, Kind.MULTIPLIES


def lower(
    model: nn.Module, images: torch.Tensor, fold: bool = True, plain: bool = True
) -> fx.GraphModule:
    """An fx.GraphModule with the logits of `model` in eval mode, to float32's accuracy.

    images: N x 3 x H x W; the network is made for their size and any N. fold: a BatchNorm that
    directly follows a convolution becomes part of it. plain: additions by index and the like become
    convolutions, and the widths of a pruned network are filled up to whole blocks.
    """
    graph = in_mode(remains_of(model).graph, training=False)
    network = fx.GraphModule(model, graph).eval()
    for node in graph.find_nodes(op="call_function", target=decided):
        graph.erase_node(node)  # by the size of the images, which is known
    _use_plain_convolutions(network)
    if fold:
        fold_normalization(network)
    if plain:
        ShapeProp(network).propagate(images[:1])
        _restore_strides(network)
        _replace_means(network)
        _replace_additions(network)
        now, dense = filter_count(model)
        if now < dense:
            _Filling(network, images)
    graph.lint()
    network.recompile()
    return network


def _layer(network, node, *kinds):
    """The layer that a node calls, where it is exactly of one of these kinds, without hooks, and
    called once; else None."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    layer = network.get_submodule(node.target)
    if type(layer) not in kinds or has_hooks(layer):
        return None
    calls = network.graph.find_nodes(op="call_module", target=node.target)
    return layer if len(calls) == 1 else None


def _use_plain_convolutions(network):
    """A convolution of a class of its own becomes a plain one, where it computes as one."""
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, nn.Conv2d) or type(layer) is nn.Conv2d:
            continue
        plain = copy.deepcopy(layer)
        plain.__class__ = nn.Conv2d
        size = [2 * side * step + 1 for side, step in zip(layer.kernel_size, layer.dilation)]
        images = torch.randn(1, layer.in_channels, *size).to(layer.weight)
        with suppress(Exception):  # then it is no plain one
            if torch.allclose(layer(images), plain(images), rtol=1e-4, atol=1e-5):
                network.add_submodule(name, plain)


def fold_normalization(network: fx.GraphModule) -> None:
    """Each BatchNorm in eval mode that alone reads a convolution becomes part of it, in place."""
    for node in list(network.graph.nodes):
        norm = _layer(network, node, nn.BatchNorm2d)
        if not norm or norm.running_mean is None or norm.training:
            continue
        source = node.all_input_nodes[0]
        conv = _layer(network, source, nn.Conv2d)
        if conv and len(source.users) == 1:
            network.add_submodule(source.target, fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(source)
            network.graph.erase_node(node)


def _restore_strides(network):
    """Every second pixel, then a 1x1 convolution: that is a 1x1 convolution of stride 2."""
    for node in list(network.graph.nodes):
        conv = _layer(network, node, nn.Conv2d)
        if not conv or conv.kernel_size != (1, 1) or conv.padding != (0, 0):
            continue
        pixels = node.args[0]
        steps = _steps_over_pixels(pixels)
        if steps and len(pixels.users) == 1:
            strided = copy.deepcopy(conv)
            strided.stride = (conv.stride[0] * steps[0], conv.stride[1] * steps[1])
            network.add_submodule(node.target, strided)
            node.replace_input_with(pixels, pixels.args[0])
            network.graph.erase_node(pixels)


def _steps_over_pixels(node):
    """[2, 2] of images[:, :, ::2, ::2]; None of other operations."""
    if node.target is not operator.getitem:
        return None
    index = node.args[1]
    if not isinstance(index, tuple) or len(index) != 4:
        return None
    if index[:2] != (slice(None), slice(None)):
        return None
    steps = []
    for pixels in index[2:]:
        if not isinstance(pixels, slice) or (pixels.start, pixels.stop) != (None, None):
            return None
        steps.append(pixels.step or 1)
    return steps


def _replace_means(network):
    """Means over all pixels become poolings, which keep the layout and which old opsets have."""
    graph = network.graph
    for node in list(graph.nodes):
        keeps_dims = _mean_over_pixels(network, node)
        if keeps_dims is None or len(_shape(node.args[0])) != 4:
            continue
        with graph.inserting_before(node):
            means = graph.call_function(F.avg_pool2d, (node.args[0], _shape(node.args[0])[2:]))
            give(means, value=traits_of(node).value)
            if not keeps_dims:
                means = graph.call_function(torch.squeeze, (means, (2, 3)))
                give(means, value=traits_of(node).value)
        node.replace_all_uses_with(means)
        graph.erase_node(node)


def _mean_over_pixels(network, node):
    """Whether a mean over all pixels keeps its dimensions; None of other operations."""
    if _pools_to_one_pixel(network, node):
        return True
    if node.op == "call_module" or name_of(node) != "mean":
        return None
    arguments = dict(zip(("input", "dim", "keepdim"), node.args)) | node.kwargs
    dims = arguments.get("dim")
    if not isinstance(dims, (tuple, list)) or {dim % 4 for dim in dims} != {2, 3}:
        return None
    return bool(arguments.get("keepdim", False))


def _pools_to_one_pixel(network, node):
    """Whether an operation is an average pooling that leaves one pixel of each channel."""
    if node.op == "call_module":
        is_pooling = layer_of(node) is nn.AdaptiveAvgPool2d
        return is_pooling and network.get_submodule(node.target).output_size in (1, (1, 1))
    is_pooling = name_of(node) == "adaptive_avg_pool2d" and not node.kwargs
    return is_pooling and node.args[1:] in ((1,), ((1, 1),))


def _shape(node):
    """Of what a node gives, as a tuple; of what is no tensor, ()."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


# --------------------------------------------------------------------------------------- additions


def _replace_additions(network):
    """Sides of an addition that have some of its channels get all: zeros in the other places."""
    graph = network.graph
    for node in graph.find_nodes(op="call_function", target=indexed_add):
        first, first_index, second, second_index, width, dim = node.args
        parts = []
        with graph.inserting_before(node):
            for side, index in ((first, first_index), (second, second_index)):
                if index is None:
                    parts.append(side)
                    continue
                places = network.get_buffer(index.target)
                if len(places):  # one that has no channels left adds nothing
                    parts.append(_placed(network, node, side, places, width, dim))
            whole = parts[0]
            if len(parts) > 1:
                whole = graph.call_function(torch.add, tuple(parts))
        whole.meta |= node.meta
        node.replace_all_uses_with(whole)
        graph.erase_node(node)


def _placed(network, node, side, places, width, dim):
    """The node of what is to be added at `node`: of `width` channels along `dim`, those of `side`
    in their places, as indices."""
    value = traits_of(node).value
    if value.dim() != 4 or dim != 1:
        placed = _placed_by_index(network, side, places, width, dim, value.dim())
    elif _writes_in_place(network, side, places, width):
        return side
    else:
        placed = _placed_by_convolution(network, side, places, width)
    give(placed, value=value)
    return placed


def _writes_in_place(network, side, places, width):
    """Let the convolution that gives `side` alone write its channels in their places, if that is
    the cheapest. Returns whether it does."""
    conv = _layer(network, side, nn.Conv2d)
    if not conv or conv.groups > 1 or len(side.users) > 1:
        return False
    if not _is_cheaper(conv, len(places), width):
        return False
    network.add_submodule(side.target, _resized(conv, rows=places, outputs=width))
    return True


def _placed_by_convolution(network, side, places, width):
    """The node of a 1x1 convolution that puts the channels of images in their places."""
    name = _free_name(network)
    conv = nn.Conv2d(len(places), width, 1, bias=False)
    weight = F.one_hot(places, width).T[:, :, None, None]
    conv.weight = nn.Parameter(weight.to(next(network.parameters())))
    network.add_submodule(name, conv)
    placed = network.graph.call_module(name, (side,))
    give(placed, layer=nn.Conv2d)
    return placed


def _placed_by_index(network, side, places, width, dim, dims):
    """The node of a look-up of each channel along `dim`, which is one of zeros where `side` has
    none. dims: how many dimensions it has."""
    graph = network.graph
    name = _free_name(network)
    count = len(places)
    behind = dims - 1 - dim % dims
    padded = graph.call_function(F.pad, (side, (*[0, 0] * behind, 0, 1)))
    index = torch.full((width,), count)
    index[places] = torch.arange(count)
    network.register_buffer(name, index)
    return graph.call_function(torch.index_select, (padded, dim, graph.get_attr(name)))


def _free_name(network):
    number = sum(node.name.startswith("placed_") for node in network.graph.nodes)
    return f"placed_{number}"


def _is_cheaper(conv, count, width):
    """Whether a convolution with `width` filters, all but `count` of zeros, costs less than one
    with `count` and another that puts them in place."""
    count, width = _whole_blocks(count), _whole_blocks(width)
    kernel = conv.kernel_size[0] * conv.kernel_size[1]
    return (width - count) * _whole_blocks(conv.in_channels) * kernel < PASS * width * count


# ------------------------------------------------------------------------------------ whole blocks


def _whole_blocks(count):
    block = BLOCK if count >= BLOCK else SMALL_BLOCK
    return -(-count // block) * block


def _outputs_of(layer):
    """How many channels a convolution, linear layer or BatchNorm gives; this may have no weight."""
    if isinstance(layer, nn.BatchNorm2d):
        return layer.num_features
    return len(layer.weight)


def _resized(layer, rows=None, outputs=None, inputs=None):
    """A convolution, linear layer or BatchNorm with more outputs or inputs, which are zeros. rows:
    places of those that it has; the first, unless given."""
    new = copy.deepcopy(layer)
    outputs = outputs or _outputs_of(layer)
    if rows is None:
        rows = torch.arange(_outputs_of(layer))
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if tensor.dim() == 0:  # the number of batches
            continue
        shape = [outputs, *tensor.shape[1:]]
        if tensor.dim() > 1 and inputs and getattr(layer, "groups", 1) == 1:
            shape[1] = inputs
        filled = torch.full(shape, float(name == "running_var")).to(tensor)
        filled[(rows, *map(slice, tensor.shape[1:]))] = tensor.detach()
        if isinstance(tensor, nn.Parameter):
            filled = nn.Parameter(filled)
        setattr(new, name, filled)
    sizes = {
        "out_channels": outputs,
        "num_features": outputs,
        "in_channels": inputs,
        "in_features": inputs,
    }
    if getattr(layer, "groups", 1) > 1:
        sizes |= {"groups": outputs, "in_channels": outputs}
    for name, size in sizes.items():
        if size and hasattr(layer, name):
            setattr(new, name, size)
    return new


class _Filling:
    """Fills up the widths of a pruned network: to whole blocks, but no further than the unpruned
    network's.

    What is filled up is zero or is read with weights of zero, so that it does not matter. Tensors
    that are computed channel by channel from each other are filled up alike; where an operation is
    not known to be channelwise, they stay as they are.
    """

    def __init__(self, network, images):
        ShapeProp(network).propagate(images[:1])
        self.network = network
        self.group = {}  # tensor -> another one that is filled up alike
        self.fixed = set()
        self.counts = {}  # tensor -> (channels now, channels in the unpruned network)
        for node in network.graph.nodes:
            self._look_at(node)
        self.fixed = {self._root(node) for node in self.fixed}
        for node in list(network.graph.nodes):
            self._fill(node)

    def _root(self, node):
        while node in self.group:
            node = self.group[node]
        return node

    def _look_at(self, node):
        """Which tensors are filled up alike, and which not at all."""
        sources = [source for source in node.all_input_nodes if source in self.counts]
        value = traits_of(node).value
        shape = _shape(node)
        conv = _layer(self.network, node, nn.Conv2d)
        is_channelwise = False
        if isinstance(value, torch.Tensor) and len(shape) > 1:
            is_channelwise = self._is_channelwise(node, conv)
            # In rows, as they are made for a linear layer, each channel may have several places.
            if len(shape) < 4 and is_channelwise and sources:
                self.counts[node] = self.counts[sources[0]]
            else:
                self.counts[node] = shape[1], value.shape[1]
        if _layer(self.network, node, nn.Linear):
            self.fixed.add(node)
            if len(shape) > 2:  # channels are not along the dimension that is counted
                self.fixed.update(sources)
        elif is_channelwise:
            for other in map(self._root, sources):
                if other is not self._root(node):
                    self.group[other] = self._root(node)
        elif not conv or conv.groups > 1:
            self.fixed |= {node, *sources}

    def _is_channelwise(self, node, conv):
        if conv:
            return conv.groups > 1 and conv.groups == conv.in_channels == conv.out_channels
        if layer_of(node) is nn.BatchNorm2d:
            return bool(_layer(self.network, node, nn.BatchNorm2d))
        if layer_of(node) is nn.Flatten:
            layer = _layer(self.network, node, nn.Flatten)
            return bool(layer) and (layer.start_dim, layer.end_dim) == (1, -1)
        if name_of(node) == "flatten":
            return node.args[1:] == (1,)
        if name_of(node) == "squeeze":
            return node.args[1:] == ((2, 3),) and len(_shape(node.args[0])) == 4
        return kind_of(node) in CHANNELWISE or name_of(node) == "contiguous"

    def _filled(self, node):
        """How many channels a tensor gets."""
        count, dense = self.counts[node]
        return count if self._root(node) in self.fixed else min(dense, _whole_blocks(count))

    def _fill(self, node):
        """Fill up the layer that a node calls."""
        layer = _layer(self.network, node, nn.Conv2d, nn.Linear, nn.BatchNorm2d)
        if not layer or node.args[0] not in self.counts:
            return
        source = node.args[0]
        count = self.counts[source][0]
        inputs = self._filled(source)
        if isinstance(layer, nn.Linear):
            outputs = _outputs_of(layer)
            inputs = layer.in_features // count * inputs
            count = layer.in_features
        else:
            outputs = self._filled(node)
        if outputs > _outputs_of(layer) or inputs > count:
            self.network.add_submodule(node.target, _resized(layer, outputs=outputs, inputs=inputs))
