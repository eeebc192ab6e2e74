"""Which image files a folder holds: its parts, their classes, and what is left out.

A data set is a folder with `train/`, and `test/` or a validation folder, each with one folder of
images per class; or one folder of images per class, of which a share becomes the test images.
"""

import hashlib
import os
import shlex
import unicodedata
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.images import is_image
from common.terminal import counted, print_notes, shortened

PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation"),
}
ANNOTATIONS = "val_annotations.txt"  # of a Tiny-ImageNet: image, tab, class, ...
DEEPEST = 50  # folders within folders
UNPACK = {
    ".zip": "python -m zipfile -e",
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"), "python -m tarfile -e"),
}
SHARDS = (".parquet", ".arrow", ".tfrecord", ".npz", ".npy", ".h5", ".hdf5", ".mat", ".mdb")
TABLES = (".csv", ".tsv", ".xlsx", ".jsonl", ".json")  # that may name classes
LINES = 'lab/README.md ("Images from tables") has a few lines that'

# What systems put beside a user's files, besides names that begin with a dot or an @.
SYSTEM = {
    "__MACOSX",
    "__pycache__",
    "#recycle",
    "#snapshot",
    "lost+found",
    "$RECYCLE.BIN",
    "RECYCLER",
    "System Volume Information",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
}


class Found(NamedTuple):
    """parts: "train", "test" and perhaps "validation" -> {class: its files, sorted}. notes: lines
    on what was chosen and what was left out."""

    parts: dict
    notes: list


def find_parts(root, test_percent=0):
    """The images of a data set. test_percent: the share of each class that becomes the test images
    where the folder has none. Raises InputError that says what is missing."""
    root, search = Path(root), _Search()
    folders = search.part_folders(root)
    training = folders.get("train") or (None if folders else root)
    if training is None or training == root and not test_percent:
        raise _no_training(root, folders)
    train = search.classes(training)
    testing = {
        part: files
        for part in ("test", "validation")
        if part in folders and any((files := search.labelled(folders[part], train)).values())
    }
    search.leave_out_empty(train, *testing.values())
    if len(train) < 2:
        search.tell()
        raise InputError(
            f"{training} needs two or more folders, one for the images of each class; it "
            f"has {len(train)}{what_to_do(training)}"
        )
    if test_percent and testing:
        names = " and ".join(f"{folders[part].name}/" for part in testing)
        raise InputError(
            f"--test_percent={test_percent} is for folders without test images; {root} has {names}"
        )
    if test_percent:
        parts = split(train, test_percent, root, search.notes)
        count, whole = (sum(map(len, files.values())) for files in (parts["test"], train))
        search.notes.append(
            f"Test images: {count:,} of the {whole:,} in {training} "
            f"(--test_percent={test_percent}), chosen by their names"
        )
        return Found(parts, search.told())
    if not testing:
        search.tell()
        raise InputError(
            f"{root} has no folder test/ or val/ with images of the training classes; "
            f"--test_percent=20 takes a fifth of each class in {training} for testing"
        )
    if len(testing) == 1:
        ((part, files),) = testing.items()
        if part == "validation":
            search.notes.append(f"Test images: those in {folders[part]}")
        testing = {"test": files}
    else:
        search.notes.append(
            f"Validation images, which choose the best epoch: those in {folders['validation']}"
        )
    return Found({"train": train, **testing}, search.told())


