"""Are a penalised network's scores better, or is it just another network?

    python pruned_nets/comparison/claim.py search vgg           # rates and λ, on validation images
    python pruned_nets/comparison/claim.py cut vgg --seeds 0 1  # right after the cut, no retraining
    python pruned_nets/comparison/claim.py groups vgg --seeds 0 1  # sums of scores
    python pruned_nets/comparison/claim.py retrain vgg --seeds 0 1
    python pruned_nets/comparison/claim.py scratch vgg --seeds 0 1  # with fresh weights
    python pruned_nets/comparison/claim.py report               # claim.md

Three networks of each seed, "plain", "penalised", and "zero", which has the penalised one's
schedule and rate, but no penalty, are cut by the same scores. It needs data/cifar100-20: 20 classes
of CIFAR-100 as an image folder. The first ten are used. Every result is a dict in claim/, written
as soon as it is known; those that are there are not computed again. The networks are kept in
pretrained/claim/.
"""

import argparse
import copy
import itertools
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from matplotlib import pyplot

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from ground import IMAGES, SCORED, only, settle  # noqa: E402

from channels.costs import measure_cost  # noqa: E402
from common.device import environment, pick_device  # noqa: E402
from common.files import to_json, write_atomically  # noqa: E402
from config import Recipe, title_of  # noqa: E402
from data import load_data  # noqa: E402
from imp_estimator import cal_importance  # noqa: E402
from lab.comparison import minus  # noqa: E402
from lab.export import export  # noqa: E402
from lab.groups import KINDS as GROUP_KINDS  # noqa: E402
from lab.groups import check_groups  # noqa: E402
from lab.markdown import interval, spread, table_of  # noqa: E402
from lab.networks import build_network, fresh_like  # noqa: E402
from pruner import prune, select_filters, step_targets  # noqa: E402
from train import (  # noqa: E402
    OrthonormalityPenalty,
    degree_of_orthogonality,
    evaluate,
    fit,
)

KEPT = ROOT / "pretrained" / "claim"
RECORDS, PAGE = HERE / "claim", HERE / "claim.md"
MARK = "<!-- The tables below are made by claim.py. -->"
CLASSES = 10
VALIDATION = 10  # percent of the training images

KINDS = "plain", "penalised", "zero"
SCORES = "fisher", "bn", "random"
GONE = 5, 10, 25, 50, 75  # percent of the multiply-adds, each cut in one step
STEPPED = {50: (2, 4, 8), 75: (2, 4, 8)}  # ... -> the steps in which `fisher` cuts as much, too
RETRAINED = 75  # percent of the multiply-adds that are gone before a retraining
SIZES = 1, 16, 64, 256, 384  # filters of a group, drawn from all of the network
GROUP_IMAGES, GROUP_DRAWS = 256, 32


@dataclass(frozen=True)
class Task:
    """A network and its images. width: a factor of the network's widths. image_size: in pixels.
    epochs: of a training; of one of the search; of a retraining. rates, strengths: what is
    searched, learning rates and λ."""

    model: str
    width: float
    rates: tuple
    strengths: tuple
    epochs: int
    search_epochs: int
    retrain_epochs: int
    image_size: int = 32
    batch_size: int = 32


TASKS = {
    "vgg": Task(
        model="vgg",
        width=0.25,
        rates=(0.01, 0.02),
        strengths=(0.01, 0.1),
        epochs=24,
        search_epochs=24,
        retrain_epochs=24,
        batch_size=128,
    ),
    "mobilenet": Task(
        model="mobilenet",
        width=0.5,
        rates=(0.02, 0.05),
        strengths=(0.01, 0.1),
        epochs=50,
        search_epochs=20,
        retrain_epochs=25,
    ),
    "resnet-56": Task(
        model="resnet-56",
        width=0.5,
        rates=(0.02, 0.05),
        strengths=(0.01, 0.1),
        epochs=60,
        search_epochs=20,
        retrain_epochs=30,
        image_size=16,
    ),
}


@dataclass(frozen=True)
class Treatment:
    """How a network is trained. strength: λ of the penalty. decay: the weight decay."""

    rate: float
    strength: float
    decay: float

    def recipe(self, epochs):
        return Recipe(
            lr=[self.rate],
            epochs=[epochs],
            weight_decay=self.decay,
            adam_lr=[1e-3],
            warmup=1,
            schedule="cosine",
        )


