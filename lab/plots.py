"""Plots of a comparison. To add one, write a function (axis, records) -> whether it drew something,
under `@plot(file name, caption)`."""

import itertools
import math
import statistics
import warnings
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.terminal import one_line, printable
from lab.drawing import GREY, add_legend, remove_repeated_labels, save_figure, style_of, subplots
from lab.record import Record, by_network, grouped, in_order

PLOTS = {}  # file name -> Plot, in the order of this file


class Plot(NamedTuple):
    caption: str
    draw: Callable  # (axis, records) -> whether it drew something
    columns: int  # networks that stand beside each other, at most
    sharey: bool  # whether all networks have the same range of values


def plot(name, caption, columns=2, sharey=False):
    """Register a Plot."""

    def register(draw):
        PLOTS[name] = Plot(caption, draw, columns, sharey)
        return draw

    return register


def plot_section(pyplot, records, folder, suffix=""):
    """Draw the plots of one comparison: [(file name, caption)]. Print those that fail."""
    files = []
    for name, registered in PLOTS.items():
        path = Path(folder) / f"{name}{suffix}.png"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # letters that no font has
                if _plot_networks(pyplot, records, registered, path):
                    files.append((path.name, registered.caption))
        except InputError:
            raise
        except Exception as error:  # of matplotlib, for numbers of which nobody has thought
            print(f"Left out: {path.name}, which cannot be drawn ({one_line(str(error))})")
            pyplot.close("all")
    return files


def _plot_networks(pyplot, records, registered, path):
    """Draw a Plot, a part for each network. Returns whether there was anything to draw."""
    networks = by_network(records)
    columns = min(registered.columns, len(networks))
    figure, axes = subplots(pyplot, len(networks), columns, registered.sharey)
    for axis in axes[len(networks) :]:
        axis.set_axis_off()
    drawn = False
    for axis, (network, runs) in zip(axes, networks.items()):
        drawn |= registered.draw(axis, runs)
        axis.set_title(printable(network))
        axis.grid(alpha=0.3)
    if drawn:
        if registered.sharey:
            remove_repeated_labels(axes)
        add_legend(figure, axes[: len(networks)])
        save_figure(figure, path)
    pyplot.close(figure)
    return drawn


def by_variant(records, control=False):
    """The records of a control, or of none: a list for each variant, in the order of tables."""
    chosen = [record for record in records if record.control == control]
    return list(grouped(in_order(chosen), attrgetter("variant")).values())


def most_pruned(records):
    """Each variant's record of the highest percent, of the lowest seed."""

    def percent_and_seed(record):
        return record.requested, -record.flags["seed"]

    return [max(runs, key=percent_and_seed) for runs in by_variant(records)]


def label_of(record):
    return f"{record.variant}, {record.requested:g}%, seed {record.flags['seed']}"


def _seed_of(record):
    return record.flags["seed"]


# ----------------------------------------------------------------------------------------- accuracy


@plot("macs", "Test accuracy against the multiply-adds left", columns=3, sharey=True)
def plot_macs(axis, records):
    label = "multiply-adds left (% of the unpruned network's)"
    return plot_accuracy(axis, records, label, attrgetter("flops_left"))


@plot("time", "Test accuracy against the measured time for a batch", columns=3, sharey=True)
def plot_time(axis, records):
    timed = [record for record in records if record.time_left is not None]
    if not timed:
        return False
    label = "time for a batch (% of the unpruned network's)"
    return plot_accuracy(axis, timed, label, attrgetter("time_left"))


@plot("accuracy", "Test accuracy against the share removed", columns=3, sharey=True)
def plot_removed(axis, records):
    label = f"{records[0].budget} removed (%)"
    return plot_accuracy(axis, records, label, attrgetter("achieved"))


class Point(NamedTuple):
    """Means over the seeds of one percent, and their standard deviations."""

    percent: float
    x: float
    x_spread: float
    accuracy: float
    accuracy_spread: float


class Line(NamedTuple):
    """The points of one method. example: one of its records."""

    example: Record
    style: dict
    points: list[Point]


def plot_accuracy(axis, records, label, x_of):
    """Draw a line for each method. Methods whose points would hide each other stand side by side.
    x_of: record -> its place on the x-axis, which has the `label`."""
    lines = _accuracy_lines(records, x_of)
    ticks = _shared_ticks(lines)
    apart = 0
    if ticks:
        apart = 0.8
        label += "\nmethods side by side"
        axis.set_xticks(ticks)
    for i, line in enumerate(lines):
        shift = apart * (i - (len(lines) - 1) / 2)
        _, x, x_spread, accuracy, accuracy_spread = zip(*line.points)
        axis.errorbar(
            [value + shift for value in x],
            accuracy,
            _bars(accuracy_spread),
            None if apart else _bars(x_spread),
            capsize=3,
            label=line.example.method,
            **line.style,
        )
    _plot_unpruned(axis, records)
    axis.set(xlabel=label, ylabel=f"test accuracy, best epoch (%)\n{_seeds_text(records)}")
    left, right = min(0, axis.get_xlim()[0]), axis.get_xlim()[1]
    axis.set_xlim(left, right + (right - left) / 30)
    return True


