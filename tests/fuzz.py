"""Random networks, to find those that are cut wrongly.

    python -m tests.fuzz           # 200 networks: two minutes
    python -m tests.fuzz 1000 -v   # more; -v prints each

Each has convolutions, hidden linear layers, heads of attention and one to three outputs, put
together at random. It is pruned by a random percent, and what is left once more. What must come
out is known without the suite's graph: hooks in the network itself set the outputs of the removed
filters to zero. Networks are made so that a hook can: whatever makes another value of a zero is
part of a Unit, and a Unit's outputs are what a hook changes.
"""

import argparse
import copy
import random
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from channels.groups import filter_groups  # noqa: E402
from common.inputs import tensors_in  # noqa: E402
from imp_estimator import cal_importance  # noqa: E402
from pruner import cut, select_filters  # noqa: E402

SIZE = 8  # of the images
ACTIVATIONS = nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Identity
KEEP_ZERO = nn.ReLU, nn.GELU, nn.Hardswish  # activations of sums and other things without a Unit


# ------------------------------------------------------------------------------------- units


class Unit(nn.Module):
    """A layer, a norm and an activation. Its outputs are filters of `layer`."""

    def __init__(self, layer, norm, activation):
        super().__init__()
        self.layer, self.norm, self.activation = layer, norm, activation

    def forward(self, x):
        return self.activation(self.norm(self.layer(x)))


