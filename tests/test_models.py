"""The four networks are the published ones, and can be rebuilt from their widths."""

import copy

import pytest
import torch

from channels.costs import measure_cost
from channels.groups import filter_groups, widths_of
from conftest import WIDTH, narrow
from models import build_model
from pruner import rebuild

PUBLISHED = {  # parameters, FLOPs, prunable layers, filters at 100 classes, one 32 x 32 image
    "vgg": (9_462_180, 456_626_176, 10, 2_944),
    "mobilenet": (3_309_476, 92_893_184, 27, 10_944),
    "resnet": (21_328_292, 2_318_897_152, 36, 8_512),
    "resnet-56": (861_620, 251_507_200, 57, 2_128),
}


@pytest.mark.parametrize("name", WIDTH)
def test_size_is_the_published_one(name):
    with torch.device("meta"):
        model = build_model(name)
    cost = measure_cost(model)
    layers = sum(max(group.costs) for group in filter_groups(model))
    assert (cost["parameters"], cost["flops"], layers, cost["filters"]) == PUBLISHED[name]
    assert cost["macs"] * 2 == cost["flops"]


def bn(name):
    return [
        f"{name}.{key}"
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]


def block(name, shortcut):
    keys = [f"{name}.conv1.weight", *bn(f"{name}.bn1"), f"{name}.conv2.weight", *bn(f"{name}.bn2")]
    return keys + ([f"{name}.shortcut.0.weight", *bn(f"{name}.shortcut.1")] if shortcut else [])


def published_keys(name):
    """The published state dict's keys in order, written down from the architecture."""
    head = ["linear.weight", "linear.bias"]
    if name == "vgg":
        convs = (0, 3, 7, 10, 14, 17, 21, 24, 28, 31)
        return [
            key
            for i in convs
            for key in (f"features.{i}.weight", f"features.{i}.bias", *bn(f"features.{i + 2}"))
        ] + ["classifier.weight", "classifier.bias"]
    stem = ["conv1.weight", *bn("bn1")]
    if name == "mobilenet":
        return stem + [key for i in range(13) for key in block(f"layers.{i}", False)] + head
    stages = (3, 4, 6, 3) if name == "resnet" else (9, 9, 9)
    return (
        stem
        + [
            key
            for s, count in enumerate(stages, 1)
            for i in range(count)
            for key in block(f"layer{s}.{i}", shortcut=s > 1 and i == 0)
        ]
        + head
    )


@pytest.mark.parametrize("name", WIDTH)
def test_parameter_names_and_order_are_the_published_ones(name):
    with torch.device("meta"):
        assert list(build_model(name).state_dict()) == published_keys(name)


def test_vgg_normalises_after_the_relu():
    model = narrow("vgg")
    kinds = [type(module).__name__ for module in model.features[:7]]
    assert kinds == ["Conv2d", "ReLU", "BatchNorm2d"] * 2 + ["MaxPool2d"]
    assert model.features[0].bias is not None


@pytest.mark.parametrize("size", [1, 8, 33, 64])
def test_any_image_size_and_number_of_classes(network, size):
    model = build_model(network.origin.name, 7, network.origin.width).eval()
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_a_network_is_rebuilt_from_its_widths(network):
    origin = network.origin
    twin = rebuild(build_model(origin.name, origin.num_classes, origin.width), widths_of(network))
    twin.load_state_dict(network.state_dict(), strict=True)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(twin.eval()(images), network(images))


def test_filter_groups_of_a_copy_belong_to_the_copy(network):
    twin = copy.deepcopy(network)
    ours = {id(module) for module in network.modules()}
    assert not any(id(m) in ours for g in filter_groups(twin) for m in (g.conv, g.bn))


def test_every_reader_of_a_stream_has_as_many_inputs_as_the_stream(network):
    read = set()
    for group in filter_groups(network):
        for name in group.stream.readers:
            module = network.get_submodule(name)
            inputs = getattr(module, "in_channels", None) or module.in_features
            assert inputs == group.stream.width
            read.add(name)
    layers = {
        name
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
        or isinstance(module, torch.nn.Conv2d)
        and module.groups == 1
        and module.in_channels > 3
    }
    assert read == layers


def test_the_strided_shortcut_is_a_strided_convolution():
    block, stream = narrow("resnet").layer2[0], torch.randn(3, 8, 16, 16)
    conv, norm = block.shortcut
    strided = torch.nn.functional.conv2d(stream, conv.weight, stride=2)
    inner = block.bn2(block.conv2(block.bn1(block.conv1(stream)).relu()))
    torch.testing.assert_close(block(stream), (norm(strided) + inner).relu())


@pytest.mark.parametrize(
    "widths",
    [
        {"conv9": 3},
        {"layer1.0.conv1": 0},
        {"layer1.0.conv1": -1},
        {"layer2.0.conv2": [1, 1]},
        {"layer1.0.conv2": [0, 99]},
        {"layer2.0.shortcut.0": [40]},
    ],
)
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError):
        rebuild(build_model("resnet", 4, width=1 / 8), widths)


def test_unknown_network_names_the_known_ones():
    with pytest.raises(ValueError, match="vgg, mobilenet, resnet, resnet-56"):
        build_model("alexnet")
