"""Code that the tasks on a pre-trained encoder share: names of protocols, which weights are trained, seeds."""

from mae.data.batch import Batch
from mae.utils.errors import UserError
from mae.utils.hashing import hash_key
from modeling_mae import MAEForImageClassification, MAEForSemanticSegmentation


# Names of protocols in messages and cards.
PROTOCOL_NAMES = {"finetune": "fine-tuning", "linear": "linear probe", "partial": "partial fine-tuning"}


def freeze_encoder(
    model: MAEForImageClassification | MAEForSemanticSegmentation, num_trainable_blocks: float = 0
) -> None:
    """
    Freeze the encoder, except for its last blocks and the norm after them in partial fine-tuning (Figure 9). 0.5 is
    the MLP of the last block, with its norm.

    Raises:
        UserError: if the encoder has fewer blocks.
    """
    depth = len(model.mae.blocks)
    if not (num_trainable_blocks == 0.5 or num_trainable_blocks in range(depth + 1)):
        raise UserError(
            f"--num_trainable_blocks {num_trainable_blocks:g} must be 0.5, or a whole number up to {depth}."
        )
    model.mae.requires_grad_(False)
    last = model.mae.blocks[-1]
    trained = [last.norm2, last.mlp]
    if num_trainable_blocks != 0.5:
        trained = list(model.mae.blocks[depth - int(num_trainable_blocks) :])
    for module in [*trained, model.mae.norm] if trained else []:
        module.requires_grad_(True)


def batch_seed(seed: int, batch: Batch) -> int:
    """A seed for what is drawn for a whole batch. It follows from the run's seed and the batch's first position."""
    return int.from_bytes(hash_key("batch", seed, batch.keys[:8]), "big") >> 1
