"""Image files -> RGB bytes of one size. What viewers show is read, whatever its file looks like."""

import io
import os
import struct
import sys
import threading
import warnings
from contextlib import nullcontext, suppress
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps

from common.errors import InputError
from common.libraries import optional
from common.machine import cores, memory
from common.processes import number_in, processes
from common.terminal import counted, progress
from common.threads import ahead, readers

LARGEST = 1_000_000_000  # bytes of one image when it is decoded
LARGE = 100_000_000  # larger ones are decoded one at a time
COMMON = {"JPEG", "PNG"}  # tried first
# They run other programs, or are containers of something else.
NOT_READ = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"}
HANDFUL = 16  # images that a thread reads at a time: handing over costs as much as a small one
CLEAR = "colours that are transparent everywhere, read without transparency"
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
PIXELS = b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"  # chunks of a PNG that say what it shows
# The value of white in deep pixels, by how many bits cameras and scanners use.
WHITES = 1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0
WIDEST = {"integer": 65535.0, "colour": 65535.0}  # white where nothing is known of a data set
# Of 16-bit colours Pillow reads the upper byte. Taken in the other order, it reads the lower one.
OTHER_BYTE = {
    f"{bands};16{order}": f"{bands};16{other}"
    for bands in ("RGB", "RGBX", "RGBA")
    for order, other in {"B": "L", "L": "B", "N": "BL"[sys.byteorder == "big"]}.items()
}
NO_ALPHA = {"BMP", "DIB", "TGA"}  # whose fourth byte often is none: 0 everywhere
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}  # EXIF's orientation

# ------------------------------------------------------------------------------------ which files


@lru_cache
def formats():
    """The formats that Pillow can read here, and suffixes: ([names], {suffix})."""
    if pillow_heif := optional("pillow_heif"):
        pillow_heif.register_heif_opener()
    Image.init()
    names = sorted(set(Image.OPEN) - NOT_READ, key=lambda name: (name not in COMMON, name))
    return names, {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in names or name == "MPO"
    }  # a JPEG with further ones behind it


def is_image(path):
    """Whether a file is an image by its suffix or, where it has none, by how it begins."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix or not os.path.isfile(path):
        return suffix in formats()[1]
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(MAGIC) or head[:4] + head[8:] == b"RIFFWEBP"


# ---------------------------------------------------------------------------------------- reading


class Fit(NamedTuple):
    """How an image becomes a square.

    size: its pixels, height and width. interpolation: how it is scaled, "bilinear" or "bicubic".
    """

    size: int
    interpolation: str = "bilinear"

    def __call__(self, image):
        """The largest centred square of a Pillow image, scaled."""
        resampling = Image.Resampling[self.interpolation.upper()]
        return ImageOps.fit(image, (self.size, self.size), resampling)


class Images(NamedTuple):
    """What image files hold.

    parts: name -> uint8 tensor N x size x size x 3, or a FilePixels. unreadable: path -> reason;
    its pixels mean nothing. white: kind of deep pixels ("integer", "float", or "colour" of 16 bits)
    -> the value that became white. remarks: what was done with some -> (how many, the first).
    """

    parts: dict
    unreadable: dict
    white: dict
    remarks: dict


def read_images(parts, fit, white=None):
    """The Images of {name: paths}, each brought to a square by a Fit. white: see `Images`, of the
    data set that they belong to."""
    size = fit.size
    require_memory(sum(map(len, parts.values())), size)
    arrays = {
        name: np.zeros((len(paths), size, size, 3), np.uint8) for name, paths in parts.items()
    }
    read = read_into(arrays, parts, fit, white)
    return read._replace(parts={name: torch.from_numpy(array) for name, array in arrays.items()})


def read_into(rows, parts, fit, white=None):
    """As `read_images`, but image i of a part is assigned to rows[name][i]; one that cannot be read
    is not. The result's `parts` are empty. No more than a few images are held at a time."""
    unreadable, deep, remarks, largest = {}, [], {}, {}

    def read(places):
        return [
            (name, i, _picture_or_error(parts[name][i], fit, *white)) for name, i, *white in places
        ]

    def pictures(pool, places, title):
        """(name, i, Picture or what was raised) of each (name, i), or (name, i, white)."""
        handful = [places[k : k + HANDFUL] for k in range(0, len(places), HANDFUL)]
        futures = ahead(pool, read, handful, 3 * cores())
        return progress(
            chain.from_iterable(future.result() for future in futures), title, total=len(places)
        )

    with _own_limits, readers(cores()) as pool:
        for part, paths in parts.items():
            places = [(part, i) for i in range(len(paths))]
            for name, i, picture in pictures(pool, places, f"reading {part} images"):
                if isinstance(picture, Exception):
                    unreadable[paths[i]] = _reason(picture)
                    continue
                if picture.kind:
                    deep.append((name, i, picture.kind))
                    largest[picture.kind] = max(largest.get(picture.kind, 0), picture.largest)
                if picture.kind in (None, "colour"):
                    rows[name][i] = picture.pixels
                for remark in picture.remarks:
                    count, first = remarks.get(remark, (0, paths[i]))
                    remarks[remark] = count + 1, first
        white = {
            **_whites(largest),
            **{kind: value for kind, value in (white or {}).items() if kind in largest},
        }
        # Their rule is only known now. 16-bit colours have been read by the widest one.
        again = [
            (name, i, white[kind])
            for name, i, kind in deep
            if kind != "colour" or white[kind] < WIDEST[kind]
        ]
        if again:
            for name, i, picture in pictures(pool, again, "reading deep pixels"):
                if isinstance(picture, Exception):
                    unreadable[parts[name][i]] = _reason(picture)
                else:
                    rows[name][i] = picture.pixels
    return Images({}, unreadable, white, remarks)


