"""How fast each step is, against the textbook way to write it, both in this run and in turn.

    python -m tests.benchmark                  # all rows, on a GPU where there is one: an hour
    python -m tests.benchmark penalty rdt      # rows whose names begin so
    python -m tests.benchmark --json FILE --repeats 3

The baseline is how such suites are usually written: torchvision transforms on PIL images in a
DataLoader with two workers, default memory layout, the penalty by autograd, one backward pass per
class in rdt, removed residual filters only zeroed. Each side is a process of its own, since ours
sets how the C library keeps memory; they take turns, so that neither runs beside the other, and
their results are compared at every turn. Medians of five repeats after a warm-up; the spread is
that of the ratios.
"""

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from channels.costs import measure_cost  # noqa: E402
from channels.groups import dense_widths, filter_count, filter_groups, widths_of  # noqa: E402
from common.device import pick_device  # noqa: E402
from config import MOMENTUM, PENALTY, PRESETS  # noqa: E402
from data import ImageData, Split, load_data  # noqa: E402
from imp_estimator import cal_importance  # noqa: E402
from lab.networks import build_network  # noqa: E402
from models import build_model  # noqa: E402
from pruner import prune, select_filters  # noqa: E402
from train import OrthonormalityPenalty, TrainingStep, train_epoch  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS = {}


@dataclass
class Row:
    """side(ours, folder) -> what is timed: a callable that returns a list of tensors or numbers.

    ratio: what baseline seconds / our seconds should reach. seconds: what ours should stay below.
    check(baseline's results, ours) raises where they differ; it may return a note.
    work: multiply-adds of each side, by which the seconds are divided.
    """

    side: Callable
    check: Callable
    ratio: float = None
    seconds: float = None
    work: Callable = lambda: (1, 1)


def row(name, **options):
    def add(side):
        ROWS[name] = Row(side, **options)
        return side

    return add


def close(rtol=1e-3, atol=1e-5):
    def check(baseline, ours):
        for a, b in zip(baseline, ours, strict=True):
            np.testing.assert_allclose(b, a, rtol, atol)

    return check


def different(_baseline, _ours):
    """The sides are not meant to compute the same: it is their speeds that are compared."""


# ------------------------------------------------------------------------------ the two sides


def serve(name, ours, folder, pipe):
    """One side of a row, in its own process: run when told to, report (seconds, results)."""
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    if ours:
        pick_device(DEVICE.type)
    work, calls = ROWS[name].side(ours, folder), 1
    pipe.send("ready")
    while pipe.recv() == "go":
        began = time.perf_counter()
        for _ in range(calls):
            results = work()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / calls
        calls = max(1, min(100, int(0.3 / seconds)))
        pipe.send((seconds, [torch.as_tensor(r).detach().double().cpu().numpy() for r in results]))


def measure(name, repeats):
    """Let both sides of a row take turns; its figures."""
    step, context, times, notes = ROWS[name], multiprocessing.get_context("spawn"), [], []
    with tempfile.TemporaryDirectory() as folder:
        pipes, sides = [], []
        for ours in (False, True):
            pipe, theirs = context.Pipe()
            sides.append(context.Process(target=serve, args=(name, ours, folder, theirs)))
            sides[-1].start()
            theirs.close()
            pipe.recv()  # EOFError where the side has failed: it has printed why
            pipes.append(pipe)
        try:
            for turn in range(repeats + 1):
                reports = []
                for pipe in pipes:
                    pipe.send("go")
                    reports.append(pipe.recv())
                (baseline, a), (ours, b) = reports
                notes.append(step.check(a, b))
                if turn:
                    times.append((baseline, ours))
        finally:
            for pipe, side in zip(pipes, sides):
                with suppress(OSError):  # it has failed
                    pipe.send("stop")
                side.join()
    a, b = step.work()
    ratios = [(baseline / a) / (ours / b) for baseline, ours in times]
    figures = {
        "baseline": statistics.median(t for t, _ in times),
        "ours": statistics.median(t for _, t in times),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "repeats": repeats,
        "notes": [note for note in notes if note],
        "wanted_ratio": step.ratio,
        "wanted_seconds": step.seconds,
    }
    figures["reached"] = (step.ratio is None or figures["ratio"] >= step.ratio) and (
        step.seconds is None or figures["ours"] < step.seconds
    )
    return figures


# ------------------------------------------------------------------------------ the textbook


