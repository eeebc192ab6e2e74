"""What the two commands print of a network: architecture, pruning, orthogonality, the result."""

from channels.costs import measure_cost
from channels.groups import all_filters, filter_count, filter_groups
from common.device import environment
from common.errors import InputError
from common.terminal import counted, heading, megabytes, print_columns, print_table
from config import BUDGETS
from lab.export import runtime_of
from lab.measure import layer_widths, measure_latency, stream_widths
from lab.networks import unpruned_twin
from pruner import is_removable, round_up

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
    now, full = (
        {
            **layer_widths(each),
            **{f"{name} (residual stream)": w for name, w in stream_widths(each).items()},
        }
        for each in (network, before or unpruned_twin(network))
    )
    print_columns(
        [
            (name, f"{full[name]} -> {width}" if width < full[name] else str(width))
            for name, width in now.items()
        ]
    )


def print_pruning(
    before, after, target, achieved, image_size, budget="filters", round_to=1, residual="single"
):
    """What pruning `before` to `target` percent has made of it: how far it went, what it won."""
    (had, dense), (has, _) = filter_count(before), filter_count(after)
    in_all = (
        f"removed {dense - has:,} of {dense:,} filters"
        if had == dense
        else f"removed {had - has:,} filters in this round, {dense - has:,} of {dense:,} in all"
    )
    print(f"  {in_all}: {achieved:.2f}%{budget_text(budget)} (asked for: {target:.4g}%)")
    carried = dense - sum(group.dense for group in filter_groups(after))
    if carried:
        print(
            f"  {carried:,} of the {dense:,} follow others, as depthwise filters do, and are not "
            "listed"
        )
    _print_limits(after, achieved, target, budget, round_to, residual)
    if has == had:
        reason = ": the network is already as small as that" if achieved >= target else ""
        print(f"  This round removes nothing{reason}")
    else:
        print("  filters of each layer, before -> after")
        print_architecture(after, before)
    costs = [measure_cost(network, image_size) for network in (before, after)]
    print_table(
        [("", "before", "after", "left")]
        + [
            (
                name,
                f"{costs[0][key]:,}",
                f"{costs[1][key]:,}",
                f"{100 * costs[1][key] / costs[0][key]:.1f}%",
            )
            for key, name in (("parameters", "parameters"), ("flops", "FLOPs"))
        ]
    )


def margin(accuracy, count):
    """Half a 95% interval of an accuracy in % that `count` images have told, in points."""
    share = min(max(accuracy / 100, 0.5 / count), 1 - 0.5 / count)
    return 196 * (share * (1 - share) / count) ** 0.5


def print_candidates(candidates, count, held_out):
    """The cuts that --select=best has tried. count: images that they were judged on, a part of the
    training images where they were `held_out`."""
    kind = "training images held out from the cut" if held_out else "validation images"
    print(f"  cuts by all rankings, with BatchNorms re-estimated, on {count:,} {kind}:")
    print_table(
        [
            ("ranking", "residual", "removed", "accuracy", ""),
            *(
                (
                    each["ranking"],
                    each["residual"],
                    f"{each['achieved_percent']:.2f}%",
                    f"{each['top1']:.2f}%",
                    "chosen" if each["chosen"] else "",
                )
                for each in candidates
            ),
        ]
    )
    best = max(each["top1"] for each in candidates)
    print(f"  (accuracies are told to ± {margin(best, count):.1f} points)")


def print_times(timed, batch):
    """What was measured for --budget=latency, entries of lab.record.Pruning."""
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


def _print_limits(network, achieved, target, budget, round_to, residual):
    """Why less was removed than was asked for."""
    groups = filter_groups(network)
    if achieved < target and (
        not is_removable(network, residual)
        or all(g.conv.out_channels <= round_up(g.floor, round_to, g.dense) for g in groups)
    ):
        line = (
            f"  {achieved:.2f}% is the most that can be removed: every layer keeps 5% of its "
            "filters (rounded down) plus one"
        )
        if any(g.protected for g in groups):
            line += ", and the first convolution keeps all"
        if residual == "coupled":
            line += "; all that write a residual channel leave together"
        if round_to > 1:
            line += f"; widths go up to a multiple of {round_to}"
        print(line)
    elif round_to > 1 and budget != "latency" and target - achieved >= 0.05:
        print(
            f"  --round_to={round_to} kept {target - achieved:.1f} percentage points more than "
            "asked for"
        )


def print_orthogonality(figures, before=None):
    """The mean degree of orthogonality, also before a training, where that is given."""
    start = "" if before is None else f"before the training: {before['mean']:.2f}; "
    print(
        f"  degree of orthogonality: {figures['mean']:.2f} in the mean ({start}1 = orthogonal "
        "filters)\n  (of each layer: eval.py --eval_ortho=True)"
    )


def print_orthogonality_of_layers(figures):
    print(f"  degree of orthogonality (1 = orthogonal filters): {figures['mean']:.3f} in the mean")
    print_columns([(name, f"{degree:.3f}") for name, degree in figures["layers"].items()])


# ------------------------------------------------------------------------------ the end of a run


