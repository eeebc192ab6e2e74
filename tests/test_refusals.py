"""Bad input through the real command line: one line that says what would be right, exit code 2, no
traceback, nothing written."""

import collections
import json
import os
import re
import shutil
import zlib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import eval as measure
from common.errors import InputError
from conftest import ROOT, copy_suite, files, write_folder
from data import load_data
from lab import hints, reader, report, results
from lab.checkpoint import load_checkpoint
from lab.experiment import Experiment, Sweep, make_parser
from lab.sweep import read_sweep

PRUNE = ("--pruning_type=l1", "--prune_percent=25", "--data_path=digits")


def refused(shell, script, *flags, cwd, says, **how):
    before = sorted(cwd.rglob("*")), files(cwd)
    ended = shell(script, *flags, cwd=cwd, **how)
    assert ended.returncode == 2, ended
    assert ended.stderr.count("\n") == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert ended.stderr.startswith(f"{Path(script).name}: error: ") and says in ended.stderr, (
        ended.stderr
    )
    assert (sorted(cwd.rglob("*")), files(cwd)) == before  # not even an empty folder is left
    return ended


# ----------------------------------------------------------------------------------------- flags

INTEGERS = {
    "image_size": (0, 1025),
    "num_classes": (1, -2),
    "batch_size": (1, 0),
    "seed": (-1,),
    "prune_percent": (-1, 96, 12.5),
    "pruning_percent": (-1, 96),
    "n_rounds": (0, 96),
    "imp_samples": (0, 10**30),
    "rdt_projections": (-1, 1001),
    "val_percent": (-1, 51),
    "test_percent": (-1, 91),
    "eb_samples": (0,),
    "jobs": (0,),
    "cell": (0,),
    "round_to": (0, 1025),
    "latency_batch": (0, 65537),
    "epochs": (0, 100_001),
    "score_steps": (0, 101),
    "bn_images": (-1,),
}
NUMBERS = {
    "width": (0, -1, "nan", "inf", 17),
    "GraSP_T": (0, -200, "nan", "inf"),
    "eb_epsilon": (0, 1.1, "nan"),
    "lr": (0, -0.1, "nan", "inf"),
    "memory": (0, "nan", "inf"),
}
BOOLEANS = (
    "ebt",
    "pretrained",
    "resume",
    "skip_bad_images",
    "wait",
    "eb_detect",
    "compile",
    "deterministic",
    "tensorboard",
    "print_config",
    "flip",
    "per_cost",
)
CHOICES = {
    "ranking": "global",
    "select": "best, False",
    "choose": "last",
    "budget": "macs",
    "residual": "coupled",
    "model": "vgg",
    "preset": "paper",
    "optimizer": "adam",
    "pruning_type": "orthoreg",
    "device": "cuda",
    "only_train": "base, ortho, False",
    "amp": "bfloat16, float16, False",
    "control": "unpruned, scratch, False",
    "normalize": "half, cifar, imagenet",
    "latency_runtime": "onnxruntime",
    "augment": "crop",
    "class_weights": "balanced, False",
    "prune_from": "base, ortho, False",
    "classifier": "keep, False",
}


def test_no_flag_is_forgotten():
    tried = {
        *INTEGERS,
        *NUMBERS,
        *BOOLEANS,
        *CHOICES,
        "thresholds",
        "data_path",
        "penalty",
        "distill",
        "keep",
    }
    assert {flag.name for command in (Experiment, Sweep) for flag in fields(command)} - tried == {
        "init",
        "out",
        "sweep",
    }


@pytest.mark.parametrize(
    "flag, value, says",
    [
        *(
            (name, value, "an integer from")
            for name, values in INTEGERS.items()
            for value in (*values, "abc", "", "1e3", "0x10")
        ),
        *(
            (name, value, "a number from 0 up")
            for name in ("penalty", "distill")
            for value in (-1, "nan", "inf", "wide", "")
        ),
        *(
            (name, value, "a number above 0")
            for name, values in NUMBERS.items()
            for value in (*values, "wide", "")
        ),
        *((name, value, "none of True, False") for name in BOOLEANS for value in ("yes", "1", "")),
        *((name, "nonsense", says) for name, says in CHOICES.items()),
        *(
            ("thresholds", value, "rising list")
            for value in (
                "",
                "[]",
                "()",
                "[50, 10]",
                "[10, 10]",
                "[10, 96]",
                "[-1]",
                "50",
                "[1.5]",
                "['a']",
                "[True]",
                "{1}",
                "[[1]]",
                "[1",
                "__import__('os').mkdir('pwned')",
                "[" * 5000,
            )
        ),
        ("data_path", "no\nwhere", "neither a folder"),
        ("un\nknown", "1", "--un known"),
        *((name, "", "it is empty") for name in ("data_path", "init", "out", "sweep", "keep")),
        ("keep", "layer1.*,,x", "it is empty"),
        ("unknown", "1", "--unknown"),
        ("prune_perc", "20", "--prune_perc"),
    ],
)
def test_every_flag_of_main(flag, value, says, shell, tmp_path):
    refused(shell, "main.py", *PRUNE, f"--{flag}={value}", cwd=tmp_path, says=says)


