"""Nothing is lost: whatever ends a run, and wherever, --resume=True ends with the same bits."""

import copy
import csv
import errno
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import config
import main
import train as train_module
from common.batches import Split
from common.command import run_command
from common.errors import Diverged, InputError
from common.files import UMASK
from common.libraries import need
from common.pixels import FilePixels
from common.signals import SIGNALS, explained
from config import Recipe
from conftest import ROOT, copy_suite, files, narrow, short_preset, write_folder
from data import ImageData
from lab.checkpoint import load_checkpoint
from lab.experiment import DEFAULTS
from lab.reader import read_safely
from lab.resume import State, read_resume_file, write_resume_file
from lab.steps import Start
from models import build_model
from train import Training, TrainingStep, fit, train_epoch

TICKET = ("--ebt=True", "--pruning_type=orthoreg", "--prune_percent=25")
ROUNDS = ("--pruning_type=orthoreg", "--thresholds=[20, 40]")
NO_PENALTY = ("--pruning_type=theis", "--prune_percent=30", "--n_rounds=2")
RESIDUAL = ("--model=resnet-56", "--width=0.25", "--optimizer=adam", *ROUNDS)
CHOSEN = (
    "--ebt=True",
    "--pruning_type=fisher",
    "--prune_percent=40",
    "--budget=macs",
    "--score_steps=2",
    "--ranking=measured",
    "--bn_images=24",
    "--distill=0.5",
    "--choose=last",
)
KILLED = -signal.SIGKILL


@pytest.fixture
def flags(folder):
    return ("--preset=test", "--image_size=16", "--width=0.125", f"--data_path={folder}")


def lasting(root):
    """All files but the locks of dead runs, which the next run takes away."""
    return {
        name: content
        for name, content in files(root).items()
        if not name.endswith((".lock", ".tmp"))
    }


def results(root):
    """All that a run leaves, timings aside: {file: its content}."""

    def timeless(value):
        if isinstance(value, dict):
            return {key: timeless(item) for key, item in value.items() if key != "seconds"}
        if isinstance(value, (list, tuple)):
            return [timeless(item) for item in value]
        return value

    contents = {}
    for name in files(root):
        path = Path(root) / name
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            contents[name] = timeless(content)
        elif path.suffix == ".csv":
            contents[name] = [
                timeless(row) for row in csv.DictReader(path.read_text().splitlines())
            ]
        elif path.suffix == ".pth":
            content = torch.load(path, weights_only=True)
            net = content.pop("net")
            contents[name] = (
                timeless(content),
                {
                    key: (tensor.dtype, tensor.contiguous().numpy().tobytes())
                    for key, tensor in net.items()
                },
            )
        else:
            contents[name] = None
    return contents


@pytest.fixture(scope="module")
def uninterrupted(shell, folder, tmp_path_factory):
    """job -> what it leaves when nothing disturbs it."""
    done = {}

    def run(job, *flags):
        if job not in done:
            root = tmp_path_factory.mktemp("whole")
            ended = shell("main.py", *flags, *job, cwd=root)
            assert ended.returncode == 0 and ended.stderr == "", ended.stderr
            done[job] = results(root)
        return done[job]

    return run


@pytest.mark.parametrize(
    "job, first, stride, least",
    [
        (TICKET, 1, 7, 50),
        (ROUNDS, 3, 29, 120),
        (NO_PENALTY, 2, 19, 70),
        (RESIDUAL, 30, 197, 120),
        (CHOSEN, 10, 19, 60),
    ],
)
def test_killed_anywhere_and_resumed_the_bits_are_the_same(
    job, first, stride, least, shell, flags, uninterrupted, tmp_path
):
    """Resumed from what a kill leaves at every `stride`-th of the events and at the last four."""
    whole, left, counted = uninterrupted(job, *flags), tmp_path / "left", tmp_path / "counted"
    counted.mkdir()
    ended = shell("main.py", *flags, *job, cwd=counted, snapshots=(str(left), first, stride))
    assert ended.returncode == 0 and results(counted) == whole
    last = int((left / "count").read_text())
    assert last > least
    for point in sorted({*range(first, last, stride), *range(last - 3, last + 1)}):
        ended = shell("main.py", *flags, *job, "--resume=True", cwd=left / str(point))
        assert ended.returncode == 0 and ended.stderr == "", (point, ended.stderr)
        assert results(left / str(point)) == whole, point


