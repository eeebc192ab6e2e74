"""Published checkpoints load, and nothing that a checkpoint holds does harm."""

import argparse
import collections
import copy
import functools
import gzip
import io
import itertools
import os
import pickle
import random
import struct
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.groups import filter_count, filter_groups
from common.errors import InputError
from conftest import WIDTH, begin_like, begin_with, files, narrow
from imp_estimator import cal_importance
from lab import networks
from lab.checkpoint import checkpoint_bytes, load_checkpoint, open_checkpoint, save_checkpoint
from lab.reader import read_content, unwrapped
from models import build_model
from pruner import prune, select_filters

# ------------------------------------------------------------------------------------ published


def published_cfg(model):
    """The `cfg` of a published checkpoint, written from the description of that form."""
    integers = itertools.cycle((np.int64, int, np.int32, np.uint16))
    count = {g.name: next(integers)(g.conv.out_channels) for g in filter_groups(model)}
    if model.origin.name == "vgg":
        names = iter(count)
        return [
            "M" if item == "M" else count[next(names)]
            for item in (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
        ]
    if model.origin.name == "mobilenet":
        strides = (1, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
        return [
            (n, np.int64(stride)) if stride > 1 else n
            for n, stride in zip(count.values(), strides, strict=True)
        ]
    cfg = {"base": count.pop("conv1")}
    for name, n in count.items():
        stage = name.split(".")[0].replace("layer", "l")
        cfg.setdefault(stage + "s" * ("shortcut" in name), []).append(n)
    return cfg


def publish(path, model, **more):
    """Write a network as the published files are: every key begins with "module."."""
    torch.save({"net": torch.nn.DataParallel(model).state_dict(), **more}, path)
    return path


def published_pruned(name, num_classes=7, zero_scale=True):
    """A network pruned as the published code does it: residual layers keep all filters, those that
    were removed are zero. (that network, the filters that are left)"""
    torch.manual_seed(1)
    dense = narrow(name, num_classes, width=1)
    kept = select_filters(dense, cal_importance(dense, "random", seed=1), 40)
    whole = {g.name: torch.arange(g.conv.out_channels) for g in filter_groups(dense)}
    residual = {g.name for g in filter_groups(dense) if g.stream.name != g.name}
    model = prune(dense, {key: whole[key] if key in residual else kept[key] for key in kept})
    for group in filter_groups(model):
        if group.name in residual and not group.is_fixed:
            gone = torch.ones(group.conv.out_channels, dtype=torch.bool)
            gone[kept[group.name]] = False
            with torch.no_grad():
                group.conv.weight[gone] = 0
                group.bn.bias[gone] = 0
                (group.bn.weight if zero_scale else group.bn.running_mean)[gone] = 0
    return model.eval(), kept


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", WIDTH)
def test_published_dense_files_load(name, images, tmp_path):
    dense = narrow(name, 7, width=1)
    path = publish(
        tmp_path / "net.pth",
        dense,
        accuracy=73.4,
        classes=7,
        history=[1],
        acc=np.float64(70.5),
        epoch=np.int64(139),
    )
    loaded, record = load_checkpoint(path)
    assert (loaded.origin.name, loaded.origin.num_classes) == (name, 7)
    assert record.pruned is False and record.accuracy is None
    assert torch.equal(loaded.eval()(images), dense(images))


def test_older_and_smaller_forms_load_too(images, tmp_path):
    dense = narrow("vgg", 7, width=1)
    path = tmp_path / "net.pth"
    torch.save({"net": dense.state_dict()}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(path)[0].eval()(images), dense(images))
    publish(path, dense.half())
    assert torch.equal(load_checkpoint(path)[0].eval()(images), dense.float()(images))
    old = {k: v for k, v in dense.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"net": old}, path)  # from before torch 0.4.1
    assert torch.equal(load_checkpoint(path)[0].eval()(images), dense(images))


@pytest.mark.parametrize("zero_scale", [True, False])
@pytest.mark.parametrize("name", WIDTH)
def test_published_pruned_files_load_and_are_compact(name, zero_scale, images, tmp_path):
    pruned, kept = published_pruned(name, zero_scale=zero_scale)
    path = publish(
        tmp_path / "net.pth",
        pruned,
        cfg=published_cfg(pruned),
        acc=torch.tensor(70.5),
        epoch=np.int64(139),
    )
    loaded, record = load_checkpoint(path)
    assert record.pruned
    assert {g.name: g.conv.out_channels for g in filter_groups(loaded)} == {
        key: len(index) for key, index in kept.items()
    }
    torch.testing.assert_close(loaded.eval()(images), pruned(images), atol=1e-5, rtol=1e-4)
    save_checkpoint(
        tmp_path / "again.pth", loaded, record.plain()
    )  # and it can be written in our own form
    again, _ = load_checkpoint(tmp_path / "again.pth")
    assert torch.equal(again.eval()(images), loaded(images))
    model, _ = begin_like(path, name, 7, loaded.origin.width)  # and begun with
    assert begin_with(model, path)[0].endswith("100.0% of the weights")


def test_a_silent_looking_filter_that_adds_a_constant_stays(images, tmp_path):
    pruned, _ = published_pruned("resnet-56")
    group = next(g for g in filter_groups(pruned) if g.name == "layer1.0.conv2")
    with torch.no_grad():
        group.conv.weight[0] = 0
        group.bn.weight[0], group.bn.bias[0], group.bn.running_mean[0] = 1, 0, 3
        group.bn.weight[1], group.bn.bias[1] = 0, 2
    loaded, _ = load_checkpoint(publish(tmp_path / "net.pth", pruned, cfg=published_cfg(pruned)))
    torch.testing.assert_close(loaded.eval()(images), pruned(images), atol=1e-5, rtol=1e-4)


def test_files_of_numpy_1_load_too(tmp_path):
    """NumPy 1 wrote its integers under another module name."""
    path = publish(
        tmp_path / "net.pth",
        narrow("vgg", 3, width=1),
        cfg=[np.int64(w) if w != "M" else w for w in build_model("vgg").layout],
    )
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
            assert not name.endswith("data.pkl") or new in content or old in content
            archive.writestr(name, content.replace(new, old))
    assert load_checkpoint(path)[0].origin.num_classes == 3


@pytest.mark.parametrize(
    "name, cfg",
    [
        ("vgg", [64, 64, "M"]),
        ("vgg", "text"),
        ("vgg", {"base": 3}),
        ("vgg", None),
        ("mobilenet", [32, 64, (128, 1), *[128] * 11]),
        ("mobilenet", [32]),
        ("mobilenet", 5),
        ("resnet-56", {"base": 16, "l1": [16] * 18}),
        ("resnet-56", [16] * 57),
        ("resnet-56", {"base": 16, "l1": [8] * 18, "l2": [32] * 18, "l3": [64] * 18}),
        ("resnet-56", {"base": 16, "l1": [10**12] * 18, "l2": [32] * 18, "l3": [64] * 18}),
    ],
)
def test_a_cfg_that_does_not_fit_is_refused(name, cfg, tmp_path):
    path = publish(tmp_path / "net.pth", narrow(name, 3, width=1), cfg=cfg)
    with pytest.raises(InputError):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "name, job, suffix, method",
    [
        ("vgg", "ebt", "_ortho", "orthoreg"),
        ("mobilenet", "iterative", "", "bn"),
        ("resnet", "ebt", "", "l1"),
        ("resnet-56", "iterative", "_ortho", "orthoreg"),
    ],
)
def test_published_files_work_in_both_scripts(name, job, suffix, method, shell, folder, tmp_path):
    base = tmp_path / "pretrained" / job / "shapes"
    base.mkdir(parents=True)
    pruned, kept = published_pruned(name, 3)
    had = sum(len(kept[g.name]) * max(g.costs) for g in filter_groups(pruned))
    gone = 100 * (1 - had / filter_count(pruned)[1])
    path = publish(base / f"{name}{suffix}.pth", pruned, cfg=published_cfg(pruned))
    ended = shell(
        "main.py",
        "--preset=test",
        f"--data_path={folder}",
        "--image_size=8",
        f"--model={name}",
        f"--ebt={job == 'ebt'}",
        "--pretrained=True",
        f"--pruning_type={method}",
        "--prune_percent=60",
        cwd=tmp_path,
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert "it is pruned already" in ended.stdout
    smaller, _ = load_checkpoint(tmp_path / f"pruned_nets/{job}/shapes/{name}_{method}_60_0.pth")
    now, whole = filter_count(smaller)
    assert now < had and now / whole == pytest.approx(0.4, abs=0.001)
    shown = shell(
        "eval.py",
        "--model",
        name,
        "--pruned",
        "True",
        "--model_path",
        path,
        "--data_path",
        folder,
        "--test_acc",
        "True",
        "--compression",
        "True",
        "--flops",
        "True",
        "--eval_ortho",
        "True",
        cwd=tmp_path,
    )
    assert shown.returncode == 0 and shown.stderr == "", shown.stderr
    assert f"({gone:.2f}% pruned)" in shown.stdout and "18 test images" in shown.stdout


# -------------------------------------------------------------------------------------- hostile


class Code:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def small():
    return build_model("vgg", 3, width=1 / 8)


def altered(**changes):
    """A checkpoint of this suite with some entries changed."""
    content = torch.load(io.BytesIO(checkpoint_bytes(small(), {})), weights_only=True)
    content.update(changes)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def with_weight(tensor, key="features.0.weight"):
    return altered(net={**small().state_dict(), key: tensor})


def packed(content):
    """The same archive with its records compressed, as a small file that fills the memory would."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, bytes(len(old.read(name))) if "/data/" in name else old.read(name))
    return buffer.getvalue()


def bytearray_of_gigabytes():
    """A few bytes for which the unpickler, allowed to, would fill 3 GB."""

    class Large:
        def __reduce__(self):
            return bytearray, (3_000_000_000,)

    return altered(more=Large())


def one_byte_changed(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        record = next(r for r in archive.infolist() if r.file_size > 10_000)
    offset = content.index(b"FB", record.header_offset) + 5000
    return content[:offset] + bytes([content[offset] ^ 4]) + content[offset + 1 :]


WHOLE = checkpoint_bytes(small(), {"data": "digits"})
NAN = torch.full((8, 3, 3, 3), float("nan"))
HUGE = torch.zeros(1).expand(10**9, 64)
ENDLESS = functools.reduce(lambda inside, _: [inside] * 40, range(18), ["x"])
HOSTILE = {
    "endless": altered(more=ENDLESS),
    "endless cfg": altered(cfg=ENDLESS),
    "endless classes": altered(classes=ENDLESS),
    "deep": altered(more=functools.reduce(lambda inside, _: [inside], range(90), [])),
    "large": bytearray_of_gigabytes(),
    "variance": with_weight(-torch.ones(8), "features.2.running_var"),
    "empty": b"",
    "text": b"weights\n",
    "random": bytes(np.random.RandomState(0).bytes(5000)),
    "code": pickle.dumps(Code()),
    "code in net": pickle.dumps({"net": Code()}),
    "half": WHOLE[: len(WHOLE) // 2],
    "almost": WHOLE[:-1],
    "no head": WHOLE[100:],
    "one byte": one_byte_changed(WHOLE),
    "packed": packed(WHOLE),
    "a list": pickle.dumps([1, 2]),
    "no net": altered(net=None),
    "net a list": altered(net=[1]),
    "net empty": altered(net={}),
    "keys numbers": altered(net={1: torch.zeros(1)}),
    "unknown network": altered(model="alexnet"),
    "network a list": altered(model=["vgg"]),
    "other network": altered(model="mobilenet"),
    "no model": altered(model=None),
    "cfg none of ours": altered(cfg=[1, 2]),
    "cfg text": altered(cfg="wide"),
    "cfg unknown layer": altered(cfg={"conv99": 3}),
    "cfg number": altered(cfg={1: 2, "a": 3}),
    "cfg huge": altered(cfg={"features.0": 10**15}),
    "cfg zero": altered(cfg={"features.0": 0}),
    "cfg True": altered(cfg={"features.0": True}),
    "cfg float": altered(cfg={"features.0": 8.0}),
    "cfg smaller": altered(cfg={"features.0": 4}),
    "classes more": altered(num_classes=4),
    "classes huge": altered(num_classes=10**18),
    "classes text": altered(num_classes="3"),
    "classes huge and expanded": altered(
        num_classes=10**9,
        net={**small().state_dict(), "classifier.weight": HUGE, "classifier.bias": HUGE[:, 0]},
    ),
    "classes zero": altered(num_classes=0),
    "classes negative": altered(num_classes=-3),
    "width nan": altered(width=float("nan")),
    "width text": altered(width="1/8"),
    "width huge": altered(width=1e300),
    "width large": altered(width=8.0),
    "nan": with_weight(NAN),
    "inf": with_weight(NAN.fill_(float("inf"))),
    "too large for float32": with_weight(torch.full((8, 3, 3, 3), 1e300, dtype=torch.float64)),
    "integers": with_weight(torch.ones(8, 3, 3, 3, dtype=torch.int64)),
    "complex": with_weight(torch.ones(8, 3, 3, 3, dtype=torch.complex64)),
    "sparse": with_weight(torch.ones(8, 3, 3, 3).to_sparse()),
    "other shape": with_weight(torch.ones(8, 3, 1, 1)),
    "expanded": with_weight(torch.ones(1).expand(8, 3, 3, 3)),
    "one weight more": with_weight(torch.ones(1), "features.99.weight"),
    "not a tensor": with_weight("text"),
    "image size text": altered(image_size="big"),
    "image size huge": altered(image_size=10**9),
    "image size true": altered(image_size=True),
    "names of too few classes": altered(classes=["a"]),
    "class names": altered(classes=[1, 2, 3]),
    "accuracy": altered(accuracy={"last": {"top1": "good"}}),
    "accuracy 2": altered(accuracy=[9]),
    "accuracy 3": altered(accuracy={}),
    "data": altered(data={"a": 1}),
    "data path": altered(data_path=7),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_sound_checkpoint_is_one_line(kind, tmp_path, shell, folder):
    path = tmp_path / "pretrained/ebt/shapes/vgg-w0.125.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(HOSTILE[kind])
    before = files(tmp_path)
    for command in (
        (
            "eval.py",
            "--model_path",
            path,
            "--test_acc",
            "True",
            "--compression",
            "True",
            "--data_path",
            folder,
        ),
        (
            "main.py",
            "--preset=test",
            "--width=0.125",
            f"--data_path={folder}",
            "--ebt=True",
            "--image_size=16",
            "--pretrained=True",
            "--pruning_type=l1",
            "--prune_percent=20",
        ),
    ):
        ended = shell(*command, cwd=tmp_path)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, (ended, kind)
        assert str(path.name) in ended.stderr
        assert files(tmp_path) == before and not (tmp_path / "pwned").exists()


def test_a_sound_file_of_something_else_is_one_line(tmp_path, shell, folder):
    path = tmp_path / "net.pth"
    save_checkpoint(path, small(), {"image_size": 24, "classes": ["x", "y", "z"]})
    for flags, message in (
        (("--model", "resnet"), "--model=resnet is wrong"),
        (("--pruned", "True"), "--pruned=True is wrong"),
        (("--num_classes", "10"), "--num_classes=10 is wrong"),
        (
            ("--test_acc", "True", "--data_path", folder),
            "has no test images of the network's classes (x, y, z)",
        ),
        (("--test_acc", "True", "--data_path", "digits"), "for 3 classes; digits has 10"),
    ):
        ended = shell("eval.py", "--model_path", path, "--flops=True", *flags, cwd=tmp_path)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and message in ended.stderr
    for missing in ("missing.pth", tmp_path, "/dev/null", "a" * 300):
        ended = shell("eval.py", "--model_path", missing, "--flops=True", cwd=tmp_path)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr


damages = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, len(WHOLE) - 1)),
    st.tuples(
        st.just("bytes"),
        st.lists(
            st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=30
        ),
    ),
    st.tuples(st.just("random"), st.binary(max_size=400)),
    st.tuples(st.just("tail"), st.binary(min_size=1, max_size=400)),
)


def damaged(kind, how):
    if kind == "cut":
        return WHOLE[:how]
    if kind == "random":
        return how
    content = bytearray(WHOLE)
    for place, change in how if kind == "bytes" else ():
        content[place] ^= change
    return bytes(content) + (how if kind == "tail" else b"")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(damage=damages)
def test_damage_is_refused_or_does_not_matter(damage, folder_of_its_own):
    path = folder_of_its_own / "net.pth"
    path.write_bytes(damaged(*damage))
    try:
        model, _ = load_checkpoint(path)
    except InputError as error:
        assert "net.pth" in str(error)
    else:  # what is read is what was written
        path.write_bytes(WHOLE)
        original, _ = load_checkpoint(path)
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                model.state_dict().values(), original.state_dict().values(), strict=True
            )
        )


@pytest.fixture(scope="module")
def folder_of_its_own(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(damage=damages, script=st.sampled_from(("main.py", "eval.py")))
def test_damage_through_the_command_line(damage, script, folder_of_its_own, shell, folder):
    name = "pretrained/ebt/shapes/vgg-w0.125.pth"
    path = folder_of_its_own / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(damaged(*damage))
    before = files(folder_of_its_own)
    flags = {
        "eval.py": ("--model_path", name, "--eval_ortho", "True", "--compression", "True"),
        "main.py": (
            "--preset=test",
            "--width=0.125",
            f"--data_path={folder}",
            "--ebt=True",
            "--image_size=8",
            "--pretrained=True",
            "--pruning_type=random",
            "--prune_percent=20",
        ),
    }[script]
    ended = shell(script, *flags, cwd=folder_of_its_own)
    assert ended.returncode in (0, 2) and "Traceback" not in ended.stderr + ended.stdout
    if ended.returncode:
        assert ended.stderr.count("\n") == 1 and files(folder_of_its_own) == before
    assert path.read_bytes() == before[name]


# ------------------------------------------------------------------------ as others wrap their weights


def wrapped(kind, state):
    """A state dict as different programs save it."""

    def under(prefix):
        return {prefix + key: tensor for key, tensor in state.items()}

    counters = {
        f"module.{name}": torch.zeros(1, dtype=torch.double)
        for name in ("total_ops", "layer1.total_params")
    }
    return {
        "bare": state,
        "published": {"net": under("module."), "acc": 93.1},
        "compiled": {"state_dict": under("_orig_mod.")},
        "compiled, in parallel": {"model": under("module._orig_mod.")},
        "average": {"model_ema": {"n_averaged": torch.tensor(3), **under("module.")}},
        "counted": {"net": {**under("module."), **counters}},
        "lightning": {"state_dict": under("model.net."), "epoch": 3, "callbacks": {}},
        "reference": {
            "model": state,
            "epoch": 9,
            "args": argparse.Namespace(lr=0.1, out=Path("x")),
            "more": types.SimpleNamespace(a=[1]),
        },
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "bare",
        "published",
        "compiled",
        "compiled, in parallel",
        "average",
        "counted",
        "lightning",
        "reference",
    ],
)
def test_weights_are_found_in_all_their_wrappings(kind, tmp_path, images):
    theirs, path = build_model("resnet-56", 4), tmp_path / "net.pth"
    torch.save(wrapped(kind, theirs.state_dict()), path)
    model, record = load_checkpoint(path)
    assert record.num_classes == 4 and not record.pruned
    with torch.no_grad():
        assert torch.equal(model.eval()(images), theirs.eval()(images))
    fresh = build_model("resnet-56", 4)
    assert begin_with(fresh, path) == [f"from {path}: 100.0% of the weights"]
    with torch.no_grad():
        assert torch.equal(fresh.eval()(images), theirs(images))


def test_what_cannot_be_read_safely_is_named(tmp_path):
    state, path = build_model("vgg", 4, 1 / 8).state_dict(), tmp_path / "net.pth"
    torch.save(
        {f"{who}.{key}": tensor for who in ("student", "teacher") for key, tensor in state.items()},
        path,
    )
    with pytest.raises(InputError, match="several networks, under student. and teacher."):
        load_checkpoint(path)
    torch.save({"net": state, "config": collections.defaultdict(list)}, path)
    with pytest.raises(InputError, match="it holds .*collections.defaultdict"):
        load_checkpoint(path)
    torch.save({"model_state_dict": state}, path)
    assert begin_with(build_model("vgg", 4, 1 / 8), path) == [f"from {path}: 100.0% of the weights"]
    torch.save({"nets": state, "epoch": 3}, path)
    with pytest.raises(
        InputError,
        match="no state dict, neither bare nor under .*; it has 'nets', "
        "'epoch'; FILE:nets takes the weights there",
    ):
        load_checkpoint(path)
    for content, says in (
        (gzip.compress(b"x"), "packed by gzip"),
        (b"<!DOCTYPE html>", "a web page"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=says):
            load_checkpoint(path)
    for entries, says in (
        ({"normalize": [0.5] * 3}, "not three means"),
        ({"white": {"integer": 0.0}}, "not above 0"),
        ({"normalize": [0.5] * 5 + [0.0]}, "not three means"),
    ):
        save_checkpoint(path, build_model("vgg", 4, 1 / 8), entries)
        with pytest.raises(InputError, match=says):
            load_checkpoint(path)
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(InputError, match="a tar file, as PyTorch wrote until 2017"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "unusual",
    [
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to_sparse(),
        lambda t: t.to(torch.complex64),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        lambda t: torch.nested.nested_tensor([t, t]),
        lambda t: t.to("meta"),
    ],
)
def test_tensors_of_unusual_kinds_are_taken_or_named(unusual, tmp_path):
    state, path = build_model("vgg", 4, 1 / 8).state_dict(), tmp_path / "net.pth"
    state["features.3.weight"] = unusual(state["features.3.weight"])
    torch.save(state, path)
    model = build_model("vgg", 4, 1 / 8)
    try:
        assert begin_with(model, path)[0].endswith("100.0% of the weights")
        assert model.features[3].weight.isfinite().all()
    except InputError as error:
        assert "features.3.weight is not a plain tensor" in str(error) or "not a readable" in str(
            error
        )


def test_a_bare_file_of_torchvision_is_measured_where_its_network_is_named(tmp_path):
    theirs, path = torchvision.models.resnet18(num_classes=5), tmp_path / "net.pth"
    torch.save(theirs.state_dict(), path)
    model, record = load_checkpoint(path, "resnet18")
    assert record.num_classes == 5
    assert torch.equal(model.fc.weight, theirs.fc.weight)


# ------------------------------------------------------------------------- which weights are taken


def shifted(state, by):
    return {
        key: tensor + by if tensor.is_floating_point() else tensor for key, tensor in state.items()
    }


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    "usual, other",
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("net", "ema"),
        ("state_dict", "callbacks.EMA.weights"),
    ],
)
def test_of_several_copies_it_is_said_which_is_taken_and_how_to_have_the_others(
    usual, other, tmp_path
):
    first, path = build_model("vgg", 4).state_dict(), tmp_path / "net.pth"
    second = shifted(first, 0.5)
    content = {usual: first, "epoch": 3, "optimizer": OPTIMIZER}
    inside = functools.reduce(lambda value, key: {key: value}, reversed(other.split(".")), second)
    torch.save({**content, **inside}, path)
    said = f"several state dicts: that under {usual} is taken; {path}:{other} takes the one under {other}"
    network, _, lines = open_checkpoint(path)
    assert len(lines) == 1 and said in lines[0]
    assert torch.equal(network.classifier.bias, first["classifier.bias"])
    network, _, lines = open_checkpoint(f"{path}:{other}")
    assert not lines and torch.equal(network.classifier.bias, second["classifier.bias"])
    fresh = build_model("vgg", 4)
    assert said in "\n".join(begin_with(fresh, path))
    assert torch.equal(fresh.classifier.bias, first["classifier.bias"])
    assert begin_with(fresh, f"{path}:{other}") == [f"from {path}:{other}: 100.0% of the weights"]
    assert torch.equal(fresh.classifier.bias, second["classifier.bias"])
    with pytest.raises(InputError, match="net.pth has no emma; it has "):
        begin_with(fresh, f"{path}:emma")
    torch.save(content, path)  # what an optimizer remembers is no copy
    assert open_checkpoint(path)[2] == []


def test_one_of_two_networks_in_a_state_dict_is_taken_by_its_prefix(tmp_path):
    state, path = build_model("vgg", 4).state_dict(), tmp_path / "net.pth"
    torch.save(
        {
            f"{who}.{key}": tensor
            for who, by in (("student", 0), ("teacher", 1))
            for key, tensor in shifted(state, by).items()
        },
        path,
    )
    with pytest.raises(InputError, match="FILE:student takes the first"):
        begin_with(build_model("vgg", 4), path)
    taken = load_checkpoint(f"{path}:teacher")[0]
    assert torch.equal(taken.classifier.bias, state["classifier.bias"] + 1)


def test_what_stands_beside_the_network_is_named_and_left(tmp_path):
    state, path = build_model("resnet-56", 4).state_dict(), tmp_path / "last.ckpt"
    metrics = {"criterion.weight": torch.ones(4), "val_acc.tp": torch.zeros(4)}
    torch.save({"state_dict": {**{f"model.{key}": t for key, t in state.items()}, **metrics}}, path)
    says = (
        f"left in {path}: 2 tensors that the network does not have (criterion.weight, val_acc.tp)"
    )
    network, _, lines = open_checkpoint(path)
    assert lines == [says] and torch.equal(network.linear.weight, state["linear.weight"])
    assert says in begin_with(build_model("resnet-56", 4), path)
    state["layer1.9.conv1.weight"] = state["layer1.8.conv1.weight"]  # a block more: another network
    torch.save(state, path)
    with pytest.raises(
        InputError, match="for resnet-56 layer1.9.conv1.weight is none of its weights"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "name, classes, prefix",
    [
        ("resnet18", 1000, ""),
        ("resnet18", 3, "module."),
        ("squeezenet1_1", 7, ""),
        ("mobilenet_v2", 10, "model."),
    ],
)
def test_a_file_of_torchvision_says_which_network_it_needs(name, classes, prefix, tmp_path):
    state, path = (
        getattr(torchvision.models, name)(num_classes=classes).state_dict(),
        tmp_path / "net.pth",
    )
    torch.save({prefix + key: tensor for key, tensor in state.items()}, path)
    with pytest.raises(InputError, match=f"torchvision's {name}: --model={name} takes them"):
        load_checkpoint(path)
    network, record = load_checkpoint(path, name)
    assert record.num_classes == classes and len(network.state_dict()) == len(state)


def test_an_unknown_network_is_not_called_several():
    state = torchvision.models.resnet18().state_dict()
    for wanted in (build_model(name).state_dict() for name in ("vgg", "mobilenet", "resnet-56")):
        assert unwrapped(state, wanted.keys()) == (state, [])


def test_shortcuts_without_weights_are_option_a(tmp_path):
    theirs, path = build_model("resnet-56", 4), tmp_path / "net.pth"
    state = {key: tensor for key, tensor in theirs.state_dict().items() if "shortcut" not in key}
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, path)
    with pytest.raises(InputError, match="it is ResNet-56 of option A, .* --init=FILE begins with"):
        load_checkpoint(path)
    ours = build_model("resnet-56", 4)
    lines = begin_with(ours, path)
    assert lines[1:] == [
        "fresh: the shortcuts layer2.0.shortcut and layer3.0.shortcut, since the "
        "file's have no weights (option A)"
    ]
    assert all(
        torch.equal(ours.state_dict()[key], tensor)
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    )
    del state["layer2.0.conv1.weight"]  # another layer is missing: that is no option
    torch.save(state, path)
    with pytest.raises(InputError, match="it has no layer2.0.conv1"):
        begin_with(build_model("resnet-56", 4), path)


OWN = """import random
import numpy
import torch
class Last(torch.nn.Sequential):
    def __init__(self, num_classes=10):
        nn = torch.nn
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3 * num_classes, 1),
                         nn.Conv2d(3 * num_classes, num_classes, 1, bias=False),
                         nn.BatchNorm2d(num_classes), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.drawn = random.random() + numpy.random.rand()
