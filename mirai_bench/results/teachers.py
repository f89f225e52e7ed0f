"""No arm is judged in the feature space of its own teacher.

An arm that is trained to match a network's features comes nearer to real images as this network sees
them, whether or not anything else would notice.
"""

from __future__ import annotations

from mirai_bench.results.configs import foresight_of
from mirai_bench.results.frame import Results, is_of_features

TEACHER = "teacher"  # stands where the verdict would
# For an extractor the foresight encoders that are the same network with the same weights.
SAME_NETWORK = {"dinov2": ("dinov2_l", "timm:vit_large_patch14_dinov2.lvd142m")}


def taught_by_judge(results: Results, metric: str) -> set[str]:
    """Returns the arms that this metric cannot judge: their teacher is the extractor's network."""
    if not is_of_features(metric):
        return set()
    found = set()
    for record in results.records:
        run = record["run"]
        judges = SAME_NETWORK.get(run["extractor"]["name"])
        if judges is None:
            continue
        foresight = foresight_of(run)
        encoder = foresight.encoder
        if foresight.uses_encoder and encoder.name in judges and encoder.weights != "random":
            found.add(record["arm"])
    return found


def teachers_note(results: Results, metric: str) -> str | None:
    """Returns a sentence on the arms that this metric cannot judge, or None if there are none."""
    barred = taught_by_judge(results, metric)
    arms = [arm for arm in results.arms if arm in barred]
    if not arms:
        return None
    extractor = results.records[0]["run"]["extractor"]["name"]
    return (
        f"Not judged by {metric}: {', '.join(arms)}, whose teacher is the network of extractor {extractor}. "
        "What judges them is the held-out loss (--metric heldout_ntp), or an evaluation with another "
        "extractor."
    )


def shared_teacher_note(results: Results) -> str | None:
    """Returns a sentence on the arms whose seeds share a teacher that the project trained, or None."""
    found = {}
    for record in results.records:
        foresight = foresight_of(record["run"])
        encoder = foresight.encoder
        trained = foresight.uses_encoder and encoder.name == "masked_tokens" and encoder.weights is None
        if trained or foresight.trains_teacher:
            found[record["arm"]] = foresight.teacher_seed
    arms = [f"{arm} (seed {found[arm]})" for arm in results.arms if arm in found]
    if not arms:
        return None
    return (
        f"All runs of an arm share one teacher, trained with foresight.teacher_seed: {', '.join(arms)}. What "
        "a teacher of another seed would change is in no interval."
    )
