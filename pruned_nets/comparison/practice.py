"""How well filters are chosen on the road that most users take: a trained network, cut to a share
of its multiply-adds, fine-tuned for a few epochs; and beside it Torch-Pruning, in the same loop.

    python pruned_nets/comparison/practice.py curves resnet18 --seeds 0 1 2   # nothing is trained
    python pruned_nets/comparison/practice.py steps resnet18 --seeds 0 1 2    # cuts in steps
    python pruned_nets/comparison/practice.py few resnet18 --seeds 0 1 2      # a selection of these
    python pruned_nets/comparison/practice.py train resnet18 --seeds 0 1 2
    python pruned_nets/comparison/practice.py report                         # practice.md

It needs data/cifar100-20: 20 classes of CIFAR-100 as an image folder (of these, `START` are what
the starting network was trained on, `TARGET` what it is used for), and torch-pruning. Every row is
a dict in practice/TASK_SEED.json, written as soon as it is known; rows that are there are not
computed again. The starting networks are kept in pretrained/practice/.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch_pruning as tp
from matplotlib import pyplot
from torch import nn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from ground import BN_IMAGES, IMAGES, SCORED, only, settle  # noqa: E402

from common.batches import Split  # noqa: E402
from common.device import environment, pick_device  # noqa: E402
from common.files import to_json, write_atomically  # noqa: E402
from config import Recipe, penalty_of, title_of  # noqa: E402
from data import load_data  # noqa: E402
from imp_estimator import cal_importance  # noqa: E402
from lab.latency import LONG, Clock, select_by_time  # noqa: E402
from lab.markdown import interval, spread, table_of  # noqa: E402
from lab.networks import build_network, fresh_like  # noqa: E402
from pruner import (  # noqa: E402
    choices,
    measure_losses,
    prune,
    select_filters,
    step_targets,
)  # noqa: E402
from train import OrthonormalityPenalty, evaluate, fit  # noqa: E402

PAGE = HERE / "practice.md"
MARK = "<!-- The tables below are made by practice.py. -->"
KEPT = ROOT / "pretrained" / "practice"
START, TARGET = range(10), range(10, 20)  # classes, in alphabetical order
PER_CLASS = 100  # training images of each target class
MEASURED = 128  # images for losses
SHARES = 60, 40, 25  # percent of the multiply-adds that are left
# Images of a batch whose time is measured, and what widths are then multiples of, for both tools.
CLOCK_BATCH, CLOCK_WIDTH = 8, 8


# ------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """A network that was trained on some classes, and is used for others.

    size: of the images in pixels. lr, epochs: of the training of the starting network.
    tune: rate of all fine-tunings, with which Torch-Pruning's magnitude did best. own: it is used
    for the classes that it was trained on, with all of their images.
    """

    model: str
    size: int
    lr: float
    epochs: int
    tune: float = 0.01
    own: bool = False

    def start(self):
        return Recipe(
            lr=[self.lr],
            epochs=[self.epochs],
            weight_decay=5e-4,
            adam_lr=[1e-3],
            warmup=1,
            schedule="cosine",
        )

    def tuning(self, epochs):
        return Recipe(
            lr=[self.tune],
            epochs=[epochs],
            weight_decay=1e-4,
            adam_lr=[1e-4],
            warmup=1,
            schedule="cosine",
            label_smoothing=0.1,
        )


TASKS = {
    "resnet18": Task("resnet18", 64, 0.05, 12),
    "mobilenet_v2": Task("mobilenet_v2", 64, 0.05, 15),
    "resnet-56": Task("resnet-56", 32, 0.1, 15),
    "resnet-56-own": Task("resnet-56", 32, 0.1, 15, own=True),
}


def images_of(task, classes, per_class=None, seed=0):
    """An ImageData of some classes. per_class: so many training images of each, drawn by seed. What
    is left of these is tested on, too, so that chance moves an accuracy by half as much; ten of
    each class are looked at after each epoch."""
    data = load_data(str(IMAGES), task.size)
    names = tuple(data.classes[k] for k in classes)
    train, test = only(data.train, classes), only(data.test, classes)
    if not per_class:
        return replace(data, classes=names, train=train, test=test)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)
    of_class = [order[train.labels[order] == k] for k in range(len(classes))]
    ends = [0, per_class, per_class + 10, len(train)]
    parts = [
        torch.cat([rows[first:last] for rows in of_class]).sort().values
        for first, last in zip(ends, ends[1:])
    ]
    train, validation, rest = (Split(train.images[rows], train.labels[rows]) for rows in parts)
    test = Split(torch.cat([test.images[:], rest.images]), torch.cat([test.labels, rest.labels]))
    return replace(data, classes=names, train=train, validation=validation, test=test)


def starting_network(task):
    """The network that was trained on the START classes; trained here where it is not there."""
    path = KEPT / f"{task.model}.pth"
    network = build_network(task.model, len(START))
    if path.is_file():
        network.load_state_dict(torch.load(path, weights_only=True)["net"])
        return network
    torch.manual_seed(0)
    network = build_network(task.model, len(START))
    fit(
        network,
        images_of(task, START),
        task.start(),
        key=(0, "pretrain"),
        batch_size=64,
        label=f"start {task.model}",
        choose="last",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net": network.state_dict()}, path)
    return network


def whole_network(task, seed, penalised=False):
    """(the network before any pruning, tuned to the target classes, its data, its accuracy).
    penalised: it is tuned with OrthoReg's penalty."""
    start = starting_network(task)
    if task.own:
        data = images_of(task, START)
        return start, data, evaluate(start, data.test_batches())["top1"]
    data = images_of(task, TARGET, PER_CLASS, seed)
    path = KEPT / f"{task.model}_{seed}{'_penalised' if penalised else ''}.pth"
    torch.manual_seed(seed)
    network = build_network(task.model, len(TARGET))
    if path.is_file():
        network.load_state_dict(torch.load(path, weights_only=True)["net"])
        return network, data, evaluate(network, data.test_batches())["top1"]
    fresh = network.state_dict()
    known = {
        name: tensor
        for name, tensor in start.state_dict().items()
        if not name.startswith(("fc.", "classifier.", "linear."))
    }
    network.load_state_dict({**fresh, **known})
    penalty = OrthonormalityPenalty(network, penalty_of(task.model)) if penalised else None
    trained = fit(
        network,
        data,
        task.tuning(15),
        key=(seed, "whole"),
        batch_size=32,
        penalty=penalty,
        label=f"{task.model} {seed}",
        choose="last",
    )
    torch.save({"net": network.state_dict()}, path)
    return network, data, trained.last["top1"]


