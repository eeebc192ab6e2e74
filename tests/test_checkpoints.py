"""Published checkpoints load, and nothing that a checkpoint holds does harm."""
import argparse
import collections
import functools
import gzip
import io
import itertools
import os
import pickle
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

from common.errors import InputError
from conftest import WIDTH, files, narrow
from imp_estimator import cal_importance
from lab.checkpoint import checkpoint_bytes, load_checkpoint, save_checkpoint
from lab.weights import initialise, network_like
from models import build_model, filter_count, filter_groups
from pruner import prune, select_filters

# ------------------------------------------------------------------------------------ published


def published_cfg(model):
    """The `cfg` of a published checkpoint, written from the description of that form."""
    integers = itertools.cycle((np.int64, int, np.int32, np.uint16))
    count = {g.name: next(integers)(g.conv.out_channels) for g in filter_groups(model)}
    if model.origin.name == "vgg":
        names = iter(count)
        return ["M" if item == "M" else count[next(names)] for item in
                (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")]
    if model.origin.name == "mobilenet":
        strides = (1, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
        return [(n, np.int64(stride)) if stride > 1 else n for n, stride in
                zip(count.values(), strides, strict=True)]
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
        if group.name in residual and not group.protected:
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
    path = publish(tmp_path / "net.pth", dense, accuracy=73.4, classes=7, history=[1],
                   acc=np.float64(70.5), epoch=np.int64(139))
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
    path = publish(tmp_path / "net.pth", pruned, cfg=published_cfg(pruned), acc=torch.tensor(70.5),
                   epoch=np.int64(139))
    loaded, record = load_checkpoint(path)
    assert record.pruned
    assert {g.name: g.conv.out_channels for g in filter_groups(loaded)} == {
        key: len(index) for key, index in kept.items()}
    torch.testing.assert_close(loaded.eval()(images), pruned(images), atol=1e-5, rtol=1e-4)
    save_checkpoint(tmp_path / "again.pth", loaded, record.plain())  # and it can be written in our own form
    again, _ = load_checkpoint(tmp_path / "again.pth")
    assert torch.equal(again.eval()(images), loaded(images))
    model, _ = network_like(path, name, 7, loaded.origin.width)  # and begun with
    assert initialise(model, path)[0].endswith("100.0% of the weights")


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
    path = publish(tmp_path / "net.pth", narrow("vgg", 3, width=1),
                   cfg=[np.int64(w) if w != "M" else w for w in build_model("vgg").layout])
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
            assert not name.endswith("data.pkl") or new in content or old in content
            archive.writestr(name, content.replace(new, old))
    assert load_checkpoint(path)[0].origin.num_classes == 3


@pytest.mark.parametrize("name, cfg", [
    ("vgg", [64, 64, "M"]), ("vgg", "text"), ("vgg", {"base": 3}), ("vgg", None),
    ("mobilenet", [32, 64, (128, 1), *[128] * 11]), ("mobilenet", [32]), ("mobilenet", 5),
    ("resnet-56", {"base": 16, "l1": [16] * 18}), ("resnet-56", [16] * 57),
    ("resnet-56", {"base": 16, "l1": [8] * 18, "l2": [32] * 18, "l3": [64] * 18}),
    ("resnet-56", {"base": 16, "l1": [10 ** 12] * 18, "l2": [32] * 18, "l3": [64] * 18})])
def test_a_cfg_that_does_not_fit_is_refused(name, cfg, tmp_path):
    path = publish(tmp_path / "net.pth", narrow(name, 3, width=1), cfg=cfg)
    with pytest.raises(InputError):
        load_checkpoint(path)


@pytest.mark.parametrize("name, job, suffix, method", [
    ("vgg", "ebt", "_ortho", "orthoreg"), ("mobilenet", "iterative", "", "bn"),
    ("resnet", "ebt", "", "l1"), ("resnet-56", "iterative", "_ortho", "orthoreg")])
def test_published_files_work_in_both_scripts(name, job, suffix, method, shell, folder, tmp_path):
    base = tmp_path / "pretrained" / job / "shapes"
    base.mkdir(parents=True)
    pruned, kept = published_pruned(name, 3)
    had = sum(len(kept[g.name]) * max(g.costs) for g in filter_groups(pruned))
    gone = 100 * (1 - had / filter_count(pruned)[1])
    path = publish(base / f"{name}{suffix}.pth", pruned, cfg=published_cfg(pruned))
    ended = shell("main.py", "--preset=test", f"--data_path={folder}", "--image_size=8",
                  f"--model={name}", f"--ebt={job == 'ebt'}", "--pretrained=True",
                  f"--pruning_type={method}", "--prune_percent=60", cwd=tmp_path)
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert "it is pruned already" in ended.stdout
    smaller, _ = load_checkpoint(tmp_path / f"pruned_nets/{job}/shapes/{name}_{method}_60_0.pth")
    now, whole = filter_count(smaller)
    assert now < had and now / whole == pytest.approx(.4, abs=.001)
    shown = shell("eval.py", "--model", name, "--pruned", "True", "--model_path", path,
                  "--data_path", folder, "--test_acc", "True", "--compression", "True",
                  "--flops", "True", "--eval_ortho", "True", cwd=tmp_path)
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
    with zipfile.ZipFile(io.BytesIO(content)) as old, \
            zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
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
    place = content.index(b"FB", record.header_offset) + 5000
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1:]


WHOLE = checkpoint_bytes(small(), {"data": "digits"})
NAN = torch.full((8, 3, 3, 3), float("nan"))
HUGE = torch.zeros(1).expand(10 ** 9, 64)
ENDLESS = functools.reduce(lambda inside, _: [inside] * 40, range(18), ["x"])
HOSTILE = {
    "endless": altered(more=ENDLESS), "endless cfg": altered(cfg=ENDLESS),
    "endless classes": altered(classes=ENDLESS),
    "deep": altered(more=functools.reduce(lambda inside, _: [inside], range(90), [])),
    "large": bytearray_of_gigabytes(), "variance": with_weight(-torch.ones(8), "features.2.running_var"),
    "empty": b"", "text": b"weights\n", "random": bytes(np.random.RandomState(0).bytes(5000)),
    "code": pickle.dumps(Code()), "code in net": pickle.dumps({"net": Code()}),
    "half": WHOLE[:len(WHOLE) // 2], "almost": WHOLE[:-1], "no head": WHOLE[100:],
    "one byte": one_byte_changed(WHOLE), "packed": packed(WHOLE),
    "a list": pickle.dumps([1, 2]), "no net": altered(net=None), "net a list": altered(net=[1]),
    "net empty": altered(net={}), "keys numbers": altered(net={1: torch.zeros(1)}),
    "unknown network": altered(model="alexnet"), "network a list": altered(model=["vgg"]),
    "other network": altered(model="mobilenet"), "no model": altered(model=None),
    "cfg none of ours": altered(cfg=[1, 2]), "cfg text": altered(cfg="wide"),
    "cfg unknown layer": altered(cfg={"conv99": 3}), "cfg number": altered(cfg={1: 2, "a": 3}),
    "cfg huge": altered(cfg={"features.0": 10 ** 15}), "cfg zero": altered(cfg={"features.0": 0}),
    "cfg True": altered(cfg={"features.0": True}), "cfg float": altered(cfg={"features.0": 8.0}),
    "cfg smaller": altered(cfg={"features.0": 4}), "classes more": altered(num_classes=4),
    "classes huge": altered(num_classes=10 ** 18), "classes text": altered(num_classes="3"),
    "classes huge and expanded": altered(num_classes=10 ** 9, net={
        **small().state_dict(), "classifier.weight": HUGE, "classifier.bias": HUGE[:, 0]}),
    "classes zero": altered(num_classes=0), "classes negative": altered(num_classes=-3),
    "width nan": altered(width=float("nan")),
    "width text": altered(width="1/8"), "width huge": altered(width=1e300), "width large": altered(width=8.0),
    "nan": with_weight(NAN), "inf": with_weight(NAN.fill_(float("inf"))),
    "too large for float32": with_weight(torch.full((8, 3, 3, 3), 1e300, dtype=torch.float64)),
    "integers": with_weight(torch.ones(8, 3, 3, 3, dtype=torch.int64)),
    "complex": with_weight(torch.ones(8, 3, 3, 3, dtype=torch.complex64)),
    "sparse": with_weight(torch.ones(8, 3, 3, 3).to_sparse()),
    "other shape": with_weight(torch.ones(8, 3, 1, 1)), "expanded": with_weight(
        torch.ones(1).expand(8, 3, 3, 3)),
    "one weight more": with_weight(torch.ones(1), "features.99.weight"),
    "not a tensor": with_weight("text"), "image size text": altered(image_size="big"),
    "image size huge": altered(image_size=10 ** 9), "image size true": altered(image_size=True),
    "names of too few classes": altered(classes=["a"]), "class names": altered(classes=[1, 2, 3]),
    "accuracy": altered(accuracy={"last": {"top1": "good"}}), "accuracy 2": altered(accuracy=[9]), "accuracy 3": altered(accuracy={}),
    "data": altered(data={"a": 1}), "data path": altered(data_path=7),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_sound_checkpoint_is_one_line(kind, tmp_path, shell, folder):
    path = tmp_path / "pretrained/ebt/shapes/vgg-w0.125.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(HOSTILE[kind])
    before = files(tmp_path)
    for command in (("eval.py", "--model_path", path, "--test_acc", "True", "--compression", "True",
                     "--data_path", folder),
                    ("main.py", "--preset=test", "--width=0.125", f"--data_path={folder}",
                     "--ebt=True", "--image_size=16", "--pretrained=True", "--pruning_type=l1",
                     "--prune_percent=20")):
        ended = shell(*command, cwd=tmp_path)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, (ended, kind)
        assert str(path.name) in ended.stderr
        assert files(tmp_path) == before and not (tmp_path / "pwned").exists()


def test_a_sound_file_of_something_else_is_one_line(tmp_path, shell, folder):
    path = tmp_path / "net.pth"
    save_checkpoint(path, small(), {"image_size": 24, "classes": ["x", "y", "z"]})
    for flags, message in (
            (("--model", "resnet"), "--model=resnet is wrong"), (("--pruned", "True"), "--pruned=True is wrong"),
            (("--num_classes", "10"), "--num_classes=10 is wrong"),
            (("--test_acc", "True", "--data_path", folder), "has no test images of the network's classes (x, y, z)"),
            (("--test_acc", "True", "--data_path", "digits"), "for 3 classes; digits has 10")):
        ended = shell("eval.py", "--model_path", path, "--flops=True", *flags, cwd=tmp_path)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and message in ended.stderr
    for missing in ("missing.pth", tmp_path, "/dev/null", "a" * 300):
        ended = shell("eval.py", "--model_path", missing, "--flops=True", cwd=tmp_path)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr


damages = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, len(WHOLE) - 1)),
    st.tuples(st.just("bytes"), st.lists(st.tuples(st.integers(0, len(WHOLE) - 1),
                                                   st.integers(1, 255)), min_size=1, max_size=30)),
    st.tuples(st.just("random"), st.binary(max_size=400)),
    st.tuples(st.just("tail"), st.binary(min_size=1, max_size=400)))


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
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(),
                                                     original.state_dict().values(), strict=True))


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
    flags = {"eval.py": ("--model_path", name, "--eval_ortho", "True", "--compression", "True"),
             "main.py": ("--preset=test", "--width=0.125", f"--data_path={folder}", "--ebt=True",
                         "--image_size=8", "--pretrained=True", "--pruning_type=random",
                         "--prune_percent=20")}[script]
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

    counters = {f"module.{name}": torch.zeros(1, dtype=torch.double)
                for name in ("total_ops", "layer1.total_params")}
    return {"bare": state, "published": {"net": under("module."), "acc": 93.1},
            "compiled": {"state_dict": under("_orig_mod.")},
            "compiled, in parallel": {"model": under("module._orig_mod.")},
            "average": {"model_ema": {"n_averaged": torch.tensor(3), **under("module.")}},
            "counted": {"net": {**under("module."), **counters}},
            "lightning": {"state_dict": under("model.net."), "epoch": 3, "callbacks": {}},
            "reference": {"model": state, "epoch": 9, "args": argparse.Namespace(lr=0.1, out=Path("x")),
                          "more": types.SimpleNamespace(a=[1])}}[kind]


