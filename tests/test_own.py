"""A user's own file means its own modules, whatever the suite's are called; its network may have any
type, be frozen, hold tensors, and have odd names."""
import sys
import textwrap

import pytest
import torch

import config
import models
import pruner
from common.errors import InputError
from lab import networks

NET = """
    class Net(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            {init}
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.fc = nn.Linear(8, num_classes)

        def forward(self, x):
            {forward}
            return self.fc(self.b(self.a(x).relu()).relu().mean((2, 3)))
"""


def write(root, texts):
    """Files by path, with what a network needs imported."""
    for path, text in texts.items():
        file = root / f"{path}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("import torch\nfrom torch import nn\n" + textwrap.dedent(text))


def net(head="", init="pass", forward="pass"):
    return head + textwrap.dedent(NET).format(init=init, forward=forward)


def built(path, classes=3, attribute="Net"):
    return networks.build_network(f"{path}:{attribute}", classes)


def logits(network):
    return network(torch.randn(2, 3, 16, 16))


# ----------------------------------------------------------------------------------------- modules

OURS = "models", "config", "train", "data", "pruner", "main", "common", "lab"


def test_names_of_the_suite_mean_the_users_files_at_import_at_building_and_at_running(tmp_path):
    head = "".join(f"import {name}\nassert {name}.MINE\n" for name in OURS)
    late = "import {0}, common.deep.far as far; assert {0}.MINE and far.MINE"
    write(tmp_path, {"own": net(head, late.format("models"), late.format("config")),
                     "common/__init__": "MINE = True", "common/deep/far": "MINE = True",
                     "lab/__init__": "from models import MINE",
                     **dict.fromkeys(OURS[:6], "MINE = True")})
    before = {name: sys.modules.get(name) for name in OURS}, list(sys.path)
    assert logits(built(tmp_path / "own.py")).shape == (2, 3)
    assert ({name: sys.modules.get(name) for name in OURS}, sys.path) == before
    assert models.NETWORKS and config.PRESETS and pruner.prune  # and the suite's are the suite's


@pytest.mark.parametrize("call", [
    "importlib.import_module('models')", "importlib.import_module('.models', __package__)",
    "__import__('models')"])
def test_modules_that_are_named_in_a_string(call, tmp_path):
    write(tmp_path, {"models": "MINE = True",
                     "own": net("import importlib\n", f"assert {call}.MINE")})
    assert logits(built(tmp_path / "own.py")).shape == (2, 3)


def test_two_projects_have_helpers_of_one_name(tmp_path):
    for name, width in ("one", 4), ("two", 6):
        write(tmp_path / name, {"helper": f"W = {width}", "own": net(
            "import helper\n", "self.c = nn.Conv2d(3, helper.W, 1)")})
    assert [built(tmp_path / name / "own.py").c.out_channels for name in ("one", "two")] == [4, 6]


def test_packages_other_folders_and_odd_file_names(tmp_path):
    away = f"import sys\nsys.path.insert(0, {str(tmp_path / 'away')!r})\nimport models\n"
    write(tmp_path, {
        "pkg/net/__init__": "", "pkg/net/helper": "W = 4", "pkg/top": "T = 2",
        "pkg/net/net.v2": net("from .helper import W\nfrom net.helper import W as same\n"
                              "from top import T\nassert W is same and T == 2\n"),
        "away/models": "MINE = True",
        "odd/my-net": net(away, "assert models.MINE", "from models import MINE"),
        # Called like a library that it uses, and beside images in a folder called like one.
        "odd/torchvision": net("import torchvision.models, numpy\nassert torchvision.ops\n"),
        "flat/own": net("from .helper import W\n"), "flat/helper": "W = 1"})
    (tmp_path / "odd/numpy/train").mkdir(parents=True)
    before = list(sys.path)
    for path in "pkg/net/net.v2.py", "odd/my-net.py", "odd/torchvision.py", "flat/own.py":
        assert logits(built(tmp_path / path)).shape == (2, 3)
    assert sys.path == before and sys.modules["models"] is models


def test_a_file_in_the_suites_own_folder_may_use_the_suite(tmp_path, monkeypatch):
    from lab import own
    monkeypatch.setattr(own, "ROOT", tmp_path)
    write(tmp_path, {"models": "MINE = True", "own": net("from models import BasicBlock\n")})
    assert logits(built(tmp_path / "own.py")).shape == (2, 3)


@pytest.mark.parametrize("content, says", [
    ("import nothing_like_this", "No module named 'nothing_like_this'"),
    ("from models import nothing", "cannot import name 'nothing'"), ("1 +", "invalid syntax")])
def test_a_file_that_cannot_be_loaded_leaves_nothing_behind(content, says, tmp_path):
    write(tmp_path, {"own": content, "models": "MINE = True"})
    before = list(sys.path), list(sys.meta_path)
    for _ in range(2):
        with pytest.raises(InputError, match=says):
            built(tmp_path / "own.py")
    assert (sys.path, sys.meta_path) == before


def test_a_link_to_itself_is_no_file(tmp_path):
    (tmp_path / "own.py").symlink_to(tmp_path / "own.py")
    with pytest.raises(InputError, match="there is no file"):
        built(tmp_path / "own.py")
