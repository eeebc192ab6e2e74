"""The results below a folder, compared: report.md and its plots."""

import html
import itertools
import json
import os
import re
import statistics
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from common.errors import InputError
from common.files import check_writable, digest_of, to_csv, write_atomically
from common.flags import marked
from common.terminal import counted, printable, progress
from lab import plots
from lab.checkpoint import load_checkpoint
from lab.experiment import DEFAULTS, ONLY_PRUNED, REPORT_MAY_DIFFER, Experiment
from lab.latency import Clock
from lab.record import GROUPS_IN, JOBS, by_network, grouped, read_groups, read_result
from lab.significance import Difference, stars
from lab.tables import budget_text

LARGEST = 50_000_000  # bytes of a result; one of 500 epochs has 1 MB
MOST = 200_000  # files and folders that are looked at; a comparison has hundreds


def files_below(folder, suffix, most):
    """The files below a folder whose names end so, sorted; links are not followed. Raises
    InputError where it holds more than `most` files and folders."""
    found, count = [], 0
    for place, folders, names in os.walk(folder):
        count += len(folders) + len(names)
        if count > most:
            raise InputError(
                f"--report={folder} holds more than {most:,} files; name the folder "
                "that the results are in"
            )
        found += [Path(place) / name for name in names if name.endswith(suffix)]
    return sorted(found)


def read_results(folder):
    """([(Record, folder of its run)] of all .json files below a folder that main.py wrote, the
    files left out: of no result, and copies of others of the same folder)."""
    results, others, copies, known = [], [], [], set()
    for path in files_below(folder, ".json", MOST):
        if GROUPS_IN in path.name:
            continue
        try:
            if not path.is_file() or path.stat().st_size > LARGEST:
                raise ValueError("no result")
            record = replace(read_result(path), file=str(path.with_suffix(".pth")))
        except (OSError, ValueError):
            others.append(path)
            continue
        parts = path.relative_to(folder).parts
        run_in = parts[: parts.index("pruned_nets")] if "pruned_nets" in parts else parts[:-1]
        content = run_in, digest_of(path)
        if content in known:
            copies.append(path)
            continue
        known.add(content)
        results.append((record, "/".join(run_in) or "."))
    return results, others, copies


def write_report(folder, device=None, model=None):
    """Write report.md and report.csv, and plots beside it where matplotlib is installed; print what
    was written. device: measure on it the networks that are still there, each in turn with the
    unpruned one. model: FILE.py:NAME of a user's own network, which is measured only then. Raises
    InputError where there are no results.
    """
    if not Path(folder).is_dir():
        raise InputError(f"--report={folder} is no folder")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"--report={folder} may not be read")
    check_writable(Path(folder) / "report.md")
    print(f"Reading the results below {folder}", flush=True)
    results, others, copies = read_results(folder)
    if not results:
        raise InputError(
            f"--report={folder}: no results below it; main.py writes a .json beside "
            "each pruned network"
        )
    if device:
        timed = [
            with_time(record, device, model)
            for record, _ in progress(results, "measuring networks")
        ]
        results = [(record, run_in) for (record, _), (_, run_in) in zip(timed, results)]
        reasons = [why for _, why in timed if why]
        if reasons:
            print(
                f"Not timed: {len(reasons)} of {counted(len(timed), 'network')}, the first since "
                f"{printable(reasons[0])}"
            )
    lines, written, pyplot = ["# Comparison of pruning methods"], [], plots.load_pyplot()
    checks = read_group_checks(folder)
    for tables, records, suffix in blocks(results, checks):
        lines += ["", *tables]
        drawn = plots.plot_section(pyplot, records, folder, suffix) if pyplot and records else ()
        for name, caption in drawn:
            lines += ["", f"![{caption}]({name})"]
            written.append(name)
    lines += ["", f"{len(results)} results; {'; '.join(sorted(set(map(_place, results))))}.", ""]
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
    plotted = f" and {len(written)} plots" if written else ""
    print(f"Written: {Path(folder) / 'report.md'}, report.csv{plotted}")
    for paths, what in (others, "that hold no result"), (copies, "that are copies of others"):
        if paths:
            print(
                f"Left out: {len(paths)} .json files {what}, the first is "
                f"{printable(str(paths[0]))}"
            )


