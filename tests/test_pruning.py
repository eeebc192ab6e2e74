"""Selection keeps to its budget, surgery changes the size and nothing else, files come back."""

import os
import re

import pytest
import torch
from torch.nn import functional as F

from channels.costs import measure_cost
from channels.groups import filter_count, filter_groups, widths_of
from common.errors import InputError
from common.files import write_atomically
from conftest import masked, narrow
from imp_estimator import cal_importance
from lab.checkpoint import load_checkpoint, save_checkpoint
from lab.experiment import parse
from lab.networks import build_network
from models import build_model
from pruner import max_percent, prune, pruned_percent, round_targets, select_filters


def random_scores(model, seed=0):
    return cal_importance(model, "random", seed=seed)


def assert_same_function(small, reference):
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(small(images), reference(images), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------- surgery


@pytest.mark.parametrize("percent", [25, 50, 75])
def test_pruned_logits_equal_masked_logits(network, percent):
    kept = select_filters(network, random_scores(network), percent)
    small = prune(network, kept)
    assert_same_function(small, masked(network, kept))
    assert pruned_percent(small) == pytest.approx(percent, abs=200 / filter_count(network)[1])


def test_pruned_logits_equal_masked_logits_over_three_rounds(network):
    for number, target in enumerate(round_targets(75, 3)):
        kept = select_filters(network, random_scores(network, number), target)
        small = prune(network, kept)
        assert_same_function(small, masked(network, kept))
        assert measure_cost(small)["flops"] < measure_cost(network)["flops"]
        assert measure_cost(small)["parameters"] < measure_cost(network)["parameters"]
        network = small
    assert pruned_percent(network) == pytest.approx(75, abs=200 / filter_count(network)[1])


def test_a_step_of_training_after_surgery_changes_every_parameter(network, few):
    small = prune(network, select_filters(network, random_scores(network), 50)).train()
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    images, labels = few
    F.cross_entropy(small(images), labels).backward()
    optimizer.step()
    for name, parameter in small.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    for group in filter_groups(small):
        changed = (group.conv.weight != before[f"{group.name}.weight"]).flatten(1).any(1)
        if not group.is_fixed:  # filters whose ReLU is dead on 24 images may rest
            assert changed.float().mean() > 0.5, group.name


def test_the_original_network_is_not_touched(network):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    frozen = filter_groups(network.train())[1].bn.eval()
    small = prune(network, select_filters(network, random_scores(network), 50))
    assert network.training and not frozen.training
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.fill_(7)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_removed_residual_filters_are_gone_and_dead_channels_leave_the_stream():
    model = narrow("resnet")
    kept = {g.name: torch.arange(g.conv.out_channels) for g in filter_groups(model)}
    writers = [g for g in filter_groups(model) if g.stream.name == "layer2"]
    for group in writers:  # channel 5 dies; channel 3 loses one writer only
        kept[group.name] = torch.tensor([i for i in range(16) if i != 5])
    kept["layer2.1.conv2"] = torch.tensor([i for i in range(16) if i not in (3, 5)])
    small = prune(model, kept)
    assert_same_function(small, masked(model, kept))
    assert small.layer2[1].conv2.weight.shape[0] == small.layer2[1].bn2.num_features == 14
    assert {g.stream.width for g in filter_groups(small) if g.stream.name == "layer2"} == {15}
    for reader in (small.layer2[1].conv1, small.layer3[0].conv1, small.layer3[0].shortcut[0]):
        assert reader.in_channels == 15
    assert widths_of(small)["layer2.1.conv2"] == [i for i in range(15) if i != 3]
    assert widths_of(small)["layer2.2.conv2"] == 15


def test_both_writers_of_a_block_may_write_less_than_the_stream():
    model = narrow("resnet")
    kept = {g.name: torch.arange(g.conv.out_channels) for g in filter_groups(model)}
    kept["layer2.0.conv2"], kept["layer2.0.shortcut.0"] = torch.arange(4), torch.arange(2, 9)
    small = prune(model, kept)
    assert_same_function(small, masked(model, kept))
    # The later blocks write every channel.
    assert {g.stream.width for g in filter_groups(small) if g.stream.name == "layer2"} == {16}
    small.train()(torch.randn(2, 3, 16, 16)).sum().backward()


@pytest.mark.parametrize("bad", [[], [0, 0], [1, 0], [99], [-1]])
def test_prune_refuses_what_is_not_a_choice_of_filters(bad):
    model = narrow("vgg")
    kept = {g.name: torch.arange(g.conv.out_channels) for g in filter_groups(model)}
    with pytest.raises(ValueError, match="features.3"):
        prune(model, {**kept, "features.3": torch.tensor(bad, dtype=torch.long)})


# ----------------------------------------------------------------------------------- selection


def removed(model, kept):
    return {
        g.name: sorted(set(range(g.conv.out_channels)) - set(kept[g.name].tolist()))
        for g in filter_groups(model)
    }


@pytest.mark.parametrize("percent", [0, 1, 10, 33, 60])
def test_budget_is_met_to_within_a_filter_and_never_exceeded(network, percent):
    gone = removed(network, select_filters(network, random_scores(network), percent))
    costs = {g.name: max(g.costs) for g in filter_groups(network)}
    count = sum(len(filters) * costs[name] for name, filters in gone.items())
    target = round(filter_count(network)[1] * percent / 100)
    assert target - max(costs.values()) < count <= target


def test_all_layers_are_ranked_together():
    model = narrow("vgg")  # 8 8 16 16 32 32 64 64 64 64: 368 filters
    scores = {g.name: torch.full((g.conv.out_channels,), 10.0) for g in filter_groups(model)}
    scores["features.3"][[1, 5]] = torch.tensor([1.0, 3.0])
    scores["features.28"][7] = 2.0
    two = removed(model, select_filters(model, scores, 100 * 2 / 368, below_one=True))
    three = removed(model, select_filters(model, scores, 100 * 3 / 368, below_one=True))
    assert {k: v for k, v in two.items() if v} == {"features.3": [1], "features.28": [7]}
    assert {k: v for k, v in three.items() if v} == {"features.3": [1, 5], "features.28": [7]}


def test_signed_scores_are_ranked_as_they_are():
    model = narrow("vgg")
    scores = {g.name: torch.ones(g.conv.out_channels) for g in filter_groups(model)}
    scores["features.0"][2], scores["features.0"][3] = -5.0, 0.0
    gone = removed(model, select_filters(model, scores, 100 / 368, below_one=True))
    assert gone["features.0"] == [2]


def test_equal_scores_go_in_order():
    model = narrow("vgg")
    scores = {g.name: torch.ones(g.conv.out_channels) for g in filter_groups(model)}
    gone = removed(model, select_filters(model, scores, 100 * 8 / 368))
    assert gone["features.0"] == [0, 1, 2, 3, 4, 5, 6] and gone["features.3"] == [0]


def test_floors_keep_the_highest_scored_filters(network):
    scores = random_scores(network)
    kept = select_filters(network, scores, 95)
    for group in filter_groups(network):
        floor = group.conv.out_channels * 5 // 100 + 1
        if not group.is_fixed:
            best = scores[group.name].topk(floor).indices
            assert set(best.tolist()) <= set(kept[group.name].tolist())


@pytest.mark.parametrize(
    "name, floors",
    [
        ("vgg", {"features.0": 4, "features.31": 26}),
        ("resnet-56", {"layer1.0.conv1": 1, "layer3.0.conv2": 4}),
        ("mobilenet", {"conv1": 2, "layers.12.conv2": 52}),
    ],
)
def test_floor_is_five_percent_and_one_of_the_published_width(name, floors):
    model = build_model(name)
    assert {g.name: g.floor for g in filter_groups(model) if g.name in floors} == floors


@pytest.mark.parametrize("name", ["resnet", "resnet-56"])
def test_the_stem_of_a_resnet_is_protected(name):
    model = narrow(name)
    scores = random_scores(model)
    scores["conv1"].fill_(-1.0)
    kept = select_filters(model, scores, 95)
    assert len(kept["conv1"]) == model.conv1.out_channels
    with pytest.raises(ValueError, match="never pruned"):
        prune(model, {**kept, "conv1": torch.tensor([0])})


def test_a_mobilenet_filter_carries_the_depthwise_filter_behind_it():
    model = narrow("mobilenet")
    scores = {g.name: torch.ones(g.conv.out_channels) for g in filter_groups(model)}
    scores["layers.3.conv2"][4] = 0.0
    total = filter_count(model)[1]
    assert not any(
        removed(model, select_filters(model, scores, 100 / total, below_one=True)).values()
    )
    kept = select_filters(model, scores, 200 / total, below_one=True)
    assert {k: v for k, v in removed(model, kept).items() if v} == {"layers.3.conv2": [4]}
    small = prune(model, kept)
    assert small.layers[4].conv1.weight.shape[0] == model.layers[4].conv1.weight.shape[0] - 1
    assert filter_count(small) == (total - 2, total)


def test_an_unreachable_target_goes_as_far_as_the_floors_allow(network):
    small = prune(network, select_filters(network, random_scores(network), 99))
    assert pruned_percent(small) == pytest.approx(max_percent(network)) and max_percent(small) < 99
    for group in filter_groups(small):
        assert group.conv.out_channels == group.floor


def test_rounds_count_from_the_unpruned_network(network):
    total = filter_count(network)[1]
    for number, target in enumerate([10, 30, 50]):
        network = prune(network, select_filters(network, random_scores(network, number), target))
        assert filter_count(network)[1] == total
        assert pruned_percent(network) == pytest.approx(target, abs=200 / total)
    assert not any(removed(network, select_filters(network, random_scores(network), 40)).values())


@pytest.mark.parametrize(
    "percent, rounds, expected",
    [(50, 2, [33.3, 50]), (80, 3, [57.1, 72.7, 80]), (25, 1, [25]), (0, 2, [0, 0])],
)
def test_round_targets(percent, rounds, expected):
    targets = round_targets(percent, rounds)
    assert targets == pytest.approx(expected, abs=0.05) and targets[-1] == percent


@pytest.mark.parametrize(
    "percent, how, says",
    [
        (50, {"budget": "latency"}, "must be one of filters, macs, params; measured time needs"),
        (50, {"budget": "flops"}, "budget is 'flops'"),
        (0.5, {}, "give percent=50"),
        (0.29, {"budget": "macs"}, "give percent=29"),
        ("50", {}, "percent is '50'"),
        (float("nan"), {}, "percent is nan"),
        (-1, {}, "from 0 to 100"),
        (101, {}, "from 0 to 100"),
        (50, {"round_to": 0}, "round_to is 0"),
        (50, {"residual": "doubled"}, "single or coupled"),
    ],
)
def test_how_much_is_to_go_is_never_guessed(percent, how, says):
    model = narrow("vgg")
    with pytest.raises(ValueError, match=re.escape(says)):
        select_filters(model, random_scores(model), percent, **how)
    with pytest.raises(ValueError, match="budget is 'latency'"):
        pruned_percent(model, "latency")


def test_plans_of_less_than_a_percent_are_no_shares(digits):
    """A round, a step or a halving of a command may take less than one percent."""
    model = narrow("vgg")
    for percent in (0, 1, 0.3):
        kept = select_filters(model, random_scores(model), percent, below_one=True)
        assert sum(map(len, kept.values())) == round(368 * (1 - percent / 100))
    choice = parse(["--pruning_type=l1", "--prune_percent=1", "--n_rounds=1"]).choice(16)
    assert select_filters(model, random_scores(model), 0.3, **choice)


def test_what_to_keep_is_said_of_every_layer():
    model = narrow("vgg")
    kept = select_filters(model, random_scores(model), 50)
    for without in (
        {name: index for name, index in kept.items() if name != "features.3"},
        {**kept, "features.3": None},
    ):
        with pytest.raises(ValueError, match=r"keep of features.3 is missing: .* range\(8\)"):
            prune(model, without)
    assert prune(model, {**kept, "features.3": range(8)}).features[3].out_channels == 8


def test_scores_that_do_not_fit_are_refused():
    model = narrow("vgg")
    scores = random_scores(model)
    for wrong in (
        {**scores, "features.3": torch.ones(5)},
        {k: v for k, v in scores.items() if k != "features.3"},
    ):
        with pytest.raises(ValueError, match="features.3"):
            select_filters(model, wrong, 25)


@pytest.mark.parametrize("budget", ["macs", "params"])
@pytest.mark.parametrize("percent", [5, 50])
def test_a_budget_of_macs_or_parameters_is_met_to_within_one_filter(network, budget, percent):
    """Not exceeded, and exceeded by the very next filter in the ranking."""
    scores, (total, dense) = random_scores(network), filter_count(network)
    small = prune(network, select_filters(network, scores, percent, budget, image_size=16))
    achieved = pruned_percent(small, budget, 16)
    assert 0 < achieved <= percent
    gone = total - filter_count(small)[0]
    more = prune(
        network,
        select_filters(
            network,
            scores,
            100 * (gone + max(max(g.costs) for g in filter_groups(network))) / dense,
        ),
    )
    assert pruned_percent(more, budget, 16) > percent
    cost = measure_cost(network, 16), measure_cost(small, 16)
    key = {"macs": "macs", "params": "parameters"}[budget]
    assert achieved == pytest.approx(100 * (1 - cost[1][key] / cost[0][key]))


def test_max_percent_is_what_is_left_when_all_that_may_goes():
    model = narrow("vgg")
    small = prune(model, select_filters(model, random_scores(model), 95, "macs", image_size=16))
    assert pruned_percent(small, "macs", 16) <= 95 < max_percent(model, "macs", 16)
    smallest = prune(model, select_filters(model, random_scores(model), 100, "params"))
    assert pruned_percent(smallest, "params") == pytest.approx(max_percent(model, "params"))


def test_less_can_go_where_the_writers_of_a_channel_go_together():
    model = narrow("resnet-56")
    small = prune(model, select_filters(model, random_scores(model), 99, residual="coupled"))
    assert pruned_percent(small) == pytest.approx(max_percent(model, residual="coupled"))
    assert max_percent(model, residual="coupled") < max_percent(model) - 1


@pytest.mark.parametrize("budget", ["filters", "macs"])
def test_as_many_filters_go_as_rounded_widths_allow(network, budget):
    scores = random_scores(network)

    def rounded(percent):
        return select_filters(network, scores, percent, budget, round_to=4, image_size=16)

    def gone(kept):
        return pruned_percent(prune(network, kept), budget, 16)

    kept = rounded(60)
    for group in filter_groups(network):
        full, left = group.conv.out_channels, kept[group.name].tolist()
        assert len(left) % 4 == 0 or len(left) == full
        removed = set(range(full)) - set(left)
        if len(group.costs) == 1 or not removed:
            continue
        lowest = sorted(scores[group.name].tolist())[: len(removed)]
        assert sorted(scores[group.name][i].item() for i in removed) == lowest
    assert_same_function(prune(network, kept), masked(network, kept))
    assert gone(kept) <= 60
    for percent in range(61, 95):
        if gone(more := rounded(percent)) != gone(kept):
            assert gone(more) > 60  # the next step would be too far
            break


# --------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def small(network):
    return prune(network, select_filters(network, random_scores(network), 60))


def test_a_checkpoint_brings_back_the_same_network(small, tmp_path):
    save_checkpoint(tmp_path / "a" / "net.pth", small, {"data": "digits", "seed": 3})
    again, record = load_checkpoint(tmp_path / "a" / "net.pth")
    assert_same_function(again.eval(), small)
    assert widths_of(again) == widths_of(small) and filter_count(again) == filter_count(small)
    assert (record.data, record.seed, record.pruned) == ("digits", 3, True)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["net.pth"]
    origin = small.origin
    twin = build_network(origin.name, origin.num_classes, origin.width, record.cfg)
    twin.load_state_dict(small.state_dict(), strict=True)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.pth"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_atomically({path: b"new"})
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["net.pth"]
