"""What is known of a network: the entries of its checkpoint, its .json, and a row of a report.

A checkpoint has the entries up to `pruned`, beside the weights under "net". A .json has all that
are known. Entries that nobody knows, as in published files, are None, and left out when written.
Percents go from 0 to 100, accuracies too; times are seconds, sizes bytes.
"""

import itertools
import json
import reprlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypedDict

from common.schema import check, check_fields
from config import BUDGETS, INTERPOLATIONS, MODELS, title_of
from imp_estimator import order_of
from lab.experiment import DEFAULTS, prunes_penalised, words_of

JOBS = {"ebt": "Early-Bird", "iterative": "iterative"}
UNPRUNED = ("unpruned, as many epochs", "unpruned with penalty, as many epochs")
GROUPS_IN = "_groups_"  # in the names of the files of --group_check


class _Top1(TypedDict):
    top1: float  # accuracy


class Figures(_Top1, total=False):
    """A network measured on images."""

    top5: float  # where there are more than 5 classes
    balanced: float  # mean of the classes' accuracies, where classes are uneven
    unanswered: int  # classes that the network never answers, where there are any
    loss: float | None  # mean cross-entropy
    epoch: int  # after which it was measured
    validation: dict[str, float | None]  # the same figures on the validation images


class _Best(TypedDict):
    best: Figures  # on the test images, of the epoch whose weights are in the file


class Accuracy(_Best, total=False):
    last: Figures  # of the last epoch
    chosen_on: str | None  # what chose `best`: "test" or "validation" images, "ticket" or "last"


class Epoch(TypedDict, total=False):
    """One epoch of a training."""

    epoch: int  # from 1
    lr: float  # learning rate
    seconds: float
    train: dict[str, float | None]  # loss (with --distill the mixture), top1, penalty
    test: Figures  # or, where there are validation images,
    validation: Figures
    orthogonality: float | None  # degree, mean over the convolutions
    mask_distances: list[float]  # shares of filters in which the mask differs from those before
    mask_seconds: float


class _Percents(TypedDict):
    requested_percent: float
    achieved_percent: float  # of the unpruned network's filters, or what --budget counts


class Candidate(TypedDict):
    """A cut that --select=best has tried."""

    ranking: str
    residual: str
    achieved_percent: float
    top1: float  # with the BatchNorms re-estimated, on the images that they were judged on
    chosen: bool


class Pruning(_Percents, total=False):
    round: int  # from 1
    rounds: int
    control: object  # False, "unpruned" or "scratch"
    max_percent: float  # what the floors of the layers allow
    spread_percent: float  # of measured time: between the quartiles of the turns
    milliseconds: list[float]  # of measured time: of this network and the unpruned one
    after_pruning: Figures | None  # before any retraining
    after_bn: Figures | None  # the same with the BatchNorms re-estimated on --bn_images
    candidates: list[Candidate]  # of --select=best


class _GroupSize(TypedDict):
    """What --group_check found of groups of one size: see lab.groups.check_groups."""

    size: int  # filters in a group
    n: int  # groups
    change: float  # mean absolute change of the loss
    rank_scores: float | None  # Spearman's; within a layer the mean over the layers
    rank_changes: float | None
    error_scores: float  # median of |estimate - change| / |change|
    error_changes: float


class GroupSize(_GroupSize, total=False):
    gap_scores: float  # median of |estimate - change|; older files have none
    gap_changes: float


class GroupCheck(TypedDict):
    kinds: dict[str, list[GroupSize]]


class Compression(TypedDict):
    """How many times smaller than the unpruned network."""

    parameters: float
    flops: float
    file: float
    file_bytes: int
    unpruned_file_bytes: int


class Orthogonality(TypedDict):
    mean: float | None
    layers: dict[str, float | None]  # convolution -> its degree of orthogonality


class _ReportedFlags(TypedDict):
    pruning_type: str
    preset: str
    seed: int
    width: float
    eb_epsilon: float
    budget: str
    ranking: str
    residual: str
    keep: str | bool
    prune_from: str | bool
    per_cost: bool
    score_steps: int
    bn_images: int
    distill: float


class _Given(TypedDict):
    """Flags that may not be given."""

    penalty: float | None
    epochs: int | None
    lr: float | None


class _ReportedEnvironment(TypedDict):
    device: str
    torch: str
    python: str


