"""What the scripts beside this file have in common: the images, and BatchNorms after a cut."""

import torch
from places import ROOT

from common.batches import Split
from train import reestimate

IMAGES = ROOT / "data" / "cifar100-20"
SCORED, BN_IMAGES = 1000, 512  # images for scores, and for BatchNorms' statistics


def only(split, classes):
    """The images of some classes that follow each other, whose labels begin at 0."""
    keep = torch.isin(split.labels, torch.tensor(list(classes)))
    return Split(split.images[keep], split.labels[keep] - min(classes))


def settle(network, data, seed):
    """Estimate the BatchNorms' statistics anew."""
    reestimate(
        network, data.train_batches(64, key=(seed, "BatchNorm"), count=BN_IMAGES, augmented=False)
    )
