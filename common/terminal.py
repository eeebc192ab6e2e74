"""What is shown in a terminal: progress, headings, tables."""

import sys
from itertools import islice

from common.libraries import lazy
from common.processes import processes

tqdm = lazy("tqdm")

LINE = 100  # letters


def progress(iterable, label, start=0, total=None):
    """Iterate, from item `start` on, with a tqdm bar where standard error is a terminal, silently
    elsewhere."""
    total = total or (len(iterable) if hasattr(iterable, "__len__") else None)
    return tqdm.tqdm(
        islice(iterable, start, None),
        desc=f"  {label}",
        leave=False,
        total=total,
        dynamic_ncols=True,
        initial=start,
        disable=None if sys.stderr and not processes()[0] else True,
    )


def heading(text):
    """Announce a step."""
    print(f"\n{text}", flush=True)


def print_table(rows):
    """Print rows of strings, the first column flush left, the others flush right."""
    rows = [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        ]
        print("  " + "  ".join(cells).rstrip())


def print_notes(notes, indent=2):
    """Print a line for each note, which may hold the names of files."""
    for note in notes:
        print(" " * indent + printable(note))


def print_columns(pairs):
    """Print (name, value) pairs of strings, as many beside each other as a line holds."""
    name, value = (max(map(len, column)) for column in zip(*pairs))
    cells = [f"{n.ljust(name)} {v.rjust(value)}" for n, v in pairs]
    across = max(1, LINE // (name + value + 4))
    for start in range(0, len(cells), across):
        print("  " + "   ".join(cells[start : start + across]))


def counted(count, noun, plural=None):
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def megabytes(count):
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def shortened(names, most=3):
    """The first of some names, as a list in words."""
    names = [printable(str(name)) for name in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def one_line(text, word=200, line=1000):
    """A text that may hold anything as one short line for a terminal: control characters escaped,
    long words and long lines cut in the middle."""
    words = [_cut(part, word) for part in text.split()]
    return _cut(printable(" ".join(words)), line)


class Escaping:
    """A text stream in which control characters, as names of files may hold, are escapes."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        return self.stream.write("\n".join(map(printable, text.split("\n"))))

    def __getattr__(self, name):
        return getattr(self.stream, name)


def printable(text):
    """A text with control characters, and what is no character, as escapes."""
    return "".join(
        letter
        if letter.isprintable()
        else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


def _cut(text, most):
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}...({len(text):,} letters)...{text[-most // 4 :]}"
