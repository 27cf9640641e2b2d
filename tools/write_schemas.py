"""Writes the JSON Schemas with which editors complete and check the YAML files of configs/.

example:
  python tools/write_schemas.py
"""

from __future__ import annotations

import json
from pathlib import Path

from detection.classification.config import ClassificationConfig
from detection.config.detection import DetectionConfig
from detection.config.load import json_schema
from detection.edges.config import EdgesConfig
from detection.localization.config import LocalizationConfig

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "schema"


def main(folder: Path = FOLDER) -> None:
    """Writes a file for each program."""
    folder.mkdir(exist_ok=True)
    for kind in (DetectionConfig, ClassificationConfig, LocalizationConfig, EdgesConfig):
        path = folder / f"{kind.program}.json"
        path.write_text(json.dumps(json_schema(kind), indent=1) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
