"""The flags of main.py, their contradictions, and the names of the files that follow from them."""

import hashlib
from argparse import ArgumentTypeError
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from common.device import DEVICES
from common.errors import InputError
from common.flags import (
    Parser,
    boolean,
    check_needed,
    flag,
    given_names,
    integer,
    location,
    made_by_flag,
    marked,
    number,
    one_of,
    patterns,
    positive,
    rising,
    switch,
)
from common.libraries import ONNX, lazy, need
from common.processes import processes
from config import (
    AUGMENTS,
    BUDGETS,
    INTERPOLATIONS,
    MODELS,
    NORMALIZATIONS,
    PRESETS,
    RANKINGS,
    SWEEPS,
    penalty_of,
)
from imp_estimator import ESTIMATORS, PLAIN, check_per_cost, has_penalty
from lab import hints
from lab.presets import check_preset, scaled

data, train, networks = map(lazy, ("data", "train", "lab.networks"))  # not for --help

DEFAULT = "DEFAULT"  # --init: a library's own weights

# What a flag means to others than the training itself:
RESUME_IGNORES = "resume ignores"  # runs that differ only in such flags are the same run
CONTROL_MAY_DIFFER = "control may differ"  # a control may differ in it from what it controls
SET_BY_SWEEP = "set by sweep"  # a sweep sets it itself, for each of its cells
ONLY_PRUNED = "only pruned"  # an unpruned control has no such flag
REPORT_MAY_DIFFER = "report may differ"  # results of one table may differ in it


def normalization(text):
    """An argument type: a name of NORMALIZATIONS, or six numbers."""
    if text.lower() in NORMALIZATIONS:
        return text.lower()
    values = tuple(map(number, text.strip("[]() ").split(",")))
    if len(values) != 6 or not all(abs(v) < 1e3 for v in values) or min(values[3:]) < 1e-3:
        raise ArgumentTypeError(
            f"{text!r} is none of {', '.join(NORMALIZATIONS)}, nor six numbers "
            "(three means, three standard deviations, of pixels from 0 to 1)"
        )
    return values


def _checksum_of(names):
    """How --keep shows in the names of files: patterns may be long, and have a *."""
    return f"keep{hashlib.sha256(names.encode()).hexdigest()[:6]}"


def _kept_in_words(names):
    return f"{names.replace(',', ' and ')} whole"


def _start_in_words(network):
    return f"from the {'penalised' if network == 'ortho' else 'plain'} network"


