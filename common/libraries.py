"""Heavy libraries, loaded when they are first used, and optional ones, which may be missing.

    torch = lazy("torch")          # at the top of a file; loaded by the first torch.something
    need("--export=x.onnx", "onnx", "onnxruntime")    # InputError says what to install
"""
import importlib
from types import ModuleType

from common.errors import InputError


class lazy(ModuleType):
    """The module of this name, which is imported when one of its attributes is first read, so that
    --help and a wrong flag are answered before torch has been loaded.

    (importlib.util.LazyLoader leaves unloaded modules in sys.modules. torch looks through these
    while it is imported itself, which loads them halfway.)
    """

    def __getattr__(self, attribute):
        return getattr(importlib.import_module(self.__name__), attribute)


def load(*modules):
    """Load lazy modules now."""
    for module in modules:
        importlib.import_module(module.__name__)


def need(purpose, *packages):
    """Import optional packages. Raises InputError that says how to install what is missing.

    purpose: what needs them, as "--tensorboard".
    """
    missing = []
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append("scikit-learn" if package.startswith("sklearn") else package)
    if missing:
        raise InputError(f"{purpose} needs {' and '.join(missing)}: pip install "
                         f"{' '.join(missing)}")
