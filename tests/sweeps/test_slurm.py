"""executor=slurm in its local form: the same bytes as one run after the other."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Bnexp

from bnexp.runs.config import ConfigError, DatasetConfig, RunConfig
from bnexp.sweeps.job import ExecutorConfig, Job
from bnexp.sweeps.slurm import Submitted

SWEEP = ("train", "-m", "dataset=digits", "norm=none,batch", "steps=40", "compile=false")
LOCAL = ("executor=slurm", "executor.cluster=local")
RUNS = ("norm=none", "norm=batch")


@pytest.mark.extra
def test_same_bytes_as_one_by_one(bnexp: Bnexp) -> None:
    pytest.importorskip("submitit")
    assert bnexp(*SWEEP, "executor=inline", "hydra.sweep.dir=inline").status == 0
    assert bnexp(*SWEEP, *LOCAL, "hydra.sweep.dir=other").status == 0
    for run in RUNS:
        for file in ("metrics.csv", "checkpoint.safetensors"):
            assert Path("other", run, file).read_bytes() == Path("inline", run, file).read_bytes()


def test_a_job_that_is_put_into_the_queue_again_trains_the_same_stack(tmp_path: Path) -> None:
    """What submitit asks for at the end of a job's time, and as it is preempted."""
    pytest.importorskip("submitit")
    config = RunConfig(DatasetConfig("digits", validation=200), steps=1, device="cpu")
    stack = [Job(seed, [], [], replace(config, seed=seed), tmp_path / str(seed)) for seed in (0, 1)]
    assert Submitted().checkpoint(stack).result() == {}
    assert all((job.directory / "summary.json").exists() for job in stack)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("executor.cluster=moon", "executor.cluster=moon is not allowed: one of slurm, local"),
        ("executor.timeout_min=0", "executor.timeout_min=0 is not allowed: a whole number from 1 to 1000000"),
        ("executor.partition='a b'", "executor.partition=a b is not allowed: null or the name of a partition"),
        ("executor.workers=2", "executor.workers is a key that the chosen executor doesn't have"),
        ("executor=moon", "executor=moon is unknown: choose from inline, processes, slurm"),
    ],
)
def test_what_is_refused(bnexp: Bnexp, word: str, line: str) -> None:
    pytest.importorskip("submitit")
    outcome = bnexp(*SWEEP, *(() if word == "executor=moon" else LOCAL), word)
    assert (outcome.status, outcome.err) == (2, f"bnexp: {line}\n")
    assert not Path("results").exists()


def test_a_parameter_that_submitit_does_not_know(bnexp: Bnexp) -> None:
    pytest.importorskip("submitit")
    outcome = bnexp(*SWEEP, *LOCAL, "+executor.parameters.colour=red")
    assert outcome.status == 2
    assert "executor.parameters={'colour': 'red'} is not allowed" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("hydra/launcher=joblib", "executor=processes"),
        ("hydra/launcher=submitit_slurm", "slurm"),
        ("hydra.launcher.workers=2", "executor.workers"),
        ("+hydra.launcher.submit_with.timeout_min=2", "executor=slurm"),
        ("hydra.launcher.max_stack=2", "executor.max_stack"),
        ("hydra.job.name=x", "hydra.run.dir"),
    ],
)
def test_the_words_of_before_are_refused_with_the_new_ones(bnexp: Bnexp, word: str, instead: str) -> None:
    outcome = bnexp(*SWEEP, word)
    assert outcome.status == 2
    [line] = outcome.err.splitlines()
    assert line.startswith(f"bnexp: {word} is not allowed: use ")
    assert instead in line


def test_slurm_without_submitit_names_its_extra(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnexp.sweeps.job.find_spec", lambda name: None)
    outcome = bnexp(*SWEEP, "executor=slurm")
    assert (outcome.status, outcome.err) == (2, "bnexp: executor=slurm needs submitit: pip install 'bnexp[slurm]'\n")


@pytest.mark.parametrize(("mode", "beside"), [(0o755, True), (0o777, False), (0o2775, False)])
def test_jobs_are_not_read_from_where_others_can_write(
    bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, beside: bool
) -> None:
    """They are pickles."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders: list[Path] = []

    def refuse(config: ExecutorConfig, folder: Path) -> None:
        folders.append(folder)
        raise ConfigError("no cluster today")

    monkeypatch.setattr("bnexp.sweeps.slurm.make_submitter", refuse)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)
    assert bnexp(*SWEEP, *LOCAL, "hydra.sweep.dir=shared/s").status == 2
    [folder] = folders
    assert (folder == Path("shared/s/.submitit")) is beside
    assert folder.is_relative_to(tmp_path / "cache" / "bnexp" / "jobs") is not beside
