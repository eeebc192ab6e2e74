"""Settings for the whole suite: what a user edits stands first, what both commands share after it.

Nothing here imports torch, so `python main.py --help` and a wrong flag answer at once.

To add a preset, add one entry to PRESETS; then `python main.py --preset=NAME ...` uses it.
"""
import argparse
import ast
import csv
import hashlib
import importlib
import io
import json
import os
import signal
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
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
}


def _tenth(drop=False, slower=1):
    """The published recipes scaled down to about a tenth of their epochs, but 10 (Early-Bird) or 4
    (iterative) of those that have 25; with `drop` the Early-Bird base, too, ends with an epoch at a
    lower rate; `slower` divides all rates."""
    def recipe(lr, epochs, weight_decay=1e-4):
        lr = [rate / slower for rate in lr]
        return Recipe(lr, epochs, weight_decay, adam_lr=[rate / 100 for rate in lr])

    return Preset(
        ebt=Schedule(base=recipe([.1, .01], [9, 1]) if drop else recipe([.1], [10]),
                     ortho=recipe([.1, .01], [9, 1], weight_decay=0),
                     retrain=recipe([.1, .01, .001], [6, 4, 1])),
        iterative=Schedule(base=recipe([.1, .01, .001], [8, 4, 4]),
                           ortho=recipe([.1, .01], [3, 1], weight_decay=0),
                           retrain=recipe([.1, .01, .001], [4, 4, 2]),
                           between=recipe([.1, .01, .001], [4, 3, 1])))


PRESETS["cpu"] = _tenth()
PRESETS["cpu-drop"] = _tenth(drop=True)
PRESETS["cpu-low"] = _tenth(drop=True, slower=5)

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
    # How much of it is the last epoch at a lower rate, which only the penalty's training has there.
    "cpu-drop": {"out": "sweeps/cpu-drop", "data_path": "data/cifar100-10", "preset": "cpu-drop",
                 "ebt": True, "val_percent": 10, "seed": [0, 1], "model": "vgg",
                 "pruning_type": ["orthoreg", "fisher", "bn"], "prune_percent": 75,
                 "control": [False, "unpruned", "scratch"]},
    # And how much is left at rates that a plain VGG-13 trains well at, without a warm-up.
    "cpu-low": {"out": "sweeps/cpu-low", "data_path": "data/cifar100-10", "preset": "cpu-low",
                "ebt": True, "val_percent": 10, "seed": [0, 1], "model": "vgg",
                "pruning_type": ["orthoreg", "fisher", "bn"], "prune_percent": 75,
                "control": [False, "unpruned"]},
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

BUDGETS = {"filters": "filters", "macs": "multiply-adds", "params": "parameters"}

# ------------------------------------------------------------------------------------- errors


class InputError(Exception):
    """What the user gave cannot be used; the message is one line that says what would be right."""


class Diverged(Exception):
    """The training loss is not finite."""