def _picture_or_error(path, fit, *white):
    try:
        return read_image(path, fit, *white)
    except Exception as error:  # Pillow raises many kinds for what is no image
        return error


def decode(path, size, white=None, interpolation="bilinear"):
    """An image file -> uint8 array, size x size x 3: turned as its EXIF says, the shorter side
    scaled, the centre cut out, transparency laid on white. white: see `Images`; 65,535 by default.
    interpolation: see `Fit`.
    """
    fit = Fit(size, interpolation)
    with _own_limits:
        picture = read_image(path, fit)
        if not picture.kind:
            return picture.pixels
        known = {**_whites({picture.kind: picture.largest}), **WIDEST, **(white or {})}
        return read_image(path, fit, known[picture.kind]).pixels


def _reason(error):
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is empty, damaged, or of a kind that Pillow does not read"
    return getattr(error, "strerror", None) or str(error) or repr(error)


def _whites(largest):
    """{kind: value of white} for deep pixels: the least of WHITES that none is above."""
    return {
        kind: next((white for white in WHITES[kind == "integer" :] if value <= white), value)
        for kind, value in largest.items()
    }


def _to_bytes(pixels, white):
    # A hair above, since resizing leaves 254.9999 of 255.
    return (pixels * (255 / white) + 0.01).clip(0, 255).astype(np.uint8)


def describe(images):
    """Lines on how images were read that are not as usual."""
    lines = [
        f"Note: {counted(count, 'image')} with {remark}; the first is {first}"
        for remark, (count, first) in images.remarks.items()
    ]
    for kind, white in images.white.items():
        name = {"integer": "16- or 32-bit pixels", "colour": "colours of 16 bits"}.get(
            kind, "floating-point pixels"
        )
        lines.append(f"Note: {name} are read as 0 = black to {white:,.10g} = white, in all images")
    return lines


# ------------------------------------------------------------------------------------- one image


class Picture(NamedTuple):
    """An image of the wanted size. pixels: uint8, size x size x 3; None of deep grey pixels whose
    white is not given. kind, largest: of deep pixels, see `Images`, and their largest value; of
    colours the largest that the upper bytes allow. remarks: what was done with it."""

    pixels: np.ndarray
    remarks: list
    kind: str = None
    largest: float = 0.0