@pytest.mark.parametrize(
    "flags, says",
    [
        (("--model_path",), "--model_path"),
        ((), "--model_path"),
        *(
            ((f"--{name}=maybe", "--model_path=x"), "none of True, False")
            for name in ("pruned", "train_acc", "test_acc", "flops", "compression", "eval_ortho")
        ),
        (("--model=alexnett", "--model_path=x"), "did you mean alexnet"),
        (("--num_classes=1", "--model_path=x"), "2"),
        (("-m=--", "--model_path=x"), "-m: '--' is no value"),
        (("--device=abacus", "--model_path=x"), "cuda"),
        (("--model_path=x", "--flops=True"), "no checkpoint at x"),
        *(
            ((f"--{name}=", "--model_path=x"), "it is empty")
            for name in ("export", "predict", "compare")
        ),
        (("stray", "--model_path=x"), "stray"),
    ],
)
def test_every_flag_of_eval(flags, says, shell, tmp_path):
    refused(shell, "eval.py", *flags, cwd=tmp_path, says=says)


@pytest.mark.parametrize(
    "make, words, says",
    [
        *(
            (make_parser, words, says)
            for words, says in (
                (
                    "--pruning_ratio=0.5",
                    "there is no --pruning_ratio: --prune_percent=50 removes 50%",
                ),
                ("--sparsity=0.5", "--prune_percent=50"),
                ("--keep-ratio=0.5", "--prune_percent"),
                ("--wandb", "--tensorboard=True"),
                ("--normalise=half", "did you mean --normalize?"),
                ("--scheduler=cosine", "config.py"),
                ("--exclude=conv1", "--keep="),
                ("--learning-rate=0.1", "did you mean --lr?"),
                ("-lr 0.1", "did you mean --lr?"),
                ("--num_epochs 3", "did you mean --epochs?"),
                ("--arch resnet50", "did you mean --model?"),
                ("-b 64", "--batch_size"),
                ("--prune-percent=50", "did you mean --prune_percent?"),
                ("--warmup_epoch=2", "PRESETS"),
                ("--workers=4 --fp16", "leave it out"),
                ("epochs=20", "flags begin with --: --epochs=20"),
                ("--test_acc=True", "eval.py"),
                ("--unknown=1", "unrecognized arguments: --unknown=1"),
            )
        ),
        (measure.make_parser, "--checkpoint=x", "did you mean --model_path?"),
        (measure.make_parser, "--epochs=3", "it is a flag of main.py"),
        (measure.make_parser, "--format=onnx", "--export=FILE.onnx"),
        (measure.make_parser, "--latencies=True", "did you mean --latency?"),
    ],
)
def test_the_names_of_other_tools_lead_to_the_flag_that_does_it(make, words, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        make().parse_args(words.split())
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1, error


def test_hints_name_flags_that_exist_and_shadow_none(tmp_path):
    flags = {
        make: {name for action in make()._actions for name in action.option_strings}
        for make in (make_parser, measure.make_parser)
    }
    for make, table in ((make_parser, hints.MAIN), (measure.make_parser, hints.EVAL)):
        for name, hint in table.items():
            assert set(re.findall(r"--[a-z]\w+", hint)) <= flags[make], hint
            assert f"--{name}" not in flags[make] and name == name.lower()
    (tmp_path / "s.json").write_text('{"sparsity": [0.5, 0.7]}')
    with pytest.raises(InputError, match="there is no --sparsity: --prune_percent"):
        read_sweep(tmp_path / "s.json")


@pytest.mark.parametrize(
    "flag, says",
    [
        ("--data_path=--", "argument --data_path: '--' is no value"),
        ("--width=\u0663", "is not a number"),
        ("--prune_percent=\u0663", "is not an integer"),
        ("--batch_size=1_0", "is not an integer"),
        (f"--data_path={'a' * 4000}", "...(4,002 letters)..."),
        ("--data_path=a\x1b[31mb", r"a\x1b[31mb"),
        ("--normalize=1,2,3", "nor six numbers"),
        ("--normalize=0,0,0,1,1,0", "nor six numbers"),
        ("--out=~nobody-here/x", "no home folder of that name"),
        (f"--init={'b' * 5000}", "cannot be a path"),
        ("--data_path=loop", "neither a folder nor"),
    ],
)
def test_a_refusal_is_one_short_line(flag, says, shell, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    ended = shell("main.py", "--only_train=base", flag, cwd=tmp_path)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and says in ended.stderr, ended
    assert len(ended.stderr) < 1300 and "\x1b" not in ended.stderr


@pytest.mark.parametrize(
    "name, value",
    [
        ("RANK", "x"),
        ("WORLD_SIZE", "NaN"),
        ("LOCAL_RANK", "-1"),
        ("RANK", "2"),
        ("MASTER_PORT", "q"),
        ("MASTER_PORT", "99999"),
        ("MASTER_ADDR", "no.such.host.invalid"),
    ],
)
def test_an_environment_that_torchrun_did_not_write(name, value, shell, tmp_path):
    known = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        name: value,
    }
    job = ("--data_path=digits", "--preset=quick", "--ebt=True", "--image_size=8")
    ended = shell(
        "main.py", *job, "--only_train=base", cwd=tmp_path, environment={**os.environ, **known}
    )
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
    assert f"{name} is" in ended.stderr and not list(tmp_path.iterdir())


def test_the_home_folder_is_meant_by_a_tilde(shell, folder, tmp_path, monkeypatch):
    parser = make_parser()
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = vars(
        parser.parse_args(
            ["--out=~/runs", "--data_path=~/imgs", "--init=~", "--sweep=~/s", "--model=~/my.py:Net"]
        )
    )
    assert [flags[name] for name in ("out", "data_path", "init", "sweep", "model")] == [
        f"{tmp_path}{rest}" for rest in ("/runs", "/imgs", "", "/s", "/my.py:Net")
    ]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing", "text"])
def test_what_is_no_file_of_weights_is_refused_before_images_are_read(
    kind, suffix, shell, tmp_path
):
    path = tmp_path / f"x{suffix}"
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "nothing": lambda: None,
        "text": lambda: path.write_text("hello"),
    }[kind]()
    ended = shell(
        "main.py",
        "--preset=test",
        "--only_train=base",
        f"--init={path}",
        "--data_path=/nowhere",
        cwd=tmp_path,
    )
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and path.name in ended.stderr


