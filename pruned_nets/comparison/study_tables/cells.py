"""Tables as text: their rows, and differences with their stars."""

from lab.significance import Difference, stars

TABLES = {}


def table(draw):
    """Makes `draw`, a function (Study) -> lines, the table of its name."""
    TABLES[draw.__name__] = draw
    return draw


def lines_of(head, rows, count=None):
    """A table of cells that are Markdown, which `lab.markdown` would escape. count: the line of
    `differences` that stands below it."""
    each = (head, ["---"] * len(head), *rows)
    lines = ["| " + " | ".join(cells) + " |" for cells in each]
    return lines if count is None else [*lines, "", count]


def differences(rows, columns, usual=3, excerpt=False):
    """Rows of text of {label: [{seed: difference} of each column]}, with their stars over the whole
    table, and a line that counts these. usual: the n that is not written. excerpt: of a larger
    table, whose tests are corrected there: no second stars here, or a difference would have one
    here and two there."""
    found = {
        (label, i): Difference.of(gaps.values())
        for label, each in rows.items()
        for i, gaps in enumerate(each)
    }
    marks = stars(found)
    if excerpt:
        marks = {key: mark[:1] for key, mark in marks.items()}

    def cell(label, i):
        gaps = list(rows[label][i].values())
        note = f" (n = {len(gaps)})" if len(gaps) != usual else ""
        if not gaps:
            return "–"
        if len(gaps) == 1:
            return f"{gaps[0]:+.1f}{note}"
        mark = marks[label, i].replace("*", r"\*")
        return f"{mean_of(found[label, i])}{mark}{note}"

    text = [[label, *(cell(label, i) for i in range(len(columns)))] for label in rows]
    tests = sum(each is not None for each in found.values())
    alone = sum(map(bool, marks.values()))
    count = f"Of {tests} tests in this table {alone} are significant by themselves (\\*)"
    if excerpt:
        return text, f"{count}."
    corrected = sum(mark == "**" for mark in marks.values())
    return text, f"{count}, and {corrected} after Holm's correction (\\*\\*)."


def mean_of(difference):
    """ "+3.7 ± 1.9" """
    return f"{difference.mean:+.1f} ± {difference.error:.1f}"


def interval(gaps):
    """gaps: {seed: difference}, of two or more."""
    low, high = Difference.of(gaps.values()).interval
    return f"{low:.1f} to {high:.1f}"


def listed(values, digits=1):
    return ", ".join(f"{value:.{digits}f}" for value in values)


def span(values, digits=1):
    """The lowest to the highest."""
    values = list(values)
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"
