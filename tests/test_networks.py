"""Networks of torchvision, of timm and of a user's own file do what the four do."""

import json
import re
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import config
import eval as measure
import main
from channels.costs import filter_costs, macs_of, measure_cost
from channels.groups import (
    _STRUCTURES,
    filter_count,
    filter_groups,
    keep_whole,
    remains_of,
    widths_of,
)
from channels.lowering import lower
from channels.work import Work
from common.files import digest_of
from conftest import ROOT, begin_like, begin_with, files, short_preset, transformer, write_folder
from imp_estimator import ESTIMATORS, cal_importance
from lab import networks, weights
from lab.checkpoint import load_checkpoint, save_checkpoint
from pruner import prune, removable_units, select_filters, without
from zoo import prune_all, removable_filters, settle

# A residual network with a gate, a depthwise and a bare convolution, and a scalar parameter; another
# whose layers have two names.
OWN = """
    import torch
    from torch import nn
    from widths import WIDTH

    def conv(inputs, outputs, **kwargs):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, **kwargs),
                             nn.BatchNorm2d(outputs), nn.ReLU())

    class Net(nn.Module):
        def __init__(self, num_classes, bare=False):
            super().__init__()
            self.stem, self.a, self.b = conv(3, WIDTH), conv(WIDTH, WIDTH), conv(WIDTH, WIDTH)
            self.depthwise = conv(WIDTH, WIDTH, groups=WIDTH)
            self.gate = nn.Linear(WIDTH, WIDTH)
            self.last = nn.Conv2d(WIDTH, 8, 1) if bare else conv(WIDTH, 8)
            self.head, self.scale = nn.Linear(8, num_classes), nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            x = self.stem(x)
            x = x + self.b(self.depthwise(self.a(x)))
            x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
            return self.scale * self.head(self.last(x).mean((2, 3)))

    class Tutorial(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.a, self.pool = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2)
            self.b, self.head = nn.Conv2d(6, 8, 3), nn.Linear(8 * 4 * 4, num_classes)
            self.stages = nn.ModuleList([self.a, self.b])

        def forward(self, x):
            x = torch.relu(self.b(self.pool(torch.relu(self.a(x)))))
            return self.head(x.view(-1, 8 * 4 * 4))

    def Bare(num_classes):
        return Net(num_classes, bare=True)

    def Number(num_classes):
        return 3

    def Plain():
        return Net(3)
"""


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    monkeypatch.setitem(config.PRESETS, "test", short_preset())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/own.py").write_text(textwrap.dedent(OWN))
    (tmp_path / "nets/widths.py").write_text("WIDTH = 12\n")


@pytest.fixture
def flags(folder):
    return ["--preset=test", "--image_size=16", f"--data_path={folder}"]


def run(*flags):
    return main.main([*map(str, flags)])


# --------------------------------------------------------------------------------------------- zoo

SMALL = [
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
]


@pytest.mark.parametrize("name", SMALL)
def test_torchvisions_networks_are_cut_to_what_they_compute_with_filters_at_zero(name):
    row = prune_all(name, (50, 75))
    assert row["worst"] < 1e-9
    assert row["all"] - row["can"] == (10 if name.startswith("squeezenet") else 0)
    assert row["macs"] < 0.4


@pytest.mark.parametrize("name", ["resnet26d", "ghostnet_100", "nf_regnet_b0"])
def test_timms_networks(name):
    pytest.importorskip("timm")
    row = prune_all(f"timm:{name}", (50,))
    assert row["worst"] < 1e-9 and (row["can"] == row["all"]) == (name != "nf_regnet_b0")


MIXING = """
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.a(x).mean((2, 3))))
"""


def test_a_network_that_mixes_all_channels_says_so(flags, capsys, tmp_path):
    Path("nets/mixing.py").write_text(MIXING)
    before = files(tmp_path)
    assert (
        run(
            *flags,
            "--model=nets/mixing.py:Net",
            "--pruning_type=l1",
            "--prune_percent=50",
            "--ebt=True",
            "--image_size=64",
        )
        == 2
    )
    assert "a keeps its 8 filters: LayerNorm mixes them" in capsys.readouterr().err
    assert {p for p in files(tmp_path) if "pycache" not in p} == before.keys()


