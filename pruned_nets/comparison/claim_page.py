"""claim.md: the tables and the figure of what claim.py has recorded."""

import statistics

from claim_records import (
    CHOICES,
    ESTIMATES,
    GONE,
    KINDS,
    MEASURES,
    MOST_STEPS,
    RANDOM,
    RECORDS,
    RETRAINED,
    SIZES,
    STEPPED,
    TASKS,
    WITHIN,
    Results,
    all_results,
    chosen,
)
from matplotlib import pyplot
from places import HERE

from lab.comparison import minus
from lab.markdown import interval, spread, table_of

PAGE = HERE / "claim.md"
MARK = "<!-- The tables below are made by claim.py. -->"
CURVES = {"BatchNorms re-estimated": "settled_top1", "BatchNorms as they were": "stale_top1"}


def health_table(results):
    rows = []
    for kind in KINDS:
        treatment = chosen(results.name)[kind]
        highest = [max(losses[1:]) for losses in results.health(kind, "losses").values()]
        rows.append(
            [
                kind,
                f"{treatment.rate:g}",
                f"{treatment.strength:g}",
                f"{treatment.decay:g}",
                f"{max(highest):.2f}" if highest else "",
                spread(results.health(kind, "train_top1").values()),
                spread(results.health(kind, "test_top1").values()),
                spread(results.health(kind, "degree").values(), 2),
                spread(results.health(kind, "pointwise_degree").values(), 2),
                str(len(highest)),
            ]
        )
    head = "rate", "λ", "weight decay", "highest loss after the first epoch", "training images"
    return table_of(["", *head, "test images", "degree", "of 1x1 filters", "n"], rows)


def curve_table(results, figure):
    """figure: of a cut, an accuracy."""
    rows = []
    for score in CHOICES:
        if not results.area("zero", score):
            continue
        for kind in KINDS:
            each = curve(results, kind, score, figure)
            rows.append([f"{kind}, {score}", *(spread(points.values()) for points in each)])
        for other in ("zero", "plain"):
            leads = lead_over(results, other, score, figure)
            rows.append(
                [f"penalised minus {other}, {score}", *(interval(gap.values()) for gap in leads)]
            )
    leads = [lead_over(results, "zero", score, figure) for score in ("fisher", "random")]
    cells = [interval(minus(fisher, random).values()) for fisher, random in zip(*leads)]
    rows.append(["penalised minus zero, fisher minus random", *cells])
    return table_of(["", *(f"{gone}% gone" for gone in GONE), "mean over 5 to 75%"], rows)


def curve(results, kind, score, figure):
    """A figure after each cut, and its mean over the cuts: a list of {seed: figure}."""
    cuts = [results.cut(kind, score, gone, figure=figure) for gone in GONE]
    return [*cuts, results.area(kind, score, figure)]


def lead_over(results, other, score, figure):
    """What the penalised network is ahead of another by `curve`: a list of {seed: points}."""
    both = (curve(results, kind, score, figure) for kind in ("penalised", other))
    return [minus(ours, theirs) for ours, theirs in zip(*both)]


def steps_table(results):
    rows = []
    for gone, many in STEPPED.items():
        for kind in KINDS:
            gains = [interval(results.gain(kind, gone, steps).values()) for steps in many]
            one = spread(results.cut(kind, "fisher", gone).values())
            rows.append([f"{kind}, {gone}% gone", one, *gains])
        for other in ("zero", "plain"):
            gaps = [
                minus(results.gain(other, gone, steps), results.gain("penalised", gone, steps))
                for steps in many
            ]
            cells = [interval(gap.values()) for gap in gaps]
            rows.append([f"gain of {other} minus gain of penalised, {gone}%", "", *cells])
    heads = [f"{steps} steps minus one" for steps in STEPPED[GONE[-1]]]
    return table_of(["", "one step", *heads], rows)


