"""Steps with each decoder: they train, and the table has a row for each."""

import torch

from benchmarks import decoders
from tests.support.models import TINY


def test_each_row_is_timed_in_each_precision(capsys, monkeypatch):
    monkeypatch.setattr(decoders.MAEConfig, "from_size", lambda size, **fields: decoders.MAEConfig(**TINY | fields))
    decoders.main(["--image_size", "32", "--batch_size", "2", "--rounds", "2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + 2 * len(decoders.ROWS)
    assert lines[2].startswith("| fp32 | self-attention") and "| 1.00 | 1.00 |" in lines[2]
    assert float(lines[4].split("|")[5]) > 1  # a quarter of the patches takes fewer FLOPs


def test_step_changes_the_weights(monkeypatch):
    models = []
    original = decoders.MAEForPreTraining
    monkeypatch.setattr(decoders, "MAEForPreTraining", lambda config: models.append(original(config)) or models[0])
    step = decoders.make_step(decoders.MAEConfig(**TINY), 2, "fp32", torch.device("cpu"))
    before = models[0].decoder.pred.weight.detach().clone()
    step()
    assert not torch.equal(models[0].decoder.pred.weight, before)
