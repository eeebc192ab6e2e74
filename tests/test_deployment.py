"""A network leaves the suite as something a product can load; others' weights come into it."""

import csv
import json
import math
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
import torchvision
from torch import nn

import config
import eval as measure
import main
from channels.costs import measure_cost
from channels.groups import dense_widths, filter_count, filter_groups
from common.errors import InputError
from common.images import decode
from conftest import ROOT, WIDTH, begin_like, begin_with, files, narrow, short_preset
from data import load_data
from imp_estimator import cal_importance
from lab import export as exports
from lab import tables
from lab.checkpoint import load_checkpoint, save_checkpoint
from lab.experiment import parse
from lab.export import ExportSettings, export
from lab.measure import measure_latency
from lab.networks import build_network
from models import Origin, build_model
from pruner import prune, select_filters
from runtimes import RUNTIMES


@pytest.fixture(autouse=True)
def preset(monkeypatch, tmp_path):
    monkeypatch.setitem(config.PRESETS, "test", short_preset())
    monkeypatch.chdir(tmp_path)


def pruned(model, percent=50):
    return prune(model, select_filters(model, cal_importance(model, "random"), percent))


@pytest.fixture
def flags(folder):
    return [
        "--preset=test",
        "--image_size=16",
        "--width=0.125",
        f"--data_path={folder}",
        "--ebt=True",
    ]


@pytest.fixture
def saved(digits, tmp_path):
    """(file, network) of a pruned network for digits."""
    model = pruned(narrow("resnet-56", num_classes=10))
    save_checkpoint(
        "net.pth", model, {"classes": list(digits.classes), "image_size": 16, "data_path": "digits"}
    )
    return "net.pth", model


@pytest.fixture
def small(digits, tmp_path):
    """The same of a network that is exported in a second."""
    model = pruned(narrow("mobilenet", num_classes=10))
    save_checkpoint(
        "net.pth", model, {"classes": list(digits.classes), "image_size": 16, "data_path": "digits"}
    )
    return model


# ------------------------------------------------------------------------------------------ export


