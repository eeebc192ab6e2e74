"""practice.md: the tables and the plots of what practice.py has recorded."""

import json
import statistics
from dataclasses import replace

from matplotlib import pyplot
from places import HERE
from practice_rows import (
    COSTS,
    OUR_BEST,
    OUR_L1,
    PAPER_L1,
    SHARES,
    TASKS,
    THEIR_BEST,
    Row,
    Tuning,
    questions_plan,
    title_of_task,
    words_of_tuning,
)

from lab.markdown import interval, spread, table_of

PAGE = HERE / "practice.md"
MARK = "<!-- The tables below are made by practice.py. -->"


def write_page():
    """practice.md and its plots."""
    for name in TASKS:
        own = recorded(name)
        if any(content["rows"] for content in own):
            draw_curves(name, own)
    PAGE.write_text(with_tables(PAGE.read_text()))


def recorded(name):
    """The contents of the files of one task."""
    paths = sorted((HERE / "practice").glob(f"{name}_[0-9]*.json"))
    return [json.loads(path.read_text()) for path in paths]


def with_tables(text):
    """The page's text, and behind it the tables of all files in practice/."""
    found = {name: recorded(name) for name in TASKS}
    lines = [text.partition(MARK)[0].rstrip(), "", MARK, *_summary(found)]
    for name, own in found.items():
        if own:
            lines += ["", f"## {title_of_task(name, TASKS[name])}"]
        if any(content["rows"] for content in own):
            lines += ["", f"![Right after the cut](practice/{name}.png)", "", *_curve_table(own)]
        lines += _question_table(own, name)
        lines += _training_table(own)
    return "\n".join(lines).strip() + "\n"


def _summary(found):
    """What `finetune` chooses by, and what `l1` does, minus the other tool's best way."""
    lines = []
    for row, rivals, title in (
        (OUR_BEST[0], THEIR_BEST, "the better of Torch-Pruning's two"),
        (OUR_L1, THEIR_BEST[:1], "Torch-Pruning's magnitude"),
        (PAPER_L1, THEIR_BEST[:1], "Torch-Pruning's magnitude"),
    ):
        table = []
        for name, own in found.items():
            for key, gaps in sorted(_gaps(own, row, rivals).items(), reverse=True):
                budget, share, epochs = key
                left = f"{share}% of {COSTS[budget]}"
                table.append([name, left, str(epochs), _gap_text(gaps)])
        if table:
            title = f"`{row.name}` minus {title}, of the same seed:"
            lines += ["", title, "", *table_of(["", "left", "epochs", "difference"], table)]
    return lines


def _trainings(contents):
    """(seed, Row, Tuning, the record's entry) of each fine-tuning."""
    for content in contents:
        for entry in content.get("trainings", ()):
            yield content["seed"], Row(**entry["row"]), Tuning(**entry["tuning"]), entry


def _question_table(own, name):
    """What each change is worth, beside the same cut and fine-tuning without it."""
    cells = {}  # (row, tuning) -> {seed: accuracy}
    for seed, row, tuning, entry in _trainings(own):
        if entry["share"] == 25:
            cells.setdefault((row, tuning), {})[seed] = entry["top1"]
    rows = []
    for row, _share, tuning in questions_plan():
        seeds = cells.get((row, tuning), {})
        usual = (row if row in THEIR_BEST else OUR_BEST[0]), Tuning(5)
        shared = sorted(seeds.keys() & cells.get(usual, {}).keys())
        gaps = [seeds[seed] - cells[usual][seed] for seed in shared]
        if gaps:
            words = row.name + words_of_tuning(tuning)
            rows.append([words, usual[0].name, _gap_text(gaps)])
    if not rows:
        return []
    columns = ["25% of the MACs, 5 epochs", "minus, of the same seed", "difference"]
    return ["", f"What else was tried with {name}:", "", *table_of(columns, rows)]


def _gaps(own, row, rivals):
    """{(budget, share, epochs): differences of accuracy, a seed each, from the rival that is the
    best of these in the mean}."""
    cells = {}  # the same key -> {row: {seed: accuracy}}
    for seed, way, tuning, entry in _trainings(own):
        if tuning == Tuning(tuning.epochs):
            cell = cells.setdefault((way.budget, entry["share"], tuning.epochs), {})
            cell.setdefault(replace(way, budget="macs"), {})[seed] = entry["top1"]
    gaps = {}
    for key, rows in cells.items():
        theirs = [rows[rival] for rival in rivals if rival in rows]
        if row not in rows or not theirs:
            continue
        best = max(theirs, key=lambda seeds: statistics.fmean(seeds.values()))
        seeds = sorted(rows[row].keys() & best.keys())
        if seeds:
            gaps[key] = [rows[row][seed] - best[seed] for seed in seeds]
    return gaps


