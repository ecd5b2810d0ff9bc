"""Writes the embeddings of S3Diff's two prompts: with such a file, restoring and training need no text encoder.

    python scripts/encode_prompts.py prompts.safetensors --sd-path stabilityai/sd-turbo
    python inference.py -i photo.jpg -m S3Diff_x4 --force_yml model:prompt_embeddings=prompts.safetensors

Prompts of your own belong into the option file too (model: positive_prompt, negative_prompt): the file must match it.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.models.prompts import NEGATIVE, POSITIVE, Prompts, encode, write_prompts
from basicsr.utils.cli import run
from basicsr.utils.messages import start_logging
from basicsr.utils.registry import UserError
from basicsr.utils.sd_folder import ACCEPTED, sd_folder


def main() -> int:
    args = parse_arguments()
    start_logging(is_main=True)
    if args.accept_license:
        os.environ[ACCEPTED] = '1'
    if args.out.suffix != '.safetensors':
        raise UserError(f'{args.out}: should end in .safetensors')
    folder = sd_folder(args.sd_path, ('text_encoder', 'tokenizer'), args.offline or None)
    prompts = Prompts(*encode(folder, (args.positive, args.negative)).split(1))
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{args.out.parent}: cannot be made: {error.strerror}') from None
    write_prompts(args.out, prompts, args.positive, args.negative)
    print(f'{args.out}: two prompts of {prompts.positive.shape[1]} tokens in {prompts.positive.shape[2]} channels')
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('out', type=Path, metavar='FILE', help='the .safetensors file to write')
    add('--sd-path', default='stabilityai/sd-turbo', metavar='FOLDER|NAME', help='SD-Turbo; default: that of the hub')
    add('--positive', default=POSITIVE, metavar='TEXT', help='what images should look like; default: as published')
    add('--negative', default=NEGATIVE, metavar='TEXT', help='what they should not; default: as published')
    add('--accept-license', action='store_true', help='accept the licence of what is downloaded, which is shown')
    add('--offline', action='store_true', help='download nothing')
    return parser.parse_args()


if __name__ == '__main__':
    run(main)
