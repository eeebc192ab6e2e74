"""The sections of a report as lines of Markdown: results, numbers of rounds, group checks."""

import statistics
from dataclasses import dataclass

from common.terminal import counted
from lab.comparison import (
    differences_of,
    gaps_between_rounds,
    gaps_of,
    grid_of,
    settings_that_differ,
    sorted_percents,
)
from lab.markdown import difference_text, escaped, spread, table_of
from lab.record import JOBS, by_network, grouped, in_order
from lab.significance import stars
from lab.tables import budget_text

# ----------------------------------------------------------------------------- results of one kind


def title_of(shared):
    """The title of a section. shared: a lab.comparison.Shared."""
    title = f"## {escaped(shared.data)}, {JOBS[shared.job]} job, preset {escaped(shared.recipes)}"
    if shared.budget != "filters":
        title += f", percents{budget_text(shared.budget)}"
    if shared.run_folder != ".":
        title += f", in {escaped(shared.run_folder)}"
    return title


def describe_section(records, borrowed=()):
    """The tables of one section. borrowed: see lab.comparison.Section."""
    seeds = sorted({record.flags["seed"] for record in records})
    lines = [_accuracy_line(records, seeds), ""]
    differing = settings_that_differ(records)
    if differing:
        lines += [f"**These results also differ in {', '.join(map(escaped, differing))}.**", ""]
    gaps = {}
    for network, runs in by_network(records).items():
        lines += [_before_line(network, runs), "", *_accuracy_table(network, runs, len(seeds)), ""]
        controls = [control for control, _ in borrowed if control.network == network]
        gaps[network] = gaps_of(runs, controls)
    lines += _difference_tables(gaps)
    folders = sorted({run_folder for _, run_folder in borrowed})
    if folders:
        lines += [
            "Unpruned networks that were trained alike are those of "
            f"{', '.join(map(escaped, folders))}.",
            "",
        ]
    return lines + _detail_table(records)


def _accuracy_line(records, seeds):
    """What the table of accuracies shows."""
    seeds_text = f"seed {seeds[0]}"
    if len(seeds) > 1:
        seeds_text = f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}"
    return (
        f"Test accuracy (%) of the {_chosen_epoch(records)}; {seeds_text}. In brackets: "
        "multiply-adds left (%)."
    )


def _chosen_epoch(records):
    """Which epoch's accuracy the tables have, in words."""
    ways = {record.chosen_on for record in records}
    epochs = []
    if ways != {"last"}:
        images = " and ".join(sorted(ways - {"last"}))
        epochs.append(f"best epoch, chosen on the {images} images")
    if "last" in ways:
        epochs.append("last epoch")
    return " or ".join(epochs)


def _before_line(network, records):
    """The accuracies of a network before pruning, for each kind of training."""
    trainings = {}  # kind of training -> {seed: record of the unpruned network}
    for record in records:
        unpruned = record.unpruned
        if unpruned is not None:
            kind = f"with penalty{unpruned.given_penalty}" if unpruned.penalised else "plain"
            trainings.setdefault(kind, {})[unpruned.seed] = unpruned
    parts = []
    for kind, by_seed in trainings.items():
        unpruned = by_seed.values()
        parts.append(
            f"{kind} {_spread_of(unpruned, 'best')}, last epoch {_spread_of(unpruned, 'last')} "
            f"(n = {len(unpruned)})"
        )
    return f"Before pruning, {escaped(network)}: {'; '.join(parts)}."


def _spread_of(records, figure, digits=1):
    """Mean and standard deviation of a property of records, in words."""
    return spread([getattr(record, figure) for record in records], digits)


def _accuracy_table(network, records, seed_count):
    """A row for each method, a column for each percent."""
    grid = grid_of(records)
    rows = []
    for method in grid.methods:
        row = [method]
        for percent in grid.percents:
            row.append(_accuracy_cell(grid.cells.get((method, percent), []), seed_count))
        rows.append(row)
    return table_of([network, *map(_removed_text, grid.percents)], rows)


def _accuracy_cell(records, seed_count):
    if not records:
        return "–"
    cost = f"{statistics.mean(record.flops_left for record in records):.0f}"
    if len(records) < seed_count:
        cost += f", n = {len(records)}"
    return f"{_spread_of(records, 'best')} ({cost})"


def _removed_text(percent):
    return "nothing removed" if percent is None else f"{percent:g}% removed"


# ------------------------------------------------------------------------------------- differences


def _difference_tables(gaps):
    """A table for each network of {network: {names: differences}}; none where no difference has two
    seeds."""
    differences = differences_of(gaps)
    if not differences:
        return []
    marks = stars(differences)
    lines = [_tests_line(list(marks.values())), ""]
    for network, pairs in gaps.items():
        percents = sorted_percents({percent for name, _, percent in differences if name == network})
        if percents:
            rows = _difference_rows(network, pairs, percents, differences, marks)
            header = [network, "minus", *map(_removed_text, percents)]
            lines += [*table_of(header, rows), ""]
    return lines


