"""Importance estimators: model + batches -> one score per filter; low scores are pruned first.

    scores = cal_importance(model, "fisher", batches)
    scores["features.0"]            # 1-D tensor, one score per filter of that convolution

Every estimator sees the network in eval mode. In train mode a convolution followed by BatchNorm is
scale-invariant, so that sum_w w dL/dw vanishes and gradient scores would be noise.
In this file L is the mean cross-entropy over all images of `batches`, g its gradient, and w runs
over a filter's weights and its bias, the rows of `models.filter_matrix`. Of several processes each
takes some of the batches; sums over images are made sums over all processes.
"""
from contextlib import contextmanager

import torch
from torch.nn import functional as F

from config import processes, progress
from data import shared, sum_over_processes
from models import filter_matrix


def cal_importance(model, pruning_type, batches=None, *, temperature=200.0, projections=3, seed=0):
    """Score every filter of `model`.

    pruning_type: a key of ESTIMATORS.
    batches: iterable of (images N x 3 x H x W, labels N), on the model's device, that gives the
        same batches each time it is iterated; None will do for the methods not in NEEDS_DATA.
    temperature: of the logits, for "grasp". projections: backward passes per minibatch of "rdt",
        0 for the exact computation with one for each class. seed: for "random" and "rdt".
    Returns a dict: dotted name of the convolution -> 1-D float32 tensor on the model's device.
    The model's weights, buffers, modes and gradients are left as they were.
    Raises ValueError for an unknown type, missing batches, or scores that are not finite.
    """
    if pruning_type not in ESTIMATORS:
        raise ValueError(f"no estimator {pruning_type!r}; there are {', '.join(ESTIMATORS)}")
    if batches is None and pruning_type in NEEDS_DATA:
        raise ValueError(f"{pruning_type} is computed from images; give it batches")
    groups = model.filter_groups()
    with _as_evaluated(model):
        scores = ESTIMATORS[pruning_type](model, groups, batches, temperature=temperature,
                                          projections=projections, seed=seed)
    for group, score in zip(groups, scores, strict=True):
        if not score.isfinite().all():
            raise ValueError(f"{pruning_type}: the scores of {group.name} are not finite")
    return {group.name: score.detach().float() for group, score in zip(groups, scores)}


@contextmanager
def _as_evaluated(model):
    modes = {module: module.training for module in model.modules()}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    rounded, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    model.eval()
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = rounded  # scores with all bits of float32
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in modes.items():
            module.training = training


# ------------------------------------------------------------------------------ building blocks


def _filter_parameters(groups):
    """The convolutions' weights and biases as one flat list."""
    return [p for group in groups for p in group.conv.parameters()]


def _per_filter(groups, values):
    """Sum `values`, one tensor for each of `_filter_parameters`, over each filter."""
    values = iter(values)
    return [sum(next(values).flatten(1).sum(1) if p.dim() > 1 else next(values)
                for p in group.conv.parameters()) for group in groups]


def _mean_gradient(model, parameters, batches, temperature=1.0):
    """(gradient of L for each of `parameters`, number of images); L takes logits / temperature."""
    total, count = [torch.zeros_like(p) for p in parameters], 0
    for images, labels in progress(shared(batches), "gradients"):
        loss = F.cross_entropy(model(images) / temperature, labels, reduction="sum")
        torch._foreach_add_(total, torch.autograd.grad(loss, parameters))
        count += len(labels)
    count = _over_processes(total, count)
    torch._foreach_div_(total, count)
    return total, count


def _over_processes(sums, count):
    """Make the tensors `sums` those of all processes; how many images, or batches, they are of."""
    count = torch.tensor(float(count), device=sums[0].device)
    sum_over_processes(*sums, count)
    if not count:
        raise ValueError("there are no images to measure importance on")
    return int(count)


# ----------------------------------------------------------------------------------- estimators


def fisher(model, groups, batches, **_):
    """(sum_w w g_w)^2: the squared first-order change of L when the filter is set to zero."""
    parameters = _filter_parameters(groups)
    gradient, _ = _mean_gradient(model, parameters, batches)
    return [s.square() for s in _per_filter(groups, [w * g for w, g in zip(parameters, gradient)])]


def theis(model, groups, batches, **_):
    """1/(2N) sum_n s_n^2, s_n = sum_hw a dl_n/da at the BatchNorm's output a, per image n.

    Theis et al. 2018, arXiv 1801.05787.
    """
    scores = [torch.zeros_like(g.bn.weight) for g in groups]

    def watch(score):
        def hook(_module, _inputs, activation):
            values = activation.detach()  # its own hook must not hold it: the graph would stay

            def add(gradient):
                score.add_((values * gradient).sum((2, 3)).square().sum(0))
            activation.register_hook(add)
        return hook

    handles = [g.bn.register_forward_hook(watch(s)) for g, s in zip(groups, scores)]
    # Asking for the first layer's gradient alone still sends the signal through every BatchNorm.
    first = [groups[0].conv.weight]
    count = 0
    try:
        for images, labels in progress(shared(batches), "gradients"):
            loss = F.cross_entropy(model(images), labels, reduction="sum")
            torch.autograd.grad(loss, first)
            count += len(labels)
    finally:
        for handle in handles:
            handle.remove()
    count = _over_processes(scores, count)
    return [score / (2 * count) for score in scores]


