"""Packs the images of a folder into WebDataset shards, which ShardedImageDataset streams in training.

    python scripts/make_shards.py --input DF2K/HR_sub --output shards/DF2K --prefix train --size 256

It writes train-000000.tar and so on, of about --size MB, with the very bytes of the images, in an order that is random
but always the same: neighbours in a folder are often parts of one picture. Keys are the names without suffix, where
a dot becomes %2E, since WebDataset ends a key at the first dot, and % becomes %25. `index.json`, written last, holds
for each shard its number of samples, bytes and sha256.

Shards that exist, hold what they should and are newer than their images are kept: a stopped run may be started again.

    python scripts/make_shards.py --count 'https://host/train-{000000..000099}.tar' --output shards/mine

writes only the index, for shards made elsewhere. Put it beside them, or name it in the option `index`.
"""

import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from preparing import (
    Parser,
    Source,
    UserError,
    check_folders,
    clashes,
    decode_pixels,
    refuse,
    run_jobs,
    survey,
    whole,
    write_atomic,
)

from basicsr.data.shards import (
    INDEX_NAME,
    READ_ERRORS,
    Shard,
    checksum,
    counted,
    expanded,
    file_name,
    index_text,
    local_path,
    read_index,
    read_samples,
    reason,
)

MEGABYTE = 10**6


