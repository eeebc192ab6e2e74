"""Measure a network that main.py wrote.

    python eval.py --model_path pruned_nets/ebt/digits/vgg_orthoreg_25_0.pth --test_acc True
    python eval.py --model vgg --pruned True --model_path FILE --flops True --compression True

The file knows what it holds; --model and --pruned are only checked against it.
"""
import json
import math
import os
import platform
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from config import (BUDGETS, MODELS, PRUNING_TYPES, InputError, Parser, boolean, counted, exit_with,
                    flag, heading, integer, print_columns, print_table, processes, run_command, switch,
                    to_csv, to_json, write_atomically)

# torch and what needs it is imported inside the functions: --help answers before that.


def measure_compression(network, file_bytes, info, image_size=32):
    """How many times smaller a network in a file of `file_bytes` is than its unpruned twin.

    {"parameters", "flops", "file": ratios, "file_bytes", "unpruned_file_bytes"}; the twin's file is
    one with the same entries beside the weights.
    """
    from models import measure_cost, unpruned_twin
    from pruner import checkpoint_bytes
    twin = unpruned_twin(network)
    ours, theirs = measure_cost(network, image_size), measure_cost(twin, image_size)
    unpruned = len(checkpoint_bytes(twin, info))
    return {"parameters": theirs["parameters"] / ours["parameters"],
            "flops": theirs["flops"] / ours["flops"], "file": unpruned / file_bytes,
            "file_bytes": file_bytes, "unpruned_file_bytes": unpruned}


def layer_widths(network):
    """{layer: number of its filters}."""
    return {group.name: group.conv.out_channels for group in network.filter_groups()}


def measure_orthogonality(network):
    """{"mean": over layers, "layers": {convolution: degree of orthogonality}}."""
    from train import degree_of_orthogonality
    layers = degree_of_orthogonality(network)
    return {"mean": sum(layers.values()) / len(layers), "layers": layers}


def measure_layers(network, image_size=32):
    """One dict for each convolution and for the classifier, in order: "layer", "kept" and "total"
    outputs, "macs" and "unpruned_macs" (multiply-adds of one image), and "orthogonality", the degree
    of it, None for the classifier."""
    import torch
    from models import measure_cost, unpruned_twin
    with torch.device("meta"):
        twin = dict(unpruned_twin(network).named_modules())
    before, after = (measure_cost(network, image_size, widths)["layer_macs"]
                     for widths in (network.dense, None))
    degrees, modules = measure_orthogonality(network)["layers"], dict(network.named_modules())
    return [{"layer": name, "kept": len(modules[name].weight), "total": len(twin[name].weight),
             "macs": after[name], "unpruned_macs": before[name],
             "orthogonality": degrees.get(name)} for name in after]


def measure_latency(networks, batch_size, image_size, device, seconds=4.0):
    """{label: {"median": milliseconds for a batch, "p90", "images_per_second", "runs"}} of
    {label: network}, which take turns: a warm-up of three, then at least five, up to `seconds`."""
    import torch
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 3, image_size, image_size, generator=generator).mul(2).sub(1).to(
        device, memory_format=torch.channels_last)
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(
        device.type, lambda: None)
    networks = {label: network.to(device).eval() for label, network in networks.items()}
    times = {label: [] for label in networks}

    def turn():
        for label, network in networks.items():
            start = time.perf_counter()
            network(images)
            wait()
            times[label].append(1000 * (time.perf_counter() - start))

    with torch.inference_mode():
        for _ in range(3):
            turn()
        times, began = {label: [] for label in networks}, time.perf_counter()
        while min(map(len, times.values())) < 5 or time.perf_counter() - began < seconds:
            turn()
    figures = {}
    for label, of in times.items():
        of.sort()
        median = statistics.median(of)
        figures[label] = {"median": median, "p90": of[math.ceil(0.9 * len(of)) - 1],
                          "images_per_second": 1000 * batch_size / median, "runs": len(of)}
    return figures


def measure_record(path, network, info, file_bytes):
    """Everything known of a network, as plain numbers, strings, lists and dicts: what its
    checkpoint `info` says, and what can be measured without images."""
    from models import measure_cost
    size = info["image_size"]
    return {"file": str(path), "model": network.name, "num_classes": network.num_classes,
            **{"training": None, "history": None, "seconds": None, **info},
            **measure_cost(network, size), "widths": layer_widths(network),
            "compression": measure_compression(network, file_bytes, info, size),
            "orthogonality": measure_orthogonality(network)}


def history_rows(record):
    """The epochs of a record's trainings, one flat dict for each."""
    rows, pruning = [], record.get("pruning") or {}
    own = 0 if pruning.get("control") else pruning.get("round", 0)
    for training, epochs in (record.get("history") or {}).items():
        phase, _, number = training.partition(" ")
        for epoch in epochs:
            row = {"round": int(number or own), "phase": phase}
            for name, value in epoch.items():
                if isinstance(value, dict):
                    row |= {f"{name}/{kind}": figure for kind, figure in value.items()}
                else:
                    row[name] = max(value, default="") if isinstance(value, list) else value
            rows.append(row)
    return rows


def epochs_of(record):
    """All epochs of a record's trainings, in order."""
    return [epoch for epochs in (record.get("history") or {}).values() for epoch in epochs]


def environment(device):
    """Versions and hardware that a result depends on."""
    import numpy
    import torch
    import torchvision
    name = (torch.cuda.get_device_name(device) if device.type == "cuda"
            else f"{device.type}, {counted(torch.get_num_threads(), 'thread')}")
    return {"python": platform.python_version(), "torch": str(torch.__version__),
            "torchvision": torchvision.__version__, "numpy": numpy.__version__,
            "platform": platform.platform(), "device": name, "processes": processes()[1]}


# -------------------------------------------------------------------------------------- output


def print_architecture(network, before=None):
    """Width of each layer and residual stream, beside that of the same layer of `before`: the
    network it was pruned from, by default the unpruned one."""
    from models import unpruned_twin
    now, then = ({**layer_widths(n), **_stream_widths(n)}
                 for n in (network, before or unpruned_twin(network)))
    print_columns([(name, f"{then[name]} -> {width}" if width < then[name] else str(width))
                   for name, width in now.items()])


def _stream_widths(network):
    streams = {g.stream.name: g.stream.width for g in network.filter_groups()}
    return {f"{name} (residual stream)": width for name, width in streams.items()
            if name not in network.dense}  # in a chain the stream is called like its layer


