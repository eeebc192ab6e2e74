"""Networks by name: the four, torchvision's, timm's, and those of a user's own file.

build_network("resnet50", num_classes=10)
build_network("timm:resnet26d", num_classes=10)
build_network("my.py:Net", num_classes=10)        # Net(num_classes=10), in the file my.py
"""

import ast
import difflib
import hashlib
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial, wraps
from pathlib import Path

import torch

import pruner
from channels.groups import example_of, fixed_text, remains_of, share_structure, widths_of
from channels.structure import NoLogits
from channels.trace import LAZY
from common.errors import InputError, first_line
from common.libraries import lazy, need
from common.made import made_class
from common.seeds import forked_random_state
from config import MODELS, NORMALIZATIONS
from imp_estimator import check_suits
from lab import own
from lab.reader import unwrapped
from lab.trial import try_out
from models import NETWORKS, Origin, build_model

timm, zoo = lazy("timm"), lazy("torchvision.models")  # timm is optional
hub = lazy("huggingface_hub")  # which timm brings along

MOST = 8  # lines about what stays
TORCHVISION = re.compile(r"^(torchvision([:./]models)?[:./]|tv[:./])")
# In names of networks that detect, segment, or follow motion, by which people ask for them.
NO_CLASSIFIER = re.compile(
    r"yolo|rcnn|retinanet|\bssd|detr\b|fcos|deeplab|lraspp|^fcn_|unet\b|"
    r"segmentation|detection|mask2?former|\bsam\b|raft_"
)
NEAREST = 5  # networks of torchvision that a file without a name is held against

# Without further outputs in training; their own initialisation takes a minute.
ARGUMENTS = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}


def check_name(name):
    """Raise InputError where there is no such network."""
    _factory(name)


def in_file(name):
    """Whether a name is that of a network in a user's own file."""
    return ".py:" in name


def code_of(name):
    """A digest of the code in a user's own file, without comments and without what it imports; None
    of other networks."""
    if not in_file(name):
        return None
    tree = ast.parse(Path(name.rpartition(":")[0]).read_bytes())
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def same_network(name, other):
    """Whether two names mean the same network; a file may have moved."""
    return name == other or in_file(name) and in_file(other) and file_name(name) == file_name(other)


def file_name(name):
    """What a network is called in the names of files: timm.NAME, FILE.NAME."""
    if in_file(name):
        path, _, attribute = name.rpartition(":")
        return f"{Path(path).stem}.{attribute}"
    return name.replace(":", ".")


def build_network(
    name: str,
    num_classes: int | None,
    width: float = 1.0,
    widths: dict | None = None,
    whole=(),
    example=None,
) -> torch.nn.Module:
    """A network with fresh weights, in channels-last memory; `origin` says how it was built.

    num_classes: None calls what stands in a user's own file without it. width: multiplies the
    widths of one of the four. widths: those of a pruned one, as
    `widths_of` gives them. whole, example: see `pruner.rebuild`. A pruned one of the four
    is initialised in its small layers; others initialise themselves whole, and are cut. Raises
    InputError where the name is wrong, and ValueError where the widths are.
    """
    if name in NETWORKS:
        if widths is None:
            return build_model(name, num_classes, width)
        with torch.random.fork_rng(devices=[]):
            small = pruner.rebuild(build_model(name, num_classes, width), widths)
        for module in small.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        return small.to(memory_format=torch.channels_last)
    network = _as_given(name, num_classes)
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise InputError(
            f"--model={name} has weights on the meta device, which have no values; "
            "build it on the CPU"
        )
    if any(map(torch.nn.parameter.is_lazy, network.parameters())):
        raise InputError(f"--model={name}: {LAZY}")
    network = _in_memory(network.float().cpu())
    network.origin = Origin(name, num_classes)
    return network if widths is None else pruner.rebuild(network, widths, whole, example)


def _as_given(name, num_classes):
    """What a network's factory returns, a module. Raises InputError."""
    factory = _factory(name)
    try:
        with settings_kept():
            network = factory() if num_classes is None else factory(num_classes=num_classes)
    except (Exception, SystemExit) as error:  # a user's own code, or a library's
        wanted = "" if num_classes is None else f" for {num_classes} classes"
        raise InputError(
            f"--model={name} cannot be built{wanted}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise InputError(
            f"--model={name} returns {type(network).__name__}, not a network (torch.nn.Module)"
        )
    if taken := next((name for name in ("origin", "_remains") if hasattr(network, name)), None):
        raise InputError(
            f"--model={name} has a layer or attribute called {taken}, where the suite "
            "keeps its own notes; another name lets it be used"
        )
    return network


