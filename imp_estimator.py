"""Importance estimators: model + batches -> one score per filter; low scores are pruned first.

    scores = cal_importance(model, "fisher", batches)
    scores["features.0"]            # 1-D tensor, one score per filter of that layer

To add an estimator, write one function here under `@estimator(...)`; flags, help, sweeps, reports
and plots know it then.

Every estimator sees the network in eval mode. In train mode a convolution followed by BatchNorm is
scale-invariant, so that sum_w w dL/dw vanishes and gradient scores would be noise.
In this file L is the mean loss over all images of `batches`, by default the cross-entropy, g its
gradient, and w runs over a filter's weights and its bias, the rows of `models.filter_matrix`. A
filter is one of a convolution's, or a row of a hidden linear layer's weight with its bias. What is
summed over the pixels of a kernel is one weight of such a row; what is summed over those of an
image is summed over its tokens. Of several processes each takes some of the batches; sums over
images are made sums over all processes.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

from common.inputs import batch_size, call, map_inputs, tensors_in
from common.libraries import lazy
from common.modes import evaluating
from common.processes import processes, shared, sum_over_processes
from common.terminal import progress

models, torch = lazy("models"), lazy("torch")  # --help asks for the names of the methods alone


@dataclass(frozen=True)
class Estimator:
    """A pruning method.

    name     as in --pruning_type
    score    (model, groups, batches, *, loss, temperature, projections, seed) -> one 1-D tensor for
             each group, one value per filter; groups are those that it can judge
    help     what it judges filters by, in a few words
    source   where it is from
    ranking  how its own paper compares filters of different layers: a key of config.RANKINGS
    needs    what it is computed from, beside the weights: "", "images", "balanced images" (equally
             many of each class), "seed" or "scales" (of a BatchNorm after each layer; it judges
             no layers without)
    change   how its score stands for the change of the loss when the filter goes: "score" (it is
             that change), "root" (the score is its square), or "" (it does not)
    watches  whether it looks at what layers give, beside their weights
    penalty  whether it prunes the network that was trained with the penalty, or the plain one
    colour, marker  of its lines in plots
    """

    name: str
    score: Callable
    help: str
    source: str
    ranking: str = "global"
    needs: str = ""
    change: str = ""
    watches: bool = False
    penalty: bool = False
    colour: str = "#000000"
    marker: str = "x"

    @property
    def needs_images(self):
        return self.needs.endswith("images")

    def can_judge(self, group):
        """Whether it has scores for the filters of a FilterGroup."""
        return not self.lacks(group)

    def lacks(self, group):
        """What it would have to have of a FilterGroup to judge its filters, in words, or ""."""
        if self.needs == "scales" and not _has_scale(group):
            return "BatchNorm of their own"
        if self.watches and isinstance(group.layer, models.PackedRows):
            return "outputs that can be watched, inside nn.MultiheadAttention"
        return ""


ESTIMATORS = {}  # name -> Estimator, in the order of this file
PLAIN = "fisher"  # stands for all methods that prune the plain network, where one must


def estimator(name, **about):
    """Register the function below as a pruning method; see `Estimator`."""

    def register(score):
        ESTIMATORS[name] = Estimator(name, score, **about)
        return score

    return register


def order_of(name):
    """The place of a method among all; one that is not registered comes last."""
    return list(ESTIMATORS).index(name) if name in ESTIMATORS else len(ESTIMATORS)


def has_penalty(name: str) -> bool:
    """Whether a method, or None, prunes the network that was trained with the penalty."""
    return name in ESTIMATORS and ESTIMATORS[name].penalty


def cal_importance(
    model: "torch.nn.Module",
    pruning_type: str,
    batches=None,
    *,
    loss: "Callable | None" = None,
    temperature: float = 200.0,
    projections: int = 3,
    seed: int = 0,
) -> "dict[str, torch.Tensor]":
    """Score every filter of `model`.

    pruning_type: a key of ESTIMATORS.
    batches: iterable of (inputs, targets), on the model's device, that gives the same batches each
        time it is iterated; None will do for methods that need no images. inputs: images
        N x 3 x H x W, or whatever tensor the model takes; a tuple of its arguments, or a dict of
        keyword arguments. targets: labels N, or whatever `loss` takes.
    loss: (outputs, targets) -> the mean loss over the batch, a tensor of one number; by default the
        cross-entropy of logits and labels.
    temperature: of the logits, for "grasp", where there is no other `loss`.
    projections: backward passes per minibatch of "rdt", 0 for the exact computation with one for
        each class. seed: for "random" and "rdt".
    Returns a dict: dotted name of the layer -> 1-D float32 tensor on the model's device. Filters of
    a layer that the method cannot judge, as "bn" without a BatchNorm, have the score infinity, so
    that they stay.
    The model's weights, buffers, modes and gradients are left as they were.
    Raises ValueError for an unknown type, missing batches, a network that the method cannot judge,
    or scores that are not finite.
    """
    if pruning_type not in ESTIMATORS:
        raise ValueError(f"no estimator {pruning_type!r}; there are {', '.join(ESTIMATORS)}")
    method = ESTIMATORS[pruning_type]
    check_suits(model, pruning_type)
    if batches is None and method.needs_images:
        raise ValueError(f"{pruning_type} is computed from images; give it batches")
    groups = models.filter_groups(model)
    judged = [group for group in groups if method.can_judge(group)]
    with _as_evaluated(model):
        scores = method.score(
            model,
            judged,
            batches,
            loss=loss,
            temperature=temperature,
            projections=projections,
            seed=seed,
        )
    for group, score in zip(judged, scores, strict=True):
        if not score.isfinite().all():
            raise ValueError(
                f"{pruning_type}: the scores of {group.name} are not finite: the "
                "network's weights or activations are too large; train it again at a "
                "lower rate"
            )
    _require_order(pruning_type, scores)
    known = {group.name: score.detach().float() for group, score in zip(judged, scores)}
    return {group.name: known.get(group.name, _infinite(group)) for group in groups}


def _infinite(group):
    weight = group.layer.weight
    return torch.full((len(group.channels),), torch.inf, device=weight.device)


def _require_order(pruning_type, scores):
    """Raises ValueError where all filters have the same score."""
    values = torch.cat([score.detach().flatten() for score in scores])
    if len(values) > 1 and (values == values[0]).all():
        raise ValueError(
            f"{pruning_type}: all {len(values):,} filters have the same score "
            f"({values[0]:g}), so it would be chance which of them go; maybe nothing "
            "has been trained yet, or the loss does not depend on them"
        )


def check_per_cost(pruning_type: str, ranking: str) -> None:
    """Raises ValueError where a method's scores cannot be divided by what filters cost."""
    method = ESTIMATORS[pruning_type]
    if not method.change:
        those = ", ".join(name for name, other in ESTIMATORS.items() if other.change)
        raise ValueError(
            f"{pruning_type} does not estimate the change of the loss, which is what "
            f"is divided by a filter's cost; these do: {those}"
        )
    if ranking == "measured":
        raise ValueError(
            "--ranking=measured divides by costs already; name another ranking, or leave out costs"
        )
    if "layer" in (ranking, ranking == "paper" and method.ranking):
        raise ValueError(
            "where the same share of each layer goes, costs change nothing; rank all "
            "layers in one list, or leave costs out"
        )


