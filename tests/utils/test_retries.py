"""Retries: what is transient, how long it is retried, and what the error advises."""

import socket
import threading

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from mae.utils import retries
from mae.utils.errors import UserError
from mae.utils.retries import Retry, explain, is_transient, retry, status_of
from tests.support.fake_hub import Hub


OFFLINE = OfflineModeIsEnabled("offline mode is enabled")


def hub_error(hub: Hub, status: int) -> Exception:
    """The error that the client raises if the Hub answers with a status."""
    hub.fault("GET", "/api/models/me/any", status=status)
    with pytest.raises(Exception) as raised:
        HfApi().model_info("me/any")
    return raised.value


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(Retry, "last_reported", 0.0)


class Flaky:
    """Raises some errors, one a call, and then returns a value."""

    def __init__(self, *errors: Exception):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("reset"),
        TimeoutError("timed out"),
        RuntimeError("Data processing error: CAS service error : error decoding"),
        caused(OSError("cannot load"), ConnectionError("reset")),
    ],
    ids=repr,
)
def test_connection_error_is_transient(error):
    assert is_transient(error)


def test_error_of_a_client_without_a_server_is_transient():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens there
        with pytest.raises(Exception) as raised:
            HfApi(endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}").model_info("me/any")
    assert is_transient(raised.value)


@pytest.mark.parametrize(
    "status, transient",
    [(401, False), (403, False), (404, False), (408, True), (429, True), (500, True), (502, True), (503, True)],
)
def test_status_decides_whether_an_answer_of_the_hub_is_transient(status, transient, hub: Hub):
    error = hub_error(hub, status)
    assert status_of(error) == status and is_transient(error) is transient
    behind = caused(OSError("cannot load"), error)
    assert status_of(behind) == status and is_transient(behind) is transient


@pytest.mark.parametrize(
    "error",
    [
        ValueError("corrupt"),
        PermissionError("not yours"),
        OFFLINE,
        caused(OSError("cannot load"), OFFLINE),
        ConnectionError("Couldn't reach 'me/data' on the Hub (OfflineModeIsEnabled)"),  # as `datasets` raises it
    ],
    ids=repr,
)
def test_other_error_is_not_transient(error):
    assert not is_transient(error) and status_of(error) is None


@pytest.mark.parametrize("status, advice", [(401, "hf auth login"), (403, "ask for access"), (404, "check the name")])
def test_explanation_advises_what_to_do_about_a_status(status, advice, hub: Hub):
    explanation = explain(hub_error(hub, status))
    assert str(status) in explanation and advice in explanation and "\n" not in explanation


def test_explanation_of_offline_mode_names_its_variable():
    assert "HF_HUB_OFFLINE" in explain(OFFLINE)


def test_explanation_is_one_line_of_bounded_length():
    assert explain(ValueError("one\n  two")) == "one two"
    assert explain(KeyError()) == "KeyError"
    assert len(explain(ValueError("x" * 10_000))) == 300


def test_retry_returns_the_result_after_transient_errors(caplog):
    flaky = Flaky(ConnectionError("reset"), TimeoutError("timed out"))
    assert retry("open data", 1, flaky) == "done"
    assert flaky.calls == 3
    assert "open data: reset; retrying in 0 s" in caplog.messages


@pytest.mark.parametrize("error", [ValueError("corrupt"), OFFLINE], ids=repr)
def test_retry_raises_a_permanent_error_at_once(error, caplog):
    flaky = Flaky(error)
    with pytest.raises(UserError, match=f"^open data: {error}") as raised:
        retry("open data", 10, flaky)
    assert flaky.calls == 1 and raised.value.__cause__ is error and not caplog.messages


def test_retry_raises_a_user_error_as_it_is():
    mistake = UserError("--flag 1 is wrong")
    with pytest.raises(UserError) as raised:
        retry("open data", 10, Flaky(mistake))
    assert raised.value is mistake


def test_retry_gives_up_when_the_budget_is_used_up():
    with pytest.raises(UserError, match="reset"):
        retry("open data", 0, Flaky(ConnectionError("reset")))
    flaky = Flaky(*(ConnectionError("reset") for _ in range(1000)))
    with pytest.raises(UserError, match="reset"):
        retry("open data", 0.05 / 60, flaky)
    assert 2 < flaky.calls < 1000


def test_delays_double_up_to_the_longest_and_start_over_after_success(monkeypatch):
    slept = []
    monkeypatch.setattr(retries.time, "sleep", slept.append)
    monkeypatch.setattr(retries, "FIRST_DELAY", 1.0)
    attempts = Retry("read", 60)
    for _ in range(8):
        assert attempts.wait(ConnectionError("reset"))
    attempts.succeeded()
    assert attempts.wait(ConnectionError("reset"))
    assert slept == [1, 2, 4, 8, 16, 32, 60, 60, 1]


def test_threads_that_meet_the_same_outage_do_not_all_report_it(caplog, monkeypatch):
    monkeypatch.setattr(retries, "FIRST_DELAY", 0.2)
    reset = ConnectionError("reset")
    threads = [threading.Thread(target=Retry(f"read {row}", 1).wait, args=(reset,)) for row in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(caplog.messages) <= 2