@dataclass(frozen=True)
class Experiment:
    """One command line, checked: the value of every flag."""

    data_path: str = flag(
        "data",
        "CIFAR100",
        "CIFAR100, CIFAR10, digits (a quick start without a download), or a "
        "folder with train/ and test/ or val/, one folder of images per class in each",
        type=location,
        metavar="DATA",
        marks=[RESUME_IGNORES],
    )
    test_percent: int = flag(
        "data",
        0,
        "for a folder without test images: percent of each class's images that are the "
        "test images, the same ones in every run",
        type=integer(0, 90),
        metavar="N",
        marks=[CONTROL_MAY_DIFFER],
    )
    image_size: int = flag(
        "data",
        32,
        "height and width in pixels that images are brought to",
        type=integer(1, 1024),
        metavar="N",
    )
    skip_bad_images: bool = switch(
        "data", "leave out images that cannot be read", marks=[CONTROL_MAY_DIFFER]
    )
    val_percent: int = flag(
        "data",
        0,
        "percent of the training images to hold out: the best epoch is then chosen on "
        "them, and the test images choose nothing (a folder with val/ and test/ does so without "
        "this flag)",
        type=integer(0, 50),
        metavar="N",
    )
    num_classes: int = flag(
        "data",
        None,
        "stop if the data has another number of classes",
        shown="from the data",
        type=integer(2),
        metavar="N",
        marks=[CONTROL_MAY_DIFFER, REPORT_MAY_DIFFER],
    )
    normalize: tuple = flag(
        "data",
        "half",
        "what pixels from 0 to 1 are normalised with: half (to -1..1), cifar or "
        "imagenet (the means and standard deviations of these images; imagenet for weights of "
        "torchvision and timm), or six numbers, the means and then the standard deviations of red, "
        "green and blue",
        type=normalization,
        metavar="NAME|LIST",
    )
    interpolation: str = flag(
        "data",
        "bilinear",
        "how images are scaled to --image_size; most of timm's and some of torchvision's weights "
        "were trained with bicubic",
        choices=INTERPOLATIONS,
    )

    augment: str = flag(
        "data",
        "shift",
        "how training images are varied: "
        + "; ".join(f"{name} ({words})" for name, words in AUGMENTS.items())
        + ". With crop, images are scaled to 256/224 of the size and cut to their centre to test",
        choices=AUGMENTS,
    )
    flip: bool = flag(
        "data",
        True,
        "mirror training images, too (not digits, and nothing with --augment=none)",
        type=boolean,
        metavar="True|False",
    )
    memory: float = flag(
        "data",
        None,
        "GB of decoded images that are held in memory; of larger data sets, each "
        "batch is read from a file",
        shown="a quarter of the machine's",
        type=positive(1e6),
        metavar="GB",
        marks=[RESUME_IGNORES],
    )

    model: str = flag(
        "training",
        "vgg",
        "the network: "
        + ", ".join(f"{k} ({v})" for k, v in MODELS.items())
        + "; one of torchvision's by its name there (resnet50), of timm's as timm:NAME, or your "
        "own as FILE.py:NAME, which is called with num_classes",
        "-m",
        type=location,
        metavar="NAME",
        marks=[REPORT_MAY_DIFFER],
    )
    width: float = flag(
        "training",
        1.0,
        "multiplies the widths of the unpruned network: of vgg, mobilenet, resnet and resnet-56",
        type=positive(4),
        metavar="FACTOR",
        marks=[REPORT_MAY_DIFFER],
    )
    ebt: bool = switch(
        "training",
        "Early-Bird job: train briefly, prune once, retrain; False: train fully, then "
        "prune and retrain in rounds",
    )
    preset: str = flag(
        "training",
        "paper",
        "learning rates, epochs and batch size, see PRESETS in config.py, and those beside the "
        "study: " + ", ".join(PRESETS),
        choices=PRESETS,
        metavar="NAME",
    )
    epochs: int = flag(
        "training",
        None,
        "epochs of every training: the plain one, the one with the penalty, and "
        "each retraining (orthoreg, before a further round: as many without the penalty, then with "
        "it). A warm-up, and when rates fall, keep their proportions",
        shown="the preset's",
        type=integer(1, 100_000),
        metavar="N",
    )
    lr: float = flag(
        "training",
        None,
        "the learning rate that every training begins with; the preset's later "
        "rates keep their proportions to it",
        shown="the preset's",
        type=positive(1e6),
        metavar="RATE",
    )
    optimizer: str = flag(
        "training", "sgd", "the optimizer; adam takes the preset's adam_lr", choices=("sgd", "adam")
    )
    batch_size: int = flag(
        "training",
        None,
        "images in a training step",
        shown="the preset's",
        type=integer(2),
        metavar="N",
    )
    penalty: float = flag(
        "training",
        None,
        "the weight of the orthonormality penalty, lambda",
        shown="the network's in config.py",
        type=positive(1e6, or_zero=True),
        metavar="LAMBDA",
        marks=[REPORT_MAY_DIFFER],
    )
    class_weights: str = flag(
        "training",
        False,
        "balanced: all classes count alike in the training's loss, however many images they have",
        type=one_of("balanced", False),
        metavar="{balanced,False}",
    )
    init: str = flag(
        "training",
        None,
        "begin with the weights in this file, as far as they fit: a network of "
        "this suite, a published one, or torchvision's; of a pruned one the architecture, too. Of "
        "several state dicts in a file FILE:KEY takes the one under that key (model.pth:ema). "
        "DEFAULT: torchvision's own weights, downloaded, with their --normalize and "
        "--interpolation; of timm:NAME timm's own, also with their --image_size",
        shown="fresh weights",
        type=location,
        metavar="FILE|DEFAULT",
        marks=[CONTROL_MAY_DIFFER],
    )
    classifier: str = flag(
        "training",
        False,
        "keep: begin with the classifier in the file, too, because its classes "
        "are those of the images, in the same order (sorted by name); otherwise it begins fresh "
        "unless the file names the same classes",
        type=one_of("keep", False),
        metavar="{keep,False}",
        only_with="init",
        marks=[CONTROL_MAY_DIFFER],
    )
    choose: str = flag(
        "training",
        "best",
        "the epoch whose weights a training leaves: best (the highest accuracy on "
        "the validation images, or the test images where there are none) or last",
        shown="best, or the preset's",
        choices=("best", "last"),
    )
    seed: int = flag(
        "training",
        0,
        "seed of all random choices",
        type=integer(0),
        metavar="N",
        marks=[REPORT_MAY_DIFFER],
    )
    only_train: str = flag(
        "training",
        False,
        "train the plain network (base), or the one with the penalty (ortho), and stop",
        type=one_of("base", "ortho", False),
        metavar="{base,ortho,False}",
        marks=[SET_BY_SWEEP],
    )
    pretrained: bool = switch(
        "training",
        "start with the network in pretrained/ instead of training it",
        marks=[CONTROL_MAY_DIFFER, SET_BY_SWEEP, REPORT_MAY_DIFFER],
    )
    resume: bool = switch(
        "training",
        "go on with this command's run that was stopped, with the same result",
        marks=[RESUME_IGNORES, SET_BY_SWEEP],
    )
    wait: bool = switch(
        "training",
        "where another run writes the same files, wait until it has ended",
        marks=[RESUME_IGNORES, SET_BY_SWEEP],
    )

    pruning_type: str = flag(
        "pruning",
        None,
        "how filters are judged: "
        + "; ".join(f"{name} ({method.help})" for name, method in ESTIMATORS.items()),
        shown="none; required to prune",
        choices=ESTIMATORS,
        metavar="TYPE",
        marks=[REPORT_MAY_DIFFER],
    )
    prune_from: str = flag(
        "pruning",
        False,
        "the network that is pruned: the plain one (base), or the one with the penalty (ortho), "
        "which is then trained with it before every round",
        shown="ortho for " + ", ".join(filter(has_penalty, ESTIMATORS)) + ", base for all others",
        type=one_of("base", "ortho", False),
        metavar="{base,ortho,False}",
        named=("from-{}".format, _start_in_words),
        marks=[ONLY_PRUNED, REPORT_MAY_DIFFER],
    )
    prune_percent: int = flag(
        "pruning",
        None,
        "percent to remove of all filters, or of what --budget counts, 0 to 95",
        "--pruning_percent",
        shown="none; this or --thresholds is required to prune",
        type=integer(0, 95),
        metavar="N",
        marks=[ONLY_PRUNED, REPORT_MAY_DIFFER],
    )
    n_rounds: int = flag(
        "pruning",
        None,
        "rounds of pruning and retraining",
        shown=1,
        type=integer(1, 95),
        metavar="N",
        marks=[REPORT_MAY_DIFFER],
    )
    thresholds: tuple = flag(
        "pruning",
        (),
        "the percent after each round, as in '[10, 50, 80]'",
        shown="none",
        type=rising(0, 95),
        metavar="LIST",
        marks=[ONLY_PRUNED, REPORT_MAY_DIFFER],
    )
    budget: str = flag(
        "pruning",
        "filters",
        "what --prune_percent counts: filters, macs (multiply-adds), params "
        "(parameters), or latency (measured time for a batch: 50 makes it twice as fast)",
        choices=BUDGETS,
    )
    latency_batch: int = flag(
        "pruning",
        32,
        "images in a batch that is timed",
        type=integer(1, 65536),
        metavar="N",
        only_with="budget=latency",
    )
    latency_runtime: str = flag(
        "pruning",
        "pytorch",
        "what is timed: pytorch on --device, or onnxruntime on the CPU, with "
        "the network as --export writes it",
        choices=("pytorch", "onnxruntime"),
        only_with="budget=latency",
    )
    round_to: int = flag(
        "pruning",
        1,
        "widths of pruned layers go up to the next multiple of this; hardware is "
        "fast at multiples of 8",
        type=integer(1, 1024),
        metavar="N",
    )
    ranking: str = flag(
        "pruning",
        "global",
        "how the scores of different layers are compared: "
        + "; ".join(f"{name} ({words})" for name, words in RANKINGS.items())
        + "; paper (as the method's own paper does)",
        shown="global, or the preset's",
        choices=(*RANKINGS, "paper"),
        named=("{}".format, "{}".format),
        marks=[ONLY_PRUNED, REPORT_MAY_DIFFER],
    )
    keep: str = flag(
        "pruning",
        False,
        "layers that keep all of their filters: their names, separated by commas, in which * "
        "stands for anything, as in 'layer1.*,layer2.0.conv1'",
        shown="none",
        type=patterns,
        metavar="NAMES",
        named=(_checksum_of, _kept_in_words),
        marks=[ONLY_PRUNED, REPORT_MAY_DIFFER],
    )
    per_cost: bool = flag(
        "pruning",
        False,
        "rank filters by the change of the loss that their score stands for, "
        "divided by what they cost of what --budget counts, so that much is saved first where "
        "little is lost",
        shown="False, or the preset's",
        type=boolean,
        metavar="True|False",
        named=("percost".format, "per cost".format),
        marks=[ONLY_PRUNED, REPORT_MAY_DIFFER],
    )
    residual: str = flag(
        "pruning",
        "single",
        "where several layers write the same channels, as into a residual "
        "stream: judge each layer's filter by itself (single), or remove all that write a channel "
        "together, by the sum of their scores (coupled)",
        shown="single, or the preset's",
        choices=("single", "coupled"),
        named=("{}".format, "{}".format),
        marks=[ONLY_PRUNED, REPORT_MAY_DIFFER],
    )
    score_steps: int = flag(
        "pruning",
        1,
        "make the cut of a round in so many steps, each by scores of what is left; "
        "nothing is trained between them; where scores are computed from images, BatchNorms "
        "are re-estimated",
        shown="1, or the preset's",
        type=integer(1, 100),
        metavar="K",
        named=("steps{}".format, "{} steps".format),
        marks=[ONLY_PRUNED, REPORT_MAY_DIFFER],
    )
    select: str = flag(
        "pruning",
        False,
        "best: make the cut by each --ranking, single and coupled, re-estimate "
        "BatchNorms, and retrain the one with the highest accuracy on validation images, or on a "
        "tenth of the training images that nothing else of the cut sees",
        type=one_of("best", False),
        metavar="{best,False}",
        named=("{}".format, "{} of rankings".format),
        marks=[ONLY_PRUNED, REPORT_MAY_DIFFER],
    )
    bn_images: int = flag(
        "pruning",
        0,
        "training images that the BatchNorms' running statistics are re-estimated on "
        "after a cut; 0: they stay as they were",
        shown="0, or the preset's",
        type=integer(0),
        metavar="N",
        named=("bn{}".format, "BatchNorm on {} images".format),
        marks=[ONLY_PRUNED, REPORT_MAY_DIFFER],
    )
    distill: float = flag(
        "pruning",
        0.0,
        "this share of the loss of a retraining is the distance from the answers "
        "of the network that the round began with",
        shown="0, or the preset's",
        type=positive(1, or_zero=True),
        metavar="SHARE",
        named=("distill{:g}".format, "distilled {:g}".format),
        marks=[REPORT_MAY_DIFFER],
    )
    imp_samples: int = flag(
        "pruning",
        10000,
        "training images that importance is measured on (all, if there are fewer)",
        type=integer(1),
        metavar="N",
    )
    GraSP_T: float = flag(
        "pruning", 200.0, "temperature of grasp", shown=200, type=positive(1e6), metavar="T"
    )
    rdt_projections: int = flag(
        "pruning",
        3,
        "backward passes of rdt per minibatch; 0: one for each class, exact",
        type=integer(0, 1000),
        metavar="N",
    )
    eb_detect: bool = switch(
        "pruning",
        "in an Early-Bird job, end the first training as soon as the filters that would "
        "be kept no longer change",
        marks=[ONLY_PRUNED],
    )
    eb_epsilon: float = flag(
        "pruning",
        0.1,
        "the ticket is found when the filters to keep differ from each of the 4 "
        "epochs before in at most this share",
        type=positive(1),
        metavar="SHARE",
        marks=[ONLY_PRUNED],
        only_with="eb_detect=True",
    )
    eb_samples: int = flag(
        "pruning",
        2000,
        "training images that each epoch's choice is measured on",
        type=integer(1),
        metavar="N",
        marks=[ONLY_PRUNED],
        only_with="eb_detect=True",
    )
    control: str = flag(
        "pruning",
        False,
        "instead of pruning: train the unpruned network for as many epochs, or "
        "the pruned architecture from scratch",
        type=one_of("unpruned", "scratch", False),
        metavar="{unpruned,scratch,False}",
        marks=[CONTROL_MAY_DIFFER, REPORT_MAY_DIFFER],
    )

    out: str = flag(
        "output",
        ".",
        "the folder in which pretrained/ and pruned_nets/ are",
        type=location,
        metavar="FOLDER",
        marks=[RESUME_IGNORES],
    )
    tensorboard: bool = switch(
        "output", "write TensorBoard's files beside the result", marks=[RESUME_IGNORES]
    )
    print_config: bool = switch(
        "output",
        "show the whole job, with schedules and files, and stop",
        marks=[RESUME_IGNORES, SET_BY_SWEEP],
    )

    device: str = flag(
        "hardware",
        "auto",
        "auto takes a GPU where there is one",
        choices=DEVICES,
        marks=[CONTROL_MAY_DIFFER, REPORT_MAY_DIFFER],
    )
    amp: str = flag(
        "hardware",
        False,
        "train in this precision where autocast finds it safe; penalty, "
        "importance and accuracy stay float32",
        type=one_of("bfloat16", "float16", False),
        metavar="{bfloat16,float16,False}",
    )
    compile: bool = switch(
        "hardware",
        "train through torch.compile, which takes a minute at the start of each training",
        marks=[CONTROL_MAY_DIFFER],
    )
    deterministic: bool = switch(
        "hardware",
        "make a GPU repeat a run bit for bit, which is slower",
        marks=[CONTROL_MAY_DIFFER],
    )

    @property
    def identity(self):
        """The flags that make two runs the same."""
        return {name: value for name, value in asdict(self).items() if name in DEFAULTS}

    @property
    def preparation(self):
        """A Preparation: how the images of this run become what the network gets."""
        return data.Preparation(
            image_size=self.image_size,
            normalize=self.normalize,
            augment=self.augment,
            flip=self.flip,
            test_percent=self.test_percent,
            skip_bad_images=self.skip_bad_images,
            memory=self.memory and self.memory * 1e9,
            interpolation=self.interpolation,
        )

    @property
    def training_settings(self):
        """A TrainingSettings: how all trainings of this run are done."""
        return train.TrainingSettings(
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            amp=self.amp,
            compiled=self.compile,
            choose=self.choose,
            distill=self.distill,
        )

    def choice(self, image_size):
        """The arguments of `pruner.select_filters`, beside the percent."""
        return {
            **{
                name: getattr(self, name)
                for name in (
                    "budget",
                    "round_to",
                    "residual",
                    "ranking",
                    "per_cost",
                    "pruning_type",
                )
            },
            "keep": self.patterns,
            "image_size": image_size,
            "below_one": True,
        }

    @property
    def patterns(self):
        """The patterns of --keep, as a list."""
        return self.keep.split(",") if self.keep else []

    @property
    def estimator(self):
        """The pruning method, an Estimator, or None."""
        return ESTIMATORS.get(self.pruning_type)

    @property
    def job(self):
        return "ebt" if self.ebt else "iterative"

    @property
    def schedule(self):
        """The job's recipes: the preset's, scaled by --epochs and --lr."""
        schedule = getattr(PRESETS[self.preset], self.job)
        return scaled(schedule, self.epochs, self.lr, self.optimizer)

    @property
    def penalised(self):
        """Whether the network that pruning starts from, or that is trained, has the penalty."""
        return self.only_train == "ortho" or prunes_penalised(asdict(self))

    @property
    def strength(self):
        """The penalty's weight, where a training has the penalty."""
        return penalty_of(self.model) if self.penalty is None else self.penalty

    @property
    def network(self):
        if self.model not in MODELS:
            return networks.file_name(self.model)
        return self.model if self.width == 1 else f"{self.model}-w{self.width:.15g}"

    def base_file(self, folder, penalised):
        """Where a network before any pruning lives; one with a ticket has a name of its own."""
        parts = [f"{self.network}_ortho", self._lambda] if penalised else [self.network]
        name = "-".join(filter(None, parts))
        if self.eb_detect:
            percent = round((self.thresholds or [self.prune_percent])[0])
            name += f"_{self.pruning_type}_{percent}_ticket"
        if self.seed:
            name += f"_s{self.seed}"
        return Path(self.out) / "pretrained" / self.job / folder / f"{name}.pth"

    @property
    def method(self):
        """What is compared under this name: the pruning type, or a control of it."""
        if self.control == "unpruned":
            parts = [
                "ortho" if self.penalised else "base",
                self._lambda,
                *self._unusual,
                "unpruned",
            ]
        else:
            parts = [self.pruning_type, self._lambda, *self._unusual, self.control]
        return "-".join(filter(None, parts))

    @property
    def _unusual(self):
        """How flags that show in the names of files differ from what the preset says."""
        usual = {**DEFAULTS, **PRESETS[self.preset].flags}
        if self.select:  # which sets them itself
            usual |= {"ranking": self.ranking, "residual": self.residual}
        return [
            _written(option, getattr(self, option.name))
            for option in named_flags(self.control)
            if str(getattr(self, option.name)) != str(usual[option.name])
        ]

    @property
    def _lambda(self):
        return None if self.penalty is None else f"lambda{self.penalty:.15g}"

    def pruned_file(self, folder, percent, penalised):
        """Where a pruned network lives; `penalised`: it got the penalty for a round to come."""
        name = f"{self.network}_{self.method}_{round(percent)}"
        if penalised:
            name += "_ortho"
        return Path(self.out) / "pruned_nets" / self.job / folder / f"{name}_{self.seed}.pth"


