"""Train, estimate importance, prune and retrain, or draw an Early-Bird ticket.

    python main.py --model=vgg --data_path=digits --preset=quick --ebt=True \\
                   --pruning_type=orthoreg --prune_percent=25
    python main.py --model=vgg --pruning_type=orthoreg --prune_percent=50 --n_rounds=2
    python main.py --model=resnet --only_train=ortho
"""
import itertools
import json
import os
import queue
import shlex
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from config import (BUDGETS, MODELS, MOMENTUM, PENALTY, PRESETS, PRUNING_TYPES, SWEEPS, InputError,
                    Parser, boolean, check_preset, counted, digest_of, exit_with, flag, heading,
                    integer, need, one_of, positive, processes, rising, run_command, to_csv, to_json,
                    uninterrupted, write_atomically)

# torch and what needs it is imported inside the functions: --help answers before that.


# -------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Experiment:
    """One command line, checked: the value of every flag."""
    data_path: str = flag(
        "data", "CIFAR100", "CIFAR100, CIFAR10, digits, or a folder with train/ and test/",
        metavar="DATA")
    image_size: int = flag(
        "data", 32, "height and width that images are brought to", type=integer(1, 1024),
        metavar="N")
    skip_bad_images: bool = flag(
        "data", False, "leave out the images of a folder that cannot be read, instead of stopping",
        type=boolean, metavar="BOOL")
    val_percent: int = flag(
        "data", 0, "percent of the training images to hold out; the best epoch is then chosen on "
        "them, and the test images are used once, at the end", type=integer(0, 50), metavar="N")
    num_classes: int = flag(
        "data", None, "only checked against the data", shown="from the data", type=integer(2),
        metavar="N")

    model: str = flag("training", "vgg", "the network", "-m", choices=MODELS)
    width: float = flag(
        "training", 1.0, "multiplies the widths of the unpruned network", type=positive(4),
        metavar="FACTOR")
    ebt: bool = flag(
        "training", False, "Early-Bird job: train briefly and prune once; else iterative pruning",
        type=boolean, metavar="BOOL")
    preset: str = flag(
        "training", "paper", "the set of schedules, see config.py", choices=PRESETS)
    optimizer: str = flag(
        "training", "sgd", "adam has learning rates of its own in config.py",
        choices=("sgd", "adam"))
    batch_size: int = flag(
        "training", None, "images in a training step", shown="the preset's", type=integer(2),
        metavar="N")
    init: str = flag(
        "training", None, "begin with the weights of this file, of this suite, published or of "
        "torchvision, as far as they fit", shown="fresh weights", metavar="FILE")
    seed: int = flag("training", 0, "of all random choices", type=integer(0), metavar="N")
    only_train: str = flag(
        "training", False, "train the plain network, or the one with the penalty, and stop",
        type=one_of("base", "ortho", False), metavar="{base,ortho,False}")
    pretrained: bool = flag(
        "training", False, "load the network to start from from pretrained/ instead of training it",
        type=boolean, metavar="BOOL")
    resume: bool = flag(
        "training", False, "go on with the run of this command that was stopped, with the same "
        "result", type=boolean, metavar="BOOL")
    wait: bool = flag(
        "training", False, "where another run writes the same files, wait until it has ended",
        type=boolean, metavar="BOOL")

    pruning_type: str = flag(
        "pruning", None, "importance estimator: " + ", ".join(PRUNING_TYPES),
        shown="none; required to prune", choices=PRUNING_TYPES, metavar="TYPE")
    prune_percent: int = flag(
        "pruning", None, "percent of all filters to remove, 0 to 95", "--pruning_percent",
        shown="none; this or --thresholds is required to prune", type=integer(0, 95), metavar="N")
    n_rounds: int = flag(
        "pruning", None, "rounds of pruning and retraining", shown=1, type=integer(1, 95),
        metavar="N")
    thresholds: tuple = flag(
        "pruning", (), "the percent after each round, as in '[10, 50, 80]'", shown="none",
        type=rising(0, 95), metavar="LIST")
    budget: str = flag(
        "pruning", "filters", "what the percent is of: filters, multiply-adds or parameters",
        choices=BUDGETS)
    round_to: int = flag(
        "pruning", 1, "widths of pruned layers go up to the next multiple of this, as 8, which "
        "hardware is fast at", type=integer(1, 1024), metavar="N")
    imp_samples: int = flag(
        "pruning", 10000, "training images that importance is measured on, at most all there are",
        type=integer(1), metavar="N")
    GraSP_T: float = flag(
        "pruning", 200.0, "temperature of grasp", shown=200, type=positive(1e6), metavar="T")
    rdt_projections: int = flag(
        "pruning", 3, "backward passes of rdt per minibatch; 0: one for each class, exact",
        type=integer(0, 1000), metavar="N")

    eb_detect: bool = flag(
        "pruning", False, "in an Early-Bird job, end the first training as soon as the filters that "
        "would be kept no longer change", type=boolean, metavar="BOOL")
    eb_epsilon: float = flag(
        "pruning", 0.1, "the share of filters by which the masks of 5 epochs may differ then",
        type=positive(1), metavar="SHARE")
    eb_samples: int = flag(
        "pruning", 2000, "training images that each epoch's mask is measured on", type=integer(1),
        metavar="N")
    control: str = flag(
        "pruning", False, "instead of pruning: train the unpruned network on for as many epochs, or "
        "the pruned architecture from scratch", type=one_of("unpruned", "scratch", False),
        metavar="{unpruned,scratch,False}")

    out: str = flag(
        "output", ".", "the folder in which pretrained/ and pruned_nets/ are", metavar="FOLDER")

    tensorboard: bool = flag(
        "output", False, "write TensorBoard's files beside the result", type=boolean,
        metavar="BOOL")
    print_config: bool = flag(
        "output", False, "show the whole job, schedules and files included, and stop", type=boolean,
        metavar="BOOL")

    device: str = flag(
        "hardware", "auto", "auto takes a GPU where there is one",
        choices=("auto", "cpu", "cuda", "mps"))
    amp: str = flag(
        "hardware", False, "train in this precision where autocast finds it safe; penalty, "
        "importance and accuracy stay float32", type=one_of("bfloat16", "float16", False),
        metavar="{bfloat16,float16,False}")
    compile: bool = flag(
        "hardware", False, "train through torch.compile, which takes a minute at the start of each "
        "training", type=boolean, metavar="BOOL")
    deterministic: bool = flag(
        "hardware", False, "the same bits again on a GPU too, where it is slower", type=boolean,
        metavar="BOOL")

    @property
    def identity(self):
        """The flags that make two runs the same."""
        return {name: value for name, value in asdict(self).items() if name not in NOT_OF_THE_RUN}

    @property
    def job(self):
        return "ebt" if self.ebt else "iterative"

    @property
    def schedule(self):
        return getattr(PRESETS[self.preset], self.job)

    @property
    def penalised(self):
        """Whether the network that pruning starts from, or that is trained, has the penalty."""
        return self.only_train == "ortho" or self.pruning_type == "orthoreg"

    @property
    def network(self):
        return self.model if self.width == 1 else f"{self.model}-w{self.width:.15g}"

    def base_file(self, folder, penalised):
        """Where a network before any pruning lives; each ticket that is searched for has its own."""
        ticket = ""
        if self.eb_detect:
            ticket = f"_{self.pruning_type}_{round((self.thresholds or [self.prune_percent])[0])}_ticket"
        name = (self.network + "_ortho" * penalised + ticket + f"_s{self.seed}" * (self.seed != 0))
        return Path(self.out) / "pretrained" / self.job / folder / f"{name}.pth"

    @property
    def method(self):
        """What is compared under this name: the pruning type, or a control of it."""
        if self.control == "unpruned":
            return f"{'ortho' if self.penalised else 'base'}-unpruned"
        return self.pruning_type + (f"-{self.control}" if self.control else "")

    def pruned_file(self, folder, percent, penalised):
        """Where a pruned network lives; `penalised`: it got the penalty for a round to come."""
        name = f"{self.network}_{self.method}_{round(percent)}{'_ortho' * penalised}"
        return Path(self.out) / "pruned_nets" / self.job / folder / f"{name}_{self.seed}.pth"


