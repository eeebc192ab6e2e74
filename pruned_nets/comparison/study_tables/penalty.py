"""The weight of the penalty."""

import statistics

from lab.markdown import spread
from study_tables.cells import lines_of, table
from study_tables.records import MOBILENET, RESNET56, Case, macs_left


@table
def weights(study):
    case, rows = Case(RESNET56, "cpu-penalty", RESNET56), []
    for weight, suffix in (
        ("0 †", ", λ 0"),
        ("0.001 †", ", λ 0.001"),
        ("0.01 (published)", ""),
        ("0.1 †", ", λ 0.1"),
    ):
        record = study.find(case, f"orthoreg{suffix}")[0]
        rows.append(
            [
                weight,
                f"{record.unpruned.orthogonality['mean']:.2f}",
                f"{record.unpruned.best:.1f}",
                f"{record.after_pruning:.1f}",
                f"{record.best:.1f} ({record.flops_left:.0f})",
            ]
        )
    head = ["λ", "degree of orthogonality", "before pruning", "right after it", "retrained"]
    return lines_of(head, rows)


@table
def pointwise(study):
    """MobileNet-V1's pointwise filters."""
    rows = []
    for label, sweep, method, percent in (
        ("with a warm-up, plain", "cpu-warmup", "fisher", 75),
        ("with a warm-up, λ = 0 †", "cpu-warmup", "orthoreg, λ 0", 75),
        ("with a warm-up, λ = 0.001 (published)", "cpu-warmup", "orthoreg", 75),
        ("published rates, plain", "cpu", "fisher", 50),
        ("published rates, λ = 0.001 (published)", "cpu", "orthoreg", 50),
        ("published rates, λ = 0.01", "cpu-penalty-0.01", "orthoreg", 50),
    ):
        case = Case(MOBILENET, sweep, MOBILENET)
        found = study.find(case, method, percent).values()
        retrained = spread(record.best for record in found)
        rows.append(
            [
                label,
                f"{statistics.mean(study.degrees(case, method, percent).values()):.2f}",
                spread(record.unpruned.best for record in found),
                str(percent),
                f"{retrained} ({macs_left(found):.0f})",
                str(len(found)),
            ]
        )
    head = ["MobileNet-V1", "degree of orthogonality, pointwise", "before pruning"]
    return lines_of([*head, "removed (%)", "retrained", "n"], rows)
