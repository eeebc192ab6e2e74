"""The results below a folder, compared: report.md and its plots."""
import html
import json
import os
import re
import statistics
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
from lab.record import GROUPS_IN, JOBS, by_network, grouped, read_result
from lab.tables import budget_text

LARGEST = 50_000_000  # bytes of a result; one of 500 epochs has 1 MB
# Half a 95% interval in standard errors: 97.5% points of Student's t distribution with 1 to 10
# degrees of freedom. The last serves for more, too, where it is a little wider than needed.
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
MOST = 200_000  # files and folders that are looked at; a comparison has hundreds


def files_below(folder, suffix, most):
    """The files below a folder whose names end so, sorted; links are not followed. Raises
    InputError where it holds more than `most` files and folders."""
    found, count = [], 0
    for place, folders, names in os.walk(folder):
        count += len(folders) + len(names)
        if count > most:
            raise InputError(f"--report={folder} holds more than {most:,} files; name the folder "
                             "that the results are in")
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
        run_in = parts[:parts.index("pruned_nets")] if "pruned_nets" in parts else parts[:-1]
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
        raise InputError(f"--report={folder}: no results below it; main.py writes a .json beside "
                         "each pruned network")
    if device:
        timed = [with_time(record, device, model) for record, _ in progress(
            results, "measuring networks")]
        results = [(record, run_in) for (record, _), (_, run_in) in zip(timed, results)]
        reasons = [why for _, why in timed if why]
        if reasons:
            print(f"Not timed: {len(reasons)} of {counted(len(timed), 'network')}, the first since "
                  f"{printable(reasons[0])}")
    sections = grouped(results, lambda result: (
        result[1], result[0].data, result[0].job, result[0].recipes,
        result[0].flag("budget")))
    lines, written, pyplot = ["# Comparison of pruning methods"], [], plots.load_pyplot()
    for number, key in enumerate(sorted(sections), 1):
        records = [record for record, _ in sections[key]]
        lines += ["", _title(*key), "", *describe_section(records)]
        suffix = f"_{number}" if len(sections) > 1 else ""
        for name, caption in plots.plot_section(pyplot, records, folder, suffix) if pyplot else ():
            lines += ["", f"![{caption}]({name})"]
            written.append(name)
    environments = {text(f"{e['device']}, torch {e['torch']}, Python {e['python']}")
                    for e in (record.environment for record, _ in results)}
    lines += ["", f"{len(results)} results; {'; '.join(sorted(environments))}.", ""]
    try:
        write_atomically({Path(folder) / "report.md": "\n".join(lines).encode(),
                          Path(folder) / "report.csv": to_csv(list(map(csv_row, results)))})
    except UnicodeError as error:
        raise InputError(f"--report={folder}: {error}") from error
    print("\n".join(lines))
    plotted = f" and {len(written)} plots" if written else ""
    print(f"Written: {Path(folder) / 'report.md'}, report.csv{plotted}")
    for paths, what in (others, "that hold no result"), (copies, "that are copies of others"):
        if paths:
            print(f"Left out: {len(paths)} .json files {what}, the first is "
                  f"{printable(str(paths[0]))}")


def with_time(record, device, model=None):
    """(a record with its network's time for a batch, ""), or (the record, why it has none)."""
    try:
        network, known = load_checkpoint(record.file, model)
        if not known.image_size:
            raise InputError(f"{record.file} does not say for images of what size it is")
        clock = Clock(network, known.image_size, DEFAULTS["latency_batch"], device)
        times = list(clock.saved_by(network.to(device), 1.0).milliseconds)
    except InputError as error:
        return record, str(error)
    return replace(record, pruning={**record.pruning, "milliseconds": times}), ""


def csv_row(result):
    """A result as a flat dict, a line of report.csv."""
    record, run_in = result
    words = {"folder": run_in, "data": record.data, "job": record.job,
             "preset": record.recipes, "network": record.network, "method": record.method}
    now, unpruned = (record.pruning or {}).get("milliseconds") or (None, None)
    return {**{name: printable(str(word)) for name, word in words.items()},
            "seed": record.flags["seed"], "budget": record.flag("budget"),
            "requested_percent": record.requested, "achieved_percent": record.achieved,
            "parameters_left_percent": record.parameters_left,
            "flops_left_percent": record.flops_left, "after_pruning": record.after_pruning,
            "after_pruning_bn": record.after_bn,
            "best": record.best, "last": record.last, "top5": record.top5,
            "milliseconds": now, "unpruned_milliseconds": unpruned}


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


def describe_section(records):
    """The tables of one comparison, as lines of Markdown."""
    seeds = sorted({r.flags["seed"] for r in records})
    chosen = _chosen(records)
    over = (f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1
            else f"seed {seeds[0]}")
    lines = [f"Test accuracy (%) of the {chosen}; {over}. In brackets: multiply-adds left (%).", ""]
    unlike = _unlike(records)
    if unlike:
        lines += [f"**These results also differ in {', '.join(map(text, unlike))}.**", ""]
    networks = by_network(records)
    for network, own in networks.items():
        lines += [_before_line(network, own), "", *_accuracies(network, own, seeds), ""]
    differences = [line for network, own in networks.items()
                   for line in _differences(network, own)]
    if differences:
        lines += ["Differences in accuracy between runs of one seed: mean ± standard error (95% "
                  "interval of a t-test over seeds, not corrected for the number of comparisons).",
                  "", *differences]
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
    unlike = [f"--{name}" for name in DEFAULTS if name not in may_differ and len(
        {json.dumps(r.flag(name)) for r in records if not (name in pruned and r.control)}) > 1]
    # What is held out for validation depends on the seed.
    if not unlike and _several(records, lambda r: r.flag("seed"), lambda r: r.fingerprint):
        unlike = ["--data_path"]
    if not unlike and _several(records, lambda r: (r.model, r.variant),
                               lambda r: json.dumps(r.schedule)):
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
    return f"Before pruning, {text(network)}: " + "; ".join(
        f"{kind} {spread(b.best for b in bases.values())}, last epoch "
        f"{spread(b.last for b in bases.values())} (n = {len(bases)})"
        for kind, bases in kinds.items()) + "."


