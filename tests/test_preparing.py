import io
import os
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from data_files import pixels
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
import preparing
from journal import Journal
from preparing import Parser, UserError, clashes, encoded_png, is_current, read_pixels, refuse, run_jobs, survey

from basicsr.utils.image import write_image


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG')
    return buffer.getvalue()


def test_every_fault_of_a_folder_is_found_without_work(tmp_path):
    image = pixels(0, 40, 50)
    whole, photograph = encoded_png(image), jpeg(image)
    files = {
        'bmp_cut.bmp': cv2.imencode('.bmp', image)[1].tobytes()[:-100],
        'empty.png': b'',
        'header_only.png': whole[:40],
        'jpeg_cut.jpg': photograph[: len(photograph) // 2],
        'mislabelled.png': photograph,
        'png_cut.png': whole[:-30],
        'text.png': b'this is no picture',
    }
    for name, data in {
        **files,
        'good.png': whole,
        'good2.jpg': photograph,
        '.hidden.png': b'',
        'note.txt': b'x',
    }.items():
        (tmp_path / name).write_bytes(data)
    sources, faults = survey(tmp_path)
    assert [(s.name, s.width, s.height) for s in sources] == [('good.png', 50, 40), ('good2.jpg', 50, 40)]
    assert len(faults) == len(files)
    for name, fault in zip(files, faults):
        assert name in fault and '\n' not in fault
    assert 'JPEG' in faults[4] and '0 bytes' in faults[1]
    with pytest.raises(UserError, match='7 faults, nothing was started') as refused:
        refuse(faults)
    assert all(name in str(refused.value) for name in files)


def test_sub_folders_count_only_where_asked_for(tmp_path):
    write_image(tmp_path / 'a.png', pixels(0, 4, 4))
    write_image(tmp_path / 'b' / 'c.png', pixels(0, 4, 4))
    assert [s.name for s in survey(tmp_path)[0]] == ['a.png']
    assert [s.png for s in survey(tmp_path, recursive=True)[0]] == ['a.png', 'b/c.png']
    with pytest.raises(UserError, match='no such folder'):
        survey(tmp_path / 'nowhere')
    (tmp_path / 'a.png').unlink()
    with pytest.raises(UserError, match='holds no images'):
        survey(tmp_path)


def test_two_sources_of_one_output_are_both_named(tmp_path):
    for name in ('a.png', 'a.jpg', 'b.png'):
        write_image(tmp_path / name, pixels(0, 4, 4))
    found = clashes(survey(tmp_path)[0], lambda source: source.png)
    assert len(found) == 1 and 'a.png' in found[0] and 'a.jpg' in found[0]


def test_one_fault_is_one_line_and_many_are_not_all_shown():
    refuse([])
    with pytest.raises(UserError, match=r'^only this$'):
        refuse(['only this'])
    with pytest.raises(UserError, match=r'60 faults(.|\n)*and 10 more$'):
        refuse([f'fault {n}' for n in range(60)])


def half(number: int) -> int:
    if number % 2:
        raise ValueError(f'file_{number}.png: is odd')
    return number // 2


def leave(number: int) -> int:
    os._exit(3) if number == 3 else None
    return number


def heeds_interrupts(number: int) -> tuple[int, bool]:
    time.sleep(0.5)  # so that every worker gets one
    return os.getpid(), signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def fill_the_disk(number: int) -> None:
    raise OSError(28, f'cannot write {number}.png: No space left on device')


@pytest.mark.parametrize('workers', [1, 2])
def test_unusable_inputs_are_listed_after_the_others_were_done(workers):
    done = {}
    with pytest.raises(UserError, match=r'2 of 5 could not be used; the other 3 are done') as error:
        for item, result in run_jobs(half, range(5), workers, 'test'):
            done[item] = result
    assert done == {0: 0, 2: 1, 4: 2}
    assert 'file_1.png' in str(error.value) and 'file_3.png' in str(error.value)


def test_a_worker_that_dies_is_noticed():
    with pytest.raises(UserError, match=r'worker process ended early.*at one of.*3'):
        list(run_jobs(leave, range(8), 2, 'test'))


def test_a_full_disk_ends_the_work_in_one_line(capsys):
    with pytest.raises(SystemExit) as stopped, Parser('test').faults_in_words():
        list(run_jobs(fill_the_disk, range(3), 1, 'test'))
    assert stopped.value.code == 1
    assert capsys.readouterr().err.endswith(': cannot write 0.png: No space left on device\n')


def test_every_worker_leaves_ctrl_c_to_the_main_process():
    before = signal.getsignal(signal.SIGINT)
    results = [result for _, result in run_jobs(heeds_interrupts, range(8), 2, 'test')]
    assert len({process for process, _ in results}) == 2 and not any(heeds for _, heeds in results)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_png_files_hold_the_pixels_as_they_are(tmp_path, channels, dtype):
    image = pixels(1, 9, 7, channels, dtype).reshape(9, 7, channels)
    preparing.write_png(tmp_path / 'a.png', image, compression=1)
    array = read_pixels(tmp_path / 'a.png').array
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, image[..., [0, 0, 0, 1]] if channels == 2 else image)


def test_an_output_is_kept_only_if_whole_newer_and_of_the_right_size(tmp_path):
    source, output = tmp_path / 'source.png', tmp_path / 'output.png'
    write_image(source, pixels(0, 8, 8))
    assert not is_current(output, source, 4, 4)
    write_image(output, pixels(0, 4, 4))
    assert is_current(output, source, 4, 4)
    assert not is_current(output, source, 4, 5)
    os.utime(source, ns=(0, output.stat().st_mtime_ns + 1))
    assert not is_current(output, source, 4, 4)
    os.utime(source, ns=(0, 0))
    output.write_bytes(output.read_bytes()[:-4])
    assert not is_current(output, source, 4, 4)


def test_a_journal_outlives_a_torn_line_and_refuses_another_recipe(tmp_path):
    folder = tmp_path / 'lq'
    with Journal(folder, {'seed': 1, 'range': (1, 2)}) as journal:
        journal.add('b.png', sigma=0.5)
        journal.add('a.png', sigma=0.25)
    file = tmp_path / 'lq.jsonl'
    assert [line[:14] for line in file.read_text().splitlines()] == [
        '{"recipe": {"s',
        '{"name": "a.pn',
        '{"name": "b.pn',
    ]
    file.write_text(file.read_text() + '{"name": "c.png", "si')
    assert list(Journal(folder, {'seed': 1, 'range': [1, 2]}).made) == ['a.png', 'b.png']
    with pytest.raises(UserError, match=r'was made otherwise \(seed was 1, not 2\)'):
        Journal(folder, {'seed': 2, 'range': (1, 2)})


def test_a_journal_refuses_a_folder_of_unknown_origin(tmp_path):
    write_image(tmp_path / 'lq' / 'a.png', pixels(0, 4, 4))
    with pytest.raises(UserError, match='give a new folder'):
        Journal(tmp_path / 'lq', {})
    (tmp_path / 'other.jsonl').write_text('[1, 2]\n')
    with pytest.raises(UserError, match='no record of this script'):
        Journal(tmp_path / 'other', {})


def test_results_are_never_written_among_the_sources(tmp_path):
    preparing.check_folders(tmp_path, [tmp_path / 'out', None])
    for outputs, recursive in (
        ([tmp_path], False),
        ([tmp_path / 'out'], True),
        ([tmp_path / 'a', tmp_path / 'a'], False),
    ):
        with pytest.raises(UserError, match=r'would be written into one folder|folder of the sources'):
            preparing.check_folders(tmp_path, outputs, recursive)
