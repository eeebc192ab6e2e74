"""The tables of the study, made of its records: a module for each part of the text.

TABLES has them by the name that the mark in the text has.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent  # the study
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from study_tables import (  # noqa: E402, F401
    claim,
    costs,
    groups,
    leads,
    penalty,
    published,
    rates,
    runs,
    ticket,
    training,
)
from study_tables.cells import TABLES  # noqa: E402

__all__ = ["HERE", "ROOT", "TABLES"]
