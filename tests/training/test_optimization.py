"""Schedule and parameter groups against the official code's."""

import json

import pytest
import torch
from safetensors.torch import load_file

from configuration_mae import MAEConfig
from mae.training.optimization import LARS, GuardedStep, make_optimizer, parameter_groups
from modeling_mae import MAEForImageClassification, MAEForPreTraining
from tests.support.data import ROOT


CONFIG = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2}
CONFIG |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}


def test_pre_training_decays_cls_and_mask_tokens():
    model = MAEForPreTraining(MAEConfig(**CONFIG))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.05))
    assert {"mae.cls_token", "decoder.mask_token", "mae.patch_embed.proj.weight", "decoder.pred.weight"} <= decayed
    assert all(name.endswith(("weight", "_token")) for name in decayed)
    assert all(name.endswith(".bias") or "norm" in name for name in others)
    assert len(decayed) + len(others) == len(names) - 2  # both position tables are frozen


def test_fine_tuning_does_not_decay_positions_and_cls():
    model = MAEForImageClassification(MAEConfig(**CONFIG))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, 0.05, (0.9, 0.999))
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays["mae.cls_token"] == decays["mae.pos_embed"] == decays["mae.blocks.0.norm1.weight"] == 0
    assert decays["head.weight"] == decays["mae.blocks.1.attn.qkv.weight"] == 0.05
    assert set(decays) == set(names.values())


def test_steps_that_are_not_finite_change_nothing():
    """Against a run that never had them; and after one too many nothing changes at all."""
    gradients = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    bad = {1: float("nan"), 3: float("inf")}

    def run(steps, guarded, max_steps=9):
        layer = torch.nn.Linear(4, 1, bias=False)
        layer.no_weight_decay = set
        torch.nn.init.ones_(layer.weight)
        optimizer = make_optimizer(layer, 0.05, (0.9, 0.95))
        guard = GuardedStep(optimizer, max_steps)
        for step in steps:
            optimizer.param_groups[0]["lr"] = 0.1
            layer.weight.grad = gradients[step][None].clone()
            if guarded:
                layer.weight.grad[0, 2] *= bad.get(step, 1)
                guard(step)
            else:
                optimizer.step()
        return layer.weight.detach(), guard

    weight, guard = run(range(6), guarded=True)
    assert torch.equal(weight, run([0, 2, 4, 5], guarded=False)[0])
    assert guard.num_nonfinite == 2 and guard.fatal_step == 0
    weight, guard = run(range(6), guarded=True, max_steps=1)
    assert torch.equal(weight, run([0, 2], guarded=False)[0]) and guard.fatal_step == 3


def test_overflow_halves_the_loss_scale_and_changes_no_weight():
    """An overflow halves the scale and changes nothing else; it counts where the scale can fall no further."""
    layer = torch.nn.Linear(4, 1, bias=False)
    optimizer = make_optimizer(NamedLinear(layer), 0.0, (0.9, 0.95))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    guard = GuardedStep(optimizer, max_nonfinite_steps=1, max_grad_norm=1.0, scaler=scaler)
    plain = torch.nn.Linear(4, 1, bias=False)
    plain.load_state_dict(layer.state_dict())
    expected = make_optimizer(NamedLinear(plain), 0.0, (0.9, 0.95))
    images = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    # From 4: halved, kept, grown after two good steps, then halved down to 1, where two more are one too many.
    overflows = [False, True, False, False, True, True, True, True, True, False]
    scales, numbers = [], []
    for step, overflow in enumerate(overflows, 1):
        for optimizer_ in (optimizer, expected):
            optimizer_.param_groups[0]["lr"] = 0.1
        scaler.scale(layer(images[step]).sum()).backward()
        if overflow:
            layer.weight.grad[0, 1] = float("inf")
        norm = guard(step)
        if not overflow and not guard.fatal_step:
            plain(images[step]).sum().backward()
            assert norm == pytest.approx(plain.weight.grad.norm().item())
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            expected.step()
            expected.zero_grad()
        scales.append(scaler.get_scale())
        numbers.append(guard.num_nonfinite)
    assert torch.allclose(layer.weight, plain.weight)
    assert scales[:8] == [4, 2, 2, 4, 2, 1, 0.5, 0.25]
    assert numbers == [0, 0, 0, 0, 0, 0, 1, 2, 3, 3] and guard.fatal_step == 8

    state = json.loads(json.dumps(guard.state_dict()))
    again = GuardedStep(optimizer, scaler=torch.amp.GradScaler("cpu"))
    again.load_state_dict(state)
    assert again.num_nonfinite == 3 and again.scaler.state_dict() == scaler.state_dict()


