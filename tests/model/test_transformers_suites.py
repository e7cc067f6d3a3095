"""transformers' own common suites, from the source distribution of the installed version."""

import os
import shutil
import subprocess
import sys
import tarfile

import pytest
import transformers

from tests.support.data import ROOT


# Files of transformers' tests that are not in its source distribution, and what the suites import from them.
_MISSING = {
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {'return_dict': False, 'dtype': 'float16',"
    " 'output_hidden_states': True, 'output_attentions': True, 'problem_type': 'regression'}\n",
}


@pytest.mark.slow
def test_models_pass_the_common_suites(tmp_path):
    """ModelTesterMixin, BackboneTesterMixin and ConfigTester. It needs the package index and the extra `test`."""
    version = f"transformers=={transformers.__version__}"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", version]
    subprocess.run([*download, "--dest", str(tmp_path)], check=True)
    with tarfile.open(next(tmp_path.glob("transformers-*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    tree = next(path for path in tmp_path.glob("transformers-*") if path.is_dir())
    package = tree / "tests" / "models" / "mae"
    for folder in (tree / "tests", package.parent, package):
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
    for name, text in _MISSING.items():
        path = tree / "tests" / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    shutil.copy(ROOT / "tests" / "model" / "suites" / "mae_suites.py", package / "test_modeling_mae.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tree)])}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "tests/models/mae"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout.splitlines()[-1]