def test_what_is_no_sweep_and_no_folder_of_results(shell, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "/dev/zero", "."):
        ended = shell("main.py", f"--sweep={name}", cwd=tmp_path)
        assert ended.returncode == 2 and "is no file" in ended.stderr
    (tmp_path / "results").mkdir()
    os.mkfifo(tmp_path / "results/pipe.json")
    ended = shell("eval.py", "--report=results", cwd=tmp_path)
    assert ended.returncode == 2 and "no results below it" in ended.stderr
    (tmp_path / "twins.json").write_bytes(
        b"\xef\xbb\xbf"
        + json.dumps(
            {"data_path": ["./imgs", "imgs/"], "preset": "quick", "pruning_type": "l1"}
        ).encode()
    )
    assert len(read_sweep(tmp_path / "twins.json")) == 1
    monkeypatch.setattr(results, "MOST", 10)
    with pytest.raises(InputError, match="holds more than 10 files"):
        report.write_report(ROOT)
    (tmp_path / "s.json").write_text(
        json.dumps(
            {
                "data_path": "digits",
                "preset": "test",
                "image_size": [8, 16],
                "pruning_type": "l1",
                "prune_percent": 50,
                "ebt": True,
            }
        )
    )
    for more in ((), ("--print_config=True",)):
        ended = shell("main.py", "--sweep=s.json", *more, cwd=tmp_path)
        assert ended.returncode == 2 and "two cells of the sweep would write" in ended.stderr
    (tmp_path / "s.json").write_text(json.dumps({"pruning_type": "l1", "width": [1, 9]}))
    ended = shell("main.py", "--sweep=s.json", cwd=tmp_path)
    assert ended.returncode == 2 and ended.stderr == (
        "main.py: error: --sweep=s.json: argument --width: '9' is not a number above 0, up to 4\n"
    )
    ended = shell(
        "main.py", "--only_train=base", "--data_path=nowhere", "--print_config=True", cwd=tmp_path
    )
    assert ended.returncode == 2 and "neither a folder" in ended.stderr
    for flag, says in (
        ("--init=nowhere.pth", "nowhere.pth"),
        ("--num_classes=7", "has 10 classes"),
        ("--test_percent=5", "has test images of its own"),
    ):
        ended = shell(
            "main.py",
            "--only_train=base",
            "--data_path=digits",
            "--print_config=True",
            flag,
            cwd=tmp_path,
        )
        assert ended.returncode == 2 and says in ended.stderr, flag
    ended = shell(
        "main.py", "--only_train=base", "--data_path=digits", "--print_config=True", cwd=tmp_path
    )
    assert json.loads(ended.stdout)["images"] == {"classes": 10, "train": 1437, "test": 360}


