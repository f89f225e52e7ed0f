"""The diagnostics. Each is one entry of DIAGNOSTICS."""

from __future__ import annotations

from mirai_bench.diagnose import (
    absorption,
    attention,
    exposure,
    foresight_map,
    gradients,
    pictures,
    sequence_probe,
    similarity,
    spatial,
    triviality,
)
from mirai_bench.diagnose.diagnostic import Diagnostic

DIAGNOSTICS: dict[str, Diagnostic] = {
    "foresight_map": Diagnostic(
        "Which cells of the image, past and future, can be read off the state of a cell?",
        foresight_map.measure,
        foresight_map.HEADLINE,
    ),
    "spatial": Diagnostic(
        "Are the states of neighbouring cells alike, and how many directions do they use?",
        spatial.measure,
        spatial.HEADLINE,
    ),
    "gradients": Diagnostic(
        "Does foresight pull the shared parameters where next-token prediction does?",
        gradients.measure,
        gradients.HEADLINE,
    ),
    "similarity": Diagnostic(
        "Whose view of the images do the states have: the teacher's, the baseline's, a classifier's?",
        similarity.measure,
        similarity.HEADLINE,
    ),
    "sequence_probe": Diagnostic(
        "How much of the image's class has been understood by when?",
        sequence_probe.measure,
        sequence_probe.HEADLINE,
    ),
    "absorption": Diagnostic(
        "Does the trained head do the aligning, or the states that it reads?",
        absorption.measure,
        absorption.HEADLINE,
    ),
    "triviality": Diagnostic(
        "How much of what foresight teaches is the position of the cell?",
        triviality.measure,
        triviality.HEADLINE,
    ),
    "attention": Diagnostic(
        "How far does a state look on the grid, and how much at the class token?",
        attention.measure,
        attention.HEADLINE,
    ),
    "exposure": Diagnostic(
        "Is the model less sure of how to go on after its own samples than after real images?",
        exposure.measure,
        exposure.HEADLINE,
    ),
    "pictures": Diagnostic(
        "What do the states of a few images look like on the grid?",
        pictures.measure,
        pictures.HEADLINE,
    ),
}
