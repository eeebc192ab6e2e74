"""Do importances add up? The group checks of three networks."""

from inspect import signature

from lab.groups import check_groups
from lab.sections import absolute_error
from study_tables.cells import lines_of, listed, span, table
from study_tables.records import MOBILENET, RESNET56, VGG, WARMUP

RANDOM, LOWEST = "over all layers, random", "over all layers, of the lowest scores"
WITHIN = "within a layer, random", "within a layer, of the lowest scores"
ALL_LAYERS = [(kind, size) for kind in (RANDOM, LOWEST) for size in (4, 32, 64, 128, 256)]
WITHIN_LAYER = [(kind, size) for kind in WITHIN for size in (4, 32, 256)]
WON_SIZES = 64, 128, 256


def group_pairs(study):
    """{network: [{(kind, size): figures} of the plain one, of the penalised one]}"""
    pairs = {}
    for name, network in (("vgg", VGG), ("mobilenet", MOBILENET), ("resnet-56", RESNET56)):
        checks = study.checks[f"groups/{name}_groups_fisher.json"].values()
        ordered = sorted(checks, key=lambda check: check["penalised"])
        pairs[network] = [by_size(check["kinds"]) for check in ordered]
    return pairs


def by_size(kinds):
    """{(kind, size): figures} of {kind: [figures]}"""
    return {(kind, each["size"]): each for kind, rows in kinds.items() for each in rows}


def sums(study, estimate):
    """A row for each (kind, size), and for each network its errors and the rank. estimate: what is
    summed, "scores" or "changes"."""
    columns = {"relative error": relative, "≈ absolute": absolute, "rank": rank}
    pairs = group_pairs(study)
    rows, last = [], None
    for kind, size in ALL_LAYERS + WITHIN_LAYER:
        label = str(size) if kind == last else f"{kind}: {size}"
        last = kind
        cells = [
            both(pair, (kind, size), show, estimate)
            for pair in pairs.values()
            for show in columns.values()
        ]
        rows.append([label, *cells])
    heads = [f"{network}: {name}" for network in pairs for name in columns]
    return lines_of(["filters in a group", *heads], rows)


def both(pair, key, show, estimate):
    """A figure of the plain and of the penalised network."""
    if key not in pair[0]:
        return "–"
    return " / ".join(show(figures[key], estimate) for figures in pair)


def relative(figures, estimate):
    return f"{figures[f'error_{estimate}']:.2f}"


def absolute(figures, estimate):
    return absolute_error(figures, estimate).removeprefix("≈ ")


def rank(figures, estimate):
    correlation = figures[f"rank_{estimate}"]
    return "–" if correlation is None else f"{correlation:.2f}"


@table
def sums_of_scores(study):
    return sums(study, "scores")


@table
def sums_of_changes(study):
    return sums(study, "changes")


@table
def groups_won(study):
    """Of how many networks and sizes the penalised one has the smaller error or the higher rank."""
    rows = []
    for kind in (RANDOM, LOWEST):
        for estimate, words in (("scores", "sum of scores"), ("changes", "sum of single changes")):
            rows.append([kind, words, *times_won(study, kind, estimate, WON_SIZES)])
    within = [f"{WITHIN[0]}; 4, 32 and 256 filters", "sum of scores"]
    rows.append([*within, *times_won(study, WITHIN[0], "scores", (4, 32, 256))])
    networks = [network for pair in group_pairs(study).values() for network in pair]
    four = [(kind, 4) for kind in (RANDOM, LOWEST, *WITHIN)]
    single = max(network[key]["error_changes"] for network in networks for key in four)
    lowest = [network[LOWEST, size]["error_scores"] for network in networks for size in WON_SIZES]
    pool = signature(check_groups).parameters["pool"].default
    # Pairs of ranks of 8 have a variance of 1 / (8 - 1), and four of them are averaged.
    rank_error = (1 / (8 - 1) / 4) ** 0.5
    removed = [
        record.unpruned.filters - record.filters
        for case in WARMUP
        for record in study.find(case, "fisher").values()
    ]
    rows += [
        ["largest relative error of single changes, 4 filters", "", f"{single:.2f}", "", ""],
        [LOWEST, "relative error of the sum of scores, from to", span(lowest, 2), "", ""],
        [
            "groups of 4, 128 and 256 filters within a layer of VGG-13, n",
            "",
            listed((groups_within(study, size) for size in (4, 128, 256)), 0),
            "",
            "",
        ],
        ["filters that random groups are drawn from", "", str(pool), "", ""],
        [
            "standard error of the mean of four rank correlations of 8 groups each",
            "",
            "",
            "",
            f"{rank_error:.1f}",
        ],
        ["filters removed at 75%", "", f"{min(removed):,} to {max(removed):,}", "", ""],
    ]
    head = ["the penalised network is better, 64, 128 and 256 filters", "", "relative error"]
    return lines_of([*head, "≈ absolute error", "rank correlation"], rows)


def times_won(study, kind, estimate, sizes):
    """ "7 of 9" for the relative error, the absolute error and the rank correlation."""
    pairs = [
        (plain[kind, size], penalised[kind, size])
        for plain, penalised in group_pairs(study).values()
        for size in sizes
        if (kind, size) in plain
    ]
    error, rank = f"error_{estimate}", f"rank_{estimate}"
    won = [
        [ours[error] < plain[error] for plain, ours in pairs],
        [ours[error] * ours["change"] < plain[error] * plain["change"] for plain, ours in pairs],
        [ours[rank] > plain[rank] for plain, ours in pairs],
    ]
    return [f"{sum(each)} of {len(each)}" for each in won]


def groups_within(study, size):
    """How many groups of one layer of VGG-13 were checked."""
    checks = study.checks["groups/vgg_groups_fisher.json"]
    for figures in checks.values():
        for checked in figures["kinds"][WITHIN[0]]:
            if checked["size"] == size:
                return checked["n"]
