"""Words and configuration files that nobody would think of.

`make test` tries a twentieth of them; `make test-faults` all.
"""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Bnexp, Outcome, Tell, Times
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from bnexp.models.activations import ACTIVATIONS
from bnexp.runs.config import known_keys
from bnexp.runs.console import printable

pytestmark = pytest.mark.faults

PARTS = 4  # tests that share the words, for as many cores
SHORT = ("dataset=digits", "steps=1", "eval.first_every=1", "threads=1", "arch.hidden=[8]")


def fuzz(times: int) -> settings:
    """The examples of a seed, the same every time; none is kept on disk."""
    return settings(max_examples=times, database=None, deadline=None, suppress_health_check=list(HealthCheck))


def listing(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def check_refusal(outcome: Outcome, names: list[str]) -> None:
    """One line that names one of these."""
    [line] = outcome.err.splitlines()
    assert line.startswith("bnexp: "), line
    assert any(name in line for name in names), (names, line)


# ---- words

HYDRAS = ["hydra.run.dir", "hydra.sweep.dir", "executor.workers", "hydra.verbose", "hydra.job.name", "hydra.mode"]
PATHS = ["../x", "../../etc/passwd", "/etc/passwd", "~/x", "..", ".", "//", "a/../../b", "file:///etc/passwd"]
INTERPOLATIONS = ["${steps}", "${seed}", "${oc.env:HOME}", "${oc.env:NOPE}", "${hydra:runtime.cwd}", "${nope}"]
INTERPOLATIONS += ["${eval:1}", "${..x}", "${oc.create:{a:1}}", "${oc.decode:'[1'}", "${", "${}", "${now:%Y}"]
MADE = ["{_target_:os.system}", "{_target_:os.system,command:ls}", "[{_target_:os.system}]", "{a:{b:{c:[1,{d:2}]}}}"]
NUMBERS = ["1e400", "-0", "-1", "0", "1", "2", "0x10", "1_000", "nan", "-inf", "1e-400", "9" * 400, "9" * 5000, "1.5"]
WORDS = ["null", "true", "False", "auto", "''", "[]", "{}", "[1,2]", "1,2", "range(3)", "choice(1)", "a=b", "norm"]

values = st.one_of(
    st.sampled_from([*PATHS, *INTERPOLATIONS, *MADE, *NUMBERS, *WORDS]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=20),
    st.text(max_size=20).map(lambda text: f"'{text}'"),
    st.integers(1, 400).map(lambda depth: "[" * depth + "]" * depth),
    st.integers(1, 400).map(lambda depth: "{a:" * depth + "1" + "}" * depth),
)
LIKELY = ["0.5", "1", "2", "3", "0.01", "1e-3", "10", "true", "false", "auto", "null", "none", "relu", "batch", "sgd"]
names = st.one_of(
    st.sampled_from([*known_keys(), *HYDRAS]),
    st.from_regex(r"[a-z_]{1,9}(\.[a-z_]{1,9}){0,3}", fullmatch=True),
    st.from_regex(r"[a-z]{1,9}(@|/)[a-z_]{1,9}", fullmatch=True),
)
odd = st.one_of(
    st.tuples(st.sampled_from(["", "", "", "+", "++", "~"]), names, st.just("="), values).map("".join),
    st.tuples(st.sampled_from(known_keys()), st.just("="), st.sampled_from(LIKELY)).map("".join),
    st.text(max_size=40),
).filter(lambda word: not word.startswith("-"))

# Values that every run on a few digits can have, with the default choices of files
SINGLE = {"width": 32, "allow_subnormal": False}  # of single precision, as a step computes
VALID: dict[str, st.SearchStrategy[object]] = {
    "seed": st.integers(0, 2**63 - 1),
    "optim.lr": st.floats(2.0**-100, 2.0**100, **SINGLE),
    "optim.weight_decay": st.floats(0, 1024, **SINGLE),
    "optim.schedule": st.sampled_from(["constant", "cosine", "step"]),
    "init.std": st.floats(0, 1024, **SINGLE),
    "norm.eps": st.floats(2.0**-100, 2.0**100, **SINGLE),
    "norm.momentum": st.floats(2.0**-20, 1, **SINGLE),
    "norm.unbiased": st.sampled_from(["true", "false"]),
    "norm.affine": st.sampled_from(["true", "false"]),
    "act": st.sampled_from(sorted(ACTIVATIONS)),
    "eval.every": st.integers(1, 2**63 - 1),
    "eval.first_until": st.sampled_from([0, "1e3", 2**62]),
    "eval.recalibrate": st.sampled_from(["true", "false"]),
    "eval.keep": st.sampled_from(["true", "false"]),
    "checkpoint.every_seconds": st.floats(1e-9, 1e9),
    "dataset.validation": st.integers(1, 400),
    "dataset.standardize": st.sampled_from(["true", "false"]),
    "dataset.binarize": st.sampled_from(["true", "false"]),
    "arch.norm_position": st.sampled_from(["before", "after"]),
    "arch.bias": st.sampled_from(["auto", "true", "false"]),
    "arch.hidden": st.lists(st.integers(1, 20), min_size=1, max_size=3).map(
        lambda widths: str(widths).replace(" ", "")
    ),
    "batch_size": st.sampled_from([2, 7, 60, "1e2"]),
    "trainable": st.just("all"),
    "precision": st.sampled_from(["fp32", "bf16"]),
}
valid = st.lists(st.sampled_from(sorted(VALID)), min_size=1, max_size=4, unique=True).flatmap(
    lambda keys: st.tuples(*(VALID[key].map(f"{key}={{}}".format) for key in keys))
)


@pytest.mark.parametrize("part", range(PARTS))
def test_fuzzed_overrides(bnexp: Bnexp, tmp_path: Path, times: Times, tell: Tell, part: int) -> None:
    """Half of the command lines are valid and run. Of the others each is refused in a line that names the key, or the
    one that it is at odds with, and nothing is made; or it is right.
    """
    ends = {"run": 0, "refused": 0, "right": 0}

    @fuzz(times(1500 // PARTS))
    @seed(part)
    @given(valid)
    def run(words: tuple[str, ...]) -> None:
        outcome = bnexp("train", *SHORT, *words, "hydra.run.dir=mine")
        assert (outcome.status, outcome.err) == (0, ""), words
        shutil.rmtree("mine")
        torch.set_flush_denormal(False)  # numbers are drawn below the smallest normal ones too
        ends["run"] += 1

    @fuzz(times(1500 // PARTS))
    @seed(part)
    @given(odd)
    def attempt(word: str) -> None:
        before = listing(tmp_path)
        outcome = bnexp("train", "dry_run=true", *SHORT, word)
        assert "Traceback" not in outcome.out + outcome.err, outcome
        assert listing(tmp_path) == before
        assert outcome.status in (0, 2), (word, outcome)
        ends["refused" if outcome.status else "right"] += 1
        if outcome.status:
            key = word.partition("=")[0].lstrip("+~") or word
            shown = [printable(" ".join(name.split()))[:40] for name in (key, key.split("@")[0])]
            check_refusal(outcome, [*shown, *(f"{name}=" for name in known_keys() if key in known_keys())])

    run()
    attempt()
    tell(
        f"fuzzed overrides, part {part + 1} of {PARTS}: {ends['run']:,} command lines ran, {ends['refused']:,} were "
        f"refused in a line that names the key, {ends['right']:,} were right; no traceback, no directory made"
    )
    assert ends["run"] >= sum(ends.values()) / 2
    assert ends["refused"]


def nested(key: str, value: object) -> object:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(PATHS))
scalars |= st.sampled_from([*INTERPOLATIONS, "os.system"])
keys = st.sampled_from([key.split(".")[0] for key in known_keys()] + ["name", "eps", "defaults", "hydra", "_target_"])
keys |= st.text(max_size=8)
parts = st.recursive(scalars, lambda part: st.lists(part, max_size=3) | st.dictionaries(keys, part, max_size=3))
trees = st.dictionaries(keys, parts, max_size=4) | st.builds(nested, st.sampled_from(known_keys()), scalars)
ODD = ["!!python/object/apply:os.system [ls]", "a: *b", "a: &a [*a]", "defaults: [../norm/batch]", "a: 1\na: 2"]
contents = st.one_of(
    trees.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True).encode()),
    trees.map(lambda tree: b"# @package _global_\n" + yaml.safe_dump(tree).encode()),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
    st.integers(1, 2000).map(lambda depth: b"[" * depth),
    st.sampled_from(ODD).map(str.encode),
)


def test_fuzzed_files(bnexp: Bnexp, tmp_path: Path, times: Times, tell: Tell) -> None:
    ends = {0: 0, 2: 0}
    file = tmp_path / "own" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)

    @fuzz(times(500))
    @seed(0)
    @given(contents)
    def attempt(content: bytes) -> None:
        file.write_bytes(content)
        before = listing(tmp_path)
        outcome = bnexp("train", "dry_run=true", *SHORT, "--config-dir", "own", "experiment=mine")
        assert "Traceback" not in outcome.out + outcome.err, outcome
        assert listing(tmp_path) == before
        assert outcome.status in (0, 2), (content, outcome)
        ends[outcome.status] += 1
        if outcome.status == 2:
            assert len(outcome.err.splitlines()) == 1, outcome.err
            assert outcome.err.startswith("bnexp: ")

    attempt()
    tell(f"{sum(ends.values())} fuzzed configuration files: {ends[2]} refused in a line, {ends[0]} right")
    assert min(ends.values()) > 0
