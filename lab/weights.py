"""Weights of others: a network begins with what fits of a file, whatever wrote it."""

import math
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from channels.groups import dense_widths, filter_count, load_weights, remains_of
from common.errors import InputError
from common.folders import composed
from common.terminal import counted, shortened
from config import MODELS, title_of
from lab.checkpoint import (
    left_lines,
    misfit_of,
    network_of,
    normalization_name,
    without_shortcuts,
)
from lab.experiment import DEFAULT
from lab.networks import (
    build_network,
    classifier_of,
    default_weights,
    fresh_like,
    same_network,
)
from lab.reader import read_weights, unwrapped

CLASSIFIER = "the classifier"  # as a key of what does not fit
KEEP = (
    "--classifier=keep takes it, where its classes are those of the images, in the same order "
    "(by name)"
)


def weights_file(init, model):
    """The file that --init means. A library's own weights are downloaded if they are not there.
    Raises InputError."""
    if init != DEFAULT:
        return init
    pretrained = default_weights(model)
    url = pretrained.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / pretrained.file
    if not path.is_file() and pretrained.cached:
        return pretrained.cached
    if not path.is_file():
        print(f"Fetching {url}", flush=True)
        checksum = torch.hub.HASH_REGEX.search(path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, path, checksum and checksum[1], progress=False)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"--init={DEFAULT}: {url} could not be downloaded ({error}); put "
                f"{_file_in_words(url, path)} into {path.parent}, or name a file, --init=FILE"
            ) from error
    return str(path)


def _file_in_words(url, path):
    """What a file that was downloaded elsewhere must be called."""
    name = url.rpartition("/")[2]
    return path.name if name == path.name else f"that {name}, as {path.name},"


def read_init(flags):
    """The Weights that the --init of an Experiment means, with their digest; None where it has
    none. Raises InputError where a network cannot begin with them."""
    if not flags.init:
        return None
    weights = read_weights(weights_file(flags.init, flags.model), digest=True)
    begun = with_network(weights, flags.model)
    network, _ = network_like(begun, flags.model, 2, flags.width, flags.image_size)
    initialise(network, begun, ())
    return weights


def begin_text(model):
    """How a training begins with weights of others, which other programs call pretrained."""
    with suppress(InputError):
        owner = default_weights(model).owner
        return f"to begin with {owner}'s own weights: --init={DEFAULT}"
    return "to begin with weights of others: --init=FILE"


def with_network(weights, model):
    """The same Weights with their `network`, where the file says with `cfg` how it is built.

    model: see `load_checkpoint`. Building it draws random numbers, so it is built again where these
    decide what a fresh network begins with.
    """
    if weights.entries.get("cfg") is None:
        return weights
    with suppress(InputError):  # files of others may have a cfg of another kind
        return replace(weights, network=network_of(weights, model)[0])
    return weights


def network_like(weights, model, num_classes, width=1.0, image_size=None):
    """(a network with fresh weights for `num_classes`, lines): as small as that of `weights`, which
    may be None, where it is a pruned one of the same `model`. image_size: see `models.remains_of`.
    Raises InputError."""
    pruned = weights and weights.network
    if pruned and same_network(pruned.origin.name, model):
        now, dense = filter_count(pruned)
        if now < dense:
            if pruned.origin.width != width:
                raise InputError(
                    f"--init={weights.path} is a pruned network of --width="
                    f"{pruned.origin.width:g}, and this run has --width={width:g}"
                )
            return fresh_like(pruned, num_classes), [
                f"its architecture is that of {weights.path}, which is pruned: {now:,} of "
                f"{dense:,} filters; percents count the unpruned network's"
            ]
    network = build_network(model, num_classes, width)
    try:
        remains_of(network, image_size)
    except ValueError as error:
        raise InputError(f"--model={model}: {error}") from error
    return network, []


