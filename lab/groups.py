"""Is the importance of a group of filters the sum of its members' importances?

Every loss-based method takes that for granted, and orthonormal filters are to make it true (Lubana
et al. 2020). Here groups are removed, and the change of the loss is compared with both sums: of the
members' scores, and of their own changes. A member is a pair: a layer's name, a filter's index.
"""

import itertools
import math
from dataclasses import dataclass

import torch

import imp_estimator
import train
from channels.groups import filter_groups
from common.errors import InputError
from common.terminal import print_table
from imp_estimator import ESTIMATORS, PLAIN
from lab.drawing import load_pyplot, method_style, save_figure
from lab.record import grouped
from lab.removal import evaluate_without

SIZES = tuple(2**k for k in range(9))
KINDS = {
    ("network", "random"): "over all layers, random",
    ("network", "lowest"): "over all layers, of the lowest scores",
    ("layer", "random"): "within a layer, random",
    ("layer", "lowest"): "within a layer, of the lowest scores",
}
FEWEST = 8  # groups that say something


def check_groups(model, batches, pruning_type, seed=0, draws=32, pool=512, layers=4, sizes=SIZES):
    """Compare the importance of groups with that of their members.

    A group is removed by setting its filters' outputs to zero wherever they are read. Its actual
    change of the loss on `batches`, in eval mode, is compared with two sums. Without its sign: with
    the sum of its members' scores, scaled by one factor so that both sums are equal over all single
    filters in any group. With its sign: with the sum of the members' own actual changes.

    draws, pool, layers, sizes: which groups are drawn, see `_sources`. Sizes with fewer than FEWEST
    groups are left out. Returns {"loss", "images", "pruning_type", "seed", "draws", "kinds": {name:
    [lab.record.GroupSize]}}. Raises InputError where there is nothing to remove. The model is left
    as it was.
    """
    scores = imp_estimator.cal_importance(model, pruning_type, batches, seed=seed)
    prunable = {}
    for group in filter_groups(model):
        if not group.is_fixed and scores[group.name].isfinite().all():
            prunable[group.name] = group
    score = _score_of_members(scores, prunable)
    removal = _Removal(model, prunable, batches)
    generator = torch.Generator().manual_seed(seed)
    removable = _removable_members(prunable, score)
    sources = _sources(removable, score, generator, draws, pool, layers)
    drawn = _draw(sources, sizes, generator)
    members = sorted(_members_of(drawn))
    alone = dict(zip(members, removal.changes([[member] for member in members], "filters")))
    factor = sum(map(abs, alone.values())) / (sum(abs(score[m]) for m in members) or 1)

    kinds = {}
    for kind, name in KINDS.items():
        kinds[name] = []
        for size in sizes:
            groups = drawn[kind, size]
            if len(groups) < FEWEST:
                continue
            by_scores = [factor * _sum_over(group, score) for group in groups]
            by_changes = [_sum_over(group, alone) for group in groups]
            changes = by_changes  # of single filters, which have been removed already
            if size > 1:
                changes = removal.changes(groups, name)
            alike = _of_one_layer(groups) if kind[0] == "layer" else [list(range(len(groups)))]
            figures = _compare(changes, by_scores, by_changes, alike)
            kinds[name].append({"size": size, "n": len(groups), **figures})
    return {
        "loss": removal.loss,
        "images": sum(len(labels) for _, labels in batches),
        "pruning_type": pruning_type,
        "seed": seed,
        "draws": draws,
        "kinds": kinds,
    }


def _score_of_members(scores, prunable):
    """{member: score} of {layer: scores of its filters}."""
    score = {}
    for layer in prunable:
        for i, value in enumerate(scores[layer].tolist()):
            score[layer, i] = value
    return score


class _Removal:
    """Changes of the loss when filters leave.

    prunable: {layer: its FilterGroup}. loss: of the whole network on `batches`.
    """

    def __init__(self, model, prunable, batches):
        self.model, self.prunable, self.batches = model, prunable, batches
        self.loss = train.evaluate(model, batches)["loss"]

    def changes(self, groups, label):
        """By how much the loss changes without the members of each group, as a list."""
        cuts = {number: self._kept(group) for number, group in enumerate(groups)}
        figures = evaluate_without(self.model, cuts, self.batches, label)
        whole = figures.pop(None)["loss"]
        return [without["loss"] - whole for without in figures.values()]

    def _kept(self, members):
        """Layer -> indices of the filters that are left, of the layers that lose some."""
        gone, kept = set(members), {}
        for layer in {layer for layer, _ in members}:
            filters = range(len(self.prunable[layer].channels))
            kept[layer] = torch.tensor([i for i in filters if (layer, i) not in gone])
        return kept


