"""A network as a graph of operations, and where its channels go.

skeleton, graph, shapes = trace(model, [(3, 64, 64)])
for node in graph.nodes:
    node.meta["value"] = compute(node, skeleton, lambda other: other.meta["value"])
"""

import copy
import inspect
import random
import traceback
from keyword import iskeyword
from pathlib import Path

import torch
from torch import fx, nn

from common.copies import copy_of
from common.errors import first_line

# Layers that are one operation of the graph, whatever the `forward` of a subclass does.
LEAVES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.Linear,
    nn.GroupNorm,
    nn.LayerNorm,
)

# Operations that only move data: what they do to channels is seen by running them on numbers.
MOVES = set(
    """broadcast_to cat channel_shuffle chunk clone concat concatenate contiguous detach
    expand expand_as flatten flip getitem index_select moveaxis movedim narrow permute pixel_shuffle
    pixel_unshuffle repeat repeat_interleave reshape reshape_as roll select split split_with_sizes
    squeeze stack swapaxes swapdims t tensor_split tile transpose unbind unflatten unsqueeze view
    view_as""".split()
)
MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle)


LAZY = (
    "it has lazy layers, whose weights have no size yet; call it once on a batch of images "
    "before it is handed over"
)


class _Sized:
    """Lets a network ask how many sizes a shape has, or parts a tensor was split into."""

    def __len__(self):
        value = self.tracer.value_of(self)
        return len(value) if isinstance(value, (tuple, list)) else super().__len__()  # raises


class _Proxy(_Sized, fx.Proxy):
    def __getattr__(self, name):
        return _Attribute(self, name)


class _Attribute(_Sized, fx.proxy.Attribute):
    pass


class _Tracer(fx.Tracer):
    """shapes: of images; what a network decides by sizes it decides as for the first that fits.
    buffers: whether what is computed with buffers alone is part of the graph, too."""

    def __init__(self, shapes, buffers):
        super().__init__()
        self.shapes, self.path = list(shapes), ""  # path: of the module that is being traced
        self.proxy_buffer_attributes = buffers
        self.computing = False  # what is called meanwhile is no part of the graph

    def proxy(self, node):
        return _Proxy(node, self)

    def to_bool(self, proxy):
        value = self.value_of(proxy)
        if isinstance(value, torch.Tensor):
            return super().to_bool(proxy)  # raises
        self.create_proxy("call_function", decided, (proxy, bool(value)), {})
        return bool(value)

    def iter(self, proxy):
        value = self.value_of(proxy)
        if isinstance(value, (tuple, list)):  # such as a shape, or the parts of a tensor
            return iter([proxy[i] for i in range(len(value))])
        return super().iter(proxy)  # raises

    def value_of(self, proxy):
        """What a result is for images of the first shape that fits."""
        node = proxy.node  # of an attribute it is made now
        self.computing, failure = True, None
        try:
            for shape in self.shapes:
                try:
                    value = compute_all(self.graph, self.root, shape)[node]
                except Exception as error:  # whatever an operation may raise
                    failure = error
                    continue
                if not isinstance(value, torch.Tensor):
                    self.shapes = [shape]
                return value
            raise failure
        finally:
            self.computing = False

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        return (
            attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)
        )

    def is_leaf_module(self, module, name):
        # A module without weights that asks whether it is trained, as dropping paths does, would be
        # fixed to one of the two.
        code = getattr(type(module).forward, "__code__", None)
        asks = code is not None and "training" in code.co_names and not module.state_dict()
        return isinstance(module, LEAVES) or asks or super().is_leaf_module(module, name)

    def call_module(self, module, forward, args, kwargs):
        if self.computing:
            return forward(*args, **kwargs)
        try:
            path = self.path_of_module(module)
        except NameError:  # made on the way, such as a slice of an nn.Sequential
            return forward(*args, **kwargs)
        outer, self.path = self.path, path
        result = super().call_module(module, forward, args, kwargs)
        self.path = outer  # after an error it still says where that was
        return result


