"""Checkpoints: written, read safely, rebuilt, held against what is wanted; published files, too.

    save_checkpoint("small.pth", small, {"data_path": "digits"})
    small, record = load_checkpoint("small.pth")
"""
import io
import json
import mmap
import reprlib
import struct
import warnings
import zipfile
from pathlib import Path

import torch

import pruner
from common.errors import InputError
from common.files import to_json, write_atomically
from config import title_of
from lab.networks import build_network, in_file, same_network
from lab.record import Record
from models import (
    NETWORKS,
    build_model,
    dense_widths,
    filter_count,
    filter_groups,
    load_weights,
    remains_of,
    widths_of,
)

# What using the content of a file can raise where it is not what this suite wrote.
NOT_AS_WRITTEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def checkpoint_bytes(model, entries):
    """The content of a checkpoint file: one dict with `net` the state dict, `cfg` the widths,
    `model`, `width`, `num_classes`, `pruned`, and `entries`, plain values; see lab/record.py."""
    # By way of JSON: pickle writes an object twice that is there twice, but only once where both
    # are the same one, so the size of a file would depend on how its content came about.
    return to_bytes({**json.loads(to_json(entries)), **network_content(model)})


def network_content(model):
    """All that is needed to build `model` again with `rebuild`, as plain values and tensors."""
    now, dense = filter_count(model)
    origin = getattr(model, "origin", None)
    if origin is None:
        raise ValueError("the network has no `origin`, which says how to build it again; "
                         "lab.networks.build_network gives it one")
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    whole = remains_of(model).structure.whole
    return {"net": state, "cfg": widths_of(model), "model": origin.name, "width": origin.width,
            "num_classes": origin.num_classes, "pruned": now < dense,
            **({"whole": whole} if whole else {})}


def to_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def save_checkpoint(path, model, entries):
    """Write `model` and `entries` (plain values, see lab/record.py) to `path`, atomically."""
    write_atomically({path: checkpoint_bytes(model, entries)})


def load_checkpoint(path, model=None):
    """Rebuild the network of a checkpoint, of this suite's form or of the published one.

    model: FILE.py:NAME of a user's own network, which is rebuilt only where it is named here.

    A published file is {"net": state dict}, with "cfg" where it is pruned; its residual layers have
    all filters, and those that are zero are removed here, which leaves the logits as they are.
    Nothing in the file is run: it is read with weights_only=True. Returns (model, Record), of which
    a published file fills in what the network itself says.
    Raises InputError where there is no such file or it holds something else.
    """
    content = read_safely(path)
    ours = {"model", "num_classes", "cfg"} <= content.keys()
    try:
        model = rebuild(content, model) if ours else _rebuild_published(content)
        own = {key: value for key, value in network_content(model).items() if key != "net"}
        # Entries of a published file that happen to be called like ours mean something else.
        entries = {key: value for key, value in content.items()
                   if ours and key != "net" and is_plain(value)}
        return model, Record.read(entries | own)
    except NOT_AS_WRITTEN as error:
        raise InputError(f"{path} cannot be used: {error or 'it is damaged'}"[:300]) from error