def initialise(model: torch.nn.Module, weights, classes=None, normalize=None, classifier=False):
    """Give `model`, in place, the Weights of a file, layer by layer, whatever wrote them.

    It holds a state dict, bare or wrapped (see lab/reader.py); its names are this suite's, the
    published ones, or torchvision's. What stays fresh: a classifier for other classes, shortcuts
    where the file's have no weights, and torchvision's 7 x 7 stem with its BatchNorm. classes: the
    names of the model's; the classifier of a file with other names, or without names, stays fresh,
    unless classifier is "keep": the file's classes are these, in this order. normalize: of the
    model's images.
    Returns lines that say so. Raises InputError where another convolution does not fit, a
    classifier that is to be kept, or where BatchNorms stand before the ReLUs of a VGG.
    """
    path = weights.path
    try:
        state, left = unwrapped(weights.state, model.state_dict().keys())
    except ValueError as error:
        raise InputError(f"--init={path}: {error}") from error
    if weights.network is not None:  # published files have filters of zeros, which are not in it
        state, left = weights.network.state_dict(), []
    state, unused = _our_names(state, model, path)
    taken, fresh = {}, {}
    layers = {
        name: module
        for name, module in model.named_modules()
        if module._parameters or module._buffers
    }
    heads = _classifier(model, layers)
    stem, stem_norm = _stem(layers, heads)
    misfits = {name: _misfits(name, module, state) for name, module in layers.items()}
    _judge_classifier(misfits, heads, weights.entries.get("classes"), classes, classifier, path)
    padded = _without_shortcuts(model, state)
    for name, module in layers.items():
        # Statistics of a stem that stays fresh are of no use.
        if not misfits[name] and not (name == stem_norm and stem in fresh):
            taken |= {key: state[key] for key in _tensors(name, module)}
            continue
        fresh[name] = misfits[name]
        if isinstance(module, torch.nn.Conv2d) and name not in (stem, *heads, *padded):
            raise InputError(
                f"--init={path} does not fit {title_of(model.origin.name)}: "
                + _why(name, misfits[name], model)
            )
    load_weights(model, taken, strict=False)
    share = _numbers(taken) / _numbers(model.state_dict())
    lines = [
        f"from {path}: {math.floor(1000 * share) / 10}% of the weights",
        *weights.lines,
        *left_lines(path, [*left, *unused]),
        *_fresh_lines(fresh, layers, stem, heads, padded),
    ]
    theirs = weights.entries.get("normalize")
    if isinstance(theirs, list) and normalize and theirs != list(normalize):
        lines.append(
            "its images were normalised in another way; --normalize="
            f"{normalization_name(theirs)} fits it"
        )
    return lines


def _tensors(name, module):
    """{key in the network's state dict: tensor} of a layer, of those that weights are for."""
    return {
        f"{name}.{part}" if name else part: tensor
        for part, tensor in module.state_dict().items()
        if "." not in part and part != "num_batches_tracked"
    }


def _misfits(name, module, state):
    """{key: why} of the tensors of a layer that a state dict cannot fill."""
    misfits = {}
    for key, tensor in _tensors(name, module).items():
        part = key.rpartition(".")[2]
        finite = part in module._parameters or part.startswith("running_")  # masks may be infinite
        if misfit := misfit_of(key, state.get(key), tensor, finite):
            misfits[key] = misfit
    return misfits


def _numbers(tensors):
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


def _stem(layers, heads):
    """(the first convolution, its BatchNorm or None), wherever a network defines them."""
    names = [name for name in layers if name not in heads]
    stem = next((name for name in names if isinstance(layers[name], torch.nn.Conv2d)), None)
    if stem is None:
        return None, None
    behind = names[min(names.index(stem) + 1, len(names) - 1)]
    return stem, behind if isinstance(layers[behind], torch.nn.BatchNorm2d) else None


def _classifier(model, layers):
    """The layers that follow the number of classes. Of a network that cannot be built again, the
    last linear one with as many outputs."""
    with suppress(InputError):
        if following := classifier_of(model.origin.name):
            return [name for name in layers if name in following]
    fitting = [
        name
        for name in layers
        if isinstance(layers[name], torch.nn.Linear)
        and layers[name].out_features == model.origin.num_classes
    ]
    return (fitting or list(layers))[-1:]


def _judge_classifier(misfits, heads, theirs, ours, classifier, path):
    """Note in `misfits` why a classifier stays fresh, all of whose layers go together. Raises
    InputError where it is to be kept and cannot be."""
    wrong = {}
    for name in heads:
        wrong |= misfits[name]
    why = "is for another number of classes" if wrong else _not_for(ours, theirs)
    if classifier != "keep":
        if why:
            _note_in(misfits, heads, why if wrong else f"{why}; {KEEP}")
    elif ours and wrong:
        key, misfit = next(iter(wrong.items()))
        raise InputError(
            f"--classifier=keep: the classifier in {path} is not for {len(ours)} "
            f"classes: {key} {misfit}"
        )
    elif ours and why and _are_in_another_order(theirs, ours):
        raise InputError(
            f"--classifier=keep: {path} has these classes in another order "
            f"({shortened(theirs)}) than the images ({shortened(ours)})"
        )