def tried(task):
    """Kind -> the Treatments that are searched, equally many of both."""
    plain = [Treatment(rate, 0, decay) for rate in task.rates for decay in (1e-4, 5e-4)]
    # As published, a training with the penalty has no weight decay.
    penalised = [Treatment(rate, strength, 0) for rate in task.rates for strength in task.strengths]
    return {"plain": plain, "penalised": penalised}


# ---------------------------------------------------------------------------- networks and files


def images(task):
    """An ImageData of the first ten classes; a tenth of their training images are validation."""
    data = load_data(str(IMAGES), task.image_size)
    first = range(CLASSES)
    parts = {"train": only(data.train, first), "test": only(data.test, first)}
    return replace(data, classes=data.classes[:CLASSES], **parts).hold_out(VALIDATION, 0)


def train_network(network, data, task, treatment, epochs, key, label):
    """Train a network in place, to its last epoch. Returns the Training."""
    penalty = None
    if treatment.strength:
        penalty = OrthonormalityPenalty(network, treatment.strength)
    return fit(
        network,
        data,
        treatment.recipe(epochs),
        key=key,
        batch_size=task.batch_size,
        penalty=penalty,
        label=label,
        choose="last",
    )


def health_of(network, data, trained):
    """What tells whether a network was trained well, and treated."""
    degrees = degree_of_orthogonality(network)
    convolutions = dict(network.named_modules())
    pointwise = [
        degree for name, degree in degrees.items() if convolutions[name].kernel_size == (1, 1)
    ]
    plain = data.plain_batches(data.train)
    return {
        "losses": [epoch["train"]["loss"] for epoch in trained.history],
        "train_top1": evaluate(network, plain)["top1"],
        "validation_top1": evaluate(network, data.choice_batches())["top1"],
        "test_top1": evaluate(network, data.test_batches())["top1"],
        "degree": statistics.mean(degrees.values()),
        "pointwise_degree": statistics.mean(pointwise) if pointwise else None,
    }


class Record:
    """A dict in a file of claim/."""

    def __init__(self, name):
        self.path = RECORDS / f"{name}.json"
        self.content = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def save(self):
        self.content["environment"] = environment(torch.device("cpu"))
        RECORDS.mkdir(exist_ok=True)
        write_atomically({self.path: to_json(self.content)})


# ------------------------------------------------------------------------------------- the search


def search(name):
    """Train with each Treatment, and choose that of each kind on the validation images."""
    task, record = TASKS[name], Record(f"{name}_search")
    data = images(task)
    entries = record.content.setdefault("tried", [])
    known = [(entry["kind"], entry["treatment"]) for entry in entries]
    for kind, treatments in tried(task).items():
        for treatment in treatments:
            if (kind, asdict(treatment)) in known:
                continue
            torch.manual_seed(100)
            network = build_network(task.model, CLASSES, task.width)
            trained = train_network(
                network,
                data,
                task,
                treatment,
                task.search_epochs,
                (100, "claim"),
                f"{name} {kind}",
            )
            entries.append(
                {
                    "kind": kind,
                    "treatment": asdict(treatment),
                    **health_of(network, data, trained),
                }
            )
            record.save()
    return chosen(name)


def is_treated(entry):
    """Whether the penalty did what it is for: its pointwise filters, or all where there are none,
    have a degree of orthogonality of at least 0.5."""
    degree = entry["pointwise_degree"]
    return (entry["degree"] if degree is None else degree) >= 0.5


def chosen(name):
    """Kind -> the Treatment with the highest accuracy on validation images; of those with the
    penalty one that made filters orthogonal, if any did."""
    entries, best = Record(f"{name}_search").content["tried"], {}
    for kind in ("plain", "penalised"):
        own = [entry for entry in entries if entry["kind"] == kind]
        if kind == "penalised":
            own = [entry for entry in own if is_treated(entry)] or own
        best[kind] = Treatment(**max(own, key=lambda e: e["validation_top1"])["treatment"])
    best["zero"] = replace(best["penalised"], strength=0)
    return best


