"""The penalty, the training loop and the batches that feed it."""

import itertools
import math
import platform
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from channels.groups import filter_groups
from common.command import run_command
from common.device import autocast
from common.errors import Diverged, InputError
from config import PRESETS, Recipe, Schedule
from conftest import ROOT, narrow
from data import Batches, ImageData, Split
from imp_estimator import cal_importance
from lab.presets import apportioned, recipe_text, scaled
from models import build_model
from train import (
    OrthonormalityPenalty,
    TrainingSettings,
    TrainingStep,
    convolutions,
    criterion_of,
    degree_of_orthogonality,
    evaluate,
    fit,
    fused,
    train_epoch,
)

RECIPE = Recipe(lr=[0.05, 0.01], epochs=[1, 1], weight_decay=1e-4, adam_lr=[1e-3, 1e-4])

# -------------------------------------------------------------------------------- the penalty


def gram(conv):
    """Section 4 of the method by the letter: filters as rows, bias as one more column."""
    rows = [w.flatten().tolist() for w in conv.weight]
    if conv.bias is not None:
        rows = [row + [b] for row, b in zip(rows, conv.bias.tolist())]
    w = torch.tensor(rows, dtype=torch.float64)
    return w @ w.T if w.shape[0] < w.shape[1] else w.T @ w


def test_penalty_and_degree_against_the_formula(network):
    with torch.no_grad():
        convs = convolutions(network)
        n = {
            name: c.in_channels if c.kernel_size == (1, 1) else c.out_channels for name, c in convs
        }
        total = sum(math.sqrt(v) for v in n.values())
        expected, degrees = 0.0, {}
        for name, conv in convs:
            g = gram(conv)
            expected += math.sqrt(n[name]) / total * (g - torch.eye(len(g))).abs().sum().item()
            degrees[name] = (g.diag().abs().sum() / g.abs().sum()).item()
        penalty = OrthonormalityPenalty(network, strength=0.01)()
    assert penalty.item() == pytest.approx(0.01 * expected, rel=1e-4)
    assert degree_of_orthogonality(network) == pytest.approx(degrees, rel=1e-4)
    assert len(degrees) == len([m for m in network.modules() if isinstance(m, nn.Conv2d)])


def test_the_penalty_can_be_of_hidden_linear_layers_too():
    torch.manual_seed(0)
    hidden, head = nn.Linear(6, 5), nn.Linear(5, 4)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), hidden, nn.ReLU(), head)
    filter_groups(model, 3)
    grams = [gram(model[0]), gram(model[2])]  # the classifier is never penalised
    distances = [(g - torch.eye(len(g))).abs().sum().item() for g in grams]
    published, wider = (
        OrthonormalityPenalty(model, 1.0),
        OrthonormalityPenalty(model, 1.0, "hidden"),
    )
    assert published().item() == pytest.approx(distances[0], rel=1e-5)
    share = 0.5  # 6 filters of 3x3, 6 inputs of what computes as a 1x1 convolution
    assert wider().item() == pytest.approx(share * sum(distances), rel=1e-5)
    with pytest.raises(ValueError, match="it must be convolutions or hidden"):
        OrthonormalityPenalty(model, 1.0, "all")


def test_orthonormal_filters_cost_nothing_and_have_degree_one(network):
    for _, conv in convolutions(network):
        rows, columns = len(conv.weight), conv.weight[0].numel() + (conv.bias is not None)
        matrix = nn.init.orthogonal_(torch.empty(rows, columns))
        with torch.no_grad():
            if conv.bias is not None:
                conv.bias.copy_(matrix[:, -1])
                matrix = matrix[:, :-1]
            conv.weight.copy_(matrix.reshape(conv.weight.shape))
    assert OrthonormalityPenalty(network, 1.0)().item() == pytest.approx(0, abs=1e-3)
    assert all(d == pytest.approx(1, abs=1e-4) for d in degree_of_orthogonality(network).values())


