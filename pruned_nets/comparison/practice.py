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
import json
import time
from dataclasses import asdict, replace

import torch
from ground import BN_IMAGES, IMAGES, SCORED, only, settle
from places import HERE, ROOT
from practice_cuts import MEASURED, clock_of, cut, macs_of
from practice_page import write_page
from practice_rows import CURVES, PER_CLASS, PLANS, SHARES, TASKS, Row, Tuning

from common.batches import Split
from common.device import environment, pick_device
from common.files import to_json, write_atomically
from config import penalty_of
from data import load_data
from lab.latency import LONG
from lab.networks import build_network
from train import OrthonormalityPenalty, evaluate, fit

KEPT = ROOT / "pretrained" / "practice"
START, TARGET = range(10), range(10, 20)  # classes, in alphabetical order


# ------------------------------------------------------------------------- images and networks


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
        return cut(row, network, data, share, seed, known)
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
