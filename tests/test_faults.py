"""Nothing is lost: whatever ends a run, and wherever, --resume=True ends with the same bits."""
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT, files
from pruner import load_checkpoint

TICKET = ("--ebt=True", "--pruning_type=orthoreg", "--prune_percent=25")
ROUNDS = ("--pruning_type=orthoreg", "--thresholds=[20, 40]")
NO_PENALTY = ("--pruning_type=theis", "--prune_percent=30", "--n_rounds=2")
KILLED = -signal.SIGKILL


@pytest.fixture
def flags(folder):
    return ("--preset=test", "--image_size=16", "--width=0.125", f"--data_path={folder}")


def results(root):
    """All that a run leaves, timings aside: {file: its content}."""
    def timeless(value):
        if isinstance(value, dict):
            return {key: timeless(item) for key, item in value.items() if key != "seconds"}
        if isinstance(value, (list, tuple)):
            return [timeless(item) for item in value]
        return value

    found = {}
    for name in files(root):
        path = Path(root) / name
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            found[name] = timeless(content)
        elif path.suffix == ".pth":
            content = torch.load(path, weights_only=True)
            net = content.pop("net")
            found[name] = timeless(content), {
                key: (tensor.dtype, tensor.contiguous().numpy().tobytes())
                for key, tensor in net.items()}
        else:
            found[name] = None
    return found


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


@pytest.mark.parametrize("job, points", [(TICKET, range(1, 48, 2)), (ROUNDS, range(20, 110, 9)),
                                         (NO_PENALTY, range(2, 80, 13))])
def test_killed_anywhere_and_resumed_the_bits_are_the_same(job, points, shell, flags, uninterrupted,
                                                           tmp_path):
    whole, killed = uninterrupted(job, *flags), 0
    for point in points:
        root = tmp_path / str(point)
        root.mkdir()
        ended = shell("main.py", *flags, *job, cwd=root, die_at=point)
        assert ended.returncode in (KILLED, 0)
        killed += ended.returncode == KILLED
        ended = shell("main.py", *flags, *job, "--resume=True", cwd=root)
        assert ended.returncode == 0 and ended.stderr == "", (point, ended.stderr)
        assert results(root) == whole, point
    assert killed == len(points)


def test_a_run_that_is_killed_again_and_again_still_ends_with_the_same_bits(
        shell, flags, uninterrupted, tmp_path):
    whole, deaths = uninterrupted(ROUNDS, *flags), 0
    while True:
        ended = shell("main.py", *flags, *ROUNDS, "--resume=True", cwd=tmp_path,
                      die_at=11 + 3 * deaths % 7)
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
    assert "resumed from pruned_nets/iterative/shapes/vgg-w0.125_orthoreg_40_0.resume" in ended.stdout


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


@pytest.mark.parametrize("change, message", [
    (("--batch_size=18",), "--batch_size was 16 and is 18"),
    (("--preset=quick",), "--preset was 'test' and is 'quick'"),
    (("--imp_samples=20",), "--imp_samples was 10000 and is 20")])
