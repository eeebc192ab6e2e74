"""Settings for you to edit: training recipes, presets, sweeps, the penalty's weight, momentum.

To add a preset, add an entry to PRESETS; `python main.py --preset=NAME ...` uses it. One that is
nearly like another needs only what it changes:

    PRESETS["mine"] = replace(PRESETS["quick"], batch_size=32, ebt=replace(
        PRESETS["quick"].ebt, retrain=Recipe(lr=[.02], epochs=[12], weight_decay=1e-4,
                                             adam_lr=[1e-3], warmup=1, schedule="cosine")))
"""

import math
from bisect import bisect
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate

# ---------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Recipe:
    """One training: `lr[i]` for `epochs[i]` epochs, one pair after the other.

    adam_lr          takes the place of `lr` under --optimizer=adam.
    warmup           in the first so many of these epochs the rate rises linearly from 0.
    schedule         "steps", or "cosine": after the warm-up the one rate falls to 0 along half a
                     cosine wave (Loshchilov and Hutter 2017).
    label_smoothing  the share of each label that all classes get alike (Szegedy et al. 2016).
    temperature      of the logits that --distill compares (Hinton et al. 2015).
    """

    lr: list[float]
    epochs: list[int]
    weight_decay: float
    adam_lr: list[float]
    warmup: float = 0
    schedule: str = "steps"
    label_smoothing: float = 0
    temperature: float = 4

    def lr_of(self, optimizer="sgd"):
        return list(self.adam_lr if optimizer == "adam" else self.lr)

    def rate(self, epoch, optimizer="sgd"):
        """The learning rate after `epoch` epochs, which may be a fraction, below their sum."""
        rates, total = self.lr_of(optimizer), sum(self.epochs)
        if self.schedule == "cosine":
            gone = max(0, epoch - self.warmup) / (total - self.warmup)
            rate = rates[0] * (1 + math.cos(math.pi * gone)) / 2
        else:
            rate = rates[bisect(list(accumulate(self.epochs)), epoch)]
        return rate * min(1, epoch / self.warmup) if self.warmup else rate

    def rates(self, optimizer="sgd"):
        """The learning rate in the middle of each epoch, as a list."""
        return [self.rate(epoch + 0.5, optimizer) for epoch in range(sum(self.epochs))]


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
    between: Recipe | None = None

    def plain(self):
        """As a dict, in which settings of recipes are left out that have their default."""
        defaults = vars(Recipe((), (), 0, ()))
        return {
            phase: recipe
            and {
                name: value
                for name, value in recipe.items()
                if name in ("lr", "epochs", "weight_decay", "adam_lr") or value != defaults[name]
            }
            for phase, recipe in asdict(self).items()
        }


@dataclass(frozen=True)
class Preset:
    """The recipes of both jobs. flags: name of a flag -> its value where it is not given."""

    ebt: Schedule
    iterative: Schedule
    batch_size: int = 128
    flags: dict[str, object] = field(default_factory=dict)


PRESETS = {
    # The recipes of the OrthoReg experiments: hours to days on a GPU.
    "paper": Preset(
        ebt=Schedule(
            base=Recipe(lr=[0.1], epochs=[25], weight_decay=1e-4, adam_lr=[1e-3]),
            ortho=Recipe(lr=[0.1, 0.01], epochs=[24, 1], weight_decay=0, adam_lr=[1e-3, 1e-4]),
            retrain=Recipe(
                lr=[0.1, 0.01, 0.001],
                epochs=[60, 40, 40],
                weight_decay=1e-4,
                adam_lr=[1e-3, 1e-4, 1e-5],
            ),
        ),
        iterative=Schedule(
            base=Recipe(
                lr=[0.1, 0.01, 0.001],
                epochs=[80, 40, 40],
                weight_decay=1e-4,
                adam_lr=[1e-3, 1e-4, 1e-5],
            ),
            ortho=Recipe(
                lr=[0.1, 0.01, 0.001], epochs=[24, 1, 0], weight_decay=0, adam_lr=[1e-3, 1e-4, 1e-5]
            ),
            retrain=Recipe(
                lr=[0.1, 0.01, 0.001],
                epochs=[40, 40, 20],
                weight_decay=1e-4,
                adam_lr=[1e-3, 1e-4, 1e-5],
            ),
            between=Recipe(
                lr=[0.1, 0.01, 0.001],
                epochs=[35, 35, 10],
                weight_decay=1e-4,
                adam_lr=[1e-3, 1e-4, 1e-5],
            ),
        ),
    ),
    # Minutes on a laptop's CPU, for a few thousand small images.
    "quick": Preset(
        ebt=Schedule(
            base=Recipe(lr=[0.02, 0.002], epochs=[3, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4]),
            ortho=Recipe(lr=[0.02, 0.002], epochs=[3, 1], weight_decay=0, adam_lr=[1e-3, 1e-4]),
            retrain=Recipe(
                lr=[0.02, 0.002], epochs=[3, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4]
            ),
        ),
        iterative=Schedule(
            base=Recipe(lr=[0.02, 0.002], epochs=[3, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4]),
            ortho=Recipe(lr=[0.02, 0.002], epochs=[2, 1], weight_decay=0, adam_lr=[1e-3, 1e-4]),
            retrain=Recipe(
                lr=[0.02, 0.002], epochs=[3, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4]
            ),
            between=Recipe(
                lr=[0.02, 0.002], epochs=[1, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4]
            ),
        ),
        batch_size=64,
    ),
}

