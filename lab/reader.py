"""What is in a file of weights, whoever wrote it. Nothing in a file is ever run."""
import json
import mmap
import reprlib
import struct
import tarfile
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from common.errors import InputError
from common.libraries import lazy, need
from common.terminal import shortened

safetensors, safetensors_torch = lazy("safetensors"), lazy("safetensors.torch")  # optional

# Under what others keep a state dict, the first of these that a file has.
WRAPPINGS = ("net", "state_dict", "model", "model_ema", "module", "model_state_dict", "model_state",
             "state_dict_ema", "ema_state_dict", "params_ema", "params", "weights", "network",
             "ema")
BEGINNINGS = {b"\x1f\x8b": "packed by gzip: unpack it first", b"<": "a web page, not weights",
              b"{": "a .safetensors file or JSON, by how it begins; name it so"}
COUNTERS = "total_ops", "total_params", "n_averaged"  # beside weights, of thop and of averages


def read_safely(path):
    """The dict of a network that this suite wrote, or published: its weights are under "net".
    Nothing in it is run: see `read_content`. Raises InputError."""
    content = read_content(path)
    if not isinstance(content, dict) or not isinstance(content.get("net"), dict):
        raise InputError(f"{path} is no checkpoint of a network: it has no weights under net")
    return content


def read_network(path):
    """The same for files of others: the state dict, wherever it is, is put under "net", without
    counters. Raises InputError."""
    content = state = read_content(path)
    while isinstance(state, dict):
        inside = next((state[key] for key in WRAPPINGS if isinstance(state.get(key), dict)), None)
        if inside is None:
            break
        state = inside
    if not isinstance(state, dict) or not any(
            isinstance(value, torch.Tensor) for value in state.values()):
        keys = shortened(map(reprlib.repr, content), 5) if isinstance(content, dict) else ""
        raise InputError(f"{path} holds no state dict, neither bare nor under "
                         f"{shortened(WRAPPINGS, 5)}" + (f"; it has {keys}" if keys else ""))
    state = {str(key): tensor for key, tensor in state.items()
             if str(key).rpartition(".")[2] not in COUNTERS}
    return {**(content if state is not content else {}), "net": state}


def unwrapped(state, wanted):
    """A state dict without what stands before its names, as in module._orig_mod.conv1.weight, where
    without it more of the `wanted` names are there. Raises ValueError where two parts of it would
    do equally well."""
    prefixes = {key[:-len(name)] for name in wanted for key in state
                if key.endswith(name) and (key == name or key[-len(name) - 1] == ".")}
    parts = {prefix: {key[len(prefix):]: tensor for key, tensor in state.items()
                      if key.startswith(prefix)} for prefix in sorted(prefixes)}
    fits = {prefix: len(part.keys() & wanted) for prefix, part in parts.items()}
    best = [prefix for prefix in fits if fits[prefix] == max(fits.values())]
    if len(best) > 1:
        raise ValueError(f"it holds several networks, under {' and '.join(best)}")
    if not best or not best[0]:
        return state
    return parts[best[0]] | {key: tensor for key, tensor in state.items()
                             if not key.startswith(best[0])}


def read_content(path):
    """What torch.save wrote to a file, or what a .safetensors file holds, its weights under "net".

    Nothing in it is run: tensors, plain values, NumPy's numbers, which are read as Python's, and
    containers, which are read as dicts or lists, are all that it may hold. Raises InputError.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        if path.suffix.lower() == ".safetensors":
            return _read_safetensors(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(STAND_INS):
            warnings.simplefilter("ignore")
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            _require_bounded(content)
    except PermissionError as error:
        raise InputError(f"{path} may not be read: {error.strerror}") from error
    except InputError:
        raise
    except Exception as error:  # torch.load documents no closed set of errors
        raise InputError(f"{path} is not a readable checkpoint: {_why(path)}") from error
    return content


def _why(path):
    """Why a file cannot be read safely, in words."""
    trust = "if you trust it, load it in Python with torch.load(..., weights_only=False), and save"
    try:
        if tarfile.is_tarfile(path):
            return f"it is a tar file, as PyTorch wrote until 2017; {trust} it again"
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it is damaged, or torch older than that function
        unknown = []
    unknown = sorted(set(unknown) - {f"{kind.__module__}.{kind.__qualname__}"
                                      for kind in STAND_INS})
    if unknown:
        return (f"it holds {shortened(unknown)}, which would not be safe to load; "
                f"{trust} its state dict")
    with open(path, "rb") as file:
        head = file.read(9)
    with suppress(Exception), zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return "it is a TorchScript archive; save the state dict of what torch.jit.load gives"
    for start, kind in BEGINNINGS.items():
        if head.startswith(start) or head[8:].startswith(start):
            return f"it is {kind}"
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


def _stand_ins(kind, names):
    return [type(name.rpartition(".")[2], (kind,), {"__module__": name.rpartition(".")[0]})
            for name in names.split()]


STAND_INS = NUMPY_NUMBERS + _stand_ins(_Bag, """
    argparse.Namespace types.SimpleNamespace easydict.EasyDict
    lightning_fabric.utilities.data.AttributeDict pytorch_lightning.utilities.parsing.AttributeDict
    lightning.fabric.utilities.data.AttributeDict lightning.pytorch.utilities.parsing.AttributeDict
    yacs.config.CfgNode addict.addict.Dict ml_collections.config_dict.config_dict.ConfigDict
    """) + _stand_ins(_Words, """
    pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath
    pathlib._local.PosixPath pathlib._local.WindowsPath datetime.datetime datetime.date
    datetime.timedelta
    """)


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
