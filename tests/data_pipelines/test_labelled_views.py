"""What supervised training sees: crops with labels, RandAugment, mixup and CutMix."""

import numpy as np
import pytest
import torch

from data_pipelines.base import SampleError
from data_pipelines.views import Draw
from data_pipelines.views.labelled import LabelledCrop
from data_pipelines.views.mixing import Mixing, mix_images
from data_pipelines.views.rand_augment import OPERATIONS, RandAugment
from tests.data_pipelines.test_views import batch_of, picture, sample_of


def labelled(count):
    return [sample_of(picture(channels=1, seed=seed), label=seed) for seed in range(count)]


def test_a_crop_brings_its_label_and_one_without_is_refused():
    view = LabelledCrop(image_size=16, channels=1)
    batch = batch_of(view, labelled(3))
    assert batch["image"].shape == (3, 1, 16, 16)
    assert batch["label"].tolist() == [0, 1, 2]
    with pytest.raises(SampleError, match="no label"):
        view.sample(sample_of(picture()), Draw(0, 0))


def test_the_share_of_a_label_is_the_share_of_its_pixels():
    """Partners are white, the image itself black: the mean of what is left is the partner's share."""
    images = torch.stack([torch.full((1, 16, 16), float(row % 2)) for row in range(400)])  # partners differ in colour
    rng = np.random.default_rng(0)
    rows = [Mixing().draw(16, rng) for _ in range(400)]
    drawn = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    mixed = mix_images(images, drawn)
    own = torch.where(images.mean(dim=(1, 2, 3)) == 1, mixed.mean(dim=(1, 2, 3)), 1 - mixed.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(own, drawn["share"], atol=1e-5, rtol=0)
    cut = drawn["blend"] == 1
    assert 0.4 < cut.float().mean() < 0.6
    assert set(mixed[cut].unique().tolist()) == {0.0, 1.0}  # rectangles, not blends
    assert 0.35 < float(drawn["share"][~cut].mean()) < 0.65


def test_one_of_the_two_can_be_left_out():
    rng = np.random.default_rng(0)
    assert all(Mixing(mixup=0).draw(16, rng)["blend"] == 1 for _ in range(50))
    assert not any(Mixing(cutmix=0).draw(16, rng)["box"].any() for _ in range(50))
    assert Mixing(mixup=0, cutmix=0).draw(16, rng)["share"] == 1


def test_mixed_batches_name_both_labels_and_are_keyed_by_slot():
    view = LabelledCrop(image_size=16, channels=1, mixing=Mixing(), rand_augment=RandAugment())
    first, again, later = (batch_of(view, labelled(4), first=g) for g in (0, 0, 4))
    assert first["partner_label"].tolist() == [3, 2, 1, 0]
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["share"], later["share"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_every_operation_keeps_the_shape_and_changes_the_picture(channels, number, monkeypatch):
    monkeypatch.setattr("data_pipelines.views.rand_augment.OPERATIONS", (OPERATIONS[number],))
    image = picture(channels=channels, seed=3) // 2  # room for contrast to be stretched
    changed = RandAugment(operations=1, probability=1).apply(image, np.random.default_rng(0))
    assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
    colourless = channels == 1 and number == 7  # a grey picture has no colour to change
    assert np.array_equal(changed, image) == colourless


def test_a_stronger_augmentation_moves_farther():
    image = picture(height=64, width=64, seed=1)
    distances = []
    for strength in (1.0, 5.0, 10.0):
        augment = RandAugment(strength=strength, jitter=0, probability=1)
        draws = [augment.apply(image, np.random.default_rng(seed)) for seed in range(60)]
        distances.append(np.mean([np.abs(draw.astype(int) - image).mean() for draw in draws]))
    assert distances == sorted(distances)
    never = RandAugment(probability=0)
    assert np.array_equal(never.apply(image, np.random.default_rng(0)), image)
