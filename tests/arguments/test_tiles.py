"""Flags that cut large images into tiles."""

import pytest

from mae.arguments.recipes import PreTrainingRecipe, recipe_identity
from mae.utils.errors import UserError


@pytest.mark.parametrize(
    "values, message",
    [
        ({"tile_size": 0}, "--tile_size 0"),
        ({"tile_size": 32, "tile_overlap": 32}, "--tile_overlap 32.*--tile_size 32"),
        ({"tile_size": 32, "tile_overlap": -1}, "--tile_overlap -1"),
        ({"tile_overlap": 4}, "--tile_overlap 4 needs --tile_size"),
        ({"max_empty_share": 0.9}, "--max_empty_share 0.9 needs --tile_size"),
        ({"tile_size": 32, "max_empty_share": 0.4}, "--max_empty_share 0.4"),
        ({"tile_size": 32, "train_dir": None}, "--train_dir"),
        ({"tile_size": 32, "train_dir": None, "dataset_name": "x"}, "--train_dir"),
    ],
)
def test_impossible_tiles_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        PreTrainingRecipe(**{"train_dir": "images", **values})


def test_identity_holds_tiles_by_the_fingerprint_alone():
    with_tiles = PreTrainingRecipe(train_dir="images", tile_size=32, tile_overlap=4, max_empty_share=0.9)
    assert recipe_identity(with_tiles) == recipe_identity(PreTrainingRecipe(train_dir="images"))
