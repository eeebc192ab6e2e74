"""The modules of a user's own file. In them a name means what stands beside that file, though the
suite has modules of that name, too.

    module = load_file(Path("net.py"))        # its `import models` is the models.py beside it
"""

import builtins
import importlib
import itertools
import sys
from contextlib import contextmanager
from importlib.machinery import (
    BuiltinImporter,
    FrozenImporter,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
)
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent  # of this suite
PACKAGES = {"channels", "common", "lab"}
_numbers = itertools.count(1)


class Project:
    """The folders of a user's file as a package with a name of its own, `own1` and so on, so that
    nothing in it is taken for a module of the suite, and the other way round.

    Python looks up `__import__` among the built-in names of the module that imports. Modules of a
    project have one that looks in the project first, whenever it is called: while they are loaded,
    while a network is built, and while it runs.
    """

    def __init__(self, file):
        self.file, self.root = file, file.parent
        while (self.root / "__init__.py").is_file() and self.root != self.root.parent:
            self.root = self.root.parent
        self.folders = list(dict.fromkeys((str(self.root), str(file.parent))))
        self.path = None  # sys.path as it was, while the file is loaded
        self.prefix = f"own{next(_numbers)}"
        package = ModuleType(self.prefix)
        package.__path__ = self.folders
        package.__spec__ = ModuleSpec(self.prefix, None, is_package=True)
        package.__spec__.submodule_search_locations = self.folders
        sys.modules[self.prefix] = package
        self.importlib = _Importlib(self)
        self.builtins = {**vars(builtins), "__import__": self.import_name}

    def load(self):
        """The module in the file. Raises whatever it does when it is loaded."""
        sys.meta_path.insert(0, self)
        self.path = list(sys.path)
        sys.path.extend(self.folders)  # for libraries that import by name
        try:
            return self._load()
        except BaseException:
            sys.meta_path.remove(self)
            raise
        finally:
            self._take_folders()
            sys.path[:], self.path = self.path, None

    def _take_folders(self):
        """Folders that the file adds to Python's path are its own; the suite does not see them."""
        if self.path is not None:
            added = [str(Path(folder).resolve()) for folder in sys.path if folder not in self.path]
            self.folders += [folder for folder in added if folder not in self.folders]

    def _load(self):
        inside = self.file.parent.relative_to(self.root).parts
        package = ".".join((self.prefix, *inside))
        importlib.import_module(package)
        name = f"{package}.{self.file.stem.replace('.', '_')}"
        if name not in sys.modules:  # else the package has imported it
            loader = _Loader(name, str(self.file), self)
            spec = ModuleSpec(name, loader, origin=str(self.file))
            spec.has_location = True
            module = sys.modules[name] = module_from_spec(spec)
            try:
                loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        return sys.modules[name]

    def has(self, name):
        """Whether an absolute name is that of a module of this project."""
        top = name.partition(".")[0]
        self._take_folders()
        if BuiltinImporter.find_spec(top) or FrozenImporter.find_spec(top):
            return False
        spec = PathFinder.find_spec(top, self.folders)
        if spec is None or _of_suite(spec):
            return False
        is_folder = spec.origin is None  # without an __init__.py, such as one of images
        if is_folder and not _holds_code(spec.submodule_search_locations):
            return False
        # As in Python, such a folder gives way to what is installed; so does the file itself, which
        # may be called like the library that it uses.
        return not (is_folder or spec.origin == str(self.file)) or not self._is_installed(top)

    def _is_installed(self, name):
        """Whether Python knows a module of this name, by a file elsewhere."""
        known = sys.modules.get(name)
        spec = known.__spec__ if known else PathFinder.find_spec(name, self.path or sys.path)
        return (
            bool(spec and spec.origin)
            and not _of_suite(spec)
            and (str(Path(spec.origin).resolve().parent) not in self.folders)
        )

    def import_name(self, name, globals=None, locals=None, fromlist=(), level=0):
        """What `__import__` does, in the modules of this project."""
        if level == 0 and name.partition(".")[0] == "importlib":
            module = builtins.__import__(name, globals, locals, fromlist, 0)
            return self.importlib if module is importlib else module
        if level or not self.has(name):
            return builtins.__import__(name, globals, locals, fromlist, level)
        own = f"{self.prefix}.{name}"
        importlib.import_module(own)
        if not fromlist:
            return sys.modules[f"{self.prefix}.{name.partition('.')[0]}"]
        return builtins.__import__(own, globals, locals, fromlist, 0)

    def find_spec(self, name, path=None, target=None):
        """See importlib.abc.MetaPathFinder; it answers for modules of this project."""
        if not name.startswith(f"{self.prefix}."):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.origin, self)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name, path, project):
        super().__init__(name, path)
        self.project = project

    def exec_module(self, module):
        module.__builtins__ = self.project.builtins
        super().exec_module(module)


class _Importlib(ModuleType):
    """importlib for the modules of a project: its import_module knows them, too."""

    def __init__(self, project):
        super().__init__("importlib")
        self.__project = project

    def __getattr__(self, attribute):
        return getattr(importlib, attribute)

    def import_module(self, name, package=None):
        project = self.__project
        if not name.startswith("."):
            return importlib.import_module(
                f"{project.prefix}.{name}" if project.has(name) else name
            )
        if package and project.has(package):
            package = f"{project.prefix}.{package}"
        return importlib.import_module(name, package)


@contextmanager
def suite_kept():
    """Inside, a user's code may put modules of its own under names of the suite's."""
    tops = {path.stem for path in ROOT.glob("*.py")} | PACKAGES
    if __name__ != "lab.own":  # installed: all names of the suite's have the package before them
        tops = {__name__.partition(".")[0]}

    def of_suite():
        return {
            name: module
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] in tops
        }

    before = of_suite()
    try:
        yield
    finally:
        for name, module in of_suite().items():
            file = getattr(module, "__file__", None)
            if name in before or file and Path(file).resolve().is_relative_to(ROOT):
                continue  # loaded meanwhile, as lazy modules are
            del sys.modules[name]
        sys.modules.update(before)


def load_file(file):
    """The module in a user's file, a Path. Raises whatever it does when it is loaded."""
    return Project(file.resolve()).load()


def _of_suite(spec):
    where = spec.origin or next(iter(spec.submodule_search_locations))
    return Path(where).resolve().parent in (ROOT, *(ROOT / name for name in PACKAGES))


def _holds_code(folders):
    return any(
        next(Path(folder).glob(pattern), None)
        for folder in folders
        for pattern in ("*.py", "*/*.py")
    )