def _sum_over(members, values):
    return sum(values[member] for member in members)


def _of_one_layer(groups):
    """Lists of the numbers of groups that are of one layer."""
    return list(grouped(range(len(groups)), lambda number: groups[number][0][0]).values())


# ----------------------------------------------------------------------------- which groups


@dataclass(frozen=True)
class Source:
    """Members that groups are drawn from. where: "network" or "layer". pool: for groups at random.
    ranked: for groups of the lowest scores, the lowest first. draws: groups of each size."""

    where: str
    pool: list[tuple]
    ranked: list[tuple]
    draws: int


def _members_of(drawn):
    """The set of all members of the groups in {key: groups}."""
    members = set()
    for groups in drawn.values():
        members.update(*groups)
    return members


def _removable_members(prunable, score):
    """{layer: its members but for those that its floor keeps, the lowest first}."""
    removable = {}
    for layer, group in prunable.items():
        members = [(layer, i) for i in range(len(group.channels))]
        members.sort(key=score.get)
        removable[layer] = members[: max(0, len(members) - group.floor)]
    return removable


def _sources(removable, score, generator, draws, pool, layers):
    """What groups are drawn from: the network, `draws` times, at random from `pool` of its filters;
    and `layers` large layers, spread over its depth, together as often, but each FEWEST times.
    removable: {layer: members}. Raises InputError where there are no members."""
    everything = sorted(itertools.chain(*removable.values()), key=score.get)
    if not everything:
        raise InputError(
            "--group_check=True: no layer has more filters than it must keep; give a "
            "network of which less is pruned"
        )
    by_size = sorted(removable, key=lambda layer: len(removable[layer]))
    largest = set(by_size[-2 * layers :])
    sampled = [members for layer, members in removable.items() if layer in largest][::2]
    draws_of_layer = max(FEWEST, draws // len(sampled))
    chance = _shuffled(everything, generator)[:pool]
    sources = [Source("network", chance, everything, draws)]
    for members in sampled:
        sources.append(Source("layer", members, members, draws_of_layer))
    return sources


def _draw(sources, sizes, generator):
    """Draw groups of these sizes: {(kind, size): lists of members}.

    "lowest" are those that the method would choose: the k filters that it would remove first, then
    random ones of its first 2k (of 32, where these are more).
    """
    drawn = {key: [] for key in itertools.product(KINDS, sizes)}
    for source in sources:
        for draw, size in itertools.product(range(source.draws), sizes):
            if len(source.pool) < size:
                continue
            group = _shuffled(source.pool, generator)[:size]
            drawn[(source.where, "random"), size].append(group)
            group = source.ranked[:size]
            if draw:
                group = _shuffled(source.ranked[: max(2 * size, 32)], generator)[:size]
            drawn[(source.where, "lowest"), size].append(group)
    return drawn


def _shuffled(items, generator):
    return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]


# ----------------------------------------------------------------------------- the comparison


def _compare(changes, by_scores, by_changes, alike):
    """The figures of a lab.record.GroupSize from the actual changes of the loss and their two
    estimates, a number for each group. alike: lists of the numbers of groups whose ranks are
    compared; pooled, layers of other sizes of change would make the ranks."""
    changes = torch.tensor(changes).double()
    by_scores = torch.tensor(by_scores).double()
    by_changes = torch.tensor(by_changes).double()
    magnitude = changes.abs()
    return {
        "change": magnitude.mean().item(),
        "rank_scores": _mean_rank(by_scores, magnitude, alike),
        "rank_changes": _mean_rank(by_changes, changes, alike),
        "error_scores": _relative_error(by_scores, magnitude),
        "error_changes": _relative_error(by_changes, changes),
        "gap_scores": _absolute_error(by_scores, magnitude),
        "gap_changes": _absolute_error(by_changes, changes),
    }


