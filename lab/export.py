"""A network leaves the suite, as a file of .pt2, .onnx or .safetensors, and runs elsewhere.

To add a format, write one function here under `@exporter(...)`; the command knows it then.
"""

import io
import json
import statistics
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from channels.groups import filter_groups
from channels.lowering import lower
from common.copies import copy_of
from common.errors import InputError, first_line
from common.files import write_atomically
from common.images import Fit, drafted_size
from common.libraries import ONNX, lazy, need
from data import HALF
from lab.checkpoint import network_content, rebuild
from lab.measure import LAYER_RUNS

# Optional.
onnx, onnxruntime, safetensors_torch = map(lazy, ("onnx", "onnxruntime", "safetensors.torch"))

OLDEST_WRITTEN = 18  # opset that torch writes; older ones are made of it
WEIGHTED, ELEMENTWISE = (
    ("Conv", "Gemm", "MatMul"),
    (
        "Add",
        "Clip",
        "Elu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mul",
        "PRelu",
        "Relu",
        "Sigmoid",
        "Tanh",
    ),
)


@dataclass(frozen=True)
class ExportSettings:
    """What a network is exported with.

    normalize      what its images are normalised with: the means and standard deviations of red,
                   green and blue from 0 to 1
    white          of deep pixels, see common.images.Images
    scaled_size    the pixels, height and width, that image files are brought to before the centre
                   is cut out; None where nothing is cut off
    interpolation  how image files are scaled, see common.images.Fit
    inside         the graph takes pixels from 0 to 1, and normalises them
    fold           BatchNorms become part of convolutions where that is exact
    opset          of an .onnx; None for torch's own choice
    """

    normalize: tuple = HALF
    white: dict[str, float] | None = None
    scaled_size: int | None = None
    interpolation: str = "bilinear"
    inside: bool = False
    fold: bool = True
    opset: int | None = None


@dataclass(frozen=True)
class Exporter:
    """A format of exported files.

    suffix      of their names
    write       (network, images, metadata, which it may add to, settings) -> (the content of the
                file, a function images -> logits that was made of the content)
    packages    that it needs
    graph       whether it holds a graph, which can normalise, or weights alone
    plain       whether the graph has plain operations alone, see channels.lowering.lower
    opsets      whether the version of its operations can be chosen
    fast_width  widths that are multiples of it are fast in most of its runtimes
    """

    suffix: str
    write: Callable
    packages: tuple[str, ...] = ()
    graph: bool = True
    plain: bool = False
    opsets: bool = False
    fast_width: int = 1


EXPORTERS = {}  # suffix -> Exporter, in the order of this file


def exporter(suffix, **about):
    """Register the function below as a format of exported files; see `Exporter`."""

    def register(write):
        EXPORTERS[suffix] = Exporter(suffix, write, **about)
        return write

    return register


def exporter_of(path):
    """The Exporter of a file, by its suffix. Raises InputError where there is none."""
    suffix = Path(path).suffix
    if suffix not in EXPORTERS:
        raise InputError(f"--export={path}: the name must end in {', '.join(EXPORTERS)}")
    return EXPORTERS[suffix]


class _Product(torch.nn.Module):
    """A network as it is exported, behind the normalisation of its pixels or without."""

    def __init__(self, network, scale=None, shift=None):
        super().__init__()
        self.network, self.scaled = network, scale is not None
        for name, value in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, images):
        return self.network(images * self.scale - self.shift if self.scaled else images)


def export(model, classes, path, images, settings=ExportSettings()):
    """Write `model` for use without this suite, in the format of the suffix, a key of EXPORTERS.

    classes: their names. images: real ones, normalised, N x 3 x H x W. The graph of a .pt2 or .onnx
    takes any number of images.
    What is to be written is loaded again first, and its logits for these images, and for the first
    alone, are compared with the model's. The metadata says what is in the file, and how an image
    becomes its pixels. Returns {"difference": largest of the logits, "metadata"}.
    Raises InputError where a package is missing, the path has another suffix, or the logits differ.
    """
    kind = exporter_of(path)
    _check(kind, settings)
    model = copy_of(model).cpu().eval().to(memory_format=torch.contiguous_format)
    metadata = _metadata(model, classes, images.shape[-1], settings)
    images = images.expand(max(2, len(images)), -1, -1, -1)  # of one, the number would be fixed
    images = images.cpu().contiguous()
    given = _pixels_of(images, settings.normalize) if settings.inside else images
    with torch.no_grad():
        product = _product(model, images, kind, settings) if kind.graph else model
        content, loaded = kind.write(product, given, metadata, settings)
        logits = model(images)
        difference = max(
            (loaded(given) - logits).abs().max().item(),
            (loaded(given[:1]) - logits[:1]).abs().max().item(),
        )
    if not difference <= 1e-3 * max(1, logits.abs().max().item()):
        raise InputError(
            f"--export={path}: the exported network's logits differ by "
            f"{difference:.2g}; nothing was written"
        )
    write_atomically({path: content})
    return {"difference": difference, "metadata": metadata}


