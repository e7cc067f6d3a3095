"""The emoji as rows; an encoder on disk and its features by transformers alone; k-NN as a plain loop."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import AutoImageProcessor

from configuration_mae import MAEConfig
from modeling_mae import MAEForPreTraining, MAEModel
from tests.support.data import EMOJI


def plain_knn(features, labels, queries, num_classes, k, temperature):
    """As the papers write it, one query and one neighbour at a time."""
    answers = np.zeros((len(queries), num_classes))
    for number, query in enumerate(queries):
        cosines = [query @ other / np.linalg.norm(query) / np.linalg.norm(other) for other in features]
        for place in np.argsort(cosines)[::-1][:k]:
            answers[number, labels[place]] += np.exp(cosines[place] / temperature)
    return answers


def save_encoder(folder: Path, sizes: dict) -> Path:
    torch.manual_seed(0)
    model = MAEForPreTraining(MAEConfig(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def rows_of(split):
    (path,) = EMOJI.glob(f"{split}-*.parquet")
    return pq.read_table(path).to_pylist()


def features_of(folder, rows, **arguments):
    """By transformers alone, an image at a time."""
    model, processor = MAEModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    found = []
    for row in rows:
        picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        with torch.no_grad():
            found.append(model(**processor(picture, return_tensors="pt"), output_hidden_states=True))
    return found
