"""Ctrl-C in a training: the step is finished and saved first, and the user is told how to go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

from generative.callbacks import newest, step_of

STOPPED = 75  # exit code after SIGTERM


@contextmanager
def interruptible(out: Path) -> Iterator[None]:
    """Ctrl-C ends the training within as SIGTERM does, after its step, with a checkpoint; a second one does not wait.

    Within a step it could strike between two tensors of an update, and the checkpoint would hold half of it. Raises
    KeyboardInterrupt, or OSError as it came, with a note that says what is saved; SystemExit(75) after SIGTERM.
    """
    before, struck = signal.getsignal(signal.SIGINT), False

    def strike(*_: Any) -> None:
        nonlocal struck
        if struck or signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN):
            raise KeyboardInterrupt  # also where Lightning does not listen yet, before the first step
        struck = True
        os.kill(os.getpid(), signal.SIGTERM)

    # handlers can be set in the main thread alone; another program's handler is left in place
    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, strike)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes an exit of both signals
        interrupts = (error, error.__context__)
        if not struck and not any(isinstance(one, KeyboardInterrupt) for one in interrupts):
            raise SystemExit(STOPPED) if isinstance(error, SIGTERMException) else error from None
        interrupt = KeyboardInterrupt()
        interrupt.add_note(_saved(out))
        raise interrupt from None
    except OSError as error:
        error.add_note(_saved(out))
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored


def _saved(out: Path) -> str:
    last = newest(out)
    if last is None:
        return f"no step is saved in '{out}' yet; the same call begins again"
    return f"step {step_of(last)} is saved in '{out}'; the same call with resume continues"