"""


def test_what_follows_the_number_of_classes_is_the_classifier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(OWN)
    name = "my.py:Last"
    theirs = networks.build_network(name, 10)
    save_checkpoint("net.pth", theirs, {"classes": list("abcdefghij")})
    for classes, kept in (
        (list("abcdefghij"), True),
        (list("abc"), False),
        (list("klmnopqrst"), False),
    ):
        ours = networks.build_network(name, len(classes))
        lines = begin_with(ours, "net.pth", classes)
        assert torch.equal(ours[0].weight, theirs[0].weight)
        assert (
            ours[3].weight.shape == theirs[3].weight.shape
            and torch.equal(ours[3].weight, theirs[3].weight)
        ) == kept
        assert any("fresh: the classifier 2, 3, 4, since" in line for line in lines) != kept
    assert networks.classifier_of(name) == {"2", "3", "4"}
    assert networks.classifier_of("vgg") == {"classifier"}
    assert networks.classifier_of("squeezenet1_1") == {"classifier.1"}
    torch.save({"model." + key: tensor for key, tensor in theirs.state_dict().items()}, "bare.pth")
    assert load_checkpoint("bare.pth", name)[1].num_classes == 10


def test_finding_the_classifier_draws_no_random_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(OWN)
    for name in ("my.py:Last", "vgg", "regnet_y_400mf"):
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        wanted = torch.rand(2), np.random.rand(), random.random()
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        networks._shapes_of.cache_clear()
        networks.classifier_of(name)
        assert torch.equal(torch.rand(2), wanted[0])
        assert (np.random.rand(), random.random()) == wanted[1:]


def test_a_classifier_is_kept_where_the_user_says_so(tmp_path):
    theirs, path, classes = build_model("vgg", 3, 1 / 8), tmp_path / "net.pth", ["a", "b", "c"]
    torch.save(theirs.state_dict(), path)
    fresh = build_model("vgg", 3, 1 / 8)
    assert "; --classifier=keep takes it" in "\n".join(begin_with(fresh, path, classes))
    assert not torch.equal(fresh.classifier.weight, theirs.classifier.weight)
    assert begin_with(fresh, path, classes, classifier="keep") == [
        f"from {path}: 100.0% of the weights"
    ]
    assert torch.equal(fresh.classifier.weight, theirs.classifier.weight)
    begin_with(
        build_model("vgg", 2, 1 / 8), path, (), classifier="keep"
    )  # the classes are not known yet
    with pytest.raises(
        InputError, match="is not for 4 classes: classifier.weight is 3 x 64 instead of 4"
    ):
        begin_with(build_model("vgg", 4, 1 / 8), path, list("abcd"), classifier="keep")
    save_checkpoint(path, theirs, {"classes": ["c", "b", "a"]})
    with pytest.raises(InputError, match=r"these classes in another order \(c, b, a\)"):
        begin_with(fresh, path, classes, classifier="keep")
    save_checkpoint(path, theirs, {"classes": ["Aal", "Bär", "Chow"]})  # other names of the same
    assert len(begin_with(fresh, path, classes, classifier="keep")) == 1


# ------------------------------------------------------------- what a file is, by its first bytes


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


KINDS = {
    "a.onnx": (b"\x08\x0a\x12\x07pytorch\x1a\x062.14.1", "a network in ONNX; give the checkpoint"),
    "a.pt2": (
        zipped("a/models/model.json", "a/archive_format"),
        "torch.export wrote .* give the checkpoint",
    ),
    "a.pt": (zipped("a/data.pkl", "a/constants.pkl"), "a TorchScript archive; save the state dict"),
    "a.keras": (zipped("config.json", "model.weights.h5"), "a network of Keras"),
    "a.npz": (zipped("conv1.npy"), "NumPy's arrays"),
    "a.zip": (zipped("net.pth"), "unpack it first"),
    "a.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file .* as Keras writes"),
    "a.tflite": (b"\x1c\0\0\0TFL3" + bytes(99), "a network of TensorFlow Lite"),
    "a.pb": (b"\x08\x01\x12\x05hello", "a network of TensorFlow"),
    "lfs.pth": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "Git LFS.* `git lfs pull`",
    ),
    "empty.pth": (b"", "it is empty: copy or download it again"),
    "zeros.pth": (bytes(9999), "nothing but zeros"),
    "half.pth": (WHOLE[:-400], "it is damaged"),
    "page.pth": (b"\n<!DOCTYPE html>", "a web page"),
    "words.pth": (b"hello\n", "it is text"),
    "index.pth": (b'{"weight_map": {}}', "it is JSON"),
    "a.bz2": (b"BZh91AY", "packed by bzip2"),
    "pickle.pth": (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
    "half.safetensors": (
        struct.pack("<Q", 9999) + b'{"a": ',
        "a .safetensors file that is not whole",
    ),
    "noise.pth": (bytes(range(200, 256)), "no kind of weights that is known here"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_what_is_no_checkpoint_is_called_what_it_is(name, suffix, tmp_path):
    content, says = KINDS[name]
    (tmp_path / (name + suffix)).write_bytes(content)
    with pytest.raises(InputError, match=f"is not a readable checkpoint: .*{says}"):
        load_checkpoint(tmp_path / (name + suffix))


def test_weights_are_read_whatever_their_file_is_called(tmp_path):
    network = build_model("vgg", 4, 1 / 8)
    save_checkpoint(tmp_path / "net.safetensors", network, {})
    torch.save(
        {"model": network.state_dict()}, tmp_path / "old.onnx", _use_new_zipfile_serialization=False
    )
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(
        {key: tensor.contiguous() for key, tensor in network.state_dict().items()},
        tmp_path / "net.pth",
    )
    for name in ("net.safetensors", "old.onnx", "net.pth"):
        lines = begin_with(build_model("vgg", 4, 1 / 8), tmp_path / name)
        assert lines[0].endswith("100.0% of the weights")


# --------------------------------------------------------- little bytes that would be endless work


TWICE = b")" + b"q\x00h\x00\x86" * 45  # a tuple of the same tuple twice, 45 times: 2 ** 45 items
ENDLESS_PICKLES = {
    "a key": b"}" + TWICE + b"K\x01s.",
    "keys": b"}(" + TWICE + b"K\x01u.",
    "a set": b"cbuiltins\nset\n]" + TWICE + b"a\x85R.",
    "a counter": b"ccollections\nCounter\n]" + TWICE + b"a\x85R.",
    "a deep key": b"})" + b"\x85" * 200_000 + b"K\x01s.",  # a hash of it overflows the stack
    "bytes": b"c_codecs\nencode\nq\x01X\x04\0\0\0aaaaX\x06\0\0\0latin1\x86R"
    + b"q\x02h\x01h\x02X\x03\0\0\0hex\x86R" * 40
    + b".",
    "copies": b"]("
    + b"K\x01" * 50_000
    + b"eq\x01]("
    + b"cbuiltins\nset\nh\x01\x85R" * 1000
    + b"e.",
    "memory": b"ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R.",
    "memory by others": b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\nbytearray\nctorch\nTensor\n"
    b"J\xff\xff\xff\x7f\x85}tR.",
    "itself": b"]q\x01" + b"h\x01a" * 1000 + b".",
}


def archived(pickled, records=()):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (
            ("a/data.pkl", pickled),
            ("a/byteorder", "little"),
            ("a/version", "3"),
            *records,
        ):
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["archive", "old"])
@pytest.mark.parametrize("kind", ENDLESS_PICKLES)
def test_what_would_be_endless_is_refused_before_it_is_built(kind, form, tmp_path, monkeypatch):
    path, pickled = tmp_path / "net.pth", b"\x80\x02" + ENDLESS_PICKLES[kind]
    path.write_bytes(
        archived(pickled)
        if form == "archive"
        else b"".join(
            (
                b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
                b"\x80\x02M\xe9\x03.",
                b"\x80\x02}.",
                pickled,
                b"\x80\x02].",
            )
        )
    )
    if kind != "itself":  # which is found afterwards
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it would be built"))
    with pytest.raises(
        InputError, match="net.pth is not a readable checkpoint: it (holds|calls|encodes)"
    ):
        read_content(path)


def tensor_under(key, count):
    """The instructions for a tensor of numbers in the record of this name."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX"
        + struct.pack("<I", len(key))
        + key.encode()
        + b"X\x03\0\0\0cpuJ"
        + struct.pack("<i", count)
        + b"tQK\0J"
        + struct.pack("<i", count)
        + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    )


