"""What can be pruned is found in any network's graph, and what is cut computes what it should."""
import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from conftest import WIDTH, narrow
from imp_estimator import cal_importance
from models import (
    all_filters,
    build_model,
    filter_groups,
    measure_cost,
    remains_of,
    stays_text,
    widths_of,
)
from pruner import Masked, check, cut, prune, rebuild, select_filters
from zoo import difference, removable_filters, settle


def conv(inputs, outputs, size=3, stride=1, groups=1, bias=False):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)


def conv_bn(inputs, outputs, *args, **kwargs):
    return nn.Sequential(conv(inputs, outputs, *args, **kwargs), nn.BatchNorm2d(outputs), nn.ReLU())


class Net(nn.Module):
    """A stem, a body that subclasses give, and a classifier."""
    channels = 16

    def __init__(self, num_classes=4):
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.build()
        self.head = nn.Linear(self.channels, num_classes)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class ConcatenatedConcatenations(Net):
    channels = 40

    def build(self):
        self.a, self.b, self.c = conv_bn(16, 12), conv_bn(28, 12), conv_bn(40, 8)

    def body(self, x):
        x = torch.cat([x, self.a(x)], 1)
        x = torch.cat([self.b(x), x], 1)
        return torch.cat([torch.cat([x[:, :16], self.c(x)], 1), x[:, 24:]], 1)


class SplitAndJoined(Net):
    def build(self):
        self.a, self.b, self.c = conv_bn(8, 8), conv_bn(4, 4), conv_bn(16, 16)

    def body(self, x):
        one, two = x.chunk(2, 1)
        left, right = torch.split(self.a(two), [4, 4], 1)
        return self.c(torch.cat([one, self.b(left), right], 1))


class Shuffled(Net):
    def build(self):
        self.a, self.b = conv_bn(16, 16, groups=16), conv_bn(16, 16)

    def body(self, x):
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)
        return self.b(self.a(x)) + x


class Bare(Net):
    """Convolutions with biases, without BatchNorm; one of them before a BatchNorm of two."""
    channels = 24

    def build(self):
        self.a, self.b, self.c = conv(16, 12, bias=True), conv(12, 12, bias=True), conv(24, 24)
        self.norm = nn.BatchNorm2d(24)

    def body(self, x):
        x = F.relu(self.a(x))
        return self.c(F.relu(self.norm(torch.cat([x, self.b(x)], 1))))


class BatchNormFirst(Net):
    def build(self):
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(4))
        self.convs = nn.ModuleList(conv(16, 16) for _ in range(4))

    def body(self, x):
        for k in (0, 2):
            out = self.convs[k](F.relu(self.norms[k](x)))
            x = x + self.convs[k + 1](F.relu(self.norms[k + 1](out)))
        return x


class ReadTwice(Net):
    """One layer's output is read as it is, and as a part of a sum."""
    channels = 28

    def build(self):
        self.a, self.b, self.c = conv_bn(16, 16), conv_bn(16, 16), conv_bn(16, 12)

    def body(self, x):
        y = self.a(x)
        return torch.cat([self.c(y), y + self.b(x)], 1)


class UsedTwice(Net):
    def build(self):
        self.a, self.b = conv_bn(16, 16), conv_bn(16, 16)

    def body(self, x):
        return self.b(self.a(self.a(x)))


class Gated(Net):
    """A residual block around a squeeze-excitation of linear layers."""
    def build(self):
        self.a, self.b = conv_bn(16, 24), conv_bn(24, 16)
        self.squeeze, self.excite = nn.Linear(24, 6), nn.Linear(6, 24)

    def body(self, x):
        y = self.a(x)
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        return x + self.b(y * scale.view(scale.size(0), 24, 1, 1).expand_as(y))


class SpatiallyGated(Net):
    def build(self):
        self.a, self.gate = conv_bn(16, 16), conv(16, 1, bias=True)

    def body(self, x):
        x = self.a(x)
        return x * torch.sigmoid(self.gate(x))


