"""Scores -> kept filters -> a physically smaller network; and the checkpoints that hold it.

    kept = select_filters(model, scores, percent=50)   # scores from imp_estimator.cal_importance
    small = prune(model, kept)
    save_checkpoint("small.pth", small, {"data": "digits"})
    small, info = load_checkpoint("small.pth")
    export(small, info, "small.onnx", images)
"""
import bisect
import copy
import io
import itertools
import json
import math
import mmap
import re
import reprlib
import struct
import warnings
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import torch

from config import InputError, need, to_json, write_atomically
from models import NETWORKS, build_model, measure_cost

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
    now, whole = (measure_cost(model, image_size, of)[kind] for of in (widths, model.dense))
    return 100 * (1 - now / whole)


def select_filters(model, scores, percent, budget="filters", round_to=1, image_size=32):
    """Choose the filters to keep when `percent` of the unpruned network's filters are gone.

    scores: layer name -> 1-D tensor, one score per filter that `model` has now; low goes first.
    percent: counted over all prunable layers of the unpruned network, carried depthwise filters
        included; filters that earlier rounds removed count as gone.
    budget: what the percent is of: "filters", "macs" (multiply-adds of an image of `image_size`) or
        "params" (parameters). round_to: widths then go up to the next multiple of it, by the highest
        scored filters that would have gone.
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
        open_to = 0 if group.protected else max(0, count - group.floor)
        candidates += zip(ranked.values[:open_to].tolist(), [position] * open_to,
                          ranked.indices[:open_to].tolist())
    order = [(groups[position], index) for _, position, index in sorted(candidates)]

    def kept(count, multiple=1):
        """What is left without the first `count` filters."""
        gone = {group.name: [] for group in groups}
        for group, index in order[:count]:
            gone[group.name].append(index)
        for group in groups:
            full, out = group.conv.out_channels, gone[group.name]
            gone[group.name] = set(out[:full - round_up(full - len(out), multiple, full)])
        return {group.name: torch.tensor([i for i in range(group.conv.out_channels)
                                          if i not in gone[group.name]]) for group in groups}

    if budget == "filters":
        now, dense = model.filter_count()
        removed = list(itertools.accumulate((g.cost for g, _ in order), initial=dense - now))
        target, reached = round(dense * percent / 100), removed.__getitem__
    else:
        target = percent

        def reached(count):
            widths = _cut(groups, kept(count))[0]
            return _percent_without(model, widths, budget, image_size)
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
    """What `kept` leaves: (layer name -> channels of its stream that it writes; and, module name ->
    channels that it keeps, of its outputs; of its inputs)."""
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


# -------------------------------------------------------------------------------- checkpoints

# What using the content of a file can raise where it is not what this suite wrote.
NOT_AS_WRITTEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def checkpoint_bytes(model, info):
    """The content of a checkpoint file: one dict with `net` the state dict, `cfg` the widths,
    `model`, `width`, `num_classes`, `pruned`, and the entries of `info`, as JSON knows them."""
    # By way of JSON: pickle writes an object twice that is there twice, but only once where both
    # are the same one, so the size of a file would depend on how its content came about.
    return to_bytes({**json.loads(to_json(info)), **network_content(model)})


def network_content(model):
    """All that is needed to build `model` again with `rebuild`, as plain values and tensors."""
    now, dense = model.filter_count()
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    return {"net": state, "cfg": model.widths, "model": model.name, "width": model.width,
            "num_classes": model.num_classes, "pruned": now < dense}


def to_bytes(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def save_checkpoint(path, model, info):
    """Write `model` and `info` (plain numbers, strings, lists, dicts) to `path`, atomically."""
    write_atomically({path: checkpoint_bytes(model, info)})


def load_checkpoint(path):
    """Rebuild the network of a checkpoint, of this suite's form or of the published one.

    A published file is {"net": state dict}, with "cfg" where it is pruned; its residual layers have
    all filters, and those that are zero are removed here, which leaves the logits as they are.
    Nothing in the file is run: it is read with weights_only=True. Returns (model, info).
    Raises InputError where there is no such file or it holds something else.
    """
    content = read_safely(path)
    try:
        ours = {"model", "num_classes", "cfg"} <= content.keys()
        model = rebuild(content) if ours else _rebuild_published(content)
    except NOT_AS_WRITTEN as error:
        raise InputError(f"{path} cannot be used: {error or 'it is damaged'}"[:300]) from error
    info = {key: value for key, value in content.items() if key != "net" and is_plain(value)}
    if not ours:  # entries that happen to be called like ours mean something else
        info = {key: value for key, value in info.items() if key not in INFO}
    for key, (kind, fits) in INFO.items():
        if key in info and not (type(info[key]) is kind and fits(info[key], model)):
            raise InputError(f"{path} is damaged: its {key} cannot be {reprlib.repr(info[key])}")
    now, dense = model.filter_count()
    return model, {**info, "pruned": now < dense}


def rebuild(content):
    """The network of `network_content`. Raises ValueError and others where it is contradictory."""
    name, classes, width = content["model"], content["num_classes"], content.get("width", 1.0)
    if name not in NETWORKS:
        raise ValueError(f"it holds a network {reprlib.repr(name)}; this suite has "
                         f"{', '.join(NETWORKS)}")
    if type(classes) is not int or not 1 <= classes <= 1_000_000:
        raise ValueError(f"num_classes is {reprlib.repr(classes)}")
    if type(width) not in (int, float) or not 0 < width <= 4:
        raise ValueError(f"width is {reprlib.repr(width)}")
    with torch.device("meta"):  # shapes only: whatever the file says, nothing is allocated yet
        expected = build_model(name, classes, content["cfg"], width).state_dict()
    state = content["net"]
    for key, wanted in expected.items():
        tensor = state.get(key)
        if tensor is None and key.endswith("num_batches_tracked"):
            continue  # files from before torch 0.4.1 have none, and nothing depends on it
        misfit = _misfit(key, tensor, wanted)
        if misfit:
            raise ValueError(f"{key} {misfit}")
    unknown = [key for key in state if key not in expected]
    if unknown:
        raise ValueError(f"{reprlib.repr(unknown[0])} is no weight of {name}")
    model = build_model(name, classes, content["cfg"], width)
    model.load_state_dict(state, strict=False)
    return model


def _misfit(key, tensor, wanted):
    """Why a tensor of a file cannot be the weights `key`, of the shape and type of `wanted`; or None."""
    if not isinstance(tensor, torch.Tensor):
        return "is missing"
    if tensor.shape != wanted.shape:
        there, here = (" x ".join(map(str, of.shape)) or "one number" for of in (tensor, wanted))
        return f"is {there} instead of {here}"
    if tensor.layout != torch.strided or tensor.is_meta or (
            tensor.is_floating_point() != wanted.is_floating_point()) or (
            tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()):
        return f"is not a plain tensor of type {wanted.dtype}"
    if not tensor.to(wanted.dtype).isfinite().all():
        return "holds values that are not finite"
    if key.endswith("running_var") and (tensor < 0).any():
        return "holds variances below 0"
    return None


def _rebuild_published(content):
    state = {key.removeprefix("module."): tensor for key, tensor in content["net"].items()}

    def weights(keys):
        return {key for key in keys if not key.endswith("num_batches_tracked")}

    with torch.device("meta"):
        networks = [build_model(name) for name in NETWORKS]
    twin = next((n for n in networks if weights(n.state_dict()) == weights(state)), None)
    if twin is None:
        raise ValueError(f"its weights are those of none of {', '.join(NETWORKS)}")
    widths = twin.published_widths(content["cfg"]) if "cfg" in content else {}
    head = [key for key in twin.state_dict() if key.endswith(".bias")][-1]
    model = rebuild({"model": twin.name, "num_classes": len(state[head]), "cfg": widths,
                     "net": state})
    return _without_zeros(model)


def _without_zeros(model):
    """Remove the filters that add nothing to a residual stream."""
    kept = {}
    for group in model.filter_groups():
        used = torch.ones(len(group.channels), dtype=torch.bool)
        if group.stream.name != group.name and not group.protected:
            silent = (group.conv.weight == 0).all((1, 2, 3)) & (group.bn.running_mean == 0)
            used = ((group.bn.weight != 0) & ~silent) | (group.bn.bias != 0)
            used[0] |= not used.any()
        kept[group.name] = used.nonzero().flatten()
    return prune(model, kept)


def read_safely(path):
    """The dict of a network, its weights under "net", in a file that torch.save wrote. Nothing in it
    is run: see `_read`. Raises InputError."""
    content = _read(path)
    if not isinstance(content, dict) or not isinstance(content.get("net"), dict):
        raise InputError(f"{path} is no checkpoint of a network: it has no weights under net")
    return content


def _read(path):
    """What torch.save wrote to a file. Nothing in it is run: tensors, plain values and NumPy's
    numbers, which are read as Python's, are all that it may hold. Raises InputError."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_NUMBERS):
            warnings.simplefilter("ignore")
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            _require_bounded(content)
    except PermissionError as error:
        raise InputError(f"{path} may not be read: {error.strerror}") from error
    except Exception as error:  # torch.load documents no closed set of errors
        raise InputError(f"{path} is not a readable checkpoint: it is damaged, or holds more than "
                         "tensors and plain values, which would not be safe to load") from error
    return content