DEFAULTS = {
    option.name: option.default
    for option in fields(Experiment)
    if RESUME_IGNORES not in option.metadata["marks"]
}


def prunes_penalised(flags):
    """Whether the network is pruned that was trained with the penalty. flags: name -> value, of
    those that are given."""
    start = flags.get("prune_from")
    return start == "ortho" if start else has_penalty(flags.get("pruning_type"))


def settled_start(flags):
    """The same flags, name -> value, without a --prune_from that says nothing new: that of the
    method itself. An unpruned control is the same for all methods that prune its network, and has
    the name of one that always does."""
    if not flags.get("prune_from"):
        return flags
    settled = {**flags, "prune_from": False}
    penalised = prunes_penalised(flags)
    if prunes_penalised(settled) == penalised:
        return settled
    if flags.get("control") == "unpruned":
        own = next(filter(has_penalty, ESTIMATORS)) if penalised else PLAIN
        return settled | {"pruning_type": own}
    return flags


def named_flags(control):
    """The flags, as fields, that show in the names of files and in those of reports' methods."""
    pruned = marked(Experiment, ONLY_PRUNED) if control == "unpruned" else ()
    return [
        option
        for option in fields(Experiment)
        if option.metadata["named"] and option.name not in pruned
    ]


def _written(flag, value):
    return f"no-{flag.name}" if value is False else flag.metadata["named"][0](value)