class FlattenedPixels(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 16), nn.AdaptiveAvgPool2d(3), conv_bn(16, 12))
        self.hidden, self.head = nn.Linear(12 * 9, 10), nn.Linear(10, num_classes)

    def forward(self, x):
        x = self.body(x)
        return self.head(F.dropout(F.relu(self.hidden(x.view(x.size(0), 12 * 9))), 0.5,
                                   self.training))


def unnamed(num_classes=4):
    return nn.Sequential(conv_bn(3, 12), conv_bn(12, 12, stride=2), nn.Sequential(conv_bn(12, 8)),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


class Transposed(Net):
    def build(self):
        self.a, self.up, self.b = conv_bn(16, 16), nn.ConvTranspose2d(16, 16, 2, 2), conv_bn(16, 16)

    def body(self, x):
        return self.b(self.up(self.a(x)))


class Functional(Net):
    def build(self):
        self.a, self.b = conv_bn(16, 16), conv_bn(16, 16)
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3) / 12)

    def body(self, x):
        return self.b(F.conv2d(self.a(x), self.weight, padding=1))


class Scaled(Net):
    """A learned scale and shift for each channel, as in LayerScale."""
    def build(self):
        self.a, self.b = conv_bn(16, 16), conv_bn(16, 16)
        self.gamma = nn.Parameter(torch.rand(16, 1, 1) + 0.5)
        self.beta = nn.Parameter(torch.randn(1, 16, 1, 1))

    def body(self, x):
        return x + self.gamma * self.b(self.a(x)) + self.beta


class GroupNormed(Net):
    def build(self):
        self.a, self.norm, self.b = conv(16, 16), nn.GroupNorm(4, 16), conv_bn(16, 16, groups=2)
        self.last = conv_bn(16, 16)

    def body(self, x):
        return self.last(self.b(F.relu(self.norm(self.a(x)))))


class GroupNormedWhole(GroupNormed):
    def build(self):
        super().build()
        self.norm = nn.GroupNorm(1, 16)


# network -> what of it stays whole, beside what the graph can't know
STRUCTURES = {
    ConcatenatedConcatenations: {}, SplitAndJoined: {}, Shuffled: {}, Bare: {}, BatchNormFirst: {},
    ReadTwice: {}, UsedTwice: {}, Gated: {}, FlattenedPixels: {}, unnamed: {}, Scaled: {},
    GroupNormed: {}, SpatiallyGated: {"gate": "mul spreads it over other channels"},
    Transposed: {"a.0": "ConvTranspose2d mixes them"}, Functional: {"a.0": "conv2d mixes them"},
    GroupNormedWhole: {"a": "GroupNorm mixes them", "b.0": "they go with what stays"}}


@pytest.fixture(params=STRUCTURES, ids=lambda kind: kind.__name__)
def odd(request):
    torch.manual_seed(0)
    return settle(request.param()).double(), STRUCTURES[request.param]


def images_of(model, count=2):
    return torch.randn(count, *remains_of(model).structure.image_shape,
                       generator=torch.Generator().manual_seed(2)).to(next(model.parameters()))


def test_what_stays_is_named_and_all_else_can_go(odd):
    model, stays = odd
    filter_groups(model)
    structure = remains_of(model).structure
    assert {name: why for name, (_, _, why) in structure.stays.items()} == stays
    can, count = removable_filters(model, structure)
    modules = dict(model.named_modules())
    assert count - can == sum(modules[name].out_channels for name in stays)
    assert len(stays_text(structure)) == len(stays)


@pytest.mark.parametrize("residual", ["single", "coupled"])
def test_odd_structures_compute_what_they_do_with_filters_at_zero(odd, residual):
    model, _ = odd
    for percent, seed in itertools.product((25, 50, 75), range(2)):
        scores = cal_importance(model, "random", seed=seed)
        kept = select_filters(model, scores, percent, residual=residual)
        small = prune(model, kept)
        assert difference(model, small, kept, images_of(model)) < 1e-12
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
        again = prune(small, select_filters(small, scores_like(small), percent + 10))
        assert widths_of(again).keys() == widths_of(model).keys()


