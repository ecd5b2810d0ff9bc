"""A folder appears whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from basicsr.utils.registry import UserError
from basicsr.utils.whole_folder import whole_folder


def test_it_appears_at_the_end_only(tmp_path):
    with whole_folder(tmp_path / 'new/a') as part:
        (part / 'sub').mkdir()
        (part / 'sub/x').write_text('x')
        assert not (tmp_path / 'new/a').exists() and part.parent == tmp_path / 'new'
    assert (tmp_path / 'new/a/sub/x').read_text() == 'x'
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(error, tmp_path):
    def fail() -> None:
        with whole_folder(tmp_path / 'a') as part:
            (part / 'x').write_text('x')
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'link').symlink_to('nowhere')
    for name in ('file', 'link'):
        with pytest.raises(UserError, match=rf'{name}: is there already'), whole_folder(tmp_path / name):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'link']


def test_two_processes_do_not_write_one_folder(tmp_path):
    code = f"""
from basicsr.utils.whole_folder import whole_folder
with whole_folder({str(tmp_path / 'a')!r}) as part:
    pass
"""
    with whole_folder(tmp_path / 'a') as part:
        (part / 'x').write_text('x')
        other = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert f'{tmp_path}/a: another process is writing it' in other.stderr
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['x']


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(OSError, match=r'cannot write .*/file/a: '), whole_folder(tmp_path / 'file/a'):
        pass


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='/proc takes no files, not even from root')
def test_a_folder_that_takes_no_files_is_not_taken_for_one_in_use():
    with pytest.raises(OSError, match=r'cannot write /proc/a: '), whole_folder('/proc/a'):
        pass


def test_a_relative_path_is_seen_from_where_writing_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'elsewhere').mkdir()
    with whole_folder(Path('a')):
        os.chdir('elsewhere')
    assert (tmp_path / 'a').is_dir()