def draw_curves(name, contents):
    """practice/NAME.png: accuracy over the share that is removed."""
    shown = [
        *THEIR_BEST,
        *OUR_BEST,
        Row("orthoreg", "fisher", "global", "coupled"),
        Row("orthoreg", "fisher"),
        Row("orthoreg", "l1", "layer", "coupled"),
        Row("orthoreg", "l1"),
    ]
    whole = statistics.fmean(content["unpruned"] for content in contents)
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for row, marker in zip(shown, "sDo^vPX*"):
        settled = [
            [
                entry["settled"]
                for content in contents
                for entry in content["rows"]
                if Row(**entry["row"]) == row and entry["share"] == share
            ]
            for share in SHARES
        ]
        if all(settled):
            axes.plot(
                [0, *(100 - share for share in SHARES)],
                [whole, *map(statistics.fmean, settled)],
                marker=marker,
                label=f"{row.name}, n = {min(map(len, settled))}",
                linestyle="--" if row.tool == "torch-pruning" else "-",
            )
    axes.set(
        xlabel="removed multiply-adds (%)",
        ylabel="test accuracy right after the cut (%)",
        title=title_of_task(name, TASKS[name]),
    )
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(HERE / "practice" / f"{name}.png", dpi=110)
    pyplot.close(figure)


def _curve_table(contents):
    """Accuracies right after the cut with the BatchNorms re-estimated, and as they were."""
    whole = spread([content["unpruned"] for content in contents])
    cells = {}
    for content in contents:
        for entry in content["rows"]:
            key = Row(**entry["row"]), entry["share"]
            cells.setdefault(key, []).append(entry)
    rows = list(dict.fromkeys(row for row, _ in cells))

    def place(row):
        """Rows of which a share is missing come last."""
        settled = [[entry["settled"] for entry in cells.get((row, share), ())] for share in SHARES]
        return all(settled), statistics.fmean(sum(settled, []))

    columns = [f"{share}% of the MACs" for share in SHARES]
    title = (
        f"Right after the cut, nothing trained; unpruned {whole}. With BatchNorms re-estimated"
        " on 512 images, in brackets with them as they were."
    )
    table = []
    for row in sorted(rows, key=place, reverse=True):
        found = [cells.get((row, share), []) for share in SHARES]
        texts = [two_accuracies(some) for some in found]
        left = [statistics.fmean(e["parameters_left"] for e in some) for some in found if some]
        parameters = ", ".join(f"{share:.0f}" for share in left)
        table.append([row.name, *texts, parameters, str(max(map(len, found)))])
    return [title, "", *table_of(["", *columns, "parameters left (%)", "n"], table)]


def two_accuracies(entries):
    """With the BatchNorms re-estimated, and in brackets as they were."""
    if not entries:
        return ""
    settled, stale = ([entry[key] for entry in entries] for key in ("settled", "stale"))
    return f"{spread(settled)} ({spread(stale)})"


def _training_table(contents):
    """Accuracies after fine-tuning, and what they are more than the other tool's best."""
    cells = {}  # (share, Tuning.epochs) -> {name of a row: {seed: accuracy}}
    for seed, row, tuning, entry in _trainings(contents):
        key = row.budget, entry["share"], tuning.epochs
        name = row.name + words_of_tuning(tuning)
        cells.setdefault(key, {}).setdefault(name, {})[seed] = entry["top1"]
    lines = []
    for (budget, share, epochs), rows in sorted(cells.items(), reverse=True):
        ranked = sorted(rows, key=lambda name: -statistics.fmean(rows[name].values()))
        rivals = [row.name for row in THEIR_BEST]
        theirs = next((name for name in ranked if name in rivals), None)
        table = []
        for name in ranked:
            shared = rows[name].keys() & rows.get(theirs, {}).keys() if name != theirs else ()
            gaps = [rows[name][seed] - rows[theirs][seed] for seed in sorted(shared)]
            accuracy = spread(list(rows[name].values()))
            table.append([name, accuracy, _gap_text(gaps), str(len(rows[name]))])
        columns = ["", "accuracy", f"minus {theirs}" if theirs else "", "n"]
        title = f"{share}% of {COSTS[budget]}, {epochs} epochs of fine-tuning:"
        lines += ["", title, "", *table_of(columns, table)]
    return lines


def _gap_text(gaps):
    """Differences with their interval; where there is no more than one, that."""
    return interval(gaps) or ", ".join(f"{gap:+.1f}" for gap in gaps)
