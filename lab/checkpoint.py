"""Checkpoints: written, read safely, rebuilt, held against what is wanted; published files, too.

save_checkpoint("small.pth", small, {"data_path": "digits"})
small, record = load_checkpoint("small.pth")
"""

import io
import json
import reprlib
from dataclasses import replace

import torch

import pruner
from channels.groups import (
    dense_widths,
    filter_count,
    filter_groups,
    load_weights,
    remains_of,
    widths_of,
)
from common.copies import copy_of
from common.errors import InputError
from common.files import to_json, write_atomically
from common.folders import composed
from common.inputs import described, inputs_of
from common.terminal import counted, shortened
from config import NORMALIZATIONS, title_of
from lab.networks import (
    build_network,
    classes_in,
    code_of,
    in_file,
    named_like,
    require_logits,
    same_network,
)
from lab.reader import is_plain, read_safely, read_weights, unwrapped
from lab.record import Record
from models import NETWORKS, build_model

# What using the content of a file can raise where it is not what this suite wrote.
NOT_AS_WRITTEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def checkpoint_bytes(model, entries):
    """The content of a checkpoint file: one dict with `net` the state dict, what rebuilds the
    network (`cfg`, `model` and others), and `entries`, plain values; see lab/record.py."""
    # By way of JSON: pickle writes an object twice that is there twice, but only once where both
    # are the same one, so the size of a file would depend on how its content came about.
    return to_bytes({**json.loads(to_json(entries)), **network_content(model)})


def network_content(model):
    """All that is needed to build `model` again with `rebuild`, as plain values and tensors."""
    now, dense = filter_count(model)
    origin = getattr(model, "origin", None)
    if origin is None:
        raise ValueError(
            "the network has no `origin`, which says how to build it again; "
            "lab.networks.build_network gives it one"
        )
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    structure = remains_of(model).structure
    whole = structure.fixed_operations
    return {
        "net": state,
        "cfg": widths_of(model),
        "model": origin.name,
        "width": origin.width,
        "num_classes": origin.num_classes,
        "pruned": now < dense,
        **({"whole": whole} if whole else {}),
        **({} if structure.image_shape else {"example": described(structure.example)}),
    }


def _example_in(content):
    """What the network of a file is called with, for `remains_of`: tensors, the pixels of images,
    or None where it says neither."""
    if content.get("example") is not None:
        return inputs_of(content["example"])
    return content.get("image_size") or (content.get("flags") or {}).get("image_size")


def to_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def save_checkpoint(path, model, entries):
    """Write `model` and `entries` (plain values, see lab/record.py) to `path`, atomically."""
    write_atomically({path: checkpoint_bytes(model, entries)})


def load_checkpoint(path, model=None):
    """Rebuild the network of a checkpoint: one of this suite, published, or of others.

    model: FILE.py:NAME of a user's own network, which is rebuilt only where it is named here; of
    torchvision's and timm's, what a file holds that says nothing of itself.

    A published file is {"net": state dict}, with "cfg" where it is pruned; its residual layers have
    all filters, and those that are zero are removed here, which leaves the logits as they are. So
    is a state dict of the whole network, wherever it is in a file.
    Nothing in the file is run. Returns (model, Record), of which a file that is not of this suite
    fills in what the network itself says.
    Raises InputError where there is no such file or it holds something else.
    """
    return open_checkpoint(path, model)[:2]


def open_checkpoint(path, model=None):
    """The same, and lines on what of the file is taken, and what is left in it."""
    return network_of(read_weights(path), model)