@pytest.mark.parametrize(
    "flags, says",
    [
        ((), "--pruning_type is missing"),
        (("--prune_percent=25",), "--pruning_type is missing"),
        (("--thresholds=[10]",), "--pruning_type is missing"),
        (("--pruning_type=l1",), "--prune_percent is missing"),
        (("--pruning_type=l1", "--n_rounds=2"), "--prune_percent is missing"),
        ((*PRUNE, "--thresholds=[10]"), "contradict"),
        ((*PRUNE, "--ebt=True", "--n_rounds=2"), "once"),
        (("--pruning_type=l1", "--thresholds=[10, 20]", "--ebt=True"), "prunes once"),
        (("--pruning_type=l1", "--thresholds=[10, 20]", "--n_rounds=3"), "leave out --n_rounds"),
        *(
            ((f"--only_train={net}", flag), f"leave out {flag.split('=')[0]}")
            for net in ("base", "ortho")
            for flag in (
                "--pruning_type=l1",
                "--prune_percent=25",
                "--n_rounds=2",
                "--thresholds=[5]",
            )
        ),
        (("--only_train=base", "--pretrained=True"), "leave out --pretrained"),
        *(
            ((*job, "--penalty=0.1"), "--penalty only works")
            for job in (PRUNE, ("--only_train=base",))
        ),
        ((*PRUNE, "--num_classes=7"), "digits has 10 classes"),
        ((*PRUNE, "--jobs=2"), "only work with --sweep"),
        ((*PRUNE, "--control=unpruned"), "prunes nothing"),
        ((*PRUNE, "--eb_detect=True"), "it needs --ebt=True"),
        ((*PRUNE, "--eb_samples=9"), "--eb_samples only works with --eb_detect=True"),
        ((*PRUNE, "--sweep=paper"), "leave out --data_path"),
        ((*PRUNE, "--pretrained=True"), "--only_train=base"),
        (
            (*PRUNE, "--pretrained=True", "--model=resnet50"),
            "torchvision's own weights: --init=DEFAULT",
        ),
        (
            (*PRUNE, "--pretrained=True", "--model=vgg"),
            "to begin with weights of others: --init=FILE",
        ),
        ((*PRUNE, "--classifier=keep"), "--classifier only works with --init"),
        *(
            ((*PRUNE, f"--model={name}"), says)
            for name, says in (
                ("torchvision:resnet50", "have their names there, --model=resnet50"),
                ("torchvision.models.resnet18", "have their names there, --model=resnet18"),
                (
                    "fasterrcnn_resnet50_fpn",
                    "prune classifiers only; its backbone is --model=resnet50. From Python",
                ),
                (
                    "torchvision:deeplabv3_resnet101",
                    "prune classifiers only; its backbone is --model=resnet101",
                ),
                ("yolov8", "prune classifiers only. From Python, pruner.prune takes"),
                ("r3d_18", "no classifier"),
                ("quantized_resnet18", "--model=resnet18 is the same network in floating point"),
                ("resnet51", "did you mean resnet50"),
            )
        ),
        ((*PRUNE[::2], "--prune_percent=1", "--n_rounds=5"), "fewer rounds"),
        (
            ("--pruning_type=grasp", "--prune_percent=25", "--data_path=digits", "--imp_samples=9"),
            "less than one for each of the 10 classes",
        ),
        *(
            [((*PRUNE, "--device=cuda"), "--device=cpu always works")]
            * (not torch.cuda.is_available())
        ),
    ],
)
def test_flags_that_contradict_each_other_or_the_data(flags, says, shell, tmp_path):
    refused(shell, "main.py", *flags, cwd=tmp_path, says=says)


