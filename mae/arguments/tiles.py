"""Flags that cut large images into tiles."""

from dataclasses import dataclass
from functools import partial

from mae.arguments.data import DataArguments
from mae.arguments.flags import AT_LEAST_1, DATA, NOT_NEGATIVE, Rule, flag
from mae.utils.errors import UserError


# The identity of a run holds the fingerprint of the data, which changes with them.
_tiles = partial(flag, changes_results=False, group=DATA)
# The most frequent value is found as a median, which needs more than half of the pixels.
_FROM_A_HALF = Rule("must be in [0.5, 1)", lambda value: 0.5 <= value < 1)


@dataclass
class TileArguments(DataArguments):
    """Flags that cut large images into tiles."""

    tile_size: int | None = _tiles(
        None,
        "Side of the tiles, in pixels, that large images of --train_dir and --validation_dir are cut into. An epoch "
        "takes each tile once.",
        default_words="none, an image is a sample",
        rule=AT_LEAST_1,
    )
    tile_overlap: int = _tiles(0, "Pixels that neighbouring tiles share.", rule=NOT_NEGATIVE)
    max_empty_share: float | None = _tiles(
        None,
        "Leave out tiles in which one value, such as that of missing data, takes a larger share of the pixels.",
        default_words="all tiles are used",
        rule=_FROM_A_HALF,
    )

    def check(self) -> None:
        super().check()
        if self.tile_size is None:
            for name, value in (("tile_overlap", self.tile_overlap), ("max_empty_share", self.max_empty_share)):
                if value:
                    raise UserError(f"--{name} {value} needs --tile_size. Pass --tile_size 512, for example.")
            return
        if self.tile_overlap >= self.tile_size:
            raise UserError(
                f"--tile_overlap {self.tile_overlap} must be smaller than --tile_size {self.tile_size}. Lower it."
            )
        if self.train_dir is None:
            raise UserError(
                f"--tile_size {self.tile_size} is for image files. Pass their folder with --train_dir, or leave out "
                "--tile_size."
            )
