"""The names of classes for images."""

import torch

from common.errors import InputError
from common.files import to_csv, write_atomically
from common.folders import image_files
from common.images import WIDEST, describe, read_images
from common.modes import evaluating
from common.terminal import counted, print_notes, print_table, printable
from data import HALF, Split, plain_batches, stored_size

LIKELIEST = 3  # classes that a prediction names


def predict(model, classes, images, normalize=HALF, size=None):
    """[[(class name, probability), ...] of the likeliest classes] for uint8 N x H x W x 3, of which
    the centre is taken where they are larger than `size`."""
    device, results = next(model.parameters()).device, []
    split = Split(images, torch.zeros(len(images), dtype=torch.long)).to(device)
    with evaluating(model), torch.no_grad():
        for batch, _ in plain_batches(split, normalize, size):
            likely = model(batch).softmax(1).topk(min(LIKELIEST, len(classes)))
            results += [
                [(classes[k], p) for k, p in zip(indices, shares)]
                for indices, shares in zip(likely.indices.tolist(), likely.values.tolist())
            ]
    return results


def print_predictions(model, record, path, image_size, skip_bad_images, table):
    """Name the classes of the image, or of all below the folder, at `path`; also as CSV, in the
    file `table`. Raises InputError."""
    rows = []
    files, white = image_files(path), {**WIDEST, **(record.white or {})}
    classes = record.classes or [f"class {k}" for k in range(model.origin.num_classes)]
    stored = stored_size(image_size, record.flag("augment"))
    print(f"Predictions for {counted(len(files), 'image')}, brought to {image_size} x {image_size}")
    for start in range(0, len(files), 1000):
        part = files[start : start + 1000]
        read = read_images({"the": part}, stored, white)
        white = {**read.white, **white}  # all images have one rule
        images, unreadable = read.parts["the"], read.unreadable
        if unreadable and not skip_bad_images:
            file, reason = next(iter(unreadable.items()))
            raise InputError(
                f"{file} cannot be read ({reason}); --skip_bad_images=True leaves such files out"
            )
        good = [file not in unreadable for file in part]
        found = predict(model, classes, images[good], record.normalize or HALF, image_size)
        rows += _rows(part, unreadable, iter(found))
        results = iter(found)
        empty = [""] * (min(LIKELIEST, len(classes)) - 1)
        print_table(
            [
                (file, f"left out: {unreadable[file]}", *empty)
                if file in unreadable
                else (file, *(f"{name} {100 * p:.1f}%" for name, p in next(results)))
                for file in part
            ]
        )
        print_notes(describe(read))
    write_atomically({table: to_csv(rows)})
    print(f"  saved {table}")


def _rows(files, unreadable, results):
    """A dict for each file: "file", "class", "probability" and those of the next likeliest, "left
    out": why it could not be read."""
    for file in files:
        row = {"file": printable(file)}
        for k, (name, share) in enumerate(() if file in unreadable else next(results), 1):
            number = "" if k == 1 else f" {k}"
            row |= {f"class{number}": name, f"probability{number}": round(share, 6)}
        yield {**row, **({"left out": unreadable[file]} if file in unreadable else {})}
