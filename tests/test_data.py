"""Every source of images ends up as the same thing: RGB bytes of one size, labels, class names."""

import itertools
import os
import pickle
import re
import shutil
import signal
import struct
import unicodedata
import zlib
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torchvision import datasets

from common import cache, images
from common.errors import InputError
from common.files import to_csv
from common.folders import find_parts
from common.seeds import seed_of
from config import NORMALIZATIONS
from conftest import ROOT, write_folder
from data import Preparation, folder_of, load_data, load_test
from lab.classes import print_classes
from lab.experiment import parse


def test_digits_are_the_real_ones_in_a_fixed_split():
    digits = load_data("digits")
    assert digits.train.images.shape == (1437, 32, 32, 3) and len(digits.test) == 360
    assert digits.classes == tuple("0123456789") and not digits.flip
    assert folder_of("digits") == digits.name == "digits" and digits.image_size == 32
    assert digits.test.labels.bincount().min() > 20
    again = load_data("digits")
    assert torch.equal(digits.test.images, again.test.images)
    test = {image.numpy().tobytes() for image in digits.test.images}
    train = {image.numpy().tobytes() for image in digits.train.images}
    assert len(test & train) < 5, "no test image is trained on, but for equal drawings"


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        load_data("digits")


def test_an_image_folder(folder, digits):
    images = load_data(folder, 16)
    assert (
        images.classes == ("one", "three", "two") and images.name == folder_of(folder) == "shapes"
    )
    assert images.train.labels.bincount().tolist() == [12] * 3
    assert images.test.labels.bincount().tolist() == [6] * 3 and images.flip
    ones = digits.train.images[digits.train.labels == 1][:12]
    assert {i.numpy().tobytes() for i in images.train.images[:12]} == {
        i.numpy().tobytes() for i in ones
    }, "lossless at the same size"
    assert load_data(folder, 20).train.images.shape == (36, 20, 20, 3)


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("L", 100, (100, 100, 100)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("LA", (80, 255), (80, 80, 80)),
        ("1", 1, (255, 255, 255)),
        ("P", 3, None),
        ("I;16", 40_000, (155, 155, 155)),
        ("I;16", 200, (0, 0, 0)),
        ("I", 200, (0, 0, 0)),
        ("I", 40_000, (155, 155, 155)),
        ("F", 0.5, (127, 127, 127)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (1, 1), (300, 40)])
def test_every_mode_and_size_becomes_rgb(tmp_path, mode, colour, expected, size):
    from PIL import Image

    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    if mode in ("I", "F"):
        path = tmp_path / "x.tif"
        Image.fromarray(np.full(size[::-1], colour, np.int32 if mode == "I" else np.float32)).save(
            path
        )
    elif mode == "I;16":
        Image.fromarray(np.full(size[::-1], colour, np.uint16)).save(path)
    elif mode == "P":
        image = Image.new("P", size, colour)
        image.putpalette([0] * 9 + [9, 99, 199] + [0] * 756)
        image.save(path)
        expected = (9, 99, 199)
    else:
        Image.new(mode, size, colour).save(path)
    pixels = images.decode(path, 32)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    assert (np.abs(pixels.astype(int) - expected) <= 1).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_scaled_as_pillow_scales_them(interpolation, tmp_path):
    """To the bit, whatever their mode; deep pixels as floating-point ones."""
    from PIL import Image, ImageOps

    def fitted(image):
        return np.asarray(ImageOps.fit(image, (8, 8), Image.Resampling[interpolation.upper()]))

    colours = np.random.RandomState(0).randint(0, 4096, (20, 30, 3)).astype(np.uint16)
    deep = [fitted(Image.fromarray(band.astype(np.float32))) for band in colours.T.swapaxes(1, 2)]
    as_bytes = [(band * (255 / 4095) + 0.01).clip(0, 255).astype(np.uint8) for band in deep]
    Image.fromarray(colours[..., 0]).save(tmp_path / "deep.png")
    deep_png(tmp_path / "colours.png", colours)
    image = Image.fromarray((colours >> 4).astype(np.uint8))
    image.save(tmp_path / "image.png")
    image.convert("L").save(tmp_path / "grey.png")
    for name, wanted in {
        "image": fitted(image),
        "grey": np.dstack([fitted(image.convert("L"))] * 3),
        "deep": np.dstack([as_bytes[0]] * 3),
        "colours": np.dstack(as_bytes),
    }.items():
        white = {"integer": 4095, "colour": 4095}
        pixels = images.decode(tmp_path / f"{name}.png", 8, white, interpolation)
        assert np.array_equal(pixels, wanted), name
        if interpolation == "bilinear":
            assert np.array_equal(images.decode(tmp_path / f"{name}.png", 8, white), wanted)


def test_data_sets_that_have_a_name_are_scaled_as_images_are():
    """The digits' strokes are bright enough that bicubic ones overshoot."""
    from PIL import Image
    from sklearn.datasets import load_digits

    order = np.random.RandomState(0).permutation(1797)
    for interpolation in ("bilinear", "bicubic"):
        data = load_data("digits", 20, interpolation=interpolation)
        for k in range(20):
            drawn = Image.fromarray((load_digits().images[order[k]] / 16 * 255).astype(np.float32))
            scaled = drawn.resize((20, 20), Image.Resampling[interpolation.upper()])
            wanted = np.asarray(scaled).round().clip(0, 255)
            assert np.abs(data.test.images[k, ..., 0].numpy() - wanted).max() <= 1
    assert data.interpolation == "bicubic"


def test_a_wide_image_is_cut_not_squeezed(tmp_path):
    from PIL import Image

    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    Image.fromarray(image).save(tmp_path / "x.png")
    assert (images.decode(tmp_path / "x.png", 10) == 255).all()