NOT_OF_THE_RUN = {"resume", "wait", "out", "tensorboard", "print_config"}


@dataclass(frozen=True)
class Sweep:
    """A command line that runs many experiments."""
    sweep: str = flag(
        "comparison", None, "run the experiments of a JSON file, or of an entry of SWEEPS in "
        f"config.py: {', '.join(SWEEPS)}", shown="none", metavar="FILE")
    jobs: int = flag(
        "comparison", 1, "how many of them at once; of several GPUs each takes one",
        type=integer(1, 1000), metavar="N")
    cell: int = flag(
        "comparison", None, "only the experiment of this number, and what it needs", shown="all",
        type=integer(1), metavar="K")
    print_config: bool = False


DEFAULTS = {each.name: each.default for each in fields(Experiment)
            if each.name not in NOT_OF_THE_RUN}

# Flags in which a control may differ from what it controls.
NOT_OF_A_CONTROL = {"control", "pretrained", "init", "data_path", "num_classes", "skip_bad_images",
                    "device", "compile", "deterministic"}


def make_parser():
    parser = Parser(prog="main.py", description=__doc__)
    parser.add_flags(Experiment)
    parser.add_flags(Sweep)
    return parser


def parse(argv):
    """The command line -> Experiment or Sweep. Raises InputError where flags contradict each other."""
    args = make_parser().parse_args(argv)
    sweep = Sweep(**{each.name: vars(args).pop(each.name) for each in fields(Sweep) if each.metadata})
    if sweep.sweep:
        for each in fields(Experiment):
            if getattr(args, each.name) != each.default and each.name != "print_config":
                raise InputError(f"--sweep runs what its file says; leave out --{each.name}"
                                 + ", or write it there" * (each.name not in SET_BY_SWEEPS))
        if processes()[1] > 1:
            raise InputError("--sweep starts processes itself; run it without torchrun")
        return replace(sweep, print_config=args.print_config)
    if sweep != Sweep():
        raise InputError("--jobs and --cell are of a --sweep")
    check_preset(args.preset)
    if args.only_train:
        for each in fields(Experiment):
            if each.metadata["group"] == "pruning" and getattr(args, each.name) != each.default:
                raise InputError(f"--only_train={args.only_train} trains and stops, it does not "
                                 f"prune; leave out --{each.name}")
        if args.pretrained and (args.only_train == "base" or args.ebt):
            raise InputError(f"--only_train={args.only_train} trains from scratch here, so there "
                             "is nothing to load; leave out --pretrained=True")
    else:
        if not args.pruning_type:
            raise InputError(f"--pruning_type is missing: one of {', '.join(PRUNING_TYPES)}; to "
                             "prune nothing: --only_train=base or --only_train=ortho")
        if args.thresholds and args.prune_percent is not None:
            raise InputError("--thresholds and --prune_percent contradict each other; "
                             "leave out one of them")
        if args.control == "unpruned":
            if args.thresholds or args.prune_percent is not None:
                raise InputError("--control=unpruned prunes nothing; leave out the percent "
                                 "(--n_rounds says how many rounds to train)")
            args.prune_percent = 0
        if not args.thresholds and args.prune_percent is None:
            raise InputError("--prune_percent is missing: an integer from 0 to 95 "
                             "(or --thresholds, a list of them)")
        if args.thresholds and args.n_rounds not in (None, len(args.thresholds)):
            raise InputError(f"--thresholds names {len(args.thresholds)} rounds and --n_rounds "
                             f"{args.n_rounds}; leave out --n_rounds")
    rounds = len(args.thresholds) or args.n_rounds or 1
    if args.ebt and rounds > 1:
        raise InputError(f"--ebt=True prunes once, and {rounds} rounds are asked for; leave out "
                         "--ebt=True to prune iteratively, or ask for one round")
    if args.wait and processes()[1] > 1:
        raise InputError("--wait=True is for one process; torchrun's would give up while they wait")
    if args.init and (args.pretrained or args.control == "scratch"):
        raise InputError("--init begins a training from scratch; leave out " + (
            "--pretrained=True" if args.pretrained else "--control=scratch"))
    if args.eb_detect and (args.control or args.pretrained or not args.ebt):
        raise InputError("--eb_detect=True looks for the ticket while the network is trained in an "
                         "Early-Bird job: it needs --ebt=True, and neither --pretrained=True nor "
                         "--control")
    batch_size = args.batch_size or PRESETS[args.preset].batch_size
    if batch_size < 2 * processes()[1]:
        raise InputError(f"--batch_size={batch_size} is less than two images for each of the "
                         f"{processes()[1]} processes")
    return Experiment(**vars(args) | {"n_rounds": rounds, "batch_size": batch_size})


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv

    def body():
        flags = parse(argv)
        if flags.print_config:
            return print(to_json(describe(flags)).decode())
        if isinstance(flags, Sweep):
            return run_sweep(flags)
        Run(flags, argv).run()
        from train import leave_processes
        leave_processes()
    return run_command("main.py", body)