def rebuild(content, own=None):
    """The network of `network_content`. own: FILE.py:NAME of a user's own network, which alone may
    be run. Raises InputError where the network is another, ValueError and others where the content
    is contradictory."""
    name, classes, width = content["model"], content["num_classes"], content.get("width", 1.0)
    if not isinstance(name, str):
        raise ValueError(f"it holds a network {reprlib.repr(name)}")
    if in_file(name):
        if own is None or not same_network(name, own):
            raise InputError(f"it holds a network of the file {name}; --model={name} lets its code "
                             "be run, a checkpoint alone does not")
        name = own
    if type(classes) is not int or not 1 <= classes <= 1_000_000:
        raise ValueError(f"num_classes is {reprlib.repr(classes)}")
    if type(width) not in (int, float) or not 0 < width <= 4:
        raise ValueError(f"width is {reprlib.repr(width)}")
    state = content["net"]
    if name in NETWORKS:
        with torch.device("meta"):  # whatever the file says, nothing is allocated yet
            model = build_model(name, classes, width)
        model = pruner.rebuild(model, content["cfg"])
    elif any(isinstance(tensor, torch.Tensor) and tensor.shape[:1] == (classes,)
             for tensor in state.values()):
        flags = content.get("flags") or {}
        model = build_network(name, classes, widths=content["cfg"], whole=content.get("whole"),
                              image_size=content.get("image_size") or flags.get("image_size"))
    else:
        raise ValueError(f"num_classes is {classes}, and no layer has as many outputs")
    expected = model.state_dict()
    for key, wanted in expected.items():
        tensor = state.get(key)
        if tensor is None and key.endswith("num_batches_tracked"):
            continue  # files from before torch 0.4.1 have none, and nothing depends on it
        misfit = misfit_of(key, tensor, wanted)
        if misfit:
            raise ValueError(f"{key} {misfit}")
    unknown = [key for key in state if key not in expected]
    if unknown:
        raise ValueError(f"{reprlib.repr(unknown[0])} is no weight of {name}")
    if name in NETWORKS:
        model = build_network(name, classes, width, content["cfg"])
    load_weights(model, state, strict=False)
    return model


def misfit_of(key, tensor, wanted):
    """Why a tensor of a file cannot be the weights `key`, of the shape and type of `wanted`, in
    words; None where it can."""
    if not isinstance(tensor, torch.Tensor):
        return "is missing"
    if tensor.shape != wanted.shape:
        shape, needed = (" x ".join(map(str, each.shape)) or "one number"
                         for each in (tensor, wanted))
        return f"is {shape} instead of {needed}"
    if tensor.layout != torch.strided or tensor.is_meta or (
            tensor.is_floating_point() != wanted.is_floating_point()) or (
            tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()):
        return f"is not a plain tensor of type {wanted.dtype}"
    if not tensor.to(wanted.dtype).isfinite().all():
        return "holds values that are not finite"
    if key.endswith("running_var") and (tensor < 0).any():
        return "holds variances below 0"
    return None


def _rebuild_published(content):
    state = {key.removeprefix("module."): tensor for key, tensor in content["net"].items()}

    def weights(keys):
        return {key for key in keys if not key.endswith("num_batches_tracked")}

    with torch.device("meta"):
        networks = [build_model(name) for name in NETWORKS]
    twin = next((n for n in networks if weights(n.state_dict()) == weights(state)), None)
    if twin is None:
        raise ValueError(f"its weights are those of none of {', '.join(NETWORKS)}")
    name = twin.origin.name
    widths = PUBLISHED[name](twin, content["cfg"]) if "cfg" in content else {}
    head = [key for key in twin.state_dict() if key.endswith(".bias")][-1]
    model = rebuild({"model": name, "num_classes": len(state[head]), "cfg": widths, "net": state})
    return _without_zeros(model)


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
            raise ValueError(f"cfg names {len(cfg[f'l{stage}'])} layers in stage {stage}; "
                             f"{twin.origin.name} has {2 * count}")
        widths.update((f"layer{stage}.{i}.conv1", width)
                      for i, width in enumerate(cfg[f"l{stage}"][::2]))
    return widths


# What the `cfg` of a published pruned network says: layer -> filters. Layers that write into a
# residual stream are left out: there all filters stay, removed ones as zeros.
PUBLISHED = {"vgg": _published_vgg, "mobilenet": _published_mobilenet,
             "resnet": _published_resnet, "resnet-56": _published_resnet}


def _without_zeros(model):
    """Remove the filters that add nothing to a residual stream."""
    kept = {}
    for group in filter_groups(model):
        used = torch.ones(len(group.channels), dtype=torch.bool)
        if group.stream.name != group.name and not group.protected:
            silent = (group.conv.weight == 0).all((1, 2, 3)) & (group.bn.running_mean == 0)
            used = ((group.bn.weight != 0) & ~silent) | (group.bn.bias != 0)
            used[0] |= not used.any()
        kept[group.name] = used.nonzero().flatten()
    return pruner.prune(model, kept)


