"""What a run keeps on disk: its folder, logs, trackers, checkpoints; and how a killed run goes on from them."""

import json
import logging
import math
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from basicsr.utils.checkpoint import (
    CheckpointError,
    checksum_fault,
    is_listed,
    network_state,
    read_checkpoint,
    remove_checkpoint,
    write_atomically,
    write_checkpoint,
)
from basicsr.utils.messages import remaining_time, start_logging, training_line, validation_block
from basicsr.utils.options import Options
from basicsr.utils.registry import OptionError

logger = logging.getLogger('basicsr')


class Experiment:
    """The folder experiments/NAME of a training run (BasicSR's names inside).

    models/net_g_ITER.pth hold the networks; training_states/ITER.state is written after them and holds the rest, so a
    state that exists, and whose checksums agree, is complete.

    Args:
        accelerator: of the training script; only its main process writes.
        resume: go on in an existing folder instead of putting it aside.
    """

    def __init__(self, opt: Options, accelerator: Any, resume: bool):
        self.opt, self.accelerator = opt, accelerator
        self.folder = Path(opt.path.experiments_root) / opt.name
        self.models, self.states = self.folder / 'models', self.folder / 'training_states'
        self.best: dict[str, dict[str, dict]] = {}
        self.clock = Clock()
        self._complained, self._saved = set(), -1
        if accelerator.is_main_process:
            self._make_folders(resume)
        accelerator.wait_for_everyone()

    def _make_folders(self, resume: bool) -> None:
        stamp = time.strftime('%Y%m%d_%H%M%S')
        try:
            if not resume:
                archive(self.folder)
                archive(Path('tb_logger') / self.opt.name)
            for folder in (self.models, self.states):
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()  # refused now rather than at the first checkpoint
                for left_over in folder.rglob('.*.tmp'):  # by a killed run
                    left_over.unlink()
            start_logging(True, self.folder / f'train_{self.opt.name}_{stamp}.log')
            if self.opt.text:
                copy = self.folder / Path(self.opt.file).name
                copy.write_text(option_copy(self.opt.text), encoding='utf-8')
        except OSError as error:
            raise OptionError(f'{self.folder}: the experiment cannot be written there: {error.strerror}') from None

    def latest_state(self) -> Path | None:
        """The newest complete training state; damaged ones are named in a warning and passed over."""
        found = [path for path in self.states.glob('*.state') if path.stem.isdecimal()]
        for path in sorted(found, key=lambda p: int(p.stem), reverse=True):
            fault = self._fault(path)
            if not fault:
                return path
            logger.warning('%s is not used to resume: %s', path, fault)
        return None

    def _fault(self, path: Path) -> str:
        if not is_listed(path):
            return 'it was not finished (manifest.json does not list it)'
        try:
            state = read_checkpoint(path)
        except CheckpointError as error:
            return str(error).removeprefix(f'{path}: ')
        own = [self._own_file(path.parent, rank, path.stem) for rank in range(state.get('processes', 0))]
        for file in (*(self.models / name for name in state.get('networks', [])), *own):
            if not file.is_file() or not is_listed(file):
                return f'{file} is missing'
            if fault := checksum_fault(file):
                return f'{file} is {fault}'
        return ''

    def resume(self, model: Any, auto_resume: bool, per_iteration: int, degrade: Any = None) -> tuple[int, int]:
        """Go on from the newest complete state (auto_resume), else from path:resume_state, else begin.

        Networks, averages, optimizers, schedules and the pair pool of `degrade` are put back as they were; returns the
        iterations done and the samples consumed. A state of BasicSR's own has no number of samples: it had
        `per_iteration` in each.
        """
        path = (self.latest_state() if auto_resume else None) or self.opt.path.resume_state
        state = self._restored(model, Path(path)) if path else {'iter': 0}
        if path and hasattr(degrade, 'load_training_state'):
            self._restore_own(degrade, Path(path), state.get('processes', 0))
        if self.accelerator.is_main_process:
            self._forget_records_after(state['iter'])
        if path:
            logger.info('resumed from %s, iteration %d', path, state['iter'])
        return state['iter'], state.get('samples', state['iter'] * per_iteration)

    def _restored(self, model: Any, path: Path) -> dict:
        state, contents = read_checkpoint(path), None
        if hasattr(model, 'published_training'):
            state, contents = model.published_training(path, state)
        for key in ('iter', 'optimizers', 'schedulers'):
            if key not in state:
                raise CheckpointError(f'{path}: not a training state, it has no {key!r}')
        unsaved, left_out = getattr(model, 'unsaved', ()), self.opt.path.ignore_resume_networks
        labels = [label for label in model.nets if label not in unsaved and f'network_{label}' not in left_out]
        if contents is None:
            models = path.parent.parent / 'models'
            files = {label: models / f'net_{label}_{state["iter"]}.pth' for label in labels}
            contents = {label: read_checkpoint(file) for label, file in files.items()}
            for label, content in contents.items():
                content['params'] = network_state(content, 'params', str(files[label]))
        model.load_networks(contents, labels)
        try:
            model.load_training_state(state)
        except ValueError as error:
            raise CheckpointError(f'{path}: {error}') from None
        if state.get('seed', self.opt.manual_seed) != self.opt.manual_seed:
            logger.warning('the run began with manual_seed %s and goes on with %s', state['seed'], self.opt.manual_seed)
        self.best = state.get('best', {})
        return state

    def _restore_own(self, degrade: Any, path: Path, processes: int) -> None:
        rank = self.accelerator.process_index
        if rank < processes:
            degrade.load_training_state(read_checkpoint(self._own_file(path.parent, rank, path.stem)))
        elif processes or degrade.training_state():
            logger.warning('%s has no pair pool for process %d: it begins with an empty one', path, rank)

    def _own_file(self, states: Path, rank: int, iteration: int | str) -> Path:
        """Where a process keeps what it alone has: a folder of its own, so that nobody shares its manifest."""
        return states / f'process_{rank}' / f'{iteration}.pth'

    def _forget_records_after(self, iteration: int) -> None:
        """Drop from metrics.jsonl what a killed run did after its last state, and a line that it did not finish."""
        path = self.folder / 'metrics.jsonl'
        if path.is_file():
            kept = [line for line in path.read_text(encoding='utf-8').splitlines() if _iteration_of(line) <= iteration]
            write_atomically(path, lambda file: file.write(''.join(line + '\n' for line in kept).encode()))

    def save(self, model: Any, iteration: int, samples: int, epoch: int, own: dict | None = None) -> None:
        """Write all that is needed to go on exactly. Raises CheckpointError if the disk refuses; older states stay.

        Args:
            own: what each process alone has; all of them give something or nothing.
        """
        if own and iteration != self._saved:
            file = self._own_file(self.states, self.accelerator.process_index, iteration)
            file.parent.mkdir(exist_ok=True)
            write_checkpoint(file, own)
            self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process and iteration != self._saved:
            networks = model.networks()
            _refuse_nonfinite(networks)
            files = []
            for label, content in networks.items():
                files.append(f'net_{label}_{iteration}.pth')
                write_checkpoint(self.models / files[-1], content)
                if self.opt.logger.save_safetensors:
                    write_checkpoint(
                        self.models / f'net_{label}_{iteration}.safetensors',
                        content.get('params_ema', content['params']),
                    )
            state = {
                'epoch': epoch,
                'iter': iteration,
                **model.training_state(),
                'samples': samples,
                'networks': files,
                'processes': self.accelerator.num_processes if own else 0,
                'best': self.best,
                'seed': self.opt.manual_seed,
            }
            write_checkpoint(self.states / f'{iteration}.state', state)
            self._prune(iteration)
        self._saved = iteration
        self.accelerator.wait_for_everyone()

    def save_latest(self, model: Any) -> None:
        """Write the networks once more under the name that BasicSR gives the last ones."""
        if self.accelerator.is_main_process:
            for label, content in model.networks().items():
                write_checkpoint(self.models / f'net_{label}_latest.pth', content)
        self.accelerator.wait_for_everyone()

    def _prune(self, iteration: int) -> None:
        """Keep the last `keep_last` up to `iteration`; newer ones are damaged or of an older run, and do not count."""
        if not self.opt.logger.keep_last:
            return
        names = [path.stem for path in (*self.states.glob('*.state'), *self.models.glob('net_*_*.*'))]
        numbers = {int(n) for n in (name.rpartition('_')[2] for name in names) if n.isdecimal()}
        for number in sorted(n for n in numbers if n <= iteration)[: -self.opt.logger.keep_last]:
            remove_checkpoint(self.states / f'{number}.state')
            for path in (*self.models.glob(f'net_*_{number}.*'), *self.states.glob(f'process_*/{number}.pth')):
                remove_checkpoint(path)

    def log(self, iteration: int, epoch: int, rates: list[float], losses: dict[str, torch.Tensor]) -> None:
        """A line in the log, a record in metrics.jsonl, values for the trackers; losses are means over processes."""
        values = {key: value.detach().float().mean() for key, value in losses.items()}
        if self.accelerator.num_processes > 1 and values:
            stacked = self.accelerator.reduce(torch.stack(list(values.values())), reduction='mean')
            values = dict(zip(values, stacked))
        numbers = {key: float(value) for key, value in values.items()}
        step_time, data_time = self.clock.means()
        eta = remaining_time(self.clock.elapsed(), iteration, self.clock.start + 1, self.opt.train.total_iter + 1)
        logger.info(training_line(self.opt.name, epoch, iteration, rates, max(0, eta), step_time, data_time, numbers))
        times = {'time': step_time, 'data_time': data_time}
        self.record({'iter': iteration, 'epoch': epoch, 'lr': rates, **times, **numbers})
        tags = {key: f'losses/{key}' if key.startswith('l_') else key for key in numbers}
        self._track({tags[key]: value for key, value in numbers.items()}, iteration)

    def report(self, model: Any, iteration: int, dataset: str, scores: dict[str, float]) -> None:
        """Log the scores of a validation set, note the best, and keep the networks of the best key metric."""
        records = self.best.setdefault(dataset, {})
        improved = []
        for metric, value in scores.items():
            better = self.opt.val.metrics.get(metric, {}).get('better', 'higher')
            old = records.get(metric)
            if (
                old is None
                or math.isnan(old['val'])
                or (value >= old['val'] if better == 'higher' else value <= old['val'])
            ):
                records[metric] = {'better': better, 'val': value, 'iter': iteration}
                improved.append(metric)
        logger.info(validation_block(dataset, scores, records))
        self.record({'iter': iteration, 'dataset': dataset, **scores})
        self._track({f'metrics/{dataset}/{k}': v for k, v in scores.items()}, iteration)
        key = self.opt.val.key_metric or next(iter(scores), None)
        if self.opt.logger.keep_best and key in improved and dataset == next(iter(self.best)):
            if self.accelerator.is_main_process:
                for label, content in model.networks().items():
                    write_checkpoint(self.models / f'net_{label}_best.pth', content)
            self.accelerator.wait_for_everyone()

    def record(self, values: dict) -> None:
        """Append one JSON line to metrics.jsonl; a full disk is said once and does not stop the run."""
        if not self.accelerator.is_main_process:
            return
        with (
            self._unless_the_disk_is_full('metrics.jsonl'),
            (self.folder / 'metrics.jsonl').open('a', encoding='utf-8') as file,
        ):
            file.write(json.dumps(values) + '\n')

    def _track(self, values: dict[str, float], iteration: int) -> None:
        with self._unless_the_disk_is_full('tb_logger'):
            self.accelerator.log(values, step=iteration)

    @contextmanager
    def _unless_the_disk_is_full(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if what not in self._complained:
                logger.warning('%s: %s: %s; the run goes on without it', self.folder, what, error.strerror)
            self._complained.add(what)


class Clock:
    """Seconds per iteration and per batch, as running means since they were last read."""

    def __init__(self):
        self.begin(0)

    def begin(self, start: int) -> None:
        """Start counting, after iteration `start`."""
        self.start, self.started = start, time.perf_counter()
        self._count, self._waited, self._known_waited, self._since = 0, 0.0, 0.0, self.started

    def stepped(self, waited: float) -> None:
        """An iteration is done; `waited`: seconds spent on waiting for batches since the beginning."""
        self._count, self._waited = self._count + 1, waited

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def means(self) -> tuple[float, float]:
        now, count = time.perf_counter(), max(1, self._count)
        means = (now - self._since) / count, (self._waited - self._known_waited) / count
        self._count, self._known_waited, self._since = 0, self._waited, now
        return means


def _refuse_nonfinite(networks: dict[str, dict[str, dict]]) -> None:
    for label, content in networks.items():
        for key, state in content.items():
            bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
            if bad:
                raise CheckpointError(f'network_{label} is not saved: {key} is not finite in {", ".join(bad[:5])}')


def _iteration_of(line: str) -> float:
    try:
        return json.loads(line)['iter']
    except (ValueError, KeyError, TypeError):
        return math.inf


def option_copy(text: str) -> str:
    """An option file as a run keeps it, with when it began and by what command."""
    return f'# GENERATE TIME: {time.ctime()}\n# CMD: {shlex.join(sys.argv)}\n\n{text}'


def archive(folder: Path) -> None:
    """Put an older folder of this name aside, under a new one that says when; nothing is overwritten."""
    if folder.exists():
        stamped = folder.with_name(f'{folder.name}_archived_{time.strftime("%Y%m%d_%H%M%S")}')
        free, number = stamped, 1
        while free.exists():
            number += 1
            free = stamped.with_name(f'{stamped.name}_{number}')
        folder.rename(free)


def free_bytes(folder: Path) -> int:
    """Space left on the disk of the nearest existing folder."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder.absolute()).free
