"""Messages, one-line errors and exit codes of scripts, each in a process of its own."""

import signal
import subprocess
import sys

import pytest


IMPORTS = (
    "import logging, os, sys, time\n"
    "from mae.cli.script import run_script\n"
    "from mae.utils.errors import DataError, Interrupted, UserError\n"
    "logger = logging.getLogger('mae.test')\n"
)


def script(body, before="", **options):
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    code = f"{before}{IMPORTS}def main():\n{lines}\nrun_script(main)\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("pass", 0, ""),
        ("raise UserError('--seed -1 must be positive.')", 2, "error: --seed -1 must be positive.\n"),
        ("raise DataError('a.png cannot be read.')", 1, "error: a.png cannot be read.\n"),
        ("raise Interrupted('Stopped by SIGTERM.')", 75, "Stopped by SIGTERM.\n"),
        ("raise KeyboardInterrupt", 130, "Stopped before training began.\n"),
        ("raise OSError(28, 'No space left on device')", 1, "error: [Errno 28] No space left on device. Run the same"),
        ("raise RuntimeError('DataLoader worker (pid 7) is killed')", 1, "error: A DataLoader worker died"),
    ],
)
def test_error_is_one_line_and_an_exit_code(body, code, message):
    done = script(body)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(message) and done.stderr.count("\n") == bool(message)


def test_error_of_the_code_keeps_its_traceback():
    """Also one inside a worker, which PyTorch reports with the words of a worker that died."""
    done = script("raise RuntimeError('Caught RuntimeError in DataLoader worker process 0.')")
    assert done.returncode == 1 and "Traceback" in done.stderr and "more memory" not in done.stderr


def test_messages_are_bare_and_on_the_right_stream():
    done = script("logger.info('100 % of images'); logger.warning('a.png is skipped'); logger.debug('detail')")
    assert (done.stdout, done.stderr) == ("100 % of images\n", "a.png is skipped\n")


def test_rank_1_prints_warnings_only():
    body = "import torch.distributed as dist\n"
    body += "store = dist.HashStore()\n"
    body += "dist.get_rank = lambda: 1\n"
    body += "dist.is_initialized = lambda: True\n"
    body += "logger.info('hello'); logger.warning('careful')"
    done = script(body)
    assert (done.stdout, done.stderr) == ("", "careful\n")


def test_library_is_silent_without_a_script():
    code = "import logging, mae; logging.getLogger('mae.data').info('hello')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_that_nobody_reads_does_not_end_a_run(tmp_path, stream):
    """As in `... | tee log`, if Ctrl-C ends tee first."""
    body = f"sys.{stream}.write('ready\\n'); sys.{stream}.flush()\n"
    body += "sys.stdin.readline()\n"
    body += f"print('lost', file=sys.{stream}); sys.{stream}.flush(); logger.info('lost'); logger.warning('lost')\n"
    body += f"open({str(tmp_path / 'checkpoint')!r}, 'w').write('saved')"
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    process = subprocess.Popen(
        [sys.executable, "-c", f"{IMPORTS}def main():\n{lines}\nrun_script(main)\n"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert getattr(process, stream).readline() == "ready\n"
    getattr(process, stream).close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "checkpoint").read_text() == "saved"


def test_ctrl_c_before_training_ends_with_the_shells_code():
    code = f"{IMPORTS}def main():\n    print('ready', flush=True); time.sleep(60)\nrun_script(main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130 and process.stderr.read() == "Stopped before training began.\n"


def test_script_freezes_modules_only_after_threads_and_later_exit_handlers():
    """Nothing that a thread or a handler has yet to do is lost."""
    done = script(
        "import atexit, gc, threading\n"
        "atexit.register(lambda: print('handler', gc.get_freeze_count() > 0))\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('thread', gc.get_freeze_count() > 0))).start()",
        before="import atexit, gc\natexit.register(lambda: print('last', gc.get_freeze_count() > 0))\n",
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["thread False", "handler False", "last True"]


@pytest.mark.parametrize("is_enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_quick_imports_restore_garbage_collection(is_enabled, fails):
    collect = "gc.enable()" if is_enabled else "gc.disable()"
    body = "raise ImportError" if fails else "pass"
    done = script(
        f"import gc\nfrom mae.cli.script import quick_imports\n{collect}\n"
        f"try:\n    with quick_imports():\n        print(gc.isenabled())\n        {body}\n"
        "except ImportError: pass\nprint(gc.isenabled())"
    )
    assert done.stdout.splitlines() == ["False", str(is_enabled)]
