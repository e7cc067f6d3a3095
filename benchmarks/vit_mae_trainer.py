"""
Pre-train transformers' ViTMAE with its Trainer: the peer of examples/run_mae.py in benchmarks/end_to_end.py.

    python benchmarks/vit_mae_trainer.py --train_dir DIR --output_dir DIR --max_steps 30 [any flag of the Trainer]

It takes the road of transformers' own example of this task: a folder of images that `datasets` reads, torchvision's
transforms on Pillow images, a collate function, the Trainer. It imports nothing of this package. All flags of
`TrainingArguments` are accepted.
"""

from dataclasses import dataclass, field

import torch
from datasets import load_dataset
from torchvision import transforms
from transformers import HfArgumentParser, Trainer, TrainingArguments, ViTImageProcessor, ViTMAEConfig
from transformers import ViTMAEForPreTraining as Model


@dataclass
class Flags:
    train_dir: str = field(metadata={"help": "Folder of images."})
    config_overrides: str = field(default="", metadata={"help": "Fields of ViTMAEConfig, as name=value,name=value."})
    norm_pix_loss: bool = field(default=True, metadata={"help": "Normalise the target within each patch."})


def make_transform(config: ViTMAEConfig, processor: ViTImageProcessor) -> transforms.Compose:
    """The paper's augmentation, from a Pillow image to a normalised tensor."""
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.Lambda(lambda image: image.convert("RGB")),
            transforms.RandomResizedCrop(config.image_size, scale=(0.2, 1.0), interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(processor.image_mean, processor.image_std),
        ]
    )


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}


def main() -> None:
    flags, arguments = HfArgumentParser((Flags, TrainingArguments)).parse_args_into_dataclasses()
    arguments.remove_unused_columns = False  # the transform needs the column of images

    config = ViTMAEConfig(norm_pix_loss=flags.norm_pix_loss)
    if flags.config_overrides:
        config.update_from_string(flags.config_overrides)
    side = config.image_size
    processor = ViTImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    transform = make_transform(config, processor)
    images = load_dataset("imagefolder", data_dir=flags.train_dir, split="train")
    images.set_transform(lambda rows: {"pixel_values": [transform(image) for image in rows["image"]]})

    trainer = Trainer(
        Model(config), arguments, train_dataset=images, processing_class=processor, data_collator=collate
    )
    result = trainer.train()
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    trainer.create_model_card()


if __name__ == "__main__":
    main()
