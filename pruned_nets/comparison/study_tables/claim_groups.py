"""Do importances add up in the narrow networks? What claim.py has recorded of groups of filters."""

import claim_records
from claim_records import MEASURES

from lab.comparison import minus
from lab.groups import KINDS as GROUP_KINDS
from lab.significance import Difference
from study_tables.cells import differences, lines_of, table
from study_tables.claim import titles_of, with_intervals

SIZES = claim_records.SIZES[1:]


def gaps_of(results, other, groups, size, figure):
    """{seed: what the penalised network has more of a figure than another kind}"""
    return minus(*(results.of_groups(kind, size, figure, groups) for kind in ("penalised", other)))


@table
def claim_errors(study):
    """Relative errors of random groups, penalised minus λ = 0, in points."""

    def points(results, *key):
        gaps = gaps_of(results, "zero", *key)
        return {seed: 100 * gap for seed, gap in gaps.items()}

    rows = {
        f"{words}, {groups}: {size} filters": [
            points(results, groups, size, f"error_{estimate}") for results in study.claims
        ]
        for estimate, words in claim_records.ESTIMATES.items()
        for groups in (claim_records.RANDOM, claim_records.WITHIN)
        for size in SIZES
    }
    cells, count = differences(rows, study.claims, usual=len(claim_records.SEEDS))
    cells = with_intervals(cells, rows)
    return lines_of(["points of relative error", *titles_of(study)], cells, count)


@table
def claim_groups(study):
    """How often the penalised network is seen to be better, and worse."""
    rows = []
    for groups in GROUP_KINDS.values():
        for estimate, words in claim_records.ESTIMATES.items():
            cells = [
                seen(study, other, groups, f"{measure}_{estimate}")
                for other in ("zero", "plain")
                for measure in MEASURES
            ]
            rows.append([groups, words, *cells])
    heads = [
        f"beside {other}: {measure}"
        for other in ("λ = 0", "plain")
        for measure in MEASURES.values()
    ]
    return lines_of(["groups", "", *heads], rows)


def seen(study, other, groups, figure):
    """ "5, 0 of 7": of the networks and sizes, in how many the penalised one is seen to be better,
    and to be worse."""
    each = [
        gaps_of(results, other, groups, size, figure) for results in study.claims for size in SIZES
    ]
    found = [Difference.of(gaps.values()).interval for gaps in each if len(gaps) > 1]
    higher = sum(low > 0 for low, _ in found)
    lower = sum(high < 0 for _, high in found)
    better, worse = (higher, lower) if figure.startswith("rank") else (lower, higher)
    return f"{better}, {worse} of {len(found)}"
