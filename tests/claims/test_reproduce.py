"""`bnexp reproduce` as one types it, on claims about the embedded digits."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Bnexp

from bnexp.claims.claim import Claim, ClaimSweep
from bnexp.claims.drawings import curves
from bnexp.claims.registry import CLAIMS
from bnexp.claims.rules import Directional, Exact, Share
from bnexp.claims.sources.identities import one_group_is_layer
from bnexp.claims.values import best, on_test, where
from bnexp.runs.directory import digest_of
from bnexp.runs.record import find_runs

SHORT = "dataset=digits steps=40 optim.lr=0.1 eval.first_every=20"
ARMS = {"without": where("norm=none"), "with": where("norm=batch")}
SWEEP = ClaimSweep("digits", f"{SHORT} norm=none,batch")
FEW = ClaimSweep("few", f"{SHORT} norm=batch", seeds=1)
SMALL = [
    Claim(
        id="digits.better",
        source="A paper, §1",
        statement="It is better | with <norms>.",
        published="better",
        rules={"": Directional(on_test(ARMS["with"]), on_test(ARMS["without"]))},
        sweeps=[SWEEP],
        family="digits",
        note="A note.",
    ),
    Claim(
        id="digits.rate",
        source="A paper, §2",
        statement="It trains.",
        published="trains",
        rules={"": Share(on_test(ARMS["with"]), 30)},
        sweeps=[FEW],
    ),
    Claim(
        id="other.equal",
        source="Another paper",
        statement="It is equal.",
        published="equal",
        rules={"": Exact(one_group_is_layer)},
    ),
]
FIGURE = curves("digits", "Digits at $0.1", {"ReLU": ARMS})
RUNS = Path("results/sweeps/claims")


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """These claims in place of the published ones."""
    published = CLAIMS[:]
    CLAIMS[:] = SMALL
    yield
    CLAIMS[:] = published


def records(folder: Path = RUNS) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in json.loads((folder / "claims.json").read_text())}


def result(claim: str, block: str = "0", folder: Path = RUNS) -> dict[str, Any]:
    """What the claim's rule found in a block of seeds, or in "both"."""
    [found] = [each for each in records(folder)[claim]["results"] if each["block"] == block]
    return dict(found)


def test_all_of_it(bnexp: Bnexp) -> None:
    CLAIMS[0] = replace(SMALL[0], figure=FIGURE)
    outcome = bnexp("reproduce", "--seeds", "6", "--out", "out")
    assert (outcome.status, outcome.err) == (0, "")
    out = Path("out")
    found = records(out)
    assert list(found) == ["digits.better", "digits.rate", "other.equal"]
    better = found["digits.better"]
    assert (better["verdict"], better["why"]) == ("reproduced", "")
    assert [each["block"] for each in better["results"]] == ["0", "1000", "both"]
    for block, seeds in (("0", range(6)), ("1000", range(1000, 1006))):
        accuracies = {
            norm: {
                run.seed: run.summary["test"]["accuracy"]
                for run in find_runs([RUNS / "digits"])
                if run.config["norm"]["name"] == norm and run.seed in seeds
            }
            for norm in ("none", "batch")
        }
        measured = result("digits.better", block, out)
        assert (measured["n"], measured["verdict"], measured["unit"]) == (6, "reproduced", "%")
        assert measured["p"] == measured["p_holm"] < 0.05
        difference = sum(accuracies["batch"].values()) - sum(accuracies["none"].values())
        assert measured["value"] == pytest.approx(100 * difference / 6)
        kept = better["blocks"][block]["samples"][""]
        assert kept["ours"] == {str(seed): pytest.approx(100 * value) for seed, value in accuracies["batch"].items()}
        assert len(better["blocks"][block]["commit"]) == 1
        assert better["blocks"][block]["seconds"] > 0
    assert result("digits.better", "both", out)["n"] == 12
    assert better["detectable"][""].endswith("points the other way")
    assert better["command"] == "bnexp reproduce digits.better"
    seeds = ",".join(map(str, [*range(10), *range(1000, 1010)]))
    assert better["sweeps"] == [f"bnexp train -m {SWEEP.overrides} seed={seeds} hydra.sweep.dir={RUNS / SWEEP.name}"]
    assert found["digits.rate"]["verdict"] == "reproduced"
    assert (found["other.equal"]["verdict"], found["other.equal"]["kind"]) == ("reproduced", "identity")
    assert "<svg" in (out / "figures/digits.svg").read_text()
    text = (out / "README.md").read_text()
    tally = "2 independent facts: 2 reproduced, 0 contradicted, 0 inconclusive. 2 of them could have failed, and 0 did."
    assert f"{tally} Besides, 1 identity." in text
    assert "| reproduced | It is better \\| with &lt;norms&gt;. | better | +" in text
    assert text.index("![digits](figures/digits.svg)") < text.index("digits.better |"), (
        "a figure stands above its claims"
    )
    assert tally in outcome.out


