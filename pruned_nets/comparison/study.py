"""The tables of the study, made of its records.

    python pruned_nets/comparison/study.py      # write them into the two texts anew

README.md beside this file and the README.md of the suite hold each table between two marks, which
name a function of TABLES. What their sentences quote must stand in one of these tables: a test
looks for it (tests/README.md says how to write one).
"""

import csv
import re
import statistics
import sys
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

import claim_records  # noqa: E402

from common.files import write_atomically  # noqa: E402
from config import PENALTY, PRESETS, title_of  # noqa: E402
from lab.comparison import minus  # noqa: E402
from lab.groups import check_groups  # noqa: E402
from lab.markdown import spread  # noqa: E402
from lab.record import UNPRUNED, grouped  # noqa: E402
from lab.results import read_group_checks, read_results  # noqa: E402
from lab.sections import absolute_error  # noqa: E402
from lab.significance import Difference, stars  # noqa: E402

TEXTS = HERE / "README.md", ROOT / "README.md"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PLAIN, PENALISED = UNPRUNED
VGG, MOBILENET, RESNET34, RESNET56 = "VGG-13", "MobileNet-V1", "ResNet-34", "ResNet-56"
# Leads of orthoreg over fisher as published (CIFAR-100, seed 0), at 25, 50 and 75%.
PUBLISHED = {VGG: (6.0, 4.1, 2.2), MOBILENET: (-0.1, -0.2, -0.1), RESNET34: (4.7, 4.4, 3.5)}
PER_CLASS = 500, 100  # training and test images of a class of CIFAR-100
TABLES = {}


@dataclass(frozen=True)
class Case:
    """One network in one sweep. weight: of the penalty, as methods' names have it."""

    title: str
    sweep: str
    network: str
    weight: str = ""

    def name(self, method):
        """A method's name in the records: "plain" and "penalised" are unpruned controls."""
        if method == "plain":
            return PLAIN
        if method == "penalised":
            return PENALISED + self.weight
        kind, comma, rest = method.partition(",")
        return kind + (self.weight if kind == "orthoreg" and "λ" not in rest else "") + comma + rest


WARMUP = [Case(network, "cpu-warmup", network) for network in (VGG, MOBILENET, RESNET56)]
GENTLE = Case("VGG-13, a tenth of the rates", "cpu-gentle", VGG, ", λ 0.1")
FOUR = [WARMUP[0], GENTLE, *WARMUP[1:]]


def table(draw):
    TABLES[draw.__name__] = draw
    return draw


class Study:
    """The records below this folder, and what tables ask of them."""

    def __init__(self, folder=HERE):
        self.results, *_ = read_results(folder)
        self.checks = read_group_checks(folder)
        self.cells = {}  # (sweep, network, method, percent) -> {seed: record}
        for record, run_in in self.results:
            percent = None if record.control == "unpruned" else round(record.requested)
            self.cells.setdefault((run_in, record.network, record.method, percent), {})[
                record.flags["seed"]
            ] = record

    def find(self, case, method, percent=75, sweep=None):
        """{seed: record}"""
        percent = None if method.startswith(("plain", "penalised", "unpruned")) else percent
        key = sweep or case.sweep, case.network, case.name(method), percent
        return dict(sorted(self.cells.get(key, {}).items()))

    def best(self, case, method, percent=75, sweep=None):
        return {seed: r.best for seed, r in self.find(case, method, percent, sweep).items()}

    def minus(self, case, ours, theirs, percent=75):
        return minus(self.best(case, ours, percent), self.best(case, theirs, percent))

    def last_minus(self, case, ours, theirs, percent=75):
        """As `minus`, by the accuracies of the last epochs."""
        by_last = [
            {seed: record.last for seed, record in self.find(case, method, percent).items()}
            for method in (ours, theirs)
        ]
        return minus(*by_last)

    def beyond(self, case, ours, theirs, percent=75, controls=None):
        """What `ours` is ahead, each minus its unpruned network; controls: their sweep."""
        lost = [
            minus(
                self.best(case, method, percent),
                self.best(case, "penalised" if method == "orthoreg" else "plain", sweep=controls),
            )
            for method in (ours, theirs)
        ]
        return minus(*lost)

    def accuracy(self, case, method, percent=75, usual=3, cost=True):
        """ "77.0 ± 0.5 (28)", with n where it is not the usual one."""
        found = self.find(case, method, percent).values()
        if not found:
            return "–"
        notes = [f"{statistics.mean(r.flops_left for r in found):.0f}"] if cost else []
        notes += [f"n = {len(found)}"] if len(found) != usual else []
        return spread(r.best for r in found) + (f" ({', '.join(notes)})" if notes else "")

    def degrees(self, case, method, percent=75):
        """The mean degree of orthogonality before the pruning, of MobileNet-V1's pointwise
        convolutions alone: {seed: degree}."""
        found = {}
        for seed, record in self.find(case, method, percent).items():
            layers = record.unpruned.orthogonality["layers"]
            found[seed] = statistics.mean(
                value
                for layer, value in layers.items()
                if case.network != MOBILENET or layer.endswith(".conv2")
            )
        return found


