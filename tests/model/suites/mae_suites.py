"""
transformers' common suites on the models of this package. tests/model/test_transformers_suites.py copies this file
into the source distribution of transformers, which has the suites.
"""

import copy
import unittest

import torch

from configuration_mae import MAEConfig
from modeling_mae import (
    MAEBackbone,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEForSemanticSegmentation,
    MAEModel,
)

from ...test_backbone_common import BackboneTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_modeling_common import ModelTesterMixin, floats_tensor


class ModelTester:
    """A small model and its inputs, under the names that the suites ask for."""

    is_training = True
    batch_size = 4
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    image_size = 32
    patch_size = 8
    num_masks = 12
    mask_length = 16

    def __init__(self, seq_length=17):
        self.seq_length = seq_length

    def get_config(self):
        return MAEConfig(
            image_size=32,
            patch_size=8,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=37,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=16,
            num_labels=3,
        )

    def prepare_config_and_inputs(self):
        return self.get_config(), floats_tensor([self.batch_size, 3, 32, 32]), None

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixel_values}


class MAESuite(ModelTesterMixin):
    test_resize_embeddings = False  # of tokens
    seq_length = 17

    def setUp(self):
        self.model_tester = ModelTester(self.seq_length)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs, size = copy.deepcopy(inputs_dict), len(inputs_dict["pixel_values"])
        if model_class is MAEForPreTraining:
            inputs["noise"] = torch.rand(size, 16, generator=torch.Generator().manual_seed(0))
        elif return_labels:
            shapes = {MAEForImageClassification: (size,), MAEForSemanticSegmentation: (size, 32, 32)}
            if model_class in shapes:
                inputs["labels"] = torch.zeros(shapes[model_class], dtype=torch.long)
        return inputs

    def test_model_get_set_embeddings(self):
        """As in the suite of ViT: the embedding is one of patches, and no nn.Embedding."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            assert isinstance(model.get_input_embeddings(), torch.nn.Module)

    @unittest.skip("The default is the kernel of SDPA under a name of its own, because its gradient differs.")
    def test_sdpa_can_dispatch_non_composite_models(self):
        pass


class EncoderTest(MAESuite, unittest.TestCase):
    all_model_classes = (MAEModel, MAEBackbone)

    def setUp(self):
        super().setUp()
        self.model_tester.is_training = False  # they have no loss


class HeadTest(MAESuite, unittest.TestCase):
    all_model_classes = (MAEForImageClassification, MAEForSemanticSegmentation)


class PreTrainingTest(MAESuite, unittest.TestCase):
    all_model_classes = (MAEForPreTraining,)
    seq_length = 5  # cls and the visible patches


class BackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (MAEBackbone,)
    config_class = MAEConfig
    has_attentions = True

    def setUp(self):
        self.model_tester = ModelTester()


class ConfigurationTest(unittest.TestCase):
    def test_config(self):
        tester = ConfigTester(
            self, config_class=MAEConfig, has_text_modality=False, hidden_size=32, num_attention_heads=4
        )
        tester.run_common_tests()
