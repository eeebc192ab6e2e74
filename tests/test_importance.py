"""Each estimator against a computation that shares nothing with it: finite differences of the
loss in double precision, or loops over numbers."""

import gc
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

import config
from channels.groups import filter_groups
from conftest import narrow
from imp_estimator import ESTIMATORS, _signs, cal_importance, check_suits
from models import NETWORKS
from pruner import prune, select_filters

NEED_IMAGES = [name for name, method in ESTIMATORS.items() if method.needs_images]


@pytest.fixture
def tiny(request, few):
    """(network of a few filters in double precision, [two batches of unequal size])."""
    width = {"vgg": 1 / 32, "mobilenet": 1 / 16, "resnet": 1 / 32, "resnet-56": 1 / 8}
    model = narrow(request.param, width=width[request.param]).double()
    images, labels = few[0].double(), few[1]
    return model, [(images[::2][:8], labels[::2][:8]), (images[1::2], labels[1::2])]


on_all_networks = pytest.mark.parametrize("tiny", NETWORKS, indirect=True)
on_vgg = pytest.mark.parametrize("tiny", ["vgg"], indirect=True)


def losses(model, batches, temperature=1.0):
    """The cross-entropy of every image."""
    with torch.no_grad():
        return torch.cat(
            [F.cross_entropy(model(x) / temperature, y, reduction="none") for x, y in batches]
        )


def slope(function, tensors, index, step=1e-6):
    """d function / dt where t scales entry `index` of each of `tensors` by 1 + t."""
    values = []
    for sign in (1, -1):
        saved = [t[index].clone() for t in tensors]
        with torch.no_grad():
            for t in tensors:
                t[index] *= 1 + sign * step
            values.append(function())
            for t, old in zip(tensors, saved):
                t[index] = old
    return (values[0] - values[1]) / (2 * step)


def sampled_filters(model):
    """(group, filter) pairs: the first and the last filter of each layer."""
    return [(g, f) for g in filter_groups(model) for f in {0, g.conv.out_channels - 1}]


def assert_scores(scores, group, f, expected):
    scale = scores[group.name].abs().max().item()
    assert scores[group.name][f].item() == pytest.approx(expected, rel=2e-3, abs=1e-4 * scale), (
        f"{group.name}, filter {f}"
    )


def filter_numbers(conv):
    """Every filter as a plain list: its weights, then its bias."""
    bias = [[]] * conv.out_channels if conv.bias is None else [[b] for b in conv.bias.tolist()]
    return [w.flatten().tolist() + b for w, b in zip(conv.weight, bias)]


@on_all_networks
@pytest.mark.parametrize(
    "method, scaled",
    [
        ("fisher", lambda group: list(group.conv.parameters())),
        ("tfo", lambda group: [group.bn.weight, group.bn.bias]),
    ],
)
def test_fisher_and_tfo_are_squared_slopes_of_the_mean_loss(tiny, method, scaled):
    model, batches = tiny
    scores = cal_importance(model, method, batches)
    for group, f in sampled_filters(model):
        derivative = slope(lambda: losses(model, batches).mean().item(), scaled(group), f)
        assert_scores(scores, group, f, derivative**2)


@on_all_networks
def test_theis_is_the_mean_square_of_each_images_slope(tiny):
    model, batches = tiny
    scores = cal_importance(model, "theis", batches)
    for group, f in sampled_filters(model):
        slopes = slope(lambda: losses(model, batches), [group.bn.weight, group.bn.bias], f)
        assert_scores(scores, group, f, (slopes**2).sum().item() / (2 * len(slopes)))