# ------------------------------------------------------------------------------------------- costs


def macs_of(network, size):
    """Multiply-adds of convolutions and linear layers for one image, counted as they run, the same
    way for both tools."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        else:
            total += output.numel() * module.weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    modes = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size))
    network.train(modes)
    for handle in handles:
        handle.remove()
    return total


# ---------------------------------------------------------------------------------------- the rows


@dataclass(frozen=True)
class Row:
    """One way to cut. tool: "orthoreg", this suite, "torch-pruning", or a control: "unpruned",
    "scratch". ranking: "best" stands for --select=best. budget: "macs", or "time" in ONNX Runtime.
    penalised: cut is the network that was tuned with OrthoReg's penalty."""

    tool: str
    method: str
    ranking: str = "global"
    residual: str = "single"
    per_cost: bool = False
    steps: int = 1
    budget: str = "macs"
    penalised: bool = False

    @property
    def name(self):
        words = [self.method, self.ranking]
        if self.tool == "orthoreg":
            words.append(self.residual)
        if self.per_cost:
            words.append("per cost")
        if self.steps > 1:
            words.append(f"{self.steps} steps")
        if self.penalised:
            words.append("tuned with the penalty")
        return f"{self.tool}: {', '.join(words)}"

    def cut(self, network, data, share, seed, known):
        """`network` with `share` percent of its multiply-adds, or time. known: method -> its scores
        of this network, or gradients, as far as they have been computed."""
        if self.ranking == "best":
            return CUTS["best"](self, network, data, share, seed, known)
        return CUTS[self.tool](self, network, data, share, seed, known)


