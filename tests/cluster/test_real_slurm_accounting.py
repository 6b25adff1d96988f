"""executor=slurm on a Slurm with accounting, whose queue forgets within seconds what has ended."""

import pytest
from clusters import SWEEP, Slurm, Start, accounting_slurm, files_of, local, output_of, start, training  # noqa: F401
from test_real_slurm import kill_a_process

pytestmark = pytest.mark.cluster


def test_with_accounting(accounting_slurm: Slurm, start: Start) -> None:
    kill_a_process(start)
    cancelled = start(*SWEEP, "executor=slurm", "hydra.sweep.dir=t", "executor.runs_per_job=2")
    training(cancelled, "t")
    output_of("scancel", "--user=root")
    assert cancelled.end() == 1
    assert "4 of 4 runs were interrupted" in cancelled.text
    assert start("resume", "t").end() == 0
    assert files_of("t") == local(start, *SWEEP)
