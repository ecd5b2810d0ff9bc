"""Compares tested models in one HTML page, which opens anywhere by itself: scores, images, training, how it was made.

    python scripts/report.py results/ATD-demo_x4 results/D2C-demo_x4 -o report.html
    python scripts/report.py results/A results/B --gt testset/gt --lq testset/lq_x4 --train experiments/A experiments/B

Each folder is what test.py wrote. The page has means with 95% bootstrap intervals, differences of each model from the
first one, the best and the worst images, a viewer that enlarges lq, results and gt together and shows how they differ,
training curves, and the recorded environment and commands. gt and lq are found where the option file has them, or
given. Images are embedded without loss until --max-megabytes are reached; the page says how many were left out.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from preparing import Parser, UserError, whole
from reporting_curves import COLOURS, read_training
from reporting_images import Pictures
from reporting_page import Report, page, text
from reporting_runs import Run, datasets_of, read_runs

from basicsr.utils.image import write_atomic


def ranking_metrics(runs: Sequence[Run], wanted: str | None) -> dict[str, str]:
    """The metric that ranks the images of each data set: the wanted one, else the first; '' for none."""
    metrics = {
        dataset: list(dict.fromkeys(metric for run in runs for metric in run.metrics(dataset)))
        for dataset in datasets_of(runs)
    }
    known = sorted({metric for labels in metrics.values() for metric in labels})
    if wanted and wanted not in known:
        raise UserError(f'--metric {wanted}: not among the scores; known: {", ".join(known) or "none"}')
    return {d: wanted if wanted in labels else next(iter(labels), '') for d, labels in metrics.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument('results', type=Path, nargs='+', metavar='FOLDER', help='results/NAME, as test.py wrote it')
    parser.add_argument('--gt', type=Path, metavar='FOLDER', help='default: where the option file has it')
    parser.add_argument('--lq', type=Path, metavar='FOLDER', help='default: where test.py read it')
    parser.add_argument(
        '--train', type=Path, nargs='+', default=[], metavar='FOLDER', help='experiments/NAME, whose curves are drawn'
    )
    parser.add_argument('--metric', metavar='NAME', help='ranks the images (default: the first one)')
    parser.add_argument('--extremes', type=whole(1), default=3, help='best and worst images named (default: 3)')
    parser.add_argument('--max-megabytes', type=whole(0), default=40, help='of embedded images (default: 40)')
    parser.add_argument('-o', '--output', type=Path, default=Path('report.html'), help='default: report.html')
    args = parser.parse_args(arguments)
    with parser.faults_in_words():
        if len(args.train) > COLOURS:
            raise UserError(f'--train: {len(args.train)} runs; at most {COLOURS} can be told apart in one plot')
        runs, trainings = read_runs(args.results), [read_training(folder) for folder in args.train]
        metrics = ranking_metrics(runs, args.metric)
        gallery = Pictures(runs, args.gt, args.lq, args.max_megabytes).gallery(metrics, args.extremes)
        command = shlex.join(['python', 'scripts/report.py', *(sys.argv[1:] if arguments is None else arguments)])
        made = f'{time.strftime("%Y-%m-%d %H:%M")} by <code>{text(command)}</code>'
        report = Report(runs, gallery, trainings, metrics, args.extremes, made)
        write_atomic(args.output, page(report).encode())
    print(args.output)


if __name__ == '__main__':
    main()