def _cut_ours(row, network, data, share, seed, known):
    size, whole = data.image_size, network
    for step, target in enumerate(step_targets(0, 100 - share, row.steps)):
        scores = None if step else known.get(row.method)
        if scores is None:
            batches = data.train_batches(50, key=(seed, "importance", step), count=SCORED)
            scores = cal_importance(network, row.method, batches, seed=seed)
        if not step:
            known[row.method] = scores
        losses = None
        if row.ranking == "measured":
            key = row.method, row.residual
            losses = None if step else known.get(key)
            if losses is None:
                images = data.train_batches(
                    64, key=(seed, "measured"), count=MEASURED, augmented=False
                )
                losses = measure_losses(network, scores, images, row.residual, whole)
            if not step:
                known[key] = losses
        is_last = step + 1 == row.steps
        choice = {
            "residual": row.residual,
            "ranking": row.ranking,
            "per_cost": row.per_cost,
            "pruning_type": row.method,
            "losses": losses,
        }
        if row.budget == "time":
            kept, _saved, _most = select_by_time(
                network,
                scores,
                target,
                clock_of(whole, data, known),
                exact=is_last,
                round_to=CLOCK_WIDTH,
                original=whole,
                **choice,
            )
        else:
            kept = select_filters(network, scores, target, budget="macs", image_size=size, **choice)
        network = prune(network, kept)
        if not is_last:
            settle(network, data, seed)
    return network


def clock_of(network, data, known):
    """The Clock that times cuts of a network in ONNX Runtime."""
    if "clock" not in known:
        known["clock"] = Clock(
            network, data.image_size, CLOCK_BATCH, torch.device("cpu"), "onnxruntime"
        )
    return known["clock"]


THEIRS = {
    "magnitude": "GroupMagnitudeImportance",
    "taylor": "GroupTaylorImportance",
    "bn": "BNScaleImportance",
    "fpgm": "FPGMImportance",
    "lamp": "LAMPImportance",
}


def _cut_theirs(row, network, data, share, seed, known):
    """Torch-Pruning, to the smallest ratio of channels that leaves no more of the budget."""
    if row.budget == "time":
        clock = clock_of(network, data, known)

        def fits(small):
            return clock.saved_by(small).percent >= 100 - share
    else:
        wanted = macs_of(network, data.image_size) * share / 100

        def fits(small):
            return macs_of(small, data.image_size) <= wanted

    if row.method == "taylor" and "slopes" not in known:
        known["slopes"] = _slopes(network, data, seed)
    slopes = known["slopes"] if row.method == "taylor" else {}
    low, high, found = 0.0, 1.0, None
    for _ in range(9):
        ratio = (low + high) / 2
        small = _their_cut(row, network, data, ratio, slopes)
        if fits(small):
            high, found = ratio, small
        else:
            low = ratio
    if found is None:
        raise ValueError("no ratio of channels leaves so little")
    return found


def _their_cut(row, network, data, ratio, slopes):
    small = copy.deepcopy(network).to(memory_format=torch.contiguous_format).eval()
    small.__dict__.pop("_remains", None)
    for name, parameter in small.named_parameters():
        parameter.grad = slopes[name].clone() if name in slopes else None
    last = [m for m in small.modules() if isinstance(m, nn.Linear)][-1]
    pruner = tp.pruner.MetaPruner(
        small,
        torch.zeros(1, 3, data.image_size, data.image_size),
        importance=getattr(tp.importance, THEIRS[row.method])(),
        pruning_ratio=ratio,
        global_pruning=row.ranking == "global",
        ignored_layers=[last],
        iterative_steps=row.steps,
        max_pruning_ratio=0.95,
        round_to=CLOCK_WIDTH if row.budget == "time" else None,
    )
    for _ in range(row.steps):
        pruner.step()
    small.zero_grad(set_to_none=True)
    return small.to(memory_format=torch.channels_last)


