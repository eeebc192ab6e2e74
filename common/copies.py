"""Copies of networks, which may hold what their last pass has left in them.

twin = copy_of(network)
"""

import copy
from collections import deque

import torch
from torch import nn


def copy_of(network: nn.Module, memo: dict | None = None, device=None) -> nn.Module:
    """A deep copy of a network. memo: see copy.deepcopy. device: to which tensors go that are
    neither parameters nor buffers and that a pass has computed.

    Such tensors (`self.features = x` in a forward, weights that spectral_norm computes) have a
    history, which Python refuses to copy; the copy has their values alone. Raises ValueError, in
    one line, where the network holds something else that cannot be copied.
    """
    memo = {} if memo is None else memo
    for tensor in _computed_tensors(network):
        memo[id(tensor)] = tensor.detach() if device is None else tensor.detach().to(device)
    known = dict(memo)
    try:
        twin = copy.deepcopy(network, memo)
        for name in vars(network).keys() - vars(twin).keys():  # an fx.GraphModule leaves them out
            twin.__dict__[name] = copy.deepcopy(vars(network)[name], memo)
        return twin
    except Exception as error:  # whatever the user's own objects do
        culprit = _what_cannot_be_copied(network, known)
        raise ValueError(
            f"{type(network).__name__} cannot be copied{culprit}: "
            f"{str(error).strip() or type(error).__name__}; keep that outside of "
            "the network"
        ) from error


def _computed_tensors(network):
    """The tensors in a network's attributes, lists and dicts that have a history."""
    seen, rest = set(), [network]
    while rest:
        value = rest.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, dict):
            rest.extend(value.values())
        elif isinstance(value, (list, tuple, set, deque)):
            rest.extend(value)
        elif _is_plain_object(value):
            rest.extend(vars(value).values())


def _is_plain_object(value):
    """Whether copying an object copies its attributes."""
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, type)
        and not callable(getattr(type(value), "__deepcopy__", None))
        and (isinstance(value, nn.Module) or not hasattr(value, "__code__"))
    )


def _what_cannot_be_copied(network, known):
    """ ", NAME.ATTRIBUTE", the first that is at fault; "" where none is by itself."""
    for name, module in network.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, dict(known))
            except Exception:
                return f" because of {f'{name}.' if name else ''}{attribute}"
    return ""
