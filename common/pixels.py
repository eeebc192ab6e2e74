"""Decoded images in a file of bytes, of which a batch is read when it is needed.

Reading goes through the system's page cache, which all processes of a machine share, and which
gives way when memory is short. (A mapping would count as this process's memory, and a file that is
cut short would kill it.)
"""

import copy
import os
import threading
import zlib
from contextlib import suppress
from itertools import compress

import numpy as np
import torch

from common.errors import InputError

CHUNK = 1 << 22  # bytes that are read at once where all are: few enough for a processor's cache


class FilePixels:
    """uint8 images, N x size x size x 3, in an open file, from byte `start`.

    sums: uint32, the CRC-32 of each image, which is checked when the image is first read.
    pixels[rows] are some of them, still in the file; `read` gives a tensor. The file may be removed
    meanwhile. Where it is damaged or changed, reading removes it and raises InputError.
    """

    device = torch.device("cpu")

    def __init__(self, file, start, sums, size):
        self.file, self.start, self.size, self.rows = file, start, size, torch.arange(len(sums))
        self.lock, self.stamp = threading.Lock(), _stamp(file)
        self.sums, self.checked = sums, np.zeros(len(sums), bool)

    @property
    def shape(self):
        return torch.Size((len(self.rows), self.size, self.size, 3))

    def __len__(self):
        return len(self.rows)

    def numel(self):
        return self.shape.numel()

    def __getitem__(self, rows):
        part = copy.copy(self)
        part.rows = self.rows[rows]
        return part

    def read(self, rows=slice(None)):
        """The images of some rows, as a tensor."""
        numbers = self.rows[rows].numpy()
        images = np.empty((len(numbers), self.size, self.size, 3), np.uint8)
        order = np.argsort(numbers, kind="stable")  # in the order of the file
        if (order == np.arange(len(order))).all() and (np.diff(numbers) == 1).all():
            parts = [(numbers[0], images)] if len(numbers) else []  # all that lie side by side
        else:
            parts = ((numbers[row], images[row]) for row in order)
        try:
            with self.lock:
                for number, part in parts:
                    self.file.seek(self.start + int(number) * self.size**2 * 3)
                    if self.file.readinto(part.data) != part.nbytes:
                        raise OSError("it was cut short")
            if _stamp(self.file) != self.stamp:
                raise OSError("it was changed")
            self._check(numbers, images)
        except (OSError, ValueError) as error:
            with suppress(OSError):
                os.unlink(self.file.name)  # or the next start would find it
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{self.file.name}, with the decoded images, cannot be read any more "
                f"({reason}); the same command decodes them again, and goes on with "
                "--resume=True"
            ) from error
        return torch.from_numpy(images)

    def _check(self, numbers, images):
        """Raise OSError where images that nobody has read yet are not those that were written."""
        new = ~self.checked[numbers]
        if not new.any():
            return
        sums = [zlib.crc32(image) for image in compress(images, new)]
        if sums != self.sums[numbers[new]].tolist():
            raise OSError("its bytes have changed on the disk")
        self.checked[numbers] = True

    def chunks(self):
        """All images, some at a time."""
        count = max(1, CHUNK // max(1, self[:1].numel()))
        return (self.read(slice(k, k + count)) for k in range(0, len(self), count))


def in_memory(images, device):
    """The same images as one tensor on a device."""
    if isinstance(images, torch.Tensor):
        return images.to(device)
    whole, start = torch.empty(images.shape, dtype=torch.uint8, device=device), 0
    for chunk in images.chunks():
        whole[start : start + len(chunk)] = chunk
        start += len(chunk)
    return whole


def moved(images, device):
    """Images where batches on `device` are taken from: on a GPU, if they take less than half of the
    memory that is free there; those in a file, or that are too many, stay where they are."""
    device = torch.device(device)
    if device.type == "cuda":
        fit = images.numel() < torch.cuda.mem_get_info(device)[0] // 2
        return in_memory(images, device) if fit else images
    return images.to(device) if isinstance(images, torch.Tensor) else images


def _stamp(file):
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