def network_of(weights, model=None):
    """The same of Weights that have been read."""
    path, content = weights.path, {**weights.entries, "net": weights.state}
    ours, left = {"model", "num_classes", "cfg"} <= content.keys(), []
    if "widths" in content:
        raise InputError(
            f"{path} was written by save_network, from Python: load_network(path, network) reads it"
        )
    try:
        if ours:
            network = rebuild(content, model)
        elif model in (None, *NETWORKS):
            network, left = _rebuild_published(content)
        else:
            network, left = _rebuild_other(content, model)
        own = {key: value for key, value in network_content(network).items() if key != "net"}
        # Entries of a published file that happen to be called like ours mean something else.
        entries = {
            key: value
            for key, value in content.items()
            if ours and key != "net" and is_plain(value)
        }
        record = Record.read(entries | own)
        if record.flags is not None:  # what it does not say is from before there was a choice
            record = replace(
                record,
                normalize=record.normalize or list(NORMALIZATIONS["half"]),
                interpolation=record.interpolation or "bilinear",
            )
        return network, record, [*weights.lines, *left_lines(path, left)]
    except NOT_AS_WRITTEN as error:
        raise InputError(f"{path} cannot be used: {error or 'it is damaged'}"[:400]) from error


def left_lines(path, names):
    """A line on the tensors of a file that are none of the network's."""
    return (
        [
            f"left in {path}: {counted(len(names), 'tensor')} that the network does not have "
            f"({shortened(names)})"
        ]
        if names
        else []
    )


def rebuild(content, own=None):
    """The network of `network_content`. own: FILE.py:NAME of a user's own network, which alone may
    be run. Raises InputError where the network is another, ValueError and others where the content
    is contradictory."""
    name, classes, width = content["model"], content["num_classes"], content.get("width", 1.0)
    if not isinstance(name, str):
        raise ValueError(f"it holds a network {reprlib.repr(name)}")
    if in_file(name):
        if own is None or not same_network(name, own):
            raise InputError(
                f"it holds a network of the file {name}; --model={name} lets its code "
                "be run, a checkpoint alone does not"
            )
        name = own
    takes_classes = classes is not None or not in_file(name)
    if takes_classes and (type(classes) is not int or not 1 <= classes <= 1_000_000):
        raise ValueError(f"num_classes is {reprlib.repr(classes)}")
    if type(width) not in (int, float) or not 0 < width <= 4:
        raise ValueError(f"width is {reprlib.repr(width)}")
    state = content["net"]
    if name in NETWORKS:
        with torch.device("meta"):  # whatever the file says, nothing is allocated yet
            model = build_model(name, classes, width)
        model = pruner.rebuild(model, content["cfg"])
    elif not takes_classes or _has_outputs(state, classes):
        model = build_network(
            name,
            classes,
            widths=content["cfg"],
            whole=content.get("whole"),
            example=_example_in(content),
        )
    else:
        raise ValueError(f"num_classes is {classes}, and no layer has as many outputs")
    _check_fits(state, model, name)
    if name in NETWORKS:
        model = build_network(name, classes, width, content["cfg"])
    load_weights(model, state, strict=False)
    return model


def _has_outputs(state, count):
    """Whether a layer of a state dict may have so many outputs."""
    shapes = [tensor.shape for tensor in state.values() if isinstance(tensor, torch.Tensor)]
    return any(shape[:1] == (count,) for shape in shapes)


def _check_fits(state, model, name):
    """Raise ValueError where a state dict is not that of `model`, which is called `name`."""
    expected, parameters = model.state_dict(), dict(model.named_parameters())
    for key, wanted in expected.items():
        tensor = state.get(key)
        if tensor is None and key.endswith("num_batches_tracked"):
            continue  # files from before torch 0.4.1 have none, and nothing depends on it
        finite = key in parameters or ".running_" in key  # buffers, such as masks, may be infinite
        misfit = misfit_of(key, tensor, wanted, finite)
        if misfit:
            raise ValueError(f"{key} {misfit}")
    unknown = [key for key in state if key not in expected]
    if unknown:
        raise ValueError(f"{reprlib.repr(unknown[0])} is no weight of {name}")


def save_network(path, network):
    """Write a network of one's own, pruned or not, to `path`, atomically, for `load_network`.

    network: as `pruner.prune` returned it, trained further or not. Raises ValueError where it has
    been pickled, which does not keep what it was pruned from.
    """
    if network.__dict__.get("_remains", network) is None:
        raise ValueError(
            "a network that was pickled does not know what it was pruned from; "
            "save_network keeps that, and takes the network that prune returned"
        )
    structure = remains_of(network).structure
    state = {key: tensor.detach().cpu() for key, tensor in network.state_dict().items()}
    content = {
        "net": state,
        "widths": widths_of(network),
        "whole": structure.fixed_operations,
    }
    if structure.image_shape:
        content["image_size"] = structure.image_shape[-1]
    else:
        content["example"] = described(structure.example)
    write_atomically({path: to_bytes(content)})


