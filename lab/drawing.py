"""How figures look: matplotlib without a window, the styles of methods, layout, files."""

import io
import math
from pathlib import Path

from common.errors import InputError
from common.files import write_atomically
from common.libraries import lazy, need, optional
from imp_estimator import ESTIMATORS

matplotlib = lazy("matplotlib")  # optional

GREY = {"color": "0.5", "linewidth": 3}
WEIGHTS = "osD^v<>pPX*"  # markers of a penalty's weights, three for each power of ten
# Markers of ways to choose filters, beside the published one.
WAYS = {
    "layer": "1",
    "mean": "2",
    "norm": "3",
    "paper": "4",
    "measured": (8, 2, 0),
    "best": (5, 1, 0),
}


def load_pyplot():
    """matplotlib's pyplot, drawing to files; None, and a line that says so, where it is missing."""
    try:
        need("a plot", "matplotlib")
    except InputError as error:
        print(f"Tables only: {error}")
        return None
    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a name with $ is no formula
    return optional("matplotlib.pyplot")


def save_figure(figure, path):
    """Write a figure as PNG, and as SVG beside it, whole or not at all, and through no link."""
    contents = {}
    for suffix in (".png", ".svg"):
        content = io.BytesIO()
        figure.savefig(content, format=suffix[1:], dpi=130)
        contents[Path(path).with_suffix(suffix)] = content.getvalue()
    write_atomically(contents)


def method_style(name, coupled=False, weight=None):
    """The colour and marker of a method, the same in all plots; dashed and half filled where it is
    coupled. A penalty's weight that was given has a marker of its own."""
    colour, marker = "#000000", "x"
    if name in ESTIMATORS:
        colour, marker = ESTIMATORS[name].colour, ESTIMATORS[name].marker
    if weight is not None:
        marker = _weight_marker(weight)
    return {
        "color": colour,
        "marker": marker,
        "markersize": 5,
        "fillstyle": "bottom" if coupled else "full",
        "linestyle": "--" if coupled else "-",
        "linewidth": 1.4,
    }


def _weight_marker(weight):
    """The marker of a penalty's weight; the last one is that of 0."""
    if not weight:
        return WEIGHTS[-1]
    return WEIGHTS[round(3 * math.log10(weight)) % (len(WEIGHTS) - 1)]


def style_of(record):
    """A method's style. The marker shows a way to choose filters that is not the published one."""
    style = method_style(
        record.flags["pruning_type"], record.flag("residual") == "coupled", record.flag("penalty")
    )
    way = "best" if record.flag("select") else record.flag("ranking")
    if way in WAYS:
        style |= {"marker": WAYS[way], "markersize": 9}
    return style


def subplots(pyplot, count, columns, sharey):
    """A figure with room for a plot of each of `count` networks, and its axes in a list."""
    rows = -(-count // columns)
    width = max(9, 4 * columns) if count > 1 else 6.5
    height = 4 if rows > 1 else 4.2  # of a row
    figure, axes = pyplot.subplots(
        rows,
        columns,
        squeeze=False,
        layout="constrained",
        sharey=sharey,
        figsize=(width, height * rows + 0.6),
    )
    return figure, list(axes.flat)


def remove_repeated_labels(axes):
    """Leave a label of the y-axis out where the axis before has the same."""
    labels = [axis.get_ylabel() for axis in axes]
    for axis, label, before in zip(axes[1:], labels[1:], labels):
        if label == before and not axis.get_subplotspec().is_first_col():
            axis.set_ylabel("")


def add_legend(figure, axes):
    """Add one legend of all lines below the axes. Equal labels stand in it once."""
    lines = {}  # label -> line
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        lines |= zip(labels, handles)
    letters = int(13.2 * figure.get_figwidth())  # in a line of that width
    longest = max(map(len, lines), default=0)
    columns = max(1, letters // (8 + longest))
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", fontsize=8, ncols=columns
    )
    # A legend of many lines must not take the height from the axes, and cut their labels.
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(lines) // columns))