def print_pruning(before, after, target, image_size, budget="filters", round_to=1):
    """What pruning `before` to `target` percent has made of it: how far it went, and what it won."""
    from models import measure_cost
    from pruner import pruned_percent, round_up
    (had, dense), (has, _) = before.filter_count(), after.filter_count()
    achieved = pruned_percent(after, budget, image_size)
    print(f"  requested {target:.2f}%{of_budget(budget)}, achieved {achieved:.2f}%: {dense - has:,} "
          f"of {dense:,} filters are gone, {had - has:,} of them in this round")
    groups = after.filter_groups()
    if achieved < target and all(g.conv.out_channels <= round_up(g.floor, round_to, g.dense)
                                 for g in groups):
        stem = any(g.protected for g in groups)
        print(f"  More cannot go than {achieved:.2f}%: every layer keeps 5% of its filters, rounded "
              "down, and one more" + (", and the first convolution all" if stem else "")
              + (f"; widths go up to a multiple of {round_to}" if round_to > 1 else ""))
    elif round_to > 1:
        print(f"  --round_to={round_to}: widths went up to the next multiple, so that less is removed")
    if has == had:
        print("  This round removes nothing" + (
            ": the network is already as small as requested" if achieved >= target else ""))
    else:
        print("  filters of each layer, before -> after")
        print_architecture(after, before)
    costs = [measure_cost(network, image_size) for network in (before, after)]
    print_table([("", "before", "after", "left")] + [
        (name, f"{costs[0][key]:,}", f"{costs[1][key]:,}",
         f"{100 * costs[1][key] / costs[0][key]:.1f}%")
        for key, name in (("parameters", "parameters"), ("flops", "FLOPs"))])


def budget_of(record):
    return BUDGETS[record["flags"].get("budget", "filters")]


def of_budget(budget):
    """What percents are of, where it is not filters."""
    return "" if budget == "filters" else f" of the {BUDGETS[budget]}"


def print_orthogonality(figures):
    print(f"  degree of orthogonality (1: orthogonal filters): mean {figures['mean']:.3f}")
    print_columns([(name, f"{degree:.3f}") for name, degree in figures["layers"].items()])


def accuracy_text(figures):
    top5 = f", top-5 {figures['top5']:.2f}%" if "top5" in figures else ""
    return f"top-1 {figures['top1']:.2f}%{top5}"


def megabytes(count):
    return f"{count / 1e6:.2f} MB"


def print_summary(records):
    """The table at the end: the first network, unpruned but for one that a control repeats, beside
    what each round made of it."""
    heading("Result")
    base = records[0]

    def row(name, text):
        return [name] + [text(record) for record in records]

    def percent(kind, key="top1"):
        return lambda r: f"{r['accuracy'][kind][key]:.2f}%" if kind in r["accuracy"] else ""

    def relative(key):
        return lambda r: f"{r[key]:,}" + (
            "" if r is base else f" ({100 * r[key] / base[key]:.1f}%)")

    def pruning(key):
        return lambda r: "" if r is base else f"{r['pruning'][key]:.2f}%"

    def after_pruning(r):
        figures = r["pruning"]["after_pruning"] if "pruning" in r else None
        return f"{figures['top1']:.2f}%" if figures else ""

    def name(r):
        if "pruning" not in r:
            return "unpruned"
        if r["pruning"]["control"]:
            return "from scratch" if r["pruning"]["control"] == "scratch" else "trained as long"
        return "pruned" if r is base else f"round {r['pruning']['round']}"

    rows = [row("", name)]
    if len(records) > 1:
        rows += [row(f"percent of {budget_of(records[-1])} to remove", pruning("requested_percent")),
                 row("percent removed", pruning("achieved_percent"))]
    rows += [row("test accuracy, best epoch", percent("best")),
             row("test accuracy, last epoch", percent("last"))]
    if "top5" in base["accuracy"]["best"]:
        rows.append(row("top-5 accuracy, best epoch", percent("best", "top5")))
    if any(map(after_pruning, records)):
        rows.append(row("accuracy right after pruning", after_pruning))
    rows += [row("filters", relative("filters")), row("parameters", relative("parameters")),
             row("MACs (multiply-adds)", relative("macs")), row("FLOPs", relative("flops")),
             row("file size", lambda r: megabytes(r["compression"]["file_bytes"])),
             row("mean degree of orthogonality", lambda r: f"{r['orthogonality']['mean']:.3f}")]
    print_table(rows)
    print(f"  The best epoch was chosen on the {records[-1]['accuracy']['chosen_on']} images.")
    for record in records:
        print(f"  {record['file']}")


# --------------------------------------------------------------- is a group the sum of its members?

GROUP_SIZES = tuple(2 ** k for k in range(9))
GROUP_KINDS = {("network", "random"): "over all layers, random",
               ("network", "lowest"): "over all layers, of the lowest scores",
               ("layer", "random"): "within a layer, random",
               ("layer", "lowest"): "within a layer, of the lowest scores"}
GROUPS_IN = "_groups_"  # the names of the files that this is saved in