def decided(condition, outcome):
    """A network was traced for images of a shape for which a condition has this outcome. Raises
    ValueError for others."""
    if bool(condition) != outcome:
        raise ValueError("it decides by the shape of its images, and has been looked at for others")


fx.node.has_side_effect(decided)  # it stays in a graph though nothing reads what it gives


def trace(model, shapes):
    """(skeleton, graph, shapes): a copy of `model` without memory, on the meta device and in eval
    mode, the fx.Graph of its operations, which computes as its class does in both modes, and the
    shapes of images that it may be for: some of `shapes`, (channels, height, width) each.

    Convolutions, BatchNorms and linear layers are nodes of their own, subclasses too. Raises
    ValueError that says where a network cannot be traced.
    """
    if hasattr(model, "_orig_mod"):
        raise ValueError("the network is compiled; prune its _orig_mod, and compile the result")
    if any(map(nn.parameter.is_lazy, model.parameters())):
        raise ValueError(f"{type(model).__name__}: {LAZY}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "the network is compiled by torch.jit; prune the module that it was made "
            "from, and compile the result"
        )
    if model._forward_hooks or model._forward_pre_hooks:
        raise ValueError(
            f"{type(model).__name__} has hooks, which may change what it computes; "
            "remove them first"
        )
    tensors = [*model.parameters(), *model.buffers()]
    memo = {
        id(t): nn.Parameter(t.detach().to("meta"), t.requires_grad)
        if isinstance(t, nn.Parameter)
        else t.to("meta")
        for t in tensors
    }
    skeleton = copy_of(model, memo, device="meta")
    for name, _ in (
        *skeleton.named_modules(),
        *skeleton.named_parameters(),
        *skeleton.named_buffers(),
    ):
        if not all(map(_can_be_written, name.split("."))):
            raise ValueError(
                f"{type(model).__name__} calls a layer or parameter {name!r}, which "
                "cannot be written in a forward; another name lets it be pruned"
            )
    for buffers in (False, True):
        tracer = _Tracer(shapes, buffers)
        trained, graph = _trace(skeleton.train(), tracer), _trace(skeleton.eval(), tracer)
        unknown = _unregistered(graph, skeleton)
        if not unknown:
            break
    else:
        raise ValueError(
            f"{type(model).__name__} computes with {unknown}, a tensor that is "
            "neither a parameter nor a buffer; register_buffer makes it one"
        )
    if len(trained.nodes) != len(graph.nodes):
        raise ValueError(
            f"{type(model).__name__} computes other operations in training than in "
            "evaluation, such as further outputs; give it without those"
        )
    pairs = dict(zip(trained.nodes, graph.nodes))
    for theirs, ours in pairs.items():
        if (theirs.op, theirs.target) != (ours.op, ours.target):
            raise ValueError(
                f"{type(model).__name__} computes {title(theirs)} in training, and "
                f"{title(ours)} in evaluation"
            )
        wanted = fx.map_arg((theirs.args, theirs.kwargs), pairs.get)
        if wanted != (ours.args, ours.kwargs):
            ours.args, ours.kwargs = _either(graph, wanted, (ours.args, ours.kwargs), ours)
    _settle(graph, skeleton)
    return skeleton, graph, tracer.shapes


def _can_be_written(name):
    """Whether a forward that is made from the graph can have an attribute of this name."""
    taken = {"self", "meta"} | vars(fx.GraphModule).keys() - vars(nn.Module).keys()
    return (
        not iskeyword(name)
        and name not in taken
        and name.isprintable()
        and not (set(name) & set("\"'\\"))
    )


def _unregistered(graph, skeleton):
    """A tensor that is computed with, and is neither a parameter nor a buffer; None where there is
    none."""
    known = {
        name
        for name, _ in (
            *skeleton.named_parameters(remove_duplicate=False),
            *skeleton.named_buffers(remove_duplicate=False),
        )
    }
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in known | {"training"}:
            return str(node.target).removeprefix("_")
    return None


