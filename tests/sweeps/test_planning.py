"""Planning a sweep composes once for each choice of files, whatever the number of its jobs and its data set."""

from pathlib import Path

import hydra
import pytest
from conftest import Bnexp
from omegaconf import OmegaConf

from bnexp.cli import compose
from bnexp.cli.arguments import parse_arguments
from bnexp.cli.plan import compose_jobs
from bnexp.runs.record import find_runs


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
@pytest.mark.parametrize(
    ("swept", "jobs", "compositions"),
    [
        (["seed=range(200)"], 200, 1),
        (["norm=none,batch", "seed=range(50)", "optim.lr=0.1,0.2"], 200, 2),
        (["norm=none,batch,layer", "act=relu,tanh,gelu", "seed=range(9)"], 81, 8),  # the defaults, dataset and six
        (["norm=none,batch", "optim={lr: 0.1}", "seed=range(40)"], 80, 2),
    ],
)
def test_compositions_are_as_many_as_choices(
    dataset: str, swept: list[str], jobs: int, compositions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compose, "_shipped", {})
    real, calls = hydra.compose, list[str]()
    monkeypatch.setattr(hydra, "compose", lambda *args, **settings: calls.append("") or real(*args, **settings))
    _, found, *_ = compose_jobs(parse_arguments(["-m", f"dataset={dataset}", *swept]))
    assert len(found) == jobs
    assert len({job.digest for job in found}) == jobs
    assert len(calls) == compositions


def test_each_job_has_its_own_record_where_values_refer_to_one_another(bnexp: Bnexp) -> None:
    """Such jobs are composed one by one, and no composition is remembered."""
    words = ("train", "-m", "dataset=digits", "steps=1", "init.std=${optim.lr}", "optim.lr=0.1,0.2,0.3", "seed=0,1")
    assert bnexp(*words, "executor=inline", "hydra.verbose=true", "hydra.sweep.dir=s").status == 0
    runs = find_runs([Path("s")])
    assert len(runs) == 6
    for run in runs:
        hydra = OmegaConf.load(run.directory / ".hydra" / "hydra.yaml").hydra
        config = OmegaConf.load(run.directory / ".hydra" / "config.yaml")
        assert (config.optim.lr, config.seed) == (run.config["optim"]["lr"], run.config["seed"])
        assert config.init.std == run.config["init"]["std"] == config.optim.lr
        assert (hydra.sweep.dir, hydra.verbose, hydra.job.num) == ("s", True, run.record["job"])
        assert list(hydra.overrides.hydra) == ["hydra.verbose=True", "hydra.sweep.dir=s"]  # as a sweep normalizes them
