"""A user's own file means its own modules, whatever the suite's are called; its network may have any
type, be frozen, hold tensors, and have odd names."""

import copy
import os
import pickle
import re
import subprocess
import sys
import textwrap

import pytest
import torch

import config
import models
import pruner
from common.copies import copy_of
from common.errors import InputError
from conftest import ROOT
from imp_estimator import cal_importance
from lab import networks
from lab.checkpoint import load_checkpoint, load_network, save_network

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

OURS = "models", "config", "train", "data", "pruner", "main", "channels", "common", "lab"


def test_names_of_the_suite_mean_the_users_files_at_import_at_building_and_at_running(tmp_path):
    head = "".join(f"import {name}\nassert {name}.MINE\n" for name in OURS)
    late = "import {0}, common.deep.far as far; assert {0}.MINE and far.MINE"
    write(
        tmp_path,
        {
            "own": net(head, late.format("models"), late.format("config")),
            "channels/__init__": "MINE = True",
            "common/__init__": "MINE = True",
            "common/deep/far": "MINE = True",
            "lab/__init__": "from models import MINE",
            **dict.fromkeys(OURS[:6], "MINE = True"),
        },
    )
    before = {name: sys.modules.get(name) for name in OURS}, list(sys.path)
    assert logits(built(tmp_path / "own.py")).shape == (2, 3)
    assert ({name: sys.modules.get(name) for name in OURS}, sys.path) == before
    assert models.NETWORKS and config.PRESETS and pruner.prune  # and the suite's are the suite's


@pytest.mark.parametrize(
    "call",
    [
        "importlib.import_module('models')",
        "importlib.import_module('.models', __package__)",
        "__import__('models')",
    ],
)
def test_modules_that_are_named_in_a_string(call, tmp_path):
    write(
        tmp_path, {"models": "MINE = True", "own": net("import importlib\n", f"assert {call}.MINE")}
    )
    assert logits(built(tmp_path / "own.py")).shape == (2, 3)


def test_two_projects_have_helpers_of_one_name(tmp_path):
    for name, width in ("one", 4), ("two", 6):
        write(
            tmp_path / name,
            {
                "helper": f"W = {width}",
                "own": net("import helper\n", "self.c = nn.Conv2d(3, helper.W, 1)"),
            },
        )
    assert [built(tmp_path / name / "own.py").c.out_channels for name in ("one", "two")] == [4, 6]


def test_packages_other_folders_and_odd_file_names(tmp_path):
    away = f"import sys\nsys.path.insert(0, {str(tmp_path / 'away')!r})\nimport models\n"
    write(
        tmp_path,
        {
            "pkg/net/__init__": "",
            "pkg/net/helper": "W = 4",
            "pkg/top": "T = 2",
            "pkg/net/net.v2": net(
                "from .helper import W\nfrom net.helper import W as same\n"
                "from top import T\nassert W is same and T == 2\n"
            ),
            "away/models": "MINE = True",
            "odd/my-net": net(away, "assert models.MINE", "from models import MINE"),
            # Called like a library that it uses, and beside images in a folder called like one.
            "odd/torchvision": net("import torchvision.models, numpy\nassert torchvision.ops\n"),
            "flat/own": net(
                "from .helper import W\nimport statistics\nassert statistics.MINE\n"
                "from helper import *\nimport deep.er as far\nassert far.W == W\n"
            ),
            "flat/helper": "W = 1\nimport own\nassert own.torch",
            "flat/statistics": "MINE = True",
            "flat/deep/er": "from helper import W",
        },
    )
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


def test_what_a_file_puts_under_the_suites_names_or_changes_is_put_back(tmp_path):
    head = """
import importlib.util, os, sys
import train
assert importlib.import_module("train").MINE
assert importlib.import_module(".inner", "pkg").MINE
spec = importlib.util.spec_from_file_location("models", {file!r})
sys.modules["models"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["models"])
os.chdir("/")
""".format(file=str(tmp_path / "train.py"))
    write(
        tmp_path, {"train": "MINE = True", "pkg/inner": "from train import MINE", "own": net(head)}
    )
    before = os.getcwd()
    assert logits(built(tmp_path / "own.py")).shape == (2, 3)
    assert sys.modules["models"] is models and os.getcwd() == before


