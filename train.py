"""The orthonormality penalty, one training loop, and the accuracy of a network.

penalty = OrthonormalityPenalty(model, strength=1e-2)
trained = fit(model, data, recipe, key=(0, "ortho"), penalty=penalty)
trained.best["top1"], degree_of_orthogonality(model)
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from channels.groups import filter_groups, filter_matrix, load_weights, unused_parameters
from common.accuracy import Tally
from common.device import autocast
from common.errors import Diverged
from common.inputs import call
from common.modes import evaluating
from common.processes import processes, shared, sum_over_processes
from common.seeds import seed_of
from common.signals import uninterrupted
from common.terminal import progress
from config import MOMENTUM, PENALTY_LAYERS, Recipe
from data import ImageData
from pruner import mask_distance

# ------------------------------------------------------------------------------ orthonormality


def convolutions(model):
    """[(dotted name, convolution)] of all convolutions, depthwise ones and the stem included."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]


def _penalised(model, layers):
    """The layers that a penalty is of. layers: as config.PENALTY_LAYERS. Raises ValueError."""
    if layers not in ("convolutions", "hidden"):
        raise ValueError(
            f"PENALTY_LAYERS in config.py is {layers!r}; it must be convolutions or hidden"
        )
    chosen = [conv for _, conv in convolutions(model)]
    if layers == "hidden":
        own = [group.layer for group in filter_groups(model)]
        chosen += [layer for layer in own if isinstance(layer, nn.Linear)]
    if not chosen:
        hint = ""
        if layers == "convolutions":
            hint = '; PENALTY_LAYERS = "hidden" in config.py makes it one of hidden linear layers'
        raise ValueError(
            "the penalty is one of convolutions, and the network has none; prune the plain "
            f"network, as fisher does{hint}"
        )
    return chosen


def _root_of_size(layer):
    """sqrt(n_l); a linear layer is a 1x1 convolution."""
    if isinstance(layer, nn.Linear):
        return math.sqrt(layer.in_features)
    is_pointwise = layer.kernel_size == (1, 1)
    return math.sqrt(layer.in_channels if is_pointwise else layer.out_channels)


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


def degree_of_orthogonality(model: nn.Module):
    """{convolution's dotted name: sum_i |G_ii| / sum_ij |G_ij|}: 1 for orthogonal filters."""
    degrees = {}
    with torch.no_grad():
        for name, conv in convolutions(model):
            gram = gram_matrix(filter_matrix(conv)).abs()
            total = gram.sum().clamp_min(torch.finfo(gram.dtype).tiny)
            degrees[name] = (gram.diagonal().sum() / total).item()
    return degrees


def mean_degree(degrees: dict[str, float]) -> float | None:
    """The mean of what degree_of_orthogonality gives; None of a network without convolutions."""
    return sum(degrees.values()) / len(degrees) if degrees else None


class OrthonormalityPenalty:
    """strength * sum_l c_l * sum_ij |G_l - I|_ij over all convolutions l of `model`.

    c_l = sqrt(n_l) / sum_k sqrt(n_k), n_l the input channels of a 1x1 convolution and the output
    channels of any other. Lubana et al. 2020, arXiv 2009.05014. layers: "hidden" adds the hidden
    linear layers, each as a 1x1 convolution, which is not published. Raises ValueError where there
    are none of these.
    Calling it gives a scalar tensor to be added to the loss.
    """

    def __init__(self, model, strength, layers=PENALTY_LAYERS):
        chosen = _penalised(model, layers)
        roots = [_root_of_size(layer) for layer in chosen]
        self.terms = [(layer, strength * root / sum(roots)) for layer, root in zip(chosen, roots)]

    def __call__(self):
        return sum(
            weight * _DistanceFromOrthonormal.apply(filter_matrix(layer))
            for layer, weight in self.terms
        )


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


# -------------------------------------------------------------------------------------- one epoch


def evaluate(model: nn.Module, batches) -> dict[str, float]:
    """Loss and accuracies of a network in eval mode, see `common.accuracy.Tally`. Modes are left as
    they were."""
    tally = Tally(next(model.parameters()).device)
    with evaluating(model), torch.no_grad():
        for images, labels in progress(shared(batches), "test"):
            tally.add(model(images), labels)
    return tally.figures(batches)


