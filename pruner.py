"""Scores -> kept filters -> a physically smaller network; and the checkpoints that hold it.

    kept = select_filters(model, scores, percent=50)   # scores from imp_estimator.cal_importance
    small = prune(model, kept)
    save_checkpoint("small.pth", small, {"data": "digits"})
    small, info = load_checkpoint("small.pth")
"""
import io
import math
import os
import tempfile
from pathlib import Path

import torch

from config import InputError
from models import NETWORKS, build_model

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


def pruned_percent(model):
    """Percent of the unpruned network's filters that `model` no longer has."""
    now, dense = model.filter_count()
    return 100 * (1 - now / dense)


def max_percent(model):
    """The largest percent that the layers' floors and the protected stem allow."""
    groups = model.filter_groups()
    return 100 * (1 - sum(g.floor * g.cost for g in groups) / model.filter_count()[1])


def select_filters(model, scores, percent):
    """Choose the filters to keep when `percent` of the unpruned network's filters are gone.

    scores: layer name -> 1-D tensor, one score per filter that `model` has now; low goes first.
    percent: counted over all prunable layers of the unpruned network, carried depthwise filters
        included; filters that earlier rounds removed count as gone.
    All layers are ranked together; equal scores go in order of layer, then of filter. Every layer
    keeps its floor(0.05 N) + 1 highest scored filters, N counted in the unpruned network, and a
    protected layer all of them. The target, rounded to whole filters, is never exceeded, and is
    missed by at most the depthwise filter that a last one would carry, or where the floors stop.
    Returns layer name -> rising tensor of the indices to keep.
    Raises ValueError where the scores do not fit the network.
    """
    groups = model.filter_groups()
    keep, candidates = {}, []
    for position, group in enumerate(groups):
        count = group.conv.out_channels
        score = scores.get(group.name)
        if score is None or tuple(score.shape) != (count,):
            raise ValueError(f"{group.name} has {count} filters; its scores are "
                             f"{'missing' if score is None else f'of shape {tuple(score.shape)}'}")
        keep[group.name] = torch.ones(count, dtype=torch.bool)
        ranked = score.detach().cpu().double().sort(stable=True)
        open_to = 0 if group.protected else max(0, count - group.floor)
        candidates += zip(ranked.values[:open_to].tolist(), [position] * open_to,
                          ranked.indices[:open_to].tolist())
    now, dense = model.filter_count()
    budget = round(dense * percent / 100) - (dense - now)
    for _, position, index in sorted(candidates):
        group = groups[position]
        if group.cost > budget:
            break
        budget -= group.cost
        keep[group.name][index] = False
    return {name: mask.nonzero().flatten() for name, mask in keep.items()}


# ------------------------------------------------------------------------------------ surgery


def prune(model, kept):
    """Build the smaller network that has only the filters `kept`; `model` stays as it is.

    kept: layer name -> rising indices of the filters to keep, for every filter group.
    A stream channel that no kept filter writes leaves the stream and all its readers. In eval mode
    the result computes what `model` computes with the scale and shift of the BatchNorms of every
    removed filter (and of the depthwise filter it carries) set to zero.
    Raises ValueError where `kept` does not fit the network.
    """
    groups = model.filter_groups()
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

    widths, outputs, inputs = {}, {}, {}  # the last two: module name -> the channels it keeps
    for group in groups:
        index, alive = kept[group.name].cpu(), sorted(written[group.stream])
        place = {channel: i for i, channel in enumerate(alive)}
        widths[group.name] = [place[group.channels[i]] for i in index.tolist()]
        outputs.update(dict.fromkeys(group.modules, index))
        inputs.update(dict.fromkeys(group.stream.readers, torch.tensor(alive)))

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


# -------------------------------------------------------------------------------- checkpoints


def write_atomically(path, content):
    """Write bytes to a temporary file beside `path`, then put it in `path`'s place.

    Whatever happens, `path` holds either what it held before or all of the new content.
    Raises InputError where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.",
                                         delete=False) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # temporary files are private to their owner
        os.replace(temporary, path)
    except BaseException as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise InputError(f"cannot write {path}: {error.strerror or error}; nothing there was "
                             "changed") from error
        raise


def check_writable(folder):
    """Raise InputError where nothing could be written to `folder`, which need not exist yet."""
    there = next(p for p in (Path(folder).resolve(), *Path(folder).resolve().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}/: {there} is no folder that can be written to")


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def checkpoint_bytes(model, info):
    """The content of a checkpoint file: one dict with `net` the state dict, `cfg` the widths,
    `model`, `width`, `num_classes`, `pruned`, and the entries of `info`."""
    now, dense = model.filter_count()
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({**info, "net": state, "cfg": model.widths, "model": model.name,
                "width": model.width, "num_classes": model.num_classes, "pruned": now < dense},
               buffer)
    return buffer.getvalue()


def save_checkpoint(path, model, info):
    """Write `model` and `info` (plain numbers, strings, lists, dicts) to `path`, atomically."""
    write_atomically(path, checkpoint_bytes(model, info))


def load_checkpoint(path):
    """Rebuild the network of a checkpoint that this suite wrote. Returns (model, info).

    Nothing in the file is run: it is read with weights_only=True.
    Raises InputError where there is no such file or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load documents no closed set of errors
        raise InputError(f"{path} is not a readable checkpoint: it is damaged, or holds more than "
                         "tensors and plain values, which would not be safe to load") from error
    if not isinstance(content, dict) or not {"net", "cfg", "model", "num_classes"} <= set(content):
        raise InputError(f"{path} was not written by this suite: it must be a dict with net, cfg, "
                         "model and num_classes")
    if not isinstance(content["model"], str) or content["model"] not in NETWORKS:
        raise InputError(f"{path} holds a network {content['model']!r}; this suite has "
                         f"{', '.join(NETWORKS)}")
    size, classes = content.get("image_size", 32), content.get("classes", [])
    if type(size) is not int or size < 1 or not isinstance(classes, list):
        raise InputError(f"{path} is damaged: image_size is {size!r} and classes are {classes!r}")
    state = content.pop("net")
    try:
        model = build_model(content["model"], content["num_classes"], content["cfg"],
                            content.get("width", 1.0))
        model.load_state_dict(state)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[-1].strip()[:200]
        raise InputError(f"{path}: the weights do not fit the widths that it names: "
                         f"{reason}") from error
    if not all(math.isfinite(t.sum()) for t in state.values() if t.is_floating_point()):
        raise InputError(f"{path} holds weights that are not finite")
    now, dense = model.filter_count()
    return model, {**content, "pruned": now < dense}