def _check_archive(path):
    """Raise where a record is damaged, which torch.load does not look for, or where a small file
    would fill the memory: by a packed record, or a bytearray of any size, neither of which
    torch.save writes, but torch.load accepts."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() or any(record.compress_type != zipfile.ZIP_STORED
                                        for record in archive.infolist()):
                raise ValueError("damaged")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"bytearray") >= 0:
            raise ValueError("a bytearray")


class _Number:
    """Reads what NumPy wrote as one number: scalar(dtype, its bytes)."""
    def __new__(cls, kind, content):
        return struct.unpack(kind.order + _NUMBERS[kind.code], content)[0]


class _NumberType:
    """Reads numpy.dtype("i8"), with its byte order; refuses all that is no number."""
    def __init__(self, code, *_):
        self.code, self.order = code, "<"
        _NUMBERS[code]  # KeyError

    def __setstate__(self, state):
        self.order = ">" if state[1] == ">" else "<"


_NUMBERS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
            "u8": "Q", "f2": "e", "f4": "f", "f8": "d"}

# Stand-ins under the names that NumPy 1 and 2 write into files; none of NumPy's own code is called.
NUMPY_NUMBERS = [type("dtype", (_NumberType,), {"__module__": "numpy"})] + [
    type("scalar", (_Number,), {"__module__": f"numpy.{core}.multiarray"})
    for core in ("core", "_core")]


def is_plain(value):
    """Whether a value is made of what JSON knows."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _require_bounded(value, depth=50, items=2_000_000):
    """Raise ValueError where a value is nested deeply, or has endlessly many items because it
    holds the same list again and again. Returns how many more items there may be."""
    if isinstance(value, (dict, list, tuple)):
        items -= len(value)
        if depth == 0 or items < 0:
            raise ValueError("endless")
        for item in value.values() if isinstance(value, dict) else value:
            items = _require_bounded(item, depth - 1, items)
    return items


