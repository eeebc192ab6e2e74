"""Which filters go: rankings, costs, steps, the best of several cuts; and BatchNorms, answers of
the unpruned network and the last epoch, on the way from a cut to a network that is used."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import config
import main
import train
from channels.costs import filter_costs, group_norms, measure_cost
from channels.groups import filter_groups
from common.errors import InputError
from conftest import WIDTH, narrow, short_preset, write_folder
from imp_estimator import ESTIMATORS, cal_importance
from lab import cutting, latency, sweep
from lab.checkpoint import load_checkpoint
from lab.experiment import parse
from lab.export import runtime_of
from lab.measure import layer_times
from lab.record import Record
from pruner import (
    choices,
    kept_filters,
    lower_hull,
    max_percent,
    measure_losses,
    prune,
    pruned_percent,
    select_filters,
    step_targets,
)
from train import Distillation, TrainingStep, fit, reestimate, train_epoch


def random_scores(model, seed=0):
    return cal_importance(model, "random", seed=seed)


def left(model, kept):
    """{layer: the share of its filters that is kept}."""
    return {g.name: len(kept[g.name]) / g.conv.out_channels for g in filter_groups(model)}


# -------------------------------------------------------------------------------------- rankings


@pytest.mark.parametrize("residual", ["single", "coupled"])
def test_by_layer_each_layer_loses_the_same_share_in_all_rounds(network, residual):
    rounds = network
    for number, percent in enumerate((30, 60)):
        kept = select_filters(
            rounds,
            random_scores(rounds, number),
            percent,
            "macs",
            image_size=16,
            residual=residual,
            ranking="layer",
        )
        rounds = prune(rounds, kept)
        free = [
            g for g in filter_groups(rounds) if not g.is_fixed and g.conv.out_channels > g.floor
        ]
        if residual == "coupled" and network.origin.name.startswith(
            "resnet"
        ):  # the stem's stream stays
            free = [g for g in free if g.stream.name != "layer1"]
        shares = [g.conv.out_channels / g.dense for g in free]
        step = 1 / min(g.dense for g in free)
        assert max(shares) - min(shares) <= step + 1e-9, shares
    assert pruned_percent(rounds, "macs", 16) == pytest.approx(60, abs=6)


@pytest.mark.parametrize(
    "ranking, moves", [("global", True), ("mean", False), ("norm", False), ("layer", False)]
)
def test_the_size_of_a_layers_scores_counts_in_one_list_only(ranking, moves):
    model = narrow("vgg")
    scores = random_scores(model)
    larger = {**scores, "features.14": scores["features.14"] * 1000}
    before, after = (
        left(model, select_filters(model, scaled, 50, ranking=ranking))
        for scaled in (scores, larger)
    )
    assert (before != after) == moves
    assert (after["features.14"] == 1) == moves


@pytest.mark.parametrize(
    "ranking, size", [("mean", lambda own: own.abs().mean()), ("norm", lambda own: own.norm())]
)
def test_scores_are_divided_by_their_layers_mean_or_norm(ranking, size):
    model = narrow("vgg")  # 368 filters
    torch.manual_seed(0)
    scores = {
        g.name: torch.randn(len(g.channels)).double() * 10**k
        for k, g in enumerate(filter_groups(model))
    }
    ranks = {
        (name, i): (own[i] / size(own)).item()
        for name, own in scores.items()
        for i in range(len(own))
    }
    kept = select_filters(model, scores, 100 * 50 / 368, ranking=ranking)
    gone = {
        (g.name, i)
        for g in filter_groups(model)
        for i in range(len(g.channels))
        if i not in kept[g.name]
    }
    assert gone == set(sorted(ranks, key=ranks.get)[:50])


def test_each_method_ranks_as_its_paper_does():
    papers = {name: method.ranking for name, method in ESTIMATORS.items()}
    assert papers == {
        "orthoreg": "global",
        "fisher": "global",
        "theis": "global",
        "tfo": "norm",
        "bn": "global",
        "l1": "layer",
        "sfp": "layer",
        "fpgm": "layer",
        "group": "mean",
        "grasp": "global",
        "rdt": "global",
        "random": "global",
    }
    model = narrow("vgg")
    scores = random_scores(model)
    for name, ranking in papers.items():
        ours = select_filters(model, scores, 50, ranking="paper", pruning_type=name)
        changes = {
            layer: own.double().sqrt() if name == "tfo" else own for layer, own in scores.items()
        }
        theirs = select_filters(
            model, changes, 50, ranking=ranking
        )  # Molchanov divides changes, not squares
        assert all(torch.equal(ours[layer], theirs[layer]) for layer in theirs)


@pytest.mark.parametrize("budget", ["filters", "macs", "params"])
@pytest.mark.parametrize("residual", ["single", "coupled"])
def test_every_ranking_keeps_to_every_budget(budget, residual):
    for name in ("mobilenet", "resnet-56"):
        model = narrow(name)
        for how in (
            {"ranking": "layer"},
            {"ranking": "mean"},
            {"ranking": "norm"},
            {"per_cost": True, "pruning_type": "fisher"},
            {"ranking": "norm", "per_cost": True, "pruning_type": "theis"},
        ):
            for round_to in (1, 4):
                limit = max_percent(model, budget, 16, round_to, residual)
                kept = select_filters(
                    model, random_scores(model), 40, budget, round_to, 16, residual, **how
                )
                gone = pruned_percent(prune(model, kept), budget, 16)
                assert min(40, limit) - (18 if round_to > 1 else 3) < gone <= 40.1, (
                    name,
                    how,
                    round_to,
                    limit,
                )


@pytest.mark.parametrize(
    "how, says",
    [
        ({"ranking": "mine"}, "no ranking 'mine'"),
        ({"ranking": "paper"}, "pruning_type is None"),
        ({"per_cost": True}, "pruning_type is None"),
        ({"ranking": "measured"}, "needs losses"),
        ({"losses": {}}, "no other ranking does"),
        ({"per_cost": True, "pruning_type": "l1"}, "does not estimate the change of the loss"),
        ({"per_cost": True, "pruning_type": "fisher", "ranking": "layer"}, "costs change nothing"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(how, says):
    model = narrow("vgg")
    with pytest.raises(ValueError, match=says):
        select_filters(model, random_scores(model), 50, **how)


# ---------------------------------------------------------------------------------- kept layers

KEPT = {
    "vgg": (["features.1?", "features.28"], ["features.10", "features.14", "features.17"]),
    "mobilenet": (["layers.3.*"], ["layers.2.conv2", "layers.3.conv2"]),  # the first for conv1
    "resnet": (["layer3.*"], ["layer3.0.conv1", "layer3.5.conv2"]),
    "resnet-56": (["layer1.*", "*.8.conv1"], ["layer1.4.conv2", "layer3.8.conv1"]),
}


@pytest.mark.parametrize("budget", ["filters", "macs", "params"])
@pytest.mark.parametrize("residual", ["single", "coupled"])
def test_layers_that_are_kept_lose_nothing_and_the_others_meet_the_budget(
    network, budget, residual
):
    patterns, layers = KEPT[network.origin.name]
    scores = random_scores(network)
    for name in layers:  # they would be the first to go
        scores[name] = scores[name] * 1e-6
    for ranking in ("global", "layer", "norm"):
        how = {"budget": budget, "image_size": 16, "residual": residual, "ranking": ranking}
        usual = select_filters(network, scores, 40, **how)
        assert any(left(network, usual)[name] < 1 for name in layers)
        assert max_percent(network, budget, 16, residual=residual, keep=patterns) > 40
        kept = select_filters(network, scores, 40, keep=patterns, **how)
        assert {left(network, kept)[name] for name in layers} == {1}
        assert pruned_percent(prune(network, kept), budget, 16) == pytest.approx(40, abs=3)
        assert all(
            torch.equal(index, usual[name])
            for name, index in select_filters(network, scores, 40, keep=[], **how).items()
        )
    most = prune(network, select_filters(network, scores, 100, keep=patterns, **how))
    limit = max_percent(network, budget, 16, residual=residual, keep=patterns)
    reached = pruned_percent(most, budget, 16)
    assert reached <= limit + 1e-9  # of "single" it is the limit where writers keep the same
    assert residual == "single" or reached == pytest.approx(limit)


def test_kept_layers_are_not_measured_and_stay_in_a_measured_cut(few):
    model = narrow("vgg")
    scores = random_scores(model)
    losses = measure_losses(model, scores, [(few[0], None)], keep=["features.1*"])
    names = [name for (name,) in losses]
    assert len(names) == 7 and not any(name.startswith("features.1") for name in names)
    kept = select_filters(
        model, scores, 40, ranking="measured", losses=losses, keep=["features.1*"]
    )
    assert {left(model, kept)[name] for name in kept if name.startswith("features.1")} == {1}


@pytest.mark.parametrize(
    "name, pattern, near",
    [
        ("resnet-56", "layr1.*", "did you mean layer1.*"),
        ("resnet-56", "layer1.0", "did you mean layer1.0.*"),
        ("vgg", "classifier", "there are features.0, features.3, features.7 and others"),
        ("mobilenet", "layers.0.conv3", "did you mean layers.0.conv2 or layers.0.conv1"),
    ],
)
def test_a_pattern_that_names_no_layer_is_told_near_names(name, pattern, near):
    model = narrow(name)
    with pytest.raises(ValueError) as refusal:
        select_filters(model, random_scores(model), 50, keep=["*.conv1", pattern][name == "vgg" :])
    assert f"keep={pattern!r} names no layer" in str(refusal.value)
    assert near in str(refusal.value)


# -------------------------------------------------------------------------------------- measured


def test_the_hull_is_below_all_points():
    assert lower_hull([(0, 0), (1, 3), (2, 2), (3, 9), (4, 8)]) == [(0, 0), (2, 2), (4, 8)]
    assert lower_hull([(0, 0), (5, 1)]) == [(0, 0), (5, 1)]
    assert lower_hull([(0, 0), (1, 0), (2, 0)]) == [(0, 0), (2, 0)]


@pytest.mark.parametrize(
    "name, residual", [("vgg", "single"), ("mobilenet", "single"), ("resnet", "coupled")]
)
def test_a_layers_loss_is_what_the_answers_lose_without_its_lowest_filters(name, residual, few):
    """Against networks that are really cut, and normalise by the batch."""
    network = narrow(name)
    images, scores = few[0], random_scores(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    losses = measure_losses(network, scores, [(images[:12], None), (images[12:], None)], residual)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert len(losses) > 3
    groups, checked = {g.name: g for g in filter_groups(network)}, 0
    for layers, points in list(losses.items())[::2]:
        count, loss = points[len(points) // 2]
        sums = sum(scores[name] for name in layers)
        kept = {name: torch.arange(len(g.channels)) for name, g in groups.items()}
        for name in layers:
            kept[name] = sums.argsort()[count:].sort().values
        small, divergence = copy.deepcopy(prune(network, kept)), 0
        whole = copy.deepcopy(network)
        for variant in (small, whole):
            for norm in variant.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.train()
        with torch.no_grad():
            for part in (images[:12], images[12:]):
                wanted, own = whole(part).log_softmax(1), small(part).log_softmax(1)
                divergence += (wanted.exp() * (wanted - own)).sum().item() / 24
        assert loss == pytest.approx(divergence, rel=1e-3, abs=1e-5), layers
        checked += 1
    assert checked > 3


def test_what_the_network_does_not_miss_goes_first_and_costs_count(few):
    model = narrow("vgg")
    scores = random_scores(model)
    with torch.no_grad():
        idle = scores["features.14"].argsort()[:15]  # of 32, of which 30 may leave
        model.features[17].weight[:, idle] = 0  # nobody reads them
    losses = measure_losses(model, scores, [(few[0], None)])
    assert [count for count, _ in losses["features.14",]] == [8, 15, 22, 30]
    assert [loss > 1e-5 for _, loss in losses["features.14",]] == [False, False, True, True]
    kept = select_filters(model, scores, 100 * 15 / 368, ranking="measured", losses=losses)
    gone = {
        name: set(range(len(scores[name]))) - set(index.tolist()) for name, index in kept.items()
    }
    assert gone.pop("features.14") == set(idle.tolist()) and not any(gone.values())
    even = {
        layers: [(count, float(count)) for count, _ in points] for layers, points in losses.items()
    }
    costs = filter_costs(model, "macs", 16)
    dear = max(costs, key=lambda name: costs[name][0])
    kept = select_filters(model, scores, 5, "macs", image_size=16, ranking="measured", losses=even)
    gone = {name: len(scores[name]) - len(index) for name, index in kept.items()}
    assert gone[dear] and sum(gone.values()) == gone[dear]
    lowest = scores[dear].argsort()[
        : gone[dear]
    ]  # many filters that lose little each, before few that lose more
    few_lose = {
        layers: [(count, 1.0 * count) for count, _ in points] for layers, points in losses.items()
    }
    many = max(losses, key=lambda layers: losses[layers][-1][0])
    few_lose[many] = [(count, 0.5 * count) for count, _ in losses[many]]
    kept_now = select_filters(model, scores, 5, ranking="measured", losses=few_lose)
    assert all(
        len(index) == len(scores[name]) for name, index in kept_now.items() if name not in many
    )
    assert not set(lowest.tolist()) & set(kept[dear].tolist())


# ----------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("name", WIDTH)
@pytest.mark.parametrize(
    "budget, entry", [("macs", "macs"), ("params", "parameters"), ("filters", "filters")]
)
def test_a_filter_costs_what_the_network_saves_without_it(name, budget, entry):
    """Of each layer that is a chain's; of a stream, of all that write one channel together."""
    model = narrow(name)
    costs, whole = filter_costs(model, budget, 16), measure_cost(model, 16)[entry]
    everything = {g.name: torch.arange(g.conv.out_channels) for g in filter_groups(model)}
    streams = {}
    for group in filter_groups(model):
        streams.setdefault(group.stream.name, []).append(group)
    for groups in streams.values():
        if any(group.is_fixed for group in groups):
            continue  # what reads it always has all inputs
        kept = dict(everything)
        for group in groups:
            kept[group.name] = kept[group.name][1:]
        saved = whole - measure_cost(prune(model, kept), 16)[entry]
        assert sum(costs[group.name][0].item() for group in groups) == pytest.approx(saved), groups[
            0
        ].name


