"""The cross-attention decoder against plain loops, and what follows from each patch being predicted alone."""

import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from cross_decoder_mae import choose_predicted
from modeling_mae import MAEForPreTraining, MAEModel
from patches_mae import invert
from tests.support.models import assert_close, make_images, tiny_config, tiny_model


FIELDS = {"decoder_type": "cross_attention", "image_size": 48, "norm_pix_loss": True}  # 36 patches, 9 of them visible
WEIGHTED = [False, True]


def noise_of(batch_size: int = 2, num_patches: int = 36) -> Tensor:
    return torch.rand(batch_size, num_patches, generator=torch.Generator().manual_seed(2))


def layer_norm(values: np.ndarray, weights: dict, name: str) -> np.ndarray:
    centred = values - values.mean()
    normed = centred / math.sqrt((centred**2).mean() + 1e-6)
    return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(values: np.ndarray, weights: dict, name: str) -> np.ndarray:
    return weights[f"{name}.weight"] @ values + weights[f"{name}.bias"]


def gelu(values: np.ndarray) -> np.ndarray:
    return values * np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))(values)


def predict_by_loops(model: MAEForPreTraining, maps: list[np.ndarray], patch: int) -> np.ndarray:
    """A patch of an image, from the encoder's maps `(1 + S, D)`: one token, one head and one key at a time."""
    config = model.config
    weights = {name: tensor.double().numpy() for name, tensor in model.decoder.state_dict().items()}
    width = config.decoder_hidden_size // config.decoder_num_attention_heads
    token = weights["mask_token"][0, 0] + weights["pos_embed"][0, 1 + patch]
    for number in range(config.decoder_num_hidden_layers):
        block = f"blocks.{number}"
        features = maps[-1]
        if config.weighted_feature_maps:
            shares = weights["features.weights.weight"][number]
            features = sum(share * its_map for share, its_map in zip(shares, maps))
            features = np.stack([layer_norm(row, weights, f"features.norms.{number}") for row in features])
        query = linear(layer_norm(token, weights, f"{block}.norm1"), weights, f"{block}.attn.q")
        pairs = [linear(row, weights, f"{block}.attn.kv") for row in features]
        heads = []
        for head in range(config.decoder_num_attention_heads):
            part = slice(head * width, (head + 1) * width)
            keys, values = ([half[part] for half in halves] for halves in zip(*(np.split(pair, 2) for pair in pairs)))
            scores = np.exp([query[part] @ key / math.sqrt(width) for key in keys])
            heads.append(sum(score * value for score, value in zip(scores / scores.sum(), values)))
        token = token + linear(np.concatenate(heads), weights, f"{block}.attn.proj")
        hidden = gelu(linear(layer_norm(token, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1"))
        token = token + linear(hidden, weights, f"{block}.mlp.fc2")
    return linear(layer_norm(token, weights, "norm"), weights, "pred")


@pytest.mark.parametrize("weighted", WEIGHTED)
def test_predictions_are_those_of_plain_loops(weighted):
    model, images, noise = tiny_model(**FIELDS, weighted_feature_maps=weighted), make_images(48, 48), noise_of()
    with torch.no_grad():
        logits = model(images, noise=noise).logits
        encoded = model.mae(images, noise=noise, output_hidden_states=True)
    maps = [*encoded.hidden_states[:-1], encoded.last_hidden_state]
    for image, patch in ((0, 0), (0, 17), (1, 35)):
        expected = predict_by_loops(model, [each[image].double().numpy() for each in maps], patch)
        assert_close(logits[image, patch].double(), torch.from_numpy(expected), 1e-5)


@pytest.mark.parametrize("weighted", WEIGHTED)
def test_loss_of_a_part_is_that_of_the_part_of_all_predictions(weighted):
    """In training: the removed patches with the largest noise, whether or not all predictions are asked for."""
    fields = FIELDS | {"weighted_feature_maps": weighted, "prediction_ratio": 0.25}
    model, images, noise = tiny_model(**fields), make_images(48, 48), noise_of()
    with torch.no_grad():
        everything = model(images, noise=noise)
        model.train()
        part, with_logits = model(images, noise=noise, return_logits=False), model(images, noise=noise)
    assert part.logits is None and torch.equal(part.mask, everything.mask)
    assert_close(with_logits.logits, everything.logits)
    patches = model.patchify(images)
    targets = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    errors = (everything.logits - targets).square().mean(-1).numpy()
    chosen = [np.argsort(row)[-9:] for row in noise.numpy()]  # 9 of 36
    assert part.loss.item() == pytest.approx(np.mean([row[ids] for row, ids in zip(errors, chosen)]), abs=1e-5)
    assert with_logits.loss.item() == pytest.approx(part.loss.item(), abs=1e-6)
    assert everything.loss.item() == pytest.approx(errors[everything.mask.bool().numpy()].mean(), abs=1e-5)


def test_weights_of_patches_belong_to_the_patches_that_are_predicted():
    model, images, noise = tiny_model(**FIELDS, prediction_ratio=0.25).train(), make_images(48, 48), noise_of()
    weights = torch.zeros(2, 36)
    last = noise.argmax(dim=1)  # is predicted
    weights[[0, 1], last] = 1
    with torch.no_grad():
        loss = model(images, noise=noise, patch_weights=weights).loss
        logits = model(images, noise=noise).logits
    patches = model.patchify(images)
    targets = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    errors = (logits - targets).square().mean(-1)[[0, 1], last]
    assert loss.item() == pytest.approx(errors.sum().item() / 18, abs=1e-5)


def test_permuted_queries_give_permuted_predictions():
    model, images = tiny_model(**FIELDS), make_images(48, 48)
    masked = model.mae.mask_patches(images, noise=noise_of())
    encoded = model.mae(masked)
    order = torch.cat([torch.arange(9), 9 + torch.randperm(27, generator=torch.Generator().manual_seed(3))])
    permuted = masked._replace(ids_shuffle=masked.ids_shuffle[:, order], patches=masked.patches[:, order])
    with torch.no_grad():
        predictions, other = (model.decoder(encoded, each, False)[0] for each in (masked, permuted))
    assert_close(other, predictions[:, order[9:] - 9], 1e-6)


@pytest.mark.parametrize("masking", ["random", "block", "grid"])
def test_choice_is_a_function_of_the_noise_and_keeps_the_mask(masking):
    model, images, noise = tiny_model(**FIELDS, masking=masking), make_images(48, 48), noise_of()
    masked = model.mae.mask_patches(images, noise=noise)
    chosen = choose_predicted(masked, noise, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(chosen[3:5], masked[3:5]))  # ids_restore and mask
    assert torch.equal(chosen.visible, masked.visible) and chosen.removed.shape[1] == 9
    for row in range(2):
        ids = chosen.ids_shuffle[row, 9:]
        removed = masked.mask[row].nonzero().flatten()
        assert set(ids.tolist()) == set(removed[noise[row, removed].argsort()[-9:]].tolist())
        places = invert(masked.ids_shuffle)[row, ids] - 9
        assert places.tolist() == sorted(places.tolist())
        assert torch.equal(chosen.removed[row], masked.removed[row, places])


def test_a_mask_without_noise_has_its_part_drawn():
    """Not the first ones in raster order."""
    model = tiny_model(**FIELDS)
    mask = torch.ones(400, 36)
    mask[:, ::4] = 0
    masked = model.mae.mask_patches(make_images(48, 48, batch_size=400), mask)
    counts = torch.bincount(choose_predicted(masked, None, 0.25).ids_shuffle[:, 9:].flatten(), minlength=36)
    assert counts[::4].sum() == 0 and counts[counts > 0].min() > 80 and (counts > 0).sum() == 27


@pytest.mark.parametrize(("ratio", "count"), [(1e-9, 1), (0.26, 9), (0.75, 27)])
def test_number_of_predicted_patches(ratio, count):
    model, noise = tiny_model(**FIELDS), noise_of()
    masked = model.mae.mask_patches(make_images(48, 48), noise=noise)
    assert choose_predicted(masked, noise, ratio).removed.shape[1] == count
    fewer = model.mae.mask_patches(make_images(48, 48), noise=noise, mask_ratio=0.5)
    assert choose_predicted(fewer, noise, ratio).removed.shape[1] == min(count, 18)


@pytest.mark.parametrize("weighted", WEIGHTED)
def test_gradients_are_those_of_finite_differences(weighted):
    fields = FIELDS | {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "decoder_hidden_size": 8}
    fields |= {"decoder_intermediate_size": 8, "image_size": 16, "patch_size": 4, "prediction_ratio": 0.25}
    model = tiny_model(**fields, weighted_feature_maps=weighted).double().train()
    images, noise = make_images(16, 16).double(), noise_of(num_patches=16).double()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}

    def loss(*values: Tensor) -> Tensor:
        arguments = (images,), {"noise": noise, "return_logits": False}
        return torch.func.functional_call(model, dict(zip(trained, values)), *arguments).loss.double()

    # The loss is computed in float32.
    inputs = tuple(value.detach().requires_grad_() for value in trained.values())
    torch.autograd.gradcheck(loss, inputs, eps=1e-2, atol=3e-3, rtol=2e-2, fast_mode=True)


@pytest.mark.parametrize("weighted", WEIGHTED)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_weight_has_a_gradient(weighted, checkpointing):
    """The encoder's last norm too, which fine-tuning uses, and DDP refuses weights without one."""
    model = tiny_model(**FIELDS, weighted_feature_maps=weighted, prediction_ratio=0.25).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(make_images(48, 48), noise=noise_of(), return_logits=False).loss.backward()
    assert all(value.grad.abs().sum() > 0 for value in model.parameters() if value.requires_grad)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(implementation):
    expected = tiny_model(**FIELDS)(make_images(48, 48), noise=noise_of()).logits
    model = tiny_model(**FIELDS)
    model.set_attn_implementation(implementation)
    assert_close(model(make_images(48, 48), noise=noise_of()).logits, expected, 1e-5)


@pytest.mark.parametrize("weighted", WEIGHTED)
def test_saved_model_is_the_same_at_its_size_and_at_another(weighted, tmp_path):
    model, images = tiny_model(**FIELDS, weighted_feature_maps=weighted, prediction_ratio=0.5), make_images(48, 48)
    model.save_pretrained(tmp_path)
    loaded = MAEForPreTraining.from_pretrained(tmp_path)
    assert_close(loaded(images, noise=noise_of()).logits, model(images, noise=noise_of()).logits, 0)
    assert loaded.config.prediction_ratio == 0.5 and loaded.config.weighted_feature_maps == weighted
    resized = MAEForPreTraining.from_pretrained(tmp_path, image_size=(32, 64), patch_size=16)
    assert resized.reconstruct(make_images(32, 64)).pasted.shape == (2, 3, 32, 64)
    encoder, info = MAEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_close(encoder(images).last_hidden_state, model.mae(images).last_hidden_state, 0)


def test_hidden_states_are_returned_only_if_they_are_asked_for():
    model, images = tiny_model(**FIELDS, weighted_feature_maps=True), make_images(48, 48)
    assert model(images, noise=noise_of()).hidden_states is None
    assert len(model(images, noise=noise_of(), output_hidden_states=True).hidden_states) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_type": "none"}, "decoder_type"),
        ({"prediction_ratio": 0.25}, "prediction_ratio=0.25 needs decoder_type='cross_attention'"),
        ({"weighted_feature_maps": True}, "weighted_feature_maps=True needs decoder_type='cross_attention'"),
        (FIELDS | {"prediction_ratio": 0.8}, "prediction_ratio=0.8 must be positive and at most mask_ratio=0.75"),
        (FIELDS | {"prediction_ratio": 0}, "prediction_ratio=0 must be positive"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**fields)
