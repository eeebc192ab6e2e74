"""What is compared with what: sections of like results, and differences between runs of one seed.

A percent is what was asked to be removed, with two decimals. Unpruned controls have None.
Differences are {(percent, seed): ours minus theirs}, in points of accuracy.
"""

import json
from dataclasses import dataclass
from typing import NamedTuple

from common.flags import marked
from common.terminal import counted
from lab.experiment import DEFAULTS, ONLY_PRUNED, REPORT_MAY_DIFFER, Experiment
from lab.record import Record, by_network, grouped, in_order
from lab.results import Result
from lab.significance import Difference

# ---------------------------------------------------------------------------------------- sections


class Shared(NamedTuple):
    """What the results of a section have in common; sections are sorted by it."""

    run_folder: str
    data: str
    job: str  # a key of lab.record.JOBS
    recipes: str
    budget: str


@dataclass(frozen=True)
class Section:
    """Results that are compared with each other. borrowed: unpruned controls of other sections
    that this one lacks; their networks were trained as the section's own were."""

    shared: Shared
    records: list[Record]
    borrowed: list[Result]


def sections_of(results):
    """The sections of a list of lab.results.Result, sorted."""
    controls = [result for result in results if result.record.control == "unpruned"]
    sections = []
    for shared, alike in sorted(grouped(results, _shared_of).items()):
        records = [record for record, _ in alike]
        sections.append(Section(shared, records, _borrowed(records, controls)))
    return sections


def _shared_of(result):
    record, run_folder = result
    return Shared(run_folder, record.data, record.job, record.recipes, record.flag("budget"))


def _borrowed(records, controls):
    """The controls that records lack and may use, since a budget changes no control."""
    trainings = set(map(_training_of, records))
    runs = set(map(_run_of, records))
    borrowed = []
    for result in controls:
        if _run_of(result.record) not in runs and _training_of(result.record) in trainings:
            borrowed.append(result)
    return borrowed


def _run_of(record):
    return record.network, record.method, record.flags["seed"]


def _training_of(record):
    """What shaped the training of a record's unpruned network."""
    return (
        record.network,
        record.data,
        record.fingerprint,
        record.job,
        record.recipes,
        record.flags["seed"],
        json.dumps(record.schedule),
    )


def settings_that_differ(records):
    """The settings, in words, that should be equal in all records and are not."""
    flags = _flags_that_differ(records)
    if flags:
        return flags
    # What is held out for validation depends on the seed.
    if _several(records, _seed_of, _fingerprint_of):
        return ["--data_path"]
    if _several(records, _variant_of, _schedule_of):
        return ["the schedules of config.py"]
    return []


def _flags_that_differ(records):
    may_differ = marked(Experiment, REPORT_MAY_DIFFER)
    of_pruning = marked(Experiment, ONLY_PRUNED)
    pruned = _pruned_of(records)
    differing = []
    for name in DEFAULTS:
        if name in may_differ:
            continue
        concerned = pruned if name in of_pruning else records
        values = {json.dumps(record.flag(name)) for record in concerned}
        if len(values) > 1:
            differing.append(f"--{name}")
    return differing


def _pruned_of(records):
    return [record for record in records if not record.control]


def _several(records, key_of, value_of):
    """Whether records of one key have several values."""
    for alike in grouped(records, key_of).values():
        if len(set(map(value_of, alike))) > 1:
            return True
    return False


def _seed_of(record):
    return record.flag("seed")


def _fingerprint_of(record):
    return record.fingerprint


def _variant_of(record):
    return record.model, record.variant


def _schedule_of(record):
    return json.dumps(record.schedule)


# -------------------------------------------------------------------------------- methods, percents


@dataclass(frozen=True)
class Grid:
    """One network's records: a row for each method, in the order of tables, and a column for each
    percent. cells: {(method, percent): records}."""

    methods: list[str]
    percents: list[float | None]
    cells: dict[tuple, list[Record]]


def grid_of(records):
    cells = grouped(records, lambda record: (record.method, percent_of(record)))
    percents = sorted_percents(set(map(percent_of, records)))
    return Grid(_methods_of(in_order(records)), percents, cells)


def percent_of(record):
    if record.control == "unpruned":
        return None
    return round(record.requested, 2)


def sorted_percents(percents):
    """A set of percents from low to high; None comes last."""
    known = sorted(percents - {None})
    return [*known, None] if None in percents else known


def _methods_of(records):
    return list(dict.fromkeys(record.method for record in records))


# ------------------------------------------------------------------------------------- differences