def words_of(flags, control):
    """How an experiment differs from the published one, in words: ["mean", "8 steps"]. flags: name
    -> value."""
    return [
        option.metadata["named"][1](flags[option.name])
        for option in named_flags(control)
        if flags.get(option.name, option.default) != option.default
    ]


def comparable(flags):
    """The flags of a file, which an older version may have written, as `identity` has them."""
    return {
        **DEFAULTS,
        **{
            name: value
            for name, value in flags.items()
            if name not in marked(Experiment, RESUME_IGNORES)
        },
    }


@dataclass(frozen=True)
class Sweep:
    """A command line that runs many experiments."""

    sweep: str = flag(
        "comparison",
        None,
        "run all experiments of a JSON file, or of an entry of SWEEPS in config.py or beside the "
        f"study: {', '.join(SWEEPS)}",
        shown="none",
        type=location,
        metavar="FILE",
    )
    jobs: int = flag(
        "comparison",
        1,
        "how many experiments of a sweep at once; with several GPUs each gets one",
        type=integer(1, 1000),
        metavar="N",
    )
    cell: int = flag(
        "comparison",
        None,
        "run only experiment K of the sweep, and what it needs",
        shown="all",
        type=integer(1),
        metavar="K",
    )
    print_config: bool = False


def make_parser(description=None):
    parser = Parser(prog="main.py", description=description, hints=hints.MAIN)
    parser.add_flags(Experiment)
    parser.add_flags(Sweep)
    return parser


