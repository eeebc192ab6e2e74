"""How fast each step is, against the textbook implementation, both in this run and in turn.

    python -m tests.benchmark                  # all rows, on a GPU where there is one
    python -m tests.benchmark penalty rdt      # rows whose names begin so
    python -m tests.benchmark --json FILE

The baseline is how such suites are usually written: torchvision transforms on PIL images in a
DataLoader with two workers, default memory layout, the penalty by autograd, one backward pass per
class in rdt, removed residual filters only zeroed. Each row checks that both sides compute the same.
Times are medians of five repeats after a warm-up; the spread is that of the ratios.
"""
import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import MOMENTUM, PENALTY  # noqa: E402
from data import ImageData, Split, load_data  # noqa: E402
from imp_estimator import cal_importance  # noqa: E402
from models import build_model  # noqa: E402
from pruner import prune, select_filters  # noqa: E402
from train import OrthonormalityPenalty, train_epoch  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REPEATS = 5
ROWS = {}


def row(name, reach):
    def add(function):
        ROWS[name] = function, reach
        return function
    return add


def clock(function):
    """(seconds, result)."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = function()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def in_turn(baseline, ours, repeats=REPEATS):
    """[(seconds of the baseline, seconds of ours)] after one unmeasured turn."""
    baseline(), ours()
    return [(clock(baseline)[0], clock(ours)[0]) for _ in range(repeats)]


def require_close(a, b, rtol=1e-3, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol, check_stride=False)


# ------------------------------------------------------------------------------ the textbook


def textbook_model(model):
    """The same network in the default memory layout."""
    twin = build_model(model.name, model.num_classes, model.widths, model.width)
    twin.load_state_dict(model.state_dict())
    return twin.to(DEVICE, memory_format=torch.contiguous_format).train(model.training)


def textbook_penalty(model):
    """SPEC's formula by autograd."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    roots = [(c.in_channels if c.kernel_size == (1, 1) else c.out_channels) ** .5 for c in convs]
    total = 0
    for conv, root in zip(convs, roots):
        w = conv.weight.flatten(1)
        if conv.bias is not None:
            w = torch.cat((w, conv.bias[:, None]), 1)
        gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
        eye = torch.eye(len(gram), device=gram.device)
        total = total + root / sum(roots) * (gram - eye).abs().sum()
    return PENALTY[model.name] * total


def random_images(count, size=32, classes=100, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, classes, (count,), generator=generator)
    split = Split(images, labels)
    return ImageData("random", "random", tuple(map(str, range(classes))), split, split)


def fresh(name, classes=100):
    torch.manual_seed(0)
    return build_model(name, classes).to(DEVICE)


# -------------------------------------------------------------------------------------- rows


def training_step(name):
    model = fresh(name)
    twin = textbook_model(model)
    data = random_images(128).to(DEVICE)
    (images, labels), = data.plain_batches(data.train)
    plain = images.contiguous()
    ours = torch.optim.SGD(model.parameters(), lr=.01, momentum=MOMENTUM, weight_decay=1e-4)
    theirs = torch.optim.SGD(twin.parameters(), lr=.01, momentum=MOMENTUM, weight_decay=1e-4)

    def baseline():
        twin.train()
        theirs.zero_grad()
        loss = F.cross_entropy(twin(plain), labels)
        loss.backward()
        theirs.step()
        return loss.item()

    def step():
        return train_epoch(model, [(images, labels)], ours)["loss"]

    assert abs(baseline() - step()) < 1e-3
    a, b = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (twin, model))
    # Not closer on a CPU: torch sums a channels-last BatchNorm's batch in plain order, 3e-5 off,
    # and that turns some ReLUs of a random network over.
    assert (a - b).norm() < 0.1 * a.norm()
    return in_turn(baseline, step)


for _name in ("vgg", "mobilenet", "resnet"):
    row(f"training step, batch 128: {_name}", "1.3x")(lambda name=_name: training_step(name))


def penalty(name):
    model = fresh(name)
    twin = textbook_model(model)
    ours = OrthonormalityPenalty(model, PENALTY[name])

    def baseline():
        twin.zero_grad()
        value = textbook_penalty(twin)
        value.backward()
        return value

    def step():
        model.zero_grad()
        value = ours()
        value.backward()
        return value

    require_close(baseline(), step())
    for a, b in zip(twin.parameters(), model.parameters()):
        if a.grad is not None:
            require_close(a.grad, b.grad)
    return in_turn(baseline, step)