def gaps_of(records, borrowed=()):
    """{(name of what is compared, name of what it is compared with): differences} of one network.

    Compared are the first method with each other one, their controls likewise, the first variant
    of each pruning type with its others, each method with its own controls, and scratch controls
    with unpruned ones. borrowed: records of unpruned controls of other sections.
    """
    everything = [*records, *borrowed]
    ordered = in_order(everything)
    accuracies = _accuracies_of(everything)
    unpruned, scratch = {}, {}  # method -> its controls
    for record in ordered:
        if record.control == "scratch":
            scratch[record.variant] = record.method
        elif not record.control:
            unpruned[record.method] = record.unpruned_method
    lost = {}  # method -> what pruning has changed
    for method, control in unpruned.items():
        lost[method] = _minus_control(accuracies[method], accuracies.get(control, {}))
    gaps = {}
    for first, other in _pairs_of(ordered, lambda record: record.control):
        gaps[first, other] = minus(accuracies[first], accuracies[other])
        if unpruned.get(first) != unpruned.get(other):
            beyond = minus(lost[first], lost[other])
            gaps[first, f"{other}, each minus its unpruned network"] = beyond
    for first, other in _pairs_of(_pruned_of(ordered), lambda record: record.flags["pruning_type"]):
        gaps[first, other] = minus(accuracies[first], accuracies[other])
    for method, control in unpruned.items():
        gaps[method, control] = lost[method]
        if method in scratch:
            fresh = scratch[method]
            gaps[method, fresh] = minus(accuracies[method], accuracies[fresh])
            gaps[fresh, control] = _minus_control(accuracies[fresh], accuracies.get(control, {}))
    return gaps


def _pairs_of(records, key_of):
    """Pairs of the first method and each other one, among records of the same key."""
    for alike in grouped(records, key_of).values():
        first, *others = _methods_of(alike)
        for other in others:
            yield first, other


def _accuracies_of(records):
    """{method: {(percent, seed): accuracy}} of the last rounds."""
    accuracies = {}
    for record in records:
        by_seed = accuracies.setdefault(record.method, {})
        if record.finished:
            by_seed[percent_of(record), record.flags["seed"]] = record.best
    return accuracies


def _minus_control(accuracies, control):
    """Accuracies at all percents minus those of an unpruned control."""
    unpruned = {seed: accuracy for (_, seed), accuracy in control.items()}
    gaps = {}
    for (percent, seed), accuracy in accuracies.items():
        if seed in unpruned:
            gaps[percent, seed] = accuracy - unpruned[seed]
    return gaps


def minus(ours, theirs):
    """The differences of two {key: value} over the keys that both have."""
    return {key: ours[key] - theirs[key] for key in ours.keys() & theirs.keys()}


def gaps_between_rounds(records):
    """{network: {(name, name): differences}} between jobs that differ in their number of rounds,
    the fewest minus each other number. The jobs may be of several presets."""
    ended = [r for r in _pruned_of(records) if r.job == "iterative" and r.finished]
    gaps = {}
    for network, runs in by_network(ended).items():
        for (_, _, variant), alike in grouped(in_order(runs), _job_but_for_rounds).items():
            accuracies = _accuracies_by_rounds(alike)
            fewest, *others = sorted(accuracies)
            for rounds in others:
                names = f"{variant}, {counted(fewest, 'round')}", counted(rounds, "round")
                pairs = gaps.setdefault(network, {})
                pairs[names] = minus(accuracies[fewest], accuracies[rounds])
    return gaps


def _job_but_for_rounds(record):
    return record.data, record.flag("budget"), record.variant.removesuffix(record.rounds)


def _accuracies_by_rounds(records):
    """{number of rounds: {(percent, seed): accuracy}}."""
    accuracies = {}
    for record in records:
        by_seed = accuracies.setdefault(record.pruning["rounds"], {})
        by_seed[percent_of(record), record.flags["seed"]] = record.best
    return accuracies


def differences_of(gaps):
    """{(network, names, percent): its Difference over seeds} of {network: {names: differences}}.
    What has fewer than two seeds is left out."""
    differences = {}
    for network, pairs in gaps.items():
        for names, by_seed in pairs.items():
            for percent, values in _by_percent(by_seed).items():
                difference = Difference.of(values)
                if difference:
                    differences[network, names, percent] = difference
    return differences


def _by_percent(gaps):
    """{percent: its differences over seeds}."""
    percents = {}
    for (percent, _), gap in gaps.items():
        percents.setdefault(percent, []).append(gap)
    return percents
