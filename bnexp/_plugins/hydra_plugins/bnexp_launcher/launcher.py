"""The launcher of bnexp's sweeps: every job in turn; one that fails does not stop the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


class SweepError(RuntimeError):
    """Some of a sweep's runs failed; the text names them."""


class BnexpLauncher(Launcher):
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        returns = [self.run(initial_job_idx + i, list(words)) for i, words in enumerate(job_overrides)]
        failed = [
            f"{' '.join(filter_overrides(words))} ({result._return_value})"
            for words, result in zip(job_overrides, returns, strict=True)
            if result.status is not JobStatus.COMPLETED
        ]
        if failed:
            raise SweepError(f"{len(failed)} of {len(returns)} runs failed: {'; '.join(failed)}")
        return returns

    def run(self, number: int, overrides: list[str]) -> JobReturn:
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        OmegaConf.set_readonly(config.hydra, True)
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        result = run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return result


@dataclass
class LauncherConfig:
    _target_: str = "hydra_plugins.bnexp_launcher.launcher.BnexpLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="bnexp", node=LauncherConfig, provider="bnexp")
