"""What the two commands print of a network: architecture, pruning, orthogonality, the result."""

import itertools

from channels.costs import measure_cost
from channels.groups import all_filters, filter_count, filter_groups
from common.device import environment
from common.errors import InputError
from common.terminal import counted, heading, megabytes, print_columns, print_table
from config import BUDGETS
from lab.export import runtime_of
from lab.measure import layer_widths, measure_latency, stream_widths
from lab.networks import unpruned_twin
from pruner import groups_of, is_removable, round_up

LATENCY_BATCHES = 1, 32, 128
WIDE_MARGIN = 2  # points of accuracy, beyond which the choice of an epoch is mostly chance
UNSTEADY = 10  # percentage points between the quartiles of measured times


def accuracy_text(figures):
    text = f"top-1 {figures['top1']:.2f}%"
    for key, name in (("top5", "top-5"), ("balanced", "balanced")):
        if key in figures:
            text += f", {name} {figures[key]:.2f}%"
    if "unanswered" in figures:
        text += f"; {counted(figures['unanswered'], 'class', 'classes')} never predicted"
    return text


def goal_text(percents, budget):
    """What a pruning is to remove, in words. percents: a text, as "25%, 50%"."""
    if budget == "latency":
        return f"remove filters until a batch takes {percents} less time"
    return f"remove filters until {percents}{budget_text(budget)} are gone"


def budget_text(budget):
    """What percents are of, where it is not filters."""
    return "" if budget == "filters" else f" of the {BUDGETS[budget]}"


def print_architecture(network, before=None):
    """Width of each layer and residual stream, beside that of the same layer of `before`: the
    network it was pruned from, by default the unpruned one."""
    full = _widths_of(before or unpruned_twin(network))
    pairs = []
    for name, width in _widths_of(network).items():
        text = f"{full[name]} -> {width}" if width < full[name] else str(width)
        pairs.append((name, text))
    print_columns(pairs)


def _widths_of(network):
    """{layer or residual stream: its width}."""
    widths = layer_widths(network)
    for name, width in stream_widths(network).items():
        widths[f"{name} (residual stream)"] = width
    return widths


def print_pruning(
    before,
    after,
    target,
    achieved,
    image_size,
    budget="filters",
    round_to=1,
    residual="single",
    keep=(),
):
    """Print what pruning `before` to `target` percent has made of it: widths and costs."""
    (had, dense), (has, _) = filter_count(before), filter_count(after)
    in_all = f"removed {dense - has:,} of {dense:,} filters"
    if had != dense:
        in_all = f"removed {had - has:,} filters in this round, {dense - has:,} of {dense:,} in all"
    print(f"  {in_all}: {achieved:.2f}%{budget_text(budget)} (asked for: {target:.4g}%)")
    carried = dense - sum(group.dense for group in filter_groups(after))
    if carried:
        print(
            f"  {carried:,} of the {dense:,} follow others, as depthwise filters do, and are not "
            "listed"
        )
    _print_limits(after, achieved, target, budget, round_to, residual, keep)
    if has == had:
        reason = ": the network is already as small as that" if achieved >= target else ""
        print(f"  This round removes nothing{reason}")
    else:
        print("  filters of each layer, before -> after")
        print_architecture(after, before)
    _print_costs(measure_cost(before, image_size), measure_cost(after, image_size))


def _print_costs(before, after):
    rows = [("", "before", "after", "left")]
    for key, name in (("parameters", "parameters"), ("flops", "FLOPs")):
        left = f"{100 * after[key] / before[key]:.1f}%"
        rows.append((name, f"{before[key]:,}", f"{after[key]:,}", left))
    print_table(rows)


def margin(accuracy, count):
    """Half a 95% interval of an accuracy in % that `count` images have told, in points."""
    share = min(max(accuracy / 100, 0.5 / count), 1 - 0.5 / count)
    return 196 * (share * (1 - share) / count) ** 0.5


def print_candidates(candidates, count, held_out):
    """Print the cuts that --select=best has tried. count: images that they were judged on, a part
    of the training images where they were `held_out`."""
    kind = "training images held out from the cut" if held_out else "validation images"
    print(f"  cuts by all rankings, with BatchNorms re-estimated, on {count:,} {kind}:")
    rows = [("ranking", "residual", "removed", "accuracy", "")]
    for candidate in candidates:
        rows.append(
            (
                candidate["ranking"],
                candidate["residual"],
                f"{candidate['achieved_percent']:.2f}%",
                f"{candidate['top1']:.2f}%",
                "chosen" if candidate["chosen"] else "",
            )
        )
    print_table(rows)
    best = max(candidate["top1"] for candidate in candidates)
    print(f"  (accuracies are told to ± {margin(best, count):.1f} points)")


def print_times(timed, batch):
    """Print what was measured for --budget=latency, entries of lab.record.Pruning."""
    now, unpruned = timed["milliseconds"]
    print(
        f"  a batch of {batch} takes {now:.2f} ms, in the unpruned network {unpruned:.2f} ms, "
        f"measured in turn; what it saves varied by {timed['spread_percent']:.1f} percentage "
        "points (interquartile range)"
    )
    if timed["spread_percent"] > UNSTEADY:
        print(
            "  Note: that is much, as on a machine that does something else meanwhile; another "
            "run may remove many more filters, or fewer"
        )


