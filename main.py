"""Train, estimate importance, prune and retrain, or draw an Early-Bird ticket.

    python main.py --model=vgg --data_path=digits --preset=quick --ebt=True \\
                   --pruning_type=orthoreg --prune_percent=25
    python main.py --model=vgg --pruning_type=orthoreg --prune_percent=50 --n_rounds=2
    python main.py --model=resnet --only_train=ortho
"""
import os
import shlex
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from config import (MODELS, MOMENTUM, PENALTY, PRESETS, PRUNING_TYPES, InputError, Parser, boolean,
                    check_preset, exit_with, flag, heading, integer, one_of, positive, rising, run_command,
                    to_json, uninterrupted, write_atomically)

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
    imp_samples: int = flag(
        "pruning", 10000, "training images that importance is measured on, at most all there are",
        type=integer(1), metavar="N")
    GraSP_T: float = flag(
        "pruning", 200.0, "temperature of grasp", shown=200, type=positive(1e6), metavar="T")
    rdt_projections: int = flag(
        "pruning", 3, "backward passes of rdt per minibatch; 0: one for each class, exact",
        type=integer(0, 1000), metavar="N")

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

    def base_file(self, data, penalised):
        """Where a network before any pruning lives."""
        name = (self.network + "_ortho" * penalised + f"_s{self.seed}" * (self.seed != 0))
        return Path("pretrained") / self.job / data.folder / f"{name}.pth"

    def pruned_file(self, data, percent, penalised):
        """Where a pruned network lives; `penalised`: it got the penalty for a round to come."""
        name = f"{self.network}_{self.pruning_type}_{round(percent)}{'_ortho' * penalised}"
        return Path("pruned_nets") / self.job / data.folder / f"{name}_{self.seed}.pth"


def make_parser():
    parser = Parser(prog="main.py", description=__doc__)
    parser.add_flags(Experiment)
    return parser


def parse(argv):
    """The command line -> Experiment. Raises InputError where flags contradict each other."""
    args = make_parser().parse_args(argv)
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
    return Experiment(**vars(args) | {
        "n_rounds": rounds, "batch_size": args.batch_size or PRESETS[args.preset].batch_size})


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    return run_command("main.py", lambda: Run(parse(argv), argv).run())


# ----------------------------------------------------------------------------- steps of the job


ORIGINS = ("load base", "train base", "load ortho", "train ortho", "load base, train ortho",
           "train base, train ortho")


