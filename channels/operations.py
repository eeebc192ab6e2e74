"""What is known of operations: the one table.

An operation is a function, a method of tensors, or a layer. A row of TABLE says what its operations
do to channels. Of an operation in no row nothing has to be known: the numbering runs it and sees
whether it keeps channels apart. Whoever asks about an operation asks here.

    kind_of(node) is Kind.ADDS
"""

from dataclasses import dataclass
from enum import Enum

from torch import fx, nn

from channels.attention import FewerHeads
from channels.traits import traits_of

# Layers that are one node of the graph, whatever the `forward` of a subclass does.
LEAVES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.Linear,
    nn.GroupNorm,
    nn.LayerNorm,
    FewerHeads,
)


class Kind(Enum):
    """What an operation does to the channels of what it reads."""

    MOVES = "only moves data; what that does to channels is seen by running it on their numbers"
    ADDS = "adds two tensors: a channel of the sum is alive where one of its parts is"
    MULTIPLIES = "multiplies two tensors: a channel that is zero in one is zero in the product"
    DIVIDES = "divides two tensors: a channel that is zero in the first is zero in the result"
    COMPARES = "computes zero from two zeros, so the channels of both leave together"
    APART = "computes each channel by itself"
    ATTENDS = "multiplies matrices: what they are of, as heads, leaves with all that it is made of"


@dataclass(frozen=True)
class Row:
    """Operations that do the same to channels.

    names: of functions and methods, apart by blanks. layers: classes of layers.
    """

    kind: Kind
    names: str
    layers: tuple = ()


TABLE = (
    Row(
        Kind.MOVES,
        """broadcast_to cat channel_shuffle chunk clone concat concatenate contiguous detach
        expand expand_as flatten flip getitem index_select moveaxis movedim narrow permute
        pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape reshape_as roll select split
        split_with_sizes squeeze stack swapaxes swapdims t tensor_split tile transpose unbind
        unflatten unsqueeze view view_as""",
        (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle),
    ),
    Row(Kind.ADDS, "add add_ iadd"),
    Row(Kind.MULTIPLIES, "mul mul_ imul"),
    Row(Kind.DIVIDES, "truediv itruediv div div_"),
    Row(Kind.COMPARES, "sub sub_ isub maximum minimum lerp lerp_ hypot hypot_"),
    Row(Kind.ATTENDS, "matmul bmm scaled_dot_product_attention"),
    Row(
        Kind.APART,
        """relu relu_ relu6 hardtanh silu hardswish hardsigmoid sigmoid gelu leaky_relu dropout
        max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d""",
        (
            nn.BatchNorm1d,
            nn.BatchNorm2d,
            nn.BatchNorm3d,
            nn.ReLU,
            nn.ReLU6,
            nn.SiLU,
            nn.Hardswish,
            nn.Identity,
            nn.Dropout,
            nn.MaxPool1d,
            nn.MaxPool2d,
            nn.MaxPool3d,
            nn.AvgPool1d,
            nn.AvgPool2d,
            nn.AvgPool3d,
            nn.AdaptiveAvgPool1d,
            nn.AdaptiveAvgPool2d,
            nn.AdaptiveAvgPool3d,
        ),
    ),
)

PAIRED = (Kind.ADDS, Kind.MULTIPLIES, Kind.DIVIDES, Kind.COMPARES)

_KINDS = {name: row.kind for row in TABLE for name in row.names.split()}
_LAYERS = {layer: row.kind for row in TABLE for layer in row.layers}


def kind_of(node: fx.Node) -> Kind | None:
    """The Kind of a node's operation; None where the table does not have it."""
    if node.op == "call_module":
        return _LAYERS.get(layer_of(node))
    is_known = node.op == "call_method" or (node.op == "call_function" and _is_of_torch(node))
    return _KINDS.get(name_of(node)) if is_known else None


def _is_of_torch(node):
    """Whether a function is torch's or Python's, and not one of a user's with the same name."""
    module = getattr(node.target, "__module__", None) or "torch"
    return module.partition(".")[0] in ("torch", "_operator")


def layer_of(node):
    """The class of the layer that a node calls; None of other operations."""
    return traits_of(node).layer


def name_of(node: fx.Node) -> str:
    """What an operation is called: a function's or method's name, or a layer's class."""
    if node.op == "call_module":
        return layer_of(node).__name__
    if isinstance(node.target, str):
        return node.target
    return getattr(node.target, "__name__", str(node.target))


def title(node: fx.Node) -> str:
    """An operation in words: its layer's dotted name and what it is."""
    if node.op == "call_module":
        return str(node.target)
    inside = path_of(node)
    return f"{name_of(node)} in {inside}" if inside else name_of(node)


def path_of(node: fx.Node) -> str:
    """Dotted name of the module whose `forward` has the operation."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def works_in_place(node: fx.Node, root: nn.Module) -> bool:
    """Whether an operation changes its first argument, a tensor. root: of the graph's layers."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return getattr(root.get_submodule(node.target), "inplace", False) is True
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    return (
        node.kwargs.get("inplace") is True
        or (name.endswith("_") and not name.startswith("_"))
        or name in ("iadd", "isub", "imul", "itruediv")
    )