def sizes(root):
    """{file: bytes} of what a run has left, whatever its temporary names."""
    return {
        re.sub("[.][^.]*[.]tmp$", ".tmp", name): len(content)
        for name, content in files(root).items()
        if not name.endswith(".lock")
    }


def test_what_is_resumed_from_is_what_a_kill_leaves(shell, flags, tmp_path):
    """At each event of an epoch: training, a test, a file half written, before it takes its place."""
    snapshots, job = (str(tmp_path / "left"), 1, 1), (*flags, "--ebt=True", "--only_train=base")
    (tmp_path / "whole").mkdir()
    assert shell("main.py", *job, cwd=tmp_path / "whole", snapshots=snapshots).returncode == 0
    halves = 0
    for event in range(3, 9):
        killed = tmp_path / str(event)
        killed.mkdir()
        assert shell("main.py", *job, cwd=killed, die_at=event).returncode == KILLED
        left = sizes(tmp_path / "left" / str(event))
        assert sizes(killed) == pytest.approx(left, rel=0.01)
        halves += any(name.endswith(".tmp") for name in left)
    assert halves == 2  # half of the resume file, and all of it


def test_a_run_that_is_killed_again_and_again_still_ends_with_the_same_bits(
    shell, flags, uninterrupted, tmp_path
):
    whole, deaths = uninterrupted(ROUNDS, *flags), 0
    while True:
        ended = shell(
            "main.py", *flags, *ROUNDS, "--resume=True", cwd=tmp_path, die_at=11 + 3 * deaths % 7
        )
        if ended.returncode == 0:
            break
        assert ended.returncode == KILLED and deaths < 60
        deaths += 1
    assert deaths > 8
    assert results(tmp_path) == whole


def test_a_finished_step_is_not_done_again(shell, flags, tmp_path):
    ended = shell("main.py", *flags, *ROUNDS, cwd=tmp_path, die_at=40)
    assert ended.returncode == KILLED
    ended = shell("main.py", *flags, *ROUNDS, "--resume=True", cwd=tmp_path)
    assert "Train the plain network" not in ended.stdout and "Result" in ended.stdout
    assert (
        "  goes on before any pruning, training with the penalty, after epoch 1 of 2 "
        in ended.stdout
    )
    assert "(pruned_nets/iterative/shapes/vgg-w0.125_orthoreg_40_0.resume)" in ended.stdout


def test_a_run_is_not_finished_whose_base_was_trained_anew(shell, flags, tmp_path):
    base, ortho = [(*flags, f"--only_train={network}") for network in ("base", "ortho")]
    for command, done in (
        (base, False),
        (ortho, False),
        (ortho, True),
        ((*base, "--batch_size=32"), False),
        (ortho, False),
        (ortho, True),
    ):
        ended = shell("main.py", *command, "--resume=True", cwd=tmp_path)
        assert ended.returncode == 0 and ("This run is finished" in ended.stdout) == done


def test_a_finished_run_says_so(shell, flags, tmp_path):
    for job in (TICKET, ("--only_train=base",)):
        assert shell("main.py", *flags, *job, cwd=tmp_path).returncode == 0
        before = files(tmp_path)
        ended = shell("main.py", *flags, *job, "--resume=True", cwd=tmp_path)
        assert ended.returncode == 0 and "This run is finished" in ended.stdout
        assert files(tmp_path) == before
    # Another command of the same file name is another run, and so are other images.
    ended = shell("main.py", *flags, *TICKET, "--batch_size=18", "--resume=True", cwd=tmp_path)
    assert ended.returncode == 0 and "this run begins at the beginning" in ended.stdout


