"""examples/quickstart.ipynb, run as Jupyter runs it, with a shorter training and a Hub on loopback."""

import shutil

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from PIL import Image

from tests.support.data import ROOT


NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


@pytest.mark.slow
def test_notebook_goes_from_images_to_the_hub(hub, tmp_path, monkeypatch):
    for name in ("examples", "mae"):
        (tmp_path / name).symlink_to(ROOT / name)
    for path in ROOT.glob("*_mae.py"):
        (tmp_path / path.name).symlink_to(path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert sum(cell.cell_type == "code" for cell in notebook.cells) == 8
    set_up = notebook.cells[1]
    assert "MINUTES = 3 " in set_up.source and "HUB_NAME = None " in set_up.source
    set_up.source = set_up.source.replace("MINUTES = 3 ", "MINUTES = 0.05 ").replace("= None ", "= 'me/notebook' ")
    for name, value in hub.environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    assert KernelSpecManager().find_kernel_specs(), "ipykernel is installed with the test dependencies"
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "images/s" in text or "steps" in text
    assert "accuracy" in text and not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    for name in ("masks", "features"):
        assert Image.open(tmp_path / "outputs" / f"{name}.png").width > 100
    assert "me/notebook" in {name for _, name in hub.repositories}
    shutil.rmtree(tmp_path / "outputs")