def test_raw_tiny_imagenet_is_recognised(tmp_path, digits):
    source = write_folder(tmp_path / "source", digits)
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)  # unlabelled, as in the download
    lines = []
    for k, name in enumerate(("one", "two", "three")):
        target = root / "train" / f"n{k}" / "images"
        shutil.copytree(source / "train" / name, target)
        (target.parent / f"n{k}_boxes.txt").write_text("x\t0\t0\t9\t9\n")
        for i, image in enumerate(sorted((source / "test" / name).iterdir())):
            shutil.copy(image, root / "val" / "images" / f"val_{k}_{i}.png")
            lines.append(f"val_{k}_{i}.png\tn{k}\t0\t0\t9\t9\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    images, plain = load_data(root, 16), load_data(source, 16)
    assert images.classes == ("n0", "n1", "n2")
    assert images.train.labels.bincount().tolist() == [12] * 3
    two = plain.classes.index("two")
    assert torch.equal(
        images.test.images[images.test.labels == 1], plain.test.images[plain.test.labels == two]
    )


@pytest.mark.parametrize(
    "name, cls, folder, classes, key",
    [
        ("CIFAR100", datasets.CIFAR100, "cifar-100-python", 100, "fine_label"),
        ("CIFAR10", datasets.CIFAR10, "cifar-10-batches-py", 10, "label"),
    ],
)
def test_cifar_archives(tmp_path, monkeypatch, name, cls, folder, classes, key):
    """Files in the archives' own form, without the archives' checksums."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cls, "_check_integrity", lambda self: True)
    root = tmp_path / "data" / folder
    root.mkdir(parents=True)
    parts = (
        ["train", "test"]
        if classes == 100
        else [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    )
    for part in parts:
        pixels = np.zeros((8, 3, 32, 32), np.uint8)
        pixels[:, 0], pixels[:, 2, 0] = 200, 77  # red, with a bluish first row
        with open(root / part, "wb") as file:
            pickle.dump({"data": pixels.reshape(8, -1), f"{key}s": list(range(8))}, file)
    names = [f"class {i}" for i in range(classes)]
    meta = cls.meta["filename"]
    with open(root / meta, "wb") as file:
        pickle.dump({cls.meta["key"]: names}, file)
    monkeypatch.setattr(cls, "_load_meta", lambda self: setattr(self, "classes", names))
    images = load_data(name)
    assert len(images.classes) == classes and images.name == name
    assert folder_of(name) == ("" if name == "CIFAR100" else "CIFAR10")
    assert images.train.images[0, 5, 5].tolist() == [200, 0, 0]
    assert images.train.images[0, 0, 5].tolist() == [200, 0, 77]
    assert images.test.labels.tolist() == list(range(8))
    assert load_data(name, 16).train.images.shape[1:] == (16, 16, 3)


def test_cifar_without_a_network_says_what_to_do(tmp_path, monkeypatch, capsys):
    from urllib.error import URLError

    monkeypatch.chdir(tmp_path)

    def offline(self):
        raise URLError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", offline)  # CIFAR100 inherits it
    with pytest.raises(InputError) as error:
        load_data("CIFAR100")
    text = str(error.value)
    assert (
        all(
            part in text
            for part in (
                "http",
                "no route to host",
                "cifar-100-python.tar.gz",
                str(tmp_path / "data"),
                "--data_path=digits",
            )
        )
        and "\n" not in text
    )
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="CIFAR100, CIFAR10 or digits"):
        load_data("no/such/folder")


def test_decoded_images_are_kept_until_a_file_changes(tmp_path, digits, monkeypatch, capsys):
    root = write_folder(tmp_path / "images", digits)
    (root / "train/one/bad.png").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "CACHE_FROM", 10)
    read, decoded = images.read_image, []

    def counted(path, size):
        decoded.append(path)
        return read(path, size)

    monkeypatch.setattr(images, "read_image", counted)

    def load(expected, size=16, place=root):
        decoded.clear()
        loaded = load_data(place, size, skip_bad_images=True)
        assert bool(decoded) == expected
        return loaded

    first, again = load(True), load(False)
    assert first.fingerprint == again.fingerprint and len(again.train) == 36
    assert again.notes[-2:] == first.notes[-2:] and "1 of 55 images cannot be" in first.notes[-2]
    load(True, size=8)
    load(False)
    shutil.copytree(root, tmp_path / "elsewhere/images")  # with other times
    moved = load(False, place=tmp_path / "elsewhere/images")
    assert moved.fingerprint == first.fingerprint
    assert str(tmp_path / "elsewhere/images/train/one/bad.png") in moved.notes[-1]
    shutil.rmtree(tmp_path / "elsewhere")
    for part in ("train", "test"):  # the same images in the same order, under other names
        (root / part / "one").rename(root / part / "once")
    renamed = load(False)
    assert renamed.fingerprint == first.fingerprint and len(renamed.train) == 36
    assert str(root / "train/once/bad.png") in renamed.notes[-1]
    for part in ("train", "test"):
        (root / part / "once").rename(root / part / "one")
    picture = sorted((root / "test/two").iterdir())[0]
    picture.write_bytes(sorted((root / "test/one").iterdir())[0].read_bytes())
    changed = load(True)
    assert changed.fingerprint != first.fingerprint
    load(False)
    os.utime(picture, (1, 1))  # of another time: it may hold something else, of the same size
    load(False)  # but does not
    picture.rename(picture.with_name("zz.png"))  # in another place of the order
    load(True)
    assert (
        len(list((tmp_path / "cache/orthoreg").glob("*.bytes"))) == 3
    )  # here, elsewhere, and of 8 pixels
    for kept in (tmp_path / "cache/orthoreg").iterdir():
        kept.write_bytes(kept.read_bytes()[:1000])
    load(True)
    load(False)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder
    load(True)
    assert "could not be kept" in capsys.readouterr().out


def test_images_that_need_more_memory_than_they_may_are_read_from_their_file(
    tmp_path, digits, monkeypatch, capsys
):
    root = write_folder(tmp_path / "images", digits)
    (root / "train/one/bad.png").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = load_data(root, 16, skip_bad_images=True).hold_out(20, 0)
    small = load_data(root, 16, skip_bad_images=True, memory=1000).hold_out(20, 0)
    assert whole.fingerprint == small.fingerprint and "in memory" in whole.place_text(8)
    (kept,) = (tmp_path / "cache/orthoreg").glob("*.bytes")
    assert f"0.04 MB in {kept}, of which at most" in small.place_text(8)
    assert kept.stat().st_size == 55 * 16 * 16 * 3
    for ours, wanted in (
        (small.train_batches(5, (0,)), whole.train_batches(5, (0,))),
        (small.train_batches(5, (1,), 20, True), whole.train_batches(5, (1,), 20, True)),
        (small.test_batches(), whole.test_batches()),
        (small.choice_batches(), whole.choice_batches()),
    ):
        for batch, expected in zip(ours, wanted, strict=True):
            assert all(map(torch.equal, batch, expected))
    content = kept.read_bytes()
    kept.unlink()  # the open file stays
    assert sum(len(labels) for _, labels in small.test_batches()) == 18
    for changed in (content[:1000], content[:-1] + b"\0"):
        kept.write_bytes(content)
        again = load_data(root, 16, skip_bad_images=True, memory=1000)
        os.utime(kept, (1, 1))
        kept.write_bytes(changed)
        with pytest.raises(InputError, match="cannot be read any more .* --resume=True"):
            list(again.test_batches())
    capsys.readouterr()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 40_000))
    full = load_data(root, 16, skip_bad_images=True, memory=1000)
    assert full.fingerprint == load_data(root, 16, skip_bad_images=True).fingerprint
    assert "0.0 GB are free; XDG_CACHE_HOME may name a larger disk" in capsys.readouterr().out
    assert not list((tmp_path / "cache/orthoreg").iterdir())


@pytest.fixture
def cached(tmp_path, digits, monkeypatch):
    """(a folder of images, one of them no image, whose decoded images are kept; the cache's folder)."""
    root = write_folder(tmp_path / "images", digits)
    (root / "train/one/bad.png").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "CACHE_FROM", 10)
    load_data(root, 16, skip_bad_images=True)
    return root, tmp_path / "cache/orthoreg"


@pytest.fixture
def soon():
    """Waiting for ever is an error."""

    def late(*_):
        raise TimeoutError("it waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 20)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_the_cache_does_not_mix_images_that_are_scaled_in_two_ways(cached, monkeypatch):
    """Those of a folder are kept side by side; bilinear ones by the name that they always had."""
    root, place = cached
    scaled = {}
    for way in ("bilinear", "bicubic"):
        scaled[way] = load_data(root, 12, skip_bad_images=True, interpolation=way).train.images
        first = images.decode(sorted((root / "train/one").iterdir())[0], 12, None, way)
        assert np.array_equal(scaled[way][0].numpy(), first)
    assert not torch.equal(scaled["bilinear"], scaled["bicubic"])
    monkeypatch.delattr(cache, "read_into")  # nothing is decoded any more
    monkeypatch.delattr(cache, "read_images")
    for way, known in scaled.items():
        again = load_data(root, 12, skip_bad_images=True, interpolation=way)
        assert torch.equal(again.train.images, known) and again.interpolation == way
    key = f"{seed_of(str(root.resolve()), 12, 'train', 'test'):016x}.key"
    assert (place / key).exists() and len(list(place.glob("*.key"))) == 3


def test_images_rewritten_with_their_size_and_time_are_not_taken_from_the_cache(cached):
    root, _ = cached
    known = load_data(root, 16, skip_bad_images=True).fingerprint
    one, two = (sorted((root / "train" / name).iterdir())[0] for name in ("one", "two"))
    size, before = max(one.stat().st_size, two.stat().st_size), one.stat()
    one.write_bytes(
        one.read_bytes().ljust(size, b"\0")
    )  # what follows a PNG's end is not looked at
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_data(root, 16, skip_bad_images=True).fingerprint == known
    one.write_bytes(
        two.read_bytes().ljust(size, b"\0")
    )  # as rsync --times, cp --preserve and unpacking do
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert one.stat().st_size == size and one.stat().st_mtime_ns == before.st_mtime_ns
    changed = load_data(root, 16, skip_bad_images=True)
    assert (
        changed.train.images[0].tolist()
        == load_data(root, 16, skip_bad_images=True).train.images[24].tolist()
    )
    assert changed.fingerprint != known


def test_images_that_change_while_they_are_decoded_are_not_kept(
    tmp_path, digits, monkeypatch, capsys
):
    root, read = write_folder(tmp_path / "images", digits), cache.read_into
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "CACHE_FROM", 10)
    one, two = (sorted((root / "train" / name).iterdir())[0] for name in ("one", "two"))
    content = one.read_bytes()

    def slow(*args):
        one.write_bytes(two.read_bytes())
        return read(*args)

    monkeypatch.setattr(cache, "read_into", slow)
    load_data(root, 16)
    assert "images were changed meanwhile" in capsys.readouterr().out
    one.write_bytes(content)
    monkeypatch.setattr(cache, "read_into", read)
    assert load_data(root, 16).fingerprint == load_data(root, 16, memory=10**9).fingerprint
    monkeypatch.setattr(cache, "CACHE_FROM", 1000)  # as they are
    known = load_data(root, 16).fingerprint
    monkeypatch.setattr(cache, "CACHE_FROM", 10)
    assert load_data(root, 16).fingerprint == known


@pytest.mark.parametrize("suffix", [".bytes", ".json", ".key"])
def test_a_flipped_bit_of_the_cache_changes_no_image_and_no_note(suffix, cached, capsys):
    root, folder = cached
    whole, (kept,) = load_data(root, 16, skip_bad_images=True), folder.glob(f"*{suffix}")
    content, random, noticed = kept.read_bytes(), np.random.RandomState(0), 0
    for bit in random.randint(0, 8 * len(content), 12):
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        kept.write_bytes(spoiled)
        capsys.readouterr()
        again = load_data(root, 16, skip_bad_images=True)
        lines = capsys.readouterr().out.splitlines()
        assert again.fingerprint == whole.fingerprint and again.notes == whole.notes
        assert len(lines) <= 1 and all(
            "are damaged" in line and "decoded again" in line for line in lines
        )
        noticed += len(lines)
        assert kept.read_bytes() == content or suffix == ".json"
        assert load_data(root, 16, skip_bad_images=True).notes == whole.notes
        assert not capsys.readouterr().out
        kept.write_bytes(content)
    assert noticed == {".bytes": 12, ".key": 0}.get(suffix, noticed) and (
        noticed or suffix == ".key"
    )


def test_bytes_that_are_damaged_are_never_trained_on_and_the_same_command_decodes_them_again(
    cached, capsys
):
    """Images that stay in their file are checked when they are first read."""
    root, folder = cached
    whole = load_data(root, 16, skip_bad_images=True)
    (kept,) = folder.glob("*.bytes")
    content, written = kept.read_bytes(), kept.stat().st_mtime_ns
    for place, batches in (
        (-1, "test_batches"),
        (40 * 768 + 5, "test_batches"),
        (0, "train_batches"),
    ):
        os.utime(kept, ns=(1, written))
        large = load_data(root, 16, skip_bad_images=True, memory=1000)
        spoiled = bytearray(content)
        spoiled[place] ^= 1
        with open(kept, "r+b") as file:  # while a run reads it
            file.write(spoiled)
        os.utime(kept, ns=(1, large.test.images.stamp[1]))  # as if nobody had written to it
        with pytest.raises(
            InputError, match="changed on the disk.*same command decodes them again"
        ):
            list(
                large.test_batches() if batches == "test_batches" else large.train_batches(8, (0,))
            )
        again = load_data(root, 16, skip_bad_images=True, memory=1000)
        assert again.fingerprint == whole.fingerprint, "so that --resume=True goes on"
        assert kept.read_bytes() == content
        written = kept.stat().st_mtime_ns
    capsys.readouterr()
    kept.write_bytes(spoiled)  # between two runs: known by its time, and put right at once
    assert load_data(root, 16, skip_bad_images=True, memory=1000).fingerprint == whole.fingerprint
    assert "are damaged" in capsys.readouterr().out and kept.read_bytes() == content


STRANGE = {
    "a pipe": os.mkfifo,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nowhere": lambda path: path.symlink_to("gone"),
    "a folder": os.mkdir,
    "nothing": lambda path: path.touch(),
    "a large file": lambda path: os.truncate(path.touch() or path, 1 << 40),
    **{
        text[:20]: lambda path, text=text: path.write_text(text)
        for text in (
            "[]",
            "{}",
            "3",
            '"text"',
            "null",
            "[" * 100_000,
            '{"white": 3, "unreadable": [], "remarks": {}}',
            '{"unreadable": [], "white": {}, "remarks": [], "sums": 7, "checksum": 1}',
            "\0" * 100,
            "ä ö",
        )
    },
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("suffix", [".bytes", ".json", ".key"])
def test_what_is_no_file_of_the_cache_is_decoded_again(suffix, kind, cached, soon, capsys):
    root, folder = cached
    whole, (kept,) = load_data(root, 16, skip_bad_images=True), folder.glob(f"*{suffix}")
    kept.unlink()
    STRANGE[kind](kept)
    other = folder / "another.key"  # of another folder: it is looked at, too
    STRANGE[kind](other)
    for memory in (1000, None):
        capsys.readouterr()
        again = load_data(root, 16, skip_bad_images=True, memory=memory)
        assert again.fingerprint == whole.fingerprint and again.notes == whole.notes
        lines = capsys.readouterr().out.splitlines()
        assert all("damaged" in line or "could not be kept" in line for line in lines), lines
    assert kind == "a folder" or kept.is_file() and not kept.is_symlink() and not lines


def test_the_cache_folders_name_is_printed_without_control_characters(
    tmp_path, digits, monkeypatch, capsys
):
    root, place = write_folder(tmp_path / "images", digits), tmp_path / "a\x1b[31mb\udcff"
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    large = load_data(root, 16, memory=1000)
    assert r"a\x1b[31mb\udcff" in large.place_text(8)
    (kept,) = (place / "orthoreg").glob("*.bytes")
    kept.write_bytes(b"")
    load_data(root, 16, memory=1000)
    shutil.rmtree(place)
    place.touch()
    load_data(root, 16, memory=1000)
    said = capsys.readouterr().out
    assert "\x1b" not in said and said.count(r"a\x1b[31mb\udcff") == 2 and "are damaged" in said


def test_what_killed_runs_left_in_the_cache_goes(tmp_path, digits, monkeypatch):
    root, folder = write_folder(tmp_path / "images", digits), tmp_path / "cache/orthoreg"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder.mkdir(parents=True)
    for name, time in (("killed.tmp", 1), ("living.tmp", None), ("older.pt", None)):
        (folder / name).touch()
        os.utime(folder / name, time and (time, time))
    load_data(root, 16, memory=1000)
    assert sorted(path.suffix for path in folder.iterdir()) == [".bytes", ".json", ".key", ".tmp"]


def test_without_a_home_images_are_decoded_each_time(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where HOME is unknown
    monkeypatch.setattr(cache, "CACHE_FROM", 10)
    assert len(load_data(folder, 16).train) == 36
    assert "could not be kept" in capsys.readouterr().out and not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ folders as they are


def keep(root, *parts):
    """Give the folders train/ and test/ of an image folder other names, or take them away."""
    for old, new in zip(("train", "test"), parts):
        if new:
            (root / old).rename(root / new)
        else:
            shutil.rmtree(root / old)


def thumbnails(root):
    for image in list(root.rglob("*.png")):
        folder = image.parent / "@eaDir" / image.name
        folder.mkdir(parents=True)
        shutil.copy(image, folder / "SYNOPHOTO_THUMB_M.png")
    (root / "train" / "__MACOSX" / "one").mkdir(parents=True)
    (root / "train" / "one" / "Thumbs.db").write_bytes(b"x")
    (root / "train" / ".ipynb_checkpoints").mkdir()


def flat_test(root):
    keep(root, "train", "val")
    (root / "test").mkdir()
    shutil.copy(next((root / "val/one").iterdir()), root / "test")


def deepen(root, *names, classes=("one", "three", "two")):
    """Move the images of classes into folders within their folders, in turn."""
    for part, name in itertools.product(("train", "test"), classes):
        for image, inner in zip(sorted((root / part / name).iterdir()), itertools.cycle(names)):
            (root / part / name / inner).mkdir(exist_ok=True)
            image.rename(root / part / name / inner / image.name)


def decomposed(root):
    (root / "train/one").rename(root / "train" / unicodedata.normalize("NFD", "é"))
    (root / "test/one").rename(root / "test" / unicodedata.normalize("NFC", "é"))


def tiny(root):
    """Tiny-ImageNet after the usual script, whose list of the validation images stays behind."""
    keep(root, "train", "val")
    (root / "test/images").mkdir(parents=True)
    shutil.copy(next((root / "val/one").iterdir()), root / "test/images")
    (root / "val/val_annotations.txt").write_text("gone.png\tone\t0\t0\t9\t9\n")


# what is done to a folder with train/ and test/ -> images of each part, and what is said
SHAPES = {
    "valid": (lambda root: keep(root, "train", "valid"), (36, 18, 0), ["Test images: those in"]),
    "Training and Validation": (
        lambda root: keep(root, "Training", "Validation"),
        (36, 18, 0),
        ["Test images: those in"],
    ),
    "both": (
        lambda root: shutil.copytree(root / "test", root / "val"),
        (36, 18, 18),
        ["Validation images, which choose the best epoch: those in"],
    ),
    "a flat test": (flat_test, (36, 18, 0), ["Left out: 1 image in", "Test images: those in"]),
    "tiny": (tiny, (36, 18, 0), ["Left out: 1 image in", "Test images: those in"]),
    "another folder": (lambda root: (root / "masks").mkdir(), (36, 18, 0), ["Left out: masks/ in"]),
    "an empty class": (
        lambda root: [(root / part / "none").mkdir() for part in ("train", "test")],
        (36, 18, 0),
        ["Left out: none/, which has no images"],
    ),
    "an empty class in test": (
        lambda root: (root / "test/none").mkdir(),
        (36, 18, 0),
        ["Left out: none/"],
    ),
    "tiny, its empty folder left": (
        lambda root: [tiny(root), (root / "val/images").mkdir()],
        (36, 18, 0),
        ["Left out: 1 image in", "Left out: images/, which has no images", "Test images: those in"],
    ),
    "a validation folder without images": (
        lambda root: [
            (root / "val" / name).mkdir(parents=True) for name in ("one", "two", "three")
        ],
        (36, 18, 0),
        [],
    ),
    "a loose image": (
        lambda root: shutil.copy(next((root / "train/one").iterdir()), root / "train"),
        (36, 18, 0),
        ["Left out: 1 image in no folder of a class"],
    ),
    "systems": (thumbnails, (36, 18, 0), ["Left out: 7 folders that a system made"]),
    "classes within folders": (
        lambda root: deepen(root, "x", "y"),
        (36, 18, 0),
        [
            "Note: one/, three/, two/ hold folders of images, not images: one/x/, one/y/, three/x/, ..."
        ],
    ),
    "one class within": (
        lambda root: deepen(root, "x", "y", classes=("two",)),
        (36, 18, 0),
        [
            "Note: two/ hold folders of images, not images: two/x/, two/y/. If these are the classes, move them up"
        ],
    ),
    "one folder within each": (lambda root: deepen(root, "images"), (36, 18, 0), []),
    "links that lead nowhere": (
        lambda root: [
            (root / place).symlink_to("gone") for place in ("notes", "train/one/notes.txt")
        ],
        (36, 18, 0),
        ["Left out: 1 file that is no image"],
    ),
    "decomposed": (decomposed, (36, 18, 0), []),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_folder_holds_is_found_and_said(shape, tmp_path, digits):
    root = write_folder(tmp_path / "images", digits)
    change, counts, says = SHAPES[shape]
    change(root)
    images = load_data(root, 16)
    assert (
        tuple(len(part or ()) for part in (images.train, images.test, images.validation)) == counts
    )
    assert len(images.classes) == 3 and len(images.notes) == len(says)
    for text, note in zip(says, images.notes):
        assert note.startswith(text) and ("1 image in /" not in note or "no folders of the" in note)
    test = load_test(root, Preparation(16), images.classes)
    assert torch.equal(test.test.images, images.test.images)
    if images.validation:
        assert images.chosen_on == "validation"
        with pytest.raises(InputError, match="has validation images of its own"):
            images.hold_out(10, 0)


def nowhere(root, *places):
    for place in places:
        shutil.rmtree(root / place, ignore_errors=True)
        (root / place).symlink_to(place if place.endswith("itself") else "/no/such/folder")


@pytest.mark.parametrize(
    "places",
    [
        ("train/three",),
        ("test/three",),
        ("train/three", "test/three"),
        ("train/one/more",),
        ("train/itself",),
        ("train",),
        ("Val",),
        ("test",),
    ],
)
def test_a_link_that_leads_nowhere_where_a_folder_may_have_been_is_refused(
    places, tmp_path, digits
):
    root = write_folder(tmp_path / "images", digits)
    nowhere(root, *places)
    with pytest.raises(
        InputError, match=f"{places[0]} is a link to .* is not there; mend or remove the link"
    ):
        load_data(root, 16, skip_bad_images=True)


def flat(root):
    """All images in one folder, without folders of classes."""
    for image in list(root.rglob("*.png")):
        image.rename(root / f"{image.parent.name}-{image.parent.parent.name}-{image.name}")
    shutil.rmtree(root / "train")
    shutil.rmtree(root / "test")


def table_beside(root):
    flat(root)
    (root / "train").mkdir()
    for image in root.glob("*.png"):
        image.rename(root / "train" / image.name)
    (root / "train.csv").write_text("file,label\n")


def only(root, name):
    shutil.rmtree(root)
    root.mkdir()
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(b"")


TABLES = {
    "a list": (
        lambda root: [flat(root), (root / "labels.csv").write_text("file,label\n")],
        (
            "one-test-",
            "are in no folder of a class",
            "If labels.csv has the classes",
            "Images from tables",
        ),
    ),
    "a list beside": (
        table_beside,
        ("are in no folder of a class", "If train.csv has", "Images from tables"),
    ),
    "no list": (flat, ("one-test-", "are in no folder of a class")),
    "shards": (
        lambda root: only(root, "data/train-00000-of-00001.parquet"),
        ("images in files such as train-00000-of-00001.parquet", "Images from tables"),
    ),
    "arrays": (lambda root: only(root, "x_train.npy"), ("files such as x_train.npy",)),
    "zip": (
        lambda root: only(root, "my photos.zip"),
        (
            "my photos.zip is an archive",
            "python -m zipfile -e '{root}/my photos.zip' '{root}/my photos'",
        ),
    ),
    "tar": (
        lambda root: only(root, "photos.tar.gz"),
        ("python -m tarfile -e {root}/photos.tar.gz {root}/photos",),
    ),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("percent", [0, 20])
def test_images_that_are_in_no_folders_are_named_with_what_brings_them_there(
    kind, percent, tmp_path, digits
):
    root, (change, says) = write_folder(tmp_path / "images", digits), TABLES[kind]
    change(root)
    with pytest.raises(InputError) as error:
        load_data(root, 16, test_percent=percent)
    assert all(text.format(root=root) in str(error.value) for text in says), error.value
    for archive in (*root.glob("*.zip"), *root.glob("*.gz")):  # given as the folder itself
        with pytest.raises(InputError, match=f"{archive.name} is an archive: unpack it"):
            load_data(archive, 16)


def test_the_few_lines_that_bring_images_from_tables_into_folders(tmp_path, digits, monkeypatch):
    """As lab/README.md has them."""
    monkeypatch.chdir(tmp_path)
    section = (
        (ROOT / "lab/README.md").read_text().split("### Images from tables")[1].split("\n## ")[0]
    )
    from_list, from_parquet, from_arrays = re.findall(r"```python\n(.*?)```", section, re.S)
    root = write_folder(tmp_path / "photos", digits)
    flat(root)
    names = sorted(image.name for image in root.iterdir())
    (root / "labels.csv").write_text(
        "file,label\n" + "".join(f"{name},{name.split('-')[0]}\n" for name in names)
    )
    np.savez("photos.npz", x=digits.train.images[:30].numpy(), y=digits.train.labels[:30].numpy())
    ways = {from_list: (len(names), ("one", "three", "two")), from_arrays: (30, digits.classes)}
    if find_spec("pyarrow"):
        import pyarrow
        import pyarrow.parquet

        (root / "data").mkdir()
        table = {
            "image": [{"bytes": (root / name).read_bytes(), "path": name} for name in names],
            "label": [name.split("-")[0] for name in names],
        }
        pyarrow.parquet.write_table(pyarrow.table(table), root / "data/train-0.parquet")
        ways[from_parquet] = ways[from_list]
    for lines, (count, classes) in ways.items():
        assert lines.count("\n") <= 7
        exec(lines, {})
        images = load_data("sorted", 16, test_percent=20)
        assert len(images.train) + len(images.test) == count and images.classes == classes
        shutil.rmtree("sorted")


def test_a_class_whose_folder_has_no_text_for_a_name_gets_one(tmp_path, digits, capsys):
    """A folder's name in Latin-1, as archives from elsewhere have it: in all that is written, too."""
    root = write_folder(tmp_path / "images", digits)
    for part in ("train", "test"):
        os.rename(root / part / "two", os.fsencode(root / part) + b"/caf\xe9")
        image = sorted((root / part / "one").iterdir())[0]
        os.rename(image, os.fsencode(image.parent) + b"/\xe9.png")
    data = load_data(root, 16)
    assert data.classes == (r"caf\udce9", "one", "three")
    for name in data.classes:
        assert name.encode() and (data.train.labels.bincount() == 12).all()
    for classes in (data.classes, ("caf\udce9", "one", "three")):  # also as older networks have it
        assert torch.equal(load_test(root, Preparation(16), classes).test.labels, data.test.labels)
    print_classes(torch.eye(3, dtype=torch.int64), data.classes, tmp_path / "net")
    assert r"caf\udce9" in capsys.readouterr().out
    assert r"caf\udce9" in (tmp_path / "net_classes.csv").read_text(encoding="utf-8")
    assert (
        to_csv([{"file": str(next((root / "test").glob("caf*")))}])
        .decode()
        .endswith("caf\\udce9\n")
    )


def test_a_folder_of_classes_is_split_in_the_same_way_every_time(tmp_path, digits):
    root = write_folder(tmp_path / "images", digits, train=10, test=5)
    with pytest.raises(InputError, match="one/ and three/ are classes, --test_percent=20"):
        load_data(root / "train", 16)
    with pytest.raises(InputError, match="images has test/"):
        load_data(root, 16, test_percent=20)
    parts = (
        load_data(root / "train", 16, test_percent=30),
        load_data(root / "train", 16, test_percent=30),
    )
    assert [len(part) for part in (parts[0].train, parts[0].test)] == [21, 9]
    assert parts[0].test.labels.bincount().tolist() == [3, 3, 3]
    (root / "train").rename(tmp_path / "moved")
    assert {parts[0].fingerprint, parts[1].fingerprint} == {
        load_data(tmp_path / "moved", 16, test_percent=30).fingerprint
    }
    both = torch.cat((parts[0].train.images, parts[0].test.images)).flatten(1).unique(dim=0)
    assert len(both) > 25, "no image is in both, but for equal drawings"
    parts = split_files(tmp_path / "moved")
    shutil.copy(tmp_path / "moved/one" / parts["train"][0], tmp_path / "moved/one/0.5.png")
    changed = set(parts["test"]) ^ set(split_files(tmp_path / "moved")["test"])
    assert changed <= {"0.5.png", *parts["test"]} and len(changed) <= 2, (
        "others stay where they are"
    )
    for image in list((tmp_path / "moved/one").iterdir())[1:]:
        image.unlink()
    images = load_data(tmp_path / "moved", 16, test_percent=30)
    assert images.train.labels.bincount().tolist() == [1, 7, 7]
    assert images.test.labels.bincount(minlength=3).tolist() == [0, 3, 3]
    assert any(
        "class 'one' has a single image, which is for training" in note for note in images.notes
    )
    (tmp_path / "moved/two").rename(tmp_path / "moved/train")  # as there are buses, cars and trains
    assert load_data(tmp_path / "moved", 16, test_percent=30).classes == ("one", "three", "train")


def split_files(root):
    """{part: names of the files of class "one"}."""
    parts = find_parts(root, 30).parts
    return {
        part: [os.path.basename(file) for file in files["one"]] for part, files in parts.items()
    }


def test_test_images_alone_are_known_by_the_networks_classes(tmp_path, digits):
    root, classes = write_folder(tmp_path / "images", digits), ("one", "three", "two")
    whole = load_data(root, 16)
    for place in (root, root / "test"):
        test = load_test(place, Preparation(16), classes)
        assert test.train is None and test.classes == classes and len(test.test) == 18
        assert torch.equal(test.test.images, whole.test.images)
    for name in ("train", "test"):  # a class may be called so
        shutil.copytree(root / "test/one", tmp_path / "named" / name)
    shutil.copytree(root / "test/two", tmp_path / "named/two")
    named = load_test(tmp_path / "named", Preparation(16), ("test", "train", "two"))
    assert named.test.labels.bincount().tolist() == [6, 6, 6]
    shutil.rmtree(root / "test/one")
    test = load_test(root, Preparation(16), classes)
    assert test.test.labels.tolist() == [1] * 6 + [2] * 6
    assert any("no test images of 1 class: one" in note for note in test.notes)
    (root / "test/four").mkdir()
    shutil.copy(next((root / "test/two").iterdir()), root / "test/four")
    with pytest.raises(InputError, match="'four' is none of the network's"):
        load_test(root, Preparation(16), classes)


def test_a_rare_class_keeps_an_image_on_both_sides(tmp_path, digits):
    root = write_folder(tmp_path / "images", digits, classes=("one", "two"), train=20)
    write_folder(tmp_path / "images", digits, classes=("rare",), train=4)
    write_folder(tmp_path / "images", digits, classes=("single",), train=1)
    held = load_data(root, 16).hold_out(10, 0)
    counts = held.validation.labels.bincount(minlength=4), held.train.labels.bincount(minlength=4)
    assert held.classes == ("one", "rare", "single", "two")
    assert [column.tolist() for column in counts] == [[2, 1, 0, 2], [18, 3, 1, 18]]
    assert any("holds out 1 of the 4 training images of class 'rare'" in n for n in held.notes)


# ------------------------------------------------------------------------------- pixels as they are


def test_deep_pixels_have_one_rule_for_a_data_set(tmp_path):
    from PIL import Image

    values = {"pgm": (100, 255, 256, 300, 30_000), "tif": (0.25, 1.0, 1.5, 200.0)}
    paths = []
    for suffix, numbers in values.items():
        for value in numbers:
            paths.append(str(tmp_path / f"{value}.{suffix}"))
            kind = np.uint16 if suffix == "pgm" else np.float32
            Image.fromarray(np.full((8, 8), value, kind)).save(paths[-1])
    read = images.read_images({"all": paths}, images.Fit(8))
    grey = read.parts["all"][:, 4, 4, 0].tolist()
    assert grey[:5] == [0, 1, 1, 1, 116] or grey[:5] == [1, 3, 3, 4, 255 * 30_000 // 32_767]
    assert (
        grey[5:] == [0, 1, 1, 200] and read.white["float"] == 255 and grey[:5] == sorted(grey[:5])
    )
    alone = {"one": paths[5:6]}
    again = images.read_images(alone, images.Fit(8), read.white)  # by the same rule
    assert again.parts["one"].max() == 0
    assert images.read_images({"one": paths[5:6]}, images.Fit(8)).parts["one"].max() == 63
    assert images.decode(paths[4], 8)[0, 0].tolist() == [116] * 3
    twelve = tmp_path / "twelve.tif"  # bits that a camera fills
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(twelve)
    read = images.read_images({"one": [str(twelve)]}, images.Fit(8))
    assert read.white == {"integer": 4095} and read.parts["one"].max() == 249
    assert "0 = black to 4,095 = white" in images.describe(read)[0]


def deep_png(path, pixels):
    """Write colours of 16 bits, which Pillow cannot."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width, bands = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return str(path)


def tiff(path, pixels, order="<", packed=False, **tags):
    """Write bands without saying what those after the third one are. tags: t339=..., or a value for each band."""
    height, width, bands = pixels.shape
    content = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    content = zlib.compress(content) if packed else content
    place, values = (
        8,
        {
            256: [width],
            257: [height],
            258: [8 * pixels.itemsize] * bands,
            259: [8 if packed else 1],
            262: [2],
            273: [0],
            277: [bands],
            278: [height],
            279: [len(content)],
        },
    )
    values |= {int(name[1:]): value for name, value in tags.items()}
    place += 2 + 12 * len(values) + 4
    extra, entries = b"", b""
    values[273] = [place + sum(2 * len(value) for value in values.values() if len(value) > 2)]
    for tag, value in sorted(values.items()):
        shorts = struct.pack(f"{order}{len(value)}H", *value)
        if len(shorts) > 4:
            shorts, extra = struct.pack(f"{order}I", place + len(extra)), extra + shorts
        entries += struct.pack(f"{order}HHI", tag, 3, len(value)) + shorts.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(values))
    path.write_bytes(head + entries + bytes(4) + extra + content)
    return str(path)


def test_colours_of_16_bits_have_the_same_rule_as_grey(tmp_path):
    from PIL import Image, ImageOps

    colours = np.random.RandomState(0).randint(0, 4096, (20, 16, 3)).astype(np.uint16)
    colours[0, 0, 1] = 4000
    paths = [
        deep_png(tmp_path / "x.png", colours),
        *(
            tiff(tmp_path / f"{ord(order)}{packed}.tif", colours, order, packed)
            for order in "<>"
            for packed in (False, True)
        ),
    ]
    read = images.read_images({"all": paths}, images.Fit(8))
    assert read.white == {"colour": 4095} and not read.remarks and not read.unreadable
    assert "colours of 16 bits are read as 0 = black to 4,095 = white" in images.describe(read)[0]
    wanted = (
        np.stack(
            [
                ImageOps.fit(
                    Image.fromarray(colours[..., k].astype(np.float32)),
                    (8, 8),
                    Image.Resampling.BILINEAR,
                )
                for k in range(3)
            ],
            2,
        )
        * 255
        / 4095
    )
    for path, pixels in zip(paths, read.parts["all"]):
        assert (np.abs(pixels.numpy() - wanted) <= 1).all(), path
        assert np.array_equal(images.decode(path, 8, read.white), pixels)
    clear = np.dstack([np.full((8, 8, 3), 2000, np.uint16), np.full((8, 8, 1), 32_896, np.uint16)])
    one = {"all": [deep_png(tmp_path / "a.png", clear)]}
    half = images.read_images(one, images.Fit(8), read.white)
    assert (
        np.abs(half.parts["all"][0].numpy() - (2000 * 255 / 4095 + 255) / 2).max() <= 1
    )  # on white
    # One that is brighter than 14 bits: the upper byte of all, to the bit, as ever.
    bright = deep_png(tmp_path / "bright.png", colours * 16)
    read = images.read_images({"all": [*paths, bright]}, images.Fit(8))
    upper = ImageOps.fit(
        Image.fromarray((colours >> 8).astype(np.uint8)), (8, 8), Image.Resampling.BILINEAR
    )
    assert read.white == {"colour": 65_535} and np.array_equal(
        read.parts["all"][0], np.asarray(upper)
    )
    assert np.array_equal(images.decode(paths[0], 8), upper), (
        "alone, where nothing is known of others"
    )


def test_a_fourth_band_is_transparency_only_where_the_file_says_so(tmp_path):
    from PIL import Image

    pixels = np.zeros((8, 8, 4), np.uint8) + np.array([200, 100, 50, 20], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "said.tif")
    assert images.decode(tmp_path / "said.tif", 8)[0, 0].tolist() == [251, 243, 239]
    unsaid = (
        tiff(tmp_path / "unsaid.tif", pixels),
        tiff(tmp_path / "deep.tif", pixels.astype(np.uint16) * 257, ">"),
    )
    read = images.read_images({"all": list(unsaid)}, images.Fit(8))
    assert (read.parts["all"] == torch.tensor([200, 100, 50])).all()
    assert (
        "2 images with a fourth band that the file does not call transparency"
        in images.describe(read)[0]
    )
    pixels[..., 3] = (
        0  # nothing to see, as image viewers have it; but formats without transparency have a 0 there
    )
    Image.fromarray(pixels).save(tmp_path / "x.tga")
    Image.fromarray(pixels).save(tmp_path / "x.png")
    content = pixels[..., [2, 1, 0, 3]].tobytes()
    head = struct.pack(
        "<IiiHHIIiiII4I",
        108,
        8,
        8,
        1,
        32,
        3,
        len(content),
        0,
        0,
        0,
        0,
        255 << 16,
        255 << 8,
        255,
        255 << 24,
    )
    (tmp_path / "x.bmp").write_bytes(
        b"BM"
        + struct.pack("<IHHI", 122 + len(content), 0, 0, 122)
        + head.ljust(108, b"\0")
        + content
    )
    for name in ("x.tga", "x.bmp"):
        read = images.read_images({"all": [str(tmp_path / name)]}, images.Fit(8))
        assert read.parts["all"][0, 0, 0].tolist() == [200, 100, 50]
        assert "transparent everywhere, read without transparency" in images.describe(read)[0]
    assert images.decode(tmp_path / "x.png", 8).min() == 255


def test_negative_pixels_are_black_and_the_line_says_where_to_read_on(tmp_path):
    path = tiff(
        tmp_path / "x.tif", np.full((8, 8, 1), -1000, np.int16).view(np.uint16), t262=[1], t339=[2]
    )
    read = images.read_images({"all": [path]}, images.Fit(8))
    assert (
        read.parts["all"].max() == 0
        and "negative pixels, read as black; lab/README.md" in images.describe(read)[0]
    )


def test_pixels_that_are_no_numbers_are_black_and_counted(tmp_path):
    from PIL import Image

    pixels = np.full((8, 8), 0.5, np.float32)
    pixels[0, 7], pixels[1, 1] = np.nan, -3
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    read = images.read_images({"one": [str(tmp_path / "x.tif")]}, images.Fit(8))
    grey = read.parts["one"][0, :, :, 0]
    assert grey[0, 7] == grey[1, 1] == 0 and (grey == 127).sum() == 62
    assert (
        sum("that are no numbers" in line or "negative" in line for line in images.describe(read))
        == 2
    )


def test_white_is_zero_and_empty_alpha(tmp_path):
    from PIL import Image, TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    Image.fromarray(np.full((8, 8), 65_535, np.uint16)).save(tmp_path / "x.tif", tiffinfo=tags)
    assert images.decode(tmp_path / "x.tif", 8).max() == 0
    colours = np.random.RandomState(0).randint(0, 255, (8, 8, 4), np.uint8)
    colours[..., 3] = 0
    Image.fromarray(colours).save(tmp_path / "x.png")
    read = images.read_images({"one": [str(tmp_path / "x.png")]}, images.Fit(8))
    assert np.array_equal(read.parts["one"][0].numpy(), colours[..., :3])
    assert "transparent everywhere" in images.describe(read)[0]
    Image.new("RGB", (5, 5)).save(tmp_path / "x.bmp")  # 16 bytes in a row are not 16 bits
    assert not images.read_images({"one": [str(tmp_path / "x.bmp")]}, images.Fit(8)).remarks
    deep = np.array([[1000] * 4 + [4_000_000_000] * 4] * 4, np.uint32)
    Image.fromarray(deep.view(np.int32)).save(tmp_path / "u.tif")
    signed, unsigned = (struct.pack("<HHII", 339, 3, 1, form) for form in (2, 1))  # SampleFormat
    content = (tmp_path / "u.tif").read_bytes()
    (tmp_path / "u.tif").write_bytes(content.replace(signed, unsigned))
    assert signed in content
    assert images.decode(tmp_path / "u.tif", 4, {"integer": 4e9})[0].max(1).tolist() == [
        0,
        0,
        255,
        255,
    ]
    lab = Image.merge("LAB", [Image.new("L", (8, 8), value) for value in (255, 128, 128)])
    lab.save(tmp_path / "lab.tif")
    assert images.decode(tmp_path / "lab.tif", 8).min() > 245


def test_what_viewers_show_is_read_whatever_stands_beside_the_pixels(tmp_path):
    from PIL import Image, PngImagePlugin

    rows, columns = np.mgrid[:16, :16].astype(np.uint8) * 15
    pixels = np.stack((rows, columns, rows // 2 + 60), 2)
    image = Image.fromarray(pixels)
    tags = b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHI4s", 0x112, 3, 1, b"\6\0\0\0")
    tags += struct.pack("<HHI4s", 0x11A, 2, 3, b"72\0\0") + b"\0" * 4  # a number that is a text
    image.save(tmp_path / "turned.jpg", quality=95, exif=b"Exif\0\0" + tags)
    image.save(tmp_path / "exif.png", exif=b"Exif\0\0this is no tiff")
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "x" * 2_000_000, zip=True)
    image.save(tmp_path / "text.png", pnginfo=text)
    image.save(tmp_path / "profile.png", icc_profile=os.urandom(1_500_000))
    image.save(tmp_path / "frames.gif", save_all=True, append_images=[image.rotate(90)] * 2)
    image.save(tmp_path / "picture.jfif", quality=95)
    image.save(tmp_path / "stereo.mpo", quality=95)
    image.save(tmp_path / "nothing.png")
    (tmp_path / "nothing.png").rename(tmp_path / "no_suffix")
    names = (
        "turned.jpg",
        "exif.png",
        "text.png",
        "profile.png",
        "frames.gif",
        "picture.jfif",
        "no_suffix",
        "stereo.mpo",
    )
    paths = [str(tmp_path / name) for name in names]
    assert all(map(images.is_image, paths))
    read = images.read_images({"all": paths}, images.Fit(16))
    assert not read.unreadable and sum(count for count, _ in read.remarks.values()) == 4
    turned, *others = read.parts["all"].int()
    assert (turned - torch.tensor(np.rot90(pixels, -1).copy()).int()).abs().float().mean() < 12
    for other in others:
        assert (other - torch.tensor(pixels).int()).abs().float().mean() < 12
    assert torch.equal(others[1], torch.tensor(pixels).int())  # without its texts


def test_large_photographs_are_decoded_small_and_too_large_ones_named(tmp_path, monkeypatch):
    from PIL import Image

    Image.new("RGB", (6000, 5000), (90, 60, 30)).save(tmp_path / "photo.jpg")
    monkeypatch.setattr(images, "LARGEST", 30_000_000)  # bytes; whole it takes 120 million
    assert abs(images.decode(tmp_path / "photo.jpg", 8).astype(int) - (90, 60, 30)).max() <= 2
    Image.new("RGB", (6000, 5000)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="6,000 x 5,000 pixels take 0.1 GB .* is the most"):
        images.decode(tmp_path / "photo.png", 8)
    assert Image.MAX_IMAGE_PIXELS  # Pillow's own bound is as it was


def test_random_parts_are_resized_and_mirrored_and_centres_tested(tmp_path, digits):
    """Each pixel of a picture says where it was: red is its column, green its row."""
    from PIL import Image
    from torchvision.transforms import functional as T

    rows, columns = np.mgrid[:73, :73].astype(np.float32) * 255 / 72
    place = np.stack((columns, rows, 0 * rows), 2).round().astype(np.uint8)
    for part, name in itertools.product(("train", "test"), "ab"):
        (tmp_path / "images" / part / name).mkdir(parents=True)
        for k in range(40):
            Image.fromarray(place).save(tmp_path / "images" / part / name / f"{k}.png")
    data = load_data(tmp_path / "images", 64, augment="crop")
    assert data.train.images.shape[1] == 73 and data.image_size == 64  # 64 * 256 / 224
    ((images, _),) = data.train_batches(100, (0,))
    assert images.shape == (80, 3, 64, 64) and images.is_contiguous(
        memory_format=torch.channels_last
    )
    red, green = ((images[:, k] + 1) / 2 for k in (0, 1))
    width, height = red[:, :, -1] - red[:, :, 0], green[:, -1] - green[:, 0]
    assert (width.std(1) < 0.01).all() and (height.std(1) < 0.01).all(), "straight"
    width, height = width.mean(1) * 64 / 63, height.mean(1) * 64 / 63  # from centre to centre
    assert 20 < (width < 0).sum() < 60 and (height > 0).all()
    area, ratio = (width * height).abs(), (width / height).abs()
    assert 0.07 < area.min() < 0.25 and 0.8 < area.max() < 1.02 and 0.45 < area.mean() < 0.62
    assert (0.73 < ratio).all() and (ratio < 1.36).all() and ratio.std() > 0.1
    assert red.min() < 0.02 and red.max() > 0.98 and red[:, 0, 0].std() > 0.1, "from everywhere"
    ((again, _),) = data.train_batches(100, (0,))
    ((other, _),) = data.train_batches(100, (1,))
    assert torch.equal(images, again) and not torch.equal(images, other)
    unmirrored = load_data(tmp_path / "images", 64, augment="crop", flip=False)
    ((images, _),) = unmirrored.train_batches(100, (0,))
    assert (images[:, 0, 0, -1] > images[:, 0, 0, 0]).all()
    tested, _ = next(iter(data.test_batches()))
    wanted = T.normalize(
        T.to_tensor(T.center_crop(Image.fromarray(place), 64)), [0.5] * 3, [0.5] * 3
    )
    assert torch.allclose(tested[0], wanted, atol=1e-6)


def test_without_augmentation_images_are_as_they_are():
    data = load_data("digits", 16, augment="none")
    for epoch in range(2):
        ((images, labels),) = data.train_batches(2000, (epoch,))
        order = torch.randperm(1437, generator=torch.Generator().manual_seed(seed_of(epoch)))
        assert torch.equal(images, data.train.images[order].permute(0, 3, 1, 2) / 127.5 - 1)
        assert torch.equal(labels, data.train.labels[order])


def test_images_of_two_runs_that_are_prepared_alike_are_known_as_the_same_and_once_read():
    """A sweep reads them once. What differs in anything is another preparation."""
    flags = parse(["--data_path=digits", "--only_train=base", "--normalize=cifar", "--memory=2"])
    numbers = [str(number) for number in NORMALIZATIONS["cifar"]]
    same = replace(flags, normalize=tuple(map(float, numbers)), seed=3, width=0.5)
    assert flags.preparation == same.preparation and len({flags.preparation, same.preparation}) == 1
    for name, value in {
        "image_size": 16,
        "skip_bad_images": True,
        "test_percent": 20,
        "normalize": "half",
        "augment": "none",
        "flip": False,
        "memory": 1,
        "interpolation": "bicubic",
    }.items():
        assert replace(flags, **{name: value}).preparation != flags.preparation, name
    with pytest.raises(TypeError, match="sise"):
        load_data("digits", sise=16)


@pytest.mark.parametrize(
    "normalize, means, deviations",
    [
        ("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    ],
)
def test_batches_are_normalised(normalize, means, deviations):
    images = load_data("digits", 16, normalize=normalize)
    batch, _ = next(iter(images.test_batches()))
    wanted = (
        images.test.images[: len(batch)].permute(0, 3, 1, 2) / 255
        - torch.tensor(means).view(3, 1, 1)
    ) / torch.tensor(deviations).view(3, 1, 1)
    assert torch.allclose(batch, wanted, atol=1e-5)
