"""Several processes under torchrun do the work of one: two real ones on the CPU, with gloo."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.nn import functional as F

import config
import main
import worker
from common.command import run_command
from common.device import pick_device
from conftest import ROOT, files, narrow, short_preset, write_folder
from data import Batches, Split
from lab.checkpoint import load_checkpoint, save_checkpoint
from train import OrthonormalityPenalty

JOB = ["--preset=test", "--image_size=16", "--width=0.125", "--ebt=True"]


@pytest.fixture(autouse=True)
def preset(monkeypatch):
    monkeypatch.setitem(config.PRESETS, "test", short_preset(epochs=2))


@pytest.fixture(scope="module")
def images(digits, tmp_path_factory):
    """The flag of a folder of 45 images: two batches of 16, and one of 13."""
    root = tmp_path_factory.mktemp("images") / "shapes"
    return f"--data_path={write_folder(root, digits, train=15)}"


WORKER = "tests/worker.py"
COMMAND = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node=2",
    str(ROOT / WORKER),
]


OWN = """
from torch import nn
from models import WIDTH

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a, self.b, self.spare = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(WIDTH, 20, 3), nn.Conv2d(3, 3, 3)
        self.fc = nn.Linear(20, num_classes)

    def forward(self, x):
        return self.fc(self.b(self.a(x).relu()).relu().mean((2, 3)))
"""


def torchrun(*flags, cwd, **environment):
    """The real one. It starts processes that import everything; shell.torchrun forks them."""
    began = time.monotonic()
    done = subprocess.run(
        COMMAND + list(map(str, flags)),
        cwd=cwd,
        text=True,
        timeout=200,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    done.seconds = time.monotonic() - began
    return done


def together(shell, *flags, cwd, **environment):
    """What the first of two processes has said, which both end well."""
    first, second = shell.torchrun(WORKER, *flags, cwd=cwd, **environment)
    assert first.returncode == 0, first.stderr
    assert second.returncode == 0 and not second.stdout, second.stderr
    return first.stdout


def record(folder, name):
    return json.loads((folder / "pruned_nets/ebt/shapes" / f"{name}.json").read_text())


# --------------------------------------------------------------------------- whose images are whose


@pytest.mark.parametrize(
    "count, size, processes",
    [(37, 8, 2), (37, 8, 3), (33, 8, 2), (9, 8, 4), (8, 8, 4), (64, 16, 4)],
)
def test_the_shares_of_each_batch_are_the_batch(count, size, processes):
    """Every image once, at least two for each process, and the weighted mean of the shares' means
    is the mean over the batch."""
    split = Split(
        torch.arange(count)[:, None, None, None].expand(-1, 8, 8, 3).to(torch.uint8),
        torch.arange(count),
    )
    whole = Batches(split, torch.randperm(count), size, seed=1)
    shares = [whole.share(number, processes) for number in range(processes)]
    seen = []
    for b, parts in enumerate(zip(*shares, strict=True)):
        labels = torch.cat([labels for _, labels in parts])
        mean = sum(share.weight(b) * part[1].float().mean() for share, part in zip(shares, parts))
        assert (mean / processes - labels.float().mean()).abs() < 1e-4
        assert all(len(part[1]) >= 2 for part in parts)
        seen += labels.tolist()
    assert sorted(seen) == list(range(count))
    # Shifts and mirrors are the image's own, whoever trains on it.
    alone = {int(k): image for images, labels in whole for image, k in zip(images, labels)}
    for images, labels in shares[-1]:
        assert all(torch.equal(image, alone[int(k)]) for image, k in zip(images, labels))


def test_a_process_takes_whole_batches_where_nothing_is_trained():
    split = Split(torch.zeros(20, 8, 8, 3, dtype=torch.uint8), torch.arange(20))
    batches = Batches(split, torch.arange(20), 3)
    parts = [[labels.tolist() for _, labels in batches[number::2]] for number in range(2)]
    assert parts == [
        [[0, 1, 2], [6, 7, 8], [12, 13, 14], [18, 19]],
        [[3, 4, 5], [9, 10, 11], [15, 16, 17]],
    ]


# --------------------------------------------------------------------------------- the same results


def test_two_processes_train_as_one_does_that_normalises_halves_of_each_batch(
    shell, images, tmp_path, set_threads
):
    """One process, two replicas that each see half of every batch, so that BatchNorm has the same
    statistics as in two processes; the last batch of 13 images is shared 7 to 6."""
    set_threads(1)  # as in the processes, so that sums have the same order
    job = [*JOB, images, "--only_train=ortho", "--model=mobilenet"]
    said = together(shell, *job, cwd=tmp_path)
    trained, info = load_checkpoint(tmp_path / "pretrained/ebt/shapes/mobilenet-w0.125_ortho.pth")

    run = main.make_job(job)
    first = main.fresh_network(run)
    replicas = first, copy.deepcopy(first)
    steps = [torch.optim.SGD(r.parameters(), lr=0.02, momentum=0.9) for r in replicas]
    losses, states = [], []
    for epoch in (1, 2):
        total = 0
        for images, labels in run.data.train_batches(16, key=(0, "base", 0, epoch)):
            for number, replica in enumerate(replicas):
                replica.train().zero_grad()
                loss = F.cross_entropy(
                    replica(images[number::2]), labels[number::2], reduction="sum"
                )
                total += loss.item()
                (loss / len(labels) + 0.5 * OrthonormalityPenalty(replica, 1e-3)()).backward()
            for a, b in zip(*(replica.parameters() for replica in replicas)):
                a.grad = b.grad = a.grad + b.grad
            for step in steps:
                step.step()
        losses.append(total / len(run.data.train))
        for a, b in zip(*(replica.buffers() for replica in replicas)):
            a.copy_((a + b) / 2)
            b.copy_(a)
        states.append(copy.deepcopy(first.state_dict()))
    history = info.history["ortho"]
    assert [epoch["train"]["loss"] for epoch in history] == pytest.approx(losses, rel=1e-4)
    best = states[info.accuracy["best"]["epoch"] - 1]
    for (name, ours), theirs in zip(best.items(), trained.state_dict().values()):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4, msg=name)
    assert "in each of 2 processes" in said and said.count("Train with the penalty") == 1


def test_two_processes_give_each_filter_the_score_that_one_does(shell, tmp_path):
    network = narrow("resnet-56", num_classes=10, width=1 / 4)
    save_checkpoint(tmp_path / "net.pth", network, {})
    together(shell, "--scores", tmp_path / "net.pth", tmp_path / "scores", cwd=tmp_path)
    theirs = torch.load(tmp_path / "scores")
    for name, ours in worker.scores(tmp_path / "net.pth").items():
        if name == "accuracy":
            assert theirs[name] == pytest.approx(ours, rel=1e-5)
            continue
        for layer, scores in ours.items():
            torch.testing.assert_close(
                theirs[name][layer],
                scores,
                rtol=1e-3,
                atol=1e-5 * scores.abs().max().item(),
                msg=f"{name} {layer}",
            )


@pytest.fixture(scope="module")
def alone(tmp_path_factory, images):
    """A job of one process, in a folder of its own."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.PRESETS, "test", short_preset(epochs=2))
        patch.chdir(folder)
        assert main.main([*JOB, images, "--pruning_type=fisher", "--prune_percent=40"]) == 0
    return folder