def load_network(path, network):
    """The network that `save_network` wrote, on the device of `network`.

    network: an unpruned one like that which it was pruned from, with any weights; it stays as it
    is. Nothing in the file is run. Raises InputError where there is no such file, or it does not
    fit.
    """
    content = read_safely(path)
    try:
        if "widths" not in content:
            raise ValueError("save_network did not write it")
        network, example = copy_of(network), _example_in(content)
        remains_of(network, example)
        now, dense = filter_count(network)
        if now < dense:
            raise ValueError("the network to rebuild it from is pruned itself; give it unpruned")
        small = pruner.rebuild(network, content["widths"], content["whole"], example)
        _check_fits(content["net"], small, type(small).__name__)
        load_weights(small, content["net"], strict=False)
        return small
    except NOT_AS_WRITTEN as error:
        raise InputError(f"{path} cannot be used: {error or 'it is damaged'}"[:300]) from error


def misfit_of(key, tensor, wanted, finite=True):
    """Why a tensor of a file cannot be the weights `key`, of the shape and type of `wanted`, and
    `finite`, in words; None where it can."""
    if not isinstance(tensor, torch.Tensor):
        return "is missing"
    try:
        if tensor.shape != wanted.shape:
            shape, needed = (
                " x ".join(map(str, value.shape)) or "one number" for value in (tensor, wanted)
            )
            return f"is {shape} instead of {needed}"
        plain = (
            tensor.layout == torch.strided
            and not tensor.is_meta
            and (tensor.is_floating_point() == wanted.is_floating_point())
            and (tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size())
        )
        values = tensor.to(wanted.dtype) if plain else None
    except (NotImplementedError, RuntimeError, TypeError):  # nested, quantised ...
        plain = False
    if not plain:
        return f"is not a plain tensor of type {wanted.dtype}"
    if finite and not values.isfinite().all():
        return "holds values that are not finite"
    if key.endswith("running_var") and (values < 0).any():
        return "holds variances below 0"
    return None


def _rebuild_other(content, name):
    """(a whole network of torchvision, timm or a user's own file, names that stand beside it). As
    many classes as the file's classifier has."""
    wanted = build_network(name, 2).state_dict().keys()
    state, left = _network_in(content["net"], wanted)
    classes = classes_in(state, name)
    whole = build_network(name, classes)
    return rebuild(
        {"model": name, "num_classes": classes, "cfg": widths_of(whole), "net": state}, own=name
    ), left


def _network_in(state, wanted):
    """(the part of a state dict that has the `wanted` names, names that stand beside it: outside of
    its prefix, or below none of the network's own children)."""
    part, left = unwrapped(state, wanted)
    children = {key.partition(".")[0] for key in wanted}
    beside = [key for key in part if key.partition(".")[0] not in children]
    if len(beside) == len(part):  # another network
        return part, left
    return {key: part[key] for key in part if key not in beside}, [*left, *beside]


def _rebuild_published(content):
    """(one of the four networks, names that stand beside it)."""
    with torch.device("meta"):
        networks = [build_model(name) for name in NETWORKS]
    wanted = [_weights(network.state_dict()) for network in networks]
    parts = [_network_in(content["net"], names) for names in wanted]
    twin, state, left = next(
        (
            (network, state, left)
            for network, names, (state, left) in zip(networks, wanted, parts)
            if names == _weights(state)
        ),
        (None, None, None),
    )
    if twin is None:
        raise ValueError(_which_network(content["net"], networks, [state for state, _ in parts]))
    name = twin.origin.name
    widths = PUBLISHED[name](twin, content["cfg"]) if "cfg" in content else {}
    head = [key for key in twin.state_dict() if key.endswith(".bias")][-1]
    model = rebuild({"model": name, "num_classes": len(state[head]), "cfg": widths, "net": state})
    return _without_zeros(model), left


