"""Run the two scripts as real processes, hundreds of them in a minute.

Importing torch takes seconds, so one process imports it once, and forks itself for every command
line: a child has its own folder, output, signals and end, as if started by a shell.
"""

import atexit
import itertools
import json
import os
import runpy
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent


class Shell:
    """shell(script, *flags, cwd=...) -> returncode, stdout, stderr.

    die_at: SIGKILL itself at the n-th of the events in `_die_at`. stop: a signal to send itself at
    the n-th training step, (number, n). file_limit: the largest file it can write, in bytes.
    fresh: import the suite's modules anew, from beside the script.
    """

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )

    def __call__(self, script, *flags, cwd, **how):
        with tempfile.TemporaryDirectory() as folder:
            request = {
                "argv": [str(ROOT / script), *map(str, flags)],
                "cwd": str(cwd),
                "output": folder,
                **how,
            }
            print(json.dumps(request), file=self.server.stdin, flush=True)
            code = int(self.server.stdout.readline())
            texts = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
        return SimpleNamespace(returncode=code, stdout=texts[0], stderr=texts[1])

    def close(self):
        self.server.stdin.close()
        self.server.wait()


def _serve():
    import importlib

    for slow in (
        "sklearn.datasets",
        "torchvision.datasets",
        "lab.job",
        "lab.sweep",
        "lab.report",
        "lab.export",
        "lab.predict",
        "lab.weights",
        "eval",
    ):
        importlib.import_module(slow)
    import torch

    import config
    from conftest import short_preset

    torch.set_num_threads(1)
    config.PRESETS["test"] = short_preset(epochs=2)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _run(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(argv, cwd, output, die_at=None, stop=None, file_limit=None, fresh=False):
    code = 1
    try:
        os.chdir(cwd)
        for number, name in ((1, "stdout"), (2, "stderr")):
            handle = os.open(f"{output}/{name}", os.O_CREAT | os.O_WRONLY)
            os.dup2(handle, number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has the tests ignore
        if die_at:
            _die_at(die_at)
        if stop:
            _stop(*stop)
        if file_limit:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        if fresh:
            suite = (
                "channels",
                "common",
                "config",
                "data",
                "eval",
                "imp_estimator",
                "lab",
                "main",
                "models",
                "pruner",
                "train",
            )
            for name in [name for name in sys.modules if name.split(".")[0] in suite]:
                del sys.modules[name]
        sys.argv, sys.path[0] = argv, os.path.dirname(argv[0])
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _watch(owner, name, before=None, after=None):
    function = getattr(owner, name)

    def watched(*args, **kwargs):
        if before:
            before(*args)
        result = function(*args, **kwargs)
        if after:
            after(*args)
        return result

    setattr(owner, name, watched)


def _die_at(last):
    """Die at the n-th event: a training step, a step of the importance estimate, before a test,
    after surgery, in the middle of writing a file, before and after a file takes its place."""
    import torch

    import pruner
    import train

    events = itertools.count(1)
    if last == 10**9:  # it will not die, and says how many events there were
        atexit.register(lambda: print(next(events) - 1, file=sys.stderr))

    def event(*_):
        if next(events) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def half_written(handle):
        """As if the file had been cut short when the process died."""
        if next(events) == last:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    _watch(torch.Tensor, "backward", before=event)
    _watch(torch.autograd, "grad", before=event)
    _watch(train, "evaluate", before=event)
    _watch(pruner, "prune", after=event)
    _watch(os, "fsync", before=half_written)
    _watch(os, "replace", before=event, after=event)


def _stop(number, last):
    import torch

    steps = itertools.count(1)

    def step(*_):
        if next(steps) == last:
            os.kill(os.getpid(), number)

    _watch(torch.Tensor, "backward", before=step)


if __name__ == "__main__":
    _serve()
