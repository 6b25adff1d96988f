"""A job that Hydra composed: its directory with Hydra's record, and its log, as Hydra's own `run_job` makes them. That
copies the configuration five times, which is half of a short run's seconds, and is one job at a time.
"""

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra.conf import HydraConf
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf._utils import OmegaConfDumper

from bnexp.files import shortest
from bnexp.runs import Launch


class Dumper(yaml.CSafeDumper):  # type: ignore[misc]
    """What OmegaConf.to_yaml writes with, by libyaml: the same text in a fifth of the time."""


Dumper.add_representer(str, OmegaConfDumper.str_representer)


def open_job(config: DictConfig, directory: Path) -> Launch:
    """Make its directory; the log goes there from now on. Raises OSError."""
    with open_dict(config):
        config.hydra.runtime.output_dir = str(directory.absolute())
    launch = launch_of(config.hydra)
    record = launch.directory / config.hydra.output_subdir
    for folder in (launch.directory, record):
        folder.mkdir(parents=True, exist_ok=True)
    values: Any = OmegaConf.to_container(config, enum_to_str=True)
    hydra = values.pop("hydra")
    for name, part in (("config", values), ("hydra", {"hydra": hydra}), ("overrides", hydra["overrides"]["task"])):
        text = yaml.dump(part, Dumper=Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
        (record / f"{name}.yaml").write_text(text, encoding="utf-8")
    take_log(config)
    return launch


def take_log(config: DictConfig) -> None:
    """Until another job takes it."""
    configure_log(config.hydra.job_logging, config.hydra.verbose)


def launch_of(job: DictConfig | HydraConf) -> Launch:
    """Where a job's run goes, by Hydra's part of its configuration."""
    number = 0 if OmegaConf.is_missing(job.job, "num") else job.job.num  # set in sweeps alone
    return Launch(shortest(Path(job.runtime.output_dir)), list(job.overrides.task), number)
