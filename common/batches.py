"""Splits of a data set -> batches on the device, augmented or not."""

import copy
import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from common.pixels import FilePixels, moved
from common.seeds import seed_of
from common.threads import ahead, readers

EVAL_PIXELS = {"cuda": 1 << 20}  # in a batch that is not trained on; elsewhere a quarter
HALF = (0.5,) * 6  # means and standard deviations of red, green and blue that give -1..1
AREA, RATIO = (0.08, 1), (3 / 4, 4 / 3)  # of a random part (Szegedy et al. 2015)


@dataclass(frozen=True)
class Split:
    images: torch.Tensor  # uint8, N x H x W x 3; or a FilePixels of such
    labels: torch.Tensor  # int64, N

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        return Split(moved(self.images, device), self.labels.to(device))

    def first(self, count):
        return Split(self.images[:count], self.labels[:count])

    def spread(self, count):
        """`count` of them, evenly spread over all; all where there are no more."""
        if count >= len(self):
            return self
        rows = torch.arange(count, device=self.labels.device) * len(self) // count
        return Split(self.images[rows.cpu() if self.is_elsewhere else rows], self.labels[rows])

    @property
    def device(self):
        """Where batches are: with the labels. Images may stay elsewhere until they are read."""
        return self.labels.device

    @property
    def is_elsewhere(self):
        return isinstance(self.images, FilePixels) or self.images.device != self.device

    def read(self, rows):
        """(images, labels) of some rows, tensors on `device`."""
        if not self.is_elsewhere:
            return self.images[rows], self.labels[rows]
        numbers, kept = rows.cpu(), self.images
        images = kept.read(numbers) if isinstance(kept, FilePixels) else kept[numbers]
        if self.device.type == "cuda":
            images = images.pin_memory()
        return images.to(self.device, non_blocking=True), self.labels[rows]


def plain_batches(split, normalize=HALF, size=None):
    """All images of a split in order, not augmented; of larger ones than `size` the centre."""
    count = EVAL_PIXELS.get(split.device.type, 1 << 18) // split.images.shape[1] ** 2
    return Batches(split, torch.arange(len(split)), max(1, count), normalize=normalize, size=size)


class Batches:
    """Iterates over (images, labels) on the split's device; each iteration gives the same batches.

    images: float32, B x 3 x H x W in channels-last memory, pixels from 0..255 divided by 255 and
    normalised (by default to -1..1); labels: int64, B. With a `seed` images are augmented: with
    "shift" each is shifted by up to an eighth of its size (4 pixels at 32; black comes in); with
    "crop" it is a random part (AREA of the image, of sides in a RATIO), resized; and, if `flip`,
    mirrored with probability 1/2. With "none" nothing is done. What is larger than `size` is cut to
    its centre.
    A last single image joins the batch before it, since BatchNorm cannot train on one.
    batches[i:j:k] are some of them; `share` takes some images of each.
    """

    def __init__(
        self,
        split,
        order,
        batch_size,
        seed=None,
        flip=False,
        normalize=HALF,
        size=None,
        augment="shift",
    ):
        self.split, self.order, self.batch_size = split, order, batch_size
        self.flip, self.processes, self.normalize = flip, 1, normalize
        self.seed = None if augment == "none" else seed
        self.augment, self.size = augment, size or split.images.shape[1]
        self.parts = self._parts(least=2)  # of the order: the images of each batch

    def _parts(self, least):
        """Slices of `batch_size` images; a last one of fewer than `least` joins the one before."""
        count, size = len(self.order), self.batch_size
        starts = range(0, max(min(1, count), count - least + 1), size)
        return [slice(start, min(start + size, count)) for start in starts[:-1]] + [
            slice(start, count) for start in starts[-1:]
        ]

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
        own.parts = [
            slice(part.start + number, part.stop, count) for part in self._parts(least=2 * count)
        ]
        return own

    def weight(self, b):
        """The factor for this process's mean loss over its share of batch `b`. With it, the mean
        over the processes is the mean over all images of the batch."""
        part = self.parts[b]
        first = part.start // self.batch_size * self.batch_size
        return len(range(*part.indices(part.stop))) * self.processes / (part.stop - first)

    def __iter__(self):
        device = self.split.device
        scale, shift = _scale_and_shift(self.normalize, device)
        augmented = None if self.seed is None else AUGMENTATIONS[self.augment](self, device)
        # The reader is asked for one more, so that it ends here, where a signal is heard.
        for (images, labels), part in zip(self._read(), self.parts):
            if augmented:
                images = augmented(images, part)
            else:
                images = _centre(images, self.size)
            images = images.float().div_(scale).sub_(shift)
            yield images.permute(0, 3, 1, 2), labels

    def _read(self):
        """(images, labels) of each batch; those that are elsewhere are read ahead."""
        order = self.order.to(self.split.device)
        if not self.split.is_elsewhere:
            yield from (self.split.read(order[part]) for part in self.parts)
            return
        with readers(1) as pool:
            for future in ahead(pool, lambda part: self.split.read(order[part]), self.parts, 2):
                yield future.result()