def check_suits(model: "torch.nn.Module", pruning_type: str) -> list[str]:
    """A line that counts the filters of `model` which a method cannot judge, so that they stay;
    none where it judges all. Raises ValueError where it can judge none."""
    groups, method = models.filter_groups(model), ESTIMATORS[pruning_type]
    others = [group for group in groups if not method.can_judge(group)]
    if not others:
        return []
    if len(others) == len(groups):
        raise ValueError(
            f"{pruning_type} can judge no filter: they have no {method.lacks(others[0])}; another "
            "pruning type, such as tfo, needs none"
        )
    count = sum(len(group.channels) for group in others)
    total = sum(len(group.channels) for group in groups)
    return [
        f"{count:,} of {total:,} filters, in {len(others)} of {len(groups)} layers, have no "
        f"{method.lacks(others[0])}, so {pruning_type} keeps them; another pruning type, such as "
        "tfo, judges them, too"
    ]


@contextmanager
def _as_evaluated(model):
    frozen = [p for p in model.parameters() if not p.requires_grad]
    rounded, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with evaluating(model):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = rounded  # scores with all bits of float32
        for parameter in frozen:
            parameter.requires_grad_(False)


# -------------------------------------------------------------------------------- building blocks


def _has_scale(group):
    return group.bn is not None and group.bn.weight is not None