def _settle(graph, skeleton):
    """Mend what a trace makes of devices, of changes in place, and of layers whose images are given
    by keyword."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op == "call_module" and node.kwargs:
            forward = inspect.signature(skeleton.get_submodule(node.target).forward)
            given = forward.bind(*node.args, **node.kwargs)
            node.args, node.kwargs = given.args, given.kwargs
        constants = [
            each for each in (*node.args, *node.kwargs.values()) if isinstance(each, torch.device)
        ]
        if node.op == "call_method" and node.target == "to" and constants:
            # To the device of a parameter: where the images must be in any case.
            node.args = tuple(each for each in node.args if each not in constants)
            node.kwargs = {
                key: value for key, value in node.kwargs.items() if value not in constants
            }
            if len(node.args) == 1 and not node.kwargs:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
        elif in_place(node, skeleton):
            # What reads the changed tensor later, reads the result.
            for user in list(node.args[0].users):
                if order[user] > order[node]:
                    user.replace_input_with(node.args[0], node)


def in_place(node, skeleton):
    """Whether an operation changes its first argument, a tensor."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return getattr(skeleton.get_submodule(node.target), "inplace", False) is True
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and (
        node.kwargs.get("inplace") is True
        or name.endswith("_")
        and not name.startswith("_")
        or name in ("iadd", "isub", "imul", "itruediv")
    )


def _trace(model, tracer):
    kind = type(model)

    class Traced(kind):
        def forward(self, images):  # further arguments have their defaults
            return kind.forward(self, images)

    model.__class__ = Traced
    states = torch.get_rng_state(), random.getstate()
    try:
        graph = tracer.trace(model)
        if not torch.equal(torch.get_rng_state(), states[0]) or random.getstate() != states[1]:
            raise ValueError(
                "it draws random numbers itself; in a module of its own, such as "
                "torchvision's StochasticDepth, it may"
            )
        return graph
    except (Exception, SystemExit) as error:  # a network may do anything
        inside = f" at {tracer.path}" if tracer.path else ""
        raise ValueError(
            f"{kind.__name__} cannot be traced{inside}: {_what_to_do(error)}{_line_of(error)}"
        ) from error
    finally:
        model.__class__ = kind
        torch.set_rng_state(states[0]), random.setstate(states[1])


def _what_to_do(error):
    """The first line of an error, in words that help where forward decides by values."""
    if isinstance(error, fx.proxy.TraceError) and "control flow" in str(error):
        return (
            "forward decides by the values of its images; torch.where, or a decision outside "
            "of forward, lets it be pruned"
        )
    if isinstance(error, NameError) and "is not a member of this module" in str(error):
        return (
            "a layer or parameter that it uses is no part of it, as those in a plain list are; "
            "nn.ModuleList makes them so"
        )
    return first_line(error)


