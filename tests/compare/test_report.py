"""From run directories to the comparison: its numbers by hand, its files, what it leaves out."""

import json
import math
import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Bnexp
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnexp.cli.main import run
from bnexp.compare.arms import check_by, settings, swept_keys
from bnexp.compare.figures import COLOURS, style_of
from bnexp.runs import console
from bnexp.runs.config import ArchConfig, ConfigError, NormConfig, OptimConfig, RunConfig
from bnexp.runs.record import find_runs

COMPARE = ("compare", "dataset=digits", "steps=60", "optim.lr=0.1")
OUTPUT = ("compare.json", "compare.md", "compare.svg", "times.svg", "report.html")
ARMS = [
    ("act=relu", "norm=none"),
    ("act=relu", "norm=batch"),
    ("act=sigmoid", "norm=none"),
    ("act=sigmoid", "norm=batch"),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "sweep"
    words = ["norm=none,batch", "act=relu,sigmoid", "seed=range(2)", f"hydra.sweep.dir={folder}"]
    assert run([*COMPARE, *words]) == 0
    return folder


@pytest.fixture
def sweep(original: Path, tmp_path: Path) -> Path:
    """A copy of a comparison that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "sweep"))


def arms(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "compare.json").read_text())["arms"]
    return found


def test_files(original: Path) -> None:
    assert (original / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (original / "compare.svg").read_text()[:2000]
    text = (original / "compare.md").read_text()
    assert text.startswith("# digits, mlp: ") or text.startswith("# digits, mlp, ")
    assert "2 seeds an arm" in text.splitlines()[0]
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## act=relu", "## act=sigmoid"]


def test_arms_in_the_order_typed(original: Path) -> None:
    found = arms(original)
    assert sorted((arm["panel"], arm["arm"]) for arm in found) == sorted(ARMS)
    assert [arm["arm"] for arm in found] == ["norm=none", "norm=batch"] * 2
    assert [arm["control"] for arm in found] == [True, False] * 2


def test_numbers_by_hand(original: Path) -> None:
    runs = find_runs([original])
    assert len(runs) == 8
    scores = {
        (f"act={r.config['act']['name']}", f"norm={r.config['norm']['name']}", r.seed): r.summary["test"]["accuracy"]
        for r in runs
    }
    for arm in arms(original):
        own = [scores[arm["panel"], arm["arm"], seed] for seed in (0, 1)]
        control = [scores[arm["panel"], "norm=none", seed] for seed in (0, 1)]
        assert arm["n"] == 2
        assert arm["test_accuracy"]["mean"] == pytest.approx(np.mean(own))
        if arm["control"]:
            assert arm["difference"] is None
        else:
            assert arm["difference"]["mean"] == pytest.approx(np.mean(np.subtract(own, control)))
            assert arm["difference"]["n"] == 2


def test_never_is_said(original: Path) -> None:
    [row] = [arm for arm in arms(original) if (arm["panel"], arm["arm"]) == ("act=sigmoid", "norm=none")]
    assert [found["times"] for found in row["times"]] == [{"median": None, "reached": 0, "n": 2}] * 4
    assert [found["restricted"]["mean"] for found in row["times"] if found["unit"] == "steps"] == [60, 60]
    assert {share for found in row["times"] for share in found["survival"]["shares"]} == {1.0}
    panel = (original / "compare.md").read_text().split("## act=sigmoid")[1].split("# Time")[0]
    [line] = [line for line in panel.splitlines() if line.startswith("| norm=none")]
    assert "| never | 0 of 2 |" in line


def test_report_repeats_compare_to_the_byte(bnexp: Bnexp, sweep: Path, original: Path) -> None:
    for name in (*OUTPUT, "compare.png"):
        (sweep / name).unlink()
    outcome = bnexp("report", str(sweep))
    assert (outcome.status, outcome.err) == (0, "")
    for name in OUTPUT:
        assert (sweep / name).read_bytes() == (original / name).read_bytes()


@pytest.mark.usefixtures("no_figures")
def test_by_another_key(bnexp: Bnexp, sweep: Path) -> None:
    before = (sweep / "compare.json").read_bytes()
    assert bnexp("report", str(sweep), "by=act").status == 0
    assert (sweep / "compare.json").read_bytes() == before
    record = json.loads((sweep / "compare-act.json").read_text())
    found = [(arm["panel"], arm["arm"], arm["control"]) for arm in record["arms"]]
    assert found == [
        ("norm=none", "act=relu", True),
        ("norm=none", "act=sigmoid", False),
        ("norm=batch", "act=relu", True),
        ("norm=batch", "act=sigmoid", False),
    ]


@pytest.mark.usefixtures("no_figures")
def test_each_key_has_files_of_its_own(
    bnexp: Bnexp, sweep: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the sweep's own comparison stay as they are, to the byte; the others' refer to one another."""
    monkeypatch.setattr(
        "bnexp.compare.report.plot_figure", lambda _, rows, files, *rest: [f.write_text("") for f in files]
    )
    assert bnexp("report", str(sweep), "by=act").status == 0
    for name in (*OUTPUT, "compare.png"):
        assert (sweep / name).read_bytes() == (original / name).read_bytes()
    folders = {path.name for path in (sweep / "bands-act").iterdir()}
    assert folders == {f"{norm},{act}" for act, norm in ARMS}
    assert {path.name for path in (sweep / "bands").iterdir()} == {",".join(arm) for arm in ARMS}
    links = re.findall(r"\]\(([^)]*)\)", (sweep / "compare-act.md").read_text())
    assert links == ["compare-act.svg", "times-act.svg"]
    assert all((sweep / link).exists() for link in (*links, "compare-act.png"))
    assert bnexp("report", str(sweep), "by=norm").status == 0, "the default's key has the plain names"
    assert not (sweep / "compare-norm.md").exists()


@pytest.mark.usefixtures("no_figures")
def test_files_go_where_they_are_told(bnexp: Bnexp, sweep: Path, original: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("*")}
    assert bnexp("report", str(sweep), "out=made here/below").status == 0
    assert bnexp("report", str(sweep), "by=act", "out=made here/below").status == 0
    assert bnexp("probe", str(sweep), "out=made here/below").status == 0
    assert {path: path.stat().st_mtime_ns for path in sweep.rglob("*")} == before
    made = Path("made here/below")
    assert (made / "compare.json").read_bytes() == (original / "compare.json").read_bytes()
    expected = {"compare.json", "compare.md", "report.html", "bands", "probe.csv"}
    expected |= {"compare-act.json", "compare-act.md", "report-act.html", "bands-act"}
    assert {path.name for path in made.iterdir()} == expected


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("command", ["report", "probe"])
@pytest.mark.parametrize("out", ["", "file", "file/below", "other", "other/norm=none", "a\x1bb", "/proc/x"])
def test_files_cannot_go_anywhere(bnexp: Bnexp, sweep: Path, command: str, out: str) -> None:
    """Not where others' runs are, whose own comparison they would replace."""
    Path("file").touch()
    shutil.copytree(next(sweep.glob("*norm=none*")), "other/norm=none")
    outcome = bnexp(command, str(sweep), f"out={out}")
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1), outcome.err
    assert "out=" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("command", ["report", "probe"])
