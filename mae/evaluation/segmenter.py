"""Segment image files of any size, one at a time, and write masks and overlays."""

from pathlib import Path

import numpy as np
from PIL import Image

from mae.data.bands import bands_of
from mae.data.decoding import EncodedImage
from mae.data.normalization import model_inputs
from mae.evaluation.overlays import make_palette, overlay, save_mask, to_picture
from mae.utils.files import atomic_write
from mae.utils.progress import ProgressBar
from modeling_mae import MAEForSemanticSegmentation


class Segmenter:
    """
    Writes the masks of image files to a folder.

    Args:
        model: On its device, in evaluation mode.
        folder: Where masks are written, by the names of their images.
        colours: A colour for each class, as red * 65536 + green * 256 + blue (default: those of [`make_palette`]).
        overlap: Smallest share of a window that it has in common with the next one.
        batch_size: Windows of a forward pass.
        with_overlay: Whether the image coloured by its mask is written too.
    """

    def __init__(
        self,
        model: MAEForSemanticSegmentation,
        folder: Path,
        colours: list[int] | None = None,
        overlap: float = 1 / 3,
        batch_size: int = 8,
        with_overlay: bool = True,
    ):
        config = model.config
        self.model = model
        self.folder = folder
        self.names = [config.id2label[number] for number in range(config.num_labels)]
        self.palette = make_palette(self.names, colours)
        self.overlap = overlap
        self.batch_size = batch_size
        self.with_overlay = with_overlay
        self.pixels = np.zeros(config.num_labels, dtype=np.int64)  # of each class, over all images

    def mask_path(self, name: str) -> Path:
        """Where the mask of an image is written. Images that differ in their extension alone keep it in the name."""
        return self.folder / f"{name}.png"

    def __call__(self, name: str, path: str) -> np.ndarray:
        """
        Segment a file, and write the results; returns the classes of its pixels, uint8 `(H, W)`.

        Args:
            name: The name of its mask, without the extension.

        Raises:
            DecodingError: if it cannot be read.
        """
        pixels = EncodedImage(path, bands_of(self.model.config)).decode()
        image = model_inputs(pixels, self.model.config)
        classes = np.empty(image.shape[1:], dtype=np.uint8)
        with ProgressBar(total=len(classes), desc=Path(path).name, unit="row", leave=False, delay=2) as bar:
            for top, scores in self.model.score_bands(image, self.overlap, self.batch_size):
                classes[top : top + scores.shape[1]] = scores.argmax(dim=0).cpu().numpy()
                bar.update(scores.shape[1])
        # The mask last, because an image whose mask exists is done.
        if self.with_overlay:
            picture = Image.fromarray(overlay(to_picture(pixels), classes, self.palette, self.names))
            target = self.mask_path(f"{name}_overlay")
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as unfinished:
                picture.save(unfinished, format="PNG")
        save_mask(classes, self.palette, self.mask_path(name))
        self.pixels += np.bincount(classes.ravel(), minlength=len(self.pixels))
        return classes
