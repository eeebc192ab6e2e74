"""The processes that torchrun has started, which do one job together. Without it there is one.

The first one prints and writes. What they must agree on is sent by the first (`as_first`) or
compared (`require_same`); sums over images are made sums over all processes.
"""

import hashlib
import json
import os
import re
import socket
import threading
from contextlib import contextmanager
from datetime import timedelta

from common.errors import InputError
from common.libraries import lazy

torch = lazy("torch")


def processes():
    """(number of this process, how many there are), as torchrun has started them; else (0, 1)."""
    if not {"MASTER_ADDR", "RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys():
        return 0, 1  # some clusters set some of these for every job
    number, count, _ = map(number_in, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if number >= count:
        raise InputError(
            f"RANK is {number} in the environment, and WORLD_SIZE {count}; RANK must be less"
        )
    return number, count


def number_in(name, default=""):
    """The number that torchrun has written into the environment. Raises InputError."""
    value = os.environ.get(name, default)
    if not re.fullmatch("[0-9]{1,9}", value):
        raise InputError(
            f"{name} is {value!r} in the environment, which is no number; torchrun sets it"
        )
    return int(value)


def is_first():
    """Whether this is the process that prints and writes."""
    return processes()[0] == 0


def join_processes(device):
    """Meet the processes that torchrun has started beside this one, if there are any."""
    if processes()[1] > 1 and not torch.distributed.is_initialized():
        if not 0 < number_in("MASTER_PORT") < 2**16:
            raise InputError("MASTER_PORT is no port in the environment; torchrun sets it")
        try:
            socket.getaddrinfo(os.environ["MASTER_ADDR"], None)
        except (OSError, UnicodeError) as error:
            raise InputError(
                f"MASTER_ADDR is {os.environ['MASTER_ADDR']!r} in the environment, "
                f"which cannot be found ({error})"
            ) from error
        _in_background(
            lambda: torch.distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                timeout=timedelta(minutes=30),
                device_id=device if device.type == "cuda" else None,
            )
        )


def _in_background(action):
    """Wait for what no signal would reach, so that one ends the waiting."""
    errors = []

    def act():
        try:
            action()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if errors:
        raise errors[0]


def leave_processes():
    if processes()[1] > 1:
        torch.distributed.barrier()  # none closes while another still reads
        torch.distributed.destroy_process_group()


@contextmanager
def first_alone():
    """The first process does what is inside before the others do."""
    if not is_first():
        torch.distributed.barrier()
    yield
    if processes()[1] > 1 and is_first():
        torch.distributed.barrier()


def as_first(value):
    """The plain value that the first process has, in all of them."""
    values = [value]
    if processes()[1] > 1:
        torch.distributed.broadcast_object_list(values)
    return values[0]


def require_same(what, value):
    """Raise InputError, in all processes, where they differ in a plain value."""
    count = processes()[1]
    if count == 1:
        return
    digests = [None] * count
    digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
    torch.distributed.all_gather_object(digests, digest)
    others = [number for number, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise InputError(
            f"the processes differ in {what}: {others} from the first; all must run "
            "the same code on the same images and kind of machine"
        )


def shared(batches):
    """This process's share of some batches: each batch belongs to one process."""
    number, count = processes()
    return batches[number::count] if count > 1 else batches


def sum_over_processes(*tensors):
    """Add up each tensor, in place, over all processes."""
    if processes()[1] > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
