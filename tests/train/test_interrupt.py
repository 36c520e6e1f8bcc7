"""Signals: the first asks, the same one again insists."""

import os
import signal

import pytest

from memory_layers.train.interrupt import StopSignal


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_asks_second_stops(number: int, capsys: pytest.CaptureFixture) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
        assert "saving a checkpoint. Again to stop at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert signal.getsignal(number) is before


def test_one_of_each_kind_is_one_request(capsys: pytest.CaptureFixture) -> None:
    """Ctrl-C in a terminal reaches the workers of a comparison, then their parent ends them."""
    with StopSignal() as stop:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert stop.requested
        assert capsys.readouterr().err.count("stopping after this step") == 1
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
