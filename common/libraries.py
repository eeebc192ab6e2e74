"""Heavy libraries, loaded when they are first used, and optional ones, which may be missing.

torch = lazy("torch")          # at the top of a file; loaded by the first torch.something
need("--export=x.onnx", "onnx", "onnxruntime")    # InputError says what to install
"""

import importlib
import sys
from types import ModuleType

from common.errors import InputError
from common.signals import uninterrupted

ONNX = "onnx", "onnxscript", "onnxruntime"  # write .onnx files, and run them


class lazy(ModuleType):
    """The module of this name, which is imported when one of its attributes is first read, so that
    --help and a wrong flag are answered before torch has been loaded.

    (importlib.util.LazyLoader leaves unloaded modules in sys.modules. torch looks through these
    while it is imported itself, which loads them halfway.)
    """

    def __getattr__(self, attribute):
        return getattr(_imported(self.__name__), attribute)


def load(*modules):
    """Load lazy modules now."""
    for module in modules:
        _imported(module.__name__)


def optional(name):
    """A module, imported now; None where it is missing."""
    try:
        return _imported(name)
    except ImportError:
        return None


def _imported(name):
    """A module. A signal waits until it is loaded: many libraries make an ImportError of it, or
    stay half loaded."""
    if name in sys.modules:
        return importlib.import_module(name)  # waits where another thread loads it
    with uninterrupted():
        return importlib.import_module(name)


def need(purpose, *packages):
    """Import optional packages. Raises InputError that says how to install what is missing.

    purpose: what needs them, as "--tensorboard".
    """
    missing = []
    for package in packages:
        if not optional(package):
            missing.append("scikit-learn" if package.startswith("sklearn") else package)
    if missing:
        raise InputError(
            f"{purpose} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )
