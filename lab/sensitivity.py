"""How much accuracy a network loses when one of its layers is pruned alone.

The filters of a layer with the lowest scores are set to zero, and nothing is trained.
"""

from dataclasses import dataclass

from common.terminal import print_table
from lab.drawing import add_legend, load_pyplot, save_figure
from lab.removal import evaluate_without
from pruner import removable_units, without

SHARES = 10, 30, 50, 70, 90  # percent of a layer's filters
NAMED = 10  # layers that stand first in the table, and that the plot names


@dataclass(frozen=True)
class Point:
    """A layer without a share of its filters, in percent. removed: how many. accuracy: in
    percent."""

    share: int
    removed: int
    accuracy: float


@dataclass(frozen=True)
class LayerCurve:
    """filters: that the layer has. points: those that its floor allows, of rising share."""

    layer: str
    filters: int
    points: list[Point]

    def loss(self, whole):
        """Points of accuracy that it loses, in the mean over the shares. whole: the accuracy of the
        whole network."""
        return sum(whole - point.accuracy for point in self.points) / len(self.points)


def measure_sensitivity(model, scores, batches):
    """(accuracy of the whole network in percent, a LayerCurve for each layer that can lose a tenth
    of its filters, the most sensitive first).

    scores: as for `pruner.select_filters`. batches: of (images, labels) on the model's device. Of
    filters that only leave together, those of all their layers leave.
    """
    removable, cuts = removable_units(model, scores), {}
    for layers, own in removable.items():
        for share in SHARES:
            count = round(share / 100 * own.total)
            if 0 < count <= len(own.units):
                cuts[layers, share] = own.units[:count]
    kept = {key: without(model, units) for key, units in cuts.items()}
    figures, curves = evaluate_without(model, kept, batches, "layers"), []
    whole = figures[None]["top1"]
    for layers, own in removable.items():
        points = []
        for share in SHARES:
            if (layers, share) in cuts:
                count = len(cuts[layers, share])
                points.append(Point(share, count, figures[layers, share]["top1"]))
        if points:
            curves.append(LayerCurve(" and ".join(layers), own.total, points))
    return whole, sorted(curves, key=lambda curve: curve.loss(whole), reverse=True)


# ------------------------------------------------------------------------------ table and plot


def rows_of(curves):
    """One flat dict for each point."""
    rows = []
    for curve in curves:
        for point in curve.points:
            rows.append({"layer": curve.layer, "filters": curve.filters, **vars(point)})
    return rows


def print_sensitivity(whole, curves):
    rows = [("", "filters", "loss", *(f"-{share}%" for share in SHARES))]
    for curve in curves:
        accuracies = {point.share: f"{point.accuracy:.1f}" for point in curve.points}
        cells = [accuracies.get(share, "") for share in SHARES]
        rows.append((curve.layer, str(curve.filters), f"{curve.loss(whole):.1f}", *cells))
    if len(curves) > NAMED:
        rows.insert(NAMED + 1, ("less sensitive:", *[""] * (len(SHARES) + 2)))
    print_table(rows)
    print(f"  whole: {whole:.1f}%. loss: points that are lost, in the mean over the shares")


def plot_sensitivity(whole, curves, path):
    """Draw a line for each layer to `path`, where matplotlib is installed."""
    pyplot = load_pyplot()
    if pyplot is None:
        return
    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for place, curve in reversed(list(enumerate(curves))):
        shares, accuracies = [0], [whole]
        for point in curve.points:
            shares.append(point.share)
            accuracies.append(point.accuracy)
        style = {"color": "0.75", "linewidth": 0.8}
        if place < NAMED:
            style = {"color": f"C{place}", "linewidth": 1.6, "label": curve.layer}
        axis.plot(shares, accuracies, **style)
    axis.set(xlabel="filters of the layer removed (%)", ylabel="accuracy (%)")
    axis.grid(alpha=0.3)
    add_legend(figure, [axis])
    save_figure(figure, path)
    pyplot.close(figure)