def _place(result):
    """Where a result was computed, in words."""
    known = result[0].environment
    processor = f" ({known['processor']})" if known.get("processor") else ""
    return text(f"{known['device']}{processor}, torch {known['torch']}, Python {known['python']}")


def blocks(results, checks=()):
    """What a report has, as a list of (lines of Markdown, the records that its plots show, what
    their names end in). results: of `read_results`; checks: of `read_group_checks`."""
    sections = grouped(
        results,
        lambda result: (
            result[1],
            result[0].data,
            result[0].job,
            result[0].recipes,
            result[0].flag("budget"),
        ),
    )
    controls = [result for result in results if result[0].control == "unpruned"]
    found = []
    for number, key in enumerate(sorted(sections), 1):
        records = [record for record, _ in sections[key]]
        lines = [_title(*key), "", *describe_section(records, _borrowed(records, controls))]
        found.append((lines, records, f"_{number}" if len(sections) > 1 else ""))
    rounds, groups = describe_rounds([record for record, _ in results]), describe_groups(checks)
    return [*found, *((lines, [], "") for lines in (rounds, groups) if lines)]


def _borrowed(records, controls):
    """Those unpruned controls of other sections that a section lacks, and whose networks were
    trained as its own were: [(Record, folder of its run)]. A budget changes no control."""
    alike = {_training_of(record) for record in records}
    own = {(record.network, record.method, record.flags["seed"]) for record in records}
    return [
        (control, run_in)
        for control, run_in in controls
        if _training_of(control) in alike
        and (control.network, control.method, control.flags["seed"]) not in own
    ]


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


def with_time(record, device, model=None):
    """(a record with its network's time for a batch, ""), or (the record, why it has none)."""
    try:
        network, known = load_checkpoint(record.file, model)
        if not known.image_size:
            raise InputError(f"{record.file} does not say for images of what size it is")
        clock = Clock(network, known.image_size, DEFAULTS["latency_batch"], device)
        saved = clock.saved_by(network.to(device), 1.0)
    except InputError as error:
        return record, str(error)
    return replace(
        record,
        pruning={
            **record.pruning,
            "milliseconds": list(saved.milliseconds),
            "spread_percent": saved.spread,
        },
    ), ""


def csv_row(result):
    """A result as a flat dict, a line of report.csv."""
    record, run_in = result
    words = {
        "folder": run_in,
        "data": record.data,
        "job": record.job,
        "preset": record.recipes,
        "network": record.network,
        "method": record.method,
    }
    now, unpruned = (record.pruning or {}).get("milliseconds") or (None, None)
    return {
        **{name: printable(str(word)) for name, word in words.items()},
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
        "milliseconds": now,
        "unpruned_milliseconds": unpruned,
        "spread_percent": (record.pruning or {}).get("spread_percent"),
        **{
            name: printable(str(record.environment.get(name, "")))
            for name in ("device", "processor", "torch", "suite")
        },
    }


def text(name):
    """A name from a file, which may hold anything, as text in Markdown and in a terminal."""
    name = html.escape(printable(str(name)), quote=False)
    return re.sub(r"([\\`*|\[\]~$]|(?<!\w)_|_(?!\w))", r"\\\1", name)


def row(cells):
    return f"| {' | '.join(map(text, cells))} |"


def _title(run_in, data, job, recipes, budget):
    title = f"## {text(data)}, {JOBS[job]} job, preset {text(recipes)}"
    if budget != "filters":
        title += f", percents{budget_text(budget)}"
    return title if run_in == "." else f"{title}, in {text(run_in)}"


def spread(values, digits=1):
    """Mean and standard deviation over seeds in words."""
    values = [v for v in values if v is not None]
    if not values:
        return ""
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def describe_section(records, borrowed=()):
    """The tables of one comparison, as lines of Markdown. borrowed: see `_borrowed`."""
    seeds = sorted({r.flags["seed"] for r in records})
    chosen = _chosen(records)
    over = (
        f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}"
        if len(seeds) > 1
        else f"seed {seeds[0]}"
    )
    lines = [f"Test accuracy (%) of the {chosen}; {over}. In brackets: multiply-adds left (%).", ""]
    unlike = _unlike(records)
    if unlike:
        lines += [f"**These results also differ in {', '.join(map(text, unlike))}.**", ""]
    networks = by_network(records)
    for network, own in networks.items():
        lines += [_before_line(network, own), "", *_accuracies(network, own, seeds), ""]
    lines += _differences(
        {
            network: _gaps(own, [control for control, _ in borrowed if control.network == network])
            for network, own in networks.items()
        }
    )
    places = sorted({run_in for _, run_in in borrowed})
    if places:
        lines += [
            f"Unpruned networks that were trained alike are those of "
            f"{', '.join(map(text, places))}.",
            "",
        ]
    return lines + _details(networks)


