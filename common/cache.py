"""Decoded images are kept in the user's cache folder, so that a data set is decoded only once.

A small file for each folder of images (.key) says which decoded images belong to it as long as no
file's name, size or times change. The decoded images are named by the content of their files: the
same images in another place are found, too. They are rows of bytes in one file (.bytes), beside
which another (.json) says what they are, with a checksum of each image and one of itself. What does
not fit its checksum, or is no file, is decoded again.
"""

import base64
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from contextlib import suppress
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
import PIL

from common.errors import InputError
from common.files import open_regular, sha256_of, write_atomically
from common.images import Images, bytes_of, copies, read_images, read_into
from common.machine import cores, memory
from common.pixels import FilePixels, in_memory
from common.seeds import seed_of
from common.terminal import print_notes
from common.threads import ahead, readers

CACHE_FROM = 2000  # images of a folder; fewer are decoded in a second
VERSION = 5  # of what is kept, and of how images are read
MEMORY = 4  # the part of the machine's memory that images may take, 1 / MEMORY
STALE = 3600  # seconds after which a file that nobody has written to belongs to a dead run


def room():
    """Bytes of images that each process may hold in memory; larger data sets stay in a file."""
    return (memory() or 8e9) / MEMORY / copies()


def read_or_recall(root, parts, fit, white=None, most=None):
    """The Images of {name: paths} below `root`, see `read_images`; many are decoded only once.
    most: bytes that may be held in memory, by default `room()`; more are FilePixels."""
    size = fit.size
    count, most = sum(map(len, parts.values())), room() if most is None else most
    if count < CACHE_FROM and bytes_of(count, size) <= most:
        return read_images(parts, fit, white)
    more = ["heif"] if find_spec("pillow_heif") else []  # what else can be read
    kind = repr((VERSION, PIL.__version__, _key_of(fit), white, *more))
    stamps = _stamps(kind, root, parts)
    folder = _folder()
    index = folder / f"{seed_of(str(root.resolve()), _key_of(fit), *parts):016x}.key"
    known, old = _read_index(index)
    if known == stamps and (images := _recall(folder, old, parts, size, most)):
        return images
    content, images = _content(kind, parts), None
    if (known, old) != (stamps, content):  # else it has been looked at
        images = _recall(folder, content, parts, size, most)
    try:
        if not images:
            _keep(folder, content, parts, fit, white)
            if _stamps(kind, root, parts) != stamps:
                _remove(folder, content)
                raise OSError("images were changed meanwhile")
            images = _recall(folder, content, parts, size, most)
        write_atomically({index: f"{stamps} {content}".encode()})
        if old not in (None, content) and all(
            _read_index(other)[1] != old for other in folder.glob("*.key")
        ):
            _remove(folder, old)
    except (OSError, InputError) as error:
        print_notes(
            [
                f"The decoded images could not be kept in {folder} "
                f"({getattr(error, 'strerror', None) or error}); the next run decodes them "
                "again"
            ],
            indent=0,
        )
    return images or read_images(parts, fit, white)


def _key_of(fit):
    """What names a Fit in the cache: one that is bilinear its size alone, by which caches are found
    that were made before there was a choice."""
    return fit.size if fit.interpolation == "bilinear" else tuple(fit)


def _folder():
    # "~" stays where there is no home: a folder of that name must not come into being.
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.devnull if home.startswith("~") else home) / "orthoreg"


def _digest(texts):
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def _stamps(kind, root, parts):
    """A digest of what the system knows of all files, in order."""
    start = os.path.join(root, "")
    return _digest(
        chain(
            [kind],
            *(
                chain([name], (repr((path.removeprefix(start), *_stamp(path))) for path in paths))
                for name, paths in parts.items()
            ),
        )
    )


def _stamp(file):
    try:
        status = os.stat(file)
    except OSError:
        return None, None, None, False
    # Tools that copy set the time of the content; that of the last change nobody can set.
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, os.access(file, os.R_OK)


def _content(kind, parts):
    """A digest of the content of all files, in order."""
    with readers(cores()) as pool:
        return _digest(
            chain(
                [kind],
                *(
                    chain(
                        [name], (future.result() for future in ahead(pool, _file_digest, paths, 64))
                    )
                    for name, paths in parts.items()
                ),
            )
        )[:32]


def _file_digest(path):
    if not os.path.isfile(path):
        return ""
    try:
        with open_regular(path) as file:
            return sha256_of(file)
    except OSError as error:
        return repr(error.errno)


def _read_index(index):
    try:
        stamps, content = _read(index, 1000).decode().split()
        return stamps, content if content.isalnum() else None
    except (OSError, ValueError):
        return None, None


