"""Resume files: all that is needed to go on with a run, and to end with the same bits."""

import random
from dataclasses import dataclass, field

import numpy as np
import torch

from channels.groups import filter_groups, load_weights
from common.copies import copy_of
from common.errors import InputError
from common.files import to_json, write_atomically
from common.schema import check, check_fields
from lab.checkpoint import NOT_AS_WRITTEN, network_content, rebuild, to_bytes
from lab.experiment import comparable
from lab.reader import is_plain, read_safely
from lab.record import Epoch, Figures, Pruning, Record
from lab.steps import Start, start_of
from train import Training, epoch_sums


@dataclass
class State:
    """How far a run has come. With the network it is what the resume file holds.

    start: where the unpruned network comes from. done: steps of the job. records: of the networks
    that are finished, each a Record. The others are of the round under way: scores, layer ->
    tensor; how it was pruned, a lab.record.Pruning; teacher, the network that the round began with,
    where its answers are learnt; phase -> its seconds; name of a training -> Training.
    """

    start: Start
    done: int = 0
    records: list = field(default_factory=list)
    scores: dict | None = None
    pruning: Pruning | None = None
    teacher: object = None
    seconds: dict[str, float] = field(default_factory=dict)
    trained: dict = field(default_factory=dict)


def write_resume_file(path, network, state, identity):
    """Write all that is needed to go on, atomically. identity: entries that tell a command from
    another one, nested dicts of plain values."""
    kind, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    stored = {
        "begin": str(state.start),
        **{name: value for name, value in vars(state).items() if name != "start"},
        "records": [record.json() for record in state.records],
        "trained": {name: vars(training) for name, training in state.trained.items()},
        "teacher": state.teacher and network_content(state.teacher),
    }
    write_atomically(
        {
            path: to_bytes(
                {**network_content(network), **identity, "random": states, "state": stored}
            )
        }
    )


def read_resume_file(path, identity):
    """(network on the CPU, State) of a resume file; the random generators go on from theirs.

    Raises InputError where it is damaged, or of another command: then it names the difference.
    """
    content = read_safely(path)
    try:
        if not all(is_plain(content.get(key)) for key in identity):
            raise TypeError("what identifies the command is not plain")
        content["flags"] = comparable(content["flags"])
        change = next(
            filter(
                None,
                (
                    _difference(content.get(key), now, _SPOKEN.get(key, key))
                    for key, now in identity.items()
                ),
            ),
            None,
        )
        if change:
            raise InputError(
                f"{path} belongs to another command: {change} now; give the old "
                "value to go on, or leave out --resume=True to begin anew"
            )
        network = rebuild(content, identity["flags"].get("model"))
        state = _read_state(content["state"])
        if state.teacher:
            state.teacher = rebuild(
                {**state.teacher, "flags": content["flags"]}, identity["flags"].get("model")
            )
        for training in state.trained.values():
            _check_states(training, network)
        states = content["random"]
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["torch"])
        if len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states["cuda"])
        return network, state
    except NOT_AS_WRITTEN as error:
        raise damaged(path) from error


def damaged(path):
    return InputError(f"{path} is damaged; leave out --resume=True to begin anew")


def read_progress(path):
    """(the Start of a run, how many of its steps are done) by a resume file. Raises InputError."""
    content = read_safely(path)
    try:
        state = _read_state(content["state"])
    except NOT_AS_WRITTEN as error:
        raise damaged(path) from error
    return state.start, state.done


def _read_state(stored):
    check_fields(State, stored, "state")
    start = start_of(stored.pop("begin"))
    records = [Record.read(record) for record in stored["records"]]
    trained = {name: _read_training(training, name) for name, training in stored["trained"].items()}
    return State(**{**stored, "start": start, "records": records, "trained": trained})


def _read_training(stored, name):
    check_fields(Training, stored, name)
    check(list[Epoch], stored["history"], f"{name}.history")
    for epoch in stored["history"]:
        images = "validation" if "validation" in epoch else "test"
        missing = {"epoch", "lr", "seconds", "train", images} - epoch.keys()
        if missing:
            raise ValueError(f"an epoch of {name} has no {', '.join(missing)}")
        check(float, epoch["train"].get("top1"), f"{name}, train.top1")
    for figures in filter(lambda figures: figures is not None, (stored["best"], stored["last"])):
        check(Figures, figures, f"{name}.best or last")
        check(int, figures.get("epoch"), f"{name}, epoch of best or last")
    for entry, start in epoch_sums().items() if stored["sums"] is not None else ():
        kind = (torch.Tensor, float) if type(start) is float else int
        if not isinstance(stored["sums"].get(entry), kind):
            raise ValueError(f"{name}, sums.{entry} is no number")
    return Training(**stored)


def _check_states(training, network):
    """Raise where a training's tensors do not fit the network: load all of them into copies."""
    twin = copy_of(network)
    if training.weights is not None:
        load_weights(twin, training.weights)
    if training.optimizer is not None:
        adam = "betas" in training.optimizer["param_groups"][0]
        optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(twin.parameters(), lr=1.0)
        optimizer.load_state_dict(training.optimizer)
        for weights, known in optimizer.state.items():
            if any(
                isinstance(value, torch.Tensor) and value.shape not in (weights.shape, ())
                for value in known.values()
            ):
                raise ValueError("what an optimizer remembers does not fit the network")
    if training.scaler:
        check(float, training.scaler.get("scale"), "scale")
        check(int, training.scaler.get("_growth_tracker"), "_growth_tracker")
    filters = sum(len(group.channels) for group in filter_groups(network))
    for mask in training.masks:
        if mask.dtype != torch.bool or mask.shape != (filters,):
            raise ValueError("a mask does not fit the network")


_SPOKEN = {
    "flags": "--",
    "schedule": "in config.py, ",
    "fingerprint": "the fingerprint of the images",
}


def _difference(old, new, name):
    """The first difference of two nested dicts, in words; None where there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        changes = (
            _difference(
                old.get(key),
                new.get(key),
                f"{name}{key}" if name in _SPOKEN.values() else f"{name}.{key}",
            )
            for key in {**new, **old}
        )
        return next(filter(None, changes), None)
    return None if to_json(old) == to_json(new) else f"{name} was {old!r} and is {new!r}"
