"""A network leaves the suite: exported files, and the names of classes for images."""
import copy
import io
import json
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import torch

from common.errors import InputError
from common.files import write_atomically
from common.folders import image_files
from common.images import describe, read_images
from common.libraries import lazy, need
from common.terminal import counted, print_notes, print_table
from data import HALF, Split, plain_batches
from lab.checkpoint import rebuild
from models import widths_of

onnxruntime, safetensors_torch = lazy("onnxruntime"), lazy("safetensors.torch")  # optional

LIKELIEST = 3  # classes that a prediction names


# ----------------------------------------------------------------------------------------- export


class _Product(torch.nn.Module):
    """A network as it is exported, behind the normalisation of its pixels or without."""
    def __init__(self, network, scale=None, shift=None):
        super().__init__()
        self.network, self.scaled = network, scale is not None
        for name, value in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, images):
        return self.network(images * self.scale - self.shift if self.scaled else images)


def export(model, classes, path, images, inside=False, normalize=HALF):
    """Write `model` for use without this suite: .pt2 (torch.export), .onnx or .safetensors.

    classes: their names. images: real ones, normalised, N x 3 x H x W. normalize: with what, the
    means and standard deviations of red, green and blue from 0 to 1. The graph of a .pt2 or .onnx
    takes any number of images; with `inside` it takes pixels from 0 to 1, and normalises them.
    What is to be written is loaded again first, and its logits for these images, and for the first
    alone, are compared with the model's. Classes, sizes and what the pixels must be are in its
    metadata. Returns {"difference": largest of the logits, "metadata"}.
    Raises InputError where a package is missing, the path has another suffix, or the logits differ.
    """
    kind, path = Path(path).suffix, Path(path)
    if kind not in EXPORTS:
        raise InputError(f"--export={path}: the name must end in {', '.join(EXPORTS)}")
    if inside and kind == ".safetensors":
        raise InputError("--export_normalize=True: a .safetensors file holds weights, and no graph "
                         "that could normalise; the normalisation is in its metadata")
    model = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)
    metadata = _metadata(model, classes, images.shape[-1], inside, normalize)
    means, deviations = torch.tensor(normalize).view(2, 3, 1, 1)
    images = images.expand(max(2, len(images)), -1, -1, -1)  # of one, the number would be fixed
    images = images.cpu().contiguous()
    given = images * deviations + means if inside else images
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        product = model if kind == ".safetensors" else _Product(
            model, *((1 / deviations, means / deviations) if inside else ()))
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


def _metadata(model, classes, size, inside, normalize):
    means, deviations = ((0.0,) * 3, (1.0,) * 3) if inside else (normalize[:3], normalize[3:])
    pixels = "pixels from 0 to 1" if inside else (
        f"pixels from 0 to 1 normalised with means {_numbers(means)} and standard deviations "
        f"{_numbers(deviations)}{', so from -1 to 1' if tuple(normalize) == HALF else ''}")
    origin = model.origin
    return {
        "model": origin.name, "width": origin.width, "num_classes": origin.num_classes,
        "cfg": widths_of(model), "image_size": size, "classes": list(classes),
        "input": f"float32, N x 3 x {size} x {size}, RGB, {pixels}",
        "mean": list(means), "std": list(deviations),
        "resize": "PIL: ImageOps.exif_transpose(image), transparent parts on white, then "
                  f'ImageOps.fit(image.convert("RGB"), ({size}, {size}), Image.BILINEAR)',
        "output": f"logits, N x {origin.num_classes}"}


def _numbers(values):
    return ", ".join(f"{value:g}" for value in values)


# Each returns (the content of the file, a function images -> logits that was made of it).

def _export_pt2(network, images, metadata):
    program = torch.export.export(network, (images,), dynamic_shapes=(
        {0: torch.export.Dim("batch", min=1)},))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()


def _export_onnx(network, images, metadata):
    need("--export as .onnx", "onnx", "onnxscript", "onnxruntime")
    program = torch.onnx.export(
        network, (images,), dynamo=True, verbose=False, input_names=["images"],
        output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},))
    program.model.metadata_props.update(metadata)
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(
        session.run(None, {"images": images.numpy()})[0])


def _export_safetensors(network, images, metadata):
    need("--export as .safetensors", "safetensors")
    content = safetensors_torch.save(
        {key: tensor.contiguous() for key, tensor in network.state_dict().items()}, metadata)
    entries = {key: json.loads(metadata[key]) for key in ("num_classes", "width", "cfg")}
    return content, rebuild({"model": metadata["model"], "net": safetensors_torch.load(content),
                             **entries}, own=metadata["model"]).eval()


EXPORTS = {".pt2": _export_pt2, ".onnx": _export_onnx, ".safetensors": _export_safetensors}


# ----------------------------------------------------------------------------------------- predict


def predict(model, classes, images, normalize=HALF):
    """[[(class name, probability), ...] of the likeliest classes] for uint8 N x H x W x 3."""
    device, results = next(model.parameters()).device, []
    model.eval()
    split = Split(images, torch.zeros(len(images), dtype=torch.long)).to(device)
    with torch.no_grad():
        for batch, _ in plain_batches(split, normalize):
            likely = model(batch).softmax(1).topk(min(LIKELIEST, len(classes)))
            results += [[(classes[k], p) for k, p in zip(indices, shares)] for indices, shares in
                        zip(likely.indices.tolist(), likely.values.tolist())]
    return results


def print_predictions(model, record, path, image_size, skip_bad_images):
    """Name the classes of the image, or of all below the folder, at `path`. Raises InputError."""
    files, white = image_files(path), {"integer": 65535.0, **(record.white or {})}
    classes = record.classes or [f"class {k}" for k in range(model.origin.num_classes)]
    print(f"Predictions for {counted(len(files), 'image')}, brought to {image_size} x {image_size}")
    for start in range(0, len(files), 1000):
        part = files[start:start + 1000]
        read = read_images({"the": part}, image_size, white)
        white = {**read.white, **white}  # all images have one rule
        images, unreadable = read.parts["the"], read.unreadable
        if unreadable and not skip_bad_images:
            file, reason = next(iter(unreadable.items()))
            raise InputError(f"{file} cannot be read ({reason}); --skip_bad_images=True leaves "
                             "such files out")
        good = [file not in unreadable for file in part]
        results = iter(predict(model, classes, images[good], record.normalize or HALF))
        empty = [""] * (min(LIKELIEST, len(classes)) - 1)
        print_table([
            (file, f"left out: {unreadable[file]}", *empty) if file in unreadable else
            (file, *(f"{name} {100 * p:.1f}%" for name, p in next(results))) for file in part])
        print_notes(describe(read))
