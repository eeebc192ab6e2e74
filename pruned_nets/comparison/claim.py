"""Are a penalised network's scores better, or is it just another network?

    python pruned_nets/comparison/claim.py search vgg           # rates and λ, on validation images
    python pruned_nets/comparison/claim.py cut vgg --seeds 0 1  # right after the cut, no retraining
    python pruned_nets/comparison/claim.py groups vgg --seeds 0 1  # sums of scores
    python pruned_nets/comparison/claim.py retrain vgg --seeds 0 1
    python pruned_nets/comparison/claim.py stepwise vgg --seeds 0 1  # after a cut in eight steps
    python pruned_nets/comparison/claim.py scratch vgg --seeds 0 1  # with fresh weights
    python pruned_nets/comparison/claim.py longer resnet-56 --seeds 0 1  # how long to retrain
    python pruned_nets/comparison/claim.py late vgg --seeds 0 1  # the penalty on a trained network
    python pruned_nets/comparison/claim.py report               # claim.md

Three networks of each seed, "plain", "penalised", and "zero", which has the penalised one's
schedule and rate, but no penalty, are cut by the same scores. It needs data/cifar100-20: 20 classes
of CIFAR-100 as an image folder. The first ten are used. Every result is a dict in claim/, written
as soon as it is known; those that are there are not computed again. The networks are kept in
pretrained/claim/. claim_records.py has what is compared, claim_page.py makes the tables.
"""

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from dataclasses import asdict, replace

import torch
from claim_page import write_page
from claim_records import (
    CHOICES,
    GONE,
    KINDS,
    LENGTHENED,
    LENGTHS,
    MOST_STEPS,
    RETRAINED,
    SEEDS,
    SIZES,
    STEPPED,
    TASKS,
    Record,
    chosen,
    fresh_lengths,
    tried,
)
from ground import IMAGES, SCORED, only, settle
from places import ROOT

from channels.costs import measure_cost
from common.device import pick_device
from common.libraries import ONNX, lazy, need
from data import load_data
from imp_estimator import cal_importance
from lab.export import export
from lab.groups import check_groups
from lab.networks import build_network, fresh_like
from pruner import prune, select_filters, step_targets
from train import OrthonormalityPenalty, degree_of_orthogonality, evaluate, fit

onnxruntime, quantization, shape_inference = map(
    lazy,
    (
        "onnxruntime",
        "onnxruntime.quantization",
        "onnxruntime.quantization.shape_inference",
    ),
)

KEPT = ROOT / "pretrained" / "claim"
CLASSES = 10
VALIDATION = 10  # percent of the training images
GROUP_IMAGES, GROUP_DRAWS = 256, 32


# ------------------------------------------------------------------------- images and a training


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


def cut_network(network, choice, gone, steps, seed, data):
    """`network` without `gone` percent of its multiply-adds. choice: a key of CHOICES. In several
    steps each has scores of what is left; nothing is trained between."""
    method, ranking = CHOICES[choice]
    for step, target in enumerate(step_targets(0, gone, steps)):
        if step:
            settle(network, data, seed)
        batches = data.train_batches(50, key=(seed, "importance", step), count=SCORED)
        scores = cal_importance(network, method, batches, seed=seed)
        kept = select_filters(
            network,
            scores,
            target,
            budget="macs",
            image_size=data.image_size,
            ranking=ranking,
            pruning_type=method,
        )
        network = prune(network, kept)
    return network


def wanted_cuts():
    """(score, percent gone, steps) of all cuts."""
    cuts = [(score, gone, 1) for score in CHOICES for gone in GONE]
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
    shown = itertools.islice(data.plain_batches(data.train), 2)
    calibration = iter([{"images": batch.contiguous().numpy()} for batch, _ in shown])

    class Images(quantization.CalibrationDataReader):
        def get_next(self):
            return next(calibration, None)

    with tempfile.TemporaryDirectory() as folder:
        whole, ready, small = (f"{folder}/{file}.onnx" for file in ("whole", "ready", "small"))
        example, _ = next(iter(data.test_batches()))
        export(network, data.classes, whole, example[:8])
        shape_inference.quant_pre_process(whole, ready)
        quantization.quantize_static(ready, small, Images(), per_channel=True, reduce_range=True)
        session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
        right = 0
        for batch, labels in data.test_batches():
            logits = session.run(None, {"images": batch.contiguous().numpy()})[0]
            right += (torch.from_numpy(logits).argmax(1) == labels).sum().item()
    return 100 * right / len(data.test)


def retrain_all(name, kind, seed):
    """Accuracies after a retraining of what each score leaves, and of the unpruned network trained
    as long. All retrainings have the plain recipe."""
    epochs = TASKS[name].retrain_epochs
    wanted = [(score, 1, False, epochs) for score in (None, *CHOICES)]
    train_each(name, kind, seed, "retrained", wanted)


