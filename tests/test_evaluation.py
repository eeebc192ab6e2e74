"""eval.py measures the images that were asked for, in the way the network's file says."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F

import config
import eval as measure
import main
from channels.checking import Masked
from channels.groups import filter_groups
from channels.partial import Partial
from common.images import decode
from conftest import masked, narrow, short_preset, transformer, write_folder
from data import load_data
from imp_estimator import cal_importance
from lab import predict as predictions
from lab.checkpoint import load_checkpoint, save_checkpoint
from lab.sensitivity import SHARES, measure_sensitivity
from pruner import removable_units, without


@pytest.fixture(autouse=True)
def preset(monkeypatch, tmp_path):
    monkeypatch.setitem(config.PRESETS, "test", short_preset())
    monkeypatch.chdir(tmp_path)


def measured(capsys, *flags):
    """(the last line, all of the output) of eval.py."""
    capsys.readouterr()
    code = measure.main(list(flags))
    out, error = capsys.readouterr()
    assert (code, error) == (0, ""), error
    return out.splitlines()[-1], out


def refusal(capsys, *flags):
    capsys.readouterr()
    assert measure.main(list(flags)) == 2
    out, error = capsys.readouterr()
    assert error.count("\n") == 1 and not out, out
    return error


def test_a_share_of_the_images_is_measured_as_it_was_split_off(tmp_path, digits, capsys):
    """The folder has train/ alone, as --test_percent says that it may."""
    root = write_folder(tmp_path / "images", digits, train=20)
    shutil.rmtree(root / "test")
    assert (
        main.main(
            [
                "--preset=test",
                "--image_size=16",
                "--width=0.125",
                "--ebt=True",
                f"--data_path={root}",
                "--test_percent=20",
                "--val_percent=10",
                "--flip=False",
                "--only_train=base",
            ]
        )
        == 0
    )
    best = Path("pretrained/ebt/images/vgg-w0.125.pth")
    trained = torch.load(best, weights_only=True)["accuracy"]["best"]["top1"]
    ask = f"--model_path={best}", "--test_acc=True"
    line, out = measured(capsys, *ask)
    assert line.startswith("Accuracy on 12 test images") and f"top-1 {trained:.2f}%" in line
    assert "has changed" not in out
    assert "on 42 training images" in measured(capsys, *ask, "--train_acc=True")[1]  # 6 held out
    model, record = load_checkpoint(best)
    args = measure.make_parser().parse_args(ask)
    assert not measure.load_images(args, model, record).flip
    for place in ("images", "renamed"):
        shutil.copytree(root, f"here/{place}")
        there = measured(capsys, *ask, f"--data_path=here/{place}")[0]
        assert there == line.replace(" of images:", f" of {place}:")

    Image.new("RGB", (16, 16)).save(root / "train/one/new.png")
    line, out = measured(capsys, *ask)
    assert "Accuracy on 12 test images" in line and "has changed since the training" in out
    shutil.copytree(root / "train", "new")  # all of them, by another name
    line, out = measured(capsys, *ask, "--data_path=new")
    assert "Accuracy on 61 test images" in line and "the accuracy is too high" in out
    for folder in list(Path("new").iterdir())[:2]:  # a single image, a missing class
        for image in list(folder.iterdir())[1:]:
            image.unlink()
    shutil.rmtree(folder)
    assert "Accuracy on 21 test images" in measured(capsys, *ask, "--data_path=new")[0]
    shutil.rmtree(root)
    assert "it was trained on" in refusal(capsys, *ask)


def test_a_network_sees_images_everywhere_as_they_were_scaled_in_its_training(
    tmp_path, capsys, monkeypatch
):
    """Its file keeps it. So do old ones, by not saying it."""
    root, random = tmp_path / "photos", np.random.RandomState(0)
    for name in ("dark", "light"):
        (root / "train" / name).mkdir(parents=True)
        for k in range(16):
            noise = random.randint(0, 128, (40, 50, 3)) + 127 * (name == "light")
            Image.fromarray(noise.astype(np.uint8)).save(root / "train" / name / f"{k}.png")
    job = ["--preset=test", "--image_size=16", "--width=0.125", f"--data_path={root}"]
    job += ["--test_percent=25", "--ebt=True", "--interpolation=bicubic", "--only_train=base"]
    assert main.main(job) == 0
    path = "pretrained/ebt/photos/vgg-w0.125.pth"
    record, seen = load_checkpoint(path)[1], []
    assert record.interpolation == record.flag("interpolation") == "bicubic"

    name_classes = predictions.predict

    def predict(model, classes, images, *how):
        seen.extend(images.numpy())
        return name_classes(model, classes, images, *how)

    monkeypatch.setattr(predictions, "predict", predict)
    name = root / "train/light/0.png"
    ask = f"--model_path={path}", "--test_acc=True", f"--predict={name}"
    assert "has changed since the training" not in measured(capsys, *ask)[1]
    assert np.array_equal(seen[0], decode(name, 16, None, "bicubic"))
    assert not np.array_equal(seen[0], decode(name, 16))
    said = refusal(capsys, *ask, "--interpolation=bilinear")
    assert "trained with --interpolation=bicubic; leave out --interpolation=bilinear" in said
    job[-2:] = "--pretrained=True", "--pruning_type=l1", "--prune_percent=20"
    assert main.main(job) == 2  # by default bilinear
    error = capsys.readouterr().err
    assert "scaled in another way; --interpolation=bicubic fits it" in error
    content = torch.load(path, weights_only=True)
    del content["interpolation"], content["flags"]["interpolation"]
    torch.save(content, path)
    assert load_checkpoint(path)[1].interpolation == "bilinear"
    assert main.main(job) == 0
    assert "does not say" not in capsys.readouterr().out


def test_what_a_file_does_not_say_is_said_to_be_assumed_or_given(tmp_path, digits, folder, capsys):
    write_folder(tmp_path / "images", digits)
    known = {
        "classes": ["one", "three", "two"],
        "image_size": 16,
        "normalize": config.NORMALIZATIONS["cifar"],
        "interpolation": "bilinear",
    }
    model = narrow("vgg", 3)
    save_checkpoint("whole.pth", model, known)
    save_checkpoint("bare.pth", model, {})
    ask = "--test_acc=True", "--data_path=images"
    right, out = measured(capsys, "--model_path=whole.pth", *ask)
    assert "does not say" not in out
    line, out = measured(
        capsys, "--model_path=bare.pth", *ask, "--image_size=16", "--normalize=cifar"
    )
    assert (
        line == right
        and "--image_size: 16 as given" in out
        and "--normalize: cifar as given" in out
    )
    line, out = measured(capsys, "--model_path=bare.pth", *ask)
    assert "--image_size: 32 is assumed" in out and "--normalize: half is assumed" in out
    assert "--interpolation: bilinear is assumed" in out
    for flag in ("--image_size=32", "--normalize=half", "--interpolation=bicubic"):
        assert f"leave out {flag}" in refusal(capsys, "--model_path=whole.pth", *ask, flag)
    # Predictions know it, too.
    name = next((tmp_path / "images/test/one").iterdir())
    pixels = (
        torch.from_numpy(np.asarray(Image.open(name).convert("RGB")).copy()).permute(2, 0, 1)[None]
        / 255
    )
    means, deviations = torch.tensor(known["normalize"]).view(2, 3, 1, 1)
    likely = model((pixels - means) / deviations).softmax(1)[0]
    _, out = measured(capsys, "--model_path=whole.pth", f"--predict={name}")
    line = out.splitlines()[-2]
    assert line.split()[2] == f"{100 * likely.max():.1f}%"
    # As a base network it is held against the flags.
    Path("pretrained/ebt/shapes").mkdir(parents=True)
    shutil.copy("bare.pth", "pretrained/ebt/shapes/vgg-w0.125.pth")
    assert (
        main.main(
            [
                "--preset=test",
                "--image_size=16",
                "--width=0.125",
                "--ebt=True",
                f"--data_path={folder}",
                "--pretrained=True",
                "--pruning_type=l1",
                "--prune_percent=20",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "does not say --image_size; 16 is assumed" in said
        and "--normalize; half is assumed" in said
    )
    assert "unknown" not in said.split("\nResult\n")[1]
    row = next(line for line in said.splitlines() if "further epochs of training" in line)
    assert row.split()[-1] == "1" and len(row.split()) == 5


def test_classes_that_are_numbers_may_be_in_another_order(tmp_path, digits, capsys):
    names = [str(k) for k in range(12)]
    write_folder(tmp_path / "images", digits, classes=names[:3])
    for part in ("train", "test"):
        for name in names:
            (tmp_path / "images" / part / name).mkdir(exist_ok=True)
            Image.new("L", (16, 16)).save(tmp_path / "images" / part / name / "x.png")
    model = narrow("vgg", 12)
    for entries, note in (({}, True), ({"classes": sorted(names)}, False)):
        save_checkpoint("net.pth", model, {"image_size": 16, **entries})
        _, out = measured(capsys, "--model_path=net.pth", "--data_path=images", "--test_acc=True")
        assert ("are sorted as text, 0, 1, 10, 11" in out) == note


def test_deep_images_are_predicted_by_one_rule(capsys):
    """The network's images had 8 bits, so nothing says what white is but the format."""
    save_checkpoint("net.pth", narrow("vgg", 3), {"image_size": 8, "normalize": [0.5] * 6})
    Path("some").mkdir()
    for name, value in (("dark", 200), ("bright", 60_000)):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(f"some/{name}.png")
    alone = measured(capsys, "--model_path=net.pth", "--predict=some/dark.png")[1]
    both = measured(capsys, "--model_path=net.pth", "--predict=some")[1]
    lines = [
        line.split("dark.png")[1].split()
        for line in (alone + both).splitlines()
        if "dark.png" in line
    ]
    assert len(lines) == 2 and lines[0] == lines[1] and "65,535 = white" in alone