def test_penalty_pulls_the_gradient_its_way(network):
    before = OrthonormalityPenalty(network, 1.0)
    start = before()
    grads = torch.autograd.grad(start, [conv.weight for _, conv in convolutions(network)])
    with torch.no_grad():
        for (_, conv), g in zip(convolutions(network), grads):
            conv.weight -= 1e-4 * g / g.norm()
    assert before() < start


def test_training_with_the_penalty_makes_filters_more_orthogonal(digits):
    degrees = {}
    for strength in (0, 1e-2):
        torch.manual_seed(0)
        model = build_model("vgg", 10, width=1 / 8)
        penalty = OrthonormalityPenalty(model, strength) if strength else None
        recipe = Recipe(lr=[0.02, 0.002], epochs=[4, 1], weight_decay=0, adam_lr=[])
        result = fit(model, digits, recipe, key=(0,), batch_size=64, penalty=penalty, label="test")
        degrees[strength] = sum(degree_of_orthogonality(model).values()) / 10
        assert ("penalty" in result.history[0]["train"]) == bool(strength)
    assert degrees[1e-2] > degrees[0] + 0.1


# -------------------------------------------------------------------------------- the recipes


def test_epochs_and_lr_scale_every_training_of_every_preset():
    """As many epochs in all, the first rate as it was given, everything else in proportion."""
    for preset, job, optimizer in itertools.product(
        PRESETS.values(), ("ebt", "iterative"), ("sgd", "adam")
    ):
        before = getattr(preset, job)
        assert scaled(before, None, None, optimizer) == before  # to the bit
        for epochs in (1, 2, 7, 20, 1000):
            after = scaled(before, epochs, 0.01, optimizer)
            for phase, recipe in vars(after).items():
                old = getattr(before, phase)
                if recipe is None:
                    assert old is None
                    continue
                share = [epochs * count / sum(old.epochs) for count in old.epochs]
                assert sum(recipe.epochs) == epochs == len(recipe.rates(optimizer))
                assert all(abs(a - b) < 1 for a, b in zip(recipe.epochs, share)), phase
                assert recipe.warmup == pytest.approx(old.warmup * epochs / sum(old.epochs))
                assert recipe.warmup < epochs
                rates, olds = recipe.lr_of(optimizer), old.lr_of(optimizer)
                assert rates[0] == 0.01
                assert rates == pytest.approx([0.01 * rate / olds[0] for rate in olds])
                other = "sgd" if optimizer == "adam" else "adam"
                assert recipe.lr_of(other) == old.lr_of(other)


@pytest.mark.parametrize(
    "total, shares, parts",
    [
        (20, [24, 1], [19, 1]),
        (5, [24, 1], [5, 0]),
        (20, [80, 40, 40], [10, 5, 5]),
        (1, [1, 1], [1, 0]),
        (2, [1, 1, 1], [1, 1, 0]),
        (10, [35, 35, 10], [5, 4, 1]),
        (20, [24, 1, 0], [19, 1, 0]),
        (7, [3], [7]),
    ],
)
def test_epochs_are_apportioned_in_whole_numbers_by_largest_remainders(total, shares, parts):
    assert apportioned(total, shares) == parts


def test_a_training_that_a_preset_leaves_out_stays_out():
    none = Recipe(lr=[0.1, 0.01], epochs=[0, 0], weight_decay=0, adam_lr=[1, 1])
    late = Recipe(lr=[0.1, 0.01], epochs=[0, 9], weight_decay=0, adam_lr=[1, 1])
    after = scaled(Schedule(base=none, ortho=late, retrain=late), 20, 0.5)
    assert after.base == none and sum(after.retrain.epochs) == 20
    assert after.retrain.rates()[0] == 0.5 and after.between is None
    assert recipe_text(after.base, "sgd") == "no epochs"


# -------------------------------------------------------------------------------- the training


def trained(digits, seed):
    torch.manual_seed(seed)
    model = build_model("mobilenet", 10, width=1 / 8)
    fit(model, digits, RECIPE, key=(seed, "base"), label="test")
    return model.state_dict()


