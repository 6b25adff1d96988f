"""What Hydra loads: the launcher and the sweeper of bnexp's sweeps. They are light, since completion loads them too."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class BnexpLauncher(Launcher):
    """hydra.launcher.workers and .max_stack are read by bnexp.plan, whose plan comes with the task."""

    def __init__(self, **options: object) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from bnexp.launch import launch  # noqa: PLC0415

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return launch(self.context, self.config, self.task.sweep)  # type: ignore[attr-defined]


class BnexpSweeper(BasicSweeper):
    """Hydra's own, but that all jobs are launched at once, and none is composed again: bnexp.plan has done that."""

    def __init__(self) -> None:
        super().__init__(max_batch_size=None)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        pass


@dataclass
class LauncherConfig:
    _target_: str = "hydra_plugins.bnexp_launcher.launcher.BnexpLauncher"
    workers: Any = "auto"
    max_stack: Any = "auto"
    submit: str | None = None
    submit_with: dict[str, Any] = field(default_factory=dict)


@dataclass
class SweeperConfig:
    _target_: str = "hydra_plugins.bnexp_launcher.launcher.BnexpSweeper"


store = ConfigStore.instance().store
store(group="hydra/launcher", name="bnexp", node=LauncherConfig, provider="bnexp")
store(group="hydra/sweeper", name="bnexp", node=SweeperConfig, provider="bnexp")
