"""What was run, where, and how it differs from the publication."""

from config import PENALTY, PRESETS
from lab.record import grouped
from lab.significance import t_critical
from study_tables.cells import lines_of, listed, table
from study_tables.records import WARMUP

PER_CLASS = 500, 100  # training and test images of a class of CIFAR-100


@table
def settings(study):
    record = study.find(WARMUP[0], "fisher")[0]
    classes, validation = len(record.classes), record.flags["val_percent"] / 100
    train, test = (classes * count for count in PER_CLASS)
    paper, ours = PRESETS["paper"].ebt, record.schedule
    penalties = f"{PENALTY['vgg']:g} / {PENALTY['mobilenet']:g}"
    images = f"{train * (1 - validation):,.0f} / {train * validation:,.0f} / {test:,}"
    epochs = sum(ours["base"]["epochs"]), sum(ours["retrain"]["epochs"])
    published_epochs = sum(paper.base.epochs), sum(paper.retrain.epochs)
    bounds = " / ".join(f"{t_critical(n - 1):.1f}" for n in (2, 3, 5))
    one_accuracy = 100 * (0.7 * 0.3 / test) ** 0.5
    rows = [
        ["classes", str(classes), "100"],
        [
            "images to train on / to choose the epoch / to test",
            images,
            "50,000 / – / 10,000",
        ],
        [
            "epochs before / after the pruning",
            "{} / {}".format(*epochs),
            "{} / {}".format(*published_epochs),
        ],
        ["first learning rate", f"{ours['base']['lr'][0]:g}", f"{paper.base.lr[0]:g}"],
        ["λ of VGG-13 and the ResNets / of MobileNet-V1", penalties, penalties],
        ["answers right by guessing (%)", f"{100 / classes:.0f}", "1"],
        ["level of tests and intervals (%)", "5 / 95", "–"],
        ["standard errors to be significant with two / three / five seeds", bounds, "–"],
        ["standard error of one test accuracy of 70% (points)", f"{one_accuracy:.1f}", "–"],
    ]
    return lines_of(["", "here", "published"], rows)


@table
def runs(study):
    """One row for each sweep, machine and state of the code."""
    sweeps_with = {}  # what a run came to -> the sweeps that it lies in
    for record, sweep in study.results:
        sweeps_with.setdefault(outcome(record), set()).add(sweep)
    rows = []
    for origin, found in grouped(
        sorted(study.results, key=origin_of_result), origin_of_result
    ).items():
        seeds = {record.flags["seed"] for record, _ in found}
        twice = sum(len(sweeps_with[outcome(record)]) > 1 for record, _ in found)
        rows.append(row_of(origin, len(found), seeds, twice))
    for origin, seeds in sorted(beside_sweeps(study).items()):
        rows.append(row_of(origin, len(seeds), set(seeds)))
    head = ["sweep", "results", "seeds", "device", "torch", "commit of the code"]
    return lines_of([*head, "the same runs lie in another sweep, too"], rows)


def row_of(origin, count, seeds, twice=0):
    name, device, torch, code = origin
    code = f"{code[:-1]}, changed" if code.endswith("+") else code
    seeds = listed(sorted(seeds), 0)
    return [f"`{name}`", str(count), seeds, device, torch, code, str(twice) if twice else ""]


def beside_sweeps(study):
    """Origin -> the seeds of the records that are no runs of a sweep: networks of claim.py, and
    group checks."""
    found = {}
    for results in study.claims:
        for (_, seed), content in results.records.items():
            origin = origin_of(f"claim/{results.name}", content["environment"])
            found.setdefault(origin, []).append(seed)
    for path, checks in study.checks.items():
        for check in checks.values():
            origin = origin_of(path.removesuffix(".json"), check["environment"])
            found.setdefault(origin, []).append(check["seed"])
    return found


def outcome(record):
    """A text that only copies of one run have in common."""
    trained = [(epoch.get("lr"), epoch.get("train")) for epoch in record.epochs]
    return str([record.accuracy, trained])


def origin_of_result(result):
    """The origin of a (record, sweep)."""
    record, sweep = result
    return origin_of(sweep, record.environment)


def origin_of(name, environment):
    """(name, device, torch's version, state of the code)"""
    torch = environment["torch"].split("+")[0]
    return name, environment["device"], torch, environment.get("suite") or "unknown"