def _slopes(network, data, seed):
    """The mean gradient of the loss, of the same images as for our scores."""
    batches = data.train_batches(50, key=(seed, "importance", 0), count=SCORED)
    network = copy.deepcopy(network).eval()
    network.zero_grad()
    for images, labels in batches:
        loss = nn.functional.cross_entropy(network(images), labels, reduction="sum")
        (loss / len(batches.order)).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def _best_of_ours(row, network, data, share, seed, known):
    """What --select=best does: the cut of all rankings that a tenth of the images, held out from
    scores and statistics, judges best."""
    data = replace(data, validation=None).hold_out(10, seed)
    known, best = {}, None
    for choice in choices(network):
        small = replace(row, **choice).cut(network, data, share, seed, known)
        settled = copy.deepcopy(small)
        settle(settled, data, seed)
        accuracy = evaluate(settled, data.choice_batches())["top1"]
        if best is None or accuracy > best[0]:
            best = accuracy, small
    return best[1]


def _fresh(row, network, data, share, seed, known):
    """The architecture of a cut by the same share of each layer, with fresh weights."""
    shape = Row("orthoreg", "group", "layer", "coupled").cut(network, data, share, seed, known)
    torch.manual_seed(seed)
    return fresh_like(shape, len(data.classes))


CUTS = {
    "orthoreg": _cut_ours,
    "best": _best_of_ours,
    "torch-pruning": _cut_theirs,
    "scratch": _fresh,
    "unpruned": lambda row, network, *_: copy.deepcopy(network),
}


def rows(methods, **more):
    return [
        Row("orthoreg", method, ranking, residual, **more)
        for method in methods
        for residual in ("single", "coupled")
        for ranking in ("global", "mean", "norm", "layer", "measured")
    ]


def all_rows():
    """What the curves are drawn of."""
    theirs = [
        Row("torch-pruning", method, ranking)
        for method in THEIRS
        for ranking in ("layer", "global")
    ]
    listed = [
        row for row in rows(["theis", "fisher", "tfo"]) if row.ranking in ("global", "mean", "norm")
    ]
    return [
        *theirs,
        *rows(["group", "theis", "l1", "fisher", "tfo", "bn"]),
        *(replace(row, per_cost=True) for row in listed),
    ]


def step_rows():
    """The same in several steps, of what does well in one."""
    measured = [
        Row("orthoreg", method, "measured", "coupled", steps=4)
        for method in ("group", "theis", "fisher")
    ]
    ours = [
        row
        for row in rows(["group", "theis", "fisher"], steps=8)
        if row.ranking != "norm" and row.residual == "coupled"
    ]
    return [
        *measured,
        *ours,
        *(
            replace(row, per_cost=True)
            for row in ours
            if row.ranking == "global" and row.method != "group"
        ),
        Row("torch-pruning", "magnitude", "layer", steps=8),
    ]


def few_rows():
    """Those of `all_rows` and `step_rows` that do well, or that papers and defaults have."""
    theirs = [
        Row("torch-pruning", method, ranking)
        for method, ranking in (
            ("magnitude", "layer"),
            ("magnitude", "global"),
            ("taylor", "global"),
            ("bn", "layer"),
            ("fpgm", "layer"),
        )
    ]
    published = [Row("orthoreg", method) for method in ("fisher", "tfo", "bn", "l1")]
    papers = [
        Row("orthoreg", "l1", "layer", "coupled"),
        Row("orthoreg", "tfo", "paper", "coupled"),
        Row("orthoreg", "group", "mean", "coupled"),
    ]
    measured = [
        Row("orthoreg", method, "measured", "coupled", steps=steps)
        for method in ("group", "fisher", "theis", "l1")
        for steps in (1, 4)
    ]
    stepped = [
        Row("orthoreg", "fisher", ranking, "coupled", per_cost, steps)
        for steps in (1, 4)
        for ranking, per_cost in (("global", False), ("global", True), ("mean", False))
    ]
    return [
        *theirs,
        *published,
        *papers,
        *measured,
        *stepped,
        Row("orthoreg", "fisher", "best", "coupled"),
    ]


# --------------------------------------------------------------------------------------- the files


