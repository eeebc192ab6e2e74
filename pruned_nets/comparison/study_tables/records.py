"""The records of the study's sweeps, and what tables ask of them."""

import statistics
from dataclasses import dataclass

import claim_records
from places import HERE

from lab.comparison import minus
from lab.markdown import spread
from lab.record import UNPRUNED
from lab.results import read_group_checks, read_results

PLAIN, PENALISED = UNPRUNED
VGG, MOBILENET, RESNET34, RESNET56 = "VGG-13", "MobileNet-V1", "ResNet-34", "ResNet-56"


@dataclass(frozen=True)
class Case:
    """One network in one sweep. weight: of the penalty, as methods' names have it."""

    title: str
    sweep: str
    network: str
    weight: str = ""

    def name(self, method):
        """A method's name in the records: "plain" and "penalised" are unpruned controls."""
        if method == "plain":
            return PLAIN
        if method == "penalised":
            return PENALISED + self.weight
        kind, comma, rest = method.partition(",")
        if kind == "orthoreg" and "λ" not in rest:
            kind += self.weight
        return kind + comma + rest


WARMUP = [Case(network, "cpu-warmup", network) for network in (VGG, MOBILENET, RESNET56)]
GENTLE = Case("VGG-13, a tenth of the rates †", "cpu-gentle", VGG, ", λ 0.1")
FOUR = [WARMUP[0], GENTLE, *WARMUP[1:]]


class Study:
    """The records below the study's folder."""

    def __init__(self, folder=HERE):
        self.claims = claim_records.all_results()
        self.results, *_ = read_results(folder)
        self.checks = read_group_checks(folder)
        self.cells = {}  # (sweep, network, method, percent) -> {seed: record}
        for record, run_in in self.results:
            percent = None if record.control == "unpruned" else round(record.requested)
            key = run_in, record.network, record.method, percent
            self.cells.setdefault(key, {})[record.flags["seed"]] = record

    def find(self, case, method, percent=75, sweep=None):
        """{seed: record}"""
        if method.startswith(("plain", "penalised", "unpruned")):
            percent = None
        key = sweep or case.sweep, case.network, case.name(method), percent
        return dict(sorted(self.cells.get(key, {}).items()))

    def best(self, case, method, percent=75, sweep=None):
        """{seed: accuracy} of the epoch that the validation images choose."""
        found = self.find(case, method, percent, sweep)
        return {seed: record.best for seed, record in found.items()}

    def last(self, case, method, percent=75):
        """{seed: accuracy} of the last epoch."""
        found = self.find(case, method, percent)
        return {seed: record.last for seed, record in found.items()}

    def minus(self, case, ours, theirs, percent=75):
        """{seed: what one method is ahead of another}"""
        return minus(self.best(case, ours, percent), self.best(case, theirs, percent))

    def last_minus(self, case, ours, theirs, percent=75):
        """As `minus`, by the accuracies of the last epochs."""
        return minus(self.last(case, ours, percent), self.last(case, theirs, percent))

    def beyond(self, case, ours, theirs, percent=75, controls=None):
        """As `minus`, each minus its unpruned network. controls: the sweep of these."""

        def lost(method):
            control = "penalised" if method == "orthoreg" else "plain"
            unpruned = self.best(case, control, sweep=controls)
            return minus(self.best(case, method, percent), unpruned)

        return minus(lost(ours), lost(theirs))

    def accuracy(self, case, method, percent=75, usual=3, cost=True):
        """ "77.0 ± 0.5 (28)", with n where it is not the usual one."""
        found = self.find(case, method, percent).values()
        if not found:
            return "–"
        notes = []
        if cost:
            notes.append(f"{macs_left(found):.0f}")
        if len(found) != usual:
            notes.append(f"n = {len(found)}")
        text = spread(record.best for record in found)
        return f"{text} ({', '.join(notes)})" if notes else text

    def degrees(self, case, method, percent=75):
        """The mean degree of orthogonality before the pruning, of MobileNet-V1's pointwise
        convolutions alone: {seed: degree}."""
        degrees = {}
        for seed, record in self.find(case, method, percent).items():
            layers = record.unpruned.orthogonality["layers"]
            if case.network == MOBILENET:
                layers = {name: layers[name] for name in layers if name.endswith(".conv2")}
            degrees[seed] = statistics.mean(layers.values())
        return degrees


def macs_left(records):
    """The mean share of the multiply-adds that is left, in percent."""
    return statistics.mean(record.flops_left for record in records)