def find_test(root, classes=None):
    """The test images of a folder: those in its test/ or validation folder, or all of a folder of
    class folders. classes: what these are called; by default as in train/, where that is there.
    Raises InputError."""
    root, search = Path(root), _Search()
    folders = search.part_folders(root, classes or ())
    if classes is None:
        named = next((folders[part] for part in PARTS if part in folders), root)
        classes = [name for name, files in search.classes(named).items() if files]
    for part in ("test", "validation"):
        if part in folders and any((files := search.labelled(folders[part], classes)).values()):
            search.notes.append(f"The test images are those in {folders[part]}")
            search.leave_out_empty(files)
            return Found({"test": files}, search.told())
    files = {} if folders else search.labelled(root, classes)
    search.leave_out_empty(files)
    if not any(files.values()):
        search.tell()
        raise InputError(
            f"{root} has no test images of the network's classes ({shortened(classes)}"
            f"): it needs a folder for each class, in test/ or in itself"
            f"{what_to_do(root)}"
        )
    search.notes.append(
        f"Note: all images in {root} are measured; where the network was trained "
        "on some of them, the accuracy is too high"
    )
    return Found({"test": files}, search.told())


def split(classes, percent, root, notes):
    """{"train", "test"} of {class: files}: `percent` of each class's are for testing.

    They are chosen by their names below `root`, so that further images move few of the others. A
    class's single image is for training, which is added to `notes`.
    """
    train, test = {}, {}
    for name, files in classes.items():
        ranked = sorted(
            files,
            key=lambda file: hashlib.sha256(
                _nfc(os.path.relpath(file, root)).encode(errors="surrogateescape")
            ).digest(),
        )
        chosen = set(ranked[: share_of(len(files), percent)])
        test[name] = [file for file in files if file in chosen]
        train[name] = [file for file in files if file not in chosen]
        if len(files) == 1:
            notes.append(
                f"Note: class {name!r} has a single image, which is for training; it is not tested"
            )
    return {"train": train, "test": test}


def share_of(count, percent):
    """How many of `count` are `percent`: at least one, and not all, where there are two or more."""
    return min(max(1, round(count * percent / 100)), count - 1) if count else 0


def image_files(path):
    """The image files at a path: that file, or all below that folder, sorted. Raises InputError."""
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise InputError(f"there is no image or folder {path}")
        return [str(path)]
    search = _Search()
    files = search.images(str(path), set())
    search.tell()
    if not files:
        raise InputError(f"{path} holds no images")
    return files


def _no_training(root, folders):
    """What to say of a folder without training images."""
    others = [folder for folder in _visible_folders(root) if folder not in folders.values()]
    inside = [folder for folder in others if (folder / "train").is_dir()]
    if inside:
        return InputError(f"{root} has no folder train/, but {inside[0]} has")
    like = [folder for folder in others if any(map(is_image, _files_in(folder)))]
    if len(like) > 1 and not folders:
        return InputError(
            f"{root} has no folder train/. If {like[0].name}/ and {like[1].name}/ "
            "are classes, --test_percent=20 takes a fifth of each for testing"
        )
    names = shortened(f"{folder.name}/" for folder in _visible_folders(root))
    instead = f"; it has {names}" if names else ""
    return InputError(
        f"{root} has no folder train/{instead}. It needs train/ and test/, each with "
        "one folder of images per class, or --test_percent and one folder of images "
        f"per class{what_to_do(root)}"
    )


def what_to_do(path):
    """How images that are in no folders get there: what a message about a folder, or a file, ends
    with; "" where nothing is known."""
    files = [str(path)] if os.path.isfile(path) else _files_around(path)
    for file in files:
        for suffix, command in UNPACK.items():
            if file.lower().endswith(suffix):
                return (
                    f". {os.path.basename(file)} is an archive: unpack it, as by {command} "
                    f"{shlex.quote(file)} {shlex.quote(file[: -len(suffix)])}"
                )
    shard = next((file for file in files if file.lower().endswith(SHARDS)), None)
    if shard:
        return f". {LINES} write the images in files such as {os.path.basename(shard)} into folders"
    images = list(filter(is_image, files))
    loose = [file for file in images if os.path.dirname(file) == str(path)]
    said = f". {os.path.basename(loose[0])} and others are in no folder of a class" if loose else ""
    table = next((file for file in files if file.lower().endswith(TABLES)), None)
    if table and images:
        said += (
            f". If {os.path.basename(table)} has the classes of images, {LINES} bring them "
            "into folders"
        )
    return said


