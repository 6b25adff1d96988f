"""Imports run one way, from the command line down; no module hands another's names on; functions are short."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bnexp

PACKAGE = Path(bnexp.__file__).parent
CONF = PACKAGE.parent / "conf"
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}
TRAINING = {f"bnexp.{name}" for name in ("train", "engine", "logs", "checkpoint", "runs", "optim", "data", "norms")}
LAYERS = (  # from the command line down; a module imports from its own layer or a lower one
    ("cli",),
    ("reproduce",),
    ("report", "report_page", "report_tables", "probe_report", "bench_report", "claims", "sweeps"),
    ("planned",),
    ("comparison", "bench", "bench_plan", "probe", "sweep_record"),
    ("train",),
    ("logs", "checkpoint", "recalibrate"),
    ("engine",),
    ("pretrained",),
    ("runs",),
    ("optim", "data", "archs", "batches", "init", "compiled"),
    ("compiler",),
    ("norms", "activations"),
    ("parallel", "lock", "cache", "torch_internals", "run_log"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LONGEST = 45


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it but for type checkers."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set[str]()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & set(FILES) or {str(node.module)}
    return found


def level(module: str) -> int | None:
    return LEVEL.get(module.split(".")[1]) if module.startswith("bnexp.") else None


IMPORTS = {name: imported(path) for name, path in FILES.items()}


def test_imports_run_down() -> None:
    pairs = [(module, name, level(module), level(name)) for module, found in IMPORTS.items() for name in found]
    assert not [(module, name) for module, name, own, its in pairs if own is not None and its is not None and its < own]


def test_no_cycles() -> None:
    order = list(TopologicalSorter({name: found & set(FILES) for name, found in IMPORTS.items()}).static_order())
    assert set(order) >= set(FILES)


@pytest.mark.parametrize("module", ["bnexp.compare.statistics", "bnexp.compare.figures"])
def test_statistics_and_figures_know_nothing_of_training(module: str) -> None:
    assert not {name for name in IMPORTS[module] - {"bnexp.runs.files"} if name.startswith(("bnexp", "torch"))}


def test_training_knows_nothing_of_reports_or_of_the_command_line() -> None:
    faces = {
        "bnexp.compare.report",
        "bnexp.compare.arms",
        "bnexp",
        "bnexp.cli.plan",
        "bnexp.compare.figures",
        "bnexp.compare.statistics",
    }
    assert not {name: IMPORTS[name] & faces for name in TRAINING if IMPORTS[name] & faces}


def test_hydra_is_known_to_the_command_line_alone() -> None:
    users = {name for name, found in IMPORTS.items() if any(part.split(".")[0] == "hydra" for part in found)}
    assert users == {f"bnexp.cli.{name}" for name in ("arguments", "compose", "errors", "help", "plan")}


def test_hydra_and_omegaconf_are_used_by_their_public_names() -> None:
    private = re.compile(r"hydra\._internal|omegaconf\._utils|hydra_plugins")
    assert not [name for name, path in FILES.items() if private.search(path.read_text())]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_packages_hand_nothing_on(path: Path) -> None:
    allowed = (ast.Expr,)  # a docstring
    assert all(isinstance(node, allowed) for node in ast.parse(path.read_text()).body)


def test_functions_are_short() -> None:
    functions = [
        (module, node)
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {(module, f.name): (f.end_lineno or 0) - f.lineno + 1 for module, f in functions}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_no_configuration_names_code() -> None:
    files = list(CONF.rglob("*.yaml"))
    assert files
    assert not [path for path in files if re.search(r"_target_|!!python", path.read_text())]
