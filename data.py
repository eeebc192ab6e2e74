"""Images -> batches. A whole data set lives in memory as bytes, N x H x W x 3.

    data = load_data("digits")
    for images, labels in data.train_batches(128, key=(seed, "base", epoch)):
        ...                                     # images: B x 3 x H x W floats in [-1, 1]

Order and augmentation of an epoch follow from its key alone: the same key gives the same batches,
whatever ran before.
"""
import copy
import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from config import InputError, counted, processes, progress

FOLDER = "data"  # where CIFAR is looked for and downloaded to
EVAL_PIXELS = {"cuda": 1 << 20}  # in a batch that is not trained on; elsewhere a quarter
CACHE_FROM = 2000  # images of a folder; fewer are decoded in a second
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


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
            images = order[labels[order] == k]
            count = round(len(images) * percent / 100)
            if not 0 < count < len(images):
                raise InputError(f"--val_percent={percent} of the {len(images)} training images of "
                                 f"class {name!r} are {count}; both parts need some")
            held[images[:count]] = True
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
            raise InputError(f"{count} images are less than one for each of the {len(self.classes)} "
                             "classes, which grasp needs; give a larger --imp_samples or --eb_samples")
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
        pixels = EVAL_PIXELS.get(split.images.device.type, 1 << 18)
        return Batches(split, torch.arange(len(split)), max(1, pixels // split.images.shape[1] ** 2))


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

    def __getitem__(self, which):
        some = copy.copy(self)
        some.parts = self.parts[which]
        return some

    def share(self, number, count):
        """The same batches, of each of which this is the part of process `number` of `count`: at
        least two images."""
        some = copy.copy(self)
        some.processes = count
        some.parts = [slice(part.start + number, part.stop, count)
                      for part in self._parts(least=2 * count)]
        return some

    def weight(self, b):
        """What the mean over this process's share of batch `b` counts in the mean over the
        processes, if that is to be the mean over the images of the whole batch."""
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
                which = torch.arange(len(batch), device=device)
                batch = batch[which[:, None, None], rows[:, :, None], columns[:, None, :]]
            yield batch.float().div_(127.5).sub_(1).permute(0, 3, 1, 2), labels[order[part]]


def shared(batches):
    """Those of some batches that are this process's; all together have each of them once."""
    number, count = processes()
    return batches[number::count] if count > 1 else batches


def sum_over_processes(*tensors):
    """Add up each tensor, in place, over the processes that torchrun has started."""
    if processes()[1] > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def seed_of(*key):
    """A 63-bit seed that depends on every part of `key` (numbers and strings)."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


# ------------------------------------------------------------------------------------- sources


def folder_of(data_path):
    """What stands before the names of the files that belong to a data set."""
    known = {"cifar100": "", "cifar10": "CIFAR10", "digits": "digits"}  # CIFAR-100 is at home
    name = str(data_path).lower()
    return known[name] if name in known else Path(data_path).resolve().name or "root"


def load_data(data_path, image_size=32, skip_bad_images=False):
    """Read a data set: "CIFAR100", "CIFAR10", "digits", or a folder of image folders.

    A folder has `train/` and `test/` (or `val/`), each with one folder of images per class; a raw
    Tiny-ImageNet download is recognised. All images become RGB of image_size x image_size.
    skip_bad_images: leave out image files that cannot be read, instead of raising.
    Raises InputError that says what is missing.
    """
    known = {"cifar100": _cifar, "cifar10": _cifar, "digits": _digits}
    if str(data_path).lower() in known:  # a folder of that name is ./CIFAR100
        return known[str(data_path).lower()](str(data_path).lower(), image_size)
    if str(data_path) and Path(data_path).is_dir():
        return _image_folder(Path(data_path), image_size, skip_bad_images)
    raise InputError(f"--data_path: {str(data_path)!r} is neither a folder nor CIFAR100, CIFAR10 or "
                     "digits")


def _cifar(name, image_size):
    from torchvision import datasets
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
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("--data_path=digits are scikit-learn's digits; install it with: "
                         "pip install scikit-learn") from error
    digits = load_digits()
    grey = torch.from_numpy(digits.images / 16 * 255).float()[..., None].expand(-1, -1, -1, 3)
    images, labels = _resized(grey, image_size), torch.from_numpy(digits.target).long()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    train, test = (Split(images[part], labels[part]) for part in (order[360:], order[:360]))
    return ImageData("digits", tuple(str(n) for n in digits.target_names), train, test,
                     flip=False)


def _resized(images, size):
    """N x H x W x 3 of any type -> uint8, N x size x size x 3."""
    def resize(part):
        if part.shape[1:3] != (size, size):
            part = F.interpolate(part.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear",
                                 antialias=True).permute(0, 2, 3, 1).round_()
        return part.to(torch.uint8).contiguous()
    _require_memory(len(images), size)
    return torch.cat([resize(part) for part in images.split(1000)])  # floats of a part at a time


def _image_folder(root, image_size, skip_bad_images):
    train = _class_folders(root, "train")
    annotations = root / "val" / "val_annotations.txt"
    if annotations.is_file():  # Tiny-ImageNet as it is downloaded; its test/ has no labels
        test = _annotated(annotations, train)
    else:
        test = _class_folders(root, "test" if (root / "test").is_dir() or
                              not (root / "val").is_dir() else "val")
    differing = sorted(set(train) ^ set(test))
    if differing:
        where = "train" if differing[0] in train else "test"
        raise InputError(f"{root}: class {differing[0]!r} is only in {where} "
                         f"({len(differing)} such classes); both must have the same classes")
    if len(train) < 2:
        raise InputError(f"{root}/train needs two or more folders, one for the images of each "
                         f"class; it has {len(train)}")
    classes, parts = tuple(sorted(train)), {"train": train, "test": test}
    _require_images(root, {(name, part): len(files[name]) for part, files in parts.items()
                           for name in classes})
    _require_memory(sum(map(len, (*train.values(), *test.values()))), image_size)
    paths = {part: [path for name in classes for path in files[name]]
             for part, files in parts.items()}
    decoded = _decoded(root, paths, image_size)
    splits, bad = {}, {}
    for part, files in parts.items():
        images, damage = decoded[part]
        labels = torch.tensor([k for k, name in enumerate(classes) for _ in files[name]])
        good = torch.tensor([path not in damage for path in paths[part]])
        splits[part] = Split(images[good] if damage else images, labels[good])
        bad.update(damage)
    if bad:
        count = f"{len(bad):,} of {sum(map(len, splits.values())) + len(bad):,} images"
        path, reason = next(iter(bad.items()))
        if not skip_bad_images:
            raise InputError(f"{root}: {count} cannot be read, the first is {path} ({reason}); mend "
                             "or remove them, or --skip_bad_images=True leaves them out")
        print(f"Left out: {count} cannot be read")
        for path, reason in list(bad.items())[:10]:
            print(f"  {path}: {reason}")
        if len(bad) > 10:
            print(f"  and {len(bad) - 10:,} more")
        _require_images(root, {(name, part): int((split.labels == k).sum())
                               for part, split in splits.items() for k, name in enumerate(classes)})
    return ImageData(folder_of(root.resolve()), classes, splits["train"], splits["test"])


def _require_images(root, counts):
    for (name, part), count in counts.items():
        if not count:
            raise InputError(f"{root}: class {name!r} has no images in {part}")


def _require_memory(count, image_size):
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if processes()[1] > 1 else 1  # each has them all
    needed = here * count * image_size ** 2 * 3
    with suppress(AttributeError, OSError, ValueError):  # not every system tells
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > 0.8 * there:
            raise InputError(
                f"{count:,} images of {image_size} x {image_size} need {needed / 1e9:.1f} "
                f"GB, and this machine has {there / 1e9:.1f} GB; a smaller --image_size needs less")


def _annotated(annotations, classes):
    """Tiny-ImageNet's list of test images: {class: files}."""
    files = {name: [] for name in classes}
    for number, line in enumerate(annotations.read_text(errors="replace").splitlines(), 1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        if name not in files:
            raise InputError(f"{annotations}, line {number}: {name!r} is none of the "
                             f"{len(files)} classes in train/")
        files[name].append(str(annotations.parent / "images" / file))
    return files


def _class_folders(root, part):
    """{class: sorted image files under root/part/class}."""
    if not (root / part).is_dir():
        raise InputError(f"{root} has no folder {part}/; it needs train/ and test/, each with one "
                         "folder of images per class")
    found, others = {}, []
    for folder in sorted((root / part).iterdir()):
        if folder.name.startswith("."):
            continue
        if not folder.is_dir():
            others.append(folder)
            continue
        files = _files_under(folder, {str((root / part).resolve())})
        found[folder.name] = [file for file in files if _suffix(file) in SUFFIXES]
        others += [file for file in files if _suffix(file) not in SUFFIXES]
    if others:
        print(f"Left out: {counted(len(others), 'file')} in {root / part} with other names than images "
              f"have, the first is {others[0]}")
    return found


def _suffix(file):
    return os.path.splitext(file)[1].lower()


def _files_under(folder, above):
    """The paths of all files below a folder, sorted, hidden ones left out; links are followed, but
    not in circles. `above`: where the way down has been."""
    here = os.path.realpath(folder)
    if here in above:
        raise InputError(f"{folder} is a link to {here}, which holds it; remove the link")
    if len(above) > 50:
        raise InputError(f"{folder} is more than 50 folders deep")
    files = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith("."):
                files += (_files_under(entry.path, above | {here}) if _is_folder(entry)
                          else [entry.path])
    return files


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _decoded(root, paths, image_size):
    """{part: (images, {path: why not})} of the files of each part.

    Many images are decoded only once: they are kept in the user's cache folder, and taken from
    there as long as no file's name, size or time has changed.
    """
    if sum(map(len, paths.values())) < CACHE_FROM:
        return {part: read_images(files, image_size, part) for part, files in paths.items()}
    from PIL import __version__
    key = repr((1, __version__, image_size, {part: [(file, *_stamp(file)) for file in files]
                                             for part, files in paths.items()}))
    key = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    name = seed_of(str(root.resolve()), image_size)
    # "~" stays where there is no home: a folder of that name must not come into being.
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache = Path(os.devnull if home.startswith("~") else home) / "orthoreg"
    path = cache / f"{name:016x}.pt"
    with suppress(Exception):  # not there, or of no use
        content = torch.load(path, weights_only=True, mmap=True)
        if content["key"] == key:
            return content["decoded"]
    decoded = {part: read_images(files, image_size, part) for part, files in paths.items()}
    half = path.with_suffix(f".{os.getpid()}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(half, "wb") as file:
            torch.save({"key": key, "decoded": decoded}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except (OSError, RuntimeError):
        print(f"The decoded images could not be kept in {cache}; the next run decodes them again")
    finally:
        with suppress(OSError):
            half.unlink()
    return decoded


def _stamp(file):
    try:
        status = os.stat(file)
    except OSError:
        return None, None
    return status.st_size, status.st_mtime_ns


def image_files(path):
    """The image files at a path: that file, or all below that folder, sorted. Raises InputError."""
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise InputError(f"there is no image or folder {path}")
        return [str(path)]
    files = [file for file in _files_under(str(path), set()) if _suffix(file) in SUFFIXES]
    if not files:
        raise InputError(f"{path} holds no images: no file's name ends in "
                         f"{', '.join(sorted(SUFFIXES))}")
    return files


def read_images(paths, image_size, part="images"):
    """(uint8 N x size x size x 3 of some files, {path: why not} of those that cannot be read)."""
    from PIL import Image
    images, bad = torch.empty(len(paths), image_size, image_size, 3, dtype=torch.uint8), {}
    pool = ThreadPoolExecutor(os.cpu_count())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Each thread holds a whole image: what PIL would only warn of is not read.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        jobs = [pool.submit(_decode, path, image_size) for path in paths]
        try:
            for i, job in enumerate(progress(jobs, f"reading {part}")):
                try:
                    images[i] = torch.from_numpy(job.result())
                except Exception as error:  # PIL raises many kinds for what is not an image
                    bad[paths[i]] = _reason(error)
                jobs[i] = None  # with its copy of the image
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a file may never answer
    return images, bad


def _reason(error):
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is empty, damaged or no image"
    return getattr(error, "strerror", None) or str(error) or repr(error)


def _decode(path, size):
    """An image file -> uint8 array, size x size x 3: the shorter side scaled, the centre cut out,
    transparency laid on white."""
    from PIL import Image, ImageOps
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is no file")
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith(("I", "F")):  # deep pixels, which convert("RGB") would clip
            grey = np.asarray(image, dtype=np.float32)
            factor = 1 / 257 if image.mode.startswith("I;16") or grey.max() > 255 else 1
            if image.mode == "F" and grey.max() <= 1:
                factor = 255
            image = Image.fromarray((grey * factor).clip(0, 255).astype(np.uint8))
        elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return np.array(ImageOps.fit(image.convert("RGB"), (size, size),
                                     Image.Resampling.BILINEAR))
