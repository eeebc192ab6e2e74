"""The ticket of MobileNet-V1."""

from study_tables.cells import lines_of, span, table
from study_tables.records import MOBILENET, Case


@table
def ticket(study):
    case, rows = Case(MOBILENET, "ticket", MOBILENET), []
    for method in ("bn", "fisher", "orthoreg"):
        record = study.find(case, method, 50)[0]
        distances = record.unpruned.epochs[-1]["mask_distances"]
        rows.append(
            [
                f"`{method}`",
                span((100 * distance for distance in distances), 0),
                f"{100 * record.flag('eb_epsilon'):.0f}",
            ]
        )
    differ = "filters in which the last mask differs from the four before (%)"
    return lines_of(["MobileNet-V1, 50%", differ, "asked for, at most"], rows)
