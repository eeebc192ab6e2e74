"""Work that threads do ahead of who needs it."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice


@contextmanager
def readers(count):
    """Threads that read files. Nobody waits for their end, since a file may never answer."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def ahead(pool, function, items, most):
    """Futures of `function(item)` for all items, in order, at most `most` of them begun and not yet
    taken."""
    items, begun = iter(items), deque()
    begun.extend(pool.submit(function, item) for item in islice(items, most))
    while begun:
        first = begun.popleft()
        begun.extend(pool.submit(function, item) for item in islice(items, 1))
        yield first