def _read(path, most):
    """The bytes of a file. Raises OSError, and ValueError where there are more than `most`."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"{path.name} is too large")
        return file.read()


# ------------------------------------------------------------------------------ decoded images


class _Rows:
    """What `read_into` assigns images to: rows of a file from byte `start` on, and checksums."""

    def __init__(self, file, start, count, size):
        self.file, self.start = file, start
        self.sums = np.full(count, zlib.crc32(bytes(bytes_of(1, size))), "<u4")

    def __setitem__(self, number, image):
        image = np.ascontiguousarray(image)
        self.file.seek(self.start + number * image.nbytes)
        self.file.write(image.data)
        self.sums[number] = zlib.crc32(image)


def _keep(folder, content, parts, fit, white):
    """Decode images into a file under a name that nobody can foresee, then put it in its place.
    Raises OSError, also where the disk has no room for them."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    size = fit.size
    starts = _starts(parts, size)
    needed, free = starts.pop(None), shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise OSError(
            f"they need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
            "XDG_CACHE_HOME may name a larger disk"
        )
    handle, name = tempfile.mkstemp(".tmp", dir=folder)
    try:
        with open(handle, "r+b", buffering=0) as file:
            file.truncate(needed)
            rows = {
                name: _Rows(file, start, len(parts[name]), size) for name, start in starts.items()
            }
            read = read_into(rows, parts, fit, white)
            os.fsync(file.fileno())
            written = os.fstat(file.fileno()).st_mtime_ns
        os.replace(name, folder / f"{content}.bytes")
    finally:
        with suppress(OSError):
            os.unlink(name)
    description = _by_place(read, parts) | {
        "written": written,
        "sums": {name: base64.b64encode(part.sums).decode() for name, part in rows.items()},
    }
    write_atomically(
        {
            folder / f"{content}.json": json.dumps(
                description | {"checksum": _checksum(description)}
            ).encode()
        }
    )


def _checksum(description):
    return zlib.crc32(json.dumps(description, sort_keys=True).encode())


def _starts(parts, size):
    """{part: its first byte in the file, None: how long the file is}."""
    starts, start = {}, 0
    for name, paths in parts.items():
        starts[name], start = start, start + bytes_of(len(paths), size)
    return {**starts, None: start}


def _remove_stale(folder):
    """Remove what killed runs, and older versions of this suite, have left."""
    for file in (*folder.glob("*.tmp"), *folder.glob("*.pt")):
        with suppress(OSError):
            if file.suffix == ".pt" or time.time() - file.stat().st_mtime > STALE:
                file.unlink()


def _remove(folder, content):
    for suffix in (".bytes", ".json"):
        (folder / f"{content}{suffix}").unlink(missing_ok=True)


def _recall(folder, content, parts, size, most):
    """The Images that are kept under a name; None where they are not there, or are damaged, which
    is said."""
    path = folder / f"{content}.bytes"
    try:
        read, sums, written = _described(path.with_suffix(".json"), parts)
        file = open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (LookupError, TypeError):
        return _say_damaged(path, f"{content}.json holds something else")
    except (OSError, ValueError) as error:
        return _say_damaged(path, error)
    starts, status = _starts(parts, size), os.fstat(file.fileno())
    length = starts.pop(None)
    if status.st_size != length:
        file.close()
        return _say_damaged(path, "it was cut short")
    pixels = {name: FilePixels(file, start, sums[name], size) for name, start in starts.items()}
    try:
        if length <= most:
            with file:
                return read._replace(
                    parts={name: in_memory(part, "cpu") for name, part in pixels.items()}
                )
        if status.st_mtime_ns != written:  # by somebody else: all images are checked now
            for part in pixels.values():
                for _ in part.chunks():
                    pass
        return read._replace(parts=pixels)
    except InputError as error:
        file.close()
        return _say_damaged(path, error.__cause__)


def _say_damaged(path, reason):
    print_notes(
        [
            f"Note: the decoded images in {path} are damaged "
            f"({getattr(reason, 'strerror', None) or reason}), and are decoded again"
        ],
        indent=0,
    )


def _described(path, parts):
    """(Images without pixels, {part: checksums}, when they were written) from the file beside
    decoded images. Raises FileNotFoundError, and other errors where it holds something else."""
    count = sum(map(len, parts.values()))
    try:
        kept = json.loads(_read(path, 1_000_000 + 1000 * count))
    except RecursionError:
        kept = None
    description = {key: kept[key] for key in ("unreadable", "white", "remarks", "written", "sums")}
    if kept["checksum"] != _checksum(description):
        raise ValueError(f"{path.name} has changed on the disk")
    sums = {
        name: np.frombuffer(base64.b64decode(text), "<u4") for name, text in kept["sums"].items()
    }
    if {name: len(values) for name, values in sums.items()} != {
        name: len(paths) for name, paths in parts.items()
    }:
        raise ValueError(f"{path.name} is of other images")
    return _by_path(kept, parts), sums, kept["written"]


def _by_place(images, parts):
    """Images as plain values, in which each file is called by its place, [part, number]: a file
    that is known by its content may have another path by now."""
    wanted = {*images.unreadable, *(path for _, path in images.remarks.values())}
    places = {
        path: [name, i]
        for name, paths in parts.items()
        for i, path in enumerate(paths)
        if path in wanted
    }
    return {
        "unreadable": [(places[path], reason) for path, reason in images.unreadable.items()],
        "white": images.white,
        "remarks": [
            (remark, count, places[path]) for remark, (count, path) in images.remarks.items()
        ],
    }


def _by_path(kept, parts):
    return Images(
        {},
        {parts[name][i]: reason for (name, i), reason in kept["unreadable"]},
        kept["white"],
        {remark: (count, parts[name][i]) for remark, count, (name, i) in kept["remarks"]},
    )
