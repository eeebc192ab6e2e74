"""Work that threads do ahead of who needs it."""
from collections import deque
from itertools import islice


def ahead(pool, function, items, most):
    """Futures of `function(item)` for all items, in order, at most `most` of them begun and not yet
    taken."""
    items, begun = iter(items), deque()
    begun.extend(pool.submit(function, item) for item in islice(items, most))
    while begun:
        first = begun.popleft()
        begun.extend(pool.submit(function, item) for item in islice(items, 1))
        yield first