def describe(flags):
    """What --print_config shows, as plain values. Nothing is run, and no images are looked at."""
    if isinstance(flags, Experiment):
        return Job(flags).described()
    cells, runs = ([shlex.join(["python", "main.py", *command_of(cell)]) for cell in of]
                   for of in plan_sweep(flags))
    return {"cells": cells, "order": runs}


# ----------------------------------------------------------------------------- steps of the job


ORIGINS = ("load base", "train base", "load ortho", "train ortho", "load base, train ortho",
           "train base, train ortho")


class Job:
    """What an experiment does: its steps in order, their recipes, and the files.

    folder: what stands before the names of files that belong to the data. begin: where the unpruned
    network comes from.
    """

    def __init__(self, flags):
        from data import folder_of
        from pruner import round_targets
        self.flags, self.folder = flags, folder_of(flags.data_path)
        self.targets = [float(t) for t in flags.thresholds] or round_targets(
            flags.prune_percent or 0, flags.n_rounds)
        shared = len({round(target) for target in self.targets}) < len(self.targets)
        if shared and not flags.control:
            raise InputError(f"{flags.n_rounds} rounds to {flags.prune_percent}% would share file "
                             "names, which hold whole percents; ask for fewer rounds")
        self.begin = self.origin()

    def origin(self):
        """Where the unpruned network comes from, by what files there are: one of ORIGINS."""
        flags = self.flags
        final = "ortho" if flags.penalised else "base"
        afresh = flags.init or flags.control == "scratch"
        pretrained = flags.pretrained and not afresh
        load = pretrained and not flags.only_train
        if final == "base" or flags.ebt:
            return f"{'load' if load else 'train'} {final}"
        # In the iterative job the penalty goes on from the plain network, where it is there.
        ortho, plain = (self.file(phase, 0).is_file() and not afresh for phase in ("ortho", "base"))
        if load and (ortho or not plain):
            return "load ortho"
        return ("load" if plain or pretrained else "train") + " base, train ortho"

    def steps(self):
        """The job in its order: each step the name of a method of Run and its arguments, which are
        a phase, or None, and the number of a round, 0 for what precedes all pruning. A control has
        all trainings of the pruned network, on one architecture."""
        control, rounds = self.flags.control, len(self.targets) * (not self.flags.only_train)
        steps = [("start_afresh", None, rounds)] * (control == "scratch")
        for action, phase in map(str.split, self.begin.split(", ")):
            steps.append((action, phase, 0))
            if action == "train" and control != "scratch":
                steps.append(("save", phase, 0))
        steps += [("keep_all", None, rounds)] * (control == "unpruned")
        for number in range(1, 1 + rounds):
            phases = ("between", "ortho") if self.penalty_follows(number) else ("retrain",)
            if not control:
                steps += [("estimate", None, number), ("prune", None, number)]
            steps += [("train", phase, number) for phase in phases]
            if not control or number == rounds:
                steps.append(("save", phases[-1], number))
        return steps

    def training(self, phase, number):
        """The name of a training; those of a control, which end in one file, have their round."""
        return f"{phase} {number}" if self.flags.control and number else phase

    def penalty_follows(self, number):
        """Whether round `number` ends with the penalty's training, for a round to come."""
        return self.flags.penalised and number < len(self.targets)

    def recipe(self, phase):
        return getattr(self.flags.schedule, phase) or self.flags.schedule.retrain

    def settings(self, *trainings):
        """What a network is trained by: name of a training -> everything that shapes it."""
        flags, settings = self.flags, {}
        for training in trainings:
            phase = training.split()[0]
            recipe = self.recipe(phase)
            settings[training] = {
                "lr": recipe.rates(flags.optimizer), "weight_decay": recipe.weight_decay,
                "optimizer": flags.optimizer, "batch_size": flags.batch_size, "amp": flags.amp,
                "penalty": PENALTY[flags.model] if phase == "ortho" else 0}
        return settings

    def file(self, phase, number):
        """Where the network lives that training `phase` of round `number` ends with."""
        if not number:
            return self.flags.base_file(self.folder, phase == "ortho")
        return self.flags.pruned_file(self.folder, self.targets[number - 1], phase == "ortho")

    @property
    def resume_file(self):
        return self.outputs()[-1].with_suffix(".resume")

    def outputs(self):
        """The files that the job writes, in order."""
        return [self.file(*arguments) for step, *arguments in self.steps() if step == "save"]

    def take_up(self, begin, done):
        """Make it the job of a resume file, of which `done` steps are done. Raises InputError."""
        from train import damaged
        path, self.begin = self.resume_file, begin
        if begin not in ORIGINS or done not in range(len(self.steps())):
            raise damaged(path)
        return done

    def described(self):
        """All of it as plain values."""
        from train import pick_device, read_progress
        flags, steps, done = self.flags, [], 0
        if flags.resume and self.resume_file.is_file():
            done = self.take_up(*read_progress(self.resume_file))
        try:
            device = str(pick_device(flags.device))
        except InputError as error:  # a job may be looked at on another machine than it runs on
            device = str(error)
        for step, phase, number in self.steps():
            entry = {"step": step.replace("_", " "), "round": number, "phase": phase}
            if step in ("load", "save"):
                entry["file"] = str(self.file(phase, number))
            if step == "load":
                entry["is there"] = self.file(phase, number).is_file()
            if step == "train":
                recipe = self.recipe(phase)
                entry |= {**self.settings(phase)[phase], "lr": recipe.lr_of(flags.optimizer),
                          "epochs": list(recipe.epochs)}
            if step == "estimate":
                entry |= {"method": flags.pruning_type, "training images": flags.imp_samples}
            if step == "prune":
                entry["percent"] = self.targets[number - 1]
            if len(steps) < done:
                entry["is done"] = True
            steps.append({key: value for key, value in entry.items() if value is not None})
        return {"flags": asdict(flags), "device": device,
                "momentum": MOMENTUM, "steps": steps, "resume file": str(self.resume_file)}


