"""Optimizers of the paper's recipes (Tables 8 to 10), and steps that skip a gradient that is not finite."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """
    Group the model's trainable parameters by weight decay and layer.

    Biases, one-dimensional parameters and those that the model names in `no_weight_decay()` have no weight decay. With
    a layer decay (Appendix A.1) each layer that the model names in `layer_ids()` has groups of its own, and their
    `lr_scale` is the factor of their learning rate.
    """
    exempt = model.no_weight_decay()
    layers = model.layer_ids() if layer_decay != 1 else {}
    last = max(layers.values(), default=0)
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = layers.get(name, 0)
            is_exempt = parameter.ndim <= 1 or name.endswith(".bias") or name in exempt
            group = {"params": [], "weight_decay": 0.0 if is_exempt else weight_decay}
            if layers:
                group["lr_scale"] = layer_decay ** (last - layer)
            groups.setdefault((layer, is_exempt), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def make_optimizer(
    model: nn.Module, weight_decay: float, betas: tuple[float, float], layer_decay: float = 1.0
) -> torch.optim.AdamW:
    """AdamW, whose learning rate the schedule sets at every step."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay, layer_decay), lr=0.0, betas=betas, fused=True)


class LARS(torch.optim.Optimizer):
    """
    LARS (You et al. 2017) as in the official linear probe, because PyTorch has none.

    The learning rate of each matrix is scaled by the ratio of its norm to the norm of its gradient. Vectors have
    neither this scale nor weight decay. Like a fused optimizer it takes `found_inf`, and then changes nothing.

    Args:
        trust_coefficient: Factor of the ratio.
    """

    def __init__(self, params, lr: float, momentum: float = 0.9, trust_coefficient: float = 0.001):
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust_coefficient": trust_coefficient})

    @torch.no_grad()
    def step(self, closure=None):
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group.get("weight_decay", 0.0))
                    norm, update_norm = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(update)
                    ratio = group["trust_coefficient"] * norm / update_norm
                    update = update * torch.where((norm > 0) & (update_norm > 0), ratio, 1.0)
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"]
                new = group["momentum"] * buffer + update
                if found_inf is not None:  # on the device, which the host does not wait for
                    new = torch.where(found_inf.bool(), buffer, new)
                    parameter.sub_(torch.where(found_inf.bool(), 0.0, group["lr"] * new))
                else:
                    parameter.sub_(group["lr"] * new)
                buffer.copy_(new)


class GuardedStep:
    """
    An optimizer step that unscales and clips the gradient, and is skipped if the gradient is not finite.

    A skipped step leaves weights and moments as they were. After too many of them every further step is skipped. All
    of this runs on the device; only [`GuardedStep.fatal_step`], [`GuardedStep.num_nonfinite`] and
    [`GuardedStep.state_dict`] wait for it.

    A gradient scaler (fp16) finds its scale by overflows: a step that it skips only counts if the scale is already 1
    or less.

    Args:
        optimizer: A fused optimizer, or another that takes `found_inf` as a gradient scaler sets it.
        max_nonfinite_steps: Number of steps that may be skipped.
        max_grad_norm: Norm that gradients are clipped to, over all parameters (default: no clipping).
        scaler: The scaler that the loss was multiplied by.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_nonfinite_steps: int = 0,
        max_grad_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ):
        self.optimizer = optimizer
        self.max_nonfinite_steps = max_nonfinite_steps
        self.max_grad_norm = max_grad_norm
        self.scaler = scaler
        device = optimizer.param_groups[0]["params"][0].device
        self._num_nonfinite = torch.tensor(0, device=device)
        self._fatal_step = torch.tensor(0, device=device)

    def __call__(self, step: int) -> torch.Tensor:
        """
        Update the weights, and clear their gradients.

        Args:
            step: Number of this step, from 1.

        Returns:
            The norm of the gradient before clipping, a scalar.
        """
        counted = True
        if self.scaler is not None:
            # scale() reads the scale without waiting for the device, unlike get_scale().
            counted = self.scaler.scale(torch.ones_like(self._num_nonfinite)) <= 1
            self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in parameters])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if self.max_grad_norm is not None:
            clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        left_out = ~norm.isfinite()
        self._num_nonfinite += left_out & counted
        too_many = self._num_nonfinite > self.max_nonfinite_steps
        self._fatal_step += step * (too_many & (self._fatal_step == 0))
        # As a scaler's step does, but also after too many skipped steps.
        self.optimizer.found_inf = (left_out | too_many).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scaler is not None:
            self.scaler.update()
        return norm

    @property
    def num_nonfinite(self) -> int:
        """Number of steps that were skipped because their gradient was not finite."""
        return int(self._num_nonfinite)

    @property
    def fatal_step(self) -> int:
        """The first step that was skipped beyond the limit, or 0."""
        return int(self._fatal_step)

    def state_dict(self) -> dict:
        """The state as JSON values."""
        scaler = None if self.scaler is None else self.scaler.state_dict()
        return {"num_nonfinite": self.num_nonfinite, "scaler": scaler}

    def load_state_dict(self, state: dict) -> None:
        self._num_nonfinite.fill_(state["num_nonfinite"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
