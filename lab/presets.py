"""The presets of config.py and of the study: checked, scaled by --epochs and --lr, in words."""

import runpy
from dataclasses import replace
from pathlib import Path

from common.errors import InputError
from common.schema import check, check_fields
from common.terminal import counted
from config import MOMENTUM, PENALTY, PENALTY_OF_OTHERS, PRESETS, SWEEPS, Preset, Schedule

STUDY = Path(__file__).resolve().parent.parent / "pruned_nets" / "comparison" / "presets.py"


def add_study():
    """Add the presets and sweeps of the study; an installed package has none. Where config.py has
    an entry of the same name, that counts."""
    if not STUDY.is_file():
        return
    study = runpy.run_path(str(STUDY))
    for known, more in ((PRESETS, study["PRESETS"]), (SWEEPS, study["SWEEPS"])):
        for name, entry in more.items():
            known.setdefault(name, entry)


add_study()


def check_preset(name):
    """Raise InputError where an entry of PRESETS, or what all presets share, cannot be used."""
    shared = {"MOMENTUM": MOMENTUM, "PENALTY_OF_OTHERS": PENALTY_OF_OTHERS}
    shared |= {f"PENALTY[{model!r}]": value for model, value in PENALTY.items()}
    try:
        for setting, value in shared.items():
            check(float, value, setting)
            _require(value >= 0, setting, value, "a number from 0 up")
        _check_preset(f"preset {name!r}", PRESETS[name])
    except ValueError as error:
        raise InputError(f"config.py, {error}") from error


def _check_preset(setting, preset):
    check(Preset, preset, setting)
    check_fields(Preset, vars(preset), setting)
    size = preset.batch_size
    _require(size >= 2, f"{setting}.batch_size", size, "an integer of at least 2")
    for job in ("ebt", "iterative"):
        schedule = getattr(preset, job)
        check_fields(Schedule, vars(schedule), f"{setting}.{job}")
        for phase, recipe in vars(schedule).items():
            if recipe is not None:
                _check_recipe(f"{setting}.{job}.{phase}", recipe)


def _check_recipe(setting, recipe):
    check_fields(type(recipe), vars(recipe), setting)
    for name in ("lr", "adam_lr"):
        rates = getattr(recipe, name)
        if len(rates) != len(recipe.epochs):
            raise ValueError(
                f"{setting}: {name} has {len(rates)} values and epochs {len(recipe.epochs)}; "
                "they must be of equal length"
            )
        fits = all(0 < rate < 1e38 for rate in rates)
        _require(fits, f"{setting}.{name}", rates, "rates above 0, and finite in single precision")
    limits = {
        "epochs": (min(recipe.epochs, default=0) >= 0, "integers from 0 up"),
        "weight_decay": (recipe.weight_decay >= 0, "a number from 0 up"),
        "warmup": (
            0 <= recipe.warmup < max(1, sum(recipe.epochs)),
            "less than all of the epochs",
        ),
        "label_smoothing": (0 <= recipe.label_smoothing < 1, "from 0 to less than 1"),
        "temperature": (0 < recipe.temperature < 1e6, "a number above 0"),
        "schedule": (recipe.schedule in ("steps", "cosine"), "'steps' or 'cosine'"),
    }
    for name, (fits, wanted) in limits.items():
        _require(fits, f"{setting}.{name}", getattr(recipe, name), wanted)
    if recipe.schedule == "cosine" and len(recipe.lr) != 1:
        raise ValueError(f"{setting}: lr has {len(recipe.lr)} values; schedule='cosine' takes one")


def _require(fits, setting, value, wanted):
    if not fits:
        raise ValueError(f"{setting} is {value!r}; it must be {wanted}")


def scaled(schedule, epochs=None, lr=None, optimizer="sgd"):
    """A schedule whose trainings all have so many epochs, and begin with this rate of `optimizer`.

    What else a recipe says of epochs (when its rate falls, how long it rises) and its later rates
    keep their proportions. None leaves them as they are; a training without epochs gets none.
    """
    recipes = {phase: recipe for phase, recipe in vars(schedule).items() if recipe}
    if epochs is not None:
        recipes = {phase: _of_length(recipe, epochs) for phase, recipe in recipes.items()}
    if lr is not None:
        recipes = {phase: _from_rate(recipe, lr, optimizer) for phase, recipe in recipes.items()}
    return replace(schedule, **recipes)


def _of_length(recipe, epochs):
    before = sum(recipe.epochs)
    if not before:
        return recipe
    return replace(
        recipe, epochs=apportioned(epochs, recipe.epochs), warmup=recipe.warmup * epochs / before
    )


def _from_rate(recipe, lr, optimizer):
    name = "adam_lr" if optimizer == "adam" else "lr"
    rates = recipe.lr_of(optimizer)
    first = next((rate for rate, count in zip(rates, recipe.epochs) if count), None)
    if first is None:
        return recipe
    # 15 digits: 0.01 x 0.1 is 0.001
    return replace(recipe, **{name: [float(f"{lr * (rate / first):.15g}") for rate in rates]})


def apportioned(total, shares):
    """Whole numbers that add up to `total`, in proportion to `shares`: each is rounded down, and
    what is missing goes to the largest remainders, of equal ones to the first."""
    parts = [total * share // sum(shares) for share in shares]
    remainders = [total * share % sum(shares) for share in shares]
    largest_first = sorted(range(len(shares)), key=remainders.__getitem__, reverse=True)
    for i in largest_first[: total - sum(parts)]:
        parts[i] += 1
    return parts


def recipe_text(recipe, optimizer):
    """How long a training takes at which rates, in words."""
    rates = recipe.lr_of(optimizer)
    parts = [(count, rate) for count, rate in zip(recipe.epochs, rates) if count]
    if not parts:
        return "no epochs"
    (count, rate), *later = parts
    text = f"{counted(count, 'epoch')} at rate {rate:.4g}"
    for count, rate in later:
        text += f", {count:,} at {rate:.4g}"
    if recipe.schedule == "cosine":
        text += ", falling to 0"
    if recipe.warmup:
        text += f" (rising in the first {recipe.warmup:.3g})"
    return text