def reestimate(model: nn.Module, batches) -> None:
    """Make the running statistics of a network's BatchNorms those of some images, in place.

    After filters are removed the statistics of the layers behind are stale. Each BatchNorm
    normalises by the batch here, as in training, and its running statistics become the means over
    all batches; weights stay, and so does the mode of each module. batches: an iterable of (inputs,
    targets), on the model's device, as for `cal_importance`. Returns how many BatchNorms there are;
    raises ValueError where there are no images for them. (Li et al. 2020, arXiv 2007.02491,
    EagleEye, "adaptive BatchNorm".)
    """
    norms = [module for module in model.modules() if _has_statistics(module)]
    if not norms:
        return 0
    momenta, count = [norm.momentum for norm in norms], 0
    with evaluating(model), torch.no_grad():
        try:
            for norm in norms:
                norm.train().reset_running_stats()
                norm.momentum = None  # the mean over all batches
            for inputs, _targets in progress(shared(batches), "BatchNorm"):
                call(model, inputs)
                count += 1
        finally:
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum
        statistics = []
        for norm in norms:
            statistics += [norm.running_mean, norm.running_var]
        if not _average(statistics, count):
            raise ValueError("there are no images to re-estimate statistics on")
    return len(norms)


def _has_statistics(module):
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_norm and module.running_mean is not None


def _average(statistics, weight):
    """Make tensors, in place, their means over all processes, each of a weight of its own. Returns
    the sum of the weights."""
    if processes()[1] == 1:
        return weight
    total = statistics[0].new_tensor(float(weight))
    torch._foreach_mul_(statistics, float(weight))
    sum_over_processes(total, *statistics)
    torch._foreach_div_(statistics, max(1.0, total.item()))
    return total.item()


class Distillation:
    """A loss that also asks for the answers of another network, the teacher.

    (1 - share) * loss + share * T^2 KL(teacher's softmax || own softmax), both of logits / T, in
    the mean over a batch. Hinton et al. 2015, arXiv 1503.02531.
    teacher: a network on the images' device, which is left as it is. temperature: T. amp: see
    `autocast`.
    """

    def __init__(self, teacher, share, temperature=4.0, amp=False):
        self.teacher, self.share, self.temperature, self.amp = teacher, share, temperature, amp

    def __call__(self, loss, logits, images):
        precision = getattr(torch, self.amp or "bfloat16")
        with (
            torch.no_grad(),
            evaluating(self.teacher),
            torch.autocast(images.device.type, precision, enabled=bool(self.amp)),
        ):
            wanted = self.teacher(images).float()
        own = (logits / self.temperature).log_softmax(1)
        wanted = (wanted / self.temperature).log_softmax(1)
        apart = F.kl_div(own, wanted, reduction="batchmean", log_target=True)
        return (1 - self.share) * loss + self.share * self.temperature**2 * apart


@dataclass(frozen=True)
class TrainingStep:
    """What a step of training needs beside its images.

    forward: images -> logits, the network itself or `autocast` of it. criterion: gives the mean
    loss of (logits, labels). penalty: a callable without arguments, which is added to the loss.
    distillation: a Distillation, through which the loss goes. scaler: for float16.
    """

    forward: Callable
    optimizer: torch.optim.Optimizer
    criterion: Callable = F.cross_entropy
    penalty: Callable | None = None
    distillation: Distillation | None = None
    scaler: torch.amp.GradScaler = field(
        default_factory=partial(torch.amp.GradScaler, enabled=False)
    )

    def take(self, images, labels, weight=None):
        """Change the weights once. weight: a factor for the loss, without the penalty. Returns
        (loss, penalty, logits), on the images' device; the loss is that without the factor."""
        logits = self.forward(images)
        loss = self.criterion(logits, labels)
        if self.distillation:
            loss = self.distillation(loss, logits, images)
        weighted = loss if weight is None else loss * weight
        extra = self.penalty() if self.penalty else torch.zeros((), device=loss.device)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(weighted + extra).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, extra, logits


