"""What `scripts/benchmark.py sr3-steps` measures: how good and how fast SR3 is with fewer steps and other samplers."""

import argparse
from collections.abc import Callable, Iterator

from benchmarking_steps import Study, add_arguments

from basicsr.models.diffusion_sampling import Sampler
from basicsr.models.sr3_model import SR3Model

SAMPLERS = {'ancestral': 'trailing', 'ddim': 'trailing', 'dpmpp_2m': 'logsnr'}  # with the spacings that suit them
STEPS = (2000, 250, 100, 50, 20, 10)


def add_parser(commands) -> None:
    """The command of benchmark.py."""
    parser = commands.add_parser('sr3-steps', help='SR3: quality and seconds for numbers of steps and samplers')
    add_arguments(parser, STUDY, 'SR3', STEPS)
    default = ','.join(SAMPLERS)
    parser.add_argument('--samplers', type=names, default=tuple(SAMPLERS), metavar='A,B', help=f'default: {default}')


def names(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(','))
    if not set(parts) <= SAMPLERS.keys():
        raise argparse.ArgumentTypeError(f'{text!r} should be some of {",".join(SAMPLERS)}')
    return parts


def rows(model: SR3Model, args: argparse.Namespace, images: int, measure: Callable[[], dict]) -> Iterator[dict]:
    """Every sampler with every number of steps, no more than the chain has."""
    counts = dict.fromkeys(min(count, len(model.sampled)) for count in args.steps)
    for kind in args.samplers:
        for count in counts:
            model.sampler = Sampler(kind, count, spacing=SAMPLERS[kind])
            yield {'sampler': kind, 'steps': count, 'spacing': SAMPLERS[kind], **measure()}


STUDY = Study(
    command='sr3-steps',
    model_type=SR3Model,
    columns=('sampler', 'steps'),
    keys=('sampler', 'steps'),
    line='sampler',
    compared_with='all steps',
    is_reference=lambda model, row: row['sampler'] == 'ancestral' and row['steps'] == len(model.sampled),
    metric={'crop_border': 0, 'test_y_channel': False},
    space='RGB',
    rows=rows,
)