def test_several_directories_leave_the_files_of_each(bnexp: Bnexp, sweep: Path, command: str) -> None:
    other = Path(shutil.copytree(sweep, "other"))
    before = {path: path.stat().st_mtime_ns for folder in (sweep, other) for path in folder.rglob("*")}
    for words in ((), (f"out={sweep}",), ("out=other",)):
        outcome = bnexp(command, str(sweep), "other", *words)
        assert outcome.status == 2
        assert "out=" in outcome.err
    assert bnexp(command, str(sweep), "other", "out=both").status == 0
    assert {path: path.stat().st_mtime_ns for folder in (sweep, other) for path in folder.rglob("*")} == before
    assert bnexp(command, str(sweep), f"{sweep}/").status == 0, "one, named twice"


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("by", ["foo", "seed", "steps"])
def test_by_must_differ(bnexp: Bnexp, sweep: Path, by: str) -> None:
    outcome = bnexp("report", str(sweep), f"by={by}")
    assert outcome.status == 2
    assert f"by={by} is not a key that differs between the runs: choose from" in outcome.err


@pytest.mark.usefixtures("no_figures")
def test_control_is_the_first_value_typed(bnexp: Bnexp) -> None:
    assert bnexp(*COMPARE, "norm=batch,none", "hydra.sweep.dir=mine").status == 0
    assert [(arm["arm"], arm["control"]) for arm in arms(Path("mine"))] == [("norm=batch", True), ("norm=none", False)]


@pytest.mark.usefixtures("no_figures")
def test_comparison_of_learning_rates(bnexp: Bnexp) -> None:
    assert bnexp(*COMPARE[:3], "optim.lr=0.01,0.1", "hydra.sweep.dir=mine").status == 0
    found = arms(Path("mine"))
    assert [arm["arm"] for arm in found] == ["optim.lr=0.01", "optim.lr=0.1"]
    assert {arm["panel"] for arm in found} == {""}