def _files_around(folder):
    """The first files in a folder, in its folders, and beside it where it is a part of a set."""
    near = [folder.parent] if folder.name.lower() in chain(*PARTS.values()) else []
    return [
        file
        for near_by in (folder, *_visible_folders(folder), *near)
        for file in sorted(_files_in(near_by))
    ]


def _files_in(folder):
    with suppress(OSError), os.scandir(folder) as entries:
        yield from (
            entry.path
            for entry in islice(entries, 100)
            if not _is_folder(entry) and not _hidden(entry.name)
        )


def _is_class(folder):
    """Whether a folder holds images rather than folders."""
    return not _visible_folders(folder) and any(map(is_image, _files_in(folder)))


def _visible_folders(root):
    return [
        folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not _hidden(folder.name) and not _of_system(folder.name)
    ]


def _hidden(name):
    return name.startswith(".")


def _of_system(name):
    return name in SYSTEM or name.startswith("@")


def composed(name):
    """The name of a class as text: accents within their letters, as most systems write them; what
    is no character, as in a folder's name in Latin-1, as an escape."""
    return _nfc(name).encode(errors="backslashreplace").decode()


def _nfc(name):
    return unicodedata.normalize("NFC", name)


def _require_alive(path):
    """Raise InputError where a path is a link whose end is not there."""
    if os.path.islink(path) and not os.path.exists(path):
        raise InputError(
            f"{path} is a link to {os.readlink(path)}, which is not there; mend or remove the link"
        )


