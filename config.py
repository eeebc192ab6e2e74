"""Settings for the whole suite: what a user edits stands first, what both commands share after it.

Nothing here imports torch, so `python main.py --help` and a wrong flag answer at once.

To add a preset, add one entry to PRESETS; then `python main.py --preset=NAME ...` uses it.
"""
import argparse
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Sequence

# ---------------------------------------------------------------------------------- schedules


@dataclass(frozen=True)
class Recipe:
    """One training: `lr[i]` for `epochs[i]` epochs, one pair after the other.

    `adam_lr` takes the place of `lr` under --optimizer=adam.
    """
    lr: Sequence[float]
    epochs: Sequence[int]
    weight_decay: float
    adam_lr: Sequence[float]

    def rates(self, optimizer="sgd"):
        """The learning rate of each epoch, as a list."""
        lr = self.adam_lr if optimizer == "adam" else self.lr
        return [rate for rate, epochs in zip(lr, self.epochs) for _ in range(epochs)]


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
}

# The penalty's weight, lambda in loss = cross-entropy + lambda * sum_l c_l * |G_l - I|_1.
PENALTY = {"vgg": 1e-2, "mobilenet": 1e-3, "resnet": 1e-2, "resnet-56": 1e-2}

MOMENTUM = 0.9  # of SGD

# ---------------------------------------------------------------- names that the flags accept

MODELS = {"vgg": "VGG-13", "mobilenet": "MobileNet-V1", "resnet": "ResNet-34",
          "resnet-56": "ResNet-56"}

PRUNING_TYPES = {
    "orthoreg": "OrthoReg: fisher's score on a network trained with the penalty",
    "fisher": "squared sum of weight x gradient of a filter",
    "theis": "Fisher information of a channel (Theis et al. 2018)",
    "tfo": "squared first-order Taylor term at the BatchNorm (Molchanov et al. 2017)",
    "bn": "size of the BatchNorm scale (Liu et al. 2017)",
    "l1": "L1 norm (Li et al. 2017)",
    "sfp": "L2 norm (He et al. 2018)",
    "fpgm": "distance to the layer's other filters (He et al. 2019)",
    "grasp": "effect on gradient flow (Wang et al. 2020)",
    "rdt": "Fisher information of the mean prediction (Gao et al. 2019)",
    "random": "uniform: the control",
}

# ------------------------------------------------------------------------------------- errors


class InputError(Exception):
    """What the user gave cannot be used; the message is one line that says what would be right."""


class Diverged(Exception):
    """The training loss is not finite."""


def check_preset(name):
    """Raise InputError where an entry of PRESETS cannot be run."""
    preset = PRESETS[name]
    if type(preset.batch_size) is not int or preset.batch_size < 2:
        raise InputError(f"config.py, preset {name!r}: batch_size is {preset.batch_size!r}; "
                         "it must be an integer of at least 2")
    for job in ("ebt", "iterative"):
        schedule = getattr(preset, job)
        for field in fields(schedule):
            recipe = getattr(schedule, field.name)
            if recipe is not None:
                _check_recipe(f"config.py, preset {name!r}, {job}, {field.name}", recipe)


def _check_recipe(where, recipe):
    def number(value):
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    for field in ("lr", "adam_lr", "epochs"):
        values = getattr(recipe, field)
        if not isinstance(values, (list, tuple)) or not all(map(number, values)):
            raise InputError(f"{where}: {field} is {values!r}; it must be a list of numbers")
        if len(values) != len(recipe.epochs):
            raise InputError(f"{where}: {field} has {len(values)} values and epochs "
                             f"{len(recipe.epochs)}; they must be of equal length")
        if field == "epochs" and not all(type(v) is int and v >= 0 for v in values):
            raise InputError(f"{where}: epochs is {values!r}; they must be integers from 0 up")
        if field != "epochs" and not all(0 < v < float("inf") for v in values):
            raise InputError(f"{where}: {field} is {values!r}; rates must be above 0 and finite")
    if not number(recipe.weight_decay) or not 0 <= recipe.weight_decay < float("inf"):
        raise InputError(f"{where}: weight_decay is {recipe.weight_decay!r}; "
                         "it must be a number from 0 up")


# ------------------------------------------------------- command line and output of both scripts


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusal is one line on standard error and exit code 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def boolean(text):
    """True or False, in any case."""
    values = {"true": True, "false": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return values[text.lower()]


def integer(low, high=None):
    """An argument type: an integer from `low` to `high`, both included."""
    def parse(text):
        wanted = f"an integer from {low} " + ("up" if high is None else f"to {high}")
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is out of range: give {wanted}")
        return value
    return parse


def positive(most):
    """An argument type: a number above 0, up to `most`."""
    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, up to {most:g}")
        return value
    return parse


def run_command(prog, body):
    """Run `body()`; return the exit code: 0 done, 2 bad input, 3 diverged, 130 interrupted."""
    try:
        body()
        if sys.stdout:  # None where the caller closed it
            sys.stdout.flush()
        return 0
    except InputError as error:
        code, line = 2, f"{prog}: error: {error}"
    except Diverged as error:
        code, line = 3, f"{prog}: diverged: {error}"
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision", "numpy", "tqdm"):
            raise
        code, line = 2, f"{prog}: error: {error.name} is missing; ./requirements.sh installs it"
    except KeyboardInterrupt:
        code, line = 130, f"{prog}: interrupted"
    except OSError as error:
        code, line = 2, f"{prog}: error: {error}"
        if isinstance(error, BrokenPipeError):  # the reader has gone, as in `... | head`
            code, line = 130, f"{prog}: interrupted: nobody reads the output any more"
        with suppress(OSError, ValueError):  # what is left in the buffer has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    print(line, file=sys.stderr)
    return code


def progress(iterable, label):
    """Iterate with a tqdm bar where standard error is a terminal, silently elsewhere."""
    from tqdm import tqdm
    return tqdm(iterable, desc=f"  {label}", leave=False, disable=None, dynamic_ncols=True)


def heading(text):
    """Announce a step of the job."""
    print(f"\n{text}", flush=True)


def print_table(rows, indent="  "):
    """Print rows of strings, the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w)
                 for i, (cell, w) in enumerate(zip(row, widths))]
        print(indent + "  ".join(cells).rstrip())


def print_columns(pairs, total=100):
    """Print (name, value) pairs of strings as many beside each other as `total` letters hold."""
    name, value = (max(map(len, column)) for column in zip(*pairs))
    cells = [f"{n.ljust(name)} {v.rjust(value)}" for n, v in pairs]
    across = max(1, total // (name + value + 4))
    for start in range(0, len(cells), across):
        print("  " + "   ".join(cells[start:start + across]))
