"""scripts/benchmark.py runs on tiny sizes and its numbers agree; how fast anything is is not tested."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ATD = {'upscale': 2, 'embed_dim': 12, 'depths': [2], 'num_heads': [2], 'window_size': 4, 'category_size': 16,
       'num_tokens': 8, 'upsampler': 'pixelshuffledirect'}  # fmt: skip
TRANSCRIPTION = f'{ROOT}/tests/oracles/atd_reference.py:ATDReference'


def benchmark(*arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / 'scripts/benchmark.py'), *arguments], capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def report(folder: Path, *arguments: str) -> dict:
    """What a run on the tiny ATD wrote as JSON."""
    common = ('--repeats', '2', '--threads', '1', '--device', 'cpu', '--json', str(folder / 'report.json'))
    benchmark(*arguments, '--arch', 'ATD', '--options', json.dumps(ATD), '--size', '16x20', *common)
    return json.loads((folder / 'report.json').read_text())


def check(numbers: dict, memory: bool) -> None:
    """Ratios are ours / other, and medians are no faster than the fastest."""
    assert numbers.keys() == {'work', 'machine', 'repeats', 'ours', 'other', 'ratio', 'difference'}
    measures = {'seconds', 'fastest_seconds', 'cpu_seconds'} | ({'peak_bytes'} if memory else set())
    assert numbers['ratio'].keys() == measures
    for measure in measures:
        if numbers['other'][measure]:
            assert numbers['ratio'][measure] == numbers['ours'][measure] / numbers['other'][measure]
    for key in ('ours', 'other'):
        assert numbers[key]['seconds'] >= numbers[key]['fastest_seconds'] > 0
        assert (numbers[key]['peak_bytes'] is not None) == memory
    assert numbers['machine']['threads'] == 1


def test_a_forward_pass_is_compared_with_another_implementation(tmp_path):
    numbers = report(tmp_path, 'network', '--against', TRANSCRIPTION)
    check(numbers, memory=True)
    assert numbers['work']['kind'] == 'forward' and (numbers['work']['height'], numbers['work']['width']) == (16, 20)
    assert 0 < numbers['difference']['max'] < 1e-4 < numbers['difference']['largest_value'], 'two codes, one function'


def test_a_training_step_is_compared_with_the_calibration(tmp_path):
    numbers = report(tmp_path, 'network', '--train-step', '--dtype', 'bf16', '--channels-last', '--no-memory')
    check(numbers, memory=False)
    assert numbers['work']['kind'] == 'train' and numbers['difference'] is None
    assert numbers['ours']['dtype'] == 'bf16' and numbers['other']['title'] == 'calibration'


def test_a_network_that_is_told_a_level_is_compared_as_a_sampler_calls_it(tmp_path):
    options = {'in_channel': 6, 'inner_channel': 8, 'norm_groups': 4, 'channel_mults': [1, 2], 'attn_res': [],
               'res_blocks': 1}  # fmt: skip
    for kind, reference, level in (('SR3UNet', 'SR3Reference', '0.3'), ('DDPMUNet', 'DDPMReference', '700')):
        file = tmp_path / f'{kind}.json'
        benchmark('network', '--arch', kind, '--options', json.dumps(options), '--size', '16x24', '--level', level,
                  '--constant-weights', '--against', f'{ROOT}/tests/oracles/sr3_unet_reference.py:{reference}',
                  '--repeats', '1', '--threads', '1', '--device', 'cpu', '--json', str(file))  # fmt: skip
        numbers = json.loads(file.read_text())
        check(numbers, memory=True)
        assert (numbers['work']['channels'], numbers['work']['level']) == (6, float(level))
        assert numbers['difference']['max'] < 1e-4 < numbers['difference']['largest_value']


def test_constant_weights_stay_packed_as_long_as_the_measured_call_lives():
    sys.path.insert(0, str(ROOT / 'scripts'))
    from benchmarking import Variant, Work, prepared

    options = {'inner_channel': 8, 'norm_groups': 4, 'channel_mults': [1], 'attn_res': []}
    work = Work('forward', 8, 8, channels=6, level=0.5)
    operators = []
    for packed in (False, True):
        call = prepared(Variant('ours', {'type': 'SR3UNet', **options}, constant_weights=packed), work)
        gc.collect()
        with torch.profiler.profile() as profile:
            call()
        operators.append({event.name for event in profile.events()})
    name = 'mkldnn::_convolution_pointwise'
    assert name not in operators[0] and name in operators[1]


def test_the_whole_restore_path_is_measured_with_its_tiles(tmp_path):
    numbers = report(tmp_path, 'restore', '--tile', '12', '--overlap', '4', '--against', 'plain', '--no-memory')
    check(numbers, memory=False)
    assert numbers['work']['restorer'] == {'tile': 12, 'overlap': 4, 'tile_batch': 1, 'self_ensemble': False}
    assert numbers['difference']['max'] == 0, 'the same network twice'


def test_the_peak_grows_with_the_image_and_not_with_the_libraries():
    """Of a convolution to 64 channels, 256 times 256 float32 pixels need 16 MiB and some more."""
    sys.path.insert(0, str(ROOT / 'scripts'))
    from benchmarking import Variant, Work, peak_in_fresh_process

    discriminator = Variant('d', {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 16})
    small, large = (peak_in_fresh_process(discriminator, Work('forward', side, side, threads=1)) for side in (64, 512))
    one_map = 512 * 512 * 16 * 4
    assert small < one_map < large < 20 * one_map


@pytest.mark.parametrize(
    ('system', 'targets'),
    [
        ('atd', {('ATD_light_SRx4', 'forward', 'fp32'): (0.4, 0.6), ('ATD_SRx4', 'forward', 'bf16'): (0.5, None)}),
        (
            'sr3',
            {('sr_sr3_16_128', 'forward', 'fp32'): (0.85, None), ('sr_sr3_64_512', 'forward', 'bf16'): (0.5, None)},
        ),
        ('d2c', {('D2C_SRx4', 'forward', 'fp32'): (0.75, 0.6), ('D2C_SRx4', 'forward', 'bf16'): (0.4, None)}),
        ('iter', {('ITER_x4', 'restore', 'fp32'): (0.65, 0.6), ('ITER_x4', 'restore', 'bf16'): (0.4, None)}),
        ('s3diff', {('S3Diff_x4', 'forward', 'fp32'): (0.85, None), ('S3Diff_x4', 'forward', 'bf16'): (0.45, None)}),
    ],
)
def test_the_table_of_a_system_has_a_row_for_every_target(system, targets, tmp_path):
    if system == 's3diff':
        pytest.importorskip('diffusers')
    text = benchmark(system, '--shrink', '--repeats', '1', '--threads', '1', '--device', 'cpu', '--no-memory', '--json',
                     str(tmp_path / 'table.json'))  # fmt: skip
    reports = json.loads((tmp_path / 'table.json').read_text())
    beginning = {'sr3': '| sr_sr3', 's3diff': '| S3Diff'}.get(system, f'| {system.upper()}')
    rows = [line for line in text.splitlines() if line.startswith(beginning)]
    assert len(rows) == len(reports) == {'iter': 9, 's3diff': 8}.get(system, 6)
    found = {(r['title'], r['work']['kind'], r['ours']['dtype']): (*r['target'].values(),) for r in reports}
    assert targets.items() <= found.items()
    assert {r['other']['dtype'] for r in reports} == {'fp32'}
    assert max(r['difference']['max'] for r in reports if r['ours']['dtype'] == 'fp32') < 1e-4


def test_the_tables_of_data_have_equal_results_and_the_wanted_rows(tmp_path):
    text = benchmark('data', '--quick', '--repeats', '2', '--json', str(tmp_path / 'data.json'))
    report = json.loads((tmp_path / 'data.json').read_text())
    for row in report['computing']:
        assert row['title'] in text and row['visible'] < 0.05 and row['difference'] < 0.2, row
        for key in ('ours', 'other'):
            assert row[key]['mean_seconds'] >= row[key]['fastest_seconds'] > 0
        rates = [row[key]['images_per_second'] for key in ('ours', 'other')]
        assert row['faster'] == rates[0] / rates[1]
    wanted = {row['title'].split()[0]: row['target'] for row in report['computing'] if row['target']}
    assert wanted == {'Real-ESRNet': 4, 'BSRGAN': 3, 'BSRGANLight': 3, 'BSRGANPlus': 3, 'SSIM,': 4, 'imresize': 3}
    exact = [
        row for row in report['computing'] if row['title'].startswith(('SSIM', 'imresize', 'filter2D', 'BSRGAN: '))
    ]
    assert len(exact) == 6 and max(row['difference'] for row in exact) < 1e-5
    for row in report['loading']:
        assert row['title'] in text and min(row['items_per_second'].values()) > 0
        assert row['crop_seconds'].keys() == {'disk', 'lmdb', 'packed'}
    assert len(report['loading']) == 3


def test_rows_of_data_can_be_chosen():
    text = benchmark('data', '--quick', '--repeats', '1', '--only', 'imresize')
    assert text.count('imresize') == 2 and 'SSIM' not in text and 'training set' not in text


@pytest.mark.parametrize(('arguments', 'message'), [
    (('network', '--arch', 'ATTD'), "did you mean 'ATD'?"),
    (('network', '--arch', 'ATD', '--options', '{'), 'should be JSON'),
    (('network', '--arch', 'ATD', '--size', '64'), 'should be HEIGHTxWIDTH'),
    (('network', '--arch', 'ATD', '--against', 'nothing.py:Net'), 'is no file'),
    (('data', '--only', 'imresise'), "did you mean 'imresize'?"),
])  # fmt: skip
def test_a_mistake_is_one_line(arguments, message):
    text = benchmark(*arguments, status=2)
    assert message in text and 'Traceback' not in text
