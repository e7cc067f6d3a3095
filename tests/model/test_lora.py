"""PEFT's LoRA on the layers that the classes name."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEForSemanticSegmentation, MAEModel
from tests.support.models import make_images, make_noise, tiny_model


PARTS = {
    MAEModel: None,
    MAEForPreTraining: ["decoder"],
    MAEForImageClassification: ["head"],
    MAEForSemanticSegmentation: ["decode_head"],
}


def outputs(model, cls):
    with torch.no_grad():
        if cls is MAEForPreTraining:
            return model(make_images(), noise=make_noise()).logits
        return model(make_images())[0]


@pytest.mark.parametrize("cls", list(PARTS))
def test_adapter_trains_saves_loads_and_merges(cls, tmp_path):
    model = tiny_model(cls)
    model.save_pretrained(tmp_path / "model")
    before = outputs(model, cls)
    config = LoraConfig(r=2, modules_to_save=PARTS[cls])
    adapted = get_peft_model(model, config).eval()
    assert torch.equal(outputs(adapted, cls), before)  # B of an adapter starts at zero
    # All linear layers of both blocks of the encoder, and no other.
    names = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    encoder = cls.from_pretrained(tmp_path / "model")
    encoder = encoder if cls is MAEModel else encoder.mae
    linear = [name for name, module in encoder.blocks.named_modules() if isinstance(module, nn.Linear)]
    assert len(names) == len(linear) == 8 and not any("decoder" in name for name in names)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    after = outputs(adapted, cls)
    assert not torch.allclose(after, before, atol=1e-2)
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(cls.from_pretrained(tmp_path / "model"), tmp_path / "adapter").eval()
    assert torch.equal(outputs(loaded, cls), after)
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert torch.allclose(outputs(cls.from_pretrained(tmp_path / "merged"), cls), after, atol=1e-5)