class _OwnLimits:
    """Pillow warns of large images, and refuses larger ones, by their pixels; `_require_bounded`
    counts bytes instead. Its own bound comes back when no thread reads images any more."""

    def __init__(self):
        self.lock, self.users = threading.Lock(), 0

    def __enter__(self):
        with self.lock:
            if not self.users:
                self.most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                self.quiet = warnings.catch_warnings()
                self.quiet.__enter__()
                warnings.simplefilter("ignore")
            self.users += 1

    def __exit__(self, *_):
        with self.lock:
            self.users -= 1
            if not self.users:
                self.quiet.__exit__()
                Image.MAX_IMAGE_PIXELS = self.most


_own_limits, _large = _OwnLimits(), threading.Lock()  # for all threads


def read_image(path, fit, white=None):
    """The Picture of a file. white: the value of deep pixels that becomes white, where that is
    known. Raises what Pillow raises where it cannot be read."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is no file")
    try:
        return _read(path, fit, white, [])
    except (FileNotFoundError, PermissionError):
        raise
    except Exception:
        content = _only_pixels(path)
        if content is None:
            raise
        with suppress(Exception):
            return _read(
                content,
                fit,
                white,
                ["texts, EXIF or colour profiles that are damaged or too long, read without them"],
            )
        raise


def _only_pixels(path):
    """A PNG without its texts, profiles and dates; None where the file is none, or is cut short."""
    with open(path, "rb") as file:
        if file.read(8) != MAGIC[0] or os.path.getsize(path) > LARGEST:
            return None
        file.seek(0)
        content = file.read()
    kept, start = [MAGIC[0]], 8
    while start + 12 <= len(content):
        (length,) = struct.unpack(">I", content[start : start + 4])
        if content[start + 4 : start + 8] in PIXELS:
            kept.append(content[start : start + 12 + length])
        start += 12 + length
    return io.BytesIO(b"".join(kept))


def _read(file, fit, white, remarks):
    with Image.open(file, formats=formats()[0]) as image:
        image.draft(None, (drafted_size(fit.size),) * 2)  # a half, a quarter or an eighth of a JPEG
        if _bytes_of(image) > LARGE:
            _require_bounded(image)
        with _large if _bytes_of(image) > LARGE else nullcontext():
            if white and white < WIDEST["colour"] and _has_deep_colours(image):
                with Image.open(file, formats=formats()[0]) as low:
                    return Picture(_deep_colours(image, low, fit, white), remarks)
            return _picture(image, fit, white, remarks)


def drafted_size(size):
    """The pixels that both sides of a JPEG keep when less than the whole of it is decoded."""
    return size + size // 2


def _bytes_of(image):
    """How many bytes an image takes when it is decoded."""
    wide = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    return image.width * image.height * wide


def _require_bounded(image):
    if _bytes_of(image) > LARGEST:
        raise ValueError(
            f"its {image.width:,} x {image.height:,} pixels take "
            f"{_bytes_of(image) / 1e9:.1f} GB when decoded, and "
            f"{LARGEST / 1e9:.0f} GB is the most: scale it down"
        )


def _picture(image, fit, white, remarks):
    with suppress(Exception):
        if getattr(image, "is_animated", False):
            remarks.append("several frames or pages, of which the first was read")
    kind = "colour" if _has_deep_colours(image) else None
    if not kind and ";16" in _raw_mode(image) and not image.mode.startswith("I"):
        remarks.append(
            "colours of 16 bits, of which the upper 8 were read: dark where a camera "
            "uses fewer than 16"
        )
    opaque = _is_opaque(image, remarks)
    image.load()
    image = _turned(image, remarks)
    if image.mode.startswith(("I", "F")):
        return _deep_picture(image, fit, white, remarks)
    largest = 256 * max(high for _, high in image.getextrema()[:3]) + 255 if kind else 0
    if opaque:
        image = image.convert("RGB")
    if image.mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = _on_white(image, remarks)
    if image.mode != "L":  # one band is resized as three are
        image = image.convert("RGB")
    return Picture(np.array(fit(image).convert("RGB")), remarks, kind, float(largest))


def _is_opaque(image, remarks):
    """Whether the fourth band of an image is no transparency, although Pillow takes it for that."""
    if image.mode == "RGBA" and image.format == "TIFF" and 338 not in image.tag_v2:  # ExtraSamples
        remarks.append("a fourth band that the file does not call transparency, left out")
        return True
    if image.mode == "RGBA" and image.format in NO_ALPHA and not image.getextrema()[3][1]:
        remarks.append(CLEAR)
        return True
    return False


def _raw_mode(image):
    """How the pixels of a file are laid out, in Pillow's words, as RGB;16B; "" where unknown."""
    arguments = image.tile[0][3] if image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _turned(image, remarks):
    try:
        turn = TURNS.get(image.getexif().get(0x0112))
    except Exception:  # Pillow raises many kinds for EXIF blocks that are damaged
        remarks.append("a damaged EXIF block, not turned")
        return image
    return image.transpose(Image.Transpose[turn]) if turn else image


