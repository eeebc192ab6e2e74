"""Comparisons with one command: every combination of some flags, as processes of their own."""

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import fields
from functools import lru_cache
from graphlib import TopologicalSorter
from pathlib import Path

import torch

from common.errors import InputError
from common.files import remove_irregular
from common.flags import marked
from common.machine import cores
from common.signals import uninterrupted
from common.terminal import counted
from config import SWEEPS
from data import load_prepared
from imp_estimator import ESTIMATORS, PLAIN
from lab.experiment import (
    DEFAULT,
    DEFAULTS,
    ONLY_PRUNED,
    SET_BY_SWEEP,
    Experiment,
    make_parser,
    parse,
    prunes_penalised,
    settled_start,
)
from lab.job import MAIN
from lab.networks import default_weights
from lab.tables import accuracy_text

OF_INIT = {
    "init",
    *(option.name for option in fields(Experiment) if option.metadata["only_with"] == "init"),
}


def read_sweep(name):
    """The cells of a sweep, in order: one dict of flags for each experiment.

    A sweep is a dict, flag -> value or list of values; every combination is a cell. A control that
    does not depend on the method or the percent is one cell. Raises InputError.
    """
    settings = SWEEPS.get(name)
    if settings is None:
        if os.path.exists(name) and not os.path.isfile(name):
            raise InputError(f"--sweep={name} is no file")
        try:
            settings = json.loads(
                Path(name).read_text("utf-8-sig"),  # Windows marks it
                object_pairs_hook=_without_twins,
            )
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"--sweep={name} is neither one of {', '.join(SWEEPS)} nor a JSON file that "
                f"can be read ({error})"
            ) from error
    if not isinstance(settings, dict):
        raise InputError(f'--sweep={name} holds no flags; it looks like {{"model": ["vgg"], ...}}')
    allowed = {option.name for option in fields(Experiment)} - marked(Experiment, SET_BY_SWEEP)
    parser, choices = make_parser(), {}
    parser.place = f"--sweep={name}: "
    for key, values in settings.items():
        if key not in allowed:
            hint = None if hasattr(Experiment, key) else parser.hint(f"--{key}")
            hint = hint or f"{key!r} is no flag that a sweep can set"
            raise InputError(f"--sweep={name}: {hint}")
        if values == []:
            raise InputError(f"--sweep={name}: {key!r} has no value")
        values = values if isinstance(values, list) else [values]
        choices[key] = [getattr(parser.parse_args([f"--{key}={value}"]), key) for value in values]
    if "data_path" in choices:  # imgs, imgs/ and ./imgs are one
        choices["data_path"] = list(dict.fromkeys(map(os.path.normpath, choices["data_path"])))
    cells = []
    for values in itertools.product(*choices.values()):
        cell = _without_idle(dict(zip(choices, values)))
        if cell not in cells:
            cells.append(cell)
    return cells


def _without_twins(pairs):
    """The dict of JSON's pairs. Raises ValueError where a key is there twice."""
    settings = dict(pairs)
    if len(settings) < len(pairs):
        raise ValueError("a key is there twice")
    return settings


def _without_idle(cell):
    """The cell without what does not shape it, so that equal ones are one: a plain network has no
    penalty, an unpruned control no percent, --select=best no ranking of its own, and scores that
    are no change of the loss no costs."""
    cell = settled_start(cell)
    if not cell.get("prune_from"):
        cell = {key: value for key, value in cell.items() if key != "prune_from"}
    if not prunes_penalised(cell):
        cell = {key: value for key, value in cell.items() if key != "penalty"}
    if cell.get("select"):
        cell = {key: value for key, value in cell.items() if key not in ("ranking", "residual")}
    if not ESTIMATORS[cell.get("pruning_type") or PLAIN].change:
        cell = {key: value for key, value in cell.items() if key != "per_cost"}
    if cell.get("control") != "unpruned":
        return cell
    control = {
        key: value for key, value in cell.items() if key not in marked(Experiment, ONLY_PRUNED)
    }
    if cell.get("thresholds"):
        control["n_rounds"] = len(cell["thresholds"])
    if not prunes_penalised(cell):  # one for all that start from the plain network
        control["pruning_type"] = PLAIN
    return control


