"""Image files: folders of classes, decoding to one size, and a cache of what was decoded."""
import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps

from common.errors import InputError
from common.processes import processes
from common.seeds import seed_of
from common.terminal import counted, progress

CACHE_FROM = 2000  # images of a folder; fewer are decoded in a second
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
DEEPEST = 50  # folders within folders


# --------------------------------------------------------------------------------------- folders


def class_folders(root, part):
    """{class: sorted image files} of the folders in root/part. Raises InputError.

    Hidden files and folders are passed over; files that are no images are counted in a line.
    """
    if not (root / part).is_dir():
        folders = [f"{each.name}/" for each in sorted(root.iterdir()) if each.is_dir()]
        found = f"; it has {', '.join(folders[:3])}" if folders else ""
        raise InputError(f"{root} has no folder {part}/{found}. It needs train/ and test/, each "
                         "with one folder of images per class; README.md, \"Your own photos\", "
                         "makes these")
    classes, others = {}, []
    for folder in sorted((root / part).iterdir()):
        if folder.name.startswith("."):
            continue
        if not folder.is_dir():
            others.append(folder)
            continue
        files = _files_below(folder, {str((root / part).resolve())})
        classes[folder.name] = [file for file in files if _suffix(file) in SUFFIXES]
        others += [file for file in files if _suffix(file) not in SUFFIXES]
    if others:
        print(f"Left out: {counted(len(others), 'file')} in {root / part} without the suffix of an "
              f"image; the first is {others[0]}")
    return classes


def annotated(annotations, classes):
    """{class: image files} by the list of test images in a raw Tiny-ImageNet. Raises InputError."""
    files = {name: [] for name in classes}
    for number, line in enumerate(annotations.read_text(errors="replace").splitlines(), 1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        if name not in files:
            raise InputError(f"{annotations}, line {number}: {name!r} is none of the "
                             f"{len(files)} classes in train/")
        files[name].append(str(annotations.parent / "images" / file))
    return files


def image_files(path):
    """The image files at a path: that file, or all below that folder, sorted. Raises InputError."""
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise InputError(f"there is no image or folder {path}")
        return [str(path)]
    files = [file for file in _files_below(str(path), set()) if _suffix(file) in SUFFIXES]
    if not files:
        raise InputError(f"{path} holds no images: no file's name ends in "
                         f"{', '.join(sorted(SUFFIXES))}")
    return files


def _suffix(file):
    return os.path.splitext(file)[1].lower()


def _files_below(folder, parents):
    """The paths of all files below a folder, sorted, hidden ones left out; links are followed, but
    not in circles. parents: the real paths of the folders on the way down."""
    real = os.path.realpath(folder)
    if real in parents:
        raise InputError(f"{folder} is a link to {real}, which holds it; remove the link")
    if len(parents) > DEEPEST:
        raise InputError(f"{folder} is more than {DEEPEST} folders deep")
    files = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith("."):
                files += (_files_below(entry.path, parents | {real}) if _is_folder(entry)
                          else [entry.path])
    return files


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


# -------------------------------------------------------------------------------------- decoding


def read_images(paths, size, part="images"):
    """(uint8 tensor N x size x size x 3 of some files, {path: reason} of those that cannot be
    read, whose pixels mean nothing)."""
    images, unreadable = torch.empty(len(paths), size, size, 3, dtype=torch.uint8), {}
    pool = ThreadPoolExecutor(os.cpu_count())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Each thread holds a whole image: what PIL would only warn of is not read.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        jobs = [pool.submit(decode, path, size) for path in paths]
        try:
            for i, job in enumerate(progress(jobs, f"reading {part}")):
                try:
                    images[i] = torch.from_numpy(job.result())
                except Exception as error:  # PIL raises many kinds for what is not an image
                    unreadable[paths[i]] = _reason(error)
                jobs[i] = None  # with its copy of the image
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a file may never answer
    return images, unreadable


def _reason(error):
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is empty, damaged or no image"
    return getattr(error, "strerror", None) or str(error) or repr(error)


def decode(path, size):
    """An image file -> uint8 array, size x size x 3: the shorter side scaled, the centre cut out,
    transparency laid on white."""
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


def read_or_recall(root, parts, size):
    """{part: (images, {path: reason})}, see `read_images`, of {part: files} of a data set.

    Many images are decoded only once: they are kept in the user's cache folder, and taken from
    there as long as no file's name, size or time has changed.
    """
    if sum(map(len, parts.values())) < CACHE_FROM:
        return {part: read_images(files, size, part) for part, files in parts.items()}
    key = repr((1, PIL.__version__, size, {part: [(file, *_stamp(file)) for file in files]
                                           for part, files in parts.items()}))
    key = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    # "~" stays where there is no home: a folder of that name must not come into being.
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.devnull if home.startswith("~") else home) / "orthoreg"
    path = folder / f"{seed_of(str(root.resolve()), size):016x}.pt"
    with suppress(Exception):  # not there, or of no use
        content = torch.load(path, weights_only=True, mmap=True)
        if content["key"] == key:
            return content["decoded"]
    decoded = {part: read_images(files, size, part) for part, files in parts.items()}
    half = path.with_suffix(f".{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(half, "wb") as file:
            torch.save({"key": key, "decoded": decoded}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except (OSError, RuntimeError):
        print(f"The decoded images could not be kept in {folder}; the next run decodes them again")
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


def require_memory(count, size):
    """Raise InputError where this machine's memory cannot hold the images."""
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if processes()[1] > 1 else 1
    needed = copies * count * size ** 2 * 3
    with suppress(AttributeError, OSError, ValueError):  # not every system tells
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > 0.8 * memory:
            raise InputError(
                f"{count:,} images of {size} x {size} need {needed / 1e9:.1f} GB, and this machine "
                f"has {memory / 1e9:.1f} GB; a smaller --image_size needs less")
