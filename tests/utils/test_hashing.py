"""Hashes and permutations that are the same on every machine."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import torch
from torch import nn

from mae.utils.hashing import hash_key, hash_text, hash_weights, permutation
from tests.support.data import ROOT


def test_hash_of_a_key_is_blake2b_of_its_tuple():
    assert hash_key("a", 1, b"x") == hashlib.blake2b(b"('a', 1, b'x')", digest_size=8).digest()
    assert hash_key("ab", "c") != hash_key("a", "bc")
    assert len(hash_key(1, size=16)) == 16


def test_hash_of_a_text_is_blake2b_in_hexadecimal_digits():
    assert hash_text("é") == hashlib.blake2b("é".encode(), digest_size=8).hexdigest()


def test_permutation_holds_each_number_once_and_depends_on_its_whole_key():
    drawn = permutation(1000, 42, "epoch", 0)
    assert sorted(drawn) == list(range(1000)) and np.array_equal(drawn, permutation(1000, 42, "epoch", 0))
    for key in [(43, "epoch", 0), (42, "epochs", 0), (42, "epoch", 1)]:
        assert np.mean(drawn == permutation(1000, *key)) < 0.01
    assert permutation(0, 1).tolist() == [] and permutation(1, 1).tolist() == [0]


def test_another_process_draws_the_same():
    code = "from mae.utils.hashing import permutation, hash_key; print(permutation(9, 1, 'a').tolist(), hash_key('a'))"
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{permutation(9, 1, 'a').tolist()} {hash_key('a')}"


def test_hash_of_weights_sees_each_name_and_each_bit():
    model = nn.Linear(3, 2)
    first = hash_weights(model)
    assert first == hash_weights(model)
    with torch.no_grad():
        model.bias[1] = torch.nextafter(model.bias[1], torch.tensor(9.0))
    assert hash_weights(model) != first
    renamed = nn.ParameterDict({"weights": model.weight, "bias": model.bias})
    assert hash_weights(renamed) != hash_weights(model)
    assert hash_weights(model.bfloat16()) != first


def test_hashes_and_permutations_of_earlier_versions_stay():
    """Stored runs and caches are known by them."""
    assert hash_key("a", 1, b"x").hex() == "f36b4f1e90151cd4"
    assert hash_key("a", 1, b"x", size=16).hex() == "6929e45911b671263dc7748edcb04680"
    assert permutation(10, "epoch", 0, 3).tolist() == [9, 8, 0, 3, 1, 4, 6, 5, 7, 2]
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(2, 3) / 8)
        model.bias.fill_(-1)
    assert hash_weights(model) == "d435d5d758a8e220" and hash_weights(model.bfloat16()) == "30cfe7c881977f29"