@pytest.mark.parametrize(
    "content, says",
    [
        ("import nothing_like_this", "No module named 'nothing_like_this'"),
        ("from models import nothing", "cannot import name 'nothing'"),
        ("1 +", "invalid syntax"),
    ],
)
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


# ---------------------------------------------------------------------------------------- networks

KINDS = """
    from threading import Lock

    class Base(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.a, self.n, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
            self.fc = nn.Linear(8, num_classes)

        def forward(self, x):
            return self.fc(self.b(self.n(self.a(x)).relu()).relu().mean((2, 3)))

    class Grey(Base):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.a = nn.Conv2d(1, 8, 3)

        def forward(self, x):
            if x.shape[1] != 3:
                raise ValueError("RGB only")
            return super().forward(x.mean(1, keepdim=True))

    class Kept(Base):
        def forward(self, x):
            self.last = self.b(self.n(self.a(x)).relu())
            self.others = {"doubled": [self.last * 2]}
            return self.fc(self.last.relu().mean((2, 3)))

    class Held(Base):
        def forward(self, x):
            self.held = [Lock()]
            return super().forward(x)

    class Softmax(Base):
        def forward(self, x):
            return super().forward(x).softmax(1)

    class Spare(Base):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.spare = nn.Conv2d(3, 4, 3)

    class Decides(Base):
        def forward(self, x):
            if x.mean() > 100:  # the line that is named
                x = x * 2
            return super().forward(x)

    class NoGradient(Base):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)

    class Named(Base):
        def __init__(self, num_classes, name="it's"):
            super().__init__(num_classes)
            setattr(self, name, nn.Conv2d(8, 8, 1))
            self.name = name

        def forward(self, x):
            x = getattr(self, self.name)(self.n(self.a(x)).relu())
            return self.fc(self.b(x).relu().mean((2, 3)))

    def named(name):
        return lambda num_classes: Named(num_classes, name)

    keyword, itself, graph, origin = map(named, ("class", "self", "graph", "origin"))
    spaced, umlaut, library = map(named, ("a b-c", "Größe", "torch"))

    def changed(change):
        def build(num_classes):
            network = Base(num_classes)
            change(network)
            return network
        return build

    half, double, frozen, meta = map(changed, (
        nn.Module.half, nn.Module.double, lambda net: net.requires_grad_(False),
        lambda net: net.to("meta")))
    first_frozen = changed(lambda net: net.a.requires_grad_(False))
    plain_norm = changed(lambda net: setattr(net, "n", nn.BatchNorm2d(
        8, affine=False, track_running_stats=False)))
    batch_norm = changed(lambda net: setattr(net, "n", nn.BatchNorm2d(
        8, track_running_stats=False)))
    scripted = lambda num_classes: torch.jit.script(Base(num_classes))
    scripted_part = changed(lambda net: setattr(net, "a", torch.jit.script(net.a)))

    class Casts(Base):
        def forward(self, x):
            return super().forward(x.double())

    class Exits(Base):
        def forward(self, x):
            raise SystemExit("bye")

    class Lazy(Base):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.b = nn.LazyConv2d(8, 3)

    class Listed(Base):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.more = [nn.Conv2d(3, 3, 3)]

        def forward(self, x):
            return super().forward(self.more[0](x))

    class Dict(Base):
        def forward(self, x):
            return {"logits": super().forward(x)}

    class Partly(Base):
        def forward(self, x):
            with torch.no_grad():
                x = self.a(x)
            return self.fc(self.b(self.n(x).relu()).relu().mean((2, 3)))

    def graph_module(num_classes):
        return torch.fx.symbolic_trace(Base(num_classes))

    def Settings(num_classes):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_default_device("meta")
        return Base(num_classes).to_empty(device="cpu")

    class One(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.a, self.n, self.b = nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1), nn.Conv2d(1, 8, 3)
            self.m, self.fc = nn.BatchNorm2d(8), nn.Linear(8, num_classes)

        def forward(self, x):
            return self.fc(self.m(self.b(self.n(self.a(x)).relu())).relu().mean((2, 3)))
"""


