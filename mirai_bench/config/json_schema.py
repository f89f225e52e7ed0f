"""JSON schemas of sweep and profile files, for editors.

They are the configuration's own, except that no field is required, because a file says only what
differs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mirai_bench.config.model_config import MODEL_SIZES
from mirai_bench.config.protocol import PROTOCOLS
from mirai_bench.config.run_config import RunConfig
from mirai_bench.config.sweep_file import SweepFile
from mirai_bench.utils.files import write_text

# Editors need it to know the rules of the schema itself. The one that pydantic writes.
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def profile_schema() -> dict[str, Any]:
    """Returns the schema of a profile or run file."""
    schema = RunConfig.model_json_schema()
    sections = schema["$defs"]
    # 1. No field is required, and a default that says nothing is not shown.
    for section in (schema, *sections.values()):
        section.pop("required", None)
        for field in section.get("properties", {}).values():
            if field.get("default", "kept") in ({}, None):
                del field["default"]
    sections["BlockCausal"]["required"] = ["block_causal"]  # it is told from `full` by this field
    for rival in schema["properties"]["regularizer"]["discriminator"]["mapping"].values():
        sections[rival.rpartition("/")[2]]["required"] = ["name"]
    # 2. What a file may say besides the fields: the preset, and protocols by their names.
    sections["ModelConfig"]["properties"]["size"]["enum"] = list(MODEL_SIZES)
    sections["ForesightConfig"]["properties"]["official"] = {
        "type": "boolean",
        "description": "Stands for the fields that do what the published Mirai code does with this "
        "source, where it differs from the paper's text (config/official.py).",
    }
    names = {"enum": list(PROTOCOLS)}
    what = "The protocol that the other fields override."
    sections["Protocol"]["properties"]["base"] = names | {"description": what}
    protocol = sections["EvaluationConfig"]["properties"]["protocol"]
    protocol["anyOf"] = [names, {"$ref": protocol.pop("$ref")}]
    return {"$schema": DIALECT} | schema | {"title": "mirai_bench profile"}


def sweep_schema() -> dict[str, Any]:
    """Returns the schema of a sweep file."""
    schema = SweepFile.model_json_schema()
    fields = schema["properties"]
    arms = fields["arms"]
    arms.pop("additionalProperties", None)
    # The names of arms are checked by a pattern, and their fields are those of foresight, and
    # `regularizer`.
    for pattern in arms.get("patternProperties", {}):
        arms["patternProperties"][pattern] = {"$ref": "#/$defs/Arm"}
    arms |= {"minProperties": 1, "additionalProperties": False}
    description = fields["machine"]["description"]
    fields["machine"] = {"$ref": "#/$defs/MachineConfig", "description": description}
    profile = profile_schema()
    definitions = schema["$defs"] | profile["$defs"]
    foresight = definitions["ForesightConfig"]
    regularizer = {"regularizer": profile["properties"]["regularizer"]}
    arm = {"title": "Arm", "description": "What an arm changes about the profile."}
    definitions["Arm"] = foresight | arm | {"properties": foresight["properties"] | regularizer}
    return {"$schema": DIALECT} | schema | {"title": "mirai_bench sweep", "$defs": definitions}


SCHEMAS = {"sweep": sweep_schema, "profile": profile_schema}


def write_schemas(folder: Path) -> list[Path]:
    """Writes all schemas to `folder` and returns the paths of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    schemas = {folder / f"{name}.schema.json": schema for name, schema in SCHEMAS.items()}
    for path, schema in schemas.items():
        write_text(path, json.dumps(schema(), indent=1, ensure_ascii=False) + "\n")
    return list(schemas)