def check_groups(model, batches, pruning_type, seed=0, draws=32, pool=512, layers=4):
    """Whether the importance of a group of filters is the sum of its members' importances, which
    every loss-based method takes for granted (Lubana et al. 2020).

    Groups of 1, 2, 4 ... 256 filters are drawn `draws` times for each of GROUP_KINDS: at random from
    `pool` filters of the network, or from one of `layers` layers in turn; or as the method would
    choose: the k filters that it would remove first, then random ones of its first 2k (of 32, where
    these are more). Sizes with fewer than 8 groups are left out. A group is removed by setting the
    scales and shifts of its BatchNorms to zero. Its actual change of the loss on `batches`, in eval
    mode, is compared, without its sign, with the sum of its members' scores, scaled by one factor so
    that both sums are equal over all single filters in any group, and, with its sign, with the sum
    of the members' own actual changes. Returns {"loss", "images", "pruning_type", "seed", "draws",
    "kinds": {name: [{"size", "n", "change": mean of the absolute change, "rank_scores",
    "rank_changes": Spearman, None where it is undefined, "error_scores", "error_changes": median of
    |estimate - change| / |change|}]}}. Raises InputError where there is nothing to remove.
    The model is left as it was.
    """
    import torch
    from config import progress
    from imp_estimator import cal_importance
    from train import evaluate
    scores = cal_importance(model, pruning_type, batches, seed=seed)
    groups = [g for g in model.filter_groups() if not g.protected]
    score = {(g.name, i): s for g in groups for i, s in enumerate(scores[g.name].tolist())}
    by_name = {g.name: g for g in groups}
    generator, loss = torch.Generator().manual_seed(seed), evaluate(model, batches)["loss"]

    def shuffled(items):
        items = list(items)
        return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]

    def change(members):
        with removed(by_name, members):
            return evaluate(model, batches)["loss"] - loss

    def removable(group):
        """A layer's filters but for those that its floor keeps, the lowest first."""
        members = sorted(((group.name, i) for i in range(group.conv.out_channels)), key=score.get)
        return members[:max(0, len(members) - group.floor)]

    big = sorted(groups, key=lambda g: len(removable(g)))[-2 * layers:]
    some = [removable(g) for g in groups if g in big][::2]  # spread over the depth
    everything = sorted((member for g in groups for member in removable(g)), key=score.get)
    if not everything:
        raise InputError("--group_check=True: no layer has more filters than it must keep; give a "
                         "network of which less is pruned")
    chance = shuffled(everything)[:pool]
    drawn = {(kind, size): [] for kind in GROUP_KINDS for size in GROUP_SIZES}
    for draw in range(draws):
        layer = some[draw % len(some)]
        for size in GROUP_SIZES:
            for where, anything, first, literal in (
                    ("network", chance, everything, not draw),
                    ("layer", layer, layer, draw < len(some))):
                if len(anything) >= size:
                    drawn[(where, "random"), size].append(shuffled(anything)[:size])
                    drawn[(where, "lowest"), size].append(
                        first[:size] if literal else shuffled(first[:max(2 * size, 32)])[:size])
    members = sorted({m for of in drawn.values() for group in of for m in group})
    alone = {member: change([member]) for member in progress(members, "filters")}
    factor = sum(map(abs, alone.values())) / (sum(abs(score[m]) for m in members) or 1)

    def error(estimate, truth):
        return ((estimate - truth).abs() / truth.abs().clamp_min(1e-12)).median().item()

    kinds = {}
    for kind, name in GROUP_KINDS.items():
        kinds[name] = []
        for size in progress(GROUP_SIZES, name):
            of = drawn[kind, size]
            if len(of) < 8:
                continue
            actual = torch.tensor([change(m) if size > 1 else alone[m[0]] for m in of]).double()
            by_scores = factor * torch.tensor([sum(score[f] for f in m) for m in of]).double()
            by_changes = torch.tensor([sum(alone[f] for f in m) for m in of]).double()
            magnitude = actual.abs()
            kinds[name].append({
                "size": size, "n": len(of), "change": magnitude.mean().item(),
                "rank_scores": spearman(by_scores, magnitude),
                "rank_changes": spearman(by_changes, actual),
                "error_scores": error(by_scores, magnitude),
                "error_changes": error(by_changes, actual)})
    return {"loss": loss, "images": sum(len(labels) for _, labels in batches),
            "pruning_type": pruning_type, "seed": seed, "draws": draws, "kinds": kinds}


@contextmanager
def removed(groups, members):
    """Inside, the filters `members`, pairs of a layer's name and an index, add nothing: the scales
    and shifts of their BatchNorms are zero. groups: layer's name -> FilterGroup."""
    import torch
    norms = [(bn, i) for name, i in members for bn in groups[name].bns]
    kept = [(bn.weight[i].item(), bn.bias[i].item()) for bn, i in norms]
    with torch.no_grad():
        for bn, i in norms:
            bn.weight[i] = bn.bias[i] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            for (bn, i), (scale, shift) in zip(norms, kept):
                bn.weight[i], bn.bias[i] = scale, shift


def spearman(a, b):
    """The rank correlation of two tensors, equal values sharing their mean rank; None where all
    values of one are equal."""
    import torch
    ranks = torch.stack([(v[:, None] > v).sum(1) + ((v[:, None] == v).sum(1) - 1) / 2
                         for v in (a, b)]).double()
    return None if (ranks[:, :1] == ranks).all(1).any() else torch.corrcoef(ranks)[0, 1].item()


def print_groups(figures):
    for name, rows in figures["kinds"].items():
        print(f"Groups {name}")
        print_table([("filters", "groups", "change of loss", "rank corr.", "rel. error",
                      "rank corr.", "rel. error"), *(
            (str(r["size"]), str(r["n"]), f"{r['change']:.2e}", *(
                "–" if r[name] is None else f"{r[name]:.2f}" for name in (
                    "rank_scores", "error_scores", "rank_changes", "error_changes")))
            for r in rows)])
    print("  The first pair: sum of the scores against the size of the group's change of the loss, the "
          "error at one filter being the score's own; the second: sum of the members' own changes against it.")


def plot_groups(figures, path):
    """Draw {label: result of check_groups} to `path`, where matplotlib is installed."""
    pyplot = load_pyplot()
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(2, len(GROUP_KINDS), figsize=(13, 6), layout="constrained",
                                   sharex=True, sharey="row")
    for column, name in enumerate(GROUP_KINDS.values()):
        for (label, of), colour, marker in zip(figures.items(), COLOURS, MARKERS):
            rows = of["kinds"][name]
            for measure, line, estimate in (("scores", "-", "sum of scores"),
                                            ("changes", "--", "sum of single changes")):
                for axis, kind in zip(axes[:, column], ("rank", "error")):
                    values = [r[f"{kind}_{measure}"] for r in rows]  # no 0 on an axis of powers
                    axis.plot([r["size"] for r in rows], [
                        math.nan if v is None or kind == "error" and not v else v for v in values],
                              color=colour, marker=marker, linestyle=line, markersize=4,
                              label=f"{label}: {estimate}")
        axes[0, column].set_title(name, fontsize=9)
        axes[1, column].set(xlabel="filters in the group", xscale="log")
        axes[1, column].set_xticks(GROUP_SIZES, GROUP_SIZES, fontsize=7)
        axes[1, column].minorticks_off()
    axes[0, 0].set_ylabel("rank correlation with the\nchange of the loss")
    axes[1, 0].set_ylabel("median relative error")
    if any(r[error] for of in figures.values() for rows in of["kinds"].values() for r in rows
           for error in ("error_scores", "error_changes")):
        axes[1, 0].set_yscale("log")
    for axis in axes.flat:
        axis.grid(alpha=.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


# -------------------------------------------------------------------------------------- report


def read_results(folder):
    """(the records of all .json files below a folder that main.py wrote, the files left out)."""
    results, others = [], []
    for path in sorted(Path(folder).rglob("*.json")):
        if GROUPS_IN in path.name:
            continue
        try:
            record = json.loads(path.read_text())
            _check_result(record)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
                RecursionError):
            others.append(path)
            continue
        within = path.relative_to(folder).parts
        run_in = within[:within.index("pruned_nets")] if "pruned_nets" in within else within[:-1]
        results.append({**record, "run_in": "/".join(run_in) or "."})
    return results, others


