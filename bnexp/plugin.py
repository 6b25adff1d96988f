"""What a plugin imports of bnexp, and what stays as it is: docs/guides/plugins.md.

- A norm is a function (`NormConfig`, number of channels) → module, or a `Norm` of such a function, which also says what
  is special about it.
- An activation is a function () → module.
- An architecture is a function (`Builder`, `Shape` of an image, number of classes) → module.
- A data set is an object or a module with the functions of `Loader`; it reads `Images` into a `Source`.
- An optimizer is an `Optimizer`; an initialization a function (`InitConfig`, weight, random numbers), which fills it.
"""

from bnexp.data.images import Images, Source
from bnexp.data.load import Loader
from bnexp.models.block import Block, Builder, GlobalMean, Shape, chain
from bnexp.models.norm_registry import Norm
from bnexp.models.norms import scalar
from bnexp.runs.config import ArchConfig, ConfigError, DatasetConfig, InitConfig, NormConfig, OptimConfig
from bnexp.training.optim import Numbers, Optimizer, Slots

__all__ = [
    "ArchConfig",
    "Block",
    "Builder",
    "ConfigError",
    "DatasetConfig",
    "GlobalMean",
    "Images",
    "InitConfig",
    "Loader",
    "Norm",
    "NormConfig",
    "Numbers",
    "OptimConfig",
    "Optimizer",
    "Shape",
    "Slots",
    "Source",
    "chain",
    "scalar",
]