def test_same_seed_same_bits_other_seed_other_weights(digits):
    first, again, other = (trained(digits, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_dropout_is_the_same_whatever_was_drawn_before(digits):
    """As after --pretrained=True, where no fresh weights were drawn."""

    def run(seed):
        model = nn.Sequential(narrow("mobilenet", 10), nn.Dropout(0.5))
        torch.manual_seed(seed)
        fit(model, digits, RECIPE, key=(0, "base"), label="test")
        return model[0].linear.weight

    assert torch.equal(run(1), run(2))


def test_fit_learns_reports_and_keeps_its_best_epoch(digits, capsys):
    torch.manual_seed(0)
    model = build_model("vgg", 10, width=1 / 8)
    recipe = Recipe(lr=[0.02, 0.5], epochs=[3, 2], weight_decay=0, adam_lr=[1e-3, 1e-2])
    result = fit(model, digits, recipe, key=(0,), batch_size=32, label="test")
    tops = [epoch["test"]["top1"] for epoch in result.history]
    assert [epoch["lr"] for epoch in result.history] == [0.02, 0.02, 0.02, 0.5, 0.5]
    assert result.best["top1"] == max(tops) > 50 and result.last["top1"] == tops[-1]
    assert evaluate(model, digits.test_batches())["top1"] == result.best["top1"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[3].startswith("  test 4/5  lr 0.5  loss ")


def test_settings_are_given_by_name_or_together_and_wrong_ones_are_refused(digits):
    def trained(**how):
        model = narrow("mobilenet", 10)
        fit(model, digits, RECIPE, key=(0,), report=lambda *_: None, **how)
        return model.linear.weight

    together = TrainingSettings(batch_size=512, optimizer="adam")
    named = trained(batch_size=512, optimizer="adam")
    assert torch.equal(trained(settings=together), named)
    assert torch.equal(trained(settings=replace(together, batch_size=64), batch_size=512), named)
    with pytest.raises(TypeError, match="batchsize"):
        trained(batchsize=64)
    with pytest.raises(ValueError, match="optimizer is 'rmsprop', none of sgd, adam"):
        trained(optimizer="rmsprop")


def test_adam_takes_its_own_rates(digits):
    model = build_model("vgg", 10, width=1 / 8)
    result = fit(model, digits, RECIPE, key=(0,), optimizer="adam", label="test")
    assert [epoch["lr"] for epoch in result.history] == [1e-3, 1e-4]


def types_of(model, run):
    """The types that the first convolution answers in: (in training, in tests)."""
    seen = {True: set(), False: set()}
    handle = model.features[0].register_forward_hook(
        lambda module, _inputs, output: seen[module.training].add(output.dtype)
    )
    run()
    handle.remove()
    return seen[True], seen[False]


def test_no_momenta_are_taken_from_a_step_that_was_skipped():
    """What PyTorch's fused SGD does, under a scaler."""
    assert [fused("cuda", amp) for amp in (False, "bfloat16", "float16")] == [True, True, None]
    weights = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9, fused=fused("cuda", "float16"))
    scaler = torch.amp.GradScaler("cpu")
    for factor in (1e38, 1, 1):  # the first is too large for the scaler
        optimizer.zero_grad()
        scaler.scale((weights * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(weights, torch.full((1000,), 1 - 0.1 - 0.19))


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_low_precision_is_for_the_training_only(digits, amp):
    model = narrow("vgg", 10)
    images, _labels = next(iter(digits.test_batches()))
    precise, rounded = model(images), autocast(model, amp)(images)
    assert rounded.dtype == torch.float32 and not torch.equal(precise, rounded)
    assert (rounded - precise).norm() < 0.05 * precise.norm()
    penalty = OrthonormalityPenalty(model, 1e-3)

    def checked():
        value = penalty()
        assert value.dtype == torch.float32
        return value

    assert types_of(
        model, lambda: fit(model, digits, RECIPE, key=(0,), amp=amp, penalty=checked, label="test")
    ) == ({getattr(torch, amp)}, {torch.float32})
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    scored = types_of(
        model,
        lambda: cal_importance(model, "fisher", [(torch.randn(8, 3, 16, 16), torch.arange(8))]),
    )
    assert scored == (set(), {torch.float32})


def test_a_compiled_training_is_the_same_and_leaves_no_mark(digits, monkeypatch):
    calls = []

    def compile(model):
        calls.append(model)
        return compiler(model, backend="aot_eager")  # all of it but the code generation: seconds

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    plain, model = (build_model("vgg", 10, width=1 / 8) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    recipe = Recipe(lr=[0.02], epochs=[1], weight_decay=0, adam_lr=[1])
    a = fit(plain, digits, recipe, key=(0,), batch_size=256, label="test")
    assert not calls
    b = fit(model, digits, recipe, key=(0,), batch_size=256, compiled=True, label="test")
    assert calls == [model]
    assert a.last["loss"] == pytest.approx(b.last["loss"], rel=0.05)
    assert list(model.state_dict()) == list(plain.state_dict())


def test_depthwise_convolutions_stay_out_of_low_precision():
    """On a CPU PyTorch gives them gradients of uninitialised memory, seldom enough to be missed."""
    model, types = narrow("mobilenet").train(), {}
    for name in ("conv1", "layers.11.conv1", "layers.11.conv2"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: types.update({name: output.dtype})
        )
    autocast(model, "bfloat16")(torch.randn(4, 3, 8, 8)).sum().backward()
    assert types == {
        "conv1": torch.bfloat16,
        "layers.11.conv1": torch.float32,
        "layers.11.conv2": torch.bfloat16,
    }


def test_a_compiler_that_is_not_there_is_one_line(capsys, monkeypatch):
    from torch._dynamo.exc import InternalTorchDynamoError

    def fail(_images):
        raise InternalTorchDynamoError("no C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", lambda _model: fail)
    forward = autocast(narrow("vgg"), compiled=True)
    assert run_command("main.py", lambda: forward(torch.zeros(2, 3, 16, 16))) == 2
    message = capsys.readouterr().err
    assert message.startswith("main.py: error: --compile=True does not work here: ")
    assert message.count("\n") == 1


def test_batches_do_not_wait_for_the_device(digits, monkeypatch):
    """Reading a number waits until a GPU is done: it happens by the clock, not by the batch."""
    model = narrow("vgg", 10)
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.01))

    def reads(batch_size):
        with torch.profiler.profile() as profile:
            train_epoch(model, digits.train_batches(batch_size, key=(0,), count=400), step)
            evaluate(model, digits.train_batches(batch_size, key=(0,), count=400))
        return sum(
            event.count
            for event in profile.key_averages()
            if event.key in ("aten::item", "aten::_local_scalar_dense", "aten::nonzero")
        )

    monkeypatch.setattr("train.time", SimpleNamespace(monotonic=lambda: 100.0))  # which stands
    assert 0 < reads(200) and reads(10) < 30  # of 80 batches


def test_evaluate_counts_by_hand(few):
    model = narrow("vgg", num_classes=7).train()
    frozen = filter_groups(model)[1].bn.eval()
    images, labels = few
    figures = evaluate(model, [(images[:10], labels[:10]), (images[10:], labels[10:])])
    assert model.training and not frozen.training
    with torch.no_grad():
        logits = model.eval()(images)
    order = logits.argsort(1, descending=True)
    top5 = sum(int(y) in row[:5].tolist() for y, row in zip(labels, order))
    assert figures["top1"] == pytest.approx(100 * (order[:, 0] == labels).float().mean().item())
    assert figures["top5"] == pytest.approx(100 * top5 / len(labels))
    assert figures["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert "top5" not in evaluate(narrow("vgg", num_classes=5), [few])


def test_uneven_classes_have_a_balanced_accuracy_and_silent_ones_are_counted():
    class Always(torch.nn.Module):  # answers what the first pixel says
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, images):
            return F.one_hot(images[:, 0, 0, 0].long(), 3) * self.scale

    def figures(labels, answers):
        images = torch.tensor(answers).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        return evaluate(
            Always(),
            [(images[:4], torch.tensor(labels)[:4]), (images[4:], torch.tensor(labels)[4:])],
        )

    uneven = figures([0] * 8 + [1, 1], [0] * 10)
    assert uneven["top1"] == 80 and uneven["balanced"] == 50 and uneven["unanswered"] == 1
    even = figures([0] * 5 + [1] * 5, [0] * 4 + [1] * 6)
    assert "balanced" not in even and "unanswered" not in even and even["top1"] == 90


def test_divergence_says_where(digits):
    model = build_model("vgg", 10, width=1 / 8)
    recipe = Recipe(lr=[0.1, 1e30], epochs=[1, 1], weight_decay=0, adam_lr=[1, 1])
    with pytest.raises(Diverged, match="in ortho, epoch 2 of 2, at learning rate 1e\\+30"):
        fit(model, digits, recipe, key=(0,), label="ortho")


def test_rates_rise_and_fall_within_epochs(digits, monkeypatch):
    warm = Recipe(lr=[0.1, 0.01], epochs=[4, 1], weight_decay=0, adam_lr=[1, 0.1], warmup=2)
    assert [warm.rate(epoch) for epoch in (0.5, 1, 2, 3.9, 4, 4.9)] == pytest.approx(
        [0.025, 0.05, 0.1, 0.1, 0.01, 0.01]
    )
    assert warm.rates("adam") == pytest.approx([0.25, 0.75, 1, 1, 0.1])
    cosine = replace(warm, lr=[0.1], epochs=[10], schedule="cosine")
    assert [cosine.rate(epoch) for epoch in (1, 2, 4, 6, 9.999)] == pytest.approx(
        [0.05, 0.1, 0.1 * (1 + math.sqrt(0.5)) / 2, 0.05, 0], abs=1e-6
    )
    seen, step = [], torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *args: (seen.append(self.param_groups[0]["lr"]), step(self, *args))[1],
    )
    few = replace(digits, train=digits.train.first(80), test=digits.test.first(20))
    brief = replace(warm, lr=[0.1], epochs=[2], warmup=1, schedule="cosine")
    history = fit(build_model("vgg", 10, width=1 / 8), few, brief, key=(0,), batch_size=20).history
    assert seen == pytest.approx(
        [
            0.0125,
            0.0375,
            0.0625,
            0.0875,
            *(0.05 * (1 + math.cos(math.pi * k / 8)) for k in (1, 3, 5, 7)),
        ]
    )
    assert [row["lr"] for row in history] == brief.rates() == pytest.approx([0.05, 0.05])


def test_smoothed_labels_and_balanced_classes(digits):
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2])
    logs = logits.log_softmax(1)
    wanted = -(0.9 * logs[range(8), labels] + 0.1 * logs.mean(1))
    assert criterion_of(0.1)(logits, labels).item() == pytest.approx(wanted.mean().item())
    images = digits.train.images[:8]
    data = ImageData("uneven", ("a", "b", "c", "none"), Split(images, labels), digits.test)
    weights = data.balanced_weights()
    plain = -logs[range(8), labels]
    assert criterion_of(0, weights[:3])(logits, labels).item() == pytest.approx(
        torch.stack([plain[labels == k].mean() for k in range(3)]).mean().item()
    )
    both = criterion_of(0.1, weights[:3])(logits, labels).item()
    assert both == pytest.approx((wanted * weights[labels]).mean().item())
    halves = [
        criterion_of(0, weights[:3])(logits[part], labels[part]) for part in (slice(4), slice(4, 8))
    ]
    assert sum(halves).item() / 2 == pytest.approx(
        criterion_of(0, weights[:3])(logits, labels).item()
    )


