"""How the networks learnt, and how long they were trained: losses, retrainings, rounds."""

from lab.comparison import minus
from study_tables.cells import differences, lines_of, table
from study_tables.records import GENTLE, RESNET56, VGG, WARMUP, Case, macs_left


@table
def losses(study):
    """The training loss of VGG-13 in each epoch before the pruning."""
    rows = []
    for case, method, label in (
        (Case(VGG, "cpu", VGG), "fisher", "plain, published rates"),
        (WARMUP[0], "fisher", "plain, with a warm-up"),
        (WARMUP[0], "orthoreg", "penalised, with a warm-up"),
        (Case(VGG, "cpu-low", VGG), "fisher", "plain, `cpu-low`"),
        (GENTLE, "fisher", "plain, `cpu-gentle`"),
    ):
        for seed, record in study.find(case, method).items():
            each = [f"{epoch['train']['loss']:.1f}" for epoch in record.unpruned.epochs]
            rows.append([label, str(seed), *each])
    return lines_of(["training loss of VGG-13", "seed", *map(str, range(1, 11))], rows)


@table
def retraining(study):
    """ResNet-56: the same pruned networks, retrained for 11 and for 24 epochs."""
    warm, long = WARMUP[2], Case(RESNET56, "cpu-rounds-1", RESNET56)
    longer, shorter = study.find(long, "fisher"), study.find(warm, "fisher")
    assert all(longer[seed].widths == shorter[seed].widths for seed in longer)
    fresh = study.find(warm, "fisher, scratch")
    rows = []
    for label, epochs, case, method in (
        ("retrained in `cpu-warmup`", epochs_of(shorter[0]), warm, "fisher"),
        ("retrained in `cpu-rounds-1`", epochs_of(longer[0]), long, "fisher"),
        ("from scratch", (0, len(fresh[0].epochs)), warm, "fisher, scratch"),
    ):
        rows.append([label, "{} / {}".format(*epochs), study.accuracy(case, method)])
    scratch = study.best(warm, "fisher, scratch")
    eleven, more = study.best(warm, "fisher"), study.best(long, "fisher")
    gaps = {
        "the 24 epochs minus the 11": [minus(more, eleven)],
        "11 epochs of retraining minus from scratch": [minus(eleven, scratch)],
        "24 epochs of retraining minus from scratch": [minus(more, scratch)],
    }
    cells, count = differences(gaps, [RESNET56])
    rows += [[label, "", text] for label, text in cells]
    head = ["`fisher`, 75% removed, ResNet-56", "epochs before / after the pruning"]
    return lines_of([*head, "test accuracy"], rows, count)


def epochs_of(record):
    """(epochs before the first pruning, after it) of a record of the last round."""
    schedule, rounds = record.schedule, record.pruning["rounds"]
    epochs = {
        phase: sum(recipe["epochs"])
        for phase, recipe in schedule.items()
        if isinstance(recipe, dict)
    }
    penalised = record.flags["pruning_type"] == "orthoreg"
    if record.job == "ebt":
        return epochs["ortho" if penalised else "base"], epochs["retrain"]
    if penalised:
        start = epochs["base"] + epochs["ortho"]
        between = epochs["between"] + epochs["ortho"]
    else:
        start, between = epochs["base"], epochs["retrain"]
    return start, (rounds - 1) * between + epochs["retrain"]


@table
def rounds(study):
    """ResNet-56 in one, two and four rounds of pruning and training."""
    rows, best = [], {}
    for number in (1, 2, 4):
        case = Case(RESNET56, f"cpu-rounds-{number}", RESNET56)
        suffix = f", {number} rounds" if number > 1 else ""
        for kind in ("orthoreg", "fisher"):
            found = study.find(case, kind + suffix)
            best[kind, number] = {seed: record.best for seed, record in found.items()}
            start, after = epochs_of(next(iter(found.values())))
            rows.append(
                [
                    str(number),
                    f"`{kind}`",
                    f"{start} + {after} = {start + after}",
                    *(with_machine(found.get(seed)) for seed in range(3)),
                    f"{macs_left(found.values()):.0f}",
                ]
            )
    gaps = {}
    for number in (1, 2, 4):
        label = f"{number} {'round' if number == 1 else 'rounds'}: `orthoreg` minus `fisher`"
        gaps[label] = [minus(best["orthoreg", number], best["fisher", number])]
    for kind in ("orthoreg", "fisher"):
        for other in (2, 4):
            gaps[f"`{kind}`: 1 round minus {other}"] = [minus(best[kind, 1], best[kind, other])]
    cells, count = differences(gaps, [RESNET56])
    head = ["rounds", "75% removed by", "epochs before + after the first pruning"]
    head += ["seed 0", "seed 1", "seed 2", "multiply-adds left (%)"]
    return [*lines_of(head, rows), "", *lines_of(["difference", "points"], cells, count)]


def with_machine(record):
    """A record's accuracy, marked where it is not of the machine of the others."""
    if record is None:
        return "–"
    mark = "" if "H100" in record.environment["device"] else " †"
    return f"{record.best:.1f}{mark}"
