"""
Run a script: messages, one-line errors and exit codes.

Modules that take long to import are imported where they are used, so that --help need not wait for them.
"""

import atexit
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from mae.utils.distributed import is_main_process
from mae.utils.errors import Interrupted, MAEError, UserError


class ConsoleHandler(logging.Handler):
    """Prints bare messages above the progress bar: INFO on rank 0 to stdout, WARNING and above to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        is_warning = record.levelno >= logging.WARNING
        if is_warning or is_main_process():
            stream = sys.stderr if is_warning else sys.stdout
            tqdm.write(record.getMessage(), file=stream)
            stream.flush()


class LastingStream:
    """
    A console stream that outlives its reader. `... | tee log` ends with the same Ctrl-C as the run, and a terminal may
    be closed: output that nobody reads must not end a run before its checkpoint is saved.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except OSError:  # a broken pipe, or a terminal that is gone
            # All that is still buffered goes there too, so that Python's own flush at exit succeeds.
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def set_up_messages() -> None:
    """Print the messages of this package, and leave progress bars to the script."""
    logger = logging.getLogger("mae")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), LastingStream):
            setattr(sys, name, LastingStream(getattr(sys, name)))
    disable_progress_bar()  # of transformers, when it saves a model


@contextmanager
def quick_imports() -> Iterator[None]:
    """
    Import large packages in this context without garbage collection.

    Modules, classes and functions live until the process ends. Collections traverse them again and again while
    thousands more are imported. They are frozen afterwards, so that no later collection traverses them either.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def end_process(code: int) -> NoReturn:
    """
    End the process with an exit code.

    `sys.exit` would wait for an upload that is active, because Python joins its threads. The next save, or the same
    command, uploads what is cut off here.
    """
    publisher = sys.modules.get("mae.hub.publisher")  # an import of its own would delay every error by seconds
    if publisher is not None and publisher.is_uploading():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_script(main: Callable[[], None], can_resume: bool = True) -> None:
    """
    Run a script's `main`, print an error as one line, and end the process with its exit code.

    Args:
        can_resume: Whether the same command resumes, for messages.
    """
    set_up_messages()
    # Python collects garbage among all modules when it ends, which takes a second with torch. Handlers run in reverse
    # order, after threads have ended. Those of torch and trackers are registered later, so they run first.
    atexit.register(gc.freeze)
    rank = os.environ.get("RANK", "0")
    again = " Run the same command again to resume from the last checkpoint." if can_resume else ""
    try:
        main()
    except MAEError as error:
        if not error.already_reported:  # each rank has data of its own, which may break off
            _print_error(error, rank)
        end_process(2 if isinstance(error, UserError) else 1)
    except OSError as error:  # a full disk, for example, when something small is written
        _print_error(f"{error}.{again}", rank)
        end_process(1)
    except RuntimeError as error:
        from mae.data.loader import is_worker_failure, worker_failure

        if not is_worker_failure(error):
            raise
        _print_error(worker_failure(error), rank)
        end_process(1)
    except Interrupted as error:
        if rank == "0":
            print(error, file=sys.stderr)
        end_process(error.exit_code)
    except KeyboardInterrupt:
        if rank == "0":
            print("Stopped before training began." if can_resume else "Stopped.", file=sys.stderr)
        end_process(128 + signal.SIGINT)


def _print_error(error: object, rank: str) -> None:
    print(f"error: {error}" if rank == "0" else f"error in process {rank}: {error}", file=sys.stderr)