def test_the_paper_preset_is_the_papers():
    def recipes(schedule):
        return {
            name: (list(zip(r.lr, r.epochs)), r.weight_decay)
            for name, r in vars(schedule).items()
            if r
        }

    ortho = ([(0.1, 24), (0.01, 1)], 0)
    assert recipes(PRESETS["paper"].ebt) == {
        "base": ([(0.1, 25)], 1e-4),
        "ortho": ortho,
        "retrain": ([(0.1, 60), (0.01, 40), (0.001, 40)], 1e-4),
    }
    assert recipes(PRESETS["paper"].iterative) == {
        "base": ([(0.1, 80), (0.01, 40), (0.001, 40)], 1e-4),
        "ortho": (ortho[0] + [(0.001, 0)], 0),
        "retrain": ([(0.1, 40), (0.01, 40), (0.001, 20)], 1e-4),
        "between": ([(0.1, 35), (0.01, 35), (0.001, 10)], 1e-4),
    }
    assert PRESETS["paper"].batch_size == 128


# --------------------------------------------------------------------------------- the batches


def as_pixels(images):
    return ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def test_augmented_images_are_shifted_and_mirrored_real_ones(digits):
    split = Split(digits.train.images[:50], torch.arange(50))
    ((images, labels),) = Batches(split, torch.arange(50), 64, seed=3, flip=True)
    shifts, mirrors = set(), set()
    for image, k in zip(as_pixels(images), labels.tolist()):
        padded = F.pad(split.images[k], (0, 0, 2, 2, 2, 2))  # an eighth of 16 pixels
        matches = [
            (y, x, m)
            for y in range(5)
            for x in range(5)
            for m in (False, True)
            if torch.equal(
                image, (lambda crop: crop.flip(1) if m else crop)(padded[y : y + 16, x : x + 16])
            )
        ]
        assert matches, f"image {k} is not a shifted original"
        shifts.add(matches[0][:2])
        mirrors.add(matches[0][2])
    assert len(shifts) > 10 and mirrors == {False, True}
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_has_every_image_once_and_its_key_decides_the_order(digits):
    def epoch(*key):
        images, labels = zip(*digits.train_batches(100, key))
        return torch.cat(images), torch.cat(labels)

    first, again, other = epoch(0, "base", 1), epoch(0, "base", 1), epoch(0, "base", 2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(first[1].bincount(), digits.train.labels.bincount())


def test_batches_repeat_themselves(digits):
    batches = digits.train_batches(500, (1,))
    for (a, _), (b, _) in zip(batches, batches):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "count, size, expected",
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (1, 4, [1]), (5, 128, [5]), (3, 2, [3])],
)
def test_a_last_single_image_joins_the_batch_before(digits, count, size, expected):
    batches = digits.train_batches(size, (0,), count=count)
    assert [len(y) for _, y in batches] == expected and len(batches) == len(expected)


