"""bnexp export: tables and LaTeX that other programs read."""

import csv
import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import Bnexp

SWEEP = ("train", "-m", "dataset=digits", "norm=none,batch", "optim.lr=0.1,0.5", "seed=0,1", "steps=20")
SWEEP += ("eval.first_every=10", "compile=false", "device=cpu", "hydra.sweep.dir=mine")
MADE: list[Path] = []  # the sweep that all tests read


@pytest.fixture
def sweep(bnexp: Bnexp) -> Path:
    if not MADE:
        assert bnexp(*SWEEP).status == 0
        MADE.append(Path("mine").resolve())
    return MADE[0]


def read(path: Path | str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_every_evaluation_and_every_run(bnexp: Bnexp, sweep: Path) -> None:
    outcome = bnexp("export", str(sweep), "--to", "csv", "out=tables")
    assert (outcome.status, outcome.out) == (0, "8 runs: tables/curves.csv, tables/runs.csv\n")
    curves, runs = read("tables/curves.csv"), read("tables/runs.csv")
    assert list(curves[0]) == ["directory", "seed", "norm", "optim.lr", "step", "seconds", "loss", "accuracy"]
    assert (len(curves), len(runs)) == (8 * 3, 8)
    for row in curves:
        recorded = read(f"{row['directory']}/metrics.csv")
        [recorded] = [r for r in recorded if (r["split"], r["step"]) == ("validation", row["step"])]
        assert float(row["accuracy"]) == float(recorded["accuracy"])
        assert float(row["loss"]) == float(recorded["loss"])
    for row in runs:
        summary = json.loads(Path(row["directory"], "summary.json").read_text())
        assert float(row["test_accuracy"]) == summary["test"]["accuracy"]
        assert row["status"] == summary["status"]
        assert row["directory"].endswith(f"norm={row['norm']},optim.lr={row['optim.lr']},seed={row['seed']}")


def test_parquet_has_the_same(bnexp: Bnexp, sweep: Path) -> None:
    for kind in ("csv", "parquet"):
        assert bnexp("export", str(sweep), f"--to={kind}", "out=tables").status == 0
    for name in ("curves", "runs"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(f"tables/{name}.parquet"),
            pd.read_csv(f"tables/{name}.csv", keep_default_na=False),
            check_dtype=False,
        )


def test_exported_twice_it_is_the_same(bnexp: Bnexp, sweep: Path) -> None:
    contents = []
    for _ in range(2):
        for kind in ("csv", "parquet", "latex"):
            assert bnexp("export", str(sweep), "--to", kind, "out=tables").status == 0
        contents.append({path.name: path.read_bytes() for path in Path("tables").iterdir()})
    assert contents[0] == contents[1]
    names = {"curves.csv", "runs.csv", "curves.parquet", "runs.parquet", "compare.tex", "compare.pdf", "times.pdf"}
    assert contents[0].keys() == names


def test_latex_has_the_tables_of_the_report(bnexp: Bnexp, sweep: Path) -> None:
    assert bnexp("export", str(sweep), "--to", "latex", "by=optim.lr", "out=tables").status == 0
    lines = Path("tables/compare-optim.lr.tex").read_text().splitlines()
    tables = [line for line in lines if not line.startswith("%")]
    assert tables.count(r"\begin{tabular}{lrrrrrrr}") == tables.count(r"\end{tabular}") == 2
    rows = [line for line in tables if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", row)) == 7 for row in rows)
    assert not [row for row in rows if re.search(r"(?<!\\)[%#_]", row)]
    assert [row.split(" & ")[0] for row in rows] == ["arm", "optim.lr=0.1", "optim.lr=0.5"] * 2
    assert r"steps to 90\%" in rows[0]
    assert Path("tables/compare-optim.lr.pdf").read_bytes().startswith(b"%PDF")


def test_a_damaged_run_is_left_out(bnexp: Bnexp) -> None:
    assert bnexp(*SWEEP).status == 0
    Path("mine/norm=none,optim.lr=0.1,seed=0/metrics.csv").write_text("step,split\n1,validation\n")
    outcome = bnexp("export", "mine", "--to", "csv")
    assert outcome.status == 0
    assert "mine/norm=none,optim.lr=0.1,seed=0 is left out" in outcome.err
    assert len(read("mine/runs.csv")) == 7


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("SWEEP",), "export needs a format: --to csv, parquet or latex"),
        (("SWEEP", "--to", "excel"), "--to=excel is unknown: choose from csv, parquet, latex"),
        (("SWEEP", "--to="), "--to= is unknown: choose from csv, parquet, latex"),
        (("--to", "csv"), "export needs a directory"),
        (("nowhere", "--to", "csv"), "nowhere is not a directory"),
        (("SWEEP", "--to", "latex", "by=steps"), "by=steps is not a key that differs between the runs"),
    ],
)
def test_bad_input_is_one_line(bnexp: Bnexp, sweep: Path, words: tuple[str, ...], complaint: str) -> None:
    before = sorted(Path().rglob("*"))
    outcome = bnexp("export", *(str(sweep) if word == "SWEEP" else word for word in words), "out=tables")
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1)
    assert complaint in outcome.err
    assert [path for path in sorted(Path().rglob("*")) if path not in before] in ([], [Path("tables")])


def test_parquet_without_its_package_says_how(bnexp: Bnexp, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    outcome = bnexp("export", str(sweep), "--to", "parquet", "out=tables")
    assert (outcome.status, "pip install 'bnexp[parquet]'" in outcome.err) == (2, True)
