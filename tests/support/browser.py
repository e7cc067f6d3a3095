"""The demo page as a server."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request

from tests.support.data import ROOT


SCRIPT = ROOT / "examples" / "demo.py"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def served(*arguments, cwd, script=SCRIPT, environment=None):
    """The address of the page, while the script runs."""
    port = str(free_port())
    flags = ["--server_port", port] if script == SCRIPT else []
    environment = {**os.environ, "GRADIO_SERVER_PORT": port, **(environment or {})}
    command = [sys.executable, str(script), *flags, *map(str, arguments)]
    log = cwd / "demo.log"
    with (
        log.open("w") as file,
        subprocess.Popen(command, cwd=cwd, stdout=file, stderr=file, env=environment) as process,
    ):
        try:
            for _ in range(120):
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}") as answer:
                    if answer.status == 200:
                        break
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()
    assert str(ROOT / "mae") not in log.read_text()  # in a traceback