def _centre(images, size):
    margin = (images.shape[1] - size) // 2
    return images[:, margin : margin + size, margin : margin + size] if margin else images


def _shifts(batches, device):
    """A function of uint8 images and their part of the order, that shifts and mirrors."""
    count, size = len(batches.order), batches.size
    pad, pixels = size // 8, torch.arange(size, device=device)
    generator = torch.Generator().manual_seed(seed_of(batches.seed, "augmentation"))
    shifts = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).to(device)
    mirrored = torch.rand(count, generator=generator).to(device) < 0.5 * batches.flip

    def shifted(images, part):
        images = F.pad(images, (0, 0, pad, pad, pad, pad))
        # Whole rows of bytes are taken, by where each begins in its image.
        first = (pixels + shifts[0, part, None]) * images.shape[2] + shifts[1, part, None]
        members = torch.arange(len(images), device=device)[:, None]
        images = images.flatten(1).unfold(1, 3 * size, 3)[members, first].view(-1, size, size, 3)
        return torch.where(mirrored[part, None, None, None], images.flip(2), images)

    return shifted


def _crops(batches, device):
    """A function of uint8 images and their part of the order, that cuts out random parts of them,
    resized, and mirrors; the result is float32, from 0 to 255."""
    count, size = len(batches.order), batches.size
    generator = torch.Generator().manual_seed(seed_of(batches.seed, "augmentation"))
    area, ratio, across, down, mirror = torch.rand(5, count, generator=generator)
    area = AREA[0] + area * (AREA[1] - AREA[0])
    ratio = (math.log(RATIO[0]) + ratio * math.log(RATIO[1] / RATIO[0])).exp()
    width, height = ((area * factor).sqrt().clamp(max=1) for factor in (ratio, 1 / ratio))
    # Where the centre is, and how far the sides are away from it, from -1 to 1.
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0] = torch.where(mirror < 0.5 * batches.flip, -width, width)
    maps[:, 1, 1] = height
    maps[:, 0, 2], maps[:, 1, 2] = (2 * across - 1) * (1 - width), (2 * down - 1) * (1 - height)
    maps = maps.to(device)

    def cropped(images, part):
        images = images.permute(0, 3, 1, 2).float()
        grid = F.affine_grid(maps[part], (len(images), 3, size, size), align_corners=False)
        images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return images.permute(0, 2, 3, 1).contiguous()

    return cropped


AUGMENTATIONS = {"shift": _shifts, "crop": _crops}


def _scale_and_shift(normalize, device):
    """(a, b) so that pixels / a - b are normalised: numbers where the colours are treated alike."""
    means, deviations = normalize[:3], normalize[3:]
    scale = [255 * deviation for deviation in deviations]
    shift = [mean / deviation for mean, deviation in zip(means, deviations)]
    if len(set(scale)) == len(set(shift)) == 1:
        return scale[0], shift[0]
    return torch.tensor(scale, device=device), torch.tensor(shift, device=device)
