"""The tables of the study, made of its records: a module for each part of the text.

TABLES has them by the name that the mark in the text has.
"""

from study_tables import (  # noqa: F401
    claim,
    claim_groups,
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
from study_tables.cells import TABLES

__all__ = ["TABLES"]
