"""Images in memory, and the statistics of their features, as tests of evaluations need them."""

import torch

from mirai_bench.evaluate.metrics import Moments


def gaussian_of(features):
    """Returns mean and covariance of features (n, d)."""
    moments = Moments(features.shape[1])
    moments.add(features)
    return moments.gaussian()


class ImageArray:
    """Images uint8 (n, h, w, 3) in memory, as a set of images without labels."""

    labels = None

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def read(self, rows):
        return self.images[rows.start : rows.stop]


class ImageTensors(torch.utils.data.Dataset):
    """Images uint8 (n, h, w, 3) as a data set that torch-fidelity reads."""

    def __init__(self, images):
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]