def parse(argv, description=None):
    """The command line -> Experiment or Sweep. Raises InputError where flags are in conflict."""
    args = make_parser(description).parse_args(argv)
    sweep = Sweep(**{option.name: vars(args).pop(option.name) for option in made_by_flag(Sweep)})
    if sweep.sweep:
        return _checked_sweep(sweep, args)
    if sweep != Sweep():
        raise InputError("--jobs and --cell only work with --sweep")
    check_preset(args.preset)
    if args.model not in MODELS:
        networks.check_name(args.model)
        if args.width != 1:
            raise InputError(f"--width only works with {', '.join(MODELS)}; leave it out")
    given = given_names(argv, Experiment)
    _take_from_preset(args, given)
    if args.init == DEFAULT:
        for name, value in networks.default_weights(args.model).flags.items():
            if name not in given:
                setattr(args, name, value)
    rounds = len(args.thresholds) or args.n_rounds or 1
    if args.only_train:
        _check_only_train(args)
    else:
        _check_pruning(args, given)
    if args.ebt and rounds > 1:
        raise InputError(
            f"--ebt=True prunes once, and {rounds} rounds are asked for; leave out "
            "--ebt=True to prune iteratively, or ask for one round"
        )
    _check_together(args)
    _check_ranking(args, given)
    batch_size = args.batch_size or PRESETS[args.preset].batch_size
    if batch_size < 2 * processes()[1]:
        raise InputError(
            f"--batch_size={batch_size} is less than two images for each of the "
            f"{processes()[1]} processes"
        )
    flags = Experiment(**vars(args) | {"n_rounds": rounds, "batch_size": batch_size})
    if flags.penalty is not None and not flags.penalised:
        those = ", ".join(filter(has_penalty, ESTIMATORS))
        raise InputError(
            f"--penalty only works where the network is trained with it: {those}, "
            "--prune_from=ortho, or --only_train=ortho"
        )
    return flags


