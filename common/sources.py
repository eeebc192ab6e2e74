"""Data sets that are known by a name: CIFAR-100, CIFAR-10, and scikit-learn's digits."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torchvision import datasets

from common.errors import InputError
from common.images import require_memory
from common.libraries import lazy, need

sklearn_datasets = lazy("sklearn.datasets")  # optional

FOLDER = "data"  # where CIFAR is looked for and downloaded to


class Source(NamedTuple):
    """train, test: (uint8, N x size x size x 3; int64, N). flip: whether a mirrored image keeps its
    class."""

    name: str
    classes: tuple
    train: tuple
    test: tuple
    flip: bool = True


def _cifar(cls, archive, fit):
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
                "--data_path=digits, which needs no download"
            ) from error
    train, test = (
        (_resized(torch.from_numpy(part.data), fit), torch.tensor(part.targets)) for part in parts
    )
    return Source(cls.__name__, tuple(parts[0].classes), train, test)


def cifar100(fit):
    return _cifar(datasets.CIFAR100, "cifar-100-python.tar.gz", fit)


def cifar10(fit):
    return _cifar(datasets.CIFAR10, "cifar-10-python.tar.gz", fit)


def digits(fit):
    need("--data_path=digits", "sklearn.datasets")
    drawn = sklearn_datasets.load_digits()
    grey = torch.from_numpy(drawn.images / 16 * 255).float()[..., None].expand(-1, -1, -1, 3)
    pixels, labels = _resized(grey, fit), torch.from_numpy(drawn.target).long()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    train, test = ((pixels[part], labels[part]) for part in (order[360:], order[:360]))
    return Source("digits", tuple(str(n) for n in drawn.target_names), train, test, flip=False)


def _resized(pixels, fit):
    """N x H x W x 3 of any type -> uint8, N x size x size x 3, scaled as the Fit says."""
    size = fit.size

    def resize(part):
        if part.shape[1:3] != (size, size):
            part = (
                F.interpolate(
                    part.permute(0, 3, 1, 2).float(),
                    (size, size),
                    mode=fit.interpolation,
                    antialias=True,
                )
                .permute(0, 2, 3, 1)
                .round_()
                .clamp_(0, 255)  # bicubic pixels may overshoot
            )
        return part.to(torch.uint8).contiguous()

    require_memory(len(pixels), size)
    return torch.cat([resize(part) for part in pixels.split(1000)])  # floats of a part at a time


COUNTS = {
    "cifar100": (100, 50_000, 10_000),
    "cifar10": (10, 50_000, 10_000),
    "digits": (10, 1_437, 360),
}  # classes, training and test images
NAMED = {"cifar100": cifar100, "cifar10": cifar10, "digits": digits}  # functions of a Fit