def _check_result(record):
    """Raise ValueError or others where a record is not what main.py writes and a report needs."""
    describe_section([record])
    record["data"], JOBS[record["job"]], record["flags"]["preset"], record["environment"]["torch"]
    numbers = [record["flags"].get("eb_epsilon", 0)]
    for network in filter(None, (record, record.get("base"))):
        history_rows(network)
        numbers += [*network["widths"].values(), *network["orthogonality"]["layers"].values()]
        for epoch in epochs_of(network):
            numbers += [(epoch.get("validation") or epoch["test"])["top1"],
                        *epoch.get("mask_distances", ())]
    if not all(number is None or abs(float(number)) < 1e15 for number in numbers):
        raise ValueError("numbers that nothing has")


def write_report(folder):
    """Write report.md, and plots beside it where matplotlib is installed; print what was written.

    Raises InputError where there are no results.
    """
    if not Path(folder).is_dir():
        raise InputError(f"--report={folder} is no folder")
    results, others = read_results(folder)
    if not results:
        raise InputError(f"--report={folder}: no results below it; main.py writes a .json beside "
                         "each pruned network")
    sections = {}
    for r in results:
        budget = r["flags"].get("budget", "filters")
        sections.setdefault((r["run_in"], r["data"], r["job"], r["flags"]["preset"], budget),
                            []).append(r)
    lines, written, pyplot = ["# Comparison of pruning methods"], [], load_pyplot()
    for number, ((run_in, data, job, preset, budget), records) in enumerate(
            sorted(sections.items()), 1):
        lines += ["", f"## {data}, {JOBS[job]} job, preset {preset}"
                  + f", percents{of_budget(budget)}" * (budget != "filters")
                  + f", in {run_in}" * (run_in != "."), "", *describe_section(records)]
        suffix = f"_{number}" * (len(sections) > 1)
        for name, caption in plot_section(pyplot, records, folder, suffix) if pyplot else ():
            lines += ["", f"![{caption}]({name})"]
            written.append(name)
    environments = {f"{e['device']}, torch {e['torch']}, Python {e['python']}"
                    for e in (r["environment"] for r in results)}
    lines += ["", f"{len(results)} results; {'; '.join(sorted(environments))}.", ""]
    try:
        write_atomically({Path(folder) / "report.md": "\n".join(lines).encode()})
    except UnicodeError as error:
        raise InputError(f"--report={folder}: {error}") from error
    print("\n".join(lines))
    print(f"Written: {Path(folder) / 'report.md'}" + f" and {len(written)} plots" * bool(written))
    if others:
        print(f"Left out: {len(others)} .json files that hold no result, the first is {others[0]}")


JOBS = {"ebt": "Early-Bird", "iterative": "iterative"}


def method_of(record):
    """The pruning type, or the name of a control."""
    control = record["pruning"].get("control")
    if control == "unpruned":
        return UNPRUNED[record["flags"]["pruning_type"] == "orthoreg"]
    return record["flags"]["pruning_type"] + (f", {control}" if control else "")


UNPRUNED = ("unpruned, trained as long", "unpruned with penalty, trained as long")


def network_of(record):
    width = record["flags"]["width"]
    return MODELS[record["model"]] + (f" x {width:g}" if width != 1 else "")


def networks_of(records):
    """The names of the networks, in the order of MODELS."""
    order = {network_of(r): (list(MODELS).index(r["model"]), r["flags"]["width"]) for r in records}
    return sorted(order, key=order.get)


def spread(values, digits=1):
    """Mean and standard deviation over seeds in words."""
    values = [v for v in values if v is not None]
    if not values:
        return ""
    text = f"{statistics.mean(values):.{digits}f}"
    return text + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def top1(record):
    return record["accuracy"]["best"]["top1"]


def last(record):
    return record["accuracy"].get("last", {}).get("top1")


# Flags in which the results of one comparison may differ.
COMPARED = {"model", "width", "pruning_type", "prune_percent", "thresholds", "n_rounds", "seed",
            "control", "pretrained", "num_classes", "device"}


