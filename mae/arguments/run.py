"""Flags of a run that do not change its results: output files, speed, logging, the Hub."""

from dataclasses import dataclass
from functools import partial

from mae.arguments.flags import (
    AT_LEAST_1,
    CHECKPOINTS,
    DATA,
    EVALUATION,
    FRACTION,
    HARDWARE,
    HUB,
    NOT_NEGATIVE,
    POSITIVE,
    REGULARISATION,
    Arguments,
    Rule,
    flag,
    one_of,
)
from mae.arguments.masks import MaskFlags
from mae.utils.errors import UserError
from mae.utils.memory import is_memory


# The identity of a run holds the effective batch size and the precision, whoever chose them.
_hardware = partial(flag, changes_results=False, group=HARDWARE)
_files = partial(flag, changes_results=False, group=CHECKPOINTS)
_evaluation = partial(flag, changes_results=False, group=EVALUATION)
_hub = partial(flag, changes_results=False, group=HUB)


@dataclass
class HardwareArguments(Arguments):
    """Flags that every script with a model needs: precision, workers, patience with the network."""

    bf16: bool = _hardware(False, "Use bfloat16 mixed precision, as accelerate launch --mixed_precision bf16 does.")
    fp16: bool = _hardware(False, "Use float16 mixed precision with a loss scale, for GPUs without bfloat16.")
    tf32: bool = _hardware(False, "Multiply float32 matrices in TF32, on NVIDIA GPUs that have it.")
    dataloader_num_workers: int | None = _hardware(
        None,
        "DataLoader workers of each process.",
        default_words="1 on a CPU; with an accelerator one per core but one, at most 16",
        rule=NOT_NEGATIVE,
    )
    data_retry_minutes: float = _hardware(
        10,
        "Minutes for which network errors are retried, for data, weights and the last push.",
        group=DATA,
        rule=NOT_NEGATIVE,
    )

    def check(self) -> None:
        super().check()
        if self.bf16 and self.fp16:
            raise UserError("--bf16 and --fp16 exclude each other. Give one of them.")


@dataclass
class RunArguments(HardwareArguments):
    """Flags of a training run that do not change its results."""

    output_dir: str = _files("outputs/run_mae", "Directory for everything that the run writes.", is_path=True)
    overwrite_output_dir: bool = _files(False, "Remove the files of an earlier run from --output_dir and start over.")
    per_device_train_batch_size: int = _hardware(
        64, "Images per forward and backward pass of a process.", rule=AT_LEAST_1
    )
    gradient_accumulation_steps: int = _hardware(
        1, "Number of per-device batches per optimizer step.", rule=AT_LEAST_1
    )
    cache_memory: str = _hardware(
        "auto",
        "Memory for decoded images, which all processes of a machine share: an amount such as 4GB, a share of the "
        "free memory such as 30%%, auto for half of it, or 0 to decode each image in each epoch.",
        group=DATA,
        rule=Rule(
            "must be auto, 0, an amount such as 4GB, or a share such as 30%",
            lambda text: text == "auto" or is_memory(text),
        ),
    )
    gradient_checkpointing: bool = _hardware(
        False,
        "Recompute activations in the backward pass, which saves memory and takes time.",
        aliases=("--activation_checkpointing",),
    )
    torch_compile: bool = _hardware(
        False, "Compile the model's blocks. The first step takes about a minute longer, later ones are faster."
    )
    logging_steps: int = _files(10, "Steps between two lines of metrics.jsonl.", rule=AT_LEAST_1)
    logging_first_step: bool = _files(False, "Log the first step too.")
    save_steps: int = _files(500, "Steps between two checkpoints.", rule=AT_LEAST_1)
    save_minutes: float | None = _files(
        None,
        "Minutes after which a checkpoint is saved, in addition to --save_steps.",
        default_words="off",
        rule=POSITIVE,
    )
    save_total_limit: int | None = _files(2, "Number of checkpoints to keep.", rule=AT_LEAST_1)
    eval_steps: int = _evaluation(500, "Steps between two evaluations on the validation images.", rule=AT_LEAST_1)
    max_eval_samples: int = _evaluation(256, "Number of validation images to use.", rule=AT_LEAST_1)
    report_to: list[str] = _files(["none"], "Trackers that log the run: tensorboard, trackio, wandb.")
    run_name: str | None = _files(
        None, "Name of the run in the trackers.", default_words="the last part of --output_dir"
    )
    resume_from_checkpoint: str = _files(
        "auto",
        "Checkpoint to resume from: auto for the newest in --output_dir, none to start over, or a path.",
        is_path=True,
    )
    push_to_hub: bool = _hub(
        False, "Push the model to the Hub, with its card, pictures, recipe and metrics. This needs a login."
    )
    hub_model_id: str | None = _hub(
        None, "Repository to push to, as owner/name.", default_words="yours, named as the output directory"
    )
    hub_private_repo: bool | None = _hub(
        None, "Make the repository private if it is created.", default_words="as the owner's settings say"
    )
    hub_revision: str | None = _hub(
        None, "Branch to push to. It is created if it does not exist.", default_words="main"
    )
    hub_strategy: str = _hub(
        "end",
        "When to push: end for once, every_save for each checkpoint too, in the background.",
        rule=one_of("end", "every_save"),
    )
    hub_license: str | None = _hub(
        None, "Licence of the weights for the card, for example apache-2.0.", default_words="unknown"
    )
    max_nonfinite_steps: int = _hardware(
        0, "Number of steps with a gradient that is not finite to skip before the run stops.", rule=NOT_NEGATIVE
    )
    max_bad_fraction: float = _hardware(
        0.01, "Share of unreadable images above which the run stops.", group=DATA, rule=FRACTION
    )

    @property
    def trackers(self) -> list[str]:
        return [name for name in self.report_to if name != "none"]


@dataclass
class PreviewArguments(RunArguments):
    """The flag that shows what augmentation does."""

    preview_augmentation: str | None = flag(
        None,
        "PNG file to draw an image and eight views of it to, instead of training.",
        changes_results=False,
        group=REGULARISATION,
        default_words="none",
        is_path=True,
        rule=Rule("must end in .png", lambda path: path.lower().endswith(".png")),
    )


@dataclass
class PreTrainingArguments(MaskFlags, PreviewArguments):
    """Flags of a pre-training run that do not change its results."""

    knn_epochs: float | None = _evaluation(
        None,
        "Epochs between two k-NN evaluations, for data with labels.",
        default_words="off",
        rule=POSITIVE,
    )
    probe_epochs: float | None = _evaluation(
        None,
        "Epochs between two evaluations of a linear classifier on features, for data with labels.",
        default_words="off",
        rule=POSITIVE,
    )
    rank_epochs: float | None = _evaluation(
        None,
        "Epochs between two measurements of the features' effective rank, for data without labels.",
        default_words="off",
        rule=POSITIVE,
    )
    label_column_name: str | None = _evaluation(
        None,
        "Column that holds the labels, for --knn_epochs and --probe_epochs.",
        default_words="the only column of class labels, or label",
    )
    dense_epochs: float | None = _evaluation(
        None,
        "Epochs between two evaluations of patch tokens by nearest neighbours, for data with masks.",
        default_words="off",
        rule=POSITIVE,
    )


@dataclass
class ClassificationArguments(PreviewArguments):
    """Flags of a classification run that do not change its results."""

    output_dir: str = _files(
        "outputs/run_image_classification", "Directory for everything that the run writes.", is_path=True
    )
    max_eval_samples: int | None = _evaluation(
        None, "Number of validation images to use.", default_words="all", rule=AT_LEAST_1
    )
