"""Measure a trained network on benchmark sets and save its images.

    python basicsr/test.py -opt options/test/ATD/....yml [section:key=value ...]

Results go to results/NAME: scores.csv (per image), table.md, row.tex, and the images if val:save_img asks for them.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: its folder gives way to the checkout, before any other installed `basicsr`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import time

from basicsr.evaluation import Evaluation
from basicsr.launch import environment, launched, start_terminal
from basicsr.metrics.summary import latex_row, markdown_table, scores_csv
from basicsr.models import build_model
from basicsr.utils.cli import option_parser, run
from basicsr.utils.experiment import archive, option_copy
from basicsr.utils.messages import LOGGER, start_logging
from basicsr.utils.options import Options, load_options
from basicsr.utils.registry import OptionError


def main() -> int:
    args = option_parser(__doc__).parse_intermixed_args()
    start_terminal()
    opt = load_options(args.opt, False, [*args.force_yml, *args.overrides])
    with launched(opt) as accelerator:
        test(opt, accelerator)
    return 0


def test(opt: Options, accelerator) -> dict[str, list[dict]]:
    """Restore and score every set of the option file; returns the rows of evaluate() by data set."""
    if not opt.datasets:
        raise OptionError("section 'datasets' is missing: nothing to test on")
    folder = Path(opt.path.results_root) / opt.name
    evaluation = Evaluation(opt, build_model(opt).to(accelerator.device), accelerator)
    if accelerator.is_main_process:
        make_folder(folder, opt)
    start_logging(
        accelerator.is_main_process,
        folder / f'test_{opt.name}_{time.strftime("%Y%m%d_%H%M%S")}.log' if accelerator.is_main_process else None,
    )
    LOGGER.info('environment: %s', environment(accelerator))
    accelerator.wait_for_everyone()
    ending = opt.val.suffix or opt.name

    def image_path(name: str, lq_path: str) -> Path:
        return folder / 'visualization' / name / f'{Path(lq_path).stem}_{ending}.png'

    results = dict(evaluation(image_path if opt.val.save_img else None, progress=opt.val.pbar))
    if accelerator.is_main_process:
        report(opt, folder, results)
    return results


def report(opt: Options, folder: Path, results: dict[str, list[dict]]) -> None:
    table, row = markdown_table(results), latex_row(opt.name, opt.scale, results)
    (folder / 'scores.csv').write_text(scores_csv(results), encoding='utf-8')
    (folder / 'table.md').write_text(table + '\n', encoding='utf-8')
    (folder / 'row.tex').write_text(row + '\n', encoding='utf-8')
    LOGGER.info('means and 95%% bootstrap intervals over images:\n%s\n%s', table, row)
    LOGGER.info('results are in %s', folder)


def make_folder(folder: Path, opt: Options) -> None:
    """A fresh results folder; an older one is put aside."""
    try:
        archive(folder)
        folder.mkdir(parents=True)
        (folder / Path(opt.file).name).write_text(option_copy(opt.text), encoding='utf-8')
    except OSError as error:
        raise OptionError(f'{folder}: results cannot be written there: {error.strerror}') from None


if __name__ == '__main__':
    run(main)