def _is_accuracy(figures, _model):
    return all(type(figures[epoch]) is dict and type(figures[epoch].get("top1")) is float
               for epoch in ("best", "last") if epoch in figures) and "best" in figures


def _anything(_value, _model):
    return True


# What a checkpoint may say of itself: the type, and what must hold of the value and the network.
INFO = {
    "image_size": (int, lambda size, _: 1 <= size <= 1024),
    "classes": (list, lambda names, model: len(names) == model.num_classes and all(
        type(name) is str for name in names)),
    "accuracy": (dict, _is_accuracy),
    "penalised": (bool, _anything),
    **dict.fromkeys(("data", "data_path", "fingerprint", "job"), (str, _anything)),
    **dict.fromkeys(("flags", "schedule", "training", "environment", "history", "seconds",
                     "pruning"), (dict, _anything)),
}


# ------------------------------------------------------------------ weights from and to elsewhere


def initialise(model, path):
    """Give `model`, in place, the weights of a file, layer by layer, whatever wrote them.

    The file is a state dict, or a dict that has one under "net", "state_dict" or "model", or a
    .safetensors file; its names are this suite's, the published ones, or torchvision's. A classifier
    for other classes, torchvision's 7 x 7 stem with its BatchNorm, and BatchNorms that it has not, or
    elsewhere (in torchvision's VGG they stand before the ReLU), stay fresh. Returns lines that say which.
    Raises InputError where another convolution does not fit.
    """
    state, taken, fresh = _ours(read_weights(path), model), {}, {}
    layers = {name: module for name, module in model.named_modules() if module._parameters}
    stem, norm, *_, head = layers
    for name, module in layers.items():
        own = {f"{name}.{part}": tensor for part, tensor in module.state_dict().items()
               if part != "num_batches_tracked"}
        misfits = [f"{key.rpartition('.')[2]} {misfit}" for key, tensor in own.items()
                   if (misfit := _misfit(key, state.get(key), tensor))]
        if not misfits and not (name == norm and stem in fresh):  # whose statistics are the stem's
            taken |= {key: state[key] for key in own}
            continue
        fresh[name] = f"{name}, whose {', '.join(misfits)}"
        if isinstance(module, torch.nn.Conv2d) and name != stem:
            raise InputError(f"--init={path} is no {model.name} of this width: {fresh[name]}")
    model.load_state_dict(taken, strict=False)
    share = sum(map(torch.Tensor.numel, taken.values())) / sum(
        tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
    norms = [name for name in fresh if isinstance(layers[name], torch.nn.BatchNorm2d)]
    return [f"{math.floor(1000 * share) / 10}% of the weights are those of {path}"] + [
        f"{'replaced' if name == head else 'fresh'}: {line}" for name, line in fresh.items()
        if name not in norms] + ([f"fresh: the BatchNorms {', '.join(norms)}"] if norms else [])


def read_weights(path):
    """{name: tensor} of a state dict in a file. Raises InputError."""
    if str(path).endswith(".safetensors"):
        return _read_safetensors(path)
    content = _read(path)
    for key in ("net", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(
            isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"{path} holds no state dict")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def _ours(state, model):
    """A state dict under the names that `model` has for the same layers."""
    renamed = {}
    for key, tensor in state.items():
        key = key.replace(".downsample.", ".shortcut.")
        renamed["linear" + key[2:] if key.startswith("fc.") else key] = tensor
    if model.name == "vgg" and "features.2.running_mean" not in renamed:
        # Its layers are numbered; with BatchNorms elsewhere, or none, the order is still the same.
        theirs = sorted(int(key.split(".")[1]) for key, tensor in renamed.items() if re.fullmatch(
            r"features\.\d{1,3}\.weight", key) and getattr(tensor, "ndim", 0) == 4)
        if len(theirs) == len(model.dense):
            renamed = {f"{ours}.{part}": renamed.get(f"features.{number}.{part}")
                       for ours, number in zip(model.dense, theirs) for part in ("weight", "bias")}
    return renamed


def _read_safetensors(path):
    need("safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no readable .safetensors file: {error}") from error


class _Product(torch.nn.Module):
    """A network as it is exported, behind the normalisation of its pixels or without."""
    def __init__(self, network, normalize):
        super().__init__()
        self.network, self.normalize = network, normalize

    def forward(self, images):
        return self.network(images * 2 - 1 if self.normalize else images)


def class_names(model, info):
    """The names of a network's classes, as the `info` of its checkpoint has them."""
    return info.get("classes") or [f"class {k}" for k in range(model.num_classes)]


def export(model, info, path, images, normalize=False):
    """Write `model` for use without this suite: .pt2 (torch.export), .onnx or .safetensors.

    info: of its checkpoint. images: real ones, N x 3 x H x W in -1..1. The graph of a
    .pt2 or .onnx takes any number of images; with `normalize` their pixels are 0..1, else -1..1.
    What is to be written is loaded again first, and its logits for these images, and for the first
    alone, are compared with the model's. Classes, sizes and what the pixels must be are in its
    metadata. Returns {"difference": largest of the logits, "metadata"}.
    Raises InputError where a package is missing, the path has another suffix, or the logits differ.
    """
    kind, path = Path(path).suffix, Path(path)
    if kind not in EXPORTS:
        raise InputError(f"--export={path}: the name must end in {', '.join(EXPORTS)}")
    if normalize and kind == ".safetensors":
        raise InputError("--export_normalize=True: a .safetensors file holds weights, and no graph "
                         "that could normalise; the normalisation is in its metadata")
    model = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)
    size = images.shape[-1]
    metadata = {
        "model": model.name, "width": model.width, "num_classes": model.num_classes,
        "cfg": model.widths, "image_size": size, "classes": class_names(model, info),
        "input": f"float32, N x 3 x {size} x {size}, RGB, " + (
            "pixels from 0 to 1" if normalize else
            "pixels from 0 to 1 normalised with mean 0.5 and standard deviation 0.5, so from -1 to 1"),
        "mean": [0.0 if normalize else 0.5] * 3, "std": [1.0 if normalize else 0.5] * 3,
        "resize": f"shorter side to {size}, the centre cut out, transparent parts white",
        "output": f"logits, N x {model.num_classes}"}
    images = images.expand(max(2, len(images)), -1, -1, -1)  # of one, the number would be fixed
    images = images.cpu().contiguous()
    given = (images + 1) / 2 if normalize else images
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        product = model if kind == ".safetensors" else _Product(model, normalize)
        content, loaded = EXPORTS[kind](product, given, {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in metadata.items()})
        logits = model(images)
        difference = max((loaded(given) - logits).abs().max().item(),
                         (loaded(given[:1]) - logits[:1]).abs().max().item())
    if not difference <= 1e-3 * max(1, logits.abs().max().item()):
        raise InputError(f"--export={path}: the exported network's logits differ by "
                         f"{difference:.2g}; nothing was written")
    write_atomically({path: content})
    return {"difference": difference, "metadata": metadata}


# Each returns (the content of the file, a function images -> logits that was made of it).

def _export_pt2(network, images, metadata):
    program = torch.export.export(network, (images,), dynamic_shapes=(
        {0: torch.export.Dim("batch", min=1)},))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()


def _export_onnx(network, images, metadata):
    need("onnx", "onnxscript", "onnxruntime")
    import onnxruntime
    program = torch.onnx.export(
        network, (images,), dynamo=True, verbose=False, input_names=["images"],
        output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},))
    program.model.metadata_props.update(metadata)
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(
        session.run(None, {"images": images.numpy()})[0])


def _export_safetensors(network, images, metadata):
    need("safetensors")
    from safetensors.torch import load, save
    content = save({key: tensor.contiguous() for key, tensor in network.state_dict().items()},
                   metadata)
    return content, rebuild({"model": metadata["model"], "net": load(content), **{
        key: json.loads(metadata[key]) for key in ("num_classes", "width", "cfg")}}).eval()


EXPORTS = {".pt2": _export_pt2, ".onnx": _export_onnx, ".safetensors": _export_safetensors}