@pytest.mark.usefixtures("no_figures")
def test_report_of_separate_runs(bnexp: Bnexp) -> None:
    for norm in ("none", "batch"):
        assert bnexp("train", *COMPARE[1:], f"norm={norm}", f"hydra.run.dir={norm}").status == 0
    outcome = bnexp("report", "none", "batch", "out=both")
    assert outcome.status == 0
    assert "one seed an arm has no interval" in outcome.out
    assert [arm["arm"] for arm in arms(Path("both"))] == ["norm=none", "norm=batch"]
    assert arms(Path("both"))[1]["difference"]["low"] is None


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_unfinished_runs_are_left_out_and_named(bnexp: Bnexp, sweep: Path, status: str) -> None:
    victim = next(run.directory for run in find_runs([sweep]) if run.config["norm"]["name"] == "batch")
    summary = json.loads((victim / "summary.json").read_text()) | {"status": status, "test": None}
    (victim / "summary.json").write_text(json.dumps(summary))
    outcome = bnexp("report", str(sweep))
    assert outcome.status == 0
    assert f"{victim.name} is left out: {status}" in outcome.err
    assert sorted(arm["n"] for arm in arms(sweep)) == [1, 2, 2, 2]


@pytest.mark.usefixtures("no_figures")
def test_a_run_without_a_summary_is_named(bnexp: Bnexp, sweep: Path) -> None:
    victim = find_runs([sweep])[-1].directory
    (victim / "summary.json").unlink()  # as a killed process leaves it
    outcome = bnexp("report", str(sweep))
    assert outcome.status == 0
    assert victim.name in outcome.err


def test_bands_for_tensorboard(original: Path) -> None:
    folders = sorted(path.name for path in (original / "bands").iterdir())
    assert folders == sorted(",".join(arm) for arm in ARMS)
    for name in folders:
        board = EventAccumulator(str(original / "bands" / name)).Reload()
        assert {"comparison/mean", "comparison/lower", "comparison/upper"} <= set(board.Tags()["scalars"])
        assert list(board.PluginTagToContent("custom_scalars")) == ["custom_scalars__config__"]
        low, mean, high = (
            [event.value for event in board.Scalars(f"comparison/{tag}")] for tag in ("lower", "mean", "upper")
        )
        assert len(mean) == 3
        assert np.all(np.less_equal(low, np.add(mean, 1e-6)))
        assert np.all(np.less_equal(mean, np.add(high, 1e-6)))


# ---- the page


def test_page_is_whole(original: Path) -> None:
    """Tables of both panels and five figures each; nothing is fetched; every reference finds its target."""
    text = (original / "report.html").read_text()
    assert text.count("<svg") == text.count("</svg>") == 10
    assert text.count("<table>") == 4
    assert "prefers-color-scheme: dark" in text
    assert not re.findall(r"<(?:script|link|img|iframe)|src=|@import", text)
    assert not re.findall(r'href="(?!#)', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)


@pytest.mark.usefixtures("no_figures")
def test_a_run_that_is_there_twice_counts_once(bnexp: Bnexp) -> None:
    words = ("train", "-m", "dataset=digits", "norm=none,batch", "seed=0,1", "steps=4")
    for folder in ("one", "two"):
        assert bnexp(*words, f"hydra.sweep.dir={folder}").status == 0
    outcome = bnexp("report", "one", "two", "out=both")
    assert "two/norm=batch,seed=1 is left out: the same run as one/norm=batch,seed=1" in outcome.err
    found = json.loads(Path("both/compare.json").read_text())
    assert [arm["n"] for arm in found["arms"]] == [2, 2]
    assert (found["finished"], found["planned"], found["missing"]) == (4, 4, [])


@pytest.mark.usefixtures("no_figures")
def test_where_runs_start_from_is_no_arm_where_each_seed_has_its_own(bnexp: Bnexp) -> None:
    short = ("train", "-m", "dataset=digits", "seed=0,1", "steps=4")
    assert bnexp(*short, "hydra.sweep.dir=first").status == 0
    start = "init_from='first/seed=${seed}'"
    assert bnexp(*short, "norm=batch,frozen_batch", start, "hydra.sweep.dir=second").status == 0
    assert bnexp("report", "second").status == 0
    arms = json.loads(Path("second/compare.json").read_text())["arms"]
    assert [(arm["panel"], arm["arm"], arm["n"]) for arm in arms] == [
        ("", "norm=batch", 2),
        ("", "norm=frozen_batch", 2),
    ]
    assert "2 seeds an arm" in Path("second/compare.md").read_text()