def _note_in(misfits, heads, why):
    """Note why a classifier stays fresh at those of its layers that fit by themselves."""
    for name in heads:
        misfits[name] = misfits[name] or {CLASSIFIER: why}


def _are_in_another_order(theirs, ours):
    """Whether a file names our classes, in whatever order."""
    if not isinstance(theirs, (list, tuple)):
        return False
    return sorted(map(composed, map(str, theirs))) == sorted(map(composed, ours))


def _without_shortcuts(model, state):
    """The shortcuts of one of the four for which a file has no weights, since it pads instead."""
    if model.origin.name not in MODELS:
        return []
    own = {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    names = {key for key in state if key in own}
    if not without_shortcuts(own, names | {"linear.weight", "linear.bias"}):
        return []
    return sorted({key.rpartition(".")[0] for key in own - names})


def _not_for(ours, theirs):
    """Why a file's classifier is not taken for our classes; None where it is or none are known."""
    if ours is None:
        return None
    if theirs is None and len(ours) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in ours):
        return None  # ImageNet's classes, which all files have in this order
    if not isinstance(theirs, (list, tuple)):
        return "was trained for classes that the file does not name"
    same = list(map(composed, map(str, theirs))) == list(map(composed, ours))
    return None if same else f"is for other classes ({shortened(theirs)})"


def _why(name, misfits, model):
    key, misfit = next(iter(misfits.items()))
    if misfit == "is missing":
        return f"it has no {name} (another network, another --width, or a pruned one?)"
    return f"{key} {misfit} (--width={model.origin.width:g})"


def _fresh_lines(fresh, layers, stem, heads, padded):
    lines = []
    if stem in fresh:
        key, misfit = next(iter(fresh[stem].items()))
        lines.append(f"fresh: the first convolution {stem}, since {key} {misfit}")
    if heads and heads[0] in fresh:
        names = [name or "the network's own parameters" for name in heads]
        key, misfit = next(iter(fresh[heads[0]].items()))
        lines.append(f"fresh: the classifier {shortened(names)}, since {key} {misfit}")
    if padded:
        shortcuts = sorted({name.rpartition(".")[0] for name in padded})
        lines.append(
            f"fresh: the shortcuts {' and '.join(shortcuts)}, since the file's have no "
            "weights (option A)"
        )
    titled = {stem, *heads, *padded}
    norms = [
        name
        for name in fresh
        if isinstance(layers[name], torch.nn.BatchNorm2d) and name not in titled
    ]
    others = [name for name in fresh if name not in (*norms, *titled)]
    if others:
        lines.append(f"fresh: {counted(len(others), 'layer')} ({shortened(others)})")
    if norms:
        lines.append(
            f"fresh: {counted(len(norms), 'BatchNorm')} ({', '.join(norms)}), so the "
            "network does not compute what the file's does before it is trained"
        )
    return lines


def _our_names(state, model, path):
    """(a state dict under the names that `model` has for the same layers, names in it that the
    model does not have). Raises InputError where its BatchNorms stand elsewhere."""
    own = model.state_dict().keys()
    if model.origin.name not in MODELS:
        return state, [key for key in state if key not in own]
    renamed = {}
    for key, tensor in state.items():
        key = key.replace(".downsample.", ".shortcut.")
        renamed["linear" + key[2:] if key.startswith("fc.") else key] = tensor
    if model.origin.name != "vgg" or "features.2.running_mean" in renamed:
        return renamed, [key for key in renamed if key not in own]
    # Torchvision's has other numbers, since it has no BatchNorms; the order is the same.
    theirs = sorted(
        int(key.split(".")[1])
        for key, tensor in renamed.items()
        if re.fullmatch(r"features\.\d{1,3}\.weight", key) and getattr(tensor, "ndim", 0) == 4
    )
    convolutions = list(dense_widths(model))
    if len(theirs) != len(convolutions):
        return renamed, []
    if any(f"features.{number + 1}.running_mean" in renamed for number in theirs):
        raise InputError(
            f"--init={path} is a VGG with BatchNorms before the ReLUs, and those of "
            f"{title_of(model.origin.name)} stand behind them; --model=vgg13_bn takes it"
        )
    ours = {}
    for name, number in zip(convolutions, theirs):
        for part in ("weight", "bias"):
            ours[f"{name}.{part}"] = renamed.get(f"features.{number}.{part}")
    return ours, []