class NamedLinear(torch.nn.Module):
    """A layer with what make_optimizer asks of a model."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def no_weight_decay(self):
        return set()


# Layer decay and LARS

LAYER_DECAY = json.loads((ROOT / "tests" / "fixtures" / "official_layer_decay_0.65.json").read_text())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_official_layer_decay(pooling):
    """lr_scale and weight decay of every parameter, by the official fine-tuning code."""
    expected = LAYER_DECAY["mean_pool" if pooling == "mean" else "cls"]
    depth = 1 + max(int(name.split(".")[1]) for name in expected if name.startswith("blocks."))
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 16, "num_labels": 3}
    model = MAEForImageClassification(MAEConfig(num_hidden_layers=depth, pooling=pooling, **sizes))
    names = {parameter: name.removeprefix("mae.") for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: {"lr_scale": pytest.approx(group["lr_scale"]), "weight_decay": group["weight_decay"]}
        for group in parameter_groups(model, 0.05, 0.65)
        for parameter in group["params"]
    }
    assert found == expected


def test_frozen_weights_are_in_no_group():
    model = MAEForImageClassification(MAEConfig.from_size("tiny", num_labels=3))
    model.mae.requires_grad_(False)
    groups = parameter_groups(model, 0.05, 0.65)
    assert sum(len(group["params"]) for group in groups) == 2 and {group["lr_scale"] for group in groups} == {1}


def official_lars():
    vectors = load_file(ROOT / "tests" / "fixtures" / "official_lars.safetensors")
    matrix, vector = (torch.nn.Parameter(vectors[name].clone()) for name in ("w0", "b0"))
    groups = [{"params": [matrix], "weight_decay": 0.01}, {"params": [vector], "weight_decay": 0.0}]
    return vectors, matrix, vector, LARS(groups, lr=0.4, momentum=0.9)


def test_lars_makes_the_steps_of_the_official_code():
    vectors, matrix, vector, optimizer = official_lars()
    for step in range(5):
        matrix.grad, vector.grad = vectors[f"gw{step}"].clone(), vectors[f"gb{step}"].clone()
        optimizer.step()
        torch.testing.assert_close(matrix.data, vectors[f"w{step + 1}"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(vector.data, vectors[f"b{step + 1}"], rtol=1e-6, atol=1e-6)


def test_lars_is_guarded():
    """A gradient that is not finite changes neither weights nor momentum; the state survives being saved."""
    vectors, matrix, vector, optimizer = official_lars()
    guard = GuardedStep(optimizer, max_nonfinite_steps=1)
    for step in range(5):
        if step == 2:
            matrix.grad, vector.grad = torch.full_like(matrix, torch.nan), vectors["gb2"].clone()
            guard(step + 1)
            assert guard.num_nonfinite == 1
        if step == 3:
            state = optimizer.state_dict()
            optimizer.load_state_dict(state)
        matrix.grad, vector.grad = vectors[f"gw{step}"].clone(), vectors[f"gb{step}"].clone()
        guard(step + 2)
    torch.testing.assert_close(matrix.data, vectors["w5"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(vector.data, vectors["b5"], rtol=1e-6, atol=1e-6)
