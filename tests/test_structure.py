"""What can be pruned is found in any network's graph, and what is cut computes what it should."""

import copy
import itertools

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.ops import FrozenBatchNorm2d

import fuzz
from channels import structure
from channels.checking import Masked, check
from channels.costs import filter_costs, measure_cost
from channels.groups import (
    all_filters,
    filter_count,
    filter_groups,
    fixed_text,
    remains_of,
    widths_of,
)
from channels.lowering import lower
from channels.traits import traits_of
from conftest import ROOT, WIDTH, narrow
from imp_estimator import cal_importance
from models import build_model
from pruner import (
    SelectAgain,
    cut,
    explore,
    measure_losses,
    prune,
    pruned_percent,
    rebuild,
    select_filters,
)
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
        self.norms = nn.ModuleList(nn.BatchNorm2d(16, affine=False) for _ in range(4))
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
        return self.head(
            F.dropout(F.relu(self.hidden(x.view(x.size(0), 12 * 9))), 0.5, self.training)
        )


def unnamed(num_classes=4):
    return nn.Sequential(
        conv_bn(3, 12),
        conv_bn(12, 12, stride=2),
        nn.Sequential(conv_bn(12, 8)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )


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


class PixelShuffled(Net):
    """Four filters are one channel of larger images, with a layer between and without."""

    channels = 12

    def build(self):
        self.a, self.b, self.c = conv(16, 32), conv_bn(8, 12), conv(12, 48)
        self.shuffle = nn.PixelShuffle(2)

    def body(self, x):
        x = self.b(F.relu(self.shuffle(self.a(x))))
        return F.pixel_shuffle(self.c(x), 2) + F.interpolate(x, scale_factor=2)


class DepthToSpace(Net):
    channels = 16

    def build(self):
        self.a, self.b = conv(16, 32), conv_bn(8, 16)

    def body(self, x):
        n, c, h, w = (x := self.a(x)).shape
        x = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
        return self.b(F.relu(x))


class SpaceToDepth(Net):
    """Each channel becomes four of smaller images, in the order of the pixels."""

    channels = 64

    def build(self):
        self.a, self.b = conv(16, 16), conv_bn(64, 64)

    def body(self, x):
        n, c, h, w = (x := self.a(x)).shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return self.b(F.relu(x.reshape(n, 4 * c, h // 2, w // 2)))


class Scrambled(Net):
    """Rows of pixels become channels, each with all of the channels that were."""

    def build(self):
        self.a, self.b = conv(16, 12), conv_bn(12, 16)

    def body(self, x):
        n, c, h, w = (x := self.a(x)).shape
        return self.b(F.relu(x.transpose(1, 2).reshape(n, c, h, w)))


@fx.wrap
def add(x, y):
    """A user's own function, called as torch's."""
    return x + y.flip(1)


class OwnFunction(Net):
    def build(self):
        self.a, self.b = conv_bn(16, 16), conv_bn(16, 16)

    def body(self, x):
        return self.b(add(x, self.a(x)))


class Blended(Net):
    def build(self):
        self.a, self.b, self.c = conv(16, 16, bias=True), conv(16, 16, bias=True), conv_bn(16, 16)

    def body(self, x):
        return self.c(torch.lerp(self.a(x), self.b(x), 0.3))


# network -> what of it stays whole, beside what the graph can't know
STRUCTURES = {
    PixelShuffled: {},
    DepthToSpace: {},
    SpaceToDepth: {},
    Scrambled: {"a": "reshape mixes them"},
    OwnFunction: {"stem.0": "add mixes them", "a.0": "add mixes them"},
    ConcatenatedConcatenations: {},
    SplitAndJoined: {},
    Shuffled: {},
    Blended: {},
    Bare: {},
    BatchNormFirst: {},
    ReadTwice: {},
    UsedTwice: {},
    Gated: {},
    FlattenedPixels: {},
    unnamed: {},
    Scaled: {},
    GroupNormed: {},
    SpatiallyGated: {"gate": "mul spreads it over other channels"},
    Transposed: {},
    Functional: {"a.0": "conv2d mixes them"},
    GroupNormedWhole: {"a": "GroupNorm mixes them", "b.0": "they go with what stays"},
}


@pytest.fixture(params=STRUCTURES, ids=lambda kind: kind.__name__)
def odd(request):
    torch.manual_seed(0)
    return settle(request.param()).double(), STRUCTURES[request.param]


def images_of(model, count=2):
    return torch.randn(
        count, *remains_of(model).structure.image_shape, generator=torch.Generator().manual_seed(2)
    ).to(next(model.parameters()))


def test_what_stays_is_named_and_all_else_can_go(odd):
    model, stays = odd
    filter_groups(model)
    structure = remains_of(model).structure
    assert {name: why for name, (_, _, why) in structure.fixed.items()} == stays
    can, count = removable_filters(model, structure)
    modules = dict(model.named_modules())
    assert count - can == sum(
        modules[name].out_channels for name in stays if isinstance(modules[name], nn.Conv2d)
    )
    assert len(fixed_text(structure)) == len(stays)


def test_the_example_of_the_page_on_channels_has_its_numbers():
    page = (ROOT / "channels/README.md").read_text()
    code = page.split("```python\n")[1].partition("```")[0]
    names = {}
    exec(code, names)
    found, numbers = names["structure"], {}
    for node in found.graph.nodes:
        if traits_of(node).channels:
            numbers[node.name] = traits_of(node).channels[1].tolist()
    assert numbers["images"] == [0, 0, 0] and numbers["a"] == [1, 2] and numbers["b"] == [3, 4]
    assert numbers["add"] == numbers["mean"] == numbers["mul"] == [5, 6]
    assert numbers["gate"] == numbers["sigmoid"] == [7, 8]
    assert numbers["head"] == list(range(9, 19)) and found.root[[7, 8]].tolist() == [5, 6]
    for of_a, of_b, dead in (([0, 1], [1], [3]), ([1], [1], [1, 3, 5, 7])):
        alive = found.alive({"a": torch.tensor(of_a), "b": torch.tensor(of_b)})
        assert (~alive).nonzero().flatten().tolist() == dead


def test_the_four_filters_of_a_shuffled_pixel_leave_together():
    model = PixelShuffled()
    structure = remains_of(model).structure
    four = [[("a", 4 * k + i) for i in range(4)] for k in range(8)]
    assert [unit for unit in structure.units if unit[0][0] == "a"] == four
    with pytest.raises(ValueError, match="filter 0 of a only leaves together with 3 others"):
        cut(model, all_filters(model) | {"a": torch.arange(1, 32)})


@pytest.mark.parametrize("residual", ["single", "coupled"])
def test_odd_structures_compute_what_they_do_with_filters_at_zero(odd, residual):
    model, _ = odd
    images = images_of(model)
    with torch.no_grad():
        assert torch.allclose(lower(model, images)(images), model(images), rtol=1e-9, atol=1e-12)
    for percent, seed in itertools.product((25, 50, 75), range(2)):
        scores = cal_importance(model, "random", seed=seed)
        kept = select_filters(model, scores, percent, residual=residual)
        small = prune(model, kept)
        assert difference(model, small, kept, images) < 1e-12
        with torch.no_grad():  # in plain operators, for other runtimes
            assert torch.allclose(
                lower(small, images)(images), small(images), rtol=1e-9, atol=1e-12
            )
        assert sum(p.numel() for p in small.parameters()) < sum(
            p.numel() for p in model.parameters()
        )
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


# ------------------------------------------------------------- sums, gates, sizes, changes in place


class Written(nn.Module):
    """Two convolutions and a classifier, which a body puts together with further layers."""

    def __init__(self, body, **layers):
        super().__init__()
        self.a, self.b, self.head = conv(3, 8, bias=True), conv(8, 8, bias=True), nn.Linear(8, 4)
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.head(self.body(self, x).mean((2, 3)))


def excite(net, x):
    return x * net.excitation(x.mean((2, 3)))[:, :, None, None]


def chosen(net, x):
    x, y = net.a(x), net.c(x)
    share = net.d((x + y).mean((2, 3), keepdim=True)).sigmoid()
    return net.b(x * share + y * (1 - share))


def read_as_well(net, x):
    x = net.a(x)
    gate = net.d(x)
    return net.b(x * gate.sigmoid()) + net.c(gate)


def attention(net, x):
    x = net.a(x)
    n, count, height, width = x.shape
    q, k, v = net.qkv(x).reshape(n, 3, count, height * width).unbind(1)
    mixed = v @ (q.transpose(1, 2) @ k).softmax(-1)
    return x + net.b(mixed.view(n, count, height, width))


def modulated(net, x):
    x = net.a(x)
    scale, shift = net.e(x.mean((2, 3))).view(-1, 2, 8, 1, 1).unbind(1)
    return net.b(x) * scale + shift


def written_in_part(net, x):
    x = net.a(x)
    x[:, 2].add_(1)
    return net.b(x)


def relu_ignored(net, x):
    x = net.a(x)
    F.relu(x, inplace=True)
    return x + net.b(x)


def over_count(net, x):
    x = net.a(x)
    return net.b(x / x.shape[1] ** 0.5)


def skips(net, x):
    assert (x := net.a(x)).shape[1] == 8 and len(x.shape) == 4
    return x + y if x.shape == (y := net.b(x)).shape else y


def perceptron(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))


def on_tokens(block):
    """A body that adds what a block makes of an image's pixels, as N x T x C tokens."""

    def body(net, x):
        x = net.a(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + block(net, tokens)
        return net.b(tokens.transpose(1, 2).reshape(x.size(0), -1, *x.shape[2:]))

    return body


def mixer(net, tokens):
    """Of MLP-Mixer: a layer along tokens, then one along channels."""
    mixed = net.d(net.c(net.norm(tokens).transpose(1, 2)).relu()).transpose(1, 2)
    return mixed + net.e(net.norm(tokens + mixed))


def gated_in_halves(net, tokens):
    value, gate = net.c(tokens).chunk(2, -1)
    return net.d(F.silu(gate) * value)


def heads_of(net, tokens, heads=4):
    """Queries, keys and values, N x heads x T x 3 each, as timm splits them."""
    n, count, _ = tokens.shape
    return net.c(tokens).reshape(n, count, 3, heads, 3).permute(2, 0, 3, 1, 4).unbind(0)


def attend_by_function(net, tokens):
    q, k, v = heads_of(net, tokens)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return net.d(mixed.reshape(*tokens.shape[:2], -1))


def attend_with_a_bias(net, tokens):
    """A mask for all heads, and a bias that another layer makes for each."""
    n, count, _ = tokens.shape
    q, k, v = heads_of(net, tokens)
    bias = net.e(net.table).view(count, count, 4).permute(2, 0, 1).sigmoid()
    first = F.scaled_dot_product_attention(q, k, v, attn_mask=net.mask)
    second = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    return net.d((first + second).transpose(1, 2).reshape(n, count, -1))


def attend_with_a_table(net, tokens):
    q, k, v = heads_of(net, tokens)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=net.table)
    return net.d(mixed.transpose(1, 2).flatten(2))


def attend_by_hand(net, tokens):
    """With a norm over each head, a mask, and a learned factor for each head."""
    q, k, v = heads_of(net, tokens)
    weights = (net.norm(q) * 3**-0.5) @ net.norm(k).transpose(-2, -1) * net.factors + net.mask
    mixed = (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return net.d(mixed)


def attend_apart(net, tokens):
    """Queries, keys and values of a layer each; keys are added to by another one, for each head."""
    n, count, _ = tokens.shape
    q, k, v = (
        layer(tokens).unflatten(2, (4, 3)).transpose(1, 2) for layer in (net.e, net.f, net.c)
    )
    bias = net.g(net.table).view(count, count, 4).permute(2, 0, 1)
    weights = torch.matmul(q, k.mT) + bias.sigmoid()[None]
    return net.d(torch.matmul(weights.softmax(-1), v).transpose(1, 2).reshape(n, count, -1))


def attend_linearly(net, tokens):
    """Without a softmax: values are multiplied with keys first."""
    q, k, v = heads_of(net, tokens)
    mixed = q.relu() @ (k.relu().transpose(-2, -1) @ v)
    return net.d(mixed.transpose(1, 2).flatten(2))


def attend_across_heads(net, tokens):
    q, k, v = heads_of(net, tokens)
    weights = net.e((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return net.d((weights.softmax(-1) @ v).transpose(1, 2).flatten(2))


# body, further layers, and what of a, b, c, d stays whole
WRITTEN = {
    "a shift computed from what it shifts": (
        lambda net, x: net.b((x := net.a(x)) + net.e(x.mean((2, 3)))[:, :, None, None]),
        {"e": nn.Linear(8, 8)},
        "",
    ),
    "a block of linear layers": (
        lambda net, x: net.b((x := net.a(x)) + net.e(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        {"e": perceptron(6)},
        "",
    ),
    "one channel added to all": (
        lambda net, x: net.b((x := net.a(x)) + net.c(x)),
        {"c": conv(8, 1, bias=True)},
        "c",
    ),
    "a difference": (lambda net, x: net.b((x := net.a(x)) - net.c(x)), {"c": conv(8, 8)}, ""),
    "a maximum": (
        lambda net, x: net.b(torch.maximum(x := net.a(x), net.c(x))),
        {"c": conv(8, 8)},
        "",
    ),
    "a blend": (lambda net, x: net.b((x := net.a(x)).lerp(net.c(x), 0.3)), {"c": conv(8, 8)}, ""),
    "a blend in place": (
        lambda net, x: net.b((x := net.a(x)).lerp_(net.c(x), 0.3)),
        {"c": conv(8, 8)},
        "",
    ),
    "hypot": (lambda net, x: net.b(torch.hypot(x := net.a(x), net.c(x))), {"c": conv(8, 8)}, ""),
    "an excitation of two": (
        lambda net, x: net.b(excite(net, net.a(x)) + excite(net, net.c(x))),
        {"c": conv(3, 8), "excitation": nn.Sequential(perceptron(4), nn.Sigmoid())},
        "",
    ),
    "a choice between two": (chosen, {"c": conv(3, 8), "d": conv(8, 8, 1)}, ""),
    "a gate that others read": (read_as_well, {"c": conv(8, 8), "d": conv(8, 8)}, ""),
    "places of one size": (
        lambda net, x: net.b(net.a(x) + net.places),
        {"places": nn.Parameter(torch.randn(8, 16, 16))},
        "",
    ),
    "attention": (attention, {"qkv": conv(8, 24, 1)}, "a"),
    "scale and shift from features": (modulated, {"e": nn.Linear(8, 16)}, "b"),
    "a part changed in place": (written_in_part, {}, "a"),
    "changed in place, and the result ignored": (relu_ignored, {}, ""),
    "a number of channels in arithmetic": (over_count, {}, "a"),
    "numbers of channels in conditions": (skips, {}, ""),
    "a weight that is read elsewhere, too": (
        lambda net, x: net.b(net.a(x) / net.a.weight.norm()),
        {},
        "a",
    ),
    "buffers in arithmetic": (
        lambda net, x: net.b(net.norm(net.a(x))),
        {"norm": FrozenBatchNorm2d(8)},
        "",
    ),
    "images given by keyword": (
        lambda net, x: net.b(net.t(input=net.a(input=x))),
        {"t": nn.ConvTranspose2d(8, 8, 2, 2, bias=False)},
        "",
    ),
    "slices and unpacked shapes": (
        lambda net, x: net.b(net.f[1:](F.interpolate(net.f[:1](net.a(x)), (*x.shape[2:],)))),
        {"f": nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))},
        "",
    ),
    "to a parameter's device": (
        lambda net, x: net.b(net.a(x.to(net.head.weight.device, net.head.weight.dtype))),
        {},
        "",
    ),
    "hooks": (lambda net, x: net.b(net.a(x)), {}, "a"),
    "an MLP behind a LayerNorm": (
        on_tokens(lambda net, tokens: net.d(F.gelu(net.c(net.norm(tokens))))),
        {"norm": nn.LayerNorm(8), "c": nn.Linear(8, 12), "d": nn.Linear(12, 8)},
        "ad",
    ),
    "an MLP that mixes tokens": (
        on_tokens(mixer),
        {
            "norm": nn.LayerNorm(8),
            "c": nn.Linear(256, 9),
            "d": nn.Linear(9, 256),
            "e": perceptron(12),
        },
        "ad",
    ),
    "an MLP between BatchNorms": (
        on_tokens(
            lambda net, tokens: net.d(net.norm(net.c(tokens).flatten(0, 1)).relu()).unflatten(
                0, tokens.shape[:2]
            )
        ),
        {"norm": nn.BatchNorm1d(12), "c": nn.Linear(8, 12), "d": nn.Linear(12, 8)},
        "",
    ),
    "heads": (on_tokens(attend_by_function), {"c": nn.Linear(8, 36), "d": nn.Linear(12, 8)}, ""),
    "heads by hand": (
        on_tokens(attend_by_hand),
        {
            "c": nn.Linear(8, 36),
            "d": nn.Linear(12, 8),
            "norm": nn.LayerNorm(3),
            "factors": nn.Parameter(torch.rand(4, 1, 1) + 0.5),
            "mask": nn.Parameter(torch.randn(256, 256)),
        },
        "",
    ),
    "heads and what is added to them": (
        on_tokens(attend_with_a_bias),
        {
            "c": nn.Linear(8, 36),
            "d": nn.Linear(12, 8),
            "e": nn.Linear(2, 4),
            "mask": nn.Parameter(torch.randn(256, 256)),
            "table": nn.Parameter(torch.randn(256 * 256, 2)),
        },
        "",
    ),
    "heads to which a table is added": (
        on_tokens(attend_with_a_table),
        {
            "c": nn.Linear(8, 36),
            "d": nn.Linear(12, 8),
            "table": nn.Parameter(torch.randn(4, 256, 256)),
        },
        "c",
    ),
    "heads of three layers": (
        on_tokens(attend_apart),
        {
            "c": nn.Linear(8, 12),
            "d": nn.Linear(12, 8),
            "e": nn.Linear(8, 12),
            "f": nn.Linear(8, 12),
            "g": nn.Linear(2, 4),
            "table": nn.Parameter(torch.randn(256 * 256, 2)),
        },
        "",
    ),
    "heads without a softmax": (
        on_tokens(attend_linearly),
        {"c": nn.Linear(8, 36), "d": nn.Linear(12, 8)},
        "",
    ),
    "heads that are mixed": (
        on_tokens(attend_across_heads),
        {"c": nn.Linear(8, 36), "d": nn.Linear(12, 8), "e": nn.Linear(4, 4)},
        "c",
    ),
    "a gated linear unit": (
        on_tokens(lambda net, tokens: net.d(F.silu(net.c(tokens)) * net.e(tokens))),
        {"c": nn.Linear(8, 12), "e": nn.Linear(8, 12), "d": nn.Linear(12, 8)},
        "",
    ),
    "a gated linear unit in halves": (
        on_tokens(gated_in_halves),
        {"c": nn.Linear(8, 24), "d": nn.Linear(12, 8)},
        "",
    ),
}


def silence(layer, kept):
    """Set all outputs of a convolution or linear layer to zero but those that are kept."""
    if isinstance(layer, nn.MultiheadAttention):
        gone = torch.ones(len(layer.in_proj_weight), dtype=torch.bool)
        gone[kept] = False
        layer.in_proj_weight.data[gone], layer.in_proj_bias.data[gone] = 0, 0
        return
    is_linear = isinstance(layer, nn.Linear)
    gone = torch.ones(layer.out_features if is_linear else layer.out_channels, dtype=torch.bool)
    gone[kept] = False
    if not is_linear:
        gone = gone[:, None, None]
    layer.register_forward_hook(lambda _layer, _images, result: result.masked_fill(gone, 0))


def check_with_hooks(model, small, kept, images):
    """A pruned network, and the same in plain operators, compute what the user's own network does
    with the other filters set to zero by hooks."""
    silenced = copy.deepcopy(model)
    for name, index in kept.items():
        silence(silenced.get_submodule(name), index)
    with torch.no_grad():
        for some in (images, images[:1]):
            assert torch.allclose(small(some), silenced(some), rtol=1e-10, atol=1e-12)
        assert torch.allclose(lower(small, images)(images), small(images), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", WRITTEN)
def test_removed_filters_count_as_zero_and_nothing_else_changes(kind, monkeypatch):
    """Against hooks that set the removed filters' outputs to zero, and know nothing of the graph."""
    monkeypatch.setattr(structure, "SIZES", (16,))  # attention of 64 x 64 pixels takes a minute
    body, layers, whole = WRITTEN[kind]
    torch.manual_seed(0)
    model = Written(body, **layers).double().eval()
    if kind == "hooks":
        model.a.register_forward_hook(
            lambda _layer, _images, result: result / result.norm(dim=1, keepdim=True)
        )
    explore(model, 16)
    assert {
        name
        for name in "abcd"
        if hasattr(model, name) and not any(g.name == name for g in filter_groups(model))
    } == set(whole)
    images = torch.randn(3, 3, 16, 16, dtype=torch.double)
    for seed in range(3):
        kept = select_filters(model, cal_importance(model, "random", seed=seed), 40)
        small = prune(model, kept)
        check_with_hooks(model, small, kept, images)
    twin = rebuild(
        Written(body, **copy.deepcopy(layers)).double() if kind != "hooks" else model,
        widths_of(small),
        remains_of(model).structure.fixed_operations,
        16,
    )
    twin.load_state_dict(small.state_dict())
    assert torch.equal(twin.eval()(images), small(images))


@pytest.mark.parametrize("seed", range(16))
def test_random_networks_compute_what_hooks_say(seed):
    error, share = fuzz.try_out(seed)
    assert error < 1e-10 and share < 0.5


# ------------------------------------------------------------------------------ linear layers


def token_network(kind="an MLP behind a LayerNorm"):
    """A network with hidden linear layers, in eval mode."""
    body, layers, _ = WRITTEN[kind]
    torch.manual_seed(0)
    return Written(body, **copy.deepcopy(layers)).float().eval()


def without(model, name, index):
    """A copy without one filter of a layer."""
    kept = {group.name: range(len(group.channels)) for group in filter_groups(model)}
    kept[name] = [each for each in kept[name] if each != index]
    return prune(model, kept)


def small_vit():
    return VisionTransformer(
        image_size=16,
        patch_size=4,
        num_layers=2,
        num_heads=4,
        hidden_dim=12,
        mlp_dim=20,
        num_classes=4,
    )


def small_convnext():
    stages = [CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)]
    return ConvNeXt(stages, layer_scale=1.0, num_classes=4)


def small_swin():
    return SwinTransformer([4, 4], 8, [1, 1], [2, 2], [2, 2], num_classes=4)


@pytest.mark.parametrize("build", [small_vit, small_convnext, small_swin])
def test_torchvisions_transformers_lose_what_is_hidden_in_their_blocks(build):
    torch.manual_seed(0)
    model = settle(build()).double()
    filter_groups(model, 16)
    explore(model, 16)
    images = torch.randn(2, 3, 16, 16, dtype=torch.double)
    for seed in range(2):
        kept = select_filters(model, cal_importance(model, "random", seed=seed), 60)
        small = prune(model, kept)
        check_with_hooks(model, small, kept, images)
        with torch.no_grad():
            assert not torch.allclose(small(images), model(images), rtol=1e-2)
    twin = rebuild(copy.deepcopy(model), widths_of(small))
    twin.load_state_dict(small.state_dict())
    assert torch.equal(twin(images), small(images))
    again = prune(small, select_filters(small, scores_like(small), 75))
    assert again(images).isfinite().all()
    again.train()(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())


def test_a_head_leaves_as_one_unit_by_the_sum_of_its_scores():
    model = small_vit().eval()
    groups = {group.name: group for group in filter_groups(model, 16)}
    name = "encoder.layers.encoder_layer_1.self_attention"
    scores = {group.name: torch.full((len(group.channels),), 99.0) for group in groups.values()}
    scores[name][:] = 10.0
    heads = scores[name].view(3, 4, 3)  # of queries, keys and values; of each head
    heads[0, 2], heads[:, 1] = 0.0, 5.0  # the third head has the lowest row, the second the sum
    kept = select_filters(model, scores, 100 * 9 / filter_count(model)[1])
    small = prune(model, kept)
    attention = small.get_submodule(name)
    assert (attention.num_heads, attention.head_dim) == (3, 3)
    assert kept[name].tolist() == [row for row in range(36) if row % 12 not in (3, 4, 5)]
    assert attention.out_proj.weight.shape == (12, 9)
    assert sum(len(index) for index in kept.values()) == filter_count(small)[0]


@pytest.mark.parametrize("percent", [0, 50])
def test_multiply_adds_of_linear_layers_count_all_tokens(percent):
    model = token_network()
    model = prune(model, select_filters(model, scores_like(model), percent))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 24, 24))
    assert measure_cost(model, 24)["flops"] == counter.get_total_flops()


@pytest.mark.parametrize("budget, entry", [("macs", "macs"), ("params", "parameters")])
def test_a_row_costs_what_is_saved_without_it(budget, entry):
    model = token_network()
    costs = filter_costs(model, budget, 24)["c"]
    saved = measure_cost(model, 24)[entry] - measure_cost(without(model, "c", 5), 24)[entry]
    assert costs.tolist() == [saved] * 12


@pytest.mark.parametrize(
    "choice",
    [
        {"budget": "macs", "round_to": 4},
        {"budget": "params", "residual": "coupled"},
        {"per_cost": True, "pruning_type": "fisher"},
        {"ranking": "measured"},
    ],
)
def test_all_ways_to_choose_filters_choose_rows_of_linear_layers(choice):
    model = token_network("a gated linear unit")
    scores = scores_like(model)
    for name in ("c", "e"):
        scores[name] /= 10
    if choice.get("ranking") == "measured":
        batches = [(torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long))]
        choice = choice | {"losses": measure_losses(model, scores, batches)}
    kept = select_filters(model, scores, 60, image_size=16, **choice)
    small = prune(model, kept)
    width = small.d.in_features
    assert width == small.c.out_features == small.e.out_features < 12
    assert width % choice.get("round_to", 1) == 0
    assert pruned_percent(small, choice.get("budget", "filters"), 16) > 40


def test_linear_layers_that_an_older_record_does_not_name_are_whole():
    model = token_network("an MLP between BatchNorms")
    small = prune(model, select_filters(model, scores_like(model), 50))
    assert widths_of(small)["c"] == small.c.out_features < 12
    older = {name: width for name, width in widths_of(small).items() if name in ("a", "b")}
    twin = rebuild(token_network("an MLP between BatchNorms"), older)
    assert (twin.c.out_features, twin.d.out_features) == (12, 8)
    assert twin.b.out_channels == small.b.out_channels


def test_linear_layers_that_stay_for_one_reason_share_a_line():
    body = on_tokens(lambda net, tokens: net.d(net.c(net.norm(tokens))) + net.e(tokens))
    layers = {"c": nn.Linear(8, 12), "d": nn.Linear(12, 8), "e": nn.Linear(8, 8)}
    model = Written(body, norm=nn.LayerNorm(8), **layers)
    lines = fixed_text(remains_of(model).structure)
    assert "a keeps its 8 filters: LayerNorm mixes them" in lines
    assert [line for line in lines if "linear" in line] == [
        "2 linear layers, d to e, keep their 16 filters: LayerNorm mixes them"
    ]
    assert not any("head" in line for line in lines)  # nobody expects it to be pruned


def test_a_product_of_matrices_that_are_given_by_name_is_not_cut():
    def attend_by_name(net, tokens):
        q, k, v = heads_of(net, tokens)
        weights = torch.matmul(input=q, other=k.transpose(-2, -1)).softmax(-1)
        return net.d((weights @ v).transpose(1, 2).flatten(2))

    model = Written(on_tokens(attend_by_name), c=nn.Linear(8, 36), d=nn.Linear(12, 8))
    assert remains_of(model).structure.fixed["c"].count == 36


def test_a_network_of_linear_layers_alone_is_pruned():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 4))
    filter_groups(model, 8)
    small = prune(model, select_filters(model, scores_like(model), 50))
    assert small[1].out_features == small[3].in_features == 6


def test_a_stream_that_the_network_itself_adds_up_is_called_by_its_writers():
    groups = filter_groups(Written(relu_ignored))
    assert {group.stream.name for group in groups} == {"a to b"}


def test_what_cannot_be_cut_stays_from_then_on():
    model = Written(over_count).eval()
    with pytest.raises(SelectAgain, match="truediv computes something else without them"):
        prune(model, select_filters(model, scores_like(model), 50))
    assert [group.name for group in filter_groups(model)] == ["b"]
    small = prune(model, select_filters(model, scores_like(model), 30))
    explore(small)  # a pruned network stays as it is
    assert widths_of(small) == widths_of(
        prune(model, select_filters(model, scores_like(model), 30))
    )


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_networks_of_half_precision_are_cut_too(dtype):
    torch.manual_seed(0)
    model = Written(relu_ignored).to(dtype)
    small = prune(model, select_filters(model, cal_importance(model, "random"), 50))
    assert small(torch.randn(2, 3, 16, 16, dtype=dtype)).dtype == dtype


def test_a_layer_that_is_replaced_is_looked_at_again():
    model = Written(relu_ignored)
    filter_groups(model)
    model.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
    small = prune(model, select_filters(model, scores_like(model), 50))
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    small.head[2] = nn.Linear(16, 6)
    with pytest.raises(ValueError, match="was pruned, and then pickled or given other layers"):
        filter_groups(small)


def decides(net, x):
    x = net.a(x)
    x = F.max_pool2d(x, 2) if x.shape[-1] > 32 else x
    return x + net.b(x)


def drops(net, x):
    return net.b(net.a(x)) if net.training and torch.rand(()).item() < 0.5 else net.b(net.a(x))


def makes_a_tensor(net, x):
    return net.b(net.a(x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)))