class Results:
    """The rows of one task and seed, in a file."""

    tested = None  # images that accuracies are of

    def __init__(self, task, seed):
        self.path = HERE / "practice" / f"{task}_{seed}.json"
        self.content = (
            json.loads(self.path.read_text())
            if self.path.is_file()
            else {"task": task, "seed": seed, "rows": []}
        )

    def find(self, row, share):
        for entry in self.content["rows"]:
            if Row(**entry["row"]) == row and entry["share"] == share:
                return entry
        return None

    def add(self, entry):
        self.content["rows"].append(entry)
        self.save()

    def save(self):
        self.content["environment"] = environment(torch.device("cpu"))
        self.content["images"] = {
            "scores": SCORED,
            "BatchNorms": BN_IMAGES,
            "measured": MEASURED,
            "tested": self.tested,
        }
        write_atomically({self.path: to_json(self.content)})


def _cut_or_say(row, network, data, share, seed, known):
    """The network that a row makes, or None, and a line on why."""
    try:
        return row.cut(network, data, share, seed, known)
    except Exception as error:  # of the other tool, whatever it may be
        print(f"{row.name}, seed {seed}: {type(error).__name__}: {error}", flush=True)
        return None


def curves(name, seed, wanted):
    """Right after the cut, with the BatchNorms' statistics as they are and re-estimated."""
    task, results = TASKS[name], Results(name, seed)
    missing = [(row, share) for row in wanted for share in SHARES if not results.find(row, share)]
    if not missing:
        return
    network, data, accuracy = whole_network(task, seed)
    results.content["unpruned"], results.tested = accuracy, len(data.test)
    dense, known = macs_of(network, task.size), {}
    for row, share in missing:
        began = time.monotonic()
        small = _cut_or_say(row, network, data, share, seed, known)
        if small is None:
            continue
        stale = evaluate(small, data.test_batches())["top1"]
        settle(small, data, seed)
        settled = evaluate(small, data.test_batches())["top1"]
        parameters = sum(p.numel() for p in small.parameters())
        results.add(
            {
                "row": asdict(row),
                "share": share,
                "macs_left": 100 * macs_of(small, task.size) / dense,
                "parameters_left": 100 * parameters / sum(p.numel() for p in network.parameters()),
                "stale": stale,
                "settled": settled,
                "seconds": time.monotonic() - began,
            }
        )
        print(
            f"{name} {seed} {share}% {row.name}: {stale:.1f} {settled:.1f} "
            f"({time.monotonic() - began:.1f} s)",
            flush=True,
        )


# ---------------------------------------------------------------------------------------- the page


def write_page():
    """practice.md: its text, and behind it the tables of all files in practice/."""
    found = [json.loads(path.read_text()) for path in sorted((HERE / "practice").glob("*.json"))]
    text = PAGE.read_text() if PAGE.is_file() else ""
    lines = [text.partition(MARK)[0].rstrip(), "", MARK, *_summary(found)]
    for name, task in TASKS.items():
        own = [content for content in found if content["task"] == name]
        if own:
            lines += ["", f"## {title_of_task(name, task)}"]
        if any(content["rows"] for content in own):
            draw_curves(name, own)
            lines += ["", f"![Right after the cut](practice/{name}.png)", "", *_curve_table(own)]
        lines += _question_table(own, name)
        lines += _training_table(own)
    PAGE.write_text("\n".join(lines).strip() + "\n")


def title_of_task(name, task):
    use = (
        "used for its own ten classes"
        if task.own
        else (f"used for ten other classes, {PER_CLASS} images of each")
    )
    return f"{title_of(task.model)} at {task.size} pixels, {use}"


def _summary(found):
    """What `finetune` chooses by, and what `l1` does, minus the other tool's best way."""
    lines = []
    for row, rivals, title in (
        (OUR_BEST[0], THEIR_BEST, "the better of Torch-Pruning's two"),
        (OUR_L1, THEIR_BEST[:1], "Torch-Pruning's magnitude"),
        (PAPER_L1, THEIR_BEST[:1], "Torch-Pruning's magnitude"),
    ):
        table = []
        for name in TASKS:
            for key, gaps in sorted(_gaps(found, name, row, rivals).items(), reverse=True):
                budget, share, epochs = key
                left = f"{share}% of {COSTS[budget]}"
                table.append([name, left, str(epochs), _gap_text(gaps)])
        if table:
            title = f"`{row.name}` minus {title}, of the same seed:"
            lines += ["", title, "", *table_of(["", "left", "epochs", "difference"], table)]
    return lines