def _take_from_preset(args, given):
    """Flags that are not given have the value that the preset says; those of the pruning only where
    there is one."""
    groups = {option.name: option.metadata["group"] for option in fields(Experiment)}
    parser = make_parser()
    parser.place = f"config.py, preset {args.preset!r}, flags: "
    for name, value in PRESETS[args.preset].flags.items():
        if name not in groups:
            raise InputError(f"{parser.place}there is no flag {name!r}")
        if name not in given and not (args.only_train and groups[name] == "pruning"):
            setattr(args, name, getattr(parser.parse_args([f"--{name}={value}"]), name))


def _check_ranking(args, given):
    """Raise InputError where flags on the choice of filters contradict each other."""
    if args.select:
        for name in sorted({"ranking", "residual"} & given):
            raise InputError(
                f"--select=best tries all rankings, single and coupled; leave out "
                f"--{name}, or say --select=False"
            )
        if args.eb_detect:
            raise InputError(
                "--eb_detect=True compares what one ranking keeps from epoch to "
                "epoch; leave out --select=best, or say --select=False"
            )
        args.ranking, args.residual = DEFAULTS["ranking"], DEFAULTS["residual"]
    if args.per_cost and args.pruning_type:
        try:
            check_per_cost(args.pruning_type, False if args.select else args.ranking)
        except ValueError as error:
            raise InputError(f"--per_cost=True: {error}") from error
    if args.bn_images == 1:
        raise InputError(
            "--bn_images=1: statistics need two images at least; 0 leaves them as they are"
        )


