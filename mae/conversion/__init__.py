"""Checkpoints in and out: official code, timm, ViTMAE and this package."""
