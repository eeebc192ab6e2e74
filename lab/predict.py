"""The names of classes for images."""

import torch

from common.errors import InputError
from common.files import to_csv, write_atomically
from common.folders import image_files
from common.images import WIDEST, Fit, describe, read_images
from common.modes import evaluating
from common.terminal import counted, print_notes, print_table, printable
from data import HALF, Split, plain_batches, stored_size

LIKELIEST = 3  # classes that a prediction names


def predict(model, classes, images, normalize=HALF, size=None):
    """[[(class name, probability), ...] of the likeliest classes] for uint8 N x H x W x 3, of which
    the centre is taken where they are larger than `size`."""
    device = next(model.parameters()).device
    count = min(LIKELIEST, len(classes))
    results = []
    split = Split(images, torch.zeros(len(images), dtype=torch.long)).to(device)
    with evaluating(model), torch.no_grad():
        for batch, _ in plain_batches(split, normalize, size):
            shares, indices = model(batch).softmax(1).topk(count)
            for own_indices, own_shares in zip(indices.tolist(), shares.tolist()):
                names = [classes[k] for k in own_indices]
                results.append(list(zip(names, own_shares)))
    return results


def print_predictions(model, record, path, image_size, skip_bad_images, table):
    """Name the classes of the image, or of all below the folder, at `path`; also as CSV, in the
    file `table`. Raises InputError."""
    files, white = image_files(path), {**WIDEST, **(record.white or {})}
    classes = record.classes or [f"class {k}" for k in range(model.origin.num_classes)]
    fit = Fit(stored_size(image_size, record.flag("augment")), record.interpolation)
    print(f"Predictions for {counted(len(files), 'image')}, brought to {image_size} x {image_size}")
    rows = []
    for start in range(0, len(files), 1000):
        part = files[start : start + 1000]
        read = read_images({"the": part}, fit, white)
        white = {**read.white, **white}  # all images have one rule
        unreadable = read.unreadable
        if unreadable and not skip_bad_images:
            file, reason = next(iter(unreadable.items()))
            raise InputError(
                f"{file} cannot be read ({reason}); --skip_bad_images=True leaves such files out"
            )
        good = [file not in unreadable for file in part]
        images = read.parts["the"][good]
        results = predict(model, classes, images, record.normalize or HALF, image_size)
        readable = [file for file in part if file not in unreadable]
        answers = dict(zip(readable, results))
        columns = min(LIKELIEST, len(classes))
        lines = []
        for file in part:
            rows.append(_csv_row(file, answers.get(file, ()), unreadable.get(file)))
            lines.append(_line(file, answers.get(file), unreadable.get(file), columns))
        print_table(lines)
        print_notes(describe(read))
    write_atomically({table: to_csv(rows)})
    print(f"  saved {table}")


def _line(file, answers, reason, columns):
    """A line of the table: the likeliest classes of a file, or the reason that it is left out."""
    if answers is None:
        return [file, f"left out: {reason}"] + [""] * (columns - 1)
    return [file] + [f"{name} {100 * share:.1f}%" for name, share in answers]


def _csv_row(file, answers, reason):
    """A flat dict of a file: "file", "class", "probability" and those of the next likeliest, "left
    out": the reason, where there is one."""
    row = {"file": printable(file)}
    for k, (name, share) in enumerate(answers, 1):
        number = "" if k == 1 else f" {k}"
        row |= {f"class{number}": name, f"probability{number}": round(share, 6)}
    if reason is not None:
        row["left out"] = reason
    return row
