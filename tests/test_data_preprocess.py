"""Normalisation, crops and mirroring, against the formulas written out."""

import numpy as np
import torch
from tensors import seeded

from rnp_mlflow.data.imageset import ImageSet
from rnp_mlflow.data.preprocess import Preprocess


def test_pixels_are_what_normalisation_came_from() -> None:
    feed = Preprocess((0.49, 0.2, 0.3), (0.25, 0.3, 0.2), 4, True)
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8, generator=seeded())
    assert torch.equal(feed.pixels(feed(images, None)), images)
    assert feed.pixels(feed(images, None) + 99).eq(255).all()


def test_preprocessing_normalises_and_shifts_whole_pixels() -> None:
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.uint8).view(2, 3, 6, 6)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    plain = Preprocess(mean, std, crop=2, flip=True)(images, None)
    want = (images.numpy() / 255 - np.array(mean).reshape(3, 1, 1)) / np.array(std).reshape(3, 1, 1)
    assert np.allclose(plain, want, atol=1e-6)
    many = images[:1].repeat(300, 1, 1, 1)
    shifted = Preprocess(mean, std, crop=2).augment(many, seeded())
    padded = torch.nn.functional.pad(images[0], (2, 2, 2, 2))
    windows = {padded[:, r : r + 6, c : c + 6].numpy().tobytes() for r in range(5) for c in range(5)}
    assert {image.contiguous().numpy().tobytes() for image in shifted} == windows
    grey = Preprocess((0.1,), (0.5,), crop=2).augment(many[:, :1].contiguous(), seeded())
    assert grey.stride() == (36, 36, 6, 1), "channels-last strides reach kernels that corrupt memory"
    mirrored = Preprocess(mean, std, flip=True).augment(many, seeded())
    kinds = {image.contiguous().numpy().tobytes() for image in mirrored}
    assert kinds == {images[0].numpy().tobytes(), images[0].flip(2).contiguous().numpy().tobytes()}


def test_clean_views_are_crops_with_their_labels_and_none_is_the_image_itself() -> None:
    clean = ImageSet(torch.arange(4 * 64, dtype=torch.uint8).view(4, 1, 8, 8), torch.arange(4))
    feed = Preprocess((0.5,), (0.5,), crop=1)
    same, _ = feed.random_crops(clean.images, clean.labels, 0, seeded())
    assert same is clean.images
    images, labels = feed.random_crops(clean.images, clean.labels, 5, seeded())
    assert labels.tolist() == [0, 1, 2, 3] * 5
    for image, label in zip(images, labels, strict=True):
        padded = torch.nn.functional.pad(clean.images[label], (1, 1, 1, 1))
        crops = [padded[:, r : r + 8, c : c + 8] for r in range(3) for c in range(3)]
        assert any(torch.equal(image, crop) for crop in crops)
