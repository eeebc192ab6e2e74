"""What is in a file of weights, whoever wrote it. Nothing in a file is ever run."""

import json
import reprlib
import struct
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from common.errors import InputError
from common.files import short_digest
from common.libraries import lazy, need
from common.terminal import shortened
from lab.formats import SAFETENSORS, TORCH, kind_of, size_of
from lab.pickles import ENDLESS, Count, Refused

safetensors, safetensors_torch = lazy("safetensors"), lazy("safetensors.torch")  # optional

# Under what others keep a state dict, the first of these that a file has.
WRAPPINGS = (
    "net",
    "state_dict",
    "model",
    "model_ema",
    "module",
    "model_state_dict",
    "model_state",
    "state_dict_ema",
    "ema_state_dict",
    "params_ema",
    "params",
    "weights",
    "network",
    "ema",
)
COUNTERS = "total_ops", "total_params", "n_averaged"  # beside weights, of thop and of averages
DEEPEST = 4  # dicts in dicts in which a state dict is looked for


@dataclass(frozen=True)
class Weights:
    """What a file holds of a network, whoever wrote it.

    path: FILE, or FILE:PART. state: the state dict. entries: what stands beside it, where the file
    is a dict of several things. lines: which of several state dicts it is, and how to have the
    others. digest: a short text that tells the file's content from others, where it is asked for.
    network: the one that they are the weights of, where it has been built; see `lab.weights`.
    """

    path: str
    state: dict
    entries: dict = field(default_factory=dict)
    lines: list = field(default_factory=list)
    digest: str | None = None
    network: torch.nn.Module | None = None


def read_safely(path):
    """The dict of a network that this suite wrote, or published: its weights are under "net".
    Nothing in it is run: see `read_content`. Raises InputError."""
    content = read_content(path)
    if not isinstance(content, dict) or not isinstance(content.get("net"), dict):
        raise InputError(f"{path} is no checkpoint of a network: it has no weights under net")
    return content


def file_and_part(path):
    """(file, part) of FILE:PART, which names one of several state dicts in a file; without that
    the part is None."""
    file, _, part = str(path).rpartition(":")
    if part and file and not Path(path).exists() and Path(file).is_file():
        return file, part
    return str(path), None


def read_weights(path, digest=False):
    """The Weights in a file of others: its state dict, wherever it is, without counters.

    path: FILE, or FILE:PART, where PART says which state dict, by the keys that lead to it
    (`model.ema`), or by what stands before the names in it (`student`). digest: whether that of the
    file is taken. The file is opened once. Raises InputError.
    """
    file, part = file_and_part(path)
    content, known = _read(file, digest)
    states = dict(_state_dicts(content))
    prefix = _usual(states)
    if part is not None:
        prefix, state = _named(states, prefix, part)
        if not state:
            raise InputError(f"{file} has no {shortened([part])}{_has(states, content)}")
        entries = content if prefix == part else {}
        return Weights(path, _without_counters(state), entries, digest=known)
    if prefix is None:
        raise InputError(
            f"{path} holds no state dict, neither bare nor under "
            f"{shortened(WRAPPINGS, 5)}{_has(states, content)}"
        )
    others = [name for name in states if name != prefix and _is_network(states[name])]
    lines = []
    if others:
        lines = [
            f"{file} has several state dicts: that under {prefix} is taken; {file}:{others[0]} "
            f"takes the one under {others[0]}"
            + (f", and so do {shortened(others[1:])}" if others[1:] else "")
        ]
    state, entries = _without_counters(states[prefix]), content if prefix else {}
    return Weights(path, state, entries, lines, known)


def _named(states, usual, part):
    """(where it is, the state dict) that a part of a file names: a prefix, or what stands before
    the names of the one at a prefix, or at the usual one."""
    for prefix in sorted(states, key=len, reverse=True):
        if part == prefix:
            return prefix, states[prefix]
        if prefix and part.startswith(prefix + "."):
            return prefix, _below(states[prefix], part[len(prefix) + 1 :] + ".")
    return usual, _below(states.get(usual, {}), part + ".")


