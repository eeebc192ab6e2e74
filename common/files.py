"""Files that hold the old or the new content, never half of it, and locks on them."""

import csv
import errno
import hashlib
import io
import json
import os
import socket
import stat
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from common.errors import InputError
from common.libraries import lazy
from common.signals import uninterrupted
from common.terminal import print_notes

filelock = lazy("filelock")

FORMULA = ("=", "+", "-", "@")  # what begins so is one to a spreadsheet
UMASK = os.umask(0)  # what permissions new files do not get
os.umask(UMASK)
# What a file system without locks answers.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


def to_json(value):
    """JSON bytes; null takes the place of NaN and infinity, which JSON does not know."""
    return json.dumps(
        json.loads(json.dumps(value), parse_constant=lambda _: None), indent=1
    ).encode()


def to_csv(rows):
    """CSV bytes of some dicts, under the names that any of them has. Text that a spreadsheet would
    take for a formula begins with an apostrophe."""
    text = io.StringIO()
    table = csv.DictWriter(
        text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n"
    )
    table.writeheader()
    for row in rows:
        table.writerow(
            {
                name: f"'{value}" if isinstance(value, str) and value[:1] in FORMULA else value
                for name, value in row.items()
            }
        )
    return text.getvalue().encode(errors="backslashreplace")  # a file's name may be no text


def digest_of(path):
    """A short text that tells a file's content from others. Raises InputError."""
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path}")
    try:
        with open(path, "rb") as file:
            return short_digest(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def short_digest(file):
    """What `digest_of` gives, of what is left to read in an open file."""
    return sha256_of(file)[:16]


def sha256_of(file):
    """The digest of what is left to read in an open file, in hexadecimal."""
    digest = hashlib.sha256()
    while block := file.read(1 << 22):  # a signal comes in between
        digest.update(block)
    return digest.hexdigest()


def open_regular(path):
    """A file, open for reading. Raises OSError where it cannot be read, or is none: a pipe waits
    for its other end, and a device may never end."""
    return open(path, "rb", buffering=0, opener=_regular)


def _regular(path, flags):
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("it is no file")
    return handle


def write_atomically(contents):
    """Write files, {path: bytes}: whatever happens, each holds what it held, or all of the new.

    All are on the disk, as new files under names that nobody can foresee, before the first takes
    its place; what lies there is replaced, and never followed. What a killed process left of them,
    the next one that holds the lock removes. Raises InputError where a folder cannot be written or
    the disk is full.
    """
    temporary, path, unchanged = {}, None, "; nothing there was changed"
    try:
        for path, content in zip(map(Path, contents), contents.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(".tmp", _temporary(path), path.parent)
            temporary[path] = Path(name)
            with open(handle, "wb") as file:
                if hasattr(os, "fchmod"):  # not on Windows
                    os.fchmod(handle, 0o666 & ~UMASK)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        with uninterrupted():
            for path in temporary:
                os.replace(temporary[path], path)
                unchanged = ""
        for folder in {path.parent for path in temporary}:
            _sync_folder(folder)
    except BaseException as error:
        for name in temporary.values():
            with suppress(OSError):
                name.unlink()
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write {path}: {error.strerror or error}{unchanged}"
            ) from error
        raise


def with_files_beside(path):
    """A result's file, and those that are written beside it."""
    return [path, path.with_suffix(".csv"), path.with_suffix(".json")]


def _temporary(path):
    """How the temporary names of a file begin."""
    return (
        f".{path.name}."
        if len(os.fsencode(path.name)) < 200
        else (f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.")
    )


def _remove_leftovers(path):
    """Remove temporary files that a killed process left of a file that is locked, and of what it
    writes beside it."""
    starts = list(map(_temporary, with_files_beside(path)))
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if name.endswith(".tmp") and any(
                name.startswith(start) and len(name) == len(start) + 8 + len(".tmp")
                for start in starts
            ):
                (path.parent / name).unlink()


def remove_irregular(path):
    """Remove what lies where a file is to be written or locked, and is none: a link or a pipe."""
    with suppress(OSError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            os.unlink(path)  # which a folder refuses


def _sync_folder(folder):
    """A new name is durable once its folder is; not every system can do this."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(file):
    """Raise InputError where `file` could not be written, whose folder need not exist yet."""
    if os.path.isdir(file):
        raise InputError(f"cannot write {file}: there is a folder of that name")
    folder = Path(file).parent
    path = Path(os.path.realpath(folder))
    existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}/: {existing} is no writable folder")


@contextmanager
def locked(paths, wait=False):
    """Hold the right to write `paths`. Where another run that lives holds one: wait until it ends,
    or raise InputError."""
    with ExitStack() as held:
        for path in sorted(set(map(Path, paths))):
            held.enter_context(_locked(path, wait))
        yield


@contextmanager
def _locked(path, wait):
    """The system lets go of a lock when its process ends, however it ends."""
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    remove_irregular(lock)
    holder = filelock.FileLock(lock, fallback_to_soft=False)
    try:
        _acquire(holder, path, lock, wait)
        _remove_leftovers(path)
        try:
            yield
        finally:
            with suppress(OSError):  # some systems keep what is open
                lock.unlink()  # while it is held: who waits for it notices
            holder.release()
    finally:
        for folder in new:
            with suppress(OSError):  # only empty ones go
                folder.rmdir()


def _acquire(holder, path, lock, wait):
    try:
        holder.acquire(timeout=-1 if wait else 0, poll_interval=1)
    except filelock.Timeout:
        raise InputError(
            f"{path} is being written by another run ({_words_in(lock)}); wait until "
            "it ends, or stop it"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(f"cannot lock {path}: {error.strerror or error}") from error
        _say_unlocked(path.parent)
    with suppress(OSError):
        lock.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")


def _words_in(lock):
    try:
        with open_regular(lock) as file:
            words = file.read(200).decode().strip()
    except (OSError, ValueError):
        words = ""
    return words or "its process is unknown"


@lru_cache
def _say_unlocked(folder):
    print_notes(
        [
            f"Note: the file system of {folder} has no locks, so nothing keeps another run "
            "from writing the same files at the same time"
        ]
    )