def whole_network(name, kind, seed, data):
    """(the unpruned network, its record, which says how healthy it is); trained where it is not
    there."""
    task, record = TASKS[name], Record(f"{name}_{kind}_{seed}")
    torch.manual_seed(seed)
    network = build_network(task.model, CLASSES, task.width)
    path = KEPT / f"{name}_{kind}_{seed}.pth"
    if path.is_file() and "health" in record.content:
        network.load_state_dict(torch.load(path, weights_only=True)["net"])
        return network, record
    treatment = chosen(name)[kind]
    trained = train_network(
        network,
        data,
        task,
        treatment,
        task.epochs,
        (seed, "claim"),
        f"{name} {kind} {seed}",
    )
    record.content |= {
        "task": name,
        "kind": kind,
        "seed": seed,
        "treatment": asdict(treatment),
        "health": health_of(network, data, trained),
        "cuts": [],
        "retrained": [],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"net": network.state_dict()}, path)
    record.save()
    return network, record


# ---------------------------------------------------------------------------------------- the cuts


def cut_network(network, score, gone, steps, seed, data):
    """`network` without `gone` percent of its multiply-adds, as published: raw scores of all layers
    in one list. In several steps each has scores of what is left; nothing is trained between."""
    for step, target in enumerate(step_targets(0, gone, steps)):
        if step:
            settle(network, data, seed)
        batches = data.train_batches(50, key=(seed, "importance", step), count=SCORED)
        scores = cal_importance(network, score, batches, seed=seed)
        kept = select_filters(network, scores, target, budget="macs", image_size=data.image_size)
        network = prune(network, kept)
    return network


def wanted_cuts():
    """(score, percent gone, steps) of all cuts."""
    cuts = [(score, gone, 1) for score in SCORES for gone in GONE]
    for gone, many in STEPPED.items():
        cuts += [("fisher", gone, steps) for steps in many]
    return cuts


def cut_all(name, kind, seed):
    """Accuracies right after all cuts of one network."""
    data = images(TASKS[name])
    network, record = whole_network(name, kind, seed, data)
    dense = measure_cost(network, data.image_size)["macs"]
    known = [(entry["score"], entry["gone"], entry["steps"]) for entry in record.content["cuts"]]
    for score, gone, steps in wanted_cuts():
        if (score, gone, steps) in known:
            continue
        began = time.monotonic()
        small = cut_network(network, score, gone, steps, seed, data)
        stale = evaluate(small, data.test_batches())
        settle(small, data, seed)
        settled = evaluate(small, data.test_batches())
        record.content["cuts"].append(
            {
                "score": score,
                "gone": gone,
                "steps": steps,
                "macs_left": 100 * measure_cost(small, data.image_size)["macs"] / dense,
                "stale_top1": stale["top1"],
                "settled_top1": settled["top1"],
                "settled_loss": settled["loss"],
                "seconds": time.monotonic() - began,
            }
        )
        record.save()
        print(
            f"{name} {kind} {seed} {score} -{gone}% in {steps}: {stale['top1']:.1f} "
            f"{settled['top1']:.1f} ({time.monotonic() - began:.0f} s)",
            flush=True,
        )


# -------------------------------------------------------------------------------------- the groups


def check_all_groups(name, kind, seed):
    """How far the sum of `fisher`'s scores is from the change of the loss, for groups of one
    network's filters."""
    data = images(TASKS[name])
    network, record = whole_network(name, kind, seed, data)
    if "groups" in record.content:
        return
    began = time.monotonic()
    batches = list(data.train_batches(64, key=(seed, "groups"), count=GROUP_IMAGES))
    record.content["groups"] = check_groups(
        network,
        batches,
        "fisher",
        seed=seed,
        draws=GROUP_DRAWS,
        pool=None,  # all filters
        sizes=SIZES,
    )
    record.save()
    print(f"{name} {kind} {seed} groups ({time.monotonic() - began:.0f} s)", flush=True)


# ---------------------------------------------------------------------------------- the retraining


