"""Decoded images are kept in the user's cache folder, so that a data set is decoded only once.

A small file for each folder of images says which decoded images belong to it as long as no file's
name, size or time changes. The decoded images are named by the content of their files: the same
images in another place are found, too.
"""
import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import PIL
import torch

from common.images import Images, read_images
from common.machine import cores
from common.seeds import seed_of

CACHE_FROM = 2000  # images of a folder; fewer are decoded in a second
VERSION = 3  # of what is kept, and of how images are read


def read_or_recall(root, parts, size, white=None):
    """The Images of {name: paths} below `root`, see `read_images`; many are decoded only once."""
    if sum(map(len, parts.values())) < CACHE_FROM:
        return read_images(parts, size, white)
    kind = repr((VERSION, PIL.__version__, size, white))
    stamps = _digest(kind, *(repr((name, [(os.path.relpath(path, root), *_stamp(path))
                                          for path in paths])) for name, paths in parts.items()))
    folder = _folder()
    index = folder / f"{seed_of(str(root.resolve()), size, *parts):016x}.key"
    known, content = _read_index(index)
    if known == stamps and (images := _recall(folder, content, parts)):
        return images
    old, content = content, _content(kind, parts)
    kept = _recall(folder, content, parts)
    images = kept or read_images(parts, size, white)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not kept:
            _write(folder / f"{content}.pt",
                   lambda file: torch.save(_by_place(images, parts), file))
        _write(index, lambda file: file.write(f"{stamps} {content}".encode()))
        if old not in (None, content) and all(
                _read_index(other)[1] != old for other in folder.glob("*.key")):
            (folder / f"{old}.pt").unlink(missing_ok=True)
    except (OSError, RuntimeError):
        print(f"The decoded images could not be kept in {folder}; the next run decodes them again")
    return images


def _folder():
    # "~" stays where there is no home: a folder of that name must not come into being.
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.devnull if home.startswith("~") else home) / "orthoreg"


def _digest(*texts):
    return hashlib.sha256("\0".join(texts).encode(errors="surrogatepass")).hexdigest()


def _stamp(file):
    try:
        status = os.stat(file)
    except OSError:
        return None, None
    return status.st_size, status.st_mtime_ns


def _content(kind, parts):
    """A digest of the content of all files, in order."""
    with ThreadPoolExecutor(cores()) as pool:
        return _digest(kind, *(text for name, paths in parts.items()
                               for text in (name, *pool.map(_file_digest, paths))))[:32]


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


def _recall(folder, content, parts):
    """The Images that are kept under a name; None where they are not there, or of no use. They are
    read at once: the file may be replaced from another machine at any time."""
    with suppress(Exception):
        return _by_path(Images(**torch.load(folder / f"{content}.pt", weights_only=True)), parts)
    return None


def _by_place(images, parts):
    """Images as plain values, in which each file is called by its place, [part, number]: a file
    that is known by its content may have another path by now."""
    places = {path: [name, i] for name, paths in parts.items() for i, path in enumerate(paths)}
    return images._replace(
        unreadable=[(places[path], reason) for path, reason in images.unreadable.items()],
        remarks=[(remark, count, places[path])
                 for remark, (count, path) in images.remarks.items()])._asdict()


def _by_path(images, parts):
    return images._replace(
        unreadable={parts[name][i]: reason for (name, i), reason in images.unreadable},
        remarks={remark: (count, parts[name][i]) for remark, count, (name, i) in images.remarks})


def _write(path, write):
    """Write a file under a name that nobody can foresee, then put it in its place."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with open(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        with suppress(OSError):
            os.unlink(name)