@dataclass(frozen=True)
class Member:
    """An image and its name in a shard."""

    path: Path
    name: str
    size: int

    @property
    def space(self) -> int:
        """Bytes that it takes in a tar file."""
        return tarfile.BLOCKSIZE * (1 + -(-self.size // tarfile.BLOCKSIZE))


@dataclass(frozen=True)
class Plan:
    """A shard and what it is to hold."""

    path: Path
    members: tuple[Member, ...]


def key_of(source: Source) -> str:
    """The name without suffix, such that WebDataset finds all of it again."""
    path = PurePosixPath(source.name)
    stem = path.stem.replace('%', '%25').replace('.', '%2E')
    key = stem if str(path.parent) == '.' else f'{path.parent}/{stem}'
    return f'%5F{key[1:]}' if key.startswith('__') else key  # WebDataset keeps such names for notes


def planned(sources: Sequence[Source], output: Path, prefix: str, size: int) -> list[Plan]:
    """Shards of about `size` bytes, at least one image each, in an order that is random but always the same."""
    shards: list[list[Member]] = []
    space = size
    for number in np.random.default_rng(0).permutation(len(sources)):
        source = sources[number]
        name = f'{key_of(source)}{source.path.suffix.lower()}'
        member = Member(source.path, name, source.path.stat().st_size)
        if not shards or space + member.space > size:
            shards.append([])
            space = 0
        shards[-1].append(member)
        space += member.space
    return [Plan(output / f'{prefix}-{number:06d}.tar', tuple(members)) for number, members in enumerate(shards)]


def make_shard(plan: Plan) -> Shard:
    """Write a shard, unless it is there. Raises ValueError that names every image that cannot be used."""
    if not is_made(plan):
        part = plan.path.with_name(f'.{plan.path.name}.part')
        faults = []
        try:
            with part.open('wb') as file:
                with tarfile.open(fileobj=file, mode='w', format=tarfile.PAX_FORMAT) as archive:
                    for member in plan.members:
                        faults += add_member(archive, member)
                file.flush()
                os.fsync(file.fileno())
            if faults:
                raise ValueError('\n  '.join(faults))
            part.replace(plan.path)
        finally:
            part.unlink(missing_ok=True)
    return Shard(str(plan.path), len(plan.members), plan.path.stat().st_size, checksum(plan.path))


def add_member(archive: tarfile.TarFile, member: Member) -> list[str]:
    """Put an image into a shard; what is wrong with it, in a list, if it does not decode."""
    try:
        data = member.path.read_bytes()
        decode_pixels(data, str(member.path))
    except OSError as error:
        return [f'{member.path}: {error.strerror}']
    except ValueError as error:
        return [str(error)]
    entry = tarfile.TarInfo(member.name)  # without dates and owners: the same images make the same shard
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
    return []


def is_made(plan: Plan) -> bool:
    """Whether a shard is there, whole, newer than its images, with their names and sizes."""
    try:
        newest = max(member.path.stat().st_mtime_ns for member in plan.members)
        if plan.path.stat().st_mtime_ns < newest or counted(plan.path)[1]:
            return False
        with tarfile.open(plan.path) as archive:
            return [(entry.name, entry.size) for entry in archive] == [(m.name, m.size) for m in plan.members]
    except READ_ERRORS:
        return False


def make_shards(folder: Path, output: Path, prefix: str, size: int, workers: int = 1) -> list[Shard]:
    """Write the shards of a folder with its sub-folders, and their index. Raises UserError that lists all faults."""
    check_folders(folder, [output], recursive=True)
    sources, faults = survey(folder, recursive=True)
    refuse([*faults, *clashes(sources, key_of)])
    plans = planned(sources, output, prefix, size)
    check_output(output, {plan.path.name for plan in plans}, '*.tar')
    output.mkdir(parents=True, exist_ok=True)
    for left_over in output.glob(f'.{prefix}-*.tar.part'):  # by a killed run
        left_over.unlink()
    (output / INDEX_NAME).unlink(missing_ok=True)  # what it says may not be true until the work is done
    made = {shard.url: shard for _, shard in run_jobs(make_shard, plans, workers, 'shards', 'shard')}
    shards = [made[str(plan.path)] for plan in plans]
    write_atomic(output / INDEX_NAME, index_text(shards).encode())
    return shards


def check_output(output: Path, names: set[str], pattern: str) -> None:
    """Raise UserError if a folder holds shards, or an index of shards, that are none of `names`."""
    files = [path for path in sorted(output.glob(pattern)) if path.name not in names]
    indexed = sorted(file_name(url) for url in read_index(str(output / INDEX_NAME), required=False))
    refuse(
        [
            *(f'{path}: is none of the shards that this would make; give a new folder' for path in files),
            *(f'{output / INDEX_NAME}: is about {name}; give a new folder' for name in indexed if name not in names),
        ]
    )


def count_shards(patterns: Sequence[str], output: Path, workers: int = 1) -> list[Shard]:
    """Write the index of shards that exist. Raises UserError that lists all faults."""
    urls = expanded(patterns)
    names = {file_name(url) for url in urls}
    if len(names) < len(urls):
        raise UserError('two of the shards have one name, which the index knows them by')
    check_output(output, names, INDEX_NAME)
    found = {shard.url: shard for _, shard in run_jobs(count_shard, urls, workers, 'count', 'shard')}
    shards = [found[url] for url in urls]
    write_atomic(output / INDEX_NAME, index_text(shards).encode())
    return shards


def count_shard(url: str) -> Shard:
    """A shard with its number of samples; one at a URL is read whole. Raises ValueError that lists its faults."""
    path, count, faults = local_path(url), 0, []
    if path is None:
        for _, sample in read_samples(url):
            count += 1
            faults += [f'{sample.path}: {sample.fault}'] if sample.fault else []
    else:
        try:
            count, faults = counted(path)
        except READ_ERRORS as error:
            raise ValueError(f'{url}: {reason(error)}') from None
    if faults:
        raise ValueError('\n  '.join(faults))
    return Shard(url, count) if path is None else Shard(url, count, path.stat().st_size, checksum(path))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(__doc__)
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument('--input', type=Path, help='folder of images; its sub-folders count')
    work.add_argument(
        '--count', nargs='+', metavar='SHARD', help='shards that exist: paths, URLs, patterns with {0..9}'
    )
    parser.add_argument('--output', type=Path, required=True, help='folder for the shards and their index')
    parser.add_argument('--prefix', help='what names of shards begin with (default: train)')
    parser.add_argument('--size', type=whole(1), help='MB of a shard, about (default: 256)')
    parser.add_workers()
    args = parser.parse_args(arguments)
    if args.count and (args.prefix is not None or args.size is not None):
        parser.error('--prefix and --size are of shards that are made, not of those that are counted')
    prefix = 'train' if args.prefix is None else args.prefix
    if not prefix or '/' in prefix or prefix.startswith('.'):
        parser.error('--prefix should be the beginning of a file name')
    with parser.faults_in_words():
        if args.count:
            shards = count_shards(args.count, args.output, args.workers)
        else:
            shards = make_shards(args.input, args.output, prefix, (args.size or 256) * MEGABYTE, args.workers)
        samples, size = sum(shard.samples for shard in shards), sum(shard.size or 0 for shard in shards)
        print(f'{samples} samples in {len(shards)} shards, {size / MEGABYTE:.1f} MB; {args.output / INDEX_NAME}')


if __name__ == '__main__':
    main()
