"""Runs the operations of a graph: on the meta device, on numbers of channels, or on images.

values = compute_all(graph, skeleton, torch.empty(2, 3, 64, 64, device="meta"))
"""

import copy

import torch
from torch import fx, nn


def compute_all(graph: fx.Graph, root: nn.Module, inputs) -> dict:
    """{node: what it gives} for inputs on the meta device: a tensor, or a tuple or dict of them.
    root: the module that has the layers. An error has the node where it arose as its attribute
    `node`."""
    tensors = iter(in_order(graph, inputs))
    values = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = next(tensors)
            continue
        try:
            values[node] = compute(node, root, values.__getitem__)
        except Exception as error:
            error.node = node
            raise
    return values


def in_order(graph: fx.Graph, inputs) -> list[torch.Tensor]:
    """The tensors of `inputs`, in the order in which a graph takes them."""
    if isinstance(inputs, dict):
        return [inputs[node.target] for node in graph.find_nodes(op="placeholder")]
    if isinstance(inputs, (tuple, list)):
        return list(inputs)
    return [inputs]


def compute(node, root, look, module=None):
    """What a node gives. look: gives that of each node before it. module: in place of its own."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), look)
    if node.op == "call_module":
        module = module or root.get_submodule(node.target)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and args[0].is_meta:
            return args[0]  # whose shape torch takes long to work out
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    if node.op == "get_attr":
        owner, _, name = node.target.rpartition(".")
        return getattr(root.get_submodule(owner), name)
    if node.op == "call_function":
        return node.target(*args, **kwargs)
    return args[0]


# --------------------------------------------------------------------------- vectors of numbers


def along(numbers: torch.Tensor, dim: int) -> torch.Tensor | None:
    """The vector of a tensor's values along `dim`; None where they vary along others."""
    index = [0] * numbers.dim()
    index[dim] = slice(None)
    vector = numbers[tuple(index)]
    wanted = spread(vector, numbers.shape, dim)
    if wanted.stride() == numbers.stride() or torch.equal(wanted, numbers):
        return vector
    return None


def varies(numbers: torch.Tensor | tuple) -> tuple | None:
    """(dimension, vector) where a tensor's values vary along one dimension only; the first beside
    the batch where they are all equal. None where they vary along several, and of tuples."""
    if not isinstance(numbers, torch.Tensor):
        return None
    for dim in (1, *range(numbers.dim() - 1, 1, -1), 0):
        if dim < numbers.dim():
            vector = along(numbers, dim)
            if vector is not None:
                return dim, vector
    return None


def spread(vector: torch.Tensor, shape: tuple, dim: int) -> torch.Tensor:
    """A vector along one dimension of a larger shape, without memory."""
    sizes = [1] * len(shape)
    sizes[dim] = -1
    return vector.view(sizes).expand(shape)


# -------------------------------------------------------------- does it keep channels apart?


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
    before = torch.randn(shape, generator=generator) * 2
    other = torch.randn(shape, generator=generator) * 2
    count = shape[dim]
    index = torch.arange(count)
    operation = torch.no_grad()(operation)
    result = operation(before.clone())
    if not isinstance(result, torch.Tensor):
        return None
    first = min(dim, 1)  # the batch is out of the question, unless it is asked for
    dims = [known for known in range(first, result.dim()) if result.shape[known] == count]
    for bit in range((count - 1).bit_length()):
        for side in (0, 1):
            changed = (index >> bit) & 1 == side
            mixed = torch.where(spread(changed, shape, dim), other, before)
            same = (operation(mixed) == result) | result.isnan()
            dims = [known for known in dims if same.transpose(0, known)[~changed].all()]
    if dim in dims:
        return dim
    return dims[0] if dims else None