def test_what_always_has_its_channels_saves_nothing_in_its_readers():
    model = narrow("resnet-56")
    costs = filter_costs(model, "macs", 16)
    conv = model.layer1[0].conv2  # writes into the stem's stream
    row = conv.weight[0].numel() * 16 * 16
    assert costs["layer1.0.conv2"].tolist() == [row] * conv.out_channels


def test_change_per_cost_is_the_root_of_a_square_by_its_multiply_adds():
    model = narrow("vgg")
    scores = {g.name: torch.full((g.conv.out_channels,), 1e6) for g in filter_groups(model)}
    costs = filter_costs(model, "macs", 16)
    cheap, dear = (pick(costs, key=lambda name: costs[name][0]) for pick in (min, max))
    ratio, most = (costs[dear][0] / costs[cheap][0]).item(), len(scores[dear])
    assert ratio > 1.5
    one = 100 / measure_cost(model, 16)["macs"] * costs[dear][0].item() * 1.01

    def first(factor, pruning_type):
        """The layer that loses a filter first, where the dear one's score is so many times the cheap one's."""
        scores[cheap][0], scores[dear][0] = 1e-4, 1e-4 * factor
        kept = select_filters(
            model, scores, one, "macs", image_size=16, per_cost=True, pruning_type=pruning_type
        )
        return cheap if len(kept[dear]) == most else dear

    assert first(ratio * 0.9, "theis") == dear and first(ratio * 1.1, "theis") == cheap
    assert first(ratio**2 * 0.9, "fisher") == dear and first(ratio**2 * 1.1, "fisher") == cheap


