"""Images -> batches. A data set is bytes, N x H x W x 3, in memory or in a file (common/pixels.py).

    data = load_data("digits")
    for images, labels in data.train_batches(128, key=(seed, "base", epoch)):
        ...                                     # images: B x 3 x H x W floats in [-1, 1]

Order and augmentation of an epoch follow from its key alone: the same key gives the same batches,
whatever ran before.
"""

import hashlib
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch

from common.batches import EVAL_PIXELS, Batches, Split, plain_batches
from common.cache import read_or_recall
from common.errors import InputError
from common.folders import composed, find_parts, find_test, share_of, what_to_do
from common.images import Fit, describe
from common.pixels import FilePixels
from common.seeds import seed_of
from common.sources import COUNTS, NAMED
from common.terminal import counted, megabytes, printable, shortened
from config import NORMALIZATIONS

HALF = NORMALIZATIONS["half"]
CUT = 256 / 224  # images are kept at so many times the size where --augment=crop


@dataclass(frozen=True)
class ImageData:
    """A data set. `flip` says whether a mirrored image keeps its class."""

    name: str
    classes: tuple
    train: Split
    test: Split
    flip: bool = True
    validation: Split = None  # of a folder of their own, or what `hold_out` took from `train`
    normalize: tuple = HALF  # means and standard deviations of red, green and blue from 0 to 1
    white: dict = field(default_factory=dict)  # see common.images.Images
    augment: str = "shift"  # a key of AUGMENTS
    size: int = None  # pixels that a network gets; by default all that there are
    interpolation: str = "bilinear"  # see common.images.Fit
    notes: tuple = ()  # lines on what was chosen, left out, and read in an unusual way

    @cached_property
    def fingerprint(self):
        """A short text that tells this data set from another one of the same name."""
        digest = hashlib.sha256()
        for split in filter(None, (self.train, self.test, self.validation)):
            images = split.images
            chunks = images.chunks() if isinstance(images, FilePixels) else [images]
            for tensor in chain(chunks, [split.labels]):
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    @property
    def image_size(self):
        return self.size or self.test.images.shape[1]

    def place_text(self, batch_size):
        """Where the decoded images are, and how much memory they take at most, in words."""
        splits = [split.images for split in (self.train, self.test, self.validation) if split]
        whole = sum(images.numel() for images in splits)
        kept = next((images for images in splits if isinstance(images, FilePixels)), None)
        if kept is None:
            return f"{megabytes(whole)} in memory"
        # Two batches that were read ahead, and the one in use with what is made of it.
        largest = max(batch_size * kept[:1].numel(), 3 * EVAL_PIXELS["cuda"])
        return (
            f"{megabytes(whole)} in {printable(kept.file.name)}, of which at most "
            f"{megabytes(min(whole, 10 * largest))} in memory at a time"
        )

    @property
    def chosen_on(self):
        """Which images the best epoch is chosen on: "validation" where there are any, or "test"."""
        return "validation" if self.validation else "test"

    @cached_property
    def chance(self):
        """The training accuracy, in %, of the answer that is right most often."""
        return 100 * self.train.labels.bincount().max().item() / len(self.train)

    def balanced_weights(self):
        """A factor for each class's images, with which all classes count alike; 1 in the mean over
        all training images."""
        counts = self.train.labels.bincount(minlength=len(self.classes))
        return len(self.train) / (counts.count_nonzero() * counts.clamp_min(1).float())

    def to(self, device):
        return replace(
            self,
            **{
                part: split.to(device)
                for part in ("train", "test", "validation")
                if (split := getattr(self, part))
            },
        )

    def hold_out(self, percent, seed):
        """The same data with `percent` of each class's training images, drawn from `seed`, as
        validation images: at least one, but of a class that has a single image none.
        Raises InputError where there are validation images already."""
        if not percent:
            return self
        if self.validation:
            raise _has_validation(self.name, percent)
        labels, notes = self.train.labels.cpu(), list(self.notes)
        order = torch.randperm(
            len(labels), generator=torch.Generator().manual_seed(seed_of(seed, "validation"))
        )
        held = torch.zeros(len(labels), dtype=torch.bool)
        for k, name in enumerate(self.classes):
            members = order[labels[order] == k]
            count = share_of(len(members), percent)
            if count != round(len(members) * percent / 100):
                notes.append(
                    f"Note: --val_percent={percent} holds out {count} of the "
                    f"{counted(len(members), 'training image')} of class {name!r}"
                )
            held[members[:count]] = True
        train, validation = (
            Split(self.train.images[part], self.train.labels[part]) for part in (~held, held)
        )
        if not len(validation):
            raise InputError(f"--val_percent={percent} holds out nothing: no class has two images")
        return replace(self, train=train, validation=validation, notes=tuple(notes))

    def train_batches(self, batch_size, key, count=None, balanced=False, augmented=True):
        """Training batches, shuffled.

        key: tuple of numbers and strings that the random choices are drawn from.
        count: how many images (default, and at most, all). balanced: the same number of images of
        each class, `count // classes` or as many as the smallest class has. augmented: whether
        images are varied as `augment` says.
        """
        seed = seed_of(*key)
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        if balanced:
            order = self._balanced(order, count or len(self.train))
        elif count:
            order = order[:count]
        return Batches(
            self.train,
            order,
            batch_size,
            seed,
            self.flip,
            self.normalize,
            self.image_size,
            self.augment if augmented else "none",
        )

    def _balanced(self, order, count):
        labels = self.train.labels.cpu()
        per_class = min(count // len(self.classes), int(labels.bincount().min()))
        if not per_class:
            raise InputError(
                f"{count} images are less than one for each of the "
                f"{len(self.classes)} classes; give a larger --imp_samples or "
                "--eb_samples"
            )
        chosen = torch.cat(
            [order[labels[order] == k][:per_class] for k in range(len(self.classes))]
        )
        return order[torch.isin(order, chosen)]

    def test_batches(self):
        return self.plain_batches(self.test)

    def choice_batches(self):
        """Those that the best epoch is chosen on."""
        return self.plain_batches(self.validation or self.test)

    def plain_batches(self, split):
        """All images of a split in order, not augmented."""
        return plain_batches(split, self.normalize, self.image_size)


def stored_size(size, augment):
    """The size at which images are kept that a network gets at `size`."""
    return round(size * CUT) if augment == "crop" else size


@dataclass(frozen=True)
class Preparation:
    """How the images of a data set are read, and become what a network gets.

    image_size: pixels, height and width. normalize: a name of NORMALIZATIONS, or its six numbers,
    which it becomes. white: see common.images.Images. augment: how training images are varied, a
    key of AUGMENTS. flip: whether they are mirrored, too, where the data set allows it.
    test_percent: how much of each class becomes the test images of a folder that has none.
    skip_bad_images: leave out image files that cannot be read, instead of raising. memory: bytes
    that the images of a folder may take there, see `common.cache.room`. interpolation: how images
    are scaled, see `common.images.Fit`.
    """

    image_size: int = 32
    normalize: str | tuple = HALF
    white: dict | None = None
    augment: str = "shift"
    flip: bool = True
    test_percent: int = 0
    skip_bad_images: bool = False
    memory: float | None = None
    interpolation: str = "bilinear"

    def __post_init__(self):
        object.__setattr__(self, "normalize", normalization_of(self.normalize))

    @property
    def fit(self):
        """The Fit by which images become those that are kept."""
        return Fit(stored_size(self.image_size, self.augment), self.interpolation)

    @property
    def of_images(self):
        """The fields of an ImageData that say how its images and its batches are made."""
        return {
            "normalize": self.normalize,
            "augment": self.augment,
            "size": self.image_size,
            "interpolation": self.interpolation,
        }


# --------------------------------------------------------------------------------------- sources


def folder_of(data_path):
    """What stands before the names of the files that belong to a data set."""
    named = {"cifar100": "", "cifar10": "CIFAR10", "digits": "digits"}  # CIFAR-100 is the default
    name = str(data_path).lower()
    return named[name] if name in named else os.path.basename(os.path.realpath(data_path)) or "root"


def load_data(data_path, image_size=32, **settings):
    """Read a data set: "CIFAR100", "CIFAR10", "digits", or a folder of image folders.

    A folder has `train/`, and `test/` or `val/` or both, each with one folder of images per class;
    see common/folders.py. Where both are there, `val/` has the validation images. All images become
    RGB of image_size x image_size. settings: further fields of a Preparation, by their names, as in
    `test_percent=20`. Returns an ImageData. Raises InputError that says what is missing.
    """
    return load_prepared(data_path, Preparation(image_size, **settings))


def load_prepared(data_path, preparation):
    """The same with a Preparation."""
    if (name := str(data_path).lower()) in NAMED:  # a folder of that name is ./CIFAR100
        _require_own_test(data_path, preparation.test_percent)
        source = NAMED[name](preparation.fit)
        return ImageData(
            source.name,
            source.classes,
            Split(*source.train),
            Split(*source.test),
            flip=preparation.flip and source.flip,
            **preparation.of_images,
        )
    root = _folder_at(data_path)
    folder = find_parts(root, preparation.test_percent)
    classes = _common_classes(root, folder.parts, preparation.test_percent)
    return _read_folder(root, folder, classes, preparation)


def count_images(data_path, test_percent=0, val_percent=0):
    """{"train", "test", "validation": how many images, "classes"} of a data set, without reading
    one; those that `val_percent` will hold out are still in "train". Raises InputError as
    `load_data` and `hold_out` do."""
    if (name := str(data_path).lower()) in NAMED:
        _require_own_test(data_path, test_percent)
        return dict(zip(("classes", "train", "test"), COUNTS[name]))
    root = _folder_at(data_path)
    parts = find_parts(root, test_percent).parts
    if val_percent and "validation" in parts:
        raise _has_validation(folder_of(root), val_percent)
    classes = _common_classes(root, parts, test_percent)
    return {
        "classes": len(classes),
        **{part: sum(map(len, files.values())) for part, files in parts.items()},
    }


def _require_own_test(data_path, test_percent):
    if test_percent:
        raise InputError(
            f"--test_percent={test_percent}: {data_path} has test images of its own; leave it out"
        )


def _has_validation(name, val_percent):
    return InputError(
        f"--val_percent={val_percent}: {name} has validation images of its own; "
        "leave out --val_percent"
    )


def normalization_of(value):
    """The six numbers that a name of NORMALIZATIONS stands for, or that are given, as a tuple."""
    return NORMALIZATIONS[value] if isinstance(value, str) else tuple(value)


def load_test(data_path, preparation, classes=None):
    """The test images of a data set: an ImageData without training images. A folder may have test
    images alone, of which none are split off. preparation: a Preparation. classes: those of a
    network, of which some may be missing; by default those that there are. Raises InputError."""
    if str(data_path).lower() in NAMED:
        whole = load_prepared(data_path, replace(preparation, test_percent=0))
        return replace(whole, train=None)
    root = _folder_at(data_path)
    folder = find_test(root, classes)
    classes = tuple(map(composed, classes or sorted(folder.parts["test"])))
    unknown = sorted(folder.parts["test"].keys() - set(classes))
    if unknown:
        raise InputError(
            f"{root}: class {unknown[0]!r} is none of the network's ({shortened(classes)})"
        )
    missing = [name for name in classes if not folder.parts["test"].get(name)]
    if missing:
        folder.notes.append(
            f"Note: {root} has no test images of "
            f"{counted(len(missing), 'class', 'classes')}: {shortened(missing)}"
        )
    return _read_folder(root, folder, classes, preparation)


def _folder_at(data_path):
    try:
        if str(data_path) and Path(data_path).is_dir():
            return Path(data_path)
    except (OSError, ValueError):  # a link to itself, a name that cannot be
        pass
    more = what_to_do(data_path) if data_path and os.path.isfile(data_path) else ""
    raise InputError(
        f"--data_path: {str(data_path)!r} is neither a folder nor CIFAR100, CIFAR10 or digits{more}"
    )


def _read_folder(root, folder, classes, preparation):
    paths = {part: _by_class(files, classes) for part, files in folder.parts.items()}
    read = read_or_recall(root, paths, preparation.fit, preparation.white, preparation.memory)
    notes, splits = [*folder.notes, *describe(read)], {}
    for part, files in folder.parts.items():
        counts = torch.tensor([len(files.get(name, ())) for name in classes])
        labels = torch.arange(len(classes)).repeat_interleave(counts)
        good = torch.tensor([path not in read.unreadable for path in paths[part]], dtype=torch.bool)
        pixels = read.parts[part]
        splits[part] = Split(pixels[good] if read.unreadable else pixels, labels[good])
    if read.unreadable:
        total = sum(map(len, paths.values()))
        notes += _left_out(root, read.unreadable, total, preparation.skip_bad_images)
        _require_images(root, splits, classes, folder.parts)
    return ImageData(
        folder_of(root.resolve()),
        classes,
        splits.get("train"),
        splits["test"],
        validation=splits.get("validation"),
        flip=preparation.flip,
        white=read.white,
        notes=tuple(notes),
        **preparation.of_images,
    )


def _by_class(files, classes):
    """The paths in {class: paths}, one class after the other."""
    return list(chain.from_iterable(files.get(name, ()) for name in classes))


def _common_classes(root, parts, test_percent=0):
    """The classes that all parts have, sorted; validation images, and test images that are a share
    of the training images, may lack some. Raises InputError where they differ."""
    train = parts["train"]
    for part, files in parts.items():
        differing = set(files) - set(train)
        if part != "validation":
            differing |= set(train) - set(files)
        if differing := sorted(differing):
            where = "train" if differing[0] in train else part
            raise InputError(
                f"{root}: class {differing[0]!r} is only in {where} "
                f"({len(differing)} such classes); both must have the same classes"
            )
    filled = ("train",) if test_percent else ("train", "test")
    for part in filled:
        for name in sorted(train):
            _require_image(root, name, part, len(parts[part][name]))
    return tuple(sorted(train))


def _left_out(root, unreadable, total, skip_bad_images):
    """Lines on images that cannot be read. Raises InputError unless they are to be skipped."""
    count = f"{len(unreadable):,} of {total:,} images"
    if not skip_bad_images:
        path, reason = next(iter(unreadable.items()))
        raise InputError(
            f"{root}: {count} cannot be read, the first is {path} ({reason}); mend "
            "or remove them, or --skip_bad_images=True leaves them out"
        )
    more = [f"  and {len(unreadable) - 10:,} more"] if len(unreadable) > 10 else []
    return [
        f"Left out: {count} cannot be read",
        *(f"  {path}: {reason}" for path, reason in list(unreadable.items())[:10]),
        *more,
    ]


def _require_images(root, splits, classes, files):
    for part in {"train", "test"} & splits.keys():
        counts = splits[part].labels.bincount(minlength=len(classes)).tolist()
        if "train" in splits:
            for name, count in zip(classes, counts):
                _require_image(root, name, part, count or not files[part][name])
        elif not sum(counts):
            raise InputError(f"{root} has no test images that can be read")


def _require_image(root, name, part, count):
    if not count:
        raise InputError(f"{root}: class {name!r} has no images in {part}")
