"""What is compared by claim.py, and what its records say.

Results("vgg").retrained("penalised", "fisher")      # {seed: accuracy}
"""

import json
from dataclasses import dataclass, replace

import torch
from places import HERE

from common.device import environment
from common.files import to_json, write_atomically
from config import Recipe, title_of
from lab.comparison import minus
from lab.groups import KINDS as GROUP_KINDS

RECORDS = HERE / "claim"

KINDS = "plain", "penalised", "zero"
# What chooses the filters -> the method that scores them, and the ranking of their layers.
CHOICES = {
    "fisher": ("fisher", "global"),
    "bn": ("bn", "global"),
    "random": ("random", "global"),
    "fisher by layer": ("fisher", "layer"),
}
GONE = 5, 10, 25, 50, 75  # percent of the multiply-adds, each cut in one step
STEPPED = {50: (2, 4, 8), 75: (2, 4, 8)}  # ... -> the steps in which `fisher` cuts as much, too
RETRAINED = 75  # percent of the multiply-adds that are gone before a retraining
MOST_STEPS = STEPPED[RETRAINED][-1]
LENGTHS = 11, 22, 44  # epochs of retraining, to see when it overtakes a training from scratch
# What is retrained so long: its name in the study -> kind of network, score.
LENGTHENED = {
    "orthoreg": ("penalised", "fisher"),
    "fisher": ("plain", "fisher"),
    "random": ("plain", "random"),
}
SIZES = 1, 16, 64, 256, 384  # filters of a group, drawn from all of the network
SEEDS = 0, 1, 2, 3, 4


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
        epochs=60,
        search_epochs=20,
        retrain_epochs=20,
    ),
    "resnet-56": Task(
        model="resnet-56",
        width=0.5,
        rates=(0.02, 0.05),
        strengths=(0.01, 0.1),
        epochs=90,
        search_epochs=20,
        retrain_epochs=20,
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


def fresh_lengths(task):
    """Epochs of a training from scratch, beside LENGTHS of a retraining: the same, and the longest
    with the epochs that the unpruned network had before."""
    return *LENGTHS, task.epochs + LENGTHS[-1]


def tried(task):
    """Kind -> the Treatments that are searched, equally many of both."""
    plain = [Treatment(rate, 0, decay) for rate in task.rates for decay in (1e-4, 5e-4)]
    # As published, a training with the penalty has no weight decay.
    penalised = [Treatment(rate, strength, 0) for rate in task.rates for strength in task.strengths]
    return {"plain": plain, "penalised": penalised}


# --------------------------------------------------------------------------------------- records


class Record:
    """A dict in a file of claim/."""

    def __init__(self, name):
        self.path = RECORDS / f"{name}.json"
        self.content = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def save(self):
        self.content["environment"] = environment(torch.device("cpu"))
        RECORDS.mkdir(exist_ok=True)
        write_atomically({self.path: to_json(self.content)})


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


RANDOM, WITHIN = GROUP_KINDS["network", "random"], GROUP_KINDS["layer", "random"]
ESTIMATES = {"scores": "sum of scores", "changes": "sum of single changes"}
MEASURES = {"error": "relative error", "gap": "absolute error", "rank": "rank correlation"}


class Results:
    """The records of one network, and what tables ask of them."""

    def __init__(self, name):
        self.name, self.task, self.records = name, TASKS[name], {}
        for path in sorted(RECORDS.glob(f"{name}_*_*.json")):
            content = json.loads(path.read_text())
            self.records[content["kind"], content["seed"]] = content

    def title(self):
        task = self.task
        small = "" if task.image_size == 32 else f", {task.image_size} pixels"
        return f"{title_of(task.model)}, widths × {task.width:g}{small}, {task.epochs} epochs"

    def cut(self, kind, score, gone, steps=1, figure="settled_top1"):
        """{seed: a figure of that cut}."""
        values = {}
        for (own, seed), content in self.records.items():
            for entry in content["cuts"]:
                is_it = (entry["score"], entry["gone"], entry["steps"]) == (score, gone, steps)
                if own == kind and is_it:
                    values[seed] = entry[figure]
        return values

    def area(self, kind, score, figure="settled_top1"):
        """{seed: the mean of a figure right after the cuts, over the share that is gone}."""
        curves = {gone: self.cut(kind, score, gone, figure=figure) for gone in GONE}
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

    def of_groups(self, kind, size, figure, groups=RANDOM):
        """{seed: a figure of a lab.record.GroupSize}. groups: which ones, one of GROUP_KINDS."""
        values = {}
        for (own, seed), content in self.records.items():
            for entry in content.get("groups", {"kinds": {}})["kinds"].get(groups, ()):
                if own == kind and entry["size"] == size and entry[figure] is not None:
                    values[seed] = entry[figure]
        return values

    def retrained(self, kind, score, scratch=False, steps=1, figure="top1"):
        """{seed: accuracy}. score: None for the unpruned network. steps: of the cut."""
        values = {}
        for (own, seed), content in self.records.items():
            for entry in content["retrained"]:
                key = entry["score"], entry["scratch"], entry["steps"]
                if own == kind and key == (score, scratch, steps):
                    values[seed] = entry[figure]
        return values

    def gain_retrained(self, kind, steps):
        """{seed: what so many steps are ahead of one after a retraining}."""
        return minus(self.retrained(kind, "fisher", steps=steps), self.retrained(kind, "fisher"))

    def beyond_random(self, kind, score, figure=None):
        """{seed: what a score is ahead of `random` by `area` or, as usual, `retrained`}."""
        figure = figure or self.retrained
        return minus(figure(kind, score), figure(kind, "random"))

    def beyond_scratch(self, kind):
        """{seed: what `fisher`'s retrained network is ahead of its architecture from scratch}."""
        return minus(self.retrained(kind, "fisher"), self.retrained(kind, "fisher", True))

    def beyond_unpruned(self, kind):
        """{seed: what `fisher`'s retrained network is ahead of the unpruned one}."""
        return minus(self.retrained(kind, "fisher"), self.retrained(kind, None))

    def in_8_bits(self, kind, score):
        """{seed: what 8 bits add to the accuracy after a retraining}. score: as above."""
        return minus(self.retrained(kind, score, figure="int8_top1"), self.retrained(kind, score))

    def late(self, figure):
        """{seed: a figure of the plain network, retrained with the penalty}"""
        return {
            seed: content["late"][figure]
            for (_, seed), content in self.records.items()
            if "late" in content
        }

    def after(self, kind, score, scratch, epochs, figure="top1"):
        """{seed: accuracy after a retraining so long, or its figure "work": the multiply-adds of
        all training, in epochs of the unpruned network}."""
        values = {}
        for (own, seed), content in self.records.items():
            for entry in content.get("lengths", ()):
                key = entry["score"], entry["scratch"], entry["epochs"]
                if own != kind or key != (score, scratch, epochs):
                    continue
                work = epochs * entry["macs_left"] / 100 + (0 if scratch else self.task.epochs)
                values[seed] = work if figure == "work" else entry[figure]
        return values

    def lengthened(self):
        """{its name in the study: what `after` is asked for it, by the epochs of retraining}"""
        return {
            name: [(*key, False, epochs) for epochs in LENGTHS] for name, key in LENGTHENED.items()
        }

    def fresh(self):
        """The same for trainings from scratch of the architecture that `fisher` leaves of the plain
        network."""
        return [("plain", "fisher", True, epochs) for epochs in fresh_lengths(self.task)]

    def searched(self):
        """The entries of the search."""
        return Record(f"{self.name}_search").content["tried"]

    def health(self, kind, figure):
        """{seed: a figure of the unpruned network}."""
        return {
            seed: content["health"][figure]
            for (own, seed), content in self.records.items()
            if own == kind
        }


def all_results():
    """The Results of each network whose three kinds have been cut."""
    each = [Results(name) for name in TASKS]
    return [results for results in each if all(results.area(kind, "fisher") for kind in KINDS)]