def _weights(keys):
    return {key for key in keys if not key.endswith("num_batches_tracked")}


def _which_network(state, networks, states):
    """In words, what a state dict is that is none of the four networks'."""
    for network, part in zip(networks, states):
        if without_shortcuts(_weights(network.state_dict()), _weights(part)):
            return (
                f"it is {title_of(network.origin.name)} of option A, whose shortcuts have no "
                "weights, and this suite's have (option B); --init=FILE begins with the rest "
                "of it"
            )
    if name := named_like(state):
        return f"its weights are those of torchvision's {name}: --model={name} takes them"
    return (
        f"its weights are those of none of {', '.join(NETWORKS)}"
        f"{_nearest(networks, states)}; --model names another network"
    )


def without_shortcuts(wanted, names):
    """Whether names are the wanted ones of a ResNet without its shortcuts' weights: it pads with
    zeros instead, option A of He et al. 2016, section 4.2."""
    missing = wanted - names
    return (
        bool(missing)
        and names <= wanted
        and missing == {key for key in wanted if ".shortcut." in key}
    )


def _nearest(networks, states):
    """In words, what keeps a state dict from being the weights of the network most like it."""
    apart = []
    for network, state in zip(networks, states):
        apart.append(len(network.state_dict().keys() ^ state.keys()))
    nearest = apart.index(min(apart))
    network = networks[nearest]
    ours, theirs = network.state_dict().keys(), states[nearest].keys()
    if not ours & theirs:
        return ""
    missing = next(iter(sorted(ours - theirs)), None)
    unknown = next(iter(sorted(theirs - ours)), None)
    what = f"there is no {missing}" if missing else f"{unknown} is none of its weights"
    return f"; for {network.origin.name} {what}"


def _published_vgg(twin, cfg):  # [64, 64, "M", 128, ...]
    if [item == "M" for item in cfg] != [item == "M" for item in twin.layout]:
        raise ValueError(f"cfg is {reprlib.repr(cfg)}; vgg has the layers {list(twin.layout)}")
    return dict(zip(dense_widths(twin), (item for item in cfg if item != "M")))


def _published_mobilenet(twin, cfg):  # [32, 64, (128, 2), 128, ...]
    items = [item if isinstance(item, (list, tuple)) else (item, 1) for item in cfg]
    if [stride for _, stride in items] != [1] + [stride for _, stride in twin.layout]:
        raise ValueError(f"cfg is {reprlib.repr(cfg)}; its strides are not mobilenet's")
    return dict(zip(dense_widths(twin), (width for width, _ in items)))


def _published_resnet(twin, cfg):  # {"base": .., "l1": [conv1, conv2, conv1, ..], "l2s": ..}
    widths = {}
    for stage, (count, _) in enumerate(twin.layout, 1):
        if len(cfg[f"l{stage}"]) != 2 * count:
            raise ValueError(
                f"cfg names {len(cfg[f'l{stage}'])} layers in stage {stage}; "
                f"{twin.origin.name} has {2 * count}"
            )
        widths.update(
            (f"layer{stage}.{i}.conv1", width) for i, width in enumerate(cfg[f"l{stage}"][::2])
        )
    return widths


# What the `cfg` of a published pruned network says: layer -> filters. Layers that write into a
# residual stream are left out: there all filters stay, removed ones as zeros.
PUBLISHED = {
    "vgg": _published_vgg,
    "mobilenet": _published_mobilenet,
    "resnet": _published_resnet,
    "resnet-56": _published_resnet,
}


def _without_zeros(model):
    """Remove the filters that add nothing to a residual stream."""
    kept = {}
    for group in filter_groups(model):
        used = torch.ones(len(group.channels), dtype=torch.bool)
        if group.stream.name != group.name and not group.is_fixed:
            silent = (group.conv.weight == 0).all((1, 2, 3)) & (group.bn.running_mean == 0)
            used = ((group.bn.weight != 0) & ~silent) | (group.bn.bias != 0)
            used[0] |= not used.any()
        kept[group.name] = used.nonzero().flatten()
    return pruner.prune(model, kept)