def _print_limits(network, achieved, target, budget, round_to, residual, keep):
    """Print why less was removed than was asked for."""
    if achieved < target and _is_exhausted(network, round_to, residual, keep):
        line = f"  {achieved:.2f}% is the most that can be removed: every layer keeps 5% of its "
        line += "filters (rounded down) plus one"
        if not achieved and not keep:
            line += ", and those that only leave together are more than that allows"
        if any(group.is_fixed for group in filter_groups(network)):
            line += ", and the first convolution keeps all"
        if residual == "coupled":
            line += "; all that write a residual channel leave together"
        if round_to > 1:
            line += f"; widths go up to a multiple of {round_to}"
        if keep:
            line += f"; --keep={','.join(keep)} stays whole"
        print(line)
    elif round_to > 1 and budget != "latency" and target - achieved >= 0.05:
        print(
            f"  --round_to={round_to} kept {target - achieved:.1f} percentage points more than "
            "asked for"
        )


def _is_exhausted(network, round_to, residual, keep):
    """Whether no layer can lose a filter."""
    if not is_removable(network, residual, keep):
        return True
    for group in groups_of(network, keep).values():
        if len(group.channels) > round_up(group.floor, round_to, group.dense):
            return False
    return True


def print_orthogonality(figures, before=None):
    """Print the mean degree of orthogonality, also before a training, where that is given."""
    if figures["mean"] is None:  # the penalty is one of linear layers alone
        return
    start = "" if before is None else f"before the training: {before['mean']:.2f}; "
    print(
        f"  degree of orthogonality: {figures['mean']:.2f} in the mean ({start}1 = orthogonal "
        "filters)\n  (of each layer: eval.py --eval_ortho=True)"
    )


def print_orthogonality_of_layers(figures):
    if figures["mean"] is None:
        print("  the network has no convolutions, whose degree of orthogonality this would be")
        return
    print(f"  degree of orthogonality (1 = orthogonal filters): {figures['mean']:.3f} in the mean")
    print_columns([(name, f"{degree:.3f}") for name, degree in figures["layers"].items()])


# ------------------------------------------------------------------------------ the end of a run


def print_summary(records):
    """Print the table at the end. The first network stands beside what each round made of it. It is
    unpruned, but where a control repeats a pruned one."""
    heading("Result")
    last = records[-1]
    lasts = {record.chosen_on for record in records} == {"last"}
    chosen = "last epoch" if lasts else "best epoch"
    rows = [_title_row(records)]
    if len(records) > 1:
        rows += [
            _percent_row(f"percent of {last.budget} to remove", records, "requested"),
            _percent_row("percent removed", records, "achieved"),
        ]
    if not lasts:
        rows.append(_accuracy_row("test accuracy, best epoch", records, "best"))
    rows.append(_accuracy_row("test accuracy, last epoch", records, "last"))
    for key, name in (("top5", "top-5"), ("balanced", "balanced")):
        if any(key in record.accuracy["best"] for record in records):
            rows.append(_accuracy_row(f"{name} accuracy, {chosen}", records, "best", key))
    for name, figure in (
        ("accuracy right after pruning", "after_pruning"),
        ("the same, BatchNorms re-estimated", "after_bn"),
    ):
        texts = [_percent_text(getattr(record, figure)) for record in records]
        if any(texts):
            rows.append([name, *texts])
    if len(records) > 1:
        rows.append(_epoch_row(records))
    rows += _size_rows(records)
    print_table(rows)
    _print_notes(records)
    for record in records:
        print(f"  {record.file}")


def _title_row(records):
    titles = list(map(_title, records))
    if records[0].pruning:
        titles[0] = "pruned"
    return ["", *titles]


def _percent_row(name, records, figure):
    """A figure of all records but the first, which nothing was removed from."""
    return [name, "", *(f"{getattr(record, figure):.2f}%" for record in records[1:])]


def _accuracy_row(name, records, epoch, key="top1"):
    """epoch: "best" or "last", which older files do not have."""
    row = [name]
    for record in records:
        row.append(_percent_text(record.accuracy.get(epoch, {}).get(key)))
    return row


def _percent_text(value):
    return "" if value is None else f"{value:.2f}%"


def _epoch_row(records):
    """The epochs of training up to each network, in all or since the first one."""
    counts = [len(record.epochs) for record in records]
    # The file of a pruned network that a control begins with holds its last round's alone.
    is_scratch = records[-1].control == "scratch"
    counts_first = counts[0] and not is_scratch
    if not counts_first:
        counts[0] = 0
    totals = list(map(str, itertools.accumulate(counts)))
    if not counts_first:
        totals[0] = ""
    name = "epochs of training, in all"
    if not counts_first and not is_scratch:
        name = "further epochs of training"
    return [name, *totals]


