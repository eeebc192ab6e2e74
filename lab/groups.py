"""Is the importance of a group of filters the sum of its members' importances?

Every loss-based method takes that for granted, and orthonormal filters are to make it true (Lubana
et al. 2020). Here groups are removed, and the change of the loss is compared with both sums: of the
members' scores, and of their own changes.
"""

import itertools
import math

import torch

import imp_estimator
import train
from channels.groups import filter_groups
from common.errors import InputError
from common.terminal import print_table, progress
from imp_estimator import ESTIMATORS, PLAIN
from lab.drawing import load_pyplot, method_style, save_figure
from lab.record import grouped
from pruner import Masked

SIZES = tuple(2**k for k in range(9))
KINDS = {
    ("network", "random"): "over all layers, random",
    ("network", "lowest"): "over all layers, of the lowest scores",
    ("layer", "random"): "within a layer, random",
    ("layer", "lowest"): "within a layer, of the lowest scores",
}
FEWEST = 8  # groups that say something


def check_groups(model, batches, pruning_type, seed=0, draws=32, pool=512, layers=4):
    """Compare the importance of groups with that of their members.

    Groups of 1, 2, 4 ... 256 filters are drawn `draws` times for each of KINDS: at random from
    `pool` filters of the network, or from one of `layers` layers, as often from each (at least 8
    times); or as the method would choose: the k filters that it would remove first, then random
    ones of its first 2k (of 32, where these are more). Sizes with fewer than 8 groups are left out.
    A group is removed by setting its filters' outputs to zero wherever they are read. Its actual
    change of the loss on `batches`, in eval mode, is compared with two sums. Without its sign: with
    the sum of its members' scores, scaled by one factor so that both sums are equal over all single
    filters in any group. With its sign: with the sum of the members' own actual changes. Returns
    {"loss", "images", "pruning_type", "seed", "draws", "kinds": {name: [{"size", "n", "change":
    mean of the absolute change, "rank_scores", "rank_changes": Spearman, within a layer the mean
    over the layers, None where it is undefined, "error_scores", "error_changes": median of
    |estimate - change| / |change|, "gap_scores", "gap_changes": median of |estimate - change|}]}}.
    Raises InputError where there is nothing to remove. The model is left as it was.
    """
    scores = imp_estimator.cal_importance(model, pruning_type, batches, seed=seed)
    groups = {g.name: g for g in filter_groups(model) if not g.protected}
    score = {(name, i): s for name in groups for i, s in enumerate(scores[name].tolist())}
    batches = _few_at_a_time(batches)
    loss = train.evaluate(model, batches)["loss"]

    masked = Masked(model)

    def change(members):
        gone = set(members)
        masked.keep(
            {
                name: torch.tensor(
                    [i for i in range(group.conv.out_channels) if (name, i) not in gone]
                )
                for name, group in groups.items()
            }
        )
        return train.evaluate(masked.network, batches)["loss"] - loss

    drawn = _draw(groups, score, torch.Generator().manual_seed(seed), draws, pool, layers)
    members = sorted({m for found in drawn.values() for group in found for m in group})
    alone = {member: change([member]) for member in progress(members, "filters")}
    factor = sum(map(abs, alone.values())) / (sum(abs(score[m]) for m in members) or 1)
    kinds = {}
    for kind, name in KINDS.items():
        kinds[name] = []
        for size in progress(SIZES, name):
            found = drawn[kind, size]
            if len(found) < FEWEST:
                continue
            changes = [change(group) if size > 1 else alone[group[0]] for group in found]
            by_scores = [factor * sum(score[m] for m in group) for group in found]
            by_changes = [sum(alone[m] for m in group) for group in found]
            places = [group[0][0] if kind[0] == "layer" else None for group in found]
            kinds[name].append(
                {"size": size, "n": len(found), **_compare(changes, by_scores, by_changes, places)}
            )
    return {
        "loss": loss,
        "images": sum(len(labels) for _, labels in batches),
        "pruning_type": pruning_type,
        "seed": seed,
        "draws": draws,
        "kinds": kinds,
    }


def _few_at_a_time(batches):
    """On a CPU 32 images at a time, which stay in its cache: 1.2 to 1.8 times as fast."""
    return [
        part
        for images, labels in batches
        for part in (
            [(images, labels)] if images.is_cuda else zip(images.split(32), labels.split(32))
        )
    ]