@contextmanager
def settings_kept():
    """What a user's code changes is put back: the type and device of new tensors, whether gradients
    are computed, the folder that it runs in, and the suite's modules."""
    kind, device, grad, place = (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        os.getcwd(),
    )
    try:
        with own.suite_kept():
            yield
    finally:
        os.chdir(place)
        torch.set_default_dtype(kind)
        torch.set_grad_enabled(grad)
        if torch.get_default_device() != device:
            torch.set_default_device(device)


def _in_memory(network):
    """A network in channels-last memory; one that calls `view`, as tutorials flatten activations,
    which not every memory allows, in the other one, of which its images become part, too."""
    views = any(
        "view" in code.co_names
        for module in network.modules()
        if not type(module).__module__.startswith(("torch.", "torchvision.", "timm."))
        and (code := getattr(type(module).forward, "__code__", None))
    )
    if not views:
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.dim() == 4:  # network.to() raises where others are those of volumes
                tensor.data = tensor.data.to(memory_format=torch.channels_last)
        return network
    network.__class__ = _contiguous(type(network))
    return network


@lru_cache
def _contiguous(kind):
    @wraps(kind.forward)
    def forward(self, *args, **kwargs):
        args = [_in_order(value) for value in args]
        kwargs = {name: _in_order(value) for name, value in kwargs.items()}
        return kind.forward(self, *args, **kwargs)

    return made_class(_contiguous, kind, (), {"forward": forward})


def _in_order(value):
    return value.contiguous() if hasattr(value, "contiguous") else value


def look_at(network, image_size, pruning_type=None):
    """Which filters of a network can't be pruned, and why, as lines. Raises InputError where
    nothing can be pruned, the method cannot judge its filters, or it does not take images of
    image_size x image_size pixels."""
    name = network.origin.name
    if name in NETWORKS:
        return []
    try:
        require_logits(network, image_size)
        misfit, unjudged = _misfit(network, image_size), []
        if not misfit:  # else trying it out would be for nothing
            pruner.explore(network, image_size)
            unjudged = check_suits(network, pruning_type) if pruning_type else []
    except ValueError as error:
        raise InputError(f"--model={name}: {error}") from error
    except (Exception, SystemExit) as error:  # of the user's own code
        raise InputError(
            f"--model={name} fails on noise: {type(error).__name__}: "
            f"{first_line(error)}; the suite trains in float32, so leave out casts to "
            "other types"
        ) from error
    structure = remains_of(network).structure
    if structure.outputs != network.origin.num_classes:
        raise InputError(
            f"--model={name} gives {structure.outputs} logits for "
            f"{network.origin.num_classes} classes"
        )
    if structure.image_shape[0] != 3:
        raise InputError(
            f"--model={name} takes images with {structure.image_shape[0]} channels; "
            "this suite's have 3"
        )
    if misfit:
        raise InputError(f"--model={name}: {misfit}")
    lines = fixed_text(structure)
    more = [f"and so do filters of {len(lines) - MOST} more layers"] if len(lines) > MOST else []
    about = [*_type_lines(network.origin), *try_out(network, image_size), *unjudged]
    return [*about, *lines[:MOST], *more]


def _misfit(network, image_size):
    """Why a network does not take images of image_size x image_size pixels, and what it takes; ""
    where it does."""
    structure = remains_of(network).structure
    try:
        structure.positions(image_size)
    except ValueError as error:
        return f"{error}; --image_size={structure.image_shape[1]} fits it"
    return ""


def require_logits(network, image_size=None):
    """Raises ValueError where a network gives something else than logits for images, which the
    commands cannot do with."""
    try:
        remains_of(network, image_size).structure.require_logits()
    except NoLogits as error:
        raise ValueError(
            f"{error}; from Python, networks of any inputs and outputs are pruned (lab/README.md, "
            "Any inputs, outputs and loss)"
        ) from error


def _type_lines(origin):
    """A line where a user's network has weights of another type than the suite trains."""
    if not in_file(origin.name):
        return []
    with forked_random_state():
        given = _as_given(origin.name, origin.num_classes)
    kinds = {
        str(tensor.dtype).removeprefix("torch.")
        for tensor in given.parameters()
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    }
    return (
        [
            f"Note: its {' and '.join(sorted(kinds))} weights became float32, which the suite "
            "trains in; --amp computes in a smaller type"
        ]
        if kinds
        else []
    )


@dataclass(frozen=True)
class Pretrained:
    """The weights that a library has for a network of its own.

    owner: the library. url: where they are. file: what they are called here. cached: where they
    are on this machine already, or None. flags: name -> value, of those that say which images the
    weights are for.
    """

    owner: str
    url: str
    file: str
    flags: dict
    cached: str | None = None


