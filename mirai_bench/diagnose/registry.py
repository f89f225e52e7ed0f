"""The diagnostics. Each is one entry of DIAGNOSTICS."""

from __future__ import annotations

from mirai_bench.diagnose import spatial
from mirai_bench.diagnose.diagnostic import Diagnostic

DIAGNOSTICS: dict[str, Diagnostic] = {
    "spatial": Diagnostic(
        "Are the states of neighbouring cells alike, and how many directions do they use?",
        spatial.measure,
        spatial.HEADLINE,
    ),
}
