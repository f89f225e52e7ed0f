"""JSON schemas of sweep and profile files, for editors: the config's own, with nothing required, since a file only says what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mirai_bench.config.protocol import PROTOCOLS
from mirai_bench.config.run_config import MODEL_SIZES, RunConfig
from mirai_bench.config.sweep_file import SweepFile
from mirai_bench.utils.files import write_atomic

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def profile_schema() -> dict[str, Any]:
    """Of a profile or run file."""
    schema = RunConfig.model_json_schema()
    sections = schema["$defs"]
    for section in (schema, *sections.values()):
        section.pop("required", None)
    sections["BlockCausal"]["required"] = ["block_causal"]
    sections["Model"]["properties"]["size"]["enum"] = list(MODEL_SIZES)
    sections["Foresight"]["properties"]["official"] = {
        "type": "boolean",
        "description": "all that the published Mirai code does otherwise than the paper says, for the source beside it (presets.py)",
    }
    names = {"enum": list(PROTOCOLS)}
    sections["Protocol"]["properties"]["base"] = names | {
        "description": "the protocol that the other fields are laid over"
    }
    evaluation = sections["Evaluation"]["properties"]
    evaluation["protocol"] = {
        "anyOf": [names, {"$ref": "#/$defs/Protocol"}],
        "description": "by name, or its own fields",
    }
    for section in sections.values():
        for field in section.get("properties", {}).values():
            field.pop("default", None) if field.get("default") in ({}, None) else None
    return {"$schema": DIALECT, "title": "mirai_bench profile"} | {
        key: value for key, value in schema.items() if key != "title"
    }


def sweep_schema() -> dict[str, Any]:
    schema, profile = SweepFile.model_json_schema(), profile_schema()
    fields = schema["properties"]
    fields["arms"].pop("additionalProperties", None)
    for pattern in fields["arms"].get("patternProperties", {}):
        fields["arms"]["patternProperties"][pattern] = {"$ref": "#/$defs/Foresight"}
    fields["arms"] |= {"minProperties": 1, "additionalProperties": False}
    fields["machine"] = {"$ref": "#/$defs/Machine", "description": fields["machine"]["description"]}
    return (
        {"$schema": DIALECT, "title": "mirai_bench sweep"}
        | {k: v for k, v in schema.items() if k != "title"}
        | {"$defs": profile["$defs"]}
    )


SCHEMAS = {"sweep": sweep_schema, "profile": profile_schema}


def write(folder: Path) -> list[Path]:
    """→ the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / f"{name}.schema.json": make for name, make in SCHEMAS.items()}
    for path, make in paths.items():
        write_atomic(path, json.dumps(make(), indent=1, ensure_ascii=False) + "\n")
    return list(paths)
