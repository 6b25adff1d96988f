"""What depends on where a module lies: the digest of the code, conf/, the checkout, the data folder."""

import shutil
import subprocess
from pathlib import Path

import pytest

import bnexp
from bnexp.cli.compose import configurations
from bnexp.cli.overrides import conf_dir
from bnexp.runs.directory import git_state
from bnexp.training import compiled

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("file", ["models/norms.py", "training/engine.py", "data/load.py", "claims/sources/udacity.py"])
def test_editing_a_module_changes_the_key_of_compiled_steps(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest is of the whole package, whichever folder a module lies in."""
    copy = tmp_path / "bnexp"
    shutil.copytree(Path(bnexp.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    digest = getattr(compiled.code_digest, "__wrapped__", compiled.code_digest)  # without what it remembers
    before = digest()
    monkeypatch.setattr(bnexp, "__file__", str(copy / "__init__.py"))
    assert digest() == before, "the copy is the same code"
    with (copy / file).open("a") as module:
        module.write("# changed\n")
    assert digest() != before


def test_conf_is_found_beside_the_package() -> None:
    assert conf_dir() == ROOT / "conf"
    assert (conf_dir() / "norm" / "batch.yaml").is_file()


def test_the_state_of_the_checkout_is_that_of_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert git_state.__wrapped__()["commit"] == head.stdout.strip()


def test_the_data_folder_is_seen_from_the_directory_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, root in ((None, "data"), ("/elsewhere", "/elsewhere"), (None, "data")):
        monkeypatch.delenv("BNEXP_DATA", raising=False)
        if place:
            monkeypatch.setenv("BNEXP_DATA", place)
        with configurations() as composer:
            assert composer.compose_run(["dataset=mnist", "seed=3"]).dataset.root == root