def _check(kind, settings):
    """Raise InputError where a format cannot be written with these settings, or here."""
    if settings.inside and not kind.graph:
        raise InputError(
            f"--export_normalize=True: a {kind.suffix} file holds weights, and no graph "
            "that could normalise; the normalisation is in its metadata"
        )
    if settings.opset and not kind.opsets:
        those = (f"--export=FILE{kind.suffix}" for kind in EXPORTERS.values() if kind.opsets)
        raise InputError(f"--export_opset={settings.opset} only works with {' or '.join(those)}")
    need(f"--export as {kind.suffix}", *kind.packages)


def _means_and_deviations(normalize):
    return torch.tensor(normalize).view(2, 3, 1, 1)


def _pixels_of(images, normalize):
    """The pixels from 0 to 1 of normalised images."""
    means, deviations = _means_and_deviations(normalize)
    return images * deviations + means


def _product(model, images, kind, settings):
    """The graph that is written, behind the normalisation of its pixels where it is to be in it."""
    graph = lower(model, images, settings.fold, plain=kind.plain)
    if not settings.inside:
        return _Product(graph)
    means, deviations = _means_and_deviations(settings.normalize)
    return _Product(graph, 1 / deviations, means / deviations)


def width_notes(model, path):
    """A line where a network has widths that are slow in the runtimes of a file."""
    fast = exporter_of(path).fast_width
    groups = filter_groups(model)
    odd = [
        group
        for group in groups
        if len(group.channels) % fast and len(group.channels) < group.dense
    ]
    if not odd:
        return []
    return [
        f"Note: {len(odd)} of {len(groups)} layers have a width that is no multiple of {fast}, "
        f"which runtimes fill up; pruning with --round_to={fast} is often faster at the same size"
    ]


def _metadata(model, classes, size, settings):
    """What is said of a file in it. size: of its images, in pixels."""
    normalize, scaled = settings.normalize, settings.scaled_size or size
    means, deviations = normalize[:3], normalize[3:]
    pixels = (
        f"pixels from 0 to 1 normalised with means {_numbers(means)} and standard deviations "
        f"{_numbers(deviations)}{', so from -1 to 1' if tuple(normalize) == HALF else ''}"
    )
    if settings.inside:
        means, deviations, pixels = (0.0,) * 3, (1.0,) * 3, "pixels from 0 to 1"
    content = network_content(model)
    rebuilding = ("model", "width", "num_classes", "cfg", "whole")
    return {
        **{key: content[key] for key in rebuilding if key in content},
        "image_size": size,
        "scaled_size": scaled,
        "interpolation": settings.interpolation,
        "classes": list(classes),
        "input": f"float32, N x 3 x {size} x {size}, RGB, {pixels}",
        "mean": list(means),
        "std": list(deviations),
        **({"white": settings.white} if settings.white else {}),
        "steps": _steps(size, Fit(scaled, settings.interpolation), means, deviations),
        "output": f"logits, N x {model.origin.num_classes}",
        "torch": torch.__version__,
    }


def _steps(size, fit, means, deviations):
    """How an image file becomes pixels, a dict for each step, as common/images.py does it."""
    scaled, draft = fit.size, drafted_size(fit.size)
    resampling = f"PIL.Image.Resampling.{fit.interpolation.upper()}"
    return [
        {
            "do": "decode",
            "jpeg": "at a half, a quarter or an eighth of its size, as small as "
            f"leaves both sides {draft} pixels",
            "as": f"image.draft(None, ({draft}, {draft}))",
        },
        {"do": "turn", "by": "the EXIF orientation"},
        {"do": "lay on", "colour": [255, 255, 255], "where": "it is transparent"},
        {"do": "convert", "to": "RGB"},
        {
            "do": "cut",
            "part": "the largest centred square, to fractions of a pixel",
            "and": "scale",
            "to": [scaled, scaled],
            "filter": fit.interpolation,
            "antialias": True,
            "as": f"PIL.ImageOps.fit(image, to, {resampling})",
        },
        *(
            [{"do": "cut", "part": f"the centred square of {size} x {size} pixels"}]
            if size < scaled
            else []
        ),
        {"do": "divide", "by": 255},
        {"do": "subtract", "colour": list(means)},
        {"do": "divide", "by": list(deviations)},
        {"do": "order", "as": "N x colour x row x column", "type": "float32"},
    ]


def _numbers(values):
    return ", ".join(f"{value:g}" for value in values)


def _as_texts(metadata):
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }


# -------------------------------------------------------------------------------- kinds of files