def _mean_rank(estimate, truth, alike):
    """The mean rank correlation; None where none is defined."""
    ranks = []
    for numbers in alike:
        rank = spearman(estimate[numbers], truth[numbers])
        if rank is not None:
            ranks.append(rank)
    if not ranks:
        return None
    return sum(ranks) / len(ranks)


def _relative_error(estimate, truth):
    return ((estimate - truth).abs() / truth.abs().clamp_min(1e-12)).median().item()


def _absolute_error(estimate, truth):
    return (estimate - truth).abs().median().item()


def spearman(a, b):
    """The rank correlation of two tensors, equal values sharing their mean rank; None where all
    values of one are equal."""
    ranks = torch.stack([_ranks(a), _ranks(b)]).double()
    if (ranks[:, :1] == ranks).all(1).any():
        return None
    return torch.corrcoef(ranks)[0, 1].item()


def _ranks(values):
    """How many values are smaller, and half of the others that are equal."""
    smaller = (values[:, None] > values).sum(1)
    equal = (values[:, None] == values).sum(1)
    return smaller + (equal - 1) / 2


# ----------------------------------------------------------------------------- tables and plots


def print_groups(figures):
    columns = ("rank_scores", "error_scores", "rank_changes", "error_changes")
    for name, rows in figures["kinds"].items():
        print(f"Groups {name}")
        lines = [
            ("", "", "", "sum of scores:", "", "sum of single changes:", ""),
            ("filters", "groups", "change of loss", *("rank corr.", "rel. error") * 2),
        ]
        for row in rows:
            values = [_rounded(row[column]) for column in columns]
            lines.append((str(row["size"]), str(row["n"]), f"{row['change']:.2e}", *values))
        print_table(lines)
    print(
        "  Scores have another unit than the loss: they are scaled by one factor, so that the "
        "scores\n  and the changes of the loss of all single filters have the same sum."
    )


def _rounded(value):
    return "–" if value is None else f"{value:.2f}"


def plot_groups(figures, path):
    """Draw {label: result of check_groups} to `path`, where matplotlib is installed. A network that
    was trained with the penalty ("penalised") has OrthoReg's colour in all plots."""
    pyplot = load_pyplot()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(
        2, len(KINDS), figsize=(13, 6), layout="constrained", sharex=True, sharey="row"
    )
    for column, kind in enumerate(KINDS.values()):
        rank_axis, error_axis = axes[:, column]
        for number, (label, result) in enumerate(figures.items()):
            style = _network_style(result, filled=number == 0)
            _plot_kind(rank_axis, error_axis, result["kinds"][kind], style, label)
        rank_axis.set_title(kind, fontsize=9)
        error_axis.set(xlabel="filters in the group", xscale="log")
        error_axis.set_xticks(SIZES, SIZES, fontsize=7)
        error_axis.minorticks_off()
    axes[0, 0].set_ylabel("rank correlation with the\nchange of the loss")
    axes[1, 0].set_ylabel("median relative error")
    if _has_errors(figures):
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


def _network_style(result, filled):
    """The style of a network; the markers of the first one are filled."""
    name = PLAIN
    if result.get("penalised"):
        name = next(method.name for method in ESTIMATORS.values() if method.penalty)
    style = method_style(name)
    return style | {"markerfacecolor": style["color"] if filled else "none"}


def _plot_kind(rank_axis, error_axis, rows, style, label):
    """Draw the figures of one kind of groups in one network; rows: its GroupSizes."""
    sizes = [row["size"] for row in rows]
    for estimate, line, words in (
        ("scores", "-", "sum of scores"),
        ("changes", "--", "sum of single changes"),
    ):
        style = style | {"linestyle": line, "label": f"{label}: {words}"}
        ranks = [row[f"rank_{estimate}"] for row in rows]
        rank_axis.plot(sizes, [math.nan if rank is None else rank for rank in ranks], **style)
        # An axis of powers has no 0.
        error_axis.plot(sizes, [row[f"error_{estimate}"] or math.nan for row in rows], **style)


def _has_errors(figures):
    """Whether any estimate has an error above 0, which an axis of powers can show."""
    for result in figures.values():
        for row in itertools.chain(*result["kinds"].values()):
            if row["error_scores"] or row["error_changes"]:
                return True
    return False
