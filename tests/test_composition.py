"""Compositions that are remembered: what Hydra's own loader composes anew each time."""

import os
import pickle
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bnexp.composition import Loader, conf_dir, configurations, our_loader
from bnexp.config import GROUPS

PLAIN = [group for group in GROUPS if group != "experiment"]
CHOICES = ["dataset=digits", "norm=group", "act=sigmoid"]
WORDS = [
    [],
    CHOICES,
    [*CHOICES, "norm.groups=2", "seed=3", "arch.hidden=[8,8]", "hydra.run.dir=x"],
    ["norm.groups=2", "norm=group", "++optim.lr=0.5", "experiment=demo", "steps=7", "steps=8"],
    ["arch=convnet", "~arch.dense", "hydra.launcher.workers=2", "init_from='a=b,c'"],
    ["dataset.root=${hydra:runtime.cwd}/x", "+hydra.launcher.submit_with.a=1", "optim={name: sgd, lr: 2}"],
]


def plain(config: DictConfig) -> object:
    return OmegaConf.to_container(config, resolve=False)


@pytest.mark.parametrize("mode", RunMode)
@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_as_hydra_composes(words: list[str], mode: RunMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the second time, and from another directory."""
    if mode is RunMode.MULTIRUN:
        words = [*words, "seed=range(3)", "act=relu,tanh"]
    with configurations():
        ours = Loader(None)
        theirs = ConfigLoaderImpl(ours.config_search_path)
        expected, composed = theirs.load_configuration("config", words, mode), 0
        for place in (os.getcwd(), str(tmp_path)):
            monkeypatch.chdir(place)
            found = ours.load_configuration("config", words, mode)
            expected.hydra.runtime.cwd = place
            assert plain(found) == plain(expected)
            assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)
            assert OmegaConf.is_readonly(found.hydra) == OmegaConf.is_readonly(expected.hydra)
            composed = composed or len(ours.composed)
    assert len(ours.composed) == composed, "the second time nothing is composed"


def shipped(number: int) -> list[str]:
    """A choice of every group, such that as many as there are of the largest group have all of them."""
    found = [sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")) for group in PLAIN]
    return [f"{group}={names[number % len(names)]}" for group, names in zip(PLAIN, found, strict=True)]


def test_every_shipped_choice_is_what_hydra_composes() -> None:
    with configurations():
        ours = Loader(None)
        theirs = ConfigLoaderImpl(ours.config_search_path)
        for number in range(max(len([*(conf_dir() / group).glob("*.yaml")]) for group in PLAIN)):
            found, expected = (it.load_configuration("config", shipped(number), RunMode.RUN) for it in (ours, theirs))
            assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected), "in the same order"


@pytest.mark.parametrize(
    "text",
    [
        "name: layer\neps: 0.5\n",
        "defaults: [batch, _self_]\neps: 0.5\n",
        "# @package _global_\nseed: 7\nnorm: {name: layer}\n",
        "# @package arch\nname: convnet\n",
    ],
)
def test_somebodys_files_are_composed_as_hydra_does(text: str, tmp_path: Path) -> None:
    (tmp_path / "norm").mkdir()
    (tmp_path / "norm" / "mine.yaml").write_text(text)
    with configurations():
        ours = Loader(str(tmp_path))
        theirs = ConfigLoaderImpl(ours.config_search_path)
        for words in (["act=tanh", "norm=mine", "seed=3"], ["+norm@arch=mine"]):
            found, expected = (it.load_configuration("config", words, RunMode.RUN) for it in (ours, theirs))
            assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected), words


def test_what_cannot_be_pickled_is_composed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the processes of joblib and submitit, which import their plugin twice."""

    def refuse(_: object) -> bytes:
        raise pickle.PicklingError

    with configurations():
        loader = Loader(None)
        expected = plain(loader.load_configuration("config", CHOICES, RunMode.RUN))
        monkeypatch.setattr("bnexp.composition.pickle.dumps", refuse)
        again = Loader(None)
        assert [plain(again.load_configuration("config", CHOICES, RunMode.RUN)) for _ in range(2)] == [expected] * 2
        assert not again.composed


def test_jobs_as_hydra_composes_them() -> None:
    setup_globals()
    with configurations():
        ours = Loader(None)
        theirs = ConfigLoaderImpl(ours.config_search_path)
        master = theirs.load_configuration("config", ["norm=none,batch", "hydra.sweep.dir=x"], RunMode.MULTIRUN)
        for job in (["norm=none", "seed=1"], ["norm=batch", "seed=1"], ["norm=none", "seed=2"]):
            assert plain(ours.load_sweep_config(master, job)) == plain(theirs.load_sweep_config(master, job))
    assert len(ours.composed) == 3, "the defaults, and two norms"


def test_no_composition_is_changed_by_who_has_it() -> None:
    with configurations():
        first = our_loader().load_configuration("config", CHOICES, RunMode.RUN)
        first.seed, first.hydra.run.dir = 7, "elsewhere"
        second = our_loader().load_configuration("config", CHOICES, RunMode.RUN)
    assert second.seed == 0
    assert "elsewhere" not in str(plain(second))
