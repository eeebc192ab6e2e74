"""Seeds that follow from what they are for."""

import hashlib
import random
from contextlib import contextmanager

from common.libraries import lazy

np, torch = lazy("numpy"), lazy("torch")


def seed_of(*key):
    """A 63-bit seed that depends on every part of `key` (numbers and strings)."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


@contextmanager
def forked_random_state():
    """Inside, any random numbers may be drawn; afterwards all generators go on as if none were."""
    states = random.getstate(), np.random.get_state()
    try:
        used = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=used):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