def tfo(model, groups, batches, **_):
    """(gamma g_gamma + beta g_beta)^2: the squared activation x gradient sum at the BatchNorm.

    Molchanov et al. 2017, arXiv 1611.06440, and 2019, arXiv 1906.10771.
    """
    parameters = [p for group in groups for p in (group.bn.weight, group.bn.bias)]
    gradient, _ = _mean_gradient(model, parameters, batches)
    products = [p * g for p, g in zip(parameters, gradient)]
    return [(scale + shift).square() for scale, shift in zip(products[::2], products[1::2])]


def bn(model, groups, batches, **_):
    """|gamma| of the BatchNorm (Liu et al. 2017, arXiv 1708.06519; You et al. 2020)."""
    return [group.bn.weight.abs() for group in groups]


def l1(model, groups, batches, **_):
    """L1 norm of the filter (Li et al. 2017, arXiv 1608.08710)."""
    return [filter_matrix(group.conv).abs().sum(1) for group in groups]


def sfp(model, groups, batches, **_):
    """L2 norm of the filter (He et al. 2018, arXiv 1808.06866)."""
    return [filter_matrix(group.conv).norm(dim=1) for group in groups]


def fpgm(model, groups, batches, **_):
    """Sum of the distances to all filters of the layer (He et al. 2019, arXiv 1811.00250)."""
    # The faster way of cdist subtracts squares and loses small distances.
    return [torch.cdist(w, w, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
            for w in (filter_matrix(group.conv).detach() for group in groups)]


def grasp(model, groups, batches, *, temperature, **_):
    """sum_w w (H g)_w, H and g of L on logits / T over all of the network's parameters; signed.

    Wang et al. 2020, arXiv 2002.07376, eq. 8: removing what scores low costs the least gradient
    flow. Two passes over the images: g first, then H g as the gradient of <gradient, g>.
    """
    everything, filters = list(model.parameters()), _filter_parameters(groups)
    gradient, count = _mean_gradient(model, everything, batches, temperature)
    product = [torch.zeros_like(p) for p in filters]
    for images, labels in progress(shared(batches), "Hessian"):
        loss = F.cross_entropy(model(images) / temperature, labels, reduction="sum") / count
        slopes = torch.autograd.grad(loss, everything, create_graph=True)
        inner = sum((slope * g).sum() for slope, g in zip(slopes, gradient))
        torch._foreach_add_(product, torch.autograd.grad(inner, filters))
    sum_over_processes(*product)
    return _per_filter(groups, [w * hg for w, hg in zip(filters, product)])


def rdt(model, groups, batches, *, projections, seed, **_):
    """sum_w w^2 I_w, I_w = mean over minibatches of sum_k p_k (d log p_k / dw)^2.

    p_k and log p_k are the minibatch means of softmax and log-softmax (Gao et al. 2019). With
    projections=0 one backward pass per class and minibatch. Otherwise that many for all classes:
    for random signs e_k, (sum_k e_k sqrt(p_k) d log p_k / dw)^2 has the sum over k as its mean.
    """
    parameters = _filter_parameters(groups)
    information, count = [torch.zeros_like(p) for p in parameters], 0
    process, step = processes()
    for images, _labels in progress(shared(batches), "gradients"):
        log_p = F.log_softmax(model(images), 1)
        root_p = log_p.detach().exp().mean(0).sqrt()
        log_p, classes = log_p.mean(0), len(root_p)
        if 0 < projections < classes:
            row = (process + step * count) * projections
            signs = _signs(classes, row, projections, seed).to(root_p)
            directions = signs * root_p / projections ** .5
        else:
            directions = root_p.diag()
        for i, direction in enumerate(directions):
            slopes = torch.autograd.grad(direction @ log_p, parameters,
                                         retain_graph=i + 1 < len(directions))
            torch._foreach_addcmul_(information, slopes, slopes)
        count += 1
    count = _over_processes(information, count)
    return _per_filter(groups, [w.square() * i / count for w, i in zip(parameters, information)])


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
    shared = chosen[:, None] & columns  # the sign of entry (i, j) is the parity of i & j
    parity = sum((shared >> bit) & 1 for bit in range(order.bit_length())) % 2
    return (1 - 2 * parity) * flips


def random(model, groups, batches, *, seed, **_):
    """Uniform in [0, 1), from `seed`: the control that every comparison needs."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(g.conv.out_channels, generator=generator).to(g.conv.weight.device)
            for g in groups]


ESTIMATORS = {"orthoreg": fisher, "fisher": fisher, "theis": theis, "tfo": tfo, "bn": bn, "l1": l1,
              "sfp": sfp, "fpgm": fpgm, "grasp": grasp, "rdt": rdt, "random": random}

NEEDS_DATA = {"orthoreg", "fisher", "theis", "tfo", "grasp", "rdt"}