def test_values_of_runs_are_escaped(bnexp: Bnexp, sweep: Path) -> None:
    """In the page, and as text in the figures: neither markup nor matplotlib's mathematics."""
    evil = "<script>alert(1)</script>&$\\frac{x}$|"
    for found in find_runs([sweep]):
        if (found.config["norm"]["name"], found.config["act"]["name"]) != ("batch", "relu"):
            shutil.rmtree(found.directory)  # a panel is enough
            continue
        dataset = found.config["dataset"] | {"path": f"{evil}{found.seed}"}
        record = found.record | {"config": found.config | {"dataset": dataset}}
        (found.directory / "run.json").write_text(json.dumps(record))
    assert bnexp("report", str(sweep), "by=dataset.path", "out=mine").status == 0
    sweep = Path("mine")
    page = (sweep / "report-dataset.path.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;$" in page
    assert "<script" not in (sweep / "compare-dataset.path.svg").read_text()
    assert "\\|" in (sweep / "compare-dataset.path.md").read_text()


@pytest.mark.usefixtures("no_figures")
def test_recalibrated_accuracy_is_told(bnexp: Bnexp) -> None:
    words = ("compare", "dataset=digits", "norm=none,batch", "steps=20", "eval.recalibrate=true", "seed=0,1")
    assert bnexp(*words, "hydra.sweep.dir=mine").status == 0
    runs = [run.summary for run in find_runs([Path("mine")]) if run.config["norm"]["name"] == "batch"]
    mean = sum(run["test_recalibrated"]["accuracy"] for run in runs) / 2
    plain, batch = arms(Path("mine"))
    assert plain["recalibrated"] is None
    assert batch["recalibrated"]["mean"] == pytest.approx(mean)
    assert f"norm=batch: test accuracy {100 * mean:.2f} [" in Path("mine/compare.md").read_text()


def test_markdown_has_the_times(original: Path) -> None:
    text = (original / "compare.md").read_text().split("# Time to accuracy")[1]
    assert "![Kaplan-Meier curves and throughput](times.svg)" in text
    assert text.count("| 95%, seconds |") == 4
    assert "| norm=none | 90%, steps | 0 of 2 | never | 60 [60, 60] | control |" in text.split("**act=sigmoid**")[1]


@pytest.mark.usefixtures("no_figures")
def test_an_arm_does_not_become_the_control_of_a_panel(bnexp: Bnexp, sweep: Path) -> None:
    """Where the control's runs of a panel all failed, the others are compared with nothing."""
    for found in find_runs([sweep]):
        if (found.config["norm"]["name"], found.config["act"]["name"]) == ("none", "sigmoid"):
            (found.directory / "summary.json").write_text('{"status": "failed", "error": "x"}')
    assert bnexp("report", str(sweep)).status == 0
    control, alone = (arm for arm in arms(sweep) if arm["panel"] == "act=sigmoid")
    assert (control["arm"], control["control"], control["n"]) == ("norm=none", True, 0)
    assert (alone["arm"], alone["control"], alone["difference"]) == ("norm=batch", False, None)
    assert "| norm=batch | 2 of 2 |" in (sweep / "compare.md").read_text()
    assert "| no pairs |" in (sweep / "compare.md").read_text()


@pytest.mark.usefixtures("no_figures")
def test_a_truncated_summary_counts_as_unfinished(bnexp: Bnexp, sweep: Path) -> None:
    victim = find_runs([sweep])[0].directory
    (victim / "summary.json").write_text('{"status": "fini')
    outcome = bnexp("report", str(sweep))
    assert outcome.status == 0
    assert f"{victim.name} is left out: unfinished" in outcome.err


@pytest.mark.usefixtures("no_figures")
def test_diverged_runs_are_counted(bnexp: Bnexp, sweep: Path) -> None:
    victim = next(run.directory for run in find_runs([sweep]) if run.config["norm"]["name"] == "batch")
    summary = json.loads((victim / "summary.json").read_text()) | {"status": "diverged", "diverged_at": 30}
    (victim / "summary.json").write_text(json.dumps(summary))
    assert bnexp("report", str(sweep)).status == 0
    assert "<td>2 (1 diverged)</td>" in (sweep / "report.html").read_text()
    assert [arm["diverged"] for arm in arms(sweep) if arm["diverged"]] == [1]


def grey(colour: str) -> float:
    """Lightness of a colour on a black and white print (BT.601)."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_first_colours_differ_in_grey() -> None:
    lightness = sorted(grey(colour) for colour in COLOURS[:4])
    assert min(np.diff(lightness)) > 0.07


def test_arms_have_styles_of_their_own() -> None:
    styles = [style_of(number) for number in range(3 * len(COLOURS))]
    assert all(style not in styles[:number] for number, style in enumerate(styles))


# ---- which keys are swept


def swept(*configs: RunConfig) -> list[str]:
    return swept_keys([settings(config.as_dict()) for config in configs])


def test_settings_leave_out_the_seed() -> None:
    assert "seed" not in settings(RunConfig(seed=5).as_dict())
    assert settings(RunConfig(norm=NormConfig("layer")).as_dict())["norm"] == "layer"
    assert swept(RunConfig(seed=1), RunConfig(seed=2)) == []


def test_keys_that_come_with_a_choice_are_not_swept() -> None:
    assert swept(RunConfig(norm=NormConfig("none")), RunConfig(norm=NormConfig("batch", eps=1e-3))) == ["norm"]
    assert swept(RunConfig(), RunConfig(optim=OptimConfig("adam", lr=0.001))) == ["optim"]


def test_a_key_swept_beside_its_choice_is_found() -> None:
    batch = NormConfig("batch", eps=1e-3)
    configs = [RunConfig(norm=norm) for norm in (NormConfig("none"), batch, replace(batch, eps=1e-5))]
    assert swept(*configs) == ["norm", "norm.eps"]
    assert swept(*configs[1:]) == ["norm.eps"]


def test_lists_are_swept() -> None:
    assert swept(RunConfig(), RunConfig(arch=ArchConfig(hidden=[50]))) == ["arch.hidden"]


def test_check_by_names_the_choice() -> None:
    configs = [RunConfig(norm=NormConfig(name)).as_dict() for name in ("none", "batch")]
    check_by("norm", configs)
    with pytest.raises(ConfigError, match="choose from norm"):
        check_by("act", configs)


def test_starts_that_match_the_seeds_make_no_arms_before_training_as_after() -> None:
    runs = product(("none", "batch"), range(2))
    configs = [RunConfig(norm=NormConfig(norm), seed=seed, init_from=f"r/{seed}").as_dict() for norm, seed in runs]
    with pytest.raises(ConfigError, match="by=init_from is not a key that differs between the runs: choose from norm"):
        check_by("init_from", configs)


def test_medians_are_finite(original: Path) -> None:
    assert all(math.isfinite(arm["steps_per_second"]) and arm["speed_ratio"] > 0 for arm in arms(original))


# ---- tables on a terminal


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_tables_fit_a_terminal_and_break_nothing(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A narrow terminal has fewer columns, and the others are named."""
    monkeypatch.setattr(console, "console", Console(width=width, force_terminal=True))
    header = ["arm", "n", "test accuracy", "− control, paired", "steps/s"]
    row = ["norm=batch_scratch", "10", "70.46 [63.61, 75.32]", "+54.50 [+40.90, +68.10]", "705"]
    console.show_table("digits, mlp", header, [row])
    printed = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    table = [line for line in printed.splitlines() if not line.startswith(("digits", "a wider"))]
    assert max(map(len, table)) <= width
    shown = [name for name in header if any(name in line for line in table)]
    assert all(any(cell in line for line in table) for cell in row[: len(shown)])
    assert shown == header[: len(shown)]
    assert len(shown) == {40: 2, 60: 3, 80: 4, 100: 5, 160: 5}[width]
    rest = ", ".join(header[len(shown) :])
    assert (f"a wider terminal also shows: {rest}" in printed) == bool(rest)


def test_tables_of_text_wrap_between_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "console", Console(width=70, force_terminal=True))
    names = ["udacity.sigmoid_0.01_0.05.batch.validation", "Accuracy on validation images is 97%.", "a_long_sweep"]
    console.show_table("claims", ["claim", "statement", "sweep"], [names], numbers=False)
    printed = capsys.readouterr().out
    assert {names[0], "Accuracy", "validation", "images"} <= set(printed.split())
    assert printed.endswith("a wider terminal also shows: sweep\n")


@pytest.mark.usefixtures("no_figures")
def test_too_few_pairs_for_a_test_are_explained(bnexp: Bnexp, sweep: Path) -> None:
    assert bnexp("report", str(sweep)).status == 0
    text = (sweep / "compare.md").read_text()
    assert "With 2 pairs there is no p-value" in text
    assert "the interval of the difference is what can be read" in text
