"""What a network is called with, and what it gives: one tensor or several.

outputs = call(network, (left, right))
tensors_in(outputs)
"""

from dataclasses import is_dataclass

from common.libraries import lazy

torch = lazy("torch")  # --help does not need it


def call(network, inputs):
    """What a network gives for `inputs`: a tensor, a tuple or list of arguments, or a dict of
    keyword arguments."""
    if isinstance(inputs, dict):
        return network(**inputs)
    if isinstance(inputs, (tuple, list)):
        return network(*inputs)
    return network(inputs)


def map_inputs(function, inputs):
    """The same inputs, with function(tensor) for each tensor."""
    if isinstance(inputs, dict):
        return {name: function(tensor) for name, tensor in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(map(function, inputs))
    return function(inputs)


def batch_size(inputs) -> int:
    """How many samples a batch has: the first dimension of its first tensor."""
    return len(tensors_in(inputs)[0])


def tensors_in(value) -> "list[torch.Tensor]":
    """The tensors in nested tuples, lists, dicts and dataclasses, and in whatever torch's pytree
    knows, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    tensors = []
    for leaf in torch.utils._pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            tensors.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            tensors += tensors_in(list(vars(leaf).values()))
    return tensors


def moved(inputs, like: "torch.Tensor"):
    """The same inputs on the device of a tensor; those that are real numbers of its type, too."""

    def move(tensor):
        return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)

    return map_inputs(move, inputs)


def noise_like(inputs, count: int | None = None):
    """Inputs of these shapes and types, always the same ones: normal noise, and of whole numbers 0
    and 1. count: of samples, where the first dimension is of these."""
    generator = torch.Generator().manual_seed(0)

    def noise(tensor):
        shape = tensor.shape if count is None else (count, *tensor.shape[1:])
        if tensor.is_floating_point():
            return torch.randn(shape, generator=generator)
        return torch.randint(0, 2, shape, generator=generator).to(tensor.dtype)

    return map_inputs(noise, inputs)


def check_inputs(inputs) -> None:
    """Raise ValueError where `inputs` are no tensor, and no tuple or dict of tensors."""
    parts = [inputs]
    if isinstance(inputs, (dict, tuple, list)):
        parts = list(inputs.values() if isinstance(inputs, dict) else inputs)
    if not parts:
        raise ValueError("the example is empty; give what the network is called with")
    for part in parts:
        if not isinstance(part, torch.Tensor):
            raise ValueError(
                f"the example has a {type(part).__name__}; give a tensor, or a tuple or dict of "
                "tensors, and let all else that forward takes have its default"
            )


def described(inputs):
    """Inputs as plain values: of each tensor its type and shape, but no values."""

    def describe(tensor):
        return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}

    described = map_inputs(describe, inputs)
    return list(described) if isinstance(described, tuple) else described


def inputs_of(description):
    """What `described` describes, as tensors on the meta device. Raises ValueError where it is
    something else."""
    if isinstance(description, dict) and isinstance(description.get("dtype"), str):
        return _tensor_of(**description)
    if isinstance(description, dict) and description:
        return {name: _tensor_of(**tensor) for name, tensor in description.items()}
    if isinstance(description, (list, tuple)) and description:
        return tuple(_tensor_of(**tensor) for tensor in description)
    raise ValueError("what the network is called with is no description of tensors")


def _tensor_of(dtype, shape):
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"there is no type of tensors {dtype!r}")
    return torch.empty(shape, dtype=kind, device="meta")
