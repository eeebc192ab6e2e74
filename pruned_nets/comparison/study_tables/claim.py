"""The scores, or the network? What claim.py has recorded."""

import statistics

import claim_records

from config import title_of
from lab.comparison import minus
from lab.markdown import spread
from lab.significance import Difference
from study_tables.cells import differences, interval, lines_of, mean_of, table


def ahead(kinds, figure, *args):
    """{seed: what the first of two kinds is ahead of the second}. figure: (kind of network, *args)
    -> {seed: value}."""
    ours, other = kinds
    return minus(figure(ours, *args), figure(other, *args))


def claim_rows(results, kinds):
    """{what is measured: {seed: the first of two kinds of network minus the second}}."""
    most = claim_records.MOST_STEPS
    figures = {"unpruned": (results.health, "test_top1")}
    for score in claim_records.CHOICES:
        figures[f"`{score}`, mean of cuts of 5 to 75%"] = results.area, score
    for score in ("fisher", "fisher by layer"):
        label = f"`{score}` minus `random`, mean of cuts"
        figures[label] = results.beyond_random, score, results.area
    for gone in claim_records.STEPPED:
        for score in ("fisher", "fisher by layer"):
            figures[f"`{score}`, {gone}% in one step"] = results.cut, score, gone
    for gone in claim_records.STEPPED:
        figures[f"`fisher`, {gone}% in {most} steps"] = results.cut, "fisher", gone, most
        figures[f"what {most} steps gain over one, {gone}%"] = results.gain, gone, most
    for score in claim_records.CHOICES:
        figures[f"`{score}`, 75%, retrained"] = results.retrained, score
    label = f"`fisher`, 75% in {most} steps, retrained"
    figures[label] = results.retrained, "fisher", False, most
    for score in ("fisher", "fisher by layer", "bn"):
        figures[f"`{score}` minus `random`, retrained"] = results.beyond_random, score
    figures["`fisher` minus unpruned, retrained"] = (results.beyond_unpruned,)
    return {label: ahead(kinds, *figure) for label, figure in figures.items()}


def claim_table(study, kinds, intervals=False):
    """One kind of network minus another: a column for each architecture."""
    each = [claim_rows(results, kinds) for results in study.claims]
    rows = {label: [column[label] for column in each] for label in each[0]}
    cells, count = differences(rows, study.claims, usual=len(claim_records.SEEDS))
    if intervals:
        cells = with_intervals(cells, rows)
    return lines_of(["points of accuracy", *titles_of(study)], cells, count)


def titles_of(study):
    return [title_of(results.task.model) for results in study.claims]


def with_intervals(cells, rows):
    """The rows of text of `differences`, with their intervals."""

    def with_interval(text, gaps):
        return f"{text}, {interval(gaps)}" if len(gaps) > 1 else text

    return [
        [label, *map(with_interval, texts, gaps)]
        for (label, *texts), gaps in zip(cells, rows.values())
    ]


@table
def claim(study):
    return claim_table(study, ("penalised", "zero"), intervals=True)


@table
def claim_plain(study):
    return claim_table(study, ("penalised", "plain"))


@table
def claim_decay(study):
    """All that tells the two kinds apart is weight decay."""
    return claim_table(study, ("plain", "zero"))


@table
def claim_networks(study):
    lines = []
    for results in study.claims:
        lines += ["", f"{results.title()}:", "", *networks_of(results)]
    return lines[1:]


