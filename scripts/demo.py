"""A web page that restores images on this machine: choose a model, drop an image, compare, download.

    python scripts/demo.py
    python scripts/demo.py --model SR3-demo_x4 --device cuda:1 --port 8000

It needs pip install -e '.[demo]'. Models are the bundled ones, and published ones whose files are on this machine;
nothing is downloaded. The page answers to this machine alone (--host changes that), sends nothing anywhere, and deletes
its files when a page is closed, after an hour, and at the end.
"""

import ipaddress
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from preparing import Parser, UserError, whole

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo_controls import offers
from demo_work import Visits, Workshop

from basicsr.utils.messages import LOGGER, start_logging
from basicsr.utils.optional import optional
from basicsr.utils.zoo import find_model
from inference import DEFAULT_MODEL, chosen_device

MAX_PIXELS = 2**22  # 2048 x 2048: of a x4 model's result, 64 million


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add('--model', default=DEFAULT_MODEL, metavar='NAME', help=f'chosen at first (default: {DEFAULT_MODEL})')
    add('--device', default='auto', help='auto (cuda, else mps, else cpu), or a device of torch such as cuda:1')
    add('--port', type=whole(1), default=7860, help='default: 7860')
    add('--host', default='127.0.0.1', help='address to answer at (default: 127.0.0.1, this machine alone)')
    add('--max-mb', type=whole(1), default=32, metavar='N', help='refuse larger files (default: 32)')
    add('--max-pixels', type=whole(1), default=MAX_PIXELS, metavar='N', help=f'refuse larger inputs ({MAX_PIXELS})')
    args = parser.parse_args(arguments)
    with parser.faults_in_words(), tempfile.TemporaryDirectory(prefix='basicsr-demo-') as folder:
        start_logging(is_main=True)
        before, tempfile.tempdir = tempfile.tempdir, folder  # of gradio: what an upload that broke off leaves goes too
        try:
            serve(args, Path(folder).resolve())
        finally:
            tempfile.tempdir = before


def serve(args, folder: Path) -> None:
    """Answer until SIGINT or SIGTERM. Raises UserError."""
    os.environ |= {
        'GRADIO_ANALYTICS_ENABLED': 'False',
        'GRADIO_RUN_HISTORY': 'False',
        'GRADIO_TEMP_DIR': str(folder),
        'HF_HUB_OFFLINE': '1',
    }
    optional('gradio', 'demo')
    from demo_page import KEPT, build_page, launch

    found, wanted = offers(), find_model(args.model).name
    if wanted not in found:
        raise UserError(f'--model {wanted}: its files are not on this machine; here are {", ".join(found)}')
    workshop = Workshop(found, chosen_device(args.device), args.max_pixels)
    visits = Visits(folder)
    page = build_page(workshop, visits, wanted, args.max_mb)
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        address = launch(page, args.host, args.port, args.max_mb)
        if not is_local(args.host):
            LOGGER.warning('--host %s: whoever reaches this machine can use the page and its device', args.host)
        LOGGER.info('%s on %s; Ctrl-C ends it', address, workshop.device)
        while not ended.wait(60):
            visits.sweep(KEPT)
        visits.close()
        page.close(verbose=False)
    except OSError as error:
        raise UserError(f'--host {args.host} --port {args.port}: {error.strerror or error}') from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == '__main__':
    main()