class _Search:
    """A search through folders, which remembers what it left out."""

    def __init__(self):
        self.notes, self.others, self.system, self.loose = [], [], [], []
        self.within = {}  # class -> the folders in its folder, where that holds no images

    def tell(self):
        print_notes(self.told(), indent=0)
        self.notes = []

    def told(self):
        """All notes: on what was left out, and others."""
        if self.system:
            self.notes.insert(
                0,
                f"Left out: {counted(len(self.system), 'folder')} that a system "
                f"made; the first is {self.system[0]}",
            )
        if self.others:
            more = ""
            if any(str(path).lower().endswith((".heic", ".heif")) for path in self.others):
                more = "; pip install pillow-heif to read .heic"
            self.notes.insert(
                0,
                f"Left out: {counted(len(self.others), 'file')} that "
                f"{'is no image' if len(self.others) == 1 else 'are no images'}; "
                f"the first is {self.others[0]}{more}",
            )
        if self.loose:
            self.notes.insert(
                0,
                f"Left out: {counted(len(self.loose), 'image')} in no folder of a "
                f"class; the first is {self.loose[0]}",
            )
        if len(set(chain(*self.within.values()))) > 1:  # not one that all have, as images/
            folders = [f"{name}/{inner}/" for name, names in self.within.items() for inner in names]
            self.notes.append(
                f"Note: {shortened(f'{name}/' for name in self.within)} hold folders of images, "
                f"not images: {shortened(folders)}. If these are the classes, move them up; as it "
                f"is, all images below {next(iter(self.within))}/ are of one class"
            )
        self.others, self.system, self.loose, self.within = [], [], [], {}
        return self.notes

    def part_folders(self, root, classes=()):
        """{part: its folder} in a data set; none where there are folders of these classes."""
        classes = {composed(name) for name in classes}
        folders, passed = {}, []
        for path in root.iterdir():
            if path.name.lower() in chain(*PARTS.values()):
                _require_alive(path)
        for folder in _visible_folders(root):
            part = next(
                (part for part, names in PARTS.items() if folder.name.lower() in names), None
            )
            if part is None:
                passed.append(folder)
            elif part in folders:
                self.notes.append(f"Left out: {folder}, since {folders[part]} is there")
            else:
                folders[part] = folder
        if classes & {composed(folder.name) for folder in passed}:
            return {}  # also where a class is called train or test
        if "train" in folders and _is_class(folders["train"]) and any(map(_is_class, passed)):
            passed.append(folders.pop("train"))  # buses, cars and trains
        if folders and passed:
            names = shortened(f"{folder.name}/" for folder in passed)
            self.notes.append(f"Left out: {names} in {root}")
        return folders

    def leave_out_empty(self, *parts):
        """Take away classes that have no image in any part."""
        for name in dict.fromkeys(name for files in parts for name in files):
            if not any(files.get(name) for files in parts):
                self.notes.append(f"Left out: {name}/, which has no images")
                for files in parts:
                    files.pop(name, None)

    def classes(self, folder):
        """{class: its image files} of the folders in a folder."""
        classes, real = {}, {os.path.realpath(folder)}
        for entry in self.entries(folder):
            if not _is_folder(entry):
                if is_image(entry.path):
                    self.loose.append(entry.path)
                    continue
                _require_alive(entry.path)
                if entry.name != ANNOTATIONS:
                    self.others.append(entry.path)
                continue
            files, name = self.images(entry.path, real), composed(entry.name)
            classes.setdefault(name, []).extend(files)
            inner = [file[len(entry.path) + 1 :].partition(os.sep) for file in files]
            if inner and all(separator for _, separator, _ in inner):
                self.within.setdefault(name, list(dict.fromkeys(first for first, *_ in inner)))
        return classes

    def labelled(self, folder, names):
        """{class: its image files} of a folder with folders of these names, or with Tiny-ImageNet's
        list; else {}, with a note."""
        names = {composed(name) for name in names}
        folders = {composed(entry.name) for entry in self.entries(folder) if _is_folder(entry)}
        if folders & names:
            return self.classes(folder)
        if (folder / ANNOTATIONS).is_file():
            return self.annotated(folder / ANNOTATIONS, names)
        count = len(_Search().images(str(folder), set()))
        self.notes.append(
            f"Left out: {counted(count, 'image')} in {folder}, which has no folders "
            "of the training classes"
        )
        return {}

    def annotated(self, annotations, names):
        """{class: image files} by the list of images in a Tiny-ImageNet as it is downloaded."""
        files, others = {name: [] for name in sorted(names)}, []
        for number, line in enumerate(annotations.read_text(errors="replace").splitlines(), 1):
            file, _, rest = line.partition("\t")
            name = composed(rest.partition("\t")[0])
            if name in files:
                files[name].append(str(annotations.parent / "images" / file))
            elif line.strip():
                others.append(f"line {number}, {name!r}")
        if others:
            self.notes.append(
                f"Left out: {counted(len(others), 'line')} of {annotations} with "
                f"other classes than the {len(files)}; the first is {others[0]}"
            )
        return files

    def images(self, folder, parents):
        """The image files below a folder, sorted; links are followed, but not in circles. parents:
        the real paths of the folders on the way down."""
        real = os.path.realpath(folder)
        if real in parents:
            raise InputError(f"{folder} is a link to {real}, which holds it; remove the link")
        if len(parents) > DEEPEST:
            raise InputError(f"{folder} is more than {DEEPEST} folders deep")
        files = []
        for entry in self.entries(folder):
            if _is_folder(entry):
                files += self.images(entry.path, parents | {real})
            elif is_image(entry.path):
                files.append(entry.path)
            else:
                if "." not in entry.name:  # it may have been a folder of images
                    _require_alive(entry.path)
                self.others.append(entry.path)
        return files

    def entries(self, folder):
        """What is in a folder, sorted, without hidden things and those of systems."""
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: (_nfc(entry.name), entry.name))
        for entry in entries:
            if _hidden(entry.name):
                continue
            if not _of_system(entry.name):
                yield entry
            elif _is_folder(entry):
                self.system.append(entry.path)


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