for _name, _reach in (("vgg", 1 / .65), ("mobilenet", 1 / .75), ("resnet", 1 / .65),
                      ("resnet-56", None)):
    row(f"penalty, forward and backward: {_name}", _reach and f"{_reach:.2f}x")(
        lambda name=_name: penalty(name))


@row("training batches, 50,000 images of 32 x 32", "10x")
def batches():
    from PIL import Image
    from torchvision import transforms
    data = random_images(50_000)
    pixels, labels = data.train.images.numpy(), data.train.labels.tolist()
    augment = transforms.Compose([
        transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
        transforms.ToTensor(), transforms.Normalize((.5,) * 3, (.5,) * 3)])

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(labels)

        def __getitem__(self, i):
            return augment(Image.fromarray(pixels[i])), labels[i]

    loader = torch.utils.data.DataLoader(Pictures(), 128, shuffle=True, num_workers=2)

    def baseline():
        return sum(images.mean() * len(images) for images, _ in loader) / len(labels)

    def step():
        return sum(images.mean() * len(images)
                   for images, _ in data.to(DEVICE).train_batches(128, key=(0,))) / len(labels)

    require_close(baseline(), step().cpu(), atol=1e-3)  # the same distribution
    return in_turn(baseline, step, repeats=2)


@row("second start on a folder of 60,000 PNGs, against the first", "10x")
def second_start():
    from PIL import Image
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        generator = np.random.RandomState(0)
        for part, count in (("train", 50_000), ("test", 10_000)):
            for k in range(100):
                os.makedirs(f"{folder}/images/{part}/{k:03d}")
            for i in range(count):
                image = generator.randint(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(image).save(f"{folder}/images/{part}/{i % 100:03d}/{i}.png")

        def start():
            return load_data(f"{folder}/images").fingerprint

        times = []
        for turn in range(3):
            for cache in Path(f"{folder}/cache").rglob("*.pt"):
                cache.unlink()
            (first, a), (second, b) = clock(start), clock(start)
            assert a == b
            times.append((first, second))
    return times[1:]


def importance(method):
    name = "mobilenet"
    model = fresh(name)
    twin = textbook_model(model)
    data = random_images(2560).to(DEVICE)
    batches = list(data.train_batches(128, key=(0,), balanced=method == "grasp", count=2560))
    plain = [(images.contiguous(), labels) for images, labels in batches]
    results = {}

    def baseline():
        results["baseline"] = TEXTBOOK[method](twin.eval(), plain)

    def step():
        results["ours"] = cal_importance(model, method, batches)

    baseline(), step()
    a, b = (torch.cat(list(results[side].values())).double() for side in ("baseline", "ours"))
    require_close(a / a.abs().max(), b / b.abs().max(), rtol=0.02, atol=5e-3)
    return in_turn(baseline, step, repeats=3)


def textbook_fisher(model, batches):
    model.zero_grad()
    count = sum(len(labels) for _, labels in batches)
    for images, labels in batches:
        (F.cross_entropy(model(images), labels, reduction="sum") / count).backward()
    return {g.name: (g.conv.weight * g.conv.weight.grad).sum((1, 2, 3)).square()
            for g in model.filter_groups()}


def textbook_tfo(model, batches):
    textbook_fisher(model, batches)
    return {g.name: (g.bn.weight * g.bn.weight.grad + g.bn.bias * g.bn.bias.grad).square()
            for g in model.filter_groups()}


def textbook_theis(model, batches):
    outputs, scores = {}, {}

    def keep(name):
        def hook(_module, _inputs, output):
            output.retain_grad()
            outputs[name] = output
        return hook
    groups = model.filter_groups()
    handles = [g.bn.register_forward_hook(keep(g.name)) for g in groups]
    count = sum(len(labels) for _, labels in batches)
    for images, labels in batches:
        model.zero_grad()
        F.cross_entropy(model(images), labels, reduction="sum").backward()
        for name, output in outputs.items():
            score = (output * output.grad).sum((2, 3)).square().sum(0) / (2 * count)
            scores[name] = scores.get(name, 0) + score.detach()
    for handle in handles:
        handle.remove()
    return scores


def textbook_grasp(model, batches):
    parameters, count = list(model.parameters()), sum(len(labels) for _, labels in batches)
    total = [torch.zeros_like(p) for p in parameters]
    for images, labels in batches:
        loss = F.cross_entropy(model(images) / 200, labels, reduction="sum") / count
        for t, g in zip(total, torch.autograd.grad(loss, parameters)):
            t += g
    model.zero_grad()
    for images, labels in batches:
        loss = F.cross_entropy(model(images) / 200, labels, reduction="sum") / count
        slopes = torch.autograd.grad(loss, parameters, create_graph=True)
        sum((g * t).sum() for g, t in zip(slopes, total)).backward()
    return {g.name: (g.conv.weight * g.conv.weight.grad).sum((1, 2, 3)).detach()
            for g in model.filter_groups()}


TEXTBOOK = {"fisher": textbook_fisher, "tfo": textbook_tfo, "theis": textbook_theis,
            "grasp": textbook_grasp}
for _name in TEXTBOOK:
    row(f"{_name}, 2,560 images, mobilenet", "1.3x")(lambda name=_name: importance(name))


@row("rdt, 100 classes, 10 minibatches, mobilenet at a quarter of its width", "25x")
def rdt():
    torch.manual_seed(0)
    model = build_model("mobilenet", width=1 / 4).to(DEVICE)
    data = random_images(1280).to(DEVICE)
    batches = list(data.train_batches(128, key=(0,)))
    train_epoch(model, batches, torch.optim.SGD(model.parameters(), lr=.01))
    results = {}

    def baseline():
        results["exact"] = cal_importance(model, "rdt", batches, projections=0)

    def step():
        results["ours"] = cal_importance(model, "rdt", batches)

    times = [(clock(baseline)[0], clock(step)[0])]
    ranks = [torch.cat(list(results[side].values())).argsort().argsort().double()
             for side in ("exact", "ours")]
    kept = [select_filters(model, results[side], 50) for side in ("exact", "ours")]
    same = sum(torch.isin(kept[1][n], kept[0][n]).sum().item() for n in kept[0])
    same /= sum(map(len, kept[0].values()))
    spearman = torch.corrcoef(torch.stack(ranks))[0, 1].item()
    print(f"    Spearman {spearman:.4f}, the same kept filters at 50%: {100 * same:.1f}%")
    assert spearman >= .98 and same >= .95
    return times


def inference(percent):
    dense = fresh("resnet").eval()
    scores = cal_importance(dense, "random")
    kept = select_filters(dense, scores, percent)
    small, zeroed = prune(dense, kept), copy.deepcopy(dense)
    with torch.no_grad():
        for group in zeroed.filter_groups():
            gone = torch.ones(len(group.channels), dtype=torch.bool)
            gone[kept[group.name]] = False
            group.bn.weight[gone] = group.bn.bias[gone] = 0
    images = torch.randn(128, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    zeroed, plain = textbook_model(zeroed), images.contiguous()

    def run(model, x):
        with torch.no_grad():
            return model(x)

    require_close(run(small, images), run(zeroed, plain), rtol=1e-2, atol=1e-3)
    return in_turn(lambda: run(zeroed, plain), lambda: run(small, images))


for _percent in (25, 50, 75):
    row(f"inference, ResNet-34 pruned by {_percent}%, against zeroed", "1.3x" if _percent == 50
        else None)(lambda percent=_percent: inference(percent))


def command(*arguments):
    def run():
        subprocess.run([sys.executable, *arguments], capture_output=True, cwd=ROOT)
    return run


@row("main.py --help, against python -c pass", None)
def answer_help():
    return in_turn(command("-c", "pass"), command("main.py", "--help"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", help="beginnings of the names of the rows (default: all)")
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {DEVICE}, {torch.get_num_threads()} threads")
    figures = {}
    for name, (function, reach) in ROWS.items():
        if args.rows and not any(name.startswith(part) for part in args.rows):
            continue
        times = function()
        ratios = [baseline / ours for baseline, ours in times]
        figures[name] = {"baseline": statistics.median(t for t, _ in times),
                         "ours": statistics.median(t for _, t in times),
                         "ratio": statistics.median(ratios), "lowest": min(ratios),
                         "highest": max(ratios), "repeats": len(times), "reach": reach}
        f = figures[name]
        print(f"{name}\n    baseline {f['baseline']:.4f} s, ours {f['ours']:.4f} s: "
              f"{f['ratio']:.2f}x ({f['lowest']:.2f} to {f['highest']:.2f})"
              + (f", to reach: {reach}" if reach else ""), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
