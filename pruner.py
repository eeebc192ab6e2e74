"""Scores -> kept filters -> a physically smaller network.

    kept = select_filters(model, scores, percent=50)   # scores from imp_estimator.cal_importance
    small = prune(model, kept)
"""
import bisect
import itertools

import torch

from models import build_model, measure_cost

# ---------------------------------------------------------------------------------- selection


def round_targets(percent, n_rounds):
    """The percent of filters gone after each round, ending at exactly `percent`.

    After round i it is 1 - prod_{j<=i} (1 - p / (j p + n (1 - p))), p the final share, so early
    rounds take more than late ones: [33.3, 50] for 50% in 2 rounds.
    """
    p, kept, targets = percent / 100, 1.0, []
    for j in range(1, n_rounds + 1):
        kept *= 1 - p / (j * p + n_rounds * (1 - p))
        targets.append(100 * (1 - kept))
    return targets[:-1] + [float(percent)]


def pruned_percent(model, budget="filters", image_size=32):
    """Percent of the unpruned network's filters, multiply-adds ("macs") or parameters ("params")
    that `model` no longer has."""
    return _percent_without(model, model.widths, budget, image_size)


def round_up(width, multiple, most):
    """The next multiple that a width goes up to, at most the width `most`."""
    return min(most, -(-width // multiple) * multiple)


def max_percent(model, budget="filters", image_size=32, round_to=1):
    """The largest percent that the layers' floors and the protected stem allow, where all layers
    that write into a residual stream keep the same of its channels."""
    floors = {g.name: list(range(round_up(g.floor, round_to, g.dense)))
              for g in model.filter_groups()}
    return _percent_without(model, floors, budget, image_size)


def _percent_without(model, widths, budget, image_size):
    kind = "parameters" if budget == "params" else budget
    left = measure_cost(model, image_size, widths)[kind]
    return 100 * (1 - left / measure_cost(model, image_size, model.dense)[kind])


def select_filters(model, scores, percent, budget="filters", round_to=1, image_size=32):
    """Choose the filters to keep when `percent` of the unpruned network's filters are gone.

    scores: layer name -> 1-D tensor, one score per filter that `model` has now; low goes first.
    percent: counted over all prunable layers of the unpruned network, carried depthwise filters
        included; filters that earlier rounds removed count as gone.
    budget: what the percent is of: "filters", "macs" (multiply-adds of an image of `image_size`) or
        "params" (parameters). round_to: widths then go up to the next multiple of it, by the
        highest scored filters that would have gone.
    All layers are ranked together; equal scores go in order of layer, then of filter. Every layer
    keeps its floor(0.05 N) + 1 highest scored filters, N counted in the unpruned network, and a
    protected layer all of them. The target, rounded to whole filters, is never exceeded, and is
    missed by less than what one more filter takes along, or where the floors stop.
    Returns layer name -> rising tensor of the indices to keep.
    Raises ValueError where the scores do not fit the network.
    """
    groups = model.filter_groups()
    candidates = []
    for position, group in enumerate(groups):
        count = group.conv.out_channels
        score = scores.get(group.name)
        if score is None or tuple(score.shape) != (count,):
            raise ValueError(f"{group.name} has {count} filters; its scores are "
                             f"{'missing' if score is None else f'of shape {tuple(score.shape)}'}")
        ranked = score.detach().cpu().double().sort(stable=True)
        removable = 0 if group.protected else max(0, count - group.floor)
        candidates += ((value, position, index) for value, index in zip(
            ranked.values[:removable].tolist(), ranked.indices[:removable].tolist()))
    order = [(groups[position], index) for _, position, index in sorted(candidates)]

    def kept(count, multiple=1):
        """What is left without the first `count` filters."""
        gone = {group.name: [] for group in groups}
        for group, index in order[:count]:
            gone[group.name].append(index)
        for group in groups:
            full, leaving = group.conv.out_channels, gone[group.name]
            left = round_up(full - len(leaving), multiple, full)
            gone[group.name] = set(leaving[:full - left])
        return {group.name: torch.tensor([i for i in range(group.conv.out_channels)
                                          if i not in gone[group.name]]) for group in groups}

    if budget == "filters":
        now, dense = model.filter_count()
        removed = list(itertools.accumulate((g.cost for g, _ in order), initial=dense - now))
        target, reached = round(dense * percent / 100), removed.__getitem__
    else:
        def reached(count):
            widths = _cut(groups, kept(count))[0]
            return _percent_without(model, widths, budget, image_size)
        target = percent
    count = bisect.bisect_right(range(len(order) + 1), target, key=reached) - 1
    return kept(max(0, count), round_to)


def kept_mask(kept, model):
    """A selection as one mask: a bool tensor over all filters of `model`, in order of layer."""
    parts = []
    for group in model.filter_groups():
        parts.append(torch.zeros(group.conv.out_channels, dtype=torch.bool))
        parts[-1][kept[group.name]] = True
    return torch.cat(parts)


def mask_distance(a, b):
    """The share of filters that one of two masks keeps and the other does not."""
    return (a != b).sum().item() / len(a)


# ------------------------------------------------------------------------------------ surgery


def prune(model, kept):
    """Build the smaller network that has only the filters `kept`; `model` stays as it is.

    kept: layer name -> rising indices of the filters to keep, for every filter group.
    A stream channel that no kept filter writes leaves the stream and all its readers. In eval mode
    the result computes what `model` computes with the scale and shift of the BatchNorms of every
    removed filter (and of the depthwise filter it carries) set to zero.
    Raises ValueError where `kept` does not fit the network.
    """
    widths, outputs, inputs = _cut(model.filter_groups(), kept)
    state = {}
    for key, tensor in model.state_dict().items():
        module = key.rpartition(".")[0]
        if tensor.dim() > 0 and module in outputs:
            tensor = tensor.index_select(0, outputs[module].to(tensor.device))
        if tensor.dim() > 1 and module in inputs:
            tensor = tensor.index_select(1, inputs[module].to(tensor.device))
        state[key] = tensor
    small = build_model(model.name, model.num_classes, widths, model.width)
    small.load_state_dict(state)
    return small.to(next(model.parameters()).device).train(model.training)


def _cut(groups, kept):
    """What `kept` leaves: three dicts, layer name -> channels of its stream that it writes; module
    name -> output channels that it keeps; module name -> input channels that it keeps."""
    written = {}  # stream -> its channels that are still written
    for group in groups:
        index = kept[group.name].tolist()
        if not index or sorted(set(index)) != index or not (
                0 <= index[0] and index[-1] < len(group.channels)):
            raise ValueError(f"{group.name}: keep at least one of its {len(group.channels)} "
                             "filters, as rising indices")
        if group.protected and len(index) < len(group.channels):
            raise ValueError(f"{group.name} is never pruned")
        written.setdefault(group.stream, set()).update(group.channels[i] for i in index)

    widths, outputs, inputs = {}, {}, {}
    for group in groups:
        index, alive = kept[group.name].cpu(), sorted(written[group.stream])
        place = {channel: i for i, channel in enumerate(alive)}
        widths[group.name] = [place[group.channels[i]] for i in index.tolist()]
        outputs.update(dict.fromkeys(group.modules, index))
        inputs.update(dict.fromkeys(group.stream.readers, torch.tensor(alive)))
    return widths, outputs, inputs
