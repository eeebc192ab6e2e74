"""Every source of images ends up as the same thing: RGB bytes of one size, labels, class names."""
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from torchvision import datasets

from common import images
from common.errors import InputError
from conftest import write_folder
from data import folder_of, load_data


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
    assert images.classes == ("one", "three", "two") and images.name == folder_of(folder) == "shapes"
    assert images.train.labels.bincount().tolist() == [12] * 3
    assert images.test.labels.bincount().tolist() == [6] * 3 and images.flip
    ones = digits.train.images[digits.train.labels == 1][:12]
    assert {i.numpy().tobytes() for i in images.train.images[:12]} == {
        i.numpy().tobytes() for i in ones}, "lossless at the same size"
    assert load_data(folder, 20).train.images.shape == (36, 20, 20, 3)


@pytest.mark.parametrize("mode, colour, expected", [
    ("L", 100, (100, 100, 100)), ("RGB", (10, 20, 30), (10, 20, 30)),
    ("RGBA", (10, 20, 30, 255), (10, 20, 30)), ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
    ("LA", (80, 255), (80, 80, 80)), ("1", 1, (255, 255, 255)), ("P", 3, None),
    ("I;16", 40_000, (155, 155, 155)), ("I;16", 200, (0, 0, 0)),
    ("I", 200, (200, 200, 200)), ("I", 40_000, (155, 155, 155)), ("F", 0.5, (127, 127, 127)),
    ("CMYK", (0, 255, 255, 0), (255, 0, 0))])
@pytest.mark.parametrize("size", [(32, 32), (1, 1), (300, 40)])
def test_every_mode_and_size_becomes_rgb(tmp_path, mode, colour, expected, size):
    from PIL import Image
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    if mode in ("I", "F"):
        path = tmp_path / "x.tif"
        Image.fromarray(np.full(size[::-1], colour, np.int32 if mode == "I" else np.float32)
                        ).save(path)
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
    assert torch.equal(images.test.images[images.test.labels == 1],
                       plain.test.images[plain.test.labels == two])


@pytest.mark.parametrize("name, cls, folder, classes, key", [
    ("CIFAR100", datasets.CIFAR100, "cifar-100-python", 100, "fine_label"),
    ("CIFAR10", datasets.CIFAR10, "cifar-10-batches-py", 10, "label")])
def test_cifar_archives(tmp_path, monkeypatch, name, cls, folder, classes, key):
    """Files in the archives' own form, without the archives' checksums."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cls, "_check_integrity", lambda self: True)
    root = tmp_path / "data" / folder
    root.mkdir(parents=True)
    parts = ["train", "test"] if classes == 100 else [f"data_batch_{i}" for i in range(1, 6)] + [
        "test_batch"]
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
    assert all(part in text for part in (
        "http", "no route to host", "cifar-100-python.tar.gz", str(tmp_path / "data"),
        "--data_path=digits")) and "\n" not in text
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="CIFAR100, CIFAR10 or digits"):
        load_data("no/such/folder")


def test_decoded_images_are_kept_until_a_file_changes(tmp_path, digits, monkeypatch, capsys):
    root = write_folder(tmp_path / "images", digits)
    (root / "train/one/bad.png").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "CACHE_FROM", 10)
    decode, decoded = images.decode, []

    def counted(path, size):
        decoded.append(path)
        return decode(path, size)

    monkeypatch.setattr(images, "decode", counted)

    def load(expected, size=16):
        decoded.clear()
        loaded = load_data(root, size, skip_bad_images=True)
        assert bool(decoded) == expected
        return loaded

    first, again = load(True), load(False)
    assert first.fingerprint == again.fingerprint and len(again.train) == 36
    assert "1 of 55 images cannot be read" in capsys.readouterr().out.split("Left out")[-1]
    load(True, size=8)
    load(False)
    picture = sorted((root / "test/two").iterdir())[0]
    picture.write_bytes(sorted((root / "test/one").iterdir())[0].read_bytes())
    changed = load(True)
    assert changed.fingerprint != first.fingerprint
    load(False)
    os.utime(picture, (1, 1))  # of another time: it may hold something else, of the same size
    load(True)
    load(False)
    picture.rename(picture.with_name("renamed.png"))
    load(True)
    for cache in (tmp_path / "cache/orthoreg").iterdir():
        cache.write_bytes(cache.read_bytes()[:1000])
    load(True)
    load(False)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder
    load(True)
    assert "could not be kept" in capsys.readouterr().out


def test_without_a_home_images_are_decoded_each_time(folder, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(images.os.path, "expanduser", lambda path: path)  # as where HOME is unknown
    monkeypatch.setattr(images, "CACHE_FROM", 10)
    assert len(load_data(folder, 16).train) == 36
    assert "could not be kept" in capsys.readouterr().out and not list(tmp_path.iterdir())
