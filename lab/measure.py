"""What can be measured of a network without images."""

import logging
import math
import statistics
import timeit
from dataclasses import replace
from functools import partial

import torch

import train
from channels.costs import measure_cost
from channels.groups import all_filters, dense_widths, filter_groups, remains_of
from common.libraries import lazy
from common.modes import evaluating
from lab.checkpoint import checkpoint_bytes
from lab.networks import unpruned_twin

benchmark = lazy("torch.utils.benchmark")

LATENCY_TURNS = 5
LAYER_RUNS = 10


def measured(record, path, network, file_bytes):
    """`record` with all that is known of `network`, in a file of `file_bytes` at `path`."""
    size = record.image_size
    return replace(
        record,
        file=str(path),
        model=network.origin.name,
        num_classes=network.origin.num_classes,
        widths=layer_widths(network),
        **measure_cost(network, size),
        compression=measure_compression(network, file_bytes, record.plain(), size),
        orthogonality=measure_orthogonality(network),
    )


def measure_compression(network, file_bytes, entries, image_size=32):
    """How many times smaller a network in a file of `file_bytes` is than its unpruned twin; see
    lab.record.Compression. The twin's file is one with the same `entries` beside the weights."""
    twin = unpruned_twin(network)
    ours, theirs = measure_cost(network, image_size), measure_cost(twin, image_size)
    unpruned = len(checkpoint_bytes(twin, entries))
    return {
        "parameters": theirs["parameters"] / ours["parameters"],
        "flops": theirs["flops"] / ours["flops"],
        "file": unpruned / file_bytes,
        "file_bytes": file_bytes,
        "unpruned_file_bytes": unpruned,
    }


def layer_widths(network):
    """{layer: number of its filters}."""
    return {group.name: len(group.channels) for group in filter_groups(network)}


def stream_widths(network):
    """{residual stream: number of its channels}; in a chain the stream is called like its layer."""
    streams = {g.stream.name: g.stream.width for g in filter_groups(network)}
    layers = dense_widths(network)
    return {name: width for name, width in streams.items() if name not in layers}


def measure_orthogonality(network: torch.nn.Module) -> dict:
    """{"mean": over layers, None where there are none, "layers": {convolution: degree of
    orthogonality}}."""
    layers = train.degree_of_orthogonality(network)
    return {"mean": train.mean_degree(layers), "layers": layers}


def measure_layers(network, image_size=32):
    """One dict for each convolution and for the classifier, in order: "layer", "kept" and "total"
    outputs, "macs" and "unpruned_macs" (multiply-adds of one image), and "orthogonality", its
    degree, None for the classifier."""
    twin = dict(remains_of(network).structure.skeleton.named_modules())
    before = measure_cost(network, image_size, all_filters(network))["layer_macs"]
    after = measure_cost(network, image_size)["layer_macs"]
    degrees = measure_orthogonality(network)["layers"]
    modules = dict(network.named_modules())
    rows = []
    for name, macs in after.items():
        rows.append(
            {
                "layer": name,
                "kept": _outputs_of(modules[name]),
                "total": _outputs_of(twin[name]),
                "macs": macs,
                "unpruned_macs": before[name],
                "orthogonality": degrees.get(name),
            }
        )
    return rows


def _outputs_of(layer):
    if isinstance(layer, torch.nn.MultiheadAttention):
        return len(layer.in_proj_weight)
    return layer.out_features if isinstance(layer, torch.nn.Linear) else layer.out_channels


def noise(batch_size, image_size):
    """A batch of images, N x 3 x H x W from -1 to 1, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch_size, 3, image_size, image_size, generator=generator) * 2 - 1


def time_on(device):
    """The time in seconds at which a device has done all that it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()
    return timeit.default_timer()


def layer_times(network, images, runs=LAYER_RUNS):
    """{layer: milliseconds for a batch, median over runs} of a network's convolutions and linear
    layers, on the images' device. A layer that is used several times has the sum."""
    names, times, began = {}, {}, {}

    def begin(module, _inputs):
        began[module] = time_on(images.device)

    def end(module, _inputs, _output):
        times[names[module]][-1] += 1000 * (time_on(images.device) - began[module])

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            names[module] = name
            handles.append(module.register_forward_pre_hook(begin))
            handles.append(module.register_forward_hook(end))
    images = images.to(memory_format=torch.channels_last)
    try:
        with evaluating(network), torch.inference_mode():
            for _ in range(runs + 1):
                for name in names.values():
                    times.setdefault(name, []).append(0.0)
                network(images)
    finally:
        for handle in handles:
            handle.remove()
    # The first run warms up.
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def measure_latency(networks, batch_size, image_size, device, seconds=4.0):
    """{label: {"median": milliseconds for a batch, "p90", "images_per_second", "runs", "turns": the
    median of each turn}} of {label: network, or lab.export.Runtime}, which take turns for about
    `seconds` in all."""
    images = noise(batch_size, image_size).to(device, memory_format=torch.channels_last)
    clock = partial(time_on, device)

    # It says at its import where there is no CUDA.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    timers = {}
    for label, network in networks.items():
        if isinstance(network, torch.nn.Module):
            inputs = {"network": network.to(device).eval(), "images": images}
        else:
            inputs = {"network": network.run, "images": network.prepare(images)}
        timers[label] = benchmark.Timer(
            "network(images)", timer=clock, num_threads=torch.get_num_threads(), globals=inputs
        )
    times = {label: [] for label in networks}
    turns = {label: [] for label in networks}
    with torch.inference_mode():
        for timer in timers.values():
            timer.timeit(3)  # warm-up
        for _ in range(LATENCY_TURNS):
            for label, timer in timers.items():
                turn = timer.blocked_autorange(min_run_time=seconds / LATENCY_TURNS / len(timers))
                times[label] += [1000 * time for time in turn.times]  # means where runs are short
                turns[label].append(1000 * turn.median)
    figures = {}
    for label, milliseconds in times.items():
        milliseconds.sort()
        median = statistics.median(milliseconds)
        figures[label] = {
            "median": median,
            "runs": len(milliseconds),
            "turns": turns[label],
            "p90": milliseconds[math.ceil(0.9 * len(milliseconds)) - 1],
            "images_per_second": 1000 * batch_size / median,
        }
    return figures