def train_epoch(model, batches, step, *, rate=None, label="train", sums=None):
    """Train once over `batches`: {"loss", "top1", "penalty"}, means over the images, in train mode.

    step: a TrainingStep of `model`; "loss" is its criterion, after distillation, and "penalty" is
    there where it has one. rate: a function of the share of the epoch that is done, which gives the
    learning rate; by default the optimizer's own.
    sums: an `epoch_sums` that says how far the epoch has come, and is kept up to date; a signal
    stops it between two batches. Raises Diverged, within the epoch, where the loss is not finite.
    With several processes, each trains on its share of every batch and normalises by that share's
    statistics. The figures, and the running statistics at the end, are those of all processes.
    """
    model.train()
    device = next(model.parameters()).device
    sums, shown = sums if sums is not None else epoch_sums(), 0.0
    for name in ("loss", "penalty", "hits"):  # read rarely: reading waits for the device
        sums[name] = torch.as_tensor(sums[name], dtype=torch.float32, device=device)
    bar = progress(batches, label, start=sums["batches"])
    for images, labels in bar:
        with uninterrupted():
            if rate:
                _set_rate(step.optimizer, rate((sums["batches"] + 0.5) / len(batches)))
            weight = batches.weight(sums["batches"]) if processes()[1] > 1 else None
            loss, extra, logits = step.take(images, labels, weight)
            with torch.no_grad():
                sums["loss"] += loss * len(labels)
                sums["penalty"] += extra * len(labels)
                sums["hits"] += (logits.argmax(1) == labels).sum()
            sums["images"] += len(labels)
            sums["batches"] += 1
        if time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            _require_finite(sums["loss"] + sums["penalty"])
            bar.set_postfix(
                loss=f"{sums['loss'].item() / sums['images']:.3f}",
                accuracy=f"{100 * sums['hits'].item() / sums['images']:.1f}%",
            )
    total = torch.stack(
        (sums["loss"], sums["penalty"], sums["hits"], sums["loss"].new_tensor(sums["images"]))
    )
    sum_over_processes(total)
    _require_finite(total.sum())
    _average_running_statistics(model)
    loss, extra, hits, count = total.tolist()
    figures = {"loss": loss / count, "top1": 100 * hits / count}
    return {**figures, "penalty": extra / count} if step.penalty else figures


def _set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def _average_running_statistics(model):
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if statistics:
        _average(statistics, 1)


def epoch_sums():
    """Of an epoch that begins: what it has seen, and sums over these images."""
    return {"batches": 0, "images": 0, "loss": 0.0, "penalty": 0.0, "hits": 0.0, "seconds": 0.0}


def _require_finite(loss):
    if not math.isfinite(loss.item()):
        raise Diverged("the loss is not finite")


# ----------------------------------------------------------------------------- the training loop


@dataclass
class Training:
    """A training, done or under way.

    history: one dict per finished epoch, see lab.record.Epoch. best, last: epoch, loss and
    accuracies on the test images; under way, and under "validation" later, on the validation images
    where there are any. chosen_on: what `best` was chosen on at the end: "test" or "validation"
    images, "ticket", or "last". The others are only there while it is under way: the weights of the
    best epoch, the states of the optimizer and of float16's scaler, the last masks of an Early-Bird
    ticket, and the epoch that has begun (see `epoch_sums`).
    """

    history: list = field(default_factory=list)
    best: dict | None = None
    last: dict | None = None
    chosen_on: str | None = None
    weights: dict | None = None
    optimizer: dict | None = None
    scaler: dict | None = None
    masks: list = field(default_factory=list)
    sums: dict | None = None

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


