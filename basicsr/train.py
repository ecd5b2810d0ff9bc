"""Train what an option file describes.

    accelerate launch basicsr/train.py -opt options/train/ATD/....yml [section:key=value ...]

One optimizer step is one iteration. A killed run goes on, exactly, with --auto_resume.
"""

import sys
from pathlib import Path

# `python basicsr/train.py` would put basicsr/ itself first on the path, and another installed `basicsr` could win.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import time

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from tqdm import tqdm

from basicsr.data.loaders import build_eval_loaders, build_train_loader, check_dataset, fetched
from basicsr.dry_run import dry_run
from basicsr.metrics.evaluate import build_metrics, evaluate, means, metric_sections
from basicsr.models import build_model
from basicsr.models.base_model import BaseModel, NonFiniteLoss
from basicsr.models.restorer import Restorer
from basicsr.utils.cli import option_parser, run
from basicsr.utils.experiment import Experiment
from basicsr.utils.messages import LOGGER, start_logging
from basicsr.utils.options import Options, load_options
from basicsr.utils.registry import OptionError, UserError
from basicsr.utils.seeding import derived_seed, seed_all
from basicsr.utils.signals import StopRequest

MOST_SKIPPED_BY_SCALER = 40  # fp16: that many halvings in a row and no loss scale fits