def _trainings(contents):
    """(seed, Row, Tuning, the record's entry) of each fine-tuning."""
    for content in contents:
        for entry in content.get("trainings", ()):
            yield content["seed"], Row(**entry["row"]), Tuning(**entry["tuning"]), entry


def _question_table(found, name):
    """What each change is worth, beside the same cut and fine-tuning without it."""
    cells = {}  # (row, tuning) -> {seed: accuracy}
    for seed, row, tuning, entry in _trainings(found):
        if entry["share"] == 25:
            cells.setdefault((row, tuning), {})[seed] = entry["top1"]
    rows = []
    for row, _share, tuning in questions_plan():
        seeds = cells.get((row, tuning), {})
        usual = (row if row in THEIR_BEST else OUR_BEST[0]), Tuning(5)
        shared = sorted(seeds.keys() & cells.get(usual, {}).keys())
        gaps = [seeds[seed] - cells[usual][seed] for seed in shared]
        if gaps:
            words = row.name + words_of_tuning(tuning)
            rows.append([words, usual[0].name, _gap_text(gaps)])
    if not rows:
        return []
    columns = ["25% of the MACs, 5 epochs", "minus, of the same seed", "difference"]
    return ["", f"What else was tried with {name}:", "", *table_of(columns, rows)]


def _gaps(found, name, row, rivals):
    """{(budget, share, epochs): differences of accuracy, a seed each, from the rival that is the
    best of these in the mean}."""
    cells = {}  # the same key -> {row: {seed: accuracy}}
    own = [content for content in found if content["task"] == name]
    for seed, way, tuning, entry in _trainings(own):
        if tuning == Tuning(tuning.epochs):
            cell = cells.setdefault((way.budget, entry["share"], tuning.epochs), {})
            cell.setdefault(replace(way, budget="macs"), {})[seed] = entry["top1"]
    gaps = {}
    for key, rows in cells.items():
        theirs = [rows[rival] for rival in rivals if rival in rows]
        if row not in rows or not theirs:
            continue
        best = max(theirs, key=lambda seeds: statistics.fmean(seeds.values()))
        seeds = sorted(rows[row].keys() & best.keys())
        if seeds:
            gaps[key] = [rows[row][seed] - best[seed] for seed in seeds]
    return gaps


def draw_curves(name, contents):
    """practice/NAME.png: accuracy over the share that is removed."""
    shown = [
        *THEIR_BEST,
        *OUR_BEST,
        Row("orthoreg", "fisher", "global", "coupled"),
        Row("orthoreg", "fisher"),
        Row("orthoreg", "l1", "layer", "coupled"),
        Row("orthoreg", "l1"),
    ]
    whole = statistics.fmean(content["unpruned"] for content in contents)
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for row, marker in zip(shown, "sDo^vPX*"):
        settled = [
            [
                entry["settled"]
                for content in contents
                for entry in content["rows"]
                if Row(**entry["row"]) == row and entry["share"] == share
            ]
            for share in SHARES
        ]
        if all(settled):
            axes.plot(
                [0, *(100 - share for share in SHARES)],
                [whole, *map(statistics.fmean, settled)],
                marker=marker,
                label=f"{row.name}, n = {min(map(len, settled))}",
                linestyle="--" if row.tool == "torch-pruning" else "-",
            )
    axes.set(
        xlabel="removed multiply-adds (%)",
        ylabel="test accuracy right after the cut (%)",
        title=title_of_task(name, TASKS[name]),
    )
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(HERE / "practice" / f"{name}.png", dpi=110)
    pyplot.close(figure)