@dataclass(frozen=True)
class TrainingSettings:
    """How all trainings of a run are done, whatever their recipes say.

    batch_size: images in a step. optimizer: "sgd", or "adam", which takes the rates `adam_lr` of a
    recipe. amp, compiled: as in `autocast`; penalty and accuracy are float32. choose: the epoch
    whose weights are taken: "best", or "last", whatever its accuracy. distill: where there is a
    teacher, the share of the loss that its answers make, see `Distillation`. Raises ValueError.
    """

    batch_size: int = 128
    optimizer: str = "sgd"
    amp: str | bool = False
    compiled: bool = False
    choose: str = "best"
    distill: float = 0.5

    def __post_init__(self):
        for name, known in (("optimizer", ("sgd", "adam")), ("choose", ("best", "last"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, none of {', '.join(known)}")


def fit(
    model,
    data,
    recipe,
    *,
    key,
    settings=None,
    penalty=None,
    teacher=None,
    class_weights=None,
    ticket=None,
    training=None,
    label="train",
    keep=None,
    report=None,
    **changes,
):
    """Train `model` in place by `recipe` and leave it with the weights of its best epoch, or of the
    one whose ticket is drawn.

    data: an ImageData on the model's device. recipe: a config.Recipe. key: what the order of the
    images is drawn from, together with the epoch. settings: a TrainingSettings; changes: those of
    its fields that differ from it, or from its defaults, by their names, as in `batch_size=64`.
    penalty: as in `TrainingStep`. teacher: a network whose answers are learnt, too. class_weights:
    a tensor of factors for the loss of each class's images, on the model's device. ticket: an
    EarlyBird. training: one under way, to go on with; `model` has the weights that belong to it.
    keep: called after every epoch, and when KeyboardInterrupt ends it; who keeps `training` and the
    model's weights then can go on with them later, and ends with the same bits.
    report: called after every epoch with the history and the number of epochs to come in all; by
    default it prints a line, in which the training is called `label`.
    The best epoch is the one with the highest top-1 accuracy on the validation images, or the test
    images where there are none, of equals the latest. With validation images the test images are
    looked at once, after the training. Returns the Training. Raises Diverged.
    """

    def print_line(history, epochs):
        print(epoch_line(label, history, epochs, ticket.epsilon if ticket else None), flush=True)

    settings = replace(settings or TrainingSettings(), **changes)
    distillation = None
    if teacher is not None:
        distillation = Distillation(teacher, settings.distill, recipe.temperature, settings.amp)
    loop = _Loop(
        model=model,
        data=data,
        recipe=recipe,
        settings=settings,
        step=_step_of(
            model,
            recipe,
            settings,
            criterion=criterion_of(recipe.label_smoothing, class_weights),
            penalty=penalty,
            distillation=distillation,
        ),
        key=key,
        label=label,
        ticket=ticket,
        training=training or Training(),
        keep=keep or _keep_nothing,
        report=report or print_line,
    )
    loop.begin()
    for epoch in range(len(loop.training.history) + 1, loop.epochs + 1):
        if loop.has_ticket():
            break
        loop.run_epoch(epoch)
    loop.end()
    return loop.training


def _keep_nothing():
    pass


def _step_of(model, recipe, settings, **loss):
    """The TrainingStep of a training that begins. loss: its criterion, penalty and distillation."""
    device = next(model.parameters()).device.type
    options = {"weight_decay": recipe.weight_decay, "fused": fused(device, settings.amp)}
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), **options)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=MOMENTUM, **options)
    unused = unused_parameters(model) if processes()[1] > 1 else ()
    return TrainingStep(
        forward=autocast(model, settings.amp, settings.compiled, unused),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device, enabled=settings.amp == "float16"),
        **loss,
    )


def epoch_line(label: str, history: list[dict], epochs: int, epsilon: float | None = None) -> str:
    """The last epoch of a history in a line. epochs: of the training. epsilon: a ticket's."""
    row = history[-1]
    train, images = row["train"], "validation" if "validation" in row else "test"
    penalty = f" + penalty {train['penalty']:.3f}" if "penalty" in train else ""
    line = (
        f"  {label} {row['epoch']}/{epochs}  lr {row['lr']:.4g}  loss {train['loss']:.3f}"
        f"{penalty}  train {train['top1']:.1f}%  {images} {row[images]['top1']:.1f}%  "
        f"{row['seconds']:.1f} s"
    )
    distances = row.get("mask_distances")
    if distances:
        shares = ", ".join(f"{100 * distance:.0f}%" for distance in distances)
        line += (
            f"; mask differs from the {len(distances)} before in {shares} of filters (ticket: "
            f"all 4 at most {100 * epsilon:.3g}%)"
        )
    return line


def criterion_of(label_smoothing=0, class_weights=None):
    """A function of logits and labels that gives their mean cross-entropy; see `fit`. Each image's
    part in the mean is the same in every batch, whatever classes are in it."""
    if class_weights is None:
        return partial(F.cross_entropy, label_smoothing=label_smoothing)
    # Not `weight=`: that weighs the smoothed part of a label by the classes it names, and so draws
    # all images towards the rare ones.
    loss_of_each = partial(F.cross_entropy, label_smoothing=label_smoothing, reduction="none")

    def weighted(logits, labels):
        return (loss_of_each(logits, labels) * class_weights[labels]).mean()

    return weighted


def fused(device, amp):
    """Whether the optimizer may take its step in one kernel. Not in float16: where the scaler skips
    the first step, as it mostly does, PyTorch's fused SGD goes on from momenta that nobody has set.
    """
    return True if device == "cuda" and amp != "float16" else None