def _line_of(error):
    """Where in a user's code an error arose: "; see FILE, line N: CODE", or ""."""
    torchs, ours = Path(torch.__file__).parent, Path(__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and torchs not in file.parents and ours not in file.parents:
            return f"; see {file.name}, line {frame.lineno}: {frame.line}"
    return ""


def _either(graph, trained, evaluated, node):
    """Arguments that are True in training and False in evaluation become model.training."""
    if (
        isinstance(trained, (tuple, list))
        and isinstance(evaluated, (tuple, list))
        and (len(trained) == len(evaluated))
    ):
        return type(trained)(_either(graph, a, b, node) for a, b in zip(trained, evaluated))
    if (
        isinstance(trained, dict)
        and isinstance(evaluated, dict)
        and (trained.keys() == evaluated.keys())
    ):
        return {key: _either(graph, trained[key], evaluated[key], node) for key in trained}
    if trained is True and evaluated is False:
        with graph.inserting_before(node):
            return graph.get_attr("training")
    if trained != evaluated:
        raise ValueError(f"{title(node)} gets {trained} in training, and {evaluated} in evaluation")
    return evaluated


def title(node):
    """An operation in words: its module's dotted name and what it is."""
    if node.op == "call_module":
        return str(node.target)
    name = node.target if isinstance(node.target, str) else node.target.__name__
    inside = path_of(node)
    return f"{name} in {inside}" if inside else name


def path_of(node):
    """Dotted name of the module whose `forward` has the operation."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def name_of(node):
    """What an operation is called: a function's or method's name, or a module's class."""
    if node.op == "call_module":
        return node.meta["class"].__name__
    return (
        node.target
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", str(node.target))
    )


def compute_all(graph, root, shape):
    """{node: its result} for two images of this shape, on the meta device. An error has the node
    where it arose as its attribute `node`."""
    kind = next((p.dtype for p in root.parameters()), torch.float32)
    values, images = {}, torch.empty(2, *shape, device="meta", dtype=kind)
    for node in graph.nodes:
        try:
            values[node] = (
                images if node.op == "placeholder" else compute(node, root, values.__getitem__)
            )
        except Exception as error:
            error.node = node
            raise
    return values


def compute(node, root, look, module=None):
    """The result of a node, `look` giving that of each node before it. module: in place of its."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), look)
    if node.op == "call_module":
        module = module or root.get_submodule(node.target)
        if isinstance(module, nn.BatchNorm2d) and args[0].is_meta:
            return args[0]  # whose shape torch takes long to work out
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    if node.op == "get_attr":
        owner, _, name = node.target.rpartition(".")
        return getattr(root.get_submodule(owner), name)
    return node.target(*args, **kwargs) if node.op == "call_function" else args[0]


def moves(node, root):
    """Whether an operation only moves data."""
    if node.op == "call_module":
        return isinstance(root.get_submodule(node.target), MOVING_MODULES)
    home = str(getattr(node.target, "__module__", None)).split(".")[0]  # not a user's own "split"
    return name_of(node) in MOVES and (
        node.op == "call_method" or home in ("torch", "_operator", "None")
    )


def along(numbers, dim):
    """The vector of a tensor's values along `dim`; None where they vary along others."""
    others = [d for d in range(numbers.dim()) if d != dim]
    vector = numbers[tuple(slice(None) if d == dim else 0 for d in range(numbers.dim()))]
    same = all(numbers.shape[d] == 1 or numbers.stride(d) == 0 for d in others) or torch.equal(
        spread(vector, numbers.shape, dim), numbers
    )
    return vector if same else None


def varies(numbers):
    """(dimension, vector) where a tensor's values vary along one dimension only; the first beside
    the batch where they are all equal, None where they vary along several."""
    for dim in (1, *range(numbers.dim() - 1, 1, -1), 0):
        if dim < numbers.dim() and (vector := along(numbers, dim)) is not None:
            return dim, vector
    return None


def spread(vector, shape, dim):
    """A vector along one dimension of a larger shape, without memory."""
    return vector.view([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)


def as_real(module):
    """A copy of a skeleton's module on the CPU, with positive random values."""
    module = copy.deepcopy(module).float().to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.data.zero_()
    return module


def keeps_apart(operation, shape, dim):
    """The dimension of the result that channels, `dim` of the argument, go to, where no channel of
    the result depends on another channel of the argument; else None.

    Half of the channels are changed, and the others must stay; log2(channels) such halves, both
    ways round, tell every two channels apart.
    """
    generator = torch.Generator().manual_seed(0)
    before, other = (torch.randn(shape, generator=generator) * 2 for _ in range(2))
    count, index = shape[dim], torch.arange(shape[dim])
    operation = torch.no_grad()(operation)
    result = operation(before.clone())
    if not isinstance(result, torch.Tensor):
        return None
    dims = [
        d for d in (dim, *range(1, result.dim())) if d < result.dim() and result.shape[d] == count
    ]
    for bit in range((count - 1).bit_length()):
        for side in (0, 1):
            changed = (index >> bit) & 1 == side
            mixed = torch.where(spread(changed, shape, dim), other, before)
            same = (operation(mixed) == result) | result.isnan()
            dims = [d for d in dims if same.transpose(0, d)[~changed].all()]
    return dims[0] if dims else None


def input_channels(model):
    """How many channels the images may have, likelier ones first."""
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    return list(dict.fromkeys((first, 3, 1, 4)))