def test_what_a_pruned_network_cannot_know_is_said():
    model = Written(decides)
    filter_groups(model, 64)
    small = prune(model, select_filters(model, scores_like(model), 50))
    small(torch.randn(2, 3, 48, 48))
    with pytest.raises(ValueError, match="decides by the shape of its images"):
        small(torch.randn(2, 3, 16, 16))
    model, state = Written(drops), torch.get_rng_state()
    with pytest.raises(ValueError, match="draws random numbers itself"):
        filter_groups(model)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="neither a parameter nor a buffer"):
        filter_groups(Written(makes_a_tensor))
    model = Written(relu_ignored)
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="has hooks"):
        filter_groups(model)
    with pytest.raises(ValueError, match="prune its _orig_mod"):
        filter_groups(torch.compile(Written(relu_ignored)))
    model = Written(relu_ignored)
    with pytest.raises(ValueError, match="what to keep of b is missing"):
        prune(model, {"a": [0, 1]})
    with pytest.raises(ValueError, match="must be single or coupled"):
        select_filters(model, scores_like(model), 50, residual="doubled")


# ------------------------------------------------------------------------------- the four networks


def expected_groups(model):
    """[(name, its BatchNorm, cost, stream, readers, protected)], from the architecture's text."""
    name, modules = model.origin.name, dict(model.named_modules())
    convs = [n for n, m in modules.items() if isinstance(m, nn.Conv2d)]
    if name == "vgg":
        return [
            (n, f"features.{int(n.split('.')[1]) + 2}", 1, n, (reader,), False)
            for n, reader in zip(convs, convs[1:] + ["classifier"])
        ]
    if name == "mobilenet":
        writers = ["conv1", *(f"layers.{i}.conv2" for i in range(13))]
        readers = [*(f"layers.{i}.conv2" for i in range(13)), "linear"]
        return [
            (n, n.replace("conv", "bn"), 1 if reader == "linear" else 2, n, (reader,), False)
            for n, reader in zip(writers, readers)
        ]
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
            (f"{following}.0.conv1", f"{following}.0.shortcut.0")
            if following in modules
            else ("linear",)
        )
        norm = n.replace("shortcut.0", "shortcut.1").replace("conv", "bn")
        found.append((n, norm, 1, stage, readers, n == "conv1"))
    return found


