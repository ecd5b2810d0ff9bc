import sys
from pathlib import Path

import pytest
from data_files import pixels

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from make_pair_list import main

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.image import write_image


@pytest.fixture
def run(tmp_path, capsys):
    """Calls the script as a user does; returns (status, the lines of the list relative to tmp_path, what it said)."""

    def call(*arguments: str) -> tuple[int, list[str], str]:
        status, output = 0, tmp_path / 'list.txt'
        try:
            main([*arguments, '--output', str(output)])
        except SystemExit as stopped:
            status = stopped.code
        said = capsys.readouterr()
        text = output.read_text().replace(f'{tmp_path}/', '') if output.exists() else ''
        return status, text.splitlines(), said.out + said.err

    return call


def make(root: Path, files: dict[str, tuple[int, int]]) -> None:
    """Images of (height, width)."""
    for name, size in files.items():
        write_image(root / name, pixels(0, *size))


def test_realsr_both_sides_and_all_scales_below_one_folder(tmp_path, run):
    make(
        tmp_path,
        {
            f'{camera}/Test/{scale}/{camera}_00{n}_{side}.png': (24 // size, 36 // size)
            for camera in ('Canon', 'Nikon')
            for n in (1, 2)
            for scale in (2, 4)
            for side, size in (('HR', 1), (f'LR{scale}', scale))
        },
    )
    status, lines, said = run('--input', str(tmp_path / 'Canon'), str(tmp_path / 'Nikon'), '--scale', '4')
    assert status == 0 and '4 pairs' in said
    assert lines[0] == 'Canon/Test/4/Canon_001_LR4.png Canon/Test/4/Canon_001_HR.png'
    names = [f'/{camera}_00{n}_LR4.png' for camera in ('Canon', 'Nikon') for n in (1, 2)]
    assert all(line.split()[0].endswith(name) for line, name in zip(lines, names, strict=True))


def test_folders_with_equal_names_do_not_mix(tmp_path, run):
    make(
        tmp_path, {f'{folder}/{n}': size for folder in 'ab' for n, size in (('LR/1.png', (2, 2)), ('HR/1.png', (4, 4)))}
    )
    lines = run('--input', f'{tmp_path}/a', f'{tmp_path}/b', '--scale', '2')[1]
    assert lines == ['a/LR/1.png a/HR/1.png', 'b/LR/1.png b/HR/1.png']


def test_realsr_with_the_lr_of_all_scales_in_one_folder(tmp_path, run):
    make(
        tmp_path,
        {'a_HR.png': (24, 24), 'a_LR2.png': (12, 12), 'a_LR3.png': (8, 8), 'b_HR.png': (24, 24), 'b_LR3.png': (8, 8)},
    )
    assert run('--input', str(tmp_path), '--scale', '3')[1] == ['a_LR3.png a_HR.png', 'b_LR3.png b_HR.png']
    assert run('--input', str(tmp_path), '--scale', '2')[1] == ['a_LR2.png a_HR.png']


@pytest.mark.parametrize('folders', [('test_LR', 'test_HR'), ('LR', 'HR'), ('LR_x4', 'HR')])
def test_drealsr_and_d2crealsr_have_a_folder_for_each_side(tmp_path, run, folders):
    make(tmp_path, {f'{folders[0]}/sony_1_x1.png': (6, 9), f'{folders[1]}/sony_1_x4.png': (24, 36)})
    status, lines, _ = run('--input', str(tmp_path), '--scale', '4')
    assert (status, lines) == (0, [f'{folders[0]}/sony_1_x1.png {folders[1]}/sony_1_x4.png'])


def test_two_folders_by_their_flags_and_the_data_set_reads_the_list(tmp_path, run):
    make(tmp_path, {'small/s1/0001x2.png': (6, 9), 'large/s1/0001.png': (13, 18)})
    status, lines, said = run(
        '--lr', f'{tmp_path}/small', '--hr', f'{tmp_path}/large', '--scale', '2', '--relative-to', str(tmp_path)
    )
    assert (status, lines) == (0, ['small/s1/0001x2.png large/s1/0001.png'])
    assert '1 HR are a little larger' in said
    item = PairedImageDataset(str(tmp_path), str(tmp_path), 2, pair_list=str(tmp_path / 'list.txt'))[0]
    assert item['lq'].shape == (3, 6, 9) and item['gt'].shape == (3, 12, 18)


def test_every_mismatch_is_listed_and_no_list_is_written(tmp_path, run):
    make(
        tmp_path,
        {'a_LR4.png': (6, 6), 'a_HR.png': (23, 24), 'b_LR4.png': (6, 6), 'c_HR.png': (24, 24), 'd.png': (6, 6)},
    )
    (tmp_path / 'e_HR.png').write_bytes(b'')
    status, lines, said = run('--input', str(tmp_path), '--scale', '4')
    assert status == 2 and not lines and '5 faults' in said
    for fault in (
        'a_HR.png: is 24x23, not 4 times 6x6',
        'b_LR4.png: has no HR',
        'c_HR.png: has no LR',
        'd.png: neither',
        'e_HR.png is empty',
    ):
        assert fault in said


def test_twins_wrong_sides_wrong_places_and_white_space_are_refused(tmp_path, run):
    make(tmp_path, {'one/a_HR.png': (4, 4), 'one/a_HR.bmp': (4, 4), 'one/a_LR2.png': (2, 2)})
    assert 'cannot be told from' in run('--input', f'{tmp_path}/one', '--scale', '2')[2]
    make(tmp_path, {'lr/a_HR.png': (2, 2), 'hr/a.png': (4, 4)})
    assert 'its name says HR' in run('--lr', f'{tmp_path}/lr', '--hr', f'{tmp_path}/hr', '--scale', '2')[2]
    make(tmp_path, {'my set/a_HR.png': (4, 4), 'my set/a_LR2.png': (2, 2)})
    assert 'white space' in run('--input', f'{tmp_path}/my set', '--scale', '2')[2]
    assert 'is not below' in run('--input', f'{tmp_path}/my set', '--scale', '2', '--relative-to', f'{tmp_path}/lr')[2]
    assert run('--input', f'{tmp_path}/my set', '--scale', '2', '--relative-to', f'{tmp_path}/my set')[1] == [
        'a_LR2.png a_HR.png'
    ]


@pytest.mark.parametrize('arguments', [(), ('--lr', 'x'), ('--input', 'x', '--lr', 'y', '--hr', 'z')])
def test_one_way_of_naming_folders_is_needed(run, arguments):
    status, _, said = run(*arguments, '--scale', '2')
    assert status == 2 and 'give --input, or --lr and --hr' in said and said.count('\n') == 1
