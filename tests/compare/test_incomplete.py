"""A comparison of which runs are missing says so in every output, names them, and how to go on."""

import json
import random
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bnexp

from bnexp.cli.main import run
from bnexp.runs.record import RunRecord, find_runs

WORDS = ("dataset=digits", "steps=60", "optim.lr=0.1", "eval.first_every=20", "arch.hidden=[8]", "compile=false")
SEEDS = range(4)
TEXTS = ("compare.md", "report.html", "compare.svg", "times.svg")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two arms, four seeds each."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    assert run(["train", "-m", *WORDS, "norm=none,batch", "seed=range(4)", f"hydra.sweep.dir={folder}"]) == 0
    return folder


@pytest.fixture
def sweep(whole: Path, tmp_path: Path) -> Path:
    """A copy of its runs that a test may change, under a name that a shell would take for two; as it is typed."""
    shutil.copytree(
        whole, tmp_path / "my sweep", ignore=shutil.ignore_patterns("compare*", "times*", "report*", "bands")
    )
    return Path("my sweep")


def data(folder: Path, name: str = "compare.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def counts(folder: Path) -> dict[str, tuple[int, int]]:
    return {arm["arm"]: (arm["n"], arm["planned"]) for arm in data(folder)["arms"]}


def place(sweep: Path, norm: str, seed: int) -> Path:
    return sweep / f"norm={norm},seed={seed}"


def go_on(bnexp: Bnexp, folder: Path) -> None:
    """Type what the report says."""
    for command in data(folder)["go_on"]:
        name, *words = shlex.split(command)
        if name == "rm":
            shutil.rmtree(words[-1])
        else:
            assert name == "bnexp"
            assert bnexp(*words).status == 0


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_runs_of_other_data_are_told(bnexp: Bnexp, sweep: Path, norm: str) -> None:
    path = place(sweep, norm, 1) / "run.json"
    record = json.loads(path.read_text())
    record["dataset"]["sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    outcome = bnexp("report", str(sweep))
    assert outcome.status == 0
    for text in (outcome.out, *((sweep / name).read_text() for name in ("compare.md", "report.html"))):
        assert "2 checksums" in text
    assert all("checksums" in arm["notes"][-1] for arm in data(sweep)["arms"])


def test_one_of_eight_runs(bnexp: Bnexp, sweep: Path) -> None:
    for number, found in enumerate(find_runs([sweep])):
        if number != 5:
            shutil.rmtree(found.directory)
    outcome = bnexp("report", str(sweep))
    assert outcome.status == 0
    assert counts(sweep) == {"norm=none": (0, 4), "norm=batch": (1, 4)}
    found = data(sweep)
    assert (found["finished"], found["planned"]) == (1, 8)
    lost = {(run["arm"], run["seed"], run["status"]) for run in found["missing"]}
    expected = [*(("norm=none", seed) for seed in SEEDS), *(("norm=batch", seed) for seed in (0, 2, 3))]
    assert lost == {(*run, "not started") for run in expected}
    assert len(found["missing"]) == 7
    texts = {name: (sweep / name).read_text() for name in TEXTS} | {"screen": outcome.out}
    for name, text in texts.items():
        assert "1 of 8 planned runs" in text, name
        assert {"0 of 4", "1 of 4"} <= {*re.findall(r"\d of 4", text)}, name
    command = f"bnexp resume '{sweep}'"
    assert all(command in text.replace("&#x27;", "'") for name, text in texts.items() if not name.endswith("svg"))
    assert {path.name for path in (sweep / "bands").iterdir()} == {"norm=none (0 of 4)", "norm=batch (1 of 4)"}
    none, _ = found["arms"]
    for key in ("test_accuracy", "interquartile_mean", "difference", "p", "steps_per_second", "speed_ratio"):
        assert none[key] is None, key
    [row] = [line for line in texts["compare.md"].splitlines() if line.startswith("| norm=none | 0 of 4")]
    assert set(row.split(" | ")[2:]) <= {"–", "control", "– |"}


@pytest.mark.usefixtures("no_figures")
def test_what_is_told_finishes_it(bnexp: Bnexp, sweep: Path) -> None:
    assert bnexp("report", str(sweep)).status == 0
    first = data(sweep)
    shutil.rmtree(place(sweep, "batch", 1))
    place(sweep, "none", 0).joinpath("summary.json").unlink()
    assert bnexp("report", str(sweep)).status == 0
    assert counts(sweep) == {"norm=none": (3, 4), "norm=batch": (3, 4)}
    go_on(bnexp, sweep)
    outcome = bnexp("report", str(sweep))
    assert (outcome.status, outcome.err) == (0, "")
    assert counts(sweep) == {"norm=none": (4, 4), "norm=batch": (4, 4)}
    assert (data(sweep)["missing"], data(sweep)["go_on"]) == ([], [])
    for text in (outcome.out, *((sweep / name).read_text() for name in ("compare.md", "report.html"))):
        assert "INCOMPLETE" not in text
        assert not re.search(r"of \d (?:planned|pairs)|norm=\w+ \(", text), "a complete one has no word of it"
    for arm, complete in zip(data(sweep)["arms"], first["arms"], strict=True):
        assert arm["test_accuracy"] == complete["test_accuracy"]


def unfinished(run: Path) -> None:
    (run / "summary.json").unlink()


def interrupted(run: Path) -> None:
    (run / "summary.json").write_text('{"status": "interrupted", "steps": 20}')


def failed(run: Path) -> None:
    (run / "summary.json").write_text(json.dumps({"status": "failed", "error": "<script>a|b</script>\n\x1b[2J"}))


def damaged(run: Path) -> None:
    (run / "timing.csv").write_text("".join((run / "timing.csv").read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.usefixtures("no_figures")
def test_damaged_runs_are_removed_before_their_sweep_is_resumed(bnexp: Bnexp, sweep: Path) -> None:
    unfinished(place(sweep, "none", 0))
    for norm, seed in (("none", 1), ("batch", 2)):
        damaged(place(sweep, norm, seed))
    assert bnexp("report", str(sweep)).status == 0
    assert [command.split()[0] for command in data(sweep)["go_on"]] == ["rm", "rm", "bnexp"]
    go_on(bnexp, sweep)
    assert bnexp("report", str(sweep)).status == 0
    assert counts(sweep) == {"norm=none": (4, 4), "norm=batch": (4, 4)}


def unreadable(run: Path) -> None:
    (run / "run.json").write_text('{"schema": 1')


def not_started(run: Path) -> None:
    shutil.rmtree(run)


KINDS: tuple[Callable[[Path], None], ...] = (unfinished, interrupted, failed, damaged, unreadable, not_started)


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("spoil", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_each_way_to_be_missing(bnexp: Bnexp, sweep: Path, spoil: Callable[[Path], None]) -> None:
    spoil(place(sweep, "batch", 2))
    outcome = bnexp("report", str(sweep))
    assert outcome.status == 0
    assert counts(sweep) == {"norm=none": (4, 4), "norm=batch": (3, 4)}
    [lost] = data(sweep)["missing"]
    status = {"unreadable": "damaged"}.get(spoil.__name__, spoil.__name__.replace("_", " "))
    assert (lost["panel"], lost["arm"], lost["seed"], lost["status"]) == ("", "norm=batch", 2, status)
    assert lost["directory"] == (None if spoil is not_started else str(place(sweep, "batch", 2)))
    for text in (outcome.out, *((sweep / name).read_text() for name in ("compare.md", "report.html"))):
        assert "7 of 8 planned runs" in text
        assert f"seed 2 {status}" in text
        assert "3 of 4 pairs" in text or text is outcome.out  # a table on the screen may break the line there
        assert "\x1b" not in text
        assert "<script" not in text or text is outcome.out
    go_on(bnexp, sweep)
    assert bnexp("report", str(sweep)).status == 0
    assert data(sweep)["missing"] == []


@pytest.mark.usefixtures("no_figures")
def test_a_panel_without_a_finished_run_keeps_its_rows(bnexp: Bnexp, sweep: Path) -> None:
    """Arms are learning rates here, and panels norms."""
    record = json.loads((sweep / "sweep.json").read_text())
    for found in find_runs([sweep]):
        if found.config["norm"]["name"] == "batch":
            shutil.rmtree(found.directory)
    for entry in record["jobs"]:
        if entry["config"]["seed"] % 2:
            entry["config"]["optim"]["lr"] = 0.2  # planned so, and never started
    (sweep / "sweep.json").write_text(json.dumps(record))
    assert bnexp("report", str(sweep), "by=optim.lr").status == 0
    rows = {
        (arm["panel"], arm["arm"]): (arm["n"], arm["planned"]) for arm in data(sweep, "compare-optim.lr.json")["arms"]
    }
    assert rows == {
        ("norm=none", "optim.lr=0.1"): (4, 4),
        ("norm=none", "optim.lr=0.2"): (0, 2),
        ("norm=batch", "optim.lr=0.1"): (0, 2),
        ("norm=batch", "optim.lr=0.2"): (0, 2),
    }
    text = (sweep / "report-optim.lr.html").read_text()
    assert "<h2>norm=batch</h2>" in text
    assert text.count("<td>0 of 2</td>") == 3


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("together", [True, False])
def test_runs_of_no_sweep(bnexp: Bnexp, sweep: Path, together: bool) -> None:
    """Those that are there are the plan."""
    (sweep / "sweep.json").unlink()
    unfinished(place(sweep, "batch", 1))
    unreadable(place(sweep, "none", 3))
    words = [str(sweep)] if together else [str(path) for path in sorted(sweep.glob("norm=*"))]
    assert bnexp("report", *words, "out=made").status == 0
    assert counts(Path("made")) == {"norm=none": (3, 3), "norm=batch": (3, 4)}
    found = data(Path("made"))
    assert (found["finished"], found["planned"]) == (6, 8)
    assert [(run["arm"], run["status"]) for run in found["missing"]] == [
        ("norm=batch", "unfinished"),
        (None, "damaged"),
    ]
    assert found["missing"][1]["directory"] == str(place(sweep, "none", 3))
    assert str(place(sweep, "none", 3)) in Path("made/compare.md").read_text()
    go_on(bnexp, Path("made"))
    assert bnexp("report", *words, "out=made").status == 0
    assert counts(Path("made")) == {"norm=none": (3, 3), "norm=batch": (4, 4)}


@pytest.mark.usefixtures("no_figures")
def test_several_sweeps_join_their_plans(bnexp: Bnexp, sweep: Path, tmp_path: Path) -> None:
    """A run that one of them lacks and another has is not missing."""
    other = Path(shutil.copytree(sweep, tmp_path / "other"))
    for seed in SEEDS:
        shutil.rmtree(place(sweep, "none", seed))
    for folder in (sweep, other):
        shutil.rmtree(place(folder, "batch", 0))
    shutil.rmtree(place(other, "none", 3))
    assert bnexp("report", str(sweep), "other", "out=made").status == 0
    assert counts(Path("made")) == {"norm=none": (3, 4), "norm=batch": (3, 4)}
    missing = [(run["arm"], run["seed"]) for run in data(Path("made"))["missing"]]
    assert missing == [("norm=none", 3), ("norm=batch", 0)]
    go_on(bnexp, Path("made"))
    assert bnexp("report", str(sweep), "other", "out=made").status == 0
    assert data(Path("made"))["missing"] == []


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("content", ["{", "[]", '{"jobs": 3}', '{"jobs": [{"config": {}}]}', "\x00"])
def test_a_plan_that_cannot_be_read(bnexp: Bnexp, sweep: Path, content: str) -> None:
    (sweep / "sweep.json").write_text(content)
    shutil.rmtree(place(sweep, "none", 1))
    outcome = bnexp("report", str(sweep))
    assert outcome.status == 0
    assert data(sweep)["unreadable"] == [str(sweep / "sweep.json")]
    for text in (outcome.out, *((sweep / name).read_text() for name in ("compare.md", "report.html"))):
        assert "sweep.json cannot be read" in text


@pytest.mark.usefixtures("no_figures")
def test_nothing_finished(bnexp: Bnexp, sweep: Path) -> None:
    for found in find_runs([sweep]):
        unfinished(found.directory)
    outcome = bnexp("report", str(sweep))
    assert outcome.status == 2
    assert f"bnexp resume '{sweep}'" in outcome.err
    assert not (sweep / "compare.json").exists()


@pytest.mark.usefixtures("no_figures")
def test_what_did_not_fit_the_screen_is_in_the_files(bnexp: Bnexp, sweep: Path) -> None:
    """A line an arm and reason, however many seeds it has."""
    record = json.loads((sweep / "sweep.json").read_text())
    job = record["jobs"][0]
    for number in range(60):
        optim = job["config"]["optim"] | {"lr": 1 + number // 2}
        record["jobs"].append(job | {"config": job["config"] | {"optim": optim, "seed": number}})
    (sweep / "sweep.json").write_text(json.dumps(record))
    outcome = bnexp("report", str(sweep))
    assert outcome.out.count("not started") < 20
    assert (sweep / "compare.md").read_text().count("not started") == 30
    assert len(data(sweep)["missing"]) == 60


@pytest.mark.usefixtures("no_figures")
def test_probe_counts_what_was_planned(bnexp: Bnexp, sweep: Path) -> None:
    shutil.rmtree(place(sweep, "none", 1))
    path = place(sweep, "batch", 0) / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    outcome = bnexp("probe", str(sweep))
    assert outcome.status == 0
    assert "6 of 8 planned runs" in outcome.out
    assert outcome.out.count("3 of 4") == 2
    assert f"bnexp resume '{sweep}'" in outcome.out


# ---- whether a run reached an accuracy, and when


def redraw(run: RunRecord, chance: random.Random) -> tuple[int | None, float, str]:
    """Give a run another curve, clock and outcome. Returns the step at which it is at 95%, its seconds a step, and its
    status.
    """
    steps = sorted(run.validation)
    status = chance.choice(["finished"] * 3 + ["diverged"])
    at = chance.choice([*steps, None, None] if status == "finished" else [None, None, 20])
    pace = 0.001 if status == "diverged" else chance.choice([0.01, 0.02, 0.1])  # it ends before the others get anywhere
    lines = (run.directory / "metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    for number, line in enumerate(lines[1:], 1):
        row = dict(zip(header, line.split(","), strict=True))
        if row["split"] == "validation":
            row["accuracy"] = "0.97" if at is not None and int(row["step"]) >= at else "0.5"
        lines[number] = ",".join(row.values())
    (run.directory / "metrics.csv").write_text("\n".join([*lines, ""]))
    table = [(int(line.split(",")[0]), line.split(",")[2:]) for line in timing(run)]
    rows = [",".join([str(step), str(step * pace), *rest]) for step, rest in table]
    header_line = (run.directory / "timing.csv").read_text().splitlines()[0]
    (run.directory / "timing.csv").write_text("\n".join([header_line, *rows, ""]))
    final = 0.5 if at is None else 0.97
    summary = run.summary | {"status": status, "validation": run.summary["validation"] | {"final": final}}
    (run.directory / "summary.json").write_text(json.dumps(summary))
    return at, pace, status


def timing(run: RunRecord) -> list[str]:
    return (run.directory / "timing.csv").read_text().splitlines()[1:]


@pytest.mark.usefixtures("no_figures")
def test_steps_and_seconds_tell_one_fact(bnexp: Bnexp, sweep: Path) -> None:
    """Runs of one arm that take a hundred times as long as others, that never get there, that diverge."""
    chance, beyond = random.Random(3), 0
    originals = find_runs([sweep])
    for original in originals:
        assert original.validation  # read before it is changed
    for _ in range(12):
        drawn = {(run.config["norm"]["name"], run.seed): redraw(run, chance) for run in originals}
        assert bnexp("report", str(sweep)).status == 0
        finished = [pace for _, pace, status in drawn.values() if status == "finished"]
        paces = finished or [pace for _, pace, _ in drawn.values()]
        for arm, norm in zip(data(sweep)["arms"], ("none", "batch"), strict=True):
            own = [found for (name, _), found in drawn.items() if name == norm]
            for time in arm["times"]:
                unit = 1.0 if time["unit"] == "steps" else None
                got = sorted(at * (unit or pace) if at is not None else np.inf for at, pace, _ in own)
                until = 60 * (unit or min(paces))
                median = (got[1] + got[2]) / 2
                assert time["times"]["reached"] == sum(at is not None for at, _, _ in own)
                assert time["times"]["median"] == (None if np.isinf(median) else pytest.approx(median))
                assert time["horizon"] == pytest.approx(until)
                assert time["restricted"]["mean"] == pytest.approx(np.mean(np.minimum(got, until)))
                assert area(time["survival"], until) == pytest.approx(time["restricted"]["mean"])
                beyond += any(until < at < np.inf for at in got)
    assert beyond > 5, "some got there after another's end"


def area(survival: dict[str, list[float]], until: float) -> float:
    edges = np.minimum([*survival["times"], until], until)
    return float(np.dot(np.diff(np.maximum.accumulate(edges)), survival["shares"]))