def retrain_stepwise(name, kind, seed):
    """Accuracy after a retraining of what `fisher` leaves in most steps."""
    epochs = TASKS[name].retrain_epochs
    train_each(name, kind, seed, "retrained", [("fisher", MOST_STEPS, False, epochs)])


def train_from_scratch(name, kind, seed):
    """Accuracy of the architecture that `fisher` leaves, with fresh weights, which get all epochs
    that the pruned ones had, before and after the cut."""
    if kind != "zero":
        epochs = TASKS[name].epochs + TASKS[name].retrain_epochs
        train_each(name, kind, seed, "retrained", [("fisher", 1, True, epochs)])


def retrain_longer(name, kind, seed):
    """Accuracies by the length of a retraining, with the pruned weights and from scratch."""
    wanted = [
        (score, 1, False, epochs)
        for own, score in LENGTHENED.values()
        if own == kind
        for epochs in LENGTHS
    ]
    if kind == "plain":
        wanted += [("fisher", 1, True, epochs) for epochs in fresh_lengths(TASKS[name])]
    train_each(name, kind, seed, "lengths", wanted)


def penalise_late(name, kind, seed):
    """How the plain network is after a retraining with the penalty, all else being as in the
    retraining of the unpruned one."""
    task, data = TASKS[name], images(TASKS[name])
    network, record = whole_network(name, kind, seed, data)
    if kind != "plain" or "late" in record.content:
        return
    treatments = chosen(name)
    treatment = replace(treatments["plain"], strength=treatments["penalised"].strength)
    key, label = (seed, "retrain"), f"{record.path.stem} with the penalty"
    trained = train_network(network, data, task, treatment, task.retrain_epochs, key, label)
    record.content["late"] = {
        "treatment": asdict(treatment),
        "epochs": task.retrain_epochs,
        **health_of(network, data, trained),
    }
    record.save()


def train_each(name, kind, seed, part, wanted):
    """Train what `wanted` says: (score or None, steps of the cut, whether with fresh weights,
    epochs). part: of the record, where the results go."""
    if part == "retrained":
        need("an accuracy in 8 bits", *ONNX)
    task = TASKS[name]
    data = images(task)
    network, record = whole_network(name, kind, seed, data)
    entries = record.content.setdefault(part, [])
    known = [
        (entry["score"], entry["steps"], entry["scratch"], entry["epochs"]) for entry in entries
    ]
    for key in wanted:
        if key in known:
            continue
        small, entry = trained_again(task, network, *key, record, data)
        if part == "retrained" and not entry["scratch"]:
            entry["int8_top1"] = accuracy_in_8_bits(small, data)
        entries.append(entry)
        record.save()


def trained_again(task, network, score, steps, scratch, epochs, record, data):
    """(what is left of the network after a cut by that score, trained by the plain recipe; a dict
    of its results). score: a key of CHOICES, or None for the unpruned network. steps: of the cut.
    scratch: whether it has fresh weights."""
    seed = record.content["seed"]
    dense = measure_cost(network, data.image_size)["macs"]
    small = copy.deepcopy(network)
    if score:
        small = cut_network(network, score, RETRAINED, steps, seed, data)
        settle(small, data, seed)
    before = evaluate(small, data.test_batches())["top1"]
    left = 100 * measure_cost(small, data.image_size)["macs"] / dense
    if scratch:
        torch.manual_seed(seed)
        small = fresh_like(small, CLASSES)
    plain = chosen(record.content["task"])["plain"]
    label = f"{record.path.stem} {score}{' from scratch' if scratch else ''}"
    began = time.monotonic()
    trained = train_network(small, data, task, plain, epochs, (seed, "retrain"), label)
    return small, {
        "score": score,
        "steps": steps,
        "scratch": scratch,
        "epochs": epochs,
        "macs_left": left,
        "before_top1": before,
        "top1": trained.last["top1"],
        "seconds": time.monotonic() - began,
    }


# -------------------------------------------------------------------------------- the command line


WORK = {
    "cut": cut_all,
    "groups": check_all_groups,
    "retrain": retrain_all,
    "stepwise": retrain_stepwise,
    "scratch": train_from_scratch,
    "longer": retrain_longer,
    "late": penalise_late,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("search", *WORK, "report"))
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    args = parser.parse_args()
    pick_device("cpu")
    if args.what == "search":
        for name in args.tasks:
            print(name, search(name))
    elif args.what != "report":
        for name, seed, kind in itertools.product(args.tasks, args.seeds, args.kinds):
            WORK[args.what](name, kind, seed)
    write_page()


if __name__ == "__main__":
    main()
