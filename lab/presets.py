"""The presets of config.py: checked, scaled by --epochs and --lr, and in words."""

from dataclasses import replace

from common.errors import InputError
from common.terminal import counted
from config import (
    MOMENTUM,
    PENALTY,
    PENALTY_OF_OTHERS,
    PRESETS,
    Preset,
    Recipe,
    Schedule,
)


def check_preset(name):
    """Raise InputError where an entry of PRESETS, or what all presets share, cannot be used."""
    for what, value in (
        ("MOMENTUM", MOMENTUM),
        ("PENALTY_OF_OTHERS", PENALTY_OF_OTHERS),
        *((f"PENALTY[{m!r}]", value) for m, value in PENALTY.items()),
    ):
        if not _is_number(value) or not 0 <= value < float("inf"):
            raise InputError(f"config.py: {what} is {value!r}; it must be a number from 0 up")
    preset = PRESETS[name]
    if not isinstance(preset, Preset):
        raise InputError(f"config.py, preset {name!r} is {preset!r}; it must be a Preset")
    if type(preset.batch_size) is not int or preset.batch_size < 2:
        raise InputError(
            f"config.py, preset {name!r}: batch_size is {preset.batch_size!r}; "
            "it must be an integer of at least 2"
        )
    if not isinstance(preset.flags, dict):
        raise InputError(
            f"config.py, preset {name!r}: flags is {preset.flags!r}; it must be a dict"
        )
    for job in ("ebt", "iterative"):
        schedule, where = getattr(preset, job), f"config.py, preset {name!r}, {job}"
        if not isinstance(schedule, Schedule):
            raise InputError(f"{where} is {schedule!r}; it must be a Schedule")
        for phase, recipe in vars(schedule).items():
            if isinstance(recipe, Recipe):
                _check_recipe(f"{where}, {phase}", recipe)
            elif recipe is not None or phase != "between":
                raise InputError(f"{where}, {phase} is {recipe!r}; it must be a Recipe")


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_recipe(where, recipe):
    for name in ("epochs", "lr", "adam_lr"):
        values = getattr(recipe, name)
        if not isinstance(values, (list, tuple)) or not all(map(_is_number, values)):
            raise InputError(f"{where}: {name} is {values!r}; it must be a list of numbers")
        if len(values) != len(recipe.epochs):
            raise InputError(
                f"{where}: {name} has {len(values)} values and epochs "
                f"{len(recipe.epochs)}; they must be of equal length"
            )
        if name == "epochs" and not all(type(v) is int and v >= 0 for v in values):
            raise InputError(f"{where}: epochs is {values!r}; they must be integers from 0 up")
        if name != "epochs" and not all(0 < v < 1e38 for v in values):
            raise InputError(
                f"{where}: {name} is {values!r}; rates must be above 0, and finite in "
                "single precision"
            )
    bounds = {
        "weight_decay": (float("inf"), "a number from 0 up"),
        "warmup": (max(1, sum(recipe.epochs)), "less than all of the epochs"),
        "label_smoothing": (1, "from 0 to less than 1"),
    }
    if not _is_number(recipe.temperature) or not 0 < recipe.temperature < 1e6:
        raise InputError(
            f"{where}: temperature is {recipe.temperature!r}; it must be a number above 0"
        )
    for name, (end, words) in bounds.items():
        value = getattr(recipe, name)
        if not _is_number(value) or not 0 <= value < end:
            raise InputError(f"{where}: {name} is {value!r}; it must be {words}")
    if recipe.schedule not in ("steps", "cosine"):
        raise InputError(
            f"{where}: schedule is {recipe.schedule!r}; it must be 'steps' or 'cosine'"
        )
    if recipe.schedule == "cosine" and len(recipe.lr) != 1:
        raise InputError(f"{where}: lr has {len(recipe.lr)} values; schedule='cosine' takes one")


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
    order = sorted(range(len(shares)), key=lambda i: -remainders[i])
    for i in order[: total - sum(parts)]:
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