def _tests_line(marks):
    alone = len(marks) - marks.count("")
    return (
        "Differences in accuracy between runs of one seed: mean ± standard error (95% interval"
        f" of a t-test over seeds). Of {counted(len(marks), 'test')} {alone} are "
        f"significant at 5% by themselves (\\*), {marks.count('**')} also after Holm's correction "
        "for their number (\\*\\*)."
    )


def _difference_rows(network, pairs, percents, differences, marks):
    rows = []
    for names in pairs:
        cells = []
        for percent in percents:
            key = network, names, percent
            cells.append(difference_text(differences.get(key), marks.get(key)))
        if any(cells):
            rows.append([*names, *cells])
    return rows


def describe_rounds(records):
    """A table of jobs that differ in their number of rounds, which may be of several presets."""
    lines = _difference_tables(gaps_between_rounds(records))
    if not lines:
        return []
    return ["## Numbers of rounds, of all presets", "", *lines[:-1]]


# ------------------------------------------------------------------------------------- all figures


@dataclass(frozen=True)
class Column:
    """A column of means over seeds. figure: a property of a Record."""

    title: str
    figure: str
    digits: int = 1
    optional: bool = False  # left out where no record has the figure


COLUMNS = (
    Column("removed (%)", "achieved", digits=2),
    Column("parameters left (%)", "parameters_left"),
    Column("multiply-adds left (%)", "flops_left"),
    Column("right after pruning", "after_pruning"),
    Column("BatchNorms re-estimated", "after_bn", optional=True),
    Column("best epoch", "best"),
    Column("last epoch", "last"),
    Column("top-5", "top5"),
)


def _detail_table(records):
    """A row for each network, percent and method."""
    columns = []
    for column in COLUMNS:
        if not column.optional or _spread_of(records, column.figure):
            columns.append(column)
    rows = []
    for network, network_runs in by_network(records).items():
        ordered = sorted(in_order(network_runs), key=_requested_of)
        for (percent, method), runs in grouped(ordered, _cell_of).items():
            figures = [_spread_of(runs, column.figure, column.digits) for column in columns]
            rows.append([network, method, f"{percent:g}", *figures, str(len(runs))])
    titles = [column.title for column in columns]
    return table_of(["network", "method", "asked for (%)", *titles, "n"], rows)


def _requested_of(record):
    """The percent that was asked for, also of unpruned controls."""
    return round(record.requested, 2)


def _cell_of(record):
    return _requested_of(record), record.method


# ------------------------------------------------------------------------------------ group checks


GROUP_COLUMNS = (
    "groups",
    "filters",
    "network",
    "n",
    "change of the loss",
    "sum of scores: relative error",
    "sum of scores: absolute error",
    "sum of scores: rank correlation",
    "of single changes: relative error",
    "of single changes: absolute error",
    "of single changes: rank correlation",
)


def describe_groups(checks):
    """Tables of {file: {network: its GroupCheck}}."""
    if not checks:
        return []
    lines = [
        "## Do importances add up?",
        "",
        "Errors are medians over the groups. An absolute error with ≈ is the relative one times "
        "the mean change of the loss: its file is of a version that kept none.",
    ]
    for name, networks in checks.items():
        table = table_of(GROUP_COLUMNS, _group_rows(networks))
        lines += ["", f"### {escaped(name)}", "", *table]
    return lines


def _group_rows(networks):
    """A row for each kind and size of groups, and each network."""
    rows = []
    for kind in _kinds_in(networks):
        for size in _sizes_in(networks, kind):
            for name, check in networks.items():
                for figures in check["kinds"].get(kind, ()):
                    if figures["size"] == size:
                        label = _training_name(check, name)
                        rows.append([kind, str(size), label, *_group_cells(figures)])
    return rows


def _kinds_in(networks):
    """The kinds of groups in the checks of networks, in the order of their first."""
    kinds = {}
    for check in networks.values():
        kinds |= dict.fromkeys(check["kinds"])
    return list(kinds)


def _sizes_in(networks, kind):
    """The sizes of groups of one kind, sorted."""
    sizes = set()
    for check in networks.values():
        for figures in check["kinds"].get(kind, ()):
            sizes.add(figures["size"])
    return sorted(sizes)


def _training_name(check, name):
    """How a network was trained, where that is known; otherwise its name."""
    return {True: "penalised", False: "plain"}.get(check.get("penalised"), name)


def _group_cells(figures):
    """A lab.record.GroupSize in words: n, change of the loss, and for both sums the relative and
    the absolute error and the rank correlation."""
    cells = [str(figures["n"]), f"{figures['change']:.2g}"]
    for estimate in ("scores", "changes"):
        rank = figures[f"rank_{estimate}"]
        cells += [
            f"{figures[f'error_{estimate}']:.2f}",
            absolute_error(figures, estimate),
            "–" if rank is None else f"{rank:.2f}",
        ]
    return cells


def absolute_error(figures, estimate):
    """The absolute error of a sum, in words. Older files hold none: of these, what the relative
    error and the mean change come to."""
    known = figures.get(f"gap_{estimate}")
    if known is not None:
        return f"{known:.2g}"
    return f"≈ {figures[f'error_{estimate}'] * figures['change']:.2g}"
