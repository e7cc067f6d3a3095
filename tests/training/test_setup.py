"""The parts of a run, and whether they fit together."""

import pytest
from accelerate import Accelerator

from configuration_mae import MAEConfig
from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import RunArguments
from mae.data.folders import open_folder
from mae.training.pretraining import PreTraining
from mae.training.setup import Training
from mae.utils.errors import UserError
from modeling_mae import MAEForPreTraining


SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1}
SIZES |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}


@pytest.fixture
def make(image_folder):
    """A run of 60 images."""

    def make(recipe=None, **arguments):
        recipe = recipe or PreTrainingRecipe(max_steps=3)
        task = PreTraining(
            MAEForPreTraining(MAEConfig(**SIZES)), open_folder(str(image_folder), "--train_dir"), recipe
        )
        return Training(task, recipe, RunArguments(**arguments), Accelerator(cpu=True))

    return make


def test_batch_is_divided_and_not_changed_by_accumulation(make):
    whole = make(per_device_train_batch_size=16)
    divided = make(per_device_train_batch_size=4, gradient_accumulation_steps=4)
    assert whole.schedule == divided.schedule and whole.identity == divided.identity
    positions = [
        [sample.position for batch in training.stream(1) for sample in batch] for training in (whole, divided)
    ]
    assert positions[0] == positions[1] == list(range(16, 48))


def test_batch_larger_than_an_epoch_is_refused(make):
    with pytest.raises(UserError, match="batch of 64 images .*--per_device_train_batch_size 64.* epoch of 56 images"):
        make(per_device_train_batch_size=64)


def test_run_that_only_warms_up_is_noted(make, caplog):
    caplog.set_level("INFO", logger="mae")
    make(PreTrainingRecipe(max_steps=3, warmup_epochs=40), per_device_train_batch_size=8)
    assert "does not reach its peak" in caplog.text


@pytest.mark.parametrize("name", ["drop_path_rate", "attention_probs_dropout_prob"])
def test_pre_training_with_dropout_is_refused(name):
    """It would be drawn from a state that depends on how the batch is divided."""
    model = MAEForPreTraining(MAEConfig(**SIZES, **{name: 0.1}))
    with pytest.raises(UserError, match=f"--config_overrides {name}=0"):
        PreTraining(model, None, PreTrainingRecipe())
