"""--budget=latency: as many filters go, in the order of their scores, as the time asks for."""

import json
import sys

import pytest
import torch

import config
import main
from channels.costs import measure_cost
from channels.groups import filter_groups
from conftest import narrow, short_preset
from imp_estimator import cal_importance
from lab import latency
from pruner import max_percent, prune, select_filters


def time_by_macs(networks, batch, size, device, seconds):
    """What `measure_latency` gives on a machine whose time is multiply-adds, and never varies."""
    return {
        name: {"turns": [measure_cost(network, size)["macs"] * batch] * 5}
        for name, network in networks.items()
    }


@pytest.fixture(autouse=True)
def preset(monkeypatch, tmp_path):
    monkeypatch.setitem(config.PRESETS, "test", short_preset())
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name, how",
    [
        ("vgg", {}),
        ("mobilenet", {"round_to": 4}),
        ("resnet", {}),
        ("resnet-56", {"residual": "coupled"}),
    ],
)
def test_no_more_goes_than_the_time_asks_for(name, how, monkeypatch):
    monkeypatch.setattr(latency, "measure_latency", time_by_macs)
    model = narrow(name)
    scores = cal_importance(model, "random")
    whole, clock = measure_cost(model, 16)["macs"], latency.Clock(model, 16, 4, torch.device("cpu"))
    kept, saved, most = latency.select_by_time(model, scores, 50, clock, **how)
    small = prune(model, kept)
    assert saved.percent == pytest.approx(100 * (1 - measure_cost(small, 16)["macs"] / whole))
    assert 50 <= saved.percent < 53 < most.percent and saved.spread == 0
    if name == "vgg":  # where a filter counts once: a step less would have been too little
        now = 100 * (1 - sum(map(len, kept.values())) / sum(g.dense for g in filter_groups(model)))
        less = select_filters(model, scores, now - 2 * max_percent(model) / 2**latency.STEPS)
        assert measure_cost(prune(model, less), 16)["macs"] > whole / 2
    kept, saved, most = latency.select_by_time(model, scores, 99.9, clock, **how)
    assert saved == most and saved.percent < 99.9


@pytest.mark.parametrize("name", ["vgg", "mobilenet"])
def test_a_step_on_the_way_saves_no_more_than_it_was_asked_to(name, monkeypatch):
    """Later steps cannot give back what it took."""
    monkeypatch.setattr(latency, "measure_latency", time_by_macs)
    model = narrow(name)
    scores = cal_importance(model, "random")
    clock = latency.Clock(model, 16, 4, torch.device("cpu"))
    for percent in (2, 10, 30):
        _, saved, _ = latency.select_by_time(model, scores, percent, clock, exact=False)
        assert 0 <= saved.percent <= percent
    assert saved.percent > 15


def test_each_measurement_is_a_line_at_once(monkeypatch, capfd):
    """Where output goes to a file, too, minutes of measuring are not silent."""
    monkeypatch.setattr(latency, "measure_latency", time_by_macs)
    model, lines = narrow("vgg"), []

    class Clock(latency.Clock):
        def saved_by(self, *args):
            lines.append(capfd.readouterr().out.count("timed: without"))
            return super().saved_by(*args)

    clock = Clock(model, 16, 4, torch.device("cpu"))
    latency.select_by_time(model, cal_importance(model, "random"), 50, clock)
    assert lines == [0, *[1] * (latency.STEPS + 1)]
    assert "ms, 5" in capfd.readouterr().out  # of the cut that was found


def test_the_command_says_and_records_what_was_reached(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(latency, "measure_latency", time_by_macs)
    job = [
        "--preset=test",
        "--image_size=16",
        "--model=mobilenet",
        "--width=0.25",
        f"--data_path={folder}",
        "--pruning_type=fisher",
        "--budget=latency",
        "--latency_batch=2",
    ]
    assert main.main([*job, "--thresholds=[40, 60]"]) == 0
    out = capsys.readouterr().out
    for percent in (40, 60):
        record = json.loads(
            (
                tmp_path / f"pruned_nets/iterative/shapes/mobilenet-w0.25_fisher_{percent}_0.json"
            ).read_text()
        )
        figures, left = record["pruning"], 100 * record["macs"] / record["base"]["macs"]
        assert figures["achieved_percent"] == pytest.approx(100 - left)
        assert percent <= figures["achieved_percent"] < percent + 3
        assert figures["milliseconds"] == [2 * record["macs"], 2 * record["base"]["macs"]]
        assert (
            f"{figures['achieved_percent']:.2f}% of the time for a batch (asked for: {percent}%)"
            in out
        )
        assert f"a batch of 2 takes {2 * record['macs']:.2f} ms" in out
    assert main.main([*job, "--pretrained=True", "--prune_percent=95", "--round_to=8"]) == 0
    assert "is the most that can be removed" in capsys.readouterr().out
    for control, achieved in (("unpruned", 0), ("scratch", figures["achieved_percent"])):
        percent = ["--thresholds=[60]"] if achieved else []
        if achieved:
            assert main.main([*job, *percent, "--pretrained=True"]) == 0
            capsys.readouterr()
        assert main.main([*job, *percent, f"--control={control}"]) == 0
        record = json.loads(next(tmp_path.rglob(f"*{control}*.json")).read_text())
        assert record["pruning"]["achieved_percent"] == pytest.approx(achieved, abs=3)


SMALL = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
        )
"""


def test_real_times(folder, capsys, tmp_path, monkeypatch):
    (tmp_path / "small.py").write_text(SMALL)
    for name, value in (("BRIEF", 0.01), ("LONG", 0.01), ("STEPS", 1)):
        monkeypatch.setattr(latency, name, value)
    for runtime in ("pytorch", "onnxruntime"):
        if runtime == "onnxruntime":
            pytest.importorskip("onnxruntime")
        assert (
            main.main(
                [
                    "--preset=test",
                    "--image_size=16",
                    "--model=small.py:Net",
                    "--ebt=True",
                    f"--data_path={folder}",
                    "--pruning_type=l1",
                    "--budget=latency",
                    "--prune_percent=20",
                    f"--latency_runtime={runtime}",
                    "--round_to=8",
                    "--latency_batch=8",
                ]
            )
            == 0
        )
        out = capsys.readouterr().out
        assert "of the time for a batch (asked for: 20%)" in out and "measured in turn" in out


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--latency_batch=8"], "--latency_batch only works with --budget=latency"),
        (["--latency_runtime=onnxruntime"], "--latency_runtime only works with --budget=latency"),
        (["--latency_runtime=onnxruntime", "--budget=latency"], "pip install onnxruntime"),
        (["--budget=latency", "--eb_detect=True", "--ebt=True"], "take --budget=macs"),
    ],
)
def test_flags_of_the_time(flags, says, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main.main(["--pruning_type=l1", "--prune_percent=20", *flags]) == 2
    assert says in capsys.readouterr().err
