"""Patches: patchify, unpatchify and the patch embedding."""

import pytest
import torch

from tests.support.models import assert_close, make_images, tiny_model


SHAPES = [  # image size, patch size, channels
    ((32, 32), 8, 3),
    ((32, 32), 16, 1),
    ((24, 40), 8, 4),
    ((24, 40), (8, 4), 13),
    ((8, 16), 8, 3),
    ((6, 35), (2, 7), 2),
]


@pytest.mark.parametrize("image_size, patch_size, channels", SHAPES)
def test_patchify_orders_patches_by_raster_and_unpatchify_inverts_it(image_size, patch_size, channels):
    model = tiny_model(image_size=image_size, patch_size=patch_size, num_channels=channels, mask_ratio=0.5)
    images = make_images(*image_size, channels=channels)
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    expected = [
        # "nchpwq->nhwpqc": rows of patches, patches of a row, rows of a patch, pixels of a row, channels
        [image[:, y + p, x + q] for p in range(height) for q in range(width)]
        for image in images
        for y in range(0, image_size[0], height)
        for x in range(0, image_size[1], width)
    ]
    expected = torch.stack([torch.cat(patch) for patch in expected]).unflatten(0, (2, -1))
    patches = model.patchify(images)
    assert torch.equal(patches, expected)
    assert torch.equal(model.unpatchify(patches), images)
    assert torch.equal(model.unpatchify(patches, image_size), images)


@pytest.mark.parametrize("image_size, patch_size, channels", SHAPES)
def test_patch_embedding_projects_the_patches_of_patchify(image_size, patch_size, channels):
    model = tiny_model(image_size=image_size, patch_size=patch_size, num_channels=channels, mask_ratio=0.5)
    images = make_images(*image_size, channels=channels)
    projection = model.mae.patch_embed.proj
    weight = projection.weight.permute(0, 2, 3, 1).flatten(1)
    assert_close(model.mae.patch_embed(images), model.patchify(images) @ weight.T + projection.bias, 5e-5)


def test_unpatchify_of_another_size_needs_image_size():
    model = tiny_model()
    images = make_images(16, 48)
    patches = model.patchify(images)
    assert torch.equal(model.unpatchify(patches, (16, 48)), images)
    with pytest.raises(ValueError, match=r"16, 192.*\(2, 12, 192\).*image_size="):
        model.unpatchify(patches)
