"""Steps of converting a checkpoint. tests/examples/test_convert_checkpoint.py tests the whole script."""

from pathlib import Path

import pytest

from configuration_mae import MAEConfig
from mae.cli.conversion import checked_output, compare, fits_processor, make_card
from mae.conversion.report import LoadReport
from mae.conversion.weights import Weights
from mae.utils.errors import UserError
from modeling_mae import MAEModel


CONFIG = MAEConfig(image_size=16, patch_size=8, hidden_size=24, num_attention_heads=2, num_hidden_layers=1)


def test_output_is_a_new_or_an_empty_directory(tmp_path, monkeypatch):
    assert checked_output(str(tmp_path / "new")) == tmp_path / "new"
    (tmp_path / "empty").mkdir()
    assert checked_output(str(tmp_path / "empty")) == tmp_path / "empty"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checked_output("~/new") == tmp_path / "new"
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("file", "link", "."):
        with pytest.raises(UserError, match="exists already"):
            checked_output(str(tmp_path / name))
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="is the working directory"):
        checked_output(".")


@pytest.mark.parametrize(
    "processor, change, expected",
    [
        ({}, {}, True),
        (None, {}, False),
        ({}, {"image_size": 32}, False),
        ({}, {"num_channels": 1, "image_mean": [0.5], "image_std": [0.5]}, False),
    ],
)
def test_processor_is_kept_if_it_prepares_images_for_the_model(processor, change, expected):
    weights = Weights("x", {}, config=CONFIG.to_dict(), processor=processor)
    model = MAEModel(MAEConfig.from_dict(CONFIG.to_dict() | change))
    assert fits_processor(model, weights) == expected


def test_comparison_refuses_outputs_that_differ(monkeypatch, capsys):
    monkeypatch.setattr("mae.cli.conversion.compare_forward", lambda *_: ("timm", 1e-5, 1.0))
    compare("read", MAEModel(CONFIG), {}, "timm")
    assert "outputs up to 1.00 differ from timm's by 1.0e-05" in capsys.readouterr().out
    for difference in (1e-2, float("nan")):
        monkeypatch.setattr("mae.cli.conversion.compare_forward", lambda *_, by=difference: ("timm", by, 1.0))
        with pytest.raises(UserError, match="The model read differs from timm"):
            compare("read", MAEModel(CONFIG), {}, "timm")


def test_card_names_the_last_part_of_a_path_only(tmp_path):
    folder = tmp_path / "confidential" / "weights"
    folder.mkdir(parents=True)
    report = LoadReport(str(folder), "official", 1)
    card = make_card(MAEModel(CONFIG), str(folder), report)
    assert "weights" in card and "confidential" not in card and Path(tmp_path).name not in card