@pytest.mark.parametrize("kind", ["bare", "published", "compiled", "compiled, in parallel", "average",
                                  "counted", "lightning", "reference"])
def test_weights_are_found_in_all_their_wrappings(kind, tmp_path, images):
    theirs, path = build_model("resnet-56", 4), tmp_path / "net.pth"
    torch.save(wrapped(kind, theirs.state_dict()), path)
    model, record = load_checkpoint(path)
    assert record.num_classes == 4 and not record.pruned
    with torch.no_grad():
        assert torch.equal(model.eval()(images), theirs.eval()(images))
    fresh = build_model("resnet-56", 4)
    assert initialise(fresh, path) == [f"from {path}: 100.0% of the weights"]
    with torch.no_grad():
        assert torch.equal(fresh.eval()(images), theirs(images))


def test_what_cannot_be_read_safely_is_named(tmp_path):
    state, path = build_model("vgg", 4, 1 / 8).state_dict(), tmp_path / "net.pth"
    torch.save({f"{who}.{key}": tensor for who in ("student", "teacher")
                for key, tensor in state.items()}, path)
    with pytest.raises(InputError, match="several networks, under student. and teacher."):
        load_checkpoint(path)
    torch.save({"net": state, "config": collections.defaultdict(list)}, path)
    with pytest.raises(InputError, match="it holds .*collections.defaultdict"):
        load_checkpoint(path)
    torch.save({"model_state_dict": state}, path)
    assert initialise(build_model("vgg", 4, 1 / 8), path) == [f"from {path}: 100.0% of the weights"]
    torch.save({"nets": state, "epoch": 3}, path)
    with pytest.raises(InputError, match="no state dict, neither bare nor under .*; it has 'nets', 'epoch'"):
        load_checkpoint(path)
    torch.save({"net": {**state, "criterion.weight": torch.ones(3)}}, path)
    with pytest.raises(InputError, match="for vgg criterion.weight is none of its weights"):
        load_checkpoint(path)
    for content, says in ((gzip.compress(b"x"), "packed by gzip"), (b"<!DOCTYPE html>", "a web page")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=says):
            load_checkpoint(path)
    for entries, says in (({"normalize": [.5] * 3}, "not three means"), ({"white": {"integer": 0.}}, "not above 0"),
                          ({"normalize": [.5] * 5 + [0.]}, "not three means")):
        save_checkpoint(path, build_model("vgg", 4, 1 / 8), entries)
        with pytest.raises(InputError, match=says):
            load_checkpoint(path)
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(InputError, match="a tar file, as PyTorch wrote until 2017"):
        load_checkpoint(path)


