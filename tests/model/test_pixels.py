"""Pixels and patches: uint8 images, and pre-training against a plain implementation of the whole forward pass."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from configuration_mae import MAEConfig
from modeling_mae import MAEForImageClassification, MAEForPreTraining, MAEForSemanticSegmentation, MAEModel
from patches_mae import SquaredNorms, invert, normalize, patchify, take_patches
from tests.support.models import assert_close, tiny_config, tiny_model


SHAPES = [  # image size, patch size, channels
    ((32, 32), 8, 3),
    ((24, 40), (8, 4), 4),
    ((6, 35), (2, 7), 2),
    ((32, 32), 16, 1),
]


def make_images(size=(32, 32), channels=3, batch_size=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch_size, channels, *size), generator=generator, dtype=torch.uint8)


def make_noise(num_patches=16, batch_size=2):
    return torch.rand(batch_size, num_patches, generator=torch.Generator().manual_seed(2))


def nodes_of(tensor):
    """Names of the operations of a backward pass."""
    nodes, seen = [tensor.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
    return {type(node).__name__ for node in seen}


def plain_loss(model: MAEForPreTraining, images, noise):
    """The loss as in the official code: all patches are embedded, and the decoder restores the raster order."""
    encoder, decoder, config = model.mae, model.decoder, model.config
    patches = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2) + encoder.pos_embed[:, 1:]
    num_visible = int(patches.shape[1] * (1 - config.mask_ratio))
    ids_shuffle = noise.argsort(1)
    ids_restore = ids_shuffle.argsort(1)
    visible = torch.stack([patches[i, ids_shuffle[i, :num_visible]] for i in range(len(images))])
    cls_token = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(images), -1, -1)
    tokens = torch.cat([cls_token, visible], dim=1)
    for block in encoder.blocks:
        tokens, _ = block(tokens)
    tokens = decoder.embed(encoder.norm(tokens))
    mask_tokens = decoder.mask_token.expand(len(images), patches.shape[1] - num_visible, -1)
    all_patches = torch.cat([tokens[:, 1:], mask_tokens], dim=1)
    all_patches = torch.stack([all_patches[i, ids_restore[i]] for i in range(len(images))])
    tokens = torch.cat([tokens[:, :1], all_patches], dim=1) + decoder.pos_embed
    for block in decoder.blocks:
        tokens, _ = block(tokens)
    predictions = decoder.pred(decoder.norm(tokens))[:, 1:]
    target = model.patchify(images)
    if config.norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    removed = ids_restore >= num_visible
    return (predictions - target)[removed].square().mean(), predictions


# The whole forward pass


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("image_size, patch_size, channels", SHAPES)
def test_loss_and_all_gradients_are_those_of_a_plain_implementation(image_size, patch_size, channels, norm_pix_loss):
    model = tiny_model(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=channels,
        norm_pix_loss=norm_pix_loss,
        mask_ratio=0.5,
    ).double()
    for parameter in model.parameters():
        parameter.requires_grad_()  # the positions too
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, channels, *image_size, dtype=torch.float64, generator=generator).requires_grad_()
    noise = make_noise(model.config.num_patches)
    variables = {"images": images, **dict(model.named_parameters())}

    def gradients(loss):
        return dict(zip(variables, torch.autograd.grad(loss, variables.values(), retain_graph=True)))

    outputs = model(images, noise=noise)
    loss, predictions = plain_loss(model, images, noise)
    # The loss is in float32, whatever the model is.
    assert outputs.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert_close(outputs.logits, predictions, 1e-9)
    expected = gradients(loss)
    for name, gradient in gradients(outputs.loss).items():
        assert_close(gradient, expected[name], 1e-5 * expected[name].abs().max().item() + 1e-9)
    # A loss of the user, of all logits.
    expected = gradients(predictions.square().sum())
    for name, gradient in gradients(outputs.logits.square().sum()).items():
        assert_close(gradient, expected[name], 1e-9 * expected[name].abs().max().item() + 1e-9)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_backward_pass_of_the_loss_scatters_nothing(norm_pix_loss):
    names = nodes_of(tiny_model(norm_pix_loss=norm_pix_loss).train()(make_images(), noise=make_noise()).loss)
    assert "SquaredNormsBackward" in names and "AccumulateGrad" in names
    forbidden = ("Gather", "Scatter", "Index", "Embedding", "Take", "Put")
    assert not [name for name in names if name.startswith(forbidden)]


@pytest.mark.parametrize("return_logits", [False, True])
def test_pretraining_compiles_as_one_graph_without_recompilation(return_logits):
    model = tiny_model(norm_pix_loss=True).train()
    torch._dynamo.reset()
    graphs = []
    compiled = torch.compile(model, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    for _ in range(2):
        for number in range(2):
            noise = make_noise() + number
            loss = compiled(make_images(), noise=noise, return_logits=return_logits).loss
            assert_close(loss, model(make_images(), noise=noise, return_logits=return_logits).loss)
            loss.backward()
        with torch.no_grad():  # an evaluation in between
            model.eval()
            compiled(make_images(), noise=make_noise(), return_logits=return_logits)
            model.train()
    assert len(graphs) == 2  # one for training and one for evaluation


def test_step_reads_no_value_on_the_host():
    """On the meta device, where a tensor has no values to wait for."""
    with torch.device("meta"):
        model = MAEForPreTraining(tiny_config(norm_pix_loss=True)).train()
    images, noise = make_images().to("meta"), make_noise().to("meta")
    outputs = model(images, noise=noise)
    outputs.loss.backward()
    assert outputs.logits.shape == (2, 16, 192)
    assert model.mae.patch_embed.proj.weight.grad.shape == (32, 3, 8, 8)


def test_gradient_of_the_patch_projection_has_the_layout_of_its_weight():
    model = tiny_model().train()
    model(make_images(), noise=make_noise()).loss.backward()
    weight = model.mae.patch_embed.proj.weight
    assert weight.grad.stride() == weight.stride()


# uint8 images


@pytest.mark.parametrize("image_size, patch_size, channels", SHAPES)
@pytest.mark.parametrize("mask", ["noise", "bool_masked_pos"])
def test_uint8_images_give_the_outputs_of_normalised_ones_to_the_last_bit(image_size, patch_size, channels, mask):
    fields = {"image_mean": [0.1] * channels, "image_std": [0.3] * channels} if channels != 1 else {}
    model = tiny_model(image_size=image_size, patch_size=patch_size, num_channels=channels, mask_ratio=0.5, **fields)
    images = make_images(image_size, channels)
    noise = make_noise(model.config.num_patches)
    mask = {"noise": noise} if mask == "noise" else {"bool_masked_pos": noise.argsort(1) < 2}
    pixel_values = images / 255  # as the image processor does it
    if fields:
        pixel_values = (pixel_values - 0.1) / 0.3
    outputs, expected = model(images, **mask), model(pixel_values, **mask)
    assert torch.equal(outputs.loss, expected.loss) and torch.equal(outputs.logits, expected.logits)
    assert torch.equal(
        normalize(patchify(images, patch_size), model.config, patches=True), model.patchify(pixel_values)
    )
    for arguments in ({}, mask):
        pair = [model.mae(pixels, **arguments).last_hidden_state for pixels in (images, pixel_values)]
        assert torch.equal(*pair)
    pair = [model.reconstruct(pixels, **mask) for pixels in (images, pixel_values)]
    for key, value in pair[1].items():
        assert torch.equal(pair[0][key], value)


def test_uint8_images_fit_every_model_and_precision():
    for cls in (MAEModel, MAEForPreTraining, MAEForImageClassification):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            outputs = tiny_model(cls).to(dtype)(make_images())
            assert dtype in [value.dtype for value in outputs.values()]
    model = tiny_model().bfloat16()
    assert model.reconstruct(make_images()).pasted.dtype == torch.bfloat16


def test_images_that_are_neither_uint8_nor_of_the_model_s_dtype_are_refused():
    with pytest.raises(RuntimeError, match="dtype|type"):
        tiny_model()(make_images().double(), noise=make_noise())


def test_uint8_images_are_not_changed():
    images = make_images()
    before = images.clone()
    model = tiny_model()
    model(images)
    model.reconstruct(images)
    normalize(images, model.config)
    assert torch.equal(images, before)
    pixel_values = images.float()
    normalize(pixel_values, model.config)
    assert torch.equal(pixel_values, before.float())


def test_normalisation_after_tracing_and_in_inference_mode_still_trains():
    """The cached mean and std are plain tensors, whoever used them first."""
    config = MAEConfig(image_mean=[0.11, 0.12, 0.13], image_std=[0.21, 0.22, 0.23])
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        normalize(torch.empty(1, 3, 8, 8), config)
    with torch.inference_mode():
        normalize(make_images(), config)
    pixels = make_images().float().requires_grad_()
    normalize(pixels, config).sum().backward()
    assert_close(pixels.grad[0, :, 0, 0] * 255, 1 / torch.tensor(config.image_std), 1e-4)


# Parts


def test_invert_gives_the_inverse_permutation():
    order = torch.rand(5, 13).argsort(1)
    assert np.array_equal(invert(order).numpy(), np.argsort(order.numpy(), axis=1))


def test_take_patches_selects_rows_of_each_image():
    patches = torch.randn(3, 7, 5)
    ids = torch.randint(0, 7, (3, 4))
    expected = np.take_along_axis(patches.numpy(), ids.numpy()[..., None], axis=1)
    assert np.array_equal(take_patches(patches, ids).numpy(), expected)


def test_squared_norms_and_their_derivatives_are_those_of_sums_of_squares():
    patches = torch.randn(2, 3, 5, dtype=torch.float64)
    patches[0, 0] = 0
    assert_close(SquaredNorms.apply(patches), patches.square().sum(-1), 1e-12)
    patches.requires_grad_()
    assert torch.autograd.gradcheck(SquaredNorms.apply, patches)
    assert torch.autograd.gradgradcheck(SquaredNorms.apply, patches)
    per_image = torch.func.vmap(torch.func.grad(lambda image: SquaredNorms.apply(image).sum()))
    assert_close(per_image(patches.detach()), 2 * patches.detach(), 1e-12)


def test_hooks_of_the_patch_embedding_see_the_visible_patches():
    model, seen = tiny_model(), []
    model.mae.patch_embed.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model(make_images(), noise=make_noise())
    model.mae(make_images())
    assert seen == [(2, 4, 32), (2, 16, 32)]
    assert isinstance(model.mae.get_input_embeddings().proj, nn.Conv2d)


def test_embedding_of_patches_equals_the_convolution():
    embedding = tiny_model(MAEModel, patch_size=(8, 4), num_channels=2).patch_embed
    images = torch.randn(2, 2, 32, 32)
    expected = F.conv2d(images, embedding.proj.weight, embedding.proj.bias, stride=(8, 4)).flatten(2).mT
    assert_close(embedding(patchify(images, (8, 4))), expected)


# Standardisation of each image


def standardized(images):
    """Of normalised images, by NumPy in float64."""
    images = images.double().numpy()
    mean, variance = images.mean(axis=(2, 3), keepdims=True), images.var(axis=(2, 3), keepdims=True)
    return torch.from_numpy((images - mean) / np.sqrt(variance + 1e-6)).float()


def make_pair(model_class, **fields):
    """A model that standardises images, and one of the same weights that does not."""
    models = [tiny_model(model_class, standardize_images=flag, **fields).eval() for flag in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    return models


@pytest.mark.parametrize(
    "model_class, output",
    [
        (MAEModel, "last_hidden_state"),
        (MAEForPreTraining, "logits"),
        (MAEForPreTraining, "loss"),
        (MAEForImageClassification, "logits"),
        (MAEForSemanticSegmentation, "logits"),
    ],
)
def test_model_standardises_images_as_numpy_does(model_class, output):
    model, plain = make_pair(model_class)
    images = make_images()
    normalized = normalize(images, model.config)
    arguments = {"noise": make_noise()} if model_class is MAEForPreTraining else {}
    expected = plain(standardized(normalized), **arguments)[output]
    for pixel_values in (images, normalized):
        assert torch.allclose(model(pixel_values, **arguments)[output], expected, atol=1e-5)


def test_brightness_and_contrast_of_a_channel_change_nothing():
    model = tiny_model(MAEModel, standardize_images=True).eval()
    images = torch.randn(2, 3, 32, 32)
    gain, offset = torch.tensor([0.5, 2, 3]).view(3, 1, 1), torch.tensor([0.0, -1, 4]).view(3, 1, 1)
    expected = model(images, noise=make_noise()).last_hidden_state
    assert torch.allclose(model(images * gain + offset, noise=make_noise()).last_hidden_state, expected, atol=1e-4)
    assert model(torch.ones(2, 3, 32, 32)).last_hidden_state.isfinite().all()  # no contrast


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_pictures_have_the_brightness_and_contrast_of_the_image(norm_pix_loss):
    model, plain = make_pair(MAEForPreTraining, norm_pix_loss=norm_pix_loss)
    images = torch.randn(2, 3, 32, 32) * 3 + 1
    mean, std = images.mean((2, 3), keepdim=True), images.var((2, 3), correction=0, keepdim=True).add(1e-6).sqrt()
    found = model.reconstruct(images, noise=make_noise())
    expected = plain.reconstruct(standardized(images), noise=make_noise())
    for name in ("masked", "reconstruction", "pasted"):
        assert torch.allclose(found[name], expected[name] * std + mean, atol=1e-4)
    visible = found.mask[..., None] == 0
    assert torch.allclose(
        model.patchify(found.pasted).masked_select(visible), model.patchify(images).masked_select(visible), atol=1e-5
    )


def test_standardisation_travels_with_a_model(tmp_path):
    model = tiny_model(standardize_images=True)
    model.save_pretrained(tmp_path)
    encoder = MAEModel.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 32, 32)
    assert encoder.config.standardize_images
    assert_close(encoder(images * 5 + 2).last_hidden_state, model.mae.eval()(images).last_hidden_state, 1e-4)