def networks_of(results):
    """How the three kinds of one architecture were trained, and what they have."""
    scratch_epochs = results.task.epochs + results.task.retrain_epochs
    most = claim_records.MOST_STEPS
    accuracies = {
        "training images right (%)": (results.health, "train_top1"),
        "test images right (%)": (results.health, "test_top1"),
        "`fisher`, 50% in one step": (results.cut, "fisher", 50),
        "`fisher`, 50% in eight steps": (results.cut, "fisher", 50, most),
        "`fisher`, 75% in one step": (results.cut, "fisher", 75),
        "`fisher`, 75% in eight steps": (results.cut, "fisher", 75, most),
        "`fisher by layer`, 50%": (results.cut, "fisher by layer", 50),
        "`random`, 50%": (results.cut, "random", 50),
        "unpruned, trained as long": (results.retrained, None),
        "`fisher`, 75%, retrained": (results.retrained, "fisher"),
        "`fisher by layer`, 75%, retrained": (results.retrained, "fisher by layer"),
        "`bn`, 75%, retrained": (results.retrained, "bn"),
        "`random`, 75%, retrained": (results.retrained, "random"),
        "`fisher`, 75% in eight steps, retrained": (results.retrained, "fisher", False, most),
        f"`fisher`, 75%, from scratch, {scratch_epochs} epochs": (
            results.retrained,
            "fisher",
            True,
        ),
    }
    gaps = {
        "`fisher` minus `random`, retrained": (results.beyond_random, "fisher"),
        "what eight steps gain over one, retrained": (results.gain_retrained, most),
        "`fisher`, 75%, retrained minus from scratch": (results.beyond_scratch,),
        "unpruned, 8 bits minus 32": (results.in_8_bits, None),
        "`fisher`, 75%, retrained, 8 bits minus 32": (results.in_8_bits, "fisher"),
    }
    degrees = {
        "degree of orthogonality": (results.health, "degree"),
        "the same of 1 × 1 filters": (results.health, "pointwise_degree"),
    }
    counts = [len(results.health(kind, "degree")) for kind in claim_records.KINDS]
    rows = [
        *recipe_rows(results),
        *figure_rows(accuracies, counts, spread),
        *figure_rows(gaps, counts, mean_of_all),
        *figure_rows(degrees, counts, lambda values: spread(values, 2)),
        ["networks, n", *map(str, counts)],
    ]
    return lines_of(["", "plain", "penalised", "λ = 0"], rows)


def recipe_rows(results):
    """How the three kinds of one architecture were trained."""
    task, treatments = results.task, claim_records.chosen(results.name)
    recipes = [treatments[kind] for kind in claim_records.KINDS]
    rates = [f"{each.rate:g} / {each.strength:g} / {each.decay:g}" for each in recipes]
    epochs = f"{task.epochs} / {task.retrain_epochs}; {task.batch_size}"
    return [
        ["learning rate / λ / weight decay", *rates],
        ["epochs before / after a cut; images of a batch", *[epochs] * len(rates)],
    ]


def figure_rows(figures, counts, text_of):
    """Rows of {label: (figure, *arguments)}, each cell with its n where that is not the usual one.
    figure: (kind of network, *arguments) -> {seed: value}. counts: the usual n of each kind."""
    rows = []
    for label, (figure, *args) in figures.items():
        cells = []
        for kind, usual in zip(claim_records.KINDS, counts):
            values = figure(kind, *args).values()
            note = f" (n = {len(values)})" if values and len(values) != usual else ""
            cells.append(text_of(values) + note)
        if any(cells):
            rows.append([label, *cells])
    return rows


def mean_of_all(gaps):
    """The mean of some differences and its standard error."""
    gaps = list(gaps)
    if len(gaps) < 2:
        return "".join(f"{gap:+.1f}" for gap in gaps)
    return mean_of(Difference.of(gaps))


@table
def claim_criteria(study):
    """The three things that were to count, each seen where its interval is above 0."""
    each = [criteria_of(results) for results in study.claims]
    rows = [[label, *(verdict(column[label]) for column in each)] for label in each[0]]
    return lines_of(["penalised beside λ = 0", *titles_of(study)], rows)