# ------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name, says",
    [
        ("resnet51", "did you mean resnet50"),
        ("restnet", "did you mean resnet"),
        ("nothing_like_it", "there are vgg, mobilenet, resnet, resnet-56, torchvision's"),
        ("nets/no.py:Net", "there is no file nets/no.py"),
        ("nets/own.py:Nett", "Nett is not in it; did you mean Net"),
        ("nets/own.py:Number", "returns int, not a network"),
        ("nets/own.py:Plain", "cannot be built for 3 classes: TypeError"),
        ("inception_v3", "cannot take images of 16 x 16: .*; --image_size=96 fits"),
        ("vit_b_16", "nothing can be pruned|cannot be traced|cannot take images"),
    ],
)
def test_names_that_cannot_be_used(name, says, flags, capsys, tmp_path):
    before = files(tmp_path)
    assert run(*flags, f"--model={name}", "--pruning_type=l1", "--prune_percent=50") == 2
    assert re.search(says, capsys.readouterr().err)
    assert {p for p in files(tmp_path) if "pycache" not in p} == before.keys()


def test_sizes_that_a_network_of_timm_refuses_are_said_in_its_words(flags, capsys):
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224"
    assert run(*flags, f"--model={name}", "--pruning_type=l1", "--prune_percent=50") == 2
    line = capsys.readouterr().err
    assert "Input height doesn't match model (224); --image_size=224 fits it" in line


def test_timm_is_optional(flags, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    assert run(*flags, "--model=timm:resnet18", "--only_train=base") == 2
    assert "--model=timm:resnet18 needs timm: pip install timm" in capsys.readouterr().err


def test_width_is_for_the_four(flags, capsys):
    assert run(*flags, "--model=resnet18", "--width=0.5", "--only_train=base") == 2
    assert "--width only works with vgg, mobilenet, resnet, resnet-56" in capsys.readouterr().err


# -------------------------------------------------------------------------------- jobs of all kinds


def test_every_method_prunes_a_network_of_ones_own(flags, capsys):
    job = (*flags, "--model=nets/own.py:Net", "--ebt=True", "--out=out")
    for only in ("base", "ortho"):
        assert run(*job, f"--only_train={only}") == 0
    for method in ESTIMATORS:
        assert run(*job, "--pretrained=True", f"--pruning_type={method}", "--prune_percent=40") == 0
        path = f"out/pruned_nets/ebt/shapes/own.Net_{method}_40_0.pth"
        small, record = load_checkpoint(path, "nets/own.py:Net")
        assert record.model == "nets/own.py:Net" and record.pruned
        now, dense = filter_count(small)
        assert now <= dense * 0.6 + 3
    tutorial = (*flags, "--model=nets/own.py:Tutorial", "--ebt=True", "--prune_percent=40")
    assert run(*tutorial, "--pruning_type=fisher", "--out=out") == 0  # `view` wants its own memory
    for suffix in (".pt2", ".safetensors") if find_spec("safetensors") else (".pt2",):
        asked = [
            "--model_path=out/pruned_nets/ebt/shapes/own.Tutorial_fisher_40_0.pth",
            "--model=nets/own.py:Tutorial",
            "--test_acc=True",
            f"--export=out/t{suffix}",
        ]
        assert measure.main(asked) == 0
    _STRUCTURES.clear()  # as a new process would
    assert run(*tutorial, "--pruning_type=fisher", "--out=out", "--control=scratch") == 0
    _STRUCTURES.clear()
    tutorial = tutorial[:-1]  # it takes images of 16 pixels, and no others
    assert (
        run(
            *tutorial,
            "--only_train=base",
            "--out=again",
            "--init=out/pruned_nets/ebt/shapes/own.Tutorial_fisher_40_0.pth",
        )
        == 0
    )
    bare = (*flags, "--model=nets/own.py:Bare", "--ebt=True", "--prune_percent=40")
    for method in ("theis", "tfo"):
        assert run(*bare, f"--pruning_type={method}") == 0
    capsys.readouterr()
    assert run(*bare, "--pruning_type=bn", "--out=bare") == 0
    output = capsys.readouterr()
    assert "have no BatchNorm of their own, so bn keeps them" in output.out


VOLUMES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv3d(1, 4, (1, 3, 3))
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.head(self.b(x.unsqueeze(1)).mean((2, 3, 4)))
"""


def test_a_network_of_images_may_have_weights_of_volumes():
    Path("nets/volumes.py").write_text(VOLUMES)
    torch.manual_seed(0)
    model = networks.build_network("nets/volumes.py:Net", 3)
    assert model.a.weight.is_contiguous(memory_format=torch.channels_last)
    filter_groups(model, 16)
    small = prune(model, select_filters(model, cal_importance(model, "l1"), 50))
    assert small.b.out_channels < 4


LINEAR = """
from torch import nn

def Net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 24), nn.ReLU(), nn.Linear(24, 16),
                         nn.ReLU(), nn.Linear(16, num_classes))