def test_training_survives_a_last_single_image_at_one_pixel(digits):
    model = build_model("vgg", 10, width=1 / 8)
    batches = digits.train_batches(4, (0,), count=9)
    train_epoch(
        model,
        [(x[:, :, :8, :8], y) for x, y in batches],
        TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.01)),
    )


def test_importance_images_are_as_many_as_asked_and_balanced_for_grasp(digits):
    assert sum(len(y) for _, y in digits.train_batches(64, (0,), count=200)) == 200
    assert sum(len(y) for _, y in digits.train_batches(64, (0,), count=10**6)) == 1437
    labels = torch.cat([y for _, y in digits.train_batches(64, (0,), count=205, balanced=True)])
    assert labels.bincount().tolist() == [20] * 10
    assert len(set(labels[:20].tolist())) > 3, "shuffled"
    smallest = digits.train.labels.bincount().min().item()
    labels = torch.cat([y for _, y in digits.train_batches(64, (0,), count=10**6, balanced=True)])
    assert labels.bincount().tolist() == [smallest] * 10
    with pytest.raises(InputError, match="imp_samples"):
        digits.train_batches(64, (0,), count=9, balanced=True)


def test_a_batch_takes_the_memory_that_the_last_one_freed():
    """Getting it anew from the system, page by page, costs up to half of a training step."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc is told to keep what is freed")
    count = """
import resource, torch
from common.device import pick_device
{}
def use():
    torch.ones(25_000_000)  # 100 MB: 24,400 pages
for _ in range(10): use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", count.format(first)],
                cwd=ROOT,
                text=True,
                capture_output=True,
                check=True,
            ).stdout
        )
        for first in ("", "pick_device('cpu')")
    ]
    assert faults[1] < faults[0] / 4