@pytest.mark.parametrize(
    "old, new, says",
    [
        (
            "lr=[0.02, 0.002], epochs=[3, 1]",
            "lr=[0.02], epochs=[3, 1]",
            "lr has 1 values and epochs 2",
        ),
        (
            "epochs=[3, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4]",
            "epochs=[3, 1], weight_decay=1e-4, adam_lr=[]",
            "adam_lr has 0 values and epochs 2",
        ),
        ("epochs=[3, 1]", "epochs=[-3, 1]", "from 0 up"),
        ("epochs=[3, 1]", "epochs='31'", "a list"),
        ("epochs=[3, 1]", "epochs=[3, 1.5]", "an integer"),
        ("lr=[0.02, 0.002]", "lr='fast'", "a list"),
        ("lr=[0.02, 0.002]", "lr=['.02', 0.002]", "lr[0] is '.02', not a finite number"),
        ("lr=[0.02, 0.002]", "lr=[-0.02, 0.002]", "above 0"),
        ("lr=[0.02, 0.002]", "lr=[1e999, 1]", "finite"),
        ("lr=[0.02, 0.002]", "lr=None", "a list"),
        ("weight_decay=1e-4", "weight_decay='1e-4'", "number"),
        ("weight_decay=1e-4", "weight_decay=-1", "from 0 up"),
        ("batch_size=64", "batch_size=1", "2"),
        ("batch_size=64", "batch_size='64'", "integer"),
        ("ebt=Schedule(", "ebt=str(", "a Schedule"),
        ("base=Recipe(", "base=dict(", "a Recipe"),
        ("epochs=[3, 1]", "epochs=4", "a list"),
        ("lr=[0.02, 0.002]", "lr=[10 ** 400, 1]", "finite"),
        ("lr=[0.02, 0.002]", "lr=[1e39, 1]", "finite"),
        (
            "lr=[0.02, 0.002]",
            "warmup=4, lr=[0.02, 0.002]",
            "warmup is 4; it must be less than all of the epochs",
        ),
        ("lr=[0.02, 0.002]", "schedule='cosine', lr=[0.02, 0.002]", "schedule='cosine' takes one"),
        (
            "lr=[0.02, 0.002]",
            "schedule='linear', lr=[0.02, 0.002]",
            "it must be 'steps' or 'cosine'",
        ),
        ("lr=[0.02, 0.002]", "label_smoothing=1, lr=[0.02, 0.002]", "label_smoothing is 1"),
    ],
)
def test_a_schedule_that_cannot_be_run(old, new, says, shell, tmp_path):
    """A user's config.py: the quick preset is changed."""
    text = (ROOT / "config.py").read_text()
    preset = text.index('"quick": Preset')
    changed = text[:preset] + text[preset:].replace(old, new, 1)
    assert changed != text
    if new == "ebt=str(":
        start = preset + changed[preset:].index("ebt=str(")
        changed = changed[:start] + "ebt='no', " + changed[changed.index("iterative=", start) :]
    suite, work = tmp_path / "suite", tmp_path / "work"
    suite.mkdir(), work.mkdir()
    copy_suite(suite)
    (suite / "config.py").write_text(changed)
    ended = shell(suite / "main.py", *PRUNE, "--preset=quick", cwd=work, fresh=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and says in ended.stderr, ended
    assert "config.py, preset 'quick'" in ended.stderr and not list(work.iterdir())


@pytest.mark.parametrize(
    "old, new, says",
    [
        ('"vgg": 1e-2', '"vgg": "strong"', "PENALTY['vgg'] is 'strong'"),
        ("OTHERS = 1e-2", "OTHERS = None", "PENALTY_OF_OTHERS is None"),
        ("MOMENTUM = 0.9", "MOMENTUM = -1", "MOMENTUM is -1"),
    ],
)
def test_other_settings_that_cannot_be_used(old, new, says, shell, tmp_path):
    copy_suite(tmp_path)
    text = (ROOT / "config.py").read_text()
    (tmp_path / "config.py").write_text(text.replace(old, new))
    refused(shell, tmp_path / "main.py", *PRUNE, cwd=tmp_path, fresh=True, says=says)


def test_presets_and_sweeps_of_the_study_are_found_beside_it_and_nowhere_else(shell, tmp_path):
    """An installed package has no such folder; config.py goes before what stands there."""
    suite, work = tmp_path / "suite", tmp_path / "work"
    suite.mkdir(), work.mkdir()
    copy_suite(suite)
    sweep = ("--sweep=cpu", "--print_config=True")
    preset = (*PRUNE, "--preset=cpu", "--ebt=True", "--print_config=True")
    how = {"cwd": work, "fresh": True}
    ended = refused(shell, suite / "main.py", *preset, says="invalid choice: 'cpu'", **how)
    assert "finetune" in ended.stderr and "cpu-drop" not in ended.stderr
    refused(shell, suite / "main.py", *sweep, says="is neither one of paper nor a JSON", **how)

    shutil.copytree(ROOT / "pruned_nets", suite / "pruned_nets", ignore=no_results)
    ended = shell(suite / "main.py", *preset, **how)
    assert json.loads(ended.stdout)["steps"][0]["epochs"] == [10], ended
    with open(suite / "config.py", "a") as file:
        file.write('PRESETS["cpu"] = PRESETS["quick"]\n')
    ended = shell(suite / "main.py", *preset, **how)
    assert json.loads(ended.stdout)["steps"][0]["epochs"] == [3, 1], ended


def no_results(folder, names):
    """Of the study its presets alone."""
    return [name for name in names if name not in ("comparison", "presets.py")]


# ------------------------------------------------------------------------------------------ data


def spoiled(place, digits, spoil, says):
    """(a data set after `spoil`, an empty folder to work in, what must be said)."""
    root, work = write_folder(place / "images", digits), place / "work"
    spoil(root)
    work.mkdir()
    return root, work, says


def keep_classes(root, count):
    for part in ("train", "test"):
        for folder in sorted((root / part).iterdir())[count:]:
            shutil.rmtree(folder)


def bad(name, content=b""):
    def spoil(root):
        (root / "train" / "two" / name).write_bytes(content)

    return spoil


def cut_short(root):
    path = sorted((root / "test" / "one").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-40])


