"""A job that Hydra composed: its directory with Hydra's record, and its log, as Hydra's own `run_job` makes them. That
copies the configuration five times, which is half of a short run's seconds, and is one job at a time.
"""

import re
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf, open_dict

from bnexp.files import shortest
from bnexp.runs import Launch


def open_job(config: DictConfig, directory: Path) -> Launch:
    """Make its directory; the log goes there from now on. Raises OSError."""
    with open_dict(config):
        config.hydra.runtime.output_dir = str(directory.absolute())
    launch = launch_of(config.hydra)
    record = launch.directory / config.hydra.output_subdir
    for folder in (launch.directory, record):
        folder.mkdir(parents=True, exist_ok=True)
    keys = re.split(r"^(?=\S)", OmegaConf.to_yaml(config), flags=re.MULTILINE)  # to write a part it would be copied
    hydra = [key for key in keys if key.startswith("hydra:")]
    texts = {"hydra": "".join(hydra), "config": "".join(key for key in keys if key not in hydra)}
    for name, text in (texts | {"overrides": OmegaConf.to_yaml(config.hydra.overrides.task)}).items():
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