class Odd(nn.Module):
    """Two stems side by side, a sum in place, a BatchNorm without a scale, a weight without use."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3)
        self.norm_a, self.norm_b = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
        self.norm_c, self.idle = nn.BatchNorm2d(4, affine=False), nn.Parameter(torch.ones(2))
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        y = self.norm_a(self.a(x))
        y += self.norm_b(self.b(x))
        return self.head(self.norm_c(self.c(y.relu())).relu().mean((2, 3)))


def test_networks_as_others_build_them_are_judged_right(few):
    torch.manual_seed(0)
    model, batches = Odd().double().eval(), [(few[0].double(), few[1])]
    for norm in (model.norm_a, model.norm_b):
        nn.init.uniform_(norm.weight, 0.5, 2), nn.init.uniform_(norm.bias, -1, 1)
    scores = cal_importance(model, "theis", batches)
    groups = {group.name: group for group in filter_groups(model)}
    for group, f in itertools.product((groups["a"], groups["b"]), range(5)):
        slopes = slope(lambda: losses(model, batches), [group.bn.weight, group.bn.bias], f)
        assert_scores(scores, group, f, (slopes**2).sum().item() / (2 * len(slopes)))
    for method in ESTIMATORS.keys() - {"bn"}:
        assert all(
            score.abs().sum() > 0 for score in cal_importance(model, method, batches).values()
        )
    scales = cal_importance(model, "bn")
    assert torch.equal(scales["a"].double(), model.norm_a.weight.abs().float().double())
    assert (
        scales["c"].eq(torch.inf).all()
        and "4 of 14 filters, in 1 of 3" in check_suits(model, "bn")[0]
    )
    kept = select_filters(model, scales, 90)
    assert len(kept["c"]) == 4 and len(kept["a"]) == 1
    model.train().norm_a.eval()
    prune(model, select_filters(model, scores, 30))
    assert model.training and not model.norm_a.training
    model.norm_a, model.norm_b = nn.Identity(), nn.Identity()
    with pytest.raises(
        ValueError, match="bn can judge no filter: they have no BatchNorm of their own"
    ):
        cal_importance(model, "bn")


class Tokens(nn.Module):
    """Hidden linear layers: in windows of tokens, as in Swin, with a BatchNorm, and of a table."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6)
        self.inner, self.outer = nn.Linear(6, 5), nn.Linear(5, 6)
        self.last, self.scales, self.head = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.places = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 6))
        self.register_buffer("table", torch.linspace(-1, 1, 32).view(16, 2))

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.places(self.table)
        windows = self.norm(tokens).reshape(-1, 4, 6)
        windows = self.outer(F.gelu(self.inner(windows)))
        tokens = tokens + windows.reshape(tokens.shape)
        return self.head(self.scales(self.last(tokens.mean(1))).relu())


@pytest.fixture
def tokens(few):
    """(network with hidden linear layers in double precision, two batches of unequal size)."""
    torch.manual_seed(0)
    model = Tokens().double().eval()
    nn.init.uniform_(model.scales.weight, 0.5, 2), nn.init.uniform_(model.scales.bias, -1, 1)
    filter_groups(model, 16)
    images, labels = few[0].double(), few[1]
    return model, [(images[:8], labels[:8]), (images[8:], labels[8:])]


LINEAR = ["inner", "last", "places.0"]  # that can be pruned in it


def linear_groups(model):
    groups = [group for group in filter_groups(model) if isinstance(group.layer, nn.Linear)]
    assert sorted(group.name for group in groups) == LINEAR
    return groups


def rows(group):
    return range(len(group.channels))


def test_rows_of_linear_layers_are_judged_by_slopes_as_filters_are(tokens):
    model, batches = tokens
    scores = {name: cal_importance(model, name, batches) for name in ("fisher", "tfo", "theis")}
    for group in linear_groups(model):
        own, norm = list(group.layer.parameters()), [model.scales.weight, model.scales.bias]
        at_output = norm if group.name == "last" else own
        for f in rows(group):
            mean = slope(lambda: losses(model, batches).mean().item(), own, f)
            assert_scores(scores["fisher"], group, f, mean**2)
            slopes = slope(lambda: losses(model, batches), at_output, f)
            assert_scores(scores["tfo"], group, f, slopes.mean().item() ** 2)
            if group.name == "places.0":  # it has the same values for all images of a batch
                slopes = torch.cat(
                    [part.mean().expand(len(part)) for part in slopes.split([8, 16])]
                )
            assert_scores(scores["theis"], group, f, slopes.square().mean().item() / 2)