def textbook(model):
    """The same network in the default memory layout."""
    origin = model.origin
    twin = build_network(origin.name, origin.num_classes, origin.width, widths_of(model))
    twin.load_state_dict(model.state_dict())
    return twin.to(DEVICE, memory_format=torch.contiguous_format).train(model.training)


def textbook_penalty(model):
    """SPEC's formula by autograd."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    roots = [(c.in_channels if c.kernel_size == (1, 1) else c.out_channels) ** 0.5 for c in convs]
    total = 0
    for conv, root in zip(convs, roots):
        w = conv.weight.flatten(1)
        if conv.bias is not None:
            w = torch.cat((w, conv.bias[:, None]), 1)
        gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
        eye = torch.eye(len(gram), device=gram.device)
        total = total + root / sum(roots) * (gram - eye).abs().sum()
    return PENALTY[model.origin.name] * total


class Pictures(torch.utils.data.Dataset):
    """A split as PIL images, augmented one by one."""

    def __init__(self, split, transform):
        self.pixels, self.labels = split.images.numpy(), split.labels.tolist()
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        from PIL import Image

        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


def textbook_loader(split, batch_size, augment=True, flip=True):
    from torchvision import transforms

    steps = [transforms.RandomCrop(32, padding=4)] * augment
    steps += [transforms.RandomHorizontalFlip()] * (augment and flip)
    steps += [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    return torch.utils.data.DataLoader(
        Pictures(split, transforms.Compose(steps)), batch_size, shuffle=augment, num_workers=2
    )


def textbook_fisher(model, batches):
    model.zero_grad()
    count = sum(len(labels) for _, labels in batches)
    for images, labels in batches:
        (F.cross_entropy(model(images), labels, reduction="sum") / count).backward()
    return {
        g.name: (g.conv.weight * g.conv.weight.grad).sum((1, 2, 3)).square()
        for g in filter_groups(model)
    }


def textbook_tfo(model, batches):
    textbook_fisher(model, batches)
    return {
        g.name: (g.bn.weight * g.bn.weight.grad + g.bn.bias * g.bn.bias.grad).square()
        for g in filter_groups(model)
    }


def textbook_theis(model, batches):
    outputs, scores = {}, {}

    def keep(name):
        def hook(_module, _inputs, output):
            output.retain_grad()
            outputs[name] = output

        return hook

    groups = filter_groups(model)
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
    return {
        g.name: (g.conv.weight * g.conv.weight.grad).sum((1, 2, 3)).detach()
        for g in filter_groups(model)
    }


def textbook_rdt(model, batches):
    groups = filter_groups(model)
    weights = [g.conv.weight for g in groups]
    information = [torch.zeros_like(w) for w in weights]
    for images, _labels in batches:
        logits = model(images)
        p, log_p = F.softmax(logits, 1).mean(0), F.log_softmax(logits, 1).mean(0)
        for k in range(len(p)):
            slopes = torch.autograd.grad(log_p[k], weights, retain_graph=True)
            for total, slope in zip(information, slopes):
                total += p[k].detach() * slope**2 / len(batches)
    return {
        g.name: (w**2 * i).sum((1, 2, 3)).detach() for g, w, i in zip(groups, weights, information)
    }


TEXTBOOK = {
    "fisher": textbook_fisher,
    "tfo": textbook_tfo,
    "theis": textbook_theis,
    "grasp": textbook_grasp,
    "rdt": textbook_rdt,
}


def textbook_quick_job():
    """What the README's quick job does, written as above; prints what it has reached."""
    data, schedule = load_data("digits"), PRESETS["quick"].ebt
    train = textbook_loader(data.train, PRESETS["quick"].batch_size, flip=False)
    test = textbook_loader(data.test, 256, augment=False)
    model = build_model("vgg", 10).to(DEVICE, memory_format=torch.contiguous_format)

    def accuracy():
        model.eval()
        with torch.no_grad():
            hits = sum(
                (model(images.to(DEVICE)).argmax(1) == labels.to(DEVICE)).sum().item()
                for images, labels in test
            )
        return 100 * hits / len(data.test)

    def fit(recipe, penalty):
        best = 0, None
        steps = torch.optim.SGD(model.parameters(), 1, MOMENTUM, weight_decay=recipe.weight_decay)
        for rate in recipe.rates():
            steps.param_groups[0]["lr"] = rate
            model.train()
            for images, labels in train:
                steps.zero_grad()
                loss = F.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE))
                (loss + (textbook_penalty(model) if penalty else 0)).backward()
                steps.step()
            best = max(best, (accuracy(), copy.deepcopy(model.state_dict())), key=lambda b: b[0])
        model.load_state_dict(best[1])
        return best[0]

    fit(schedule.ortho, True)
    batches = [(images.to(DEVICE), labels.to(DEVICE)) for images, labels in train]
    scores = textbook_fisher(model.eval(), batches)
    small = prune(model, select_filters(model, scores, 25))
    model = textbook(small)
    print(json.dumps([filter_count(model)[0], fit(schedule.retrain, False)]))
    torch.save(model.state_dict(), os.devnull)