def _on_white(image, remarks):
    try:
        layered = image.convert("RGBA")
    except ValueError:  # a transparent colour that its mode does not know
        return image
    *colours, alpha = layered.getextrema()
    if alpha[1] == 0 and any(low < high for low, high in colours):
        remarks.append(CLEAR)
        return layered.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered)


def _has_deep_colours(image):
    """Whether both bytes of an image's 16-bit colours can be read."""
    return _raw_mode(image) in OTHER_BYTE and "transparency" not in image.info


def _deep_colours(image, low, fit, white):
    """The bytes of 16-bit colours. low: the same image, not loaded yet, for the lower bytes."""
    opaque = _is_opaque(image, [])
    low.tile = list(map(_with_other_byte, low.tile))
    image, low = (_turned(half, []) for half in (image, low))
    alpha = None if opaque or image.mode != "RGBA" else image.getchannel("A")
    fitted = []
    for upper, lower in zip(image.split()[:3], low.split()):
        band = np.asarray(upper, np.float32) * 256 + np.asarray(lower)
        if alpha:
            band = white + (band - white) * (np.asarray(alpha) / np.float32(255))
        fitted.append(fit(Image.fromarray(band)))
    return _to_bytes(np.stack(fitted, axis=2), white)


def _with_other_byte(tile):
    """A part of a file, in Pillow's words, of which the other byte of 16 bits is read."""
    *position, arguments = tile
    if isinstance(arguments, str):
        arguments = OTHER_BYTE[arguments]
    else:
        arguments = (OTHER_BYTE[arguments[0]], *arguments[1:])
    return tile._make((*position, arguments)) if hasattr(tile, "_make") else (*position, arguments)


def _deep_picture(image, fit, white, remarks):
    """Pixels of more than 8 bits, all of them grey."""
    tags = getattr(image, "tag_v2", {})
    kind = "float" if image.mode == "F" else "integer"
    grey = np.asarray(image)
    if image.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,))[0] == 1:
        grey = grey.view(np.uint32)  # Pillow reads TIFF's unsigned numbers as signed ones
    grey = grey.astype(np.float32)
    if "transparency" in image.info:
        remarks.append("16-bit pixels and a transparent value, read without transparency")
    strange = ~np.isfinite(grey)
    if strange.any():
        remarks.append("pixels that are no numbers, read as black")
        grey[strange] = 0
    if (grey < 0).any():
        remarks.append(
            'negative pixels, read as black; lab/README.md ("Images") has two lines '
            "that move them up"
        )
    if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white
        if kind == "integer" and tags.get(258, (0,))[0] == 16:
            grey = 65535 - grey
        else:
            remarks.append("0 for white, whose brightness stays turned over")
    grey, pixels = grey.clip(0), None
    if white:
        fitted = fit(Image.fromarray(grey))
        pixels = np.repeat(_to_bytes(np.asarray(fitted), white)[..., None], 3, axis=2)
    return Picture(pixels, remarks, kind, float(grey.max()))


# ----------------------------------------------------------------------------------------- memory


def require_memory(count, size):
    """Raise InputError where this machine's memory cannot hold the images."""
    needed, most = copies() * bytes_of(count, size), memory()
    if most and needed > 0.8 * most:
        raise InputError(
            f"{count:,} images of {size} x {size} need {needed / 1e9:.1f} GB, and this machine has "
            f"{most / 1e9:.1f} GB; a smaller --image_size needs less"
        )


def bytes_of(count, size):
    return count * size**2 * 3


def copies():
    """How many processes of this job hold the images in this machine's memory."""
    return number_in("LOCAL_WORLD_SIZE", "1") if processes()[1] > 1 else 1