def too_large(root):
    """A valid head of a PNG of 60,000 x 60,000 pixels: 10 GB, were it decoded."""
    path = root / "train" / "one" / "huge.png"
    Image.new("L", (1, 1)).save(path)
    content = path.read_bytes()
    head = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + content[24:29]
    path.write_bytes(content[:12] + head + zlib.crc32(head).to_bytes(4, "big") + content[33:])


DAMAGED = {
    "zero bytes": (bad("bad.png"), "1 of 55 images"),
    "not an image": (bad("bad.jpg", b"hello, world\n" * 100), "1 of 55 images"),
    "cut short": (cut_short, "1 of 54 images"),
    "huge": (too_large, "1 of 55 images"),
    "a dead link": (lambda root: (root / "train/one/x.png").symlink_to("gone"), "1 of 55 images"),
    "a link to itself": (lambda root: (root / "train/one/x.png").symlink_to("x.png"), "1 of 55"),
    "a pipe": (lambda root: os.mkfifo(root / "train/one/x.png"), "1 of 55 images"),
    "several": (lambda root: [bad(f"{i}.png")(root) for i in "abc"], "3 of 57 images"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_images_that_cannot_be_read_are_counted_named_and_skipped(kind, shell, tmp_path, digits):
    root, work, says = spoiled(tmp_path, digits, *DAMAGED[kind])
    flags = (
        f"--data_path={root}",
        "--preset=test",
        "--width=0.125",
        "--image_size=16",
        "--ebt=True",
        "--only_train=base",
    )
    ended = refused(shell, "main.py", *flags, cwd=work, says=says)
    assert "the first is" in ended.stderr and "--skip_bad_images=True" in ended.stderr
    ended = shell("main.py", *flags, "--skip_bad_images=True", cwd=work)
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert f"Left out: {says}" in ended.stdout
    shown = shell(
        "eval.py",
        "--model_path=pretrained/ebt/images/vgg-w0.125.pth",
        "--test_acc=True",
        "--skip_bad_images=True",
        cwd=work,
    )
    assert shown.returncode == 0 and "test images of images: top-1" in shown.stdout


def endless(root):
    (root / "train/one/deeper").mkdir()
    (root / "train/one/deeper/again").symlink_to(root / "train/one", target_is_directory=True)


FOLDERS = {
    "no test": (lambda root: shutil.rmtree(root / "test"), "has no folder test/ or val/"),
    "no train": (lambda root: shutil.rmtree(root / "train"), "no folder train/"),
    "a class less": (lambda root: shutil.rmtree(root / "test/two"), "'two' is only in train"),
    "a class more": (
        lambda root: shutil.copytree(root / "test/two", root / "test/four"),
        "'four' is only in test",
    ),
    "empty class": (
        lambda root: [p.unlink() for p in (root / "train/two").iterdir()],
        "'two' has no images in train",
    ),
    "one class": (lambda root: keep_classes(root, 1), "two or more folders"),
    "one class with images": (
        lambda root: [
            image.unlink()
            for name in ("one", "two")
            for image in [*(root / "train" / name).iterdir(), *(root / "test" / name).iterdir()]
        ],
        "two or more folders",
    ),
    "no class": (lambda root: keep_classes(root, 0), "two or more folders"),
    "a circle": (endless, "is a link to"),
    "a class that links to all": (
        lambda root: [(root / part / "all").symlink_to("..") for part in ("train", "test")],
        "is a link to",
    ),
    "too deep": (lambda root: os.makedirs(root / "train/two" / "/".join("d" * 200)), "50 folders"),
    "train is a file": (
        lambda root: [shutil.rmtree(root / "train"), (root / "train").write_text("")],
        "no folder train/",
    ),
    "all skipped": (
        lambda root: [p.write_bytes(b"") for p in (root / "train/two").iterdir()],
        "'two' has no images in train",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_that_are_no_data_set(kind, shell, tmp_path, digits):
    root, work, says = spoiled(tmp_path, digits, *FOLDERS[kind])
    refused(
        shell,
        "main.py",
        f"--data_path={root}",
        "--preset=test",
        "--only_train=base",
        "--skip_bad_images=True",
        cwd=work,
        says=says,
    )


def test_a_data_set_that_neither_memory_nor_disk_can_hold(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}.get)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(load_data(folder, 64).train) == 36  # from the disk
    shutil.rmtree(tmp_path / "orthoreg")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 40_000))
    with pytest.raises(InputError, match="54 images of 64 x 64 .* a smaller --image_size"):
        load_data(folder, 64)


def test_odd_images_and_other_files_are_no_obstacle(shell, tmp_path, digits):
    root = write_folder(tmp_path / "images", digits)
    pixels = np.random.RandomState(0).randint(0, 255, (9, 7, 3), np.uint8)
    image = Image.fromarray(pixels)
    for mode in ("L", "P", "LA", "RGBA", "CMYK", "1", "I;16", "I", "F", "YCbCr"):
        odd = (
            Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
            if mode == "I;16"
            else image.convert("L").convert(mode)
            if mode in "I F LA"
            else image.convert(mode)
        )
        name = "tif" if mode in ("F", "I", "CMYK", "YCbCr") else "png"
        odd.save(root / "train/one" / f"mode-{mode.replace(';', '')}.{name}")
    Image.new("RGB", (1, 1), "red").save(root / "train/two/tiny.png")
    Image.new("RGB", (5000, 5000), "red").save(root / "train/two/large.png")
    (root / "train/two/notes.txt").write_text("hello")
    (root / "train/readme.md").write_text("hello")
    (root / "train/three/.DS_Store").write_bytes(b"\0")
    (root / "train/one/linked").symlink_to(tmp_path / "more", target_is_directory=True)
    (tmp_path / "more").mkdir()
    image.save(tmp_path / "more/linked.png")
    ended = shell(
        "main.py",
        f"--data_path={root}",
        "--preset=test",
        "--width=0.125",
        "--ebt=True",
        "--image_size=16",
        "--pruning_type=l1",
        "--prune_percent=20",
        cwd=tmp_path,
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert "49 training and 18 test images" in ended.stdout
    assert "Left out: 2 files that are no images" in ended.stdout
    data = load_data(root, 16)
    red = (data.train.images == torch.tensor([255, 0, 0], dtype=torch.uint8)).all(-1).all((1, 2))
    assert red.sum() == 2  # of 1 x 1 and of 5000 x 5000 pixels
    # 49 images in batches of 16: the last one, alone, must not reach BatchNorm at 1 x 1 pixels.
    ended = shell(
        "main.py",
        f"--data_path={root}",
        "--preset=test",
        "--width=0.125",
        "--ebt=True",
        "--image_size=1",
        "--only_train=base",
        cwd=tmp_path,
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr


def test_few_images_are_enough(shell, tmp_path, digits):
    """Fewer than a batch, than --imp_samples, and than grasp would take of each class."""
    root = write_folder(tmp_path / "images", digits, train=2, test=1)
    for method in ("grasp", "rdt", "theis"):
        ended = shell(
            "main.py",
            f"--data_path={root}",
            "--preset=quick",
            "--width=0.125",
            "--ebt=True",
            "--image_size=8",
            f"--pruning_type={method}",
            "--prune_percent=20",
            cwd=tmp_path,
        )
        assert ended.returncode == 0 and ended.stderr == "", ended.stderr
        assert "from 6 training images" in ended.stdout


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(shell, tmp_path, digits):
    root = write_folder(tmp_path / "images", digits)
    next((root / "train/one").iterdir()).chmod(0)
    (tmp_path / "net.pth").touch(mode=0)
    refused(shell, "main.py", *PRUNE[:2], f"--data_path={root}", cwd=tmp_path, says="Permission")
    refused(
        shell, "eval.py", "--model_path=net.pth", "--flops=True", cwd=tmp_path, says="Permission"
    )


def test_no_permission_to_read_is_said(tmp_path, digits, monkeypatch):
    """The same for root, who may read everything."""
    root, opened = write_folder(tmp_path / "images", digits), Image.open

    def denied(path, *args, **more):
        if str(path) == str(forbidden):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **more)

    forbidden = sorted((root / "train/one").iterdir())[0]
    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(InputError, match=f"{forbidden.name} .Permission denied"):
        load_data(root, 16)
    (tmp_path / "net.pth").write_bytes(b"x")
    forbidden = tmp_path / "net.pth"
    monkeypatch.setattr(reader, "open", denied, raising=False)
    with pytest.raises(InputError, match="net.pth may not be read: Permission denied"):
        load_checkpoint(forbidden)


# -------------------------------------------------------------------------------------- at random


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, shell, folder):
    """A folder with a trained base network and a pruned one."""
    root = tmp_path_factory.mktemp("workplace")
    ended = shell(
        "main.py",
        "--preset=test",
        "--image_size=8",
        "--width=0.125",
        "--ebt=True",
        f"--data_path={folder}",
        "--pruning_type=l1",
        "--prune_percent=20",
        cwd=root,
    )
    assert ended.returncode == 0
    return root


BOOL = ("True", "False", "true", "FALSE")
NET = "pruned_nets/ebt/shapes/vgg-w0.125_l1_20_0.pth"
SOUND = {
    "main.py": {
        "model": ("vgg", "mobilenet"),
        "ebt": BOOL,
        "pretrained": BOOL,
        "pruning_type": ("random", "l1", "fisher", "orthoreg"),
        "thresholds": ("[5, 30]",),
        "prune_percent": ("0", "20", "95"),
        "n_rounds": ("1", "2"),
        "seed": ("0", "7"),
        "only_train": ("base", "ortho", "False"),
        "imp_samples": ("1", "20"),
        "GraSP_T": ("1", "200"),
        "num_classes": ("3", "4"),
        "image_size": ("8", "9"),
        "width": (".125",),
        "optimizer": ("sgd", "adam"),
        "batch_size": ("2", "16", "999"),
        "resume": BOOL,
        "skip_bad_images": BOOL,
        "device": ("auto", "cpu"),
    },
    "eval.py": {
        "model": ("vgg", "mobilenet"),
        "pruned": BOOL,
        "train_acc": BOOL,
        "test_acc": BOOL,
        "model_path": (NET, "pretrained/ebt/shapes/vgg-w0.125.pth"),
        "flops": BOOL,
        "compression": BOOL,
        "eval_ortho": BOOL,
        "num_classes": ("3", "4"),
        "skip_bad_images": BOOL,
        "device": ("auto", "cpu"),
    },
}
JUNK = ("", "-1", "0", "1e9", "abc", "[20, 10]", "None", "\udcff", "a b", "é", "../..", "/", "*")


@st.composite
def commands(draw):
    """(script, flags): mostly values that the flag takes, now and then junk."""
    script = draw(st.sampled_from(("main.py", "eval.py")))
    sound, flags = SOUND[script], []
    for name in draw(st.lists(st.sampled_from(sorted(sound)), max_size=4, unique=True)):
        junk = draw(st.integers(0, 9)) == 0
        flags.append(f"--{name}={draw(st.sampled_from(JUNK if junk else sound[name]))}")
    return script, flags


def test_any_flags_end_orderly(shell, folder, workplace):
    """Random combinations, valid ones often enough to matter."""
    start = {
        "main.py": (
            "--preset=test",
            "--image_size=8",
            "--width=0.125",
            "--ebt=True",
            f"--data_path={folder}",
            "--pruning_type=random",
            "--prune_percent=20",
        ),
        "eval.py": (f"--model_path={NET}",),
    }
    codes = collections.Counter()

    @settings(max_examples=120, deadline=None, derandomize=True, database=None)
    @given(commands())
    def try_it(command):
        script, flags = command
        before = files(workplace)
        ended = shell(script, *start[script], *flags, cwd=workplace)
        assert ended.returncode in (0, 2, 3, 130), ended
        assert "Traceback" not in ended.stderr + ended.stdout, ended.stderr
        if ended.returncode:
            assert ended.stderr.count("\n") == 1 and files(workplace) == before, ended.stderr
        for name in set(files(workplace)) - set(before):
            if name.endswith(".pth"):
                load_checkpoint(workplace / name)
        codes[script, ended.returncode] += 1

    try_it()
    assert all(codes[script, code] > 10 for script in SOUND for code in (0, 2)), codes
