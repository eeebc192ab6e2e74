"""Train, estimate importance, prune and retrain, or draw an Early-Bird ticket.

    python main.py --model=vgg --data_path=digits --preset=quick --ebt=True \\
                   --pruning_type=orthoreg --prune_percent=25
    python main.py --model=vgg --pruning_type=orthoreg --prune_percent=50 --n_rounds=2
    python main.py --model=resnet --only_train=ortho
"""

import shlex
import sys
import time
from dataclasses import asdict, replace

from common.command import exit_with, run_command
from common.device import pick_device
from common.errors import InputError
from common.files import to_json
from common.libraries import lazy, load
from common.processes import leave_processes
from common.seeds import seed_of
from common.signals import explained, uninterrupted
from common.terminal import heading, print_notes
from config import MOMENTUM
from lab.experiment import CONTROL_MAY_DIFFER, DEFAULTS, Experiment, Sweep, marked, parse
from lab.steps import step

# Loaded by what uses them, after the flags have been read.
copies, data, pruner, torch, train = map(
    lazy, ("common.copies", "data", "pruner", "torch", "train")
)
checkpoint, cutting, jobs, measure, networks, plan, sweep, tables, weights = map(
    lazy,
    (
        "lab.checkpoint",
        "lab.cutting",
        "lab.job",
        "lab.measure",
        "lab.networks",
        "lab.plan",
        "lab.sweep",
        "lab.tables",
        "lab.weights",
    ),
)


# ------------------------------------------------------------------------------------- experiments


def drive(job):
    """An experiment: the unpruned network, then rounds of pruning and retraining."""
    unpruned(job)
    for number in job.rounds:
        job.step(estimate_importance, number=number)
        job.step(prune_filters, number=number)
        retrain(job, number)
        job.step(jobs.save_network, phase=job.phases(number)[-1], number=number)


def unpruned(job):
    """The network before any pruning: loaded, or trained, plain or with the penalty."""
    if job.start.load:
        job.step(load_network, phase=job.start.load)
    for phase in job.start.train:
        job.step(train_network, phase=phase)
        job.step(jobs.save_network, phase=phase)


def retrain(job, number):
    """The trainings of a round, of which the last leaves the round's network."""
    for phase in job.phases(number):
        job.step(train_network, phase=phase, number=number)


def drive_unpruned(job):
    """The control that says what longer training alone is worth: nothing is pruned."""
    unpruned(job)
    job.step(keep_filters)
    retrain_throughout(job)


def drive_scratch(job):
    """The control that says what the kept weights are worth: fresh ones, all trainings again."""
    job.step(begin_afresh)
    for phase in job.start.train:
        job.step(train_network, phase=phase)
    retrain_throughout(job)


def retrain_throughout(job):
    """The trainings of all rounds on one architecture."""
    for number in job.rounds:
        retrain(job, number)
    last = job.rounds[-1]
    job.step(jobs.save_network, phase=job.phases(last)[-1], number=last)


DRIVES = {False: drive, "unpruned": drive_unpruned, "scratch": drive_scratch}


# ------------------------------------------------------------------------------------------- steps


def shows_presence(job, phase, number):
    path = job.file(phase, number)
    return {"file": str(path), "is there": path.is_file()}


@step(records=True, shows=shows_presence)
def load_network(job, phase):
    """Take the unpruned network from pretrained/. Raises InputError."""
    heading("Load the trained network")
    path = job.file(phase, 0)
    again = (
        f"the same command with --only_train={phase}, without --pretrained=True and the "
        "pruning flags, trains it"
    )
    missing = f"--pretrained=True needs {path}; {again}; {weights.begin_text(job.flags.model)}"
    network, record = open_trained(job, phase, missing, again)
    cutting.check_keep(network, job.flags)
    job.network = network.to(job.device)
    accuracy = {**(record.accuracy or {}), "best": train.evaluate(network, job.data.test_batches())}
    print(f"  {path}: test {tables.accuracy_text(accuracy['best'])}")
    if record.pruned:
        print("  Note: it is pruned already; percents count the unpruned network's filters")
    record = replace(record, accuracy=accuracy, image_size=job.data.image_size)
    job.state.records = [measure.measured(record, path, network, path.stat().st_size)]


def open_trained(job, phase, missing, again):
    """(network, Record) of the file in pretrained/ that training `phase` has left, with notes on
    what it was trained by. Raises InputError where that does not fit. missing: what to say where
    there is none; again: how it is trained anew, in words."""
    path = job.file(phase, 0)
    network, record, notes = open_network(job, path, missing)
    if record.training not in (None, job.settings(phase)):
        print(f"  Note: {path} was trained with other settings than this run has; {again} anew")
    if record.fingerprint not in (None, job.data.fingerprint):
        if job.flags.val_percent:
            raise InputError(
                f"{path} may have been trained on the images that --val_percent="
                f"{job.flags.val_percent} holds out; {again} anew"
            )
        print(
            f"  Note: {path} was trained on other images than {job.data.name} has now; {again} anew"
        )
    print_notes(notes)
    return network, record