def group_table(results, groups):
    """groups: which ones, RANDOM or WITHIN."""
    figures = {
        f"{estimate}, {title}": f"{figure}_{key}"
        for key, estimate in ESTIMATES.items()
        for figure, title in MEASURES.items()
    }
    sizes = [size for size in SIZES if results.of_groups("plain", size, "change", groups)]
    rows = []
    for title, figure in {**figures, "change of the loss": "change"}.items():
        each = {
            kind: [results.of_groups(kind, size, figure, groups) for size in sizes]
            for kind in KINDS
        }
        for kind, columns in each.items():
            rows.append([f"{title}, {kind}", *(spread(column.values(), 2) for column in columns)])
        for other in ("zero", "plain"):
            gaps = [minus(ours, theirs) for ours, theirs in zip(each["penalised"], each[other])]
            cells = [interval(gap.values(), 2) for gap in gaps]
            rows.append([f"{title}, penalised minus {other}", *cells])
    return table_of(["", *(f"{size} filters" for size in sizes)], rows)


def retrained_table(results):
    rows = []

    def row(label, score, steps=1):
        each = {kind: results.retrained(kind, score, steps=steps) for kind in KINDS}
        gap = minus(each["penalised"], each["zero"])
        return [label, *(spread(own.values()) for own in each.values()), interval(gap.values())]

    for score in (None, *CHOICES):
        if not all(results.retrained(kind, score) for kind in KINDS):
            continue
        rows.append(row(score or "unpruned", score))
        fresh = [spread(results.retrained(kind, score, True).values()) for kind in KINDS]
        if any(fresh):
            rows.append([f"{score}, from scratch", *fresh, ""])
        if any(results.retrained(kind, score, steps=MOST_STEPS) for kind in KINDS):
            rows.append(row(f"{score}, in {MOST_STEPS} steps", score, MOST_STEPS))
        losses = [interval(results.in_8_bits(kind, score).values()) for kind in KINDS]
        rows.append([f"{score or 'unpruned'}, 8 bits minus 32", *losses, ""])
    for score in ("fisher", "bn"):
        leads = [results.beyond_random(kind, score) for kind in KINDS]
        both = minus(leads[KINDS.index("penalised")], leads[KINDS.index("zero")])
        cells = [interval(lead.values()) for lead in leads]
        rows.append([f"{score} minus random", *cells, interval(both.values())])
    return table_of(["", *KINDS, "penalised minus zero"], rows)


def draw_steps(results, path):
    """Accuracies right after a cut in one and in several steps, for each kind of network."""
    figure, axes = pyplot.subplots(1, len(STEPPED), figsize=(9, 3.8), layout="constrained")
    for axis, (gone, many) in zip(axes, STEPPED.items()):
        for kind in KINDS:
            cuts = [list(results.cut(kind, "fisher", gone, steps).values()) for steps in (1, *many)]
            means = [statistics.mean(values) for values in cuts]
            errors = [statistics.stdev(values) / len(values) ** 0.5 for values in cuts]
            axis.errorbar((1, *many), means, errors, marker="o", capsize=3, label=shown(kind))
        axis.set_xscale("log", base=2)
        axis.set_xticks((1, *many), (1, *many))
        axis.set(xlabel="steps", title=f"{gone}% of the multiply-adds removed by fisher")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy right after the cut\n(%, mean ± standard error)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_retrained(each, path):
    """Accuracies of all architectures after a retraining: a dot for each kind of network and each
    score, and a line for the unpruned networks."""
    figure, (axes,) = pyplot.subplots(
        1, len(each), figsize=(11, 3.8), layout="constrained", squeeze=False
    )
    for axis, results in zip(axes, each):
        for place, kind in enumerate(KINDS):
            unpruned = statistics.mean(results.retrained(kind, None).values())
            axis.axhline(unpruned, color=f"C{place}", linestyle=":", linewidth=1)
            found = [list(results.retrained(kind, score).values()) for score in CHOICES]
            axis.errorbar(
                [number + (place - 1) / 5 for number in range(len(CHOICES))],
                [statistics.mean(values) for values in found],
                [statistics.stdev(values) for values in found],
                fmt="o",
                color=f"C{place}",
                capsize=3,
                label=shown(kind),
            )
        axis.set_xticks(range(len(CHOICES)), [choice.replace(" ", "\n", 1) for choice in CHOICES])
        axis.set_title(results.title(), fontsize=9)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("test accuracy, retrained\n(%, mean ± standard deviation)")
    title = f"{RETRAINED}% of the multiply-adds removed by a score, and retrained"
    figure.suptitle(title, fontsize=10)
    axes[0].plot([], [], ":", color="gray", label="unpruned, trained as long: the same colours")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def shown(kind):
    """A kind of network as figures call it."""
    return "λ = 0" if kind == "zero" else kind