def command_of(cell):
    """The flags of a cell's command: a run that needs no other begins with --init, others load."""
    needs = needs_of(cell)
    if needs and cell.get("init") == DEFAULT:  # which says what the images are like
        model = cell.get("model", DEFAULTS["model"])
        wanted = default_weights(model).flags
        cell = {**cell, **{name: wanted[name] for name in wanted if name not in cell}}
    command = [
        f"--{name}={value}" for name, value in cell.items() if not needs or name not in OF_INIT
    ]
    if needs and cell.get("control") != "scratch":
        command.append("--pretrained=True")
    return [*command, "--resume=True", "--wait=True"]


def needs_of(cell):
    """The cells that must be finished before a cell can be run."""
    if cell.get("control") == "scratch":
        return [{**cell, "control": False}]
    only = cell.get("only_train")
    if only == "base" or cell.get("ebt") and (only or cell.get("eb_detect")):
        return []
    training = {
        option.name: cell[option.name]
        for option in fields(Experiment)
        if option.name in cell and option.metadata["group"] != "pruning"
    }
    only = "ortho" if prunes_penalised(cell) else "base"
    if only == "base":  # as in _without_idle
        training.pop("penalty", None)
    return [{**training, "only_train": only}]


def plan(sweep):
    """(the cells of a sweep, all runs that it takes: each needs only some before it)."""
    cells, runs = read_sweep(sweep.sweep), []
    if sweep.cell and sweep.cell > len(cells):
        raise InputError(f"--cell={sweep.cell}: the sweep has {len(cells)}")
    for run in itertools.chain(*map(_with_needs, cells)):
        if run not in runs:
            parse(command_of(run))  # refuses flags that contradict each other
            runs.append(run)
    return cells, runs


def _with_needs(cell):
    """A cell behind all that it needs."""
    return [*itertools.chain(*map(_with_needs, needs_of(cell))), cell]


def asked_for(sweep, cells, runs):
    """The runs that --cell leaves."""
    mine = _with_needs(cells[sweep.cell - 1]) if sweep.cell else runs
    return [run for run in runs if run in mine]


def run(sweep, make_job):
    """Run the cells of a sweep, what they need first, each as a process of its own.

    make_job: (flags of a command line, its images) -> lab.job.Job. Raises InputError where cells
    would write the same file, or where some have failed in the end.
    """
    cells, runs = plan(sweep)
    comparison = _Comparison(cells, asked_for(sweep, cells, runs), sweep.jobs, make_job)
    check_outputs(runs, [comparison.prepare(cell).outputs for cell in runs])
    comparison.run()


def check_outputs(runs, outputs):
    """Raise InputError where two runs would write the same file. outputs: the files of each."""
    writers = {}  # path -> the first run that writes it
    for cell, paths in zip(runs, outputs):
        for path in paths:
            other = writers.setdefault(path, cell)
            if other != cell:
                values = "; ".join(
                    f"{key}: {other.get(key)} and {cell.get(key)}"
                    for key in {**cell, **other}
                    if cell.get(key) != other.get(key)
                )
                raise InputError(
                    f"two cells of the sweep would write {path}. They differ only in "
                    f"what file names do not show ({values}): put them into two "
                    'sweeps, each with its own "out"'
                )


