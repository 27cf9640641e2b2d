"""Object detection with residual networks: the public API, and the entry point of the command ``resdet``.

    import resdet

    predictor = resdet.Predictor.load("output/bccd/resnet18_c4")
    found = predictor("cells.jpg")
    config = resdet.load_config(resdet.DetectionConfig, resdet.find_config("bccd/resnet18_c4"), ["solver.base_lr=0.01"])
    result = resdet.train(config, Path("output/mine"))
    result = resdet.test(config, resdet.load("output/mine"), Path("output/mine/test"))
    found = resdet.evaluate(Path("val.json"), {"yolo": [Path("yolo.json")]}, Path("output/evaluation"))

Names are imported on first use, so that importing this module does not import PyTorch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detection.cli import main
    from detection.config.detection import DetectionConfig
    from detection.config.load import load_config
    from detection.data.images import read_image
    from detection.export.runtime import load
    from detection.packaged import find_config
    from detection.predictor import Predictor
    from detection.report.compare import run_comparison as compare
    from detection.report.evaluation import write_evaluation as evaluate
    from detection.tasks.export import run_export as export
    from detection.tasks.test import run_test as test
    from detection.tasks.train import run_training as train

__version__ = "0.3.0"
__all__ = [
    "DetectionConfig",
    "Predictor",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "find_config",
    "load",
    "load_config",
    "main",
    "read_image",
    "test",
    "train",
]

# Public name -> module and name of its definition.
_HOMES = {
    "DetectionConfig": "detection.config.detection:DetectionConfig",
    "Predictor": "detection.predictor:Predictor",
    "compare": "detection.report.compare:run_comparison",
    "evaluate": "detection.report.evaluation:write_evaluation",
    "find_config": "detection.packaged:find_config",
    "export": "detection.tasks.export:run_export",
    "load": "detection.export.runtime:load",
    "load_config": "detection.config.load:load_config",
    "main": "detection.cli:main",
    "read_image": "detection.data.images:read_image",
    "test": "detection.tasks.test:run_test",
    "train": "detection.tasks.train:run_training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _refuse_strangers() -> None:
    """Raises ImportError if ``import detection`` or ``import backbones`` finds a package of another project."""
    for name in ("backbones", "detection"):
        ours = Path(__file__).resolve().parent / name / "__init__.py"
        spec = importlib.util.find_spec(name)
        found = None if spec is None else spec.origin or [*(spec.submodule_search_locations or ())]
        if not isinstance(found, str) or Path(found).resolve() != ours:
            raise ImportError(
                f"import {name} finds {found}, but resdet needs {ours}: rename or uninstall the other one, or start "
                "from another folder and without it in PYTHONPATH"
            )


_refuse_strangers()

if __name__ == "__main__":
    sys.exit(__getattr__("main")())
