"""The device that computes, in which precision, and what it and the libraries are."""

import ctypes
import os
import platform
import warnings
from contextlib import suppress
from inspect import signature

from common.errors import InputError
from common.libraries import lazy
from common.machine import cores
from common.processes import number_in, processes
from common.terminal import counted
from common.version import VERSION, commit_of_suite

numpy, torch, torchvision = lazy("numpy"), lazy("torch"), lazy("torchvision")

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(name="auto", deterministic=False):
    """The torch device for --device; "auto" is a GPU where there is one. Raises InputError.

    Sets what makes it fast. deterministic: on a GPU, only what gives the same bits again; a CPU
    always does.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    several = processes()[1] > 1
    if name == "auto":
        name = next(
            device
            for device, present in available.items()
            if present and not (several and device == "mps")
        )
    if not available[name]:
        raise InputError(f"--device={name}: there is none here; --device=cpu always works")
    if several and name == "mps":
        raise InputError("--device=mps serves one process; --device=cpu serves several")
    if name == "cpu":
        _keep_freed_memory()
        if "OMP_NUM_THREADS" not in os.environ and cores() < torch.get_num_threads():
            torch.set_num_threads(cores())  # PyTorch counts the host's, not the container's
    torch.backends.cudnn.benchmark = not deterministic
    if name == "cuda" and deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by cuBLAS
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads such memory
    if several and name == "cuda":
        return _own_gpu()
    return torch.device(name)


def _own_gpu():
    """The GPU of this process, one of several on this machine."""
    number, gpus = number_in("LOCAL_RANK"), torch.cuda.device_count()
    if max(number + 1, number_in("LOCAL_WORLD_SIZE", "1")) > gpus:
        raise InputError(
            "torchrun has started more processes than this machine has GPUs: "
            f"--nproc_per_node={gpus}, or --device=cpu"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _keep_freed_memory():
    """Make the C library keep what is freed for the next batch, which needs as much again. It would
    hand large blocks back to the system and get them anew, a page at a time: up to half of a
    training step's time."""
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # of glibc's malloc.h
    with suppress(AttributeError, OSError, TypeError):  # other systems have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        if not mallopt(mmap_threshold, 1 << 30):  # older ones take 32 MB at most
            mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def autocast(model, amp=False, compiled=False, unused=()):
    """images -> float32 logits of `model`, computed in `amp` ("bfloat16", "float16" or False)
    where autocast finds that safe, and by torch.compile if `compiled`. Of several processes all
    get the mean of their gradients; unused: names of parameters that have none. Calls of the result
    raise InputError where nothing compiles."""
    device = next(model.parameters()).device
    network = _distributed(model, device, unused) if processes()[1] > 1 else model
    if compiled:
        torch._dynamo.reset()  # it gives up on a network's code after a few sets of widths
        network = torch.compile(network)

    def forward(images):
        with torch.autocast(device.type, getattr(torch, amp or "bfloat16"), enabled=bool(amp)):
            try:
                logits = network(images)
            except Exception as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                line = str(error).partition("\n")[0]
                raise InputError(f"--compile=True does not work here: {line}") from error
        return logits.float() if amp else logits

    return forward


def _distributed(model, device, unused):
    for name in unused:  # or the others would wait for their gradients
        model.get_parameter(name).requires_grad_(False)
    # The running statistics are averaged once an epoch; the option has a new name since torch 2.15.
    known = signature(torch.nn.parallel.DistributedDataParallel).parameters
    # A 1x1 convolution's weights have two descriptions of one layout, of which DDP warns.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return torch.nn.parallel.DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, **{option: False}
    )


def environment(device):
    """Versions and hardware that a result depends on, as a dict of text and one number."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {counted(torch.get_num_threads(), 'thread')}"
    )
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "version": VERSION,
        "suite": commit_of_suite(),
        "platform": platform.platform(),
        "device": name,
        "processor": processor(),
        "processes": processes()[1],
    }


def processor(known="/proc/cpuinfo"):
    """The processor's model, as the system names it. known: where Linux says so."""
    with suppress(OSError), open(known) as lines:
        for line in lines:
            name, _, model = line.partition(":")
            if name.strip() == "model name" and model.strip():
                return model.strip()
    return platform.processor() or platform.machine()
