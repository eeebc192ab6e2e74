"""At equal multiply-adds, and by the time that these take."""

import csv
import statistics

from places import HERE

from study_tables.cells import differences, lines_of, listed, span, table
from study_tables.leads import accuracies
from study_tables.records import RESNET56, WARMUP, Case, macs_left


@table
def macs(study):
    cases = [Case(case.title, "cpu-macs", case.network) for case in WARMUP]
    methods = "orthoreg", "fisher", "bn", "random"
    gaps = {}
    for other in methods[1:]:
        start = "**`orthoreg` minus** " if other == "fisher" else "minus "
        gaps[f"{start}`{other}`"] = [study.minus(case, "orthoreg", other) for case in cases]
    for other in methods[1:]:
        gaps[f"`orthoreg` minus `{other}`, each minus its unpruned network"] = [
            study.beyond(case, "orthoreg", other, controls="cpu-warmup") for case in cases
        ]
    gaps["`fisher` minus `random`"] = [study.minus(case, "fisher", "random") for case in cases]
    cells, count = differences(gaps, cases)
    rows = accuracies(study, {f"`{method}`": method for method in methods}, cases)
    head = ["75% of the multiply-adds removed by", *(case.title for case in cases)]
    return lines_of(head, [*rows, *cells], count)


@table
def residual(study):
    """ResNet-56's streams: filters one by one, or coupled."""
    case = Case(RESNET56, "cpu-macs", RESNET56)
    with open(HERE / "latency" / "resnet-56_half.csv") as file:
        times = list(csv.DictReader(line for line in file if not line.startswith("#")))

    def time(runtime, method):
        found = []
        for row in times:
            if (row["runtime"], row["method"]) == (runtime, method):
                found += [float(row["percent"]), float(row["percent again"])]
        return f"{statistics.mean(found):.1f} ({span(found, 0)})"

    rows = []
    for kind in ("orthoreg", "fisher"):
        for way, suffix in (("single", ""), ("coupled", ", coupled")):
            found = study.find(case, kind + suffix, 50).values()
            timed = kind + ("-coupled" if suffix else "")
            retrained = listed(record.best for record in found)
            rows.append(
                [
                    f"`{kind}`, `{way}`",
                    listed(record.after_pruning for record in found),
                    f"{retrained} ({macs_left(found):.0f})",
                    time("onnxruntime", timed),
                    time("pytorch", timed),
                ]
            )
    gaps = {
        f"`{kind}`: `single` minus `coupled`": [study.minus(case, kind, f"{kind}, coupled", 50)]
        for kind in ("orthoreg", "fisher")
    }
    cells, count = differences(gaps, [case], usual=None)
    rows += [[label, "", text, "", ""] for label, text in cells]
    head = ["half of the multiply-adds removed by", "right after pruning", "retrained"]
    return lines_of([*head, "time, ONNX Runtime (%)", "PyTorch (%)"], rows, count)