def print_summary(records):
    """The table at the end: the first network, unpruned but for one that a control repeats, beside
    what each round made of it."""
    heading("Result")
    base, last = records[0], records[-1]

    def row(name, text):
        return [name] + [text(record) for record in records]

    def accuracy(epoch, key="top1"):
        return lambda r: (
            f"{r.accuracy[epoch][key]:.2f}%" if key in r.accuracy.get(epoch, ()) else ""
        )

    def percent(name):
        return lambda r: "" if r is base else f"{getattr(r, name):.2f}%"

    # The file of a pruned network that a control begins with holds its last round's alone.
    counts_base = base.epochs and last.control != "scratch"

    def epochs(r):
        if r is base and not counts_base:
            return ""
        first = 0 if counts_base else 1
        return str(sum(len(each.epochs) for each in records[first : records.index(r) + 1]))

    def after_pruning(r):
        return "" if r.after_pruning is None else f"{r.after_pruning:.2f}%"

    def after_bn(r):
        return "" if r.after_bn is None else f"{r.after_bn:.2f}%"

    lasts = {record.chosen_on for record in records} == {"last"}
    chosen = "last epoch" if lasts else "best epoch"
    rows = [row("", lambda r: "pruned" if r is base and r.pruning else _title(r))]
    if len(records) > 1:
        rows += [
            row(f"percent of {last.budget} to remove", percent("requested")),
            row("percent removed", percent("achieved")),
        ]
    if not lasts:
        rows.append(row("test accuracy, best epoch", accuracy("best")))
    rows.append(row("test accuracy, last epoch", accuracy("last")))
    for key, name in (("top5", "top-5"), ("balanced", "balanced")):
        if any(key in record.accuracy["best"] for record in records):
            rows.append(row(f"{name} accuracy, {chosen}", accuracy("best", key)))
    if any(map(after_pruning, records)):
        rows.append(row("accuracy right after pruning", after_pruning))
    if any(map(after_bn, records)):
        rows.append(row("the same, BatchNorms re-estimated", after_bn))
    if len(records) > 1:
        known = counts_base or last.control == "scratch"
        rows.append(
            row("epochs of training, in all" if known else "further epochs of training", epochs)
        )
    rows += _size_rows(records)
    print_table(rows)
    _print_notes(records)
    for record in records:
        print(f"  {record.file}")


def _size_rows(records):
    """What each network consists of, beside the first one's."""

    def row(name, key):
        values = [getattr(record, key) for record in records]
        shares = [f"{value:,} ({100 * value / values[0]:.1f}%)" for value in values[1:]]
        return [name, f"{values[0]:,}", *shares]

    sizes = [megabytes(record.compression["file_bytes"]) for record in records]
    degrees = [f"{record.orthogonality['mean']:.3f}" for record in records]
    return [
        row("filters", "filters"),
        row("parameters", "parameters"),
        row("MACs (multiply-adds)", "macs"),
        row("FLOPs", "flops"),
        ["file size", *sizes],
        ["mean degree of orthogonality", *degrees],
    ]


def _title(record):
    if record.pruning is None:
        return "pruned" if record.pruned else "unpruned"
    titles = {"scratch": "from scratch", "unpruned": "as many epochs"}
    number, rounds = record.pruning.get("round", 1), record.pruning.get("rounds", 1)
    return titles.get(record.control, f"round {number}" if rounds > 1 else "pruned")


def _print_notes(records):
    """How the accuracies of the table may be compared."""
    last = records[-1]
    if last.chosen_on == "test":
        print(
            "  The best epoch was chosen on the test images, which flatters all accuracies;\n"
            "  --val_percent=10 avoids that."
        )
    else:
        print(
            {
                "ticket": "  The network is that of the ticket's epoch.",
                "last": "  The network is that of the last epoch.",
            }.get(last.chosen_on, f"  The best epoch was chosen on the {last.chosen_on} images.")
        )
    for record in records:
        if unanswered := record.accuracy["best"].get("unanswered"):
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


# ------------------------------------------------------------------------------------- measurements


def print_layers(rows):
    print_table(
        [
            ("layer", "filters", "MACs before", "MACs after", "left", "orthogonality"),
            *(
                (
                    r["layer"],
                    f"{r['kept']}/{r['total']}",
                    f"{r['unpruned_macs']:,}",
                    f"{r['macs']:,}",
                    f"{100 * r['macs'] / r['unpruned_macs']:.1f}%",
                    "" if r["orthogonality"] is None else f"{r['orthogonality']:.3f}",
                )
                for r in rows
            ),
        ]
    )


def print_latency(model, image_size, devices):
    """Time a network, beside the unpruned one where it is pruned, on each of some devices."""
    before, after = (
        measure_cost(model, image_size, filters)["flops"] for filters in (all_filters(model), None)
    )
    networks = {"this": model}
    if after < before:
        networks = {"unpruned": unpruned_twin(model), "this": model}
    runtimes = {}
    try:
        runtimes = {
            f"{label}, ONNX Runtime": runtime
            for label, network in networks.items()
            if (runtime := runtime_of(network, image_size))
        }
    except InputError as error:
        print(f"Without ONNX Runtime: {error}")
    slower = []
    for device in devices:
        timed = networks | (runtimes if device.type == "cpu" else {})
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
                unpruned = figures.get(label.replace("this", "unpruned"))
                compared = unpruned is not None and unpruned is not time
                ratio = unpruned["median"] / time["median"] if compared else None
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
                    place = device.type if label == "this" else "ONNX Runtime"
                    slower.append(f"{size} ({place})")
        print(f"Time for images of {image_size} x {image_size} on {environment(device)['device']}")
        print_table(rows)
    if slower:
        print(
            f"  It has {100 * after / before:.1f}% of the unpruned network's FLOPs, but is not "
            f"faster at batch size {', '.join(slower)}"
        )
