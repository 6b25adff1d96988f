"""Words and configuration files that nobody would think of.

`make test` tries a tenth of them; `make test-faults` all.
"""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Bnexp, Outcome, Tell, Times
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

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
fitting = st.tuples(st.sampled_from(["seed", "optim.lr", "init.std", "eval.every", "norm.eps"]), st.integers(1, 10**6))
overrides = st.one_of(
    fitting.map("{0[0]}={0[1]}".format),
    st.tuples(st.sampled_from(["", "", "", "+", "++", "~"]), names, st.just("="), values).map("".join),
    st.tuples(st.sampled_from(known_keys()), st.just("="), st.sampled_from(LIKELY)).map("".join),
    st.text(max_size=40),
).filter(lambda word: not word.startswith("-"))
DEAR = ("steps", "arch.", "batch_size", "dataset", "experiment", "device", "hydra", "threads", "compile", "checkpoint.")


@pytest.mark.parametrize("part", range(PARTS))
def test_fuzzed_words(bnexp: Bnexp, tmp_path: Path, times: Times, tell: Tell, part: int) -> None:
    """Refused in a line that names the key, or the one that it is at odds with, and nothing is made; or right, and then
    they run.
    """
    ends = {"refused": 0, "right": 0, "run": 0}

    @fuzz(times(5000 // PARTS))
    @seed(part)
    @given(overrides)
    def attempt(word: str) -> None:
        before = listing(tmp_path)
        outcome = bnexp("train", "dry_run=true", *SHORT, word)
        assert "Traceback" not in outcome.out + outcome.err, outcome
        assert listing(tmp_path) == before
        assert outcome.status in (0, 2), (word, outcome)
        if outcome.status == 2:
            ends["refused"] += 1
            key = word.partition("=")[0].lstrip("+~") or word
            names = [printable(" ".join(name.split()))[:40] for name in (key, key.split("@")[0])]
            check_refusal(outcome, [*names, *(f"{name}=" for name in known_keys() if key in known_keys())])
            return
        ends["right"] += 1
        if not word.lstrip("+").startswith(DEAR):
            assert bnexp("train", *SHORT, word, "hydra.run.dir=mine").status == 0, word
            shutil.rmtree("mine")
            torch.set_flush_denormal(False)  # hypothesis draws the smallest numbers too
            ends["run"] += 1

    attempt()
    tell(
        f"fuzzed overrides, part {part + 1} of {PARTS}: {ends['refused']:,} refused in a line that names the key, "
        f"{ends['right']:,} right, of which {ends['run']:,} ran; no traceback, no directory made"
    )
    assert min(ends.values()) > 0


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