def load_pt2(path):
    extra = {"metadata.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    return module, json.loads(extra["metadata.json"])


def load_onnx(path):
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more would wait for each other busily
    session = onnxruntime.InferenceSession(path, options)
    names = [tensor.name for tensor in (*session.get_inputs(), *session.get_outputs())]
    assert names == ["images", "logits"]
    return (
        lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
        {entry.key: entry.value for entry in onnx.load(path).metadata_props},
    )


@pytest.mark.parametrize(
    "kind, load, percent", [("pt2", load_pt2, 50), ("pt2", load_pt2, 0), ("onnx", load_onnx, 50)]
)
def test_an_exported_graph_computes_what_the_network_does(network, few, kind, load, percent):
    """Pruned, with residual adds from fewer filters, and dense; for any number of images."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    images, _ = few
    small = pruned(network, percent)
    done = export(small, list("abcd"), f"here/net.{kind}", images)
    run, metadata = load(f"here/net.{kind}")
    for part in (images[:1], images[:5], images):
        with torch.no_grad():
            torch.testing.assert_close(run(part.contiguous()), small(part), rtol=1e-4, atol=1e-4)
    assert metadata["model"] == network.origin.name and json.loads(metadata["classes"]) == list(
        "abcd"
    )
    assert "from -1 to 1" in metadata["input"] and done["difference"] < 1e-3
    assert metadata["torch"] == torch.__version__
    assert list(files(Path("here"))) == [f"net.{kind}"]
    if kind == "onnx":
        import onnx

        graph = onnx.load("here/net.onnx").graph
        assert {node.op_type for node in graph.node} <= PLAIN
        folded = network.origin.name != "vgg"  # its BatchNorms stand behind ReLUs
        assert ("BatchNormalization" in {node.op_type for node in graph.node}) != folded


PLAIN = {"Conv", "Relu", "BatchNormalization", "Add", "MaxPool", "AveragePool", "Squeeze", "Gemm"}


def reference_on(content):
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load_from_string(content))
    return lambda images: evaluator.run(None, {"images": images})[0]


@pytest.fixture(scope="module")
def partial(few):
    """(the content of an .onnx file, images, logits): residual additions from fewer filters, both
    sides of some."""
    pytest.importorskip("onnxruntime")
    model = narrow("resnet")
    kept = {
        g.name: torch.arange(0 if g.is_fixed else g.conv.out_channels // 3, g.conv.out_channels)
        for g in filter_groups(model)
    }
    kept["layer2.0.shortcut.0"] = torch.arange(2, 9)
    model = prune(model, kept)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        export(model, "abcd", f"{folder}/net.onnx", few[0])
        return Path(folder, "net.onnx").read_bytes(), few[0][:5].numpy(), model(few[0][:5]).numpy()


@pytest.mark.parametrize("name", [*RUNTIMES, "reference"])
def test_other_runtimes_compute_the_same(name, partial):
    content, images, wanted = partial
    try:
        run = {**RUNTIMES, "reference": reference_on}[name](content)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    for part in (slice(0, 1), slice(0, 5)):
        assert np.abs(run(images[part].copy()) - wanted[part]).max() < 1e-4


@pytest.mark.parametrize("opset", [15, 17, 18, 21])
def test_older_runtimes_get_an_older_opset(small, few, opset):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = small
    assert (
        measure.main(["--model_path=net.pth", "--export=net.onnx", f"--export_opset={opset}"]) == 0
    )
    run, metadata = load_onnx("net.onnx")
    file = onnx.load("net.onnx")
    assert (
        [imported.version for imported in file.opset_import] == [opset] == [int(metadata["opset"])]
    )
    assert file.ir_version == int(metadata["ir_version"]) <= 10
    with torch.no_grad():
        torch.testing.assert_close(run(few[0].contiguous()), model(few[0]), rtol=1e-4, atol=1e-4)


def python_of(page, heading):
    """The first Python block below a heading of a README, or behind other words of it."""
    return (ROOT / page).read_text().split(heading)[1].split("```python\n")[1].split("```")[0]


def test_a_network_in_8_bits_is_nearly_as_good(network, capsys, set_threads):
    """As lab/README.md does it, with a pruned network that has learnt the digits at 8 x 8 pixels."""
    pytest.importorskip("onnxruntime")
    set_threads(1)  # where two tests run at a time, two threads take seven times as long
    digits, name = load_data("digits", 8), network.origin.name
    torch.manual_seed(0)
    model = pruned(build_model(name, 10, WIDTH[name]), 20).train()
    epochs = 14 if name == "mobilenet" else 2
    pixels, labels = digits.train.images.permute(0, 3, 1, 2) / 127.5 - 1, digits.train.labels
    optimizer = torch.optim.Adam(model.parameters())
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=23 * epochs + 1)
    for part in (part for _ in range(epochs) for part in torch.randperm(len(labels)).split(64)):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels[part]), labels[part]).backward()
        optimizer.step(), rates.step()
    export(model, digits.classes, "digits.onnx", pixels[:8], ExportSettings(inside=True))
    exec(python_of("lab/README.md", "### In 8 bits"), {})
    whole, quantised = (
        float(line.split()[1]) for line in capsys.readouterr().out.splitlines()[-2:]
    )
    assert whole > 50 and quantised > whole - 4
    assert os.stat("digits-int8.onnx").st_size < os.stat("digits.onnx").st_size / 1.5


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_script_of_the_readme_names_the_class(
    interpolation, small, tmp_path, capsys, monkeypatch, digits
):
    pytest.importorskip("onnxruntime")
    from PIL import Image

    Image.fromarray(digits.test.images[0].numpy()).save("x.png")
    ask = ["--model_path=net.pth", f"--interpolation={interpolation}", "--device=cpu"]
    assert measure.main([*ask, "--export=n.onnx", "--export_normalize=True"]) == 0
    assert measure.main([*ask, "--predict=x.png"]) == 0
    likeliest = capsys.readouterr().out.splitlines()[-2].split()[1]
    monkeypatch.setattr(sys, "argv", ["run.py", "n.onnx", "x.png"])
    script = python_of("lab/README.md", "### Run an export")
    exec(script, {})
    assert capsys.readouterr().out.splitlines()[-1] == likeliest
    # It sees the very images that eval.py measures: large, turned, transparent, with a palette.
    noise = np.random.RandomState(0).randint(0, 256, (500, 700, 3), np.uint8)
    photo, turned = Image.fromarray(noise).resize((1400, 1000)), Image.Exif()
    turned[0x0112] = 6
    photo.save("large.jpg")
    photo.save("turned.jpg", exif=turned)
    photo.convert("CMYK").save("print.jpg")
    photo.convert("L").resize((97, 61)).save("grey.jpg")
    clear = photo.resize((300, 200)).convert("RGBA")
    clear.putalpha(clear.getchannel("R"))
    clear.save("clear.png")
    clear.quantize(16).save("palette.png")
    for name in ("large.jpg", "turned.jpg", "print.jpg", "grey.jpg", "clear.png", "palette.png"):
        monkeypatch.setattr(sys, "argv", ["run.py", "n.onnx", name])
        exec(script, names := {})
        seen = (names["pixels"][0] * 255).round().astype("uint8").transpose(1, 2, 0)
        assert (seen == decode(name, seen.shape[0], None, interpolation)).all(), name


class Halves(nn.Module):
    """Half of the channels go by another way, and are added; a convolution of a class of its own."""

    class Noted(nn.Conv2d):
        def forward(self, x):
            return super().forward(torch.cat((x, torch.ones_like(x[:, :1])), 1))

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(4, 4, 3, padding=1),
            self.Noted(9, 6, 3),
        )
        self.head, self.origin = nn.Linear(6, 4), Origin("halves", 4)

    def forward(self, x):
        first, second = self.a(x).relu().split(4, 1)
        x = torch.cat((first, second + self.b(first)), 1)
        return self.head(self.c(x).relu().mean((2, 3)))


@pytest.mark.parametrize("kind, load", [("pt2", load_pt2), ("onnx", load_onnx)])
def test_a_sum_of_which_one_side_is_gone_is_exported(kind, load, few):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    model = Halves().eval()
    filters = {g.name: torch.arange(g.conv.out_channels) for g in filter_groups(model, 16)}
    small = prune(model, {**filters, "a": torch.arange(4)}).eval()
    assert small.a.out_channels == 4
    export(small, list("abcd"), f"net.{kind}", few[0])
    run, _ = load(f"net.{kind}")
    with torch.no_grad():
        torch.testing.assert_close(run(few[0].contiguous()), small(few[0]), rtol=1e-4, atol=1e-4)


def test_what_onnx_does_not_know_is_said_and_times_are_measured_without_it(capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.RReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    ).eval()
    model.origin = Origin("rrelu", 5)
    with pytest.raises(InputError, match="this network cannot be written as ONNX: .*rrelu"):
        exports.onnx_of(model, torch.zeros(2, 3, 16, 16))
    monkeypatch.setattr(
        tables,
        "measure_latency",
        lambda timed, *_: {
            label: {"median": 1.0, "p90": 1.0, "images_per_second": 1.0, "runs": 1}
            for label in timed
        },
    )
    tables.print_latency(model, 16, [torch.device("cpu")])
    said = capsys.readouterr().out
    assert (
        "Without ONNX Runtime: this network cannot be written as ONNX: " in said and "this" in said
    )


def test_what_an_export_cannot_be_is_said(small, capsys):
    pytest.importorskip("onnxruntime")
    for flags, says in (
        (["--export=n.onnx", "--export_opset=98"], "--export_opset=98: this network cannot be"),
        (["--export=n.pt2", "--export_opset=18"], "only works with --export=FILE.onnx"),
        (["--flops=True", "--export_fold=False"], "--export_fold only works with --export"),
        (["--flops=True", "--export_opset=18"], "--export_opset only works with --export"),
    ):
        assert measure.main(["--model_path=net.pth", *flags]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert measure.main(["--model_path=net.pth", "--export=n.onnx", "--export_fold=False"]) == 0
    out = capsys.readouterr().out
    assert "a width that is no multiple of 8" in out and "opset 2" in out and "IR version" in out
    import onnx

    assert "BatchNormalization" in {node.op_type for node in onnx.load("n.onnx").graph.node}


@pytest.mark.parametrize("scaled, interpolation", [(16, "bilinear"), (18, "bicubic")])
def test_an_image_becomes_pixels_as_the_steps_in_the_metadata_say(
    scaled, interpolation, tmp_path, few
):
    """Followed with Pillow and torchvision's transforms, on photographs turned and cut at random."""
    from PIL import Image, ImageOps
    from sklearn.datasets import load_sample_images
    from torchvision.transforms import functional as T

    model = narrow("resnet-56", 10)
    settings = ExportSettings(scaled_size=scaled, interpolation=interpolation)
    export(model, "abcdefghij", "net.pt2", few[0], settings)
    run, metadata = load_pt2("net.pt2")
    random, photos, same = (
        np.random.RandomState(0),
        [Image.fromarray(photo) for photo in load_sample_images().images],
        [],
    )
    for k in range(200):
        photo = photos[k % 2]
        width, height = random.randint(17, 200, 2)
        left, top = random.randint(0, photo.width - width), random.randint(0, photo.height - height)
        image = photo.crop((left, top, left + width, top + height))
        if k % 5 == 0:
            image.putalpha(Image.fromarray(random.randint(0, 256, (height, width), np.uint8)))
        path, exif = tmp_path / ("x.png" if k % 5 == 0 else "x.jpg"), Image.Exif()
        exif[0x0112] = 1 + k % 8
        image.save(path, exif=exif)
        image = Image.open(path)
        for step in json.loads(metadata["steps"]):
            match step["do"]:
                case "decode":
                    image.draft(None, (scaled * 3 // 2,) * 2)
                    assert (
                        step["as"] == f"image.draft(None, ({scaled * 3 // 2}, {scaled * 3 // 2}))"
                    )
                case "turn":
                    image = ImageOps.exif_transpose(image)
                case "lay on":
                    if image.mode == "RGBA":
                        ground = Image.new("RGBA", image.size, tuple(step["colour"]))
                        image = Image.alpha_composite(ground, image)
                case "convert":
                    image = image.convert(step["to"])
                case "cut" if "16 x 16" in step["part"]:
                    image = T.center_crop(image, 16)
                case "cut":
                    assert step["filter"] == interpolation
                    image = eval(step["as"], {"PIL": PIL, "image": image, "to": step["to"]})
                case "divide" if step["by"] == 255:
                    image = T.to_tensor(image)
                case "subtract":
                    means = step["colour"]
                case "divide":
                    image = T.normalize(image, means, step["by"])
                case "order":
                    image = image[None]
        ours = (
            torch.from_numpy(decode(path, scaled, None, interpolation)).permute(2, 0, 1)[None]
            / 127.5
            - 1
        )
        margin = (scaled - 16) // 2
        ours = ours[..., margin : margin + 16, margin : margin + 16]
        assert (ours - image).abs().max() < 1e-5
        with torch.no_grad():
            same.append((run(image).argmax() == model(ours).argmax()).item())
    assert sum(same) >= 0.99 * len(same)


def test_both_writers_of_a_residual_add_may_be_partial(few):
    model = narrow("resnet")
    kept = {g.name: torch.arange(g.conv.out_channels) for g in filter_groups(model)}
    kept["layer2.0.conv2"], kept["layer2.0.shortcut.0"] = torch.arange(4), torch.arange(2, 9)
    small = prune(model, kept)
    export(small, "abcd", "net.pt2", few[0])
    with torch.no_grad():
        torch.testing.assert_close(load_pt2("net.pt2")[0](few[0][:3]), small(few[0][:3]))


def test_the_graph_may_normalise(small, few, capsys):
    model = small
    assert (
        measure.main(
            ["--model_path=net.pth", "--export=deep/er/net.pt2", "--export_normalize=True"]
        )
        == 0
    )
    run, metadata = load_pt2("deep/er/net.pt2")
    images = few[0][:4]
    with torch.no_grad():
        torch.testing.assert_close(
            run(((images + 1) / 2).contiguous()), model(images), rtol=1e-4, atol=1e-4
        )
    assert metadata["input"].endswith("RGB, pixels from 0 to 1")
    assert metadata["mean"] == "[0.0, 0.0, 0.0]" and metadata["std"] == "[1.0, 1.0, 1.0]"
    assert "pixels from 0 to 1\n" in capsys.readouterr().out
    assert (
        measure.main(["--model_path=net.pth", "--export=n.safetensors", "--export_normalize=True"])
        == 2
    )
    assert measure.main(["--model_path=net.pth", "--export_normalize=True"]) == 2


def test_safetensors_rebuild_the_network(saved, few):
    safe_open = pytest.importorskip("safetensors").safe_open
    _, model = saved
    assert measure.main(["--model_path=net.pth", "--export=net.safetensors"]) == 0
    with safe_open("net.safetensors", framework="pt") as file:
        metadata = file.metadata()
        weights = {key: file.get_tensor(key) for key in file.keys()}
    again = build_network(
        metadata["model"],
        int(metadata["num_classes"]),
        float(metadata["width"]),
        json.loads(metadata["cfg"]),
    ).eval()
    again.load_state_dict(weights, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(again(few[0]), model(few[0]))


def test_a_safetensors_file_is_measured_as_what_it_was_made_from(saved, capsys):
    _, model = saved
    assert measure.main(["--model_path=net.pth", "--export=net.safetensors"]) == 0
    again, record = load_checkpoint("net.safetensors")
    assert record.image_size == 16 and record.classes == [str(k) for k in range(10)]
    assert record.normalize == [0.5] * 6 and record.pruned
    accuracies = []
    for path in ("net.pth", "net.safetensors"):
        capsys.readouterr()
        assert measure.main([f"--model_path={path}", "--test_acc=True", "--data_path=digits"]) == 0
        accuracies.append(capsys.readouterr().out.splitlines()[-1])
    assert accuracies[0] == accuracies[1]


def test_an_export_says_and_computes_its_own_normalisation(few):
    model = narrow("vgg")
    means, deviations = torch.tensor(config.NORMALIZATIONS["imagenet"]).view(2, 3, 1, 1)
    pixels = (few[0] + 1) / 2
    images = (pixels - means) / deviations
    for inside in (False, True):
        settings = ExportSettings(config.NORMALIZATIONS["imagenet"], inside=inside)
        export(model, "abcd", "n.pt2", images, settings)
        loaded, metadata = load_pt2("n.pt2")
        with torch.no_grad():
            torch.testing.assert_close(
                loaded(pixels if inside else images), model(images), rtol=1e-3, atol=1e-4
            )
        assert metadata["mean"] == ("[0.0, 0.0, 0.0]" if inside else "[0.485, 0.456, 0.406]")


def test_an_export_that_computes_something_else_is_refused(few, monkeypatch):
    def wrong(*arguments):
        content, loaded = correct.write(*arguments)
        return content, lambda images: loaded(images) + (0.01 if len(images) == 1 else 0)

    correct = exports.EXPORTERS[".pt2"]
    monkeypatch.setitem(exports.EXPORTERS, ".pt2", replace(correct, write=wrong))
    with pytest.raises(InputError, match="logits differ by 0.01; nothing was written"):
        export(narrow("vgg"), "abcd", "net.pt2", few[0])
    assert not files(Path("."))


def test_a_format_is_one_function(few, monkeypatch, capsys):
    """`--export` knows that of the README by its suffix, and what was said of it; the help names
    those that are there."""
    with pytest.raises(SystemExit):
        measure.main(["--help"])
    said = capsys.readouterr().out
    assert all(suffix in said for suffix in exports.EXPORTERS)
    monkeypatch.setattr(exports, "EXPORTERS", dict(exports.EXPORTERS))
    added = python_of("lab/README.md", "**An export format**")
    exec(added, {**vars(exports), "numpy": np})

    small = pruned(narrow("resnet-56"), 50)
    assert export(small, "abcd", "net.npz", few[0])["difference"] < 1e-4
    arrays = np.load("net.npz")
    assert all(np.array_equal(arrays[name], value) for name, value in small.state_dict().items())
    with pytest.raises(InputError, match="a .npz file holds weights, and no graph"):
        export(small, "abcd", "net.npz", few[0], ExportSettings(inside=True))
    with pytest.raises(InputError, match="must end in .pt2, .onnx, .safetensors, .npz"):
        export(small, "abcd", "net.txt", few[0])


def test_a_missing_package_and_a_wrong_suffix_are_one_line(saved, monkeypatch, capsys):
    before = files(Path("."))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for flag, says in (
        ("--export=new/net.onnx", "--export as .onnx needs onnxruntime: pip install onnxruntime"),
        ("--export=net.pth/net.pt2", "cannot write net.pth/net.pt2: "),
        ("--export=net.txt", "must end in .pt2, .onnx, .safetensors"),
    ):
        assert measure.main(["--model_path=net.pth", flag]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert files(Path(".")) == before and not Path("new").exists()


# ------------------------------------------------------------------------------- predict and measure


def test_predictions_need_no_data_and_are_the_networks(saved, digits, capsys):
    from PIL import Image

    _, model = saved
    images = digits.test.images[:3]
    Path("some/more").mkdir(parents=True)
    for name, image in zip(("some/a.png", "some/b.png", "some/more/c.png"), images):
        Image.fromarray(image.numpy()).save(name)
    with torch.no_grad():
        likely = model(images.permute(0, 3, 1, 2) / 127.5 - 1).softmax(1).topk(3)
    assert measure.main(["--model_path=net.pth", "--predict=some", "--device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()[-4:-1]
    for line, name, which, of in zip(
        lines,
        ("some/a.png", "some/b.png", "some/more/c.png"),
        likely.indices.tolist(),
        likely.values.tolist(),
    ):
        words = line.split()
        assert words[0] == name and words[1::2] == [str(k) for k in which]
        assert words[2::2] == [f"{100 * p:.1f}%" for p in of]

    Path("some/bad.png").write_text("no image")
    assert measure.main(["--model_path=net.pth", "--predict=some"]) == 2
    assert "some/bad.png cannot be read" in capsys.readouterr().err
    assert measure.main(["--model_path=net.pth", "--predict=some", "--skip_bad_images=True"]) == 0
    assert "left out: it is empty, damaged, or of a kind" in capsys.readouterr().out
    Path("empty").mkdir()
    for path in ("nowhere", "empty"):
        assert measure.main(["--model_path=net.pth", f"--predict={path}"]) == 2


def test_layers_add_up(saved):
    _, model = saved
    assert measure.main(["--model_path=net.pth", "--layers=True"]) == 0
    rows = list(csv.DictReader(Path("net_layers.csv").read_text().splitlines()))
    dense = build_model(model.origin.name, model.origin.num_classes, model.origin.width)
    assert sum(int(r["macs"]) for r in rows) == measure_cost(model, 16)["macs"]
    assert sum(int(r["unpruned_macs"]) for r in rows) == measure_cost(dense, 16)["macs"]
    widths = {r["layer"]: (int(r["kept"]), int(r["total"])) for r in rows}
    for group in filter_groups(model):
        assert widths[group.name] == (group.conv.out_channels, group.dense)
    assert 0 < float(rows[3]["orthogonality"]) <= 1 and rows[-1]["layer"] == "linear"


def test_latency_is_measured_beside_the_unpruned_network(saved, monkeypatch, capsys):
    _, model = saved
    device = torch.device("cpu")
    figures = measure_latency({"a": model, "b": model}, 2, 16, device, seconds=0)
    for of in figures.values():
        assert of["runs"] >= 5 and 0 < of["median"] <= of["p90"]
        assert of["images_per_second"] == pytest.approx(2000 / of["median"])

    monkeypatch.setattr(tables, "runtime_of", lambda *_: None)  # as where it is not installed

    def said(milliseconds):
        monkeypatch.setattr(
            tables,
            "measure_latency",
            lambda networks, size, *_: {
                label: {
                    "median": milliseconds[label],
                    "p90": 9.0,
                    "images_per_second": 1.0,
                    "runs": 5,
                }
                for label in networks
            },
        )
        assert measure.main(["--model_path=net.pth", "--latency=True", "--device=cpu"]) == 0
        return capsys.readouterr().out

    slow, fast = said({"unpruned": 2.0, "this": 2.0}), said({"unpruned": 2.0, "this": 1.0})
    assert "FLOPs, but is not faster at batch size 1 (cpu), 32 (cpu), 128 (cpu)" in slow
    assert "not faster" not in fast and "2.00\n" in fast
    assert [line.split()[0] for line in fast.splitlines()[-6:]] == [
        "1",
        "1",
        "32",
        "32",
        "128",
        "128",
    ]
    save_checkpoint("net.pth", narrow("vgg"), {"image_size": 16})  # an unpruned one, alone
    alone = said({"this": 2.0})
    assert "times as fast" in alone and "not faster" not in alone
    save_checkpoint("net.pth", model, {"image_size": 16})
    if runtime := exports.runtime_of(model, 16):
        with torch.no_grad():
            images = torch.rand(3, 3, 16, 16)
            torch.testing.assert_close(runtime(images), model(images), rtol=1e-4, atol=1e-4)
        figures = measure_latency({"a": model, "b": runtime}, 2, 16, device, seconds=0)
        assert 0 < figures["b"]["median"] < 1000
        monkeypatch.setattr(tables, "runtime_of", lambda *_: runtime)
        both = said(
            {"unpruned": 2.0, "this": 1.0, "unpruned, ONNX Runtime": 1.0, "this, ONNX Runtime": 1.0}
        )
        assert "not faster at batch size 1 (ONNX Runtime), 32 (ONNX Runtime)" in both


# ---------------------------------------------------------------------------- others' weights come in


@pytest.fixture(scope="module")
def resnet34():
    """Weights of torchvision's network, whose BatchNorms do not look alike."""
    return {
        key: tensor + torch.rand_like(tensor) if "bn" in key and tensor.ndim else tensor
        for key, tensor in torchvision.models.resnet34().state_dict().items()
    }


def test_a_classifier_for_classes_of_other_names_stays_fresh():
    model, names = narrow("vgg", 3), ["cat", "dog", "fox"]
    save_checkpoint("net.pth", model, {"classes": names})
    for ours, fresh in ((names, False), (["a", "b", "c"], True), (None, False)):
        lines = begin_with(narrow("vgg", 3, seed=1), "net.pth", ours)
        assert (
            any("classifier is for other classes (cat, dog, fox)" in line for line in lines)
            == fresh
        )
    save_checkpoint("net.pth", model, {})
    lines = begin_with(narrow("vgg", 3, seed=1), "net.pth", names)
    assert any(
        "classifier was trained for classes that the file does not name" in line for line in lines
    )


class Backwards(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.hidden = nn.Linear(6, 3), nn.Linear(5, 6)
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
        self.origin = Origin("backwards", 3)

    def forward(self, x):
        return self.fc(self.hidden(self.norm(self.b(self.a(x))).mean((2, 3))))


def test_weights_find_their_layers_in_whatever_order_a_network_defines_them():
    theirs = Backwards()
    torch.save(
        {"net": theirs.state_dict(), "classes": ["a", "b", "c"], "normalize": [0.1] * 6}, "net.pth"
    )
    lines = begin_with(Backwards(), "net.pth", ["a", "b", "d"], [0.5] * 6)
    assert len(lines) == 3
    assert "the classifier fc, since the classifier is for other classes (a, b, c)" in lines[1]
    assert lines[2] == (
        "its images were normalised in another way; --normalize=0.1,0.1,0.1,0.1,0.1,0.1 fits it"
    )
    state = {key: value for key, value in theirs.state_dict().items() if "hidden" not in key}
    torch.save({**state, "a.weight": state["a.weight"][:, :1]}, "grey.pth")
    ours = Backwards()
    lines = "\n".join(begin_with(ours, "grey.pth"))
    assert (
        "fresh: the first convolution a, since a.weight is 4 x 1 x 3 x 3 instead of 4 x 3" in lines
    )
    assert "fresh: 1 layer (hidden)" in lines and torch.equal(ours.b.weight, theirs.b.weight)


def test_a_pruned_network_of_another_width_is_no_beginning():
    model = narrow("vgg", 3, width=1 / 8)
    save_checkpoint("net.pth", pruned(model), {})
    with pytest.raises(
        InputError, match="a pruned network of --width=0.125, and this run has --width=1"
    ):
        begin_like("net.pth", "vgg", 3)


def test_a_torchvision_resnet_gives_all_but_stem_and_classifier(resnet34):
    model, state = build_model("resnet", num_classes=4), resnet34
    torch.save(state, "tv.pth")
    lines = "\n".join(begin_with(model, "tv.pth"))
    own = model.state_dict()
    assert torch.equal(own["layer3.0.shortcut.0.weight"], state["layer3.0.downsample.0.weight"])
    assert torch.equal(own["layer4.2.bn2.running_var"], state["layer4.2.bn2.running_var"])
    assert (own["bn1.running_mean"] == 0).all() and (own["bn1.weight"] == 1).all()  # not conv1's
    assert (
        "fresh: the first convolution conv1, since conv1.weight is 64 x 3 x 7 x 7 instead of "
        "64 x 3 x 3 x 3" in lines
    )
    assert "fresh: 1 BatchNorm (bn1), so " in lines and "from tv.pth: 99.9% of the weights" in lines
    assert (
        "fresh: the classifier linear, since linear.weight is 1000 x 512 instead of 4 x 512"
        in lines
    )


def test_a_classifier_for_as_many_classes_is_taken_too(tmp_path):
    model, fresh = narrow("mobilenet", seed=1), narrow("mobilenet", seed=2)
    torch.save(
        {"net": {f"module.{key}": value for key, value in model.state_dict().items()}},
        "published.pth",
    )
    lines = begin_with(fresh, "published.pth")
    assert lines == ["from published.pth: 100.0% of the weights"]
    for key, value in fresh.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, model.state_dict()[key])


def torchvision_vgg(name):
    """Random weights of one of torchvision's, but for its largest layers."""
    with torch.device("meta"):
        shapes = getattr(torchvision.models, name)().state_dict()
    return {key: torch.rand(tensor.shape) for key, tensor in shapes.items() if tensor.numel() < 5e6}


def test_a_torchvision_vgg_gives_its_convolutions_in_order():
    state = torchvision_vgg("vgg13")
    torch.save(state, "tv.pth")
    model = build_model("vgg", num_classes=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lines = "\n".join(begin_with(model, "tv.pth"))
    convs = [key for key, value in state.items() if value.ndim == 4]
    assert torch.equal(model.features[2].weight, before["features.2.weight"])
    for own, key in zip(dense_widths(model), convs, strict=True):
        assert torch.equal(model.get_submodule(own).weight, state[key])
        assert torch.equal(model.get_submodule(own).bias, state[key.replace("weight", "bias")])
    assert "fresh: 10 BatchNorms (features.2, features.5, " in lines
    assert "fresh: the classifier classifier, since classifier.weight is " in lines
    torch.save({key: value for key, value in state.items() if key != convs[1]}, "tv.pth")
    with pytest.raises(InputError, match="does not fit VGG-13: it has no features.3 "):
        begin_with(model, "tv.pth")


def test_a_vgg_with_batchnorms_before_the_relus_is_sent_to_the_network_that_takes_it():
    torch.save(torchvision_vgg("vgg13_bn"), "tv.pth")
    with pytest.raises(InputError, match="stand behind them; --model=vgg13_bn takes it"):
        begin_with(build_model("vgg", num_classes=4), "tv.pth")


def test_weights_that_no_network_has_are_not_taken():
    model, state = narrow("vgg"), narrow("vgg", seed=1).state_dict()
    state["features.5.running_var"][0] = -1
    torch.save(state, "net.pth")
    assert begin_with(model, "net.pth")[1].startswith("fresh: 1 BatchNorm (features.5)")
    state["features.3.weight"][0] = math.nan
    torch.save(state, "net.pth")
    with pytest.raises(InputError, match="features.3.weight holds values that are not finite"):
        begin_with(model, "net.pth")


def test_another_network_is_no_beginning(flags, capsys):
    meta = {key: value.to("meta") for key, value in narrow("vgg").state_dict().items()}
    strange = {"features.conv0.weight": torch.rand(8, 3, 3, 3)}
    for name, state in (
        ("strange", strange),
        ("meta", meta),
        ("none", {"a": 1}),
        ("other", narrow("mobilenet").state_dict()),
    ):
        torch.save(state, f"{name}.pth")
        assert main.main([*flags, "--only_train=base", f"--init={name}.pth"]) == 2
    error = capsys.readouterr().err
    assert "--init=other.pth does not fit VGG-13: it has no features.3 (another network" in error
    assert "none.pth holds no state dict" in error
    assert "strange.pth does not fit" in error and "features.3.weight is not a plain" in error
    assert sorted(files(Path("."))) == [
        f"{name}.pth" for name in ("meta", "none", "other", "strange")
    ]
    os.mkfifo("fifo.pth")
    assert main.main([*flags, "--only_train=base", "--init=fifo.pth"]) == 2
    assert "no checkpoint at fifo.pth" in capsys.readouterr().err
    for wrong in ("--pretrained=True", "--control=scratch"):
        assert (
            main.main(
                [*flags, "--pruning_type=l1", "--prune_percent=20", "--init=other.pth", wrong]
            )
            == 2
        )
        assert wrong in capsys.readouterr().err


def test_a_run_begins_with_a_classifier_that_the_user_vouches_for(flags, capsys):
    theirs = narrow("vgg", num_classes=3)
    torch.save(
        {
            "state_dict": narrow("vgg", num_classes=3, seed=1).state_dict(),
            "state_dict_ema": theirs.state_dict(),
        },
        "net.pth",
    )
    begin = [*flags, "--only_train=base", "--init=net.pth:state_dict_ema"]
    assert main.main(begin) == 0
    assert "the file does not name; --classifier=keep takes it" in capsys.readouterr().out
    assert main.main([*begin, "--classifier=keep"]) == 0
    out = capsys.readouterr().out
    assert "from net.pth:state_dict_ema: 100.0% of the weights" in out and "fresh" not in out
    assert (
        measure.main(["--model_path=net.pth:state_dict_ema", "--layers=True"]) == 2
    )  # of width 1/8
    torch.save(
        {"net": narrow("vgg", width=1).state_dict(), "ema": narrow("vgg", width=1).state_dict()},
        "two.pth",
    )
    assert measure.main(["--model_path=two.pth", "--layers=True", "--compression=True"]) == 0
    assert (
        "Note: two.pth has several state dicts: that under net is taken" in capsys.readouterr().out
    )
    assert measure.main(["--model_path=two.pth:ema", "--layers=True", "--compression=True"]) == 0
    assert "several" not in capsys.readouterr().out and Path("two_ema_layers.csv").is_file()


def test_a_sweep_trains_its_base_networks_from_the_weights(flags, folder, capsys):
    torch.save(narrow("vgg", num_classes=3).state_dict(), "net.pth")
    Path("sweep.json").write_text(
        json.dumps(
            {
                **dict(flag[2:].split("=") for flag in flags),
                "init": "net.pth",
                "classifier": "keep",
                "pruning_type": "l1",
                "prune_percent": 20,
                "control": [False, "scratch"],
            }
        )
    )
    assert main.main(["--sweep=sweep.json", "--print_config=True"]) == 0
    base, cell, scratch = json.loads(capsys.readouterr().out)["order"]
    assert "--init=net.pth" in base and "--init" not in cell + scratch
    assert "--classifier=keep" in base and "--classifier" not in cell + scratch
    assert "--pretrained=True" in cell and "--control=scratch" in scratch


def test_a_run_does_not_replace_what_it_begins_with(flags, capsys):
    assert main.main([*flags, "--only_train=base"]) == 0
    before = files(Path("."))
    assert (
        main.main([*flags, "--only_train=base", "--init=./pretrained/ebt/shapes/vgg-w0.125.pth"])
        == 2
    )
    assert "would be replaced by this very run" in capsys.readouterr().err
    assert files(Path(".")) == before


def test_a_run_begins_with_the_weights_and_knows_them_again(flags, capsys):
    assert main.main([*flags, "--only_train=ortho"]) == 0
    begin = [*flags, "--only_train=base", "--init=pretrained/ebt/shapes/vgg-w0.125_ortho.pth"]
    assert main.main(begin) == 0
    assert "ortho.pth: 100.0% of the weights" in capsys.readouterr().out
    assert main.main([*begin, "--resume=True"]) == 0
    assert "This run is finished" in capsys.readouterr().out
    assert main.main([*flags, "--only_train=ortho", "--seed=1", "--out=b"]) == 0
    Path("b/pretrained/ebt/shapes/vgg-w0.125_ortho_s1.pth").rename(begin[-1].split("=")[1])
    assert main.main([*begin, "--resume=True"]) == 0  # other weights under the same name
    assert "This run is finished" not in capsys.readouterr().out


# --------------------------------------------------------------------- what costs, on the command line


def test_a_run_may_count_multiply_adds_and_round_widths(flags, capsys):
    job = [
        *flags,
        "--model=resnet-56",
        "--width=0.5",
        "--pruning_type=random",
        "--prune_percent=50",
    ]
    assert main.main([*job, "--budget=macs"]) == 0
    said = capsys.readouterr().out
    path = Path("pruned_nets/ebt/shapes/resnet-56-w0.5_random_50_0.pth")
    model, record = load_checkpoint(path)[0], json.loads(path.with_suffix(".json").read_text())
    left = 100 * record["macs"] / record["base"]["macs"]
    assert 50 <= left < 50.5 and left == pytest.approx(100 - record["pruning"]["achieved_percent"])
    assert "% of the multiply-adds (asked for: 50%)" in said
    assert "percent of multiply-adds to remove" in said
    assert main.main([*job, "--pretrained=True", "--control=scratch"]) == 2
    assert "was pruned with --budget=macs, not filters" in capsys.readouterr().err

    assert main.main([*job, "--pretrained=True", "--round_to=4"]) == 0
    model, record = load_checkpoint(path)[0], json.loads(path.with_suffix(".json").read_text())
    assert all(g.conv.out_channels % 4 == 0 for g in filter_groups(model))
    now, dense = filter_count(model)
    assert record["pruning"]["requested_percent"] == 50
    achieved = record["pruning"]["achieved_percent"]
    assert 30 < achieved <= 50 and achieved == pytest.approx(100 * (1 - now / dense))


# ------------------------------------------------------------------- what a run shows of itself


@pytest.mark.parametrize(
    "job",
    [
        ["--ebt=True", "--pruning_type=fisher", "--prune_percent=30"],
        ["--pruning_type=orthoreg", "--prune_percent=40", "--n_rounds=2"],
    ],
)
def test_the_shown_job_is_the_one_that_runs(flags, job, capsys):
    command = [*flags[:-1], *job, "--batch_size=8"]
    assert main.main([*command, "--print_config=True"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert not files(Path("."))
    assert shown["flags"]["batch_size"] == 8 and shown["momentum"] == config.MOMENTUM
    assert main.main(command) == 0
    saved = {step["file"] for step in shown["steps"] if step["step"] == "save network"}
    assert saved == {name for name in files(Path(".")) if name.endswith(".pth")}
    for step in shown["steps"]:
        if step["step"] == "train network":
            assert (step["lr"], step["epochs"]) == ([0.02], [1])
            assert bool(step["penalty"]) == (step["phase"] == "ortho")
    last = json.loads(Path(shown["steps"][-1]["file"]).with_suffix(".json").read_text())
    assert (
        last["pruning"]["requested_percent"]
        == [step["percent"] for step in shown["steps"] if step["step"] == "prune filters"][-1]
    )


def test_of_a_stopped_run_what_is_done_is_shown_on_any_machine(shell, flags, tmp_path, capsys):
    job = [*flags[:-1], "--pruning_type=orthoreg", "--prune_percent=40", "--resume=True"]
    stopped = shell("main.py", *job, cwd=tmp_path, stop=(15, 8))
    assert stopped.returncode == 130, stopped.stderr
    shown_job = [*job, "--print_config=True"]
    assert main.main([*shown_job, "--device=mps"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert "there is none here" in shown["device"]
    assert [(step["step"], step.get("is done", False)) for step in shown["steps"][:3]] == [
        ("train network", True),
        ("save network", True),
        ("train network", False),
    ]  # and not "load", though it is there by now


def test_the_shown_sweep_is_its_commands(capsys):
    assert main.main(["--sweep=paper", "--print_config=True"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["cells"]) == 27 and len(shown["order"]) == 3 * 2 + 27
    assert set(shown["cells"]) < set(shown["order"])
    for line in shown["order"]:
        assert parse(line.split()[2:]).preset == "paper"


def test_every_network_has_the_history_of_its_training_as_csv(flags):
    assert main.main([*flags, "--pruning_type=orthoreg", "--prune_percent=30"]) == 0
    for path in Path(".").rglob("*.pth"):
        history = load_checkpoint(path)[1].history
        ((phase, (epoch,)),) = history.items()
        (row,) = csv.DictReader(path.with_suffix(".csv").read_text().splitlines())
        assert row["phase"] == phase and float(row["lr"]) == epoch["lr"] == 0.02
        assert float(row["train/loss"]) == epoch["train"]["loss"]
        assert float(row["test/top1"]) == epoch["test"]["top1"]
        assert ("train/penalty" in row) == (phase == "ortho")
        assert math.isclose(float(row["orthogonality"]), epoch["orthogonality"])


def test_tensorboard_has_each_epoch_once_also_after_resumes(shell, folder, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def scalars(folder):
        """{training: {name: [(epoch, value)]}}"""
        logs = {
            path.parent.name: events.EventAccumulator(str(path.parent))
            for path in folder.rglob("events.out.tfevents.*")
        }
        return {
            training: {
                name: [(event.step, event.value) for event in log.Scalars(name)]
                for name in log.Reload().Tags()["scalars"]
                if name != "seconds"
            }
            for training, log in logs.items()
        }

    job = [
        "--preset=test",
        "--image_size=16",
        "--width=0.125",
        f"--data_path={folder}",
        "--pruning_type=orthoreg",
        "--prune_percent=40",
        "--n_rounds=2",
        "--tensorboard=True",
    ]
    for step in (18, 1, 10):  # after one training of round 1, in the other, and in the last epoch
        stopped = shell("main.py", *job, "--resume=True", cwd=tmp_path, stop=(15, step))
        assert stopped.returncode == 130, stopped.stderr
    assert shell("main.py", *job, "--resume=True", cwd=tmp_path).returncode == 0
    path, elsewhere = tmp_path / "pruned_nets/iterative/shapes", tmp_path / "elsewhere"
    planted = (
        tmp_path / "whole" / path.relative_to(tmp_path) / "vgg-w0.125_orthoreg_40_0.tensorboard"
    )
    for new in (elsewhere, planted.parent):
        new.mkdir(parents=True)
    planted.symlink_to(elsewhere)
    assert shell("main.py", *job, cwd=tmp_path / "whole").returncode == 0
    assert not list(elsewhere.iterdir())
    logged = scalars(path)
    assert logged == scalars(tmp_path / "whole")
    result = json.loads((path / "vgg-w0.125_orthoreg_40_0.json").read_text())
    middle = torch.load(path / "vgg-w0.125_orthoreg_25_ortho_0.pth", weights_only=True)
    trainings = {
        "round-0-ortho": result["base"]["history"]["ortho"],
        "round-1-between": middle["history"]["between"],
        "round-1-ortho": middle["history"]["ortho"],
        "round-2-retrain": result["history"]["retrain"],
    }
    for training, epochs in trainings.items():
        log = logged[training]
        for name, of in (
            ("test/top1", lambda e: e["test"]["top1"]),
            ("lr", lambda e: e["lr"]),
            ("train/loss", lambda e: e["train"]["loss"]),
            ("orthogonality", lambda e: e["orthogonality"]),
        ):
            assert log[name] == [(k, pytest.approx(of(epoch))) for k, epoch in enumerate(epochs, 1)]
    assert log["width/features.0"][-1][1] == result["widths"]["features.0"]


def test_tensorboard_that_is_missing_is_one_line(flags, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert main.main([*flags, "--only_train=base", "--tensorboard=True"]) == 2
    assert (
        "--tensorboard=True needs tensorboard: pip install tensorboard" in capsys.readouterr().err
    )
    assert not files(Path("."))
