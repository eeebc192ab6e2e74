"""How practice.py cuts: this suite, Torch-Pruning, and the controls, in the same loop."""

import copy
from dataclasses import replace

import torch
import torch_pruning as tp
from ground import SCORED, settle
from practice_rows import CLOCK_BATCH, THEIRS, Row
from torch import nn

from imp_estimator import cal_importance
from lab.latency import Clock, select_by_time
from lab.networks import fresh_like
from pruner import choices, measure_losses, prune, select_filters, step_targets
from train import evaluate

MEASURED = 128  # images for losses
CLOCK_WIDTH = 8  # what widths are multiples of where times count, for both tools


def macs_of(network, size):
    """Multiply-adds of convolutions and linear layers for one image, counted as they run, the same
    way for both tools."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        else:
            total += output.numel() * module.weight[0].numel()

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    modes = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size))
    network.train(modes)
    for handle in handles:
        handle.remove()
    return total


# ------------------------------------------------------------------------------------- the cuts


def cut(row, network, data, share, seed, known):
    """`network` with `share` percent of its multiply-adds, or time. known: method -> its scores of
    this network, or gradients, as far as they have been computed."""
    way = "best" if row.ranking == "best" else row.tool
    return CUTS[way](row, network, data, share, seed, known)


def _cut_ours(row, network, data, share, seed, known):
    whole = network
    clock = clock_of(whole, data, known) if row.budget == "time" else None
    for step, target in enumerate(step_targets(0, 100 - share, row.steps)):
        if step:
            settle(network, data, seed)
            known = {}  # scores of what is left
        scores = _scores_of(row, network, data, seed, step, known)
        choice = {
            "residual": row.residual,
            "ranking": row.ranking,
            "per_cost": row.per_cost,
            "pruning_type": row.method,
            "losses": None,
        }
        if row.ranking == "measured":
            choice["losses"] = _losses_of(row, network, whole, data, seed, scores, known)
        if clock:
            kept, _saved, _most = select_by_time(
                network,
                scores,
                target,
                clock,
                exact=step + 1 == row.steps,
                round_to=CLOCK_WIDTH,
                original=whole,
                **choice,
            )
        else:
            kept = select_filters(
                network, scores, target, budget="macs", image_size=data.image_size, **choice
            )
        network = prune(network, kept)
    return network


def _scores_of(row, network, data, seed, step, known):
    if row.method not in known:
        batches = data.train_batches(50, key=(seed, "importance", step), count=SCORED)
        known[row.method] = cal_importance(network, row.method, batches, seed=seed)
    return known[row.method]


def _losses_of(row, network, whole, data, seed, scores, known):
    """What --ranking=measured asks for."""
    key = row.method, row.residual
    if key not in known:
        images = data.train_batches(64, key=(seed, "measured"), count=MEASURED, augmented=False)
        known[key] = measure_losses(network, scores, images, row.residual, whole)
    return known[key]


def clock_of(network, data, known):
    """The Clock that times cuts of a network in ONNX Runtime."""
    if "clock" not in known:
        cpu = torch.device("cpu")
        known["clock"] = Clock(network, data.image_size, CLOCK_BATCH, cpu, "onnxruntime")
    return known["clock"]


def _cut_theirs(row, network, data, share, seed, known):
    """Torch-Pruning, to the smallest ratio of channels that leaves no more of the budget."""
    if row.budget == "time":
        clock = clock_of(network, data, known)

        def fits(small):
            return clock.saved_by(small).percent >= 100 - share
    else:
        wanted = macs_of(network, data.image_size) * share / 100

        def fits(small):
            return macs_of(small, data.image_size) <= wanted

    if row.method == "taylor" and "slopes" not in known:
        known["slopes"] = _slopes(network, data, seed)
    slopes = known["slopes"] if row.method == "taylor" else {}
    low, high, found = 0.0, 1.0, None
    for _ in range(9):
        ratio = (low + high) / 2
        small = _their_cut(row, network, data, ratio, slopes)
        if fits(small):
            high, found = ratio, small
        else:
            low = ratio
    if found is None:
        raise ValueError("no ratio of channels leaves so little")
    return found


def _their_cut(row, network, data, ratio, slopes):
    small = copy.deepcopy(network).to(memory_format=torch.contiguous_format).eval()
    small.__dict__.pop("_remains", None)
    for name, parameter in small.named_parameters():
        parameter.grad = slopes[name].clone() if name in slopes else None
    last = [m for m in small.modules() if isinstance(m, nn.Linear)][-1]
    pruner = tp.pruner.MetaPruner(
        small,
        torch.zeros(1, 3, data.image_size, data.image_size),
        importance=getattr(tp.importance, THEIRS[row.method])(),
        pruning_ratio=ratio,
        global_pruning=row.ranking == "global",
        ignored_layers=[last],
        iterative_steps=row.steps,
        max_pruning_ratio=0.95,
        round_to=CLOCK_WIDTH if row.budget == "time" else None,
    )
    for _ in range(row.steps):
        pruner.step()
    small.zero_grad(set_to_none=True)
    return small.to(memory_format=torch.channels_last)


def _slopes(network, data, seed):
    """The mean gradient of the loss, of the same images as for our scores."""
    batches = data.train_batches(50, key=(seed, "importance", 0), count=SCORED)
    network = copy.deepcopy(network).eval()
    network.zero_grad()
    for images, labels in batches:
        loss = nn.functional.cross_entropy(network(images), labels, reduction="sum")
        (loss / len(batches.order)).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def _best_of_ours(row, network, data, share, seed, known):
    """What --select=best does: the cut of all rankings that a tenth of the images, held out from
    scores and statistics, judges best."""
    data = replace(data, validation=None).hold_out(10, seed)
    known, best = {}, None
    for choice in choices(network):
        small = cut(replace(row, **choice), network, data, share, seed, known)
        settled = copy.deepcopy(small)
        settle(settled, data, seed)
        accuracy = evaluate(settled, data.choice_batches())["top1"]
        if best is None or accuracy > best[0]:
            best = accuracy, small
    return best[1]


def _fresh(row, network, data, share, seed, known):
    """The architecture of a cut by the same share of each layer, with fresh weights."""
    way = Row("orthoreg", "group", "layer", "coupled")
    shape = cut(way, network, data, share, seed, known)
    torch.manual_seed(seed)
    return fresh_like(shape, len(data.classes))


CUTS = {
    "orthoreg": _cut_ours,
    "best": _best_of_ours,
    "torch-pruning": _cut_theirs,
    "scratch": _fresh,
    "unpruned": lambda row, network, *_: copy.deepcopy(network),
}
