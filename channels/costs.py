"""What a network costs, what each filter costs, and how large its group's weights are."""

import torch
from torch import nn

from channels.attention import weight_of
from channels.groups import remains_of


def measure_cost(model: nn.Module, image_size: int = 32, filters: dict | None = None) -> dict:
    """What a network costs for one image, as a dict.

    "filters": of all prunable layers, those that follow them included; "parameters"; "macs":
    multiply-adds of convolutions, linear layers, matrix products and attention; "flops": two for
    each; "layer_macs": dotted name of a convolution or linear layer -> its multiply-adds.
    filters: what would be left instead, convolution -> indices in the unpruned network.
    """
    remains = remains_of(model, image_size)
    structure = remains.structure
    return cost_of(structure, structure.alive(filters or remains.filters), image_size)


def cost_of(structure, alive: torch.Tensor, image_size: int) -> dict:
    """`measure_cost` of what is left of a network where these numbers are alive."""
    sizes, positions = structure.sizes, structure.positions(image_size)
    left = sizes.left(alive)
    kernels = [kernel for kernel in sizes.kernels if kernel.layer in positions]
    macs = {kernel.layer: positions[kernel.layer] * kernel.numel(left) for kernel in kernels}
    total = sum(macs.values())
    total += sum(macs_of(work, alive) for work in structure.work(image_size))
    return {
        "filters": structure.count_filters(alive),
        "parameters": sum(parameter.numel(left) for parameter in sizes.parameters),
        "macs": total,
        "flops": 2 * total,
        "layer_macs": macs,
    }


def macs_of(work, alive):
    """The multiply-adds of a Work: in proportion to the channels that it reads."""
    if not len(work.reads):
        return work.macs
    return work.macs * int(alive[work.reads].sum()) // len(work.reads)


def filter_costs(
    model: nn.Module, budget: str = "macs", image_size: int = 32, layer_times: dict | None = None
) -> dict[str, torch.Tensor]:
    """What a network saves, to first order, when one of its filters goes: layer -> 1-D tensor.

    It counts the filter's own row of weights, what follows it, and its part of the readers: all of
    it where the filter alone writes the channel that they read, else an equal part of what all
    that write the channel save together; nothing where one of these never leaves.
    budget: "filters", "macs" (multiply-adds of an image of image_size x image_size pixels),
    "params", or "latency", of which layer_times, layer -> milliseconds, says what is spent where.
    """
    remains = remains_of(model, image_size)
    structure = remains.structure
    alive = structure.alive(remains.filters)
    if budget == "filters":
        costs = structure.costs.double()
    else:
        spent = _costs_of_sides(structure, alive, budget, image_size, layer_times)
        costs = structure.shared_out(_may_leave(structure, spent), alive)
    return _of_filters(remains, costs)


def _of_filters(remains, amounts):
    """Layer -> what its filters have of amounts, a tensor over numbers."""
    filters = remains.structure.filters
    return {name: amounts[filters[name][kept]] for name, kept in remains.filters.items()}


def _costs_of_sides(structure, alive, budget, image_size, layer_times):
    """What each channel costs in the layers that write and that read it: a tensor over numbers."""
    sizes = structure.sizes
    left = sizes.left(alive)
    if budget == "params":
        spent = [(parameter.numel(left), parameter) for parameter in sizes.parameters]
    else:
        times = layer_times or cost_of(structure, alive, image_size)["layer_macs"]
        kernels = [kernel for kernel in sizes.kernels if kernel.layer in times]
        spent = [(times[kernel.layer], kernel) for kernel in kernels]
    share = torch.zeros(len(left), dtype=torch.double)
    for amount, tensor in spent:
        for side in tensor.outs, tensor.ins:
            if side:  # the first is no side of a layer
                share[side] += amount / left[side]
    costs = sizes.summed(share, alive)
    if budget == "macs" and not layer_times:
        for work in structure.work(image_size):
            reads = work.reads[alive[work.reads]]
            costs[reads] += macs_of(work, alive) / len(reads)
    return costs


def _may_leave(structure, spent):
    """The costs of channels, with none for those of a stream that some filter always writes."""
    fixed = structure.is_fixed.clone()
    for name, numbers in structure.filters.items():
        fixed[numbers[torch.tensor(structure.fixed_filters[name])]] = True
    always = torch.zeros_like(fixed)
    always[structure.stream[fixed]] = True
    in_stream = structure.is_sum[structure.root]
    return torch.where(in_stream & always[structure.stream[structure.root]], 0.0, spent)


def group_norms(model: nn.Module) -> dict[str, torch.Tensor]:
    """The L2 norm of each filter together with its group: its weights, the scale of its BatchNorm,
    what follows it, and the weights that read its channel. Each filter that writes the channel has
    an equal part of the square of these, also where the channel stays without it. Biases and shifts
    do not count. layer -> 1-D tensor. (Fang et al. 2023, arXiv 2301.12900, of groups of
    parameters.)"""
    remains = remains_of(model)
    structure = remains.structure
    alive = structure.alive(remains.filters)
    squares = torch.zeros(len(structure.root), dtype=torch.double)
    for name, layer in structure.layers.items():
        weight = _weight_of(model, name)
        if weight is None:
            continue
        square, layer = weight.detach().cpu().double().square(), layer.where(alive)
        for side, dim in layer.dims_of(square.shape).items():
            sums = square.transpose(0, dim).reshape(square.shape[dim], -1).sum(1)
            squares.index_add_(0, getattr(layer, side), sums)
    norms = structure.shared_out(squares, alive).sqrt()
    return _of_filters(remains, norms)


def _weight_of(model, name):
    """The weight of a layer, or the parameter itself that is a layer; None where it has none."""
    owner, _, own = name.rpartition(".")
    parent = model.get_submodule(owner)
    if own in parent._buffers:
        return None
    return parent._parameters.get(own, weight_of(parent._modules.get(own)))