def test_time_is_shared_out_as_multiply_adds_are():
    model = narrow("mobilenet")
    macs = measure_cost(model, 16)["layer_macs"]
    times = {layer: 2e-6 * count for layer, count in macs.items()}
    for layer, costs in filter_costs(model, "latency", 16, times).items():
        torch.testing.assert_close(costs, 2e-6 * filter_costs(model, "macs", 16)[layer])


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
def test_each_layer_has_a_time(runtime):
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    model = narrow("resnet-56" if runtime == "pytorch" else "vgg")  # exports take long
    clock = latency.Clock(model, 16, 4, torch.device("cpu"), runtime)
    times = clock.layer_times(prune(model, select_filters(model, random_scores(model), 50)))
    layers = {
        name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    assert times.keys() == layers and all(time > 0 for time in times.values())
    slow = layer_times(
        model, torch.zeros(64, 3, 32, 32)
    )  # sixteen times the images, four times the pixels
    assert sum(slow.values()) > 2 * sum(layer_times(model, torch.zeros(4, 3, 16, 16)).values())


# ------------------------------------------------------------------------------------ group norms


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)
        self.c = nn.Conv2d(4, 5, 3)
        self.linear = nn.Linear(5, 2)

    def forward(self, x):
        x = self.norm(self.a(x)).relu()
        return self.linear((self.b(x) + self.c(x)).mean((2, 3)))