@dataclass(frozen=True)
class Record:
    # What identifies the run: a finished run is known by these.
    flags: dict[str, object] = None  # name -> value
    fingerprint: str = None  # of the images
    schedule: dict[str, object] = None  # the recipes, the penalty's weight, the momentum
    init: str = None  # digest of the --init file; written as "content of --init"
    code: str = None  # digest of the code in the file of --model; written as "code of --model"
    # What the network was trained on, and how.
    data: str = None  # name of the data set
    data_path: str = None
    classes: list[str] = None
    image_size: int = None  # pixels, height and width
    normalize: list[float] = None  # means and standard deviations of red, green, blue from 0 to 1
    interpolation: str = None  # how images were scaled, one of INTERPOLATIONS
    white: dict[str, float] = None  # kind of deep pixels -> the value that became white
    seed: int = None
    job: str = None  # a key of JOBS
    penalised: bool = None  # whether its last training had the penalty
    training: dict[str, dict[str, object]] = None  # training -> rates and what else shaped it
    accuracy: Accuracy = None
    environment: dict[str, object] = None  # versions and device
    history: dict[str, list[Epoch]] = None  # training -> its epochs
    seconds: dict[str, float] = None  # phase -> its duration
    pruning: Pruning = None
    # What rebuilds it.
    cfg: dict[str, object] = None  # layer -> filters, or the channels of its stream that it writes
    whole: dict[str, str] = None  # operation -> why the channels that it reads and writes stay
    model: str = None  # as in --model
    width: float = None  # multiplier of the unpruned network's widths
    num_classes: int = None
    pruned: bool = None
    # What was measured of it, and what it is compared with.
    file: str = None
    filters: int = None  # of all prunable layers, carried depthwise ones counted
    parameters: int = None
    macs: int = None  # multiply-adds for one image
    flops: int = None
    layer_macs: dict[str, int] = None
    widths: dict[str, int] = None  # layer -> filters
    compression: Compression = None
    orthogonality: Orthogonality = None
    base: dict[str, object] = None  # the unpruned network's record, as plain values
    original: dict[str, object] = None  # of a scratch control: the record of the network that
    #                                     gave its architecture; written as "pruned"

    @classmethod
    def read(cls, values, name=""):
        """The record in a dict that a file held. Raises ValueError that names what is wrong."""
        if not isinstance(values, dict):
            raise ValueError(f"{name or 'it'} is no record")
        known = _known_entries(values)
        check_fields(cls, known, name)
        _check_ranges(known)
        record = cls(**known)
        for part in ("base", "original"):
            if part in known:
                cls.read(known[part], part)
        return record

    @classmethod
    def read_result(cls, values):
        """The record in the .json of a pruned network, with all that a report needs.

        Raises ValueError where something is missing.
        """
        record = cls.read(values)
        for name in REPORTED:
            if getattr(record, name) is None:
                raise ValueError(f"{name} is missing")
        check(_ReportedFlags, {**DEFAULTS, **record.flags}, "flags")
        check(_ReportedEnvironment, record.environment, "environment")
        for value, choices in ((record.job, JOBS), (record.flag("budget"), BUDGETS)):
            if value not in choices:
                raise ValueError(f"{reprlib.repr(value)} is none of {', '.join(choices)}")
        for cost in ("parameters", "flops"):
            if record.compression[cost] <= 0:
                raise ValueError("a compression is not above 0")
        unpruned = record.unpruned
        if unpruned is not None:
            if not (unpruned.widths and unpruned.accuracy and unpruned.orthogonality):
                raise ValueError("the base network's figures are missing")
        _check_times(record.pruning.get("milliseconds"))
        _check_epochs(record)
        if unpruned is not None:
            _check_epochs(unpruned)
        return record

    def plain(self):
        """Its known entries as a dict of plain values, in the order of a checkpoint."""
        keys = {field: key for key, field in FIELDS.items()} | {"original": "pruned"}
        values = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                values[keys.get(field.name, field.name)] = value
        return values

    def json(self):
        """The content of a .json file, as a dict."""
        first = {
            "file": self.file,
            "model": self.model,
            "num_classes": self.num_classes,
            "training": None,
            "history": None,
            "seconds": None,
        }
        return first | self.plain()

    # ---------------------------------------------------------------------- what reports ask for

    @property
    def recipes(self):
        """The preset, and how --epochs and --lr have scaled it, in words."""
        words = self.flags["preset"]
        for name in ("epochs", "lr"):
            value = self.flag(name)
            if value is not None:
                words += f", {name} {value:g}"
        return words

    def flag(self, name):
        """The value of a flag, also of one that is newer than the file."""
        return (self.flags or {}).get(name, DEFAULTS.get(name))

    @cached_property
    def unpruned(self):
        """The record of the network that pruning started from; None of a scratch control."""
        return None if self.base is None else Record.read(self.base, "base")

    @property
    def network(self):
        """The name of the unpruned network, with its width where that is not 1."""
        title, width = title_of(self.model), self.flag("width")
        return title if width == 1 else f"{title} x {width:g}"

    @property
    def control(self):
        """False, "unpruned" or "scratch"."""
        return (self.pruning or {}).get("control", False)

    @property
    def variant(self):
        """The pruning type, a penalty's weight that was given, how filters were ranked and cut
        where that is not as published, and in how many rounds, where these are several."""
        return f"{self.flags['pruning_type']}{self.given_penalty}{self._words(False)}{self.rounds}"

    def _words(self, control):
        return "".join(f", {words}" for words in words_of(self.flags or {}, control))

    @property
    def rounds(self):
        """The rounds of its job in a variant's name, where these are several."""
        rounds = (self.pruning or {}).get("rounds", 1)
        return f", {rounds} rounds" if rounds > 1 else ""

    @property
    def finished(self):
        """Whether no round of its job was to come."""
        return not self.pruning or self.pruning["round"] == self.pruning["rounds"]

    @property
    def given_penalty(self):
        """The --penalty of a variant's or a base network's name."""
        weight = self.flag("penalty")
        return "" if weight is None else f", λ {weight:g}"

    @property
    def strength(self):
        """The weight of the penalty in the training before the pruning, or None."""
        if not prunes_penalised(self.flags):
            return None
        return (self.schedule or {}).get("penalty")

    @property
    def unpruned_method(self):
        """The name of the unpruned control of its method."""
        penalised = prunes_penalised(self.flags)
        return UNPRUNED[penalised] + self.given_penalty + self._words("unpruned") + self.rounds

    @property
    def method(self):
        """The variant, or the name of a control."""
        if self.control == "unpruned":
            return self.unpruned_method
        return f"{self.variant}, {self.control}" if self.control else self.variant

    @property
    def sort_key(self):
        """What methods are sorted by: as in imp_estimator.py, each before its controls; unpruned
        networks come last."""
        unpruned = self.control == "unpruned"
        return (
            unpruned,
            not unpruned and order_of(self.flags["pruning_type"]),
            self.method if unpruned else self.variant,
            self.control or "",
        )

    @property
    def budget(self):
        """What its percents count, in words."""
        return BUDGETS[self.flag("budget")]

    @property
    def requested(self):
        return self.pruning["requested_percent"]

    @property
    def achieved(self):
        return self.pruning["achieved_percent"]

    @property
    def after_pruning(self):
        """Top-1 right after pruning, or None."""
        return self._top1("after_pruning")

    @property
    def after_bn(self):
        """Top-1 right after pruning, with the BatchNorms re-estimated, or None."""
        return self._top1("after_bn")

    def _top1(self, entry):
        """The top-1 accuracy of an entry of `pruning` that holds Figures, or None."""
        figures = (self.pruning or {}).get(entry)
        return figures["top1"] if figures else None

    @property
    def best(self):
        return self.accuracy["best"]["top1"]

    @property
    def last(self):
        return self.accuracy.get("last", {}).get("top1")

    @property
    def top5(self):
        return self.accuracy["best"].get("top5")

    @property
    def chosen_on(self):
        return self.accuracy.get("chosen_on") or "test"

    @property
    def flops_left(self):
        """Percent of the unpruned network's."""
        return 100 / self.compression["flops"]

    @property
    def parameters_left(self):
        return 100 / self.compression["parameters"]

    @property
    def time_left(self):
        """Measured time in percent of the unpruned network's, or None."""
        now, unpruned = (self.pruning or {}).get("milliseconds") or (None, None)
        return 100 * now / unpruned if unpruned else None

    @property
    def epochs(self):
        """All epochs of its trainings, in order."""
        return list(itertools.chain(*(self.history or {}).values()))

    def rows(self):
        """The epochs of its trainings, one flat dict for each: the lines of the .csv."""
        pruning = self.pruning or {}
        own_round = 0 if pruning.get("control") else pruning.get("round", 0)
        rows = []
        for training, epochs in (self.history or {}).items():
            rows += flat_rows(training, epochs, own_round)
        return rows


