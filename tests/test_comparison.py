"""Fair comparisons: validation images, controls, the search for the ticket, whole sweeps."""

import csv
import itertools
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

import config
import eval as measure
import main
import train as train_module
from channels.checking import Masked
from channels.costs import measure_cost
from channels.groups import filter_count, filter_groups, widths_of
from common.device import processor
from common.errors import Diverged, InputError
from config import Recipe
from conftest import files, narrow, short_preset
from data import Split
from lab import cutting, drawing, latency, plots, significance
from lab import groups as group_check
from lab import sweep as sweeps
from lab.checkpoint import load_checkpoint, save_checkpoint
from lab.comparison import gaps_of
from lab.experiment import Sweep, parse
from lab.job import Job
from lab.record import Record
from lab.results import LARGEST, read_results
from lab.sections import describe_section
from pruner import kept_mask, mask_distance, prune, select_filters
from train import EarlyBird, Training, fit

RECIPE = Recipe(lr=[0.02], epochs=[3], weight_decay=0, adam_lr=[1e-3])


@pytest.fixture(autouse=True)
def preset(monkeypatch):
    monkeypatch.setitem(config.PRESETS, "test", short_preset())


@pytest.fixture
def flags(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [
        "--preset=test",
        "--image_size=16",
        "--width=0.125",
        f"--data_path={folder}",
        "--ebt=True",
    ]


def record(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_results_may_lie_elsewhere_and_be_moved(flags, tmp_path, capsys):
    job = [*flags, "--pruning_type=l1", "--prune_percent=30"]
    assert main.main([*job, "--out=a/b"]) == 0
    names = {path.relative_to(tmp_path).parts[:3] for path in tmp_path.rglob("*.pth")}
    assert names == {("a", "b", "pretrained"), ("a", "b", "pruned_nets")}
    os.rename("a/b", "c")
    assert main.main([*job, "--out=c", "--resume=True"]) == 0
    assert "This run is finished: c/pruned_nets/ebt/shapes/" in capsys.readouterr().out
    assert main.main([*job, "--out=c", "--pretrained=True"]) == 0
    assert "\n  c/pretrained/ebt/shapes/vgg-w0.125.pth: test" in capsys.readouterr().out


# ------------------------------------------------------------------------------ --epochs and --lr


def epochs_of(path):
    return {
        training: [(epoch["epoch"], epoch["lr"]) for epoch in epochs]
        for training, epochs in record(path)["history"].items()
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_epochs_and_lr_shape_all_trainings_of_a_job_and_stand_in_its_record(
    optimizer, flags, monkeypatch, tmp_path, capsys
):
    """The plan shows what results; file names stay; the record tells such a run from others."""
    recipe = Recipe(lr=[0.02, 0.002], epochs=[6, 2], weight_decay=0, adam_lr=[0.001, 0.0001])
    schedule = config.Schedule(base=recipe, ortho=recipe, retrain=recipe)
    monkeypatch.setitem(config.PRESETS, "test", config.Preset(schedule, schedule, 16))
    job = [*flags, "--pruning_type=orthoreg", "--prune_percent=30", f"--optimizer={optimizer}"]
    scaled = [*job, "--epochs=4", "--lr=0.01"]
    assert main.main(scaled) == 0
    out = capsys.readouterr().out
    for phase in ("ortho", "retrain"):
        assert f"  {phase}: 3 epochs at rate 0.01, 1 at 0.001\n" in out
    path = tmp_path / "pruned_nets/ebt/shapes/vgg-w0.125_orthoreg_30_0.pth"
    rates = [(1, 0.01), (2, 0.01), (3, 0.01), (4, 0.001)]
    assert epochs_of(path) == {"retrain": rates}
    assert record(path)["base"]["history"]["ortho"][3]["lr"] == 0.001
    assert {name: record(path)["flags"][name] for name in ("epochs", "lr")} == {
        "epochs": 4,
        "lr": 0.01,
    }
    assert main.main([*scaled, "--resume=True"]) == 0
    assert "This run is finished" in capsys.readouterr().out
    assert main.main([*job, "--print_config=True"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert [step["epochs"] for step in steps if "epochs" in step] == [[6, 2], [6, 2]]
    lines = describe_section([Record.read_result(record(path))])
    assert not any("differ" in line for line in lines)
    assert Record.read_result(record(path)).recipes == "test, epochs 4, lr 0.01"


def test_a_stopped_run_keeps_its_epochs_and_rate(flags, tmp_path, capsys, monkeypatch):
    job = [*flags, "--only_train=base", "--epochs=3", "--lr=0.03"]
    assert main.main([*job, "--out=whole"]) == 0
    evaluate, calls = train_module.evaluate, itertools.count()

    def stop(*args):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(train_module, "evaluate", stop)
    assert main.main(job) == 130
    assert "--epochs=3 --lr=0.03 --resume=True" in capsys.readouterr().err
    for other in (["--epochs=4", "--lr=0.03"], ["--epochs=3"]):
        assert main.main([*flags, "--only_train=base", *other, "--resume=True"]) == 2
        error = capsys.readouterr().err
        assert "--epochs was 3 and is 4" in error or "--lr was 0.03 and is None" in error
    assert main.main([*job, "--resume=True"]) == 0
    whole, resumed = (
        load_checkpoint(folder / "pretrained/ebt/shapes/vgg-w0.125.pth")[0]
        for folder in (tmp_path / "whole", tmp_path)
    )
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


def test_rounds_have_as_many_epochs_in_each_training(flags, tmp_path):
    job = [flag for flag in flags if flag != "--ebt=True"]
    assert (
        main.main(
            [*job, "--pruning_type=orthoreg", "--prune_percent=40", "--n_rounds=2", "--epochs=2"]
        )
        == 0
    )
    folder = tmp_path / "pruned_nets/iterative/shapes"
    first, last = (
        epochs_of(folder / f"vgg-w0.125_orthoreg_{name}_0.pth") for name in ("25_ortho", "40")
    )
    assert {name: len(epochs) for name, epochs in first.items()} == {"between": 2, "ortho": 2}
    assert {name: len(epochs) for name, epochs in last.items()} == {"retrain": 2}


def test_a_sweep_takes_epochs_and_lr_to_the_networks_that_its_cells_need(tmp_path):
    path = tmp_path / "s.json"
    path.write_text(
        json.dumps(
            {
                "preset": "test",
                "ebt": True,
                "pruning_type": ["l1", "fisher"],
                "prune_percent": 50,
                "epochs": 3,
                "lr": 0.05,
            }
        )
    )
    cells, runs = sweeps.plan(Sweep(str(path)))
    assert len(cells) == 2 and len(runs) == 3
    for run in runs:
        flags = parse(sweeps.command_of(run))
        assert (flags.epochs, flags.lr) == (3, 0.05) and sum(flags.schedule.base.epochs) == 3


# --------------------------------------------------------------------------- validation images


def test_held_out_images_are_balanced_fixed_by_the_seed_and_no_longer_trained_on(digits):
    def contents(split):
        return [image.numpy().tobytes() for image in split.images]

    held, again, other = (digits.hold_out(20, seed) for seed in (1, 1, 2))
    counts = digits.train.labels.bincount()
    assert torch.equal(held.validation.labels.bincount(), (counts * 0.2).round().long())
    assert len(held.train) + len(held.validation) == len(digits.train)
    assert sorted(contents(held.train) + contents(held.validation)) == sorted(
        contents(digits.train)
    )
    assert contents(held.validation) == contents(again.validation) != contents(other.validation)
    assert held.fingerprint != digits.fingerprint and held.test is digits.test
    assert digits.hold_out(0, 1) is digits and digits.chosen_on == "test"
    few = digits.train.labels < 0
    few[:30] = True
    rare = replace(digits, train=Split(digits.train.images[few], digits.train.labels[few]))
    counts, held = rare.train.labels.bincount(minlength=10), rare.hold_out(1, 0)
    assert held.validation.labels.bincount(minlength=10).tolist() == (counts > 1).long().tolist()
    single = Split(digits.train.images[few][:1], digits.train.labels[few][:1])
    with pytest.raises(InputError, match="no class has two images"):
        replace(digits, train=single).hold_out(1, 0)


def test_the_best_epoch_is_chosen_on_validation_images_and_the_test_images_are_used_once(
    digits, monkeypatch
):
    data, used = digits.hold_out(10, 0), []
    accuracy = {"validation": iter([50.0, 90.0, 60.0]), "test": iter([11.0, 22.0])}

    def evaluate(_model, batches):
        used.append("validation" if batches.split is data.validation else "test")
        assert used[-1] == "validation" or batches.split is data.test
        return {"loss": 1.0, "top1": next(accuracy[used[-1]])}

    monkeypatch.setattr(train_module, "evaluate", evaluate)
    model = narrow("vgg", 10)
    weights = []
    trained = fit(
        model,
        data,
        RECIPE,
        key=(0,),
        batch_size=256,
        keep=lambda: weights.append({k: v.clone() for k, v in model.state_dict().items()}),
    )
    assert used == ["validation"] * 3 + ["test"] * 2
    assert trained.best == {
        "epoch": 2,
        "loss": 1.0,
        "top1": 22.0,
        "validation": {"loss": 1.0, "top1": 90.0},
    }
    assert trained.last["epoch"] == 3 and trained.last["top1"] == 11.0
    assert [epoch["validation"]["top1"] for epoch in trained.history] == [50.0, 90.0, 60.0]
    assert all(map(torch.equal, model.state_dict().values(), weights[1].values()))


def test_images_that_were_trained_on_are_not_held_out(flags, capsys):
    assert main.main([*flags, "--only_train=base"]) == 0
    job = [*flags, "--pretrained=True", "--pruning_type=l1", "--prune_percent=30"]
    assert main.main([*job, "--val_percent=25"]) == 2
    assert (
        "may have been trained on the images that --val_percent=25 holds out"
        in capsys.readouterr().err
    )
    assert main.main([*flags, "--only_train=base", "--val_percent=25"]) == 0
    assert main.main([*job, "--val_percent=25"]) == 0


def test_output_and_record_say_what_chose_the_best_epoch(flags, tmp_path, capsys):
    for extra, images in ([], "test"), (["--val_percent=25"], "validation"):
        assert main.main([*flags, "--pruning_type=l1", "--prune_percent=30", *extra]) == 0
        output = capsys.readouterr().out
        assert f"  best epoch, chosen on the {images} images: 1; test accuracy " in output
        assert f"\n  The best epoch was chosen on the {images} images" in output
        assert ("which flatters" in output) == (images == "test")
        accuracy = record(next(tmp_path.glob("pruned_nets/*/*/*.pth")))["accuracy"]
        assert accuracy["chosen_on"] == images and accuracy["last"]["top1"] >= 0
        assert ("validation" in accuracy["best"]) == (images == "validation")
    assert ", 9 validation images" in output


# --------------------------------------------------------------------------- Early-Bird ticket


def test_the_distance_of_masks_is_the_share_of_filters_that_differ():
    model = narrow("vgg")
    scores = {g.name: torch.arange(g.dense) + 100.0 * i for i, g in enumerate(filter_groups(model))}
    a = kept_mask(select_filters(model, scores, 30), model)
    assert len(a) == sum(g.dense for g in filter_groups(model))
    assert (~a).sum() == round(0.3 * len(a)) and not a[0]  # the lowest go first
    b = a.clone()
    b[:3] = ~b[:3]
    assert mask_distance(a, a) == 0 and mask_distance(a, b) == pytest.approx(3 / len(a))


def masks(*shares, count=100):
    """() -> masks that differ from the empty one in these shares, one after the other."""
    left = iter(shares)

    def mask():
        kept = torch.zeros(count, dtype=torch.bool)
        kept[: round(next(left) * count)] = True
        return kept

    return mask


@pytest.mark.parametrize(
    "shares, epsilon, drawn",
    [
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 0.1, 5),  # never before there are five masks
        (
            [0.1, 0.9, 0.5, 0.45, 0.5, 0.42, 0.4, 0.4],
            0.1,
            7,
        ),  # the newest against each of the four before
        ([0.5, 0.5, 0.5, 0.5, 0.61, 0.5, 0.5, 0.5], 0.1, None),
        ([0.5, 0.5, 0.5, 0.5, 0.62, 0.5], 0.12, 5),
    ],
)
def test_the_ticket_is_drawn_when_five_masks_agree(shares, epsilon, drawn, digits, capsys):
    recipe = Recipe(lr=[0.02], epochs=[len(shares)], weight_decay=0, adam_lr=[1e-3])
    model, kept = narrow("vgg", 10), []
    trained = fit(
        model,
        digits,
        recipe,
        key=(0,),
        batch_size=512,
        ticket=EarlyBird(masks(*shares), epsilon),
        keep=lambda: kept.append({k: v.clone() for k, v in model.state_dict().items()}),
    )
    assert len(trained.history) == (drawn or len(shares))
    newest = len(trained.history) - 1
    assert trained.history[-1]["mask_distances"] == pytest.approx(
        [abs(shares[newest] - shares[newest - back]) for back in (1, 2, 3, 4)], abs=1e-6
    )
    if drawn:  # pruned is what the mask was of
        assert trained.best == trained.last and trained.best["epoch"] == drawn
        assert all(map(torch.equal, model.state_dict().values(), kept[-1].values()))
    lines = capsys.readouterr().out.splitlines()
    assert "mask" not in lines[0]
    assert "; mask differs from the 1 before in " in lines[1] and (
        f" of filters (ticket: all 4 at most {100 * epsilon:g}%)" in lines[1]
    )


def test_the_search_goes_on_where_it_was_stopped(digits):
    recipe = Recipe(lr=[0.02], epochs=[9], weight_decay=0, adam_lr=[1e-3])
    shares = [0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]

    def train(model, mask, **how):
        return fit(
            model, digits, recipe, key=(0,), batch_size=512, ticket=EarlyBird(mask, 0.1), **how
        )

    for stop in range(1, 7):  # after the last one the ticket is drawn already
        model, training, count = narrow("vgg", 10), Training(), 0

        def keep(stop=stop):
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(model, masks(*shares), training=training, keep=keep)
        assert len(train(model, masks(*shares[stop:]), training=training).history) == 6


def test_a_job_looks_for_its_ticket(flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(config.PRESETS, "test", short_preset(epochs=6))
    counts, estimate = [], cutting.cal_importance

    def spy(model, method, batches, **more):
        counts.append(len(batches.order))
        return estimate(model, method, batches, **more)

    monkeypatch.setattr(cutting, "cal_importance", spy)
    job = [
        *flags,
        "--pruning_type=fisher",
        "--prune_percent=30",
        "--eb_detect=True",
        "--eb_samples=12",
    ]
    assert main.main([*job, "--eb_epsilon=1"]) == 0
    assert counts == [12] * 5 + [36]  # a mask of each epoch, and the estimate
    output = capsys.readouterr().out
    assert (
        re.search(
            r"  the ticket is drawn after 5 epochs, with [\d.]+% on the test images "
            r"\(--eb_epsilon=1\)\n",
            output,
        )
        and "best epoch, chosen" not in output.split("Round")[0]
    )
    base = tmp_path / "pretrained/ebt/shapes/vgg-w0.125_fisher_30_ticket.pth"
    network, info = load_checkpoint(base)
    history = info.history["base"]
    assert info.accuracy["chosen_on"] == "ticket"
    assert info.accuracy["best"] == info.accuracy["last"]
    assert [len(epoch["mask_distances"]) for epoch in history] == [0, 1, 2, 3, 4]
    assert all(epoch["mask_seconds"] > 0 for epoch in history)
    assert main.main([*job, "--eb_epsilon=1e-9"]) == 0
    assert (
        "  no ticket was found: the whole schedule ran; a larger --eb_epsilon"
        in capsys.readouterr().out
    )
    network, info = load_checkpoint(base)
    assert len(info.history["base"]) == 6 and info.accuracy["chosen_on"] == "test"
    assert main.main([*job[:-2], "--control=scratch"]) == 2  # its epochs would be others
    assert "was pruned with --eb_detect=True, not False" in capsys.readouterr().err
    for wrong in ("--pretrained=True", "--ebt=False", "--control=scratch"):
        assert main.main([*job, wrong]) == 2
        assert "--eb_detect=True looks for the ticket" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ controls


def test_controls_have_the_budget_of_what_they_control(flags, tmp_path, capsys):
    job = [*flags, "--pruning_type=orthoreg"]
    assert main.main([*job, "--prune_percent=50", "--control=scratch"]) == 2
    assert "the same command without --control makes it" in capsys.readouterr().err
    assert main.main([*job, "--prune_percent=50"]) == 0
    folder = tmp_path / "pruned_nets/ebt/shapes"
    pruned, _ = load_checkpoint(folder / "vgg-w0.125_orthoreg_50_0.pth")
    trained = record(folder / "vgg-w0.125_orthoreg_50_0.pth")
    before = files(tmp_path)
    assert main.main([*job, "--prune_percent=50", "--control=scratch"]) == 0
    assert main.main([*job, "--pretrained=True", "--control=unpruned"]) == 0
    output = capsys.readouterr().out
    assert before.items() <= files(tmp_path).items()  # nothing is replaced

    scratch, _ = load_checkpoint(folder / "vgg-w0.125_orthoreg-scratch_50_0.pth")
    assert widths_of(scratch) == widths_of(pruned)
    figures = record(folder / "vgg-w0.125_orthoreg-scratch_50_0.pth")
    assert (
        figures["pruning"]["control"] == "scratch" and figures["pruned"]["file"] == trained["file"]
    )
    same_trainings(
        figures["history"],
        {**trained["base"]["history"], "retrain 1": trained["history"]["retrain"]},
    )

    whole, info = load_checkpoint(folder / "vgg-w0.125_ortho-unpruned_0_0.pth")
    assert not info.pruned and filter_count(whole)[0] == filter_count(whole)[1]
    assert len(info.history["retrain 1"]) == len(trained["history"]["retrain"])
    assert "Control: nothing is pruned" in output and "  its architecture is that of " in output


def same_trainings(history, other):
    """Their epochs have the same rates, and the penalty in the same places."""

    def spoken(history):
        return [
            (name, [(e["epoch"], e["lr"], "penalty" in e["train"]) for e in epochs])
            for name, epochs in history.items()
        ]

    assert spoken(history) == spoken(other)


@pytest.mark.parametrize("method", ["fisher", "orthoreg"])
def test_controls_of_several_rounds_have_the_trainings_of_all(method, flags, tmp_path, capsys):
    job = [*flags, "--ebt=False", f"--pruning_type={method}", "--n_rounds=2"]
    v, folder = "vgg-w0.125", tmp_path / "pruned_nets/iterative/shapes"
    assert main.main([*job, "--prune_percent=60"]) == 0
    last, mark = ("retrain", "") if method == "fisher" else ("ortho", "_ortho")
    first = record(folder / f"{v}_{method}_43{mark}_0.pth")
    final = record(folder / f"{v}_{method}_60_0.pth")
    rounds = {
        f"{name} {number}": epochs
        for number, r in ((1, first), (2, final))
        for name, epochs in r["history"].items()
    }
    assert list(rounds)[-2:] == [f"{last} 1", "retrain 2"]
    before = load_checkpoint(tmp_path / f"pretrained/iterative/shapes/{v}.pth")[1].history
    if method == "orthoreg":
        before |= first["base"]["history"]

    assert main.main([*job, "--prune_percent=60", "--control=scratch", "--pretrained=True"]) == 0
    same_trainings(
        record(folder / f"{v}_{method}-scratch_60_0.pth")["history"], {**before, **rounds}
    )
    unpruned = f"{v}_{'base' if method == 'fisher' else 'ortho'}-unpruned_0_0.pth"
    assert main.main([*job, "--pretrained=True", "--control=unpruned"]) == 0
    same_trainings(record(folder / unpruned)["history"], rounds)
    assert not load_checkpoint(folder / unpruned)[1].pruned


def test_both_networks_of_an_early_bird_job_see_the_same_images_in_the_same_order(
    flags, monkeypatch
):
    keys = []

    def fit(model, data, recipe, *, key, training, **_):
        keys.append(key)
        training.best = training.last = {"epoch": 0, "top1": 1.0, "loss": 1.0}
        return training

    monkeypatch.setattr(train_module, "fit", fit)
    for only in ("base", "ortho"):
        assert main.main([*flags, f"--only_train={only}"]) == 0
    assert keys == [(0, "base", 0)] * 2


def test_a_fresh_start_is_fresh_and_sees_what_the_base_network_saw(flags, digits, monkeypatch):
    keys, starts = [], []

    def fit(model, data, recipe, *, key, training, **_):
        keys.append(key)
        starts.append(model.state_dict()["features.24.weight"].clone())
        training.best = training.last = {"epoch": 0, "top1": 1.0, "loss": 1.0}
        return training

    monkeypatch.setattr(train_module, "fit", fit)
    job = [*flags, "--pruning_type=l1", "--prune_percent=50"]
    assert main.main(job) == main.main([*job, "--control=scratch"]) == 0
    assert keys == [(0, "base", 0), (0, "retrain", 1)] * 2
    assert starts[2].shape == starts[1].shape != starts[0].shape
    assert not torch.equal(starts[2], starts[1])


# -------------------------------------------------------------------------------------- sweeps


@pytest.fixture
def sweep(folder, tmp_path, monkeypatch):
    """(sweep file of 2 methods and 2 controls, command lines run so far); cells run in here."""
    monkeypatch.chdir(tmp_path)
    ran = []

    class InHere:
        def __init__(self, command, **_):
            ran.append(command[2:])
            self.code = main.main(command[2:])

        def wait(self):
            return self.code

    monkeypatch.setattr(
        sweeps, "subprocess", SimpleNamespace(Popen=InHere, STDOUT=subprocess.STDOUT)
    )
    settings = {
        "data_path": str(folder),
        "preset": "test",
        "image_size": 16,
        "width": 0.125,
        "ebt": True,
        "model": ["vgg"],
        "pruning_type": ["orthoreg", "l1"],
        "prune_percent": [30, 50],
        "control": [False, "unpruned"],
    }
    (tmp_path / "sweep.json").write_text(json.dumps(settings))
    return settings, ran


def networks(root):
    return sorted(path.stem for path in root.rglob("*.pth"))


def test_a_sweep_shares_networks_and_skips_what_is_finished(sweep, tmp_path, capsys):
    settings, ran = sweep
    assert len(sweeps.read_sweep("sweep.json")) == 6  # unpruned: once for each kind of network
    assert main.main(["--sweep=sweep.json"]) == 0
    output = capsys.readouterr().out
    assert "6 cells and 2 networks that they need: 8 runs, 1 at a time" in output
    v = "vgg-w0.125"
    assert networks(tmp_path) == sorted(
        [
            v,
            f"{v}_ortho",
            f"{v}_base-unpruned_0_0",
            f"{v}_ortho-unpruned_0_0",
            *(f"{v}_{method}_{percent}_0" for method in ("orthoreg", "l1") for percent in (30, 50)),
        ]
    )
    assert sum("--only_train" in " ".join(command) for command in ran) == 2
    assert (
        len(
            re.findall(
                r"^  \d of 8, (cell|pretrained).*: test top-1 .* \d+ s$", output, re.MULTILINE
            )
        )
        == 8
    )
    before, count = files(tmp_path), len(ran)
    assert main.main(["--sweep=sweep.json"]) == 0
    assert len(ran) == count and files(tmp_path) == before
    assert capsys.readouterr().out.count(", was finished") == 8


def test_one_failed_cell_does_not_stop_the_others(sweep, tmp_path, capsys, monkeypatch):
    prune = main.prune_filters

    def fail(job, number):
        if job.flags.prune_percent == 30 and job.flags.pruning_type == "l1":
            raise InputError("no luck")
        prune.run(job, number)

    monkeypatch.setattr(main, "prune_filters", replace(prune, run=fail))
    assert main.main(["--sweep=sweep.json", "--jobs=2"]) == 2
    captured = capsys.readouterr()
    assert "1 of 8 runs failed: cell 4, pruned_nets/ebt/shapes/vgg-w0.125_l1_30_0; " in captured.err
    assert "vgg-w0.125_l1_30_0: FAILED with exit code 2" in captured.out
    assert len(networks(tmp_path)) == 7
    monkeypatch.setattr(main, "prune_filters", prune)
    assert main.main(["--sweep=sweep.json"]) == 0 and len(networks(tmp_path)) == 8


def test_a_cell_begins_anew_where_what_it_began_with_has_changed(
    sweep, tmp_path, capsys, monkeypatch
):
    settings, ran = sweep
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                **settings,
                "pruning_type": ["l1"],
                "prune_percent": [30],
                "control": [False, "scratch"],
            }
        )
    )
    assert main.main(["--sweep=sweep.json"]) == 0 and len(ran) == 3
    assert main.main(["--sweep=sweep.json"]) == 0 and len(ran) == 3
    command = ran[0]  # the plain network's, anew and by another recipe
    preset = short_preset(epochs=2)
    monkeypatch.setitem(
        config.PRESETS,
        "test",
        replace(preset, ebt=replace(preset.ebt, base=replace(preset.ebt.base, lr=[0.01]))),
    )
    assert main.main([word for word in command if word != "--resume=True"]) == 0
    assert main.main(["--sweep=sweep.json"]) == 0 and len(ran) == 5
    assert capsys.readouterr().out.count("was finished") == 4

    # A cell that was stopped, and whose recipe has changed since, is not asked to go on.
    prune, stopped = main.prune_filters, []

    def stop(job, number):
        stopped.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "prune_filters", replace(prune, run=stop))
    (result,) = tmp_path.rglob("*l1_30_0.pth")
    result.unlink()
    assert main.main(["--sweep=sweep.json"]) != 0 and result.with_suffix(".resume").is_file()
    monkeypatch.setattr(main, "prune_filters", prune)
    monkeypatch.setitem(
        config.PRESETS,
        "test",
        replace(
            preset,
            ebt=replace(
                preset.ebt,
                base=replace(preset.ebt.base, lr=[0.01]),
                retrain=replace(preset.ebt.retrain, lr=[0.03]),
            ),
        ),
    )
    main.main(["--sweep=sweep.json"])
    assert result.is_file() and not result.with_suffix(".resume").is_file()


def test_what_needs_a_failed_run_is_left_out(sweep, tmp_path, capsys, monkeypatch):
    train = main.train_network

    def fail(job, phase, number=0):
        if phase == "ortho":
            raise Diverged("the loss is not finite")
        train.run(job, phase, number)

    monkeypatch.setattr(main, "train_network", replace(train, run=fail))
    assert main.main(["--sweep=sweep.json"]) == 2
    output = capsys.readouterr().out
    assert output.count("LEFT OUT, since what it needs failed") == 3
    assert output.count("FAILED with exit code 3") == 1 and len(networks(tmp_path)) == 4


def test_cells_wait_for_the_networks_that_they_need(sweep, monkeypatch):
    started = []

    class Slow:
        def __init__(self, command, **_):
            started.append(command)

        def wait(self):
            time.sleep(0.3)
            return 1

    monkeypatch.setattr(sweeps, "subprocess", SimpleNamespace(Popen=Slow, STDOUT=None))
    assert main.main(["--sweep=sweep.json", "--jobs=8"]) == 2
    assert len(started) == 2 and all("--only_train" in " ".join(command) for command in started)


def test_a_single_cell_runs_with_what_it_needs(sweep, tmp_path, capsys):
    settings, ran = sweep
    (tmp_path / "sweep.json").write_text(json.dumps({**settings, "control": ["scratch"]}))
    assert main.main(["--sweep=sweep.json", "--cell=2"]) == 0
    v = "vgg-w0.125"
    assert networks(tmp_path) == [f"{v}_ortho", f"{v}_orthoreg-scratch_50_0", f"{v}_orthoreg_50_0"]
    (tmp_path / "twins.json").write_text(json.dumps({**settings, "imp_samples": [10, 20]}))
    assert main.main(["--sweep=twins.json", "--cell=1"]) == 2
    assert "two cells of the sweep would write" in capsys.readouterr().err
    assert main.main(["--sweep=sweep.json", "--cell=5"]) == 2
    assert "--cell=5: the sweep has 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, says",
    [
        ({"model": "lenet"}, "--model"),
        ({"colour": 1}, "'colour' is no flag"),
        ({"resume": True}, "'resume' is no flag"),
        ({"seed": []}, "'seed' has no value"),
        ({"seed": None}, "--seed"),
        ({"model": {"a": 1}}, "--model"),
        ({"seed": [0, -1]}, "--seed"),
        ({"preset": ["test", "quick"]}, "two cells of the sweep would write"),
        (
            {
                "ebt": False,
                "n_rounds": 2,
                "pruning_type": "l1",
                "prune_percent": [43, 60],
                "control": False,
            },
            "two cells of the sweep would write pruned_nets/iterative/shapes/vgg-w0.125_l1_43_0.pth",
        ),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused_before_it_begins(
    change, says, sweep, tmp_path, capsys
):
    settings, ran = sweep
    (tmp_path / "sweep.json").write_text(json.dumps({**settings, **change}))
    before = files(tmp_path)
    try:
        assert main.main(["--sweep=sweep.json"]) == 2
    except SystemExit as error:  # argparse's way out
        assert error.code == 2
    assert says in capsys.readouterr().err and files(tmp_path) == before and not ran


@pytest.mark.parametrize(
    "text, says",
    [
        ("[" * 100_000, "a JSON file that can be read"),
        ('{"seed": 1, "seed": 2}', "a key is there twice"),
    ],
)
def test_a_sweep_that_is_no_json_is_refused(text, says, tmp_path, capsys):
    (tmp_path / "sweep.json").write_text(text)
    assert main.main([f"--sweep={tmp_path}/sweep.json"]) == 2
    assert says in capsys.readouterr().err


def test_what_fails_before_a_cell_begins_does_not_stop_the_others(sweep, tmp_path, capsys):
    (tmp_path / "pruned_nets/ebt/shapes/vgg-w0.125_l1_30_0.log").mkdir(parents=True)
    assert main.main(["--sweep=sweep.json"]) == 2
    captured = capsys.readouterr()
    assert "1 of 8 runs failed: cell 4, " in captured.err and len(networks(tmp_path)) == 7
    assert "vgg-w0.125_l1_30_0: FAILED: [Errno 21] Is a directory" in captured.out


def test_a_sweep_spells_values_as_the_command_line_does(sweep, tmp_path):
    settings, _ = sweep
    spelled = {
        **settings,
        "prune_percent": ["30", 50],
        "control": ["false", "unpruned"],
        "eb_detect": "FALSE",
    }
    (tmp_path / "sweep.json").write_text(json.dumps(spelled))
    of_words = sweeps.plan(Sweep("sweep.json"))
    (tmp_path / "sweep.json").write_text(json.dumps({**settings, "eb_detect": False}))
    assert sweeps.plan(Sweep("sweep.json")) == of_words


def test_a_sweep_of_weights_has_each_plain_network_once(sweep, tmp_path):
    """Only what is trained with the penalty depends on its weight."""
    settings, _ = sweep
    (tmp_path / "sweep.json").write_text(json.dumps({**settings, "penalty": [0, 0.1]}))
    cells, runs = sweeps.plan(Sweep("sweep.json"))
    plain = [cell for cell in runs if "penalty" not in cell]
    assert len(runs) == len(plain) + 2 * (8 - len(plain))  # 8 of the fixture's sweep
    assert all(cell.get("pruning_type", "l1") != "orthoreg" for cell in plain)
    assert {cell["penalty"] for cell in runs if cell not in plain} == {0, 0.1}
    (tmp_path / "iterative.json").write_text(
        json.dumps({**settings, "ebt": False, "penalty": [0, 0.1]})
    )
    assert any(
        run.get("only_train") == "base" and "penalty" not in run
        for run in sweeps.plan(Sweep("iterative.json"))[1]
    )
    names = [main.parse(sweeps.command_of(cell)).pruned_file("", 50, False) for cell in cells]
    assert len({*names}) == len({json.dumps({**c, "prune_percent": 50}) for c in cells})


def test_a_sweep_of_rounds_or_tickets_has_its_unpruned_controls(sweep, tmp_path):
    settings, _ = sweep
    for change, then in (
        ({"ebt": False, "thresholds": ["[20, 50]"]}, {"n_rounds": 2}),
        ({"ebt": False, "n_rounds": 2}, {"n_rounds": 2}),
        ({"eb_detect": True}, {}),
    ):
        changed = {**settings, **change}
        if "thresholds" in change:
            del changed["prune_percent"]
        (tmp_path / "sweep.json").write_text(json.dumps(changed))
        cells, runs = sweeps.plan(Sweep("sweep.json"))
        control = next(cell for cell in cells if cell["control"] == "unpruned")
        assert then.items() <= control.items()
        assert not {"thresholds", "prune_percent", "eb_detect"} & set(control)
        for cell in runs:
            assert all(runs.index(needed) < runs.index(cell) for needed in sweeps.needs_of(cell))


def test_cells_of_torchvisions_weights_are_normalised_as_these(sweep, tmp_path):
    settings, _ = sweep
    del settings["width"]
    (tmp_path / "sweep.json").write_text(
        json.dumps({**settings, "model": "resnet18", "pruning_type": "l1", "init": "DEFAULT"})
    )
    _, runs = sweeps.plan(Sweep("sweep.json"))
    flags = [main.parse(sweeps.command_of(run)) for run in runs]
    assert len(flags) > 2 and {command.normalize for command in flags} == {"imagenet"}
    given = [{**run, "normalize": "half"} for run in runs]
    assert {main.parse(sweeps.command_of(run)).normalize for run in given} == {"half"}
    assert [command.init for command in flags] == ["DEFAULT", *[None] * (len(flags) - 1)]


def test_each_of_several_gpus_has_its_own_cell(sweep, tmp_path, monkeypatch):
    seen = []

    class Started:
        def __init__(self, command, env, **_):
            seen.append(env["CUDA_VISIBLE_DEVICES"])

        def wait(self):
            return 1

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(sweeps, "subprocess", SimpleNamespace(Popen=Started, STDOUT=None))
    for visible, expected in ((None, ["0", "1"]), ("4,7", ["4", "7"])):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert main.main(["--sweep=sweep.json", "--jobs=2"]) == 2
        assert sorted(seen) == expected  # the two base networks; what needs them is left out
        seen.clear()


def test_a_run_waits_for_another_one(shell, flags, tmp_path):
    """Cells on several machines share a base network: one trains it, the others wait for it."""
    job = ("--preset=quick", *flags[1:], "--batch_size=2", "--only_train=base")
    how = ("--resume=True", "--wait=True")
    runs = [shell.start("main.py", *job, *how, cwd=tmp_path) for _ in range(2)]
    ended = [run.end(timeout=120) for run in runs]
    assert [run.returncode for run in ended] == [0, 0]
    assert sorted("Train the plain network" in run.stdout for run in ended) == [False, True]
    assert sum("This run is finished: " in run.stdout for run in ended) == 1
    assert len(networks(tmp_path)) == 1


@pytest.mark.parametrize("content", [None, "[1]", "{", "3"])
def test_a_sweep_file_that_is_none(content, sweep, tmp_path, capsys):
    (tmp_path / "sweep.json").unlink()
    if content:
        (tmp_path / "sweep.json").write_text(content)
    assert main.main(["--sweep=sweep.json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main.main(["--sweep=sweep.json", "--seed=1"]) == 2
    assert "leave out --seed" in capsys.readouterr().err
    assert main.main(["--jobs=2"]) == 2


def test_the_shipped_sweeps_can_be_read():
    assert len(sweeps.read_sweep("paper")) == 27
    for name in config.SWEEPS:
        for cell in sweeps.read_sweep(name):
            parse(sweeps.command_of(cell))
            assert sweeps.needs_of(cell)


def test_a_real_sweep_stopped_and_resumed(shell, folder, tmp_path):
    """Real processes, two at once; SIGTERM in the middle; the same command ends the work."""
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                "data_path": str(folder),
                "preset": "quick",
                "image_size": 16,
                "width": 0.125,
                "ebt": True,
                "batch_size": 2,
                "pruning_type": ["orthoreg", "l1"],
                "prune_percent": 30,
            }
        )
    )
    command = ("main.py", "--sweep=sweep.json", "--jobs=2")
    with shell.start(*command, cwd=tmp_path) as first:
        first.wait_until(lambda: list(tmp_path.rglob("*.resume")))
        first.send(signal.SIGTERM)
        ended = first.end(timeout=60)
    assert ended.returncode == 130
    assert "the same command goes on with this sweep" in ended.stderr
    assert list(tmp_path.rglob("*.resume"))
    again = shell(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert networks(tmp_path) == [
        "vgg-w0.125",
        "vgg-w0.125_l1_30_0",
        "vgg-w0.125_ortho",
        "vgg-w0.125_orthoreg_30_0",
    ]
    logs = [path.read_text() for path in (tmp_path / "pretrained").rglob("*.log")]
    assert any("interrupted: the state is saved" in log and "  goes on " in log for log in logs)


# -------------------------------------------------------------------------------------- report


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
    """Results of two methods and a control at two percents and two seeds, and a file that is none."""
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setitem(config.PRESETS, "test", short_preset(epochs=2))
        job = [
            "--preset=test",
            "--image_size=16",
            "--width=0.125",
            f"--data_path={folder}",
            "--ebt=True",
        ]
        for seed in ("--seed=0", "--seed=1"):
            for method in ("orthoreg", "bn"):
                only = "ortho" if method == "orthoreg" else "base"
                assert main.main([*job, seed, f"--only_train={only}"]) == 0
                for percent in (30, 60):
                    assert (
                        main.main(
                            [
                                *job,
                                seed,
                                "--pretrained=True",
                                f"--pruning_type={method}",
                                f"--prune_percent={percent}",
                            ]
                        )
                        == 0
                    )
        assert (
            main.main([*job, "--pretrained=True", "--pruning_type=bn", "--control=unpruned"]) == 0
        )
        assert (
            main.main([*job, "--pruning_type=bn", "--prune_percent=30", "--control=scratch"]) == 0
        )
    for i, path in enumerate(sorted(root.rglob("*.json"))):  # so few images make them all alike
        content = json.loads(path.read_text())
        content["accuracy"]["best"]["top1"] = 20 + 3.7 * (i * 5 % 11)
        path.write_text(json.dumps(content))
    (root / "other.json").write_text("[]")
    (root / "net_groups_fisher.json").write_text("{}")  # of --group_check, not a result
    return root


def test_the_report_has_the_figures_of_the_records(results, capsys):
    assert measure.main([f"--report={results}"]) == 0
    output = capsys.readouterr().out
    text = (results / "report.md").read_text()
    assert "Left out: 1 .json files that hold no result" in output and text.strip() in output

    def top1(method, percent, seed):
        path = results / f"pruned_nets/ebt/shapes/vgg-w0.125_{method}_{percent}_{seed}.pth"
        return record(path)["accuracy"]["best"]["top1"]

    def cell(method, percent):
        of = [top1(method, percent, seed) for seed in (0, 1)]
        mean = sum(of) / 2
        cost = [
            record(path)["macs"] / record(path)["base"]["macs"]
            for path in (
                results / f"pruned_nets/ebt/shapes/vgg-w0.125_{method}_{percent}_{seed}.pth"
                for seed in (0, 1)
            )
        ]
        return (
            f"{mean:.1f} ± {(sum((a - mean) ** 2 for a in of)) ** 0.5:.1f} ({50 * sum(cost):.0f})"
        )

    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "| VGG-13 x 0.125 | 30% removed | 60% removed | nothing removed |"
    for method in ("orthoreg", "bn"):
        assert f"| {method} | {cell(method, 30)} | {cell(method, 60)} | – |" in rows
    assert [row.split(" | ")[0][2:] for row in rows[2:6]] == [
        "orthoreg",
        "bn",
        "bn, scratch",
        "unpruned, as many epochs",
    ]
    assert rows[5].startswith("| unpruned, as many epochs | – | – | ")
    one = record(results / "pruned_nets/ebt/shapes/vgg-w0.125_bn_60_0.pth")
    details = next(row for row in rows if "| bn | 60 |" in row).split(" | ")
    assert details[3].startswith(f"{one['pruning']['achieved_percent']:.2f}")
    assert details[-1] == "2 |"
    one = record(results / "pruned_nets/ebt/shapes/vgg-w0.125_bn-scratch_30_0.pth")
    whole = record(results / "pruned_nets/ebt/shapes/vgg-w0.125_bn_30_0.pth")["base"]
    assert [row for row in rows if "x 0.125 | bn, scratch |" in row] == [
        f"| VGG-13 x 0.125 | bn, scratch | 30 | {one['pruning']['achieved_percent']:.2f} | "
        f"{100 * one['parameters'] / whole['parameters']:.1f} | {100 * one['flops'] / whole['flops']:.1f} "
        f"|  | {one['accuracy']['best']['top1']:.1f} | {one['accuracy']['last']['top1']:.1f} "
        f"|  | 1 |"
    ]
    assert (
        f"| bn, scratch | {one['accuracy']['best']['top1']:.1f} "
        f"({100 * one['flops'] / whole['flops']:.0f}, n = 1) | – | – |"
    ) in rows
    gaps = [top1("orthoreg", 60, seed) - top1("bn", 60, seed) for seed in (0, 1)]
    head, _, only, *after = rows[
        rows.index("| VGG-13 x 0.125 | minus | 30% removed | 60% removed |") :
    ]
    assert only.startswith("| orthoreg | bn | ")
    assert (
        f" | {sum(gaps) / 2:+.1f} ± {abs(gaps[0] - gaps[1]) / 2:.1f} (" in only
        and only.endswith("), n = 2 |")
    )
    assert after[0].startswith("| network | ")  # controls of one seed: no spread, no difference


def test_a_report_compares_methods_their_controls_and_what_the_pruning_adds(
    results, tmp_path, monkeypatch
):
    """Every difference is one between runs with the same seed, and its interval is scipy's. Plots
    with that many methods cut no label."""
    cut, save = [], plots.save_figure

    def look_and_save(figure, path):
        figure.canvas.draw()
        width, height = figure.canvas.get_width_height()
        for label in (
            label
            for axis in figure.axes
            for label in (axis.title, axis.xaxis.label, axis.yaxis.label)
        ):
            box = label.get_window_extent()
            if min(box.x0, box.y0) < 0 or box.x1 > width or box.y1 > height:
                cut.append((path.name, label.get_text()))
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", look_and_save)
    template = json.loads((results / "pruned_nets/ebt/shapes/vgg-w0.125_bn_60_0.json").read_text())
    generator = random.Random(0)
    top1 = {}
    for method, control in [
        *itertools.product(("orthoreg", "bn"), (False, "unpruned", "scratch")),
        ("l1", False),
        ("l1", "scratch"),
    ]:
        top1[method, control] = [
            generator.uniform(20, 90) for _ in range(2 if method == "l1" and control else 3)
        ]
        for seed, value in enumerate(top1[method, control]):
            template["accuracy"]["best"]["top1"] = value
            template["flags"].update(pruning_type=method, seed=seed)
            template["pruning"]["control"] = control
            (tmp_path / f"{method}_{control}_{seed}.json").write_text(json.dumps(template))
    assert measure.main([f"--report={tmp_path}"]) == 0
    assert not cut and len(list(tmp_path.glob("*.png"))) == 5
    rows = (tmp_path / "report.md").read_text().splitlines()
    head = next(i for i, row in enumerate(rows) if row.startswith("Differences in accuracy")) + 2
    assert rows[head] == "| VGG-13 x 0.125 | minus | 60% removed | nothing removed |"
    table = {
        (ours, theirs): cells
        for ours, theirs, *cells in (
            row[2:-2].split(" | ") for row in rows[head + 2 : rows.index("", head)]
        )
    }

    def words(ours, theirs):
        gaps = [a - b for a, b in zip(ours, theirs)]
        mean = statistics.mean(gaps)
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        low, high = stats.t.interval(0.95, len(gaps) - 1, mean, error)
        star = r"\*" if stats.ttest_1samp(gaps, 0).pvalue < 0.05 else ""
        return f"{mean:+.1f} ± {error:.1f}{star} ({low:.1f} to {high:.1f}), n = {len(gaps)}"

    def beyond(method):
        return [
            a - b
            for a, b in zip(
                top1[method, False], top1["orthoreg" if method == "orthoreg" else "bn", "unpruned"]
            )
        ]

    plain, penalised = "unpruned, as many epochs", "unpruned with penalty, as many epochs"
    assert table == {
        ("orthoreg", "bn"): [words(top1["orthoreg", False], top1["bn", False]), ""],
        ("orthoreg", "bn, each minus its unpruned network"): [
            words(beyond("orthoreg"), beyond("bn")),
            "",
        ],
        ("orthoreg", "l1"): [words(top1["orthoreg", False], top1["l1", False]), ""],
        ("orthoreg", "l1, each minus its unpruned network"): [
            words(beyond("orthoreg"), beyond("l1")),
            "",
        ],
        ("orthoreg, scratch", "bn, scratch"): [
            words(top1["orthoreg", "scratch"], top1["bn", "scratch"]),
            "",
        ],
        ("orthoreg, scratch", "l1, scratch"): [
            words(top1["orthoreg", "scratch"], top1["l1", "scratch"]),
            "",
        ],
        (penalised, plain): ["", words(top1["orthoreg", "unpruned"], top1["bn", "unpruned"])],
        ("orthoreg", penalised): [words(top1["orthoreg", False], top1["orthoreg", "unpruned"]), ""],
        ("bn", plain): [words(top1["bn", False], top1["bn", "unpruned"]), ""],
        ("l1", plain): [words(top1["l1", False], top1["bn", "unpruned"]), ""],
        **{
            (f"{method}, scratch", penalised if method == "orthoreg" else plain): [
                words(
                    top1[method, "scratch"],
                    top1["orthoreg" if method == "orthoreg" else "bn", "unpruned"],
                ),
                "",
            ]
            for method in ("orthoreg", "bn", "l1")
        },
        **{
            (method, f"{method}, scratch"): [
                words(top1[method, False], top1[method, "scratch"]),
                "",
            ]
            for method in ("orthoreg", "bn", "l1")
        },
    }


@pytest.fixture
def tables_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def _copies(template, folder, runs):
    """Write a record for each of {name of the file: (entries of it that differ, by part)}."""
    for name, parts in runs.items():
        content = json.loads(json.dumps(template))
        for part, entries in parts.items():
            content[part].update(entries)
        path = folder / f"{name}.json"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(json.dumps(content))


def _table_rows(text):
    return [tuple(line[2:-2].split(" | ")) for line in text.splitlines() if line.startswith("| ")]


def test_unpruned_controls_serve_all_sections_whose_networks_were_trained_alike(
    results, tmp_path, tables_only
):
    """A budget in multiply-adds prunes the same networks: its methods are compared beyond these,
    too. A control of another schedule serves nobody."""
    template = json.loads((results / "pruned_nets/ebt/shapes/vgg-w0.125_bn_60_0.json").read_text())

    def run(budget, control, seed, top1):
        return {
            "flags": {"budget": budget, "seed": seed},
            "pruning": {"control": control},
            "accuracy": {"best": {"top1": top1}},
        }

    runs = {f"macs/{seed}": run("macs", False, seed, 40.0 + seed) for seed in (0, 1)}
    runs |= {
        f"filters/{seed}": run("filters", "unpruned", seed, 50.0 + 3 * seed) for seed in (0, 1)
    }
    _copies(template, tmp_path, runs)
    assert measure.main([f"--report={tmp_path}"]) == 0
    text = (tmp_path / "report.md").read_text()
    assert ("bn", "unpruned, as many epochs", "-11.0 ± 1.0 (-23.7 to 1.7), n = 2") in _table_rows(
        text
    )
    assert "Unpruned networks that were trained alike are those of filters." in text
    other = {**template["schedule"], "penalty": 9.0}
    _copies(
        {**template, "schedule": other},
        tmp_path,
        {name: parts for name, parts in runs.items() if name.startswith("filters")},
    )
    assert measure.main([f"--report={tmp_path}"]) == 0
    assert "trained alike" not in (tmp_path / "report.md").read_text()


def test_a_report_compares_numbers_of_rounds_and_ways_to_cut(results, tmp_path, tables_only):
    template = json.loads((results / "pruned_nets/ebt/shapes/vgg-w0.125_bn_60_0.json").read_text())
    runs = {}
    for seed, (one, four) in enumerate(((50.0, 53.0), (52.0, 56.0))):
        for rounds, top1 in ((1, one), (4, four)):
            for number in {1, rounds}:  # an earlier round is no result of the job
                runs[f"rounds-{rounds}/{9 - number}_{seed}"] = {
                    "flags": {"seed": seed, "preset": f"test-{rounds}"},
                    "pruning": {"round": number, "rounds": rounds},
                    "accuracy": {"best": {"top1": top1 if number == rounds else 1.0}},
                }
        for residual, top1 in (("single", 60.0 + seed), ("coupled", 58.0 - seed)):
            runs[f"cut/{residual}_{seed}"] = {
                "flags": {"seed": seed, "residual": residual},
                "accuracy": {"best": {"top1": top1}},
            }
    _copies({**template, "job": "iterative"}, tmp_path, runs)
    assert measure.main([f"--report={tmp_path}"]) == 0
    rows = _table_rows((tmp_path / "report.md").read_text())
    assert ("bn, 1 round", "4 rounds", "-3.5 ± 0.5 (-9.9 to 2.9), n = 2") in rows
    assert ("bn", "bn, coupled", "+3.0 ± 1.0 (-9.7 to 15.7), n = 2") in rows


def test_methods_are_compared_by_the_last_rounds_of_their_jobs():
    def result(method, number, top1):
        return Record(
            flags={"pruning_type": method, "seed": 0},
            pruning={"requested_percent": 50.0, "round": number, "rounds": 2},
            accuracy={"best": {"top1": top1}},
        )

    last, earlier = [result("bn", 2, 60.0), result("l1", 2, 50.0)], result("bn", 1, 90.0)
    gaps = gaps_of([*last, earlier])
    assert gaps["bn, 2 rounds", "l1, 2 rounds"] == {(50.0, 0): 10.0}


def test_stars_are_those_of_t_tests_and_of_holms_correction():
    generator = random.Random(0)
    for freedom in (1, 2, 3, 4, 9, 30):
        assert significance.t_critical(freedom) == pytest.approx(stats.t.ppf(0.975, freedom))
        for t in (0.1, 2.0, 40.0):
            assert significance.t_outside(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom))
    for n in (2, 3, 8):
        gaps = [generator.gauss(1, 1) for _ in range(n)]
        difference = significance.Difference.of(gaps)
        assert difference.p == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
        if n > 2:  # a lead of that size is found in four of five repetitions
            shift, critical = difference.detectable() / difference.error, stats.t.ppf(0.975, n - 1)
            power = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
            assert power == pytest.approx(0.8, abs=1e-4)

    def difference(p, n=5):
        return significance.Difference(stats.t.isf(p / 2, n - 1), 1.0, n)

    marks = significance.stars(
        {
            "a": difference(0.02),
            "b": difference(0.01),
            "c": difference(0.03),
            "d": difference(0.6),
            "e": None,
        }
    )
    assert marks == {
        "a": "*",
        "b": "**",
        "c": "*",
        "d": "",
        "e": "",
    }  # .01 < .05 / 4, .02 > .05 / 3
    # Two equal differences, as of accuracies with one decimal, have no spread to test by.
    assert (
        significance.Difference.of([0.3 + 0.1, 0.4]).p == 1
        and significance.Difference.of([1.0]) is None
    )


def test_group_checks_stand_in_the_report_with_absolute_errors(results, tmp_path, tables_only):
    row = {
        "size": 64,
        "n": 32,
        "change": 0.5,
        "rank_scores": None,
        "rank_changes": 0.25,
        "error_scores": 4.0,
        "error_changes": 0.1,
    }
    old, new = (
        {"kinds": {"over all layers, random": [each]}, "penalised": penalised}
        for each, penalised in (
            (row, False),
            (row | {"gap_scores": 0.75, "gap_changes": 0.01}, True),
        )
    )
    shutil.copy(results / "pruned_nets/ebt/shapes/vgg-w0.125_bn_60_0.json", tmp_path)
    (tmp_path / "net_groups_fisher.json").write_text(json.dumps({"a.pth": old, "b.pth": new}))
    (tmp_path / "bad_groups_fisher.json").write_text(
        json.dumps({"a.pth": {"kinds": {"x": [{"size": 1}]}}})
    )
    assert measure.main([f"--report={tmp_path}"]) == 0
    rows = _table_rows((tmp_path / "report.md").read_text())
    kind = "over all layers, random", "64"
    assert (*kind, "plain", "32", "0.5", "4.00", "≈ 2", "–", "0.10", "≈ 0.05", "0.25") in rows
    assert (*kind, "penalised", "32", "0.5", "4.00", "0.75", "–", "0.10", "0.01", "0.25") in rows


@pytest.mark.parametrize(
    "keys, value",
    [
        (["orthogonality", "layers", "features.0"], {}),
        (["widths"], 3.5),
        (["widths", "features.0"], []),
        (["base", "widths"], True),
        (["widths", "features.0"], 10**400),
        (["base", "history"], [1, 2]),
        (["base", "history", "base"], [1, 2]),
        (["flags", "eb_epsilon"], {"a": 1}),
        (["flags", "penalty"], "strong"),
        (["base", "flags", "penalty"], [1]),
    ],
)
def test_what_no_plot_can_draw_is_no_result(keys, value, results, tmp_path):
    path = results / "pruned_nets/ebt/shapes/vgg-w0.125_bn_60_0.json"
    content = json.loads(path.read_text())
    (tmp_path / "good.json").write_text(path.read_text())
    (tmp_path / "deep.json").write_text("[" * 100_000)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (tmp_path / "bad.json").write_text(json.dumps(content))
    (tmp_path / "good (1).json").write_text(path.read_text())  # which is no further run
    read, others, copies = read_results(tmp_path)
    assert len(read) == 1 and [path.name for path in others] == ["bad.json", "deep.json"]
    assert [path.name for path in copies] == ["good.json"]
    with pytest.raises(ValueError, match=keys[-1]):  # it says which entry is wrong
        Record.read_result(content)


def test_a_report_says_what_it_mixes_and_leaves_out_what_is_damaged(results, tmp_path, capsys):
    shutil.copytree(results / "pruned_nets", tmp_path / "pruned_nets")
    paths = sorted(tmp_path.rglob("*.json"))
    changes = [
        ("flags", {"val_percent": 10, "seed": 2}),
        ("compression", None),
        ("job", "later"),
        ("history", 3),
        ("accuracy", {}),
        ("model", 3),
    ]
    for path, (key, value) in zip(paths, changes):
        content = json.loads(path.read_text())
        content[key] = {**content[key], **value} if key == "flags" else value
        path.write_text(json.dumps(content))
    assert measure.main([f"--report={tmp_path}"]) == 0
    output = capsys.readouterr().out
    assert "**These results also differ in --val_percent.**" in output
    assert f"Left out: 5 .json files that hold no result, the first is {paths[1]}" in output


def test_a_report_keeps_apart_what_are_no_seeds_of_one_thing(results, tmp_path):
    shutil.copytree(results / "pruned_nets", tmp_path / "pruned_nets")

    def text():
        return "\n".join(describe_section([r for r, _ in read_results(tmp_path)[0]]))

    whole = text()
    assert re.search(r"\| bn \| [^|–]*±[^|]* \| [^|–]*±[^|n]* \|", whole) and "differ" not in whole
    (path,) = tmp_path.rglob("vgg-w0.125_bn_60_1.json")
    content = json.loads(path.read_text())
    content["pruning"] |= {"round": 2, "rounds": 2}
    path.write_text(json.dumps(content))
    mixed = text()
    assert re.search(r"\| bn, 2 rounds \| – \| [^|±]* \(\d+, n = 1\) \|", mixed)
    assert re.search(r"\| bn \| [^|–]*±[^|]* \| [^|±]* \(\d+, n = 1\) \|", mixed)
    content["schedule"]["retrain"]["lr"] = [9.0, 8.0]
    content["pruning"] |= {"round": 1, "rounds": 1}
    path.write_text(json.dumps(content))
    assert "**These results also differ in the schedules of config.py.**" in text()
    content["flags"]["flip"] = False
    path.write_text(json.dumps(content))
    for other in set(tmp_path.rglob("*.json")) - {path}:  # of a version that had no such flag
        content = json.loads(other.read_text())
        del content["flags"]["flip"]
        other.write_text(json.dumps(content))
    assert "**These results also differ in --flip.**" in text()


def test_the_plots_show_the_figures_of_the_records():
    from matplotlib.figure import Figure

    def result(method, percent, seed, top1, distances):
        history = [{"epoch": i, "mask_distances": d} for i, d in enumerate(distances, 1)]
        return Record(
            flags={"pruning_type": method, "seed": seed, "eb_epsilon": 0.1},
            pruning={"requested_percent": percent},
            accuracy={"best": {"top1": top1}},
            base={
                "history": {"base": history},
                "accuracy": {"best": {"top1": 1.0}, "chosen_on": "ticket"},
            },
        )

    records = [
        result("bn", percent, seed, percent + seed, [[], [0.3], [0.2, 0.25], [0.1, 0.2, 0.15]])
        for percent in (25, 50)
        for seed in (0, 2)
    ]
    axis = Figure().add_subplot()
    assert plots.plot_masks(axis, records)
    line, ring, limit = axis.get_lines()
    assert list(line.get_xdata()) == [2, 3, 4] and list(line.get_ydata()) == [0.3, 0.25, 0.2]
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([4], [0.2])
    assert set(limit.get_ydata()) == {0.1} and line.get_label() == "bn, 50%, seed 0"

    axis = Figure().add_subplot()
    assert plots.plot_accuracy(axis, records, "share", lambda r: r.requested)
    line = axis.get_lines()[0]
    assert list(line.get_xdata()) == [25, 50] and list(line.get_ydata()) == [26, 51]
    (bars,) = axis.collections
    assert [abs(a[1] - b[1]) / 2 for a, b in bars.get_segments()] == pytest.approx([2**0.5] * 2)
    axis = Figure().add_subplot()  # what is left differs between seeds, too
    assert plots.plot_accuracy(axis, records[:2], "share", lambda r: 20 + 3 * r.flags["seed"])
    widths = [abs(a[0] - b[0]) / 2 for lines in axis.collections for a, b in lines.get_segments()]
    assert max(widths) == pytest.approx(18**0.5) and list(axis.get_lines()[0].get_xdata()) == [23]
    assert axis.get_xlim()[0] == 0

    axis = Figure().add_subplot()  # of equal cost, they would hide each other
    assert plots.plot_accuracy(
        axis,
        [*records, result("l1", 25, 0, 40, []), result("l1", 50, 0, 30, [])],
        "share",
        lambda r: r.requested + len(r.flags["pruning_type"]) / 9,
    )
    drawn = [point for bars in axis.containers for point in bars.lines[0].get_xdata()]
    assert drawn == pytest.approx([24.82, 49.82, 25.62, 50.62], abs=0.01)
    assert list(axis.get_xticks()) == [25, 50]


def test_the_plots_are_pictures_of_what_is_there(results):
    from PIL import Image

    measure.main([f"--report={results}"])
    names = {"accuracy", "macs", "widths", "orthogonality", "training"}  # no ticket was looked for
    assert {path.stem for path in results.glob("*.png")} == names
    for name in names:
        with Image.open(results / f"{name}.png") as image:
            assert image.width > 600 and len(image.convert("RGB").getcolors(10**6)) > 20
        assert f"]({name}.png)" in (results / "report.md").read_text()


def test_many_threads_look_at_finished_runs(results, folder, tmp_path, monkeypatch, capsys):
    """torch.fx can only trace one network at a time."""
    shutil.copytree(results, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(config.PRESETS, "test", short_preset(epochs=2))
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                "preset": "test",
                "image_size": 16,
                "width": 0.125,
                "ebt": True,
                "seed": [0, 1],
                "data_path": str(folder),
                "pruning_type": ["orthoreg", "bn"],
                "prune_percent": [30, 60],
            }
        )
    )
    looking, finished = threading.Lock(), Job.finished

    def alone(job):
        assert looking.acquire(blocking=False), "two at once"
        time.sleep(0.01)
        accuracy = finished(job)
        looking.release()
        return accuracy

    monkeypatch.setattr(Job, "finished", alone)
    assert main.main(["--sweep=sweep.json", "--jobs=6"]) == 0
    assert capsys.readouterr().out.count(", was finished") == 12