def test_two_processes_remove_the_same_filters_and_write_the_same_files(
    shell, images, alone, tmp_path
):
    shutil.copytree(alone / "pretrained", tmp_path / "pretrained")
    job = [*JOB, images, "--pretrained=True", "--pruning_type=fisher", "--prune_percent=40"]
    assert together(shell, *job, cwd=tmp_path).count("saved") == 1
    assert files(tmp_path).keys() == files(alone).keys()
    name = "vgg-w0.125_fisher_40_0"
    one, two = record(alone, name), record(tmp_path, name)
    assert two["environment"]["processes"] == 2 and one["environment"]["processes"] == 1
    assert two["widths"] == one["widths"]
    after = [result["pruning"].pop("after_pruning") for result in (one, two)]
    assert after[1] == pytest.approx(after[0], rel=1e-5) and two["pruning"] == one["pruning"]
    keys = load_checkpoint(tmp_path / f"pruned_nets/ebt/shapes/{name}.pth")[0].state_dict().keys()
    assert (
        keys == load_checkpoint(alone / f"pruned_nets/ebt/shapes/{name}.pth")[0].state_dict().keys()
    )


# ------------------------------------------------------------------------------ when it goes wrong


def test_a_process_that_fails_ends_the_job_which_others_resume(
    shell, images, tmp_path, monkeypatch
):
    """Two processes, of which the second fails in the last epoch: then two, or one, go on."""
    job = [*JOB, images, "--pruning_type=fisher", "--prune_percent=40", "--resume=True"]
    steps = 3  # in an epoch
    folders = {name: tmp_path / name for name in ("failing", "never stopped", "one")}
    for folder in folders.values():
        folder.mkdir()
    done = torchrun(*job, cwd=folders["failing"], WORKER_FAILS=f"1 {3 * steps + 2}")
    assert done.returncode and done.seconds < 100
    assert "LookupError: process out of luck" in done.stderr
    left = files(folders["failing"])
    assert any(name.endswith(".resume") for name in left)
    for name, content in left.items():
        path = folders["one"] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    said = together(shell, *job, cwd=folders["failing"])
    assert "retraining, after epoch 1 of 2 (" in said
    together(shell, *job, cwd=folders["never stopped"])
    monkeypatch.chdir(folders["one"])
    assert main.main(job) == 0
    nets = [
        load_checkpoint(folder / "pruned_nets/ebt/shapes/vgg-w0.125_fisher_40_0.pth")
        for folder in folders.values()
    ]
    for resumed, whole in zip(nets[0][0].state_dict().values(), nets[1][0].state_dict().values()):
        assert torch.equal(resumed, whole)
    assert nets[2][1].cfg == nets[1][1].cfg
    assert len(nets[2][1].history["retrain"]) == 2


