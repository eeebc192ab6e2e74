"""The presets and sweeps of this study, which --preset and --sweep find here.

They are written as those in config.py are.
"""

from dataclasses import replace

from config import Preset, Recipe, Schedule

PRESETS = {
    # The published recipes with 10 and 11 epochs instead of 25 and 140: hours on two CPU cores.
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

# "cpu", but the plain Early-Bird network, too, ends with an epoch at a tenth of the rate.
PRESETS["cpu-drop"] = replace(
    PRESETS["cpu"],
    ebt=replace(
        PRESETS["cpu"].ebt,
        base=Recipe(lr=[0.1, 0.01], epochs=[9, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4]),
    ),
)


def each_recipe(preset, change):
    """A preset whose recipes are changed: change(recipe) -> recipe."""

    def changed(schedule):
        recipes = {phase: change(recipe) for phase, recipe in vars(schedule).items() if recipe}
        return replace(schedule, **recipes)

    return replace(preset, ebt=changed(preset.ebt), iterative=changed(preset.iterative))


def warmed_up(preset, epochs):
    """A preset in whose trainings the rate rises in the first epochs."""

    def change(recipe):
        return replace(recipe, warmup=epochs)

    return each_recipe(preset, change)


def slower(preset, times):
    """A preset whose rates are divided."""

    def divided(rates):
        return [float(f"{rate / times:.9g}") for rate in rates]

    def change(recipe):
        return replace(recipe, lr=divided(recipe.lr), adam_lr=divided(recipe.adam_lr))

    return each_recipe(preset, change)


# "cpu-drop" at a fifth of all rates; and at a tenth, with a warm-up, where a plain VGG-13 trains
# well.
PRESETS["cpu-low"] = slower(PRESETS["cpu-drop"], 5)
PRESETS["cpu-gentle"] = warmed_up(slower(PRESETS["cpu-drop"], 10), 2)
# "cpu" with a warm-up of two epochs.
PRESETS["cpu-warmup"] = warmed_up(PRESETS["cpu"], 2)


def in_rounds(retrain, between):
    """A preset with so many epochs in the trainings of its last round, and of those before."""
    cpu = PRESETS["cpu"]
    recipe = cpu.iterative.retrain
    iterative = replace(
        cpu.iterative,
        retrain=replace(recipe, epochs=retrain),
        between=replace(recipe, epochs=between),
    )
    warm = warmed_up(replace(cpu, iterative=iterative), 1).iterative
    return replace(cpu, iterative=replace(warm, base=PRESETS["cpu-warmup"].ebt.base))


# Iterative jobs of as many epochs in 1, 2 and 4 rounds: 24 after the plain network's ten. Of each
# round's but the last, orthoreg's last four have the penalty, as have four before the first round.
PRESETS |= {
    "cpu-rounds-1": in_rounds(retrain=[12, 8, 4], between=[12, 8, 0]),
    "cpu-rounds-2": in_rounds(retrain=[6, 4, 2], between=[4, 3, 1]),
    "cpu-rounds-4": in_rounds(retrain=[3, 2, 1], between=[1, 1, 0]),
}

SWEEPS = {
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

# The rest takes minutes on a GPU, a day on two CPU cores.
STUDY = {
    "data_path": "data/cifar100-10",
    "ebt": True,
    "val_percent": 10,
    "seed": [0, 1, 2],
    "deterministic": True,
}
WARMUP = {**STUDY, "out": "sweeps/cpu-warmup", "preset": "cpu-warmup"}
GENTLE = {
    **STUDY,
    "out": "sweeps/cpu-gentle",
    "preset": "cpu-gentle",
    "model": "vgg",
    "prune_percent": 75,
    "penalty": 0.1,
}
THREE = ["vgg", "mobilenet", "resnet-56"]
FOUR = ["orthoreg", "fisher", "bn", "random"]
SWEEPS |= {
    # "cpu" for the network that is missing there.
    "cpu-resnet": {
        **STUDY,
        "out": "sweeps/cpu-resnet",
        "preset": "cpu",
        "model": "resnet",
        "pruning_type": ["orthoreg", "fisher", "bn"],
        "prune_percent": [50, 75],
        "control": [False, "unpruned"],
    },
    # What is orthonormality worth where every training has a warm-up?
    "cpu-warmup": {
        **WARMUP,
        "model": THREE,
        "pruning_type": FOUR,
        "prune_percent": 75,
        "control": [False, "unpruned"],
    },
    "cpu-warmup-scratch": {
        **WARMUP,
        "model": THREE,
        "pruning_type": ["orthoreg", "fisher"],
        "prune_percent": 75,
        "control": "scratch",
    },
    # The schedule of the penalty without it: what is the penalty itself worth?
    "cpu-warmup-zero": {
        **WARMUP,
        "model": THREE,
        "pruning_type": "orthoreg",
        "penalty": 0,
        "prune_percent": 75,
        "control": [False, "unpruned"],
    },
    # Rates at which a plain VGG-13 trains well, too. Rate times lambda is as published.
    "cpu-gentle": {**GENTLE, "pruning_type": FOUR, "control": [False, "unpruned"]},
    "cpu-gentle-scratch": {**GENTLE, "pruning_type": ["orthoreg", "fisher"], "control": "scratch"},
    # "cpu-warmup" at equal multiply-adds: methods leave very different shares of them.
    "cpu-macs": {
        **WARMUP,
        "out": "sweeps/cpu-macs",
        "model": THREE,
        "pruning_type": FOUR,
        "budget": "macs",
        "prune_percent": 75,
    },
    # Filters of a residual stream, one by one or together.
    "cpu-residual": {
        **WARMUP,
        "out": "sweeps/cpu-macs",
        "model": "resnet-56",
        "budget": "macs",
        "pruning_type": ["orthoreg", "fisher"],
        "prune_percent": 50,
        "residual": ["single", "coupled"],
    },
    # Published lambda times 0, 0.1, 1 and 10.
    "cpu-penalty": {
        **WARMUP,
        "out": "sweeps/cpu-penalty",
        "model": "resnet-56",
        "pruning_type": "orthoreg",
        "prune_percent": 75,
        "penalty": [0, 0.001, 0.01, 0.1],
    },
    # As many epochs in fewer and more rounds.
    **{
        f"cpu-rounds-{rounds}": {
            **STUDY,
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