def test_one_block_alone_decides_nothing(bnexp: Bnexp) -> None:
    words = ("reproduce", "digits.better", "--seeds", "6")
    assert bnexp(*words, "--block", "0").status == 0
    assert result("digits.better")["verdict"] == "reproduced"
    alone = records()["digits.better"]
    assert (alone["verdict"], alone["why"]) == ("inconclusive", "the block of seeds from 1000 on was not run")
    outcome = bnexp(*words, "--block", "1000")
    assert "12 runs: " in outcome.out
    assert records()["digits.better"]["verdict"] == "reproduced", "the first block is kept in the record"
    assert {run.seed for run in find_runs([RUNS])} == {*range(6), *range(1000, 1006)}
    both = records()
    assert bnexp(*words).status == 0
    assert records() == both, "in one go or block by block"


def test_a_rule_that_was_changed_after_a_look(bnexp: Bnexp) -> None:
    """The second block decides, whatever the first one says; so it does not wait for it."""
    CLAIMS[0] = replace(SMALL[0], changed="a margin")
    assert bnexp("reproduce", "digits.better", "--seeds", "6", "--block", "1000").status == 0
    assert records()["digits.better"]["verdict"] == "reproduced"
    assert "1 rule had been changed after a look" in (RUNS / "README.md").read_text()


def test_a_rate_is_chosen_on_seeds_of_its_own(bnexp: Bnexp) -> None:
    sweep = ClaimSweep("rates", f"{SHORT} norm=batch optim.lr=0.001,0.1", tuned=True)
    rule = Share(on_test(best(where("norm=batch"), "optim.lr")), 30)
    CLAIMS[:] = [replace(SMALL[1], sweeps=[sweep], rules={"": rule})]
    assert bnexp("reproduce", "--seeds", "2", "--block", "0").status == 0
    assert {run.seed for run in find_runs([RUNS])} == {0, 1, *range(100, 105)}
    block = records()["digits.rate"]["blocks"]["0"]
    assert list(block["samples"][""]["ours"]) == ["0", "1"]
    assert block["remarks"][""].startswith("norm=batch is best at optim.lr=0.1 of 0.001, 0.1")


def test_finished_runs_are_reused_and_lost_ones_made_again(bnexp: Bnexp) -> None:
    assert bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "2").status == 0
    runs = find_runs([RUNS])
    before = {run.directory: (run.directory / "metrics.csv").stat().st_mtime_ns for run in runs}
    first = records()
    lost, kept = runs[0].directory, runs[1].directory
    curve = (lost / "metrics.csv").read_bytes()
    (lost / "summary.json").unlink()  # as a killed process leaves it
    outcome = bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "2")
    assert outcome.status == 0
    assert "1 run: " in outcome.out
    assert (lost / "metrics.csv").stat().st_mtime_ns > before[lost]
    assert (kept / "metrics.csv").stat().st_mtime_ns == before[kept]
    assert (lost / "metrics.csv").read_bytes() == curve
    again = records()
    assert again["digits.better"]["results"] == first["digits.better"]["results"]
    third = bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "2")
    assert "run: " not in third.out
    assert "runs: " not in third.out
    assert {run.directory for run in find_runs([RUNS])} == set(before)


def test_a_key_that_is_added_later_trains_nothing_again(bnexp: Bnexp) -> None:
    """Runs that were made before NormConfig had `noise_scale` and CheckpointConfig had any key."""
    assert bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "2").status == 0
    before = records()
    for run in find_runs([RUNS]):
        record = run.record | {"config": {key: value for key, value in run.config.items() if key != "checkpoint"}}
        record["config"]["norm"] = {key: value for key, value in run.config["norm"].items() if key != "noise_scale"}
        record["config"]["checkpoint"] = {}
        assert digest_of(record["config"]) == run.digest
        (run.directory / "run.json").write_text(json.dumps(record))
    again = bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "2")
    assert again.status == 0
    assert "test accuracy" not in again.out, "nothing is trained"
    assert records() == before


def test_a_damaged_run_is_named_and_left_out(bnexp: Bnexp) -> None:
    words = ("reproduce", "digits.better", "--block", "0", "--seeds", "3")
    assert bnexp(*words).status == 0
    damaged, half_written, *_ = [run.directory for run in find_runs([RUNS]) if run.config["norm"]["name"] == "batch"]
    for path in (damaged / "metrics.csv", *damaged.glob("events.*")):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (half_written / "run.json").write_text('{"schema": 1')
    outcome = bnexp(*words)
    assert outcome.status == 0
    assert f"{damaged} is left out: its metrics.csv" in outcome.err
    assert f"{half_written / 'run.json'} cannot be read: left out" in outcome.err, "and is made anew"
    assert "1 run: " in outcome.out
    block = records()["digits.better"]["blocks"]["0"]
    assert (result("digits.better")["n"], block["runs"], block["planned_runs"]) == (2, 5, 6)
    assert "| 2 (5 of 6 runs) |" in (RUNS / "README.md").read_text()
    assert "seeds from 0 on (1 run missing): inconclusive" in outcome.out


