"""The training loop, its tasks, and all that they need."""