@pytest.mark.parametrize(
    "change, message",
    [
        (("--batch_size=18",), "--batch_size was 16 and is 18"),
        (("--preset=quick",), "--preset was 'test' and is 'quick'"),
        (("--imp_samples=20",), "--imp_samples was 10000 and is 20"),
    ],
)
def test_the_resume_file_of_another_command_is_refused(change, message, shell, flags, tmp_path):
    assert shell("main.py", *flags, *TICKET, cwd=tmp_path, die_at=30).returncode == KILLED
    before = lasting(tmp_path)
    ended = shell("main.py", *flags, *TICKET, *change, "--resume=True", cwd=tmp_path)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and message in ended.stderr
    assert lasting(tmp_path) == before


def test_other_images_are_another_run(shell, flags, tmp_path, digits):
    from conftest import write_folder

    images = write_folder(tmp_path / "shapes", digits)
    (tmp_path / "work").mkdir()
    flags = (*flags[:-1], f"--data_path={images}", *TICKET)
    assert shell("main.py", *flags, cwd=tmp_path / "work", die_at=30).returncode == KILLED
    next((images / "train" / "one").iterdir()).unlink()
    ended = shell("main.py", *flags, "--resume=True", cwd=tmp_path / "work")
    assert ended.returncode == 2 and "the fingerprint of the images was" in ended.stderr