def _has(states, content):
    """What a file has instead, in words."""
    keys = shortened(map(reprlib.repr, content), 5) if isinstance(content, dict) else ""
    networks = [name for name in states if name and _is_network(states[name])]
    take = f"; FILE:{shortened(networks[:1])} takes the weights there" if networks else ""
    return f"; it has {keys}{take}" if keys else take


def _state_dicts(content, prefix="", deepest=DEEPEST):
    """(the keys that lead to it, the state dict) of all that hold a tensor. What an optimizer
    remembers is none."""
    if not isinstance(content, dict) or "param_groups" in content:
        return
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        yield prefix, content
    if not deepest:
        return
    for key, value in content.items():
        yield from _state_dicts(value, f"{prefix}.{key}" if prefix else str(key), deepest - 1)


def _usual(states):
    """The prefix of the state dict that is taken unless another one is named: the first usual one;
    "" for the file itself where there is none; None where there is neither."""
    usual = [prefix for prefix in states if prefix and set(prefix.split(".")) <= set(WRAPPINGS)]
    if usual:
        return min(usual, key=_rank)
    return "" if "" in states else None


def _rank(prefix):
    return [WRAPPINGS.index(key) for key in prefix.split(".")]


def _is_network(state):
    """Whether a state dict has matrices or kernels, as networks have, and metrics have not."""
    return any(isinstance(value, torch.Tensor) and value.ndim > 1 for value in state.values())


def _without_counters(state):
    return {
        str(key): tensor
        for key, tensor in state.items()
        if str(key).rpartition(".")[2] not in COUNTERS
    }


def _below(state, prefix):
    return {
        str(key)[len(prefix) :]: tensor
        for key, tensor in state.items()
        if str(key).startswith(prefix)
    }


def unwrapped(state, wanted):
    """(the part of a state dict below the one prefix, as in module._orig_mod.conv1.weight, below
    which most of the `wanted` names are; the names that stand beside it). Raises ValueError where
    two parts of it would do equally well."""
    fits = Counter()
    for key in state:
        fits.update(key[:start] for start in _beginnings(key) if key[start:] in wanted)
    best = [prefix for prefix in fits if fits[prefix] == max(fits.values())]
    outer = [prefix for prefix in best if not _is_inside(prefix, best)]
    if len(outer) > 1 and 2 * fits[outer[0]] > len(wanted):
        raise ValueError(
            f"it holds several networks, under {' and '.join(sorted(outer))}; "
            f"FILE:{min(outer).rstrip('.')} takes the first"
        )
    if len(outer) != 1 or not outer[0]:
        return state, []
    return _below(state, outer[0]), [key for key in state if not key.startswith(outer[0])]


def _is_inside(prefix, others):
    """Whether another of these prefixes is the beginning of this one."""
    return any(prefix != other and prefix.startswith(other) for other in others)


def _beginnings(key):
    """Where names may begin in a dotted one."""
    return [0, *(place + 1 for place, letter in enumerate(key) if letter == ".")]


def read_content(path):
    """What torch.save wrote to a file, or what a .safetensors file holds, its weights under "net".

    Nothing in it is run: tensors, plain values, NumPy's numbers, which are read as Python's, and
    containers, which are read as dicts or lists, are all that it may hold. What is to be built is
    counted before, see lab/pickles.py. Raises InputError.
    """
    return _read(path)[0]


def _read(path, digest=False):
    """(what `read_content` gives, the file's digest or None) of a file that is opened once."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"no checkpoint at {path}: it is a folder; name a file in it")
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        with open(path, "rb") as file:
            kind = kind_of(file)
            file.seek(0)
            known = short_digest(file) if digest else None
            if kind == SAFETENSORS:
                return _read_safetensors(path), known
            return _read_pickled(file, kind), known
    except PermissionError as error:
        raise InputError(f"{path} may not be read: {error.strerror}") from error
    except InputError:
        raise
    except Exception as error:  # torch.load documents no closed set of errors
        raise InputError(f"{path} is not a readable checkpoint: {_why(path, error)}") from error


def _read_pickled(file, kind):
    """What torch.save wrote, of an open file."""
    known = [(kind, name) for name, kind in STAND_INS.items()]
    with warnings.catch_warnings(), torch.serialization.safe_globals(known):
        warnings.simplefilter("ignore")
        count = _count_archive if kind == TORCH else _count_old
        count(file)
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
        _require_bounded(content)
        return content


def _why(path, error):
    """Why a file cannot be read safely, in words."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it is damaged
        unknown = []
    unknown = sorted(set(unknown) - STAND_INS.keys())
    if unknown:
        return (
            f"it holds {shortened(unknown)}, which would not be safe to load; if you trust it, "
            "load it in Python with torch.load(..., weights_only=False), and save its state "
            "dict"
        )
    if isinstance(error, Refused):
        return str(error)
    return "it is damaged, or holds more than tensors and plain values"