def describe_section(records):
    """The tables of one comparison, as lines of Markdown."""
    cells, models = {}, networks_of(records)
    for r in records:
        key = network_of(r), method_of(r), round(r["pruning"]["requested_percent"], 2)
        cells.setdefault(key, []).append(r)
    order = {name: i for i, name in enumerate(PRUNING_TYPES)}
    methods = sorted({r["flags"]["pruning_type"] for r in records
                      if r["pruning"].get("control") != "unpruned"}, key=order.get)
    percents = sorted({key[2] for key in cells if key[1] not in UNPRUNED})
    seeds = sorted({r["flags"]["seed"] for r in records})
    chosen = sorted({r["accuracy"].get("chosen_on", "test") for r in records})
    lines = [f"Test accuracy (%) of the best epoch, chosen on the {' and '.join(chosen)} images"
             + (f"; mean ± standard deviation over seeds {', '.join(map(str, seeds))}"
                if len(seeds) > 1 else f"; seed {seeds[0]}") + ".", ""]
    unlike = [name for name in records[0]["flags"] if name not in COMPARED and len(
        {json.dumps(r["flags"][name]) for r in records if name in r["flags"]
         and not (name.startswith("eb_") and r["flags"].get("control"))}) > 1]
    if unlike:
        lines += [f"**These results differ in --{', --'.join(unlike)}, too.**", ""]
    for model in models:
        unpruned = {}
        for r in records:
            if network_of(r) == model and "base" in r:
                kind = "with penalty" if r["base"].get("penalised") else "plain"
                unpruned.setdefault(kind, {})[r["base"]["file"]] = r["base"]
        lines.append(f"Unpruned {model}: " + "; ".join(
            f"{kind} {spread(map(top1, of.values()))}, last epoch {spread(map(last, of.values()))} "
            f"(n = {len(of)})" for kind, of in unpruned.items()) + ".")
    header = [f"{model} {' / '.join(methods)}" for model in models]
    lines += ["", f"| pruned | {' | '.join(header)} |", "|---" * (len(models) + 1) + "|"]

    def entry(of):
        return spread(map(top1, of)) + f" (n = {len(of)})" * (len(of) < len(seeds)) if of else "–"

    def row(name, choose):
        row = [" / ".join(entry(choose(model, m)) for m in methods) for model in models]
        if any(set(text) - set(" /–") for text in row):
            lines.append(f"| {name} | {' | '.join(row)} |")

    for percent in percents:
        row(f"{percent:g}%", lambda model, m: cells.get((model, m, percent), []))
    for percent in percents:
        row(f"{percent:g}%, from scratch",
            lambda model, m: cells.get((model, f"{m}, scratch", percent), []))
    row("none, trained as long",
        lambda model, m: cells.get((model, UNPRUNED[m == "orthoreg"], 0), []))

    lines += ["", "| network | method | asked for (%) | removed (%) | parameters left (%) | "
              "FLOPs left (%) | right after pruning | best epoch | last epoch | top-5 | n |",
              "|---" * 11 + "|"]
    for (model, method, percent), of in sorted(cells.items(), key=lambda item: (
            models.index(item[0][0]), item[0][2], order.get(item[0][1], 99), item[0][1])):
        after = [r["pruning"]["after_pruning"] for r in of]
        lines.append("| " + " | ".join([
            model, method, f"{percent:g}", spread((r["pruning"]["achieved_percent"] for r in of), 2),
            spread(100 / r["compression"]["parameters"] for r in of),
            spread(100 / r["compression"]["flops"] for r in of),
            spread(a and a["top1"] for a in after), spread(map(top1, of)),
            spread(map(last, of)),
            spread(r["accuracy"]["best"].get("top5") for r in of), str(len(of))]) + " |")
    return lines


# Okabe and Ito's colours, which stay apart in colour-blind eyes; markers and lines tell, too.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*Xh<>"


def load_pyplot():
    """matplotlib's pyplot, drawing to files; None, and a line that says so, where it is missing."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is missing, so there are tables only; install it with: "
              "pip install matplotlib")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot


def style_of(method):
    i = list(PRUNING_TYPES).index(method.partition(",")[0])
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i],
            "linestyle": ("-", "--")[i // len(COLOURS)], "markersize": 5, "linewidth": 1.4}


def plot_section(pyplot, records, folder, suffix=""):
    """Draw the plots of one comparison: [(file name, caption)]."""
    models = networks_of(records)
    files = []
    for name, (caption, draw) in PLOTS.items():
        columns = 1 if name in ("widths", "orthogonality") else min(2, len(models))
        rows = -(-len(models) // columns)
        figure, axes = pyplot.subplots(
            rows, columns, squeeze=False, layout="constrained",
            figsize=(9 if len(models) > 1 else 6.5, (4 if rows > 1 else 4.2) * rows + .6))
        for axis in axes.flat[len(models):]:
            axis.set_axis_off()
        drawn = [draw(axis, [r for r in records if network_of(r) == model])
                 for axis, model in zip(axes.flat, models)]
        if any(drawn):
            handles = {}
            for axis, model in zip(axes.flat, models):
                axis.set_title(model)
                axis.grid(alpha=.3)
                handles |= {label: line for line, label in zip(*axis.get_legend_handles_labels())}
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize=8,
                          ncols=3 if len(models) < 2 else 6)
            files.append((f"{name}{suffix}.png", caption))
            figure.savefig(Path(folder) / files[-1][0], dpi=130)
        pyplot.close(figure)
    return files


def by_method(records, control=False):
    """{pruning type: its records}, in the order of PRUNING_TYPES; of a control, or of none."""
    of = {method: [r for r in records if r["flags"]["pruning_type"] == method
                   and r["pruning"].get("control", False) == control] for method in PRUNING_TYPES}
    return {method: records for method, records in of.items() if records}


def most_pruned(records):
    """Of each method the record of the highest percent, of the lowest seed."""
    return {method: max(of, key=lambda r: (r["pruning"]["requested_percent"], -r["flags"]["seed"]))
            for method, of in by_method(records).items()}


def plot_accuracy(axis, records, label, x_of, apart=0):
    """apart: how far the methods' points, which else would hide each other, are moved sideways."""
    def points(records, shift):
        cells = {}
        for r in records:
            cells.setdefault(r["pruning"]["requested_percent"], []).append(r)
        for _percent, of in sorted(cells.items()):
            values = list(map(top1, of))
            yield (statistics.mean(map(x_of, of)) + shift, statistics.mean(values),
                   statistics.stdev(values) if len(values) > 1 else 0)

    lines = [(method, of, marks) for control, marks in (
        (False, {}), ("scratch", {"linestyle": ":", "markerfacecolor": "none"}))
             for method, of in by_method(records, control).items()]
    if apart and len(lines) > 1:
        label += ", methods side by side"
        axis.set_xticks(sorted({r["pruning"]["requested_percent"] for _, of, _ in lines for r in of}))
    for i, (method, of, marks) in enumerate(lines):
        x, y, error = zip(*points(of, apart * (i - (len(lines) - 1) / 2)))
        axis.errorbar(x, y, error if any(error) else None, capsize=3, label=method_of(of[0]),
                      **{**style_of(method), **marks})
    for kind, line in zip(UNPRUNED, (":", "-.")):
        of = [r for r in records if method_of(r) == kind]
        if of:
            axis.axhline(statistics.mean(map(top1, of)), color="0.4", linestyle=line, label=kind)
    axis.set(xlabel=label, ylabel="test accuracy, best epoch (%)")
    return True


