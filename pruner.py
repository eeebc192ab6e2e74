"""Scores -> kept filters -> a physically smaller network.

kept = select_filters(model, scores, percent=50)   # scores from imp_estimator.cal_importance
small = prune(model, kept)
"""

import bisect
import collections
import itertools
import math
import reprlib
import statistics
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real
from typing import NamedTuple

import torch

from channels.checking import check
from channels.costs import cost_of, filter_costs
from channels.groups import Remains, filter_count, filter_groups, keep_whole, remains_of, signature
from channels.partial import Partial
from channels.patterns import layers_like
from channels.surgery import CannotCut, cut_channels
from channels.traits import traits_of
from common.copies import copy_of
from common.inputs import call
from common.processes import shared, sum_over_processes
from common.terminal import progress
from config import BUDGETS, RANKINGS
from imp_estimator import ESTIMATORS, check_per_cost, rows_of_logits
from models import NETWORKS

COUNTED = [name for name in BUDGETS if name != "latency"]  # which is measured

# ---------------------------------------------------------------------------------- selection


def round_targets(percent: float, n_rounds: int) -> list[float]:
    """The percent of filters gone after each round, ending at exactly `percent`.

    After round i it is 1 - prod_{j<=i} (1 - p / (j p + n (1 - p))), p the final share, so early
    rounds take more than late ones: [33.3, 50] for 50% in 2 rounds.
    """
    p, kept, targets = percent / 100, 1.0, []
    for j in range(1, n_rounds + 1):
        kept *= 1 - p / (j * p + n_rounds * (1 - p))
        targets.append(100 * (1 - kept))
    return targets[:-1] + [float(percent)]


def step_targets(gone: float, percent: float, steps: int) -> list[float]:
    """The percent gone after each step of a cut from `gone` to `percent`: what is left shrinks by
    the same factor in each, [29.3, 50] from 0 to 50% in 2 steps. The last is exactly `percent`."""
    left, wanted = 100 - gone, max(100 - percent, 1e-3)
    if wanted >= left:
        return [float(percent)]
    factor = (wanted / left) ** (1 / steps)
    return [100 - left * factor**step for step in range(1, steps)] + [float(percent)]


def pruned_percent(model: torch.nn.Module, budget: str = "filters", image_size: int = 32) -> float:
    """Percent of the unpruned network's filters, multiply-adds ("macs") or parameters ("params")
    that `model` no longer has."""
    remains = remains_of(model)
    alive = remains.structure.alive(remains.filters)
    return _percent_gone(remains.structure, budget, image_size)(alive)