@dataclass(frozen=True)
class _Loop:
    """One call of `fit`."""

    model: nn.Module
    data: ImageData
    recipe: Recipe
    settings: TrainingSettings
    step: TrainingStep
    key: tuple
    label: str
    ticket: EarlyBird | None
    training: Training
    keep: Callable
    report: Callable

    @property
    def epochs(self):
        return sum(self.recipe.epochs)

    def rate(self, epoch):
        return self.recipe.rate(epoch, self.settings.optimizer)

    def begin(self):
        if self.training.optimizer:
            self.step.optimizer.load_state_dict(self.training.optimizer)
        if self.training.scaler:
            self.step.scaler.load_state_dict(self.training.scaler)
        if not self.epochs:
            self.training.last = self.training.best = {
                "epoch": 0,
                **evaluate(self.model, self.data.choice_batches()),
            }

    def has_ticket(self):
        return bool(self.ticket) and self.ticket.is_drawn(self.training.history)

    def run_epoch(self, epoch):
        training, rate, began = self.training, self.rate(epoch - 0.5), time.monotonic()
        training.sums = training.sums or epoch_sums()
        if processes()[0]:  # what one process has summed up before it was stopped counts once
            training.sums = {**epoch_sums(), "batches": training.sums["batches"]}
        try:
            train = self._train(epoch)
            figures = evaluate(self.model, self.data.choice_batches())
            if not math.isfinite(figures["loss"]):
                raise Diverged(f"the {self.data.chosen_on} loss is not finite")
            masking = time.monotonic()
            mask = self.ticket.mask() if self.ticket else None
            masking = time.monotonic() - masking
        except KeyboardInterrupt:
            if processes()[1] == 1:  # of several, each stops at another batch
                self._keep_unfinished(began)
            raise
        except Diverged as error:
            raise Diverged(
                f"{error} in {self.label}, epoch {epoch} of {self.epochs}, at "
                f"learning rate {rate:g}; a lower --lr may help"
            ) from None
        with uninterrupted():
            row = {
                "epoch": epoch,
                "lr": rate,
                "seconds": training.sums["seconds"] + time.monotonic() - began,
                "train": train,
                self.data.chosen_on: figures,
                "orthogonality": self._orthogonality(),
            }
            self._choose({"epoch": epoch, **figures})
            if self.ticket:
                row |= self._compare(mask, masking)
            training.history.append(row)
            training.optimizer = self.step.optimizer.state_dict()
            training.scaler, training.sums = self.step.scaler.state_dict(), None
            self.report(training.history, self.epochs)
            self.keep()

    def _train(self, epoch):
        batches = self.data.train_batches(self.settings.batch_size, key=(*self.key, epoch))
        number, count = processes()
        if count > 1:
            batches = batches.share(number, count)
        if not self.training.sums["batches"]:  # what dropout draws from, in each process another
            torch.manual_seed(seed_of(*self.key, epoch, "noise", number))

        def rate(done):
            return self.rate(epoch - 1 + done)

        return train_epoch(
            self.model,
            batches,
            self.step,
            rate=rate,
            label=f"{self.label} {epoch}/{self.epochs}",
            sums=self.training.sums,
        )

    def _keep_unfinished(self, began):
        training = self.training
        with uninterrupted():
            training.sums["seconds"] += time.monotonic() - began
            training.optimizer = self.step.optimizer.state_dict()
            training.scaler = self.step.scaler.state_dict()
            if all(v.isfinite().all() for v in self.model.state_dict().values()):
                self.keep()  # else the last epoch's weights stay the kept ones

    def _orthogonality(self):
        return mean_degree(degree_of_orthogonality(self.model))

    def _choose(self, figures):
        training = self.training
        training.last = figures
        if self.settings.choose == "last":
            training.best = figures
        elif training.best is None or figures["top1"] >= training.best["top1"]:
            training.best = figures
            training.weights = {k: v.clone() for k, v in self.model.state_dict().items()}

    def _compare(self, mask, seconds):
        """The epoch's mask beside those before it, the newest first."""
        training = self.training
        distances = [mask_distance(mask, older) for older in reversed(training.masks)]
        training.masks = (training.masks + [mask])[-self.ticket.older :]
        return {"mask_distances": distances, "mask_seconds": seconds}

    def end(self):
        """Take the weights of the best epoch, and test what was chosen on validation images."""
        training, best = self.training, self.training.best
        training.last = self._tested(training.last)
        training.chosen_on = "last" if self.settings.choose == "last" else self.data.chosen_on
        if self.has_ticket():
            best, training.chosen_on = training.last, "ticket"
        if best["epoch"] == training.last["epoch"]:
            training.best = training.last
        else:
            load_weights(self.model, training.weights)
            training.best = self._tested(best)
        training.weights = training.optimizer = training.scaler = None
        training.masks = []

    def _tested(self, figures):
        if not self.data.validation:
            return figures
        validation = {name: value for name, value in figures.items() if name != "epoch"}
        return {
            "epoch": figures["epoch"],
            **evaluate(self.model, self.data.test_batches()),
            "validation": validation,
        }