def _checked_sweep(sweep, args):
    for option in fields(Experiment):
        if getattr(args, option.name) != option.default and option.name != "print_config":
            more = "" if option.name in marked(Experiment, SET_BY_SWEEP) else ", or write it there"
            raise InputError(f"--sweep runs what its file says; leave out --{option.name}{more}")
    if processes()[1] > 1:
        raise InputError("--sweep starts processes itself; run it without torchrun")
    return replace(sweep, print_config=args.print_config)


def _check_only_train(args):
    for option in fields(Experiment):
        if option.metadata["group"] == "pruning" and getattr(args, option.name) != option.default:
            raise InputError(
                f"--only_train={args.only_train} trains and stops, it does not "
                f"prune; leave out --{option.name}"
            )
    if args.pretrained and (args.only_train == "base" or args.ebt):
        raise InputError(
            f"--only_train={args.only_train} trains from scratch here, so there "
            "is nothing to load; leave out --pretrained=True"
        )


def _check_pruning(args, given):
    if not args.pruning_type:
        raise InputError(
            f"--pruning_type is missing: one of {', '.join(ESTIMATORS)}; to prune "
            "nothing: --only_train=base or --only_train=ortho"
        )
    if args.thresholds and args.prune_percent is not None:
        raise InputError(
            "--thresholds and --prune_percent contradict each other; leave out one of them"
        )
    vars(args).update(settled_start(vars(args)))
    if args.control == "unpruned":
        for option in named_flags(False):
            if ONLY_PRUNED in option.metadata["marks"]:
                if option.name in given - {"prune_from"}:  # which has said what is trained
                    raise InputError(
                        f"--control=unpruned prunes nothing; leave out --{option.name}"
                    )
                setattr(args, option.name, option.default)
        if args.thresholds or args.prune_percent is not None:
            raise InputError(
                "--control=unpruned prunes nothing; leave out the percent "
                "(--n_rounds says how many rounds to train)"
            )
        args.prune_percent = 0
    if not args.thresholds and args.prune_percent is None:
        raise InputError(
            "--prune_percent is missing: an integer from 0 to 95 (or --thresholds, a list of them)"
        )
    if args.thresholds and args.n_rounds not in (None, len(args.thresholds)):
        raise InputError(
            f"--thresholds names {len(args.thresholds)} rounds and --n_rounds "
            f"{args.n_rounds}; leave out --n_rounds"
        )


def _check_together(args):
    if args.wait and processes()[1] > 1:
        raise InputError("--wait=True is for one process; torchrun's would give up while they wait")
    if args.init and (args.pretrained or args.control == "scratch"):
        other = "--pretrained=True" if args.pretrained else "--control=scratch"
        raise InputError(f"--init begins a training from scratch; leave out {other}")
    check_needed(Experiment, args)
    if args.latency_runtime == "onnxruntime":
        need("--latency_runtime=onnxruntime", *ONNX)
    if args.budget == "latency" and args.eb_detect:
        raise InputError(
            "--eb_detect=True needs filters that only change when the network does, "
            "and measured times always change; take --budget=macs"
        )
    if args.eb_detect and (args.control or args.pretrained or not args.ebt):
        raise InputError(
            "--eb_detect=True looks for the ticket while the network is trained in an "
            "Early-Bird job: it needs --ebt=True, and neither --pretrained=True nor "
            "--control"
        )
