"""The suite as an installed package, `orthoreg`, in which each module has that name before its own,
so that a project may have its own models.py beside it.

    pip install .                              # then: from orthoreg.models import build_model
"""

import ast
from pathlib import Path

from setuptools.command.build_py import build_py

PACKAGE = "orthoreg"
INIT = f"""\"\"\"Filter pruning, with the orthonormality penalty of OrthoReg.\"\"\"
from {PACKAGE}.common.version import VERSION as __version__  # noqa: F401
"""


MAIN = f"""\"\"\"python -m {PACKAGE}: what main.py does.\"\"\"
from {PACKAGE}.common.command import exit_with
from {PACKAGE}.main import main

exit_with(main())
"""


class BuildPy(build_py):
    """Copies the modules, as setuptools does, and renames their imports."""

    def run(self):
        super().run()
        into = Path(self.build_lib) / PACKAGE
        names = suite_names(into)
        for file in into.rglob("*.py"):
            file.write_text(renamed(file.read_text(), names))
        (into / "__init__.py").write_text(INIT)
        (into / "__main__.py").write_text(MAIN)


def suite_names(folder):
    """The top-level names in a folder of modules and packages."""
    return {
        path.stem
        for path in folder.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    } - {"__init__"}


def renamed(source, names):
    """A module's source in which absolute imports of `names`, also those by lazy("NAME"), have the
    package before them."""
    lines, edits = source.splitlines(keepends=True), []
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    text = source.encode()

    def position(line, column):
        return starts[line - 1] + column

    def is_own(name):
        return name.partition(".")[0] in names

    for node in ast.walk(ast.parse(source)):
        begin = position(node.lineno, node.col_offset) if hasattr(node, "lineno") else None
        if isinstance(node, ast.ImportFrom) and not node.level and is_own(node.module):
            begin += len("from ")
            edits.append((begin, begin + len(node.module), f"{PACKAGE}.{node.module}"))
        elif isinstance(node, ast.Import) and any(is_own(alias.name) for alias in node.names):
            end = position(node.end_lineno, node.end_col_offset)
            edits.append((begin, end, "; ".join(_import_of(alias, is_own) for alias in node.names)))
        elif isinstance(node, ast.Assign) and _calls_lazy(node):
            edits += [
                (
                    position(part.lineno, part.col_offset),
                    position(part.end_lineno, part.end_col_offset),
                    f'"{PACKAGE}.{part.value}"',
                )
                for part in ast.walk(node)
                if isinstance(part, ast.Constant) and is_own(part.value)
            ]
    for begin, end, new in sorted(edits, reverse=True):
        text = text[:begin] + new.encode() + text[end:]
    return text.decode()


def _import_of(alias, is_own):
    """One `import NAME as OTHER`, of a module of the suite by way of the package."""
    called = f" as {alias.asname}" if alias.asname else ""
    if not is_own(alias.name):
        return f"import {alias.name}{called}"
    owner, _, module = f"{PACKAGE}.{alias.name}".rpartition(".")
    if owner != PACKAGE and not called:
        raise ValueError(f"`import {alias.name}` binds {PACKAGE}; write `from ... import`")
    return f"from {owner} import {module}{called}"


def _calls_lazy(node):
    return any(isinstance(part, ast.Name) and part.id == "lazy" for part in ast.walk(node))