def flat_rows(training, epochs, own_round=0):
    """The epochs of one training as flat dicts: "round", "phase", "epoch", "lr", "train/loss" ...

    training: its name, "phase" or "phase round".
    """
    phase, _, number = training.partition(" ")
    rows = []
    for epoch in epochs:
        row = {"round": int(number or own_round), "phase": phase}
        for name, value in epoch.items():
            if isinstance(value, dict):
                row |= {f"{name}/{kind}": figure for kind, figure in value.items()}
            elif isinstance(value, list):
                row[name] = max(value, default="")
            else:
                row[name] = value
        rows.append(row)
    return rows


def grouped(items, key):
    """{key(item): its items}, in the order of their first."""
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def in_order(records):
    """Records in the order of tables: each method before its controls, unpruned networks last."""
    return sorted(records, key=lambda record: record.sort_key)


def by_network(records):
    """{name of a network: its records}, in the order of MODELS, others behind them."""
    ordered = sorted(records, key=_network_order)
    return grouped(ordered, lambda record: record.network)


def _network_order(record):
    """What networks are sorted by: those of MODELS come first, in its order."""
    models = [*MODELS, record.model]
    is_other = record.model not in MODELS
    return is_other, models.index(record.model), record.model, record.flag("width")


# ------------------------------------------------------------------------------------------- checks

