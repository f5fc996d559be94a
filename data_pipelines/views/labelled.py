"""What supervised training sees: a labelled crop, perhaps changed further, perhaps mixed with another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from data_pipelines.base import SampleError
from data_pipelines.batch import Batch, Sample
from data_pipelines.views import Draw
from data_pipelines.views.image import NO_LABEL, Crop, ImageView
from data_pipelines.views.mixing import Mixing, mix_images
from data_pipelines.views.rand_augment import RandAugment


class LabelledCrop(ImageView):
    """One random crop and its class.

    Fields of a batch: image (B, C, H, W) float32, label (B,) int64; where images are mixed also partner_label (B,)
    int64 and share (B,) float32, the part of the image that is `label`'s.
    """

    classes: int | None = Field(None, gt=0)
    """Labels from this number on are refused; none when unset."""
    crop: Crop = Crop(area=(0.08, 1.0))
    rand_augment: RandAugment | None = None
    mixing: Mixing | None = None

    def sample(self, sample: Sample, draw: Draw) -> Mapping[str, np.ndarray]:
        """See `View.sample`; a sample without a label is refused."""
        label = self.label(sample)
        if label == NO_LABEL:
            raise SampleError("no label (.cls)", key=sample.key, shard=sample.shard)
        if self.classes is not None and label >= self.classes:
            raise SampleError(f"class {label}, there are {self.classes}", key=sample.key, shard=sample.shard)
        image = self.crop.decode(self.encoded(sample), self.image_size, draw.rng("crop"))
        if self.rand_augment is not None:
            image = self.rand_augment.apply(image, draw.rng("rand_augment"))
        drawn = self.mixing.draw(self.image_size, draw.rng("mixing")) if self.mixing is not None else {}
        return {"image": image, "label": label, **drawn}

    def batch(self, batch: Batch) -> Batch:
        """See `View.batch`."""
        images = self.normalized(batch["image"])
        if self.mixing is None:
            return batch.with_fields(image=images)
        return batch.with_fields(image=mix_images(images, batch.fields), partner_label=batch["label"].flip(0))
