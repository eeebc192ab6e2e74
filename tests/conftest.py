"""Narrow networks and small real data for all tests: offline, on the CPU, deterministic."""

import compileall
import copy
import functools
import os
import py_compile
import shutil
import sys
import tempfile
from pathlib import Path

# Tests list folders, and edit modules twice in a second, which bytecode by date would hide.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # before torch looks; =0 runs them on a GPU

import pytest
import torch
import torchvision
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from channels.groups import filter_groups  # noqa: E402
from config import Preset, Recipe, Schedule  # noqa: E402
from data import load_data  # noqa: E402
from lab.reader import read_weights  # noqa: E402
from lab.weights import initialise, network_like, with_network  # noqa: E402
from models import build_model  # noqa: E402
from shell import Shell  # noqa: E402

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # workers share the cores

# Multipliers that leave every architecture a few filters per layer.
WIDTH = {"vgg": 1 / 8, "mobilenet": 1 / 8, "resnet": 1 / 8, "resnet-56": 1 / 2}


@pytest.fixture
def set_threads():
    """Sets how many threads torch has in a test, which decides how sums are rounded."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def files(root):
    """{name: content} of all files under a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@functools.cache
def compiled_suite():
    """A folder with the suite and its bytecode, which holds for the very text that it was made of."""
    folder = tempfile.TemporaryDirectory()
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder.name)
    for package in [path.parent.name for path in ROOT.glob("*/__init__.py")]:
        shutil.copytree(
            ROOT / package,
            Path(folder.name, package),
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    by_content = py_compile.PycInvalidationMode.CHECKED_HASH
    assert compileall.compile_dir(folder.name, quiet=1, invalidation_mode=by_content)
    return folder


def copy_suite(folder):
    """The whole suite in a folder of its own, where its config.py can be edited."""
    shutil.copytree(compiled_suite().name, folder, dirs_exist_ok=True)


def short_preset(epochs=1):
    """As many epochs of everything, at one rate."""

    def recipe(weight_decay=1e-4):
        return Recipe(lr=[0.02], epochs=[epochs], weight_decay=weight_decay, adam_lr=[1e-3])

    schedule = Schedule(base=recipe(), ortho=recipe(0), retrain=recipe(), between=recipe())
    return Preset(schedule, schedule, batch_size=16)


def narrow(name, num_classes=4, width=None, seed=0):
    """A narrow network in eval mode whose BatchNorms do not look alike and whose running
    statistics fit its activations, as after training: signals and gradients neither vanish nor
    saturate."""
    torch.manual_seed(seed)
    model = build_model(name, num_classes, width=width or WIDTH[name]).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(32, 3, 16, 16))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def transformer(num_classes=4):
    """A transformer for images behind two convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 3, 3, padding=1),
        torchvision.models.VisionTransformer(
            image_size=32,
            patch_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=24,
            num_classes=num_classes,
        ),
    )


def norms_behind(model, group):
    """The BatchNorms that filters of one of the four networks pass through."""
    if model.origin.name != "mobilenet":
        return [group.bn]
    block = 0 if group.name == "conv1" else int(group.name.split(".")[1]) + 1
    return [group.bn, *([model.layers[block].bn1] if block < len(model.layers) else [])]


def masked(model, kept):
    """A copy of one of the four with the removed filters' BatchNorm scale and shift at zero."""
    twin = copy.deepcopy(model)
    for group in filter_groups(twin):
        gone = torch.ones(group.conv.out_channels, dtype=torch.bool)
        gone[kept[group.name]] = False
        for norm in norms_behind(twin, group):
            norm.weight.data[gone] = 0
            norm.bias.data[gone] = 0
    return twin


def begin_with(model, path, *more, **how):
    """What --init=PATH does to a network."""
    return initialise(model, with_network(read_weights(path), model.origin.name), *more, **how)


def begin_like(path, name, *more):
    """The network that --init=PATH begins with, before it gets the weights."""
    return network_like(with_network(read_weights(path), name), name, *more)


@pytest.fixture(params=WIDTH)  # not a user's own networks
def network(request):
    return narrow(request.param)


@pytest.fixture(scope="session")
def digits():
    return load_data("digits", 16)


@pytest.fixture(scope="session")
def few(digits):
    """24 real images at 16 x 16 and their labels, 4 classes, as floats."""
    labels = digits.train.labels
    index = torch.cat([(labels == k).nonzero().flatten()[:6] for k in range(4)])
    images = digits.train.images[index].float().permute(0, 3, 1, 2) / 127.5 - 1
    return images, labels[index]


def write_folder(root, digits, classes=("one", "two", "three"), train=12, test=6):
    """An image folder of real digits as PNG files."""
    from PIL import Image

    for part, split, count in (("train", digits.train, train), ("test", digits.test, test)):
        for digit, name in enumerate(classes, 1):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in (split.labels == digit).nonzero().flatten()[:count].tolist():
                Image.fromarray(split.images[i].numpy()).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def folder(tmp_path_factory, digits):
    return write_folder(tmp_path_factory.mktemp("images") / "shapes", digits)


@pytest.fixture(scope="session")
def shell():
    return Shell(short_preset(epochs=2))
