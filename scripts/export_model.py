"""Write a model as one file that describes itself: its weights, its network, where it is from and how good it is.

python scripts/export_model.py -m ATD-demo_x4 -o atd_x4.safetensors
python scripts/export_model.py --opt options/test/ATD/ATD-quick_x2.yml --weights net_g_latest.pth -o my.safetensors \\
    --half --scores results/ATD-quick_x2/scores.csv --licence CC-BY-4.0 --source https://my.page
python scripts/export_model.py -m ATD-demo_x4 -o atd_x4.safetensors --push-to OWNER/NAME

`python inference.py my.safetensors photo.jpg` needs nothing else; spandrel and chaiNNer read ATD's. The metadata hold
the network's options and results; `basicsr info my.safetensors` shows them.
"""

import argparse
import csv
import sys
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from exporting import check_export, export_parser

from basicsr.hub import push_to_hub
from basicsr.model_file import Description, described, read_description, write_model_file
from basicsr.restoring import about_weights, load_model, needed_networks
from basicsr.utils.cli import run
from basicsr.utils.registry import UserError


def main() -> int:
    parser = export_parser(__doc__, '.safetensors')
    parser.add_argument('--half', action='store_true', help='floating-point tensors in half precision')
    parser.add_argument('--scores', type=Path, metavar='CSV', help='scores.csv of test.py: their means are written too')
    parser.add_argument('--licence', default='', help='of the weights; of a model with a name: as --list says')
    parser.add_argument('--source', default='', help='where the weights come from')
    parser.add_argument('--note', default='', help='a line for people')
    parser.add_argument('--push-to', metavar='OWNER/NAME', help='put it on the Hugging Face hub, with a model card')
    parser.add_argument('--private', action='store_true', help='with --push-to: a new repository is private')
    args = parser.parse_args()
    check_export(args, '.safetensors', 'a model file')
    export(args)
    about = read_description(args.output)
    print(f'{args.output}: {args.output.stat().st_size:,} bytes\n{about.options.rstrip()}')
    if args.push_to:
        print(push_to_hub(args.output, args.push_to, args.private, replace_card=args.overwrite))
    return 0


def export(args: argparse.Namespace) -> None:
    model = load_model(args.model, args.opt, args.weights, offline=False)
    labels = needed_networks(model.opt)
    saved = model.networks()  # without what another file is needed for anyhow, such as SD-Turbo
    states = {k: saved[k]['params'] if k in saved else model.nets[k].state_dict() for k in labels}
    if args.half:
        states = {
            label: {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
            for label, state in states.items()
        }
    origin = about_weights(args.model, args.weights)
    card = {} if args.half or args.opt else origin.card  # of half precision and of other options there are others
    about = Description(
        described(model.opt, tuple(labels)),
        scores_card(args.scores) if args.scores else card,
        args.licence or origin.licence,
        args.source or origin.source,
        args.note or origin.note,
    )
    write_model_file(args.output, states, about)


def scores_card(path: Path) -> dict[str, dict[str, float]]:
    """The mean of each metric over the images of each data set in a scores.csv."""
    try:
        with path.open(newline='', encoding='utf-8') as file:
            rows = list(csv.DictReader(file))
        sets = dict.fromkeys(row['dataset'] for row in rows)
        metrics = [name for name in rows[0] if name not in ('dataset', 'image')]
        return {
            name: {m: fmean(float(row[m]) for row in rows if row['dataset'] == name and row[m]) for m in metrics}
            for name in sets
        }
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise UserError(f'{path}: not a scores.csv of test.py ({error})') from None


if __name__ == '__main__':
    run(main)