def test_rows_of_linear_layers_are_judged_by_their_weights_as_kernels_are(tokens):
    model, _ = tokens
    scores = {name: cal_importance(model, name) for name in ("l1", "sfp", "fpgm", "group", "bn")}
    readers = {"inner": "outer", "last": "head", "places.0": "places.2"}
    for group in linear_groups(model):
        weights = group.layer.weight.tolist()
        columns = model.get_submodule(readers[group.name]).weight.T.tolist()
        for f, numbers in enumerate(weights):
            scale = [model.scales.weight[f].item()] if group.name == "last" else []
            assert_scores(scores["l1"], group, f, sum(map(abs, numbers)))
            assert_scores(scores["sfp"], group, f, math.hypot(*numbers))
            assert_scores(scores["fpgm"], group, f, sum(math.dist(numbers, w) for w in weights))
            assert_scores(scores["group"], group, f, math.hypot(*numbers, *columns[f], *scale))
            assert scores["bn"][group.name][f].item() == pytest.approx(*scale or [math.inf])


def test_packed_rows_of_attention_are_judged_by_their_weights_but_cannot_be_watched(few):
    torch.manual_seed(0)
    model = VisionTransformer(16, 8, 1, 2, 8, 12, num_classes=4).double().eval()
    nn.init.normal_(model.heads.head.weight)
    filter_groups(model, 16)
    batches, name = [(few[0].double(), few[1])], "encoder.layers.encoder_layer_0.self_attention"
    group = next(group for group in filter_groups(model) if group.name == name)
    attention = model.get_submodule(name)
    scores = {
        method: cal_importance(model, method, batches) for method in ("fisher", "l1", "group")
    }
    for f in (16, 23):  # of values; the norm has the column of the output that reads it
        rows = [attention.in_proj_weight, attention.in_proj_bias]
        change = slope(lambda: losses(model, batches).mean().item(), rows, f)
        assert_scores(scores["fisher"], group, f, change**2)
        row = attention.in_proj_weight[f].tolist()
        column = attention.out_proj.weight[:, f - 16].tolist()
        assert_scores(scores["l1"], group, f, sum(map(abs, row)))
        assert_scores(scores["group"], group, f, math.hypot(*row, *column))
    watched = cal_importance(model, "theis", batches)
    assert watched[name].eq(math.inf).all()
    assert sum(score.isfinite().all().item() for score in watched.values()) == len(watched) - 1
    assert "24 of 36 filters, in 1 of 2 layers, have no outputs" in check_suits(model, "theis")[0]


