"""Signals end a command as KeyboardInterrupt: where it may end, in words, never in silence."""

import signal
import sys
import threading
import time
from contextlib import contextmanager

# Ctrl-C, kill, a cluster's warning before it kills, and a terminal that was closed.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)
]  # not on Windows
PATIENCE = 3  # seconds in which a second signal does not disturb the answer to the first
AGAIN = 0.05  # seconds after which a signal that nobody could see comes again

# .depth: of uninterrupted blocks; .signal: one came that has not been raised yet, or was raised in
# vain; .last: when one came
_inside = threading.local()


@contextmanager
def answered():
    """SIGNALS raise KeyboardInterrupt inside, at the end of an `uninterrupted` block."""

    def interrupt(number, _frame):
        if not _inside.signal and time.monotonic() - _inside.last < PATIENCE:
            return  # the last one is being answered
        _inside.last = time.monotonic()
        _inside.signal = bool(getattr(_inside, "depth", 0))
        if not _inside.signal:
            raise KeyboardInterrupt

    def ignored(unraisable):
        """Python ignores what is raised while an object is taken away, as a generator that waits
        for its threads. A signal that came just then comes again."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
        elif threading.current_thread() is threading.main_thread():
            _inside.signal = True
            again = threading.Timer(AGAIN, _send, [next(iter(previous))])
            again.daemon = True
            again.start()

    _inside.signal, _inside.last, previous = False, -PATIENCE, {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.getsignal(number) for number in SIGNALS}
        previous = {
            number: handler for number, handler in previous.items() if handler is not signal.SIG_IGN
        }  # which a shell sets for background commands
    for number in previous:
        signal.signal(number, interrupt)
    before, sys.unraisablehook = sys.unraisablehook, ignored
    try:
        yield
        _raise_unanswered()
    finally:
        sys.unraisablehook = before
        for number, handler in previous.items():  # further ones must not disturb the last line
            signal.signal(number, handler if _inside.last < 0 else signal.SIG_IGN)
        _inside.signal, _inside.last = False, -PATIENCE


def _send(number):
    """Send this process a signal, which ends a wait of the main thread where there is one."""
    if hasattr(signal, "pthread_kill"):  # not on Windows
        signal.pthread_kill(threading.main_thread().ident, number)
    else:
        signal.raise_signal(number)


def raise_pending():
    """Raise KeyboardInterrupt where a signal came and could not be raised."""
    if not getattr(_inside, "depth", 0) and getattr(_inside, "signal", False):
        _inside.signal = False
        raise KeyboardInterrupt


def _raise_unanswered():
    """Raise KeyboardInterrupt where a signal came and nothing has ended: it was raised in a library
    that lets all errors pass."""
    if getattr(_inside, "last", -PATIENCE) >= 0:
        raise KeyboardInterrupt


@contextmanager
def explained(words):
    """A signal that comes inside, and is not explained further inside, is explained in words: a
    text, or a function that gives it."""
    try:
        yield
        _raise_unanswered()
    except BaseException as error:
        if not _is_signal(error):
            raise
        said = str(error) if isinstance(error, KeyboardInterrupt) else ""
        raise KeyboardInterrupt(said or (words() if callable(words) else words)) from error


def _is_signal(error):
    """Whether a signal was raised, or what a library has made of one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


@contextmanager
def uninterrupted():
    """What is inside is done wholly or not at all: a signal waits for its end."""
    _inside.depth = getattr(_inside, "depth", 0) + 1
    try:
        yield
    finally:
        _inside.depth -= 1
    raise_pending()
