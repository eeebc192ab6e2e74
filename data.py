"""Images -> batches. A whole data set lives in memory as bytes, N x H x W x 3.

    data = load_data("digits")
    for images, labels in data.train_batches(128, key=(seed, "base", epoch)):
        ...                                     # images: B x 3 x H x W floats in [-1, 1]

Order and augmentation of an epoch follow from its key alone: the same key gives the same batches,
whatever ran before.
"""
import copy
import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torchvision import datasets

from common import images
from common.errors import InputError
from common.libraries import need
from common.seeds import seed_of

FOLDER = "data"  # where CIFAR is looked for and downloaded to
EVAL_PIXELS = {"cuda": 1 << 20}  # in a batch that is not trained on; elsewhere a quarter


@dataclass(frozen=True)
class Split:
    images: torch.Tensor  # uint8, N x H x W x 3
    labels: torch.Tensor  # int64, N

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageData:
    """A data set. `flip` says whether a mirrored image keeps its class."""
    name: str
    classes: tuple
    train: Split
    test: Split
    flip: bool = True
    validation: Split = None  # what `hold_out` took from the training images

    @cached_property
    def fingerprint(self):
        """A short text that tells this data set from another one of the same name."""
        digest = hashlib.sha256()
        for split in filter(None, (self.train, self.test, self.validation)):
            for tensor in (split.images, split.labels):
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    @property
    def image_size(self):
        return self.train.images.shape[1]

    @property
    def chosen_on(self):
        """Which images the best epoch is chosen on: "validation" where there are any, or "test"."""
        return "validation" if self.validation else "test"

    def to(self, device):
        return replace(self, train=self.train.to(device), test=self.test.to(device),
                       validation=self.validation and self.validation.to(device))

    def hold_out(self, percent, seed):
        """The same data with `percent` of each class's training images, drawn from `seed`, as
        validation images. Raises InputError where that is none of a class's images, or all."""
        if not percent:
            return self
        labels = self.train.labels.cpu()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(
            seed_of(seed, "validation")))
        held = torch.zeros(len(labels), dtype=torch.bool)
        for k, name in enumerate(self.classes):
            members = order[labels[order] == k]
            count = round(len(members) * percent / 100)
            if not 0 < count < len(members):
                raise InputError(f"--val_percent={percent} would hold out {count} of the "
                                 f"{len(members)} training images of class {name!r}; training and "
                                 "validation need one or more each")
            held[members[:count]] = True
        train, validation = (Split(self.train.images[part], self.train.labels[part])
                             for part in (~held, held))
        return replace(self, train=train, validation=validation)

    def train_batches(self, batch_size, key, count=None, balanced=False):
        """Augmented training batches, shuffled.

        key: tuple of numbers and strings that the random choices are drawn from.
        count: how many images (default, and at most, all). balanced: the same number of images of
        each class, `count // classes` or as many as the smallest class has.
        """
        seed = seed_of(*key)
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        if balanced:
            order = self._balanced(order, count or len(self.train))
        elif count:
            order = order[:count]
        return Batches(self.train, order, batch_size, seed, self.flip)

    def _balanced(self, order, count):
        labels = self.train.labels.cpu()
        each = min(count // len(self.classes), int(labels.bincount().min()))
        if not each:
            raise InputError(f"{count} images are less than one for each of the "
                             f"{len(self.classes)} classes; give a larger --imp_samples or "
                             "--eb_samples")
        chosen = torch.cat([order[labels[order] == k][:each] for k in range(len(self.classes))])
        return order[torch.isin(order, chosen)]

    def test_batches(self):
        return self.plain_batches(self.test)

    def choice_batches(self):
        """Those that the best epoch is chosen on."""
        return self.plain_batches(self.validation or self.test)

    @staticmethod
    def plain_batches(split):
        """All images of a split in order, as they are."""
        count = EVAL_PIXELS.get(split.images.device.type, 1 << 18) // split.images.shape[1] ** 2
        return Batches(split, torch.arange(len(split)), max(1, count))


class Batches:
    """Iterates over (images, labels) on the split's device; each iteration gives the same batches.

    images: float32, B x 3 x H x W in channels-last memory, pixels mapped from 0..255 to -1..1
    (mean and std 0.5); labels: int64, B. With a `seed`, each image is shifted by up to an eighth
    of its size (4 pixels at 32; black comes in) and, if `flip`, mirrored with probability 1/2.
    A last single image joins the batch before it, since BatchNorm cannot train on one.
    batches[i:j:k] are some of them; `share` takes some images of each.
    """

    def __init__(self, split, order, batch_size, seed=None, flip=False):
        self.split, self.order, self.batch_size = split, order, batch_size
        self.seed, self.flip, self.processes = seed, flip, 1
        self.parts = self._parts(least=2)  # of the order: the images of each batch

    def _parts(self, least):
        """Slices of `batch_size` images; a last one of fewer than `least` joins the one before."""
        count, size = len(self.order), self.batch_size
        starts = range(0, max(min(1, count), count - least + 1), size)
        return [slice(start, min(start + size, count)) for start in starts[:-1]] + [
            slice(start, count) for start in starts[-1:]]

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        selected = copy.copy(self)
        selected.parts = self.parts[index]
        return selected

    def share(self, number, count):
        """The part of process `number` of `count` in each of these batches: at least two images."""
        own = copy.copy(self)
        own.processes = count
        own.parts = [slice(part.start + number, part.stop, count)
                     for part in self._parts(least=2 * count)]
        return own

    def weight(self, b):
        """The factor for this process's mean loss over its share of batch `b`. With it, the mean
        over the processes is the mean over all images of the batch."""
        part = self.parts[b]
        first = part.start // self.batch_size * self.batch_size
        return len(range(*part.indices(part.stop))) * self.processes / (part.stop - first)

    def __iter__(self):
        images, labels = self.split.images, self.split.labels
        count, device, size = len(self.order), images.device, images.shape[1]
        order = self.order.to(device)
        pixels = torch.arange(size, device=device)
        if self.seed is not None:
            pad = size // 8
            generator = torch.Generator().manual_seed(seed_of(self.seed, "augmentation"))
            shifts = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).to(device)
            mirrored = torch.rand(count, generator=generator).to(device) < 0.5 * self.flip
        for part in self.parts:
            batch = images[order[part]]
            if self.seed is not None:
                batch = F.pad(batch, (0, 0, pad, pad, pad, pad))
                columns = torch.where(mirrored[part, None], pixels.flip(0), pixels)
                rows = pixels + shifts[0, part, None]
                columns = columns + shifts[1, part, None]
                members = torch.arange(len(batch), device=device)
                batch = batch[members[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield batch.float().div_(127.5).sub_(1).permute(0, 3, 1, 2), labels[order[part]]


# --------------------------------------------------------------------------------------- sources


def folder_of(data_path):
    """What stands before the names of the files that belong to a data set."""
    named = {"cifar100": "", "cifar10": "CIFAR10", "digits": "digits"}  # CIFAR-100 is the default
    name = str(data_path).lower()
    return named[name] if name in named else Path(data_path).resolve().name or "root"


def load_data(data_path, image_size=32, skip_bad_images=False):
    """Read a data set: "CIFAR100", "CIFAR10", "digits", or a folder of image folders.

    A folder has `train/` and `test/` (or `val/`), each with one folder of images per class; a raw
    Tiny-ImageNet download is recognised. All images become RGB of image_size x image_size.
    skip_bad_images: leave out image files that cannot be read, instead of raising.
    Raises InputError that says what is missing.
    """
    named = {"cifar100": _cifar, "cifar10": _cifar, "digits": _digits}
    name = str(data_path).lower()
    if name in named:  # a folder of that name is ./CIFAR100
        return named[name](name, image_size)
    if str(data_path) and Path(data_path).is_dir():
        return _image_folder(Path(data_path), image_size, skip_bad_images)
    raise InputError(f"--data_path: {str(data_path)!r} is neither a folder nor CIFAR100, CIFAR10 "
                     "or digits")


def _cifar(name, image_size):
    cls, archive = {"cifar100": (datasets.CIFAR100, "cifar-100-python.tar.gz"),
                    "cifar10": (datasets.CIFAR10, "cifar-10-python.tar.gz")}[name]
    try:
        parts = [cls(FOLDER, train=train) for train in (True, False)]
    except RuntimeError:  # not there, or damaged
        print(f"{cls.__name__} is not unpacked in {FOLDER}/: fetching it", flush=True)
        new = not Path(FOLDER).exists()
        try:
            parts = [cls(FOLDER, train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                if new:  # torchvision made it; only an empty folder goes
                    Path(FOLDER).rmdir()
            raise InputError(
                f"{cls.__name__} is not in {FOLDER}/ and could not be downloaded from {cls.url} "
                f"({error}); put {archive} into {Path(FOLDER).resolve()}, or use "
                "--data_path=digits, which needs no download") from error
    splits = [Split(_resized(torch.from_numpy(part.data), image_size), torch.tensor(part.targets))
              for part in parts]
    return ImageData(cls.__name__, tuple(parts[0].classes), *splits)


def _digits(_name, image_size):
    need("--data_path=digits", "sklearn.datasets")
    from sklearn.datasets import load_digits  # optional
    digits = load_digits()
    grey = torch.from_numpy(digits.images / 16 * 255).float()[..., None].expand(-1, -1, -1, 3)
    pixels, labels = _resized(grey, image_size), torch.from_numpy(digits.target).long()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    train, test = (Split(pixels[part], labels[part]) for part in (order[360:], order[:360]))
    return ImageData("digits", tuple(str(n) for n in digits.target_names), train, test,
                     flip=False)


def _resized(pixels, size):
    """N x H x W x 3 of any type -> uint8, N x size x size x 3."""
    def resize(part):
        if part.shape[1:3] != (size, size):
            part = F.interpolate(part.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear",
                                 antialias=True).permute(0, 2, 3, 1).round_()
        return part.to(torch.uint8).contiguous()
    images.require_memory(len(pixels), size)
    return torch.cat([resize(part) for part in pixels.split(1000)])  # floats of a part at a time


def _image_folder(root, image_size, skip_bad_images):
    files = {"train": images.class_folders(root, "train")}
    annotations = root / "val" / "val_annotations.txt"
    if annotations.is_file():  # Tiny-ImageNet as it is downloaded; its test/ has no labels
        files["test"] = images.annotated(annotations, files["train"])
    else:
        has_only_val = (root / "val").is_dir() and not (root / "test").is_dir()
        files["test"] = images.class_folders(root, "val" if has_only_val else "test")
    classes = _common_classes(root, files)
    paths = {part: [path for name in classes for path in found[name]]
             for part, found in files.items()}
    images.require_memory(sum(map(len, paths.values())), image_size)
    splits, unreadable = {}, {}
    for part, (pixels, damage) in images.read_or_recall(root, paths, image_size).items():
        labels = torch.tensor([k for k, name in enumerate(classes) for _ in files[part][name]])
        good = torch.tensor([path not in damage for path in paths[part]])
        splits[part] = Split(pixels[good] if damage else pixels, labels[good])
        unreadable |= damage
    if unreadable:
        _leave_out(root, unreadable, sum(map(len, paths.values())), skip_bad_images)
        _require_images(root, {(name, part): int((split.labels == k).sum())
                               for part, split in splits.items() for k, name in enumerate(classes)})
    return ImageData(folder_of(root.resolve()), classes, splits["train"], splits["test"])


def _common_classes(root, files):
    """The classes that both parts have, sorted. Raises InputError where they differ."""
    differing = sorted(set(files["train"]) ^ set(files["test"]))
    if differing:
        where = "train" if differing[0] in files["train"] else "test"
        raise InputError(f"{root}: class {differing[0]!r} is only in {where} "
                         f"({len(differing)} such classes); both must have the same classes")
    if len(files["train"]) < 2:
        raise InputError(f"{root}/train needs two or more folders, one for the images of each "
                         f"class; it has {len(files['train'])}")
    classes = tuple(sorted(files["train"]))
    _require_images(root, {(name, part): len(files[part][name]) for part in files
                           for name in classes})
    return classes


def _leave_out(root, unreadable, total, skip_bad_images):
    count = f"{len(unreadable):,} of {total:,} images"
    if not skip_bad_images:
        path, reason = next(iter(unreadable.items()))
        raise InputError(f"{root}: {count} cannot be read, the first is {path} ({reason}); mend "
                         "or remove them, or --skip_bad_images=True leaves them out")
    print(f"Left out: {count} cannot be read")
    for path, reason in list(unreadable.items())[:10]:
        print(f"  {path}: {reason}")
    if len(unreadable) > 10:
        print(f"  and {len(unreadable) - 10:,} more")


def _require_images(root, counts):
    for (name, part), count in counts.items():
        if not count:
            raise InputError(f"{root}: class {name!r} has no images in {part}")
