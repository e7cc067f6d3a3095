"""Model cards, and uploads to the Hub."""

from mae.hub.repository import push_to_hub


__all__ = ["push_to_hub"]