def open_network(job, path, missing):
    """(network, Record, lines on what it does not say) of a file that fits the flags and the data.
    Raises InputError; `missing` is what to say where there is no such file."""
    if not path.is_file():
        raise InputError(missing)
    network, record, taken = checkpoint.open_checkpoint(path, job.flags.model)
    checkpoint.check_holds(path, network, record, model=job.flags.model, width=job.flags.width)
    return (
        network,
        record,
        [
            *(f"Note: {line}" for line in taken),
            *checkpoint.code_notes(path, network, record),
            *checkpoint.check_data(path, network, record, job.data),
        ],
    )


def shows_recipe(job, phase, number):
    recipe = job.recipe(phase)
    return {
        **job.settings(phase)[phase],
        "lr": recipe.lr_of(job.flags.optimizer),
        "epochs": list(recipe.epochs),
    }


@step(trains=True, shows=shows_recipe)
def train_network(job, phase, number=0):
    """Train by the schedule's recipe for `phase`, with the penalty where it is "ortho"."""
    flags, penalty, before = job.flags, None, None
    training = job.state.trained.setdefault(job.training(phase, number), train.Training())
    heading(training_title(job, phase, number))
    if job.network is None:
        job.network = fresh_network(job)
    if phase == "ortho":
        penalty = train.OrthonormalityPenalty(job.network, flags.strength)
        if not training.history and not training.sums:
            before = measure.measure_orthogonality(job.network)
    name = f"round {number}, {phase}" if number else phase
    # Networks that start afresh see the images in the same order, with the penalty or without.
    key = (flags.seed, "base" if flags.ebt and not number else phase, number)
    ticket = find_ticket(job) if job.seeks_ticket and not number else None
    train.fit(
        job.network,
        job.data,
        job.recipe(phase),
        key=key,
        settings=flags.training_settings,
        penalty=penalty,
        teacher=job.state.teacher if job.learns_answers(phase) else None,
        class_weights=job.data.balanced_weights() if flags.class_weights else None,
        ticket=ticket,
        training=training,
        label=name,
        keep=job.keep,
        report=job.tell_epoch(name, phase, number),
    )
    print(f"  {chosen_text(training, flags.eb_epsilon if ticket else None)}")
    print_notes(choice_notes(training, job.recipe(phase).rates(flags.optimizer), job.data))
    if penalty:
        tables.print_orthogonality(measure.measure_orthogonality(job.network), before)


def training_title(job, phase, number):
    control, ortho = job.flags.control, phase == "ortho"
    if control == "scratch":
        return control_title("fresh", number, ortho)
    if control and number:
        return control_title("unpruned", number, ortho)
    if not number:
        return "Train with the penalty" if ortho else "Train the plain network"
    if ortho:
        return round_title(job, number, 4, "train with the penalty, for the next round")
    text = "retrain"
    if job.flags.penalised and phase == "retrain":
        text += ", without the penalty since no round follows"
    return round_title(job, number, 3, text)


def control_title(kind, number, ortho):
    title = f"Control: train the {kind} network"
    if number:
        title += f", as in round {number}"
    if ortho:
        title += ", with the penalty"
    return title


def round_title(job, number, part, text):
    parts = 2 + len(job.phases(number))
    return f"Round {number} of {len(job.targets)}, step {part} of {parts}: {text}"


def chosen_text(trained, epsilon):
    """Which epoch's weights a training has left, in words."""
    best, last = trained.best, trained.last
    if trained.chosen_on == "ticket":
        return (
            f"the ticket is drawn after {last['epoch']} epochs, with {last['top1']:.2f}% on "
            f"the test images (--eb_epsilon={epsilon:g})"
        )
    if trained.chosen_on == "last":
        text = f"last epoch: {last['epoch']}; test accuracy {last['top1']:.2f}%"
    else:
        text = (
            f"best epoch, chosen on the {trained.chosen_on} images: {best['epoch']}; test "
            f"accuracy {best['top1']:.2f}% (last epoch: {last['top1']:.2f}%)"
        )
    if epsilon:
        text += (
            "\n  no ticket was found: the whole schedule ran; a larger --eb_epsilon than "
            f"{epsilon:g} finds one earlier"
        )
    return text


