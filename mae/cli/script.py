"""Run a script: messages, one-line errors and exit codes."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from mae.data.loader import is_worker_failure, worker_failure
from mae.hub.publisher import is_uploading
from mae.training.interruption import EXIT_CODE
from mae.utils.distributed import is_main_process
from mae.utils.errors import Interrupted, RunError, UserError


def end_process(code: int) -> NoReturn:
    """
    `sys.exit`, which would wait for a push under way until it is done, because Python joins the threads that upload.
    The next save, or the same command, pushes what this one leaves.
    """
    if is_uploading():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class ConsoleHandler(logging.Handler):
    """Prints bare messages above the progress bar: INFO on rank 0 to stdout, WARNING and above to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        is_warning = record.levelno >= logging.WARNING
        if is_warning or is_main_process():
            stream = sys.stderr if is_warning else sys.stdout
            tqdm.write(record.getMessage(), file=stream)
            stream.flush()


def set_up_messages() -> None:
    """Print the messages of this package, and leave progress bars to the script."""
    logger = logging.getLogger("mae")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, ConsoleHandler) for handler in logger.handlers):
        logger.addHandler(ConsoleHandler())
    disable_progress_bar()  # of transformers, when it saves a model


def run_script(main: Callable[[], None], can_resume: bool = True) -> None:
    """
    Runs a script's `main`, and ends it with its exit code, told in one line: see the scripts.

    Args:
        can_resume: Whether the same command goes on where it was.
    """
    rank = os.environ.get("RANK", "0")
    set_up_messages()
    try:
        main()
    except (UserError, RunError) as error:
        if not error.already_reported:  # every process has its own data to break off
            print(f"error: {error}" if rank == "0" else f"error in process {rank}: {error}", file=sys.stderr)
        end_process(2 if isinstance(error, UserError) else 1)
    except OSError as error:  # a full disk, say, where something small is written
        then = " The same command goes on from the last checkpoint." if can_resume else ""
        print(f"error: {error}.{then}", file=sys.stderr)
        end_process(1)
    except RuntimeError as error:
        if not is_worker_failure(error):
            raise
        print(f"error: {worker_failure(error)}", file=sys.stderr)
        end_process(1)
    except (Interrupted, KeyboardInterrupt) as error:  # the second before training has begun
        if rank == "0":
            print(str(error) or ("Stopped before training began." if can_resume else "Stopped."), file=sys.stderr)
        end_process(EXIT_CODE if isinstance(error, Interrupted) else 128 + signal.SIGINT)