def default_weights(name):
    """The Pretrained of one of torchvision's or timm's networks. Raises InputError."""
    if name.startswith("timm:"):
        return _weights_of_timm(name.removeprefix("timm:"))
    if name in NETWORKS or in_file(name) or name not in zoo.list_models(module=zoo):
        raise InputError(
            f"--init=DEFAULT takes torchvision's and timm's own weights, and --model={name} is "
            "none of their networks; name a file of weights, --init=FILE"
        )
    weights = zoo.get_model_weights(name).DEFAULT
    prepare = weights.transforms()
    normalize = "half"  # with weights, torchvision lets those of ARGUMENTS normalise anew
    if name not in ARGUMENTS:
        normalize = _normalization_name(prepare.mean, prepare.std)
    file = weights.url.rpartition("/")[2]
    flags = {"normalize": normalize, "interpolation": prepare.interpolation.value}
    return Pretrained("torchvision", weights.url, file, flags)


def _weights_of_timm(name):
    known = None
    with suppress(RuntimeError):  # where nothing is known of it
        known = timm.get_pretrained_cfg(name)
    if not known or not (known.hf_hub_id or known.url) or known.custom_load:
        raise InputError(
            f"--init=DEFAULT: timm has no weights of its own for --model=timm:{name} that are a "
            "state dict; name a file of weights, --init=FILE"
        )
    flags = {
        "normalize": _normalization_name(known.mean, known.std),
        "interpolation": known.interpolation,
        "image_size": known.input_size[-1],
    }
    if not known.hf_hub_id:
        return Pretrained("timm", known.url, known.url.rpartition("/")[2], flags)
    place = known.hf_hub_id, known.hf_hub_filename or "model.safetensors"
    cached = hub.try_to_load_from_cache(*place)
    parts = known.architecture, known.tag, Path(place[1]).suffix[1:]
    return Pretrained(
        "timm",
        hub.hf_hub_url(*place),
        ".".join(filter(None, parts)),
        flags,
        cached if isinstance(cached, str) else None,
    )


def _normalization_name(means, deviations):
    """As --normalize has it: a name where there is one."""
    values = (*means, *deviations)
    return next((key for key, known in NORMALIZATIONS.items() if known == values), values)


def shapes_of(name, num_classes):
    """{name: shape} of all tensors of a network that is built for so many classes, which leaves the
    random generators as they are. Raises InputError where it cannot be built."""
    return _shapes_of(name, num_classes, Path(name).resolve() if in_file(name) else None)


@lru_cache
def _shapes_of(name, num_classes, _place):
    with forked_random_state():
        if not in_file(name):
            with suppress(Exception), torch.device("meta"):  # no weights are made, but not all can
                return _shapes(name, num_classes)
        return _shapes(name, num_classes)


def _shapes(name, num_classes):
    build = build_model if name in NETWORKS else _as_given
    network = build(name, num_classes)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def classifier_of(name):
    """The layers that follow num_classes, a set of dotted names: those of which a tensor has
    another shape where the network is built for another number of classes. Raises InputError where
    it cannot be built for 2 and for 3."""
    two, three = shapes_of(name, 2), shapes_of(name, 3)
    return {key.rpartition(".")[0] for key in two if two[key] != three.get(key)}


def classes_in(state, name):
    """How many classes a network has, by the tensors of it that follow them. Raises InputError
    where it cannot be built, ValueError where none of these is there."""
    two, three = shapes_of(name, 2), shapes_of(name, 3)
    followers = [key for key in two if two[key] != three.get(key)]
    if not followers:
        raise ValueError("no layer of it follows num_classes")
    for key in followers:
        for place, (small, large) in enumerate(zip(two[key], three.get(key, ()))):
            shape = getattr(state.get(key), "shape", ())
            if small != large and place < len(shape):
                return 2 + (shape[place] - small) // (large - small)
    raise ValueError(f"it has no {followers[0]}, which says how many classes there are")


