"""Markdown, and figures in words: names, tables, means and differences."""

import html
import re
import statistics

from common.terminal import printable
from lab.significance import Difference


def escaped(name):
    """A name from a file, which may hold anything, as text in Markdown and in a terminal."""
    name = html.escape(printable(str(name)), quote=False)
    return re.sub(r"([\\`*|\[\]~$]|(?<!\w)_|_(?!\w))", r"\\\1", name)


def row_of(cells):
    return f"| {' | '.join(map(escaped, cells))} |"


def table_of(header, rows):
    """A table as lines. header: the titles of its columns. rows: lists of cells."""
    return [row_of(header), "|---" * len(header) + "|", *map(row_of, rows)]


def spread(values, digits=1):
    """Mean and standard deviation over seeds in words. Values that are None are left out."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):.{digits}f}"
    if len(known) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(known):.{digits}f}"


def interval(gaps, digits=1):
    """The mean of differences, ± its standard error, and its 95% interval, in words; "" for fewer
    than two differences."""
    return difference_text(Difference.of(gaps), digits=digits)


def difference_text(difference, mark="", digits=1):
    """A Difference in words, with the stars of its significance; "" for None."""
    if difference is None:
        return ""
    low, high = difference.interval
    return (
        f"{difference.mean:+.{digits}f} ± {difference.error:.{digits}f}{mark} "
        f"({low:.{digits}f} to {high:.{digits}f}), n = {difference.n}"
    )