@pytest.mark.parametrize("unusual", [
    lambda t: t.to(torch.float8_e4m3fn), lambda t: t.to_sparse(), lambda t: t.to(torch.complex64),
    lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    lambda t: torch.nested.nested_tensor([t, t]), lambda t: t.to("meta")])
def test_tensors_of_unusual_kinds_are_taken_or_named(unusual, tmp_path):
    state, path = build_model("vgg", 4, 1 / 8).state_dict(), tmp_path / "net.pth"
    state["features.3.weight"] = unusual(state["features.3.weight"])
    torch.save(state, path)
    model = build_model("vgg", 4, 1 / 8)
    try:
        assert initialise(model, path)[0].endswith("100.0% of the weights")
        assert model.features[3].weight.isfinite().all()
    except InputError as error:
        assert "features.3.weight is not a plain tensor" in str(error) or "not a readable" in str(error)
    # Also where it would be folded: the BatchNorm of a torchvision VGG.
    with torch.device("meta"):
        shapes = torchvision.models.vgg13_bn().features.state_dict()
    state = {f"features.{key}": torch.rand(tensor.shape) for key, tensor in shapes.items()}
    state["features.1.running_var"] = unusual(state["features.1.running_var"])
    torch.save(state, path)
    try:
        lines = initialise(build_model("vgg", 4), path)
        assert any("BatchNorm" in line for line in lines)
    except InputError as error:
        assert "not a readable" in str(error)


def test_a_bare_file_of_torchvision_is_measured_where_its_network_is_named(tmp_path):
    theirs, path = torchvision.models.resnet18(num_classes=5), tmp_path / "net.pth"
    torch.save(theirs.state_dict(), path)
    model, record = load_checkpoint(path, "resnet18")
    assert record.num_classes == 5
    assert torch.equal(model.fc.weight, theirs.fc.weight)
