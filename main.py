"""Train, estimate importance, prune and retrain, or draw an Early-Bird ticket.

    python main.py --model=vgg --data_path=digits --preset=quick --ebt=True \\
                   --pruning_type=orthoreg --prune_percent=25
    python main.py --model=vgg --pruning_type=orthoreg --prune_percent=50 --n_rounds=2
    python main.py --model=resnet --only_train=ortho
"""
import argparse
import ast
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from config import (MODELS, PENALTY, PRESETS, PRUNING_TYPES, InputError, Parser, boolean,
                    check_preset, heading, integer, positive, print_table, run_command)

# torch and what needs it is imported inside the functions: --help answers before that.


@dataclass(frozen=True)
class Experiment:
    """One command line, checked: the value of every flag."""
    data_path: str
    image_size: int
    num_classes: int
    model: str
    width: float
    ebt: bool
    preset: str
    optimizer: str
    batch_size: int
    seed: int
    only_train: str
    pretrained: bool
    pruning_type: str
    prune_percent: int
    n_rounds: int
    thresholds: tuple
    imp_samples: int
    GraSP_T: float
    device: str

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


# -------------------------------------------------------------------------------- command line


def make_parser():
    parser = Parser(prog="main.py", description=__doc__)

    def flag(group, *names, help, default=None, shown=None, **kwargs):
        shown = default if shown is None else shown
        group.add_argument(*names, default=default, help=f"{help} (default: {shown})", **kwargs)

    data = parser.add_argument_group("data")
    flag(data, "--data_path", default="CIFAR100", metavar="DATA",
         help="CIFAR100, CIFAR10, digits, or a folder with train/ and test/")
    flag(data, "--image_size", type=integer(1, 1024), default=32, metavar="N",
         help="height and width that images are brought to")
    flag(data, "--num_classes", type=integer(2), metavar="N", shown="from the data",
         help="only checked against the data")

    train = parser.add_argument_group("training")
    flag(train, "--model", "-m", choices=MODELS, default="vgg", help="the network")
    flag(train, "--width", type=positive(16), default=1.0, metavar="FACTOR",
         help="multiplies the widths of the unpruned network")
    flag(train, "--ebt", type=boolean, default=False, metavar="BOOL",
         help="Early-Bird job: train briefly and prune once; else iterative pruning")
    flag(train, "--preset", choices=PRESETS, default="paper",
         help="the set of schedules, see config.py")
    flag(train, "--optimizer", choices=("sgd", "adam"), default="sgd",
         help="adam has learning rates of its own in config.py")
    flag(train, "--batch_size", type=integer(2), metavar="N", shown="the preset's",
         help="images in a training step")
    flag(train, "--seed", type=integer(0, 2 ** 63 - 1), default=0, metavar="N", help="of all random choices")
    flag(train, "--only_train", type=_only_train, default=False, metavar="{base,ortho,False}",
         help="train the plain network, or the one with the penalty, and stop")
    flag(train, "--pretrained", type=boolean, default=False, metavar="BOOL",
         help="load the network to start from from pretrained/ instead of training it")

    prune = parser.add_argument_group("pruning")
    flag(prune, "--pruning_type", choices=PRUNING_TYPES, shown="none; required to prune",
         metavar="TYPE", help="importance estimator: " + ", ".join(PRUNING_TYPES))
    flag(prune, "--prune_percent", "--pruning_percent", type=integer(0, 95), metavar="N",
         shown="none; this or --thresholds is required to prune",
         help="percent of all filters to remove, 0 to 95")
    flag(prune, "--n_rounds", type=integer(1), metavar="N", shown=1,
         help="rounds of pruning and retraining")
    flag(prune, "--thresholds", type=_thresholds, default=(), metavar="LIST", shown="none",
         help="the percent after each round, as in '[10, 50, 80]'")
    flag(prune, "--imp_samples", type=integer(1), default=10000, metavar="N",
         help="training images that importance is measured on, at most all there are")
    flag(prune, "--GraSP_T", type=positive(1e6), default=200.0, metavar="T", shown=200,
         help="temperature of grasp")

    hardware = parser.add_argument_group("hardware")
    flag(hardware, "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
         help="auto takes a GPU where there is one")
    return parser


