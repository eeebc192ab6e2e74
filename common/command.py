"""How a command ends: exit codes, one line for what went wrong."""

import os
import signal
import sys
import threading
import time
import traceback
from contextlib import nullcontext, redirect_stdout, suppress

from common.errors import Diverged, InputError
from common.processes import processes
from common.signals import SIGNALS, answered
from common.terminal import Escaping, one_line


def run_command(prog, body):
    """Run `body()`; return the exit code: 0 done, 2 bad input, 3 diverged, 130 interrupted.

    The signals of SIGNALS end it as KeyboardInterrupt. What ends it is said in one line. With
    several processes the first reports; another one reports only if it is the one that failed.
    """
    try:
        number, count = processes()
    except InputError as error:
        print(f"{prog}: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    if number:
        sys.stdout, prog = open(os.devnull, "w"), f"{prog}, rank {number} of {count}"
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        with redirect_stdout(Escaping(sys.stdout)) if sys.stdout else nullcontext():
            code, line = _outcome(body)
    except Exception:
        if count > 1:  # do not wait for the other processes, who may be waiting for this one
            traceback.print_exc()
            _flush()
            os._exit(1)
        raise
    if code and (not number or (code != 130 if _have_met() else os.environ["LOCAL_RANK"] == "0")):
        print(f"{prog}: {one_line(line)}", file=sys.stderr)
    return code


def _outcome(body):
    """(exit code, what to say of it) of `body()`; what nobody has foreseen is raised."""
    try:
        with answered():
            body()
        if sys.stdout:  # None where the caller closed it
            sys.stdout.flush()
        return 0, ""
    except InputError as error:
        return 2, f"error: {error}"
    except Diverged as error:
        return 3, f"diverged: {error}"
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchvision", "numpy", "tqdm"):
            raise
        return 2, f"error: {error.name} is missing; ./requirements.sh installs it"
    except KeyboardInterrupt as error:
        return 130, f"interrupted: {error}" if str(error) else "interrupted"
    except (MemoryError, RuntimeError) as error:
        if _out_of_memory(error):
            return 2, (
                "error: out of memory; a smaller --batch_size, --image_size or --width needs less"
            )
        lost = any(text in str(error) for text in ("gloo", "NCCL", "Connection"))
        if lost and processes()[1] > 1:
            return 1, f"stopped (another process may have ended first; see its lines): {error}"
        raise
    except OSError as error:
        try:
            sys.stdout.flush()
        except (AttributeError, OSError, ValueError):  # what is left in it has nowhere to go
            with suppress(AttributeError, OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has gone, as in `... | head`
            return 130, "interrupted: nobody reads the output any more"
        return 2, f"error: {error}"


def _flush():
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # closed
            stream.flush()


def exit_with(code):
    """End a script. A signal changes nothing any more, however long the libraries take to end."""
    with suppress(InputError):
        if code and processes()[1] > 1:
            _flush()
            os._exit(code)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if code and _is_a_thread_left():
        _flush()
        os._exit(code)
    sys.exit(code)


def _is_a_thread_left():
    """Whether a thread does not end soon: the file that it reads may never answer."""
    until = time.monotonic() + 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0, until - time.monotonic()))
            if thread.is_alive():
                return True
    return False


def _out_of_memory(error):
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(text in str(error) for text in ("can't allocate memory", "not enough memory"))
    )


def _have_met():
    return "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized()