def _accuracy_lines(records, x_of):
    """The Lines of the methods, then those of their scratch controls."""
    lines = []
    for control, marks in (
        (False, {}),
        ("scratch", {"linestyle": ":", "markerfacecolor": "none"}),
    ):
        for runs in by_variant(records, control):
            lines.append(Line(runs[0], style_of(runs[0]) | marks, _points(runs, x_of)))
    return lines


def _points(records, x_of):
    """A Point for each percent, from low to high."""
    points = []
    for percent, runs in sorted(grouped(records, attrgetter("requested")).items()):
        accuracy = _mean(record.best for record in runs)
        points.append(Point(percent, *_mean(map(x_of, runs)), *accuracy))
    return points


def _shared_ticks(lines):
    """Where all lines have their points, rounded; [] where there is one line, or where the points
    of a percent lie apart."""
    if len(lines) < 2:
        return []
    ticks = set()
    points = itertools.chain(*(line.points for line in lines))
    for alike in grouped(points, attrgetter("percent")).values():
        x = [point.x for point in alike]
        if max(x) - min(x) >= 1:
            return []
        ticks.add(round(statistics.mean(x)))
    return sorted(ticks)


def _plot_unpruned(axis, records):
    """Draw a horizontal line for each kind of unpruned control."""
    unpruned = [record for record in records if record.control == "unpruned"]
    for method, runs in sorted(grouped(unpruned, attrgetter("method")).items()):
        axis.axhline(
            statistics.mean(record.best for record in runs),
            color="0.4",
            label=method,
            linestyle={None: ":", 0: "--"}.get(runs[0].strength, "-."),
        )


def _bars(spreads):
    """The lengths of error bars; None where all are 0."""
    return spreads if any(spreads) else None


def _seeds_text(records):
    """What a point is the mean of: the runs that differ in nothing but the seed."""
    seeds = set(map(_seed_of, records))
    if len(seeds) == 1:
        return f"seed {min(seeds)}"
    alike = grouped(records, lambda record: (record.variant, record.control, record.requested))
    counts = set(map(len, alike.values()))
    up_to = "up to " if len(counts) > 1 else ""
    return f"mean ± standard deviation, {up_to}{max(counts)} seeds"


