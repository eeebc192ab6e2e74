"""One training loop, the orthonormality penalty, and the accuracy of a network.

    penalty = OrthonormalityPenalty(model, strength=1e-2)
    trained = fit(model, data, recipe, key=(0, "ortho"), penalty=penalty)
    trained.best["top1"], degree_of_orthogonality(model)
"""
import math
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from config import MOMENTUM, Diverged, InputError, progress
from models import filter_matrix

# ------------------------------------------------------------------------------ orthonormality


def convolutions(model):
    """[(dotted name, convolution)] of all convolutions, depthwise ones and the stem included."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]


def gram_matrix(conv):
    """W W^T of the filters W = filter_matrix(conv) where they are fewer than their weights, else
    W^T W: square, on the smaller side."""
    w = filter_matrix(conv)
    return w @ w.T if w.shape[0] < w.shape[1] else w.T @ w


def degree_of_orthogonality(model):
    """{convolution's dotted name: sum_i |G_ii| / sum_ij |G_ij|}: 1 for orthogonal filters."""
    degrees = {}
    with torch.no_grad():
        for name, conv in convolutions(model):
            gram = gram_matrix(conv).abs()
            total = gram.sum().clamp_min(torch.finfo(gram.dtype).tiny)
            degrees[name] = (gram.diagonal().sum() / total).item()
    return degrees


class OrthonormalityPenalty:
    """strength * sum_l c_l * sum_ij |G_l - I|_ij over all convolutions l of `model`.

    c_l = sqrt(n_l) / sum_k sqrt(n_k), n_l the input channels of a 1x1 convolution and the output
    channels of any other. Lubana et al. 2020, arXiv 2009.05014.
    Calling it gives a scalar tensor to be added to the loss.
    """

    def __init__(self, model, strength):
        convs = [conv for _, conv in convolutions(model)]
        roots = [math.sqrt(c.in_channels if c.kernel_size == (1, 1) else c.out_channels)
                 for c in convs]
        self.terms = [(conv, strength * root / sum(roots)) for conv, root in zip(convs, roots)]

    def __call__(self):
        total = 0
        for conv, weight in self.terms:
            gram = gram_matrix(conv)
            identity = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
            total = total + weight * (gram - identity).abs().sum()
        return total


# ------------------------------------------------------------------------------------ training


def pick_device(name="auto"):
    """The torch device for --device; "auto" is a GPU where there is one. Raises InputError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise InputError(f"--device={name}: there is none here; --device=cpu always works")
    return torch.device(name)


def evaluate(model, batches):
    """{"loss", "top1", "top5"} of a network in eval mode: mean cross-entropy, accuracies in %.

    "top5" is missing where there are 5 classes or fewer. Modes are left as they were.
    """
    training = model.training
    model.eval()
    loss, hits, count = 0, 0, 0
    with torch.no_grad():
        for images, labels in progress(batches, "test"):
            logits = model(images)
            loss = loss + F.cross_entropy(logits, labels, reduction="sum")
            ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            hits = hits + torch.stack((ranked[:, 0].sum(), ranked.sum()))
            count += len(labels)
    model.train(training)
    top1, top5 = (100 * hits / count).tolist()
    figures = {"loss": loss.item() / count, "top1": top1}
    return {**figures, "top5": top5} if logits.shape[1] > 5 else figures


def train_epoch(model, batches, optimizer, penalty=None, label="train"):
    """Train once over `batches`: {"loss", "top1", "penalty"}, means over the images, in train mode.

    "loss" is the cross-entropy; `penalty`, a callable without arguments, is added to it.
    Raises Diverged, within the epoch, where the loss is not finite.
    """
    model.train()
    device = next(model.parameters()).device
    loss_sum, penalty_sum, hits = torch.zeros(3, device=device)  # read rarely: reading waits
    count, shown = 0, 0.0
    bar = progress(batches, label)
    for images, labels in bar:
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        extra = penalty() if penalty else torch.zeros((), device=device)
        optimizer.zero_grad(set_to_none=True)
        (loss + extra).backward()
        optimizer.step()
        with torch.no_grad():
            loss_sum += loss * len(labels)
            penalty_sum += extra * len(labels)
            hits += (logits.argmax(1) == labels).sum()
        count += len(labels)
        if time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            _require_finite(loss_sum + penalty_sum)
            bar.set_postfix(loss=f"{loss_sum.item() / count:.3f}",
                            accuracy=f"{100 * hits.item() / count:.1f}%")
    _require_finite(loss_sum + penalty_sum)
    figures = {"loss": loss_sum.item() / count, "top1": 100 * hits.item() / count}
    return {**figures, "penalty": penalty_sum.item() / count} if penalty else figures


def _require_finite(loss):
    if not math.isfinite(loss.item()):
        raise Diverged("the loss is not finite")


@dataclass(frozen=True)
class Training:
    """What `fit` did: one dict per epoch, and the test accuracies of the best and last epoch."""
    history: list
    best: dict
    last: dict
    seconds: float


def fit(model, data, recipe, *, key, batch_size=128, optimizer="sgd", penalty=None, label="train"):
    """Train `model` in place by `recipe` and leave it with the weights of its best epoch.

    data: an ImageData on the model's device. recipe: a config.Recipe. key: what the order of the
    images is drawn from, together with the epoch. penalty: as in `train_epoch`.
    The best epoch is the one with the highest top-1 accuracy on the test images, of equals the
    latest. Prints one line per epoch. Returns a Training. Raises Diverged.
    """
    rates, started = recipe.rates(optimizer), time.monotonic()
    if optimizer == "adam":
        steps = torch.optim.Adam(model.parameters(), weight_decay=recipe.weight_decay)
    else:
        steps = torch.optim.SGD(model.parameters(), lr=1.0, momentum=MOMENTUM,
                                weight_decay=recipe.weight_decay)
    history = []
    last = best = {"epoch": 0, **evaluate(model, data.test_batches())} if not rates else None
    for epoch, rate in enumerate(rates, 1):
        began = time.monotonic()
        for group in steps.param_groups:
            group["lr"] = rate
        where = (f"in {label}, epoch {epoch} of {len(rates)}, at learning rate {rate:g}; a lower "
                 "rate in config.py may help")
        try:
            train = train_epoch(model, data.train_batches(batch_size, key=(*key, epoch)), steps,
                                penalty, f"{label} {epoch}/{len(rates)}")
        except Diverged as error:
            raise Diverged(f"{error} {where}") from None
        last = {"epoch": epoch, **evaluate(model, data.test_batches())}
        if not math.isfinite(last["loss"]):
            raise Diverged(f"the test loss is not finite {where}")
        if best is None or last["top1"] >= best["top1"]:
            best, state = last, {k: v.clone() for k, v in model.state_dict().items()}
        seconds = time.monotonic() - began
        history.append({"epoch": epoch, "lr": rate, "seconds": seconds, "train": train,
                        "test": {k: v for k, v in last.items() if k != "epoch"}})
        extra = f" + penalty {train['penalty']:.3f}" if penalty else ""
        print(f"  {label} {epoch}/{len(rates)}  lr {rate:g}  loss {train['loss']:.3f}{extra}  "
              f"train {train['top1']:.1f}%  test {last['top1']:.1f}%  {seconds:.1f} s", flush=True)
    if rates and best is not last:
        model.load_state_dict(state)
    return Training(history, best, last, time.monotonic() - started)
