"""Decoded images are kept in the user's cache folder, so that a data set is decoded only once.

A small file for each folder of images says which decoded images belong to it as long as no file's
name, size or time changes. The decoded images are named by the content of their files: the same
images in another place are found, too. They are rows of bytes in one file (.bytes), beside which
another (.json) says what they are.
"""
import hashlib
import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
import PIL

from common.errors import InputError
from common.files import write_atomically
from common.images import Images, bytes_of, copies, read_images, read_into
from common.machine import cores, memory
from common.pixels import FilePixels, in_memory
from common.seeds import seed_of
from common.threads import ahead

CACHE_FROM = 2000  # images of a folder; fewer are decoded in a second
VERSION = 4  # of what is kept, and of how images are read
MEMORY = 4  # the part of the machine's memory that images may take, 1 / MEMORY
STALE = 3600  # seconds after which a file that nobody has written to belongs to a dead run


def room():
    """Bytes of images that each process may hold in memory; larger data sets stay in a file."""
    return (memory() or 8e9) / MEMORY / copies()


def read_or_recall(root, parts, size, white=None, most=None):
    """The Images of {name: paths} below `root`, see `read_images`; many are decoded only once.
    most: bytes that may be held in memory, by default `room()`; more are FilePixels."""
    count, most = sum(map(len, parts.values())), room() if most is None else most
    if count < CACHE_FROM and bytes_of(count, size) <= most:
        return read_images(parts, size, white)
    more = ["heif"] if find_spec("pillow_heif") else []  # what else can be read
    kind = repr((VERSION, PIL.__version__, size, white, *more))
    stamps = _digest(chain([kind], *(chain([name], (
        repr((os.path.relpath(path, root), *_stamp(path))) for path in paths))
        for name, paths in parts.items())))
    folder = _folder()
    index = folder / f"{seed_of(str(root.resolve()), size, *parts):016x}.key"
    known, content = _read_index(index)
    if known == stamps and (images := _recall(folder, content, parts, size, most)):
        return images
    old, content = content, _content(kind, parts)
    images = _recall(folder, content, parts, size, most)
    try:
        if not images:
            _keep(folder, content, parts, size, white)
            images = _recall(folder, content, parts, size, most)
        write_atomically({index: f"{stamps} {content}".encode()})
        if old not in (None, content) and all(
                _read_index(other)[1] != old for other in folder.glob("*.key")):
            for suffix in (".bytes", ".json"):
                (folder / f"{old}{suffix}").unlink(missing_ok=True)
    except (OSError, InputError) as error:
        print(f"The decoded images could not be kept in {folder} "
              f"({getattr(error, 'strerror', None) or error}); the next run decodes them again")
    return images or read_images(parts, size, white)


def _folder():
    # "~" stays where there is no home: a folder of that name must not come into being.
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.devnull if home.startswith("~") else home) / "orthoreg"


def _digest(texts):
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def _stamp(file):
    try:
        status = os.stat(file)
    except OSError:
        return None, None, False
    return status.st_size, status.st_mtime_ns, os.access(file, os.R_OK)


def _content(kind, parts):
    """A digest of the content of all files, in order."""
    with ThreadPoolExecutor(cores()) as pool:
        return _digest(chain([kind], *(chain([name], (
            future.result() for future in ahead(pool, _file_digest, paths, 64)))
            for name, paths in parts.items())))[:32]


def _file_digest(path):
    if not os.path.isfile(path):
        return ""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        return repr(error.errno)


def _read_index(index):
    try:
        stamps, content = index.read_text().split()
        return stamps, content if content.isalnum() else None
    except (OSError, ValueError):
        return None, None


# ------------------------------------------------------------------------------ decoded images


class _Rows:
    """What `read_into` assigns images to: rows of a file, from byte `start`."""

    def __init__(self, file, start):
        self.file, self.start = file, start

    def __setitem__(self, number, image):
        self.file.seek(self.start + number * image.nbytes)
        self.file.write(np.ascontiguousarray(image).data)


def _keep(folder, content, parts, size, white):
    """Decode images into a file under a name that nobody can foresee, then put it in its place.
    Raises OSError, also where the disk has no room for them."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    starts = _starts(parts, size)
    needed, free = starts.pop(None), shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise OSError(f"they need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
                      "XDG_CACHE_HOME may name a larger disk")
    handle, name = tempfile.mkstemp(".tmp", dir=folder)
    try:
        with open(handle, "r+b", buffering=0) as file:
            file.truncate(needed)
            read = read_into({name: _Rows(file, start) for name, start in starts.items()}, parts,
                             size, white)
            os.fsync(file.fileno())
        os.replace(name, folder / f"{content}.bytes")
    finally:
        with suppress(OSError):
            os.unlink(name)
    write_atomically({folder / f"{content}.json": json.dumps(_by_place(read, parts)).encode()})


def _starts(parts, size):
    """{part: its first byte in the file, None: how long the file is}."""
    starts, place = {}, 0
    for name, paths in parts.items():
        starts[name], place = place, place + bytes_of(len(paths), size)
    return {**starts, None: place}


def _remove_stale(folder):
    """Remove what killed runs, and older versions of this suite, have left."""
    for file in (*folder.glob("*.tmp"), *folder.glob("*.pt")):
        with suppress(OSError):
            if file.suffix == ".pt" or time.time() - file.stat().st_mtime > STALE:
                file.unlink()


def _recall(folder, content, parts, size, most):
    """The Images that are kept under a name; None where they are not there, or of no use."""
    file = None
    with suppress(Exception):
        read = _by_path(json.loads((folder / f"{content}.json").read_bytes()), parts)
        file = open(folder / f"{content}.bytes", "rb", buffering=0)
        starts = _starts(parts, size)
        length = starts.pop(None)
        if os.fstat(file.fileno()).st_size == length:
            pixels = {name: FilePixels(file, start, len(parts[name]), size)
                      for name, start in starts.items()}
            if length > most:
                return read._replace(parts=pixels)
            read = read._replace(parts={name: in_memory(each, "cpu")
                                        for name, each in pixels.items()})
            file.close()
            return read
    if file:
        file.close()
    return None


def _by_place(images, parts):
    """Images as plain values, in which each file is called by its place, [part, number]: a file
    that is known by its content may have another path by now."""
    wanted = {*images.unreadable, *(path for _, path in images.remarks.values())}
    places = {path: [name, i] for name, paths in parts.items() for i, path in enumerate(paths)
              if path in wanted}
    return {"unreadable": [(places[path], reason) for path, reason in images.unreadable.items()],
            "white": images.white,
            "remarks": [(remark, count, places[path])
                        for remark, (count, path) in images.remarks.items()]}


def _by_path(kept, parts):
    return Images({}, {parts[name][i]: reason for (name, i), reason in kept["unreadable"]},
                  kept["white"],
                  {remark: (count, parts[name][i]) for remark, count, (name, i) in kept["remarks"]})