def _chosen(records):
    """Which epoch's accuracy the tables have, in words."""
    ways = {r.chosen_on for r in records}
    images = " and ".join(sorted(ways - {"last"}))
    words = [f"best epoch, chosen on the {images} images"] if images else []
    return " or ".join([*words, *(["last epoch"] if "last" in ways else [])])


def _unlike(records):
    """What results differ in that they should not, in words."""
    may_differ = marked(Experiment, REPORT_MAY_DIFFER)
    pruned = marked(Experiment, ONLY_PRUNED)
    unlike = [
        f"--{name}"
        for name in DEFAULTS
        if name not in may_differ
        and len({json.dumps(r.flag(name)) for r in records if not (name in pruned and r.control)})
        > 1
    ]
    # What is held out for validation depends on the seed.
    if not unlike and _several(records, lambda r: r.flag("seed"), lambda r: r.fingerprint):
        unlike = ["--data_path"]
    if not unlike and _several(
        records, lambda r: (r.model, r.variant), lambda r: json.dumps(r.schedule)
    ):
        unlike = ["the schedules of config.py"]
    return unlike


def _several(records, key, value):
    """Whether records of one key have several values."""
    return any(len(set(map(value, group))) > 1 for group in grouped(records, key).values())


def _before_line(network, records):
    kinds = {}
    for record in records:
        base = record.unpruned
        if base is not None:
            kind = f"with penalty{base.given_penalty}" if base.penalised else "plain"
            kinds.setdefault(kind, {})[base.seed] = base
    return (
        f"Before pruning, {text(network)}: "
        + "; ".join(
            f"{kind} {spread(b.best for b in bases.values())}, last epoch "
            f"{spread(b.last for b in bases.values())} (n = {len(bases)})"
            for kind, bases in kinds.items()
        )
        + "."
    )


def _accuracies(network, records, seeds):
    """A table with a row for each method and a column for each percent."""
    cells, columns, methods = _cells(records)

    def entry(found):
        if not found:
            return "–"
        cost = statistics.mean(r.flops_left for r in found)
        missing = f", n = {len(found)}" if len(found) < len(seeds) else ""
        return f"{spread(r.best for r in found)} ({cost:.0f}{missing})"

    return [
        row([network, *map(_removed, columns)]),
        "|---" * (len(columns) + 1) + "|",
        *(
            row([method, *(entry(cells.get((method, column), [])) for column in columns)])
            for method in methods
        ),
    ]


def _cells(records):
    """({(method, percent removed; None of an unpruned control): its records}, the percents, with
    None where there is one, the methods), in the order of tables."""
    cells = grouped(
        records, lambda r: (r.method, None if r.control == "unpruned" else round(r.requested, 2))
    )
    percents = {percent for _, percent in cells}
    return (
        cells,
        [*sorted(percents - {None}), *({None} & percents)],
        list(grouped(sorted(records, key=lambda r: r.place), lambda r: r.method)),
    )


def _removed(percent):
    return "nothing removed" if percent is None else f"{percent:g}% removed"


def _differences(gaps):
    """Tables of {network: differences between runs of one seed, see `_gaps`}, as lines. They leave
    out what has fewer than two seeds."""
    found = {}  # (network, names, percent) -> Difference
    for network, each in gaps.items():
        for names, values in each.items():
            for percent in {percent for percent, _ in values}:
                found[network, names, percent] = Difference.of(
                    gap for (other, _), gap in values.items() if other == percent
                )
    found = {key: difference for key, difference in found.items() if difference}
    if not found:
        return []
    marks = stars(found)
    alone, corrected = sum(map(bool, marks.values())), sum(each == "**" for each in marks.values())
    lines = [
        "Differences in accuracy between runs of one seed: mean ± standard error (95% interval"
        f" of a t-test over seeds). Of {counted(len(found), 'test')} {alone} are "
        f"significant at 5% by themselves (\\*), {corrected} also after Holm's correction for "
        "their number (\\*\\*).",
        "",
    ]
    for network, each in gaps.items():
        percents = {percent for where, _, percent in found if where == network}
        columns = [*sorted(percents - {None}), *({None} & percents)]
        if not columns:
            continue
        lines += [
            row([network, "minus", *map(_removed, columns)]),
            "|---" * (len(columns) + 2) + "|",
        ]
        for names in each:
            shown = [
                (found.get((network, names, column)), marks.get((network, names, column)))
                for column in columns
            ]
            if any(difference for difference, _ in shown):
                lines.append(row([*names, *(difference_text(*pair) for pair in shown)]))
        lines.append("")
    return lines