def test_processes_that_choose_other_filters_are_an_error(shell, folder, tmp_path):
    job = [
        "--preset=test",
        f"--data_path={folder}",
        "--image_size=16",
        "--width=0.125",
        "--pruning_type=l1",
        "--prune_percent=40",
        "--ebt=True",
    ]
    first, second = shell.torchrun(WORKER, *job, cwd=tmp_path, WORKER_DIFFERS="1")
    assert first.returncode == 2 and second.returncode
    assert "main.py: error: the processes differ in the filters to keep: [1]" in first.stderr
    assert not list(tmp_path.rglob("*l1_40*.pth"))


def test_rounds_of_two_processes_and_a_signal(shell, folder, tmp_path):
    """An iterative job is stopped by Ctrl-C: it says how to go on, and does. The network is in a
    user's file beside modules called like the suite's, has no BatchNorm, and a layer that is never
    used."""
    (tmp_path / "models.py").write_text("WIDTH = 12")
    (tmp_path / "own.py").write_text(OWN)
    job = [
        "--preset=test",
        f"--data_path={folder}",
        "--image_size=16",
        "--model=own.py:Net",
        "--pruning_type=orthoreg",
        "--prune_percent=40",
        "--n_rounds=2",
        "--resume=True",
    ]
    with subprocess.Popen(
        COMMAND + job,
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as run:
        for line in run.stdout:
            if "ortho 1/2" in line:
                run.send_signal(signal.SIGINT)
        error = run.stderr.read()
    assert run.returncode and "main.py: interrupted: the last epoch's state is saved" in error
    assert "  goes on " in together(shell, *job, cwd=tmp_path)
    names = {path.name for path in (tmp_path / "pruned_nets/iterative/shapes").iterdir()}
    assert names == {
        f"own.Net_orthoreg_{name}.{kind}"
        for name in ("25_ortho_0", "40_0")
        for kind in ("pth", "json", "csv")
    }


def test_each_process_has_a_gpu_of_its_own_or_all_say_that_there_are_too_few(monkeypatch, capsys):
    taken = []
    for name, value in (("is_available", True), ("device_count", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)

    def started_as(number, count):
        for name, value in (
            ("MASTER_ADDR", "localhost"),
            ("RANK", number),
            ("LOCAL_RANK", number),
            ("WORLD_SIZE", count),
            ("LOCAL_WORLD_SIZE", count),
        ):
            monkeypatch.setenv(name, str(value))

    started_as(1, count=2)
    assert pick_device() == torch.device("cuda", 1) and taken == [1]
    assert pick_device("cpu") == torch.device("cpu")
    for number in range(3):
        started_as(number, count=3)
        assert run_command("main.py", pick_device) == 2
        heard = capsys.readouterr().err
        assert ("--nproc_per_node=2, or --device=cpu" in heard) == (number == 0)
    monkeypatch.setenv("RANK", "2")  # as if the first process of the second machine
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run_command("main.py", pick_device) == 2
    assert "main.py, rank 2 of 3: error: torchrun" in capsys.readouterr().err
    assert taken == [1]


def test_what_several_processes_cannot_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, value in (
        ("MASTER_ADDR", "localhost"),
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "16"),
    ):
        monkeypatch.setenv(name, value)
    assert main.main([*JOB, "--data_path=digits", "--only_train=base"]) == 2
    assert "--batch_size=16 is less than two images for each of the 16" in capsys.readouterr().err
    assert main.main(["--sweep=cpu"]) == 2
    assert "run it without torchrun" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