def test_a_list_names_what_cannot_run_here(bnexp: Bnexp) -> None:
    CLAIMS[1] = replace(SMALL[1], sweeps=[ClaimSweep("photographs", "dataset=image_folder dataset.path=nowhere")])
    outcome = bnexp("reproduce", "--list")
    assert (outcome.status, outcome.err) == (0, "")
    assert "photographs (cannot run here)" in " ".join(outcome.out.split())


def test_more_seeds_add_runs(bnexp: Bnexp) -> None:
    assert bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "1").status == 0
    outcome = bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "2")
    assert "2 runs: " in outcome.out
    assert result("digits.better")["n"] == 2
    assert bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "1").status == 0
    assert result("digits.better")["n"] == 1, "seeds that weren't asked for are left out"


def test_a_run_of_another_configuration_gives_way(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a change of a sweep's overrides that its directories' names don't tell."""
    assert bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "2").status == 0
    longer = ClaimSweep("digits", SWEEP.overrides.replace("steps=40", "steps=60"))
    CLAIMS[0] = replace(SMALL[0], sweeps=[longer])
    outcome = bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "1")
    assert (outcome.status, outcome.err) == (0, "")
    assert sorted(run.config["steps"] for run in find_runs([RUNS])) == [40, 40, 60, 60], "other seeds are left alone"
    assert result("digits.better")["n"] == 1


def test_runs_of_an_older_grid_are_not_judged(bnexp: Bnexp) -> None:
    wide = ClaimSweep("digits", f"{SHORT} norm=none,batch,layer")
    CLAIMS[0] = replace(SMALL[0], sweeps=[wide], rules={"": Share(on_test(where("act=relu")), 0.0)})
    assert bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "1").status == 0
    assert result("digits.better")["detail"] == "1 of 1 seeds"
    CLAIMS[0] = replace(CLAIMS[0], sweeps=[SWEEP], rules={"": Share(on_test(where("norm=layer")), 0.0)})
    assert bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "1").status == 0
    assert result("digits.better")["why"] == "an arm has no complete runs"


def test_a_part_does_not_overwrite_a_shared_figure(bnexp: Bnexp) -> None:
    CLAIMS[0] = replace(SMALL[0], figure=FIGURE)
    CLAIMS.append(replace(SMALL[1], id="digits.few", figure=FIGURE))
    assert bnexp("reproduce", "--block", "0", "--seeds", "1").status == 0
    whole = (RUNS / "figures" / "digits.svg").read_bytes()
    assert bnexp("reproduce", "digits.few", "--block", "0", "--seeds", "1").status == 0
    assert (RUNS / "figures" / "digits.svg").read_bytes() == whole


def test_p_of_claims_judged_before_count(bnexp: Bnexp) -> None:
    CLAIMS.append(replace(SMALL[0], id="digits.again"))
    assert bnexp("reproduce", "--block", "0", "--seeds", "6").status == 0
    together = result("digits.better")
    assert bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "6").status == 0
    assert result("digits.better")["p_holm"] == together["p_holm"] == pytest.approx(2 * together["p"])


def test_p_of_claims_judged_later_counts(bnexp: Bnexp) -> None:
    CLAIMS.append(replace(SMALL[0], id="digits.again"))
    assert bnexp("reproduce", "digits.better", "--block", "0", "--seeds", "6").status == 0
    alone = result("digits.better")
    assert alone["p_holm"] == pytest.approx(2 * alone["p"]), "the other test counts as one without effect"
    CLAIMS[3] = replace(
        CLAIMS[3], rules={"": Directional(on_test(ARMS["with"]), on_test(where("norm=none")), lower=True)}
    )
    assert bnexp("reproduce", "digits.again", "--block", "0", "--seeds", "7").status == 0
    other, after = result("digits.again"), result("digits.better")
    assert other["verdict"] == "contradicted"
    assert after["p_holm"] == pytest.approx(
        max(after["p"], 2 * other["p"]) if other["p"] < after["p"] else 2 * after["p"]
    )


