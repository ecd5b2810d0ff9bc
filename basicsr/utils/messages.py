"""The text of log lines, as BasicSR's users and their scripts know it."""

import datetime
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOGGER = logging.getLogger('basicsr')


def start_logging(is_main: bool, file: Path | None = None) -> None:
    """Log to the terminal, and to `file` if given; processes other than the main one report errors only."""
    LOGGER.setLevel(logging.INFO if is_main else logging.ERROR)
    LOGGER.propagate = False
    formatter = logging.Formatter('%(asctime)s %(levelname)s: %(message)s')
    if not any(type(handler) is logging.StreamHandler for handler in LOGGER.handlers):
        terminal = logging.StreamHandler()
        terminal.setFormatter(formatter)
        LOGGER.addHandler(terminal)
    if file is not None and is_main:
        handler = _LogFile(file, encoding='utf-8')
        handler.setFormatter(formatter)
        LOGGER.addHandler(handler)


class _LogFile(logging.FileHandler):
    """A log file; that its disk is full is said once, without a traceback for every line."""

    complained = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.complained:
            self.complained = True
            LOGGER.warning('%s: %s; the run goes on without it', self.baseFilename, error.strerror)


def training_line(
    name: str,
    epoch: int,
    iteration: int,
    rates: list[float],
    eta: float,
    time: float,
    data_time: float,
    losses: Mapping[str, float],
) -> str:
    """One line of progress; eta, time and data_time in seconds."""
    head = f'[{name[:5]}..][epoch:{epoch:3d}, iter:{iteration:8,d}, lr:({"".join(f"{rate:.3e}," for rate in rates)})] '
    times = f'[eta: {datetime.timedelta(seconds=int(eta))}, time (data): {time:.3f} ({data_time:.3f})] '
    return head + times + ''.join(f'{key}: {value:.4e} ' for key, value in losses.items())


def remaining_time(elapsed: float, iteration: int, start: int, total: int) -> float:
    """BasicSR's estimate of the seconds until iteration `total`, from those since iteration `start`."""
    return elapsed / (iteration - start + 1) * (total - iteration - 1)


def validation_block(dataset: str, scores: Mapping[str, float], best: Mapping[str, Mapping[str, Any]]) -> str:
    """The scores of a validation set, each with the best so far: `best` maps a metric to its 'val' and 'iter'."""
    lines = [f'Validation {dataset}\n']
    for metric, value in scores.items():
        record = best.get(metric)
        suffix = f'\tBest: {record["val"]:.4f} @ {record["iter"]} iter' if record else ''
        lines.append(f'\t # {metric}: {value:.4f}{suffix}\n')
    return ''.join(lines)


def option_tree(options: Mapping, indent: int = 1) -> str:
    """Nested options as the head of a log shows them."""
    text = '\n' if indent == 1 else ''
    for key, value in options.items():
        if isinstance(value, Mapping):
            text += f'{"  " * indent}{key}:[\n{option_tree(value, indent + 1)}{"  " * indent}]\n'
        else:
            text += f'{"  " * indent}{key}: {value}\n'
    return text
