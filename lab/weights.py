"""Weights of others: a network begins with what fits of a file, whatever wrote it."""
import math
import re

import torch

from common.errors import InputError
from common.libraries import lazy, need
from common.terminal import counted
from config import MODELS, title_of
from lab.checkpoint import misfit_of, read_content
from models import dense_widths, load_weights

safetensors, safetensors_torch = lazy("safetensors"), lazy("safetensors.torch")  # optional


def initialise(model, path):
    """Give `model`, in place, the weights of a file, layer by layer, whatever wrote them.

    The file is a state dict, or a dict that has one under "net", "state_dict" or "model", or a
    .safetensors file; its names are this suite's, the published ones, or torchvision's. What stays
    fresh: a classifier for other classes, torchvision's 7 x 7 stem with its BatchNorm, and
    BatchNorms that stand elsewhere (torchvision's VGG has them before the ReLU).
    Returns lines that say so. Raises InputError where another convolution does not fit.
    """
    state, taken, fresh = _our_names(read_weights(path), model), {}, {}
    layers = {name: module for name, module in model.named_modules() if module._parameters}
    stem, stem_norm, *_, head = layers
    for name, module in layers.items():
        own = {f"{name}.{part}": tensor for part, tensor in module.state_dict().items()
               if part != "num_batches_tracked"}
        misfits = {key: misfit for key, tensor in own.items()
                   if (misfit := misfit_of(key, state.get(key), tensor))}
        # Statistics of a stem that stays fresh are of no use.
        if not misfits and not (name == stem_norm and stem in fresh):
            taken |= {key: state[key] for key in own}
            continue
        fresh[name] = misfits
        if isinstance(module, torch.nn.Conv2d) and name not in (stem, head):
            raise InputError(f"--init={path} does not fit {title_of(model.origin.name)}: "
                             + _why(name, misfits, model))
    load_weights(model, taken, strict=False)
    share = sum(map(torch.Tensor.numel, taken.values())) / sum(
        tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
    return [f"from {path}: {math.floor(1000 * share) / 10}% of the weights",
            *_fresh_lines(fresh, layers, {stem: "first convolution", head: "classifier"})]


def _why(name, misfits, model):
    key, misfit = next(iter(misfits.items()))
    if misfit == "is missing":
        return f"it has no {name} (another network, another --width, or a pruned one?)"
    return f"{key} {misfit} (--width={model.origin.width:g})"


def _fresh_lines(fresh, layers, titles):
    lines = []
    for name, title in titles.items():
        if name in fresh:
            key, misfit = next(iter(fresh[name].items()))
            lines.append(f"fresh: the {title} {name}, since {key} {misfit}")
    norms = [name for name in fresh if isinstance(layers[name], torch.nn.BatchNorm2d)]
    if norms:
        lines.append(f"fresh: {counted(len(norms), 'BatchNorm')} ({', '.join(norms)}), so the "
                     "network does not compute what the file's does before it is trained")
    return lines


def read_weights(path):
    """{name: tensor} of a state dict in a file. Raises InputError."""
    if str(path).endswith(".safetensors"):
        return _read_safetensors(path)
    content = read_content(path)
    for key in ("net", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(
            isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"{path} holds no state dict")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _our_names(state, model):
    """A state dict under the names that `model` has for the same layers."""
    if model.origin.name not in MODELS:
        return state
    renamed = {}
    for key, tensor in state.items():
        key = key.replace(".downsample.", ".shortcut.")
        renamed["linear" + key[2:] if key.startswith("fc.") else key] = tensor
    if model.origin.name == "vgg" and "features.2.running_mean" not in renamed:
        # Its layers are numbered; with BatchNorms elsewhere, or none, the order is still the same.
        theirs = sorted(int(key.split(".")[1]) for key, tensor in renamed.items() if re.fullmatch(
            r"features\.\d{1,3}\.weight", key) and getattr(tensor, "ndim", 0) == 4)
        convolutions = list(dense_widths(model))
        if len(theirs) == len(convolutions):
            renamed = {f"{ours}.{part}": renamed.get(f"features.{number}.{part}")
                       for ours, number in zip(convolutions, theirs)
                       for part in ("weight", "bias")}
    return renamed


def _read_safetensors(path):
    need(f"--init={path}", "safetensors")
    try:
        return safetensors_torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is no readable .safetensors file: {error}") from error