def test_nothing_that_was_asked_for_is_said_at_once(capsys):
    save_checkpoint("net.pth", narrow("vgg", 3), {})
    assert "nothing was asked for; add one of --test_acc, " in refusal(
        capsys, "--model_path=net.pth"
    )


def test_the_record_names_the_version(folder):
    assert (
        main.main(
            [
                "--preset=test",
                "--image_size=8",
                "--width=0.125",
                "--ebt=True",
                f"--data_path={folder}",
                "--pruning_type=l1",
                "--prune_percent=20",
                "--eb_detect=True",
            ]
        )
        == 0
    )
    (record,) = Path("pruned_nets").rglob("*.json")
    environment = json.loads(record.read_text())["environment"]
    assert environment["suite"] == "unknown" or len(environment["suite"]) >= 7


def test_a_run_on_random_parts_from_a_file_is_measured_as_it_was_tested(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = [
        "--preset=test",
        "--image_size=16",
        "--width=0.125",
        "--ebt=True",
        f"--data_path={folder}",
        "--augment=crop",
        "--only_train=base",
    ]
    nets = []
    for memory in ("--memory=1", "--memory=0.00001"):
        assert main.main([*job, memory]) == 0
        nets.append(load_checkpoint("pretrained/ebt/shapes/vgg-w0.125.pth"))
    (network, record), (other, _) = nets
    assert all(map(torch.equal, network.state_dict().values(), other.state_dict().values()))
    assert "of which at most" in capsys.readouterr().out
    ask = ("--model_path=pretrained/ebt/shapes/vgg-w0.125.pth", "--device=cpu")
    assert measure.main([*ask, "--test_acc=True"]) == 0
    best = record.accuracy["best"]["top1"]
    assert f"Accuracy on 18 test images of shapes: top-1 {best:.2f}%" in capsys.readouterr().out
    data = load_data(folder, 16, augment="crop")
    with torch.no_grad():
        logits = torch.cat([network.eval()(images) for images, _ in data.test_batches()])
    assert measure.main([*ask, f"--predict={folder}/test"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if ".png" in line]
    likeliest = [data.classes[k] for k in logits.argmax(1)]
    assert [words[1] for words in lines] == likeliest
    with open("pretrained/ebt/shapes/vgg-w0.125_predictions.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["class"] for row in rows] == likeliest
    shares = torch.tensor(
        [[float(row[f"probability{number}"]) for number in ("", " 2", " 3")] for row in rows]
    )
    assert torch.allclose(shares, logits.softmax(1).sort(1, descending=True).values, atol=1e-5)


def test_classes_are_measured_each_and_what_is_confused_is_named(folder, capsys, monkeypatch):
    """A network that takes every "two" for a "one", and knows the others."""
    answers = {"one": "one", "three": "three", "two": "one"}
    data = load_data(folder, 16)
    model = narrow("vgg", 3)
    save_checkpoint(
        "net.pth",
        model,
        {"image_size": 16, "classes": list(data.classes), "data_path": str(folder)},
    )
    wanted = iter([data.classes.index(answers[data.classes[k]]) for k in data.test.labels.tolist()])

    def answer(self, images):
        logits = torch.zeros(len(images), 3)
        logits[range(len(images)), [next(wanted) for _ in images]] = 1
        return logits

    monkeypatch.setattr(type(model), "forward", answer)
    _, out = measured(capsys, "--model_path=net.pth", "--per_class=True")
    lines = [line.split() for line in out.splitlines()]
    assert ["one", "6", "100.0%", "12", "50.0%"] in lines and ["two", "6", "0.0%", "0"] in lines
    assert ["two", "one", "6", "100.0%"] in lines and len(
        [1 for line in lines if line[1:2] == ["one"]]
    ) == 1
    with open("net_classes.csv", newline="") as table:
        rows = {row["class"]: row for row in csv.DictReader(table)}
    assert rows["three"] == {
        "class": "three",
        "images": "6",
        "answers": "6",
        "right": "6",
        "accuracy": "100.0",
        "precision": "100.0",
    }
    assert rows["two"]["precision"] == ""
    assert (
        Path("net_confusion.csv").read_text()
        == '"class (rows), answer (columns)",one,three,two\none,6,0,0\nthree,0,6,0\ntwo,6,0,0\n'
    )
    with Image.open("net_confusion.png") as picture:
        assert picture.width > 400 and b"<svg" in Path("net_confusion.svg").read_bytes()


# ------------------------------------------------------------------------------- sensitivity


class InPlace(nn.Module):
    """Changes a tensor, or a part of it that others read, by what does not read it."""

    def __init__(self, part):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.c, self.head = nn.Conv2d(8, part, 1), nn.Linear(8, 4)
        self.part = part

    def forward(self, x):
        y = self.b(x)
        changed = y if self.part == 8 else y[:, :4]
        changed.add_(self.c(self.a(x).relu()))
        return self.head(y.relu().mean((2, 3)))


class ActivatedNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class Upsampling(nn.Module):
    """BatchNorms that cannot become part of what they read, and one that is called by keyword."""

    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.b, self.norm_b = nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.BatchNorm2d(8)
        self.c, self.norm_c = nn.Conv2d(8, 6, 3), ActivatedNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.norm_a(input=self.a(x)).relu()
        x = self.norm_c(self.c(self.norm_b(self.b(x)).relu()))
        return self.head(x.mean((2, 3)))


def upsampling():
    model = Upsampling().eval()
    for norm in (model.norm_a, model.norm_b, model.norm_c):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.running_mean)
    return model


@pytest.mark.parametrize(
    "make",
    [
        upsampling,
        lambda: narrow("resnet-56"),
        lambda: narrow("mobilenet"),
        lambda: torchvision.models.resnet18(num_classes=4).eval(),  # its ReLUs work in place
        lambda: transformer().eval(),  # heads leave
        lambda: InPlace(8).eval(),
        lambda: InPlace(4).eval(),
    ],
)
def test_what_is_computed_anew_is_what_a_masked_network_gives(make, few):
    torch.manual_seed(0)
    model, images = make().double(), few[0][:3]
    images = F.interpolate(images, 32).double()
    partial, whole_masked = Partial(model), Masked(model)
    scores = cal_importance(model, "l1")
    with torch.no_grad():
        whole = model(images)
        assert torch.allclose(partial.begin(images), whole, atol=1e-9)
        layers = list(removable_units(model, scores).items())
        for layer, own in [*layers[:: 1 + len(layers) // 30], layers[-1], layers[0]]:
            kept = without(model, own.units[: max(1, len(own.units) // 2)])
            whole_masked.keep({**all_of(model), **kept})
            wanted = whole_masked.network(images)
            assert torch.allclose(partial.without(kept), wanted, atol=1e-9), layer
        assert torch.allclose(partial.without({}), whole, atol=1e-9)


def all_of(model):
    return {g.name: torch.arange(len(g.channels)) for g in filter_groups(model)}


def test_a_layers_curve_is_the_accuracy_without_its_lowest_filters(few):
    model, (images, labels) = narrow("vgg"), few
    labels = model(images).argmax(1)  # which the whole network gets right
    scores = cal_importance(model, "l1")
    batches = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    whole, curves = measure_sensitivity(model, scores, batches)
    assert whole == 100 and len(curves) == len(filter_groups(model))
    assert [c.loss(100) for c in curves] == sorted((c.loss(100) for c in curves), reverse=True)
    assert curves[0].loss(100) > 0
    for curve in (curves[0], curves[4]):
        order = scores[curve.layer].argsort()
        assert [point.share for point in curve.points] == [*SHARES][-len(curve.points) :]
        for point in curve.points:
            assert point.removed == round(point.share / 100 * curve.filters) > 0
            kept = all_of(model)
            kept[curve.layer] = order[point.removed :].sort().values
            right = masked(model, kept)(images).argmax(1) == labels
            assert point.accuracy == pytest.approx(100 * right.float().mean().item(), abs=1e-3)


def test_the_most_sensitive_layers_are_named_first(folder, capsys):
    model = narrow("vgg", 3)
    classes = sorted(path.name for path in (folder / "test").iterdir())
    entries = {"image_size": 16, "classes": classes, "data_path": str(folder)}
    save_checkpoint("net.pth", model, entries)
    flags = ("--model_path=net.pth", "--sensitivity=True", "--sensitivity_images=7")
    last, out = measured(capsys, *flags, "--pruning_type=l1")
    assert last == "  saved net_sensitivity_l1.csv, and .json and a plot beside it"
    assert "on 7 test images when one layer is pruned alone, by l1" in out
    with open("net_sensitivity_l1.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    figures = json.loads(Path("net_sensitivity_l1.json").read_text())
    names = [curve["layer"] for curve in figures["layers"]]
    assert list(dict.fromkeys(row["layer"] for row in rows)) == names
    shown = [line.split()[0] for line in out.splitlines() if line.startswith("  features.")]
    assert [name for name in shown if name in names][-len(names) :] == names
    assert set(rows[0]) == {"layer", "filters", "share", "removed", "accuracy"}
    assert b"<svg" in Path("net_sensitivity_l1.svg").read_bytes()
    assert "--seed only works with --group_check=True or --sensitivity=True" in refusal(
        capsys, "--model_path=net.pth", "--seed=1", "--flops=True"
    )
    measured(capsys, *flags, "--imp_samples=12")  # fisher, from training images


def test_test_images_are_taken_evenly_of_all_classes(folder):
    split = load_data(folder, 16).test
    assert split.spread(6).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert split.spread(1000) is split
