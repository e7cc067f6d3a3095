"""Averaged weights against their definition."""

import torch

from configuration_mae import MAEConfig
from mae.training.average import AveragedWeights
from modeling_mae import MAEForPreTraining


CONFIG = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2}
CONFIG |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}


def test_average_follows_its_definition():
    """Against the definition, with the shorter memory of the first steps; weights that do not train have none."""
    torch.manual_seed(0)
    model = MAEForPreTraining(MAEConfig(**CONFIG))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    average = AveragedWeights(model, 0.5)
    expected = {name: model.get_parameter(name).detach().double() for name in names}
    for step in range(1, 12):
        with torch.no_grad():
            for name in names:
                model.get_parameter(name).normal_()
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        assert (decay < 0.5) == (step < 8)
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * model.get_parameter(name).detach().double()
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.applied():
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor, expected[name].float(), atol=1e-6) if name in names else True
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())
    assert len(average.averages) == len(names) < len(trained)
    average.reset()
    with average.applied():
        assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())