class _Comparison:
    """A sweep under way. Runs are known by their numbers in `runs`."""

    def __init__(self, cells, runs, at_once, make_job):
        self.cells, self.runs, self.at_once, self.make_job = cells, runs, at_once, make_job
        self.load = lru_cache(load_prepared)
        self.processes, self.stopped = set(), False
        self.looking = threading.Lock()  # torch.fx traces one network at a time
        self.failed = {}  # number of a run -> its name
        self.slots = queue.SimpleQueue()
        for slot in range(at_once):
            self.slots.put(slot)

    def prepare(self, cell):
        argv = command_of(cell)
        flags = parse(argv)
        job = self.make_job(argv, self.load(flags.data_path, flags.preparation))
        job.take_weights()  # the process that runs it reads them itself
        return job

    def needs(self, number):
        return [self.runs.index(needed) for needed in needs_of(self.runs[number])]

    def run(self):
        cells = [cell for cell in self.runs if cell in self.cells]
        others = counted(len(self.runs) - len(cells), "network")
        runs = counted(len(self.runs), "run")
        print(
            f"{counted(len(cells), 'cell')} and {others} that they need: {runs}, {self.at_once} "
            "at a time; the output of each is in the .log beside its network",
            flush=True,
        )
        order = TopologicalSorter({number: self.needs(number) for number in range(len(self.runs))})
        order.prepare()
        pool, under_way, done = ThreadPoolExecutor(self.at_once), {}, 0
        try:
            while order.is_active():
                for number in sorted(order.get_ready()):
                    under_way[pool.submit(self.run_cell, number)] = number
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    order.done(under_way.pop(future))
                    done += 1
                    print(f"  {done} of {len(self.runs)}, {future.result()}", flush=True)
        except BaseException as stop:
            with uninterrupted():
                self.stopped = True
                for process in list(self.processes):
                    process.terminate()
                pool.shutdown(cancel_futures=True)
            if isinstance(stop, KeyboardInterrupt):
                raise KeyboardInterrupt("the same command goes on with this sweep") from stop
            raise
        pool.shutdown()
        if self.failed:
            raise InputError(
                f"{len(self.failed)} of {len(self.runs)} runs failed: "
                f"{', '.join(self.failed.values())}; the .log files beside their "
                "results say why"
            )

    def name(self, number, job):
        cell, path = self.runs[number], job.outputs[-1].with_suffix("")
        return f"cell {self.cells.index(cell) + 1}, {path}" if cell in self.cells else str(path)

    def run_cell(self, number):
        """Run a cell unless it is finished; a line on how that went."""
        began, name = time.monotonic(), f"run {number + 1}"
        try:
            with self.looking:
                job = self.prepare(self.runs[number])
                accuracy, stale = job.finished(), job.stale_resume_file()
            name = self.name(number, job)
            if accuracy:
                return f"{name}: test {accuracy_text(accuracy)}, was finished"
            if any(needed in self.failed for needed in self.needs(number)):
                outcome = "LEFT OUT, since what it needs failed"
            else:
                code, log = self.execute(job, stale)
                with self.looking:
                    accuracy = job.finished()
                seconds = time.monotonic() - began
                if accuracy and not code:
                    return f"{name}: test {accuracy_text(accuracy)}, {seconds:.0f} s"
                lines = log.read_text(errors="replace").splitlines() or ["no output"]
                outcome = f"FAILED with exit code {code}: {lines[-1]}"
        except (InputError, OSError) as error:
            outcome = f"FAILED: {error}"
        self.failed[number] = name
        return f"{name}: {outcome}"

    def execute(self, job, stale):
        """(exit code, log file) of a process that runs a job, anew where what it could go on from
        is `stale`; of several GPUs it has one."""
        log, slot = job.outputs[-1].with_suffix(".log"), self.slots.get()
        environment = dict(os.environ)
        gpus = torch.cuda.device_count()
        if gpus > 1:
            visible = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
            visible = visible.split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
        if self.at_once > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.at_once)))
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            remove_irregular(log)
            with open(log, "a") as output:
                if self.stopped:
                    return 130, log
                argv = [word for word in job.argv if not (stale and word == "--resume=True")]
                process = subprocess.Popen(
                    [sys.executable, str(MAIN), *argv],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self.processes.add(process)
                code = process.wait()
                self.processes.discard(process)
            return code, log
        finally:
            self.slots.put(slot)