class Run(Job):
    """A job under way: the methods that its steps name change `network` and `state`."""

    def __init__(self, flags, argv=(), data=None):
        with uninterrupted():  # libraries do not survive an interruption while they load
            from data import load_data
            from train import (State, as_first, first_alone, join_processes, pick_device,
                               require_same)
        super().__init__(flags)
        self.argv = argv
        self.device = pick_device(flags.device, flags.deterministic)
        join_processes(self.device)
        if flags.tensorboard:
            need("tensorboard")
        with first_alone():  # it may have to download them
            self.data = data or load_data(flags.data_path, flags.image_size, flags.skip_bad_images)
        self.data = self.data.hold_out(flags.val_percent, flags.seed)
        if flags.num_classes not in (None, len(self.data.classes)):
            raise InputError(f"--num_classes={flags.num_classes}, but {flags.data_path} has "
                             f"{len(self.data.classes)} classes")
        for count in [flags.imp_samples] + [flags.eb_samples] * flags.eb_detect:
            self.importance_batches(1, count)  # refuses too few images before any training
        if len(self.data.train) < 2 * processes()[1]:
            raise InputError(f"{len(self.data.train)} training images are less than two for each of "
                             f"the {processes()[1]} processes")
        self.init = digest_of(flags.init) if flags.init else None
        if flags.init and Path(flags.init).resolve() in [path.resolve() for path in self.outputs()]:
            raise InputError(f"--init={flags.init} would be replaced by this very run; copy it first")
        self.begin = as_first(self.begin)
        require_same("the command, the schedules or the images", self.identity)
        self.network, self.state = None, State(self.begin)
        self.kept = self.resumed = False  # the state, from a file
        self.writers = {}  # of TensorBoard: training -> (its writer, epochs that it has)
        self.logged = {}  # training -> epochs of before the resume

    def run(self):
        from eval import print_summary
        from train import as_first, check_writable, is_first, locked, require_same
        before = self.resume_stamp()
        if as_first(self.flags.resume and bool(self.say_if_finished())):
            return
        self.introduce()
        self.resume()
        require_same("the resume file", [self.state.begin, self.state.done, [
            [phase, len(training.history), training.sums and training.sums["batches"]]
            for phase, training in self.state.trained.items()]])  # read by all by now
        self.data = self.data.to(self.device)
        files = [*self.outputs(), self.resume_file]
        with ExitStack() as stack:
            changed = False
            if is_first():
                for path in files:
                    for kind in (path.suffix, ".csv", ".json"):
                        check_writable(path.with_suffix(kind))
                if self.flags.tensorboard:
                    check_writable(self.tensorboard_folder / "events")
                stack.enter_context(locked(files, self.flags.wait))
                changed = self.resume_stamp() != before
                if not self.flags.wait and changed:
                    raise InputError(f"another run has just changed {self.resume_file}; try again")
                changed |= self.flags.wait and self.flags.resume and bool(self.finished())
            changed = as_first(changed)
            if not changed:
                self.go_on()
                if is_first():
                    self.resume_file.unlink(missing_ok=True)
        if changed:  # by the run that was waited for: look anew
            return Run(self.flags, self.argv).run()
        print_summary(self.state.records)

    def go_on(self):
        """Do the steps that are not done yet; keep what is needed to go on from where this ends."""
        steps = self.steps()
        try:
            while self.state.done < len(steps):
                step, phase, number = steps[self.state.done]
                getattr(self, step)(*[phase] * (phase is not None), number)
                self.state.done += 1
                if step != "train" and self.state.done < len(steps):
                    self.keep()  # `train` does so itself, after every epoch
        except KeyboardInterrupt as stop:
            if not self.kept:
                raise
            if processes()[1] > 1:
                raise KeyboardInterrupt("the last epoch's state is saved, the same torchrun command "
                                        "goes on from it with --resume=True") from stop
            again = shlex.join(["python", os.path.relpath(__file__), *self.argv,
                                *["--resume=True"] * (not self.flags.resume)])
            raise KeyboardInterrupt(f"the state is saved, this goes on: {again}") from stop

    def announce(self, number, step, text):
        steps = 4 if self.penalty_follows(number) else 3
        heading(f"Round {number} of {len(self.targets)}, step {step} of {steps}: {text}")

    def introduce(self):
        from eval import environment, of_budget
        flags, data = self.flags, self.data
        goal = (f"train the {flags.only_train} network" if flags.only_train else
                f"the control {flags.method}" if flags.control else
                f"prune to {', '.join(f'{t:.4g}%' for t in self.targets)}{of_budget(flags.budget)} by "
                f"{flags.pruning_type}")
        steps = len(data.train_batches(flags.batch_size, key=()))
        print(f"{MODELS[flags.model]}, {'Early-Bird' if flags.ebt else 'iterative'} job: {goal}\n"
              f"  data    {data.name}: {len(data.train):,} training and {len(data.test):,} test "
              f"images of {len(data.classes)} classes, {data.image_size} x {data.image_size}"
              + (f", {len(data.validation):,} validation images" if data.validation else "") + "\n"
              f"  device  {environment(self.device)['device']}"
              + f", in each of {processes()[1]} processes" * (processes()[1] > 1) + "\n"
              f"  recipe  preset {flags.preset}, {flags.optimizer}, batch {flags.batch_size} "
              f"({counted(steps, 'step')} in an epoch), seed {flags.seed}")
        if steps < 10:
            print("  Note: so few steps may teach it nothing; a smaller --batch_size gives more")

    def load(self, phase, number):
        from eval import accuracy_text, check_data, check_holds, measure_record
        from pruner import load_checkpoint
        from train import evaluate
        flags, path = self.flags, self.file(phase, number)
        heading("Load the trained network")
        again = (f"the same command with --only_train={phase}, without --pretrained=True and the "
                 "pruning flags, trains it")
        if not path.is_file():
            raise InputError(f"--pretrained=True needs {path}; {again}")
        network, info = load_checkpoint(path)
        check_holds(path, network, info, model=flags.model, width=flags.width)
        check_data(path, network, info, self.data)
        self.network = network.to(self.device)
        accuracy = {**info.get("accuracy", {}), "best": evaluate(network, self.data.test_batches())}
        print(f"  {path}: test {accuracy_text(accuracy['best'])}")
        if info.get("training") not in (None, self.settings(phase)):
            print(f"  Note: it was trained with other settings than this job's; {again} anew")
        if info.get("fingerprint") not in (None, self.data.fingerprint):
            if self.data.validation:
                raise InputError(f"{path} was trained on other images than --val_percent="
                                 f"{flags.val_percent} leaves, maybe on those held out; {again} anew")
            print(f"  Note: it was trained on other images than {self.data.name} has now; {again} anew")
        if info["pruned"]:
            print("  Note: it is pruned already; percents count the unpruned network's filters")
        self.state.records = [measure_record(path, network, {
            **info, "accuracy": accuracy, "image_size": self.data.image_size}, path.stat().st_size)]

    def train(self, phase, number):
        """Train by the schedule's recipe for `phase`, with the penalty where it is "ortho"."""
        from eval import measure_orthogonality, print_orthogonality
        from train import OrthonormalityPenalty, Training, fit
        flags, penalty = self.flags, None
        if flags.control == "scratch" or flags.control and number:
            heading(f"Control: train the {'fresh' if flags.control == 'scratch' else 'unpruned'} "
                    "network" + f", as in round {number}" * bool(number)
                    + ", with the penalty" * (phase == "ortho"))
        elif not number:
            heading("Train with the penalty" if phase == "ortho" else "Train the plain network")
        elif phase == "ortho":
            self.announce(number, 4, "train with the penalty, for the next round")
        else:
            last = flags.penalised and phase == "retrain"
            self.announce(number, 3, "retrain" + (
                ", without the penalty since no round follows" if last else ""))
        if self.network is None:
            self.network = self.fresh_network()
        if phase == "ortho":
            penalty = OrthonormalityPenalty(self.network, PENALTY[flags.model])
        ticket = self.ticket() if flags.eb_detect and not number else None
        # Networks that start afresh see the images in the same order, with the penalty or without.
        key = (flags.seed, "base" if flags.ebt and not number else phase, number)
        trained = fit(self.network, self.data, self.recipe(phase), key=key,
                      batch_size=flags.batch_size, optimizer=flags.optimizer, penalty=penalty,
                      label=f"round {number}, " * (number > 0) + phase, amp=flags.amp,
                      compiled=flags.compile, ticket=ticket,
                      training=self.state.trained.setdefault(self.training(phase, number), Training()),
                      keep=self.keep)
        if trained.chosen_on == "ticket":
            print(f"  the ticket is drawn after {trained.last['epoch']} epochs, with "
                  f"{trained.last['top1']:.2f}% on the test images; --eb_epsilon={flags.eb_epsilon:g}")
        else:
            if ticket:
                few = len(trained.history) <= ticket.older
                print("  no ticket was found: the whole schedule ran; "
                      f"--eb_epsilon={flags.eb_epsilon:g}"
                      + f", and the masks of {ticket.older + 1} epochs are needed, of "
                        f"{len(trained.history)} here" * few)
            print(f"  best epoch, chosen on the {trained.chosen_on} images: {trained.best['epoch']} "
                  f"with {trained.best['top1']:.2f}%; last epoch {trained.last['top1']:.2f}%" + (
                      ", both on the test images" if self.data.validation else ""))
        if penalty:
            print_orthogonality(measure_orthogonality(self.network))

    def fresh_network(self, widths=None):
        from data import seed_of
        from models import build_model
        from pruner import initialise
        import torch
        flags = self.flags
        torch.manual_seed(seed_of(flags.seed, "initialisation"))
        network = build_model(flags.model, len(self.data.classes), widths, flags.width)
        if flags.init:
            print("\n".join(f"  {line}" for line in initialise(network, flags.init)))
        return network.to(self.device)

    def ticket(self):
        """How this job finds its ticket: by what it would prune now, judged on the same images."""
        from pruner import kept_mask, select_filters
        from train import EarlyBird, require_same
        batches = self.importance_batches(0, self.flags.eb_samples)

        def mask():
            kept = select_filters(self.network, self.scores(batches, 0), self.targets[0],
                                  *self.selection())
            require_same("the mask of the ticket", {name: of.tolist() for name, of in kept.items()})
            return kept_mask(kept, self.network)
        return EarlyBird(mask, self.flags.eb_epsilon)

    def selection(self):
        """How filters are counted, for `select_filters`."""
        return self.flags.budget, self.flags.round_to, self.data.image_size

    def importance_batches(self, number, count):
        """`count` images for the estimate of round `number`, 0 for the search of a ticket; None for
        a method that needs none."""
        from imp_estimator import NEEDS_DATA
        flags = self.flags
        if flags.pruning_type not in NEEDS_DATA:
            return None
        return self.data.train_batches(
            flags.batch_size, key=(flags.seed, "importance", number), count=count,
            balanced=flags.pruning_type == "grasp")

    def scores(self, batches, number):
        from data import seed_of
        from imp_estimator import cal_importance
        flags = self.flags
        try:
            return cal_importance(
                self.network, flags.pruning_type, batches, temperature=flags.GraSP_T,
                projections=flags.rdt_projections, seed=seed_of(flags.seed, "random", number))
        except ValueError as error:
            raise InputError(f"{error}; the network that was scored is of no use") from error

    def estimate(self, number):
        flags, began = self.flags, time.monotonic()
        batches = self.importance_batches(number, flags.imp_samples)
        source = f"{len(batches.order):,} training images" if batches else "weights alone"
        if flags.pruning_type == "random":
            source = f"seed {flags.seed}"
        self.announce(number, 1, f"importance by {flags.pruning_type}, from {source}")
        self.state.scores = self.scores(batches, number)
        self.state.seconds["importance"] = time.monotonic() - began

    def prune(self, number):
        from eval import accuracy_text, of_budget, print_pruning
        from pruner import prune, select_filters
        from train import evaluate, require_same
        target, began = self.targets[number - 1], time.monotonic()
        budget = self.flags.budget
        self.announce(number, 2, f"remove filters until {target:.4g}%{of_budget(budget)} are gone")
        kept = select_filters(self.network, self.state.scores, target, *self.selection())
        require_same("the filters to keep", {name: of.tolist() for name, of in kept.items()})
        small = prune(self.network, kept)
        self.state.seconds["pruning"] = time.monotonic() - began
        print_pruning(self.network, small, target, self.data.image_size, budget,
                      self.flags.round_to)
        self.network, accuracy = small, evaluate(small, self.data.test_batches())
        print(f"  test accuracy right after pruning: {accuracy_text(accuracy)}")
        self.state.scores = None
        self.note_pruning(number, accuracy)

    def note_pruning(self, number, accuracy=None):
        from pruner import max_percent, pruned_percent
        budget, round_to, size = self.selection()
        self.state.pruning = {
            "round": number, "rounds": len(self.targets), "control": self.flags.control,
            "requested_percent": self.targets[number - 1],
            "achieved_percent": pruned_percent(self.network, budget, size),
            "max_percent": max_percent(self.network, budget, size, round_to), "after_pruning": accuracy}

    def keep_all(self, number):
        heading("Control: nothing is pruned")
        self.note_pruning(number)

    def start_afresh(self, number):
        """Begin with fresh weights in the architecture that the pruned network has."""
        from eval import check_data, check_holds, measure_record
        from pruner import load_checkpoint
        flags = self.flags
        path = replace(flags, control=False).pruned_file(self.folder, self.targets[-1], False)
        heading("Control: the pruned architecture from scratch")
        if not path.is_file():
            raise InputError(f"--control=scratch needs the architecture of {path}; the same command "
                             "without --control makes it")
        pruned, info = load_checkpoint(path)
        check_holds(path, pruned, info, model=flags.model, width=flags.width)
        check_data(path, pruned, info, self.data)
        for name, default in DEFAULTS.items() if "flags" in info else ():
            then, now = info["flags"].get(name, default), getattr(flags, name)
            if name not in NOT_OF_A_CONTROL and to_json(then) != to_json(now):
                raise InputError(f"{path} was pruned with --{name}={then}, not {now}")
        print(f"  its architecture is that of {path}")
        self.state.records = [measure_record(path, pruned, {
            "image_size": self.data.image_size, **info}, path.stat().st_size)]
        self.network = self.fresh_network(pruned.widths)
        self.note_pruning(number)

    # ---------------------------------------------------------------------------------- files

    def save(self, phase, number):
        """Write the checkpoint and, of a pruned network, the .json beside it."""
        from eval import environment, history_rows, measure_record
        from pruner import checkpoint_bytes
        from train import State, is_first
        state, flags, path = self.state, self.flags, self.file(phase, number)
        training = state.trained[self.training(phase, number)]
        accuracy = {name: getattr(training, name) for name in ("best", "last", "chosen_on")}
        info = {
            **self.identity, "data": self.data.name, "data_path": flags.data_path,
            "classes": list(self.data.classes), "image_size": self.data.image_size,
            "seed": flags.seed, "job": flags.job, "penalised": phase == "ortho",
            "training": self.settings(*state.trained),
            "accuracy": accuracy, "environment": environment(self.device),
            "history": {phase: training.history for phase, training in state.trained.items()},
            "seconds": {**state.seconds, **{p: t.seconds for p, t in state.trained.items()}}}
        if number:
            info["pruning"] = state.pruning
        contents = {path: checkpoint_bytes(self.network, info)}
        record = measure_record(path, self.network, info, len(contents[path]))
        contents[path.with_suffix(".csv")] = to_csv(history_rows(record))
        if number:
            record["pruned" if flags.control == "scratch" else "base"] = state.records[0]
            contents[path.with_suffix(".json")] = to_json(record)
        if is_first():
            write_atomically(contents)
        print(f"  saved {path}, beside it "
              + ".csv, the history of its training" + " and .json, all figures" * (number > 0))
        if self.flags.tensorboard:
            print(f"  TensorBoard's files are in {self.tensorboard_folder}")
        self.state = State(state.begin, state.done, [*state.records * (number > 0), record])

    # --------------------------------------------------------------------------------- resume

    @property
    def identity(self):
        """What makes two runs the same: the entries of a checkpoint by which they are compared."""
        identity = {"flags": self.flags.identity, "fingerprint": self.data.fingerprint, "schedule": {
            **asdict(self.flags.schedule), "penalty": PENALTY[self.flags.model],
            "momentum": MOMENTUM}}
        return {**identity, "content of --init": self.init} if self.init else identity

    def resume_stamp(self):
        """What changes whenever the resume file does."""
        path = self.resume_file
        return (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None

    def keep(self):
        from train import is_first, write_resume_file
        if is_first():
            if self.flags.tensorboard:
                self.log()
            write_resume_file(self.resume_file, self.network, self.state, self.identity)
        self.kept = True

    def log(self):
        """Add the epochs that are new to TensorBoard's files, in a folder for each training."""
        from eval import layer_widths, measure_orthogonality
        trainings = self.histories()
        for name, rows in trainings.items():
            if name not in self.writers:
                self.writers[name] = self.tensorboard_writer(name)
            writer, known = self.writers[name]
            for row in rows[known:]:
                for key, value in row.items():
                    if isinstance(value, (int, float)) and key not in ("round", "epoch"):
                        writer.add_scalar(key, value, row["epoch"])
            if rows[known:] and name == list(trainings)[-1]:  # the network is that of its last epoch
                for key, of in (("width", layer_widths(self.network)),
                                ("orthogonality of", measure_orthogonality(self.network)["layers"])):
                    for layer, value in of.items():
                        writer.add_scalar(f"{key}/{layer}", value, rows[-1]["epoch"])
            writer.flush()
            self.writers[name] = writer, len(rows)

    def histories(self):
        """Round and phase of each training since the last file -> the rows of its history."""
        from eval import history_rows
        histories = (history_rows({"history": {name: training.history}, "pruning": self.state.pruning})
                     for name, training in self.state.trained.items())
        return {"round {round} {phase}".format(**rows[0]): rows for rows in histories if rows}

    @property
    def tensorboard_folder(self):
        return self.resume_file.with_suffix(".tensorboard")

    def tensorboard_writer(self, name):
        """(a writer for a training, how many of its epochs its files have)."""
        from torch.utils.tensorboard import SummaryWriter
        folder = self.tensorboard_folder / name.replace(" ", "-")
        files = list(folder.glob("events.out.tfevents.*"))
        known = self.logged.get(name, 0) if files else 0
        for old in files if not self.resumed else ():
            old.unlink()
        return SummaryWriter(folder, purge_step=known + 1), known

    def resume(self):
        from train import read_resume_file
        path, wanted = self.resume_file, self.flags.resume
        if wanted and path.is_file():
            network, self.state = read_resume_file(path, self.identity, DEFAULTS)
            self.take_up(self.state.begin, self.state.done)
            self.network, steps = network.to(self.device), self.steps()
            self.kept = self.resumed = True
            step, *which = steps[self.state.done]
            under_way = self.state.trained.get(self.training(*which)) if step == "train" else None
            epochs = f", and {len(under_way.history)} epochs of the next" if under_way else ""
            self.logged = {name: len(rows) for name, rows in self.histories().items()}
            print(f"  resumed from {path}: {self.state.done} of {len(steps)} steps are done{epochs}")
        elif wanted:
            others = ", ".join(str(other) for other in sorted(path.parent.glob("*.resume")))
            print(f"  there is no {path} to resume from: this run begins at the beginning" + (
                f"; other commands left {others}" if others else ""))
        elif path.is_file():
            print(f"  Note: {path} is of a run that was stopped, and --resume=True goes on from it; "
                  "this run begins anew and will replace it")

    def finished(self):
        """The test accuracy of what this very command has left, where nothing is under way; None
        where it is not finished."""
        from pruner import load_checkpoint
        path = self.outputs()[-1]
        if self.resume_file.is_file() or not path.is_file():
            return None
        _network, info = load_checkpoint(path)
        info["flags"] = {**DEFAULTS, **info.get("flags", {})}
        same = to_json({key: info.get(key) for key in self.identity}) == to_json(self.identity)
        return info["accuracy"]["best"] if same and "accuracy" in info else None

    def say_if_finished(self):
        from eval import accuracy_text
        accuracy = self.finished()
        if accuracy:
            print(f"This run is finished: {self.outputs()[-1]}, test {accuracy_text(accuracy)}; "
                  "without --resume=True it is run anew")
        return accuracy


# -------------------------------------------------------------------------------------- sweeps


def read_sweep(name):
    """The cells of a sweep, in order: one dict of flags for each experiment.

    A sweep is a dict, flag -> value or list of values; every combination is a cell. A control that
    does not depend on the method or the percent is one cell. Raises InputError.
    """
    settings = SWEEPS.get(name)
    if settings is None:
        try:
            settings = json.loads(Path(name).read_text(), object_pairs_hook=once)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"--sweep={name} is neither in config.py ({', '.join(SWEEPS)}) nor a "
                             f"JSON file that can be read ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"--sweep={name} holds no flags; it looks like {{\"model\": [\"vgg\"], "
                         "...}")
    allowed, parser = {each.name for each in fields(Experiment)} - SET_BY_SWEEPS, make_parser()
    choices = {}
    for key, values in settings.items():
        if key not in allowed:
            raise InputError(f"--sweep={name}: {key!r} is no flag of an experiment that a sweep "
                             "leaves open")
        if values == []:
            raise InputError(f"--sweep={name}: {key!r} has no value")
        choices[key] = [getattr(parser.parse_args([f"--{key}={value}"]), key)
                        for value in (values if isinstance(values, list) else [values])]
    cells = []
    for values in itertools.product(*choices.values()):
        cell = dict(zip(choices, values))
        if cell.get("control") == "unpruned":
            rounds = cell.get("thresholds")
            cell = {key: value for key, value in cell.items() if key not in OF_THE_PRUNED}
            cell |= {"n_rounds": len(rounds)} if rounds else {}
            if cell.get("pruning_type") != "orthoreg":
                cell["pruning_type"] = "fisher"  # for all that start from the plain network
        if cell not in cells:
            cells.append(cell)
    return cells


def once(pairs):
    """The dict of JSON's pairs. Raises ValueError where a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


SET_BY_SWEEPS = {"only_train", "pretrained", "resume", "wait", "print_config"}
OF_THE_PRUNED = {"prune_percent", "thresholds", "eb_detect", "eb_epsilon", "eb_samples"}


def command_of(cell):
    """The command line of a cell: what needs no other begins with --init, others load."""
    needs = needs_of(cell)
    loads = bool(needs) and cell.get("control") != "scratch"
    return [f"--{name}={value}" for name, value in cell.items() if name != "init" or not needs] + [
        "--pretrained=True"] * loads + ["--resume=True", "--wait=True"]


def needs_of(cell):
    """The cells that must be finished before a cell can be run."""
    if cell.get("control") == "scratch":
        return [{**cell, "control": False}]
    only = cell.get("only_train")
    if only == "base" or cell.get("ebt") and (only or cell.get("eb_detect")):
        return []
    training = {each.name: cell[each.name] for each in fields(Experiment)
                if each.name in cell and each.metadata["group"] != "pruning"}
    return [{**training, "only_train": "ortho" if cell.get("pruning_type") == "orthoreg" else "base"}]


def plan_sweep(sweep):
    """(the cells of a sweep, all runs that it takes: each needs only some before it)."""
    cells = read_sweep(sweep.sweep)
    if sweep.cell and sweep.cell > len(cells):
        raise InputError(f"--cell={sweep.cell}: the sweep has {len(cells)}")
    runs = []

    def place(cell):
        for needed in needs_of(cell):
            place(needed)
        if cell not in runs:
            parse(command_of(cell))  # refuses flags that contradict each other
            runs.append(cell)

    for cell in cells[sweep.cell - 1:sweep.cell] if sweep.cell else cells:
        place(cell)
    return cells, runs


def run_sweep(sweep):
    """Run the cells of a sweep, what they need first, each as a process of its own."""
    cells, runs = plan_sweep(sweep)
    Comparison(cells, sweep.jobs).run(runs)


class Comparison:
    """A sweep under way."""

    def __init__(self, cells, jobs):
        with uninterrupted():
            from data import load_data
        self.cells, self.jobs, self.load = cells, jobs, lru_cache(load_data)
        self.running, self.stopped = set(), False
        self.failed = {}  # name of a run -> its cell
        self.slots = queue.SimpleQueue()
        for slot in range(jobs):
            self.slots.put(slot)

    def prepare(self, cell):
        argv = command_of(cell)
        flags = parse(argv)
        return Run(flags, argv, self.load(flags.data_path, flags.image_size, flags.skip_bad_images))

    def run(self, runs):
        files = {}
        for cell in runs:  # all are looked at before one is run
            for path in self.prepare(cell).outputs():
                other = files.setdefault(path, cell)
                if other != cell:
                    raise InputError(f"two cells of the sweep would write {path}: {other} and "
                                     f"{cell}; run them as sweeps of their own, in other folders")
        own = sum(cell in self.cells for cell in runs)
        print(f"{own} experiments, {len(runs)} runs with what they need, "
              f"{self.jobs} at once", flush=True)
        waiting, under_way, done = [(cell, needs_of(cell)) for cell in runs], {}, []
        pool = ThreadPoolExecutor(self.jobs)
        try:
            while waiting or under_way:
                ready = [each for each in waiting if all(needed in done for needed in each[1])]
                waiting = [each for each in waiting if each not in ready]
                under_way |= {pool.submit(self.run_cell, cell): cell for cell, _ in ready}
                for each in wait(under_way, return_when=FIRST_COMPLETED).done:
                    done.append(under_way.pop(each))
                    print(f"  {len(done)} of {len(runs)}, {each.result()}", flush=True)
        except BaseException as stop:
            with uninterrupted():
                self.stopped = True
                for process in list(self.running):
                    process.terminate()
                pool.shutdown(cancel_futures=True)
            if isinstance(stop, KeyboardInterrupt):
                raise KeyboardInterrupt("the same command goes on with this sweep") from stop
            raise
        pool.shutdown()
        if self.failed:
            raise InputError(f"{len(self.failed)} of {len(runs)} runs failed: "
                             f"{', '.join(self.failed)}; the .log files beside their results say why")

    def name(self, cell, run):
        number = f"cell {self.cells.index(cell) + 1}, " if cell in self.cells else ""
        return f"{number}{run.outputs()[-1].with_suffix('')}"

    def run_cell(self, cell):
        """Run a cell unless it is finished; a line on how that went."""
        from eval import accuracy_text
        run, began = self.prepare(cell), time.monotonic()
        name = self.name(cell, run)
        try:
            accuracy = run.finished()
            if accuracy:
                return f"{name}: test {accuracy_text(accuracy)}, was finished"
            if any(needed in list(self.failed.values()) for needed in needs_of(cell)):
                how = "LEFT OUT, since what it needs failed"
            else:
                code, log = self.execute(run)
                accuracy, seconds = run.finished(), time.monotonic() - began
                if accuracy and not code:
                    return f"{name}: test {accuracy_text(accuracy)}, {seconds:.0f} s"
                lines = log.read_text(errors="replace").splitlines() or ["no output"]
                how = f"FAILED with exit code {code}: {lines[-1]}"
        except (InputError, OSError) as error:
            how = f"FAILED: {error}"
        self.failed[name] = cell
        return f"{name}: {how}"

    def execute(self, run):
        import torch
        log, slot = run.outputs()[-1].with_suffix(".log"), self.slots.get()
        environment = dict(os.environ)
        if torch.cuda.device_count() > 1:
            devices = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(
                map(str, range(torch.cuda.device_count())))
            devices = devices.split(",")
            environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        if self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // self.jobs)))
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "a") as output:
                if self.stopped:
                    return 130, log
                process = subprocess.Popen([sys.executable, __file__, *run.argv], env=environment,
                                           stdout=output, stderr=subprocess.STDOUT,
                                           start_new_session=True)
                self.running.add(process)
                code = process.wait()
                self.running.discard(process)
            return code, log
        finally:
            self.slots.put(slot)


if __name__ == "__main__":
    exit_with(main())