def _gaps(records, borrowed=()):
    """{(name of what is compared, of what it is compared with): {(percent removed; None of unpruned
    controls, seed): the difference}}: the first method minus each other one, the same of their
    controls, the first variant of each pruning type minus its others, each method minus its own
    controls, and scratch controls minus unpruned ones. borrowed: unpruned controls of elsewhere.
    """
    cells, _, _ = _cells([*records, *borrowed])
    best = {}  # method -> {(percent removed, seed): accuracy}
    for (method, percent), found in cells.items():
        best.setdefault(method, {}).update(
            {(percent, r.flags["seed"]): r.best for r in found if r.finished}
        )
    ordered = sorted([*records, *borrowed], key=lambda r: r.place)
    pruned = [r for r in ordered if not r.control]
    unpruned = {r.method: r.unpruned_method for r in pruned}
    scratch = {r.variant: r.method for r in ordered if r.control == "scratch"}

    def beyond(method, control):
        """Its accuracies minus those of an unpruned control."""
        whole = {seed: accuracy for (_, seed), accuracy in best.get(control, {}).items()}
        return {
            (percent, seed): accuracy - whole[seed]
            for (percent, seed), accuracy in best[method].items()
            if seed in whole
        }

    lost = {method: beyond(method, control) for method, control in unpruned.items()}
    gaps = {}
    for found in grouped(ordered, lambda r: r.control).values():
        first, *others = dict.fromkeys(r.method for r in found)
        for other in others:
            gaps[first, other] = _minus(best[first], best[other])
            if unpruned.get(first) != unpruned.get(other):
                gaps[first, f"{other}, each minus its unpruned network"] = _minus(
                    lost[first], lost[other]
                )
    for found in grouped(pruned, lambda r: r.flags["pruning_type"]).values():
        first, *others = dict.fromkeys(r.method for r in found)
        gaps |= {(first, other): _minus(best[first], best[other]) for other in others}
    for method, control in unpruned.items():
        gaps[method, control] = lost[method]
        if method in scratch:
            gaps[method, scratch[method]] = _minus(best[method], best[scratch[method]])
            gaps[scratch[method], control] = beyond(scratch[method], control)
    return gaps


def describe_rounds(records):
    """Jobs that differ in their number of rounds, which may be of several presets: the fewest
    minus the others, as lines of Markdown."""
    ended = [r for r in records if r.job == "iterative" and r.finished and not r.control]
    gaps = {}
    for network, own in by_network(ended).items():
        same = grouped(
            sorted(own, key=lambda r: r.place),
            lambda r: (r.data, r.flag("budget"), r.variant.removesuffix(r.rounds)),
        )
        for (_, _, variant), found in same.items():
            best = grouped(
                sorted(found, key=lambda r: r.pruning["rounds"]), lambda r: r.pruning["rounds"]
            )
            best = {
                rounds: {(round(r.requested, 2), r.flags["seed"]): r.best for r in each}
                for rounds, each in best.items()
            }
            first, *others = best
            for other in others:
                names = f"{variant}, {counted(first, 'round')}", counted(other, "round")
                gaps.setdefault(network, {})[names] = _minus(best[first], best[other])
    lines = _differences(gaps)
    return ["## Numbers of rounds, of all presets", "", *lines[:-1]] if lines else []


def read_group_checks(folder):
    """{name of a file that --group_check wrote below a folder: {network: its figures}}; files that
    hold something else are left out."""
    found = {}
    for path in files_below(folder, ".json", MOST):
        if GROUPS_IN in path.name:
            with suppress(OSError, ValueError):
                if path.is_file() and path.stat().st_size <= LARGEST:
                    found["/".join(path.relative_to(folder).parts)] = read_groups(path)
    return found