def _only_train(text):
    values = {"base": "base", "ortho": "ortho", "false": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is none of base, ortho, False")
    return values[text.lower()]


def _thresholds(text):
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        values = None
    if (not isinstance(values, (list, tuple)) or not values
            or not all(type(v) is int and 0 <= v <= 95 for v in values)
            or any(a >= b for a, b in zip(values, values[1:]))):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a rising list of integers from 0 to 95, as in '[10, 50, 80]'")
    return tuple(values)


def parse(argv):
    """The command line -> Experiment. Raises InputError where flags contradict each other."""
    args = make_parser().parse_args(argv)
    check_preset(args.preset)
    if args.only_train:
        for name in ("pruning_type", "prune_percent", "n_rounds", "thresholds"):
            if getattr(args, name) not in (None, ()):
                raise InputError(f"--only_train={args.only_train} trains and stops, it does not "
                                 f"prune; leave out --{name}")
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
    return run_command("main.py", lambda: Run(parse(argv)).run())


# ----------------------------------------------------------------------------- steps of the job


class Run:
    """One experiment under way. `run` has the steps in order; each method is one of them."""

    def __init__(self, flags):
        from data import load_data
        from pruner import check_writable, round_targets
        from train import pick_device
        self.flags, self.device = flags, pick_device(flags.device)
        self.targets = [float(t) for t in flags.thresholds] or round_targets(
            flags.prune_percent or 0, flags.n_rounds)
        if len({round(target) for target in self.targets}) < len(self.targets):
            raise InputError(f"{flags.n_rounds} rounds to {flags.prune_percent}% would share file "
                             "names, which hold whole percents; ask for fewer rounds")
        check_writable("pretrained")
        check_writable("pruned_nets")
        self.data = load_data(flags.data_path, flags.image_size).to(self.device)
        if flags.num_classes not in (None, len(self.data.classes)):
            raise InputError(f"--num_classes={flags.num_classes}, but {flags.data_path} has "
                             f"{len(self.data.classes)} classes")
        self.importance_batches(number=1)  # refuses too few images before any training

    def run(self):
        from eval import print_summary
        self.introduce()
        network, base = self.unpruned()
        records = [base]
        if not self.flags.only_train:
            for number, target in enumerate(self.targets, 1):
                network, record = self.prune_round(network, base, number, target)
                records.append(record)
        print_summary(records)

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

    def unpruned(self):
        """(the network that pruning starts from, its record), loaded or trained."""
        flags = self.flags
        wanted, plain = (flags.base_file(self.data, p) for p in (flags.penalised, False))
        # Iterative orthoreg can go on from the plain network where that is all there is.
        goes_on = not flags.ebt and plain.is_file() and not wanted.is_file()
        if flags.pretrained and not flags.only_train and not goes_on:
            return self.load_base(flags.penalised)
        if not flags.penalised:
            return self.train_base(self.fresh_network(), penalised=False)
        network = self.fresh_network() if flags.ebt else self.plain_base()
        return self.train_base(network, penalised=True)

    def plain_base(self):
        """The plainly trained network that iterative orthoreg starts from: loaded where it is
        there, else trained."""
        path = self.flags.base_file(self.data, penalised=False)
        if not self.flags.pretrained and not path.is_file():
            return self.train_base(self.fresh_network(), penalised=False)[0]
        return self.load_base(penalised=False)[0]

    def load_base(self, penalised):
        from eval import accuracy_text, check_data, check_holds
        from pruner import load_checkpoint
        from train import evaluate
        flags, path = self.flags, self.flags.base_file(self.data, penalised)
        phase = "ortho" if penalised else "base"
        heading("Load the trained network")
        if not path.is_file():
            raise InputError(f"--pretrained=True needs {path}; the same command with "
                             f"--only_train={phase} and no pruning flags trains it")
        network, info = load_checkpoint(path)
        check_holds(path, network, info, model=flags.model, pruned=False, width=flags.width)
        check_data(path, network, info, self.data)
        network.to(self.device)
        accuracy = {**info.get("accuracy", {}), "best": evaluate(network, self.data.test_batches())}
        print(f"  {path}: test {accuracy_text(accuracy['best'])}")
        again = f"the same command with --only_train={phase} and no pruning flags trains it anew"
        if info.get("training") not in (None, self.settings(phase)):
            print(f"  Note: it was trained with other settings than this job's; {again}")
        if info.get("fingerprint") not in (None, self.data.fingerprint):
            print(f"  Note: it was trained on other images than {self.data.name} has now; {again}")
        return network, self.record(path, network, {**info, "accuracy": accuracy},
                                    path.stat().st_size)

    def fresh_network(self):
        import torch
        from data import seed_of
        from models import build_model
        flags = self.flags
        torch.manual_seed(seed_of(flags.seed, "initialisation"))
        return build_model(flags.model, len(self.data.classes), width=flags.width).to(self.device)

    def train_base(self, network, penalised):
        phase = "ortho" if penalised else "base"
        heading("Train with the penalty" if penalised else "Train the plain network")
        trained = {phase: self.train(network, phase)}
        path = self.flags.base_file(self.data, penalised)
        return network, self.save(path, network, trained, penalised)

    def prune_round(self, network, base, number, target):
        """Estimate, prune, retrain, save: (the smaller network, its record)."""
        from pruner import prune, select_filters
        flags, seconds = self.flags, {}
        penalty_follows = flags.penalised and number < len(self.targets)
        steps, title = 4 if penalty_follows else 3, f"Round {number} of {len(self.targets)}"

        began = time.monotonic()
        scores = self.importance(network, number, f"{title}, step 1 of {steps}")
        seconds["importance"] = time.monotonic() - began

        heading(f"{title}, step 2 of {steps}: remove filters until {target:.4g}% are gone")
        began = time.monotonic()
        small = prune(network, select_filters(network, scores, target))
        seconds["pruning"] = time.monotonic() - began
        pruning = {"round": number, "rounds": len(self.targets), "requested_percent": target,
                   **self.report_pruning(network, small, target)}

        trained = {}
        if penalty_follows:
            heading(f"{title}, step 3 of {steps}: retrain")
            trained["between"] = self.train(small, "between", number)
            heading(f"{title}, step 4 of {steps}: train with the penalty, for the next round")
            trained["ortho"] = self.train(small, "ortho", number)
        else:
            note = ", without the penalty since no round follows" if flags.penalised else ""
            heading(f"{title}, step 3 of {steps}: retrain{note}")
            trained["retrain"] = self.train(small, "retrain", number)
        path = flags.pruned_file(self.data, target, penalty_follows)
        return small, self.save(path, small, trained, penalty_follows, base=base, pruning=pruning,
                                seconds=seconds)

    def importance_batches(self, number):
        """The images of round `number`'s estimate; None for a method that needs none."""
        from imp_estimator import NEEDS_DATA
        flags = self.flags
        if flags.pruning_type not in NEEDS_DATA:
            return None
        return self.data.train_batches(
            flags.batch_size, key=(flags.seed, "importance", number), count=flags.imp_samples,
            balanced=flags.pruning_type == "grasp")

    def importance(self, network, number, title):
        from data import seed_of
        from imp_estimator import cal_importance
        flags, batches = self.flags, self.importance_batches(number)
        source = f"{len(batches.order):,} training images" if batches else "weights alone"
        if flags.pruning_type == "random":
            source = f"seed {flags.seed}"
        heading(f"{title}: importance by {flags.pruning_type}, from {source}")
        try:
            return cal_importance(network, flags.pruning_type, batches, temperature=flags.GraSP_T,
                                  seed=seed_of(flags.seed, "random", number))
        except ValueError as error:
            raise InputError(f"{error}; the network that was scored is of no use") from error

    def report_pruning(self, network, small, target):
        """Print what a pruning did; return it as a dict for the record."""
        from eval import accuracy_text, measure_cost, print_architecture
        from pruner import max_percent, pruned_percent
        from train import evaluate
        (before, dense), (after, _) = network.filter_count(), small.filter_count()
        achieved, most = pruned_percent(small), max_percent(small)
        print(f"  requested {target:.2f}%, achieved {achieved:.2f}%: {dense - after:,} of "
              f"{dense:,} filters are gone, {before - after:,} of them in this round")
        if target > most:
            stem = any(g.protected for g in small.filter_groups())
            print(f"  More cannot go than {most:.2f}%: every layer keeps 5% of its filters, rounded "
                  "down, and one more" + (", and the first convolution all" if stem else ""))
        if after == before:
            print("  This round removes nothing" + (
                ": the network is already as small as requested" if achieved >= target else ""))
        else:
            print("  filters of each layer, before -> after")
            print_architecture(small, network)
        costs = [measure_cost(n, self.data.image_size) for n in (network, small)]
        print_table([("", "before", "after", "left")] + [
            (name, f"{costs[0][key]:,}", f"{costs[1][key]:,}",
             f"{100 * costs[1][key] / costs[0][key]:.1f}%")
            for key, name in (("parameters", "parameters"), ("flops", "FLOPs"))])
        accuracy = evaluate(small, self.data.test_batches())
        print(f"  test accuracy right after pruning: {accuracy_text(accuracy)}")
        return {"achieved_percent": achieved, "max_percent": most, "after_pruning": accuracy}

    def train(self, network, phase, number=0):
        """Train by the schedule's recipe for `phase`, with the penalty where it is "ortho"."""
        from eval import measure_orthogonality, print_orthogonality
        from train import OrthonormalityPenalty, fit
        flags, penalty = self.flags, None
        if phase == "ortho":
            penalty = OrthonormalityPenalty(network, PENALTY[flags.model])
        trained = fit(network, self.data, self.recipe(phase), key=(flags.seed, phase, number),
                      batch_size=flags.batch_size, optimizer=flags.optimizer, penalty=penalty,
                      label=phase)
        print(f"  best epoch, chosen on the test images: {trained.best['epoch']} with "
              f"{trained.best['top1']:.2f}%; last epoch {trained.last['top1']:.2f}%")
        if penalty:
            print_orthogonality(measure_orthogonality(network))
        return trained

    def recipe(self, phase):
        schedule = self.flags.schedule
        return getattr(schedule, phase) or schedule.retrain

    def settings(self, *phases):
        """What a network is trained by: phase -> everything that shapes that training."""
        flags = self.flags
        return {phase: {"lr": self.recipe(phase).rates(flags.optimizer),
                        "weight_decay": self.recipe(phase).weight_decay,
                        "optimizer": flags.optimizer, "batch_size": flags.batch_size}
                for phase in phases}

    # ---------------------------------------------------------------------------------- files

    def save(self, path, network, trained, penalised, base=None, pruning=None, seconds=None):
        """Write the checkpoint and, of a pruned network, the .json beside it. Returns the record,
        which is the content of that .json."""
        from eval import environment
        from pruner import checkpoint_bytes, write_atomically
        final = list(trained.values())[-1]
        accuracy = {"best": final.best, "last": final.last, "chosen_on": "test"}
        info = {
            "data": self.data.name, "data_path": self.flags.data_path,
            "fingerprint": self.data.fingerprint,
            "classes": list(self.data.classes), "image_size": self.data.image_size,
            "seed": self.flags.seed, "job": self.flags.job, "penalised": penalised,
            "flags": asdict(self.flags), "training": self.settings(*trained),
            "accuracy": accuracy, "environment": environment(self.device),
            "history": {phase: training.history for phase, training in trained.items()},
            "seconds": {**(seconds or {}), **{p: t.seconds for p, t in trained.items()}}}
        if pruning:
            info["pruning"] = pruning
        content = checkpoint_bytes(network, info)
        record = {**self.record(path, network, info, len(content)),
                  "schedule": asdict(self.flags.schedule), "base": base}
        write_atomically(path, content)
        if pruning:
            text = json.dumps(record, indent=1)
            write_atomically(path.with_suffix(".json"), text.encode())
        print(f"  saved {path}" + (" and the .json beside it" if pruning else ""))
        return record

    def record(self, path, network, info, file_bytes):
        """Everything known of a network, as plain numbers, strings, lists and dicts."""
        from eval import (layer_widths, measure_compression, measure_cost,
                          measure_orthogonality)
        size = self.data.image_size
        return {"file": str(path), "model": network.name, "num_classes": network.num_classes,
                **{"training": None, "history": None, "seconds": None, **info},
                **measure_cost(network, size),
                "widths": layer_widths(network),
                "compression": measure_compression(network, file_bytes, info, size),
                "orthogonality": measure_orthogonality(network)}


if __name__ == "__main__":
    sys.exit(main())
