"""Plots of a comparison. To add one, write a function (axis, records) -> whether it drew something,
under `@plot(file name, caption)`."""

import io
import itertools
import math
import statistics
import warnings
from pathlib import Path

from common.errors import InputError
from common.files import write_atomically
from common.libraries import lazy, need, optional
from common.terminal import one_line, printable
from imp_estimator import ESTIMATORS
from lab.record import by_network, grouped, in_order

matplotlib = lazy("matplotlib")  # optional

WEIGHTS = "osD^v<>pPX*"  # markers, three for each power of ten
PLOTS = {}  # file name -> (caption, function, columns, sharey), in the order of this file
GREY = {"color": "0.5", "linewidth": 3}


def plot(name, caption, columns=2, sharey=False):
    """Register a plot. columns: how many networks at most stand beside each other."""

    def register(draw):
        PLOTS[name] = caption, draw, columns, sharey
        return draw

    return register


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


def plot_section(pyplot, records, folder, suffix=""):
    """Draw the plots of one comparison: [(file name, caption)]. It names those that fail."""
    files = []
    for name in PLOTS:
        path = Path(folder) / f"{name}{suffix}.png"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # letters that no font has
                if _plot_networks(pyplot, records, name, path):
                    files.append((path.name, PLOTS[name][0]))
        except InputError:
            raise
        except Exception as error:  # of matplotlib, for numbers of which nobody has thought
            print(f"Left out: {path.name}, which cannot be drawn ({one_line(str(error))})")
            pyplot.close("all")
    return files