def test_a_group_is_a_filter_its_scale_and_what_reads_its_channel():
    torch.manual_seed(0)
    model = Chain().eval()
    nn.init.uniform_(model.norm.weight)
    norms = group_norms(model)
    for i in range(4):
        parts = model.a.weight[i], model.norm.weight[i], model.b.weight[:, i], model.c.weight[:, i]
        assert norms["a"][i].item() == pytest.approx(
            math.sqrt(sum(p.square().sum().item() for p in parts))
        )
    for name in "bc":  # each of the two writers has half of what reads their channel
        for i in range(5):
            own = (
                getattr(model, name).weight[i].square().sum()
                + model.linear.weight[:, i].square().sum() / 2
            )
            assert norms[name][i].item() == pytest.approx(math.sqrt(own.item()))
    small = prune(
        model, {"a": torch.tensor([0, 2]), "b": torch.tensor([1, 3]), "c": torch.tensor([1, 2])}
    )
    left = group_norms(small)  # channel 1 has two writers still, 2 and 3 have one each
    whole = small.c.weight[1].square().sum() + model.linear.weight[:, 2].square().sum()
    assert left["c"][1].item() == pytest.approx(math.sqrt(whole.item()))
    scores = cal_importance(model, "group")
    assert all(torch.allclose(scores[name], norms[name].float()) for name in norms)


# ------------------------------------------------------------------------------ steps, and after


@pytest.mark.parametrize(
    "gone, percent, steps, expected",
    [
        (0, 75, 2, [50, 75]),
        (0, 50, 1, [50]),
        (50, 75, 2, [64.6, 75]),
        (60, 40, 3, [40]),
        (0, 0, 4, [0]),
        (0, 60, 3, [26.3, 45.7, 60]),
    ],
)
def test_what_is_left_shrinks_by_the_same_factor_in_each_step(gone, percent, steps, expected):
    targets = step_targets(gone, percent, steps)
    assert targets == pytest.approx(expected, abs=0.05) and targets[-1] == percent