def criteria_of(results):
    """{criterion: {seed: points}}"""
    kinds = "penalised", "zero"
    most = claim_records.MOST_STEPS
    beyond_random = ahead(kinds, results.beyond_random, "fisher", results.area)
    criteria = {
        "1. `fisher` is ahead right after cuts of 5 to 75%": ahead(kinds, results.area, "fisher"),
        "1. ... and by more than `random`": beyond_random,
    }
    for gone in claim_records.STEPPED:
        label = f"2. {most} steps gain less, {gone}%"
        criteria[label] = ahead(kinds[::-1], results.gain, gone, most)
    label = "3. `fisher` minus `random` is more after a retraining"
    criteria[label] = ahead(kinds, results.beyond_random, "fisher")
    return criteria


def verdict(gaps):
    difference = Difference.of(gaps.values())
    low, high = difference.interval
    word = "**seen**" if low > 0 else "not seen"
    found = f"{low:.1f} to {high:.1f}; {difference.detectable():.1f}"
    return f"{word}: {mean_of(difference)} ({found})"


@table
def claim_late(study):
    """What the penalty costs a network that was trained without it."""
    rows = [["epochs", *(str(results.task.retrain_epochs) for results in study.claims)]]
    for label, digits, figure in (
        ("with the penalty", 1, lambda results: results.late("test_top1")),
        ("without", 1, lambda results: results.retrained("plain", None)),
        ("degree of orthogonality before", 2, lambda results: results.health("plain", "degree")),
        ("after, with the penalty", 2, lambda results: results.late("degree")),
    ):
        cells = [spread(figure(results).values(), digits) for results in study.claims]
        rows.append([label, *cells])
    gaps = {
        "with the penalty minus without": [
            minus(results.late("test_top1"), results.retrained("plain", None))
            for results in study.claims
        ]
    }
    cells, count = differences(gaps, study.claims, usual=len(claim_records.SEEDS))
    head = ["the plain network, trained further", *titles_of(study)]
    return lines_of(head, [*rows, *with_intervals(cells, gaps)], count)


@table
def lengths(study):
    """ResNet-56 by the epochs of its retraining. In brackets: the multiply-adds of all training."""
    results = next(each for each in study.claims if each.name == "resnet-56")
    epochs, trained = claim_records.LENGTHS, results.lengthened()
    *short, as_long = results.fresh()
    fresh = {
        "from scratch, as long": short,
        f"from scratch, {as_long[-1]} epochs": [None, None, as_long],
    }

    def cell(key):
        if key is None:
            return ""
        accuracies, work = results.after(*key), results.after(*key, "work")
        if not accuracies:
            return "–"
        return f"{spread(accuracies.values())} ({statistics.mean(work.values()):.0f})"

    def minus_each(ours, theirs):
        return [
            minus(results.after(*mine), results.after(*yours)) if yours else {}
            for mine, yours in zip(ours, theirs)
        ]

    rows = [["epochs before the cut", *[str(results.task.epochs)] * len(epochs)]]
    rows += [[f"`{name}`", *map(cell, keys)] for name, keys in trained.items()]
    rows += [[name, *map(cell, keys)] for name, keys in fresh.items()]
    gaps = {}
    for ours, theirs in (("orthoreg", "fisher"), ("fisher", "random")):
        gaps[f"`{ours}` minus `{theirs}`"] = minus_each(trained[ours], trained[theirs])
    unpruned = ahead(("penalised", "plain"), results.health, "test_top1")
    gaps["`orthoreg` minus `fisher`, each minus its unpruned network"] = [
        minus(gap, unpruned) for gap in gaps["`orthoreg` minus `fisher`"]
    ]
    for name, ours in trained.items():
        for other, theirs in fresh.items():
            gaps[f"`{name}` minus {other}"] = minus_each(ours, theirs)
    cells, count = differences(gaps, epochs, usual=2)
    cells = with_intervals(cells, gaps)
    head = ["75% removed, retrained for", *(f"{each} epochs" for each in epochs)]
    return lines_of(head, rows + cells, count)
