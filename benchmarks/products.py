"""The matrix products of a training step alone: the time that no implementation on this device can go below."""

from dataclasses import dataclass

import torch

from configuration_mae import MAEConfig, to_pair
from modeling_mae import num_visible_patches


@dataclass(frozen=True)
class Product:
    """
    A product of the forward pass, m x k by k x n, and the two of its backward pass.

    Args:
        count: How often the forward pass computes it.
        batch: Number of matrices that are multiplied at once.
        transposed: Whether the right matrix lies in memory as n x k, as weights and keys do.
        trains_left: Whether the left matrix has a gradient. Pixels have none.
    """

    count: int
    batch: int
    m: int
    k: int
    n: int
    transposed: bool = True
    trains_left: bool = True

    @property
    def flops(self) -> int:
        """FLOPs of forward and backward pass."""
        return (3 if self.trains_left else 2) * 2 * self.count * self.batch * self.m * self.k * self.n


def _block_products(blocks: int, images: int, tokens: int, width: int, heads: int, hidden: int) -> list[Product]:
    linear = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
    head = width // heads
    return [
        *(Product(blocks, 1, images * tokens, inputs, outputs) for inputs, outputs in linear),
        Product(blocks, images * heads, tokens, head, tokens),  # scores
        Product(blocks, images * heads, tokens, tokens, head, transposed=False),  # values
    ]


def products_of_step(config: MAEConfig, images: int) -> list[Product]:
    """
    Products that a step of [`MAEForPreTraining`] on so many images cannot do without.

    Only visible patches are embedded, and only the pixels of removed patches are predicted.
    """
    patch_height, patch_width = to_pair(config.patch_size)
    values = patch_height * patch_width * config.num_channels
    num_visible = num_visible_patches(config.num_patches, config.mask_ratio)
    width, decoder_width = config.hidden_size, config.decoder_hidden_size
    return [
        Product(1, 1, images * num_visible, values, width, trains_left=False),
        *_block_products(
            config.num_hidden_layers, images, 1 + num_visible, width,
            config.num_attention_heads, config.intermediate_size,
        ),
        Product(1, 1, images * (1 + num_visible), width, decoder_width),
        *_block_products(
            config.decoder_num_hidden_layers, images, 1 + config.num_patches, decoder_width,
            config.decoder_num_attention_heads, config.decoder_intermediate_size,
        ),
        Product(1, 1, images * (config.num_patches - num_visible), decoder_width, values),
    ]  # fmt: skip


class Multiplication:
    """
    Run products back to back. Outputs are allocated once, so that nothing but multiplication is timed.

    Products of the same shape share their matrices.
    """

    def __init__(self, products: list[Product], dtype: torch.dtype, device: torch.device):
        self.products = products

        def matrix(batch: int, *shape: int) -> torch.Tensor:
            shape = shape if batch == 1 else (batch, *shape)
            return torch.randn(shape, device=device).to(dtype)

        self.matrices = []
        for product in products:
            left, outputs = (matrix(product.batch, product.m, size) for size in (product.k, product.n))
            stored = (product.n, product.k) if product.transposed else (product.k, product.n)
            self.matrices.append((left, matrix(product.batch, *stored), outputs, outputs.clone()))
        self.left_gradients = [torch.empty_like(left) for left, *_ in self.matrices]
        self.right_gradients = [torch.empty_like(right) for _, right, *_ in self.matrices]

    def __call__(self) -> None:
        rows = zip(self.products, self.matrices, self.left_gradients, self.right_gradients)
        for product, (left, right, outputs, gradient), left_gradient, right_gradient in rows:
            turned = right.mT if product.transposed else right
            # As autograd writes them: the gradient of the right matrix lies in memory as the matrix does.
            factors = (gradient.mT, left) if product.transposed else (left.mT, gradient)
            for _ in range(product.count):
                torch.matmul(left, turned, out=outputs)
                if product.trains_left:
                    torch.matmul(gradient, turned.mT, out=left_gradient)
                torch.matmul(*factors, out=right_gradient)
