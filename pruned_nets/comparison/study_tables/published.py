"""The published recipe, and accuracies right after a pruning of less than 75%."""

from lab.markdown import spread
from study_tables.cells import differences, lines_of, listed, table
from study_tables.records import MOBILENET, RESNET34, RESNET56, VGG, Case, macs_left

# Leads of orthoreg over fisher as published (CIFAR-100, seed 0), at 25, 50 and 75%.
PUBLISHED = {VGG: (6.0, 4.1, 2.2), MOBILENET: (-0.1, -0.2, -0.1), RESNET34: (4.7, 4.4, 3.5)}


@table
def published(study):
    four = "orthoreg", "fisher", "bn", "random"
    tables = [
        leads_of(study, Case(VGG, "cpu", VGG), (25, 50, 75), four, 2),
        leads_of(study, Case(MOBILENET, "cpu", MOBILENET), (25, 50, 75), four, 2),
        leads_of(study, Case(RESNET34, "cpu-resnet", RESNET34), (50, 75), four[:3], 1),
    ]
    lines = []
    for each in tables:
        lines += ["", *each]
    return lines[1:]


def leads_of(study, case, percents, methods, usual):
    """The table of one network. usual: the n of its runs."""
    unpruned = {
        "orthoreg": study.accuracy(case, "penalised", usual=usual),
        "fisher": study.accuracy(case, "plain", usual=usual),
    }
    rows = []
    for method in methods:
        texts = [study.accuracy(case, method, percent, usual) for percent in percents]
        rows.append([f"`{method}`", *texts, unpruned.get(method, "")])
    columns = [*(f"{percent}% removed" for percent in percents), "nothing removed"]
    gaps = {}
    for other in ("fisher", "bn"):
        each = [study.minus(case, "orthoreg", other, percent) for percent in percents]
        whole = study.minus(case, "penalised", "plain") if other == "fisher" else {}
        gaps[f"`orthoreg` minus `{other}`"] = [*each, whole]
    cells, _ = differences(gaps, columns, usual)
    by_last = [study.last_minus(case, "orthoreg", "fisher", percent) for percent in percents]
    by_last.append(study.last_minus(case, "penalised", "plain"))
    leads = [f"{lead:+.1f}" for lead in PUBLISHED[case.network][-len(percents) :]]
    rows += [
        *cells,
        [
            "`orthoreg` minus `fisher`, by last epochs",
            *(spread(each.values()) for each in by_last),
        ],
        ["`orthoreg` minus `fisher`, as published", *leads, ""],
    ]
    return lines_of([f"{case.network} (n = {usual})", *columns], rows)


@table
def right_after(study):
    """Accuracies before and right after a pruning of less than 75%, each seed's."""
    order = [VGG, MOBILENET, RESNET34, RESNET56]

    def place(key):
        sweep, network, method, percent = key
        return order.index(network), sweep, percent, method

    rows = []
    for key in sorted((key for key in study.cells if is_shown(key, study)), key=place):
        sweep, network, method, percent = key
        found = [record for _, record in sorted(study.cells[key].items())]
        started = all(record.pruning.get("round", 1) == 1 for record in found)
        unpruned = listed(record.unpruned.best for record in found)
        name, _, rest = method.partition(",")
        rows.append(
            [
                network,
                f"`{sweep}`",
                f"`{name}`{rest}",
                str(percent),
                f"{macs_left(found):.0f}",
                unpruned if started else "a round before",
                listed(record.after_pruning for record in found),
            ]
        )
    head = ["network", "sweep", "method", "removed (%)", "multiply-adds left (%)"]
    return lines_of([*head, "before", "right after, by seed"], rows)


def is_shown(key, study):
    """Whether a cell of the study belongs into the table `right_after`."""
    sweep, _, method, percent = key
    return (
        sweep in ("cpu", "cpu-resnet", "cpu-macs", "cpu-rounds-2", "cpu-rounds-4")
        and method.split(",")[0] in ("orthoreg", "fisher", "bn")
        and "scratch" not in method
        and percent is not None
        and 0 < percent < 75
        and all(record.after_pruning is not None for record in study.cells[key].values())
    )
