"""Parse values that are written as text: --config_overrides, --image_mean and --image_std."""

import argparse
from ast import literal_eval
from typing import Any

from transformers.hf_argparser import string_to_bool

from mae.arguments.names import suggestion
from mae.utils.errors import UserError


def parse_statistics(flag: str, values: list[str] | None) -> list[float] | None:
    """The numbers of --image_mean or --image_std; None if they are measured, or the model's."""
    if values is None or values == ["auto"]:
        return None
    try:
        return [float(value) for value in values]
    except ValueError:
        raise UserError(f"--{flag} {' '.join(values)} must be numbers, or auto.") from None


def without_sizes(overrides: str) -> str:
    """The pairs of "hidden_size=192,num_channels=4" that no named model size sets."""
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names = {prefix + name for prefix in ("", "decoder_") for name in sizes}
    return ",".join(pair for pair in overrides.split(",") if pair.partition("=")[0].strip() not in names)


def parse_overrides(overrides: str | None) -> dict[str, Any]:
    """
    The fields of "hidden_size=192,qkv_bias=false", in the types that they have in a configuration.

    Raises:
        UserError: for a name that is no field, and for a pair without "=".
    """
    if not overrides:
        return {}
    # Imports torch, which --help need not wait for.
    from configuration_mae import CONFIG_FIELDS, DENSE_FIELDS, LABEL_FIELDS, MAEConfig

    config, fields = MAEConfig(), {}
    for pair in [pair.strip() for pair in overrides.split(",") if pair.strip()]:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or name not in (*CONFIG_FIELDS, *DENSE_FIELDS, *LABEL_FIELDS):
            raise UserError(
                f"--config_overrides {pair} must set a field of the configuration, as in "
                f"hidden_size=192,qkv_bias=false.{suggestion(name, CONFIG_FIELDS)}"
            )
        try:
            if isinstance(getattr(config, name), bool):
                fields[name] = string_to_bool(value)
            else:
                fields[name] = literal_eval(value)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--config_overrides {pair}: {error}") from None
        except (ValueError, SyntaxError):  # a word
            fields[name] = value
    return fields