# -------------------------------------------------------------------------------------- rows


def random_images(count, size=32, classes=100):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, classes, (count,), generator=generator)
    split = Split(images, labels)
    return ImageData("random", tuple(map(str, range(classes))), split, split)


def fresh(name, width=1.0):
    torch.manual_seed(0)
    return build_model(name, width=width).to(DEVICE)


def side_of(model, ours):
    return model if ours else textbook(model)


def layout(images, ours):
    return images if ours else images.contiguous()


def same_gradients(baseline, ours):
    """The same loss, and the same gradient but for the rounding of a random network's: torch sums
    a channels-last BatchNorm's batch in plain order on a CPU, 3e-5 off, and that turns some ReLUs
    over."""
    np.testing.assert_allclose(ours[0], baseline[0], atol=1e-3)
    a, b = (np.concatenate([g.ravel() for g in side[1:]]) for side in (baseline, ours))
    assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a)


def training_step(name, ours):
    model = side_of(fresh(name), ours)
    ((images, labels),) = random_images(128).to(DEVICE).train_batches(128, key=(0,))
    images, parameters = layout(images, ours), list(model.parameters())
    # At rate 0 every turn does the same work on the same weights.
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=MOMENTUM, weight_decay=1e-4)

    def baseline():
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return [loss.item(), *(p.grad for p in parameters)]

    def step():
        loss = train_epoch(model, [(images, labels)], TrainingStep(model, optimizer))["loss"]
        return [loss, *(p.grad for p in parameters)]

    return step if ours else baseline


for _name in ("vgg", "mobilenet", "resnet"):
    row(f"training step, batch 128: {_name}", ratio=1.3, check=same_gradients)(
        lambda ours, _folder, name=_name: training_step(name, ours)
    )


