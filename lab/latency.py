"""--budget=latency: as many filters go as a share of the measured time asks for."""

import statistics
from typing import NamedTuple

import torch

from channels.costs import measure_cost
from common.libraries import ONNX, need
from common.processes import as_first, is_first
from lab.export import runtime_of
from lab.measure import layer_times, measure_latency, noise
from lab.networks import unpruned_twin
from pruner import max_percent, prune, pruned_percent, select_filters

STEPS, ROUGH_STEPS = 7, 5  # halvings of the range that the cut is looked for in
BRIEF, LONG = 2.0, 8.0  # seconds of a measurement: of a step, and of the cut that was found


class Saved(NamedTuple):
    """Time that a network saves of the unpruned one's."""

    percent: float  # median over the turns
    spread: float  # percentage points between the quartiles of the turns
    milliseconds: tuple  # for a batch: of the network, and of the unpruned one

    def plain(self):
        """As entries of lab.record.Pruning."""
        return {
            "achieved_percent": self.percent,
            "spread_percent": self.spread,
            "milliseconds": list(self.milliseconds),
        }


class Clock:
    """Times networks in turn with the unpruned network that they were pruned from.

    runtime: "pytorch", on `device`, or "onnxruntime", on the CPU. Raises InputError where that is
    missing.
    """

    def __init__(self, model, image_size, batch, device, runtime="pytorch"):
        self.image_size, self.batch, self.runtime = image_size, batch, runtime
        self.device = device if runtime == "pytorch" else torch.device("cpu")
        self.unpruned = self._ready(unpruned_twin(model)) if is_first() else None

    def _ready(self, network):
        if self.runtime == "pytorch":
            return network
        need("--latency_runtime=onnxruntime", *ONNX)
        return runtime_of(network, self.image_size)

    def layer_times(self, network):
        """{layer: milliseconds for a batch} of the convolutions and linear layers of a network; of
        several processes, what the first has measured."""
        if not is_first():
            return as_first(None)
        ready, images = self._ready(network), noise(self.batch, self.image_size)
        if self.runtime == "pytorch":
            times = layer_times(ready, images.to(self.device))
        else:
            times = ready.layer_times(images)
        return as_first(self._filled_up(times, network))

    def _filled_up(self, times, network):
        """The times with those of layers that the runtime does not tell apart: by their
        multiply-adds, as if these took as long as the others'."""
        macs = measure_cost(network, self.image_size)["layer_macs"]
        timed = [layer for layer in macs if times.get(layer)]
        time_in_all = sum(times[layer] for layer in timed)
        macs_in_all = sum(macs[layer] for layer in timed)
        rate = time_in_all / max(1, macs_in_all) or 1.0
        return {layer: times.get(layer) or rate * count for layer, count in macs.items()}

    def saved_by(self, network, seconds=BRIEF):
        """The Saved of a network; of several processes, what the first has measured."""
        if not is_first():
            return Saved(*as_first(None))
        figures = measure_latency(
            {"unpruned": self.unpruned, "this": self._ready(network)},
            self.batch,
            self.image_size,
            self.device,
            seconds,
        )
        ours, theirs = figures["this"]["turns"], figures["unpruned"]["turns"]
        saved = [100 * (1 - our_time / their_time) for our_time, their_time in zip(ours, theirs)]
        lower, _, upper = statistics.quantiles(saved, n=4)
        milliseconds = [statistics.median(ours), statistics.median(theirs)]
        return Saved(*as_first((statistics.median(saved), upper - lower, milliseconds)))


def select_by_time(
    model,
    scores,
    percent,
    clock,
    round_to=1,
    residual="single",
    exact=True,
    original=None,
    keep=(),
    **choice,
):
    """Choose the filters to keep when `percent` of the unpruned network's time is saved.

    Filters go in the order of the scores. How many go is found by bisection over cut networks that
    are timed. Where all that may go saves less, all of it goes. clock: a Clock. exact: False, for a
    step on the way, takes fewer and shorter measurements, and rather saves less than more, which
    no later step could give back. Each measurement is a line. original: as for `pruner.prune`.
    Others: see `pruner.select_filters`. Returns (layer name -> indices to keep, the Saved of that
    cut, the Saved of all that may go). Raises what `prune` raises.
    """
    steps, seconds = (STEPS, LONG) if exact else (ROUGH_STEPS, BRIEF)
    counts_costs = choice.get("per_cost") or choice.get("losses") is not None
    times = clock.layer_times(model) if counts_costs else None
    limits = {"round_to": round_to, "residual": residual, "keep": keep}

    def cut(share):
        """(the filters to keep, the network) without `share` percent of the filters."""
        kept = select_filters(
            model,
            scores,
            share,
            layer_times=times,
            image_size=clock.image_size,
            **limits,
            **choice,
        )
        return kept, prune(model, kept, original=original)

    low, high = pruned_percent(model), max_percent(model, **limits)
    kept, network = cut(high)
    most = saved = _timed(clock, network, high)
    if most.percent <= percent:  # before all goes that may
        most = saved = _timed(clock, network, high, seconds)
    if most.percent > percent:
        if not exact:
            kept, network = cut(low)
        for _ in range(steps):
            middle = (low + high) / 2
            tried, smaller = cut(middle)
            is_enough = _timed(clock, smaller, middle).percent >= percent
            low, high = (low, middle) if is_enough else (middle, high)
            if is_enough == exact:  # the end of the range that is looked for
                kept, network = tried, smaller
        saved = _timed(clock, network, high if exact else low, seconds)
    return kept, saved, most


def _timed(clock, network, share, seconds=BRIEF):
    """The Saved of a network without `share` percent of its filters, which is printed."""
    saved = clock.saved_by(network, seconds)
    print(
        f"  timed: without {share:.1f}% of the filters a batch takes "
        f"{saved.milliseconds[0]:.2f} ms, {saved.percent:.1f}% less",
        flush=True,
    )
    return saved