def choice_notes(trained, rates, data):
    """A line where the best epoch is chosen on so few images that the choice is chance, though the
    last one, at a rate near 0, is as good as any."""
    if trained.chosen_on != "validation" or len(rates) < 2 or rates[-1] > 0.1 * max(rates):
        return []
    count, best = len(data.validation), trained.best["validation"]["top1"]
    reach = tables.margin(best, count)
    if reach < tables.WIDE_MARGIN:
        return []
    return [
        f"Note: {count:,} validation images tell an accuracy of {best:.1f}% to "
        f"± {reach:.1f} points, so which of these epochs is the best is mostly chance; "
        "--choose=last takes the last one"
    ]


def fresh_network(job, like=None):
    """A network with fresh weights, or those of --init. like: a pruned one, whose architecture it
    has."""
    flags = job.flags
    torch.manual_seed(seed_of(flags.seed, "initialisation"))
    classes, lines, begun = job.data.classes, [], job.take_weights()
    if begun:
        begun = weights.with_network(begun, flags.model)
    if like:
        network = networks.fresh_like(like, len(classes))
    else:
        network, lines = weights.network_like(
            begun, flags.model, len(classes), flags.width, job.data.image_size
        )
    print_notes(
        [
            *networks.look_at(network, job.data.image_size, flags.pruning_type),
            *lines,
        ]
    )
    cutting.check_keep(network, flags)
    cutting.check_penalty(network, flags)
    if begun:
        print_notes(
            weights.initialise(network, begun, classes, job.data.normalize, flags.classifier)
        )
    return network.to(job.device)


def find_ticket(job):
    """How a training finds its ticket: by what would be pruned now, judged on the same images."""
    flags = job.flags

    def mask():
        small, _ = cutting.cut_in_steps(job, 0, job.targets[0], flags.eb_samples)
        return pruner.kept_mask(pruner.kept_filters(job.network, small), job.network)

    return train.EarlyBird(mask, flags.eb_epsilon)


def shows_method(job, phase, number):
    flags = job.flags
    images = {"training images": flags.imp_samples} if flags.estimator.needs_images else {}
    return {"method": flags.pruning_type, **images}


@step(shows=shows_method)
def estimate_importance(job, number):
    """Score every filter."""
    flags, began = job.flags, time.monotonic()
    batches = job.importance_batches(number, flags.imp_samples)
    source = f"{len(batches.order):,} training images" if batches else "weights alone"
    if flags.estimator.needs == "seed":
        source = f"seed {flags.seed}"
    heading(round_title(job, number, 1, f"importance by {flags.pruning_type}, from {source}"))
    job.state.scores = cutting.importance(job, job.network, number, flags.imp_samples)
    job.state.seconds["importance"] = time.monotonic() - began


def shows_target(job, phase, number):
    return {"percent": job.targets[number - 1]}


@step(shows=shows_target)
def prune_filters(job, number):
    """Remove the lowest scored filters until the round's target is met."""
    flags, target, began = job.flags, job.targets[number - 1], time.monotonic()
    goal = tables.goal_text(f"{target:.4g}%", flags.budget)
    if flags.score_steps > 1:
        goal += f", in {flags.score_steps} steps"
    heading(round_title(job, number, 2, goal))
    if flags.select:
        small, timed, candidates = cutting.best_cut(job, number, target)
        residual = next(candidate["residual"] for candidate in candidates if candidate["chosen"])
    else:
        candidates, residual = None, flags.residual
        small, timed = cutting.cut_in_steps(
            job, number, target, flags.imp_samples, job.state.scores
        )
    job.state.seconds["pruning"] = time.monotonic() - began
    reached = timed or cutting.reached_by(small, job, residual)
    tables.print_pruning(
        job.network,
        small,
        target,
        reached["achieved_percent"],
        job.data.image_size,
        flags.budget,
        flags.round_to,
        residual,
        flags.patterns,
    )
    if timed:
        tables.print_times(timed, flags.latency_batch)
    job.state.teacher = job.network if flags.distill else None
    job.network, job.state.scores = small, None
    note_pruning(job, number, reached)
    job.state.pruning |= cutting.after_pruning(job)
    if candidates:
        job.state.pruning["candidates"] = candidates


def note_pruning(job, number, reached):
    job.state.pruning = {
        "round": number,
        "rounds": len(job.targets),
        "control": job.flags.control,
        "requested_percent": job.targets[number - 1],
        **reached,
        "after_pruning": None,
    }


@step()
def keep_filters(job):
    heading("Control: nothing is pruned")
    note_pruning(job, len(job.targets), cutting.reached_by(job.network, job))
    if job.flags.distill:
        job.state.teacher = copies.copy_of(job.network)


