"""The tables of scripts/benchmark.py atd, d2c, sr3, iter, s3diff: published networks against a plain transcription."""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from benchmarking import Row, Variant, Work, compare
from benchmarking_iter import iter_rows
from benchmarking_s3diff import s3diff_rows
from torch import Tensor, nn

from basicsr.utils.options import load_options
from basicsr.utils.registry import ARCH_REGISTRY

ROOT = Path(__file__).resolve().parents[1]
ORACLES = ROOT / 'tests/oracles'


class D2C(nn.Module):
    """Both networks of D2C-SR as one; in training it gives all images that have a loss, and the blend's stays in f."""

    def __init__(self, scale: int, n_resblocks: int = 4, n_feats: int = 64, reduction: int = 16):
        super().__init__()
        branches, fusion = self.networks()
        self.g = branches(scale=scale, n_resblocks=n_resblocks, n_feats=n_feats, reduction=reduction)
        self.f = fusion()

    def networks(self) -> tuple[type[nn.Module], type[nn.Module]]:
        return ARCH_REGISTRY.get('D2CBranches'), ARCH_REGISTRY.get('D2CFusion')

    def forward(self, lq: Tensor) -> Tensor:
        branches = self.g(lq)
        if not self.training:
            return self.f(branches)[0]
        return torch.cat([branches.flatten(1, 2), self.f(branches.detach())[0]], 1)


class D2CTranscription(D2C):
    """The same with the networks of the plain transcription."""

    def networks(self) -> tuple[type[nn.Module], type[nn.Module]]:
        sys.path.insert(0, str(ORACLES))
        from d2c_reference import CNet, DNet

        return DNet, CNet


ATD_SHRUNKEN = {
    'embed_dim': 12,
    'depths': [2],
    'num_heads': [2],
    'window_size': 4,
    'category_size': 16,
    'num_tokens': 8,
}
SR3_SHRUNKEN = {'inner_channel': 8, 'norm_groups': 4, 'channel_mults': [1, 2], 'attn_res': [], 'res_blocks': 1}
D2C_SHRUNKEN = {'n_resblocks': 1, 'n_feats': 8, 'reduction': 4}


def atd_rows(shrink: bool) -> list[Row]:
    rows, sources = [], ('', f'{ORACLES / "atd_reference.py"}:ATDReference')
    for file, side, kind, dtype, most_time, most_memory in (
        ('103_ATD_light_SRx4_finetune', 64, 'forward', 'fp32', 0.4, 0.6),
        ('103_ATD_light_SRx4_finetune', 64, 'forward', 'bf16', None, None),
        ('103_ATD_light_SRx4_finetune', 64, 'train', 'fp32', 0.75, None),
        ('003_ATD_SRx4_finetune', 48, 'forward', 'fp32', 0.75, 0.6),
        ('003_ATD_SRx4_finetune', 48, 'forward', 'bf16', 0.5, None),
        ('003_ATD_SRx4_finetune', 48, 'train', 'fp32', 0.75, None),
    ):
        opt = load_options(ROOT / 'options/train/ATD' / f'{file}.yml', True, check_files=False)
        network = {**opt.networks['g'], 'use_checkpoint': False, **(ATD_SHRUNKEN if shrink else {})}
        title = file.removesuffix('_finetune')[4:]
        side = 16 if shrink else side
        rows.append(Row(title, network, sources, opt.scale, side, kind, dtype, most_time, most_memory))
    return rows


def d2c_rows(shrink: bool) -> list[Row]:
    network = {'type': 'D2C', 'scale': 4, **(D2C_SHRUNKEN if shrink else {})}
    sources = f'{__file__}:D2C', f'{__file__}:D2CTranscription'
    return [
        Row('D2C_SRx4', network, sources, 4, 16 if shrink else side, kind, dtype, most_time, most_memory, batch)
        for side, batch, kind, dtype, most_time, most_memory in (
            (96, 1, 'forward', 'fp32', 0.75, 0.6),
            (96, 1, 'forward', 'bf16', 0.4, None),
            (48, 1, 'forward', 'fp32', 0.75, 0.6),
            (48, 1, 'forward', 'bf16', 0.4, None),
            (48, 1, 'train', 'fp32', 0.75, None),
            (24, 4, 'train', 'fp32', 0.75, None),
        )
    ]