def need(*packages):
    """Import optional packages. Raises InputError that says how to install those that are missing."""
    missing = []
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise InputError(f"this needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def check_preset(name):
    """Raise InputError where an entry of PRESETS cannot be run."""
    for what, value in (("MOMENTUM", MOMENTUM), *((f"PENALTY[{m!r}]", PENALTY.get(m))
                                                  for m in MODELS)):
        if not _is_number(value) or not 0 <= value < float("inf"):
            raise InputError(f"config.py: {what} is {value!r}; it must be a number from 0 up")
    preset = PRESETS[name]
    if not isinstance(preset, Preset):
        raise InputError(f"config.py, preset {name!r} is {preset!r}; it must be a Preset")
    if type(preset.batch_size) is not int or preset.batch_size < 2:
        raise InputError(f"config.py, preset {name!r}: batch_size is {preset.batch_size!r}; "
                         "it must be an integer of at least 2")
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
            raise InputError(f"{where}: {name} has {len(values)} values and epochs "
                             f"{len(recipe.epochs)}; they must be of equal length")
        if name == "epochs" and not all(type(v) is int and v >= 0 for v in values):
            raise InputError(f"{where}: epochs is {values!r}; they must be integers from 0 up")
        if name != "epochs" and not all(0 < v < 1e38 for v in values):
            raise InputError(f"{where}: {name} is {values!r}; rates must be above 0, and finite in "
                             "single precision")
    if not _is_number(recipe.weight_decay) or not 0 <= recipe.weight_decay < float("inf"):
        raise InputError(f"{where}: weight_decay is {recipe.weight_decay!r}; "
                         "it must be a number from 0 up")


# ------------------------------------------------------- command line and output of both scripts


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusal is one line on standard error and exit code 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        if processes()[0]:
            self.exit(2)  # the first says it
        self.exit(2, f"{self.prog}: error: {' '.join(message.splitlines())}\n")

    def add_flags(self, cls):
        """Add those fields of a dataclass that `flag` has made."""
        groups = {}
        for each in filter(lambda each: each.metadata, fields(cls)):
            options = dict(each.metadata)
            name, names = options.pop("group"), options.pop("names")
            if name not in groups:
                groups[name] = self.add_argument_group(name)
            if not {"type", "choices"} & options.keys():
                options["type"] = text
            groups[name].add_argument(f"--{each.name}", *names, default=each.default, **options)


def flag(group, default, help, *names, shown=None, **options):
    """A dataclass field that is a flag of the same name on the command line.

    names: other names of it. shown: the default in words. options: those of add_argument.
    """
    shown = default if shown is None else shown
    return field(default=default, metadata={
        "group": group, "names": names, "help": f"{help} (default: {shown})", **options})


def text(value):
    """An argument type: what is not empty, as a shell's variable may be that nobody has set."""
    if not value:
        raise argparse.ArgumentTypeError("it is empty")
    return value


def switch(group, help):
    """A flag that is True or False, which it is unless given."""
    return flag(group, False, help, type=boolean, metavar="BOOL")


def one_of(*values):
    """An argument type: one of some values, in any case."""
    def parse(text):
        for value in values:
            if text.lower() == str(value).lower():
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(map(str, values))}")
    return parse


boolean = one_of(True, False)


def integer(low, high=None):
    """An argument type: an integer from `low` to `high`, both included."""
    def parse(text):
        wanted = f"an integer from {low} " + ("up" if high is None else f"to {high}")
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
        if not low <= value <= (2 ** 63 - 1 if high is None else high):
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


def rising(low, high):
    """An argument type: a rising list of integers from `low` to `high`, as a tuple."""
    def parse(text):
        try:
            values = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            values = None
        if (not isinstance(values, (list, tuple)) or not values
                or not all(type(v) is int and low <= v <= high for v in values)
                or any(a >= b for a, b in zip(values, values[1:]))):
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a rising list of integers from "
                                             f"{low} to {high}, as in '[10, 50, 80]'")
        return tuple(values)
    return parse


def run_command(prog, body):
    """Run `body()`; return the exit code: 0 done, 2 bad input, 3 diverged, 130 interrupted.

    SIGINT and SIGTERM end it as KeyboardInterrupt. What ends it is said in one line. Of several
    processes the first alone prints, but for what ends another; before they have met, those of a
    machine find the same errors, and all are stopped where one is.
    """
    number, count = processes()
    if number:
        sys.stdout, prog = open(os.devnull, "w"), f"{prog}, rank {number} of {count}"
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        code, line = _outcome(body)
    except Exception:
        if count > 1:  # do not wait for the other processes, who may be waiting for this one
            traceback.print_exc()
            _flush()
            os._exit(1)
        raise
    if code and (not number or (code != 130 if _have_met() else os.environ["LOCAL_RANK"] == "0")):
        print(f"{prog}: {' '.join(line.splitlines())}", file=sys.stderr)
    return code