def lines_of(head, rows):
    """A table of cells that are Markdown, which `lab.markdown` would escape."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def differences(rows, columns, usual=3, excerpt=False):
    """Rows of text of {label: [{seed: difference} of each column]}, with their stars over the whole
    table, and a line that counts these. excerpt: of a larger table, whose tests are corrected
    there: no second stars here, or a difference would have one here and two there."""
    found = {
        (label, i): Difference.of(gaps.values())
        for label, each in rows.items()
        for i, gaps in enumerate(each)
    }
    marks = stars(found)
    if excerpt:
        marks = {key: mark[:1] for key, mark in marks.items()}

    def cell(label, i):
        gaps = list(rows[label][i].values())
        note = f" (n = {len(gaps)})" if len(gaps) != usual else ""
        if not gaps:
            return "–"
        if len(gaps) == 1:
            return f"{gaps[0]:+.1f}{note}"
        each = found[label, i]
        mark = marks[label, i].replace("*", r"\*")
        return f"{each.mean:+.1f} ± {each.error:.1f}{mark}{note}"

    text = [[label, *(cell(label, i) for i in range(len(columns)))] for label in rows]
    tests = sum(each is not None for each in found.values())
    alone, corrected = sum(map(bool, marks.values())), sum(each == "**" for each in marks.values())
    if excerpt:
        return text, f"Of {tests} tests in this table {alone} are significant by themselves (\\*)."
    return text, (
        f"Of {tests} tests in this table {alone} are significant by themselves (\\*), "
        f"and {corrected} after Holm's correction (\\*\\*)."
    )


def interval(gaps):
    """gaps: {seed: difference}, of two or more."""
    low, high = Difference.of(gaps.values()).interval
    return f"{low:.1f} to {high:.1f}"


def listed(values, digits=1):
    return ", ".join(f"{value:.{digits}f}" for value in values)


def span(values, digits=1):
    low, high = (f"{pick(values):.{digits}f}" for pick in (min, max))
    return low if low == high else f"{low} to {high}"


# ------------------------------------------------------------------------------------ what was run


@table
def settings(study):
    record = study.find(WARMUP[0], "fisher")[0]
    classes, share = len(record.classes), record.flags["val_percent"] / 100
    train, test = (classes * count for count in PER_CLASS)
    paper = PRESETS["paper"].ebt
    ours = record.schedule
    return lines_of(
        ["", "here", "published"],
        [
            ["classes", str(classes), "100"],
            [
                "images to train on / to choose the epoch / to test",
                f"{train * (1 - share):,.0f} / {train * share:,.0f} / {test:,}",
                "50,000 / – / 10,000",
            ],
            [
                "epochs before / after the pruning",
                f"{sum(ours['base']['epochs'])} / {sum(ours['retrain']['epochs'])}",
                f"{sum(paper.base.epochs)} / {sum(paper.retrain.epochs)}",
            ],
            ["first learning rate", f"{ours['base']['lr'][0]:g}", f"{paper.base.lr[0]:g}"],
            [
                "λ of VGG-13 and the ResNets / of MobileNet-V1",
                *[f"{PENALTY['vgg']:g} / {PENALTY['mobilenet']:g}"] * 2,
            ],
            ["answers right by guessing (%)", f"{100 / classes:.0f}", "1"],
            ["level of tests and intervals (%)", "5 / 95", "–"],
            ["standard errors to be significant with two / three seeds", "12.7 / 4.3", "–"],
            [
                "standard error of one test accuracy of 70% (points)",
                f"{100 * (0.7 * 0.3 / test) ** 0.5:.1f}",
                "–",
            ],
        ],
    )


@table
def runs(study):
    """One row for each sweep, machine and state of the code."""
    known, rows = {}, []
    for record, run_in in study.results:
        figures = str([record.accuracy, [(e.get("lr"), e.get("train")) for e in record.epochs]])
        known.setdefault(figures, set()).add(run_in)
        rows.append((run_in, record, figures))

    def key(each):
        run_in, record, _ = each
        return (
            run_in,
            record.environment["device"],
            record.environment["torch"].split("+")[0],
            record.environment.get("suite") or "unknown",
        )

    cells = []
    for (run_in, device, torch, code), found in grouped(sorted(rows, key=key), key).items():
        seeds = sorted({record.flags["seed"] for _, record, _ in found})
        twice = sum(len(known[figures]) > 1 for *_, figures in found)
        state = (
            code if code == "unknown" else f"{code[:-1]}, changed" if code.endswith("+") else code
        )
        cells.append(
            [
                f"`{run_in}`",
                str(len(found)),
                listed(seeds, 0),
                device,
                torch,
                state,
                str(twice) if twice else "",
            ]
        )
    return lines_of(
        [
            "sweep",
            "results",
            "seeds",
            "device",
            "torch",
            "commit of the code",
            "the same runs lie in another sweep, too",
        ],
        cells,
    )


# ----------------------------------------------------------------------------------- the question


@table
def answers(study):
    rows = {
        "`orthoreg` minus `fisher`": [study.minus(c, "orthoreg", "fisher") for c in FOUR],
        "the same lead beyond that of the unpruned networks": [
            study.beyond(c, "orthoreg", "fisher") for c in FOUR
        ],
        "the lead of the unpruned networks": [study.minus(c, "penalised", "plain") for c in FOUR],
    }
    cells, count = differences(rows, FOUR, excerpt=True)
    for place, label in (
        (2, "the same lead beyond that of the unpruned networks"),
        (1, "`orthoreg` minus `fisher`"),
    ):
        cells[place:place] = [
            ["95% interval", *map(interval, rows[label])],
            [
                "lead that would be found with a chance of 80%",
                *(f"{Difference.of(gaps.values()).detectable():.1f}" for gaps in rows[label]),
            ],
        ]
    cells += [
        ["pairs of runs, n", *(str(len(gaps)) for gaps in rows["`orthoreg` minus `fisher`"])],
        ["unpruned, plain", *(study.accuracy(c, "plain", cost=False) for c in FOUR)],
        [
            "`fisher` minus its unpruned network",
            *(
                f"{d.mean:+.1f} ± {d.error:.1f}"
                for d in (Difference.of(study.minus(c, "fisher", "plain").values()) for c in FOUR)
            ),
        ],
        [
            "degree of orthogonality, penalised / plain",
            *(
                " / ".join(
                    f"{statistics.mean(study.degrees(c, method).values()):.2f}"
                    for method in ("orthoreg", "fisher")
                )
                for c in FOUR
            ),
        ],
    ]
    return [*lines_of(["75% of the filters removed", *(c.title for c in FOUR)], cells), "", count]


@table
def first(study):
    """The table of the suite's README."""
    names = {
        "`orthoreg`": "orthoreg",
        "`fisher`": "fisher",
        "`bn`": "bn",
        "`random`": "random",
        "from scratch, `orthoreg`'s architecture": "orthoreg, scratch",
        "from scratch, `fisher`'s": "fisher, scratch",
        "nothing removed, with the penalty": "penalised",
        "nothing removed, without": "plain",
    }
    cells, count = differences(
        {
            "**`orthoreg` minus `fisher`**": [study.minus(c, "orthoreg", "fisher") for c in FOUR],
            "the same, each minus its unpruned network": [
                study.beyond(c, "orthoreg", "fisher") for c in FOUR
            ],
            "**`orthoreg` minus `bn`**, each minus its unpruned network": [
                study.beyond(c, "orthoreg", "bn") for c in FOUR
            ],
            "from scratch minus pruned, `orthoreg`": [
                study.minus(c, "orthoreg, scratch", "orthoreg") for c in FOUR
            ],
            "from scratch minus pruned, `fisher`": [
                study.minus(c, "fisher, scratch", "fisher") for c in FOUR
            ],
        },
        FOUR,
        excerpt=True,
    )
    return [
        *lines_of(
            ["75% of the filters removed by", *(c.title for c in FOUR)],
            [
                *(
                    [label, *(study.accuracy(c, method) for c in FOUR)]
                    for label, method in names.items()
                ),
                *cells,
            ],
        ),
        "",
        count,
    ]