def _curve_table(contents):
    """Accuracies right after the cut with the BatchNorms re-estimated, and as they were."""
    whole = spread([content["unpruned"] for content in contents])
    cells = {}
    for content in contents:
        for entry in content["rows"]:
            key = Row(**entry["row"]), entry["share"]
            cells.setdefault(key, []).append(entry)
    rows = list(dict.fromkeys(row for row, _ in cells))

    def place(row):
        """Rows of which a share is missing come last."""
        settled = [[entry["settled"] for entry in cells.get((row, share), ())] for share in SHARES]
        return all(settled), statistics.fmean(sum(settled, []))

    columns = [f"{share}% of the MACs" for share in SHARES]
    title = (
        f"Right after the cut, nothing trained; unpruned {whole}. With BatchNorms re-estimated"
        " on 512 images, in brackets with them as they were."
    )
    table = []
    for row in sorted(rows, key=place, reverse=True):
        found = [cells.get((row, share), []) for share in SHARES]
        texts = [
            f"{spread([e['settled'] for e in some])} ({spread([e['stale'] for e in some])})"
            if some
            else ""
            for some in found
        ]
        left = [statistics.fmean(e["parameters_left"] for e in some) for some in found if some]
        parameters = ", ".join(f"{share:.0f}" for share in left)
        table.append([row.name, *texts, parameters, str(max(map(len, found)))])
    return [title, "", *table_of(["", *columns, "parameters left (%)", "n"], table)]


COSTS = {"macs": "the MACs", "time": f"the time for {CLOCK_BATCH} images in ONNX Runtime"}


def _training_table(contents):
    """Accuracies after fine-tuning, and what they are more than the other tool's best."""
    cells = {}  # (share, Tuning.epochs) -> {name of a row: {seed: accuracy}}
    for seed, row, tuning, entry in _trainings(contents):
        key = row.budget, entry["share"], tuning.epochs
        name = row.name + words_of_tuning(tuning)
        cells.setdefault(key, {}).setdefault(name, {})[seed] = entry["top1"]
    lines = []
    for (budget, share, epochs), rows in sorted(cells.items(), reverse=True):
        ranked = sorted(rows, key=lambda name: -statistics.fmean(rows[name].values()))
        rivals = [row.name for row in THEIR_BEST]
        theirs = next((name for name in ranked if name in rivals), None)
        table = []
        for name in ranked:
            shared = rows[name].keys() & rows.get(theirs, {}).keys() if name != theirs else ()
            gaps = [rows[name][seed] - rows[theirs][seed] for seed in sorted(shared)]
            accuracy = spread(list(rows[name].values()))
            table.append([name, accuracy, _gap_text(gaps), str(len(rows[name]))])
        columns = ["", "accuracy", f"minus {theirs}" if theirs else "", "n"]
        title = f"{share}% of {COSTS[budget]}, {epochs} epochs of fine-tuning:"
        lines += ["", title, "", *table_of(columns, table)]
    return lines


def _gap_text(gaps):
    """Differences with their interval; where there is no more than one, that."""
    return interval(gaps) or ", ".join(f"{gap:+.1f}" for gap in gaps)


def words_of_tuning(tuning):
    return (f", distilled {tuning.distill:g}" if tuning.distill else "") + (
        "" if tuning.settled else ", BatchNorms as they were"
    )


@dataclass(frozen=True)
class Tuning:
    """What follows a cut. settled: whether BatchNorms are re-estimated before it."""

    epochs: int
    distill: float = 0.0
    settled: bool = True


def tune(name, seed, plan):
    """Fine-tune cuts. plan: (row, share, Tuning) of each, in order."""
    task, results = TASKS[name], Results(name, seed)
    done = results.content.setdefault("trainings", [])
    known_already = {
        (Row(**entry["row"]), entry["share"], Tuning(**entry["tuning"])) for entry in done
    }
    missing = [
        each for each in plan if each not in known_already and not (each[0].penalised and task.own)
    ]  # whose whole network is not tuned
    if not missing:
        return
    network, data, accuracy = whole_network(task, seed)
    results.content["unpruned"], results.tested = accuracy, len(data.test)
    dense, known = macs_of(network, task.size), {}
    wholes = {False: (network, known)}
    for row, share, tuning in missing:
        if row.penalised and True not in wholes:
            wholes[True] = whole_network(task, seed, penalised=True)[0], {}
        network, known = wholes[row.penalised]
        began = time.monotonic()
        small = _cut_or_say(row, network, data, share, seed, known)
        if small is None:
            continue
        if tuning.settled:
            settle(small, data, seed)
        start = evaluate(small, data.test_batches())["top1"]
        trained = fit(
            small,
            data,
            task.tuning(tuning.epochs),
            key=(seed, "tune"),
            batch_size=32,
            choose="last",
            teacher=network if tuning.distill else None,
            distill=tuning.distill,
            report=lambda *_: None,
        )
        saved = row.budget == "time" and clock_of(network, data, known).saved_by(small, LONG)
        done.append(
            {
                "row": asdict(row),
                "share": share,
                "tuning": asdict(tuning),
                "start": start,
                **(saved.plain() if saved else {}),
                "macs_left": 100 * macs_of(small, task.size) / dense,
                "parameters": sum(p.numel() for p in small.parameters()),
                "top1": trained.last["top1"],
                "history": trained.history,
                "seconds": time.monotonic() - began,
            }
        )
        results.save()
        print(
            f"{name} {seed} {share}% {row.name}, {tuning}: {start:.1f} -> "
            f"{trained.last['top1']:.1f} ({time.monotonic() - began:.0f} s)",
            flush=True,
        )