def test_the_four_networks_lists_are_those_of_their_architectures(network):
    modules = {module: name for name, module in network.named_modules()}
    found = [
        (g.name, modules[g.bn], max(g.costs), g.stream.name, g.stream.readers, g.is_fixed)
        for g in filter_groups(network)
    ]
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
        torch.testing.assert_close(
            masked.network(images), zeroed(network, kept)(images), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("percent", [0, 60])
def test_costs_are_those_that_torch_counts(network, percent):
    model = prune(network, select_filters(network, cal_importance(network, "random"), percent))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 24, 24))
    cost = measure_cost(model, 24)
    assert cost["flops"] == counter.get_total_flops() == 2 * sum(cost["layer_macs"].values())
    assert cost["parameters"] == sum(p.numel() for p in model.parameters())
    assert measure_cost(model, 24, all_filters(model)) == measure_cost(network, 24)


class Stored(nn.Module):
    """A weight that two layers share, and one that is computed."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.c.weight, self.d = (
            self.b.weight,
            nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3)),
        )
        self.e, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 5)

    def forward(self, x):
        for layer in (self.a, self.b, self.c, self.d, self.e):
            x = layer(x).relu()
        return self.head(x.mean((2, 3)))


def test_weights_that_are_shared_or_computed_are_counted_and_stay():
    model = Stored()
    model = prune(model, select_filters(model, cal_importance(model, "l1"), 12))
    assert model.b.weight is model.c.weight and filter_count(model) < (36, 36)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 24, 24))
    cost = measure_cost(model, 24)
    assert cost["flops"] == counter.get_total_flops()
    assert cost["parameters"] == sum(p.numel() for p in model.parameters())
    assert any(
        line == "b keeps its 8 filters: another layer has the same weight"
        for line in fixed_text(remains_of(model).structure)
    )


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
    kept = select_filters(
        model, scores, 100 * len(writers) / count, residual="coupled", below_one=True
    )
    gone = {n: set(range(16)) - set(kept[n].tolist()) for n in writers}
    assert all(filters == {3} for filters in gone.values())
    small = prune(model, kept)
    assert not any("_left_" in name for name, _ in small.named_buffers())  # no indexed additions
    assert {g.stream.width for g in filter_groups(small) if g.stream.name == "layer2"} == {15}
    single = select_filters(model, scores, 100 / count, below_one=True)
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

    with pytest.raises(
        ValueError,
        match="Lucky cannot be traced.*by the values of its images.*see test_structure.py, line",
    ):
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


def in_single_precision(net, x):
    x = net.a(x)
    if x.device.type != "meta":
        with torch.autocast(x.device.type, enabled=False):
            return net.b(x).relu()
    return net.b(x).relu()


def test_a_network_may_ask_on_which_device_it_is():
    model = settle(Written(in_single_precision)).double()
    images = images_of(model)
    kept = select_filters(model, scores_like(model), 50)
    assert difference(model, prune(model, kept), kept, images) < 1e-12


def in_a_square(net, x):
    """Tokens that become images again, as those of a network whose images are squares."""
    tokens = net.a(x).flatten(2)
    size = int(tokens.shape[2] ** 0.5)
    return net.b(tokens.unflatten(2, (size, size)))


def test_a_size_may_be_rounded():
    model = settle(Written(in_a_square)).double()
    filter_groups(model, 16)
    images = torch.randn(2, 3, 16, 16, dtype=torch.double)
    kept = select_filters(model, scores_like(model), 50)
    small = prune(model, kept)
    assert small.a.out_channels < 8 and difference(model, small, kept, images) < 1e-12
    with pytest.raises(ValueError, match="decides by the shape of its images"):
        Masked(model).network(images[:, :, :8, :8])


def test_a_layer_that_gives_several_tensors_keeps_what_it_reads():
    body = on_tokens(lambda net, tokens: net.recurrent(net.c(tokens))[0])
    layers = {"c": nn.Linear(8, 6), "recurrent": nn.LSTM(6, 8, batch_first=True)}
    structure = remains_of(Written(body, **layers), 8).structure
    assert structure.filters.keys() == {"a", "b"}
    assert "c keeps its 6 filters: LSTM mixes them" in fixed_text(structure)


def test_a_convolution_that_has_hooks_is_named():
    model = Written(lambda net, x: net.c(net.b(net.a(x))), c=conv(8, 8))
    model.a = nn.utils.spectral_norm(nn.Conv2d(3, 8, 3, padding=1))
    assert fixed_text(remains_of(model).structure) == ["a keeps its 8 filters: it has hooks"]


def test_hooks_of_one_network_do_not_count_for_the_next_of_its_kind():
    for hooked in True, False, True:
        model = build_model("vgg", 7, 1 / 8)
        if hooked:
            model.features[0].register_forward_hook(lambda *_: None)
        assert ("features.0" in all_filters(model)) != hooked


def test_a_network_that_draws_lots_is_refused_for_that():
    model = Written(lambda net, x: F.dropout(net.b(net.a(x)), 0.5))
    with pytest.raises(ValueError, match="other logits each time, in eval mode, too; F.dropout"):
        check(model, model, remains_of(model).filters)


def test_dropout_by_its_function_still_knows_training_after_a_cut():
    torch.manual_seed(0)
    model = settle(FlattenedPixels())
    small = prune(model, select_filters(model, scores_like(model), 50))
    assert type(small).forward is not FlattenedPixels.forward  # its view has another size
    images = images_of(model)
    with torch.no_grad():
        assert torch.equal(small(images), small(images))
        assert not torch.equal(small.train()(images), small(images))


def test_a_network_without_hidden_layers_is_an_error():
    with pytest.raises(ValueError, match="nothing can be pruned.*no hidden linear layers"):
        filter_groups(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 4)))


@pytest.mark.parametrize("name", WIDTH)
def test_a_cut_of_the_four_is_not_slowed_by_a_check(name, monkeypatch):
    monkeypatch.setattr("pruner.check", lambda *_: pytest.fail("checked"))
    model = build_model(name, 4, width=WIDTH[name])
    prune(model, select_filters(model, scores_like(model), 30))
