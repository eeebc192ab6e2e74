"""--per_class: which classes a network knows, and which it takes for each other."""

from typing import NamedTuple

import torch

from common.files import to_csv, write_atomically
from common.modes import evaluating
from common.terminal import counted, print_table, printable
from lab.drawing import load_pyplot, save_figure

MOST = 20  # classes in the table; of more, those with the lowest accuracy
PAIRS = 5  # that are confused most
NAMED = 30  # classes up to which a matrix has their names and numbers


def confusion(model, batches, count):
    """int64, count x count: how many images of a class (row) were answered by which (column)."""
    device = next(model.parameters()).device
    matrix = torch.zeros(count * count, dtype=torch.int64, device=device)
    with evaluating(model), torch.no_grad():
        for images, labels in batches:
            matrix += (labels * count + model(images).argmax(1)).bincount(minlength=count * count)
    return matrix.view(count, count).cpu()


def rows_of(matrix, classes):
    """A dict for each class: "class", "images", "answers", "right", and in percent "accuracy", of
    its images, and "precision", of the answers that name it; None where there are none."""
    images, answers = matrix.sum(1).tolist(), matrix.sum(0).tolist()
    right = matrix.diagonal().tolist()
    rows = []
    for i, name in enumerate(classes):
        rows.append(
            {
                "class": name,
                "images": images[i],
                "answers": answers[i],
                "right": right[i],
                "accuracy": _percent(right[i], images[i]),
                "precision": _percent(right[i], answers[i]),
            }
        )
    return rows


def _percent(part, whole):
    return 100 * part / whole if whole else None


class Confusion(NamedTuple):
    """An error: images of a class that were answered by another one."""

    name: str
    answer: str
    images: int
    percent: float  # of the class's images


def pairs_of(matrix, classes):
    """The most frequent errors, at most PAIRS Confusions, the most frequent first."""
    wrong = matrix.clone()
    wrong.diagonal().zero_()
    pairs = []
    for k in wrong.flatten().argsort(descending=True, stable=True)[:PAIRS].tolist():
        row, column = divmod(k, len(classes))
        count = wrong[row, column].item()
        if count:
            percent = 100 * count / matrix[row].sum().item()
            pairs.append(Confusion(classes[row], classes[column], count, percent))
    return pairs


def print_classes(matrix, classes, stem):
    """Print what is known of each class, and write `stem`_classes.csv, _confusion.csv and, with
    matplotlib, _confusion.png."""
    rows = rows_of(matrix, classes)
    _print_rows(rows)
    _print_pairs(pairs_of(matrix, classes))
    counts_of_classes = []
    for name, counts in zip(classes, matrix.tolist()):
        counts_of_classes.append(
            {"class (rows), answer (columns)": name, **dict(zip(classes, counts))}
        )
    write_atomically(
        {
            f"{stem}_classes.csv": to_csv(rows),
            f"{stem}_confusion.csv": to_csv(counts_of_classes),
        }
    )
    plotted = " and .png" if draw(matrix, classes, f"{stem}_confusion.png") else ""
    print(
        f"  saved {stem}_classes.csv and _confusion.csv{plotted} "
        f"({counted(int(matrix.sum()), 'image')})"
    )


def _print_rows(rows):
    """Print the table of classes; of many classes those with the lowest accuracy."""
    shown, title = rows, "Classes"
    if len(rows) > MOST:
        with_images = [row for row in rows if row["images"]]
        shown = sorted(with_images, key=lambda row: row["accuracy"])[:MOST]
        title = f"Classes, the {MOST} of the lowest accuracy"
    print(title)
    lines = [("class", "images", "accuracy", "answers", "precision")]
    for row in shown:
        lines.append(
            (
                row["class"],
                f"{row['images']:,}",
                _percent_text(row["accuracy"]),
                f"{row['answers']:,}",
                _percent_text(row["precision"]),
            )
        )
    print_table(lines)


def _percent_text(value):
    return "" if value is None else f"{value:.1f}%"


def _print_pairs(pairs):
    if not pairs:
        return
    print("Confused most often")
    lines = [("class", "taken for", "images", "of the class")]
    for pair in pairs:
        lines.append((pair.name, pair.answer, str(pair.images), f"{pair.percent:.1f}%"))
    print_table(lines)


def draw(matrix, classes, path):
    """The matrix as a picture, each row in percent of its images. Returns whether it was drawn."""
    pyplot = load_pyplot()
    if not pyplot:
        return False
    shares = 100 * matrix / matrix.sum(1, keepdim=True).clamp_min(1)
    count = len(classes)
    side = min(14, 4 + count * 0.35)
    figure, axis = pyplot.subplots(figsize=(side + 1, side), layout="constrained")
    image = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, label="% of the class's images", shrink=0.8)
    axis.set_xlabel("answer")
    axis.set_ylabel("class")
    if count <= NAMED:
        names = [_short(printable(name)) for name in classes]
        axis.set_xticks(range(count), names, rotation=90)
        axis.set_yticks(range(count), names)
        _write_counts(axis, matrix, shares)
    save_figure(figure, path)
    pyplot.close(figure)
    return True


def _short(name):
    return name if len(name) < 20 else f"{name[:18]}…"


def _write_counts(axis, matrix, shares):
    """Write the numbers of images into the cells of the picture, but for 0."""
    for row, column in matrix.nonzero().tolist():
        axis.text(
            column,
            row,
            str(matrix[row, column].item()),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if shares[row, column] > 55 else "black",
        )
