"""Both scripts as a user drives them: every combination in this process, the main ones as
processes of their own."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import config
import eval as measure
import main
from channels.groups import all_filters, filter_count, filter_groups, widths_of
from config import MODELS, Preset
from conftest import ROOT, WIDTH, files, narrow, short_preset, write_folder
from data import load_data
from imp_estimator import ESTIMATORS, cal_importance
from lab import sweep, tables
from lab.checkpoint import load_checkpoint
from lab.experiment import make_parser, parse
from lab.plan import Plan
from lab.record import Record
from lab.writers import Console
from pruner import prune, select_filters
from train import evaluate

SIZE = 16


def run_main(*flags):
    return main.main([f"--image_size={SIZE}", "--preset=test", *flags])


def test_control_characters_in_the_names_of_files_reach_no_terminal(
    digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "PRESETS", {**config.PRESETS, "test": short_preset()})
    monkeypatch.setenv("XDG_CACHE_HOME", "c\x1b]0;x\x07d")
    images = write_folder(
        tmp_path / "im\x1b[31mgs", digits, classes=("one", "t\nw\x1b[7mo", "=three")
    )
    assert (
        run_main(
            "--width=0.125",
            f"--data_path={images}",
            "--ebt=True",
            "--only_train=base",
            "--memory=0.00001",
        )
        == 0
    )
    path = "pretrained/ebt/im\x1b[31mgs/vgg-w0.125.pth"
    assert (
        measure.main(
            [
                f"--model_path={path}",
                "--test_acc=True",
                "--per_class=True",
                f"--predict={images}/test",
            ]
        )
        == 0
    )
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said and "\x07" not in said
    assert (
        r"saved pretrained/ebt/im\x1b[31mgs/vgg-w0.125.pth" in said
        and r"c\x1b]0;x\x07d/orthoreg/" in said
    )


def process(script, *flags, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, flags)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


@pytest.fixture(autouse=True)
def preset(monkeypatch):
    monkeypatch.setitem(config.PRESETS, "test", short_preset())


# ------------------------------------------------------------------------------ every combination


# Jobs of a method: their flags, and {percent that each of their networks lacks: whether it is
# trained with the penalty, since a round follows}.
JOBS = {
    "ticket": (("--ebt=True", "--prune_percent=30"), {30: False}),
    "rounds": (("--prune_percent=40", "--n_rounds=2"), {25: True, 40: False}),
    "thresholds": (("--thresholds=[20, 60]",), {20: True, 60: False}),
}


@pytest.fixture(scope="module", params=WIDTH)
def trained(request, tmp_path_factory, folder):
    """(network, folder, flags) where all networks that a job begins with are trained."""
    model = request.param
    root = tmp_path_factory.mktemp(model)
    flags = (f"--model={model}", f"--width={WIDTH[model]}", f"--data_path={folder}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setitem(config.PRESETS, "test", short_preset())
        for ebt, only in itertools.product((True, False), ("base", "ortho")):
            assert run_main(*flags, f"--ebt={ebt}", f"--only_train={only}") == 0
    return model, root, flags


def test_each_job_has_networks_of_its_own_to_begin_with(trained):
    model, root, _ = trained
    names = {str(path.relative_to(root)) for path in root.glob("pretrained/*/*/*.pth")}
    assert names == {
        f"pretrained/{job}/shapes/{model}-w{WIDTH[model]:g}{suffix}.pth"
        for job in ("ebt", "iterative")
        for suffix in ("", "_ortho")
    }


def jobs_of(model):
    """(method, job): all with VGG-13, and with the others each job. Their runs take seconds;
    test_importance has all methods on them."""
    if model == "vgg":
        return list(itertools.product(ESTIMATORS, JOBS))
    if model == "mobilenet":
        return [("fisher", "ticket"), ("l1", "rounds"), ("orthoreg", "thresholds")]
    if model == "resnet":
        return [
            ("orthoreg", "rounds"),
            ("theis", "thresholds"),
            ("bn", "rounds"),
            ("grasp", "ticket"),
        ]
    return [("orthoreg", job) for job in JOBS]


def test_every_method_in_every_job(trained, monkeypatch, capsys):
    model, root, flags = trained
    monkeypatch.chdir(root)
    jobs = jobs_of(model)
    for method, job in jobs:
        more, networks = JOBS[job]
        start = (*flags, "--pretrained=True", f"--pruning_type={method}")
        assert run_main(*start, *more) == 0
        for percent, another_follows in networks.items():
            penalised = another_follows and method == "orthoreg"
            assert_pruned(root, f"{model}-w{WIDTH[model]:g}_{method}", percent, job, penalised)
    out, of_orthoreg = (
        capsys.readouterr().out,
        [job for method, job in jobs if method == "orthoreg"],
    )
    rounds = len(of_orthoreg) - of_orthoreg.count("ticket")
    assert out.count("train with the penalty, for the next round") == rounds
    assert out.count("without the penalty since no round follows") == len(of_orthoreg)


def assert_pruned(root, begin, percent, job, penalised):
    """The network and the record that a job has written are of one size, which was asked for."""
    kind, middle = "ebt" if job == "ticket" else "iterative", "_ortho" if penalised else ""
    path = root / f"pruned_nets/{kind}/shapes/{begin}_{percent}{middle}_0.pth"
    pruned, info = load_checkpoint(path)
    now, dense = filter_count(pruned)
    record = json.loads(path.with_suffix(".json").read_text())
    achieved = 100 * (1 - now / dense)
    assert record["pruning"]["achieved_percent"] == pytest.approx(achieved)
    reach = min(percent, record["pruning"]["max_percent"])
    assert achieved == pytest.approx(reach, abs=250 / dense), path
    assert info.penalised == penalised


# ------------------------------------------------------------------------------ what a run writes


@pytest.fixture
def ticket(tmp_path, folder, monkeypatch, capsys):
    """An Early-Bird ticket with its output: (folder, path, record, text)."""
    monkeypatch.chdir(tmp_path)
    assert (
        run_main(
            "--width=0.125",
            f"--data_path={folder}",
            "--ebt=True",
            "--pruning_type=orthoreg",
            "--prune_percent=25",
            "--seed=3",
        )
        == 0
    )
    path = tmp_path / "pruned_nets/ebt/shapes/vgg-w0.125_orthoreg_25_3.pth"
    return (
        tmp_path,
        path,
        json.loads(path.with_suffix(".json").read_text()),
        capsys.readouterr().out,
    )


def test_the_record_tells_the_truth_about_the_network(ticket, folder):
    root, path, record, _ = ticket
    model, kept = load_checkpoint(path)
    data = load_data(folder, SIZE)
    assert record["accuracy"]["best"]["top1"] == evaluate(model, data.test_batches())["top1"]
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["widths"] == {g.name: g.conv.out_channels for g in filter_groups(model)}
    assert record["compression"]["file_bytes"] == path.stat().st_size
    assert record["flops"] == 2 * record["macs"] < record["base"]["flops"]
    assert record["pruning"]["requested_percent"] == 25
    assert record["flags"]["pruning_type"] == "orthoreg" and record["flags"]["seed"] == 3
    assert record["schedule"]["retrain"]["lr"] == [0.02]
    assert len(record["history"]["retrain"]) == 1 and record["accuracy"]["chosen_on"] == "test"
    assert set(record["seconds"]) == {"importance", "pruning", "retrain"}
    assert record["orthogonality"]["layers"].keys() == widths_of(model).keys()
    assert record["environment"]["torch"] == torch.__version__
    assert record["base"]["file"] == "pretrained/ebt/shapes/vgg-w0.125_ortho_s3.pth"
    base, _ = load_checkpoint(root / record["base"]["file"])
    assert record["base"]["accuracy"]["best"]["top1"] == evaluate(base, data.test_batches())["top1"]
    assert kept.classes == list(data.classes) and kept.image_size == SIZE


def test_the_output_tells_the_story(ticket):
    _, _, record, out = ticket
    for part in (
        "VGG-13, Early-Bird job",
        "36 training and 18 test images of 3 classes",
        "Train with the penalty",
        "ortho 1/1  lr 0.02  loss",
        "in the mean (before the training: ",
        "features.31",
        "Round 1 of 1, step 1 of 3",
        "Round 1 of 1, step 2 of 3",
        "removed ",
        " filters: 25.00% (asked for: 25%)",
        " -> ",
        "FLOPs",
        "test accuracy right after pruning",
        "step 3 of 3: retrain",
        "unpruned",
        "percent removed",
        record["file"],
        "chosen on the test images, which flatters all accuracies",
        "was trained 1 epoch longer than the unpruned one",
    ):
        assert part in out, part


def test_rounds_go_on_from_each_other_and_a_seed_decides_everything(tmp_path, folder, monkeypatch):
    results = []
    for run, seed in enumerate((0, 0, 1)):
        cwd = tmp_path / str(run)
        cwd.mkdir()
        monkeypatch.chdir(cwd)
        assert (
            run_main(
                "--model=resnet-56",
                "--width=0.25",
                f"--data_path={folder}",
                "--pruning_type=orthoreg",
                "--prune_percent=50",
                "--n_rounds=2",
                f"--seed={seed}",
            )
            == 0
        )
        base = "pretrained/iterative/shapes/resnet-56-w0.25"
        assert {name for name in files(cwd) if name.startswith(base)} == {
            f"{base}{s}.{kind}"
            for s in ("_s1" * seed, "_ortho" + "_s1" * seed)
            for kind in ("pth", "csv")
        }
        folder_name = cwd / "pruned_nets/iterative/shapes"
        first, _ = load_checkpoint(folder_name / f"resnet-56-w0.25_orthoreg_33_ortho_{seed}.pth")
        second, _ = load_checkpoint(folder_name / f"resnet-56-w0.25_orthoreg_50_{seed}.pth")
        for a, b in zip(filter_groups(second), filter_groups(first)):
            assert a.conv.out_channels <= b.conv.out_channels
        results.append(second.state_dict())
    first, again, other = results
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["linear.bias"], other["linear.bias"])


def test_iterative_orthoreg_uses_the_base_that_is_there(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--width=0.125", f"--data_path={folder}")
    assert run_main(*flags, "--only_train=base") == 0
    base = tmp_path / "pretrained/iterative/shapes/vgg-w0.125.pth"
    before = base.read_bytes()
    capsys.readouterr()
    assert run_main(*flags, "--pruning_type=orthoreg", "--prune_percent=20") == 0
    out = capsys.readouterr().out
    assert "Load the trained network" in out and "Train the plain network" not in out
    assert base.read_bytes() == before
    assert run_main(*flags, "--only_train=ortho", "--batch_size=18") == 0
    assert "trained with other settings" in capsys.readouterr().out
    base.with_name("vgg-w0.125_ortho.pth").unlink()
    assert (
        run_main(*flags, "--pretrained=True", "--pruning_type=orthoreg", "--prune_percent=20") == 0
    )
    assert "Train with the penalty" in capsys.readouterr().out
    assert base.read_bytes() == before


def test_a_target_beyond_the_floors_says_how_far_it_went(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--model=resnet-56", "--width=0.25", f"--data_path={folder}", "--pruning_type=l1")
    assert run_main(*flags, "--thresholds=[0, 90, 95]") == 0
    out = capsys.readouterr().out
    assert out.count("88.72% is the most that can be removed") == 2
    assert out.count("This round removes nothing") == 2  # the first, and the last


# -------------------------------------------------------------------------------- as processes


def test_processes_train_prune_and_measure(tmp_path, folder, shell):
    flags = ("--preset=quick", f"--data_path={folder}", "--image_size=16", "--width=0.125")
    done = process(
        "main.py",
        *flags,
        "--ebt=true",
        "--model=vgg",
        "--pretrained=FALSE",
        "--pruning_type=fisher",
        "--prune_percent=50",
        cwd=tmp_path,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    path = "pruned_nets/ebt/shapes/vgg-w0.125_fisher_50_0.pth"
    assert path in done.stdout and "base 4/4" in done.stdout
    record = json.loads((tmp_path / path).with_suffix(".json").read_text())

    shown = shell(
        "eval.py",
        "--model",
        "vgg",
        "--pruned",
        "True",
        "--model_path",
        path,
        "--train_acc",
        "True",
        "--test_acc",
        "True",
        "--flops",
        "True",
        "--compression",
        "True",
        "--eval_ortho",
        "True",
        cwd=tmp_path,
    )
    assert shown.returncode == 0 and shown.stderr == "", shown.stderr
    assert (
        f"18 test images of shapes: top-1 {record['accuracy']['best']['top1']:.2f}%" in shown.stdout
    )
    for part in (
        f"{record['parameters']:,}",
        f"{record['macs']:,}",
        f"{record['flops']:,}",
        "MACs (multiply-adds)",
        "FLOPs (2 per MAC)",
        "36 training images",
        "degree of orthogonality",
        f"{record['orthogonality']['mean']:.3f}",
        "pruned VGG-13",
    ):
        assert part in shown.stdout, part
    ratio = re.search(r"file size .* ([\d.]+)x", shown.stdout)[1]  # pickled strings may be shared
    assert float(ratio) == pytest.approx(record["compression"]["file"], abs=0.02)

    base = "pretrained/ebt/shapes/vgg-w0.125.pth"
    before = files(tmp_path)
    for wrong in (
        ("--model", "resnet", "--model_path", path),
        ("--pruned", "False", "--model_path", path),
        ("--pruned", "True", "--model_path", base),
        ("--model_path", path, "--data_path", "digits", "--test_acc", "True"),
        ("--model_path", "missing.pth"),
    ):
        refused = shell("eval.py", "--flops=True", *wrong, cwd=tmp_path)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert (
        "holds: pruned VGG-13"
        in shell(
            "eval.py", "--model", "resnet", "--model_path", path, "--flops=True", cwd=tmp_path
        ).stderr
    )
    assert files(tmp_path) == before


def test_a_base_network_of_something_else_is_refused(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--width=0.125", f"--data_path={folder}")
    assert run_main(*flags, "--only_train=base") == 0
    path = tmp_path / "pretrained/iterative/shapes/vgg-w0.125.pth"
    start = ("--pretrained=True", "--pruning_type=l1", "--prune_percent=25")
    before = files(tmp_path)
    assert main.main(["--preset=test", *flags, *start, "--image_size=24"]) == 2
    assert "--image_size=16 fits it" in capsys.readouterr().err
    other = path.with_name("mobilenet-w0.125.pth")
    other.write_bytes(path.read_bytes())
    assert run_main(*flags, *start, "--model=mobilenet") == 2
    assert "holds: unpruned VGG-13" in capsys.readouterr().err
    other.unlink()
    wider = path.with_name("vgg-w0.25.pth")
    wider.write_bytes(path.read_bytes())
    assert run_main(f"--data_path={folder}", *start, "--width=0.25") == 2
    assert "--width=0.125; --width=0.25 is wrong" in capsys.readouterr().err
    wider.unlink()
    assert files(tmp_path) == before


def test_ctrl_c_ends_with_130(tmp_path, folder, monkeypatch, capsys):
    import train

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train_epoch", interrupt)
    flags = ("--width=0.125", f"--data_path={folder}", "--only_train=base")
    assert run_main(*flags) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("main.py: interrupted: the state is saved")
    assert shlex.join(flags) + " --resume=True" in error


def test_other_images_under_the_same_name_are_noticed(tmp_path, digits, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = write_folder(tmp_path / "a" / "mine", digits)
    other = write_folder(tmp_path / "b" / "mine", digits, train=11)
    assert run_main("--width=0.125", f"--data_path={mine}", "--only_train=base") == 0
    prune = ("--width=0.125", "--pretrained=True", "--pruning_type=l1", "--prune_percent=20")
    assert run_main(*prune, f"--data_path={mine}") == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "Note" in line]
    assert all("too few to learn much from" in note for note in notes)
    assert run_main(*prune, f"--data_path={other}") == 2  # its result would be replaced
    assert "was trained on the images of" in capsys.readouterr().err
    assert run_main(*prune[:-1], "--prune_percent=30", f"--data_path={other}") == 0
    assert "was trained on other images than mine has now" in capsys.readouterr().out


def test_output_folders_are_tried_before_hours_of_training(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pruned_nets").write_text("in the way")
    assert (
        run_main(
            "--width=0.125", f"--data_path={folder}", "--pruning_type=l1", "--prune_percent=20"
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot write to pruned_nets/iterative/shapes/" in error
    assert list(files(tmp_path)) == ["pruned_nets"]


@pytest.mark.parametrize("kind", ["json", "pth", "tensorboard"])
def test_so_are_the_files_themselves(kind, tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    there = tmp_path / f"pruned_nets/iterative/shapes/vgg-w0.125_l1_20_0.{kind}"
    there.parent.mkdir(parents=True)
    there.touch() if kind == "tensorboard" else there.mkdir()
    assert (
        run_main(
            "--width=0.125",
            f"--data_path={folder}",
            "--pruning_type=l1",
            "--prune_percent=20",
            "--tensorboard=True",
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot write" in error and there.name in error
    assert not list(tmp_path.rglob("pretrained"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line(tmp_path, folder):
    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "--preset=quick",
        f"--data_path={folder}",
        "--image_size=16",
        "--width=0.125",
        "--only_train=base",
    ]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space" in done.stderr


@pytest.mark.parametrize("script, module", [("main.py", main), ("eval.py", measure)])
def test_help_names_every_flag_without_importing_torch(script, module, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module.__name__} as m\n"
        "try: m.main(['--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert shown.stdout.endswith("False\n")
    flags = {
        "main.py": [
            "--model",
            "-m",
            "--ebt",
            "--pretrained",
            "--data_path",
            "--pruning_type",
            "--prune_percent",
            "--pruning_percent",
            "--n_rounds",
            "--thresholds",
            "--seed",
            "--only_train",
            "--imp_samples",
            "--GraSP_T",
            "--num_classes",
        ],
        "eval.py": [
            "--model",
            "--pruned",
            "--model_path",
            "--data_path",
            "--train_acc",
            "--test_acc",
            "--flops",
            "--compression",
            "--eval_ortho",
        ],
    }[script]
    for flag in [*flags, "--device", "(default:"]:
        assert flag in shown.stdout, flag


def test_defaults_are_the_documented_ones():
    flags = main.parse(["--pruning_type=l1", "--prune_percent=50"])
    assert (
        flags.data_path,
        flags.model,
        flags.ebt,
        flags.pretrained,
        flags.n_rounds,
        flags.seed,
        flags.only_train,
        flags.imp_samples,
        flags.GraSP_T,
        flags.num_classes,
        flags.image_size,
        flags.preset,
        flags.batch_size,
        flags.device,
    ) == ("CIFAR100", "vgg", False, False, 1, 0, False, 10000, 200, None, 32, "paper", 128, "auto")


def test_file_names_of_the_published_jobs():
    flags = main.parse(
        ["--model=resnet-56", "--pruning_type=orthoreg", "--prune_percent=80", "--n_rounds=3"]
    )
    assert [str(flags.base_file("", ortho)) for ortho in (False, True)] == [
        "pretrained/iterative/resnet-56.pth",
        "pretrained/iterative/resnet-56_ortho.pth",
    ]
    assert (
        str(flags.pruned_file("", 57.14, True))
        == "pruned_nets/iterative/resnet-56_orthoreg_57_ortho_0.pth"
    )
    assert (
        str(flags.pruned_file("digits", 80.0, False))
        == "pruned_nets/iterative/digits/resnet-56_orthoreg_80_0.pth"
    )


@pytest.mark.parametrize(
    "flag, weight, name",
    [
        ((), 0.01, "vgg_ortho.pth vgg_orthoreg_50_0.pth"),
        (("--penalty=0.01",), 0.01, "vgg_ortho-lambda0.01.pth vgg_orthoreg-lambda0.01_50_0.pth"),
        (
            ("--penalty=0", "--control=scratch"),
            0,
            "vgg_ortho-lambda0.pth vgg_orthoreg-lambda0-scratch_50_0.pth",
        ),
    ],
)
def test_the_weight_of_the_penalty_is_used_recorded_and_shows_in_names(flag, weight, name):
    flags = main.parse(["--pruning_type=orthoreg", "--prune_percent=50", *flag])
    plan = Plan(flags)
    assert plan.settings("ortho", "retrain")["ortho"]["penalty"] == weight == flags.strength
    assert plan.settings("retrain")["retrain"]["penalty"] == 0
    assert (
        " ".join(
            path.name for path in (flags.base_file("", True), flags.pruned_file("", 50, False))
        )
        == name
    )
    assert flags.base_file("", False).name == "vgg.pth"


def weights_in(path):
    return load_checkpoint(path)[0].state_dict()


def test_any_method_prunes_either_network(tmp_path, folder, monkeypatch):
    """`orthoreg` and `fisher` have one score: what they differ in is the network alone."""
    monkeypatch.chdir(tmp_path)
    job = ("--width=0.125", f"--data_path={folder}", "--thresholds=[20, 40]", "--batch_size=18")

    def pruned(method, *more):
        assert run_main(*job, f"--pruning_type={method}", *more) == 0
        (path,) = Path("pruned_nets").rglob("*_40_0.pth")
        record = Record.read_result(json.loads(path.with_suffix(".json").read_text()))
        weights = weights_in(path)
        shutil.rmtree("pruned_nets")
        return path.name, record, weights

    orthoreg, penalised = pruned("orthoreg"), pruned("fisher", "--prune_from=ortho")
    fisher, plain = pruned("fisher"), pruned("orthoreg", "--prune_from=base")
    for (_, own, weights), (_, other, others) in ((orthoreg, penalised), (fisher, plain)):
        assert own.history.keys() == other.history.keys()
        assert all(torch.equal(weights[name], others[name]) for name in weights)
        assert own.unpruned.penalised == other.unpruned.penalised
        assert own.strength == other.strength
        assert own.unpruned_method == other.unpruned_method
    assert any(
        orthoreg[2][name].shape != fisher[2][name].shape
        or not torch.equal(orthoreg[2][name], fisher[2][name])
        for name in fisher[2]
    )
    assert penalised[0] == "vgg-w0.125_fisher-from-ortho_40_0.pth"
    assert plain[0] == "vgg-w0.125_orthoreg-from-base_40_0.pth"
    assert penalised[1].variant == "fisher, from the penalised network, 2 rounds"
    assert plain[1].variant == "orthoreg, from the plain network, 2 rounds"


def test_a_network_that_the_method_prunes_anyway_is_nothing_new():
    job = ["--ebt=True", "--prune_percent=50"]
    for method, start in (("orthoreg", "ortho"), ("bn", "base")):
        said = main.parse([*job, f"--pruning_type={method}", f"--prune_from={start}"])
        assert said == main.parse([*job, f"--pruning_type={method}"])
    control = ["--ebt=True", "--control=unpruned"]
    for method, start, same in (("bn", "ortho", "orthoreg"), ("orthoreg", "base", "fisher")):
        said = main.parse([*control, f"--pruning_type={method}", f"--prune_from={start}"])
        assert said == main.parse([*control, f"--pruning_type={same}"])
    scratch = main.parse([*job, "--pruning_type=bn", "--prune_from=ortho", "--control=scratch"])
    assert scratch.method == "bn-from-ortho-scratch" and scratch.penalised
    assert (
        main.parse([*job, "--pruning_type=bn", "--prune_from=ortho", "--penalty=0"]).strength == 0
    )


def test_a_sweep_over_networks_trains_each_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = {
        "data_path": "digits",
        "ebt": True,
        "pruning_type": ["fisher", "bn", "orthoreg"],
        "prune_from": ["base", "ortho"],
        "penalty": [0, 0.01],
        "prune_percent": [50, 75],
        "control": [False, "unpruned"],
    }
    Path("sweep.json").write_text(json.dumps(cells))
    cells, runs = sweep.plan(parse(["--sweep=sweep.json"]))
    pruned = [cell for cell in cells if not cell["control"]]
    # Three methods on the plain network and on two with a penalty, twice; three controls.
    assert len(pruned) == 18 and len(cells) == 18 + 3
    trained = [run for run in runs if "only_train" in run]
    assert sorted((run["only_train"], run.get("penalty")) for run in trained) == [
        ("base", None),
        ("ortho", 0),
        ("ortho", 0.01),
    ]
    names = [parse(sweep.command_of(cell)).pruned_file("", 50, False).name for cell in cells]
    assert len(set(names)) == 9 + 3
    assert {name for name in names if "unpruned" in name} == {
        "vgg_base-unpruned_50_0.pth",
        "vgg_ortho-lambda0-unpruned_50_0.pth",
        "vgg_ortho-lambda0.01-unpruned_50_0.pth",
    }


def code_with(word, page):
    """The first block of Python on a page that has a word in it."""
    blocks = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    return next(block for block in blocks if word in block)


def test_the_python_of_the_readme_runs_and_its_flags_exist(monkeypatch, tmp_path):
    text, more = (ROOT / "README.md").read_text(), (ROOT / "lab/README.md").read_text()
    prune_it = code_with("build_model", text)
    keep_it = code_with("save_checkpoint(", more)
    names = {}
    exec(prune_it, names)
    now, dense = filter_count(names["small"])
    assert now == dense // 2
    monkeypatch.chdir(tmp_path)
    kept = {"net": names["model"], "small": names["small"]}
    exec(code_with("load_network(", more), kept)
    assert filter_count(kept["small"]) == (now, dense)
    monkeypatch.setitem(config.PRESETS, "quick", short_preset())
    names["small"] = narrow("vgg", num_classes=10)
    exec(keep_it, names)
    assert measure.main(["--model_path=small.pth", "--test_acc=True"]) == 0
    assert all(f"`{name}`" in text for name in ESTIMATORS)
    assert all(title in text for title in MODELS.values())
    flags = {
        name
        for parser in (make_parser(), measure.make_parser())
        for action in parser._actions
        for name in action.option_strings
    }
    for page in (text, more):
        for line in re.sub(r"`?torchrun.*|.*rdzv.*|#SBATCH.*|--logdir", "", page).splitlines():
            assert set(re.findall(r"(?<![-\w])--[a-z]\w+", line)) <= flags, line


def test_a_training_that_has_learnt_nothing_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    job = ("--width=0.125", "--data_path=digits", "--only_train=base", "--ebt=True")
    schedule = short_preset(3).ebt
    for rate, notes in ((0.02, 0), (1e-9, 1)):
        base = replace(schedule.base, lr=[rate])
        monkeypatch.setitem(config.PRESETS, "test", Preset(replace(schedule, base=base), schedule))
        assert run_main(*job, "--batch_size=32", "--class_weights=balanced") == 0
        out = capsys.readouterr().out
        assert out.count("nothing has been learnt yet") == notes, out


@pytest.mark.parametrize(
    "right, says",
    [
        (
            62.7,
            [
                "62.7% of the training images are right",
                "One answer for all gets 48.0%",
                "with 64 images up to 66.7% may be luck",
            ],
        ),
        (67.0, []),
        (40.0, ["40.0%"]),
    ],
)
def test_more_than_a_constant_answer_may_be_luck_and_the_note_says_how_much(right, says, capsys):
    data = SimpleNamespace(chance=48.0, train=range(64))
    history = [
        {
            "epoch": 1,
            "lr": 0.1,
            "seconds": 1.0,
            "train": {"loss": 1.0, "top1": right},
            "test": {"top1": 50.0},
        }
    ]
    Console(None, data).epoch("base", ("base", 0), history, 3, None)
    out = capsys.readouterr().out
    assert all(words in out for words in says) and ("Note" in out) == bool(says)


def test_what_is_asked_for_is_said_in_the_words_of_the_budget(capsys):
    assert tables.goal_text("50%", "filters") == "remove filters until 50% are gone"
    assert (
        tables.goal_text("50%", "macs") == "remove filters until 50% of the multiply-adds are gone"
    )
    assert tables.goal_text("50%", "latency") == "remove filters until a batch takes 50% less time"
    for name in (
        "mobilenet",
        "vgg",
    ):  # the number of filters is that of the list, or a line says why
        model = narrow(name)
        small = prune(model, select_filters(model, cal_importance(model, "l1"), 50))
        tables.print_pruning(model, small, 50, 50.0, 16)
        dense, listed = filter_count(model)[1], sum(map(len, all_filters(model).values()))
        line = f"{dense - listed:,} of the {dense:,} follow others, as depthwise filters do"
        assert (line in capsys.readouterr().out) == (dense > listed) == (name == "mobilenet")


def test_classes_that_are_never_predicted_are_called_so_everywhere(capsys):
    figures = {"top1": 10.0, "unanswered": 1}
    assert tables.accuracy_text(figures).endswith("1 class never predicted")
    assert tables.accuracy_text({**figures, "unanswered": 2}).endswith("2 classes never predicted")
    tables._print_notes([Record(accuracy={"best": figures, "chosen_on": "test"}, num_classes=10)])
    assert (
        "The unpruned network never predicts 1 of 10 classes; eval.py --per_class=True says which."
    ) in capsys.readouterr().out
