"""Hydra's other launchers, and stacks as jobs of a cluster: the same bytes as one run after the other."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import Bnexp
from hydra.core.config_store import ConfigStore
from stand_ins import fake_train

from bnexp.cluster import Recorded
from bnexp.config import ConfigError
from bnexp.workers import Progress

SWEEP = ("train", "-m", "dataset=digits", "norm=none,batch", "steps=40", "compile=false")
RUNS = ("norm=none", "norm=batch")
OTHERS = [
    pytest.param("hydra/launcher=joblib", "hydra_plugins.hydra_joblib_launcher", marks=pytest.mark.slow),
    pytest.param("hydra/launcher=submitit_local", "hydra_plugins.hydra_submitit_launcher", marks=pytest.mark.slow),
    pytest.param("hydra.launcher.submit=local", "submitit", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("word", "package"), OTHERS)
def test_same_bytes_as_one_by_one(bnexp: Bnexp, word: str, package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is absent")
    assert bnexp(*SWEEP, "hydra/launcher=basic", "hydra.sweep.dir=basic").status == 0
    assert bnexp(*SWEEP, word, "hydra.sweep.dir=other").status == 0
    for run in RUNS:
        for file in ("metrics.csv", "checkpoint.safetensors"):
            assert Path("other", run, file).read_bytes() == Path("basic", run, file).read_bytes()


def test_a_job_that_is_put_into_the_queue_again_trains_the_same_stack() -> None:
    """What submitit asks for at the end of a job's time, and as it is preempted."""
    pytest.importorskip("submitit")
    events, result = Recorded(fake_train).checkpoint(("a", 1)).result()
    assert result == ("a", 1)
    assert [type(event) for event in events] == [Progress]


def test_a_cluster_that_is_unknown(bnexp: Bnexp) -> None:
    outcome = bnexp(*SWEEP, "hydra.launcher.submit=moon")
    assert outcome.status == 2
    assert outcome.err == "bnexp: hydra.launcher.submit=moon is not allowed: null or one of slurm, local\n"
    assert not Path("results").exists()


def test_a_parameter_that_submitit_does_not_know(bnexp: Bnexp) -> None:
    outcome = bnexp(*SWEEP, "hydra.launcher.submit=local", "+hydra.launcher.submit_with.colour=red")
    assert outcome.status == 2
    assert "hydra.launcher.submit_with={'colour': 'red'} is not allowed" in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_launcher_that_is_not_installed_names_its_extra(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], "joblib.yaml", raising=False)
    outcome = bnexp(*SWEEP, "hydra/launcher=joblib")
    assert outcome.status == 2
    assert outcome.err == "bnexp: hydra/launcher=joblib is not installed: pip install 'bnexp[joblib]'\n"


@pytest.mark.parametrize(("mode", "beside"), [(0o755, True), (0o777, False), (0o2775, False)])
def test_jobs_are_not_read_from_where_others_can_write(
    bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, beside: bool
) -> None:
    """They are pickles."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders: list[Path] = []

    def refuse(cluster: str, folder: Path, parameters: object) -> None:
        folders.append(folder)
        raise ConfigError("no cluster today")

    monkeypatch.setattr("bnexp.launch.make_executor", refuse)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)
    assert bnexp(*SWEEP, "hydra.launcher.submit=local", "hydra.sweep.dir=shared/s").status == 2
    [folder] = folders
    assert (folder == Path("shared/s/.submitit")) is beside
    assert folder.is_relative_to(tmp_path / "cache" / "bnexp" / "jobs") is not beside