# ----------------------------------------------------------------------------------- with a warm-up


@table
def warmup(study):
    names = {
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
    rows = {label: [study.minus(c, *pair) for c in WARMUP] for label, pair in pairs.items()}
    rows |= {
        f"`orthoreg` minus `{other}`, each minus its unpruned network": [
            study.beyond(c, "orthoreg", other) for c in WARMUP
        ]
        for other in ("fisher", "bn", "random")
    }
    cells, count = differences(rows, WARMUP)
    shown = [
        [label, *(study.accuracy(c, method) for c in WARMUP)] for label, method in names.items()
    ]
    return [
        *lines_of(["75% of the filters removed by", *(c.title for c in WARMUP)], [*shown, *cells]),
        "",
        count,
    ]


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
            rows.append(
                [
                    label,
                    str(seed),
                    *(f"{epoch['train']['loss']:.1f}" for epoch in record.unpruned.epochs),
                ]
            )
    return lines_of(["training loss of VGG-13", "seed", *map(str, range(1, 11))], rows)


@table
def before(study):
    """Accuracies before the pruning and right after it."""
    rows = []
    for case in FOUR:
        for method in ("orthoreg", "fisher", "bn", "random"):
            found = study.find(case, method).values()
            rows.append(
                [
                    case.title,
                    f"`{method}`",
                    spread(r.unpruned.best for r in found),
                    span([r.after_pruning for r in found]),
                ]
            )
    return lines_of(["75% of the filters removed", "", "before", "right after"], rows)


@table
def retraining(study):
    """ResNet-56: the same pruned networks, retrained for 11 and for 24 epochs."""
    warm, case = WARMUP[2], Case(RESNET56, "cpu-rounds-1", RESNET56)
    longer, shorter = study.find(case, "fisher"), study.find(warm, "fisher")
    assert all(longer[seed].widths == shorter[seed].widths for seed in longer)
    scratch = study.best(warm, "fisher, scratch")
    eleven, more = study.best(warm, "fisher"), study.best(case, "fisher")
    cells, count = differences(
        {
            "the 24 epochs minus the 11": [minus(more, eleven)],
            "11 epochs of retraining minus from scratch": [minus(eleven, scratch)],
            "24 epochs of retraining minus from scratch": [minus(more, scratch)],
        },
        ["ResNet-56"],
    )
    return [
        *lines_of(
            [
                "`fisher`, 75% removed, ResNet-56",
                "epochs before / after the pruning",
                "test accuracy",
            ],
            [
                *(
                    [label, f"{ages[0]} / {ages[1]}", study.accuracy(own, method)]
                    for label, ages, own, method in (
                        ("retrained in `cpu-warmup`", epochs_of(shorter[0]), warm, "fisher"),
                        ("retrained in `cpu-rounds-1`", epochs_of(longer[0]), case, "fisher"),
                        (
                            "from scratch",
                            (0, len(study.find(warm, "fisher, scratch")[0].epochs)),
                            warm,
                            "fisher, scratch",
                        ),
                    )
                ),
                *([cells[i][0], "", cells[i][1]] for i in range(3)),
            ],
        ),
        "",
        count,
    ]


def epochs_of(record):
    """(epochs before the first pruning, after it) of a record of the last round."""
    schedule, rounds = record.schedule, record.pruning["rounds"]
    ages = {
        phase: sum(schedule[phase]["epochs"])
        for phase in schedule
        if isinstance(schedule[phase], dict)
    }
    penalised = record.flags["pruning_type"] == "orthoreg"
    if record.job == "ebt":
        return ages["ortho" if penalised else "base"], ages["retrain"]
    before = ages["base"] + penalised * ages["ortho"]
    between = ages["between"] + ages["ortho"] if penalised else ages["retrain"]
    return before, (rounds - 1) * between + ages["retrain"]


# ----------------------------------------------------------------------------- VGG-13's other rates


@table
def rates(study):
    published, drop, low = (Case(name, name, VGG) for name in ("cpu", "cpu-drop", "cpu-low"))
    labels = {
        "published rates (n = 2)": published,
        "`cpu-drop` (n = 2)": drop,
        "with a warm-up (n = 3)": WARMUP[0],
        "`cpu-low` (n = 2)": low,
        "`cpu-gentle` † (n = 3)": GENTLE,
    }
    kinds = {
        "`orthoreg` minus `fisher`": ("orthoreg", "fisher"),
        "`orthoreg` minus `bn`": ("orthoreg", "bn"),
        "`orthoreg` minus its unpruned network": ("orthoreg", "penalised"),
        "`fisher` minus its unpruned network": ("fisher", "plain"),
        "`fisher` minus `random`": ("fisher", "random"),
        "`orthoreg` minus itself from scratch": ("orthoreg", "orthoreg, scratch"),
        "`fisher` minus itself from scratch": ("fisher", "fisher, scratch"),
        "unpruned: penalised minus plain": ("penalised", "plain"),
    }
    gaps = {
        label: [study.minus(case, *pair) for case in labels.values()]
        for label, pair in kinds.items()
    }
    gaps["`orthoreg` minus `fisher`, each minus its unpruned network"] = [
        study.beyond(case, "orthoreg", "fisher") for case in labels.values()
    ]
    cells, count = differences(gaps, labels, usual=None)
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
    texts = [
        [
            label,
            *(
                study.accuracy(case, method, usual=3 if case in FOUR else 2)
                for case in labels.values()
            ),
        ]
        for label, method in methods.items()
    ]
    degrees = [
        [
            "degree of orthogonality, penalised",
            *(listed(study.degrees(case, "orthoreg").values(), 2) for case in labels.values()),
        ],
        [
            "degree of orthogonality, plain",
            *(listed(study.degrees(case, "fisher").values(), 2) for case in labels.values()),
        ],
    ]
    return [
        *lines_of(["VGG-13, 75% of the filters removed", *labels], [*texts, *cells, *degrees]),
        "",
        count,
    ]


@table
def gentle(study):
    rows = []
    for label, method in (
        ("`orthoreg`", "orthoreg"),
        ("`fisher`", "fisher"),
        ("`orthoreg`, from scratch", "orthoreg, scratch"),
        ("`fisher`, from scratch", "fisher, scratch"),
    ):
        texts = {seed: f"{best:.1f}" for seed, best in study.best(GENTLE, method).items()}
        rows.append([label, *(texts.get(seed, "–") for seed in range(3))])
    rows.append(
        [
            "`orthoreg` minus `fisher`, 95% interval",
            interval(study.minus(GENTLE, "orthoreg", "fisher")),
            "",
            "",
        ]
    )
    rows.append(
        [
            "the same, each minus its unpruned network",
            interval(study.beyond(GENTLE, "orthoreg", "fisher")),
            "",
            "",
        ]
    )
    return lines_of(["`cpu-gentle`", "seed 0", "seed 1", "seed 2"], rows)


# ---------------------------------------------------------------------------- equal multiply-adds


@table
def macs(study):
    cases = [Case(c.title, "cpu-macs", c.network) for c in WARMUP]
    methods = "orthoreg", "fisher", "bn", "random"
    gaps = {
        f"{'**`orthoreg` minus** ' if other == 'fisher' else 'minus '}`{other}`": [
            study.minus(c, "orthoreg", other) for c in cases
        ]
        for other in methods[1:]
    }
    gaps |= {
        f"`orthoreg` minus `{other}`, each minus its unpruned network": [
            study.beyond(c, "orthoreg", other, controls="cpu-warmup") for c in cases
        ]
        for other in methods[1:]
    }
    gaps["`fisher` minus `random`"] = [study.minus(c, "fisher", "random") for c in cases]
    cells, count = differences(gaps, cases)
    return [
        *lines_of(
            ["75% of the multiply-adds removed by", *(c.title for c in cases)],
            [
                *(
                    [f"`{method}`", *(study.accuracy(c, method) for c in cases)]
                    for method in methods
                ),
                *cells,
            ],
        ),
        "",
        count,
    ]


# ---------------------------------------------------------------------------- the published recipe


@table
def published(study):
    lines = []
    for network, sweep, percents, methods in (
        (VGG, "cpu", (25, 50, 75), ("orthoreg", "fisher", "bn", "random")),
        (MOBILENET, "cpu", (25, 50, 75), ("orthoreg", "fisher", "bn", "random")),
        (RESNET34, "cpu-resnet", (50, 75), ("orthoreg", "fisher", "bn")),
    ):
        case = Case(network, sweep, network)
        usual = 1 if network == RESNET34 else 2
        unpruned = [study.accuracy(case, kind, usual=usual) for kind in ("penalised", "plain")]
        rows = [
            [
                f"`{method}`",
                *(study.accuracy(case, method, percent, usual) for percent in percents),
                dict(zip(("orthoreg", "fisher"), unpruned)).get(method, ""),
            ]
            for method in methods
        ]
        gaps = {
            f"`orthoreg` minus `{other}`": [
                *(study.minus(case, "orthoreg", other, percent) for percent in percents),
                study.minus(case, "penalised", "plain") if other == "fisher" else {},
            ]
            for other in ("fisher", "bn")
        }
        rows += differences(gaps, rows[0][1:], usual)[0]
        by_last = [study.last_minus(case, "orthoreg", "fisher", percent) for percent in percents]
        by_last.append(study.last_minus(case, "penalised", "plain"))
        cells = [spread(gaps.values()) for gaps in by_last]
        rows.append(["`orthoreg` minus `fisher`, by last epochs", *cells])
        rows.append(
            [
                "`orthoreg` minus `fisher`, as published",
                *(f"{lead:+.1f}" for lead in PUBLISHED[network][-len(percents) :]),
                "",
            ]
        )
        lines += [
            "",
            *lines_of(
                [
                    f"{network} (n = {usual})",
                    *(f"{percent}% removed" for percent in percents),
                    "nothing removed",
                ],
                rows,
            ),
        ]
    return lines[1:]


@table
def right_after(study):
    """Accuracies before and right after a pruning of less than 75%, each seed's."""
    chosen = [
        (sweep, network, method, percent, found)
        for (sweep, network, method, percent), found in study.cells.items()
        if percent
        and percent < 75
        and method.split(",")[0] in ("orthoreg", "fisher", "bn")
        and "scratch" not in method
        and sweep in ("cpu", "cpu-resnet", "cpu-macs", "cpu-rounds-2", "cpu-rounds-4")
        and all(r.after_pruning is not None for r in found.values())
    ]
    order = [VGG, MOBILENET, RESNET34, RESNET56]
    chosen.sort(key=lambda each: (order.index(each[1]), each[0], each[3], each[2]))
    rows = []
    for sweep, network, method, percent, found in chosen:
        found = [found[seed] for seed in sorted(found)]
        started = all(r.pruning.get("round", 1) == 1 for r in found)
        rows.append(
            [
                network,
                f"`{sweep}`",
                f"`{method.split(',')[0]}`{method.partition(',')[2]}",
                str(percent),
                f"{statistics.mean(r.flops_left for r in found):.0f}",
                listed(r.unpruned.best for r in found) if started else "a round before",
                listed(r.after_pruning for r in found),
            ]
        )
    return lines_of(
        [
            "network",
            "sweep",
            "method",
            "removed (%)",
            "multiply-adds left (%)",
            "before",
            "right after, by seed",
        ],
        rows,
    )


# -------------------------------------------------------------------------- one by one, or together


@table
def residual(study):
    case = Case(RESNET56, "cpu-macs", RESNET56)
    with open(HERE / "latency" / "resnet-56_half.csv") as file:
        times = list(csv.DictReader(line for line in file if not line.startswith("#")))

    def time(runtime, method):
        found = [
            float(row[column])
            for row in times
            for column in ("percent", "percent again")
            if (row["runtime"], row["method"]) == (runtime, method)
        ]
        return f"{statistics.mean(found):.1f} ({span(found, 0)})"

    rows = []
    for kind in ("orthoreg", "fisher"):
        for way, suffix in (("single", ""), ("coupled", ", coupled")):
            found = study.find(case, kind + suffix, 50).values()
            name = kind + ("-coupled" if suffix else "")
            rows.append(
                [
                    f"`{kind}`, `{way}`",
                    listed(r.after_pruning for r in found),
                    f"{listed(r.best for r in found)} "
                    f"({statistics.mean(r.flops_left for r in found):.0f})",
                    time("onnxruntime", name),
                    time("pytorch", name),
                ]
            )
    gaps = {
        f"`{kind}`: `single` minus `coupled`": [study.minus(case, kind, f"{kind}, coupled", 50)]
        for kind in ("orthoreg", "fisher")
    }
    cells, count = differences(gaps, [case], usual=None)
    rows += [[label, "", text, "", ""] for label, text in cells]
    return [
        *lines_of(
            [
                "half of the multiply-adds removed by",
                "right after pruning",
                "retrained",
                "time, ONNX Runtime (%)",
                "PyTorch (%)",
            ],
            rows,
        ),
        "",
        count,
    ]


# ------------------------------------------------------------------------------------------- λ


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
    return lines_of(
        ["λ", "degree of orthogonality", "before pruning", "right after it", "retrained"], rows
    )


@table
def pointwise(study):
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
        rows.append(
            [
                label,
                f"{statistics.mean(study.degrees(case, method, percent).values()):.2f}",
                spread(r.unpruned.best for r in found),
                str(percent),
                f"{spread(r.best for r in found)} "
                f"({statistics.mean(r.flops_left for r in found):.0f})",
                str(len(found)),
            ]
        )
    return lines_of(
        [
            "MobileNet-V1",
            "degree of orthogonality, pointwise",
            "before pruning",
            "removed (%)",
            "retrained",
            "n",
        ],
        rows,
    )


# ----------------------------------------------------------------------------------------- rounds


@table
def rounds(study):
    rows, best = [], {}
    for number in (1, 2, 4):
        case = Case(RESNET56, f"cpu-rounds-{number}", RESNET56)
        suffix = f", {number} rounds" if number > 1 else ""
        for kind in ("orthoreg", "fisher"):
            found = study.find(case, kind + suffix)
            best[kind, number] = {seed: r.best for seed, r in found.items()}
            before, after = epochs_of(next(iter(found.values())))
            texts = {
                seed: f"{r.best:.1f}{'' if 'H100' in r.environment['device'] else ' †'}"
                for seed, r in found.items()
            }
            rows.append(
                [
                    str(number),
                    f"`{kind}`",
                    f"{before} + {after} = {before + after}",
                    *(texts.get(seed, "–") for seed in range(3)),
                    f"{statistics.mean(r.flops_left for r in found.values()):.0f}",
                ]
            )
    cells, count = differences(
        {
            **{
                f"{number} {'round' if number == 1 else 'rounds'}: `orthoreg` minus `fisher`": [
                    minus(best["orthoreg", number], best["fisher", number])
                ]
                for number in (1, 2, 4)
            },
            **{
                f"`{kind}`: 1 round minus {other}": [minus(best[kind, 1], best[kind, other])]
                for kind in ("orthoreg", "fisher")
                for other in (2, 4)
            },
        },
        ["ResNet-56"],
    )
    return [
        *lines_of(
            [
                "rounds",
                "75% removed by",
                "epochs before + after the first pruning",
                "seed 0",
                "seed 1",
                "seed 2",
                "multiply-adds left (%)",
            ],
            rows,
        ),
        "",
        *lines_of(["difference", "points"], cells),
        "",
        count,
    ]


# ------------------------------------------------------------------------------- group importances


def group_pairs(study):
    """{network: ({(kind, size): figures} of the plain one, of the penalised one)}"""
    found = {}
    for name, network in (("vgg", VGG), ("mobilenet", MOBILENET), ("resnet-56", RESNET56)):
        checks = study.checks[f"groups/{name}_groups_fisher.json"].values()
        found[network] = [
            {(kind, each["size"]): each for kind, rows in check["kinds"].items() for each in rows}
            for check in sorted(checks, key=lambda check: check["penalised"])
        ]
    return found


def both(pair, key, show):
    """A figure of the plain and of the penalised network."""
    return " / ".join(show(each[key]) for each in pair) if key in pair[0] else "–"


RANDOM, LOWEST = "over all layers, random", "over all layers, of the lowest scores"
WITHIN = "within a layer, random", "within a layer, of the lowest scores"
WON_SIZES = 64, 128, 256


def group_lines(study, keys, columns):
    """A row for each (kind, size), and for each network the columns {name: figures -> text}."""
    pairs, rows, kind = group_pairs(study), [], None
    for key in keys:
        label = f"{key[0]}: {key[1]}" if key[0] != kind else str(key[1])
        kind = key[0]
        rows.append(
            [
                label,
                *(both(pair, key, show) for pair in pairs.values() for show in columns.values()),
            ]
        )
    heads = [f"{network}: {name}" for network in pairs for name in columns]
    return lines_of(["filters in a group", *heads], rows)


def rank(estimate):
    return lambda each: (
        "–" if each[f"rank_{estimate}"] is None else f"{each[f'rank_{estimate}']:.2f}"
    )


def relative(estimate):
    return lambda each: f"{each[f'error_{estimate}']:.2f}"


def absolute(estimate):
    return lambda each: absolute_error(each, estimate).removeprefix("≈ ")


ALL_LAYERS = [(kind, size) for kind in (RANDOM, LOWEST) for size in (4, 32, 64, 128, 256)]
WITHIN_LAYER = [(kind, size) for kind in WITHIN for size in (4, 32, 256)]


@table
def sums_of_scores(study):
    return group_lines(
        study,
        ALL_LAYERS + WITHIN_LAYER,
        {
            "relative error": relative("scores"),
            "≈ absolute": absolute("scores"),
            "rank": rank("scores"),
        },
    )


@table
def sums_of_changes(study):
    return group_lines(
        study,
        ALL_LAYERS + WITHIN_LAYER,
        {
            "relative error": relative("changes"),
            "≈ absolute": absolute("changes"),
            "rank": rank("changes"),
        },
    )


@table
def groups_won(study):
    """Of how many networks and sizes the penalised one has the smaller error or the higher rank."""
    rows = []
    for kind in (RANDOM, LOWEST):
        for estimate, words in (("scores", "sum of scores"), ("changes", "sum of single changes")):
            counts = times_won(study, kind, estimate)
            rows.append([kind, words, *counts])
    networks = [network for pair in group_pairs(study).values() for network in pair]
    single = [
        network[kind, 4]["error_changes"]
        for network in networks
        for kind in (RANDOM, LOWEST, *WITHIN)
    ]
    lowest = [network[LOWEST, size]["error_scores"] for network in networks for size in WON_SIZES]
    # Pairs of ranks of 8 have a variance of 1 / (8 - 1), and four of them are averaged.
    rank_error = (1 / (8 - 1) / 4) ** 0.5
    removed = [
        record.unpruned.filters - record.filters
        for case in WARMUP
        for record in study.find(case, "fisher").values()
    ]
    pool = signature(check_groups).parameters["pool"].default
    rows += [
        ["largest relative error of single changes, 4 filters", "", f"{max(single):.2f}", "", ""],
        [LOWEST, "relative error of the sum of scores, from to", span(lowest, 2), "", ""],
        [
            "groups of 4, 128 and 256 filters within a layer of VGG-13, n",
            "",
            listed([groups_within(study, size) for size in (4, 128, 256)], 0),
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
    return lines_of(
        [
            "the penalised network is better, 64, 128 and 256 filters",
            "",
            "relative error",
            "≈ absolute error",
            "rank correlation",
        ],
        rows,
    )


def times_won(study, kind, estimate):
    """ "7 of 9" for the relative error, the absolute error and the rank correlation."""
    pairs = [
        (plain[kind, size], penalised[kind, size])
        for plain, penalised in group_pairs(study).values()
        for size in WON_SIZES
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


# ------------------------------------------------------------------- the scores, or the network


def claim_rows(results, ours, other):
    """{what is measured: {seed: one kind of network minus another}}."""

    def ahead(figure, *args):
        """figure: (kind of network, *args) -> {seed: value}."""
        return minus(figure(ours, *args), figure(other, *args))

    def beyond_random(figure, score):
        """figure: (kind of network, score) -> {seed: value}."""
        return minus(ahead(figure, score), ahead(figure, "random"))

    def error(kind, size):
        relative = results.of_groups(kind, size, "error_scores")
        return {seed: 100 * value for seed, value in relative.items()}

    rows = {"unpruned": ahead(results.health, "test_top1")}
    for score in claim_records.CHOICES:
        rows[f"`{score}`, mean of cuts of 5 to 75%"] = ahead(results.area, score)
    for score in ("fisher", "fisher by layer"):
        rows[f"`{score}` minus `random`, mean of cuts"] = beyond_random(results.area, score)
    for gone, many in claim_records.STEPPED.items():
        most = many[-1]
        rows[f"`fisher`, {gone}% in {most} steps"] = ahead(results.cut, "fisher", gone, most)
        rows[f"what {most} steps gain over one, {gone}%"] = ahead(results.gain, gone, most)
    for score in claim_records.CHOICES:
        rows[f"`{score}`, 75%, retrained"] = ahead(results.retrained, score)
    most = claim_records.MOST_STEPS
    rows[f"`fisher`, 75% in {most} steps, retrained"] = minus(
        results.retrained(ours, "fisher", steps=most),
        results.retrained(other, "fisher", steps=most),
    )
    for score in ("fisher", "fisher by layer"):
        rows[f"`{score}` minus `random`, retrained"] = beyond_random(results.retrained, score)
    rows["`fisher` minus unpruned, retrained"] = minus(
        ahead(results.retrained, "fisher"), ahead(results.retrained, None)
    )
    for size in claim_records.SIZES[1:-1]:
        rows[f"relative error of the sum of {size} filters' scores (%)"] = ahead(error, size)
    return rows


def claim_table(ours, other, with_intervals=False, labels=None):
    """One kind of network minus another: a column for each architecture. labels: the rows, if not
    all."""
    networks = claim_records.all_results()
    each = [claim_rows(results, ours, other) for results in networks]
    rows = {label: [column[label] for column in each] for label in labels or each[0]}
    rows = {label: gaps for label, gaps in rows.items() if any(gaps)}
    cells, count = differences(rows, networks)
    if with_intervals:
        cells = [
            [label, *map(with_interval, texts, gaps)]
            for (label, *texts), gaps in zip(cells, rows.values())
        ]
    titles = [title_of(results.task.model) for results in networks]
    return [*lines_of(["points of accuracy", *titles], cells), "", count]


def with_interval(text, gaps):
    return f"{text}, {interval(gaps)}" if len(gaps) > 1 else text


@table
def claim(study):
    return claim_table("penalised", "zero", with_intervals=True)


@table
def claim_plain(study):
    return claim_table("penalised", "plain")


@table
def claim_decay(study):
    """All that tells the two kinds apart is weight decay."""
    scores = claim_records.CHOICES
    labels = ["unpruned", *(f"`{score}`, mean of cuts of 5 to 75%" for score in scores)]
    labels += [f"`{score}`, 75%, retrained" for score in scores]
    return claim_table("plain", "zero", labels=labels)


@table
def claim_networks(study):
    lines = []
    for results in claim_records.all_results():
        lines += ["", f"{results.title()}:", "", *networks_of(results)]
    return lines[1:]


def networks_of(results):
    """What the three kinds of one architecture have."""
    scratch_epochs = results.task.epochs + results.task.retrain_epochs
    figures = {
        "training images right (%)": (results.health, "train_top1"),
        "test images right (%)": (results.health, "test_top1"),
        "`fisher`, 50% in one step": (results.cut, "fisher", 50),
        "`fisher`, 50% in eight steps": (results.cut, "fisher", 50, 8),
        "`fisher`, 75% in one step": (results.cut, "fisher", 75),
        "`fisher`, 75% in eight steps": (results.cut, "fisher", 75, 8),
        "`fisher by layer`, 50%": (results.cut, "fisher by layer", 50),
        "`random`, 50%": (results.cut, "random", 50),
        "unpruned, trained as long": (results.retrained, None),
        "`fisher`, 75%, retrained": (results.retrained, "fisher"),
        "`fisher by layer`, 75%, retrained": (results.retrained, "fisher by layer"),
        "`bn`, 75%, retrained": (results.retrained, "bn"),
        "`random`, 75%, retrained": (results.retrained, "random"),
        "`fisher`, 75% in eight steps, retrained": (results.retrained, "fisher", False, 8),
        f"`fisher`, 75%, from scratch, {scratch_epochs} epochs": (
            results.retrained,
            "fisher",
            True,
        ),
        "`fisher`, 75%, retrained minus from scratch": (results.beyond_scratch,),
        "unpruned, 8 bits minus 32": (results.in_8_bits, None),
        "`fisher`, 75%, retrained, 8 bits minus 32": (results.in_8_bits, "fisher"),
    }
    rows = []
    for label, (figure, *args) in figures.items():
        cells = [spread(figure(kind, *args).values()) for kind in claim_records.KINDS]
        if any(cells):
            rows.append([label, *cells])
    degrees = [results.health(kind, "degree").values() for kind in claim_records.KINDS]
    rows.append(["degree of orthogonality", *(spread(values, 2) for values in degrees)])
    rows.append(["networks, n", *(str(len(values)) for values in degrees)])
    return lines_of(["", "plain", "penalised", "λ = 0"], rows)


@table
def lengths(study):
    """ResNet-56 by the epochs of its retraining. In brackets: the multiply-adds of all training."""
    results = claim_records.Results("resnet-56")
    epochs = claim_records.LENGTHS
    trained = {
        name: [(*key, False, count) for count in epochs]
        for name, key in claim_records.LENGTHENED.items()
    }
    *short, as_long = results.fresh()
    fresh = {
        "from scratch": short,
        "from scratch, as many epochs in all": [None, None, as_long],
    }

    def cell(key):
        if key is None:
            return ""
        accuracies, work = results.after(*key), results.after(*key, "work")
        if not accuracies:
            return "–"
        return f"{spread(accuracies.values())} ({statistics.mean(work.values()):.0f})"

    rows = [[f"`{name}`", *map(cell, keys)] for name, keys in trained.items()]
    rows += [[name, *map(cell, keys)] for name, keys in fresh.items()]
    gaps = {}
    for name, ours in trained.items():
        for other, theirs in fresh.items():
            gaps[f"`{name}` minus {other}"] = [
                minus(results.after(*mine), results.after(*yours)) if yours else {}
                for mine, yours in zip(ours, theirs)
            ]
    cells, count = differences(gaps, epochs, usual=2)
    head = ["75% removed, retrained for", *(f"{each} epochs" for each in epochs)]
    return [*lines_of(head, rows + cells), "", count]


# ---------------------------------------------------------------------------------------- tickets


@table
def ticket(study):
    case, rows = Case(MOBILENET, "ticket", MOBILENET), []
    for method in ("bn", "fisher", "orthoreg"):
        record = study.find(case, method, 50)[0]
        last = record.unpruned.epochs[-1]
        rows.append(
            [
                f"`{method}`",
                span([100 * d for d in last["mask_distances"]], 0),
                f"{100 * record.flag('eb_epsilon'):.0f}",
            ]
        )
    return lines_of(
        [
            "MobileNet-V1, 50%",
            "filters in which the last mask differs from the four before (%)",
            "asked for, at most",
        ],
        rows,
    )


# ------------------------------------------------------------------------------------ into the text


def with_tables(text, study):
    """A text with the tables between its marks made anew."""
    return BLOCK.sub(
        lambda found: found[1] + "\n".join(TABLES[found[2]](study)) + f"\n{found[3]}", text
    )


def main():
    study = Study()
    write_atomically({path: with_tables(path.read_text(), study).encode() for path in TEXTS})


if __name__ == "__main__":
    main()
