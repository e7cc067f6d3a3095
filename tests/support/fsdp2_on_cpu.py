"""
examples/run_mae.py under Accelerate's FSDP2 on a CPU, where Accelerate by itself chooses DDP.

torchrun starts it, with the environment that `accelerate launch` makes of examples/accelerate/fsdp2_8_gpus.yaml. Only
the choice is changed: Accelerate and PyTorch shard, gather and train over gloo.
"""

import os
import runpy
import sys
from pathlib import Path

import accelerate.state
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from mae.training.optimization import GuardedStep


ROOT = Path(__file__).resolve().parent.parent.parent


def take_fsdp2() -> None:
    config = load_config_from_file(str(ROOT / "examples" / "accelerate" / "fsdp2_8_gpus.yaml"))
    os.environ |= {name.upper(): str(value).lower() for name, value in config.fsdp_config.items()}
    os.environ["FSDP_AUTO_WRAP_POLICY"] = config.fsdp_config["fsdp_auto_wrap_policy"]
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    start = accelerate.state.AcceleratorState.__init__

    def start_with_fsdp2(self, *args, fsdp_plugin=None, **kwargs):
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        self.fsdp_plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = start_with_fsdp2


def check_scaler() -> None:
    """An overflow in one process's part is one for all: nobody changes weights, everybody halves the scale."""
    layer = fully_shard(torch.nn.Linear(4, 4, bias=False))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    guard = GuardedStep(optimizer, scaler=scaler)
    before = layer.weight.full_tensor()
    for step, value in ((1, 1.0), (2, float("inf"))):
        scaler.scale(layer(torch.ones(2, 4)).sum()).backward()
        if torch.distributed.get_rank() == 1:
            layer.weight.grad.to_local()[0, 0] *= value
        guard(step)
        assert torch.equal(layer.weight.full_tensor(), before) == (step == 2)
        before = layer.weight.full_tensor()
    assert scaler.get_scale() == 4.0 and guard.num_nonfinite == 0


if __name__ == "__main__":
    take_fsdp2()
    sys.argv = sys.argv[1:]
    names = runpy.run_path(sys.argv[0], run_name="run_mae")
    from mae.training.loop import TrainingLoop

    resume = TrainingLoop.resume

    def resume_and_look(self):
        step = resume(self)
        assert self.accelerator.is_fsdp2
        # Accelerate's own would cast inputs, noise and loss with a mixed precision.
        assert self.accelerator.state.fsdp_plugin.mixed_precision_policy == MixedPrecisionPolicy()
        parameters = [parameter for parameter in self.task.model.parameters() if parameter.numel() > 1]
        assert all(isinstance(parameter, DTensor) for parameter in parameters)
        check_scaler()
        rank = self.accelerator.process_index
        print(f"process {rank}: {len(parameters)} sharded parameters; one scale for all")
        return step

    TrainingLoop.resume = resume_and_look
    names["main"]()
