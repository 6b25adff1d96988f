"""A job that Hydra composed: its directory with Hydra's record, and its log, as Hydra's own `run_job` makes them. That
copies the configuration five times, which is half of a short run's seconds, and is one job at a time.
"""

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.conf import HydraConf
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf._utils import OmegaConfDumper, get_omega_conf_dumper

from bnexp.config import literal
from bnexp.console import complain
from bnexp.files import shortest
from bnexp.runs import Launch


class Dumper(getattr(yaml, "CDumper", yaml.Dumper)):  # type: ignore[misc]
    """What OmegaConf.to_yaml writes with, by libyaml where there is one: the same text in a fifth of the time."""


Dumper.add_representer(str, OmegaConfDumper.str_representer)


def open_job(config: DictConfig, directory: Path) -> Launch:
    """Make its directory; the log goes there from now on. Raises OSError."""
    with open_dict(config):
        config.hydra.runtime.output_dir = literal(str(directory.absolute()))
    launch = launch_of(config.hydra)
    record = launch.directory / config.hydra.output_subdir
    for folder in (launch.directory, record):
        folder.mkdir(parents=True, exist_ok=True)
    values: Any = OmegaConf.to_container(config, enum_to_str=True)
    hydra = values.pop("hydra")
    for name, part in (("config", values), ("hydra", {"hydra": hydra}), ("overrides", hydra["overrides"]["task"])):
        (record / f"{name}.yaml").write_text(to_yaml(part), encoding="utf-8")
    take_log(config)
    return launch


def to_yaml(values: object) -> str:
    style: dict[str, Any] = {"default_flow_style": False, "allow_unicode": True, "sort_keys": False}
    try:
        return str(yaml.dump(values, Dumper=Dumper, **style))
    except UnicodeEncodeError:  # libyaml's, of a directory whose name is not UTF-8
        return str(yaml.dump(values, Dumper=get_omega_conf_dumper(), **style))


def take_log(config: DictConfig) -> None:
    """Until another job takes it. A log that can't be opened is done without, and a line says so. Raises OSError where
    its directory isn't there.
    """
    try:
        configure_log(config.hydra.job_logging, config.hydra.verbose)
    except ValueError as error:  # logging's; the cause is what names the file
        cause = error.__cause__
        if not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError):
            raise cause or error from None
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        complain(f"{cause.filename}: {cause.strerror}: the run goes on without a log")


def launch_of(job: DictConfig | HydraConf) -> Launch:
    """Where a job's run goes, by Hydra's part of its configuration."""
    number = 0 if OmegaConf.is_missing(job.job, "num") else job.job.num  # set in sweeps alone
    return Launch(shortest(Path(job.runtime.output_dir)), list(job.overrides.task), number)
