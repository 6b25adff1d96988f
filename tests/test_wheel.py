"""The wheel is whole: it trains from an empty directory, with its own conf/."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = """
import sys
sys.path[:] = [path for path in sys.path if not path.startswith(sys.argv[2])]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
import bnexp.cli.compose
import bnexp.cli.main
status = bnexp.cli.main.run(["train", "dataset=digits", "steps=2"])
print(bnexp.__file__, bnexp.cli.overrides.conf_dir(), status, sep="\\n")
sys.exit(status)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("bnexp-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel_holds_every_file(installed: Path) -> None:
    sources = {path.relative_to(ROOT) for path in (ROOT / "bnexp").rglob("*.py")}
    configurations = {Path("bnexp") / path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")}
    assert sources | configurations <= {path.relative_to(installed) for path in installed.rglob("*")}


def test_a_clone_holds_every_package(tmp_path: Path) -> None:
    """None of them is among what git ignores, as an unanchored data/ would be."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(tmp_path / "clone")], check=True)
    packages = {path.relative_to(ROOT) for top in ("bnexp", "tests") for path in (ROOT / top).rglob("__init__.py")}
    assert packages <= {path.relative_to(tmp_path / "clone") for path in (tmp_path / "clone").rglob("__init__.py")}
    ignored = ["git", "check-ignore", *map(str, packages)]
    assert subprocess.run(ignored, cwd=ROOT, capture_output=True, text=True, check=False).stdout == ""


def test_wheel_trains(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    checkout = [str(ROOT / "bnexp"), str(ROOT)]
    # The environment of the tests lies below the checkout, so only the folders of the editable install are dropped.
    code = CODE.replace("path.startswith(sys.argv[2])", f"path in {checkout}")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    package, conf, status = done.stdout.splitlines()[-3:]
    assert package == str(installed / "bnexp/__init__.py")
    assert conf == str(installed / "bnexp/conf")
    assert status == "0"
    assert len(list(tmp_path.glob("results/runs/*/*/summary.json"))) == 1
