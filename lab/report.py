"""The results below a folder, compared: report.md, report.csv and plots."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError
from common.files import check_writable, to_csv, write_atomically
from common.terminal import counted, printable, progress
from lab import plots
from lab.checkpoint import load_checkpoint
from lab.comparison import sections_of
from lab.drawing import load_pyplot
from lab.experiment import DEFAULTS
from lab.latency import Clock
from lab.markdown import escaped
from lab.record import Record
from lab.results import Result, read_group_checks, read_results
from lab.sections import describe_groups, describe_rounds, describe_section, title_of


class Block(NamedTuple):
    """A part of a report: lines of Markdown, and the records that its plots show."""

    lines: list[str]
    records: list[Record] = []
    suffix: str = ""  # that the names of its plots end with


def write_report(folder, device=None, model=None):
    """Write report.md and report.csv, and plots beside them where matplotlib is installed. Print
    what was written.

    device: the networks that are still there are measured on it, each in turn with the unpruned
    one. model: FILE.py:NAME of a user's own network, which is measured only then. Raises
    InputError where there are no results.
    """
    _check_folder(folder)
    print(f"Reading the results below {folder}", flush=True)
    results, others, copies = read_results(folder)
    if not results:
        raise InputError(
            f"--report={folder}: no results below it; main.py writes a .json beside "
            "each pruned network"
        )
    if device:
        results = _timed(results, device, model)
    lines, plot_count = _draw(results, folder)
    try:
        write_atomically(
            {
                Path(folder) / "report.md": "\n".join(lines).encode(),
                Path(folder) / "report.csv": to_csv(list(map(csv_row, results))),
            }
        )
    except UnicodeError as error:
        raise InputError(f"--report={folder}: {error}") from error
    print("\n".join(lines))
    plotted = f" and {plot_count} plots" if plot_count else ""
    print(f"Written: {Path(folder) / 'report.md'}, report.csv{plotted}")
    _print_left_out(others, "that hold no result")
    _print_left_out(copies, "that are copies of others")


def _check_folder(folder):
    if not Path(folder).is_dir():
        raise InputError(f"--report={folder} is no folder")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"--report={folder} may not be read")
    check_writable(Path(folder) / "report.md")


def _print_left_out(paths, reason):
    if paths:
        print(
            f"Left out: {len(paths)} .json files {reason}, the first is {printable(str(paths[0]))}"
        )


# ---------------------------------------------------------------------------------------- the text


def _draw(results, folder):
    """The lines of report.md, and the number of plots, which are drawn here."""
    lines, plot_count = ["# Comparison of pruning methods"], 0
    pyplot = load_pyplot()
    for block in blocks(results, read_group_checks(folder)):
        lines += ["", *block.lines]
        if pyplot and block.records:
            for name, caption in plots.plot_section(pyplot, block.records, folder, block.suffix):
                lines += ["", f"![{caption}]({name})"]
                plot_count += 1
    machines = sorted(set(map(_machine_of, results)))
    lines += ["", f"{len(results)} results; {'; '.join(machines)}.", ""]
    return lines, plot_count


def _machine_of(result):
    """The machine that computed a result, and its software, in words."""
    known = result.record.environment
    device = known["device"]
    if known.get("processor"):
        device += f" ({known['processor']})"
    return escaped(f"{device}, torch {known['torch']}, Python {known['python']}")


def blocks(results, checks=()):
    """The Blocks of a report. results: of `read_results`; checks: of `read_group_checks`."""
    sections = sections_of(results)
    parts = []
    for number, section in enumerate(sections, 1):
        tables = describe_section(section.records, section.borrowed)
        suffix = f"_{number}" if len(sections) > 1 else ""
        parts.append(Block([title_of(section.shared), "", *tables], section.records, suffix))
    rounds = describe_rounds([record for record, _ in results])
    for lines in (rounds, describe_groups(checks)):
        if lines:
            parts.append(Block(lines))
    return parts


# ---------------------------------------------------------------------------------------- the time


def _timed(results, device, model):
    """The results, with the measured times of those networks that can be timed."""
    timed, reasons = [], []
    for record, run_folder in progress(results, "measuring networks"):
        try:
            timed.append(Result(with_time(record, device, model), run_folder))
        except InputError as error:
            timed.append(Result(record, run_folder))
            reasons.append(str(error))
    if reasons:
        print(
            f"Not timed: {len(reasons)} of {counted(len(timed), 'network')}, the first since "
            f"{printable(reasons[0])}"
        )
    return timed


def with_time(record, device, model=None):
    """The record with its network's time for a batch. Raises InputError where that cannot be
    measured."""
    network, known = load_checkpoint(record.file, model)
    if not known.image_size:
        raise InputError(f"{record.file} does not say for images of what size it is")
    clock = Clock(network, known.image_size, DEFAULTS["latency_batch"], device)
    saved = clock.saved_by(network.to(device), 1.0)
    times = {"milliseconds": list(saved.milliseconds), "spread_percent": saved.spread}
    return replace(record, pruning=record.pruning | times)


# ------------------------------------------------------------------------------------- the figures


def csv_row(result):
    """A result as a flat dict, a line of report.csv."""
    record, run_folder = result
    names = {
        "folder": run_folder,
        "data": record.data,
        "job": record.job,
        "preset": record.recipes,
        "network": record.network,
        "method": record.method,
    }
    figures = {
        "seed": record.flags["seed"],
        "budget": record.flag("budget"),
        "requested_percent": record.requested,
        "achieved_percent": record.achieved,
        "parameters_left_percent": record.parameters_left,
        "flops_left_percent": record.flops_left,
        "after_pruning": record.after_pruning,
        "after_pruning_bn": record.after_bn,
        "best": record.best,
        "last": record.last,
        "top5": record.top5,
    }
    environment = {}
    for name in ("device", "processor", "torch", "suite"):
        environment[name] = record.environment.get(name, "")
    return {**_printable(names), **figures, **_times_of(record), **_printable(environment)}


def _times_of(record):
    """The measured times of a record, None where it was not timed."""
    pruning = record.pruning or {}
    milliseconds, unpruned = pruning.get("milliseconds") or (None, None)
    return {
        "milliseconds": milliseconds,
        "unpruned_milliseconds": unpruned,
        "spread_percent": pruning.get("spread_percent"),
    }


def _printable(words):
    """A dict of words from a file as text that is safe to print."""
    return {name: printable(str(word)) for name, word in words.items()}