def sr3_rows(shrink: bool) -> list[Row]:
    """One call of the network, as a sampler makes it, and on its own; the images are enlarged already."""
    rows, sources = [], ('', f'{ORACLES / "sr3_unet_reference.py"}:SR3Reference')
    for file, side, kind, dtype, packed, most_time in (
        ('sr_sr3_16_128', 128, 'forward', 'fp32', True, 0.85),
        ('sr_sr3_16_128', 128, 'forward', 'bf16', True, 0.5),
        ('sr_sr3_16_128', 128, 'forward', 'fp32', False, None),
        ('sr_sr3_16_128', 128, 'train', 'fp32', False, None),
        ('sr_sr3_64_512', 256, 'forward', 'fp32', True, 0.85),
        ('sr_sr3_64_512', 256, 'forward', 'bf16', True, 0.5),
    ):
        opt = load_options(ROOT / 'options/train/SR3' / f'{file}.yml', True, check_files=False)
        network = {**opt.networks['g'], 'dropout': 0, **(SR3_SHRUNKEN if shrink else {})}
        side = 16 if shrink else side
        title = file if packed or kind == 'train' else f'{file}, a single call'
        given = {'channels': 6, 'level': 0.5, 'constant_weights': packed}
        rows.append(Row(title, network, sources, 1, side, kind, dtype, most_time, **given))
    return rows


SYSTEMS = {'atd': atd_rows, 'd2c': d2c_rows, 'sr3': sr3_rows, 'iter': iter_rows, 's3diff': s3diff_rows}


def system_reports(args: argparse.Namespace, device: str) -> list[dict]:
    """Measure a system's rows and print them as a Markdown table; a report's `target` is the most allowed."""
    print(
        '| network | lq | work | ours | transcription | time (CPU time) | target | memory | target | max difference |'
    )
    print('|---|---|---|---|---|---|---|---|---|---|')
    rows = [
        replace(row, side=args.side, width=0) if args.side else row
        for row in SYSTEMS[args.command](args.shrink)
        if args.only in f'{row.title}, {row.kind} {row.dtype}'
    ]
    # A row has a process of its own: what ran before decides how malloc serves what comes next. Shrunken rows, whose
    # times mean nothing, share one.
    share = None if args.shrink else 1
    with ProcessPoolExecutor(1, mp_context=get_context('spawn'), max_tasks_per_child=share) as workers:
        return [_reported(row, args, device, workers) for row in rows]


def _reported(row: Row, args: argparse.Namespace, device: str, workers: ProcessPoolExecutor) -> dict:
    work = Work(row.kind, row.side, row.width or row.side, row.batch, row.scale, device, args.threads)
    work = replace(work, channels=row.channels, level=row.level)
    title = row.network['type']
    ours = Variant(title, row.network, row.sources[0], dtype=row.dtype, constant_weights=row.constant_weights)
    ours = ours if row.model is None else replace(ours, model=row.model)
    variants = ours, Variant(f'{title}Reference', row.network, row.sources[1])
    report = workers.submit(compare, *variants, work, args.repeats, args.memory).result()
    report |= {'title': row.title, 'target': {'seconds': row.most_time, 'peak_bytes': row.most_memory}}
    memory = report['ratio'].get('peak_bytes')
    cells = [
        row.title,
        f'{row.batch} of {work.height}x{work.width}',
        f'{row.kind} {row.dtype}',
        f'{report["ours"]["seconds"]:.3f} s',
        f'{report["other"]["seconds"]:.3f} s',
        f'{report["ratio"]["seconds"]:.2f} ({report["ratio"]["cpu_seconds"]:.2f})',
        f'{row.most_time or "-"}',
        '-' if memory is None else f'{memory:.2f}',
        f'{row.most_memory or "-"}',
        f'{report["difference"]["max"]:.1e}',
    ]
    print(f'| {" | ".join(cells)} |', flush=True)
    return report