def record_under_many_names(names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data/0", bytes(100_000))
        for name in names:
            archive.filelist.append(copy.copy(archive.getinfo("a/data/0")))
            archive.filelist[-1].filename = name
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        record_under_many_names(["a/data/0"] * 20_000),
        record_under_many_names([f"a/data/{number}" for number in range(1, 20_000)]),
        # PyTorch finds data/abc where data/ABC is asked for, and reads it once for each spelling.
        archived(
            b"\x80\x02]("
            + b"".join(
                tensor_under("".join(letters), 1000) for letters in itertools.product(*["aA"] * 8)
            )
            + b"e.",
            [("a/data/" + "a" * 8, bytes(4000))],
        ),
    ],
    ids=["one name", "names", "spellings"],
)
def test_one_record_is_not_read_as_many(content, tmp_path, monkeypatch):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    for reads in ((torch, "load"), (zipfile.ZipFile, "testzip")):
        if content.count(b"storage") == 0 or reads[0] is torch:
            monkeypatch.setattr(*reads, lambda *_, **__: pytest.fail("it would be read"))
    with pytest.raises(InputError, match="records overlap|larger than the file"):
        read_content(path)


def test_what_torch_saves_beside_weights_is_no_endless_work(tmp_path):
    content = {
        "net": build_model("resnet-56", 4).state_dict(),
        "random": random.getstate(),
        "numpy": [np.float64(1.5), np.int32(3)],
        "names": {"a", "b"},
        "size": torch.Size([2, 3]),
        "shared": [torch.zeros(3)] * 3,
        "empty": [torch.zeros(0), torch.zeros(0)],
        "half": torch.ones(3, dtype=torch.bfloat16),
        "bits": torch.ones(3, dtype=torch.uint16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "counts": collections.Counter("abca"),
        "history": [{"epoch": number, "top1": number / 7} for number in range(5000)],
    }
    for modern in (True, False):
        if not modern:
            del content["bits"]  # which that form does not know
        torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=modern)
        read = read_content(tmp_path / "net.pth")
        assert read["random"] == content["random"] and read["history"] == content["history"]
        assert read.keys() == content.keys()
