"""The JSON Schema of a dataset declaration, for editors that complete and check YAML.

What belongs here: making the schema from the model. ``dataset.schema.json`` beside this module is
its output, held against it by a test; regenerate it with ``python -m export_pipeline.catalog.schema``.
What does not: validation itself (model, checks), which also knows what a schema cannot say.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from export_pipeline.catalog.model import Dataset

SCHEMA_FILE = "dataset.schema.json"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one ``*.yaml`` dataset declaration."""
    schema = Dataset.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def json_schema_text() -> str:
    """The schema as the shipped file holds it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def shipped_schema_text() -> str:
    """The schema file that ships with the package."""
    return (resources.files("export_pipeline.catalog") / SCHEMA_FILE).read_text("utf-8")


if __name__ == "__main__":
    Path(__file__).with_name(SCHEMA_FILE).write_text(json_schema_text(), "utf-8")
