"""Planning a sweep composes once for each choice of files, whatever the number of its jobs and its data set."""

from pathlib import Path

import hydra
import pytest

from bnexp.cli import compose
from bnexp.cli.arguments import parse_arguments
from bnexp.cli.plan import compose_jobs


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