def ours(method, **more):
    """A Row of this suite as `finetune` has it, but for what is said."""
    return Row(
        "orthoreg", method, **{"ranking": "measured", "residual": "coupled", "steps": 4, **more}
    )


OUR_L1, PAPER_L1 = ours("l1"), Row("orthoreg", "l1", "paper", "coupled")
THEIR_BEST = Row("torch-pruning", "magnitude", "layer"), Row("torch-pruning", "taylor", "global")
OUR_BEST = ours("fisher"), ours("group")
UNPRUNED = Row("unpruned", "unpruned")


def _rivals(share, tuning, **more):
    return [(replace(row, **more), share, tuning) for row in (*THEIR_BEST, *OUR_BEST)]


def core_plan():
    """Both tools as one would use them, and two methods as they are published."""
    others = [Row("orthoreg", "fisher", "global", "single"), PAPER_L1, OUR_L1]
    return [
        (UNPRUNED, 100, Tuning(5)),
        *_rivals(25, Tuning(5)),
        *_rivals(40, Tuning(5)),
        *((row, 25, Tuning(5)) for row in others),
    ]


def time_plan():
    return _rivals(50, Tuning(5), budget="time")


def mild_plan():
    return _rivals(60, Tuning(5))


def long_plan():
    return [(UNPRUNED, 100, Tuning(15)), *_rivals(25, Tuning(15))]


def distilled_plan():
    """With and without the whole network's answers."""
    return [(row, 25, Tuning(5, distill=0.5)) for row in (THEIR_BEST[1], OUR_BEST[0])]


def questions_plan():
    """What else might help, one thing at a time, where most is at stake."""
    fisher = OUR_BEST[0]
    listed = [
        Row("scratch", "from scratch"),
        replace(fisher, steps=1),
        ours("fisher", ranking="global"),
        ours("fisher", ranking="global", per_cost=True),
        ours("fisher", ranking="mean"),
        ours("fisher", ranking="best", steps=1),
        ours("group", ranking="layer", steps=1),
        ours("tfo"),
        ours("bn"),
        Row("torch-pruning", "fpgm", "layer"),
        Row("torch-pruning", "bn", "layer"),
        ours("orthoreg", penalised=True),
        replace(fisher, penalised=True),
    ]
    taught = [(row, Tuning(5, distill=0.5)) for row in (THEIR_BEST[1], fisher)]
    untouched = [(row, Tuning(5, settled=False)) for row in (THEIR_BEST[0], fisher)]
    return [
        (row, 25, tuning)
        for row, tuning in (*taught, *untouched, *((row, Tuning(5)) for row in listed))
    ]


PLANS = {
    "core": core_plan,
    "time": time_plan,
    "mild": mild_plan,
    "distilled": distilled_plan,
    "long": long_plan,
    "questions": questions_plan,
}


CURVES = {"curves": all_rows, "steps": step_rows, "few": few_rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*CURVES, "train", "report"))
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--plans", nargs="*", choices=PLANS, default=list(PLANS))
    args = parser.parse_args()
    pick_device("cpu")
    for seed in args.seeds if args.what != "report" else ():
        for name in args.tasks:
            if args.what == "train":
                for plan in args.plans:
                    tune(name, seed, PLANS[plan]())
            else:
                curves(name, seed, CURVES[args.what]())
    write_page()


if __name__ == "__main__":
    main()
