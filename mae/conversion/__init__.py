"""Load and save checkpoints of the official implementation, timm, transformers' ViTMAE and this package."""
