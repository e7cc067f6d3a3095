"""The Auto classes know the model, whatever a process imports first."""

import subprocess
import sys

import pytest


BUILD = "from transformers import AutoConfig, AutoModel\n"
BUILD += "config = AutoConfig.for_model('mae', num_hidden_layers=1, decoder_num_hidden_layers=1)\n"
BUILD += "print(type(AutoModel.from_config(config)).__name__)"


@pytest.mark.parametrize(
    "imports",
    [
        "import mae",
        "from transformers import AutoModel; import mae",
        "import mae, configuration_mae",  # which imports the Auto classes before it has defined the configuration
        "import mae; from transformers.modeling_layers import GradientCheckpointingLayer",  # in the middle of it too
    ],
)
def test_auto_classes_know_the_model(imports):
    done = subprocess.run([sys.executable, "-c", f"{imports}\n{BUILD}"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "MAEModel\n"), done.stderr


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import mae, sys; print(*{'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
