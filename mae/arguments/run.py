"""Flags of a run that do not change its results: where files go, speed, logging, the Hub."""

from dataclasses import dataclass, field

from mae.utils.errors import UserError


@dataclass
class RunArguments:
    """Where a run leaves its files, and what only changes its speed."""

    output_dir: str = field(default="outputs/run_mae", metadata={"help": "Where everything goes."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Remove an earlier run's files from the output directory and start anew."}
    )
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images of a micro-batch of a process."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Micro-batches of an optimizer step."})
    bf16: bool = field(
        default=False, metadata={"help": "Mixed precision with bfloat16; or accelerate launch --mixed_precision bf16."}
    )
    fp16: bool = field(
        default=False,
        metadata={"help": "Mixed precision with float16 and a loss scale, for GPUs without bfloat16."},
    )
    tf32: bool = field(
        default=False, metadata={"help": "Products of float32 matrices in TF32, on NVIDIA GPUs that have it."}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory for more time."})
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the model's blocks; the first step takes a minute, later ones less."}
    )
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={
            "help": "Decoding processes of each training process. Default: one on a CPU, with an accelerator one for "
            "each core but one, at most 16."
        },
    )
    logging_steps: int = field(default=10, metadata={"help": "Steps between two lines of metrics.jsonl."})
    save_steps: int = field(default=500, metadata={"help": "Steps between two checkpoints."})
    save_minutes: float | None = field(
        default=None, metadata={"help": "Minutes after which a checkpoint is due, beside those of --save_steps."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints to keep."})
    eval_steps: int = field(
        default=500, metadata={"help": "Steps between two looks at the held-out images: their loss, and pictures."}
    )
    max_eval_samples: int = field(default=256, metadata={"help": "How many held-out images are looked at."})
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers: tensorboard, trackio, wandb; each must be installed. Default: none."},
    )
    resume_from_checkpoint: str = field(
        default="auto",
        metadata={"help": "auto: the newest checkpoint of the output directory; none: a start anew; or a path."},
    )
    data_retry_minutes: float = field(
        default=10,
        metadata={"help": "How long faults of the network are waited out, of data, weights and the last push."},
    )
    push_to_hub: bool = field(
        default=False,
        metadata={"help": "Push the model to the Hub, with card, pictures, recipe and metrics. Needs a login."},
    )
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository, owner/name. Default: yours, named as the output directory."}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Make the repository private. Default: what its owner's default is."}
    )
    hub_revision: str | None = field(
        default=None, metadata={"help": "Branch to push to, which is made if it does not exist. Default: main."}
    )
    hub_strategy: str = field(
        default="end", metadata={"help": "end: push once; every_save: also with each checkpoint, in the background."}
    )
    hub_license: str | None = field(
        default=None, metadata={"help": "Licence of your weights for the card, as apache-2.0. Default: unknown."}
    )
    max_nonfinite_steps: int = field(
        default=0,
        metadata={"help": "Steps that may be left out because their gradient is not finite; one more stops the run."},
    )
    max_bad_fraction: float = field(
        default=0.01, metadata={"help": "Share of images that cannot be read above which the run stops."}
    )

    def __post_init__(self) -> None:
        for name in (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "save_steps",
            "save_total_limit",
            "eval_steps",
            "max_eval_samples",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value} must be at least 1.")
        if self.hub_strategy not in ("end", "every_save"):
            raise UserError(f"--hub_strategy {self.hub_strategy}: wanted is end or every_save.")
        if self.bf16 and self.fp16:
            raise UserError("--bf16 and --fp16 exclude each other: give one of them.")
        if self.save_minutes is not None and not self.save_minutes > 0:
            raise UserError(f"--save_minutes {self.save_minutes} must be positive.")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"--max_bad_fraction {self.max_bad_fraction} must be in [0, 1].")
        if not self.data_retry_minutes >= 0:
            raise UserError(f"--data_retry_minutes {self.data_retry_minutes} must not be negative.")
        for name in ("dataloader_num_workers", "max_nonfinite_steps"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"--{name} {value} must not be negative.")

    @property
    def trackers(self) -> list[str]:
        return [name for name in self.report_to if name != "none"]


@dataclass
class PreTrainingArguments(RunArguments):
    """Of pre-training."""

    knn_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Epochs between two looks at how well the nearest neighbours of held-out images tell their "
            "labels, where the data has labels. Default: not at all."
        },
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the labels for --knn_epochs. Default: the only one that can be."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.knn_epochs is not None and not self.knn_epochs > 0:
            raise UserError(f"--knn_epochs {self.knn_epochs} must be positive.")


@dataclass
class ClassificationArguments(RunArguments):
    """Of training a classifier."""

    output_dir: str = field(default="outputs/run_image_classification", metadata={"help": "Where everything goes."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on as many held-out images only. Default: on all."}
    )