class Pixels(Tokens):
    """The same, with a 1x1 convolution over pixels in place of a linear layer over tokens."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2) + self.places(self.table)
        pixels = self.norm(tokens).transpose(1, 2)[..., None]
        hidden = F.gelu(self.inner(pixels))[..., 0].transpose(1, 2)
        tokens = tokens + self.outer(hidden)
        return self.head(self.scales(self.last(tokens.mean(1))).relu())


@pytest.mark.parametrize("method", ["grasp", "rdt", "fisher", "theis"])
def test_a_linear_layer_is_judged_as_the_1x1_convolution_that_computes_the_same(tokens, method):
    model, batches = tokens
    twin = Pixels().double().eval()
    state = model.state_dict()
    state["inner.weight"] = state["inner.weight"][..., None, None]
    twin.load_state_dict(state)
    filter_groups(twin, 16)
    own, theirs = (cal_importance(each, method, batches) for each in (model, twin))
    assert own.keys() == theirs.keys()
    for name in own:
        torch.testing.assert_close(own[name], theirs[name], rtol=1e-4, atol=1e-9)


@on_all_networks
def test_grasp_is_the_change_of_gradient_flow_along_the_filter(tiny):
    model, batches = tiny
    temperature = 3.0
    scores = cal_importance(model, "grasp", batches, temperature=temperature)
    parameters = list(model.parameters())

    def gradient():
        total = sum(
            F.cross_entropy(model(x) / temperature, y, reduction="sum") for x, y in batches
        ) / sum(len(y) for _, y in batches)
        return torch.autograd.grad(total, parameters)

    g = gradient()
    step = 1e-8 / math.sqrt(sum(t.square().sum().item() for t in g))
    sides = []
    for sign in (1, -1):
        torch._foreach_add_([p.data for p in parameters], g, alpha=sign * step)
        sides.append(gradient())
        torch._foreach_add_([p.data for p in parameters], g, alpha=-sign * step)
    hg = {id(p): (a - b) / (2 * step) for p, a, b in zip(parameters, *sides)}
    for group, f in sampled_filters(model):
        expected = sum((p[f] * hg[id(p)][f]).sum().item() for p in group.conv.parameters())
        assert_scores(scores, group, f, expected)
    assert any((s < 0).any() for s in scores.values()), "signed, no absolute value"


@on_vgg
def test_rdt_is_the_information_of_every_single_weight(tiny):
    model, batches = tiny
    scores = cal_importance(model, "rdt", batches, projections=0)

    def mean_log_p(x):
        with torch.no_grad():
            return F.log_softmax(model(x), 1).mean(0)

    for name in ("features.0", "features.17", "features.31"):
        group = next(g for g in filter_groups(model) if g.name == name)
        for f in {0, group.conv.out_channels - 1}:
            expected = 0.0
            for parameter in group.conv.parameters():
                for index in itertools.product(*map(range, parameter.shape[1:])):
                    for x, _ in batches:
                        with torch.no_grad():
                            mean_p = F.softmax(model(x), 1).mean(0)
                        # slope() scales, so it gives w dlog p / dw, the square of which counts
                        change = slope(lambda x=x: mean_log_p(x), [parameter], (f, *index))
                        expected += (mean_p * change**2).sum().item() / len(batches)
            assert_scores(scores, group, f, expected)


@on_vgg
def test_projected_rdt_is_right_on_average(tiny):
    model, batches = tiny
    exact = cal_importance(model, "rdt", batches, projections=0)
    for enough in (4, 9):  # one backward pass per class already is the exact computation
        same = cal_importance(model, "rdt", batches, projections=enough)
        assert all(torch.equal(exact[name], same[name]) for name in exact)
    draws = [cal_importance(model, "rdt", batches, projections=1, seed=seed) for seed in range(150)]
    for name, score in exact.items():
        mean = torch.stack([draw[name] for draw in draws]).mean(0)
        assert (mean - score).abs().sum() < 0.15 * score.sum(), name
        assert not torch.equal(draws[0][name], draws[1][name])
    again = cal_importance(model, "rdt", batches, projections=1, seed=1)
    assert all(torch.equal(again[name], draws[1][name]) for name in exact)


@pytest.mark.parametrize("classes", [2, 4, 64])
def test_the_signs_of_rdt_are_orthogonal_and_differ_from_batch_to_batch(classes):
    rows = torch.cat([_signs(classes, start, 2, seed=3) for start in range(0, classes, 2)]).float()
    assert torch.equal(rows.abs(), torch.ones(classes, classes))
    assert torch.equal(rows @ rows.T, classes * torch.eye(classes))
    assert set(_signs(5, 0, 100, seed=0).unique().tolist()) == {-1, 1}  # 5 is no power of two


def test_projected_rdt_keeps_the_filters_that_the_exact_one_keeps():
    model = narrow("vgg", num_classes=20, width=1 / 4)
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(16, 3, 16, 16, generator=generator), torch.zeros(16, dtype=int))
        for _ in range(10)
    ]
    exact = cal_importance(model, "rdt", batches, projections=0)
    kept = select_filters(model, exact, 50)
    for seed in range(3):
        scores = cal_importance(model, "rdt", batches, seed=seed)
        ranks = [torch.cat(list(s.values())).argsort().argsort().double() for s in (exact, scores)]
        assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.98
        chosen = select_filters(model, scores, 50)
        same = sum(torch.isin(chosen[name], kept[name]).sum() for name in kept)
        assert same >= 0.95 * sum(map(len, kept.values()))


@on_all_networks
def test_weight_based_scores_against_loops(tiny):
    model, _ = tiny
    scores = {name: cal_importance(model, name) for name in ("bn", "l1", "sfp", "fpgm")}
    for group in filter_groups(model):
        filters = [kernel.flatten().tolist() for kernel in group.conv.weight]  # without the bias
        for f, numbers in enumerate(filters):
            assert_scores(scores["l1"], group, f, sum(map(abs, numbers)))
            assert_scores(scores["sfp"], group, f, math.sqrt(sum(w * w for w in numbers)))
            assert_scores(
                scores["fpgm"], group, f, sum(math.dist(numbers, other) for other in filters)
            )
            assert_scores(scores["bn"], group, f, abs(group.bn.weight[f].item()))


def test_fpgm_tells_close_filters_apart():
    model = narrow("vgg", width=1.0)
    conv = filter_groups(model)[-1].conv
    with torch.no_grad():
        conv.weight[:] = 100.0
        conv.weight[0, 0, 0, 0] += 0.01
        conv.bias.zero_()
    scores = cal_importance(model, "fpgm")["features.31"]
    assert scores[0].item() == pytest.approx(511 * 0.01, rel=1e-2)
    assert scores[1].item() == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_the_model_is_left_as_it_was(network, few, method):
    network.train()
    group = filter_groups(network)[1]
    group.bn.eval()
    group.conv.weight.grad = torch.full_like(group.conv.weight, 3.0)
    frozen = filter_groups(network)[0].conv.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    cal_importance(network, method, [few])
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert not frozen.requires_grad
    assert (group.conv.weight.grad == 3).all()
    assert all(p.grad is None for p in network.parameters() if p is not group.conv.weight)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("method", ESTIMATORS)
def test_one_finite_score_per_filter_under_the_convolutions_name(network, few, method):
    scores = cal_importance(network, method, [few])
    expected = {g.name: (g.conv.out_channels,) for g in filter_groups(network)}
    assert {name: tuple(score.shape) for name, score in scores.items()} == expected
    assert list(scores) == list(expected)
    assert all(
        score.dtype == torch.float32 and not score.requires_grad for score in scores.values()
    )


def test_orthoreg_is_fisher_and_batch_size_does_not_matter(network, few):
    images, labels = few
    whole = cal_importance(network, "fisher", [few])
    parts = cal_importance(network, "orthoreg", list(zip(images.split(5), labels.split(5))))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-3, atol=1e-9)


def test_random_follows_the_seed(network):
    first, again, other = (cal_importance(network, "random", seed=s) for s in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_temperature_matters_for_grasp_only(network, few):
    for method in ("grasp", "fisher"):
        a, b = (cal_importance(network, method, [few], temperature=t) for t in (1.0, 200.0))
        assert (method == "fisher") == all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", NEED_IMAGES)
def test_no_activation_outlives_its_batch(network, few, method):
    """Else the memory of all batches adds up until Python's collector comes by."""

    def living():
        return {id(o) for o in gc.get_objects() if issubclass(type(o), torch.Tensor)}

    cal_importance(network, method, [few])
    gc.collect()
    gc.disable()
    try:
        before = living()
        scores = cal_importance(network, method, [few] * 2)
        assert len(living() - before) <= len(scores)
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ["fisher", "l1", "theis"])
def test_scores_that_are_not_finite_name_their_layer(few, method):
    model = narrow("vgg")
    with torch.no_grad():
        filter_groups(model)[-1].conv.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"features\.\d+ are not finite"):
        cal_importance(model, method, [few])


@pytest.mark.parametrize("method", NEED_IMAGES)
def test_methods_that_need_images_say_so(method):
    for batches in (None, []):
        with pytest.raises(ValueError, match="images"):
            cal_importance(narrow("vgg"), method, batches)


def test_settings_and_networks_have_the_same_names():
    assert list(config.MODELS) == list(NETWORKS) == list(config.PENALTY)
