"""
Python processes that begin with their imports done. A server that has imported what the scripts import, and computed
nothing, forks them. Apart from that, they are processes as the shell starts them.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch


IMPORTED = ["mae.cli.run", "mae.training.loop", "mae.training.pretraining", "mae.training.classification"]
CONTEXT = multiprocessing.get_context("forkserver")


def _run_script(script: str, arguments: list[str]) -> None:
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    code: object = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code
    # As the interpreter ends, without the exception and the frames that it holds. A process of multiprocessing runs no
    # exit functions.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.exit(code)


def _run_ranks(count: int, script: str, arguments: list[str]) -> None:
    """What torchrun does on one machine: if a rank fails, the others are terminated, and the exit code is 1."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE=str(count))
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_run_rank, args=(rank, script, arguments)) for rank in range(count)]
    for rank in ranks:
        rank.start()
    signal.signal(signal.SIGTERM, lambda *_: [rank.terminate() for rank in ranks])
    while running := [rank.sentinel for rank in ranks if rank.exitcode is None]:
        wait(running)
        if any(rank.exitcode for rank in ranks):
            for rank in ranks:
                rank.terminate()
    sys.exit(int(any(rank.exitcode for rank in ranks)))


def _run_rank(rank: int, script: str, arguments: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    _run_script(script, arguments)


def _main(script, arguments, processes, environment, folder, output, errors) -> None:
    for number, pipe in ((1, output), (2, errors)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # which torch read when the server imported it
    multiprocessing.set_start_method(None, force=True)  # it is that of this process, and workers would have it too
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if processes == 1:
        _run_script(script, arguments)
    else:
        _run_ranks(processes, script, arguments)


class ForkedProcess:
    """`python SCRIPT ARGUMENTS`, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(
        self,
        script: Path,
        arguments: list[str],
        environment: Mapping[str, str],
        processes: int = 1,
        folder: Path | None = None,
    ):
        CONTEXT.set_forkserver_preload(IMPORTED)
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
        writers = [writer for _, writer in pipes]
        place = str(folder or Path.cwd())
        arguments = (str(script), arguments, processes, dict(environment), place, *writers)
        self._process = CONTEXT.Process(target=_main, args=arguments, daemon=False)
        self._process.start()
        self.pid = self._process.pid
        for writer in writers:
            writer.close()
        self.stdout, self.stderr = (self._text(reader) for reader, _ in pipes)

    @staticmethod
    def _text(reader: Connection):
        number = os.dup(reader.fileno())
        reader.close()
        return os.fdopen(number)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"The process did not end within {timeout} s.")
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        texts = {}
        pipes = {"stdout": self.stdout, "stderr": self.stderr}
        readers = [
            threading.Thread(target=lambda name=name, pipe=pipe: texts.update({name: pipe.read()}), daemon=True)
            for name, pipe in pipes.items()
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        return texts["stdout"], texts["stderr"]

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