"""


def test_a_network_of_linear_layers_alone_has_no_degree_of_orthogonality(flags, capsys):
    Path("nets/linear.py").write_text(LINEAR)
    job = (*flags, "--model=nets/linear.py:Net", "--ebt=True", "--prune_percent=50", "--out=out")
    assert run(*job, "--pruning_type=orthoreg") == 2
    assert "the penalty is one of convolutions, and the network has none" in capsys.readouterr().err
    for method in "fisher", "l1":
        assert run(*job, f"--pruning_type={method}") == 0
        assert "orthogonality" not in capsys.readouterr().out
    path = "out/pruned_nets/ebt/shapes/linear.Net_fisher_50_0.pth"
    small, _ = load_checkpoint(path, "nets/linear.py:Net")
    assert filter_count(small) == (20, 40)
    record = json.loads(Path(path).with_suffix(".json").read_text())
    assert record["orthogonality"] == {"mean": None, "layers": {}}
    asked = "--eval_ortho=True", "--layers=True", "--export=out/x.onnx"
    assert measure.main([f"--model_path={path}", "--model=nets/linear.py:Net", *asked]) == 0
    assert "the network has no convolutions" in capsys.readouterr().out
    assert measure.main(["--report=out/pruned_nets/ebt/shapes"]) == 0


def test_rounds_budgets_resume_and_controls(flags, capsys, monkeypatch):
    job = [
        *flags,
        "--model=nets/own.py:Net",
        "--pruning_type=orthoreg",
        "--prune_percent=50",
        "--n_rounds=2",
        "--budget=macs",
        "--round_to=2",
        "--val_percent=20",
    ]
    import pruner

    whole, cuts = pruner.prune, []

    def stop(*args):
        cuts.append(args)
        if len(cuts) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(pruner, "prune", stop)
    assert run(*job) == 130
    monkeypatch.setattr(pruner, "prune", whole)
    assert run(*job, "--resume=True") == 0
    assert "in all" in capsys.readouterr().out
    stopped = load_checkpoint(
        "pruned_nets/iterative/shapes/own.Net_orthoreg_50_0.pth", "nets/own.py:Net"
    )[0].state_dict()
    assert run(*job, "--out=again") == 0
    again = load_checkpoint(
        "again/pruned_nets/iterative/shapes/own.Net_orthoreg_50_0.pth", "nets/own.py:Net"
    )[0].state_dict()
    assert all(torch.equal(stopped[key], value) for key, value in again.items())
    assert run(*job, "--control=scratch") == 0
    assert run(*[flag for flag in job if "percent=50" not in flag], "--control=unpruned") == 0


def test_a_torchvision_network_from_its_weights_to_an_export(
    flags, folder, tmp_path, capsys, monkeypatch
):
    torch.manual_seed(0)
    theirs = torchvision.models.mnasnet0_5(num_classes=3)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    job = (
        *flags,
        "--model=mnasnet0_5",
        "--image_size=32",
        "--ebt=True",
        "--pruning_type=fisher",
        "--prune_percent=50",
        "--init=DEFAULT",
        "--optimizer=adam",
    )
    assert run(*job, "--print_config=True") == 0  # which downloads nothing
    assert json.loads(capsys.readouterr().out)["flags"]["normalize"] == "imagenet"
    assert run(*job, "--normalize=half", "--print_config=True") == 0
    assert json.loads(capsys.readouterr().out)["flags"]["normalize"] == "half"
    assert run(*job) == 2
    error = capsys.readouterr().err
    file, place = re.search(r"put (\S+) into (\S+), or name a file", error).groups()
    assert error.count("\n") == 1 and "no network here" in error and "Fetching" not in error
    torch.save(theirs.state_dict(), f"{place}/{file}")
    assert run(*job) == 0
    out = capsys.readouterr().out  # its classifier may be for other classes: it names none
    assert f"from {place}/{file}: 99." in out
    assert (
        "since the classifier was trained for classes that the file does not name; --classifier=keep"
        in out
    )
    path = "pruned_nets/ebt/shapes/mnasnet0_5_fisher_50_0.pth"
    assert (
        measure.main(
            [
                f"--model_path={path}",
                "--test_acc=True",
                "--flops=True",
                "--compression=True",
                "--layers=True",
                "--eval_ortho=True",
                "--train_acc=True",
                f"--predict={folder / 'test'}",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "pruned mnasnet0_5 (--model mnasnet0_5)" in out
    for kind in ("pt2", "onnx", "safetensors"):
        pytest.importorskip("onnx") if kind == "onnx" else None
        assert measure.main([f"--model_path={path}", f"--export=net.{kind}"]) == 0
    record = json.loads((tmp_path / path).with_suffix(".json").read_text())
    names = {name for name, _ in theirs.named_modules()}
    assert record["widths"].keys() <= names
    assert record["pruning"]["achieved_percent"] == pytest.approx(50, abs=0.1)
    assert record["normalize"] == list(config.NORMALIZATIONS["imagenet"])


def no_network(*_args, **_kwargs):
    raise OSError("no network here")


def test_a_network_of_timm_from_its_weights(flags, tmp_path, capsys, monkeypatch):
    timm = pytest.importorskip("timm")
    safetensors = pytest.importorskip("safetensors.torch")
    name = "test_resnet.r160_in1k"
    torch.manual_seed(0)
    made = timm.create_model(name, pretrained=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *place: None)
    job = [flag for flag in flags if not flag.startswith("--image_size")]
    job += [f"--model=timm:{name}", "--ebt=True", "--pruning_type=l1", "--prune_percent=50"]
    job += ["--init=DEFAULT"]
    assert run(*job, "--print_config=True") == 0  # which downloads nothing
    shown = json.loads(capsys.readouterr().out)["flags"]
    wanted = made.pretrained_cfg
    assert shown["normalize"] == "half" and (*wanted["mean"], *wanted["std"]) == (0.5,) * 6
    assert shown["image_size"] == wanted["input_size"][-1] == 160
    assert shown["interpolation"] == wanted["interpolation"] == "bilinear"
    assert run(*job) == 2
    error = capsys.readouterr().err
    said = r"(https:\S+test_resnet.r160_in1k\S+) could not .*; put that model.safetensors, as (\S+), into (\S+), or"
    url, file, place = re.search(said, error).groups()
    assert error.count("\n") == 1 and url.endswith("/model.safetensors")
    safetensors.save_file(made.state_dict(), f"{place}/{file}")
    assert run(*job, "--image_size=32") == 0
    out = capsys.readouterr().out
    assert f"from {place}/{file}: 99." in out and "32 x 32" in out
    # Its file is read as timm reads it itself.
    theirs = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": f"{place}/{file}"}
    )
    ours = networks.build_network(f"timm:{name}", 1000)
    begin_with(ours, f"{place}/{file}")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(images), theirs.eval()(images), atol=1e-5)


@pytest.mark.parametrize(
    "model, interpolation",
    [
        ("resnet18", "bilinear"),
        ("efficientnet_b0", "bicubic"),
        ("timm:test_resnet", "bilinear"),
        ("timm:test_efficientnet", "bicubic"),
    ],
)
def test_images_are_scaled_as_those_that_weights_of_a_library_were_trained_with(
    model, interpolation, flags, capsys
):
    if model.startswith("timm:"):
        pytest.importorskip("timm")
    job = (*flags, f"--model={model}", "--only_train=base", "--print_config=True")

    def shown(*more):
        assert run(*job, *more) == 0
        return json.loads(capsys.readouterr().out)["flags"]["interpolation"]

    assert shown("--init=DEFAULT") == interpolation
    assert shown("--init=DEFAULT", "--interpolation=bilinear") == "bilinear"
    assert shown() == "bilinear"


def test_weights_that_timm_has_fetched_before_are_taken(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *place: "/there")
    assert weights.weights_file("DEFAULT", "timm:test_resnet") == "/there"


@pytest.mark.parametrize(
    "model, says",
    [
        ("vgg", "--model=vgg is none of their networks"),
        ("nets/own.py:Net", "is none of their networks"),
        (
            "timm:resnet26d.nobody",
            "timm has no weights of its own for --model=timm:resnet26d.nobody",
        ),
    ],
)
def test_default_weights_are_of_libraries(model, says, flags, capsys):
    if model.startswith("timm:"):
        pytest.importorskip("timm")
    assert run(*flags, f"--model={model}", "--only_train=base", "--init=DEFAULT") == 2
    error = capsys.readouterr().err
    assert says in error and "--init=FILE" in error and error.count("\n") == 1


def test_networks_that_torchvision_normalises_anew_get_what_they_then_see():
    assert networks.default_weights("resnet18").flags["normalize"] == "imagenet"
    for name in networks.ARGUMENTS:
        network = torchvision.models.get_model(
            name, weights=None, init_weights=False, transform_input=True
        )
        imagenet = config.NORMALIZATIONS["imagenet"]
        means, deviations = (
            torch.tensor(imagenet[part]).view(3, 1, 1) for part in (slice(3), slice(3, 6))
        )
        pixels = torch.rand(2, 3, 4, 4)
        assert torch.allclose(
            network._transform_input((pixels - means) / deviations), pixels * 2 - 1, atol=1e-5
        )
        assert networks.default_weights(name).flags["normalize"] == "half"


@pytest.mark.parametrize("model, width", [("resnet-56", 0.25), ("nets/own.py:Net", 1)])
def test_a_pruned_network_is_trained_further_on_other_images(
    model, width, flags, tmp_path, digits, capsys
):
    torch.manual_seed(0)
    network = networks.build_network(model, 3, width)
    small = prune(network, select_filters(network, cal_importance(network, "random"), 50))
    save_checkpoint("small.pth", small, {"image_size": 16, "classes": list("abc")})
    others = write_folder(tmp_path / "others", digits, classes=("two", "four", "six", "seven"))
    job = (
        "--preset=test",
        f"--data_path={others}",
        "--image_size=24",
        f"--model={model}",
        "--ebt=True",
    )
    widths = [f"--width={width}"] if width != 1 else []
    assert run(*job, *widths, "--only_train=base", "--init=small.pth") == 0
    out = capsys.readouterr().out
    assert (
        "its architecture is that of small.pth, which is pruned" in out
        and "fresh: the classifier" in out
    )
    path = next((tmp_path / "pretrained").rglob("*.pth"))
    after, record = load_checkpoint(path, model)
    assert widths_of(after) == widths_of(small) and record.image_size == 24
    assert after.origin.num_classes == 4 and filter_count(after) == filter_count(small)
    more = (*job, *widths, "--pretrained=True", "--pruning_type=l1", "--prune_percent=60")
    assert run(*more) == 0 and "it is pruned already" in capsys.readouterr().out


@pytest.fixture
def opened():
    """The names of all files that are opened."""
    names, watching = [], True

    def note(event, arguments):
        if watching and event == "open":
            names.append(str(arguments[0]))

    sys.addaudithook(note)  # which nothing takes back
    yield names
    watching = False


@pytest.mark.parametrize("kind", ["pruned", "state dict", "before 1.6"])
def test_the_file_of_init_is_opened_once(kind, opened, tmp_path, digits):
    """So what is checked, told from other files by its digest, and begun with is the same."""
    torch.manual_seed(0)
    network = networks.build_network("vgg", 3, 0.125)
    if kind == "pruned":
        kept = select_filters(network, cal_importance(network, "random"), 50)
        save_checkpoint("begin.pth", prune(network, kept), {"image_size": 16})
    else:
        new = kind == "state dict"
        torch.save(network.state_dict(), "begin.pth", _use_new_zipfile_serialization=new)
    images = write_folder(tmp_path / "images", digits)
    job = ("--preset=test", f"--data_path={images}", "--image_size=16", "--ebt=True")
    opened.clear()
    assert run(*job, "--width=0.125", "--only_train=base", "--init=begin.pth") == 0
    assert [Path(name).name for name in opened].count("begin.pth") == 1
    trained = load_checkpoint("pretrained/ebt/images/vgg-w0.125.pth")[1]
    assert trained.init == digest_of("begin.pth")


def test_a_classifier_for_other_classes_stays_fresh_and_all_else_fits():

    theirs = settle(torchvision.models.resnet18(num_classes=1000))
    torch.save({"state_dict": theirs.state_dict(), "cfg": {"depth": 18}}, "r18.pth")
    model, said = begin_like("r18.pth", "resnet18", 3)
    assert not said and filter_count(model)[0] == filter_count(model)[1]
    lines = begin_with(model, "r18.pth")
    assert lines[1:] == [
        "fresh: the classifier fc, since fc.weight is 1000 x 512 instead of 3 x 512"
    ]
    for key, tensor in model.state_dict().items():
        assert key.startswith("fc.") or torch.equal(tensor, theirs.state_dict()[key])


# -------------------------------------------------------------------------------------- checkpoints


def test_other_code_of_a_users_file_is_another_run(tmp_path, flags, capsys):
    job = (*flags, "--model=nets/own.py:Net", "--ebt=True", "--only_train=base")
    ask = (
        "--model_path=pretrained/ebt/shapes/own.Net.pth",
        "--model=nets/own.py:Net",
        "--flops=True",
    )

    def said(command, changed):
        text = (tmp_path / "nets/own.py").read_text()
        (tmp_path / "nets/own.py").write_text(text.replace(*changed))
        networks._load.cache_clear()  # as a new process would
        assert command() == 0
        return capsys.readouterr().out

    trained, measured = lambda: run(*job, "--resume=True"), lambda: measure.main(list(ask))
    assert "This run is finished" not in said(trained, ("", ""))
    assert "This run is finished" in said(trained, ("class Net", "# a comment\nclass Net"))
    assert "had other code" not in said(measured, ("", ""))
    assert "own.Net.pth was written when nets/own.py:Net had other code" in said(
        measured, ("torch.sigmoid", "torch.tanh")
    )
    assert "This run is finished" not in said(trained, ("", ""))


def test_a_checkpoint_means_the_same_whatever_was_loaded_before_it(tmp_path):
    def write(path, whole):
        model = networks.build_network("nets/own.py:Net", 3)
        if whole:
            keep_whole(model, {"a_0": "a reason"})
        save_checkpoint(
            path,
            prune(model, select_filters(model, cal_importance(model, "l1"), 50)),
            {"image_size": 16, "classes": list("abc")},
        )

    write("free.pth", False)
    write("whole.pth", True)
    for order in ("free.pth", "whole.pth"), ("whole.pth", "free.pth"):
        _STRUCTURES.clear()  # as a new process would
        for path in order:
            network = load_checkpoint(path, "nets/own.py:Net")[0]
            layers = [group.name for group in filter_groups(network)]
            assert ("a.0" in layers) == (path == "free.pth")
            for other in networks.unpruned_twin(network), networks.fresh_like(network, 5):
                assert [group.name for group in filter_groups(other)] == layers


def test_a_checkpoint_alone_never_runs_a_users_file(tmp_path, flags, capsys):
    model = networks.build_network("nets/own.py:Net", 3)
    small = prune(model, select_filters(model, cal_importance(model, "random"), 50))
    save_checkpoint("own.pth", small, {"image_size": 16, "classes": list("abc")})
    (tmp_path / "nets/own.py").rename(tmp_path / "own.py")  # it may have moved
    (tmp_path / "nets/widths.py").rename(tmp_path / "widths.py")
    assert measure.main(["--model_path=own.pth", "--flops=True"]) == 2
    assert "--model=nets/own.py:Net lets its code be run" in capsys.readouterr().err
    assert measure.main(["--model_path=own.pth", "--flops=True", "--model=own.py:Bare"]) == 2
    networks._load.cache_clear()
    assert measure.main(["--model_path=own.pth", "--flops=True", "--model=own.py:Net"]) == 0
    again, _ = load_checkpoint("own.pth", "own.py:Net")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(images), small.eval()(images))


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "regnet_y_400mf", "resnext50_32x4d"])
def test_networks_whose_channels_have_an_order_come_back(name, tmp_path):
    torch.manual_seed(0)
    model = settle(networks.build_network(name, 4))
    for seed in range(2):
        model = prune(
            model, select_filters(model, cal_importance(model, "random", seed=seed), 30 + 20 * seed)
        )
    save_checkpoint("net.pth", model, {})
    again, _ = load_checkpoint("net.pth")
    images, whole = torch.randn(2, 3, 64, 64), settle(networks.build_network(name, 4)).eval()
    with torch.no_grad():
        assert torch.equal(again.eval()(images), model.eval()(images))
        for network in (model, whole):  # in plain operators, as an export has them
            wanted = network(images)
            assert (
                lower(network, images)(images) - wanted
            ).abs().max() <= 1e-5 * wanted.abs().max()
    assert widths_of(again) == widths_of(model)


# ------------------------------------------------------------------------------- sweeps and reports


def test_coupled_and_single_are_methods_of_a_report(folder, capsys, tmp_path):
    flags = (
        f"--data_path={folder}",
        "--preset=test",
        "--image_size=16",
        "--ebt=True",
        "--model=nets/own.py:Net",
        "--pruning_type=l1",
        "--prune_percent=50",
        "--out=s",
    )
    for residual in ("single", "coupled"):
        assert run(*flags, f"--residual={residual}") == 0
    assert measure.main(["--report=s"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"^\| l1 \|", table, re.M) and re.search(r"^\| l1, coupled \|", table, re.M)
    assert len(list((tmp_path / "s/pruned_nets/ebt/shapes").glob("own.Net_l1*_50_0.pth"))) == 2


# ------------------------------------------------------------------------------------- from Python


def test_the_readmes_notebook(monkeypatch, tmp_path):
    pytest.importorskip("onnxscript")
    text = (ROOT / "lab/README.md").read_text()
    code = next(part for part in re.findall(r"```python\n(.*?)```", text, re.S) if "net," in part)
    import onnxruntime

    net = settle(torchvision.models.resnet18(num_classes=4))
    batches = [(torch.randn(4, 3, 48, 48), torch.arange(4)) for _ in range(2)]
    names = {"net": net, "batches": batches}
    exec(code, names)
    small = names["small"]
    assert filter_count(small)[0] * 2 == filter_count(net)[0]
    result = onnxruntime.InferenceSession("small.onnx").run(
        None,
        {onnxruntime.InferenceSession("small.onnx").get_inputs()[0].name: batches[-1][0].numpy()},
    )
    with torch.no_grad():
        torch.testing.assert_close(
            torch.tensor(result[0]), small(batches[-1][0]), rtol=1e-3, atol=1e-3
        )


class Multiplying(nn.Module):
    """Multiply-adds that no convolution or linear layer makes. by: what makes them."""

    def __init__(self, by=None, num_classes=10):
        super().__init__()
        self.by, self.stem, self.block = by, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.offsets = nn.Conv2d(8, 18, 3) if by == "deformed" else None
        self.deformed = torchvision.ops.DeformConv2d(8, 8, 3)
        self.up, self.line = nn.ConvTranspose2d(8, 6, 3, 2), nn.Conv1d(8, 5, 3, groups=1)
        self.deep = nn.Conv3d(1, 2, 3)
        self.head = nn.LazyLinear(num_classes)

    def forward(self, x):
        x = self.block(torch.relu(self.stem(x)))
        if self.by == "F.conv2d":
            x = F.conv2d(x, self.kernel)
        if self.by == "deformed":
            x = self.deformed(x, self.offsets(x))
        if self.by == "ConvTranspose2d":
            x = self.up(x)
        if self.by == "Conv3d":
            x = self.deep(x[:, None]).flatten(1, 2)
        rows = x.flatten(2).transpose(1, 2)
        if self.by == "Conv1d":
            rows = self.line(x.flatten(2)).transpose(1, 2)
        if self.by == "F.linear":
            rows = F.linear(rows, self.kernel[:, :, 0, 0])
        if self.by == "attention":
            rows = self.attention(rows, rows, rows)[0]
        if self.by == "sdpa":
            rows = F.scaled_dot_product_attention(rows[:, None], rows[:, None], rows[:, None])[:, 0]
        if self.by == "matmul":
            rows = (rows @ rows.transpose(1, 2)).softmax(-1) @ rows
        if self.by == "einsum":
            rows = torch.einsum("nld,de->nle", rows, self.kernel[:, :, 0, 0])
        return self.head(rows.mean(1))


def multiply_adds(network, size):
    """What torch counts for one image where the network itself is run, with gradients and attention
    in single steps, since it cannot count all that are one operation."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        network.eval()(torch.randn(1, 3, size, size))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "by, macs",
    [
        ("F.conv2d", 6 * 6 * 8 * 8 * 9),
        ("deformed", 6 * 6 * 8 * 8 * 9),
        ("ConvTranspose2d", None),
        ("Conv1d", None),
        ("Conv3d", None),
        ("F.linear", 64 * 8 * 8),
        ("attention", 64 * 8 * 8 * 4 + 2 * 64 * 64 * 8),
        ("sdpa", 2 * 64 * 64 * 8),
        ("matmul", 2 * 64 * 64 * 8),
        ("einsum", 64 * 8 * 8),
        (None, 0),
    ],
)
def test_all_multiply_adds_are_counted_before_and_after_a_cut(by, macs):
    network = Multiplying(by)
    network.train()(torch.randn(2, 3, 10, 10))  # which gives the head its inputs
    before = torch.get_rng_state()
    cost = measure_cost(network, 10)
    assert torch.equal(torch.get_rng_state(), before) and network.training
    layers = sum(cost["layer_macs"].values())
    assert macs is None or cost["macs"] == layers + macs
    if by != "deformed":  # which torch does not count
        assert cost["macs"] == multiply_adds(network, 10)
    scores = {group.name: torch.rand(len(group.channels)) for group in filter_groups(network)}
    small = prune(network, select_filters(network, scores, 50, "macs", image_size=10))
    cut = measure_cost(small, 10)
    assert cut["macs"] < cost["macs"]
    if by != "deformed":
        assert cut["macs"] == multiply_adds(small, 10)


