"""Settings for you to edit: training recipes, presets, sweeps, the penalty's weight, momentum.

To add a preset, add one entry to PRESETS, or change another one as "cpu-drop" does; then
`python main.py --preset=NAME ...` uses it.
"""
from collections.abc import Sequence
from dataclasses import dataclass, replace

# ---------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Recipe:
    """One training: `lr[i]` for `epochs[i]` epochs, one pair after the other.

    `adam_lr` takes the place of `lr` under --optimizer=adam.
    """
    lr: Sequence[float]
    epochs: Sequence[int]
    weight_decay: float
    adam_lr: Sequence[float]

    def lr_of(self, optimizer="sgd"):
        return list(self.adam_lr if optimizer == "adam" else self.lr)

    def rates(self, optimizer="sgd"):
        """The learning rate of each epoch, as a list."""
        return [rate for rate, epochs in zip(self.lr_of(optimizer), self.epochs)
                for _ in range(epochs)]


@dataclass(frozen=True)
class Schedule:
    """The trainings of one job.

    base      trains the plain network, from scratch.
    ortho     trains with the penalty: from scratch in an Early-Bird job; from the base network,
              and again between rounds, in an iterative job.
    retrain   follows a pruning.
    between   takes the place of `retrain` in every round of `orthoreg` but the last.
    """
    base: Recipe
    ortho: Recipe
    retrain: Recipe
    between: Recipe = None


@dataclass(frozen=True)
class Preset:
    ebt: Schedule
    iterative: Schedule
    batch_size: int = 128


PRESETS = {
    # The recipes of the OrthoReg experiments: hours to days on a GPU.
    "paper": Preset(
        ebt=Schedule(
            base=Recipe(lr=[.1], epochs=[25], weight_decay=1e-4, adam_lr=[1e-3]),
            ortho=Recipe(lr=[.1, .01], epochs=[24, 1], weight_decay=0, adam_lr=[1e-3, 1e-4]),
            retrain=Recipe(lr=[.1, .01, .001], epochs=[60, 40, 40], weight_decay=1e-4,
                           adam_lr=[1e-3, 1e-4, 1e-5])),
        iterative=Schedule(
            base=Recipe(lr=[.1, .01, .001], epochs=[80, 40, 40], weight_decay=1e-4,
                        adam_lr=[1e-3, 1e-4, 1e-5]),
            ortho=Recipe(lr=[.1, .01, .001], epochs=[24, 1, 0], weight_decay=0,
                         adam_lr=[1e-3, 1e-4, 1e-5]),
            retrain=Recipe(lr=[.1, .01, .001], epochs=[40, 40, 20], weight_decay=1e-4,
                           adam_lr=[1e-3, 1e-4, 1e-5]),
            between=Recipe(lr=[.1, .01, .001], epochs=[35, 35, 10], weight_decay=1e-4,
                           adam_lr=[1e-3, 1e-4, 1e-5]))),
    # Minutes on a laptop's CPU, for a few thousand small images.
    "quick": Preset(
        ebt=Schedule(
            base=Recipe(lr=[.02, .002], epochs=[3, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4]),
            ortho=Recipe(lr=[.02, .002], epochs=[3, 1], weight_decay=0, adam_lr=[1e-3, 1e-4]),
            retrain=Recipe(lr=[.02, .002], epochs=[3, 1], weight_decay=1e-4,
                           adam_lr=[1e-3, 1e-4])),
        iterative=Schedule(
            base=Recipe(lr=[.02, .002], epochs=[3, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4]),
            ortho=Recipe(lr=[.02, .002], epochs=[2, 1], weight_decay=0, adam_lr=[1e-3, 1e-4]),
            retrain=Recipe(lr=[.02, .002], epochs=[3, 1], weight_decay=1e-4,
                           adam_lr=[1e-3, 1e-4]),
            between=Recipe(lr=[.02, .002], epochs=[1, 1], weight_decay=1e-4,
                           adam_lr=[1e-3, 1e-4])),
        batch_size=64),
    # The published recipes at about a tenth of their epochs, for the study in
    # pruned_nets/comparison: hours on two CPU cores.
    "cpu": Preset(
        ebt=Schedule(
            base=Recipe(lr=[.1], epochs=[10], weight_decay=1e-4, adam_lr=[1e-3]),
            ortho=Recipe(lr=[.1, .01], epochs=[9, 1], weight_decay=0, adam_lr=[1e-3, 1e-4]),
            retrain=Recipe(lr=[.1, .01, .001], epochs=[6, 4, 1], weight_decay=1e-4,
                           adam_lr=[1e-3, 1e-4, 1e-5])),
        iterative=Schedule(
            base=Recipe(lr=[.1, .01, .001], epochs=[8, 4, 4], weight_decay=1e-4,
                        adam_lr=[1e-3, 1e-4, 1e-5]),
            ortho=Recipe(lr=[.1, .01], epochs=[3, 1], weight_decay=0, adam_lr=[1e-3, 1e-4]),
            retrain=Recipe(lr=[.1, .01, .001], epochs=[4, 4, 2], weight_decay=1e-4,
                           adam_lr=[1e-3, 1e-4, 1e-5]),
            between=Recipe(lr=[.1, .01, .001], epochs=[4, 3, 1], weight_decay=1e-4,
                           adam_lr=[1e-3, 1e-4, 1e-5]))),
    # "cpu-drop" (below) at a fifth of all rates, at which a plain VGG-13 trains well.
    "cpu-low": Preset(
        ebt=Schedule(
            base=Recipe(lr=[.02, .002], epochs=[9, 1], weight_decay=1e-4, adam_lr=[2e-4, 2e-5]),
            ortho=Recipe(lr=[.02, .002], epochs=[9, 1], weight_decay=0, adam_lr=[2e-4, 2e-5]),
            retrain=Recipe(lr=[.02, .002, .0002], epochs=[6, 4, 1], weight_decay=1e-4,
                           adam_lr=[2e-4, 2e-5, 2e-6])),
        iterative=Schedule(
            base=Recipe(lr=[.02, .002, .0002], epochs=[8, 4, 4], weight_decay=1e-4,
                        adam_lr=[2e-4, 2e-5, 2e-6]),
            ortho=Recipe(lr=[.02, .002], epochs=[3, 1], weight_decay=0, adam_lr=[2e-4, 2e-5]),
            retrain=Recipe(lr=[.02, .002, .0002], epochs=[4, 4, 2], weight_decay=1e-4,
                           adam_lr=[2e-4, 2e-5, 2e-6]),
            between=Recipe(lr=[.02, .002, .0002], epochs=[4, 3, 1], weight_decay=1e-4,
                           adam_lr=[2e-4, 2e-5, 2e-6]))),
}

