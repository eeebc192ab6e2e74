"""What differences over few seeds can say: intervals, t-tests, Holm's correction, power."""

import math
import statistics
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

LEVEL = 0.05  # of all tests


@dataclass(frozen=True)
class Difference:
    """The mean of differences, its standard error, and their number."""

    mean: float
    error: float
    n: int

    @classmethod
    def of(cls, gaps):
        """The Difference of two differences or more; None for fewer."""
        gaps = list(gaps)
        if len(gaps) < 2:
            return None
        return cls(statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5, len(gaps))

    @property
    def p(self):
        """The p-value of a two-sided t-test for a mean of 0. Differences that are all equal, as two
        roundings can be, leave no spread to test by: 1."""
        if self.error < 1e-9:
            return 1.0
        return t_outside(abs(self.mean) / self.error, self.n - 1)

    @property
    def interval(self):
        """The ends of its 95% interval."""
        reach = t_critical(self.n - 1) * self.error
        return self.mean - reach, self.mean + reach

    def detectable(self, power=0.8):
        """The true mean that such a test finds significant in `power` of all repetitions, if the
        differences spread as these do."""
        return _shift(self.n - 1, power) * self.error


def t_outside(t, freedom):
    """The chance that Student's t lies beyond ±t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / freedom**0.5)
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    total, term = 0.0, cosine if odd else 1.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= cosine**2 * (2 * k - 1 + odd) / (2 * k + odd)
    inside = sine * total
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return max(0.0, 1 - inside)


@lru_cache
def t_critical(freedom):
    """What Student's t exceeds in size with a chance of LEVEL."""
    return _root(lambda t: LEVEL - t_outside(t, freedom))


@lru_cache
def _shift(freedom, power):
    """By how many standard errors the mean must differ from 0 to be found with that chance."""
    return _root(lambda shift: _power(shift, freedom) - power)


def _power(shift, freedom, steps=4000, widest=8.0):
    """The chance that a t shifted by so many standard errors is significant.

    It is an integral over the estimated spread s, in units of the true spread. The square of s
    times `freedom` is chi-squared. steps: of the sum that approximates it. widest: the largest s.
    """
    normal, critical = statistics.NormalDist(), t_critical(freedom)
    half = freedom / 2
    log_scale = math.log(2) + half * math.log(half) - math.lgamma(half)
    total = 0.0
    for i in range(steps):
        s = widest * (i + 0.5) / steps
        density = math.exp(log_scale + (freedom - 1) * math.log(s) - half * s * s)
        total += density * (normal.cdf(shift - critical * s) + normal.cdf(-shift - critical * s))
    return total * widest / steps


def _root(rising):
    """Where a rising function of a positive number is 0."""
    low, high = 0.0, 1.0
    while rising(high) < 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return high


def stars(differences):
    """The marks of {key: a Difference, or None}: {key: mark}.

    A mark is "**" where the difference is significant also after Holm's correction for the number
    of differences, "*" where it is significant by itself, and "" otherwise.
    """
    marks = dict.fromkeys(differences, "")
    p_values = {key: difference.p for key, difference in differences.items() if difference}
    holds = True
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=itemgetter(1))):
        holds = holds and p <= LEVEL / (len(p_values) - rank)  # Holm 1979
        if holds:
            marks[key] = "**"
        elif p < LEVEL:
            marks[key] = "*"
    return marks
