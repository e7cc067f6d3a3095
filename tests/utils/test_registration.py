"""The Auto classes know the model, whatever a process imports first."""

import json
import re
import subprocess
import sys

import pytest


IMPORTS = [
    "import mae",
    "from mae import load_checkpoint, push_to_hub",
    "from transformers import AutoModel; import mae",
    "import mae, configuration_mae",  # which imports the Auto classes before it has defined the configuration
    "import mae; from transformers.modeling_layers import GradientCheckpointingLayer",  # in the middle of it too
]

# A child for each, of a process that has imported most of what transformers imports.
FORK = """
import json, os, sys
import scipy.optimize, torch._dynamo, torch.distributed.tensor, torchvision
for imports in json.loads(sys.argv[1]):
    if os.fork() == 0:
        exec(imports)
        from transformers import AutoConfig, AutoModel
        config = AutoConfig.for_model("mae", num_hidden_layers=1, decoder_num_hidden_layers=1)
        print(json.dumps([imports, type(AutoModel.from_config(config)).__name__]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def built():
    done = subprocess.run([sys.executable, "-c", FORK, json.dumps(IMPORTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines())), done.stderr


@pytest.mark.parametrize("imports", IMPORTS)
def test_auto_classes_know_the_model(built, imports):
    assert built[0].get(imports) == "MAEModel", built[1]


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import mae, sys; print(mae.__version__, *{'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch(r"(unknown|\d+\.\d+\S*)\n", done.stdout), done.stderr