def accuracy_in_8_bits(network, data):
    """Top-1 on the test images, of the weights and activations in 8 bits of ONNX Runtime's static
    quantisation."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    shown = itertools.islice(data.plain_batches(data.train), 2)
    calibration = iter([{"images": batch.contiguous().numpy()} for batch, _ in shown])

    class Images(CalibrationDataReader):
        def get_next(self):
            return next(calibration, None)

    with tempfile.TemporaryDirectory() as folder:
        whole, ready, small = (f"{folder}/{file}.onnx" for file in ("whole", "ready", "small"))
        example, _ = next(iter(data.test_batches()))
        export(network, data.classes, whole, example[:8])
        quant_pre_process(whole, ready)
        quantize_static(ready, small, Images(), per_channel=True, reduce_range=True)
        session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
        right = 0
        for batch, labels in data.test_batches():
            logits = session.run(None, {"images": batch.contiguous().numpy()})[0]
            right += (torch.from_numpy(logits).argmax(1) == labels).sum().item()
    return 100 * right / len(data.test)


def retrain_all(name, kind, seed):
    """Accuracies after a retraining of what each score leaves, and of the unpruned network trained
    as long. All retrainings have the plain recipe."""
    retrain_each(name, kind, seed, [(None, False), *((score, False) for score in SCORES)])


def train_from_scratch(name, kind, seed):
    """Accuracies of the architectures with fresh weights, which get all epochs that the pruned ones
    had, before and after the cut."""
    if kind != "zero":
        retrain_each(name, kind, seed, [(score, True) for score in SCORES])


def retrain_each(name, kind, seed, wanted):
    """Train what `wanted` says: (score or None, whether with fresh weights)."""
    task = TASKS[name]
    data = images(task)
    network, record = whole_network(name, kind, seed, data)
    plain = chosen(name)["plain"]
    known = [(entry["score"], entry["scratch"]) for entry in record.content["retrained"]]
    for score, scratch in wanted:
        if (score, scratch) in known:
            continue
        small = copy.deepcopy(network)
        if score:
            small = cut_network(network, score, RETRAINED, 1, seed, data)
            settle(small, data, seed)
        before, epochs = evaluate(small, data.test_batches())["top1"], task.retrain_epochs
        if scratch:
            torch.manual_seed(seed)
            small, epochs = fresh_like(small, CLASSES), task.epochs + task.retrain_epochs
        label = f"{name} {kind} {seed} {score}{' from scratch' if scratch else ''}"
        began = time.monotonic()
        trained = train_network(small, data, task, plain, epochs, (seed, "retrain"), label)
        record.content["retrained"].append(
            {
                "score": score,
                "scratch": scratch,
                "epochs": epochs,
                "before_top1": before,
                "top1": trained.last["top1"],
                "int8_top1": None if scratch else accuracy_in_8_bits(small, data),
                "seconds": time.monotonic() - began,
            }
        )
        record.save()


# ---------------------------------------------------------------------------------------- the page


RANDOM = GROUP_KINDS["network", "random"]
FIGURES = {
    "error_scores": "relative error",
    "gap_scores": "absolute error",
    "rank_scores": "rank correlation",
    "change": "change of the loss",
}


class Results:
    """The records of one network, and what tables ask of them."""

    def __init__(self, name):
        self.name, self.records = name, {}
        for path in sorted(RECORDS.glob(f"{name}_*_*.json")):
            content = json.loads(path.read_text())
            self.records[content["kind"], content["seed"]] = content

    def cut(self, kind, score, gone, steps=1, figure="settled_top1"):
        """{seed: a figure of that cut}."""
        values = {}
        for (own, seed), content in self.records.items():
            for entry in content["cuts"]:
                is_it = (entry["score"], entry["gone"], entry["steps"]) == (score, gone, steps)
                if own == kind and is_it:
                    values[seed] = entry[figure]
        return values

    def area(self, kind, score):
        """{seed: the mean accuracy right after the cuts, over the share that is gone}."""
        curves = {gone: self.cut(kind, score, gone) for gone in GONE}
        areas = {}
        for seed in set.intersection(*map(set, curves.values())):
            total = 0
            for left, right in zip(GONE, GONE[1:]):
                total += (right - left) * (curves[left][seed] + curves[right][seed]) / 2
            areas[seed] = total / (GONE[-1] - GONE[0])
        return areas

    def gain(self, kind, gone, steps):
        """{seed: what so many steps are ahead of one}."""
        return minus(self.cut(kind, "fisher", gone, steps), self.cut(kind, "fisher", gone))

    def of_groups(self, kind, size, figure):
        """{seed: a figure of a lab.record.GroupSize}, of random groups over all layers."""
        values = {}
        for (own, seed), content in self.records.items():
            for entry in content.get("groups", {"kinds": {}})["kinds"].get(RANDOM, ()):
                if own == kind and entry["size"] == size:
                    values[seed] = entry[figure]
        return values

    def retrained(self, kind, score, scratch=False, figure="top1"):
        """{seed: accuracy}. score: None for the unpruned network."""
        values = {}
        for (own, seed), content in self.records.items():
            for entry in content["retrained"]:
                if own == kind and (entry["score"], entry["scratch"]) == (score, scratch):
                    values[seed] = entry[figure]
        return values

    def in_8_bits(self, kind, score):
        """{seed: what 8 bits add to the accuracy after a retraining}. score: as above."""
        return minus(self.retrained(kind, score, figure="int8_top1"), self.retrained(kind, score))

    def health(self, kind, figure):
        """{seed: a figure of the unpruned network}."""
        return {
            seed: content["health"][figure]
            for (own, seed), content in self.records.items()
            if own == kind
        }


def health_table(results):
    rows = []
    for kind in KINDS:
        treatment = chosen(results.name)[kind]
        highest = [max(losses) for losses in results.health(kind, "losses").values()]
        rows.append(
            [
                kind,
                f"{treatment.rate:g}",
                f"{treatment.strength:g}",
                f"{treatment.decay:g}",
                f"{max(highest):.2f}" if highest else "",
                spread(results.health(kind, "train_top1").values()),
                spread(results.health(kind, "test_top1").values()),
                spread(results.health(kind, "degree").values(), 2),
                spread(results.health(kind, "pointwise_degree").values(), 2),
                str(len(highest)),
            ]
        )
    head = "rate", "λ", "weight decay", "highest loss of an epoch", "training images", "test images"
    return table_of(["", *head, "degree", "of 1x1 filters", "n"], rows)


def curve_table(results):
    rows = []
    for score in SCORES:
        for kind in KINDS:
            cells = [spread(results.cut(kind, score, gone).values()) for gone in GONE]
            rows.append([f"{kind}, {score}", *cells, spread(results.area(kind, score).values())])
        for other in ("zero", "plain"):
            cells = [interval(gap.values()) for gap in lead_over(results, other, score)]
            rows.append([f"penalised minus {other}, {score}", *cells])
    leads = zip(lead_over(results, "zero", "fisher"), lead_over(results, "zero", "random"))
    cells = [interval(minus(fisher, random).values()) for fisher, random in leads]
    rows.append(["penalised minus zero, fisher minus random", *cells])
    return table_of(["", *(f"{gone}% gone" for gone in GONE), "mean over 5 to 75%"], rows)


def lead_over(results, other, score):
    """What the penalised network is ahead of another right after each cut, and in the mean over
    the cuts: a list of {seed: points}."""
    leads = [
        minus(results.cut("penalised", score, gone), results.cut(other, score, gone))
        for gone in GONE
    ]
    return [*leads, minus(results.area("penalised", score), results.area(other, score))]


def steps_table(results):
    rows = []
    for gone, many in STEPPED.items():
        for kind in KINDS:
            gains = [interval(results.gain(kind, gone, steps).values()) for steps in many]
            one = spread(results.cut(kind, "fisher", gone).values())
            rows.append([f"{kind}, {gone}% gone", one, *gains])
        for other in ("zero", "plain"):
            gaps = [
                minus(results.gain(other, gone, steps), results.gain("penalised", gone, steps))
                for steps in many
            ]
            cells = [interval(gap.values()) for gap in gaps]
            rows.append([f"gain of {other} minus gain of penalised, {gone}%", "", *cells])
    heads = [f"{steps} steps minus one" for steps in STEPPED[GONE[-1]]]
    return table_of(["", "one step", *heads], rows)


def group_table(results):
    rows = []
    for figure, title in FIGURES.items():
        for kind in KINDS:
            cells = [spread(results.of_groups(kind, size, figure).values(), 2) for size in SIZES]
            rows.append([f"{title}, {kind}", *cells])
        gaps = [
            minus(
                results.of_groups("penalised", size, figure),
                results.of_groups("zero", size, figure),
            )
            for size in SIZES
        ]
        rows.append(
            [f"{title}, penalised minus zero", *(interval(gap.values(), 2) for gap in gaps)]
        )
    return table_of(["", *(f"{size} filters" for size in SIZES)], rows)


def retrained_table(results):
    rows = []
    for score in (None, *SCORES):
        cells = [spread(results.retrained(kind, score).values()) for kind in KINDS]
        gap = minus(results.retrained("penalised", score), results.retrained("zero", score))
        rows.append([score or "unpruned", *cells, interval(gap.values())])
        fresh = [spread(results.retrained(kind, score, True).values()) for kind in KINDS]
        if any(fresh):
            rows.append([f"{score}, from scratch", *fresh, ""])
        losses = [interval(results.in_8_bits(kind, score).values()) for kind in KINDS]
        rows.append([f"{score or 'unpruned'}, 8 bits minus 32", *losses, ""])
    for score in ("fisher", "bn"):
        leads = [
            minus(results.retrained(kind, score), results.retrained(kind, "random"))
            for kind in KINDS
        ]
        both = minus(leads[KINDS.index("penalised")], leads[KINDS.index("zero")])
        cells = [interval(lead.values()) for lead in leads]
        rows.append([f"{score} minus random", *cells, interval(both.values())])
    return table_of(["", *KINDS, "penalised minus zero"], rows)


def draw_steps(results, path):
    """Accuracies right after a cut in one and in several steps, for each kind of network."""
    figure, axes = pyplot.subplots(1, len(STEPPED), figsize=(9, 3.5), layout="constrained")
    for axis, (gone, many) in zip(axes, STEPPED.items()):
        for kind in KINDS:
            cuts = [list(results.cut(kind, "fisher", gone, steps).values()) for steps in (1, *many)]
            means = [statistics.mean(values) for values in cuts]
            errors = [statistics.stdev(values) / len(values) ** 0.5 for values in cuts]
            axis.errorbar((1, *many), means, errors, marker="o", capsize=3, label=kind)
        axis.set_xscale("log", base=2)
        axis.set_xticks((1, *many), (1, *many))
        axis.set(xlabel="steps", title=f"{gone}% of the multiply-adds removed by fisher")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy right after the cut (%)")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write_page():
    """claim.md: its text, and behind it the tables of all files in claim/."""
    text = PAGE.read_text() if PAGE.is_file() else ""
    lines = [text.partition(MARK)[0].rstrip(), "", MARK]
    for name, task in TASKS.items():
        results = Results(name)
        if not results.records:
            continue
        lines += ["", f"## {title_of(task.model)}, widths x {task.width:g}, {task.epochs} epochs"]
        lines += ["", "The unpruned networks:", "", *health_table(results)]
        lines += ["", "Right after the cut, BatchNorms re-estimated:", "", *curve_table(results)]
        lines += ["", "`fisher` in several steps:", "", *steps_table(results)]
        if results.of_groups("plain", 1, "change"):
            title = "Sums of `fisher`'s scores for random groups of all filters:"
            lines += ["", title, "", *group_table(results)]
        if all(len(results.gain(kind, GONE[-1], 8)) > 1 for kind in KINDS):
            draw_steps(results, RECORDS / f"{name}_steps.png")
            lines += ["", f"![In one step and in several](claim/{name}_steps.png)"]
        if results.retrained("plain", "fisher"):
            lines += ["", f"{RETRAINED}% gone, retrained:", "", *retrained_table(results)]
    PAGE.write_text("\n".join(lines).strip() + "\n")


WORK = {
    "cut": cut_all,
    "groups": check_all_groups,
    "retrain": retrain_all,
    "scratch": train_from_scratch,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("search", *WORK, "report"))
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    pick_device("cpu")
    if args.what == "search":
        for name in args.tasks:
            print(name, search(name))
    elif args.what != "report":
        for name, seed, kind in itertools.product(args.tasks, args.seeds, KINDS):
            WORK[args.what](name, kind, seed)
    write_page()


if __name__ == "__main__":
    main()