def plot_layers(axis, lines, ylabel, first=()):
    """Lines over the layers of a network: {label: ({layer: value}, style)}. first: layers that stand
    before the others, from which a gap parts them."""
    names = list(next(iter(lines.values()))[0])
    others = [name for name in names if name not in first] if first else []
    names = [name for name in names if name not in others] + [""] * bool(others) + others
    for label, (values, style) in lines.items():
        axis.plot(range(len(names)), [values.get(name, math.nan) for name in names], label=label,
                  **style)
    every = -(-len(names) // 30)  # more names would lie upon each other
    axis.set_xticks(range(0, len(names), every), names[::every], rotation=90, fontsize=6)
    axis.set(xlabel="layer", ylabel=ylabel)
    axis.set_ylim(bottom=0)
    return True


GREY = {"color": "0.5", "linewidth": 3}


def plot_widths(axis, records):
    chosen = most_pruned(records)
    if not chosen:
        return False
    lines = {f"{method}, {r['pruning']['requested_percent']:g}%": (r["widths"], style_of(method))
             for method, r in chosen.items()}
    before = next((r["base"]["widths"] for r in chosen.values() if "base" in r), None)
    if before:
        lines = {"unpruned": (before, GREY), **lines}
    return plot_layers(axis, lines, "filters")


def plot_orthogonality(axis, records):
    chosen = most_pruned(records)
    lines = {}
    for r in chosen.values():
        if "base" in r:
            penalised = bool(r["base"].get("penalised"))
            lines.setdefault("unpruned with penalty" if penalised else "unpruned", (
                r["base"]["orthogonality"]["layers"],
                {**GREY, "linestyle": "--" if penalised else "-"}))
    lines |= {f"{method}, {r['pruning']['requested_percent']:g}%": (
        r["orthogonality"]["layers"], style_of(method)) for method, r in chosen.items()}
    # A network with depthwise layers has these in between: they stand on a level of their own.
    return bool(lines) and plot_layers(axis, lines, "degree of orthogonality (1: orthogonal)",
                                       first=next(iter(chosen.values()))["widths"])


def plot_training(axis, records):
    chosen = most_pruned(records)
    for method, r in chosen.items():
        before = epochs_of(r.get("base", {}))
        epochs = before + epochs_of(r)
        accuracy = [(e.get("validation") or e["test"])["top1"] for e in epochs]
        marked = {*range(0, len(epochs), -(-len(epochs) // 8)), len(epochs) - 1}
        axis.plot(range(1, len(epochs) + 1), accuracy, markevery=sorted(marked),
                  label=f"{method}, {r['pruning']['requested_percent']:g}%", **style_of(method))
        if before:
            axis.axvline(len(before) + .5, color="0.6", linewidth=.8)
    images = " and ".join(sorted({r["accuracy"].get("chosen_on", "test") for r in records}))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="epoch, of both trainings (a line: pruning)", ylabel=f"{images} accuracy (%)")
    return bool(chosen)


def plot_masks(axis, records):
    epsilon = None
    for method, r in most_pruned(records).items():
        distances = {e["epoch"]: max(e["mask_distances"]) for e in epochs_of(r.get("base", {}))
                     if e.get("mask_distances")}
        if distances:
            axis.plot(list(distances), list(distances.values()),
                      label=f"{method}, {r['pruning']['requested_percent']:g}%", **style_of(method))
            epsilon = r["flags"]["eb_epsilon"]
            if r["base"]["accuracy"].get("chosen_on") == "ticket":
                axis.plot(*list(distances.items())[-1], linestyle="", marker="o", markersize=13,
                          markerfacecolor="none", color="0.3", label="the ticket is drawn")
    if epsilon:
        axis.axhline(epsilon, color="0.4", linestyle=":", label="--eb_epsilon")
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(xlabel="epoch", ylabel="share of filters that differ,\nthe largest of up to four")
    return bool(epsilon)


PLOTS = {
    "accuracy": ("Test accuracy against the share removed", lambda axis, records:
                 plot_accuracy(axis, records, f"{budget_of(records[0])} removed (%)",
                               lambda r: r["pruning"]["achieved_percent"], apart=0.8)),
    "flops": ("Test accuracy against the FLOPs left", lambda axis, records:
              plot_accuracy(axis, records, "FLOPs left (% of the unpruned network's)",
                            lambda r: 100 / r["compression"]["flops"])),
    "widths": ("Filters of each layer, before and after", plot_widths),
    "orthogonality": ("Degree of orthogonality of each layer", plot_orthogonality),
    "training": ("Accuracy during the trainings", plot_training),
    "masks": ("Distance of each epoch's mask from the four before", plot_masks),
}


# ------------------------------------------------------------------- what leaves, what is asked


def print_layers(rows):
    print_table([("layer", "filters", "MACs before", "MACs after", "left", "orthogonality"), *(
        (r["layer"], f"{r['kept']}/{r['total']}", f"{r['unpruned_macs']:,}", f"{r['macs']:,}",
         f"{100 * r['macs'] / r['unpruned_macs']:.1f}%",
         "" if r["orthogonality"] is None else f"{r['orthogonality']:.3f}") for r in rows)])


LATENCY_BATCHES = 1, 32, 128


def print_latency(model, image_size, devices):
    """Time a network, beside the unpruned one where it is pruned, on each of some devices."""
    from models import measure_cost, unpruned_twin
    before, after = (measure_cost(model, image_size, widths)["flops"]
                     for widths in (model.dense, None))
    networks = {"unpruned": unpruned_twin(model), "here": model} if after < before else {
        "here": model}
    slower = []
    for device in devices:
        rows = [("images at once", "network", "ms, median", "ms, 90th percentile", "images/s",
                 "runs", "times as fast")]
        for size in LATENCY_BATCHES:
            figures = measure_latency(networks, size, image_size, device)
            ratio = "unpruned" in figures and (
                figures["unpruned"]["median"] / figures["here"]["median"])
            for label, of in figures.items():
                rows.append((str(size), label, f"{of['median']:.2f}", f"{of['p90']:.2f}",
                             f"{of['images_per_second']:,.0f}", str(of["runs"]),
                             f"{ratio:.2f}" if ratio and label == "here" else ""))
            if ratio and ratio < 1.02:
                slower.append(f"{size} on {device.type}")
        print(f"Time for images of {image_size} x {image_size} on {environment(device)['device']}")
        print_table(rows)
    if slower:
        print(f"  It has {100 * after / before:.1f}% of the unpruned network's FLOPs, but is not "
              f"faster with images at once: {', '.join(slower)}")


def predict(model, classes, images):
    """[[(class name, probability), ...] of the three likeliest classes] for uint8 N x H x W x 3."""
    import torch
    from data import ImageData, Split
    device, results = next(model.parameters()).device, []
    model.eval()
    split = Split(images, torch.zeros(len(images), dtype=torch.long)).to(device)
    with torch.no_grad():
        for batch, _ in ImageData.plain_batches(split):
            likely = model(batch).softmax(1).topk(min(3, model.num_classes))
            results += [[(classes[k], p) for k, p in zip(which, of)] for which, of in zip(
                likely.indices.tolist(), likely.values.tolist())]
    return results


def print_predictions(model, info, path, image_size, skip_bad_images):
    """Name the classes of the image, or of all below the folder, at `path`."""
    from data import image_files, read_images
    from pruner import class_names
    files, classes = image_files(path), class_names(model, info)
    print(f"Predictions for {len(files):,} image{'s' * (len(files) > 1)}, brought to {image_size} x "
          f"{image_size}")
    for start in range(0, len(files), 1000):
        part = files[start:start + 1000]
        images, bad = read_images(part, image_size)
        if bad and not skip_bad_images:
            file, reason = next(iter(bad.items()))
            raise InputError(f"{file} cannot be read ({reason}); --skip_bad_images=True leaves such "
                             "files out")
        good = [file not in bad for file in part]
        results = iter(predict(model, classes, images[good]))
        print_table([(file, *(f"{name} {100 * p:.1f}%" for name, p in next(results))) if fine else
                     (file, f"left out: {bad[file]}", *[""] * (min(3, len(classes)) - 1))
                     for file, fine in zip(part, good)])


# ------------------------------------------------------------------------------------- command


@dataclass(frozen=True)
class Measurement:
    """One command line: the value of every flag."""
    model_path: str = flag("network", None, "the checkpoint", shown="required, but for --report",
                           metavar="FILE")
    model: str = flag("network", None, "what the file should hold", "-m", shown="any",
                      choices=MODELS)
    pruned: bool = flag("network", None, "whether it should hold a pruned network", shown="either",
                        type=boolean, metavar="BOOL")
    num_classes: int = flag("network", None, "checked against the file", shown="not checked",
                            type=integer(2), metavar="N")

    test_acc: bool = switch("measure", "accuracy on the test images")
    train_acc: bool = switch("measure", "accuracy on the training images, not augmented")
    flops: bool = switch("measure", "parameters, multiply-adds (MACs) and FLOPs of one image")
    compression: bool = switch("measure", "against the unpruned network: parameters, FLOPs, file")
    layers: bool = switch("measure", "filters, multiply-adds and degree of orthogonality of each "
                          "layer; also as CSV beside the file")
    eval_ortho: bool = switch("measure", "degree of orthogonality of each layer")
    latency: bool = switch("measure", "milliseconds and images per second, beside the unpruned "
                           "network, on the CPU and on a GPU where there is one")
    predict: str = flag("measure", None, "name the class of an image, or of all images below a "
                        "folder", shown="none", metavar="PATH")

    export: str = flag("export", None, "write the network for use without this suite: a file .pt2, "
                       ".onnx or .safetensors", shown="none", metavar="FILE")
    export_normalize: bool = switch("export", "put the normalisation of pixels from 0 to 1 into the "
                                    "exported graph")

    report: str = flag("comparison", None, "compare the results below a folder: report.md and plots",
                       shown="none", metavar="FOLDER")
    group_check: bool = switch("comparison", "whether a group's importance is the sum of its "
                               "members'")
    compare: str = flag("comparison", None, "a second checkpoint for --group_check, as the network "
                        "with the penalty beside the plain one", shown="none", metavar="FILE")
    pruning_type: str = flag("comparison", "fisher", "estimator of --group_check",
                             choices=PRUNING_TYPES, metavar="TYPE")
    imp_samples: int = flag("comparison", 256, "training images of --group_check, which tests "
                            "thousands of removals on them", type=integer(1), metavar="N")
    seed: int = flag("comparison", 0, "of the groups that --group_check draws", type=integer(0),
                     metavar="N")

    data_path: str = flag("data", None, "images to measure accuracy on",
                          shown="those it was trained on", metavar="DATA")
    skip_bad_images: bool = switch("data", "leave out the images of a folder that cannot be read")

    device: str = flag("hardware", "auto", "auto takes a GPU where there is one",
                       choices=("auto", "cpu", "cuda", "mps"))


def make_parser():
    parser = Parser(prog="eval.py", description=__doc__)
    parser.add_flags(Measurement)
    return parser


def main(argv=None):
    args = make_parser().parse_args(argv)
    return run_command("eval.py", lambda: run(args))


def run(args):
    if processes()[1] > 1:
        raise InputError("it measures in one process; run it without torchrun")
    given = [f"--{each.name}" for each in fields(Measurement)
             if getattr(args, each.name) != each.default]
    if args.report:
        if len(given) > 1:
            others = " ".join(name for name in given if name != "--report")
            raise InputError(f"--report and {others} contradict each other; leave out one of them")
        return write_report(args.report)
    if not args.model_path:
        raise InputError("--model_path is missing: a checkpoint; or --report, a folder of results")
    if args.export_normalize and not args.export:
        raise InputError("--export_normalize=True is of an --export")
    if not args.group_check:
        for name in ("--compare", "--pruning_type", "--imp_samples", "--seed"):
            if name in given:
                raise InputError(f"{name} is of --group_check=True")
    from data import load_data
    from models import measure_cost
    from pruner import load_checkpoint
    from train import evaluate, pick_device

    device = pick_device(args.device)
    model, info = load_checkpoint(args.model_path)
    check_holds(args.model_path, model, info, args.model, args.pruned, args.num_classes)
    image_size = info.get("image_size", 32)
    data = None
    if args.train_acc or args.test_acc or args.group_check or args.export:
        trained_on = info.get("data_path", "CIFAR100")
        try:
            skip = args.skip_bad_images or bool(info.get("flags", {}).get("skip_bad_images"))
            data = load_data(args.data_path or trained_on, image_size, skip)
        except InputError as error:
            raise error if args.data_path else InputError(
                f"{error}; it was trained on {trained_on}, --data_path can name other images")
        check_data(args.model_path, model, info, data)

    now, dense = model.filter_count()
    print(f"{args.model_path}: {describe(model, info)}")
    print(f"  trained on {info.get('data', 'unknown data')}, {model.num_classes} classes, "
          f"{image_size} x {image_size} pixels; {now:,} of {dense:,} filters "
          f"({100 * (1 - now / dense):.2f}% pruned)")
    if not (args.predict or args.export or args.latency or args.layers):  # which are of other things
        print("  filters of each layer"
              + (", of the unpruned network -> here" if now < dense else ""))
        print_architecture(model)

    if args.flops:
        cost = measure_cost(model, image_size)
        print("Cost of one image")
        print_table([("parameters", f"{cost['parameters']:,}"),
                     ("MACs (multiply-adds)", f"{cost['macs']:,}"),
                     ("FLOPs (2 per MAC)", f"{cost['flops']:,}")])
    if args.compression:
        ratio = measure_compression(model, os.path.getsize(args.model_path), info, image_size)
        twin, ours = (measure_cost(model, image_size, widths) for widths in (model.dense, None))
        print("Compression")
        print_table([("", "unpruned", "here", "ratio"),
                     *((name, f"{twin[key]:,}", f"{ours[key]:,}", f"{ratio[key]:.2f}x")
                       for key, name in (("parameters", "parameters"), ("flops", "FLOPs"))),
                     ("file size", megabytes(ratio["unpruned_file_bytes"]),
                      megabytes(ratio["file_bytes"]), f"{ratio['file']:.2f}x")])
    if args.layers:
        rows, path = measure_layers(model, image_size), f"{stem(args.model_path)}_layers.csv"
        print("Layers")
        print_layers(rows)
        write_atomically({path: to_csv(rows)})
        print(f"  saved {path}")
    if args.eval_ortho:
        print("Orthogonality")
        print_orthogonality(measure_orthogonality(model))
    model.to(device)
    if data:
        data = data.to(device)
        for wanted, name, split in ((args.train_acc, "training", data.train),
                                    (args.test_acc, "test", data.test)):
            if wanted:
                figures = evaluate(model, data.plain_batches(split))
                print(f"Accuracy on {len(split):,} {name} images of {data.name}: "
                      f"{accuracy_text(figures)}")
    if args.predict:
        print_predictions(model, info, args.predict, image_size, args.skip_bad_images)
    if args.export:
        run_export(args, model, info, data)
    if args.group_check:
        run_group_check(args, model, data)
    if args.latency:  # last: it may move the network to another device
        others = ["cpu"] * (args.device == "auto" and device.type != "cpu")
        devices = [*map(pick_device, others), device]
        print_latency(model, image_size, devices)
    asked = [each.name for each in fields(Measurement)
             if each.metadata["group"] in ("measure", "export")] + ["group_check"]
    if not any(getattr(args, name) for name in asked):
        print("Nothing was asked for: add "
              + ", ".join(f"--{name}" for name in asked if name != "export_normalize"))


def stem(path):
    """What stands before the suffix in the names of files that belong to a checkpoint."""
    return str(path).removesuffix(".pth")


def run_export(args, model, info, data):
    import torch
    from data import Batches
    from pruner import export
    images, _ = next(iter(Batches(data.test, torch.arange(min(32, len(data.test))), 32)))
    info = {**info, "classes": list(data.classes)}
    done = export(model, info, args.export, images, args.export_normalize)
    print(f"Exported to {args.export}: loaded again, and the logits of {len(images)} test images of "
          f"{data.name} differ by at most {done['difference']:.1e}")
    print(f"  input   {done['metadata']['input']}\n  output  {done['metadata']['output']}\n"
          f"  Both, and the names of the {model.num_classes} classes, are in the file's metadata.")


def run_group_check(args, model, data):
    """Check the groups of `model`, and of the network in --compare beside it."""
    from pruner import load_checkpoint
    batches = list(data.train_batches(128, key=(args.seed, "groups"), count=args.imp_samples,
                                      balanced=args.pruning_type == "grasp"))
    networks, figures = {args.model_path: model}, {}
    if args.compare:
        networks[args.compare], info = load_checkpoint(args.compare)
        if info.get("image_size", data.image_size) != data.image_size:
            raise InputError(f"--compare={args.compare} is for images of another size than "
                             f"{args.model_path}; compare networks for the same images")
        check_data(args.compare, networks[args.compare], info, data)
        networks[args.compare].to(data.train.images.device)
    count = sum(len(labels) for _, labels in batches)
    for path, network in networks.items():
        print(f"Is the importance of a group the sum of its members'? {path}, {args.pruning_type}, "
              f"{count:,} images")
        figures[path] = {**check_groups(network, batches, args.pruning_type, args.seed),
                         "data": data.name, "fingerprint": data.fingerprint,
                         "environment": environment(data.train.images.device)}
        print_groups(figures[path])
    target = f"{stem(args.model_path)}{GROUPS_IN}{args.pruning_type}"
    write_atomically({f"{target}.json": to_json(figures)})
    names = {path: Path(path).stem for path in figures}
    plot_groups({path if len(set(names.values())) < len(names) else names[path]: of
                 for path, of in figures.items()}, f"{target}.png")
    print(f"  saved {target}.json" + " and the .png beside it" * Path(f"{target}.png").is_file())


def describe(model, info):
    kind = "pruned" if info["pruned"] else "unpruned"
    penalty = ", trained with the orthonormality penalty" if info.get("penalised") else ""
    return f"{kind} {MODELS[model.name]} (--model {model.name}){penalty}"


def check_holds(path, network, info, model=None, pruned=None, num_classes=None, width=None):
    """Raise InputError where the file holds another network than is wanted; None: any will do."""
    holds = f"{path} holds: {describe(network, info)}, {network.num_classes} classes"
    if model not in (None, network.name):
        raise InputError(f"{holds}; --model={model} is wrong")
    if pruned not in (None, info["pruned"]):
        raise InputError(f"{holds}; a {'' if pruned else 'not '}pruned network was asked for")
    if num_classes not in (None, network.num_classes):
        raise InputError(f"{holds}; --num_classes={num_classes} is wrong")
    if width not in (None, network.width):
        raise InputError(f"{holds}, --width={network.width:g}; --width={width:g} is wrong")


def check_data(path, network, info, data):
    """Raise InputError where a network was trained on other classes or sizes than `data` has."""
    if len(data.classes) != network.num_classes:
        raise InputError(f"{path} is a network for {network.num_classes} classes; {data.name} has "
                         f"{len(data.classes)}")
    if list(info.get("classes", data.classes)) != list(data.classes):
        raise InputError(f"{path} was trained on other classes ({', '.join(info['classes'][:3])}, "
                         f"...) than {data.name} has ({', '.join(data.classes[:3])}, ...)")
    size = info.get("image_size", data.image_size)
    if size != data.image_size:
        raise InputError(f"{path} was trained on images of {size} x {size}, not "
                         f"{data.image_size} x {data.image_size}; --image_size={size} fits it")


if __name__ == "__main__":
    exit_with(main())
