"""
Flags of transformers' Trainer and of its run_mae.py that the training scripts accept.

Flags with a meaning here are flags of the scripts, by the same name. The others have no effect, and are accepted with
a note, or change results in a way that is not supported, and are refused.
"""

from dataclasses import dataclass, fields

from mae.utils.errors import UserError


@dataclass(frozen=True)
class TrainerFlag:
    """
    A flag without effect.

    Args:
        reason: Why it has none, as a clause.
        allowed: The values that agree with what the scripts do; None for any value. Others are refused.
    """

    reason: str
    allowed: tuple[str, ...] | None = None


_OFF = ("false", "none", "")
_SECRET = "Others could see it in the list of processes. Log in with `hf auth login`, or set HF_TOKEN."
TOKENS = ("token", "hub_token", "use_auth_token", "push_to_hub_token")
_BEST_MODEL = TrainerFlag("the last model is kept, as in the paper")
_LAUNCHER = TrainerFlag("the launcher and Accelerate's configuration decide")
_LOADER = TrainerFlag("the data loader of this package decides")
_PRECISION = TrainerFlag("evaluation has the precision of training", _OFF)
_ADAMW = TrainerFlag(
    "the optimizer is AdamW, or LARS for a linear probe",
    ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_hf"),
)
_UNUSED = TrainerFlag("these scripts do not use it")

TRAINER_FLAGS = {
    "do_train": TrainerFlag("the script always trains"),
    "do_eval": TrainerFlag("the script evaluates whenever --eval_steps is due"),
    "do_predict": TrainerFlag("the script evaluates whenever --eval_steps is due"),
    "model_type": TrainerFlag("the model is a Masked Autoencoder", ("vit_mae", "mae")),
    "trust_remote_code": TrainerFlag("no code of a model or data set is run"),
    "ignore_mismatched_sizes": TrainerFlag("a classifier for other classes is always replaced"),
    "remove_unused_columns": TrainerFlag("only the columns of images and labels are read"),
    "label_names": TrainerFlag("labels are found by their type, or by --label_column_name"),
    "per_device_eval_batch_size": TrainerFlag("evaluation uses --per_device_train_batch_size"),
    "logging_strategy": TrainerFlag("--logging_steps decides"),
    "logging_dir": TrainerFlag("logs are written to the folder logs of --output_dir"),
    "eval_strategy": TrainerFlag("--eval_steps decides"),
    "evaluation_strategy": TrainerFlag("--eval_steps decides"),
    "save_strategy": TrainerFlag("--save_steps and --save_minutes decide"),
    "save_only_model": TrainerFlag("a checkpoint always holds the optimizer, so that a run can be resumed"),
    "disable_tqdm": TrainerFlag("the environment variable TQDM_DISABLE=1 hides progress bars"),
    "load_best_model_at_end": _BEST_MODEL,
    "metric_for_best_model": _BEST_MODEL,
    "greater_is_better": _BEST_MODEL,
    "dataloader_drop_last": TrainerFlag("batches continue across epochs, so that none is incomplete"),
    "dataloader_pin_memory": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_in_order": _LOADER,
    "ddp_find_unused_parameters": TrainerFlag("every trainable parameter has a gradient in each step"),
    "ddp_backend": _LAUNCHER,
    "ddp_timeout": TrainerFlag("--data_retry_minutes decides"),
    "fsdp": _LAUNCHER,
    "fsdp_config": _LAUNCHER,
    "deepspeed": _LAUNCHER,
    "accelerator_config": _LAUNCHER,
    "parallelism_config": _LAUNCHER,
    "local_rank": _LAUNCHER,
    "use_cpu": TrainerFlag("CUDA_VISIBLE_DEVICES= hides the GPUs"),
    "no_cuda": TrainerFlag("CUDA_VISIBLE_DEVICES= hides the GPUs"),
    "auto_find_batch_size": TrainerFlag("--per_device_train_batch_size decides"),
    "full_determinism": TrainerFlag("a run repeats exactly on the same CPU; on a GPU it does up to rounding"),
    # Other values would change results.
    "optim": _ADAMW,
    "adam_epsilon": TrainerFlag("the epsilon of AdamW is 1e-8", ("1e-8", "1e-08")),
    "optim_args": TrainerFlag("the optimizer has no other options", _OFF),
    "optim_target_modules": TrainerFlag("the optimizer has no other options", _OFF),
    "lr_scheduler_kwargs": TrainerFlag("the schedule has no other options", (*_OFF, "{}")),
    "label_smoothing_factor": TrainerFlag("pre-training uses no labels", ("0", "0.0")),
    "neftune_noise_alpha": TrainerFlag("noise on embeddings is not supported", _OFF),
    "bf16_full_eval": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "data_seed": TrainerFlag("--seed decides", _OFF),
    "train_sampling_strategy": TrainerFlag("the order of the images is random", ("random",)),
    "group_by_length": TrainerFlag("the order of the images is random", _OFF),
    "ignore_data_skip": TrainerFlag("a run resumes at the same image", _OFF),
}
# Words of --help for those that most commands hold.
SHOWN = ("do_train", "do_eval", "per_device_eval_batch_size", "eval_strategy", "save_strategy", "logging_strategy")
SHOWN += ("optim", "remove_unused_columns", "label_names", "load_best_model_at_end")


def other_trainer_flags() -> set[str]:
    """The fields of the installed `TrainingArguments`. The import takes seconds, so --help does without."""
    from transformers import TrainingArguments

    return {field.name for field in fields(TrainingArguments)}


def check_trainer_flag(name: str, values: list[str]) -> str:
    """
    The note that a flag has no effect.

    Args:
        values: What follows it on the command line.

    Raises:
        UserError: for a token, and for a value that would change results.
    """
    if name in TOKENS:
        raise UserError(f"--{name} is not accepted. {_SECRET}")
    known = TRAINER_FLAGS.get(name, _UNUSED)
    given = {value.lower() for value in values} or {"true"}  # a flag alone
    if known.allowed is not None and not given <= set(known.allowed):
        words = [value for value in known.allowed if value not in _OFF]
        advice = f", or use {' or '.join(words)}" if words else ""
        raise UserError(f"--{name} {' '.join(values)} is not supported: {known.reason}. Leave it out{advice}.")
    return f"Note: --{name} has no effect: {known.reason}."