@pytest.mark.parametrize(
    "make",
    [
        *(
            lambda name=name: networks.build_network(name, 10)
            for name in ("vgg", "resnet18", "mobilenet_v2", "squeezenet1_0")
        ),
        transformer,
    ],
)
def test_networks_cost_what_torch_counts_before_and_after_a_cut(make):
    network = make()
    assert measure_cost(network, 32)["macs"] == multiply_adds(network, 32)
    scores = {group.name: torch.rand(len(group.channels)) for group in filter_groups(network)}
    small = prune(network, select_filters(network, scores, 50, image_size=32))
    assert measure_cost(small, 32)["macs"] == multiply_adds(small, 32)


def test_a_filter_or_head_costs_what_the_network_saves_without_it():
    network = transformer()
    whole = measure_cost(network, 32)
    scores = {group.name: torch.rand(len(group.channels)) for group in filter_groups(network)}
    costs, heads = filter_costs(network, "macs", 32), 0
    for layers, own in removable_units(network, scores).items():
        unit = own.units[0]
        kept = {name: torch.arange(len(scores[name])) for name in scores}
        small = prune(network, kept | without(network, [unit]))
        saved = whole["macs"] - measure_cost(small, 32)["macs"]
        assert saved == pytest.approx(sum(costs[name][index] for name, index in unit.filters)), (
            layers
        )
        heads += len(unit.filters) == 3 * 8
    assert heads == 2


def test_one_channel_and_an_odd_size_work_from_python():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 18 * 18, 3),
    ).eval()
    with pytest.raises(ValueError, match="cannot take images"):
        filter_groups(model)
    assert [g.name for g in filter_groups(model, 20)] == ["0"]
    small = prune(model, select_filters(model, cal_importance(model, "l1"), 50))
    assert small(torch.zeros(2, 1, 20, 20)).shape == (2, 3)
    assert removable_filters(model, remains_of(model).structure) == (8, 8)


def test_what_reads_channels_costs_less_without_some_of_them():
    """As attention does, whose heads leave."""
    work = Work(None, 1200, torch.tensor([2, 3, 5, 7]))
    alive = torch.ones(8, dtype=torch.bool)
    assert macs_of(work, alive) == 1200
    alive[[0, 3, 5]] = False
    assert macs_of(work, alive) == 600
    assert macs_of(Work(None, 1200, torch.empty(0, dtype=torch.long)), alive) == 1200
