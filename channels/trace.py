"""A network as a graph of operations.

skeleton, graph, examples = trace(model, [torch.empty(2, 3, 64, 64, device="meta")])
values = compute_all(graph, skeleton, examples[0])
"""

import inspect
import operator
import random
import traceback
from dataclasses import is_dataclass
from functools import partial
from keyword import iskeyword
from pathlib import Path

import torch
from torch import fx, nn

from channels.layers import has_hooks
from channels.modes import merge_modes
from channels.operations import LEAVES, works_in_place
from channels.running import compute_all
from channels.traits import give
from common.copies import copy_of
from common.errors import first_line
from common.inputs import call, map_inputs

CONVOLUTIONS = nn.modules.conv._ConvNd
IMAGE_CONVOLUTIONS = nn.Conv2d, nn.ConvTranspose2d
LAZY = (
    "it has lazy layers, whose weights have no size yet; call it once on a batch of images "
    "before it is handed over"
)


def trace(model: nn.Module, examples: list) -> tuple[nn.Module, fx.Graph, list]:
    """(skeleton, graph, examples): a copy of `model` without memory, on the meta device and in eval
    mode, the fx.Graph of its operations, which computes as its class does in both modes (see
    `by_mode`), and what it may be called with: some of `examples`, which are inputs on the meta
    device, each a tensor, or a tuple or dict of tensors.

    Convolutions, BatchNorms and linear layers are nodes of their own, subclasses too. Raises
    ValueError that says where a network cannot be traced.
    """
    _require_traceable(model)
    skeleton = _skeleton_of(model)
    trained, graph, examples = _trace_both_modes(skeleton, examples)
    _settle(trained, skeleton)
    _settle(graph, skeleton)
    merge_modes(trained, graph)
    for node in graph.nodes:
        if node.op == "call_module":
            give(node, layer=type(skeleton.get_submodule(node.target)))
    return skeleton, graph, examples


def input_channels(model):
    """How many channels the images may have, likelier ones first. Raises ValueError where it has
    convolutions, and none of them is for images."""
    convolutions = [layer for layer in model.modules() if isinstance(layer, CONVOLUTIONS)]
    first = next((conv for conv in convolutions if isinstance(conv, IMAGE_CONVOLUTIONS)), None)
    if convolutions and first is None:
        raise ValueError(
            f"{type(model).__name__} has no convolution of images; filter_groups(network, example) "
            "says what it is called with"
        )
    return list(dict.fromkeys((first.in_channels if first else 3, 3, 1, 4)))


def runs_on_some(model, examples):
    """Whether a network runs on one of some inputs on the meta device."""
    try:
        skeleton = _skeleton_of(model).eval()
    except Exception:  # whatever copying a user's network may raise; tracing it says so in words
        return False
    for example in examples:
        try:
            call(skeleton, example)
            return True
        except Exception:  # whatever forward may raise
            continue
    return False


def decided(condition, outcome):
    """A network was traced for images of a shape for which a condition has this outcome. Raises
    ValueError for others."""
    if bool(condition) != outcome:
        raise ValueError("it decides by the shape of its images, and has been looked at for others")


fx.node.has_side_effect(decided)  # it stays in a graph though nothing reads what it gives


# ------------------------------------------------------------------------ before the tracing


def _require_traceable(model):
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise ValueError("the network is compiled; prune its _orig_mod, and compile the result")
    if any(map(nn.parameter.is_lazy, model.parameters())):
        raise ValueError(f"{kind}: {LAZY}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or 'the network'} is compiled by torch.jit; prune the module that it was "
                "made from, and compile the result"
            )
    if has_hooks(model):
        raise ValueError(f"{kind} has hooks, which may change what it computes; remove them first")


