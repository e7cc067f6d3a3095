"""What becomes of samples that a transform cannot take."""

import pytest
import torch

from mae.data.dataset import FeatureDataset, SampleDataset
from mae.data.decoding import DecodingError
from mae.data.loader import batches, make_loader
from mae.data.stream import Sample


class Transform:
    """Fails as its sample says."""

    def __call__(self, sample):
        if sample.image == b"broken image":
            raise DecodingError("OSError: truncated")
        if sample.image == b"broken code":
            raise IndexError("a bug of an augmentation")
        return {"pixel_values": torch.ones(1, 2, 2, dtype=torch.uint8)}, (7,)

    def blank(self):
        return {"pixel_values": torch.zeros(1, 2, 2, dtype=torch.uint8)}


def sample(image, position=0):
    return Sample(0, position, ("file", position), 1, image, position)


def test_image_that_cannot_be_decoded_consumes_its_position():
    dataset = SampleDataset(Transform())
    batch = dataset.collate([dataset[sample(b"image", 0)], dataset[sample(b"broken image", 1)]])
    assert (batch.weight, batch.size, batch.rows) == (0.5, 2, [0])
    assert batch.skipped == [(("file", 1), "OSError: truncated")]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_the_code_is_raised_and_no_image_is_blamed(num_workers):
    stream = [[sample(b"image"), sample(b"broken code")._replace(index=1)]]
    with pytest.raises(IndexError, match="a bug of an augmentation"):
        next(batches(make_loader(stream, SampleDataset(Transform()), num_workers)))


def test_features_of_unreadable_images_are_skipped_with_their_reasons():
    features = torch.arange(6.0).view(3, 2)
    dataset = FeatureDataset(
        features, torch.tensor([0, 2, 3]).numpy(), torch.arange(4).numpy(), [(("file", 1), "bad")]
    )
    batch = dataset.__getitems__([sample(b"", position) for position in (3, 1)])
    assert torch.equal(batch.pixel_values, features[2:]) and batch.labels.tolist() == [3]
    assert (batch.weight, batch.skipped) == (0.5, [(("file", 1), "bad")])
    blank = dataset.__getitems__([sample(b"", 1)])
    assert blank.weight == 0 and not blank.pixel_values.any()