@step(records=True)
def begin_afresh(job):
    """Begin with fresh weights in the pruned network's architecture. Raises InputError."""
    flags, path = job.flags, job.first_file
    heading("Control: the pruned architecture from scratch")
    pruned, record, _ = open_network(
        job,
        path,
        f"--control=scratch needs the architecture of {path}; the same command without "
        "--control makes it",
    )
    if record.flags:
        check_controlled(flags, path, record)
    print(f"  its architecture is that of {path}")
    record = replace(record, image_size=record.image_size or job.data.image_size)
    job.state.records = [measure.measured(record, path, pruned, path.stat().st_size)]
    job.network = fresh_network(job, pruned)
    note_pruning(job, len(job.targets), cutting.reached_by(pruned, job))
    if flags.distill:
        job.state.teacher = unpruned_teacher(job)


def check_controlled(flags, path, record):
    """Raise InputError where the network of a file was pruned with other flags than its control
    has."""
    free = marked(Experiment, CONTROL_MAY_DIFFER)
    for name, default in DEFAULTS.items():
        value, wanted = record.flags.get(name, default), getattr(flags, name)
        if name not in free and to_json(value) != to_json(wanted):
            raise InputError(
                f"{path} was pruned with --{name}={value}, not {wanted}; give "
                f"--{name}={value}, or prune anew"
            )


def unpruned_teacher(job):
    """The unpruned network that a scratch control's pruned one began with. Raises InputError."""
    phase = "ortho" if job.flags.penalised else "base"
    again = f"the same command with --only_train={phase}, without the pruning flags, trains it"
    missing = (
        f"--distill={job.flags.distill:g} of this control needs the answers of "
        f"{job.file(phase, 0)}; {again}"
    )
    return open_trained(job, phase, missing, again)[0].to(job.device)


# ----------------------------------------------------------------------------------------- command


def described(flags):
    """What --print_config shows of an experiment, as plain values. Nothing is run or written."""
    job, done = plan.recorded(flags, DRIVES[flags.control])
    try:
        device = str(pick_device(flags.device))
    except InputError as error:  # a job may be looked at on another machine than it runs on
        device = str(error)
    steps = []
    for planned in job.steps:
        entry = {
            "step": planned.action.title,
            "round": planned.number,
            "phase": planned.phase,
            **planned.action.shows(job, planned.phase, planned.number),
        }
        if len(steps) < done:
            entry["is done"] = True
        steps.append({key: value for key, value in entry.items() if value is not None})
    images = data.count_images(flags.data_path, flags.test_percent, flags.val_percent)
    jobs.check_classes(flags, images["classes"])
    if flags.init != weights.DEFAULT:  # which a run would download
        weights.read_init(flags)
    return {
        "flags": asdict(flags),
        "images": images,
        "device": device,
        "momentum": MOMENTUM,
        "steps": steps,
        "resume file": str(job.resume_file),
    }


def described_sweep(flags):
    """The same of a sweep: the commands of its cells, and of all runs in order."""
    cells, runs = sweep.plan(flags)
    parsed = [parse(sweep.command_of(cell)) for cell in runs]
    sweep.check_outputs(
        runs, [plan.recorded(flags, DRIVES[flags.control])[0].outputs for flags in parsed]
    )
    for images in {(flags.data_path, flags.test_percent, flags.val_percent) for flags in parsed}:
        data.count_images(*images)
    return {
        "cells": list(map(command_line, cells)),
        "order": list(map(command_line, sweep.asked_for(flags, cells, runs))),
    }


def command_line(cell):
    return shlex.join(["python", "main.py", *sweep.command_of(cell)])


def make_job(argv, images=None):
    """The job of a command line; images: an ImageData, where it has been read already."""
    flags = parse(argv)
    return jobs.Job(flags, DRIVES[flags.control], argv, images)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv

    def body():
        with explained("nothing had been done yet; give the same command again"):
            flags = parse(argv, __doc__)
        with explained(after_a_signal(flags)), uninterrupted():  # libraries must load as a whole
            load(torch, train, jobs)
        if flags.print_config:
            show = described_sweep if isinstance(flags, Sweep) else described
            print(to_json(show(flags)).decode())
        elif isinstance(flags, Sweep):
            with explained(after_a_signal(flags)):
                sweep.run(flags, make_job)
        else:
            with explained(after_a_signal(flags)):
                records = make_job(argv).run()
            with explained("the run is finished, and all of its files are written"):
                if records:
                    tables.print_summary(records)
                leave_processes()

    return run_command("main.py", body)


def after_a_signal(flags):
    """What can be done after a signal that came before the run had saved anything of its own."""
    if isinstance(flags, Sweep):
        return "the same command goes on with this sweep"
    if flags.resume:
        return "the same command goes on from what has been saved"
    return "nothing had been saved yet; the same command begins anew"


if __name__ == "__main__":
    exit_with(main())