def macs_of_a_step(name):
    model = build_model(name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model.to("meta")(torch.empty(128, 3, 32, 32)).sum().backward()
    return counter.get_total_flops() / 2


@row(
    "training step, batch 128: vgg, multiply-adds per second against those of a matrix product",
    ratio=0.7,
    check=different,
    work=lambda: (4096**3, macs_of_a_step("vgg")),
)
def against_matrix_product(ours, _folder):
    if ours:
        return training_step("vgg", ours)
    a, b, c = (torch.randn(4096, 4096, device=DEVICE) for _ in range(3))

    def product():
        torch.mm(a, b, out=c)
        return []

    return product


def penalty(name, ours):
    model = side_of(fresh(name), ours)
    value_of = (
        OrthonormalityPenalty(model, PENALTY[name]) if ours else (lambda: textbook_penalty(model))
    )

    def step():
        model.zero_grad()
        value = value_of()
        value.backward()
        return [value, *(p.grad for p in model.parameters() if p.grad is not None)]

    return step


for _name, _share in (("vgg", 0.65), ("mobilenet", 0.75), ("resnet", 0.65), ("resnet-56", None)):
    row(f"penalty, forward and backward: {_name}", ratio=_share and 1 / _share, check=close())(
        lambda ours, _folder, name=_name: penalty(name, ours)
    )


@row("training batches, 50,000 images of 32 x 32", ratio=10, check=close(0, 0.02))
def batches(ours, _folder):
    data = random_images(50_000)
    if ours:
        data = data.to(DEVICE)
        assert data.train.images.untyped_storage().nbytes() == 50_000 * 32 * 32 * 3  # as bytes
    loader = None if ours else textbook_loader(data.train, 128)

    def epoch():  # the means of all pixels, of the upper edge and of a corner: black comes in there
        sums = torch.zeros(3, device=DEVICE if ours else "cpu")
        for images, _labels in data.train_batches(128, key=(0,)) if ours else loader:
            sums += (
                len(images)
                / 50_000
                * torch.stack((images.mean(), images[:, :, 0].mean(), images[:, :, 0, 0].mean()))
            )
        return sums

    return epoch


@row("second start on a folder of 60,000 PNGs, against the first", ratio=10, check=close(0, 0))
def second_start(ours, folder):
    from PIL import Image

    generator = np.random.RandomState(0)
    for part, count in (("train", 50_000), ("test", 10_000)) if not ours else ():
        for k in range(100):
            os.makedirs(f"{folder}/images/{part}/{k:03d}")
        for i in range(count):
            image = generator.randint(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(image).save(f"{folder}/images/{part}/{i % 100:03d}/{i}.png")

    def start():
        if not ours:
            for cache in Path(f"{folder}/cache").rglob("*.pt"):
                cache.unlink()
        return [int(load_data(f"{folder}/images").fingerprint[:12], 16)]

    return start


def importance(method, ours, name="mobilenet", count=2560, width=1.0):
    model = side_of(fresh(name, width), ours).eval()
    batches = list(
        random_images(count)
        .to(DEVICE)
        .train_batches(128, key=(0,), balanced=method == "grasp", count=count)
    )
    plain, seeds = [(layout(i, ours), labels) for i, labels in batches], itertools.count()

    def estimate():
        scores = (
            cal_importance(model, method, batches, seed=next(seeds))
            if ours
            else TEXTBOOK[method](model, plain)
        )
        return [
            torch.cat([score / score.abs().max() for score in scores.values()])
            if method != "rdt"
            else torch.cat(list(scores.values()))
        ]

    return estimate


for _name in ("fisher", "tfo", "theis", "grasp"):
    row(f"{_name}, 2,560 images, mobilenet", ratio=1.3, check=close(0.02, 5e-3))(
        lambda ours, _folder, name=_name: importance(name, ours)
    )


@row("theis against fisher, 2,560 images, mobilenet", ratio=1 / 1.5, check=different)
def theis_against_fisher(ours, _folder):
    pick_device(DEVICE.type)
    return importance("theis" if ours else "fisher", ours=True)


def same_ranks(exact, ours):
    ranks = [side[0].argsort().argsort() for side in (exact, ours)]
    spearman = np.corrcoef(ranks)[0, 1]
    model = build_model("mobilenet", width=1 / 4)
    sizes = dense_widths(model)
    kept = [
        select_filters(model, dict(zip(sizes, torch.tensor(side[0]).split([*sizes.values()]))), 50)
        for side in (exact, ours)
    ]
    same = sum(torch.isin(kept[1][n], kept[0][n]).sum().item() for n in kept[0])
    same /= sum(map(len, kept[0].values()))
    assert spearman >= 0.98 and same >= 0.95, (spearman, same)
    return f"Spearman {spearman:.4f}, {100 * same:.1f}% the same kept filters at 50%"


@row(
    "rdt, 100 classes, 10 minibatches, mobilenet at a quarter of its width",
    ratio=25,
    check=same_ranks,
)
def rdt(ours, _folder):
    """Other signs at every turn."""
    return importance("rdt", ours, count=1280, width=1 / 4)


def pruned(dense, percent, evenly):
    """A random selection, from every layer the same share, or ranked over all layers; evenly pruned
    widths are multiples of 16, which a CPU multiplies at a time."""
    if not evenly:
        kept = select_filters(dense, cal_importance(dense, "random"), percent)
    else:
        generator = torch.Generator().manual_seed(0)
        kept = {
            g.name: torch.randperm(g.dense, generator=generator)[
                : g.dense if g.is_fixed else round(g.dense * (1 - percent / 100))
            ]
            .sort()
            .values
            for g in filter_groups(dense)
        }
    return prune(dense, kept), kept


def inference(percent, evenly, ours, against_dense):
    dense = fresh("resnet").eval()
    small, kept = pruned(dense, percent, evenly)
    images = torch.randn(128, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(
        DEVICE, memory_format=torch.channels_last
    )
    if ours or against_dense:
        pick_device(DEVICE.type)
        model = small if ours else dense
    else:
        with torch.no_grad():
            for group in filter_groups(dense):
                gone = torch.ones(len(group.channels), dtype=torch.bool)
                gone[kept[group.name]] = False
                group.bn.weight[gone] = group.bn.bias[gone] = 0
        model, images = textbook(dense), images.contiguous()

    def run():
        with torch.no_grad():
            return [model(images)]

    return run


def macs_of_inference(percent, evenly):
    dense = build_model("resnet")
    return [measure_cost(model)["macs"] for model in (dense, pruned(dense, percent, evenly)[0])]


for _percent, _share, _evenly in (
    (25, 0.9, True),
    (50, 0.9, True),
    (75, 0.75, True),
    (25, None, False),
    (50, None, False),
    (75, None, False),
):
    _name = (
        f"inference, resnet pruned by {_percent}% "
        f"{'of every layer' if _evenly else 'over all layers'}, "
    )
    row(_name + "against zeroed", ratio=1.3 if _percent == 50 else None, check=close(1e-2, 1e-3))(
        lambda ours, _folder, percent=_percent, evenly=_evenly: inference(
            percent, evenly, ours, False
        )
    )
    row(
        _name + "per multiply-add, against unpruned",
        ratio=_share,
        check=different,
        work=lambda percent=_percent, evenly=_evenly: macs_of_inference(percent, evenly),
    )(
        lambda ours, _folder, percent=_percent, evenly=_evenly: inference(
            percent, evenly, ours, True
        )
    )


def cut(name, ours):
    model = fresh(name)
    scores = cal_importance(model, "random")

    def step():
        _ = prune(model, select_filters(model, scores, 50)) if ours else copy.deepcopy(model)
        return []

    return step


for _name in PENALTY:
    row(
        f"selection and surgery, against a copy of the network: {_name}",
        seconds=0.2,
        check=different,
    )(lambda ours, _folder, name=_name: cut(name, ours))


def command(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


for _arguments in (["--help"], ["--modle=vgg"]):
    row(f"main.py {_arguments[0]}, against python -c pass", seconds=0.3, check=different)(
        lambda ours, _folder, arguments=_arguments: (
            lambda: [command(*["main.py", *arguments] if ours else ["-c", "pass"]).returncode]
        )
    )


def same_quality(baseline, ours):
    assert baseline[0] == ours[0], "filters"
    assert abs(baseline[1] - ours[1]) < 2, (baseline, ours)
    return f"accuracy {baseline[1]:.2f}%, ours {ours[1]:.2f}%"


@row("the README's quick job", ratio=1.5, check=same_quality)
def quick_job(ours, folder):
    def job():
        if not ours:
            return json.loads(
                command("-c", "from tests.benchmark import textbook_quick_job as job; job()").stdout
            )
        command(
            ROOT / "main.py",
            *"--preset=quick --data_path=digits --ebt=True --model=vgg "
            "--pruning_type=orthoreg --prune_percent=25".split(),
            cwd=folder,
        )
        result = json.loads(next(Path(folder).rglob("*.json")).read_text())
        return [result["filters"], result["accuracy"]["best"]["top1"]]

    return job


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "rows", nargs="*", help="beginnings of the names of the rows (default: all)"
    )
    parser.add_argument(
        "--json",
        default="benchmark.json",
        metavar="FILE",
        help="where to write the figures (default: benchmark.json)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="turns that are measured, after one that is not (default: 5)",
    )
    args = parser.parse_args()
    chosen = [
        name for name in ROWS if not args.rows or any(name.startswith(part) for part in args.rows)
    ]
    print(
        f"torch {torch.__version__}, {DEVICE}, {torch.get_num_threads()} threads\n"
        "row: seconds of the baseline, ours, ratio (lowest to highest), to reach",
        flush=True,
    )
    figures, failed = {}, []
    for name in chosen:
        try:
            figures[name] = f = measure(name, args.repeats)
        except (AssertionError, EOFError) as error:
            print(f"{name}\n    FAILED: {error}", flush=True)
            failed.append(name)
            continue
        goal = (
            f"{f['wanted_ratio']:.2f}x"
            if f["wanted_ratio"]
            else f"{f['wanted_seconds']} s"
            if f["wanted_seconds"]
            else ""
        )
        print(
            f"{name}\n    {f['baseline']:9.4f}  {f['ours']:9.4f}  {f['ratio']:6.2f}x "
            f"({f['lowest']:.2f} to {f['highest']:.2f})",
            end="",
        )
        print(
            goal and f"  {goal}: {'reached' if f['reached'] else 'NOT REACHED'}",
            *(f"\n      {note}" for note in f["notes"]),
            flush=True,
        )
        Path(args.json).write_text(
            json.dumps(
                {
                    "torch": torch.__version__,
                    "device": str(DEVICE),
                    "threads": torch.get_num_threads(),
                    "rows": figures,
                },
                indent=1,
            )
        )
    if failed:
        sys.exit(f"the two sides differ, or one failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
