"""What transformers' common suites check on every class, in short; and what they check with an accelerator only."""

import pytest
import torch
from transformers import AutoConfig, TorchAoConfig

from modeling_mae import (
    MAEBackbone,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEForSemanticSegmentation,
    MAEModel,
)
from tests.support.models import assert_close, make_images, make_noise, tiny_model


CLASSES = [MAEModel, MAEForPreTraining, MAEForImageClassification, MAEForSemanticSegmentation, MAEBackbone]
OF_EVERY_CLASS = pytest.mark.parametrize("cls", CLASSES)


def inputs_of(cls, batch_size=2):
    inputs = {"pixel_values": make_images(batch_size=batch_size)}
    return inputs | {"noise": make_noise(batch_size)} if cls is MAEForPreTraining else inputs


def tensors_of(outputs):
    """All tensors of an output, in order; tuples of tensors are flattened."""
    values = outputs if isinstance(outputs, tuple) else outputs.to_tuple()
    return [tensor for value in values for tensor in (value if isinstance(value, tuple) else (value,))]


def assert_same_outputs(model, expected, tolerance=1e-6, **inputs):
    for actual, reference in zip(tensors_of(model(**inputs)), tensors_of(expected), strict=True):
        assert_close(actual, reference, tolerance)


@OF_EVERY_CLASS
def test_weights_on_disk_give_the_same_outputs(cls, tmp_path):
    model = tiny_model(cls)
    model.save_pretrained(tmp_path / "model")
    inputs = inputs_of(cls)
    places = dict.fromkeys((name for name, _ in model.named_children()), "disk")
    # Those of parameters outside of modules.
    places |= dict.fromkeys((name for name, _ in model.named_parameters(recurse=False)), "cpu")
    offloaded = cls.from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded")
    assert any(parameter.is_meta for parameter in offloaded.parameters())
    with torch.no_grad():
        assert_same_outputs(offloaded, model(**inputs), **inputs)


@OF_EVERY_CLASS
def test_device_map_and_shards_give_the_same_outputs(cls, tmp_path):
    model = tiny_model(cls)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    inputs = inputs_of(cls)
    assert_same_outputs(cls.from_pretrained(tmp_path, device_map="auto"), model(**inputs), **inputs)


@OF_EVERY_CLASS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_saved_and_loaded(cls, dtype, tmp_path):
    model = tiny_model(cls).to(dtype)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, trust_remote_code=False).dtype == dtype
    assert cls.from_pretrained(tmp_path, dtype="auto").dtype == dtype
    assert cls.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
    inputs = inputs_of(cls)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    assert_same_outputs(cls.from_pretrained(tmp_path, dtype=dtype), model(**inputs), **inputs)


@OF_EVERY_CLASS
def test_tuples_hold_what_dictionaries_hold(cls):
    model, inputs = tiny_model(cls), inputs_of(cls)
    arguments = inputs | {"output_hidden_states": True, "output_attentions": True}
    outputs = model(**arguments)
    assert len(outputs.attentions) == model.config.num_hidden_layers
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    as_tuple = model(**arguments, return_dict=False)
    for actual, reference in zip(tensors_of(as_tuple), tensors_of(outputs), strict=True):
        assert torch.equal(actual, reference)


@OF_EVERY_CLASS
def test_hidden_states_and_attentions_keep_their_gradients(cls):
    model, inputs = tiny_model(cls, attn_implementation="eager"), inputs_of(cls)
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    kept = [*outputs.hidden_states[:-1], *outputs.attentions]
    for tensor in kept:
        tensor.retain_grad()
    main = outputs.get("loss", tensors_of(outputs)[0])
    main.square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in kept)


@OF_EVERY_CLASS
def test_samples_of_a_batch_do_not_see_each_other(cls):
    model, inputs = tiny_model(cls), inputs_of(cls, batch_size=3)
    alone = model(**{name: value[1:2] for name, value in inputs.items()})
    together = model(**inputs)
    for one, all_ in zip(tensors_of(alone), tensors_of(together), strict=True):
        if one.ndim:  # the loss is a mean
            assert_close(all_[1:2], one, 1e-6)


@OF_EVERY_CLASS
def test_exported_program_gives_the_same_outputs(cls):
    model, inputs = tiny_model(cls), inputs_of(cls)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})
    others = inputs_of(cls, batch_size=5)
    assert_same_outputs(program.module(), model(**others), **others)


@OF_EVERY_CLASS
def test_compiled_graph_is_whole_and_gives_the_same_outputs(cls):
    torch._dynamo.reset()
    model, inputs = tiny_model(cls), inputs_of(cls)
    expected = model(**inputs)
    assert_same_outputs(torch.compile(model, fullgraph=True, backend="aot_eager"), expected, **inputs)


@pytest.mark.slow
@OF_EVERY_CLASS
def test_flex_attention_gives_the_same_outputs(cls):
    """It needs a C++ compiler."""
    model, inputs = tiny_model(cls, attn_implementation="flex_attention"), inputs_of(cls)
    assert model.config._attn_implementation == "flex_attention"
    reference = tiny_model(cls, attn_implementation="eager")
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert_same_outputs(model, reference(**inputs), 1e-5, **inputs)


@pytest.mark.slow
def test_int8_weights_keep_the_features(tmp_path):
    """By torchao, which is in no extra."""
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny_model(MAEModel)
    model.save_pretrained(tmp_path)
    quantization = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    quantized = MAEModel.from_pretrained(tmp_path, quantization_config=quantization)
    assert type(quantized.blocks[0].attn.qkv.weight) is not torch.nn.Parameter
    with torch.no_grad():
        expected, actual = (each(make_images()).last_hidden_state for each in (model, quantized))
    assert 0 < (actual - expected).abs().max() < 0.02 * expected.abs().max()