@pytest.fixture
def kinds(tmp_path):
    write(tmp_path, {"kinds": KINDS})
    return tmp_path / "kinds.py"


def looked_at(network):
    return "\n".join(networks.look_at(network, 16))


def pruned(network, percent=50):
    groups = models.filter_groups(network)
    scores = {group.name: torch.rand(len(group.channels)) for group in groups}
    return pruner.prune(network, pruner.select_filters(network, scores, percent))


@pytest.mark.parametrize(
    "name, says",
    [
        ("Casts", "Input type .double. and bias type .float. should be the same"),
        ("Exits", "bye"),
        ("Lazy", "lazy layers, whose weights have no size yet; call it once"),
        ("Listed", "no part of it, as those in a plain list are; nn.ModuleList"),
        ("Dict", "gives a (immutable_)?dict for 2 images.*return the logits alone; from Python"),
        ("frozen", "all of its parameters have requires_grad=False"),
        ("meta", "weights on the meta device, which have no values"),
        (
            "Held",
            "a step of training fails: Held cannot be copied because of held: .*keep that outside",
        ),
        ("NoGradient", "a step of training fails: .*does not require grad"),
        (
            "Decides",
            "by the values of its images; torch.where.* see kinds.py, line [0-9]+: "
            "if x.mean.. > 100",
        ),
        (
            "scripted",
            "the network is compiled by torch.jit; prune the module that it was made from",
        ),
        ("scripted_part", "a is compiled by torch.jit; prune the module that it was made from"),
        ("keyword", "a layer or parameter 'class', which cannot be written"),
        ("itself", "a layer or parameter 'self'"),
        ("graph", "a layer or parameter 'graph'"),
        ("Named", 'a layer or parameter "it\'s"'),
        ("origin", "a layer or attribute called origin, .*another name"),
    ],
)
def test_what_cannot_be_trained_or_pruned_is_known_before_the_training(name, says, kinds):
    with pytest.raises(InputError, match=says) as refusal:
        looked_at(built(kinds, attribute=name))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name, says",
    [
        ("half", "Note: its float16 weights became float32"),
        ("double", "Note: its float64 weights became float32"),
        ("batch_norm", "Note: its answers depend on the other images of a batch"),
        ("Softmax", "Note: it ends in a softmax.*returns the logits"),
        ("Spare", "Note: forward does not use spare"),
        ("graph_module", "^$"),
        ("Partly", "Note: no gradient reaches a, as below"),
        ("Base", "^$"),
        ("Kept", "^$"),
        ("Grey", "^$"),
        ("first_frozen", "^$"),
        ("spaced", "^$"),
        ("umlaut", "^$"),
        ("library", "^$"),
        ("One", "^$"),
    ],
)
def test_what_can_be_trained_and_pruned_and_what_is_said_of_it(name, says, kinds):
    network = built(kinds, attribute=name)
    assert re.search(says, looked_at(network))
    assert all(tensor.dtype == torch.float32 for tensor in network.parameters())
    torch.nn.functional.cross_entropy(logits(network), torch.tensor([0, 1])).backward()
    small = pruned(network)  # with what the pass has left in it
    assert models.filter_count(small)[0] < models.filter_count(network)[0]
    assert logits(copy.deepcopy(small) if name != "Kept" else copy_of(small)).shape == (2, 3)


def test_what_a_users_code_sets_in_torch_is_put_back(kinds):
    network = built(kinds, attribute="Settings")
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert torch.empty(1).device.type == "cpu"
    assert network.a.weight.dtype == torch.float32


def test_a_norm_that_has_nothing_or_one_channel(kinds):
    plain, one = (built(kinds, attribute=name) for name in ("plain_norm", "One"))
    assert "depend on the other images" in looked_at(plain)
    assert [group.bn for group in models.filter_groups(plain)] == [None, None]
    assert [group.bn for group in models.filter_groups(one)] == [one.n, one.m]
    assert models.filter_count(pruned(plain))[0] == 8