def round_up(width: int, multiple: int, most: int) -> int:
    """The next multiple that a width goes up to, at most the width `most`."""
    return min(most, -(-width // multiple) * multiple)


def max_percent(
    model: torch.nn.Module,
    budget: str = "filters",
    image_size: int = 32,
    round_to: int = 1,
    residual: str = "single",
    keep: Iterable[str] = (),
) -> float:
    """The largest percent that the layers' floors, the protected stem and `keep` allow, where all
    layers that write into a residual stream keep the same of its channels. keep: see
    `select_filters`."""
    structure = remains_of(model).structure
    first = {}  # of each layer, the first filter beyond its floor
    for group in groups_of(model, keep).values():
        first[group.name] = round_up(group.floor, round_to, group.dense)

    def may_leave(name, index):
        return index >= first[name] and not structure.fixed_filters[name][index]

    leaving = set()
    for unit in _units_of(structure, residual):
        if all(may_leave(*filter) for filter in unit):
            leaving.update(unit)
    floors = {}
    for name, numbers in structure.filters.items():
        kept = [index for index in range(len(numbers)) if (name, index) not in leaving]
        floors[name] = torch.tensor(kept, dtype=torch.long)
    return _percent_gone(structure, budget, image_size)(structure.alive(floors))


def _percent_gone(structure, budget, image_size):
    """A function: which numbers are alive -> percent that is gone of the unpruned network."""
    _check_budget(budget)

    def cost(alive):
        if budget == "filters":
            return structure.count_filters(alive)
        kind = "parameters" if budget == "params" else budget
        return cost_of(structure, alive, image_size)[kind]

    dense = cost(structure.alive(structure.all_filters()))

    def percent_gone(alive):
        return 100 * (1 - cost(alive) / dense)

    return percent_gone


def select_filters(
    model: torch.nn.Module,
    scores: dict[str, torch.Tensor],
    percent: float,
    budget: str = "filters",
    round_to: int = 1,
    image_size: int = 32,
    residual: str = "single",
    ranking: str = "global",
    per_cost: bool = False,
    pruning_type: str | None = None,
    layer_times: dict[str, float] | None = None,
    losses: dict | None = None,
    below_one: bool = False,
    keep: Iterable[str] = (),
) -> dict[str, torch.Tensor]:
    """Choose the filters to keep when `percent` of the unpruned network's filters are gone.

    scores: layer name -> 1-D tensor, one score per filter that `model` has now; low goes first, and
        a filter whose score is infinity never goes.
    percent: counted over all prunable layers of the unpruned network, carried depthwise filters
        included; filters that earlier rounds removed count as gone. 50 is half. Between 0 and 1 it
        is refused, as a share that somebody has taken for a percent, unless below_one.
    budget: what the percent is of: "filters", "macs" (multiply-adds of an image of `image_size`) or
        "params" (parameters). round_to: widths go up to the next multiple of it, by the highest
        scored filters that would have gone; as many go as the rounded widths allow.
    residual: "single", or "coupled": then all filters that write the same channel of a stream go
        together, by the sum of their scores.
    ranking: how scores of different layers are compared, a key of config.RANKINGS; or "paper", as
        the method's own paper does: then pruning_type says which method the scores are of. For
        "measured" scores only rank the filters of each layer; losses, of `measure_losses`, say what
        a layer is worth. These are divided by what the filters cost, as with per_cost.
    per_cost: rank by the change of the loss that a score stands for, divided by what the filter
        costs in the budget's currency (`filter_costs`), so that the budget goes first where
        it buys most. It also needs pruning_type. layer_times: layer -> milliseconds, where that
        currency is measured time.
    keep: names of layers, in which * stands for anything ("layer1.*"): these keep all filters that
        they have. So do those that only leave together with them, also by way of residual.
    What only leaves together, as the filters of a grouped convolution and their inputs, goes by the
    sum of its scores, and counts as one in its layers. Equal ones go in order of layer, then of
    filter. Every layer keeps its floor(0.05 N) + 1 highest scored filters, N counted in the
    unpruned network, and a protected layer all of them. The target, rounded to whole filters, is
    never exceeded, and is missed by less than what one more filter takes along, or where the floors
    stop.
    Returns layer name -> rising tensor of the indices to keep.
    Raises ValueError where the scores do not fit the network, an argument has no such value, or
    keep names no prunable layer.
    """
    as_in_paper, ranking = ranking == "paper", ranking_of(ranking, pruning_type)
    _check_amount(percent, below_one, budget, round_to)
    _check_choice(residual, ranking, per_cost, pruning_type, losses)
    groups, remains = groups_of(model, keep), remains_of(model)
    values = _values_of(groups, scores)
    costs = None
    if per_cost or ranking == "measured":
        currency = "latency" if layer_times else budget
        costs = filter_costs(model, currency, image_size, layer_times)
    is_divided = per_cost or (as_in_paper and ranking in ("mean", "norm"))
    if is_divided and ESTIMATORS[pruning_type].change == "root":
        # What papers divide are changes, not their squares.
        values = {name: [value**0.5 for value in own] for name, own in values.items()}
    order = _removal_order(remains, groups, residual, values, ranking, costs, losses)
    return _keep_the_rest(model, groups, order, percent, budget, round_to, image_size)


def groups_of(model: torch.nn.Module, keep: Iterable[str] = ()) -> dict:
    """Layer -> its FilterGroup, of which all filters are fixed where `keep` names the layer. keep:
    see `select_filters`. Raises ValueError."""
    whole, groups = layers_like(model, keep), {}
    for group in filter_groups(model):
        if group.name in whole:
            group = replace(group, fixed=[True] * len(group.fixed))
        groups[group.name] = group
    return groups


def choices(model: torch.nn.Module, per_cost: bool = False) -> list[dict]:
    """The ways to rank that may differ for a network: arguments of `select_filters`, a list of
    dicts."""
    structure = remains_of(model).structure
    residuals = ["single"]
    if structure.coupled_units != structure.units:
        residuals.append("coupled")
    rankings = list(RANKINGS)
    if per_cost:
        rankings = [ranking for ranking in rankings if ranking not in ("layer", "measured")]
    pairs = itertools.product(residuals, rankings)
    return [{"ranking": ranking, "residual": residual} for residual, ranking in pairs]


def ranking_of(ranking: str, pruning_type: str | None) -> str:
    """A ranking, of which "paper" stands for that of the method's own. Raises ValueError."""
    if ranking != "paper":
        return ranking
    if pruning_type not in ESTIMATORS:
        raise ValueError(
            f"pruning_type is {pruning_type!r}; ranking='paper' needs to know which "
            f"method the scores are of: one of {', '.join(ESTIMATORS)}"
        )
    return ESTIMATORS[pruning_type].ranking


def _check_amount(percent, below_one, budget, round_to):
    """Raise ValueError where it is not clear how much `select_filters` is to remove."""
    if not isinstance(percent, Real) or not 0 <= percent <= 100:
        raise ValueError(f"percent is {percent!r}; it must be a number from 0 to 100")
    if 0 < percent < 1 and not below_one:
        raise ValueError(
            f"percent is {percent:g}, less than one percent; for this share of all "
            f"give percent={100 * percent:g}"
        )
    if type(round_to) is not int or round_to < 1:
        raise ValueError(f"round_to is {round_to!r}; it must be an integer from 1 up")
    _check_budget(budget)


def _check_budget(budget):
    if budget in COUNTED:
        return
    also = ""
    if budget == "latency":
        also = "; measured time needs lab.latency.select_by_time, as main.py --budget=latency does"
    raise ValueError(f"budget is {budget!r}; it must be one of {', '.join(COUNTED)}{also}")


def _check_choice(residual, ranking, per_cost, pruning_type, losses):
    """Raise ValueError where arguments of `select_filters` have no such value, or contradict each
    other."""
    if residual not in ("single", "coupled"):
        raise ValueError(f"residual is {residual!r}; it must be single or coupled")
    if ranking not in RANKINGS:
        raise ValueError(f"there is no ranking {ranking!r}; there are {', '.join(RANKINGS)}, paper")
    if per_cost and pruning_type not in ESTIMATORS:
        raise ValueError(
            f"pruning_type is {pruning_type!r}; per_cost=True needs to know which "
            f"method the scores are of: one of {', '.join(ESTIMATORS)}"
        )
    if (ranking == "measured") != (losses is not None):
        raise ValueError(
            "ranking='measured' needs losses, those of measure_losses, and no other ranking does"
        )
    if per_cost:
        check_per_cost(pruning_type, ranking)


def _values_of(groups, scores):
    """The scores as lists of numbers. Raises ValueError where they do not fit the network."""
    values = {}
    for name, group in groups.items():
        count, score = len(group.channels), scores.get(name)
        if score is None:
            raise ValueError(f"{name} has {count} filters; its scores are missing")
        if not isinstance(score, torch.Tensor) or tuple(score.shape) != (count,):
            shape = tuple(getattr(score, "shape", ())) or type(score).__name__
            raise ValueError(
                f"{name} has {count} filters; its scores are of shape {shape}, and "
                f"must be a tensor of {count}"
            )
        values[name] = score.detach().cpu().double().tolist()
        if any(map(math.isnan, values[name])):
            raise ValueError(f"a score of {name} is no number (NaN)")
    return values


def _keep_the_rest(model, groups, order, percent, budget, round_to, image_size):
    """What `select_filters` returns, where units leave in this order."""
    remains = remains_of(model)
    structure = remains.structure
    if budget == "filters":
        now, dense = filter_count(model)
        target = round(dense * percent / 100)

        def gone(alive):
            return dense - structure.count_filters(alive)
    else:
        target, gone = percent, _percent_gone(structure, budget, image_size)

    def kept_after(count):
        return _kept_without(groups, order[: max(0, count)], round_to)

    def gone_when_rounded(count):
        kept = kept_after(count)
        return gone(structure.alive({name: remains.filters[name][kept[name]] for name in kept}))

    if round_to > 1:
        gone_after = gone_when_rounded
    elif budget == "filters":
        sizes = [sum(groups[name].costs[i] for name, i in unit.filters) for unit in order]
        gone_after = list(itertools.accumulate(sizes, initial=dense - now)).__getitem__
    else:
        gone_after = _gone_by_turns(remains, order, gone)
    return kept_after(bisect.bisect_right(range(len(order) + 1), target, key=gone_after) - 1)


def _gone_by_turns(remains, order, gone):
    """A function: how many units have left -> what is gone. gone: the same of what is alive."""
    structure = remains.structure
    numbers = {}
    for name, index in remains.filters.items():
        numbers[name] = structure.filters[name][index].tolist()
    leaving, turns = [], []
    for turn, unit in enumerate(order):
        leaving += [numbers[name][i] for name, i in unit.filters]
        turns += [turn] * len(unit.filters)
    turn_of = torch.full_like(structure.root, len(order))
    turn_of[leaving] = torch.tensor(turns, dtype=torch.long)
    alive = structure.alive(remains.filters)

    def gone_after(count):
        return gone(structure.complete(alive & (turn_of >= count)))

    return gone_after


def _kept_without(groups, removed, round_to):
    """Layer -> indices of the filters that are left without some units, widths rounded up."""
    gone = {name: set() for name in groups}
    for unit in removed:
        for name, index in unit.filters:
            gone[name].add(index)
    _round_widths(groups, removed, gone, round_to)
    kept = {}
    for name, group in groups.items():
        rest = [index for index in range(len(group.channels)) if index not in gone[name]]
        kept[name] = torch.tensor(rest)
    return kept


def is_removable(
    model: torch.nn.Module, residual: str = "single", keep: Iterable[str] = ()
) -> bool:
    """Whether there is any filter that may still go. keep: see `select_filters`."""
    groups = groups_of(model, keep)
    values = {name: [0.0] * len(group.channels) for name, group in groups.items()}
    return bool(_removal_order(remains_of(model), groups, residual, values))


class Unit(NamedTuple):
    """What leaves together of a network. filters: (layer, index) of each. layers: those that it has
    filters of in the unpruned network."""

    filters: list
    layers: tuple

    def total(self, amounts):
        """The sum of what its filters have. amounts: layer -> a list."""
        return sum(amounts[name][index] for name, index in self.filters)


def _units(remains, residual):
    """All units of a network, as a list."""
    place_of = {}
    for name, kept in remains.filters.items():
        place_of[name] = {index: place for place, index in enumerate(kept.tolist())}
    units = []
    for unit in _units_of(remains.structure, residual):
        left = [(name, place_of[name][i]) for name, i in unit if i in place_of[name]]
        if left:
            units.append(Unit(left, _layers_of(unit)))
    return units


def _units_of(structure, residual):
    return structure.units if residual == "single" else structure.coupled_units


def _layers_of(filters):
    """The layers of some filters, in their order."""
    return tuple(dict(filters))


def _removal_order(remains, groups, residual, values, ranking="global", costs=None, losses=None):
    """The units that may go, in the order in which they do: the lowest rank first. Layers keep as
    many filters as they must, and whatever reads channels the best of them. values: layer -> what
    each filter is worth; costs: layer -> what it costs, or None; losses: of `measure_losses`."""
    units, spent = _units(remains, residual), None
    fixed, values = _fixed(groups, values), _finite(values)
    if costs is not None:
        costs = {name: own.tolist() for name, own in costs.items()}
        spent = [unit.total(costs) for unit in units]
    if ranking == "measured":
        ranks = _measured_ranks(_free_units(units, values, fixed), spent, losses)
    else:
        ranks = _ranks(remains, residual, units, values, ranking)
        if spent:
            ranks = [rank / cost if cost else math.inf for rank, cost in zip(ranks, spent)]
    rank_of = {}
    for unit, rank in zip(units, ranks):
        rank_of.update(dict.fromkeys(unit.filters, rank))
    needed = _needed(remains, groups, rank_of) | fixed
    position = {name: place for place, name in enumerate(groups)}
    spare = {name: len(group.channels) - group.floor for name, group in groups.items()}

    def turn(unit):
        name, index = unit.filters[0]
        return rank_of[name, index], position[name], index

    order = []
    for unit in sorted(units, key=turn):
        if needed.isdisjoint(unit.filters) and _is_spared(unit, spare):
            order.append(unit)
    return order


def _is_spared(unit, spare):
    """Whether all layers can spare a unit's filters; then these are counted off. spare: layer ->
    how many it can."""
    for name, _ in unit.filters:
        spare[name] -= 1
    if all(spare[name] >= 0 for name, _ in unit.filters):
        return True
    for name, _ in unit.filters:
        spare[name] += 1
    return False


def _fixed(groups, values):
    """The (layer, filter) that are never pruned, or whose value is infinite. values: layer -> what
    each filter is worth."""
    fixed = set()
    for name, group in groups.items():
        for index, (is_fixed, value) in enumerate(zip(group.fixed, values[name])):
            if is_fixed or value == math.inf:
                fixed.add((name, index))
    return fixed


def _finite(values):
    """The same values, with zero for what is not judged, which is infinite and never goes."""
    finite = {}
    for name, own in values.items():
        finite[name] = [0.0 if value == math.inf else value for value in own]
    return finite


def _ranks(remains, residual, units, values, ranking):
    """The number that each unit is ranked by, as a list; the lowest goes first. Units that have
    filters of the same layers are compared as the filters of one layer are."""
    worth = [unit.total(values) for unit in units]
    if ranking == "global":
        return worth
    alike = collections.defaultdict(list)  # layers -> numbers of such units
    for number, unit in enumerate(units):
        alike[unit.layers].append(number)
    dense = collections.Counter(map(_layers_of, _units_of(remains.structure, residual)))
    ranks = [0.0] * len(units)
    for layers, numbers in alike.items():
        own = [worth[number] for number in numbers]
        if ranking == "layer":
            # The share of the unpruned network's that is gone when this one is.
            gone = dense[layers] - len(numbers)
            for place, number in enumerate(sorted(numbers, key=worth.__getitem__), 1):
                ranks[number] = (gone + place) / (gone + len(numbers))
            continue
        size = math.hypot(*own) if ranking == "norm" else statistics.fmean(map(abs, own))
        for number in numbers:
            ranks[number] = worth[number] / size if size else 0.0
    return ranks


def _measured_ranks(free, spent, losses):
    """What each unit costs the network's answers for what it saves, as a list: in each layer the
    slopes of the losses' convex hull, over the mean cost of a unit. free: of `_free_units`; spent:
    what each unit costs."""
    ranks = [math.inf] * len(spent)
    for layers, numbers in free.items():
        points = losses.get(layers)
        cost = statistics.fmean(spent[number] for number in numbers)
        if not points or not cost:
            continue
        hull = lower_hull([(0, 0.0), *points])
        for (first, low), (last, high) in itertools.pairwise(hull):
            slope = max(0.0, high - low) / (last - first)
            for place in range(first, last):  # of equals, the lowest scored goes first
                ranks[numbers[place]] = (slope + 1e-9 * (place + 1)) / cost
    return ranks


def lower_hull(points):
    """The points, (x, y) of rising x, on the lower side of their convex hull."""
    hull = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull


def _free_units(units, values, fixed):
    """Layers -> numbers of their units that may leave, the lowest sum of `values` first. fixed: the
    (layer, filter) that may not."""
    worth = [unit.total(values) for unit in units]
    free = collections.defaultdict(list)
    for number in sorted(range(len(units)), key=worth.__getitem__):
        if fixed.isdisjoint(units[number].filters):
            free[units[number].layers].append(number)
    return free


SHARES = 0.25, 0.5, 0.75, 1  # of the filters of a layer that may leave, at which it is measured


def measure_losses(
    model: torch.nn.Module,
    scores: dict[str, torch.Tensor],
    batches,
    residual: str = "single",
    reference: torch.nn.Module | None = None,
    keep: Iterable[str] = (),
) -> dict:
    """How much the answers of a network change without the lowest scored filters of one layer.

    scores, residual, keep: as for `select_filters`. batches: an iterable of (inputs, targets), on
    the model's device, as for `cal_importance`; targets are not looked at. reference: the network
    whose answers are wanted, by default `model` itself.
    The loss is the Kullback-Leibler divergence of the answers from those wanted, less that of all
    filters, in the mean over the images. BatchNorms normalise by the batch, since their statistics
    change with what they read. Returns {names of the layers whose filters leave together: [(how
    many such units are gone, loss), ...]}, layers of the unpruned network.
    """
    removable = removable_units(model, scores, residual, keep)
    cuts = {}
    for layers, own in removable.items():
        for count in sorted({round(len(own.units) * share) for share in SHARES} - {0}):
            cuts[layers, count] = without(model, own.units[:count])
    divergences = _divergences(_normalised_by_batch(model), cuts, batches, reference or model)
    whole, losses = divergences.pop(None), {}
    for (layers, count), divergence in divergences.items():
        losses.setdefault(layers, []).append((count, divergence - whole))
    return losses


def _divergences(model, cuts, batches, reference):
    """{key: the mean divergence of the answers without some filters from those of `reference`, over
    all processes}; None: of those with all filters. cuts: {key: as for `Partial.without`}."""
    partial, reference = Partial(model), _normalised_by_batch(reference)
    sums = {key: torch.zeros(2, device=next(model.parameters()).device) for key in (None, *cuts)}
    for inputs, _targets in shared(batches):
        with torch.no_grad():
            wanted = _log_answers(call(reference, inputs))
        _add_divergence(sums[None], partial.begin(inputs), wanted)
        for key, kept in progress(cuts.items(), "layers"):
            _add_divergence(sums[key], partial.without(kept), wanted)
    sum_over_processes(*sums.values())
    return {key: (total / count).item() for key, (total, count) in sums.items()}


def _normalised_by_batch(model):
    """A copy in eval mode whose BatchNorms do as in training."""
    network = copy_of(model).eval()
    for norm in network.modules():
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.train()
    return network


class Removable(NamedTuple):
    """What some layers may lose without the others. units: those that may leave, the lowest scored
    first. total: how many they have, in all."""

    units: list
    total: int


def removable_units(
    model: torch.nn.Module,
    scores: dict[str, torch.Tensor],
    residual: str = "single",
    keep: Iterable[str] = (),
) -> dict[tuple, Removable]:
    """Names of layers whose filters leave together, of most networks one -> their Removable.
    scores, residual, keep: as for `select_filters`."""
    groups, units = groups_of(model, keep), _units(remains_of(model), residual)
    totals = collections.Counter(unit.layers for unit in units)
    values, removable = _values_of(groups, scores), {}
    free = _free_units(units, _finite(values), _fixed(groups, values))
    for layers, numbers in free.items():
        own = [units[number] for number in numbers]
        removable[layers] = Removable(own[: _most_units(groups, own)], totals[layers])
    return removable


def without(model: torch.nn.Module, units: list[Unit]) -> dict[str, torch.Tensor]:
    """Layer -> indices of all filters but those of some units, of the layers that lose some."""
    gone = set(itertools.chain.from_iterable(unit.filters for unit in units))
    remains, rest = remains_of(model), {}
    for name in _layers_of(gone):
        count = len(remains.filters[name])
        rest[name] = torch.tensor([index for index in range(count) if (name, index) not in gone])
    return rest


def _most_units(groups, units):
    """How many of some units, in their order, the floors of the layers let go."""
    spare = {name: len(group.channels) - group.floor for name, group in groups.items()}
    for count, unit in enumerate(units):
        for name, _ in unit.filters:
            spare[name] -= 1
        if any(spare[name] < 0 for name, _ in unit.filters):
            return count
    return len(units)


def _log_answers(outputs):
    """The logarithms of a network's answers. Raises ValueError where it gives no logits."""
    return rows_of_logits(outputs, "ranking='measured'").log_softmax(1)


def _add_divergence(sums, outputs, wanted):
    """Add the divergence of a batch's answers from those wanted, and how many these are."""
    own = _log_answers(outputs)
    sums[0] += torch.nn.functional.kl_div(own, wanted, reduction="sum", log_target=True)
    sums[1] += len(own)


def _needed(remains, groups, rank_of):
    """The (layer, filter) of the highest rank behind the inputs of each layer that else might be
    left with none."""
    structure, needed = remains.structure, set()
    if not structure.partial_inputs:
        return needed
    filters = []
    for name, group in groups.items():
        filters += [(name, index) for index in range(len(group.channels))]
    numbers = torch.cat([structure.filters[name][kept] for name, kept in remains.filters.items()])
    values = torch.tensor([rank_of.get(filter, math.inf) for filter in filters]).double()
    for channels in structure.partial_inputs:
        behind = structure.behind(channels, numbers)
        highest = behind & (values == values[behind].max())
        needed.add(filters[highest.nonzero().max()])  # of equals, the last goes last
    return needed


def _round_widths(groups, removed, gone, multiple):
    """Put the last of some removed units back until all widths are multiples, or full."""

    def is_uneven(name):
        full = len(groups[name].channels)
        width = full - len(gone[name])
        return width != round_up(width, multiple, full)

    uneven = set(filter(is_uneven, groups))
    while uneven:
        for unit in reversed(removed):
            if any(name in uneven and index in gone[name] for name, index in unit.filters):
                for name, index in unit.filters:
                    gone[name].discard(index)
                layers = set(unit.layers)
                uneven = (uneven - layers) | set(filter(is_uneven, layers))


def kept_mask(kept: dict[str, torch.Tensor], model: torch.nn.Module) -> torch.Tensor:
    """A selection as one mask: a bool tensor over all filters of `model`, in order of layer."""
    parts = []
    for group in filter_groups(model):
        parts.append(torch.zeros(len(group.channels), dtype=torch.bool))
        parts[-1][kept[group.name]] = True
    return torch.cat(parts)


def kept_filters(model: torch.nn.Module, small: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The filters of `model` that `small`, which was cut from it, still has: layer -> indices."""
    has, had = remains_of(small).filters, remains_of(model).filters
    return {name: torch.isin(own, has[name]).nonzero().flatten() for name, own in had.items()}


def mask_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The share of filters that one of two masks keeps and the other does not."""
    return (a != b).sum().item() / len(a)


# ------------------------------------------------------------------------------------ surgery


class SelectAgain(ValueError):
    """An operation cannot be cut as was asked; from now on it stays whole."""


def prune(
    model: torch.nn.Module,
    kept: dict[str, torch.Tensor],
    images=None,
    original: torch.nn.Module | None = None,
) -> torch.nn.Module:
    """The smaller network that has only the filters `kept`; `model` stays as it is.

    kept: layer name -> rising indices of the filters to keep, for every filter group.
    A stream channel that no kept filter writes leaves the stream and all its readers. In eval mode
    the result computes what `model` computes with the removed filters' outputs at zero wherever
    they are read. Where `model` is none of the four networks, this is tried before it is returned,
    for all that it gives, on `images`, inputs as for `cal_importance`, or on noise. original: the
    unpruned network that `model` was cut from in steps which can be taken anew. Raises ValueError
    where `kept` does not fit the network, or the result computes something else; SelectAgain where
    the operation that causes it has been found.
    """
    try:
        return _pruned(model, kept, images)
    except CannotCut as error:
        original = original or model
        if filter_count(original)[0] < filter_count(original)[1]:
            raise ValueError(f"{error}; prune the unpruned network once more") from error
        _keep_whole_at(original, error)
        raise SelectAgain(
            f"{error}; the channels that it reads stay from now on, so select filters again"
        ) from error


def _keep_whole_at(model, error):
    """Keep all that an operation reads and writes, which cannot be cut."""
    name = traits_of(error.node).original or error.node.name
    if name in remains_of(model).structure.fixed_operations:
        raise ValueError(f"{type(model).__name__} cannot be pruned: {error}") from error
    keep_whole(model, {name: str(error)})


def _pruned(model, kept, images):
    remains = remains_of(model)
    filters = {}
    for group in filter_groups(model):
        index = _checked_index(group, kept.get(group.name))
        filters[group.name] = remains.filters[group.name][index]
    small = cut(model, filters)
    if type(model) not in NETWORKS.values():
        check(model, small, filters, images)
    return small


def _checked_index(group, kept):
    """The indices of the filters to keep, as a tensor. Raises ValueError."""
    count = len(group.channels)
    if kept is None:
        raise ValueError(
            f"what to keep of {group.name} is missing: every layer that can be "
            f"pruned needs an entry, and one that stays whole range({count})"
        )
    index = torch.as_tensor(kept).tolist()
    if not _are_rising(index, count):
        raise ValueError(
            f"{group.name}: keep at least one of its {count} filters, as rising indices"
        )
    if any(group.fixed[gone] for gone in set(range(count)) - set(index)):
        part = "is" if group.is_fixed else "has filters that are"
        raise ValueError(f"{group.name} {part} never pruned")
    return torch.tensor(index)


def _are_rising(index, count):
    """Whether these are one or more indices below `count`, each above the one before."""
    are_indices = all(type(number) is int and 0 <= number < count for number in index)
    return bool(index) and are_indices and sorted(set(index)) == list(index)


def explore(model: torch.nn.Module, example=None) -> None:
    """Find out what can be pruned in an unpruned network by trying it: whatever an operation cannot
    do without stays whole from now on. example: see `remains_of`. Raises ValueError where nothing
    is left that can be pruned."""
    remains_of(model, example)
    now, dense = filter_count(model)
    if type(model) in NETWORKS.values() or now < dense:
        return
    generator = torch.Generator().manual_seed(0)
    while True:
        scores = {}
        for group in filter_groups(model):
            scores[group.name] = torch.rand(len(group.channels), generator=generator)
        try:
            _pruned(model, select_filters(model, scores, 50), None)
            return
        except CannotCut as error:
            _keep_whole_at(model, error)


def rebuild(model: torch.nn.Module, widths: dict, whole=(), example=None) -> torch.nn.Module:
    """`model`, which is unpruned, as small as `widths_of` said of another one. whole: see
    `keep_whole`; example: `remains_of`."""
    remains_of(model, example)
    if whole:
        keep_whole(model, whole)
    filters = remains_of(model).structure.all_filters()
    unknown = widths.keys() - filters.keys()
    if unknown:
        raise ValueError(f"{type(model).__name__} has no layer {min(unknown)!r}")
    for name, width in widths.items():
        most = len(filters[name])
        if type(width) is int and 1 <= width <= most:
            filters[name] = torch.arange(width)
        elif isinstance(width, (list, tuple)) and _are_rising(width, most):
            filters[name] = torch.tensor(width)
        else:
            raise ValueError(
                f"the width of {name} must be a number from 1 to {most} or a rising "
                f"list of its channels below that, not {reprlib.repr(width)}"
            )
    return cut(model, filters)


def cut(model: torch.nn.Module, filters: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A copy of `model` that has, of the unpruned network's filters, only these: layer -> indices.
    Raises ValueError where they break up what only leaves together."""
    remains = remains_of(model)
    structure = remains.structure
    unit = structure.broken(filters)
    if unit:
        raise ValueError(
            f"filter {unit[0][1]} of {unit[0][0]} only leaves together with {len(unit) - 1} others"
        )
    before, after = structure.alive(remains.filters), structure.alive(filters)
    small = copy_of(model)
    graph = cut_channels(small, structure, before, after)
    small._remains = Remains(structure, filters, graph, signature(small))
    return small
