"""
Train, evaluate, convert and share Masked Autoencoders; docs/architecture.md maps the packages.

Importing it registers the model with the Auto classes of transformers, as soon as these are imported too:

    import mae
    from transformers import AutoModel

    encoder = AutoModel.from_pretrained("outputs/run_mae")
    model, report = mae.load_checkpoint("mae_pretrain_vit_base.pth")
"""

from importlib import metadata
from typing import TYPE_CHECKING, Any

from mae.utils.registration import register_with_auto_classes


if TYPE_CHECKING:
    from mae.conversion.loading import load_checkpoint
    from mae.hub.repository import push_to_hub

try:
    __version__ = metadata.version("mae")
except metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"

__all__ = ["__version__", "load_checkpoint", "push_to_hub"]

register_with_auto_classes()


def __getattr__(name: str) -> Any:
    # On first use, because a script that only parses its flags needs neither.
    if name == "load_checkpoint":
        from mae.conversion.loading import load_checkpoint

        return load_checkpoint
    if name == "push_to_hub":
        from mae.hub.repository import push_to_hub

        return push_to_hub
    raise AttributeError(f"module 'mae' has no attribute {name!r}")