def read_safely(path):
    """The dict of a network, its weights under "net", in a file that torch.save wrote. Nothing in
    it is run: see `read_content`. Raises InputError."""
    content = read_content(path)
    if not isinstance(content, dict) or not isinstance(content.get("net"), dict):
        raise InputError(f"{path} is no checkpoint of a network: it has no weights under net")
    return content


def read_content(path):
    """What torch.save wrote to a file. Nothing in it is run: tensors, plain values and NumPy's
    numbers, which are read as Python's, are all that it may hold. Raises InputError."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_NUMBERS):
            warnings.simplefilter("ignore")
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            _require_bounded(content)
    except PermissionError as error:
        raise InputError(f"{path} may not be read: {error.strerror}") from error
    except Exception as error:  # torch.load documents no closed set of errors
        raise InputError(f"{path} is not a readable checkpoint: it is damaged, or holds more than "
                         "tensors and plain values, which would not be safe to load") from error
    return content


def _check_archive(path):
    """Raise where a record is damaged, which torch.load does not look for, or where a small file
    would fill the memory: by a packed record, or a bytearray of any size, neither of which
    torch.save writes, but torch.load accepts."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() or any(record.compress_type != zipfile.ZIP_STORED
                                        for record in archive.infolist()):
                raise ValueError("damaged")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"bytearray") >= 0:
            raise ValueError("a bytearray")


class _Number:
    """Reads what NumPy wrote as one number: scalar(dtype, its bytes)."""
    def __new__(cls, kind, content):
        return struct.unpack(kind.order + _NUMBERS[kind.code], content)[0]


class _NumberType:
    """Reads numpy.dtype("i8"), with its byte order; refuses all that is no number."""
    def __init__(self, code, *_):
        if code not in _NUMBERS:
            raise ValueError(f"{code!r} is no number")
        self.code, self.order = code, "<"

    def __setstate__(self, state):
        self.order = ">" if state[1] == ">" else "<"


_NUMBERS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
            "u8": "Q", "f2": "e", "f4": "f", "f8": "d"}

# Stand-ins under the names that NumPy 1 and 2 write into files; none of NumPy's own code is called.
NUMPY_NUMBERS = [type("dtype", (_NumberType,), {"__module__": "numpy"})] + [
    type("scalar", (_Number,), {"__module__": f"numpy.{core}.multiarray"})
    for core in ("core", "_core")]


def is_plain(value):
    """Whether a value is made of what JSON knows."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _require_bounded(value, depth=50, items=2_000_000):
    """Raise ValueError where a value is nested deeply, or has endlessly many items because it
    holds the same list again and again. Returns how many more items there may be."""
    if isinstance(value, (dict, list, tuple)):
        items -= len(value)
        if depth == 0 or items < 0:
            raise ValueError("endless")
        for item in value.values() if isinstance(value, dict) else value:
            items = _require_bounded(item, depth - 1, items)
    return items


# ------------------------------------------------------------------------------- what a file holds


def describe(network, record):
    """A network in a few words."""
    kind = "pruned" if record.pruned else "unpruned"
    penalty = ", trained with the orthonormality penalty" if record.penalised else ""
    name = network.origin.name
    return f"{kind} {title_of(name)} (--model {name}){penalty}"


def check_holds(path, network, record, model=None, pruned=None, num_classes=None, width=None):
    """Raise InputError where the file holds another network than is wanted; None: any will do."""
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


def check_data(path, network, record, data):
    """Raise InputError where a network was trained on other classes or sizes than `data` has."""
    if len(data.classes) != network.origin.num_classes:
        raise InputError(f"{path} is a network for {network.origin.num_classes} classes; "
                         f"{data.name} has {len(data.classes)}")
    if list(record.classes or data.classes) != list(data.classes):
        raise InputError(f"{path} was trained on other classes ({', '.join(record.classes[:3])}, "
                         f"...) than {data.name} has ({', '.join(data.classes[:3])}, ...)")
    size = record.image_size or data.image_size
    if size != data.image_size:
        raise InputError(f"{path} was trained on images of {size} x {size}, not "
                         f"{data.image_size} x {data.image_size}; --image_size={size} fits it")