def _size_rows(records):
    """What each network consists of, beside what the first one does."""
    sizes = [megabytes(record.compression["file_bytes"]) for record in records]
    degrees = [record.orthogonality["mean"] for record in records]
    rows = [
        _share_row("filters", records, "filters"),
        _share_row("parameters", records, "parameters"),
        _share_row("MACs (multiply-adds)", records, "macs"),
        _share_row("FLOPs", records, "flops"),
        ["file size", *sizes],
    ]
    if None not in degrees:  # as of a network without convolutions
        rows.append(["mean degree of orthogonality", *(f"{degree:.3f}" for degree in degrees)])
    return rows


def _share_row(name, records, figure):
    """A figure of all records, and what share of the first one's it is."""
    first, *others = [getattr(record, figure) for record in records]
    return [name, f"{first:,}", *(f"{value:,} ({100 * value / first:.1f}%)" for value in others)]


def _title(record):
    if record.pruning is None:
        return "pruned" if record.pruned else "unpruned"
    if record.control == "scratch":
        return "from scratch"
    if record.control == "unpruned":
        return "as many epochs"
    if record.pruning.get("rounds", 1) > 1:
        return f"round {record.pruning.get('round', 1)}"
    return "pruned"


def _print_notes(records):
    """Print how the accuracies of the table may be compared."""
    last = records[-1]
    print(f"  {_chosen_text(last.chosen_on)}")
    for record in records:
        unanswered = record.accuracy["best"].get("unanswered")
        if unanswered:
            print(
                f"  The {_title(record)} network never predicts {unanswered} of "
                f"{record.num_classes} classes; eval.py --per_class=True says which."
            )
    after = sum(len(record.epochs) for record in records[1:])
    if after and not last.control:
        print(
            f"  The pruned network was trained {counted(after, 'epoch')} longer than the "
            "unpruned one;\n  --control=unpruned trains the unpruned one for as many."
        )


def _chosen_text(chosen_on):
    """What chose the epoch of a network."""
    if chosen_on == "test":
        return (
            "The best epoch was chosen on the test images, which flatters all accuracies;\n"
            "  --val_percent=10 avoids that."
        )
    if chosen_on == "ticket":
        return "The network is that of the ticket's epoch."
    if chosen_on == "last":
        return "The network is that of the last epoch."
    return f"The best epoch was chosen on the {chosen_on} images."


# ------------------------------------------------------------------------------------- measurements


def print_layers(rows):
    """Print rows of lab.measure.measure_layers."""
    lines = [("layer", "filters", "MACs before", "MACs after", "left", "orthogonality")]
    for row in rows:
        degree = row["orthogonality"]
        lines.append(
            (
                row["layer"],
                f"{row['kept']}/{row['total']}",
                f"{row['unpruned_macs']:,}",
                f"{row['macs']:,}",
                f"{100 * row['macs'] / row['unpruned_macs']:.1f}%",
                "" if degree is None else f"{degree:.3f}",
            )
        )
    print_table(lines)


def print_latency(model, image_size, devices):
    """Time a network, beside the unpruned one where it is pruned, on each of some devices."""
    before = measure_cost(model, image_size, all_filters(model))["flops"]
    after = measure_cost(model, image_size)["flops"]
    networks = {"this": model}
    if after < before:
        networks = {"unpruned": unpruned_twin(model), "this": model}
    runtimes = _runtimes_of(networks, image_size)
    slower = []
    for device in devices:
        timed = networks
        if device.type == "cpu":
            timed = networks | runtimes
        rows = [
            (
                "images at once",
                "network",
                "ms, median",
                "ms, 90th percentile",
                "images/s",
                "runs",
                "times as fast",
            )
        ]
        for size in LATENCY_BATCHES:
            figures = measure_latency(timed, size, image_size, device)
            for label, time in figures.items():
                ratio = _times_as_fast(label, figures)
                rows.append(
                    (
                        str(size),
                        label,
                        f"{time['median']:.2f}",
                        f"{time['p90']:.2f}",
                        f"{time['images_per_second']:,.0f}",
                        str(time["runs"]),
                        f"{ratio:.2f}" if ratio else "",
                    )
                )
                if ratio and ratio < 1.02:
                    runtime = device.type if label == "this" else "ONNX Runtime"
                    slower.append(f"{size} ({runtime})")
        print(f"Time for images of {image_size} x {image_size} on {environment(device)['device']}")
        print_table(rows)
    if slower:
        print(
            f"  It has {100 * after / before:.1f}% of the unpruned network's FLOPs, but is not "
            f"faster at batch size {', '.join(slower)}"
        )


def _runtimes_of(networks, image_size):
    """{label: the network in ONNX Runtime}. Where that is missing, {}, and a line says so."""
    runtimes = {}
    try:
        for label, network in networks.items():
            runtime = runtime_of(network, image_size)
            if runtime:
                runtimes[f"{label}, ONNX Runtime"] = runtime
    except InputError as error:
        print(f"Without ONNX Runtime: {error}")
        return {}
    return runtimes


def _times_as_fast(label, figures):
    """How many times as fast as the unpruned network this one is; None of an unpruned one."""
    unpruned = label.replace("this", "unpruned")
    if unpruned == label or unpruned not in figures:
        return None
    return figures[unpruned]["median"] / figures[label]["median"]