def test_statistics_are_those_of_the_images_and_nothing_else_changes(network, few):
    images = few[0]
    small = prune(network, select_filters(network, random_scores(network), 50)).train()
    frozen = next(m for m in small.modules() if isinstance(m, nn.Dropout | nn.BatchNorm2d)).eval()
    before = {name: p.clone() for name, p in small.named_parameters()}
    reestimate(small, [(images[:12], None), (images[12:], None)])
    assert small.training and not frozen.training
    assert all(torch.equal(p, before[name]) for name, p in small.named_parameters())
    norm = next(m for m in small.modules() if isinstance(m, nn.BatchNorm2d))
    first = next(m for m in small.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        halves = [first(part) for part in (images[:12], images[12:])]
    if network.origin.name == "vgg":  # whose BatchNorms stand behind the ReLU
        halves = [half.relu() for half in halves]
    wanted = sum(half.mean((0, 2, 3)) for half in halves) / 2
    torch.testing.assert_close(norm.running_mean, wanted, rtol=1e-4, atol=1e-5)
    wanted = sum(half.var((0, 2, 3)) for half in halves) / 2
    torch.testing.assert_close(norm.running_var, wanted, rtol=1e-3, atol=1e-5)
    assert all(m.momentum == 0.1 for m in small.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_teachers_answers_are_part_of_the_loss(few):
    images, labels = few
    torch.manual_seed(0)
    own, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(768, 4)) for _ in range(2))
    logits = own(images)
    loss = F.cross_entropy(logits, labels)
    mixed = Distillation(teacher.train(), 0.3, 2.0)(loss, logits, images)
    p = (teacher(images) / 2).softmax(1)
    apart = (p * (p.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(mixed, 0.7 * loss + 0.3 * 4 * apart)
    assert teacher.training and all(w.grad is None for w in teacher.parameters())
    still = torch.optim.SGD(own.parameters(), lr=0.0)
    batches, distillation = [(images, labels)], Distillation(teacher, 0.3, 2.0)
    figures = train_epoch(own, batches, TrainingStep(own, still, distillation=distillation))
    assert figures["loss"] == pytest.approx(mixed.item(), rel=1e-5)


def test_the_last_epoch_may_be_taken(digits):
    model = narrow("vgg", num_classes=10)
    recipe = config.Recipe(
        lr=[0.02, 1], epochs=[2, 1], weight_decay=0, adam_lr=[1, 1]
    )  # the last spoils it
    trained = fit(
        model, digits, recipe, key=(0,), batch_size=128, choose="last", report=lambda *_: None
    )
    assert trained.history[1]["test"]["top1"] > trained.history[2]["test"]["top1"] + 5
    assert (
        trained.best == trained.last and trained.best["epoch"] == 3 and trained.chosen_on == "last"
    )
    assert train.evaluate(model, digits.test_batches())["top1"] == trained.last["top1"]


# ------------------------------------------------------------------------------------ the commands


@pytest.fixture
def flags(folder, monkeypatch, tmp_path):
    monkeypatch.setitem(config.PRESETS, "test", short_preset(epochs=1))
    monkeypatch.chdir(tmp_path)
    return ["--preset=test", "--image_size=16", f"--data_path={folder}", "--ebt=True"]


@pytest.mark.parametrize(
    "removed, accuracies, chosen",
    [
        ((60, 60, 60), (10, 30, 20), 1),
        ((60, 50, 60), (10, 90, 20), 2),
        ((48, 40, 47.5), (10, 90, 20), 2),
        ((60, 60, 60), (30, 30, 20), 0),
    ],
)
def test_a_smaller_cut_is_no_candidate(removed, accuracies, chosen):
    candidates = [
        {"achieved_percent": gone, "top1": top1} for gone, top1 in zip(removed, accuracies)
    ]
    assert cutting.best_of(candidates, 60) == chosen


def test_after_single_cuts_channels_are_compared_with_their_whole_stage():
    model = narrow("resnet-56")
    half = prune(model, select_filters(model, random_scores(model), 40))
    scores = random_scores(half, 1)
    for ranking in ("layer", "mean"):
        kept = select_filters(half, scores, 60, ranking=ranking, residual="coupled")
        stage = [g for g in filter_groups(half) if g.stream.name == "layer3"]
        sums = torch.zeros(stage[0].stream.width)
        gone = torch.zeros(stage[0].stream.width, dtype=torch.bool)
        for group in stage:
            sums.index_add_(0, torch.tensor(group.channels), scores[group.name])
            lost = torch.ones(len(group.channels), dtype=torch.bool)
            lost[kept[group.name]] = False
            gone[torch.tensor(group.channels)[lost]] = True
        assert gone.any() and sums[gone].max() <= sums[~gone].min()


@pytest.mark.parametrize(
    "activation", [nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.SiLU, nn.Tanh, nn.Hardswish]
)
def test_fused_activations_hide_no_layers_time(activation):
    pytest.importorskip("onnxruntime")
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        activation(),
        nn.Conv2d(8, 8, 3),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    times = runtime_of(model, 16).layer_times(torch.zeros(4, 3, 16, 16), runs=2)
    assert times.keys() == {"0", "3", "7"}


def test_a_layer_without_a_time_has_its_multiply_adds(monkeypatch):
    model = narrow("vgg")
    macs = measure_cost(model, 16)["layer_macs"]
    clock = latency.Clock(model, 16, 2, torch.device("cpu"))
    monkeypatch.setattr(
        latency, "layer_times", lambda *_: {name: 1e-3 * macs[name] for name in list(macs)[::2]}
    )
    assert clock.layer_times(model) == pytest.approx(
        {name: 1e-3 * count for name, count in macs.items()}
    )


def test_statistics_without_images_or_norms(few):
    model = narrow("vgg")
    with pytest.raises(ValueError, match="no images"):
        reestimate(model, iter(()))
    with pytest.raises(ValueError, match="more than 1 value"):
        reestimate(nn.Sequential(nn.BatchNorm2d(3)), [(torch.zeros(1, 3, 1, 1), None)])
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert reestimate(nn.Linear(2, 2), [(torch.zeros(2, 2), None)]) == 0


def test_a_buffer_that_scales_channels_is_no_weight():
    model = Chain().eval()
    model.register_buffer("scale", torch.rand(1, 4, 1, 1))
    model.__class__ = type(
        "Scaled",
        (Chain,),
        {
            "forward": lambda self, x: self.linear(
                (
                    self.b(self.norm(self.a(x)).relu() * self.scale)
                    + self.c(self.norm(self.a(x)).relu() * self.scale)
                ).mean((2, 3))
            )
        },
    )
    assert set(group_norms(model)) == {"a", "b", "c"}


def result(name):
    """The record of the only pruned network whose name has this in it."""
    (path,) = (path for path in Path("pruned_nets").rglob(f"*{name}*.json"))
    return Record.read_result(json.loads(path.read_text())), path


def test_the_best_of_all_cuts_is_retrained(flags, capsys, monkeypatch):
    told, evaluate = iter([10, 30, 20, 90, 0, 90, 5, 5, 5, 5]), train.evaluate

    def watched(model, batches):
        if len(batches.split) == 3:  # a tenth of 36 images: one of each class
            return {"top1": float(next(told))}
        return evaluate(model, batches)

    monkeypatch.setattr(train, "evaluate", watched)
    job = [*flags, "--model=resnet-56", "--width=0.25", "--pruning_type=group", "--budget=macs"]
    assert main.main([*job, "--prune_percent=40", "--select=best", "--bn_images=24"]) == 0
    out = capsys.readouterr().out
    record, path = result("best")
    tried = record.pruning["candidates"]
    assert [(trial["ranking"], trial["residual"]) for trial in tried] == [
        (ranking, residual) for residual in ("single", "coupled") for ranking in config.RANKINGS
    ]
    assert [trial["top1"] for trial in tried] == [10, 30, 20, 90, 0, 90, 5, 5, 5, 5]
    assert [trial["chosen"] for trial in tried].index(True) == 3  # of equals the first
    chosen = tried[3]
    assert path.name.startswith("resnet-56-w0.25_group-best-bn24_40_0")
    assert "on 3 training images held out from the cut" in out and out.count("chosen\n") == 1
    assert record.achieved == chosen["achieved_percent"] and record.after_bn is not None
    assert record.variant == "group, best of rankings, BatchNorm on 24 images"
    assert "with BatchNorms re-estimated on 24 training images: top-1" in out


def test_a_cut_in_steps_scores_what_is_left(flags, capsys, monkeypatch):
    seen = []
    score = cutting.cal_importance

    def watched(network, *args, **kwargs):
        seen.append(pruned_percent(network, "macs", 16))
        return score(network, *args, **kwargs)

    monkeypatch.setattr(cutting, "cal_importance", watched)
    job = [
        *flags,
        "--model=vgg",
        "--width=0.125",
        "--pruning_type=tfo",
        "--budget=macs",
        "--prune_percent=75",
    ]
    assert (
        main.main([*job, "--score_steps=2", "--ranking=paper", "--per_cost=True", "--choose=last"])
        == 0
    )
    out = capsys.readouterr().out
    assert seen == [0, pytest.approx(50, abs=3)] and ", in 2 steps\n" in out
    assert "  cut     paper, per cost, 2 steps\n" in out and "best epoch" not in out
    record, path = result("tfo")
    assert path.name == "vgg-w0.125_tfo-paper-percost-steps2_75_0.json"
    assert record.variant == "tfo, paper, per cost, 2 steps" and record.chosen_on == "last"
    assert record.achieved == pytest.approx(75, abs=1)


def test_a_ticket_in_steps_keeps_what_the_cut_keeps(flags, monkeypatch):
    run = main.make_job(
        [
            *flags,
            "--model=vgg",
            "--width=0.125",
            "--pruning_type=tfo",
            "--prune_percent=60",
            "--eb_detect=True",
            "--score_steps=2",
        ]
    )
    run.network = narrow("vgg", num_classes=3)
    mask = main.find_ticket(run).mask()
    small, _ = cutting.cut_in_steps(run, 0, 60, 2000)
    assert mask.sum() == sum(g.conv.out_channels for g in filter_groups(small))
    kept = kept_filters(run.network, small)
    widths = [len(kept[g.name]) for g in filter_groups(run.network)]
    parts = mask.split([g.conv.out_channels for g in filter_groups(run.network)])
    assert [int(part.sum()) for part in parts] == widths


def test_kept_layers_stay_in_all_rounds_of_a_run_and_tell_runs_apart(flags, capsys, monkeypatch):
    job = [
        *flags[:-1],
        "--model=vgg",
        "--width=0.125",
        "--pruning_type=l1",
        "--thresholds=[20, 40]",
        "--keep=features.2*, features.0",
    ]
    for more in (["--budget=macs", "--score_steps=2"], ["--select=best"], ["--ranking=measured"]):
        assert main.main([*job, *more]) == 0
    for path in Path("pruned_nets").rglob("*.json"):
        record = Record.read_result(json.loads(path.read_text()))
        assert record.flag("keep") == "features.0,features.2*"
        assert "features.0 and features.2* whole" in record.variant and "-keep" in path.name
        for name, width in record.widths.items():
            if name.startswith("features.2") or name == "features.0":
                assert width == record.unpruned.widths[name]
        assert sum(record.widths.values()) < sum(record.unpruned.widths.values())
    assert len(list(Path("pruned_nets").rglob("*.json"))) == 6
    capsys.readouterr()

    def names_of(*more):
        return parse([*job, *more]).pruned_file("", 40, False).name

    assert names_of("--keep=features.0,features.2*,features.2*") == names_of()
    assert len({names_of(), names_of("--keep=features.0"), names_of("--keep=False")}) == 3
    assert main.main([*flags, *job[len(flags) - 1 : -2], "--prune_percent=20", "--keep=*"]) == 0
    out = capsys.readouterr().out
    assert "0.00% is the most that can be removed" in out and "--keep=* stays whole" in out
    assert main.main([*job[:-1], "--keep=feature.*"]) == 2
    assert "--keep='feature.*' names no layer that can be pruned; did you mean features.*" in (
        capsys.readouterr().err
    )


def test_a_ticket_keeps_what_the_cut_keeps_whole(flags):
    job = [*flags, "--model=vgg", "--width=0.125", "--pruning_type=l1", "--prune_percent=60"]
    run = main.make_job([*job, "--eb_detect=True", "--keep=features.0"])
    run.network = narrow("vgg", num_classes=3)
    assert main.find_ticket(run).mask()[: run.network.features[0].out_channels].all()
    run = main.make_job([*job, "--eb_detect=True"])
    run.network = narrow("vgg", num_classes=3)
    assert not main.find_ticket(run).mask()[: run.network.features[0].out_channels].all()


def test_a_preset_may_say_what_flags_are(flags, monkeypatch, capsys):
    preset = config.replace(
        config.PRESETS["test"], flags={"ranking": "mean", "bn_images": 64, "choose": "last"}
    )
    monkeypatch.setitem(config.PRESETS, "mine", preset)
    flags = ["--preset=mine", *flags[1:], "--pruning_type=l1", "--prune_percent=50"]
    usual, own = parse(flags), parse([*flags, "--ranking=norm", "--bn_images", "0"])
    best = parse([*flags, "--select=best"])
    assert (best.ranking, best.residual, best.method) == ("global", "single", "l1-best")
    monkeypatch.setitem(
        config.PRESETS,
        "other",
        config.replace(preset, flags={"select": "best", "prune_percent": 30}),
    )
    other = parse(["--preset=other", *flags[1:-1], "--pruning_percent=75", "--select=False"])
    assert (other.prune_percent, other.method) == (75, "l1-no-select")
    assert (usual.ranking, usual.bn_images, usual.choose, usual.method) == (
        "mean",
        64,
        "last",
        "l1",
    )
    assert (own.ranking, own.bn_images, own.method) == ("norm", 0, "l1-norm-bn0")
    trained = parse([*flags[:-2], "--only_train=base"])
    assert (trained.ranking, trained.choose) == ("global", "last")
    for wrong, says in (
        ({"rank": "mean"}, "there is no flag 'rank'"),
        ({"ranking": "mine"}, "flags: argument --ranking"),
    ):
        monkeypatch.setitem(config.PRESETS, "mine", config.replace(preset, flags=wrong))
        with pytest.raises((InputError, SystemExit)) as refused:
            parse(flags)
        assert says in str(refused.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    "more, says",
    [
        (["--select=best", "--ranking=mean"], "leave out --ranking"),
        (["--select=best", "--residual=coupled"], "leave out --residual"),
        (["--select=best", "--eb_detect=True"], "leave out --select=best"),
        (["--per_cost=True"], "does not estimate the change of the loss"),
        (
            ["--per_cost=True", "--ranking=measured", "--pruning_type=fisher"],
            "divides by costs already",
        ),
        (["--control=unpruned", "--prune_percent=0", "--bn_images=8"], "leave out --bn_images"),
        (["--bn_images=1"], "two images at least"),
        (["--score_steps=0"], "from 1 to 100"),
        (["--distill=2"], "up to 1"),
        (["--ranking=mine"], "invalid choice"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(more, says, flags, capsys):
    try:
        assert main.main([*flags, "--pruning_type=l1", "--prune_percent=50", *more]) == 2
    except SystemExit as end:  # of the parser
        assert end.code == 2
    assert says in capsys.readouterr().err


def test_choices_leave_out_what_is_the_same(network):
    ways = choices(network)
    coupled = {"resnet", "resnet-56"} & {network.origin.name}
    assert len(ways) == (10 if coupled else 5)


def test_few_validation_images_are_said_to_choose_by_chance(flags, capsys):
    falling = config.Recipe(lr=[0.02], epochs=[4], weight_decay=0, adam_lr=[1], schedule="cosine")
    config.PRESETS["test"] = config.replace(
        config.PRESETS["test"], ebt=config.Schedule(falling, falling, falling)
    )
    job = [*flags, "--model=vgg", "--width=0.125", "--only_train=base", "--val_percent=10"]
    assert main.main(job) == 0
    assert "--choose=last takes the last one" in capsys.readouterr().out
    assert main.main([*job, "--choose=last"]) == 0
    out = capsys.readouterr().out
    assert "--choose=last takes" not in out and "last epoch: 4" in out


@pytest.mark.parametrize("batch, noted", [("12", True), ("2", False)])
def test_too_few_steps_are_noted_with_what_would_help(batch, noted, flags, capsys, monkeypatch):
    monkeypatch.setitem(config.PRESETS, "test", short_preset(epochs=5))
    job = main.make_job([*flags, "--model=vgg", "--only_train=base", f"--batch_size={batch}"])
    job._introduce()
    out = capsys.readouterr().out
    assert ("5 epochs of 3 steps are 15 steps in all" in out) == noted
    assert ("--batch_size=4 makes it 45" in out) == noted


def test_a_sweep_of_rankings_has_a_file_for_each_and_one_control(flags, tmp_path):
    ways = {
        "ranking": ["global", "mean"],
        "residual": ["single", "coupled"],
        "score_steps": [1, 2],
        "distill": [0, 0.5],
        "control": [False, "unpruned"],
    }
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            {
                "data_path": "digits",
                "ebt": True,
                "model": "resnet-56",
                "pruning_type": "fisher",
                "prune_percent": 50,
                **ways,
            }
        )
    )
    cells = sweep.read_sweep("sweep.json")
    assert len(cells) == 2**4 + 2  # the unpruned network, with the answers of its own and without
    names = [parse(sweep.command_of(cell)).pruned_file("", 50, False).name for cell in cells]
    assert (
        "fisher-steps2-best"
        in parse(
            sweep.command_of(
                sweep._without_idle(
                    {**cells[-2], "control": False, "select": "best", "ranking": "mean"}
                )
            )
        ).method
    )
    assert "per_cost" not in sweep._without_idle({"pruning_type": "l1", "per_cost": True})
    assert len(set(names)) == len(cells) and "resnet-56_base-distill0.5-unpruned_50_0.pth" in names


def test_controls_learn_from_the_unpruned_network_too(flags, capsys, monkeypatch):
    taught = []
    init = Distillation.__init__

    def watched(self, teacher, share, *rest):
        taught.append((teacher, share))
        init(self, teacher, share, *rest)

    monkeypatch.setattr(Distillation, "__init__", watched)
    job = [*flags, "--model=vgg", "--width=0.125", "--pruning_type=fisher", "--distill=0.5"]
    assert main.main([*job, "--prune_percent=50"]) == 0
    assert main.main([*job, "--prune_percent=50", "--control=scratch"]) == 0
    assert main.main([*job, "--pretrained=True", "--control=unpruned"]) == 0
    base, _ = load_checkpoint("pretrained/ebt/shapes/vgg-w0.125.pth")
    assert len(taught) == 3
    for teacher, share in taught:  # which nothing has trained meanwhile
        state = teacher.state_dict()
        assert share == 0.5 and all(
            torch.equal(state[name], tensor) for name, tensor in base.state_dict().items()
        )
    assert main.main([*job, "--prune_percent=50", "--val_percent=10"]) == 0
    assert main.main([*flags, "--model=vgg", "--width=0.125", "--only_train=base"]) == 0
    assert main.main([*job, "--prune_percent=50", "--val_percent=10", "--control=scratch"]) == 2
    assert "may have been trained on the images that --val_percent=10" in capsys.readouterr().err
    Path("pretrained/ebt/shapes/vgg-w0.125.pth").unlink()
    job.append("--val_percent=10")
    capsys.readouterr()
    assert main.main([*job, "--prune_percent=50", "--control=scratch"]) == 2
    assert "needs the answers of" in capsys.readouterr().err


def test_only_a_retraining_learns_answers(flags, monkeypatch):
    taught = []

    def watched(*args, key, teacher=None, **more):
        taught.append((key[1], teacher is not None))
        return fit(*args, key=key, teacher=teacher, **more)

    monkeypatch.setattr(train, "fit", watched)
    assert (
        main.main(
            [
                *flags[:-1],
                "--model=vgg",
                "--width=0.125",
                "--pruning_type=orthoreg",
                "--thresholds=[20, 40]",
                "--distill=0.5",
            ]
        )
        == 0
    )
    assert taught == [
        ("base", False),
        ("ortho", False),
        ("between", True),
        ("ortho", False),
        ("retrain", True),
    ]
    record = json.loads(next(Path("pruned_nets").rglob("*_40_0.json")).read_text())
    assert record["training"]["retrain"]["distill"] == 0.5


def test_one_image_of_each_class_is_too_few_to_select_by(flags, digits, tmp_path, capsys):
    write_folder(tmp_path / "few", digits, train=1, test=1)
    job = [
        flags[0],
        flags[1],
        f"--data_path={tmp_path / 'few'}",
        "--ebt=True",
        "--pruning_type=l1",
        "--prune_percent=50",
    ]
    assert main.main([*job, "--model=vgg", "--width=0.125", "--select=best"]) == 2
    assert (
        "--select=best holds out a tenth" in capsys.readouterr().err
        and not Path("pretrained").exists()
    )


def test_without_batchnorms_nothing_is_said_to_be_re_estimated(flags, tmp_path, capsys):
    Path("net.py").write_text("""
from torch import nn
def Net(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
""")
    assert (
        main.main(
            [
                *flags,
                "--model=net.py:Net",
                "--pruning_type=group",
                "--prune_percent=50",
                "--bn_images=24",
            ]
        )
        == 0
    )
    assert "re-estimated" not in capsys.readouterr().out