def test_what_a_pass_has_left_in_a_network_is_copied_without_its_history(kinds):
    network = built(kinds, attribute="Kept")
    logits(network)
    with pytest.raises(RuntimeError):
        copy.deepcopy(network)
    twin = copy_of(network)
    assert torch.equal(twin.last, network.last) and not twin.last.requires_grad
    assert network.last.requires_grad and twin.others["doubled"][0].is_leaf


@pytest.mark.parametrize("method", ["fisher", "l1", "theis"])
def test_equal_scores_of_all_filters_are_no_order(method, kinds):
    network = built(kinds, attribute="Base")
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    batches = [(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))]
    with pytest.raises(
        ValueError, match="all 16 filters have the same score .0., so it would be chance"
    ):
        cal_importance(network, method, batches)


# ------------------------------------------------------------------------------------ save and load


class Shuffled(torch.nn.Module):
    """A network of one's own, of which a cut changes the operations."""

    def __init__(self, classes=3):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=2)
        self.c, self.fc = torch.nn.Conv2d(3, 8, 5), torch.nn.Linear(8, classes)

    def forward(self, x):
        joined = self.b(torch.channel_shuffle(self.a(x).relu(), 4)) + self.c(x)
        return self.fc(joined.relu().mean((2, 3)))


def copies_of(network, tmp_path):
    yield copy.deepcopy(network)
    yield pickle.loads(pickle.dumps(network))
    torch.save(network, tmp_path / "whole.pt")
    yield torch.load(tmp_path / "whole.pt", weights_only=False)
    save_network(tmp_path / "small.pth", network)
    yield load_network(tmp_path / "small.pth", Shuffled())


def test_a_pruned_network_of_ones_own_is_kept_in_every_way(tmp_path):
    torch.manual_seed(0)
    small = pruned(Shuffled()).eval()
    assert type(small) is not Shuffled  # its operations are others
    images = torch.randn(2, 3, 16, 16)
    for twin in copies_of(small, tmp_path):
        assert torch.equal(twin.eval()(images), small(images))
    assert models.filter_count(twin) == models.filter_count(small)
    again = pruned(twin, 70)  # and pruned further
    assert models.filter_count(again)[0] < models.filter_count(small)[0]


def test_a_pruned_network_goes_to_a_process_that_is_spawned(tmp_path):
    torch.manual_seed(0)
    small, images = pruned(Shuffled()).eval(), torch.randn(2, 3, 16, 16)
    (tmp_path / "small.pkl").write_bytes(pickle.dumps((small, images, small(images).detach())))
    code = (
        "import pickle, sys, torch\nnetwork, images, logits = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert torch.equal(network(images), logits)"
    )
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "small.pkl"],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
    )


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda path, small: path.unlink(), "no checkpoint at"),
        (
            lambda path, small: torch.save({"net": small.state_dict()}, path),
            "save_network did not write",
        ),
        (
            lambda path, small: save_network(path, Shuffled(4)),
            "fc.weight is 4 x 8 instead of 3 x 8",
        ),
        (
            lambda path, small: torch.save({**torch.load(path), "widths": {"a": 9}}, path),
            "the width of a",
        ),
        (
            lambda path, small: torch.save({**torch.load(path), "widths": None}, path),
            "cannot be used",
        ),
    ],
)
def test_files_that_save_network_did_not_write_or_that_do_not_fit(spoil, says, tmp_path):
    path, small = tmp_path / "small.pth", pruned(Shuffled())
    save_network(path, small)
    assert load_network(path, Shuffled())
    spoil(path, small)
    with pytest.raises(InputError, match=says):
        load_network(path, Shuffled())


def test_what_cannot_be_saved_or_loaded_is_said(tmp_path):
    small, path = pruned(Shuffled()), tmp_path / "small.pth"
    with pytest.raises(ValueError, match="a network that was pickled does not know"):
        save_network(path, pickle.loads(pickle.dumps(small)))
    save_network(path, small)
    with pytest.raises(ValueError, match="was pruned, and then pickled.*save_network"):
        pruned(pickle.loads(pickle.dumps(small)))
    with pytest.raises(InputError, match="is pruned itself"):
        load_network(path, small)
    with pytest.raises(
        InputError, match="written by save_network.*load_network.path, network. reads"
    ):
        load_checkpoint(path)
