"""Checkpoints of a run: save, rotate, restore."""

import re

from torch.distributed.checkpoint.state_dict import StateDictOptions


OPTIMIZER_FILE = "optimizer.pt"
STATE_FILE = "trainer_state.json"
# Not sharded, on the main process; there they may be the model's own tensors.
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Before a step whose gradient was not finite.
NONFINITE = "nonfinite"
_NONFINITE = re.compile(rf"{NONFINITE}-\d+")
