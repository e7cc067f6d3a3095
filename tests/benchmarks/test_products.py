"""The matrix products of a step against autograd and torch's counter of FLOPs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.products import Multiplication, Product, products_of_step
from configuration_mae import MAEConfig
from modeling_mae import MAEForPreTraining
from tests.support.models import assert_close


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("transposed", [True, False])
def test_products_are_those_of_autograd(batch, transposed):
    multiplication = Multiplication([Product(2, batch, 4, 5, 6, transposed)], torch.float32, torch.device("cpu"))
    multiplication()
    ((left, right, outputs, gradient),) = multiplication.matrices
    left, right = left.clone().requires_grad_(), right.clone().requires_grad_()
    expected = left @ (right.mT if transposed else right)
    expected.backward(gradient)
    assert_close(outputs, expected)
    assert_close(multiplication.left_gradients[0], left.grad)
    assert_close(multiplication.right_gradients[0], right.grad)


@pytest.mark.parametrize("size", ["base", "large"])
def test_products_are_those_of_a_step_of_the_model(size):
    config = MAEConfig.from_size(size, attn_implementation="eager")  # the counter sees no other attention
    products = products_of_step(config, images=2)
    with torch.device("meta"):
        model, images = MAEForPreTraining(config), torch.empty(2, 3, 224, 224)
        multiplication = Multiplication(products, torch.float32, torch.device("meta"))
    with FlopCounterMode(display=False) as step:
        model(images).loss.backward()
    with FlopCounterMode(display=False) as floor:
        multiplication()
    assert floor.get_total_flops() == sum(product.flops for product in products)
    # A model may embed removed patches too, and predict visible ones.
    assert 0.97 * step.get_total_flops() < floor.get_total_flops() <= step.get_total_flops()
