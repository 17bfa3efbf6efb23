"""Fine-tuning: train all weights on the clean images."""

import copy

from torch import nn

from rnp_mlflow.attacks.train import TrainParams, train
from rnp_mlflow.core.images import LabeledImages
from rnp_mlflow.core.seeds import generator
from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.preprocess import Preprocess

SETTINGS = TrainParams(100, lr=0.01, batch_size=64)  # epochs and learning rate of BackdoorBench's `ft`


def purify(
    model: nn.Module, clean: LabeledImages, transform: Preprocess, seed: int, params: TrainParams | None = None
) -> nn.Module:
    """Return a copy of `model` after epochs of cross-entropy on crops of the clean images; params: else `SETTINGS`."""
    tuned = copy.deepcopy(model).requires_grad_(True)
    train(tuned, ImageSet(clean.images, clean.labels), transform, generator(seed, "finetune"), params or SETTINGS)
    return tuned.eval()
