"""The shape of the code: imports run down only, rooms stay small, a method is registered once."""

import ast
import importlib
import json
import re
import sys
from graphlib import TopologicalSorter

import pytest
from setuptools.config.pyprojecttoml import read_configuration

import eval as measure
import imp_estimator
import main
from conftest import ROOT
from imp_estimator import ESTIMATORS
from lab import drawing
from lab.experiment import make_parser, parse
from lab.steps import step
from lab.wheel import INIT, renamed, suite_names

FLOORS = [
    ("common",),
    ("channels",),
    ("config", "models"),
    ("data", "imp_estimator", "pruner", "train"),
    ("lab",),
    ("main", "eval"),
]  # each imports from its own floor and those before it
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
PACKAGES = [path.parent.name for path in ROOT.glob("*/__init__.py")]
FILES = sorted(
    [path for path in ROOT.glob("*.py") if path.stem in FLOOR]  # not a user's own scripts
    + [path for name in PACKAGES for path in ROOT.glob(f"{name}/*.py")]
)


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in FILES}


def imported(path):
    """The suite's modules that a file imports, at its top, in functions and through lazy()."""
    mentioned = set()
    tree = ast.parse(path.read_text())
    lazies = "lazy" in path.read_text()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            mentioned |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            mentioned |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif (
            lazies
            and isinstance(node, ast.Call)
            and any(isinstance(part, ast.Name) and part.id == "lazy" for part in ast.walk(node))
        ):
            mentioned |= {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
    return {name for name in mentioned if name in NAMES and name not in PACKAGES}


def test_imports_run_down_only_and_never_in_a_circle():
    graph = {name_of(path): imported(path) for path in FILES}
    assert {"torch"} not in graph.values() and "lab.job" in graph["main"]  # lazy() is seen
    for name, others in graph.items():
        for other in others:
            assert FLOOR[other.split(".")[0]] <= FLOOR[name.split(".")[0]], (
                f"{name} imports {other}"
            )
            assert other not in ("main", "eval"), f"{name} imports {other}"
    TopologicalSorter(graph).prepare()  # raises where they run in a circle


def test_common_knows_no_pruning():
    words = re.compile(r"prun|importance|estimator|retrain|orthonormal|\bfilters\b", re.I)
    for path in ROOT.glob("common/*.py"):
        wrong = [
            f"{path.name}:{number}: {line.strip()}"
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if words.search(line)
        ]
        assert not wrong, wrong


def test_installed_all_is_in_one_package_that_works(folder, tmp_path, monkeypatch):
    """As `pip install .` makes it; a project's own models.py is then nothing to it."""
    names = suite_names(ROOT) & set(FLOOR)
    for path in FILES:
        file = tmp_path / "orthoreg" / path.relative_to(ROOT)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(renamed(path.read_text(), names))
        assert not imported(file), path
    (tmp_path / "orthoreg/__init__.py").write_text(INIT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    ours = {
        name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in FLOOR
    }
    try:
        command = importlib.import_module("orthoreg.main")
        assert (
            command.main(
                [
                    f"--data_path={folder}",
                    "--image_size=8",
                    "--width=0.125",
                    "--ebt=True",
                    "--preset=quick",
                    "--pruning_type=bn",
                    "--prune_percent=50",
                ]
            )
            == 0
        )
        loaded = set(sys.modules)
    finally:
        sys.modules.update(ours)
        for name in {name for name in sys.modules if name.split(".")[0] == "orthoreg"}:
            del sys.modules[name]
    assert "orthoreg.lab.checkpoint" in loaded and not {
        name.split(".")[0] for name in loaded
    } & set(FLOOR)
    wanted = re.search("^dependencies = (.*)", (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    assert all(
        f'"{requirement}"' in (ROOT / "requirements.sh").read_text()
        for requirement in ast.literal_eval(wanted)
    )


def test_what_is_installed_is_what_is_there():
    """By setuptools' own reading of pyproject.toml, which refuses what it does not know."""
    about = read_configuration(ROOT / "pyproject.toml", expand=False)["tool"]["setuptools"]
    packages = {"orthoreg": "."} | {f"orthoreg.{name}": name for name in PACKAGES}
    assert about["package-dir"] == packages and set(about["packages"]) == set(packages)
    assert about["cmdclass"] == {"build_py": "lab.wheel.BuildPy"}


def test_functions_are_short_and_imports_stand_at_the_top():
    inside, functions = [], []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                functions.append((node.end_lineno - node.lineno + 1, path.name, node.name))
                inside += [
                    f"{path.name}:{statement.lineno}"
                    for statement in ast.walk(node)
                    if isinstance(statement, (ast.Import, ast.ImportFrom))
                ]
    assert max(functions) <= (70,), max(functions)
    assert len(inside) < 10, inside


def test_no_method_is_asked_for_by_name():
    # A folder, the package, a kind of group, a seed, the states of generators; the group of a flag:
    other_meanings = {
        ("cache.py", "orthoreg"),
        ("wheel.py", "orthoreg"),
        *((file, "random") for file in ("groups.py", "cutting.py", "resume.py")),
        *((file, "group") for file in ("flags.py", "experiment.py", "sweep.py")),
    }
    names = {
        (path.name, node.value)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in ESTIMATORS
    }
    assert {file for file, _ in names - other_meanings} == {"imp_estimator.py", "config.py"}


def test_a_method_is_registered_in_one_place(monkeypatch, capsys):
    """Flags, help, file names and plots know a twelfth one; the others look as before."""
    before = {name: drawing.method_style(name) for name in ESTIMATORS}
    monkeypatch.setattr(imp_estimator, "ESTIMATORS", ESTIMATORS)
    try:
        imp_estimator.estimator(
            "largest", source="me", help="largest weight", penalty=True, needs="balanced images"
        )(lambda *_, **__: [])
        flags = parse(["--pruning_type=largest", "--prune_percent=50"])
        assert flags.penalised and flags.estimator.needs_images
        assert str(flags.pruned_file("", 50, False)).endswith("vgg_largest_50_0.pth")
        assert list(ESTIMATORS)[-1] == "largest"
        assert drawing.method_style("largest")["marker"] == "x"
        assert {name: drawing.method_style(name) for name in before} == before
    finally:
        del ESTIMATORS["largest"]
    styles = [(style["color"], style["marker"]) for style in before.values()]
    assert len(set(styles)) == len(styles) == len({marker for _, marker in styles})


def test_a_step_is_declared_in_one_place(monkeypatch, capsys):
    """The plan shows it in its order, with what it says of itself, and knows the file it writes."""

    def shows_size(job, phase, number):
        return {"pixels": job.flags.image_size}

    @step(writes=True, records=True, shows=shows_size)
    def look_around(job, phase, number):
        raise AssertionError("a plan does nothing")

    def drive(job):
        main.unpruned(job)
        job.step(look_around, phase="retrain", number=1)

    monkeypatch.setitem(main.DRIVES, False, drive)
    flags = ["--data_path=digits", "--ebt=True", "--pruning_type=l1", "--prune_percent=50"]
    assert main.main([*flags, "--print_config=True"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [step["step"] for step in shown["steps"]] == [
        "train network",
        "save network",
        "look around",
    ]
    assert shown["steps"][-1] == {
        "step": "look around",
        "round": 1,
        "phase": "retrain",
        "pixels": 32,
    }
    assert shown["resume file"] == "pruned_nets/ebt/digits/vgg_l1_50_0.resume"


@pytest.mark.parametrize("parser", [make_parser, measure.make_parser])
def test_help_explains_each_flag_in_words_with_its_default(parser):
    for action in parser()._actions[2:]:  # --help, --version
        assert re.search(r"\(default: .+\)$", action.help), action.option_strings
        assert len(action.help) > 20, action.option_strings