def describe_groups(checks):
    """Tables of {file: networks' figures of --group_check}, as lines of Markdown."""
    lines = []
    for name, networks in checks.items():
        lines += ["", f"### {text(name)}", ""]
        header = (
            "groups",
            "filters",
            "network",
            "n",
            "change of the loss",
            *(
                f"{estimate}: {figure}"
                for estimate in ("sum of scores", "of single changes")
                for figure in ("relative error", "absolute error", "rank correlation")
            ),
        )
        lines += [row(header), "|---" * len(header) + "|"]
        kinds = dict.fromkeys(kind for figures in networks.values() for kind in figures["kinds"])
        sizes = [
            (kind, size)
            for kind in kinds
            for size in sorted(
                {
                    each["size"]
                    for figures in networks.values()
                    for each in figures["kinds"].get(kind, ())
                }
            )
        ]
        for (kind, size), (label, figures) in itertools.product(sizes, networks.items()):
            lines += [
                row([kind, str(size), _kind_of(label, figures), *group_cells(each)])
                for each in figures["kinds"].get(kind, ())
                if each["size"] == size
            ]
    return lines and [
        "## Do importances add up?",
        "",
        "Errors are medians over the groups. An absolute error with ≈ is the relative one times "
        "the mean change of the loss: its file is of a version that kept none.",
        *lines,
    ]


def _kind_of(label, figures):
    return {True: "penalised", False: "plain"}.get(figures.get("penalised"), label)


def group_cells(each):
    """A row of --group_check in words: n, change of the loss, and for both sums the relative and
    the absolute error and the rank correlation."""
    cells = [str(each["n"]), f"{each['change']:.2g}"]
    for estimate in ("scores", "changes"):
        rank = each[f"rank_{estimate}"]
        cells += [
            f"{each[f'error_{estimate}']:.2f}",
            absolute_error(each, estimate),
            "–" if rank is None else f"{rank:.2f}",
        ]
    return cells


def absolute_error(each, estimate):
    """The absolute error of a sum, in words; of older files, which hold none, what the relative one
    and the mean change come to."""
    known = each.get(f"gap_{estimate}")
    about = each[f"error_{estimate}"] * each["change"]
    return f"≈ {about:.2g}" if known is None else f"{known:.2g}"


def _minus(ours, theirs):
    """The differences of two {key: value} over the keys that both have."""
    return {key: ours[key] - theirs[key] for key in ours.keys() & theirs.keys()}


def interval(gaps):
    """The mean of differences, ± its standard error, and its 95% interval, in words; nothing for
    fewer than two."""
    return difference_text(Difference.of(gaps))


def difference_text(difference, mark=""):
    """A Difference in words, with the stars of its significance; nothing for None."""
    if difference is None:
        return ""
    low, high = difference.interval
    return (
        f"{difference.mean:+.1f} ± {difference.error:.1f}{mark} ({low:.1f} to {high:.1f}), "
        f"n = {difference.n}"
    )


def _details(networks):
    """A row for each network, percent and method of {network: its records}."""
    every = [record for records in networks.values() for record in records]
    settled = ["BatchNorms re-estimated"] if any(r.after_bn is not None for r in every) else []
    header = (
        "network",
        "method",
        "asked for (%)",
        "removed (%)",
        "parameters left (%)",
        "multiply-adds left (%)",
        "right after pruning",
        *settled,
        "best epoch",
        "last epoch",
        "top-5",
        "n",
    )
    lines = [row(header), "|---" * len(header) + "|"]
    for network, records in networks.items():
        cells = grouped(
            sorted(records, key=lambda r: (round(r.requested, 2), r.place)),
            lambda r: (round(r.requested, 2), r.method),
        )
        lines += [
            row(
                [
                    network,
                    method,
                    f"{percent:g}",
                    spread((r.achieved for r in found), 2),
                    spread(r.parameters_left for r in found),
                    spread(r.flops_left for r in found),
                    spread(r.after_pruning for r in found),
                    *([spread(r.after_bn for r in found)] if settled else []),
                    spread(r.best for r in found),
                    spread(r.last for r in found),
                    spread(r.top5 for r in found),
                    str(len(found)),
                ]
            )
            for (percent, method), found in cells.items()
        ]
    return lines