# For networks that others have trained (--init): small rates, which leave most of it as it is.
_FINETUNE = Recipe(
    lr=[0.01],
    epochs=[8],
    weight_decay=1e-4,
    adam_lr=[1e-4],
    warmup=1,
    schedule="cosine",
    label_smoothing=0.1,
)
_FINETUNE = Schedule(
    base=_FINETUNE,
    retrain=_FINETUNE,
    between=replace(_FINETUNE, epochs=[4]),
    ortho=replace(_FINETUNE, weight_decay=0),
)
# How filters are chosen then: what gave the best networks in pruned_nets/comparison/practice.md.
PRESETS["finetune"] = Preset(
    ebt=_FINETUNE,
    iterative=_FINETUNE,
    batch_size=64,
    flags={
        "ranking": "measured",
        "residual": "coupled",
        "score_steps": 4,
        "bn_images": 512,
        "choose": "last",
    },
)

# Comparisons for --sweep: flag -> value, or list of values; every combination is an experiment.
SWEEPS = {
    # The published table. Days on a GPU.
    "paper": {
        "out": "sweeps/paper",
        "data_path": "CIFAR100",
        "ebt": True,
        "model": ["resnet", "vgg", "mobilenet"],
        "pruning_type": ["orthoreg", "fisher", "bn"],
        "prune_percent": [25, 50, 75],
        "seed": 0,
    },
}

# The penalty's weight, lambda in loss = cross-entropy + lambda * sum_l c_l * |G_l - I|_1; that of
# all networks that have no entry under their --model is PENALTY_OF_OTHERS.
PENALTY = {"vgg": 1e-2, "mobilenet": 1e-3, "resnet": 1e-2, "resnet-56": 1e-2}
PENALTY_OF_OTHERS = 1e-2
# What it penalises: "convolutions", as published, or "hidden", hidden linear layers, too.
PENALTY_LAYERS = "convolutions"

MOMENTUM = 0.9  # of SGD

# -------------------------------------------------------------------- names that the flags accept

MODELS = {
    "vgg": "VGG-13",
    "mobilenet": "MobileNet-V1",
    "resnet": "ResNet-34",
    "resnet-56": "ResNet-56",
}


def title_of(model: str) -> str:
    """What a network is called in what is printed; torchvision's, timm's and a user's own as they
    are."""
    return MODELS.get(model, model)


def penalty_of(model: str):
    return PENALTY.get(model, PENALTY_OF_OTHERS)


# What pixels from 0 to 1 are normalised with: means, then standard deviations, of red, green, blue.
NORMALIZATIONS = {
    "half": (0.5,) * 6,  # to -1..1
    "cifar": (0.4914, 0.4822, 0.4465, 0.2023, 0.1994, 0.2010),
    "imagenet": (0.485, 0.456, 0.406, 0.229, 0.224, 0.225),
}

AUGMENTS = {
    "shift": "shifted by up to an eighth of the size",
    "crop": "a random part, resized",
    "none": "as it is",
}

INTERPOLATIONS = "bilinear", "bicubic"  # how images are scaled

RANKINGS = {
    "global": "one list of all layers' scores as they are",
    "layer": "the same share of each layer",
    "mean": "one list of scores divided by their layer's mean",
    "norm": "one list of scores divided by their layer's L2 norm",
    "measured": "scores rank the filters of a layer; layers are compared by how much the "
    "network's answers change without their lowest, measured for each",
}

BUDGETS = {
    "filters": "filters",
    "macs": "multiply-adds",
    "params": "parameters",
    "latency": "time for a batch",
}
