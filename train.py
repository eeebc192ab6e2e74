"""One training loop, the orthonormality penalty, the accuracy of a network, and resume files.

    penalty = OrthonormalityPenalty(model, strength=1e-2)
    trained = fit(model, data, recipe, key=(0, "ortho"), penalty=penalty)
    trained.best["top1"], degree_of_orthogonality(model)
"""
import copy
import ctypes
import hashlib
import math
import os
import random
import socket
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from config import (MOMENTUM, Diverged, InputError, processes, progress, to_json, uninterrupted,
                    write_atomically)
from data import shared, sum_over_processes
from models import filter_matrix
from pruner import (NOT_AS_WRITTEN, is_plain, mask_distance, network_content, read_safely, rebuild,
                    to_bytes)

# ------------------------------------------------------------------------------ orthonormality


def convolutions(model):
    """[(dotted name, convolution)] of all convolutions, depthwise ones and the stem included."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]


def gram_matrix(matrix):
    """W W^T of a matrix W whose rows are filters, where they are fewer than its columns, else
    W^T W: square, on the smaller side."""
    w = matrix if matrix.shape[0] < matrix.shape[1] else matrix.T
    count, half = len(w), len(w) // 2
    if count < 256:
        return w @ w.T
    gram = w.new_empty(count, count)  # symmetric: three quarters of the products are enough
    torch.mm(w[:half], w.T, out=gram[:half])
    torch.mm(w[half:], w[half:].T, out=gram[half:, half:])
    gram[half:, :half] = gram[:half, half:].T
    return gram


def degree_of_orthogonality(model):
    """{convolution's dotted name: sum_i |G_ii| / sum_ij |G_ij|}: 1 for orthogonal filters."""
    degrees = {}
    with torch.no_grad():
        for name, conv in convolutions(model):
            gram = gram_matrix(filter_matrix(conv)).abs()
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
        return sum(weight * _DistanceFromOrthonormal.apply(filter_matrix(conv))
                   for conv, weight in self.terms)


class _DistanceFromOrthonormal(torch.autograd.Function):
    """sum_ij |G_ij - I_ij|, G = gram_matrix(W). Since G is symmetric its gradient is
    2 sign(G - I) W, or 2 W sign(G - I): one matrix product, where autograd would take two."""

    @staticmethod
    def forward(ctx, matrix):
        gram = gram_matrix(matrix)
        gram.diagonal().sub_(1)
        distance = torch.linalg.vector_norm(gram, 1)
        ctx.save_for_backward(matrix, gram.sign_())
        return distance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        matrix, signs = ctx.saved_tensors
        wide = matrix.shape[0] < matrix.shape[1]
        return (signs @ matrix if wide else matrix @ signs).mul_(2 * slope)


# ------------------------------------------------------------------------------------ training


def pick_device(name="auto", deterministic=False):
    """The torch device for --device; "auto" is a GPU where there is one. Raises InputError.

    Sets what makes it fast. deterministic: on a GPU, only what gives the same bits again; a CPU
    always does.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
    several = processes()[1] > 1
    if name == "auto":
        name = next(device for device, there in available.items()
                    if there and not (several and device == "mps"))
    if not available[name]:
        raise InputError(f"--device={name}: there is none here; --device=cpu always works")
    if several and name == "mps":
        raise InputError("--device=mps serves one process; --device=cpu serves several")
    if name == "cpu":
        _keep_freed_memory()
    torch.backends.cudnn.benchmark = not deterministic
    if name == "cuda" and deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by cuBLAS
        torch.use_deterministic_algorithms(True, warn_only=True)
    if several and name == "cuda":
        here, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if max(here + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > there:
            raise InputError(f"torchrun has started more processes than this machine has GPUs: "
                             f"--nproc_per_node={there}, or --device=cpu")
        torch.cuda.set_device(here)
        return torch.device(name, here)
    return torch.device(name)


def _keep_freed_memory():
    """Make the C library keep what is freed for the next batch, which needs as much again. It would
    hand large blocks back to the system and get them anew, a page at a time: up to half of a
    training step's time."""
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # of glibc's malloc.h
    with suppress(AttributeError, OSError, TypeError):  # other systems have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_max, 0)  # older ones take 32 MB at most
        mallopt(trim_threshold, -1)


def evaluate(model, batches):
    """{"loss", "top1", "top5"} of a network in eval mode: mean cross-entropy, accuracies in %.

    "top5" is missing where there are 5 classes or fewer. Modes are left as they were.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(4, device=next(model.parameters()).device)
    with torch.no_grad():
        for images, labels in progress(shared(batches), "test"):
            logits = model(images)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
            sums[:3] += torch.stack((loss, ranked[:, 0].sum(), ranked.sum()))
            sums[3] += len(labels)
    model.train(training)
    sum_over_processes(sums)
    loss, top1, top5, count = sums.tolist()
    figures = {"loss": loss / count, "top1": 100 * top1 / count}
    return {**figures, "top5": 100 * top5 / count} if model.num_classes > 5 else figures


def autocast(model, amp=False, compiled=False):
    """images -> float32 logits of `model`, computed in `amp` ("bfloat16", "float16" or False)
    where autocast finds that safe, and by torch.compile if `compiled`. Of several processes all
    get the mean of their gradients. Calls of the result raise InputError where nothing compiles."""
    device = next(model.parameters()).device
    network = _distributed(model, device) if processes()[1] > 1 else model
    if compiled:
        torch._dynamo.reset()  # it gives up on a network's code after a few sets of widths
        network = torch.compile(network)

    def forward(images):
        with torch.autocast(device.type, getattr(torch, amp or "bfloat16"), enabled=bool(amp)):
            try:
                logits = network(images)
            except Exception as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                line = str(error).partition("\n")[0]
                raise InputError(f"--compile=True does not work here: {line}") from error
        return logits.float() if amp else logits
    return forward


def _distributed(model, device):
    # The running statistics are averaged once an epoch; the option has a new name since torch 2.15.
    known = signature(DistributedDataParallel).parameters
    # A 1x1 convolution's weights have two descriptions of one layout, of which DDP warns.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, **{option: False})


def train_epoch(model, batches, optimizer, penalty=None, label="train", sums=None, forward=None,
                scaler=None):
    """Train once over `batches`: {"loss", "top1", "penalty"}, means over the images, in train mode.

    "loss" is the cross-entropy; `penalty`, a callable without arguments, is added to it.
    forward: how logits are computed, see `autocast`; scaler: a GradScaler, for float16.
    sums: an `epoch_sums` that says how far the epoch has come, and is kept up to date; a signal
    stops it between two batches. Raises Diverged, within the epoch, where the loss is not finite.
    Of several processes each has its share of every batch, whose BatchNorm statistics are its own;
    the figures, and the running statistics at the end, are those of all.
    """
    model.train()
    device = next(model.parameters()).device
    sums, shown = sums if sums is not None else epoch_sums(), 0.0
    forward, scaler = forward or model, scaler or torch.amp.GradScaler(enabled=False)
    for name in ("loss", "penalty", "hits"):  # read rarely: reading waits for the device
        sums[name] = torch.as_tensor(sums[name], dtype=torch.float32, device=device)
    bar = progress(batches, label, start=sums["batches"])
    for images, labels in bar:
        with uninterrupted():
            logits = forward(images)
            loss = F.cross_entropy(logits, labels)
            part = loss * batches.weight(sums["batches"]) if processes()[1] > 1 else loss
            extra = penalty() if penalty else torch.zeros((), device=device)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(part + extra).backward()
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                sums["loss"] += loss * len(labels)
                sums["penalty"] += extra * len(labels)
                sums["hits"] += (logits.argmax(1) == labels).sum()
            sums["images"] += len(labels)
            sums["batches"] += 1
        if time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            _require_finite(sums["loss"] + sums["penalty"])
            bar.set_postfix(loss=f"{sums['loss'].item() / sums['images']:.3f}",
                            accuracy=f"{100 * sums['hits'].item() / sums['images']:.1f}%")
    total = torch.stack((sums["loss"], sums["penalty"], sums["hits"],
                         sums["loss"].new_tensor(sums["images"])))
    sum_over_processes(total)
    _require_finite(total.sum())
    _average_running_statistics(model)
    loss, extra, hits, count = total.tolist()
    figures = {"loss": loss / count, "top1": 100 * hits / count}
    return {**figures, "penalty": extra / count} if penalty else figures


def _average_running_statistics(model):
    count = processes()[1]
    if count > 1:
        statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        sum_over_processes(*statistics)
        torch._foreach_div_(statistics, count)


def epoch_sums():
    """Of an epoch that begins: what it has seen, and sums over these images."""
    return {"batches": 0, "images": 0, "loss": 0.0, "penalty": 0.0, "hits": 0.0, "seconds": 0.0}


def _require_finite(loss):
    if not math.isfinite(loss.item()):
        raise Diverged("the loss is not finite")


@dataclass
class Training:
    """A training, done or under way.

    history: one dict per finished epoch. best, last: epoch, loss and accuracies on the test images;
    under way, and under "validation" later, on the validation images where there are any.
    chosen_on: what `best` was chosen on at the end: "test" or "validation" images, or "ticket".
    The others are only there while it is under way: the weights of the best epoch, the states of
    the optimizer and of float16's scaler, the last masks of an Early-Bird ticket, and the epoch
    that has begun (see `epoch_sums`).
    """
    history: list = field(default_factory=list)
    best: dict = None
    last: dict = None
    chosen_on: str = None
    weights: dict = None
    optimizer: dict = None
    scaler: dict = None
    masks: list = field(default_factory=list)
    sums: dict = None

    @property
    def seconds(self):
        return sum(epoch["seconds"] for epoch in self.history)


@dataclass(frozen=True)
class EarlyBird:
    """When to stop a training because its ticket is found (You et al. 2020, arXiv 1909.11957).

    mask: () -> which filters would be kept now, a bool tensor over all of them. The ticket is drawn
    as soon as the mask of an epoch differs from each of the four before in at most the share
    `epsilon` of the filters.
    """
    mask: Callable
    epsilon: float = 0.1
    older = 4  # how many masks the newest is compared with

    def is_drawn(self, history):
        distances = history[-1]["mask_distances"] if history else []
        return len(distances) == self.older and max(distances) <= self.epsilon


def fit(model, data, recipe, *, key, batch_size=128, optimizer="sgd", penalty=None, label="train",
        amp=False, compiled=False, ticket=None, training=None, keep=None):
    """Train `model` in place by `recipe` and leave it with the weights of its best epoch, or of the
    one whose ticket is drawn.

    data: an ImageData on the model's device. recipe: a config.Recipe. key: what the order of the
    images is drawn from, together with the epoch. penalty: as in `train_epoch`. amp, compiled: as
    in `autocast`; penalty and accuracy are float32. ticket: an EarlyBird.
    training: one under way, to go on with; `model` has the weights that belong to it.
    keep: called after every epoch, and when KeyboardInterrupt ends it; who keeps `training` and the
    model's weights then can go on with them later, and ends with the same bits.
    The best epoch is the one with the highest top-1 accuracy on the validation images, or the test
    images where there are none, of equals the latest. With validation images the test images are
    looked at once, after the training. Prints one line per epoch. Returns the Training. Raises
    Diverged.
    """
    rates, training, keep = recipe.rates(optimizer), training or Training(), keep or (lambda: None)
    device = next(model.parameters()).device.type
    options = {"weight_decay": recipe.weight_decay, "fused": device == "cuda" or None}
    if optimizer == "adam":
        steps = torch.optim.Adam(model.parameters(), **options)
    else:
        steps = torch.optim.SGD(model.parameters(), lr=1.0, momentum=MOMENTUM, **options)
    number, count = processes()
    forward = autocast(model, amp, compiled)
    scaler = torch.amp.GradScaler(device, enabled=amp == "float16")
    for each, state in ((steps, training.optimizer), (scaler, training.scaler)):
        if state:
            each.load_state_dict(state)
    if not rates:
        training.last = training.best = {"epoch": 0, **evaluate(model, data.choice_batches())}
    for epoch in range(len(training.history) + 1, len(rates) + 1):
        if ticket and ticket.is_drawn(training.history):
            break
        rate, began = rates[epoch - 1], time.monotonic()
        for group in steps.param_groups:
            group["lr"] = rate
        where = (f"in {label}, epoch {epoch} of {len(rates)}, at learning rate {rate:g}; a lower "
                 "rate in config.py may help")
        training.sums = training.sums or epoch_sums()
        if number:  # what one process has summed up before it was stopped counts once
            training.sums = {**epoch_sums(), "batches": training.sums["batches"]}
        try:
            batches = data.train_batches(batch_size, key=(*key, epoch))
            if count > 1:
                batches = batches.share(number, count)
            train = train_epoch(model, batches, steps, penalty, f"{label} {epoch}/{len(rates)}",
                                training.sums, forward, scaler)
            figures = evaluate(model, data.choice_batches())
            if not math.isfinite(figures["loss"]):
                raise Diverged(f"the {data.chosen_on} loss is not finite")
            masked = time.monotonic()
            masks = [ticket.mask()] if ticket else []
            masked = time.monotonic() - masked
        except KeyboardInterrupt:
            if count > 1:  # each stops at another batch: what was kept after the last epoch stays
                raise
            with uninterrupted():
                training.sums["seconds"] += time.monotonic() - began
                training.optimizer, training.scaler = steps.state_dict(), scaler.state_dict()
                if all(v.isfinite().all() for v in model.state_dict().values()):
                    keep()  # else the last epoch's weights stay the kept ones
            raise
        except Diverged as error:
            raise Diverged(f"{error} {where}") from None
        with uninterrupted():
            training.last = {"epoch": epoch, **figures}
            if training.best is None or figures["top1"] >= training.best["top1"]:
                training.best = training.last
                training.weights = {k: v.clone() for k, v in model.state_dict().items()}
            seconds = training.sums["seconds"] + time.monotonic() - began
            degrees = degree_of_orthogonality(model).values()
            training.history.append({
                "epoch": epoch, "lr": rate, "seconds": seconds, "train": train,
                data.chosen_on: figures, "orthogonality": sum(degrees) / len(degrees)})
            extra = f" + penalty {train['penalty']:.3f}" if penalty else ""
            line = (f"  {label} {epoch}/{len(rates)}  lr {rate:g}  loss {train['loss']:.3f}{extra}  "
                    f"train {train['top1']:.1f}%  {data.chosen_on} {figures['top1']:.1f}%  "
                    f"{seconds:.1f} s")
            if ticket:
                distances = [mask_distance(masks[0], older) for older in reversed(training.masks)]
                training.history[-1].update(mask_distances=distances, mask_seconds=masked)
                training.masks = (training.masks + masks)[-ticket.older:]
                line += f", of it {masked:.1f} s for the mask, " + (
                    f"which differs from those before by {' '.join(f'{d:.3f}' for d in distances)}"
                    if distances else "the first")
            training.optimizer, training.scaler = steps.state_dict(), scaler.state_dict()
            training.sums = None
            keep()
            print(line, flush=True)

    def tested(figures):
        if not data.validation:
            return figures
        validation = {name: value for name, value in figures.items() if name != "epoch"}
        return {"epoch": figures["epoch"], **evaluate(model, data.test_batches()),
                "validation": validation}

    best, training.last, training.chosen_on = training.best, tested(training.last), data.chosen_on
    if ticket and ticket.is_drawn(training.history):
        best, training.chosen_on = training.last, "ticket"
    if best["epoch"] == training.last["epoch"]:
        training.best = training.last
    else:
        model.load_state_dict(training.weights)
        training.best = tested(best)
    training.weights = training.optimizer = training.scaler = None
    training.masks = []
    return training


# --------------------------------------------------------------------------- several processes


def join_processes(device):
    """Meet the processes that torchrun has started beside this one, if there are any."""
    if processes()[1] > 1 and not distributed.is_initialized():
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30),
            device_id=device if device.type == "cuda" else None)


def leave_processes():
    if processes()[1] > 1:
        distributed.barrier()  # none closes while another still reads
        distributed.destroy_process_group()


def is_first():
    """Whether this is the process that prints and writes."""
    return processes()[0] == 0


@contextmanager
def first_alone():
    """The first process does what is inside before the others do."""
    if not is_first():
        distributed.barrier()
    yield
    if processes()[1] > 1 and is_first():
        distributed.barrier()


def as_first(value):
    """The value that the first process has, in all of them: a plain value."""
    values = [value]
    if processes()[1] > 1:
        distributed.broadcast_object_list(values)
    return values[0]


def require_same(what, value):
    """Raise InputError, in all processes, where they differ in a plain value."""
    if processes()[1] > 1:
        digests = [None] * processes()[1]
        distributed.all_gather_object(digests, hashlib.sha256(to_json(value)).hexdigest())
        others = [number for number, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise InputError(f"the processes differ in {what}: {others} from the first; all must run "
                             "the same code on the same images and kind of machine")


# ----------------------------------------------------------------------------- resume and locks


@dataclass
class State:
    """How far a run has come. With the network it is what the resume file holds."""
    begin: str  # where the unpruned network comes from
    done: int = 0  # steps of the job
    records: list = field(default_factory=list)  # of the networks that are finished
    scores: dict = None  # these and the following are of the round under way
    pruning: dict = None
    seconds: dict = field(default_factory=dict)
    trained: dict = field(default_factory=dict)  # name, see main.Job.training -> Training


def write_resume_file(path, network, state, identity):
    """Write all that is needed to go on, atomically. identity: entries that tell a command from
    another one, nested dicts of plain values."""
    trained = {phase: vars(training) for phase, training in state.trained.items()}
    kind, keys, *rest = np.random.get_state()
    states = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest),
              "torch": torch.get_rng_state(),
              "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}
    write_atomically({path: to_bytes({**network_content(network), **identity, "random": states,
                                      "state": {**vars(state), "trained": trained}})})


def read_resume_file(path, identity, defaults=None):
    """(network on the CPU, State) of a resume file; the random generators go on from theirs.

    defaults: of the flags, some of which may be newer than the file.

    Raises InputError where it is damaged, or of another command: then it names the difference.
    """
    content = read_safely(path)
    try:
        if not all(is_plain(content.get(key)) for key in identity):
            raise TypeError("what identifies the command is not plain")
        content["flags"] = {**(defaults or {}), **content["flags"]}
        change = next(filter(None, (_difference(content.get(key), now, _SPOKEN.get(key, key))
                                    for key, now in identity.items())), None)
        if change:
            raise InputError(f"{path} is of another command: {change} now; give what it was, or "
                             "leave out --resume=True to begin anew")
        network, state = rebuild(content), _checked(State, content["state"])
        state.trained = {phase: _checked(Training, of) for phase, of in state.trained.items()}
        for training in state.trained.values():
            _check_training(training, network)
        states = content["random"]
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["torch"])
        if len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states["cuda"])
        return network, state
    except NOT_AS_WRITTEN as error:
        raise damaged(path) from error


def damaged(path):
    return InputError(f"{path} is damaged; leave out --resume=True to begin anew")


def read_progress(path):
    """(how the run began, how many of its steps are done) by a resume file. Raises InputError."""
    content = read_safely(path)
    try:
        return content["state"]["begin"], int(content["state"]["done"])
    except NOT_AS_WRITTEN as error:
        raise damaged(path) from error


def _checked(cls, values):
    for each in fields(cls):
        if type(values[each.name]) not in (each.type, type(each.default)):
            raise TypeError(f"{each.name} is {type(values[each.name])}")
    return cls(**values)


def _check_training(training, network):
    """Raise where it is not what `fit` can go on with."""
    for epoch in training.history:
        chosen = epoch.get("validation") or epoch["test"]
        epoch["seconds"] + epoch["train"]["top1"] + chosen["top1"]
    for figures in (training.best, training.last):
        if figures is not None:
            figures["epoch"] + figures["top1"]
    if training.sums is not None:
        [training.sums[name] + 0 for name in epoch_sums()]
        range(training.sums["batches"])
    if training.weights is not None:
        copy.deepcopy(network).load_state_dict(training.weights)
    for mask in training.masks:
        mask_distance(mask, mask)
    if training.scaler:
        torch.amp.GradScaler(enabled=False).load_state_dict(training.scaler)
        training.scaler["scale"] + training.scaler["_growth_tracker"]
    if training.optimizer is not None:
        kind = torch.optim.Adam if "betas" in training.optimizer["param_groups"][0] else \
            torch.optim.SGD
        kind(network.parameters(), lr=1.0).load_state_dict(training.optimizer)


_SPOKEN = {"flags": "--", "schedule": "in config.py, ",
           "fingerprint": "the fingerprint of the images"}


def _difference(then, now, name):
    """The first difference of two nested dicts, in words; None where there is none."""
    if isinstance(then, dict) and isinstance(now, dict):
        changes = (_difference(then.get(key), now.get(key), f"{name}{key}" if name in
                               _SPOKEN.values() else f"{name}.{key}") for key in {**now, **then})
        return next(filter(None, changes), None)
    return None if to_json(then) == to_json(now) else f"{name} was {then!r} and is {now!r}"


def check_writable(file):
    """Raise InputError where `file` could not be written, whose folder need not exist yet."""
    if os.path.isdir(file):
        raise InputError(f"cannot write {file}: there is a folder of that name")
    folder = Path(file).parent
    path = Path(os.path.realpath(folder))
    there = next(p for p in (path, *path.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}/: {there} is no folder that can be written to")


@contextmanager
def locked(paths, wait=False):
    """Hold the right to write `paths`. Where another run that lives holds one: wait until it ends,
    or raise InputError."""
    with ExitStack() as held:
        for path in sorted(set(map(Path, paths))):
            held.enter_context(_locked(path, wait))
        yield


@contextmanager
def _locked(path, wait):
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with _lock_file(lock, path, wait):
            yield
    finally:
        for folder in new:
            with suppress(OSError):  # only empty ones go
                folder.rmdir()


@lru_cache
def _say_unlocked(folder):
    print(f"  Note: the file system of {folder} has no locks, so nothing keeps another run from "
          "writing the same files at the same time")


@contextmanager
def _lock_file(lock, path, wait):
    """The system lets go of a lock when its process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing is locked there
        yield
        return
    while True:
        with open(lock, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                if wait:
                    time.sleep(1)
                    continue
                raise InputError(f"{path} is being written by another run ({file.read().strip()}); "
                                 "wait until it ends, or stop it") from None
            except OSError:
                _say_unlocked(path.parent)
            try:
                ours = os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
            except FileNotFoundError:
                ours = False
            if ours:  # else its owner ended and removed it between our two steps
                file.truncate(0)
                print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
