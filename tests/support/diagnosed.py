"""Diagnoses in run folders, without weights: lines of `diagnosis.jsonl` with chosen numbers."""

import json
from pathlib import Path

from tests.support.synthetic import START

SCOPE = {"heldout_images": 40, "fit_images": 60, "reach": 1, "pictures": False, "seed": 0}


def diagnosis_line(config, diagnostic, values, detail=None, **more):
    """The newest weights of a run of the shipped schedule have step 120."""
    line = {"kind": "diagnosis", "time": START + 2000, "step": 120, "epoch": 12.0, "diagnostic": diagnostic}
    line |= {"digest": "ab12", "scope": SCOPE, "values": values, "detail": detail or {}, "seconds": 0.5}
    line |= {"fingerprint": config.fingerprint(), "profile": config.profile, "seed": config.seed}
    line |= {"device": "a CPU", "precision": "fp32", "git": {"commit": "0" * 40, "dirty": False}}
    return line | {"versions": {"python": "3.11"}} | more


def write_diagnoses(runs, config, lines):
    """Adds lines to the diagnoses of a run."""
    with open(Path(runs) / config.fingerprint() / "diagnosis.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
