"""Settings for you to edit: training recipes, presets, sweeps, the penalty's weight, momentum.

To add a preset, add an entry to PRESETS; `python main.py --preset=NAME ...` uses it. One that is
nearly like another needs only what it changes:

    PRESETS["mine"] = replace(PRESETS["quick"], batch_size=32, ebt=replace(
        PRESETS["quick"].ebt, retrain=Recipe(lr=[.02], epochs=[12], weight_decay=1e-4,
                                             adam_lr=[1e-3], warmup=1, schedule="cosine")))
"""

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
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

    lr: Sequence[float]
    epochs: Sequence[int]
    weight_decay: float
    adam_lr: Sequence[float]
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
    between: Recipe = None

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
    flags: Mapping[str, object] = field(default_factory=dict)


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
    # The published recipes with 10 and 11 epochs instead of 25 and 140, for the study in
    # pruned_nets/comparison: hours on two CPU cores.
    "cpu": Preset(
        ebt=Schedule(
            base=Recipe(lr=[0.1], epochs=[10], weight_decay=1e-4, adam_lr=[1e-3]),
            ortho=Recipe(lr=[0.1, 0.01], epochs=[9, 1], weight_decay=0, adam_lr=[1e-3, 1e-4]),
            retrain=Recipe(
                lr=[0.1, 0.01, 0.001],
                epochs=[6, 4, 1],
                weight_decay=1e-4,
                adam_lr=[1e-3, 1e-4, 1e-5],
            ),
        ),
        iterative=Schedule(
            base=Recipe(
                lr=[0.1, 0.01, 0.001],
                epochs=[8, 4, 4],
                weight_decay=1e-4,
                adam_lr=[1e-3, 1e-4, 1e-5],
            ),
            ortho=Recipe(lr=[0.1, 0.01], epochs=[3, 1], weight_decay=0, adam_lr=[1e-3, 1e-4]),
            retrain=Recipe(
                lr=[0.1, 0.01, 0.001],
                epochs=[4, 4, 2],
                weight_decay=1e-4,
                adam_lr=[1e-3, 1e-4, 1e-5],
            ),
            between=Recipe(
                lr=[0.1, 0.01, 0.001],
                epochs=[4, 3, 1],
                weight_decay=1e-4,
                adam_lr=[1e-3, 1e-4, 1e-5],
            ),
        ),
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

# "cpu", but the plain Early-Bird network, too, ends with an epoch at a tenth of the rate.
PRESETS["cpu-drop"] = replace(
    PRESETS["cpu"],
    ebt=replace(
        PRESETS["cpu"].ebt,
        base=Recipe(lr=[0.1, 0.01], epochs=[9, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4]),
    ),
)


def _each(preset, change):
    """A preset whose recipes are changed: change(recipe) -> fields of it."""
    return replace(
        preset,
        **{
            job: replace(
                schedule,
                **{
                    phase: replace(recipe, **change(recipe))
                    for phase, recipe in vars(schedule).items()
                    if recipe
                },
            )
            for job, schedule in (("ebt", preset.ebt), ("iterative", preset.iterative))
        },
    )


def _warmed_up(preset, epochs):
    """A preset in whose trainings the rate rises in the first epochs."""
    return _each(preset, lambda _: {"warmup": epochs})


def _slower(preset, times):
    """A preset whose rates are divided."""
    return _each(
        preset,
        lambda recipe: {
            name: [float(f"{rate / times:.9g}") for rate in getattr(recipe, name)]
            for name in ("lr", "adam_lr")
        },
    )


# "cpu-drop" at a fifth of all rates; and at a tenth, with a warm-up, where a plain VGG-13 trains
# well.
PRESETS["cpu-low"] = _slower(PRESETS["cpu-drop"], 5)
PRESETS["cpu-gentle"] = _warmed_up(_slower(PRESETS["cpu-drop"], 10), 2)
# "cpu" with a warm-up of two epochs.
PRESETS["cpu-warmup"] = _warmed_up(PRESETS["cpu"], 2)

# Iterative jobs of as many epochs in 1, 2 and 4 rounds: 24 after the plain network's ten. Of each
# round's but the last, orthoreg's last four have the penalty, as have four before the first round.
for _rounds, _retrain, _between in (
    (1, [12, 8, 4], [12, 8, 0]),
    (2, [6, 4, 2], [4, 3, 1]),
    (4, [3, 2, 1], [1, 1, 0]),
):
    _iterative = replace(
        PRESETS["cpu"].iterative,
        **{
            phase: replace(PRESETS["cpu"].iterative.retrain, epochs=epochs)
            for phase, epochs in (("retrain", _retrain), ("between", _between))
        },
    )
    _preset = _warmed_up(replace(PRESETS["cpu"], iterative=_iterative), 1)
    PRESETS[f"cpu-rounds-{_rounds}"] = replace(
        PRESETS["cpu"], iterative=replace(_preset.iterative, base=PRESETS["cpu-warmup"].ebt.base)
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
    # The same question where a CPU can answer it: 10 of CIFAR-100's classes, hours.
    "cpu": {
        "out": "sweeps/cpu",
        "data_path": "data/cifar100-10",
        "preset": "cpu",
        "ebt": True,
        "val_percent": 10,
        "seed": [0, 1],
        "model": ["vgg", "mobilenet"],
        "pruning_type": ["orthoreg", "fisher", "bn", "l1", "random"],
        "prune_percent": [25, 50, 75],
        "control": [False, "unpruned"],
    },
    # Does the last epoch at a lower rate explain the margin? In "cpu" only the penalty has one.
    "cpu-drop": {
        "out": "sweeps/cpu-drop",
        "data_path": "data/cifar100-10",
        "preset": "cpu-drop",
        "ebt": True,
        "val_percent": 10,
        "seed": [0, 1],
        "model": "vgg",
        "pruning_type": ["orthoreg", "fisher", "bn"],
        "prune_percent": 75,
        "control": [False, "unpruned", "scratch"],
    },
    # The same at a fifth of all rates.
    "cpu-low": {
        "out": "sweeps/cpu-low",
        "data_path": "data/cifar100-10",
        "preset": "cpu-low",
        "ebt": True,
        "val_percent": 10,
        "seed": [0, 1],
        "model": "vgg",
        "pruning_type": ["orthoreg", "fisher", "bn"],
        "prune_percent": 75,
        "control": [False, "unpruned"],
    },
}

# The rest of the study in pruned_nets/comparison; minutes on a GPU, a day on two CPU cores.
_STUDY = {
    "data_path": "data/cifar100-10",
    "ebt": True,
    "val_percent": 10,
    "seed": [0, 1, 2],
    "deterministic": True,
}
_WARMUP = {**_STUDY, "out": "sweeps/cpu-warmup", "preset": "cpu-warmup"}
_GENTLE = {
    **_STUDY,
    "out": "sweeps/cpu-gentle",
    "preset": "cpu-gentle",
    "model": "vgg",
    "prune_percent": 75,
    "penalty": 0.1,
}
_THREE = ["vgg", "mobilenet", "resnet-56"]
_FOUR = ["orthoreg", "fisher", "bn", "random"]
SWEEPS |= {
    # "cpu" for the network that is missing there.
    "cpu-resnet": {
        **_STUDY,
        "out": "sweeps/cpu-resnet",
        "preset": "cpu",
        "model": "resnet",
        "pruning_type": ["orthoreg", "fisher", "bn"],
        "prune_percent": [50, 75],
        "control": [False, "unpruned"],
    },
    # What is orthonormality worth where every training has a warm-up?
    "cpu-warmup": {
        **_WARMUP,
        "model": _THREE,
        "pruning_type": _FOUR,
        "prune_percent": 75,
        "control": [False, "unpruned"],
    },
    "cpu-warmup-scratch": {
        **_WARMUP,
        "model": _THREE,
        "pruning_type": ["orthoreg", "fisher"],
        "prune_percent": 75,
        "control": "scratch",
    },
    # The schedule of the penalty without it: what is the penalty itself worth?
    "cpu-warmup-zero": {
        **_WARMUP,
        "model": _THREE,
        "pruning_type": "orthoreg",
        "penalty": 0,
        "prune_percent": 75,
        "control": [False, "unpruned"],
    },
    # Rates at which a plain VGG-13 trains well, too. Rate times lambda is as published.
    "cpu-gentle": {**_GENTLE, "pruning_type": _FOUR, "control": [False, "unpruned"]},
    "cpu-gentle-scratch": {**_GENTLE, "pruning_type": ["orthoreg", "fisher"], "control": "scratch"},
    # "cpu-warmup" at equal multiply-adds: methods leave very different shares of them.
    "cpu-macs": {
        **_WARMUP,
        "out": "sweeps/cpu-macs",
        "model": _THREE,
        "pruning_type": _FOUR,
        "budget": "macs",
        "prune_percent": 75,
    },
    # Filters of a residual stream, one by one or together.
    "cpu-residual": {
        **_WARMUP,
        "out": "sweeps/cpu-macs",
        "model": "resnet-56",
        "budget": "macs",
        "pruning_type": ["orthoreg", "fisher"],
        "prune_percent": 50,
        "residual": ["single", "coupled"],
    },
    # Published lambda times 0, 0.1, 1 and 10.
    "cpu-penalty": {
        **_WARMUP,
        "out": "sweeps/cpu-penalty",
        "model": "resnet-56",
        "pruning_type": "orthoreg",
        "prune_percent": 75,
        "penalty": [0, 0.001, 0.01, 0.1],
    },
    # As many epochs in fewer and more rounds.
    **{
        f"cpu-rounds-{rounds}": {
            **_STUDY,
            "ebt": False,
            "out": f"sweeps/cpu-rounds-{rounds}",
            "preset": f"cpu-rounds-{rounds}",
            "n_rounds": rounds,
            "model": "resnet-56",
            "pruning_type": ["orthoreg", "fisher"],
            "prune_percent": 75,
        }
        for rounds in (1, 2, 4)
    },
}

# The penalty's weight, lambda in loss = cross-entropy + lambda * sum_l c_l * |G_l - I|_1; that of
# all networks that have no entry under their --model is PENALTY_OF_OTHERS.
PENALTY = {"vgg": 1e-2, "mobilenet": 1e-3, "resnet": 1e-2, "resnet-56": 1e-2}
PENALTY_OF_OTHERS = 1e-2

MOMENTUM = 0.9  # of SGD

# -------------------------------------------------------------------- names that the flags accept

MODELS = {
    "vgg": "VGG-13",
    "mobilenet": "MobileNet-V1",
    "resnet": "ResNet-34",
    "resnet-56": "ResNet-56",
}


def title_of(model):
    """What a network is called in what is printed; torchvision's, timm's and a user's own as they
    are."""
    return MODELS.get(model, model)


def penalty_of(model):
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
