"""Is `orthoreg` ahead of the other methods? The summary, and the sweep with a warm-up."""

import statistics

from lab.markdown import spread
from lab.significance import Difference
from study_tables.cells import differences, interval, lines_of, span, table
from study_tables.records import FOUR, WARMUP

TITLES = [case.title for case in FOUR]


@table
def answers(study):
    """The table of the ten sentences."""

    def leads(ours, theirs):
        return [study.minus(case, ours, theirs) for case in FOUR]

    lead = "`orthoreg` minus `fisher`"
    beyond = "the same lead beyond that of the unpruned networks"
    rows = {
        lead: leads("orthoreg", "fisher"),
        beyond: [study.beyond(case, "orthoreg", "fisher") for case in FOUR],
        "the lead of the unpruned networks": leads("penalised", "plain"),
        "`fisher` minus its unpruned network": leads("fisher", "plain"),
    }
    cells, count = differences(rows, FOUR, excerpt=True)
    for place, label in ((2, beyond), (1, lead)):
        cells[place:place] = precision(rows[label])
    cells += [
        ["pairs of runs, n", *(str(len(gaps)) for gaps in rows[lead])],
        ["unpruned, plain", *(study.accuracy(case, "plain", cost=False) for case in FOUR)],
        [
            "degree of orthogonality, penalised / plain",
            *(two_degrees(study, case) for case in FOUR),
        ],
    ]
    return lines_of(["75% of the filters removed", *TITLES], cells, count)


def precision(columns):
    """The rows that say how much a row of differences can tell. columns: its {seed: difference}."""
    found = [f"{Difference.of(gaps.values()).detectable():.1f}" for gaps in columns]
    return [
        ["95% interval", *map(interval, columns)],
        ["lead that would be found with a chance of 80%", *found],
    ]


def two_degrees(study, case):
    """ "0.85 / 0.04": of the penalised and of the plain network."""
    degrees = [study.degrees(case, method).values() for method in ("orthoreg", "fisher")]
    return " / ".join(f"{statistics.mean(each):.2f}" for each in degrees)


@table
def first(study):
    """The table of the suite's README."""
    methods = {
        "`orthoreg`": "orthoreg",
        "`fisher`": "fisher",
        "`bn`": "bn",
        "`random`": "random",
        "from scratch, `orthoreg`'s architecture": "orthoreg, scratch",
        "from scratch, `fisher`'s": "fisher, scratch",
        "nothing removed, with the penalty": "penalised",
        "nothing removed, without": "plain",
    }

    def leads(compare, ours, theirs):
        return [compare(case, ours, theirs) for case in FOUR]

    gaps = {
        "**`orthoreg` minus `fisher`**": leads(study.minus, "orthoreg", "fisher"),
        "the same, each minus its unpruned network": leads(study.beyond, "orthoreg", "fisher"),
        "**`orthoreg` minus `bn`**, each minus its unpruned network": leads(
            study.beyond, "orthoreg", "bn"
        ),
        "from scratch minus pruned, `orthoreg`": leads(
            study.minus, "orthoreg, scratch", "orthoreg"
        ),
        "from scratch minus pruned, `fisher`": leads(study.minus, "fisher, scratch", "fisher"),
    }
    cells, count = differences(gaps, FOUR, excerpt=True)
    rows = accuracies(study, methods, FOUR)
    return lines_of(["75% of the filters removed by", *TITLES], [*rows, *cells], count)


def accuracies(study, methods, cases):
    """Rows of {label: method}, with a column for each case."""
    return [
        [label, *(study.accuracy(case, method) for case in cases)]
        for label, method in methods.items()
    ]


@table
def warmup(study):
    methods = {
        "`orthoreg`": "orthoreg",
        "`fisher`": "fisher",
        "`bn`": "bn",
        "`random`": "random",
        "`orthoreg`, λ = 0 †": "orthoreg, λ 0",
        "`orthoreg`, from scratch †": "orthoreg, scratch",
        "`fisher`, from scratch †": "fisher, scratch",
        "unpruned, penalised": "penalised",
        "unpruned, λ = 0 †": "unpruned with penalty, as many epochs, λ 0",
        "unpruned, plain": "plain",
    }
    pairs = {
        "**`orthoreg` minus** `fisher`": ("orthoreg", "fisher"),
        "minus `bn`": ("orthoreg", "bn"),
        "minus `random`": ("orthoreg", "random"),
        "minus itself with λ = 0 †": ("orthoreg", "orthoreg, λ 0"),
        "minus itself from scratch †": ("orthoreg", "orthoreg, scratch"),
        "minus its unpruned network": ("orthoreg", "penalised"),
        "**`fisher` minus** itself from scratch †": ("fisher", "fisher, scratch"),
        "`fisher` minus its unpruned network": ("fisher", "plain"),
        "from scratch: `orthoreg` minus `fisher` †": ("orthoreg, scratch", "fisher, scratch"),
        "`orthoreg` from scratch minus its unpruned network †": ("orthoreg, scratch", "penalised"),
        "`fisher` from scratch minus its unpruned network †": ("fisher, scratch", "plain"),
        "unpruned: penalised minus plain": ("penalised", "plain"),
    }
    gaps = {label: [study.minus(case, *pair) for case in WARMUP] for label, pair in pairs.items()}
    for other in ("fisher", "bn", "random"):
        label = f"`orthoreg` minus `{other}`, each minus its unpruned network"
        gaps[label] = [study.beyond(case, "orthoreg", other) for case in WARMUP]
    cells, count = differences(gaps, WARMUP)
    rows = accuracies(study, methods, WARMUP)
    head = ["75% of the filters removed by", *(case.title for case in WARMUP)]
    return lines_of(head, [*rows, *cells], count)


@table
def before(study):
    """Accuracies before the pruning and right after it."""
    rows = []
    for case in FOUR:
        for method in ("orthoreg", "fisher", "bn", "random"):
            found = study.find(case, method).values()
            unpruned = spread(record.unpruned.best for record in found)
            pruned = span(record.after_pruning for record in found)
            rows.append([case.title, f"`{method}`", unpruned, pruned])
    return lines_of(["75% of the filters removed", "", "before", "right after"], rows)
