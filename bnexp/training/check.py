"""The checks of a run that need no training. They are made before any run of a sweep starts."""

from bnexp.data.load import load_data
from bnexp.models.init import INITS
from bnexp.models.norm_registry import find_norm
from bnexp.models.registry import check_model
from bnexp.runs import distributed
from bnexp.runs.config import ConfigError, RunConfig, require
from bnexp.runs.plugins import find_entry
from bnexp.training.device import pick_device
from bnexp.training.optim import find_optimizer
from bnexp.training.pretrained import find_start
from bnexp.training.state import trained_names


def check(config: RunConfig) -> list[str]:
    """Check everything about a run that can be checked before it starts, except its directory and whether a compiler
    works, and return lines to print.

    Without `init_from` there are none; with it, one line says how many tensors are loaded, skipped and new (`Match`).
    The data set is loaded, which may download it or cache the pictures of a folder; no other file is written. Raises
    ConfigError for the first thing that is not allowed.
    """
    find_entry("init", config.init.name, INITS)
    find_optimizer(config.optim)
    pick_device(config.device)
    data = load_data(config.dataset)
    if find_norm(config.norm).conditional and not config.dataset.conditions:
        raise ConfigError(f"norm={config.norm.name} needs dataset.conditions, as in [plain,inverted]")
    size, images, processes = config.batch_size, len(data.train), distributed.processes()
    require(size <= images, "batch_size", size, f"at most the {images} training images")
    require(size % processes == 0, "batch_size", size, f"{processes} processes share it equally")
    parallel = processes > 1
    in_vain = config.init_sha256 is not None and config.init_from is None
    require(not in_vain, "init_sha256", config.init_sha256, "only together with init_from=, whose SHA-256 it is")
    model = check_model(config, data.shape, data.classes)
    trained_names(model, config)
    recalibrates = parallel and config.eval.recalibrate
    require(not recalibrates, "eval.recalibrate", "true", "one process, not torchrun: the other ones end earlier")
    compiles = parallel and config.compile is True
    require(not compiles, "compile", "true", "under torchrun gradients are averaged between the passes: auto or false")
    differs = parallel and config.norm.name == "batch_renorm"
    require(not differs, "norm", "batch_renorm", "one process: of several, each would use running averages of its own")
    return [f"init_from={config.init_from}: {find_start(model, config)}"] if config.init_from else []
