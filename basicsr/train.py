"""Train what an option file describes.

    accelerate launch basicsr/train.py -opt options/train/ATD/....yml [section:key=value ...]

One optimizer step is one iteration. A killed run goes on, exactly, with --auto_resume.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: its folder gives way to the checkout, before any other installed `basicsr`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from basicsr.data.loaders import CountedBatches, build_degradation, build_train_loader, check_datasets
from basicsr.data.streams import stream_of
from basicsr.dry_run import dry_run
from basicsr.evaluation import Evaluation
from basicsr.launch import asked_sharding, launched, start_terminal, start_trackers
from basicsr.metrics.evaluate import gathered, means
from basicsr.models import build_model
from basicsr.models.base_model import BaseModel, NonFiniteLoss
from basicsr.models.optimizer_step import optimizer_step
from basicsr.utils.cli import option_parser, run
from basicsr.utils.experiment import Experiment
from basicsr.utils.messages import LOGGER
from basicsr.utils.options import Options, load_options
from basicsr.utils.registry import UserError
from basicsr.utils.seeding import derived_seed, seed_all
from basicsr.utils.signals import StopRequest, stop_with_the_launcher

if TYPE_CHECKING:
    from basicsr.models.sharding import Sharding

MOST_OVERFLOWS = 40  # fp16: that many halvings in a row and no loss scale fits


def main() -> int:
    args = parse_arguments()
    start_terminal()
    stop_with_the_launcher()
    opt = load_options(args.opt, True, [*args.force_yml, *args.overrides])
    if args.debug:
        opt = load_options(args.opt, True, [*args.force_yml, *args.overrides, *debug_overrides(opt.name)])
    sharding = asked_sharding(opt)
    with launched(opt) as accelerator:
        if args.dry_run:
            return dry_run(opt, accelerator, sharding)
        return train(opt, accelerator, args.auto_resume, sharding)


def train(opt: Options, accelerator, auto_resume: bool, sharding: Sharding | None = None) -> int:
    """The whole run; returns the exit status: 0, or 128 plus the signal that stopped it early."""
    loader, dataset = build_train_loader(opt, accelerator.process_index, accelerator.num_processes)
    check_datasets([dataset])
    degrade = build_degradation(opt, accelerator.device, accelerator.num_processes)
    seed_all(derived_seed(opt.manual_seed))  # the same first weights on every process
    model = build_model(opt).prepare(accelerator, sharding)
    evaluation = Evaluation(opt, model, accelerator) if opt.val.val_freq else None
    per_iteration = stream_of(loader).batch_size * accelerator.num_processes * opt.train.gradient_accumulation_steps
    experiment = Experiment(opt, accelerator, resume=auto_resume or bool(opt.path.resume_state))
    iteration, samples = experiment.resume(model, auto_resume, per_iteration, degrade)
    start_trackers(opt, accelerator)
    describe(opt, model, dataset, per_iteration)
    batches, skipped, last = CountedBatches(loader, accelerator.device, samples, degrade), 0, opt.train.total_iter
    experiment.clock.begin(iteration)
    bar = tqdm(
        total=last, initial=iteration, unit='it', disable=not sys.stderr.isatty() or not accelerator.is_main_process
    )
    with StopRequest(accelerator) as stop, bar:
        while iteration < last and not stop.asked():
            try:
                losses = optimizer_step(model, batches, iteration + 1)
            except NonFiniteLoss as error:
                skipped += 1
                tolerate(error, skipped, model, iteration + 1, gathered(batches.files, accelerator))
                continue
            skipped, iteration = 0, iteration + 1
            model.after_step(iteration)
            experiment.clock.stepped(batches.waited)
            bar.update()
            if due(iteration, opt.logger.print_freq, last):
                experiment.log(iteration, batches.epoch, model.rates.current(), losses)
            if due(iteration, opt.val.val_freq, last):
                validate(evaluation, experiment, model, iteration)
            if due(iteration, opt.logger.save_checkpoint_freq, last):
                experiment.save(model, iteration, batches.samples, batches.epoch, batches.training_state())
        if number := stop.asked():
            experiment.save(model, iteration, batches.samples, batches.epoch, batches.training_state())
            LOGGER.info(
                'stopped by signal %d after iteration %d, which is saved: go on with --auto_resume', number, iteration
            )
            return 128 + number
    experiment.save_latest(model)
    LOGGER.info('finished %d iterations; the networks are in %s', iteration, experiment.models)
    return 0


def validate(evaluation: Evaluation, experiment: Experiment, model: BaseModel, iteration: int) -> None:
    """Score every validation set and note the best."""

    def image_path(name: str, lq_path: str) -> Path:
        stem = Path(lq_path).stem
        return experiment.folder / 'visualization' / stem / f'{stem}_{iteration}.png'

    whole = nullcontext() if model.sharding is None else model.sharding.whole(model.nets.values())
    with whole:
        results = list(evaluation(image_path if model.opt.val.save_img else None))
    for name, rows in results:
        experiment.report(model, iteration, name, means(rows))


def tolerate(error: NonFiniteLoss, skipped: int, model: BaseModel, iteration: int, files: list[str]) -> None:
    """Log a skipped step with the files of its batch. Raises UserError when too many were skipped in a row."""
    limit, batch = model.opt.train.max_nonfinite, ', '.join(files)
    if skipped > (limit if model.accelerator.scaler is None else max(limit, MOST_OVERFLOWS)):
        raise UserError(
            f'iteration {iteration}: {error}, {skipped} in a row (train:max_nonfinite allows {limit}); '
            f'the batch: {batch}'
        )
    LOGGER.warning(
        'iteration %d: %s; the step is skipped (%d in a row). Its batch: %s', iteration, error, skipped, batch
    )


def describe(opt: Options, model: BaseModel, dataset, per_iteration: int) -> None:
    accelerator = model.accelerator
    counts = ', '.join(
        f'network_{k}: {type(model.bare(k)).__name__} with {sum(p.numel() for p in model.bare(k).parameters()):,} '
        'parameters'
        for k in model.nets
    )
    LOGGER.info(
        'torch %s on %s x %d, precision %s; %s',
        torch.__version__,
        accelerator.device,
        accelerator.num_processes,
        accelerator.mixed_precision,
        counts,
    )
    if model.sharding is not None:
        shared = sum(model.sharding.shared(model.bare(label)) for label in model.nets)
        LOGGER.info('FSDP: %s frozen parameters are split among %d processes', f'{shared:,}', accelerator.num_processes)
    LOGGER.info(
        '%d training items, %d per iteration; %d iterations in all', len(dataset), per_iteration, opt.train.total_iter
    )


def due(iteration: int, frequency: int, last: int) -> bool:
    """Whether something that happens every `frequency` iterations (0: never) does so now; the last one counts too."""
    return frequency > 0 and (iteration % frequency == 0 or iteration == last)


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument(
        '--auto_resume', action='store_true', help='go on from the newest complete state of this experiment'
    )
    parser.add_argument(
        '--dry-run', action='store_true', help='check everything, run a step, print costs; write nothing'
    )
    parser.add_argument('--debug', action='store_true', help='log, validate and save every 8 iterations, as debug_NAME')
    return parser.parse_intermixed_args()


def debug_overrides(name: str) -> list[str]:
    return [
        f'name=debug_{name.removeprefix("debug_")}',
        'val:val_freq=8',
        'logger:print_freq=1',
        'logger:save_checkpoint_freq=8',
        'logger:use_tb_logger=false',
        'logger:wandb:project=~',
    ]


if __name__ == '__main__':
    run(main)
