"""Smaller rates for VGG-13."""

from study_tables.cells import differences, interval, lines_of, listed, table
from study_tables.records import FOUR, GENTLE, VGG, WARMUP, Case


@table
def rates(study):
    published, drop, low = (Case(name, name, VGG) for name in ("cpu", "cpu-drop", "cpu-low"))
    columns = {
        "published rates (n = 2)": published,
        "`cpu-drop` (n = 2)": drop,
        "with a warm-up (n = 3)": WARMUP[0],
        "`cpu-low` (n = 2)": low,
        "`cpu-gentle` † (n = 3)": GENTLE,
    }
    methods = {
        "`orthoreg`": "orthoreg",
        "`fisher`": "fisher",
        "`bn`": "bn",
        "`random`": "random",
        "`orthoreg`, from scratch": "orthoreg, scratch",
        "`fisher`, from scratch": "fisher, scratch",
        "unpruned, penalised": "penalised",
        "unpruned, plain": "plain",
    }
    pairs = {
        "`orthoreg` minus `fisher`": ("orthoreg", "fisher"),
        "`orthoreg` minus `bn`": ("orthoreg", "bn"),
        "`orthoreg` minus its unpruned network": ("orthoreg", "penalised"),
        "`fisher` minus its unpruned network": ("fisher", "plain"),
        "`fisher` minus `random`": ("fisher", "random"),
        "`orthoreg` minus itself from scratch": ("orthoreg", "orthoreg, scratch"),
        "`fisher` minus itself from scratch": ("fisher", "fisher, scratch"),
        "unpruned: penalised minus plain": ("penalised", "plain"),
    }
    cases = columns.values()
    rows = []
    for label, method in methods.items():
        texts = [study.accuracy(case, method, usual=3 if case in FOUR else 2) for case in cases]
        rows.append([label, *texts])
    gaps = {label: [study.minus(case, *pair) for case in cases] for label, pair in pairs.items()}
    gaps["`orthoreg` minus `fisher`, each minus its unpruned network"] = [
        study.beyond(case, "orthoreg", "fisher") for case in cases
    ]
    cells, count = differences(gaps, columns, usual=None)
    rows += cells
    for kind, method in (("penalised", "orthoreg"), ("plain", "fisher")):
        degrees = [listed(study.degrees(case, method).values(), 2) for case in cases]
        rows.append([f"degree of orthogonality, {kind}", *degrees])
    return lines_of(["VGG-13, 75% of the filters removed", *columns], rows, count)


@table
def gentle(study):
    """The healthy VGG-13, seed by seed."""
    rows = []
    for label, method in (
        ("`orthoreg`", "orthoreg"),
        ("`fisher`", "fisher"),
        ("`orthoreg`, from scratch", "orthoreg, scratch"),
        ("`fisher`, from scratch", "fisher, scratch"),
    ):
        texts = {seed: f"{best:.1f}" for seed, best in study.best(GENTLE, method).items()}
        rows.append([label, *(texts.get(seed, "–") for seed in range(3))])
    lead = interval(study.minus(GENTLE, "orthoreg", "fisher"))
    beyond = interval(study.beyond(GENTLE, "orthoreg", "fisher"))
    rows.append(["`orthoreg` minus `fisher`, 95% interval", lead, "", ""])
    rows.append(["the same, each minus its unpruned network", beyond, "", ""])
    return lines_of(["`cpu-gentle`", "seed 0", "seed 1", "seed 2"], rows)
