"""The page of examples/demo.py as a Space on the Hub, where this package is files beside this one."""

import os
import runpy
import sys
from pathlib import Path


HERE = Path(__file__).resolve().parent

sys.path.insert(0, str(HERE))
sys.argv = [str(HERE / "examples" / "demo.py"), "--server_name", "0.0.0.0"]
sys.argv += ["--server_port", os.environ.get("GRADIO_SERVER_PORT", "7860")]
runpy.run_path(sys.argv[0], run_name="__main__")
