"""Run the scripts as real processes, hundreds of them in a minute.

Importing torch takes seconds, so one process imports everything once and forks itself for every
command line: a child has its own folder, environment, output, signals and end, as if started by a
shell.
"""

import atexit
import itertools
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

# What follows is not used here: children find it imported.
import filelock  # noqa: F401
import PIL.Image
import sklearn.datasets  # noqa: F401
import torch
import torchvision.datasets  # noqa: F401

import config
import eval as measure  # noqa: F401
import lab.export  # noqa: F401
import lab.job  # noqa: F401
import lab.predict  # noqa: F401
import lab.report  # noqa: F401
import lab.sweep  # noqa: F401
import lab.weights  # noqa: F401
import pruner
import train

PIL.Image.init()  # which imports a module for each format

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SUITE = {path.stem for path in ROOT.glob("*.py")} | {
    path.parent.name for path in ROOT.glob("*/__init__.py")
}
CONTEXT = multiprocessing.get_context("forkserver")


class Shell:
    """shell(script, *flags, cwd=...) -> returncode, stdout, stderr; `start` does not wait for it.

    environment: all its variables, instead of those of the tests. die_at: SIGKILL itself at the n-th of the
    events in `_at_events`. snapshots: (folder, first, stride): at every stride-th of the events
    from the first on, and at the last four, copy to folder/n what a SIGKILL would leave. stop: a
    signal to send itself at the n-th training step, (number, n). file_limit: the largest file it
    can write, in bytes. fresh: import the suite's modules anew, from beside the script.
    """

    def __init__(self, preset):
        self.preset = preset  # of --preset=test
        CONTEXT.set_forkserver_preload(["shell"])
        before = dict(os.environ)
        os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=f"{ROOT}{os.pathsep}{TESTS}")
        try:
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def __call__(self, script, *flags, cwd, **how):
        return self.start(script, *flags, cwd=cwd, **how).end()

    def start(self, script, *flags, cwd, environment=None, **how):
        argv = [str(ROOT / script), *map(str, flags)]
        return Command(argv, str(cwd), self.preset, environment or dict(os.environ), how)

    def torchrun(self, script, *flags, cwd, count=2, **environment):
        """What each of several processes that do one job together has ended with."""
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        common = {
            **os.environ,
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            **environment,
        }
        commands = [
            self.start(
                script,
                *flags,
                cwd=cwd,
                environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(count)
        ]
        return [command.end() for command in commands]


class Command:
    """A script in a process of its own."""

    def __init__(self, argv, cwd, preset, environment, how):
        self._folder = tempfile.TemporaryDirectory()
        for name in ("stdout", "stderr"):
            (Path(self._folder.name) / name).touch()
        self._process = CONTEXT.Process(
            target=_run, args=(argv, cwd, self._folder.name, preset, environment), kwargs=how
        )
        self._process.daemon = True  # it ends with the tests
        self._process.start()
        self.pid = self._process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()

    def said(self, stream="stdout"):
        return (Path(self._folder.name) / stream).read_text()

    def wait_until(self, happened):
        """Wait until a function says so, or the script has ended."""
        while not happened() and self._process.is_alive():
            time.sleep(0.01)

    def wait_for(self, text):
        """Wait until the script has printed a text, or has ended."""
        self.wait_until(lambda: text in self.said())

    def send(self, number):
        os.kill(self.pid, number)

    def end(self, timeout=300):
        """Its returncode, stdout and stderr, when it has ended. Raises TimeoutError."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"a command takes more than {timeout} s: {self.said('stderr')}")
        texts = {name: self.said(name) for name in ("stdout", "stderr")}
        self._folder.cleanup()
        return SimpleNamespace(returncode=self._process.exitcode, **texts)


def _run(
    argv,
    cwd,
    output,
    preset,
    environment,
    die_at=None,
    snapshots=None,
    stop=None,
    file_limit=None,
    fresh=False,
):
    code = 1
    try:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{output}/{name}", os.O_WRONLY), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has the tests ignore
        torch.set_num_threads(1)
        config.PRESETS["test"] = preset
        if die_at:
            _at_events(Death(die_at))
        if snapshots:
            _at_events(Snapshots(*snapshots))
        if stop:
            _stop(*stop)
        if file_limit:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        if fresh:
            for name in [name for name in sys.modules if name.split(".")[0] in SUITE]:
                del sys.modules[name]
        sys.argv = argv
        sys.path = [os.path.dirname(argv[0]), *(path for path in sys.path if path != str(TESTS))]
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


def _at_events(witness):
    """Call `witness` with the number of each event: a training step, a step of the importance
    estimate, before a test, after surgery, in the middle of writing a file, before and after a file
    takes its place. Where a file is written it is given the file's descriptor, too."""
    numbers = itertools.count(1)

    def event(*_):
        witness(next(numbers))

    def half_written(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            witness(next(numbers), descriptor)
        else:
            event()

    _watch(torch.Tensor, "backward", before=event)
    _watch(torch.autograd, "grad", before=event)
    _watch(train, "evaluate", before=event)
    _watch(pruner, "prune", after=event)
    _watch(os, "fsync", before=half_written)
    _watch(os, "replace", before=event, after=event)


class Death:
    """The process dies at an event, and leaves half of the file that it was writing."""

    def __init__(self, last):
        self.last = last

    def __call__(self, number, descriptor=None):
        if number == self.last:
            if descriptor is not None:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


class Snapshots:
    """folder/n is what `Death` at the n-th event would leave, for every stride-th from the first on
    and for the last four; folder/count says how many events there were."""

    def __init__(self, folder, first, stride):
        self.folder, self.first, self.stride = Path(folder), first, stride

    def __call__(self, number, descriptor=None):
        copies = self.folder / str(number)
        shutil.copytree(".", copies, symlinks=True)
        if descriptor is not None:
            _halve(descriptor, copies)
        before = number - 4
        if before > 0 and (before < self.first or (before - self.first) % self.stride):
            shutil.rmtree(self.folder / str(before))
        (self.folder / "count").write_text(str(number))


def _halve(descriptor, copies):
    """Cut the copy of a file that is being written to half of its length."""
    written = os.fstat(descriptor)
    for path in Path(".").rglob("*"):
        if os.path.samestat(path.lstat(), written):
            os.truncate(copies / path, written.st_size // 2)


def _stop(number, last):
    steps = itertools.count(1)

    def step(*_):
        if next(steps) == last:
            os.kill(os.getpid(), number)

    _watch(torch.Tensor, "backward", before=step)
