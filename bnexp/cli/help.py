"""What is answered without running anything: --help, --cfg, --info and completion."""

import os
import sys
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from bnexp.cli.arguments import Arguments
from bnexp.cli.compose import (
    Composition,
    conf_dir,
    configurations,
    group_options,
    naming_overrides,
    parse_overrides,
    settings_of,
)
from bnexp.config import GROUPS, ConfigError


def first_composition(read: Arguments) -> Composition:
    """What Hydra composes for a run, or for the first of a sweep. Raises ConfigError."""
    with configurations(read.config_dir, read.config_name) as composer, naming_overrides(read.overrides):
        overrides = parse_overrides(read.overrides)
        settings = [settings_of(override, composer.folder)[0] for override in overrides]
        composer.compose_job(settings)  # which checks the values
        return composer.composed(tuple(setting.text for setting in settings))


def show_configuration(read: Arguments) -> int:
    """--cfg job|hydra|all, with --package and --resolve as Hydra has them. Raises ConfigError."""
    whole, wanted = first_composition(read).whole, read.flags["cfg"]
    keys = [str(key) for key in whole if wanted == "all" or (key == "hydra") == (wanted == "hydra")]
    shown: Any = OmegaConf.masked_copy(whole, keys)
    if package := read.flags.get("package"):
        shown = OmegaConf.select(shown, str(package))
        if shown is None:
            raise ConfigError(f"--package {package} is not allowed: it is no part of this configuration")
        print(f"# @package {package}")
    print(OmegaConf.to_yaml(shown, resolve="resolve" in read.flags), end="")
    return 0


def ask_hydra(read: Arguments) -> int:
    """--info, which Hydra answers, once the overrides are checked. Raises ConfigError."""
    first_composition(read)
    return complete_by_hydra([*read.for_hydra, *read.overrides])


def complete_by_hydra(arguments: list[str]) -> int:
    """Hand arguments to `hydra.main`, for what Hydra answers itself."""

    def task(_: DictConfig) -> None:
        raise AssertionError("nothing is run")

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, to be said in a line
    sys.argv = ["bnexp", *arguments]
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    return 0


def command_help(command: str) -> str:
    """The help of a command."""
    with configurations() as composer:
        whole = composer.composed(()).whole
        choices = [f"  {group}: {', '.join(group_options(group, None))}" for group in (*GROUPS, "executor")]
    shown = OmegaConf.to_yaml(OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]))
    return "\n".join([f"bnexp {command}", "", *choices, "", shown])