def _plot_networks(pyplot, records, name, path):
    """Draw one plot, a part for each network. Returns whether there was anything to draw."""
    networks, (_, draw, columns, sharey) = by_network(records), PLOTS[name]
    columns = min(columns, len(networks))
    rows = -(-len(networks) // columns)
    width = max(9, 4 * columns) if len(networks) > 1 else 6.5
    figure, axes = pyplot.subplots(
        rows,
        columns,
        squeeze=False,
        layout="constrained",
        sharey=sharey,
        figsize=(width, (4 if rows > 1 else 4.2) * rows + 0.6),
    )
    for axis in axes.flat[len(networks) :]:
        axis.set_axis_off()
    drawn = [draw(axis, own) for axis, own in zip(axes.flat, networks.values())]
    if any(drawn):
        handles = {}
        for axis, network in zip(axes.flat, networks):
            axis.set_title(printable(network))
            axis.grid(alpha=0.3)
            handles |= {label: line for line, label in zip(*axis.get_legend_handles_labels())}
        labels = [axis.get_ylabel() for axis in axes.flat]
        for axis, label, before in zip(axes.flat[1:], labels[1:], labels):
            if sharey and label == before and not axis.get_subplotspec().is_first_col():
                axis.set_ylabel("")
        letters = int(13.2 * width)  # in a line of that width
        longest = max(map(len, handles), default=0)
        columns = max(1, letters // (8 + longest))
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", fontsize=8, ncols=columns
        )
        # A legend of many lines must not take the height from the axes, and cut their labels.
        figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(handles) // columns))
        save_figure(figure, path)
    pyplot.close(figure)
    return any(drawn)


def save_figure(figure, path):
    """Write a figure as PNG, and as SVG beside it, whole or not at all, and through no link."""
    contents = {}
    for suffix in (".png", ".svg"):
        content = io.BytesIO()
        figure.savefig(content, format=suffix[1:], dpi=130)
        contents[Path(path).with_suffix(suffix)] = content.getvalue()
    write_atomically(contents)


# Markers of ways to choose filters, beside the published one.
WAYS = {
    "layer": "1",
    "mean": "2",
    "norm": "3",
    "paper": "4",
    "measured": (8, 2, 0),
    "best": (5, 1, 0),
}


def method_style(name, coupled=False, weight=None):
    """The colour and marker of a method, the same in all plots; dashed and half filled where it is
    coupled. A penalty's weight that was given has a marker of its own."""
    about = ESTIMATORS.get(name)
    marker = about.marker if about else "x"
    if weight is not None:
        last = len(WEIGHTS) - 1  # of 0
        marker = WEIGHTS[round(3 * math.log10(weight)) % last if weight else last]
    return {
        "color": about.colour if about else "#000000",
        "marker": marker,
        "markersize": 5,
        "fillstyle": "bottom" if coupled else "full",
        "linestyle": "--" if coupled else "-",
        "linewidth": 1.4,
    }


def style_of(record):
    """A method's style. The marker shows a way to choose filters that is not the published one."""
    style = method_style(
        record.flags["pruning_type"], record.flag("residual") == "coupled", record.flag("penalty")
    )
    way = "best" if record.flag("select") else record.flag("ranking")
    if way in WAYS:
        style |= {"marker": WAYS[way], "markersize": 9}
    return style


def by_method(records, control=False):
    """The records of a control, or of none: a list for each variant, in the order of tables."""
    found = [record for record in records if record.control == control]
    return list(grouped(in_order(found), lambda r: r.variant).values())


def most_pruned(records):
    """Each variant's record of the highest percent, of the lowest seed."""
    return [
        max(found, key=lambda r: (r.requested, -r.flags["seed"])) for found in by_method(records)
    ]


def label_of(record):
    return f"{record.variant}, {record.requested:g}%, seed {record.flags['seed']}"


# ----------------------------------------------------------------------------------------- accuracy


@plot("macs", "Test accuracy against the multiply-adds left", columns=3, sharey=True)
def plot_macs(axis, records):
    return plot_accuracy(
        axis, records, "multiply-adds left (% of the unpruned network's)", lambda r: r.flops_left
    )


@plot("time", "Test accuracy against the measured time for a batch", columns=3, sharey=True)
def plot_time(axis, records):
    timed = [record for record in records if record.time_left is not None]
    return bool(timed) and plot_accuracy(
        axis, timed, "time for a batch (% of the unpruned network's)", lambda r: r.time_left
    )


@plot("accuracy", "Test accuracy against the share removed", columns=3, sharey=True)
def plot_removed(axis, records):
    return plot_accuracy(axis, records, f"{records[0].budget} removed (%)", lambda r: r.achieved)


def plot_accuracy(axis, records, label, x_of):
    """Methods whose points would hide each other stand side by side."""
    lines = [
        (found, marks)
        for control, marks in (
            (False, {}),
            ("scratch", {"linestyle": ":", "markerfacecolor": "none"}),
        )
        for found in by_method(records, control)
    ]
    points = [list(_points(found, x_of)) for found, _ in lines]
    places = [
        [x for _, x, *_ in each]
        for each in grouped(itertools.chain(*points), lambda point: point[0]).values()
    ]
    apart = 0
    if len(lines) > 1 and all(max(each) - min(each) < 1 for each in places):
        apart = 0.8
        label += "\nmethods side by side"
        axis.set_xticks(sorted({round(statistics.mean(each)) for each in places}))
    for i, (found, marks) in enumerate(lines):
        _, x, width, y, height = zip(*points[i])
        shift = apart * (i - (len(lines) - 1) / 2)
        axis.errorbar(
            [place + shift for place in x],
            y,
            height if any(height) else None,
            width if any(width) and not apart else None,
            capsize=3,
            label=found[0].method,
            **style_of(found[0]) | marks,
        )
    unpruned = grouped([r for r in records if r.control == "unpruned"], lambda r: r.method)
    for kind, found in sorted(unpruned.items()):
        axis.axhline(
            statistics.mean(r.best for r in found),
            color="0.4",
            label=kind,
            linestyle={None: ":", 0: "--"}.get(found[0].strength, "-."),
        )
    axis.set(xlabel=label, ylabel=f"test accuracy, best epoch (%)\n{_over(records)}")
    left, right = min(0, axis.get_xlim()[0]), axis.get_xlim()[1]
    axis.set_xlim(left, right + (right - left) / 30)
    return True


def _points(records, x_of):
    """(percent, x, its standard deviation, accuracy, its standard deviation) for each percent."""
    for percent, found in sorted(grouped(records, lambda record: record.requested).items()):
        yield percent, *_mean(map(x_of, found)), *_mean(r.best for r in found)


def _over(records):
    """What a point is the mean of: the runs that differ in nothing but the seed."""
    seeds = {r.flags["seed"] for r in records}
    if len(seeds) == 1:
        return f"seed {min(seeds)}"
    alike = grouped(records, lambda r: (r.variant, r.control, r.requested)).values()
    most = max(map(len, alike))
    up_to = "up to " if min(map(len, alike)) < most else ""
    return f"mean ± standard deviation, {up_to}{most} seeds"


def _mean(values):
    """Mean and standard deviation over seeds."""
    values = list(values)
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0


@plot("penalty", "Orthogonality and accuracy against the weight of the penalty")
def plot_penalty(axis, records):
    """At the highest percent, of the seeds that all weights have; the weights side by side, as they
    may begin with 0."""
    found = [r for r in records if r.strength is not None and not r.control and r.base]
    found = [r for r in found if r.flag("residual") == found[0].flag("residual")]
    most = max((r.requested for r in found), default=0)
    found = [r for r in found if r.requested == most]
    count = len({r.strength for r in found})
    found = [
        r
        for each in grouped(found, lambda r: r.flags["seed"]).values()
        if len({r.strength for r in each}) == count
        for r in each
    ]
    if not found or count < 2:
        return False
    weights = grouped(sorted(found, key=lambda r: r.strength), lambda r: r.strength)
    lines = {
        "before pruning": ("-", "^", lambda r: r.unpruned.best),
        "right after pruning": ("-", "v", lambda r: r.after_pruning),
        "retrained": ("-", "o", lambda r: r.best),
        "degree of orthogonality before pruning, x 100": (
            ":",
            "s",
            lambda r: 100 * r.unpruned.orthogonality["mean"],
        ),
    }
    for label, (line, marker, value_of) in lines.items():
        means, bars = zip(*(_mean(map(value_of, each)) for each in weights.values()))
        axis.errorbar(
            range(len(means)),
            means,
            bars if any(bars) else None,
            capsize=3,
            linestyle=line,
            marker=marker,
            label=label,
        )
    axis.set_xticks(range(count), [f"{weight:g}" for weight in weights])
    axis.set(
        xlabel=f"weight of the penalty, λ ({most:g}% removed)",
        ylabel=f"test accuracy, best epoch (%)\n{_over(found)}",
    )
    axis.set_ylim(bottom=0)
    return True


# ------------------------------------------------------------------------------------------- layers


@plot("widths", "Filters of each layer, before and after", columns=1)
def plot_widths(axis, records):
    chosen = most_pruned(records)
    lines = {label_of(record): (record.widths, style_of(record)) for record in chosen}
    before = next((record.unpruned.widths for record in chosen if record.base), None)
    if before:
        lines = {"unpruned": (before, GREY), **lines}
    return bool(chosen) and plot_layers(axis, lines, "filters")


@plot(
    "orthogonality",
    "Degree of orthogonality of each layer, unpruned (grey) and at the end",
    columns=1,
)
def plot_orthogonality(axis, records):
    chosen, lines = most_pruned(records), {}
    for record in chosen:
        base = record.unpruned
        if base is not None:
            label, line = ("unpruned with penalty", "--") if base.penalised else ("unpruned", "-")
            lines.setdefault(label, (base.orthogonality["layers"], {**GREY, "linestyle": line}))
    lines |= {
        label_of(record): (record.orthogonality["layers"], style_of(record)) for record in chosen
    }
    # A network with depthwise layers has these in between: they stand on a level of their own.
    return bool(lines) and plot_layers(
        axis, lines, "degree of orthogonality (1: orthogonal)", first=chosen[0].widths
    )


def plot_layers(axis, lines, ylabel, first=()):
    """Lines over the layers of a network: {label: ({layer: value}, style)}. first: layers that
    stand before the others, from which a gap parts them."""
    names = list(next(iter(lines.values()))[0])
    others = [name for name in names if name not in first] if first else []
    names = [name for name in names if name not in others]
    shown = [
        f"conv {i}" if name.startswith("features.") else name for i, name in enumerate(names, 1)
    ]
    if others:
        names, shown = [*names, "", *others], [*shown, "", *others]
    for label, (values, style) in lines.items():
        axis.plot(range(len(names)), [values.get(name) for name in names], label=label, **style)
    every = -(-len(names) // 30)  # more names would lie upon each other
    axis.set_xticks(range(0, len(names), every), shown[::every], rotation=90, fontsize=6)
    axis.set(xlabel="layer", ylabel=ylabel)
    axis.set_ylim(bottom=0)
    return True


# ------------------------------------------------------------------------------------------- epochs


@plot("training", "Accuracy during the trainings")
def plot_training(axis, records):
    chosen = most_pruned(records)
    for record in chosen:
        before = record.unpruned.epochs if record.base else []
        epochs = before + record.epochs
        accuracy = [(e.get("validation") or e["test"])["top1"] for e in epochs]
        marked = {*range(0, len(epochs), -(-len(epochs) // 8)), len(epochs) - 1}
        axis.plot(
            range(1, len(epochs) + 1),
            accuracy,
            markevery=sorted(marked),
            label=label_of(record),
            **style_of(record),
        )
        if before:
            axis.axvline(len(before) + 0.5, color="0.6", linewidth=0.8)
    shown = {"validation" if "validation" in e else "test" for r in chosen for e in r.epochs}
    images = " and ".join(sorted(shown))
    axis.xaxis.get_major_locator().set_params(integer=True)
    rounds = "; of the rounds the last" if any(r.rounds for r in chosen) else ""
    axis.set(xlabel=f"epoch (grey line: pruning{rounds})", ylabel=f"{images} accuracy (%)")
    return bool(chosen)


@plot("masks", "Distance of each epoch's mask from the four before")
def plot_masks(axis, records):
    epsilon = None
    for record in most_pruned(records):
        base = record.unpruned
        distances = {
            e["epoch"]: max(e["mask_distances"])
            for e in (base.epochs if base else ())
            if e.get("mask_distances")
        }
        if distances:
            axis.plot(
                list(distances),
                list(distances.values()),
                label=label_of(record),
                **style_of(record),
            )
            epsilon = record.flag("eb_epsilon")
            if base.chosen_on == "ticket":
                axis.plot(
                    *list(distances.items())[-1],
                    linestyle="",
                    marker="o",
                    markersize=13,
                    markerfacecolor="none",
                    color="0.3",
                    label="the ticket is drawn",
                )
    if epsilon:
        axis.axhline(epsilon, color="0.4", linestyle=":", label="--eb_epsilon")
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(
            xlabel="epoch", ylabel="share of filters that differ\n(largest of up to 4 comparisons)"
        )
    return bool(epsilon)
