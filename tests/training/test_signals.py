"""Signals that ask a process to stop."""

import os
import signal

import pytest

from bnexp.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_reaches_all_contexts_and_the_second_the_handler_before_them(number: signal.Signals) -> None:
    class Second(Exception):
        pass

    def ends(*_: object) -> None:
        raise Second

    before = signal.signal(number, ends)
    try:
        with StopRequest() as outer, StopRequest() as middle:
            with StopRequest() as inner:
                os.kill(os.getpid(), number)
                assert (outer.signum, middle.signum, inner.signum) == (number, number, number)
                with pytest.raises(Second):
                    os.kill(os.getpid(), number)
            with pytest.raises(Second):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is ends
    finally:
        signal.signal(number, before)


def test_a_signal_after_an_inner_context_reaches_the_outer_one_alone() -> None:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with StopRequest() as outer:
            with StopRequest() as inner:
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            assert (outer.signum, inner.signum) == (signal.SIGTERM, None)
    finally:
        signal.signal(signal.SIGTERM, before)