def test_a_plot_over_the_weight_of_the_penalty():
    from matplotlib.figure import Figure

    def result(weight, percent, seed, kind=False):
        base = {
            "accuracy": {"best": {"top1": 80.0 + seed}},
            "orthogonality": {"mean": 0.5 + weight, "layers": {}},
        }
        return Record(
            flags={"pruning_type": "orthoreg", "seed": seed},
            schedule={"penalty": weight},
            pruning={
                "requested_percent": percent,
                "control": kind,
                "after_pruning": {"top1": 100 * weight},
            },
            accuracy={"best": {"top1": 70.0 + 2 * seed}},
            base=base,
        )

    records = [
        result(weight, percent, seed)
        for weight in (0.1, 0, 0.01)
        for percent in (25, 75)
        for seed in (0, 1)
    ]
    axis = Figure().add_subplot()
    assert plots.plot_penalty(axis, [*records, result(0.1, 75, 7), result(5, 75, 0, "scratch")])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "0.01", "0.1"]
    drawn = {c.get_label(): list(c.lines[0].get_ydata()) for c in axis.containers}
    assert drawn == {
        "before pruning": [80.5] * 3,
        "right after pruning": [0, 1, 10],
        "retrained": [71] * 3,
        "degree of orthogonality before pruning, x 100": [50, 51, 60],
    }
    assert not plots.plot_penalty(axis, [r for r in records if r.strength == 0.1])
    assert not plots.plot_penalty(axis, [result(0, 75, 0), result(0.1, 75, 1)])
    styles = {
        drawing.method_style("orthoreg", weight=weight)["marker"]
        for weight in (0, 1e-4, 0.001, 0.01, 0.1, 1)
    }
    assert len(styles) == 6


