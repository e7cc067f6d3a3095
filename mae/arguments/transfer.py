"""Flags that training on a pre-trained encoder has in common, whatever the labels are."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from mae.arguments.flags import MODEL, flag, one_of
from mae.arguments.overrides import parse_overrides
from mae.arguments.recipes import CommonRecipe
from mae.utils.errors import UserError


if TYPE_CHECKING:
    from configuration_mae import MAEConfig


@dataclass
class TransferArguments(CommonRecipe):
    """
    Flags of a run that trains a head, and an encoder that may be pre-trained.

    Args:
        fields_set_elsewhere: Fields of the configuration that --config_overrides must not set.
    """

    fields_set_elsewhere: ClassVar[tuple[str, ...]] = ()

    protocol: str = flag(
        "finetune",
        "Weights to train: finetune for all, linear for the head on frozen features, partial for the last blocks "
        "(--num_trainable_blocks).",
        group=MODEL,
        rule=one_of("finetune", "linear", "partial"),
    )
    num_trainable_blocks: float | None = flag(
        None,
        "Number of the last blocks that --protocol partial trains. 0.5 is the last MLP.",
        group=MODEL,
        default_words="none",
    )
    from_scratch: bool = flag(
        False, "Train a model of random weights by the recipe for it, the baseline.", group=MODEL
    )

    def check(self) -> None:
        super().check()
        if (self.protocol == "partial") != (self.num_trainable_blocks is not None):
            raise UserError("--protocol partial and --num_trainable_blocks go together. Give both, or neither.")
        self._check_overrides()
        if self.from_scratch and self.protocol != "finetune":
            raise UserError(f"--from_scratch trains all weights. Leave --protocol {self.protocol} out.")
        if self.from_scratch and self.model_name_or_path is not None:
            raise UserError("--from_scratch and --model_name_or_path exclude each other. Give one of them.")

    def _check_overrides(self) -> None:
        if not self.config_overrides:
            return
        from configuration_mae import LABEL_FIELDS  # imports torch, which --help need not wait for

        set_elsewhere = {*LABEL_FIELDS, *self.fields_set_elsewhere, "drop_path_rate"}
        for name in sorted(set_elsewhere & parse_overrides(self.config_overrides).keys()):
            place = "by --drop_path_rate" if name == "drop_path_rate" else "from the data and --protocol"
            raise UserError(f"--config_overrides {name} cannot be set: its value is set {place}.")


def fill_in(flags: Any, recipe: dict[str, Any], config: "MAEConfig") -> dict[str, Any]:
    """
    The values of flags, in which those of a recipe replace None.

    Args:
        recipe: Value, or values for models as wide as the paper's B, L and H, by the name of the flag.
    """
    size = 0 if config.hidden_size < 1024 else 1 if config.hidden_size < 1280 else 2
    recipe = {name: value[size] if isinstance(value, tuple) else value for name, value in recipe.items()}
    values = {item.name: getattr(flags, item.name) for item in fields(flags)}
    share = recipe["warmup_epochs"] / recipe["num_train_epochs"]
    warms_up = {flags.warmup_epochs, flags.warmup_ratio, flags.warmup_steps} != {None}
    if not warms_up and flags.max_steps > 0:
        values["warmup_ratio"] = share
    if flags.num_train_epochs is not None:
        recipe["warmup_epochs"] = min(recipe["warmup_epochs"], share * flags.num_train_epochs)
    if flags.base_learning_rate is not None:
        recipe.pop("learning_rate", None)
    return values | {name: value for name, value in recipe.items() if values[name] is None}
