"""SIGTERM and SIGINT ask a run to stop: it finishes the step and saves. A second signal ends it at once."""

import ctypes
import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch

PR_SET_PDEATHSIG = 1  # of prctl(2)


class StopRequest:
    """Inside `with`, the first signal is noted in `number`; a second one ends the process at once."""

    def __init__(self, accelerator: Any):
        self.accelerator, self.number, self._before = accelerator, 0, {}

    def __enter__(self) -> 'StopRequest':
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number

    def asked(self) -> int:
        """The signal that any of the processes got, 0 if none; all processes must ask together."""
        if self.accelerator.num_processes > 1:
            number = torch.tensor(self.number, device=self.accelerator.device)
            torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
            self.number = int(number)
        return self.number


def stop_with_the_launcher() -> None:
    """Get SIGTERM when `accelerate launch`, which passes no signal on to a single process, is ended (on Linux)."""
    launcher = Path(f'/proc/{os.getppid()}/cmdline')
    if launcher.is_file() and b'accelerate' in launcher.read_bytes():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def leave_stopping_to_the_parent() -> None:
    """For data workers: Ctrl-C and cluster managers signal them too, and the main process still needs their batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told_by, args=[os.getppid()], daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
