"""The structure: imports run one way, from the command line down, whoever makes them; functions are short."""

import ast
import re
import statistics
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
# from above; api and plugin are modules, what scripts and plugins import
LAYERS = (("api", "plugin"), ("cli",), ("claims",), ("sweeps", "compare"), ("training",), ("models", "data"), ("runs",))
RANK = {package: rank for rank, packages in enumerate(LAYERS) for package in packages}
DEEPEST = 6  # layers of modules in a package
LONGEST, MEDIAN = 45, 8  # lines of a function
EVENING = ("models/norms", "training/engine", "training/loop", "compare/statistics", "compare/arms")  # to read first
NAMED = re.compile(r"\bbnexp(?:\.\w+)+")


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it but for type checkers, or names in a string."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    } | {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
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
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {name for name in NAMED.findall(node.value) if name in FILES}
    return found


def package_of(module: str) -> str:
    """The package of a module, or of the entry `python -m bnexp`, which belongs to the command line."""
    return "cli" if module == "bnexp.__main__" else module.split(".")[1]


IMPORTS = {name: imported(path) & (set(FILES) | {"bnexp"}) for name, path in FILES.items()}


def test_every_module_has_a_rank() -> None:
    assert {package_of(name) for name in FILES} == set(RANK)


def test_imports_run_down() -> None:
    """To a package of a lower layer, or within one's own."""
    pairs = {(name, other) for name, found in IMPORTS.items() for other in found if other != "bnexp"}
    packages = {(name, other): (package_of(name), package_of(other)) for name, other in pairs}
    assert not [pair for pair, (own, its) in packages.items() if own != its and RANK[its] <= RANK[own]]


def test_no_cycles() -> None:
    order = TopologicalSorter({name: found & set(FILES) for name, found in IMPORTS.items()}).static_order()
    assert set(order) >= set(FILES)


@pytest.mark.parametrize("package", sorted(RANK))
def test_a_package_is_shallow(package: str) -> None:
    graph = {name: found for name, found in IMPORTS.items() if name.rpartition(".")[0] == f"bnexp.{package}"}
    depth: dict[str, int] = {}
    for name in TopologicalSorter({name: found & set(graph) for name, found in graph.items()}).static_order():
        depth[name] = 1 + max((depth[other] for other in graph[name] & set(graph)), default=0)
    assert not {name: deep for name, deep in depth.items() if deep > DEEPEST}


def test_statistics_and_figures_know_nothing_of_training() -> None:
    for module in ("bnexp.compare.statistics", "bnexp.compare.figures"):
        text = imported(FILES[module]) - {"bnexp.runs.files"}
        assert not {name for name in text if name.startswith(("bnexp", "torch"))}


def test_hydra_is_known_to_the_command_line_alone() -> None:
    users = {name for name, path in FILES.items() if any(m.split(".")[0] == "hydra" for m in imported(path))}
    assert {package_of(name) for name in users} == {"cli"}


def test_hydra_and_omegaconf_are_used_by_their_public_names() -> None:
    private = re.compile(r"hydra\._internal|omegaconf\._utils|hydra_plugins")
    assert not [name for name, path in FILES.items() if private.search(path.read_text())]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_a_package_holds_a_docstring_and_hands_nothing_on(path: Path) -> None:
    [node] = ast.parse(path.read_text()).body
    assert isinstance(node, ast.Expr)
    named = re.findall(r"`(\w+\.py)`", path.read_text())
    assert all((path.parent / name).exists() for name in named)
    assert named or path.parent == PACKAGE


def test_functions_are_short() -> None:
    nodes = {(name, node) for name, path in FILES.items() for node in ast.walk(ast.parse(path.read_text()))}
    functions = [(name, node) for name, node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {(name, f.name, f.lineno): (f.end_lineno or 0) - f.lineno + 1 for name, f in functions}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}
    assert statistics.median(lengths.values()) <= MEDIAN


def test_what_one_reads_first_fits_an_evening() -> None:
    assert sum((PACKAGE / f"{name}.py").read_text().count("\n") for name in EVENING) <= 1500


def test_no_configuration_names_code() -> None:
    files = list(CONF.rglob("*.yaml"))
    assert files
    assert not [path for path in files if re.search(r"_target_|!!python", path.read_text())]
