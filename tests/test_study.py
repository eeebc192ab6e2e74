"""What the study's texts say stands in its records."""

import csv
import io
import re
import sys
from dataclasses import replace

import pytest

from common.files import to_csv
from conftest import ROOT
from lab import report

FOLDER = ROOT / "pruned_nets" / "comparison"
sys.path.insert(0, str(FOLDER))
import claim_page  # noqa: E402
import claim_records  # noqa: E402
import practice_page  # noqa: E402
import study as tables  # noqa: E402
from study_tables.claim import verdict  # noqa: E402
from study_tables.records import Study  # noqa: E402

# A figure: a mean with its standard error and stars, or a single number. Numbers in names
# (VGG-13, CIFAR-100) are none.
FIGURE = re.compile(
    r"(?<![\w.])(?<!\w[-–])(?<!\d,)[+-]?\d[\d,]*(?:\.\d+)?(?: ± \d+(?:\.\d+)?)?\**(?![\w.]*\w)"
)
# Fenced code, comments, code spans, pictures and the addresses of links.
NO_PROSE = re.compile(r"```.*?```|<!--.*?-->|`[^`]*`|!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)", re.DOTALL)
COMMON = "settings", "runs"  # tables that every section may quote


def figures(text):
    """The figures of a text, without + and without thousands' commas at their ends."""
    text = NO_PROSE.sub(" ", text.replace("\\", ""))
    return {figure.lstrip("+").rstrip(",") for figure in FIGURE.findall(" ".join(text.split()))}


def misquoted(section, made):
    """The figures of a section's sentences that its own tables lack; where it has none of its own,
    all tables of the study. made: {name of a table: its figures}."""
    own = [name for _, name, _ in tables.BLOCK.findall(section)]
    prose = figures(re.sub(r"^\d+\. ", "", tables.BLOCK.sub("", section), flags=re.MULTILINE))
    known = set().union(*(made[name] for name in ([*own, *COMMON] if own else made)))
    return sorted(prose - known)


@pytest.fixture(scope="module")
def study():
    return Study()


@pytest.fixture(scope="module")
def made(study):
    return {name: figures("\n".join(draw(study))) for name, draw in tables.TABLES.items()}


@pytest.mark.parametrize("path", tables.TEXTS, ids=lambda path: path.parent.name)
def test_the_tables_of_the_texts_are_those_of_the_records(path, study):
    text = path.read_text()
    assert tables.BLOCK.search(text)
    assert tables.with_tables(text, study) == text, "python pruned_nets/comparison/study.py"


@pytest.mark.parametrize("page", (claim_page, practice_page))
def test_the_tables_of_a_page_are_those_of_its_records(page):
    text = page.PAGE.read_text()
    script = page.PAGE.with_suffix(".py").name
    assert page.with_tables(text) == text, f"python pruned_nets/comparison/{script} report"


@pytest.mark.parametrize("name", claim_records.TASKS)
def test_weight_decay_alone_tells_the_plain_network_from_that_without_penalty(name):
    treatments = claim_records.chosen(name)
    assert treatments["plain"].decay > 0
    assert replace(treatments["plain"], decay=0) == treatments["zero"]


@pytest.mark.parametrize(
    "points, word",
    [((1.9, 2, 2.1), "**seen**"), ((-2.1, -2, -1.9), "not seen"), ((-1, 2, 3), "not seen")],
)
def test_what_was_to_count_is_seen_where_its_whole_interval_is_above_0(points, word):
    assert verdict(dict(enumerate(points))).startswith(f"{word}: ")


def test_the_sentences_of_the_study_quote_its_tables(made):
    intro, *sections = (FOLDER / "README.md").read_text().split("\n## ")
    summary = next(section for section in sections if section.startswith("In ten sentences"))
    for section in (intro, *sections):
        if not section.startswith("The images"):
            quoted = tables.BLOCK.sub("", section) if section is summary else section
            assert misquoted(quoted, made) == [], section.partition("\n")[0]


def test_the_sentences_of_the_suites_readme_quote_the_study(made):
    text = (ROOT / "README.md").read_text()
    (answer,) = re.findall(r"\n## Does it work\?.*?(?=\n## )", text, re.DOTALL)
    (method,) = re.findall(r"\*\*Which method\?\*\*.*?(?=These commands took)", text, re.DOTALL)
    for part in (answer, method):
        assert figures(part) and misquoted(tables.BLOCK.sub("", part), made) == []


def test_a_figure_that_no_table_has_is_found():
    made = {
        "settings": figures("| 10 |"),
        "runs": set(),
        "a": figures(r"| +3.5 ± 0.2\* (25) | -2.4 to 0.7 |"),
        "b": figures("| 8.1 |"),
    }
    section = "Title\n<!-- table: a -->\n| x |\n<!-- end -->\n"
    for true in (
        r"It is 3.5 ± 0.2\* (25) in `--percent=77` of VGG-13.",
        "From -2.4 to 0.7, of 10.",
        "[All](b.csv#12) of CIFAR-100's.",
    ):
        assert misquoted(section + true, made) == []
    for false, wrong in (
        ("3.5 ± 0.3", "3.5 ± 0.3"),
        ("3.5 ± 0.2", "3.5 ± 0.2"),
        ("2.4", "2.4"),
        (r"-3.5 ± 0.2\*", "-3.5 ± 0.2*"),
        ("8.1", "8.1"),
        ("80%", "80"),
    ):
        assert misquoted(f"{section}It is {false}, or so.", made) == [wrong]
    assert misquoted("No table of its own: 8.1 and 3.5 ± 0.2*.", made) == []


def test_the_report_is_made_of_the_records(study):
    """Its plots are not looked at."""
    made = [
        line for lines, _, _ in report.blocks(study.results, study.checks) for line in ["", *lines]
    ]
    written = (FOLDER / "report.md").read_text().splitlines()
    start = next(i for i, line in enumerate(written) if line.startswith("## "))
    kept = []
    for line in written[start - 1 : -2]:  # a picture has an empty line before it
        if line.startswith("!["):
            assert kept.pop() == ""
        else:
            kept.append(line)
    assert kept == made, "python eval.py --report=pruned_nets/comparison"
    with open(FOLDER / "report.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == list(
        csv.reader(io.StringIO(to_csv(list(map(report.csv_row, study.results))).decode()))
    )