def _mean(values):
    """Mean and standard deviation over seeds."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0
    return statistics.mean(values), deviation


@plot("penalty", "Orthogonality and accuracy against the weight of the penalty")
def plot_penalty(axis, records):
    """The weights stand side by side, as they may begin with 0."""
    compared = _runs_with_penalty(records)
    by_weight = dict(sorted(grouped(compared, attrgetter("strength")).items()))
    if len(by_weight) < 2:
        return False
    for label, line, marker, value_of in (
        ("before pruning", "-", "^", attrgetter("unpruned.best")),
        ("right after pruning", "-", "v", attrgetter("after_pruning")),
        ("retrained", "-", "o", attrgetter("best")),
        ("degree of orthogonality before pruning, x 100", ":", "s", _percent_orthogonal),
    ):
        means, spreads = zip(*(_mean(map(value_of, runs)) for runs in by_weight.values()))
        axis.errorbar(
            range(len(means)),
            means,
            _bars(spreads),
            capsize=3,
            linestyle=line,
            marker=marker,
            label=label,
        )
    axis.set_xticks(range(len(by_weight)), [f"{weight:g}" for weight in by_weight])
    axis.set(
        xlabel=f"weight of the penalty, λ ({compared[0].requested:g}% removed)",
        ylabel=f"test accuracy, best epoch (%)\n{_seeds_text(compared)}",
    )
    axis.set_ylim(bottom=0)
    return True


def _percent_orthogonal(record):
    degree = record.unpruned.orthogonality["mean"]
    return math.nan if degree is None else 100 * degree


def _runs_with_penalty(records):
    """Records at the highest percent, of the seeds that all weights have, cut in one way."""
    runs = []
    for record in records:
        if record.strength is not None and not record.control and record.base:
            if not runs or record.flag("residual") == runs[0].flag("residual"):
                runs.append(record)
    most = max((record.requested for record in runs), default=0)
    runs = [record for record in runs if record.requested == most]
    weights = set(map(attrgetter("strength"), runs))
    complete = []
    for alike in grouped(runs, _seed_of).values():
        if weights == set(map(attrgetter("strength"), alike)):
            complete += alike
    return complete


# ------------------------------------------------------------------------------------------- layers


@plot("widths", "Filters of each layer, before and after", columns=1)
def plot_widths(axis, records):
    chosen = most_pruned(records)
    lines = {}
    for record in chosen:
        if record.base:
            lines["unpruned"] = record.unpruned.widths, GREY
            break
    for record in chosen:
        lines[label_of(record)] = record.widths, style_of(record)
    return bool(chosen) and plot_layers(axis, lines, "filters")


@plot(
    "orthogonality",
    "Degree of orthogonality of each layer, unpruned (grey) and at the end",
    columns=1,
)
def plot_orthogonality(axis, records):
    chosen = most_pruned(records)
    if not any(map(_degrees_of, chosen)):
        return False
    lines = {}
    for record in chosen:
        unpruned = record.unpruned
        if unpruned is not None and unpruned.penalised:
            style = GREY | {"linestyle": "--"}
            lines.setdefault("unpruned with penalty", (_degrees_of(unpruned), style))
        elif unpruned is not None:
            lines.setdefault("unpruned", (_degrees_of(unpruned), GREY | {"linestyle": "-"}))
    for record in chosen:
        lines[label_of(record)] = _degrees_of(record), style_of(record)
    # A network with depthwise layers has these in between: they stand on a level of their own.
    label = "degree of orthogonality (1: orthogonal)"
    return plot_layers(axis, lines, label, first=chosen[0].widths)


def _degrees_of(record):
    return record.orthogonality["layers"]


def plot_layers(axis, lines, ylabel, first=()):
    """Lines over the layers of a network: {label: ({layer: value}, style)}. first: layers that
    stand before the others, from which a gap parts them."""
    values, _ = next(iter(lines.values()))
    layers, others = list(values), []
    if first:
        layers = [name for name in values if name in first]
        others = [name for name in values if name not in first]
    shown = []
    for i, name in enumerate(layers, 1):
        shown.append(f"conv {i}" if name.startswith("features.") else name)
    if others:
        layers += ["", *others]
        shown += ["", *others]
    for label, (values, style) in lines.items():
        axis.plot(range(len(layers)), [values.get(name) for name in layers], label=label, **style)
    step = -(-len(layers) // 30)  # more names would lie upon each other
    axis.set_xticks(range(0, len(layers), step), shown[::step], rotation=90, fontsize=6)
    axis.set(xlabel="layer", ylabel=ylabel)
    axis.set_ylim(bottom=0)
    return True


# ------------------------------------------------------------------------------------------- epochs


@plot("training", "Accuracy during the trainings")
def plot_training(axis, records):
    chosen = most_pruned(records)
    for record in chosen:
        before = record.unpruned.epochs if record.base else []
        accuracies = [_accuracy_of(epoch) for epoch in before + record.epochs]
        last = len(accuracies) - 1
        markers = {*range(0, len(accuracies), -(-len(accuracies) // 8)), last}
        axis.plot(
            range(1, len(accuracies) + 1),
            accuracies,
            markevery=sorted(markers),
            label=label_of(record),
            **style_of(record),
        )
        if before:
            axis.axvline(len(before) + 0.5, color="0.6", linewidth=0.8)
    axis.xaxis.get_major_locator().set_params(integer=True)
    rounds = "; of the rounds the last" if any(record.rounds for record in chosen) else ""
    axis.set(
        xlabel=f"epoch (grey line: pruning{rounds})", ylabel=f"{_images_in(chosen)} accuracy (%)"
    )
    return bool(chosen)


def _accuracy_of(epoch):
    figures = epoch.get("validation") or epoch["test"]
    return figures["top1"]


def _images_in(records):
    """The images on which epochs of records were judged, in words."""
    images = set()
    for record in records:
        for epoch in record.epochs:
            images.add("validation" if "validation" in epoch else "test")
    return " and ".join(sorted(images))


@plot("masks", "Distance of each epoch's mask from the four before")
def plot_masks(axis, records):
    epsilon = None
    for record in most_pruned(records):
        distances = _mask_distances(record.unpruned)
        if not distances:
            continue
        epsilon = record.flag("eb_epsilon")
        axis.plot(
            list(distances), list(distances.values()), label=label_of(record), **style_of(record)
        )
        if record.unpruned.chosen_on == "ticket":
            epoch, distance = list(distances.items())[-1]
            axis.plot(
                epoch,
                distance,
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


def _mask_distances(unpruned):
    """{epoch: its mask's largest distance} of the unpruned network's record, which may be None."""
    if unpruned is None:
        return {}
    distances = {}
    for epoch in unpruned.epochs:
        if epoch.get("mask_distances"):
            distances[epoch["epoch"]] = max(epoch["mask_distances"])
    return distances