def scores_like(model):
    return cal_importance(model, "random", seed=5)


def test_a_cut_network_is_rebuilt_from_its_widths_and_its_weights(odd):
    model, _ = odd
    small = prune(model, select_filters(model, scores_like(model), 50))
    twin = rebuild(copy.deepcopy(model), widths_of(small))
    twin.load_state_dict(small.state_dict(), strict=True)
    images = images_of(model)
    with torch.no_grad():
        assert torch.equal(twin(images), small(images))
    assert measure_cost(twin, images.shape[-1]) == measure_cost(small, images.shape[-1])


def test_gradients_reach_all_that_is_left(odd):
    model, _ = odd
    small = prune(model, select_filters(model, scores_like(model), 50)).train()
    small(images_of(model, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


# ------------------------------------------------------------------------------- the four networks


def expected_groups(model):
    """[(name, its BatchNorm, cost, stream, readers, protected)], from the architecture's text."""
    name, modules = model.origin.name, dict(model.named_modules())
    convs = [n for n, m in modules.items() if isinstance(m, nn.Conv2d)]
    if name == "vgg":
        return [(n, f"features.{int(n.split('.')[1]) + 2}", 1, n, (reader,), False)
                for n, reader in zip(convs, convs[1:] + ["classifier"])]
    if name == "mobilenet":
        writers = ["conv1", *(f"layers.{i}.conv2" for i in range(13))]
        readers = [*(f"layers.{i}.conv2" for i in range(13)), "linear"]
        return [(n, n.replace("conv", "bn"), 1 if reader == "linear" else 2, n, (reader,), False)
                for n, reader in zip(writers, readers)]
    found = []
    for n in convs:
        stage, _, rest = n.partition(".")
        if rest.endswith("conv1"):
            found.append((n, n.replace("conv", "bn"), 1, n, (n.replace("conv1", "conv2"),), False))
            continue
        stage = "layer1" if n == "conv1" else stage
        blocks = len(model.get_submodule(stage))
        following = f"layer{int(stage[-1]) + 1}"
        readers = tuple(f"{stage}.{i}.conv1" for i in range(stage != "layer1", blocks)) + (
            (f"{following}.0.conv1", f"{following}.0.shortcut.0") if following in modules
            else ("linear",))
        norm = n.replace("shortcut.0", "shortcut.1").replace("conv", "bn")
        found.append((n, norm, 1, stage, readers, n == "conv1"))
    return found


def test_the_four_networks_lists_are_those_of_their_architectures(network):
    modules = {module: name for name, module in network.named_modules()}
    found = [(g.name, modules[g.bn], g.cost, g.stream.name, g.stream.readers, g.protected)
             for g in filter_groups(network)]
    assert found == expected_groups(network)
    for group in filter_groups(network):
        assert group.channels == list(range(group.dense)) == list(range(group.stream.width))
        assert network.get_submodule(group.name) is group.conv and len(set(group.costs)) == 1


def test_masks_at_the_readers_are_masks_of_the_batchnorms(network):
    from conftest import masked as zeroed
    kept = select_filters(network, cal_importance(network, "random"), 50)
    masked, images = Masked(network), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(masked.network(images), network(images))
        masked.keep(kept)
        torch.testing.assert_close(masked.network(images), zeroed(network, kept)(images),
                                   rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("percent", [0, 60])
def test_costs_are_those_that_torch_counts(network, percent):
    model = prune(network, select_filters(network, cal_importance(network, "random"), percent))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 24, 24))
    cost = measure_cost(model, 24)
    assert cost["flops"] == counter.get_total_flops() == 2 * sum(cost["layer_macs"].values())
    assert cost["parameters"] == sum(p.numel() for p in model.parameters())
    assert measure_cost(model, 24, all_filters(model)) == measure_cost(network, 24)


# ---------------------------------------------------------------------------- coupled and the check


def test_coupled_writers_leave_together_by_the_sum_of_their_scores():
    model = narrow("resnet")
    groups = filter_groups(model)
    scores = {g.name: torch.full((len(g.channels),), 10.0) for g in groups}
    writers = [g.name for g in groups if g.stream.name == "layer2"]
    for name in writers:  # channel 3 is worth less than channel 5 in all, but not in each layer
        scores[name][3], scores[name][5] = 1.0, 2.0
    scores[writers[0]][3], scores[writers[0]][5] = 3.0, 0.0
    count = sum(len(g.channels) for g in groups)
    kept = select_filters(model, scores, 100 * len(writers) / count, residual="coupled")
    gone = {n: set(range(16)) - set(kept[n].tolist()) for n in writers}
    assert all(filters == {3} for filters in gone.values())
    small = prune(model, kept)
    assert not any("_left_" in name for name, _ in small.named_buffers())  # no indexed additions
    assert {g.stream.width for g in filter_groups(small) if g.stream.name == "layer2"} == {15}
    single = select_filters(model, scores, 100 / count)
    assert 5 not in single[writers[0]] and all(5 in single[n] for n in writers[1:])


def test_a_stream_whose_first_convolution_is_protected_stays_whole_where_it_is_coupled():
    model = narrow("resnet")
    kept = select_filters(model, cal_importance(model, "random"), 60, residual="coupled")
    for group in filter_groups(model):
        if group.stream.name == "layer1":
            assert len(kept[group.name]) == group.dense


def test_a_wrong_cut_is_an_error_that_names_where_it_begins():
    torch.manual_seed(0)
    model = settle(Gated())
    kept = select_filters(model, scores_like(model), 50)
    small = cut(model, {n: all_filters(model)[n][i] for n, i in kept.items()})
    check(model, small, kept)
    with torch.no_grad():
        small.b[0].weight.mul_(1.01)
    with pytest.raises(ValueError, match=r"b\.0 computes something else"):
        check(model, small, kept)


def test_a_network_that_computes_by_its_values_is_refused():
    class Lucky(Net):
        def build(self):
            self.a = conv_bn(16, 16)

        def body(self, x):
            return self.a(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match="Lucky cannot be traced.*control flow"):
        filter_groups(Lucky())


def test_what_is_decided_by_sizes_is_decided_as_for_the_images():
    class Large(Net):
        def build(self):
            self.a = conv_bn(16, 16)

        def body(self, x):
            assert x.shape[1] == 16
            return self.a(x) if x.shape[-1] > 40 else x

    model = settle(Large())
    assert [len(filter_groups(copy.deepcopy(model), size)) for size in (64, 32)] == [2, 1]
    filter_groups(model, 32)
    with pytest.raises(ValueError, match="decides by the shape of its images"):
        prune(model, select_filters(model, scores_like(model), 50), torch.randn(2, 3, 64, 64))


def test_other_outputs_in_training_are_refused():
    class Auxiliary(Net):
        def build(self):
            self.a = conv_bn(16, 16)

        def body(self, x):
            return self.a(x)

        def forward(self, x):
            return (super().forward(x), x) if self.training else super().forward(x)

    with pytest.raises(ValueError, match="in training"):
        filter_groups(Auxiliary())


def test_dropout_by_its_function_still_knows_training_after_a_cut():
    torch.manual_seed(0)
    model = settle(FlattenedPixels())
    small = prune(model, select_filters(model, scores_like(model), 50))
    assert type(small).forward is not FlattenedPixels.forward  # its view has another size
    images = images_of(model)
    with torch.no_grad():
        assert torch.equal(small(images), small(images))
        assert not torch.equal(small.train()(images), small(images))


def test_a_network_without_convolutions_is_an_error():
    with pytest.raises(ValueError, match="nothing can be pruned"):
        filter_groups(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 4)))


@pytest.mark.parametrize("name", WIDTH)
def test_a_cut_of_the_four_is_not_slowed_by_a_check(name, monkeypatch):
    monkeypatch.setattr("pruner.check", lambda *_: pytest.fail("checked"))
    model = build_model(name, 4, width=WIDTH[name])
    prune(model, select_filters(model, scores_like(model), 30))
