"""The identity of a run: what is in it, and how two of them are compared."""

from types import SimpleNamespace

import pytest

from configuration_mae import MAEConfig
from mae.arguments.classification import ClassificationFlags
from mae.arguments.recipes import PreTrainingRecipe
from mae.arguments.run import RunArguments
from mae.data.sources import Source
from mae.training.identity import differences, resolved_recipe, run_identity


ACCELERATOR = SimpleNamespace(mixed_precision="no")


class FiveImages(Source):
    fingerprint, revision, group_sizes = "f00d", "c0ffee", [2, 3]

    def read(self, group, first_row):
        pytest.fail("The identity of a run needs no image.")

    origin = read


SOURCE = FiveImages()


def identity(recipe, **more):
    arguments, config = more.pop("arguments", RunArguments()), more.pop("config", MAEConfig())
    return run_identity(recipe, arguments, ACCELERATOR, SOURCE, config, 64, None, more.pop("task", {}))


def test_keys_stay_what_stored_runs_have():
    """A key that comes or goes would keep every run of an earlier version from being resumed."""
    found = identity(PreTrainingRecipe())
    keys = ["recipe", "effective_batch_size", "mixed_precision", "tf32", "initial_weights", "data", "model"]
    assert list(found) == keys and found["data"] == {"fingerprint": "f00d", "images": 5}
    shared = {"train_val_split", "seed", "base_learning_rate", "learning_rate", "weight_decay", "adam_beta1"}
    shared |= {"adam_beta2", "max_grad_norm", "ema_decay", "max_steps", "warmup_epochs", "warmup_ratio", "lanes"}
    shared |= {"shuffle_buffer_size"}
    assert found["recipe"].keys() == shared | {"num_train_epochs"}
    assert identity(PreTrainingRecipe(max_steps=5))["recipe"].keys() == shared
    own = {"protocol", "num_trainable_blocks", "from_scratch", "max_train_samples", "augmentation", "min_crop_area"}
    own |= {"randaugment_magnitude", "random_erasing", "mixup_alpha", "cutmix_alpha", "label_smoothing_factor"}
    own |= {"drop_path_rate", "layer_decay"}
    assert identity(ClassificationFlags(max_steps=5).resolve(MAEConfig()))["recipe"].keys() == shared | own


@pytest.mark.parametrize(
    "change",
    [
        {"output_dir": "elsewhere"},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 8},
        {"dataloader_num_workers": 3, "logging_steps": 1, "save_steps": 7, "report_to": ["tensorboard"]},
    ],
)
def test_flags_that_change_no_result_are_left_out(change):
    recipe = PreTrainingRecipe()
    assert identity(recipe, arguments=RunArguments(**change)) == identity(recipe)


def test_field_that_came_later_is_left_out_at_its_default():
    recipe = PreTrainingRecipe()
    assert "standardize_images" not in identity(recipe)["model"]
    assert identity(recipe, config=MAEConfig(standardize_images=True))["model"]["standardize_images"] is True


def test_task_adds_to_data_and_model():
    found = identity(PreTrainingRecipe(), task={"data": {"labels": "1abe1"}, "model": {"num_labels": 3}})
    assert found["data"]["labels"] == "1abe1" and found["data"]["images"] == 5 and found["model"]["num_labels"] == 3


def test_differences_name_nested_values_that_come_go_or_change():
    stored, current = {"a": {"b": 1, "c": [2, 3]}, "gone": 4}, {"a": {"b": 1, "c": [2, 5]}, "new": 6}
    assert differences(stored, current) == [
        "a.c was [2, 3], now [2, 5]", "gone was 4, now None", "new was None, now 6"
    ]  # fmt: skip
    assert differences(stored, stored) == []


def test_resolved_recipe_fills_in_what_was_found_out_and_leaves_out_places():
    recipe = PreTrainingRecipe(dataset_name="me/images", image_mean=["auto"])
    config = MAEConfig(image_mean=[0.25] * 3, image_std=[0.5] * 3)
    arguments = RunArguments(output_dir="here", push_to_hub=True, hub_model_id="me/model", save_steps=7)
    flags = resolved_recipe(recipe, arguments, SimpleNamespace(mixed_precision="bf16"), SOURCE, config)
    assert flags["dataset_revision"] == "c0ffee" and flags["bf16"] and not flags["fp16"]
    assert flags["image_mean"] == [0.25] * 3 and flags["image_std"] == [0.5] * 3 and flags["save_steps"] == 7
    assert not {"output_dir", "resume_from_checkpoint", "push_to_hub", "hub_model_id"} & flags.keys()
    assert None not in flags.values()