def _accuracies(network, records, seeds):
    """A table with a row for each method and a column for each percent."""
    cells, columns, methods = _cells(records)

    def entry(found):
        if not found:
            return "–"
        cost = statistics.mean(r.flops_left for r in found)
        missing = f", n = {len(found)}" if len(found) < len(seeds) else ""
        return f"{spread(r.best for r in found)} ({cost:.0f}{missing})"

    return [row([network, *map(_removed, columns)]), "|---" * (len(columns) + 1) + "|",
            *(row([method, *(entry(cells.get((method, column), [])) for column in columns)])
              for method in methods)]


def _cells(records):
    """({(method, percent removed; None of an unpruned control): its records}, the percents, with
    None where there is one, the methods), in the order of tables."""
    cells = grouped(records, lambda r: (
        r.method, None if r.control == "unpruned" else round(r.requested, 2)))
    percents = {percent for _, percent in cells}
    return (cells, [*sorted(percents - {None}), *({None} & percents)],
            list(grouped(sorted(records, key=lambda r: r.place), lambda r: r.method)))


def _removed(percent):
    return "nothing removed" if percent is None else f"{percent:g}% removed"


def _differences(network, records):
    """A table of differences between runs of one seed: the first method minus each other one, the
    same of their controls, and each method minus its own controls. It leaves out what has fewer
    than two seeds."""
    cells, columns, _ = _cells(records)
    gaps = _gaps(records, cells)
    table = {names: [interval([gap for (column, _), gap in each.items() if column == shown])
                     for shown in columns] for names, each in gaps.items()}
    table = {names: line for names, line in table.items() if any(line)}
    filled = [i for i in range(len(columns)) if any(line[i] for line in table.values())]
    return table and [row([network, "minus", *(_removed(columns[i]) for i in filled)]),
                      "|---" * (len(filled) + 2) + "|",
                      *(row([*names, *(line[i] for i in filled)]) for names, line in table.items()),
                      ""]


def _gaps(records, cells):
    """{(name of what is compared, of what it is compared with): {(percent removed, seed): the
    difference}} of the records in cells."""
    best = {}  # method -> {(percent removed, seed): accuracy}
    for (method, percent), found in cells.items():
        best.setdefault(method, {}).update(
            {(percent, r.flags["seed"]): r.best for r in found if r.finished})
    ordered = sorted(records, key=lambda r: r.place)
    unpruned = {r.method: r.unpruned_method for r in ordered if not r.control}
    scratch = {r.variant: r.method for r in ordered if r.control == "scratch"}
    lost = {}  # method -> the same minus its unpruned network
    for method, control in unpruned.items():
        whole = {seed: accuracy for (_, seed), accuracy in best.get(control, {}).items()}
        lost[method] = {(percent, seed): accuracy - whole[seed]
                        for (percent, seed), accuracy in best[method].items() if seed in whole}

    gaps = {}
    for found in grouped(ordered, lambda r: r.control).values():
        first, *others = dict.fromkeys(r.method for r in found)
        for other in others:
            gaps[first, other] = _minus(best[first], best[other])
            if unpruned.get(first) != unpruned.get(other):
                gaps[first, f"{other}, each minus its unpruned network"] = _minus(
                    lost[first], lost[other])
    for method, control in unpruned.items():
        gaps[method, control] = lost[method]
        if method in scratch:
            gaps[method, scratch[method]] = _minus(best[method], best[scratch[method]])
    return gaps


def _minus(ours, theirs):
    """The differences of two {key: value} over the keys that both have."""
    return {key: ours[key] - theirs[key] for key in ours.keys() & theirs.keys()}


def interval(gaps):
    """The mean of differences, ± its standard error, and its 95% interval, in words; nothing for
    fewer than two."""
    if len(gaps) < 2:
        return ""
    mean = statistics.mean(gaps)
    error = statistics.stdev(gaps) / len(gaps) ** .5
    reach = STUDENT[min(len(gaps) - 1, len(STUDENT)) - 1] * error
    return f"{mean:+.1f} ± {error:.1f} ({mean - reach:.1f} to {mean + reach:.1f}), n = {len(gaps)}"


def _details(networks):
    """A row for each network, percent and method of {network: its records}."""
    every = [record for records in networks.values() for record in records]
    settled = ["BatchNorms re-estimated"] if any(r.after_bn is not None for r in every) else []
    header = ("network", "method", "asked for (%)", "removed (%)", "parameters left (%)",
              "multiply-adds left (%)", "right after pruning", *settled, "best epoch", "last epoch",
              "top-5", "n")
    lines = [row(header), "|---" * len(header) + "|"]
    for network, records in networks.items():
        cells = grouped(sorted(records, key=lambda r: (round(r.requested, 2), r.place)),
                        lambda r: (round(r.requested, 2), r.method))
        lines += [row([
            network, method, f"{percent:g}", spread((r.achieved for r in found), 2),
            spread(r.parameters_left for r in found), spread(r.flops_left for r in found),
            spread(r.after_pruning for r in found),
            *([spread(r.after_bn for r in found)] if settled else []),
            spread(r.best for r in found),
            spread(r.last for r in found), spread(r.top5 for r in found), str(len(found))])
                  for (percent, method), found in cells.items()]
    return lines
