"""JSON schemas of sweep and profile files, for editors.

They are the configuration's own, except that no field is required, because a file says only what differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mirai_bench.config.protocol import PROTOCOLS
from mirai_bench.config.run_config import MODEL_SIZES, RunConfig
from mirai_bench.config.sweep_file import SweepFile
from mirai_bench.utils.files import write_text

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def profile_schema() -> dict[str, Any]:
    """Returns the schema of a profile or run file."""
    schema = RunConfig.model_json_schema()
    sections = schema["$defs"]
    for section in (schema, *sections.values()):
        section.pop("required", None)
        for field in section.get("properties", {}).values():
            if field.get("default", "kept") in ({}, None):
                del field["default"]
    sections["BlockCausal"]["required"] = ["block_causal"]
    sections["ModelConfig"]["properties"]["size"]["enum"] = list(MODEL_SIZES)
    sections["ForesightConfig"]["properties"]["official"] = {
        "type": "boolean",
        "description": "Stands for the fields that do what the published Mirai code does with this source, where it "
        "differs from the paper's text (config/official.py).",
    }
    names = {"enum": list(PROTOCOLS)}
    sections["Protocol"]["properties"]["base"] = names | {
        "description": "The protocol that the other fields override."
    }
    protocol = sections["EvaluationConfig"]["properties"]["protocol"]
    sections["EvaluationConfig"]["properties"]["protocol"] = {
        "anyOf": [names, {"$ref": "#/$defs/Protocol"}],
        "description": protocol["description"],
    }
    return {"$schema": DIALECT} | schema | {"title": "mirai_bench profile"}


def sweep_schema() -> dict[str, Any]:
    """Returns the schema of a sweep file."""
    schema = SweepFile.model_json_schema()
    arms = schema["properties"]["arms"]
    arms.pop("additionalProperties", None)
    for pattern in arms.get("patternProperties", {}):
        arms["patternProperties"][pattern] = {"$ref": "#/$defs/ForesightConfig"}
    arms |= {"minProperties": 1, "additionalProperties": False}
    machine = schema["properties"]["machine"]
    schema["properties"]["machine"] = {
        "$ref": "#/$defs/MachineConfig",
        "description": machine["description"],
    }
    definitions = schema["$defs"] | profile_schema()["$defs"]
    return {"$schema": DIALECT} | schema | {"title": "mirai_bench sweep", "$defs": definitions}


SCHEMAS = {"sweep": sweep_schema, "profile": profile_schema}


def write_schemas(folder: Path) -> list[Path]:
    """Writes all schemas to `folder` and returns the paths of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, schema in SCHEMAS.items():
        path = folder / f"{name}.schema.json"
        write_text(path, json.dumps(schema(), indent=1, ensure_ascii=False) + "\n")
        paths.append(path)
    return paths
