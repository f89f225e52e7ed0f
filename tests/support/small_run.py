"""The sections that shrink the shipped digits profile, so that a run of it takes seconds."""

SMALL = {
    "model": {"size": "nano", "depth": 3, "width": 32, "heads": 2},
    "foresight": {"projector": {"hidden": 32}, "encoder": {"epochs": 1, "depth": 2}},
    "train": {"epochs": 1, "batch_size": 16},
    "evaluation": {"at": [1], "protocol": {"base": "digits", "num_samples": 100}},
}
