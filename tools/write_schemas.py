"""Write the JSON Schemas by which editors complete and check the YAML files of configs/.

example:
  python tools/write_schemas.py
"""

from __future__ import annotations

import json
from pathlib import Path

from detection.classification.config import ClassificationConfig
from detection.config.detection import DetectionConfig
from detection.config.load import json_schema
from detection.localization.config import LocalizationConfig

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "schema"
PROGRAMS = (DetectionConfig, ClassificationConfig, LocalizationConfig)


def schemas() -> dict[Path, str]:
    """Returns the content of every schema file."""
    return {FOLDER / f"{kind.program}.json": json.dumps(json_schema(kind), indent=1) + "\n" for kind in PROGRAMS}


if __name__ == "__main__":
    for path, text in schemas().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