def _layers(groups):
    return [group.layer for group in groups]


def _parameters(layers):
    """The layers' weights and biases as one flat list."""
    return [p for layer in layers for p in layer.parameters()]


def _per_filter(layers, values):
    """Sum `values`, one tensor for each of `_parameters`, over each filter."""
    values = iter(values)
    return [sum(_rows(layer, next(values)) for _ in layer.parameters()) for layer in layers]


def _rows(layer, value):
    """For each filter, the sum over its part of a tensor like a layer's weights, or its bias."""
    return value if value.dim() == 1 else models.by_filter(layer, value).flatten(1).sum(1)


def _loss(model, inputs, targets, loss=None, temperature=1.0):
    """The loss, summed over a batch: `loss`, or the cross-entropy of logits / temperature."""
    outputs = call(model, inputs)
    if loss is None:
        logits = _require_tensor(outputs, "the cross-entropy") / temperature
        return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    mean = loss(outputs, targets)
    if not isinstance(mean, torch.Tensor) or mean.dim():
        value = f"a tensor of {tuple(mean.shape)}" if hasattr(mean, "shape") else repr(mean)
        raise ValueError(
            f"the loss gives {value}; it must give the mean over the batch, a tensor of one number"
        )
    return mean * batch_size(inputs)


def _require_tensor(outputs, reader):
    """Raises ValueError where outputs are no tensor that `reader`, in words, can do with."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    kind = type(outputs).__name__
    raise ValueError(
        f"the network gives a {kind}, and {reader} needs one tensor of logits; give "
        "loss=f(outputs, targets), with a method that takes any loss, such as fisher or tfo"
    )


def rows_of_logits(outputs, reader):
    """N x K logits. Raises ValueError where outputs are something else, which `reader`, in words,
    cannot do with."""
    logits = _require_tensor(outputs, reader)
    if logits.dim() == 2:
        return logits
    raise ValueError(
        f"the network gives a tensor of {tuple(logits.shape)}, and {reader} needs a row of logits "
        "for each image; another method, such as fisher, takes any loss"
    )


def _mean_gradient(model, parameters, batches, loss=None, temperature=1.0):
    """(gradient of L for each of `parameters`, number of images); the default loss takes logits /
    temperature."""
    total, count = [torch.zeros_like(p) for p in parameters], 0
    for inputs, targets in progress(shared(batches), "gradients"):
        summed = _loss(model, inputs, targets, loss, temperature)
        torch._foreach_add_(total, torch.autograd.grad(summed, parameters, materialize_grads=True))
        count += batch_size(inputs)
    count = _over_processes(total, count)
    torch._foreach_div_(total, count)
    return total, count


def _over_processes(sums, count):
    """Make the tensors `sums` those of all processes, and `count`, of images or batches, too."""
    count = torch.tensor(float(count), device=sums[0].device)
    sum_over_processes(*sums, count)
    if not count:
        raise ValueError("there are no images to measure importance on")
    return int(count)


# -------------------------------------------------------------------------------------- estimators


@estimator(
    "fisher",
    needs="images",
    change="root",
    source="in Lubana et al. 2020",
    colour="#0072B2",
    marker="s",
    help="squared sum of weight x gradient of a filter",
)
@estimator(
    "orthoreg",
    needs="images",
    change="root",
    source="Lubana et al. 2020",
    colour="#D55E00",
    marker="o",
    penalty=True,
    help="fisher's score, on a network trained with the penalty",
)
def fisher(model, groups, batches, *, loss, **_):
    """(sum_w w g_w)^2: the squared first-order change of L when the filter is set to zero."""
    layers = _layers(groups)
    parameters = _parameters(layers)
    gradient, _ = _mean_gradient(model, parameters, batches, loss)
    return [s.square() for s in _per_filter(layers, [w * g for w, g in zip(parameters, gradient)])]


@estimator(
    "theis",
    needs="images",
    change="score",
    source="Theis et al. 2018",
    colour="#009E73",
    marker="D",
    watches=True,
    help="Fisher information of a channel",
)
def theis(model, groups, batches, *, loss, **_):
    """1/(2N) sum_n s_n^2, s_n = sum a dl_n/da over all places of the BatchNorm's output a, per
    image n; of the layer's where it has no BatchNorm of its own. Of a linear layer these are all of
    an image's tokens, also where windows of them stand along the first dimension, as in Swin. Of a
    layer that is called several times, s_n is the sum over the calls. What does not depend on the
    images, as a table of positions does, has the same s_n for all.

    Theis et al. 2018, arXiv 1801.05787.
    """
    watched = [group.layer if group.bn is None else group.bn for group in groups]
    scores = [group.layer.weight.new_zeros(len(group.channels)) for group in groups]
    sums = [[] for _ in groups]  # s_n of each call
    alone = models.layers_without_images(model)
    batch, apart = [], []  # the number of its images, what layers that see none of them give

    def watch(calls, group):
        def hook(_module, _inputs, activation):
            # A copy: what follows may work in place, as torchvision's `out += identity`. And not
            # the tensor itself, whose own hook would keep the graph.
            values = activation.detach().clone()

            def add(gradient):
                terms = values * gradient
                if group.name in alone:
                    total = terms.flatten(0, -2).sum(0, keepdim=True)
                    calls.append(total / batch[0] ** 0.5)
                elif isinstance(group.layer, torch.nn.Linear):
                    calls.append(terms.reshape(batch[0], -1, terms.shape[-1]).sum(1))
                else:
                    calls.append(terms.sum(tuple(range(2, terms.dim()))))

            activation.register_hook(add)
            if group.name in alone:
                apart.append(activation)

        return hook

    handles = []
    for module, calls, group in zip(watched, sums, groups):
        handles.append(module.register_forward_hook(watch(calls, group)))
    count = 0
    try:
        for inputs, targets in progress(shared(batches), "gradients"):
            batch[:] = [batch_size(inputs)]
            inputs, sources = _asking_for_gradients(inputs, model)
            summed = _loss(model, inputs, targets, loss)
            torch.autograd.grad(summed, [*sources, *apart], allow_unused=True)
            apart.clear()
            for score, calls in zip(scores, sums):
                if calls:
                    score.add_(sum(calls[1:], calls[0]).square().sum(0))
                    calls.clear()
            count += batch_size(inputs)
    finally:
        for handle in handles:
            handle.remove()
    count = _over_processes(scores, count)
    return [score / (2 * count) for score in scores]


def _asking_for_gradients(inputs, model):
    """(inputs, tensors): the gradient of these tensors asks for that of everything between them and
    the loss. They are the inputs, or the parameters where some inputs have no gradient."""
    tensors = tensors_in(inputs)
    if not all(tensor.is_floating_point() for tensor in tensors):
        return inputs, list(model.parameters())

    def leaf(tensor):
        return tensor.detach().requires_grad_()

    inputs = map_inputs(leaf, inputs)
    return inputs, tensors_in(inputs)


@estimator(
    "tfo",
    needs="images",
    change="root",
    ranking="norm",
    source="Molchanov et al. 2017, 2019",
    colour="#CC79A7",
    marker="^",
    help="squared first-order Taylor term at the BatchNorm",
)
def tfo(model, groups, batches, *, loss, **_):
    """(gamma g_gamma + beta g_beta)^2: the squared activation x gradient sum at the BatchNorm; of a
    layer without its own, or with one that has no gamma, (sum_w w g_w)^2, the same sum at its
    output.

    Molchanov et al. 2017, arXiv 1611.06440, who divide by the L2 norm of a layer's scores, and
    2019, arXiv 1906.10771, who do not.
    """
    layers = [group.bn if _has_scale(group) else group.layer for group in groups]
    parameters = _parameters(layers)
    gradient, _ = _mean_gradient(model, parameters, batches, loss)
    return [s.square() for s in _per_filter(layers, [p * g for p, g in zip(parameters, gradient)])]


@estimator(
    "bn",
    needs="scales",
    source="Liu et al. 2017; You et al. 2020",
    colour="#56B4E9",
    marker="v",
    help="size of the BatchNorm's scale",
)
def bn(model, groups, batches, **_):
    """|gamma| of the BatchNorm (Liu et al. 2017, arXiv 1708.06519; You et al. 2020: one threshold
    for all layers). It cannot judge layers without a BatchNorm of their own."""
    return [group.bn.weight.abs() for group in groups]


@estimator(
    "l1",
    ranking="layer",
    source="Li et al. 2017",
    colour="#E69F00",
    marker="P",
    help="L1 norm of the kernel",
)
def l1(model, groups, batches, **_):
    """L1 norm of the kernel, or of a linear layer's row, without the bias (Li et al. 2017, arXiv
    1608.08710, who prune a share of each layer)."""
    return [models.kernel_matrix(group.layer).abs().sum(1) for group in groups]


@estimator(
    "sfp",
    ranking="layer",
    source="He et al. 2018",
    colour="#999933",
    marker="*",
    help="L2 norm of the kernel",
)
def sfp(model, groups, batches, **_):
    """L2 norm of the kernel, or of a linear layer's row, without the bias (He et al. 2018, arXiv
    1808.06866, who prune the same share of each layer)."""
    return [models.kernel_matrix(group.layer).norm(dim=1) for group in groups]


@estimator(
    "fpgm",
    ranking="layer",
    source="He et al. 2019",
    colour="#882255",
    marker="X",
    help="distance to the layer's other kernels",
)
def fpgm(model, groups, batches, **_):
    """Sum of the distances between a kernel, or a linear layer's row, and all of the layer, without
    the biases (He et al. 2019, arXiv 1811.00250, who prune the same share of each layer)."""
    # The faster way of cdist subtracts squares and loses small distances.
    return [
        torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
        for w in (models.kernel_matrix(group.layer).detach() for group in groups)
    ]


@estimator(
    "group",
    ranking="mean",
    source="Fang et al. 2023",
    colour="#117733",
    marker="p",
    help="L2 norm of the kernel, its BatchNorm's scale, and what reads the channel",
)
def group(model, groups, batches, **_):
    """L2 norm of the filter and of all that belongs to its channel (Fang et al. 2023, arXiv
    2301.12900, DepGraph, whose code divides by the mean of a layer); see `models.group_norms`."""
    norms = models.group_norms(model)
    return [norms[group.name].float().to(group.layer.weight.device) for group in groups]


@estimator(
    "grasp",
    needs="balanced images",
    source="Wang et al. 2020",
    colour="#44AA99",
    marker="h",
    help="effect on gradient flow",
)
def grasp(model, groups, batches, *, loss, temperature, **_):
    """sum_w w (H g)_w, H and g of L on logits / T over all of the network's parameters; signed.
    Another loss than the cross-entropy gets what the network gives, without T.

    Wang et al. 2020, arXiv 2002.07376, eq. 8: removing what scores low costs the least gradient
    flow. Two passes over the images: g first, then H g as the gradient of <gradient, g>.
    """
    layers = _layers(groups)
    everything, filters = list(model.parameters()), _parameters(layers)
    gradient, count = _mean_gradient(model, everything, batches, loss, temperature)
    product = [torch.zeros_like(p) for p in filters]
    for inputs, targets in progress(shared(batches), "Hessian"):
        part = _loss(model, inputs, targets, loss, temperature) / count
        slopes = torch.autograd.grad(part, everything, create_graph=True, materialize_grads=True)
        inner = sum((slope * g).sum() for slope, g in zip(slopes, gradient))
        torch._foreach_add_(product, torch.autograd.grad(inner, filters, materialize_grads=True))
    sum_over_processes(*product)
    return _per_filter(layers, [w * hg for w, hg in zip(filters, product)])


@estimator(
    "rdt",
    needs="images",
    change="score",
    source="Gao et al. 2019",
    colour="#332288",
    marker="<",
    help="Fisher information of the mean prediction",
)
def rdt(model, groups, batches, *, projections, seed, **_):
    """sum_w w^2 I_w, I_w = mean over minibatches of sum_k p_k (d log p_k / dw)^2.

    p_k and log p_k are the minibatch means of softmax and log-softmax (Gao et al. 2019). With
    projections=0 one backward pass per class and minibatch. Otherwise that many for all classes:
    for random signs e_k, (sum_k e_k sqrt(p_k) d log p_k / dw)^2 has the sum over k as its mean. It
    knows no loss, and needs N x K logits.
    """
    layers = _layers(groups)
    parameters = _parameters(layers)
    information, count = [torch.zeros_like(p) for p in parameters], 0
    process, step = processes()
    for inputs, _targets in progress(shared(batches), "gradients"):
        log_p = rows_of_logits(call(model, inputs), "the mean prediction").log_softmax(1)
        root_p = log_p.detach().exp().mean(0).sqrt()
        log_p, classes = log_p.mean(0), len(root_p)
        if 0 < projections < classes:
            row = (process + step * count) * projections
            signs = _signs(classes, row, projections, seed).to(root_p)
            directions = signs * root_p / projections**0.5
        else:
            directions = root_p.diag()
        for i, direction in enumerate(directions):
            slopes = torch.autograd.grad(
                direction @ log_p,
                parameters,
                retain_graph=i + 1 < len(directions),
                materialize_grads=True,
            )
            torch._foreach_addcmul_(information, slopes, slopes)
        count += 1
    count = _over_processes(information, count)
    return _per_filter(layers, [w.square() * i / count for w, i in zip(parameters, information)])


def _signs(classes, start, count, seed):
    """`count` rows, from row `start` on, of an endless matrix of random signs with `classes`
    columns. Rows of the same block are orthogonal to each other but for the columns cut off (a
    Hadamard matrix, rows and columns shuffled), so that few rows already average well."""
    order = 1 << (classes - 1).bit_length()
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(order, generator=generator)
    columns = torch.randperm(order, generator=generator)[:classes]
    flips = torch.randint(0, 2, (classes,), generator=generator) * 2 - 1
    chosen = rows[(start + torch.arange(count)) % order]
    bits = chosen[:, None] & columns  # the sign of entry (i, j) is the parity of i & j
    parity = sum((bits >> bit) & 1 for bit in range(order.bit_length())) % 2
    return (1 - 2 * parity) * flips


@estimator(
    "random",
    needs="seed",
    source="the control",
    colour="#A6761D",
    marker=">",
    help="uniform: the control",
)
def random(model, groups, batches, *, seed, **_):
    """Uniform in [0, 1), from `seed`: the control that every comparison needs."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(len(g.channels), generator=generator).to(g.layer.weight.device) for g in groups
    ]