def main() -> int:
    args = parse_arguments()
    start_logging(is_main=True)
    opt = load_options(args.opt, True, [*args.force_yml, *args.overrides, *debug_overrides(args)])
    accelerator = build_accelerator(opt)
    start_logging(accelerator.is_main_process)
    try:
        return dry_run(opt, accelerator) if args.dry_run else train(opt, accelerator, args.auto_resume)
    finally:
        accelerator.end_training()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def train(opt: Options, accelerator: Accelerator, auto_resume: bool) -> int:
    """The whole run; returns the exit status: 0, or 128 plus the signal that stopped it early."""
    rank, world = accelerator.process_index, accelerator.num_processes
    seed_all(derived_seed(opt.manual_seed))  # the same first weights on every process
    model = build_model(opt).prepare(accelerator)
    experiment = Experiment(opt, accelerator, resume=auto_resume or bool(opt.path.resume_state))
    state_file = opt.path.resume_state or (experiment.latest_state() if auto_resume else None)
    resumed = experiment.resume(model, Path(state_file)) if state_file else {'iter': 0, 'samples': 0}
    iteration, train_opt = resumed['iter'], opt.train
    per_batch = next(d.batch_size_per_gpu for k, d in opt.datasets.items() if k.split('_')[0] == 'train') * world
    samples = resumed['samples']
    if samples is None:  # a state of BasicSR's own counts no samples
        samples = iteration * per_batch * train_opt.gradient_accumulation_steps
    loader, dataset = build_train_loader(opt, rank, world, samples)
    check_dataset(dataset)
    validate = Validation(opt, model, accelerator, experiment)
    start_trackers(opt, accelerator)
    describe(opt, model, dataset, per_batch, accelerator)
    batches, skipped, micro = iter(loader), 0, 0
    experiment.clock.begin(iteration)
    bar = tqdm(total=train_opt.total_iter, initial=iteration, unit='it', disable=not sys.stderr.isatty() or rank > 0)
    with StopRequest(accelerator) as stop, bar:
        while iteration < train_opt.total_iter and not stop.asked():
            waiting = time.perf_counter()
            batch = on_device(fetched(batches), accelerator.device)
            experiment.clock.batch_arrived(time.perf_counter() - waiting)
            seed_all(derived_seed(opt.manual_seed, 1 + iteration, micro, rank))  # a step draws what its number says
            samples, micro = samples + per_batch, micro + 1
            try:
                with accelerator.accumulate(*model.trained):
                    model.before_step(iteration + 1)
                    losses = model.training_step(batch)
            except NonFiniteLoss as error:
                skipped, micro = skipped + 1, 0
                tolerate(error, skipped, train_opt.max_nonfinite, iteration + 1, batch)
                model.discard()
                continue
            if not accelerator.sync_gradients:
                continue
            micro = 0
            if accelerator.optimizer_step_was_skipped:  # fp16: the loss scale was too large and is being halved
                skipped += 1
                tolerate(OverflowError('fp16 overflowed'), skipped, MOST_SKIPPED_BY_SCALER, iteration + 1, batch)
                continue
            skipped, iteration = 0, iteration + 1
            model.after_step(iteration)
            experiment.clock.stepped()
            bar.update()
            epoch = samples // loader.batch_sampler.total
            if due(iteration, opt.logger.print_freq, train_opt.total_iter):
                experiment.log(iteration, epoch, model.rates.current(), losses)
            if due(iteration, opt.val.val_freq, train_opt.total_iter):
                validate(iteration)
            if due(iteration, opt.logger.save_checkpoint_freq, train_opt.total_iter):
                experiment.save(model, iteration, samples, epoch)
        number = stop.asked()
        if number:
            experiment.save(model, iteration, samples, samples // loader.batch_sampler.total)
            LOGGER.info('stopped by signal %d after iteration %d, which is saved: go on with --auto_resume', number, iteration)
            return 128 + number
    experiment.save_latest(model)
    LOGGER.info('finished %d iterations; the networks are in %s', iteration, experiment.models)
    return 0


class Validation:
    """Scores on every validation set of the option file, by the path that test.py takes."""

    def __init__(self, opt: Options, model: BaseModel, accelerator: Accelerator, experiment: Experiment):
        self.opt, self.model, self.accelerator, self.experiment = opt, model, accelerator, experiment
        self.restorer = Restorer(model, **opt.val.restorer.model_dump())
        self.metrics = build_metrics(metric_sections(opt.val.protocol, opt.val.metrics, opt.scale))
        freq = opt.val.val_freq
        self.loaders = build_eval_loaders(opt, accelerator.process_index, accelerator.num_processes) if freq else {}

    def __call__(self, iteration: int) -> None:
        folder = self.experiment.folder / 'visualization'

        def image_path(lq_path: str) -> Path:
            return folder / Path(lq_path).stem / f'{Path(lq_path).stem}_{iteration}.png'
        for name, loader in self.loaders.items():
            rows = evaluate(self.restorer, loader, self.metrics, self.accelerator, image_path if self.opt.val.save_img else None)
            self.experiment.report(self.model, iteration, name, means(rows))


def parse_arguments() -> argparse.Namespace:
    parser = option_parser(__doc__)
    parser.add_argument('--auto_resume', action='store_true', help='go on from the newest complete state of this experiment')
    parser.add_argument('--dry-run', action='store_true', help='check everything, run a step, print costs; write nothing')
    parser.add_argument('--debug', action='store_true', help='log, validate and save every 8 iterations, as debug_NAME')
    return parser.parse_intermixed_args()


def debug_overrides(args: argparse.Namespace) -> list[str]:
    if not args.debug:
        return []
    name = load_options(args.opt, True, [*args.force_yml, *args.overrides]).name
    return [f'name=debug_{name.removeprefix("debug_")}', 'val:val_freq=8', 'logger:print_freq=1',
            'logger:save_checkpoint_freq=8', 'logger:use_tb_logger=false', 'logger:wandb:project=~']


def build_accelerator(opt: Options) -> Accelerator:
    """accelerate's launcher, precision and gradient accumulation; learning rates and saving stay ours."""
    accumulation = GradientAccumulationPlugin(num_steps=opt.train.gradient_accumulation_steps, sync_with_dataloader=False)
    parallel = DistributedDataParallelKwargs(find_unused_parameters=opt.find_unused_parameters, broadcast_buffers=False)
    try:
        return Accelerator(
            cpu=opt.device == 'cpu' or not (torch.cuda.is_available() or torch.backends.mps.is_available()),
            mixed_precision=opt.train.mixed_precision, gradient_accumulation_plugin=accumulation, kwargs_handlers=[parallel],
            project_config=ProjectConfiguration(logging_dir='tb_logger'))
    except ValueError as error:
        raise OptionError(f'train:mixed_precision: {error}', ('train', 'mixed_precision')) from None


def start_trackers(opt: Options, accelerator: Accelerator) -> None:
    """tensorboard under tb_logger/NAME and wandb under its project, as the option file asks."""
    trackers, wandb = [], opt.logger.wandb
    wanted = [('tensorboard', opt.name, {})] if opt.logger.use_tb_logger else []
    if wandb.project:
        wanted.append(('wandb', wandb.project, {'name': opt.name, 'id': wandb.resume_id, 'resume': 'allow'}))
    for kind, project, settings in wanted:
        accelerator.log_with = [kind]
        try:
            accelerator.init_trackers(project, init_kwargs={kind: settings})
        except ImportError:
            raise UserError(f'logger: {kind} is not installed; pip install {kind}') from None
        trackers += accelerator.trackers
    accelerator.trackers = trackers


def describe(opt: Options, model: BaseModel, dataset, per_batch: int, accelerator: Accelerator) -> None:
    counts = ', '.join(f'network_{k}: {type(model.bare(k)).__name__} with {sum(p.numel() for p in model.bare(k).parameters()):,} '
                       'parameters' for k in model.nets)
    LOGGER.info('torch %s on %s x %d, precision %s; %s', torch.__version__, accelerator.device, accelerator.num_processes,
                accelerator.mixed_precision, counts)
    batch = per_batch * opt.train.gradient_accumulation_steps
    LOGGER.info('%d training items, %d per iteration; %d iterations in all', len(dataset), batch, opt.train.total_iter)


def tolerate(error: Exception, skipped: int, limit: int, iteration: int, batch: dict) -> None:
    """Log a skipped step with the files of its batch. Raises UserError when there were more than `limit` in a row."""
    files = ', '.join(map(str, batch.get('gt_path', batch.get('lq_path', ['?']))))
    LOGGER.warning('iteration %d: %s; the step is skipped (%d in a row). Its batch: %s', iteration, error, skipped, files)
    if skipped > limit:
        raise UserError(f'iteration {iteration}: {error}, {skipped} in a row (train:max_nonfinite allows {limit}); '
                        f'the batch: {files}')


def on_device(batch: dict, device: torch.device) -> dict:
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def due(iteration: int, frequency: int, last: int) -> bool:
    """Whether something that happens every `frequency` iterations (0: never) does so now; the last one counts too."""
    return frequency > 0 and (iteration % frequency == 0 or iteration == last)


if __name__ == '__main__':
    run(main)