# "cpu", but the plain Early-Bird network, too, ends with an epoch at a tenth of the rate.
PRESETS["cpu-drop"] = replace(PRESETS["cpu"], ebt=replace(PRESETS["cpu"].ebt, base=Recipe(
    lr=[.1, .01], epochs=[9, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4])))

# Comparisons for --sweep: flag -> value, or list of values; every combination is an experiment.
SWEEPS = {
    # The published table. Days on a GPU.
    "paper": {"out": "sweeps/paper", "data_path": "CIFAR100", "ebt": True,
              "model": ["resnet", "vgg", "mobilenet"],
              "pruning_type": ["orthoreg", "fisher", "bn"], "prune_percent": [25, 50, 75],
              "seed": 0},
    # The same question where a CPU can answer it: 10 of CIFAR-100's classes, hours.
    "cpu": {"out": "sweeps/cpu", "data_path": "data/cifar100-10", "preset": "cpu", "ebt": True,
            "val_percent": 10, "seed": [0, 1], "model": ["vgg", "mobilenet"],
            "pruning_type": ["orthoreg", "fisher", "bn", "l1", "random"],
            "prune_percent": [25, 50, 75], "control": [False, "unpruned"]},
    # Does the last epoch at a lower rate explain the margin? In "cpu" only the penalty has one.
    "cpu-drop": {"out": "sweeps/cpu-drop", "data_path": "data/cifar100-10", "preset": "cpu-drop",
                 "ebt": True, "val_percent": 10, "seed": [0, 1], "model": "vgg",
                 "pruning_type": ["orthoreg", "fisher", "bn"], "prune_percent": 75,
                 "control": [False, "unpruned", "scratch"]},
    # The same at a fifth of all rates, where a plain VGG-13 trains well without a warm-up.
    "cpu-low": {"out": "sweeps/cpu-low", "data_path": "data/cifar100-10", "preset": "cpu-low",
                "ebt": True, "val_percent": 10, "seed": [0, 1], "model": "vgg",
                "pruning_type": ["orthoreg", "fisher", "bn"], "prune_percent": 75,
                "control": [False, "unpruned"]},
}

# The penalty's weight, lambda in loss = cross-entropy + lambda * sum_l c_l * |G_l - I|_1; that of
# all networks that have no entry under their --model is PENALTY_OF_OTHERS.
PENALTY = {"vgg": 1e-2, "mobilenet": 1e-3, "resnet": 1e-2, "resnet-56": 1e-2}
PENALTY_OF_OTHERS = 1e-2

MOMENTUM = 0.9  # of SGD

# -------------------------------------------------------------------- names that the flags accept

MODELS = {"vgg": "VGG-13", "mobilenet": "MobileNet-V1", "resnet": "ResNet-34",
          "resnet-56": "ResNet-56"}


def title_of(model):
    """What a network is called in what is printed; torchvision's, timm's and a user's own as they
    are."""
    return MODELS.get(model, model)


def penalty_of(model):
    return PENALTY.get(model, PENALTY_OF_OTHERS)


# What pixels from 0 to 1 are normalised with: means, then standard deviations, of red, green, blue.
NORMALIZATIONS = {"half": (.5,) * 6,  # to -1..1
                  "cifar": (.4914, .4822, .4465, .2023, .1994, .2010),
                  "imagenet": (.485, .456, .406, .229, .224, .225)}

BUDGETS = {"filters": "filters", "macs": "multiply-adds", "params": "parameters"}