def _outcome(body):
    """(exit code, what to say of it) of `body()`; what nobody has foreseen is raised."""
    try:
        with _signals():
            body()
        if sys.stdout:  # None where the caller closed it
            sys.stdout.flush()
        return 0, ""
    except InputError as error:
        code, line = 2, f"error: {error}"
    except Diverged as error:
        code, line = 3, f"diverged: {error}"
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision", "numpy", "tqdm"):
            raise
        code, line = 2, f"error: {error.name} is missing; ./requirements.sh installs it"
    except KeyboardInterrupt as error:
        code, line = 130, f"interrupted{': ' * bool(str(error))}{error}"
    except (MemoryError, RuntimeError) as error:
        code = 2
        if _out_of_memory(error):
            line = "error: out of memory; a smaller --batch_size, --image_size or --width needs less"
        elif processes()[1] > 1 and any(text in str(error) for text in ("gloo", "NCCL", "Connection")):
            code, line = 1, f"stopped (where another process ended first, its lines say why): {error}"
        else:
            raise
    except OSError as error:
        code, line = 2, f"error: {error}"
        if isinstance(error, BrokenPipeError):  # the reader has gone, as in `... | head`
            code, line = 130, "interrupted: nobody reads the output any more"
        # What is left in the buffer has nowhere to go.
        with suppress(AttributeError, OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    return code, line


def _flush():
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # closed
            stream.flush()


def exit_with(code):
    """End a script. A signal changes nothing any more, however long the libraries take to end."""
    if code and processes()[1] > 1:
        _flush()
        os._exit(code)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _out_of_memory(error):
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(
        text in str(error) for text in ("can't allocate memory", "not enough memory"))


_inside = threading.local()  # .depth: of uninterrupted blocks; .signal: one came meanwhile


@contextmanager
def _signals():
    """SIGINT and SIGTERM raise KeyboardInterrupt, at the end of an `uninterrupted` block."""
    def interrupt(_number, _frame):
        if getattr(_inside, "depth", 0):
            _inside.signal = True
        else:
            raise KeyboardInterrupt

    _inside.signal, previous = False, {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:  # as a shell sets it for commands in the background
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted():
    """What is inside is done wholly or not at all: a signal waits for its end."""
    _inside.depth = getattr(_inside, "depth", 0) + 1
    try:
        yield
    finally:
        _inside.depth -= 1
    if not _inside.depth and getattr(_inside, "signal", False):
        _inside.signal = False
        raise KeyboardInterrupt


def processes():
    """(number of this process, how many there are), as torchrun has started them; else (0, 1)."""
    if not {"MASTER_ADDR", "RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys():
        return 0, 1  # some clusters set some of these for every job
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _have_met():
    return "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized()


# ---------------------------------------------------------------------------------------- files


def to_json(value):
    """JSON bytes; null takes the place of NaN and infinity, which JSON does not know."""
    return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None),
                      indent=1).encode()


def counted(count, noun):
    return f"{count:,} {noun}{'s' * (count != 1)}"


def to_csv(rows):
    """CSV bytes of some dicts, under the names that any of them has."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)),
                           lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def digest_of(path):
    """A short text that tells a file's content from others. Raises InputError."""
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path}")
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def write_atomically(contents):
    """Write files, {path: bytes}: whatever happens, each holds what it held, or all of the new.

    All are on the disk under temporary names before the first takes its place. The temporary names
    are fixed, so that what a killed process left is overwritten; see `locked`.
    Raises InputError where a folder cannot be written or the disk is full.
    """
    temporary = {Path(path): Path(path).with_name(f".{Path(path).name}.tmp") for path in contents}
    path, unchanged = None, "; nothing there was changed"
    try:
        for path, content in zip(temporary, contents.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        with uninterrupted():
            for path in temporary:
                os.replace(temporary[path], path)
                unchanged = ""
        for folder in {path.parent for path in temporary}:
            _sync_folder(folder)
    except BaseException as error:
        for name in temporary.values():
            with suppress(OSError):
                name.unlink()
        if isinstance(error, OSError):
            raise InputError(f"cannot write {path}: {error.strerror or error}"
                             f"{unchanged}") from error
        raise


def _sync_folder(folder):
    """A new name is durable once its folder is; not every system can do this."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def progress(iterable, label, start=0):
    """Iterate, from item `start` on, with a tqdm bar where standard error is a terminal, silently
    elsewhere."""
    from tqdm import tqdm
    total = len(iterable) if hasattr(iterable, "__len__") else None
    return tqdm(islice(iterable, start, None), desc=f"  {label}", leave=False, dynamic_ncols=True,
                disable=None if sys.stderr and not processes()[0] else True, total=total,
                initial=start)


def heading(text):
    """Announce a step of the job."""
    print(f"\n{text}", flush=True)


def print_table(rows):
    """Print rows of strings, the first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w)
                 for i, (cell, w) in enumerate(zip(row, widths))]
        print("  " + "  ".join(cells).rstrip())


def print_columns(pairs):
    """Print (name, value) pairs of strings, as many beside each other as 100 letters hold."""
    name, value = (max(map(len, column)) for column in zip(*pairs))
    cells = [f"{n.ljust(name)} {v.rjust(value)}" for n, v in pairs]
    across = max(1, 100 // (name + value + 4))
    for start in range(0, len(cells), across):
        print("  " + "   ".join(cells[start:start + across]))