# ------------------------------------------------------------------------------- what a file holds


def record_in(path):
    """The Record in a file that this suite wrote; None where there is none. No network is built."""
    try:
        content = read_safely(path)
        return Record.read(
            {key: value for key, value in content.items() if key != "net" and is_plain(value)}
        )
    except (InputError, ValueError):
        return None


def describe(network, record):
    """A network in a few words."""
    kind = "pruned" if record.pruned else "unpruned"
    penalty = ", trained with the orthonormality penalty" if record.penalised else ""
    name = network.origin.name
    return f"{kind} {title_of(name)} (--model {name}){penalty}"


def check_holds(path, network, record, model=None, pruned=None, num_classes=None, width=None):
    """Raise InputError where the file holds another network than is wanted, None: any will do, or
    one that is no classifier of images."""
    origin = network.origin
    holds = f"{path} holds: {describe(network, record)}, {origin.num_classes} classes"
    if model not in (None, origin.name):
        raise InputError(f"{holds}; --model={model} is wrong")
    if pruned not in (None, record.pruned):
        raise InputError(f"{holds}; --pruned={pruned} is wrong")
    if num_classes not in (None, origin.num_classes):
        raise InputError(f"{holds}; --num_classes={num_classes} is wrong")
    if width not in (None, origin.width):
        raise InputError(f"{holds}, --width={origin.width:g}; --width={width:g} is wrong")
    if in_file(origin.name):
        try:
            require_logits(network)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error


def code_notes(path, network, record):
    """A line where the code of a user's own network is not what it was."""
    name = network.origin.name
    return (
        [f"Note: {path} was written when {name} had other code"]
        if (record.code not in (None, code_of(name)))
        else []
    )


def check_data(path, network, record, data):
    """Raise InputError where a network was trained on images of other classes or size than `data`
    has, or on images that were normalised or scaled in another way. Returns lines on what the file
    does not say."""
    if len(data.classes) != network.origin.num_classes:
        raise InputError(
            f"{path} is a network for {network.origin.num_classes} classes; "
            f"{data.name} has {len(data.classes)}"
        )
    if list(map(composed, record.classes or data.classes)) != list(map(composed, data.classes)):
        raise InputError(
            f"{path} was trained on other classes ({shortened(record.classes)}) than "
            f"{data.name} has ({shortened(data.classes)})"
        )
    size = record.image_size or data.image_size
    if size != data.image_size:
        raise InputError(
            f"{path} was trained on images of {size} x {size}, not "
            f"{data.image_size} x {data.image_size}; --image_size={size} fits it"
        )
    notes = [
        f"Note: {path} does not say --{name}; {given} is assumed"
        for name, known, given in (
            ("image_size", record.image_size, data.image_size),
            ("normalize", record.normalize, normalization_name(data.normalize)),
            ("interpolation", record.interpolation, data.interpolation),
        )
        if known is None
    ]
    normalize = list(record.normalize or data.normalize)
    if normalize != list(data.normalize):
        raise InputError(
            f"{path} was trained on images that were normalised in another way; "
            f"--normalize={normalization_name(normalize)} fits it"
        )
    interpolation = record.interpolation or data.interpolation
    if interpolation != data.interpolation:
        raise InputError(
            f"{path} was trained on images that were scaled in another way; "
            f"--interpolation={interpolation} fits it"
        )
    digits = record.classes is None and all(
        name.isascii() and name.isdigit() for name in data.classes
    )
    if digits and sorted(data.classes) != sorted(data.classes, key=int):
        notes.append(
            f"Note: {path} names no classes; those of {data.name} are sorted as text, "
            f"{shortened(data.classes, 4)}; where the network's order is that of the numbers, "
            "rename the folders to one length (00, 01, ...)"
        )
    return notes


def normalization_name(normalize):
    """A normalisation as a value of --normalize."""
    return next(
        (name for name, values in NORMALIZATIONS.items() if list(values) == list(normalize)),
        ",".join(map(str, normalize)),
    )
