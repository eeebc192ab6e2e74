"""The tables of the study, made of its records.

    python pruned_nets/comparison/study.py      # write them into the two texts anew

README.md beside this file and the README.md of the suite hold each table between two marks, which
name a function of study_tables/. What their sentences quote must stand in one of these tables: a
test looks for it (tests/README.md says how to write one).
"""

import re

from places import HERE, ROOT
from study_tables import TABLES
from study_tables.records import Study

from common.files import write_atomically

TEXTS = HERE / "README.md", ROOT / "README.md"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text, study):
    """A text with the tables between its marks made anew."""

    def made(block):
        start, name, end = block.groups()
        return start + "\n".join(TABLES[name](study)) + f"\n{end}"

    return BLOCK.sub(made, text)


def main():
    study = Study()
    write_atomically({path: with_tables(path.read_text(), study).encode() for path in TEXTS})


if __name__ == "__main__":
    main()