@exporter(".pt2")
def export_pt2(network, images, metadata, settings):
    with _quiet():
        program = torch.export.export(
            network, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
    file = io.BytesIO()
    extra = {"metadata.json": json.dumps(_as_texts(metadata))}
    torch.export.save(program, file, extra_files=extra)
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()


@exporter(".onnx", packages=ONNX, plain=True, opsets=True, fast_width=8)
def export_onnx(network, images, metadata, settings):
    proto = onnx_of(network, images, settings.opset, settings.fold)
    metadata |= {"opset": proto.opset_import[0].version, "ir_version": proto.ir_version}
    onnx.helper.set_model_props(proto, _as_texts(metadata))
    content = proto.SerializeToString()
    return content, Runtime(content)


@exporter(".safetensors", packages=("safetensors",), graph=False)
def export_safetensors(network, images, metadata, settings):
    # The format has no tensors of two names, as tied weights are.
    weights = {
        key: tensor.clone(memory_format=torch.contiguous_format)
        for key, tensor in network.state_dict().items()
    }
    content = safetensors_torch.save(weights, _as_texts(metadata))
    return content, rebuild(
        {**metadata, "net": safetensors_torch.load(content)}, own=metadata["model"]
    ).eval()


# -------------------------------------------------------------------------------------------- ONNX


def onnx_of(network, images, opset=None, fold=True):
    """The onnx.ModelProto of a network whose batches may have any size, in the oldest version of
    the format that its opset allows, since older runtimes refuse newer ones. fold: let torch fold
    what it can. Raises InputError."""
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset and max(opset, OLDEST_WRITTEN),
                optimize=fold,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        proto = program.model_proto
        if opset and opset < OLDEST_WRITTEN:
            proto = onnx.version_converter.convert_version(proto, opset)
        if opset and proto.opset_import[0].version != opset:
            raise ValueError("it has another opset")
    except Exception as error:
        cause = error
        while cause.__cause__:
            cause = cause.__cause__
        if opset is None:
            raise InputError(
                f"this network cannot be written as ONNX: {first_line(cause)}; "
                "--export=FILE.pt2 may do"
            ) from error
        raise InputError(
            f"--export_opset={opset}: this network cannot be written so "
            f"({first_line(cause)}); leave it out, or another number"
        ) from error
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import)
    return proto


class Runtime:
    """The content of an .onnx file in ONNX Runtime on the CPU: a function images -> logits."""

    def __init__(self, content):
        self.content = content
        self.session = self._session(self._options())

    @staticmethod
    def _options():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        return options

    def _session(self, options):
        return onnxruntime.InferenceSession(
            self.content, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images):
        return torch.from_numpy(self.run(self.prepare(images)))

    @staticmethod
    def prepare(images):
        return images.contiguous().numpy()

    def run(self, images):
        return self.session.run(None, {"images": images})[0]

    def layer_times(self, images, runs=LAYER_RUNS):
        """{layer: milliseconds for a batch, median over runs} of the convolutions and linear
        layers; what was added to fit a residual stream belongs to none."""
        options = self._options()
        options.enable_profiling = True
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = self._session(options)
            for _ in range(runs + 1):
                session.run(None, {"images": self.prepare(images)})
            events = json.loads(Path(session.end_profiling()).read_text())
        owners = _owners(onnx.load_from_string(self.content).graph)
        times, layers = {}, {}
        for event in events:
            name = event["name"].removesuffix("_kernel_time").removesuffix("_nchwc")
            if event["cat"] == "Node" and name in owners:
                times.setdefault(name, []).append(event["dur"] / 1000)
        for name, durations in times.items():
            layer, warm = owners[name], durations[1:]
            layers[layer] = layers.get(layer, 0) + statistics.median(warm)
        return layers


def _owners(graph):
    """Node, or tensor that a node gives -> the layer whose weights it was made with. The runtime
    calls a node by its name, or by the last tensor of those that were fused into it."""
    owners = {}
    for node in graph.node:
        weights = [name for name in node.input if name.endswith(".weight")]
        if node.op_type in WEIGHTED and weights:
            owner = weights[0].removesuffix(".weight")
        elif node.op_type in ELEMENTWISE and node.input:
            owner = owners.get(node.input[0])
        else:
            continue
        if owner and not owner.startswith("placed_"):
            owners[node.name] = owner
            owners |= dict.fromkeys(node.output, owner)
    return owners


def runtime_of(model, image_size):
    """The Runtime of a network; None where ONNX Runtime, or what writes its files, is missing."""
    if not all(map(find_spec, ONNX)):
        return None
    images = torch.zeros(2, 3, image_size, image_size)
    model = copy_of(model).cpu().eval().to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        return Runtime(onnx_of(lower(model, images), images).SerializeToString())


@contextmanager
def _quiet():
    """Exporters report their progress, and warn of what is not the user's."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