def test_the_resume_file_of_another_command_is_refused(change, message, shell, flags, tmp_path):
    assert shell("main.py", *flags, *TICKET, cwd=tmp_path, die_at=30).returncode == KILLED
    before = files(tmp_path)
    ended = shell("main.py", *flags, *TICKET, *change, "--resume=True", cwd=tmp_path)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and message in ended.stderr
    assert files(tmp_path) == before


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
    assert shell("main.py", *flags, *TICKET, cwd=tmp_path, die_at=30).returncode == KILLED
    path = tmp_path / "pruned_nets/ebt/shapes/vgg-w0.125_orthoreg_25_0.resume"
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)
    torch.save({**state, "state": {**state["state"], "done": "all"}}, tmp_path / "hostile")
    torch.save({**state, "state": {**state["state"], "begin": "steal"}}, tmp_path / "strange")
    for content in (whole[:len(whole) // 2], b"", b"x" * 1000, whole[:5000] + b"!" + whole[5001:],
                    *((tmp_path / name).read_bytes() for name in ("hostile", "strange"))):
        path.write_bytes(content)
        before = files(tmp_path)
        ended = shell("main.py", *flags, *TICKET, "--resume=True", cwd=tmp_path)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
        assert files(tmp_path) == before
    path.write_bytes(whole)  # and without --resume a run begins anew, and says what it replaces
    ended = shell("main.py", *flags, *TICKET, cwd=tmp_path)
    assert ended.returncode == 0 and "--resume=True goes on from it" in ended.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_the_next_batch_and_costs_nothing(number, shell, flags, uninterrupted,
                                                            tmp_path):
    whole = uninterrupted(ROUNDS, *flags)
    for step in (2, 8, 13):
        ended = shell("main.py", *flags, *ROUNDS, "--resume=True", cwd=tmp_path, stop=(number, step))
        if ended.returncode == 0:
            break
        assert ended.returncode == 130 and ended.stderr.count("\n") == 1, ended.stderr
        assert "the state is saved" in ended.stderr
        again = ended.stderr.split("python main.py ")[1].strip()
        assert again == shlex.join([*flags, *ROUNDS, "--resume=True"])
    assert step == 13
    state = torch.load(next(tmp_path.glob("pruned_nets/*/*/*.resume")), weights_only=True)["state"]
    sums = [training["sums"] for training in state["trained"].values() if training["sums"]]
    assert sums and sums[0]["batches"] in (1, 2)  # of 3: what the epoch has done is kept
    assert shell("main.py", *shlex.split(again), cwd=tmp_path).returncode == 0
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
        assert f"{target.relative_to(tmp_path)} is being written by another run (process 7 on " \
            "there)" in ended.stderr
        assert files(tmp_path) == before
        # A run that only reads the file, or writes others, may go on.
        assert shell("main.py", *flags, "--model=mobilenet", *job, cwd=tmp_path).returncode == 0
    assert lock.is_file()
    assert shell("main.py", *flags, *job, cwd=tmp_path).returncode == 0
    assert not [name for name in files(tmp_path) if name.endswith((".lock", ".tmp", ".resume"))]


def test_two_real_runs_at_once(flags, tmp_path):
    command = [sys.executable, str(ROOT / "main.py"), "--preset=quick", *flags[1:],
               "--only_train=base"]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            for _ in range(2)]
    texts = [run.communicate()[1] for run in runs]
    codes = [run.returncode for run in runs]
    assert set(codes) <= {0, 2} and 0 in codes  # both 0 where one ended before the other began
    assert all(("another run" in text) == (code == 2) for text, code in zip(texts, codes))
    load_checkpoint(tmp_path / "pretrained/iterative/shapes/vgg-w0.125.pth")


def test_a_full_disk_leaves_the_previous_files(shell, flags, tmp_path):
    assert shell("main.py", *flags, *TICKET, cwd=tmp_path).returncode == 0
    before = files(tmp_path)
    ended = shell("main.py", *flags, *TICKET, cwd=tmp_path, file_limit=100_000)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "cannot write" in ended.stderr and "nothing there was changed" in ended.stderr
    assert files(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(shell, flags, tmp_path):
    (tmp_path / "pretrained").mkdir(mode=0o500)
    ended = shell("main.py", *flags, *TICKET, cwd=tmp_path)
    assert ended.returncode == 2 and "cannot write to pretrained/" in ended.stderr
    assert not files(tmp_path)


def test_a_signal_does_not_wait_for_more_than_a_batch(flags, tmp_path):
    """A real process, stopped by a real SIGTERM from outside while it trains."""
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "--preset=paper", *flags[1:], "--only_train=base"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"})
    for line in run.stdout:
        if "base 2/" in line:
            break
    began = time.monotonic()
    run.terminate()
    _, error = run.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert run.returncode == 130 and error.count("\n") == 1 and "--resume=True" in error
    assert list(tmp_path.rglob("*.resume"))