class Run:
    """One experiment under way: `steps` is the job, the methods that it names change `network` and
    `state`."""

    def __init__(self, flags, argv=()):
        with uninterrupted():  # libraries do not survive an interruption while they load
            from data import load_data
            from pruner import round_targets
            from train import State, pick_device
        self.flags, self.argv = flags, argv
        self.device = pick_device(flags.device, flags.deterministic)
        self.targets = [float(t) for t in flags.thresholds] or round_targets(
            flags.prune_percent or 0, flags.n_rounds)
        if len({round(target) for target in self.targets}) < len(self.targets):
            raise InputError(f"{flags.n_rounds} rounds to {flags.prune_percent}% would share file "
                             "names, which hold whole percents; ask for fewer rounds")
        self.data = load_data(flags.data_path, flags.image_size, flags.skip_bad_images).to(
            self.device)
        if flags.num_classes not in (None, len(self.data.classes)):
            raise InputError(f"--num_classes={flags.num_classes}, but {flags.data_path} has "
                             f"{len(self.data.classes)} classes")
        self.importance_batches(number=1)  # refuses too few images before any training
        self.network, self.state, self.kept = None, State(self.origin()), False

    def run(self):
        from eval import print_summary
        from train import check_writable, locked
        before = self.resume_stamp()
        if self.flags.resume and self.is_finished():
            return
        self.introduce()
        self.resume()
        files = [*self.outputs(), self.resume_file]
        for path in files:
            check_writable(path.parent)
        with locked(files):
            if self.resume_stamp() != before:
                raise InputError(f"another run has just changed {self.resume_file}; try again")
            self.go_on()
            self.resume_file.unlink(missing_ok=True)
        print_summary(self.state.records)

    def go_on(self):
        """Do the steps that are not done yet; keep what is needed to go on from where this ends."""
        steps = self.steps()
        try:
            while self.state.done < len(steps):
                step, *arguments = steps[self.state.done]
                step(*arguments)
                self.state.done += 1
                if step != self.train and self.state.done < len(steps):
                    self.keep()  # `train` does so itself, after every epoch
        except KeyboardInterrupt as stop:
            if not self.kept:
                raise
            again = shlex.join(["python", os.path.relpath(__file__), *self.argv,
                                *["--resume=True"] * (not self.flags.resume)])
            raise KeyboardInterrupt(f"the state is saved, this goes on: {again}") from stop

    def origin(self):
        """Where the unpruned network comes from: one of ORIGINS."""
        flags = self.flags
        final = "ortho" if flags.penalised else "base"
        load = flags.pretrained and not flags.only_train
        if final == "base" or flags.ebt:
            return f"{'load' if load else 'train'} {final}"
        # In the iterative job the penalty goes on from the plain network, where it is there.
        ortho, plain = (self.file(phase, 0).is_file() for phase in ("ortho", "base"))
        if load and (ortho or not plain):
            return "load ortho"
        return ("load" if plain or flags.pretrained else "train") + " base, train ortho"

    def steps(self):
        """The job in its order: each step a method and its arguments, which are a phase, and the
        number of a round, 0 for what precedes all pruning."""
        steps = []
        for action, phase in map(str.split, self.state.begin.split(", ")):
            steps += [(self.load, phase)] if action == "load" else [
                (self.train, phase, 0), (self.save, phase, 0)]
        for number in range(1, 1 + len(self.targets) * (not self.flags.only_train)):
            phases = ("between", "ortho") if self.penalty_follows(number) else ("retrain",)
            steps += [(self.estimate, number), (self.prune, number),
                      *((self.train, phase, number) for phase in phases),
                      (self.save, phases[-1], number)]
        return steps

    def penalty_follows(self, number):
        """Whether round `number` ends with the penalty's training, for a round to come."""
        return self.flags.penalised and number < len(self.targets)

    def announce(self, number, step, text):
        steps = 4 if self.penalty_follows(number) else 3
        heading(f"Round {number} of {len(self.targets)}, step {step} of {steps}: {text}")

    def introduce(self):
        from eval import environment
        flags, data = self.flags, self.data
        goal = (f"prune to {', '.join(f'{t:.4g}%' for t in self.targets)} by {flags.pruning_type}"
                if flags.pruning_type else f"train the {flags.only_train} network")
        print(f"{MODELS[flags.model]}, {'Early-Bird' if flags.ebt else 'iterative'} job: {goal}\n"
              f"  data    {data.name}: {len(data.train):,} training and {len(data.test):,} test "
              f"images of {len(data.classes)} classes, {data.image_size} x {data.image_size}\n"
              f"  device  {environment(self.device)['device']}\n"
              f"  recipe  preset {flags.preset}, {flags.optimizer}, batch {flags.batch_size}, "
              f"seed {flags.seed}")

    def load(self, phase):
        from eval import accuracy_text, check_data, check_holds, measure_record
        from pruner import load_checkpoint
        from train import evaluate
        flags, path = self.flags, self.file(phase, 0)
        heading("Load the trained network")
        if not path.is_file():
            raise InputError(f"--pretrained=True needs {path}; the same command with "
                             f"--only_train={phase} and no pruning flags trains it")
        network, info = load_checkpoint(path)
        check_holds(path, network, info, model=flags.model, width=flags.width)
        check_data(path, network, info, self.data)
        self.network = network.to(self.device)
        accuracy = {**info.get("accuracy", {}), "best": evaluate(network, self.data.test_batches())}
        print(f"  {path}: test {accuracy_text(accuracy['best'])}")
        again = f"the same command with --only_train={phase} and no pruning flags trains it anew"
        if info.get("training") not in (None, self.settings(phase)):
            print(f"  Note: it was trained with other settings than this job's; {again}")
        if info.get("fingerprint") not in (None, self.data.fingerprint):
            print(f"  Note: it was trained on other images than {self.data.name} has now; {again}")
        if info["pruned"]:
            print("  Note: it is pruned already; percents count the unpruned network's filters")
        self.state.records = [measure_record(path, network, {
            **info, "accuracy": accuracy, "image_size": self.data.image_size}, path.stat().st_size)]

    def train(self, phase, number):
        """Train by the schedule's recipe for `phase`, with the penalty where it is "ortho"."""
        from data import seed_of
        from eval import measure_orthogonality, print_orthogonality
        from models import build_model
        from train import OrthonormalityPenalty, Training, fit
        import torch
        flags, penalty = self.flags, None
        if not number:
            heading("Train with the penalty" if phase == "ortho" else "Train the plain network")
        elif phase == "ortho":
            self.announce(number, 4, "train with the penalty, for the next round")
        else:
            last = flags.penalised and phase == "retrain"
            self.announce(number, 3, "retrain" + (
                ", without the penalty since no round follows" if last else ""))
        if self.network is None:
            torch.manual_seed(seed_of(flags.seed, "initialisation"))
            self.network = build_model(flags.model, len(self.data.classes),
                                       width=flags.width).to(self.device)
        if phase == "ortho":
            penalty = OrthonormalityPenalty(self.network, PENALTY[flags.model])
        trained = fit(self.network, self.data, self.recipe(phase), key=(flags.seed, phase, number),
                      batch_size=flags.batch_size, optimizer=flags.optimizer, penalty=penalty,
                      label=f"round {number}, " * (number > 0) + phase, amp=flags.amp,
                      compiled=flags.compile,
                      training=self.state.trained.setdefault(phase, Training()), keep=self.keep)
        print(f"  best epoch, chosen on the test images: {trained.best['epoch']} with "
              f"{trained.best['top1']:.2f}%; last epoch {trained.last['top1']:.2f}%")
        if penalty:
            print_orthogonality(measure_orthogonality(self.network))

    def importance_batches(self, number):
        """The images of round `number`'s estimate; None for a method that needs none."""
        from imp_estimator import NEEDS_DATA
        flags = self.flags
        if flags.pruning_type not in NEEDS_DATA:
            return None
        return self.data.train_batches(
            flags.batch_size, key=(flags.seed, "importance", number), count=flags.imp_samples,
            balanced=flags.pruning_type == "grasp")

    def estimate(self, number):
        from data import seed_of
        from imp_estimator import cal_importance
        flags, batches, began = self.flags, self.importance_batches(number), time.monotonic()
        source = f"{len(batches.order):,} training images" if batches else "weights alone"
        if flags.pruning_type == "random":
            source = f"seed {flags.seed}"
        self.announce(number, 1, f"importance by {flags.pruning_type}, from {source}")
        try:
            self.state.scores = cal_importance(
                self.network, flags.pruning_type, batches, temperature=flags.GraSP_T,
                projections=flags.rdt_projections, seed=seed_of(flags.seed, "random", number))
        except ValueError as error:
            raise InputError(f"{error}; the network that was scored is of no use") from error
        self.state.seconds["importance"] = time.monotonic() - began

    def prune(self, number):
        from eval import accuracy_text, print_pruning
        from pruner import max_percent, prune, pruned_percent, select_filters
        from train import evaluate
        target, began = self.targets[number - 1], time.monotonic()
        self.announce(number, 2, f"remove filters until {target:.4g}% are gone")
        small = prune(self.network, select_filters(self.network, self.state.scores, target))
        self.state.seconds["pruning"] = time.monotonic() - began
        print_pruning(self.network, small, target, self.data.image_size)
        self.network, accuracy = small, evaluate(small, self.data.test_batches())
        print(f"  test accuracy right after pruning: {accuracy_text(accuracy)}")
        self.state.scores, self.state.pruning = None, {
            "round": number, "rounds": len(self.targets), "requested_percent": target,
            "achieved_percent": pruned_percent(small), "max_percent": max_percent(small),
            "after_pruning": accuracy}

    def recipe(self, phase):
        return getattr(self.flags.schedule, phase) or self.flags.schedule.retrain

    def settings(self, *phases):
        """What a network is trained by: phase -> everything that shapes that training."""
        flags = self.flags
        return {phase: {"lr": self.recipe(phase).rates(flags.optimizer),
                        "weight_decay": self.recipe(phase).weight_decay,
                        "optimizer": flags.optimizer, "batch_size": flags.batch_size,
                        "amp": flags.amp,
                        "penalty": PENALTY[flags.model] if phase == "ortho" else 0}
                for phase in phases}

    # ---------------------------------------------------------------------------------- files

    def file(self, phase, number):
        """Where the network lives that training `phase` of round `number` ends with."""
        if not number:
            return self.flags.base_file(self.data, phase == "ortho")
        return self.flags.pruned_file(self.data, self.targets[number - 1], phase == "ortho")

    def save(self, phase, number):
        """Write the checkpoint and, of a pruned network, the .json beside it."""
        from eval import environment, measure_record
        from pruner import checkpoint_bytes
        from train import State
        state, flags, path = self.state, self.flags, self.file(phase, number)
        accuracy = {"best": state.trained[phase].best, "last": state.trained[phase].last,
                    "chosen_on": "test"}
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
        if number:
            record["base"] = state.records[0]
            contents[path.with_suffix(".json")] = to_json(record)
        write_atomically(contents)
        print(f"  saved {path}" + (" and the .json beside it" if number else ""))
        self.state = State(state.begin, state.done, [*state.records * (number > 0), record])

    # --------------------------------------------------------------------------------- resume

    @property
    def identity(self):
        """What makes two runs the same: the entries of a checkpoint by which they are compared."""
        flags = {name: value for name, value in asdict(self.flags).items() if name != "resume"}
        return {"flags": flags, "fingerprint": self.data.fingerprint, "schedule": {
            **asdict(self.flags.schedule), "penalty": PENALTY[self.flags.model],
            "momentum": MOMENTUM}}

    @property
    def resume_file(self):
        return self.outputs()[-1].with_suffix(".resume")

    def outputs(self):
        """The files that the job writes, in order."""
        return [self.file(*arguments) for step, *arguments in self.steps() if step == self.save]

    def resume_stamp(self):
        """What changes whenever the resume file does."""
        path = self.resume_file
        return (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None

    def keep(self):
        from train import write_resume_file
        write_resume_file(self.resume_file, self.network, self.state, self.identity)
        self.kept = True

    def resume(self):
        from train import read_resume_file
        path, wanted = self.resume_file, self.flags.resume
        if wanted and path.is_file():
            network, self.state = read_resume_file(path, self.identity)
            if self.state.begin not in ORIGINS or self.state.done not in range(len(self.steps())):
                raise InputError(f"{path} is damaged; leave out --resume=True to begin anew")
            self.network, steps, self.kept = network.to(self.device), self.steps(), True
            step, *arguments = steps[self.state.done]
            under_way = self.state.trained.get(arguments[0]) if step == self.train else None
            epochs = f", and {len(under_way.history)} epochs of the next" if under_way else ""
            print(f"  resumed from {path}: {self.state.done} of {len(steps)} steps are done{epochs}")
        elif wanted:
            others = ", ".join(str(other) for other in sorted(path.parent.glob("*.resume")))
            print(f"  there is no {path} to resume from: this run begins at the beginning" + (
                f"; other commands left {others}" if others else ""))
        elif path.is_file():
            print(f"  Note: {path} is of a run that was stopped, and --resume=True goes on from it; "
                  "this run begins anew and will replace it")

    def is_finished(self):
        """Say so where the last file of this very command is there and nothing is under way."""
        from eval import accuracy_text
        from pruner import load_checkpoint
        path = self.outputs()[-1]
        if self.resume_file.is_file() or not path.is_file():
            return False
        _network, info = load_checkpoint(path)
        if "accuracy" not in info or to_json(
                {key: info.get(key) for key in self.identity}) != to_json(self.identity):
            return False
        print(f"This run is finished: {path}, test {accuracy_text(info['accuracy']['best'])}; "
              "without --resume=True it is run anew")
        return True


if __name__ == "__main__":
    exit_with(main())