def test_a_family_of_its_own_is_not_corrected(bnexp: Bnexp) -> None:
    CLAIMS.append(replace(SMALL[0], id="digits.later", family=""))
    assert bnexp("reproduce", "digits", "--block", "0", "--seeds", "6").status == 0
    assert result("digits.later")["p_holm"] == result("digits.later")["p"]
    assert result("digits.better")["p_holm"] == result("digits.better")["p"]


def test_other_claims_stay_in_the_record(bnexp: Bnexp) -> None:
    assert bnexp("reproduce", "other").status == 0
    assert bnexp("reproduce", "digits.rate", "--block", "0", "--seeds", "1").status == 0
    assert list(records()) == ["digits.rate", "other.equal"]


def test_a_failed_run_leaves_its_claims_without_a_verdict(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnexp.training import loop as train  # noqa: PLC0415

    def fail(*_: object) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr(train, "train", fail)
    outcome = bnexp("reproduce", "digits.better", "other", "--block", "0", "--seeds", "1")
    assert outcome.status == 1
    assert "no more" in outcome.err
    assert "ValueError" not in outcome.err
    assert "1 independent fact: 0 reproduced, 0 contradicted, 1 inconclusive" in outcome.out
    assert records()["digits.better"]["verdict"] == "inconclusive"
    assert "no more" in records()["digits.better"]["blocks"]["0"]["problem"]
    assert records()["other.equal"]["verdict"] == "reproduced"


def test_list_runs_nothing(bnexp: Bnexp) -> None:
    outcome = bnexp("reproduce", "--list", "--block", "0", "--seeds", "2")
    assert outcome.status == 0
    assert all(claim.id in outcome.out for claim in SMALL)
    assert "all remaining runs: about" in outcome.out
    assert not RUNS.exists()


FIRST = ClaimSweep("first", f"{SHORT} norm=conditional_batch dataset.conditions=[plain,inverted]")
NEXT = ClaimSweep(
    "next",
    f"{SHORT} norm=conditional_batch dataset.conditions=[edges] trainable=norms "
    "init_from='results/sweeps/claims/first/seed=${seed}'",
    after=FIRST,
)


def test_a_sweep_that_starts_from_another_ones_runs(bnexp: Bnexp) -> None:
    CLAIMS[:] = [replace(SMALL[1], sweeps=[NEXT], rules={"": Share(on_test(where("act=relu")), 0.0)})]
    assert "next (after first)" in " ".join(bnexp("reproduce", "--list", "--block", "0", "--seeds", "2").out.split())
    outcome = bnexp("reproduce", "--block", "0", "--seeds", "2")
    assert (outcome.status, outcome.err) == (0, "")
    assert [run.config["init_from"] for run in find_runs([RUNS / "next"])] == [f"{RUNS}/first/seed={n}" for n in (0, 1)]
    assert result("digits.rate")["n"] == 2, "the runs it starts from are not judged"
    assert "next (done)" in " ".join(bnexp("reproduce", "--list", "--block", "0", "--seeds", "2").out.split())


def test_claims_whose_data_is_missing_are_left_as_they_were(bnexp: Bnexp) -> None:
    assert bnexp("reproduce", "digits", "--block", "0", "--seeds", "1").status == 0
    known = records()["digits.rate"]
    CLAIMS[1] = replace(SMALL[1], sweeps=[ClaimSweep("photographs", "dataset=image_folder dataset.path=nowhere")])
    outcome = bnexp("reproduce", "--block", "0", "--seeds", "1")
    assert outcome.status == 1
    assert "photographs cannot run: dataset.path=nowhere" in outcome.err
    assert "1 independent fact: " in outcome.out
    assert records()["digits.rate"]["blocks"] == known["blocks"]
    alone = bnexp("reproduce", "digits.rate", "--block", "0", "--seeds", "1")
    assert alone.status == 2
    assert "dataset.path=nowhere" in alone.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["digti"], "digti is not a claim: did you mean digits? choose from digits, other"),
        (["--seeds", "0"], "--seeds=0 is not allowed: a whole number from 1 to 100"),
        (["--seeds", "many"], "argument --seeds: invalid int value: 'many'"),
        (["--seed", "3", "--sees", "4"], "unrecognized arguments: --seed --sees 4"),
        (["--out", "taken"], "--out=taken is not allowed: a folder without a README.md"),
        (["--out", "taken/README.md"], "taken/README.md is not a folder one can write to"),
        (["--block", "500"], "--block=500 is not allowed: choose from 0, 1000"),
        (["--wrong"], "unrecognized arguments: --wrong"),
    ],
)
def test_bad_words(bnexp: Bnexp, words: list[str], says: str) -> None:
    Path("taken").mkdir()
    Path("taken/README.md").write_text("# Mine")
    outcome = bnexp("reproduce", *words)
    assert outcome.status == 2
    assert Path("taken/README.md").read_text() == "# Mine"
    assert says in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("results").exists()