def _read_safetensors(path):
    need(f"{path}", "safetensors")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is no readable .safetensors file: {error}") from error
    entries = {}
    for key, value in metadata.items():
        try:
            entries[key] = json.loads(value)
        except ValueError:
            entries[key] = value  # text as it is
    if all(isinstance(entries.get(key), list) for key in ("mean", "std")):
        entries["normalize"] = [*entries.pop("mean"), *entries.pop("std")]
    return {**entries, "net": state}


def _count_archive(file):
    """Raise ValueError where a small archive would fill the memory or take for ever: by packed
    records, by one record under many names, which torch.load all accepts, or by what its pickle
    would build; and where a record is damaged, which torch.load does not look for."""
    size = size_of(file)
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = {record.filename.lower() for record in records}  # torch.load reads A as a
        if (
            len(names) < len(records)
            or sum(record.file_size for record in records) > size
            or any(record.compress_type != zipfile.ZIP_STORED for record in records)
        ):
            raise Refused("its records overlap or are packed, and torch.save writes neither")
        pickles = [record for record in records if record.filename.lower().endswith("/data.pkl")]
        if len(pickles) != 1 or archive.testzip():
            raise ValueError("damaged")
        count = Count(STAND_INS)
        with archive.open(pickles[0]) as pickled:
            count.read(pickled)
    if count.bytes > size:
        raise Refused("it names tensors that are larger than the file")


def _count_old(file):
    """The same of a file as torch.save wrote it before 1.6: a number, a version, the machine, the
    content and the tensors' names, five pickles, and then the tensors."""
    count = Count(STAND_INS)
    file.seek(0)
    for _ in range(5):
        count.read(file)
    if count.bytes > size_of(file):
        raise Refused("it names tensors that are larger than the file")


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


_NUMBERS = {
    "b1": "?",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f2": "e",
    "f4": "f",
    "f8": "d",
}


class _Bag(dict):
    """Reads a namespace, or another container of named values, as a dict."""

    def __init__(self, *_, **values):
        super().__init__(**values)

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.update(state)


class _Words(list):
    """Reads a path or a date as a list of what it was made of."""

    def __new__(cls, *parts):
        return super().__new__(cls)

    def __init__(self, *parts):
        super().__init__(parts)


_CONTAINERS = """
    argparse.Namespace types.SimpleNamespace easydict.EasyDict
    lightning_fabric.utilities.data.AttributeDict pytorch_lightning.utilities.parsing.AttributeDict
    lightning.fabric.utilities.data.AttributeDict lightning.pytorch.utilities.parsing.AttributeDict
    yacs.config.CfgNode addict.addict.Dict ml_collections.config_dict.config_dict.ConfigDict
"""
_PATHS_AND_DATES = """
    pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath
    pathlib._local.PosixPath pathlib._local.WindowsPath datetime.datetime datetime.date
    datetime.timedelta
"""
# Name in a file -> what is called instead of it; nothing of their own code is.
STAND_INS = {
    "numpy.dtype": _NumberType,
    "numpy.core.multiarray.scalar": _Number,
    "numpy._core.multiarray.scalar": _Number,  # since NumPy 2
    **dict.fromkeys(_CONTAINERS.split(), _Bag),
    **dict.fromkeys(_PATHS_AND_DATES.split(), _Words),
}


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
            raise Refused(ENDLESS)
        held = value.values() if isinstance(value, dict) else value
        for item in held:
            items = _require_bounded(item, depth - 1, items)
    return items
