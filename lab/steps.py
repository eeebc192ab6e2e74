"""The steps of a job: what each kind of them is, and where a job starts.

To add a step, write one function under `@step(...)`, and let a drive of main.py give it to
`job.step`; resume, --print_config and the list of output files know it then.
"""

from collections.abc import Callable
from dataclasses import dataclass


def _shows_nothing(job, phase, number):
    return {}


@dataclass(frozen=True)
class Action:
    """A kind of step.

    run      (job, phase and number where it has them), which does it
    trains   whether it is a training, which keeps the job's state itself, after every epoch
    writes   whether it writes the network's file
    records  whether a network is recorded by it
    shows    (a job that only lists its steps, phase, number) -> what --print_config shows of it,
             name -> value
    """

    run: Callable
    trains: bool = False
    writes: bool = False
    records: bool = False
    shows: Callable = _shows_nothing

    @property
    def title(self):
        return self.run.__name__.replace("_", " ")


def step(**about):
    """Make the function below a kind of step; see `Action`."""

    def declare(run):
        return Action(run, **about)

    return declare


@dataclass(frozen=True)
class Step:
    """A step of a job. phase: of a schedule in config.py. number: of the round, 0 before any."""

    action: Action
    phase: str | None = None
    number: int = 0


@dataclass(frozen=True)
class Start:
    """Where the unpruned network comes from: the phase to load, or None, and those to train."""

    load: str | None
    train: tuple[str, ...]

    def __str__(self):
        """As in "load base, train ortho"; resume files hold it so."""
        loaded = [f"load {self.load}"] if self.load else []
        return ", ".join([*loaded, *(f"train {phase}" for phase in self.train)])


STARTS = (
    Start("base", ()),
    Start(None, ("base",)),
    Start("ortho", ()),
    Start(None, ("ortho",)),
    Start("base", ("ortho",)),
    Start(None, ("base", "ortho")),
)


def start_of(text):
    """The Start that a text says. Raises ValueError where it says none."""
    for start in STARTS:
        if str(start) == text:
            return start
    raise ValueError(f"{text!r} is no start of a job")