def _draw(groups, score, generator, draws, pool, layers):
    """{(kind, size): groups}, each a list of pairs of a layer's name and an index."""

    def shuffled(items):
        items = list(items)
        return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]

    def removable(group):
        """A layer's filters but for those that its floor keeps, the lowest first."""
        members = sorted(((group.name, i) for i in range(group.conv.out_channels)), key=score.get)
        return members[: max(0, len(members) - group.floor)]

    largest = sorted(groups.values(), key=lambda g: len(removable(g)))[-2 * layers :]
    sampled = [removable(g) for g in groups.values() if g in largest][::2]  # spread over the depth
    everything = sorted((m for g in groups.values() for m in removable(g)), key=score.get)
    if not everything:
        raise InputError(
            "--group_check=True: no layer has more filters than it must keep; give a "
            "network of which less is pruned"
        )
    chance = shuffled(everything)[:pool]
    drawn = {(kind, size): [] for kind in KINDS for size in SIZES}
    often = max(FEWEST, draws // len(sampled))
    for where, anything, first, count in (
        ("network", chance, everything, draws),
        *(("layer", layer, layer, often) for layer in sampled),
    ):
        for draw, size in itertools.product(range(count), SIZES):
            if len(anything) >= size:
                drawn[(where, "random"), size].append(shuffled(anything)[:size])
                drawn[(where, "lowest"), size].append(
                    shuffled(first[: max(2 * size, 32)])[:size] if draw else first[:size]
                )
    return drawn


def _compare(changes, by_scores, by_changes, layers):
    """Actual changes of the loss beside the two estimates of them, one of each for a group; layers:
    the one that each group is of. Pooled, layers of other sizes of change would make the ranks."""
    changes, by_scores, by_changes = (
        torch.tensor(values).double() for values in (changes, by_scores, by_changes)
    )
    magnitude = changes.abs()
    places = grouped(range(len(layers)), layers.__getitem__).values()

    def rank(estimate, truth):
        ranks = [spearman(estimate[own], truth[own]) for own in places]
        ranks = [each for each in ranks if each is not None]
        return sum(ranks) / len(ranks) if ranks else None

    def error(estimate, truth):
        return ((estimate - truth).abs() / truth.abs().clamp_min(1e-12)).median().item()

    def gap(estimate, truth):
        return (estimate - truth).abs().median().item()

    return {
        "change": magnitude.mean().item(),
        "rank_scores": rank(by_scores, magnitude),
        "rank_changes": rank(by_changes, changes),
        "error_scores": error(by_scores, magnitude),
        "error_changes": error(by_changes, changes),
        "gap_scores": gap(by_scores, magnitude),
        "gap_changes": gap(by_changes, changes),
    }


def spearman(a, b):
    """The rank correlation of two tensors, equal values sharing their mean rank; None where all
    values of one are equal."""
    ranks = torch.stack(
        [(v[:, None] > v).sum(1) + ((v[:, None] == v).sum(1) - 1) / 2 for v in (a, b)]
    ).double()
    return None if (ranks[:, :1] == ranks).all(1).any() else torch.corrcoef(ranks)[0, 1].item()


def print_groups(figures):
    columns = ("rank_scores", "error_scores", "rank_changes", "error_changes")
    for name, rows in figures["kinds"].items():
        print(f"Groups {name}")
        print_table(
            [
                ("", "", "", "sum of scores:", "", "sum of single changes:", ""),
                ("filters", "groups", "change of loss", *("rank corr.", "rel. error") * 2),
                *(
                    (
                        str(r["size"]),
                        str(r["n"]),
                        f"{r['change']:.2e}",
                        *("–" if r[column] is None else f"{r[column]:.2f}" for column in columns),
                    )
                    for r in rows
                ),
            ]
        )
    print(
        "  Scores have another unit than the loss: they are scaled by one factor, so that the "
        "scores\n  and the changes of the loss of all single filters have the same sum."
    )


def plot_groups(figures, path):
    """Draw {label: result of check_groups} to `path`, where matplotlib is installed. A network that
    was trained with the penalty ("penalised") has OrthoReg's colour in all plots."""
    pyplot = load_pyplot()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(
        2, len(KINDS), figsize=(13, 6), layout="constrained", sharex=True, sharey="row"
    )
    penalised = next(method.name for method in ESTIMATORS.values() if method.penalty)
    for column, name in enumerate(KINDS.values()):
        for number, (label, result) in enumerate(figures.items()):
            style = method_style(penalised if result.get("penalised") else PLAIN)
            style["markerfacecolor"] = "none" if number else style["color"]
            rows = result["kinds"][name]
            for measure, line, estimate in (
                ("scores", "-", "sum of scores"),
                ("changes", "--", "sum of single changes"),
            ):
                for axis, kind in zip(axes[:, column], ("rank", "error")):
                    values = [r[f"{kind}_{measure}"] for r in rows]  # no 0 on an axis of powers
                    axis.plot(
                        [r["size"] for r in rows],
                        [math.nan if v is None or kind == "error" and not v else v for v in values],
                        **style | {"linestyle": line, "label": f"{label}: {estimate}"},
                    )
        axes[0, column].set_title(name, fontsize=9)
        axes[1, column].set(xlabel="filters in the group", xscale="log")
        axes[1, column].set_xticks(SIZES, SIZES, fontsize=7)
        axes[1, column].minorticks_off()
    axes[0, 0].set_ylabel("rank correlation with the\nchange of the loss")
    axes[1, 0].set_ylabel("median relative error")
    if any(
        row[error]
        for result in figures.values()
        for rows in result["kinds"].values()
        for row in rows
        for error in ("error_scores", "error_changes")
    ):
        axes[1, 0].set_yscale("log")
        axes[1, 0].yaxis.set_major_formatter("{x:g}")  # not as a formula, which is shown as text
        axes[1, 0].yaxis.set_minor_formatter("")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8
    )
    save_figure(figure, path)
    pyplot.close(figure)
