"""Seeds that follow from what they are for."""
import hashlib


def seed_of(*key):
    """A 63-bit seed that depends on every part of `key` (numbers and strings)."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1