def test_a_damaged_resume_file_is_refused(shell, flags, tmp_path):
    assert shell("main.py", *flags, *TICKET, cwd=tmp_path, die_at=14).returncode == KILLED
    path = tmp_path / "pruned_nets/ebt/shapes/vgg-w0.125_orthoreg_25_0.resume"
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    damaged = [whole[: len(whole) // 2], b"", b"x" * 1000, whole[:5000] + b"!" + whole[5001:]]
    forged = [
        {"state": {**state["state"], **part}}
        for part in (
            {"done": "all"},
            {"done": 99},
            {"done": 1.0},
            {"begin": "steal"},
            {"trained": {"ortho": 3}},
            *(
                {"trained": {"ortho": {**state["state"]["trained"]["ortho"], **part}}}
                for part in (
                    {"history": 5},
                    {"history": [5]},
                    {"optimizer": {"a": 1}},
                    {"best": {}},
                    {"sums": {"x": 1}},
                    {"weights": {"a": torch.zeros(1)}},
                )
            ),
        )
    ]
    forged += [{"flags": {"model": torch.zeros(1)}}, {"random": {}}, {"random": 4}]
    for part in forged:
        torch.save({**state, **part}, tmp_path / "forged")
        content = (tmp_path / "forged").read_bytes()
        (tmp_path / "forged").unlink()
        damaged.append(content)
    for content in damaged:
        path.write_bytes(content)
        before = lasting(tmp_path)
        ended = shell("main.py", *flags, *TICKET, "--resume=True", cwd=tmp_path)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
        assert lasting(tmp_path) == before
        if b"steal" in content:
            ended = shell(
                "main.py", *flags, *TICKET, "--resume=True", "--print_config=True", cwd=tmp_path
            )
            assert ended.returncode == 2 and "is damaged" in ended.stderr, ended.stderr
    path.write_bytes(whole)  # and without --resume a run begins anew, and says what it replaces
    ended = shell("main.py", *flags, *TICKET, cwd=tmp_path)
    assert ended.returncode == 0 and "--resume=True goes on from it" in ended.stdout


def test_the_same_images_under_another_path_are_the_same(
    shell, flags, uninterrupted, tmp_path, folder
):
    whole = uninterrupted(TICKET, *flags)
    (tmp_path / "jobs").mkdir()
    shutil.copytree(folder, tmp_path / "jobs/shapes")
    ended = shell("main.py", *flags, *TICKET, cwd=tmp_path, stop=(signal.SIGTERM, 4))
    assert ended.returncode == 130
    ended = shell(
        "main.py", *flags, *TICKET, "--data_path=jobs/shapes/", "--resume=True", cwd=tmp_path
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    (tmp_path / "jobs/shapes").rename(tmp_path / "shapes")

    def results_elsewhere(root):
        contents = results(root)
        return {name: content for name, content in contents.items() if name in whole}

    assert results_elsewhere(tmp_path).keys() == whole.keys()
    for name, content in results_elsewhere(tmp_path).items():
        if name.endswith(".pth"):
            assert content[1] == whole[name][1]  # the weights
    for path in ("shapes", "./shapes", str(tmp_path / "shapes")):
        ended = shell(
            "main.py", *flags, *TICKET, f"--data_path={path}", "--resume=True", cwd=tmp_path
        )
        assert "This run is finished" in ended.stdout and ended.returncode == 0


def test_another_data_set_of_the_same_name_replaces_nothing_in_silence(
    shell, flags, tmp_path, digits
):
    base = (*flags, "--ebt=True", "--only_train=base")
    first = write_folder(tmp_path / "a/imgs", digits)
    second = write_folder(tmp_path / "b/imgs", digits, classes=("two", "three", "one"))
    assert shell("main.py", *base, f"--data_path={first}", cwd=tmp_path).returncode == 0
    before = files(tmp_path / "pretrained")
    ended = shell("main.py", *base, f"--data_path={second}", cwd=tmp_path)
    assert ended.returncode == 2 and "was trained on the images of" in ended.stderr
    assert files(tmp_path / "pretrained") == before
    next((first / "train/one").iterdir()).unlink()
    ended = shell("main.py", *base, f"--data_path={first}", cwd=tmp_path)
    assert ended.returncode == 0 and "which will be replaced, was trained on other" in ended.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_stops_at_the_next_batch_and_costs_nothing(
    number, shell, flags, uninterrupted, tmp_path
):
    whole = uninterrupted(ROUNDS, *flags)
    for step in (2, 8, 13):
        ended = shell(
            "main.py", *flags, *ROUNDS, "--resume=True", cwd=tmp_path, stop=(number, step)
        )
        if ended.returncode == 0:
            break
        assert ended.returncode == 130 and ended.stderr.count("\n") == 1, ended.stderr
        assert "the state is saved" in ended.stderr
        _python, script, *again = shlex.split(ended.stderr.split("to go on: ")[1])
        assert again == [*flags, *ROUNDS, "--resume=True"]
        assert (tmp_path / script).resolve() == ROOT / "main.py"
    assert step == 13
    state = torch.load(next(tmp_path.glob("pruned_nets/*/*/*.resume")), weights_only=True)["state"]
    sums = [training["sums"] for training in state["trained"].values() if training["sums"]]
    assert sums and sums[0]["batches"] in (1, 2)  # of 3: what the epoch has done is kept
    assert shell("main.py", *again, cwd=tmp_path).returncode == 0
    assert results(tmp_path) == whole


def test_two_runs_that_write_the_same_files(shell, flags, tmp_path, folder):
    """The second stops, the first is not disturbed, and a dead one's lock is no obstacle."""
    import fcntl

    target = tmp_path / "pretrained/ebt/shapes/vgg-w0.125.pth"
    target.parent.mkdir(parents=True)
    lock = target.with_name(f".{target.name}.lock")
    job = ("--ebt=True", "--pruning_type=fisher", "--prune_percent=20")
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        print("process 7 on there", file=held, flush=True)
        before = files(tmp_path)
        ended = shell("main.py", *flags, *job, cwd=tmp_path)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1
        assert (
            f"{target.relative_to(tmp_path)} is being written by another run (process 7 on "
            "there)" in ended.stderr
        )
        assert files(tmp_path) == before
        # A run that only reads the file, or writes others, may go on.
        assert shell("main.py", *flags, "--model=mobilenet", *job, cwd=tmp_path).returncode == 0
    assert lock.is_file()
    assert shell("main.py", *flags, *job, cwd=tmp_path).returncode == 0
    assert not [name for name in files(tmp_path) if name.endswith((".lock", ".tmp", ".resume"))]


def test_a_flipped_bit_of_a_resume_file_is_noticed_or_means_nothing(tmp_path):
    """The file's own checksums hold all that is read; bits beside them are dates and padding."""

    def same(one, other):
        if isinstance(one, torch.Tensor):
            return one.dtype == other.dtype and torch.equal(one, other)
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        if isinstance(one, (list, tuple)):
            return len(one) == len(other) and all(map(same, one, other))
        return type(one) is type(other) and one == other

    path, random = tmp_path / "x.resume", np.random.RandomState(0)
    write_resume_file(
        path, narrow("vgg"), State(Start(None, ("base",))), {"flags": {"model": "vgg"}}
    )
    whole, known, accepted = path.read_bytes(), read_safely(path), 0
    for bit in random.randint(0, 8 * len(whole), 300):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            assert same(known, read_safely(path))
            accepted += 1
        except InputError:
            pass
    assert accepted < 30


FORGED = {  # path of an entry of a resume file -> nonsense of a sound type
    "no records": (("state", "records"), list),
    "costs of nothing": (("state", "records", 0, "macs"), lambda: 0),
    "an optimizer of another network": (
        ("state", "trained", "ortho", "optimizer", "state", 0, "momentum_buffer"),
        lambda: torch.zeros(1),
    ),
    "nothing to remember": (("state", "trained", "ortho", "optimizer", "state", 0), lambda: None),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_resume_file_with_nonsense_of_sound_types_is_damaged(kind, shell, flags, tmp_path):
    job = (*flags, "--pruning_type=orthoreg", "--prune_percent=30", "--resume=True")
    stopped = shell("main.py", *job, cwd=tmp_path, stop=(15, 12))
    assert stopped.returncode == 130
    (path,) = tmp_path.rglob("*.resume")
    content = torch.load(path, weights_only=True)
    entry, (*outer, last) = content, FORGED[kind][0]
    for key in outer:
        entry = entry[key]
    entry[last] = FORGED[kind][1]()
    torch.save(content, path)
    ended = shell("main.py", *job, cwd=tmp_path)
    assert (
        ended.returncode == 2 and ended.stderr.count("\n") == 1 and "is damaged" in ended.stderr
    ), ended


def test_what_somebody_planted_is_replaced_and_never_followed(shell, flags, tmp_path):
    """Links and pipes under the names that a run will write, lock and read, in a shared folder."""
    victim, target = tmp_path / "victim", tmp_path / "pretrained/ebt/shapes/vgg-w0.125.pth"
    target.parent.mkdir(parents=True)
    victim.write_text("precious")
    job = ("--ebt=True", "--pruning_type=fisher", "--prune_percent=20")
    result = tmp_path / "pruned_nets/ebt/shapes/vgg-w0.125_fisher_20_0.pth"
    result.parent.mkdir(parents=True)
    for path in (target, result, target.with_suffix(".csv"), result.with_suffix(".json")):
        for name in (path.name, f".{path.name}.tmp", f".{path.name}.lock"):
            path.with_name(name).symlink_to(victim)
    os.unlink(result.with_name(f".{result.name}.lock"))
    os.mkfifo(result.with_name(f".{result.name}.lock"))
    os.mkfifo(result.with_suffix(".resume"))
    left = target.with_name(f".{target.name}.abcd_012.tmp")
    left.write_bytes(b"of a killed run")
    ended = shell("main.py", *flags, *job, cwd=tmp_path)
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert victim.read_text() == "precious" and not left.exists()
    assert not target.is_symlink() and not result.is_symlink() and load_checkpoint(result)
    assert os.stat(result).st_mode & 0o777 == 0o666 & ~UMASK


def test_two_real_runs_at_once_and_a_real_signal(shell, flags, tmp_path):
    """The second run stops at its start; then the first, stopped from outside, at its next batch."""
    job = ("--preset=paper", *flags[1:], "--only_train=base")
    with shell.start("main.py", *job, "--batch_size=2", cwd=tmp_path) as first:
        first.wait_for("base 2/")
        second = shell("main.py", *job, cwd=tmp_path)
        assert second.returncode == 2 and second.stderr.count("\n") == 1
        assert f"another run (process {first.pid} on " in second.stderr
        began = time.monotonic()
        first.send(signal.SIGTERM)
        ended = first.end(timeout=60)
        assert time.monotonic() - began < 5
    assert ended.returncode == 130 and ended.stderr.count("\n") == 1
    assert "--resume=True" in ended.stderr
    assert list(tmp_path.rglob("*.resume")) and not list(tmp_path.rglob("*.lock"))


def test_a_full_disk_leaves_the_previous_files(shell, flags, tmp_path):
    assert shell("main.py", *flags, *TICKET, cwd=tmp_path).returncode == 0
    before = files(tmp_path)
    ended = shell("main.py", *flags, *TICKET, cwd=tmp_path, file_limit=100_000)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "cannot write" in ended.stderr and "nothing there was changed" in ended.stderr
    assert files(tmp_path) == before


def test_closed_streams_and_a_second_signal(shell, flags, tmp_path):
    """Output that nobody reads does not stop a run; impatience does not change the exit code."""
    command = shlex.join(
        [sys.executable, str(ROOT / "main.py"), "--preset=quick", *flags[1:], "--only_train=base"]
    )
    ended = subprocess.run(command + " >&- 2>&-", shell=True, cwd=tmp_path)
    assert ended.returncode == 0 and len(files(tmp_path)) == 2
    body = "lambda: print('said') or open('missing')"  # what was said before it is not lost
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from common.command import run_command; "
            f"sys.exit(run_command('main.py', {body}))",
        ],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    assert (ended.returncode, ended.stdout) == (2, "said\n") and ended.stderr.startswith(
        "main.py: error:"
    )
    job = ("--preset=paper", *flags[1:], "--only_train=base", "--batch_size=2")
    with shell.start("main.py", *job, cwd=tmp_path) as run:
        run.wait_for("base 1/")
        for _ in range(20):
            with suppress(ProcessLookupError):  # it has ended
                run.send(signal.SIGINT)
            time.sleep(0.02)
        assert run.end(timeout=60).returncode == 130


@pytest.mark.parametrize("reads", ["images.read_image", "cache._file_digest"])
def test_a_signal_ends_a_run_whose_file_never_answers(reads, folder, tmp_path):
    """As on a network drive that is gone. Threads that wait for it must not keep the process alive."""
    script = f"""
import os
from common import cache, command, images
from data import load_data
cache.CACHE_FROM = 10
{reads} = lambda *_: os.read(os.pipe()[0], 1)
print("reading", flush=True)
command.exit_with(command.run_command("main.py", lambda: load_data({str(folder)!r}, 16)))"""
    run = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    try:
        assert run.stdout.readline() == "reading\n"
        time.sleep(0.5)
        run.terminate()
        _, error = run.communicate(timeout=20)
    finally:
        run.kill()
    assert (run.returncode, error) == (130, "main.py: interrupted\n")


def test_decoded_images_that_somebody_writes_to_during_a_run(folder, tmp_path, monkeypatch, capsys):
    """A line, then the same command goes on, and ends with the same bits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(config.PRESETS, "test", short_preset(epochs=2))
    job = [
        "--preset=test",
        "--image_size=16",
        "--width=0.125",
        f"--data_path={folder}",
        "--memory=0.00001",
        *TICKET,
    ]
    for name in ("whole", "spoiled"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert main.main(job) == 0
    monkeypatch.chdir(tmp_path / "spoiled")
    (kept,) = (tmp_path / "cache/orthoreg").glob("*.bytes")
    content, steps = kept.read_bytes(), itertools.count()
    read = FilePixels.read

    def spoil(self, *rows):
        if next(steps) == 20:
            with open(kept, "r+b") as file:
                file.write(bytes(len(content)))
        return read(self, *rows)

    monkeypatch.setattr(FilePixels, "read", spoil)
    capsys.readouterr()
    assert main.main(job) == 2 and next(steps) > 20
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "it was changed" in error and "--resume=True" in error
    assert main.main([*job, "--resume=True"]) == 0
    out = capsys.readouterr().out
    assert "goes on" in out and kept.read_bytes() == content
    assert results(tmp_path / "spoiled") == results(tmp_path / "whole")


class Waits:
    """An object that takes a while to be taken away."""

    def __del__(self):
        time.sleep(0.4)


def reader():
    try:
        yield 1
    finally:  # as a pool of threads that is shut down
        time.sleep(0.4)


def let_pass():
    try:
        time.sleep(0.4)
    except BaseException:
        pass


LIBRARIES = {
    "converts": "raise ImportError('initialization failed') from error",
    "hides": "pass",
    "fails": "raise ImportError('no such symbol')",
}


@pytest.mark.parametrize("where", ["generator", "__del__", "weakref", "let pass", *LIBRARIES])
def test_a_signal_is_not_lost_wherever_it_comes(where, tmp_path, monkeypatch, capsys):
    """Neither where Python ignores what is raised nor where a library makes something of it."""
    for name, does in LIBRARIES.items():
        (tmp_path / f"library_that_{name}.py").write_text(
            f"import time\ntry:\n    time.sleep(.4)\nexcept BaseException as error:\n    {does}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    after = []

    def body():
        with explained("how to go on"):
            thing = reader() if where == "generator" else Waits()
            if where == "generator":
                next(thing)
            if where == "weakref":
                thing = type("Thing", (), {})()
                watch = weakref.ref(thing, lambda _: time.sleep(0.4))
                assert watch() is thing
            threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
            if where in LIBRARIES:
                need("--export=x.onnx", f"library_that_{where}")
            elif where == "let pass":
                let_pass()
                return
            del thing
            for _ in range(30):
                time.sleep(0.05)
            after.append("went on")

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        assert run_command("main.py", body) == 130
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.modules.pop(f"library_that_{where}", None)
    error = capsys.readouterr().err
    assert error == "main.py: interrupted: how to go on\n" and not after


def test_what_stops_a_stopped_run_from_being_kept_is_said(capsys):
    """An error that follows a signal is no signal."""

    def body():
        with explained("the state is saved"):
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                raise InputError("cannot write x: the disk is full") from OSError()

    assert run_command("main.py", body) == 2
    assert capsys.readouterr().err == "main.py: error: cannot write x: the disk is full\n"


def test_a_disk_that_fills_under_tensorboard_is_one_line(flags, tmp_path, monkeypatch, capfd):
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, count = RecordWriter.write, itertools.count()

    def full(self, content):
        if next(count) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, content)

    monkeypatch.setattr(RecordWriter, "write", full)
    monkeypatch.chdir(tmp_path)
    job = ["--preset=quick", *flags[1:], "--ebt=True", "--only_train=base", "--epochs=2"]
    hook = threading.excepthook
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # not pytest's
    assert main.main([*job, "--tensorboard=True"]) == 2
    time.sleep(0.2)
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "No space left on device" in error, error
    assert "pretrained/ebt/shapes/vgg-w0.125.tensorboard/round-0-base" in error
    assert hook is not threading.excepthook
    assert main.main([*job, "--resume=True"]) == 0


def test_no_permission_is_one_line(flags, tmp_path, folder, monkeypatch, capsys):
    """What a read-only folder does to all but root, who may write everywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main.main(["--preset=quick", *flags[1:], *TICKET]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot write to pretrained/ebt/shapes" in error
    assert not files(tmp_path)


def test_random_states_come_back(tmp_path):
    import random

    import numpy as np

    network = build_model("vgg", 3, width=1 / 8)

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    draw()
    write_resume_file(
        tmp_path / "x.resume", network, State(Start(None, ("base",))), {"flags": DEFAULTS}
    )
    expected = draw()
    draw()
    again, state = read_resume_file(tmp_path / "x.resume", {"flags": DEFAULTS})
    assert draw() == expected and state == State(Start(None, ("base",)))
    assert all(map(torch.equal, again.state_dict().values(), network.state_dict().values()))


def test_a_best_epoch_of_before_the_interruption_stays_the_best(digits, monkeypatch):
    recipe = Recipe(lr=[0.01, 0.01], epochs=[1, 1], weight_decay=0, adam_lr=[1, 1])

    def train(model, **how):
        return fit(model, digits, recipe, key=(0,), batch_size=128, **how)

    accuracies = iter([90.0, 50.0, 90.0, 50.0])  # of both epochs of the first, and of the second
    monkeypatch.setattr(
        train_module, "evaluate", lambda *_: {"loss": 1.0, "top1": next(accuracies)}
    )
    whole = narrow("vgg", 10)
    assert train(whole).best["epoch"] == 1
    stopped, training = narrow("vgg", 10), Training()
    copies = []

    def keep():
        copies.append(copy.deepcopy((stopped, training)))
        if len(copies) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, training=training, keep=keep)
    model, training = copies[0]
    assert train(model, training=training).best["epoch"] == 1
    for left in (whole, model):  # with the weights of the first epoch
        assert all(map(torch.equal, left.state_dict().values(), stopped.state_dict().values()))


def test_a_training_in_float16_goes_on_with_its_scale(digits):
    recipe = Recipe(lr=[0.01], epochs=[3], weight_decay=0, adam_lr=[1])
    data = replace(digits, train=Split(digits.train.images[:200], digits.train.labels[:200]))
    data = replace(data, test=data.train)

    def train(model, **how):
        return fit(model, data, recipe, key=(0,), batch_size=64, amp="float16", **how)

    whole, stopped, training, copies = narrow("vgg", 10), narrow("vgg", 10), Training(), []
    wild = dict(whole.state_dict())["features.0.weight"].mul_(1e4)  # overflows: the scale falls
    stopped.features[0].weight.data.copy_(wild)
    train(whole)

    def keep():
        copies.append(copy.deepcopy((stopped, training)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, training=training, keep=keep)
    model, training = copies[0]
    assert training.scaler["scale"] < 2**16
    train(model, training=training)
    assert all(map(torch.equal, whole.state_dict().values(), model.state_dict().values()))


def test_a_signal_while_the_weights_diverge_keeps_the_last_good_ones(digits, monkeypatch):
    """The epoch before is what the resume file must still hold."""
    model, kept = narrow("vgg", 10), []

    def keep():
        kept.append(all(v.isfinite().all() for v in model.state_dict().values()))

    batches = ImageData.train_batches

    class Interrupted:
        def __init__(self, *args, key):
            self.batches, self.epoch = batches(*args, key=key), key[-1]

        def __len__(self):
            return len(self.batches)

        def __iter__(self):
            for i, batch in enumerate(self.batches):
                if self.epoch == 2 and i == 4:
                    raise KeyboardInterrupt
                yield batch

    monkeypatch.setattr(ImageData, "train_batches", lambda *args, key: Interrupted(*args, key=key))
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)  # the loss is looked at after half a second
    recipe = Recipe(lr=[0.01, 1e30], epochs=[1, 1], weight_decay=0, adam_lr=[1, 1])
    with pytest.raises(KeyboardInterrupt):
        fit(model, digits, recipe, key=(0,), batch_size=256, keep=keep)
    assert kept == [True]


def test_a_diverging_epoch_is_not_trained_to_its_end(digits, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    model = narrow("vgg", 10)
    seen = []

    def batches():
        for batch in digits.train_batches(16, key=(0,)):
            seen.append(batch)
            yield batch

    wild = torch.optim.SGD(model.parameters(), lr=1e30)
    with pytest.raises(Diverged):
        train_epoch(model, batches(), TrainingStep(model, wild))
    assert len(seen) < 5


def test_a_diverging_run_ends_with_3_and_its_files_stay(shell, flags, tmp_path):
    suite, work = tmp_path / "suite", tmp_path / "work"
    suite.mkdir(), work.mkdir()
    copy_suite(suite)
    job = ("--preset=quick", *flags[1:], "--ebt=True", "--only_train=base")
    assert shell(suite / "main.py", *job, cwd=work, fresh=True).returncode == 0
    before = files(work)
    text = (suite / "config.py").read_text()
    (suite / "config.py").write_text(text.replace("lr=[0.02, 0.002]", "lr=[1.0e30, 0.002]"))
    ended = shell(suite / "main.py", *job, cwd=work, fresh=True)
    assert ended.returncode == 3 and ended.stderr.count("\n") == 1, ended
    assert "in base, epoch 1 of 4, at learning rate 1e+30" in ended.stderr
    assert files(work) == before
    # Changed settings are another command, too: a resume file knows what it was trained by.
    (suite / "config.py").write_text(text)
    prune = (*job[:-1], "--pruning_type=orthoreg", "--prune_percent=20")
    assert shell(suite / "main.py", *prune, cwd=work, fresh=True, die_at=20).returncode == KILLED
    (suite / "config.py").write_text(text.replace('"vgg": 1e-2', '"vgg": 1e-1'))
    ended = shell(suite / "main.py", *prune, "--resume=True", cwd=work, fresh=True)
    assert ended.returncode == 2 and "in config.py, penalty was 0.01 and is 0.1" in ended.stderr