def _skeleton_of(model):
    """A copy of a network on the meta device. Raises ValueError where a forward that is made from
    its graph could not have the names of its layers and parameters."""
    memo = {}
    for parameter in model.parameters():
        weightless = parameter.detach().to("meta")
        memo[id(parameter)] = nn.Parameter(weightless, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    skeleton = copy_of(model, memo, device="meta")
    parts = skeleton.named_modules(), skeleton.named_parameters(), skeleton.named_buffers()
    for name in [name for part in parts for name, _ in part]:
        if not all(map(_can_be_written, name.split("."))):
            raise ValueError(
                f"{type(model).__name__} calls a layer or parameter {name!r}, which "
                "cannot be written in a forward; another name lets it be pruned"
            )
    return skeleton


def _can_be_written(name):
    """Whether a forward that is made from the graph can have an attribute of this name."""
    taken = {"self", "meta"} | vars(fx.GraphModule).keys() - vars(nn.Module).keys()
    if iskeyword(name) or name in taken:
        return False
    return name.isprintable() and not set(name) & set("\"'\\")


# ------------------------------------------------------------------------------- the tracing


def _trace_both_modes(skeleton, examples):
    """(graph in training, graph in evaluation, examples that are left)."""
    names = _names_of(examples[0], skeleton)
    for with_buffers in (False, True):
        tracer = _Tracer(examples, names, with_buffers)
        trained = _trace(skeleton.train(), tracer)
        graph = _trace(skeleton.eval(), tracer)
        unknown = _unregistered(graph, skeleton) or _unregistered(trained, skeleton)
        if not unknown:
            return trained, graph, tracer.examples
    raise ValueError(
        f"{type(skeleton).__name__} computes with {unknown}, a tensor that is "
        "neither a parameter nor a buffer; register_buffer makes it one"
    )


def _unregistered(graph, skeleton):
    """A tensor that is computed with, and is neither a parameter nor a buffer; None where there is
    none."""
    known = {"training"}
    known |= dict(skeleton.named_parameters(remove_duplicate=False)).keys()
    known |= dict(skeleton.named_buffers(remove_duplicate=False)).keys()
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in known:
            return str(node.target).removeprefix("_")
    return None


class _Sized:
    """Lets a network ask how many sizes a shape has, or parts a tensor was split into, and round
    what it computes from sizes."""

    def __int__(self):
        value = self.tracer.value_of(self)
        if isinstance(value, torch.Tensor):
            raise TypeError("int() of a tensor; a decision outside of forward lets it be pruned")
        same = self.tracer.create_proxy("call_function", operator.eq, (self, value), {})
        self.tracer.create_proxy("call_function", decided, (same, True), {})
        return int(value)

    def __len__(self):
        value = self.tracer.value_of(self)
        return len(value) if isinstance(value, (tuple, list)) else super().__len__()  # raises


class _Proxy(_Sized, fx.Proxy):
    def __getattr__(self, name):
        return _Attribute(self, name)


class _Attribute(_Sized, fx.proxy.Attribute):
    pass


class _Tracer(fx.Tracer):
    """examples: of inputs; what a network decides by sizes it decides as for the first that fits.
    names: of the inputs. buffers: whether what is computed with buffers alone is part of the
    graph, too."""

    def __init__(self, examples, names, buffers):
        super().__init__()
        self.examples, self.names = list(examples), names
        self.path = ""  # of the module that is being traced
        self.proxy_buffer_attributes = buffers
        self.computing = False  # what is called meanwhile is no part of the graph

    def proxy(self, node):
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        names = iter(self.names)

        def placeholder(_tensor):
            return self.create_proxy("placeholder", next(names), (), {})

        inputs = map_inputs(placeholder, self.examples[0])

        def forward():  # further arguments have their defaults
            return call(partial(root_fn, self.root), inputs)

        return forward, ()

    def create_arg(self, a):
        plain = dict, fx.immutable_collections.immutable_dict
        if isinstance(a, dict) and type(a) not in plain:
            content = self.create_arg(dict(a))
            given = ((), content) if is_dataclass(a) else ((content,), {})
            return self.create_node("call_function", type(a), *given)
        return super().create_arg(a)

    def to_bool(self, proxy):
        value = self.value_of(proxy)
        if isinstance(value, torch.Tensor):
            return super().to_bool(proxy)  # raises
        if _is_of_a_device(proxy.node):  # the same is to be computed on all of them
            return bool(value)
        self.create_proxy("call_function", decided, (proxy, bool(value)), {})
        return bool(value)

    def iter(self, proxy):
        value = self.value_of(proxy)
        if isinstance(value, (tuple, list)):  # such as a shape, or the parts of a tensor
            return iter([proxy[i] for i in range(len(value))])
        return super().iter(proxy)  # raises

    def value_of(self, proxy):
        """What a result is for the first of the inputs that fit."""
        node = proxy.node  # of an attribute it is made now
        self.computing, failure = True, None
        try:
            for example in self.examples:
                try:
                    value = compute_all(self.graph, self.root, example)[node]
                except Exception as error:  # whatever an operation may raise
                    failure = error
                    continue
                if not isinstance(value, torch.Tensor):
                    self.examples = [example]
                return value
            raise failure
        finally:
            self.computing = False

    def getattr(self, attr, attr_val, parameter_proxy_cache):
        if self.computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

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


def _is_of_a_device(node):
    """Whether a result is computed from the devices of tensors alone."""
    if node.target is getattr and node.args[1] in ("device", "is_cpu", "is_cuda", "is_meta"):
        return True
    return bool(node.all_input_nodes) and all(map(_is_of_a_device, node.all_input_nodes))


def _trace(model, tracer):
    kind = type(model)

    class Traced(kind):
        def forward(self, *args, **kwargs):
            return kind.forward(self, *args, **kwargs)

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
        torch.set_rng_state(states[0])
        random.setstate(states[1])


def _names_of(inputs, network):
    """What the inputs are called in a network's graph, in their order."""
    if isinstance(inputs, dict):
        return list(inputs)
    if isinstance(inputs, torch.Tensor):
        return ["images"]
    parameters = inspect.signature(network.forward).parameters.values()
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    return [*names, *(f"input_{place}" for place in range(len(names), len(inputs)))][: len(inputs)]


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
    if isinstance(error, TypeError) and "required positional argument" in str(error):
        return (
            f"{first_line(error)}; filter_groups(network, example), with an example of all that it "
            "is called with, lets it be pruned"
        )
    return first_line(error)


def _line_of(error):
    """Where in a user's code an error arose: "; see FILE, line N: CODE", or ""."""
    suite = Path(__file__).parent.parent
    others = {Path(torch.__file__).parent, suite / "channels", suite / "common"}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_file() and others.isdisjoint(file.parents):
            return f"; see {file.name}, line {frame.lineno}: {frame.line}"
    return ""


# ------------------------------------------------------------------------ after the tracing


def _settle(graph, skeleton):
    """Mend what a trace makes of devices, of changes in place, and of layers whose images are given
    by keyword."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op == "call_module" and node.kwargs:
            forward = inspect.signature(skeleton.get_submodule(node.target).forward)
            given = forward.bind(*node.args, **node.kwargs)
            node.args, node.kwargs = given.args, given.kwargs
        if _names_a_device(node):
            _forget_device(graph, node)
        elif works_in_place(node, skeleton):
            # What reads the changed tensor later, reads the result.
            changed = node.args[0]
            for user in list(changed.users):
                if order[user] > order[node]:
                    user.replace_input_with(changed, node)


def _names_a_device(node):
    is_to = node.op == "call_method" and node.target == "to"
    return is_to and any(map(_is_device, (*node.args, *node.kwargs.values())))


def _is_device(argument):
    return isinstance(argument, torch.device)


def _forget_device(graph, node):
    """A tensor goes to the device of a parameter: where the images must be in any case."""
    node.args = tuple(argument for argument in node.args if not _is_device(argument))
    node.kwargs = {key: value for key, value in node.kwargs.items() if not _is_device(value)}
    if len(node.args) == 1 and not node.kwargs:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