def search_table(results):
    rows = []
    for entry in results.searched():
        treatment = entry["treatment"]
        degree = entry["pointwise_degree"]
        rows.append(
            [
                entry["kind"],
                f"{treatment['rate']:g}",
                f"{treatment['strength']:g}",
                f"{treatment['decay']:g}",
                f"{entry['train_top1']:.1f}",
                f"{entry['validation_top1']:.1f}",
                f"{entry['degree']:.2f}",
                "" if degree is None else f"{degree:.2f}",
            ]
        )
    head = "rate", "λ", "weight decay", "training images", "validation images", "degree"
    return table_of(["", *head, "of 1x1 filters"], rows)


def draw_lengths(results, path):
    """Accuracy against the work of all training: a dot for each seed, a number for the epochs of
    the retrainings, or of a training from scratch."""
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    highest = {}  # (from scratch, epochs) -> the place of a number
    for title, keys in lengths_of(results).items():
        work = [statistics.mean(results.after(*key, "work").values()) for key in keys]
        each = [list(results.after(*key).values()) for key in keys]
        (line,) = axis.plot(work, [statistics.mean(values) for values in each], label=title)
        for (*_, scratch, epochs), place, values in zip(keys, work, each):
            axis.plot([place] * len(values), values, "o", color=line.get_color(), markersize=4)
            _, known = highest.get((scratch, epochs), (place, 0))
            highest[scratch, epochs] = place, max(known, *values)
    for (_, epochs), place in highest.items():
        axis.annotate(str(epochs), place, (0, 6), textcoords="offset points", ha="center")
    axis.margins(y=0.1)
    axis.set_xlabel("multiply-adds of all training, in epochs of the unpruned network")
    axis.set_ylabel("test accuracy (%)")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def write_page():
    """claim.md and its figures: the text that is there, and the tables of all records behind it."""
    PAGE.write_text(with_tables(PAGE.read_text()))
    for name in TASKS:
        results = Results(name)
        if has_steps(results):
            draw_steps(results, RECORDS / f"{name}_steps.png")
        if has_lengths(results):
            draw_lengths(results, RECORDS / f"{name}_lengths.png")
    each = list(filter(has_retrained, all_results()))
    if each:
        draw_retrained(each, RECORDS / "retrained.png")


def with_tables(text):
    """The text of claim.md with all that is behind its mark made anew."""
    lines = [text.partition(MARK)[0].rstrip(), "", MARK]
    for name in TASKS:
        results = Results(name)
        if results.records:
            lines += section_of(results)
    return "\n".join(lines).strip() + "\n"


def has_steps(results):
    return all(len(results.gain(kind, RETRAINED, MOST_STEPS)) > 1 for kind in KINDS)


def has_retrained(results):
    scores = None, *CHOICES
    return all(len(results.retrained(kind, score)) > 1 for kind in KINDS for score in scores)


def lengths_of(results):
    """{what is trained: the keys of its results, by the length of its training}"""
    return {**results.lengthened(), "fisher's architecture from scratch": results.fresh()}


def has_lengths(results):
    return all(results.after(*key) for keys in lengths_of(results).values() for key in keys)


def section_of(results):
    """The lines of one architecture."""
    name = results.name
    lines = ["", f"## {results.title()}"]
    lines += ["", "The search:", "", *search_table(results)]
    lines += ["", "The unpruned networks:", "", *health_table(results)]
    for title, figure in CURVES.items():
        lines += ["", f"Right after the cut, {title}:", "", *curve_table(results, figure)]
    lines += ["", "`fisher` in several steps:", "", *steps_table(results)]
    for groups in (RANDOM, WITHIN):
        if not results.of_groups("plain", 1, "change", groups):
            continue
        title = f"Sums over groups of filters, {groups}; their scores are `fisher`'s:"
        lines += ["", title, "", *group_table(results, groups)]
    if has_steps(results):
        lines += ["", f"![In one step and in several](claim/{name}_steps.png)"]
    if results.retrained("plain", "fisher"):
        lines += ["", f"{RETRAINED}% gone, retrained:", "", *retrained_table(results)]
    if has_lengths(results):
        lines += ["", f"![Accuracy against work](claim/{name}_lengths.png)"]
    return lines