def test_a_report_by_measured_time(results, tmp_path, capsys, monkeypatch):
    """On a machine whose time is multiply-adds; of one result the network is gone."""
    monkeypatch.setattr(
        latency,
        "measure_latency",
        lambda networks, batch, size, device, seconds: {
            name: {"turns": [measure_cost(network, size)["macs"]] * 5}
            for name, network in networks.items()
        },
    )
    shutil.copytree(results / "pruned_nets", tmp_path / "pruned_nets")
    gone = next(tmp_path.rglob("*_bn_60_1.pth"))
    gone.unlink()
    assert measure.main([f"--report={tmp_path}", "--latency=True", "--device=cpu"]) == 0
    output = capsys.readouterr().out
    assert "](time.png)" in output and (tmp_path / "time.svg").is_file()
    assert (
        f"Not timed: 1 of {len(list(tmp_path.rglob('*.json')))} networks, the first since" in output
    )
    assert str(gone) in output
    with open(tmp_path / "report.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == len(list(tmp_path.rglob("*.json")))
    for row in rows:
        left = float(row["flops_left_percent"])
        if (row["method"], row["requested_percent"], row["seed"]) == ("bn", "60.0", "1"):
            assert row["milliseconds"] == ""
        else:
            assert 100 * float(row["milliseconds"]) / float(
                row["unpruned_milliseconds"]
            ) == pytest.approx(left)
            assert float(row["spread_percent"]) == 0 and row["processor"] == processor()
        assert float(row["best"]) <= 100 and row["data"] == "shapes"
    assert measure.main([f"--report={tmp_path}"]) == 0
    assert "time.png" not in capsys.readouterr().out


def test_a_report_without_matplotlib_is_tables_alone(results, tmp_path, monkeypatch, capsys):
    shutil.copytree(results / "pruned_nets", tmp_path / "pruned_nets")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert measure.main([f"--report={tmp_path}"]) == 0
    assert "Tables only: a plot needs matplotlib" in capsys.readouterr().out
    assert (
        not list(tmp_path.glob("*.png"))
        and "| 30% removed | " in (tmp_path / "report.md").read_text()
    )


def test_names_in_a_report_are_text_and_nothing_is_written_through_links(results, tmp_path, capsys):
    """A folder that one does not trust: names that are Markdown, HTML or control characters."""
    content = json.loads(
        next(
            path for path in results.rglob("*.json") if path.name.endswith("bn_30_0.json")
        ).read_text()
    )
    evil = "a|b <img src=x onerror=alert(1)> [x](http://y) `c` $d \x1b[31m\nz"
    content["data"] = content["flags"]["pruning_type"] = evil
    content["environment"]["device"] = "<script>"
    (tmp_path / "evil.json").write_text(json.dumps(content))
    victim, folder = tmp_path / "victim", tmp_path / "out"
    folder.mkdir()
    victim.write_text("precious")
    (tmp_path / "evil.json").rename(folder / "evil.json")
    for name in ("report.md", "accuracy.png", "macs.png", "widths.png", "training.png"):
        (folder / name).symlink_to(victim)
    with open(folder / "large.json", "wb") as large:
        large.truncate(LARGEST + 1)
    os.mkfifo(folder / "pipe.json")
    (folder / "device.json").symlink_to("/dev/zero")
    assert measure.main([f"--report={folder}"]) == 0
    said, text = capsys.readouterr().out, (folder / "report.md").read_text()
    assert victim.read_text() == "precious" and not (folder / "report.md").is_symlink()
    assert "\x1b" not in said + text and "Left out: 3 .json files" in said
    for part in ("<img", "<script", "[x](", "a|b", "`c`"):
        assert part not in text.replace("\\" + part, "").replace(part[0] + "\\" + part[1:], ""), (
            part
        )
    table = [line for line in text.splitlines() if line.startswith("|") and "onerror" in line]
    assert table and all(len(re.findall(r"(?<!\\)\|", line)) in (3, 12) for line in table)
    assert all(
        (folder / name).read_bytes()[:4] == b"\x89PNG" for name in ("accuracy.png", "macs.png")
    )


def test_a_report_of_nothing_is_refused(results, tmp_path, capsys):
    for flags, says in (
        ([f"--report={tmp_path}"], "no results below it"),
        ([f"--report={tmp_path / 'no'}"], "is no folder"),
        ([f"--report={tmp_path}", "--model_path=x"], "contradict each other"),
    ):
        assert measure.main(flags) == 2
        assert says in capsys.readouterr().err and not files(tmp_path)


# ---------------------------------------------------------------------------------- group check


def test_a_removed_group_is_what_surgery_removes(network, few):
    model, groups = network, {g.name: g for g in filter_groups(network)}
    chosen = [name for name, g in groups.items() if not g.is_fixed and g.conv.out_channels > 1][
        1::2
    ]
    kept = {name: torch.arange(name in chosen, g.conv.out_channels) for name, g in groups.items()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    masked = Masked(model)
    masked.keep({name: kept[name] for name in chosen})
    logits = masked.network(few[0])
    torch.testing.assert_close(logits, prune(model, kept)(few[0]), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_changes_add_up_where_the_loss_is_linear_in_the_filters(few, monkeypatch):
    """The last layer's filters go into the logits by addition, and small logits into the loss."""
    model, few = narrow("vgg", width=1 / 4).double(), (few[0].double(), few[1])  # no rounding
    with torch.no_grad():
        model.classifier.weight.mul_(1e-2)
    last = filter_groups(model)[-1:]
    monkeypatch.setattr(group_check, "filter_groups", lambda _: last)
    figures = group_check.check_groups(model, [few], "fisher", draws=8)
    for rows in figures["kinds"].values():
        assert [row["size"] for row in rows] == [1, 2, 4, 8, 16, 32, 64][: len(rows)]
        assert rows[0]["error_changes"] == 0 and rows[0]["rank_changes"] == pytest.approx(1)
        for row in rows:
            assert row["rank_changes"] > 0.9 and row["error_changes"] < 0.1
    monkeypatch.undo()
    whole = group_check.check_groups(model, [few], "l1", draws=8, pool=16, layers=1)
    largest = whole["kinds"]["over all layers, random"][-1]
    assert largest["size"] == 16 and largest["error_changes"] > 0.1  # not so across layers


@pytest.mark.parametrize("additive", [True, False])
def test_the_check_tells_whether_importances_add_up(additive, few, monkeypatch):
    """In a made-up world where each filter is worth 1 to 2 and the loss is the worth of all that are
    removed, or its square."""
    import imp_estimator

    model = narrow("vgg", width=1 / 4)
    groups, draw = filter_groups(model), torch.Generator().manual_seed(0)
    worth = {g.name: 1 + torch.rand(g.conv.out_channels, generator=draw) for g in groups}

    def loss_without(kept):
        loss = sum(
            worth[name].sum().item() - worth[name][index].sum().item()
            for name, index in kept.items()
        )
        return {"loss": loss if additive else loss**2}

    def evaluate_without(model, cuts, batches, label):
        return {key: loss_without(kept) for key, kept in {None: {}, **cuts}.items()}

    monkeypatch.setattr(group_check, "evaluate_without", evaluate_without)
    scores = {name: 3 * of for name, of in worth.items()}
    monkeypatch.setattr(imp_estimator, "cal_importance", lambda *_, **__: scores)
    kinds = group_check.check_groups(model, [few], "fisher")["kinds"]
    assert list(kinds) == list(group_check.KINDS.values())
    for where in ("over all layers", "within a layer"):
        chance, lowest = kinds[f"{where}, random"], kinds[f"{where}, of the lowest scores"]
        assert [row["size"] for row in chance] == [row["size"] for row in lowest]
        for row in chance[:-1] + lowest[:-1]:  # the largest are all there is of a layer
            assert row["rank_scores"] > 0.98 and row["rank_changes"] > 0.98
            if additive or row["size"] == 1:
                assert row["error_changes"] < 1e-4 and row["error_scores"] < (
                    1e-4 if additive else 1
                )
                assert row["gap_changes"] == pytest.approx(
                    row["error_changes"] * row["change"], abs=1e-3
                )
            else:  # of a square, the members' own changes are about one in `size`
                assert row["error_changes"] == pytest.approx(1 - 1 / row["size"], abs=0.05)
                assert row["gap_changes"] == pytest.approx(
                    row["error_changes"] * row["change"], rel=0.2
                )
        for drawn, low in zip(chance[1:5], lowest[1:5]):
            assert low["change"] < drawn["change"]
    for i, name in enumerate(worth):  # scores that are right about layers and wrong within each
        scores[name], worth[name] = 10 * i + 3 - worth[name], worth[name] + 10 * i
    kinds = group_check.check_groups(model, [few], "fisher")["kinds"]
    assert kinds["over all layers, random"][0]["rank_scores"] > 0.9
    assert kinds["within a layer, random"][0]["rank_scores"] == pytest.approx(-1)


def test_the_rank_correlation_gives_equal_values_their_mean_rank():
    def of(*pairs):
        return group_check.spearman(*(torch.tensor(values) for values in zip(*pairs)))

    assert of((1.0, 3.0), (2.0, 4.0), (9.0, 5.0)) == pytest.approx(1)
    assert of((1.0, 5.0), (2.0, 4.0), (9.0, 3.0)) == pytest.approx(-1)
    assert of((1.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)) == pytest.approx(0.9**0.5)
    assert of((0.0, 1.0), (0.0, 2.0), (0.0, 3.0)) is None


def test_nothing_can_be_checked_where_nothing_can_be_removed(few, tmp_path, capsys):
    model = narrow("vgg", num_classes=10)
    scores = {g.name: torch.arange(g.conv.out_channels) for g in filter_groups(model)}
    small = prune(model, select_filters(model, scores, 95))
    save_checkpoint(tmp_path / "net.pth", small, {"data_path": "digits", "image_size": 16})
    assert measure.main([f"--model_path={tmp_path}/net.pth", "--group_check=True"]) == 2
    assert "no layer has more filters than it must keep" in capsys.readouterr().err
    assert list(files(tmp_path)) == ["net.pth"]


def test_the_group_check_of_two_networks(results, tmp_path, capsys, monkeypatch):
    ticks, save = [], group_check.save_figure

    def look(figure, path):
        figure.canvas.draw()
        ticks.extend(label.get_text() for axis in figure.axes for label in axis.get_yticklabels())
        save(figure, path)

    monkeypatch.setattr(group_check, "save_figure", look)
    base, ortho = (
        results / f"pretrained/ebt/shapes/vgg-w0.125{name}.pth" for name in ("", "_ortho")
    )
    command = [
        f"--model_path={base}",
        f"--compare={ortho}",
        "--group_check=True",
        "--imp_samples=12",
    ]
    assert measure.main(command) == 0
    output = capsys.readouterr().out
    assert output.count("Groups within a layer, random") == 2
    figures = json.loads(base.with_name("vgg-w0.125_groups_fisher.json").read_text())
    assert list(figures) == [str(base), str(ortho)]
    assert figures[str(base)]["images"] == 12 and figures[str(base)]["environment"]["torch"]
    assert base.with_name("vgg-w0.125_groups_fisher.png").is_file()
    assert ticks and not any("$" in text for text in ticks)  # formulas are not drawn as such