def named_like(state):
    """The network of torchvision whose names and shapes a state dict has, but for the classifier;
    None where there is none."""
    known = {}
    for name in zoo.list_models(module=zoo):
        with suppress(AttributeError, KeyError):
            known[name] = zoo.get_model_weights(name).DEFAULT.meta["num_params"]
    tensors = [
        tensor
        for key, tensor in state.items()
        if isinstance(tensor, torch.Tensor)
        and not key.rpartition(".")[2].startswith(("running_", "num_batches"))
    ]
    count = sum(tensor.numel() for tensor in tensors)
    for tensor in [tensor for tensor in tensors if tensor.ndim > 1 and tensor.numel()][-1:]:
        count += (1000 - len(tensor)) * (1 + tensor[0].numel())  # as if it were for ImageNet
    distances = {name: abs(numbers - count) for name, numbers in known.items()}
    near = sorted(distances, key=distances.get)[:NEAREST]
    with_more = [name for name in ARGUMENTS if name not in near]  # outputs, in their own files
    return next((name for name in [*near, *with_more] if _is_like(state, name)), None)


def _is_like(state, name):
    shapes, classifier = shapes_of(name, 1000), classifier_of(name)
    try:
        part, _ = unwrapped(state, shapes.keys())
    except ValueError:
        return False
    return all(
        key in part and (tuple(part[key].shape) == shape or key.rpartition(".")[0] in classifier)
        for key, shape in shapes.items()
        if not key.endswith("num_batches_tracked")
    )


def unpruned_twin(network):
    """The unpruned network that `network` was pruned from, with fresh weights."""
    origin = network.origin
    twin = build_network(origin.name, origin.num_classes, origin.width)
    share_structure(twin, network)
    return twin


def fresh_like(network: torch.nn.Module, num_classes: int) -> torch.nn.Module:
    """A network with fresh weights for `num_classes` classes, as small as `network`, in which the
    same stays whole."""
    origin, structure = network.origin, remains_of(network).structure
    return build_network(
        origin.name,
        num_classes,
        origin.width,
        widths_of(network),
        structure.fixed_operations,
        example_of(structure),
    )


def _factory(name):
    """What builds a network that is none of the four. Raises InputError."""
    if name in NETWORKS:
        return NETWORKS[name]
    if in_file(name):
        return _in_file(*name.rsplit(":", 1))
    if name.endswith(".py"):
        raise InputError(f"--model={name} names no network in that file: --model={name}:NAME")
    if name.startswith("timm:"):
        need(f"--model={name}", "timm")
        wanted = name.removeprefix("timm:")
        if not timm.is_model(wanted.split(".")[0]):
            raise _unknown(name, [f"timm:{known}" for known in timm.list_models()])
        return partial(timm.create_model, wanted, pretrained=False)
    known = zoo.list_models(module=zoo)
    if name not in known:
        raise _unknown(name, [*MODELS, *known])
    return partial(zoo.get_model, name, weights=None, **ARGUMENTS.get(name, {}))


def _unknown(name, names):
    bare = TORCHVISION.sub("", name)
    if bare != name and bare in zoo.list_models(module=zoo):
        return InputError(
            f"--model={name}: networks of torchvision have their names there, --model={bare}"
        )
    if (whole := bare.removeprefix("quantized_")) != bare:
        return InputError(
            f"--model={name} is quantised, so it can be neither trained nor "
            f"pruned; --model={whole} is the same network in floating point"
        )
    if bare in zoo.list_models() or NO_CLASSIFIER.search(bare.lower()):
        inside = max(
            (known for known in zoo.list_models(module=zoo) if known in bare), key=len, default=None
        )
        backbone = f"; its backbone is --model={inside}" if inside else ""
        return InputError(
            f"--model={name} is no classifier, and the commands prune classifiers only{backbone}. "
            "From Python, pruner.prune takes any network (lab/README.md, Any inputs, outputs and "
            "loss)"
        )
    near = difflib.get_close_matches(name, names, 3, 0.5)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else (f"there are {', '.join(MODELS)}, torchvision's networks, timm:NAME and FILE.py:NAME")
    )
    return InputError(f"--model={name}: there is no such network; {hint}")


def _in_file(path, attribute):
    try:
        resolved = Path(path).resolve(strict=True)
    except (OSError, RuntimeError):  # such as a link to itself
        raise InputError(f"--model: there is no file {path}") from None
    module = _load(resolved, path)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [known for known, value in vars(module).items() if callable(value)]
        near = difflib.get_close_matches(attribute, names, 3, 0.4)
        what = "is no function or class" if hasattr(module, attribute) else "is not in it"
        raise InputError(
            f"--model={path}:{attribute}: {attribute or 'its name'} {what}"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    return factory


@lru_cache
def _load(resolved, path):
    """The module in a user's file, which may import others beside it. Raises InputError."""
    if not resolved.is_file():
        raise InputError(f"--model: there is no file {path}")
    try:
        with settings_kept():
            return own.load_file(resolved)
    except (Exception, SystemExit) as error:  # a user's own code
        raise InputError(
            f"--model: {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