# key in a file -> field
FIELDS = {"content of --init": "init", "code of --model": "code"}
# What a report needs of a pruned network.
REPORTED = (
    "flags",
    "data",
    "model",
    "job",
    "accuracy",
    "environment",
    "pruning",
    "compression",
    "widths",
    "orthogonality",
    "file",
)


def _known_entries(values):
    """{field of a Record: value} of a dict that a file held; what nobody knows is left out."""
    values = {FIELDS.get(key, key): value for key, value in values.items() if value is not None}
    if isinstance(values.get("pruned"), dict):
        values["original"] = values.pop("pruned")
    return {field.name: values[field.name] for field in fields(Record) if field.name in values}


def _check_ranges(known):
    """Raise ValueError where an entry of {field: value} has the right type and a wrong value."""
    if "image_size" in known and not 1 <= known["image_size"] <= 1024:
        raise ValueError(f"image_size is {known['image_size']}, not from 1 to 1024")
    if "classes" in known and "num_classes" in known:
        names, count = len(known["classes"]), known["num_classes"]
        if names != count:
            raise ValueError(f"classes has {names} names, and num_classes is {count}")
    if "normalize" in known:
        normalize = known["normalize"]
        if len(normalize) != 6 or min(normalize[3:]) <= 0:
            raise ValueError(
                f"normalize is {normalize}, not three means and three deviations above 0"
            )
    if known.get("interpolation", "bilinear") not in INTERPOLATIONS:
        raise ValueError(
            f"interpolation is {known['interpolation']!r}, none of {', '.join(INTERPOLATIONS)}"
        )
    for name in ("filters", "parameters", "macs", "flops"):
        if known.get(name, 1) <= 0:
            raise ValueError(f"{name} is {known[name]}, not above 0")
    if any(value <= 0 for value in known.get("white", {}).values()):
        raise ValueError(f"white is {known['white']}, not above 0")


def _check_times(milliseconds):
    if not milliseconds:
        return
    if len(milliseconds) != 2 or not all(0 < time < 1e9 for time in milliseconds):
        raise ValueError("milliseconds are not two times")


def _check_epochs(record):
    check(_Given, {name: record.flag(name) for name in _Given.__annotations__}, "flags")
    for epoch in record.epochs:
        if "test" not in epoch and "validation" not in epoch:
            raise ValueError("an epoch has no accuracy")


# -------------------------------------------------------------------------------------------- files


def read_result(path):
    """The record in a .json file of a pruned network. Raises OSError and ValueError."""
    try:
        return Record.read_result(json.loads(path.read_text()))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_groups(path):
    """{network: its GroupCheck} of a file of --group_check. Raises OSError and ValueError."""
    try:
        figures = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    check(dict[str, GroupCheck], figures, path.name)
    return figures