def convolved(draw, inputs, outputs, size=None, stride=1):
    size = size or draw.choice((1, 3))
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=draw.random() < 0.5)
    norms = nn.Identity(), nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
    if outputs % 4 == 0:
        norms = *norms, nn.GroupNorm(outputs // 4, outputs)
    return Unit(layer, draw.choice(norms), draw.choice(ACTIVATIONS)())


def linear(draw, inputs, outputs, activation=None):
    layer = nn.Linear(inputs, outputs, bias=draw.random() < 0.8)
    return Unit(layer, nn.Identity(), activation or draw.choice(ACTIVATIONS)())


# -------------------------------------------------------------------------- blocks of images


class Block(nn.Module):
    """Part of a network. `width` is how many channels it gives."""

    def __init__(self, width):
        super().__init__()
        self.width = width


class Plain(Block):
    def __init__(self, draw, inputs):
        super().__init__(draw.choice((8, 12, 16)))
        self.unit = convolved(draw, inputs, self.width)

    def forward(self, x):
        return self.unit(x)


class Residual(Block):
    def __init__(self, draw, inputs):
        super().__init__(inputs)
        hidden = draw.choice((6, 8))
        self.a, self.b = convolved(draw, inputs, hidden), convolved(draw, hidden, inputs)
        self.activation = draw.choice(KEEP_ZERO)()

    def forward(self, x):
        return self.activation(x + self.b(self.a(x)))


class Projected(Block):
    """A block with a shortcut of its own."""

    def __init__(self, draw, inputs):
        super().__init__(draw.choice((8, 16)))
        self.a, self.b = convolved(draw, inputs, self.width), convolved(draw, inputs, self.width)

    def forward(self, x):
        return self.a(x) + self.b(x)


class Dense(Block):
    def __init__(self, draw, inputs):
        super().__init__(inputs + 6)
        self.unit = convolved(draw, inputs, 6)

    def forward(self, x):
        return torch.cat([self.unit(x), x], 1)


class Halves(Block):
    """One half of the channels is computed with, and both are shuffled."""

    def __init__(self, draw, inputs):
        super().__init__(inputs)
        self.unit = convolved(draw, inputs // 2, inputs // 2)

    def forward(self, x):
        kept, changed = x.chunk(2, 1)
        x = torch.cat([kept, self.unit(changed)], 1)
        n, count, height, width = x.shape
        return x.view(n, 2, count // 2, height, width).transpose(1, 2).reshape(x.shape)


class Depthwise(Block):
    """Without a bias, so that a zero stays one."""

    def __init__(self, draw, inputs):
        super().__init__(inputs)
        self.layer = nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False)
        self.activation = draw.choice(KEEP_ZERO)()

    def forward(self, x):
        return self.activation(self.layer(x))


class Gated(Block):
    def __init__(self, draw, inputs):
        super().__init__(inputs)
        self.squeeze, self.excite = linear(draw, inputs, 5), nn.Linear(5, inputs)

    def forward(self, x):
        scale = self.excite(self.squeeze(x.mean((2, 3)))).sigmoid()
        return x * scale[:, :, None, None]


class Enlarged(Block):
    """Four filters are one channel of larger images."""

    def __init__(self, draw, inputs):
        super().__init__(8)
        self.unit = Unit(nn.Conv2d(inputs, 32, 1), nn.Identity(), nn.Identity())

    def forward(self, x):
        return F.avg_pool2d(F.pixel_shuffle(self.unit(x), 2), 2)


class Pixelwise(Block):
    """Linear layers, for each pixel."""

    def __init__(self, draw, inputs):
        super().__init__(inputs)
        self.is_added = draw.random() < 0.5
        self.a, self.b = linear(draw, inputs, 10), linear(draw, 10, inputs)

    def forward(self, x):
        y = self.b(self.a(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x + y if self.is_added else y


IMAGES = Plain, Plain, Residual, Projected, Dense, Halves, Depthwise, Gated, Enlarged, Pixelwise


# -------------------------------------------------------------------------- blocks of tokens


class Perceptron(Block):
    def __init__(self, draw, width):
        super().__init__(width)
        self.norm = nn.LayerNorm(width) if draw.random() < 0.5 else nn.Identity()
        self.a, self.b = linear(draw, width, 12), linear(draw, 12, width)

    def forward(self, x):
        return x + self.b(self.a(self.norm(x)))


class GatedUnit(Block):
    def __init__(self, draw, width):
        super().__init__(width)
        self.a, self.gate = linear(draw, width, 9), linear(draw, width, 9)
        self.b = linear(draw, 9, width)

    def forward(self, x):
        return x + self.b(self.a(x) * self.gate(x))


class Mixer(Block):
    """A perceptron over the tokens of each channel."""

    def __init__(self, draw, width):
        super().__init__(width)
        self.norm = nn.LayerNorm(width)
        self.a, self.b = linear(draw, SIZE**2 // 4, 7), linear(draw, 7, SIZE**2 // 4)

    def forward(self, x):
        return x + self.b(self.a(self.norm(x).transpose(1, 2))).transpose(1, 2)


class Heads(Block):
    """Attention, of one layer for queries, keys and values, or of three; by function or by hand."""

    def __init__(self, draw, width):
        super().__init__(width)
        self.count, self.by_hand = draw.choice((2, 3, 4)), draw.random() < 0.5
        self.norm = nn.LayerNorm(width) if draw.random() < 0.5 else nn.Identity()
        inner = 3 * self.count
        sizes = draw.choice(((3 * inner,), (inner, inner, inner)))
        layers = [linear(draw, width, size, nn.Identity()) for size in sizes]
        self.layers, self.out = nn.ModuleList(layers), linear(draw, inner, width)

    def forward(self, x):
        tokens = self.norm(x)
        given = [layer(tokens) for layer in self.layers]
        parts = given if len(given) == 3 else given[0].chunk(3, -1)
        q, k, v = (part.unflatten(2, (self.count, -1)).transpose(1, 2) for part in parts)
        if self.by_hand:
            mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class PackedHeads(Block):
    def __init__(self, draw, width):
        super().__init__(width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // 4, batch_first=True)

    def forward(self, x):
        tokens = self.norm(x)
        return x + self.attention(tokens, tokens, tokens, need_weights=False)[0]


TOKENS = Perceptron, Perceptron, GatedUnit, Mixer, Heads, Heads, PackedHeads


# ---------------------------------------------------------------------------------- networks


class Head(nn.Module):
    """Some hidden linear layers, and an output."""

    def __init__(self, draw, width):
        super().__init__()
        sizes = [width, *(draw.choice((6, 10)) for _ in range(draw.randrange(3)))]
        hidden = [linear(draw, *pair) for pair in zip(sizes, sizes[1:])]
        self.hidden, self.out = nn.Sequential(*hidden), nn.Linear(sizes[-1], draw.choice((1, 4)))

    def forward(self, x):
        return self.out(self.hidden(x))


class Network(nn.Module):
    """A random network. seed: which."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        width = draw.choice((8, 12))
        self.stem = convolved(draw, 3, width, 3)
        self.images, self.tokens = nn.ModuleList(), nn.ModuleList()
        for _ in range(draw.randrange(1, 5)):
            self.images.append(draw.choice(IMAGES)(draw, width))
            width = self.images[-1].width
        self.dense = nn.Conv2d(width, 2, 1) if draw.random() < 0.4 else None  # an output of images
        self.embed = convolved(draw, width, 8, 1)
        for _ in range(draw.randrange(3)):
            self.tokens.append(draw.choice(TOKENS)(draw, 8))
        self.heads = nn.ModuleList(Head(draw, 8) for _ in range(draw.choice((1, 1, 2))))
        self.has_names = draw.random() < 0.5  # of its outputs

    def forward(self, x):
        x = self.stem(x)
        for block in self.images:
            x = block(x)
        outputs = [] if self.dense is None else [self.dense(x)]
        x = F.avg_pool2d(self.embed(x), 2).flatten(2).transpose(1, 2)
        for block in self.tokens:
            x = block(x)
        features = x.mean(1)
        outputs += [head(features) for head in self.heads]
        if self.has_names:
            return {str(place): output for place, output in enumerate(outputs)}
        return tuple(outputs)


def build(seed):
    """A random network with norms that are not trivial, in double precision and eval mode."""
    torch.manual_seed(seed)
    network = Network(seed).double().eval()
    for norm in network.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.3, 0.3)
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 1.5)
    return network


# -------------------------------------------------------------------------------- the proof


def silenced(network, kept):
    """A copy whose removed filters give zeros. kept: layer -> indices of those that are left."""
    network = copy.deepcopy(network)
    for name, index in kept.items():
        layer = network.get_submodule(name)
        if isinstance(layer, nn.MultiheadAttention):
            gone = _gone(len(layer.in_proj_weight), index)
            layer.in_proj_weight.data[gone] = layer.in_proj_bias.data[gone] = 0
            continue
        gone = _gone(len(layer.weight), index)
        unit = network.get_submodule(name.rpartition(".")[0])
        assert isinstance(unit, Unit), name
        shape = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        unit.register_forward_hook(_with_zeros(gone.view(shape)))
    return network


def _gone(count, kept):
    gone = torch.ones(count, dtype=torch.bool)
    gone[kept] = False
    return gone


def _with_zeros(gone):
    def hook(_unit, _inputs, result):
        return result.masked_fill(gone, 0)

    return hook


def error_of(network, small, kept, images):
    """The largest difference of the pruned and the silenced network, as a share of the largest
    value of that output."""
    with torch.no_grad():
        wanted = tensors_in(silenced(network, kept)(images))
        result = tensors_in(small(images))
    assert [each.shape for each in wanted] == [each.shape for each in result]
    return max(
        ((one - other).abs().max() / one.abs().max().clamp_min(1e-6)).item()
        for one, other in zip(wanted, result)
    )


def random_scores(network, draw):
    """Scores of another size in each layer, so that some lose nearly all, and heads leave, too."""
    scores = cal_importance(network, "random", seed=draw.randrange(1000))
    return {name: score * 10 ** draw.uniform(-2, 0) for name, score in scores.items()}


def try_out(seed):
    """(error of a random network that is pruned twice, share of its parameters that is left)."""
    network, draw = build(seed), random.Random(seed)
    images = torch.randn(3, 3, SIZE, SIZE, dtype=torch.double)
    filter_groups(network, torch.zeros(2, 3, SIZE, SIZE))
    kept = select_filters(network, random_scores(network, draw), draw.randrange(15, 60))
    small = cut(network, kept)
    error = error_of(network, small, kept, images)
    again = select_filters(small, random_scores(small, draw), 75)
    kept = {name: kept[name][index] for name, index in again.items()}
    small = cut(small, kept)
    error = max(error, error_of(network, small, kept, images))
    return error, _parameters(small) / _parameters(network)


def _parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", nargs="?", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first network")
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()
    wrong, left = [], []
    for seed in range(args.first, args.first + args.count):
        try:
            error, share = try_out(seed)
        except Exception as failure:  # whatever a fault may raise
            error, share = f"{type(failure).__name__}: {failure}", 1.0
        left.append(share)
        if isinstance(error, str) or error > 1e-10:
            wrong.append(seed)
            print(f"network {seed}: {error}", flush=True)
        elif args.verbose:
            print(f"network {seed}: {error:.0e}, {share:.0%} of the parameters left", flush=True)
    print(
        f"{args.count} networks, {len(wrong)} wrong; {sum(left) / len(left):.0%} of the parameters "
        "left on average"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
