"""--per_class: which classes a network knows, and which it takes for each other."""

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
    rows = []
    for name, images, answers, right in zip(
        classes, matrix.sum(1).tolist(), matrix.sum(0).tolist(), matrix.diagonal().tolist()
    ):
        rows.append(
            {
                "class": name,
                "images": images,
                "answers": answers,
                "right": right,
                "accuracy": 100 * right / images if images else None,
                "precision": 100 * right / answers if answers else None,
            }
        )
    return rows


def pairs_of(matrix, classes):
    """[(class, answer, how many of its images, their percent)], the most frequent errors first."""
    wrong = matrix.clone()
    wrong.diagonal().zero_()
    return [
        (
            classes[k // len(classes)],
            classes[k % len(classes)],
            wrong.flatten()[k].item(),
            100 * wrong.flatten()[k].item() / matrix[k // len(classes)].sum().item(),
        )
        for k in wrong.flatten().argsort(descending=True, stable=True)[:PAIRS].tolist()
        if wrong.flatten()[k]
    ]


def print_classes(matrix, classes, stem):
    """Print what is known of each class, and write `stem`_classes.csv, _confusion.csv and, with
    matplotlib, _confusion.png."""
    rows = rows_of(matrix, classes)
    shown = (
        rows
        if len(rows) <= MOST
        else sorted((row for row in rows if row["images"]), key=lambda row: row["accuracy"])[:MOST]
    )
    print(f"Classes{'' if shown is rows else f', the {MOST} of the lowest accuracy'}")

    def percent(value):
        return "" if value is None else f"{value:.1f}%"

    print_table(
        [
            ("class", "images", "accuracy", "answers", "precision"),
            *(
                (
                    row["class"],
                    f"{row['images']:,}",
                    percent(row["accuracy"]),
                    f"{row['answers']:,}",
                    percent(row["precision"]),
                )
                for row in shown
            ),
        ]
    )
    pairs = pairs_of(matrix, classes)
    if pairs:
        print("Confused most often")
        print_table(
            [
                ("class", "taken for", "images", "of the class"),
                *(
                    (name, answer, str(count), f"{share:.1f}%")
                    for name, answer, count, share in pairs
                ),
            ]
        )
    write_atomically(
        {
            f"{stem}_classes.csv": to_csv(rows),
            f"{stem}_confusion.csv": to_csv(
                [
                    {"class (rows), answer (columns)": name, **dict(zip(classes, counts))}
                    for name, counts in zip(classes, matrix.tolist())
                ]
            ),
        }
    )
    plotted = draw(matrix, classes, f"{stem}_confusion.png")
    print(
        f"  saved {stem}_classes.csv and _confusion.csv{' and .png' if plotted else ''} "
        f"({counted(int(matrix.sum()), 'image')})"
    )


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
        names = [name if len(name) < 20 else f"{name[:18]}…" for name in map(printable, classes)]
        axis.set_xticks(range(count), names, rotation=90)
        axis.set_yticks(range(count), names)
        for row in range(count):
            for column in range(count):
                if matrix[row, column]:
                    axis.text(
                        column,
                        row,
                        str(int(matrix[row, column])),
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if shares[row, column] > 55 else "black",
                    )
    save_figure(figure, path)
    pyplot.close(figure)
    return True
