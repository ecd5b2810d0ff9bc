"""Checkpoints are written whole or not at all, whatever fails or kills the process."""

import errno
import io
import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from checkpoint_files import Net, left_over, read, refused, same

from basicsr.utils.checkpoint import (
    CheckpointError,
    checksum_fault,
    is_listed,
    network_state,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)


def contents(path: Path) -> list[bytes]:
    """A new checkpoint and the bytes of an old one, which is at `path`."""
    write_checkpoint(
        path, {'old': torch.arange(3000)} if path.suffix == '.safetensors' else {'params': {'old': torch.ones(3000)}}
    )
    return path.read_bytes()


NEW = {'params': {f'w{n}': torch.full((500,), float(n)) for n in range(4)}, 'iter': 7}


def new_for(path: Path) -> dict:
    return NEW['params'] if path.suffix == '.safetensors' else NEW


class FaultyDisk:
    """Replaces how files are opened, flushed and renamed by ones whose n-th action calls `fail`."""

    def __init__(self, monkeypatch, allowed: int, fail):
        self.count, self.allowed, self.fail = 0, allowed, fail
        opened, sync, replaced = Path.open, os.fsync, Path.replace
        monkeypatch.setattr(Path, 'open', lambda path, mode='r', *a, **k: self._file(opened(path, mode, *a, **k), mode))
        monkeypatch.setattr(os, 'fsync', lambda descriptor: (self.act(), sync(descriptor))[1])
        monkeypatch.setattr(Path, 'replace', lambda path, target: (self.act(), replaced(path, target))[1])

    def act(self) -> None:
        self.count += 1
        if self.count > self.allowed:
            self.fail()

    def _file(self, file, mode: str):
        if 'w' not in mode:
            return file
        self.act()
        write = file.write

        class Slow(io.BufferedIOBase):
            def write(inner, data):
                self.act()
                return write(data)

            def flush(inner):
                file.flush()

            def fileno(inner):
                return file.fileno()

            def close(inner):
                file.close()

        return Slow()


def disk_is_full() -> None:
    raise OSError(errno.ENOSPC, 'No space left on device')


def actions(tmp_path: Path, name: str) -> int:
    """How many actions writing takes over an existing file."""
    folder = tmp_path / 'count'
    folder.mkdir()
    contents(folder / name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        disk = FaultyDisk(monkeypatch, 1 << 30, disk_is_full)
        write_checkpoint(folder / name, new_for(folder / name))
    return disk.count


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
def test_a_write_that_fails_anywhere_leaves_the_old_file_and_no_other(name, tmp_path):
    total = actions(tmp_path, name)
    assert total > 8
    for allowed in range(total):
        path = tmp_path / str(allowed) / name
        path.parent.mkdir()
        old = contents(path)
        with pytest.MonkeyPatch.context() as monkeypatch:
            FaultyDisk(monkeypatch, allowed, disk_is_full)
            message = refused(write_checkpoint, path, new_for(path))
        assert 'could not be written: ' in message, allowed
        assert not left_over(path.parent), allowed
        read_checkpoint(path)
        assert is_listed(path), allowed
        if path.read_bytes() != old:  # only when the folder could not be flushed after everything else was done
            assert allowed == total - 1 and same(network_state(read_checkpoint(path), None, ''), NEW['params'])


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
def test_a_process_killed_anywhere_in_a_write_leaves_a_file_that_the_manifest_vouches_for(name, tmp_path):
    total = actions(tmp_path, name)
    for allowed in range(total):
        path = tmp_path / str(allowed) / name
        path.parent.mkdir()
        old = contents(path)
        child = os.fork()
        if child == 0:
            FaultyDisk(pytest.MonkeyPatch(), allowed, lambda: os.kill(os.getpid(), signal.SIGKILL))
            write_checkpoint(path, new_for(path))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        state = network_state(read_checkpoint(path), None, '')
        assert is_listed(path), allowed
        assert path.read_bytes() == old or same(state, NEW['params']), allowed
        write_checkpoint(path, new_for(path))
        assert same(network_state(read_checkpoint(path), None, ''), NEW['params'])


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
@pytest.mark.parametrize('limit', [0, 100, 5_000, 8_000])
def test_a_file_size_limit_leaves_the_old_file_and_no_other(name, limit, tmp_path):
    path = tmp_path / name
    old = contents(path)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            write_checkpoint(path, new_for(path))
            os._exit(1)
        except CheckpointError as error:
            os._exit(0 if 'could not be written' in str(error) and '\n' not in str(error) else 2)
        except BaseException:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_bytes() == old and checksum_fault(path) == '' and is_listed(path)
    assert not left_over(tmp_path)


def test_a_damaged_file_does_not_become_trusted_by_being_replaced(tmp_path):
    path = tmp_path / 'x.pth'
    contents(path)
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    write_checkpoint(path, NEW)
    path.write_bytes(damaged)
    assert 'damaged' in read(path)


def test_the_folder_must_be_there_and_writable(tmp_path):
    assert 'could not be written: No such file or directory' in refused(write_checkpoint, tmp_path / 'no/x.pth', NEW)
    (tmp_path / 'file').touch()
    assert 'could not be written: Not a directory' in refused(write_checkpoint, tmp_path / 'file/x.pth', NEW)
    assert 'could not be written: File name too long' in refused(write_checkpoint, tmp_path / f'{"x" * 300}.pth', NEW)


def test_removing_takes_file_and_entry(tmp_path):
    for name in ('a.pth', 'b.pth'):
        write_checkpoint(tmp_path / name, NEW)
    remove_checkpoint(tmp_path / 'a.pth')
    remove_checkpoint(tmp_path / 'a.pth')
    assert json.loads((tmp_path / 'manifest.json').read_text()).keys() == {'b.pth'}
    assert sorted(path.name for path in tmp_path.iterdir()) == ['b.pth', 'manifest.json']


def test_shapes_and_nesting_of_a_state_are_kept_exactly(tmp_path):
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    sum(p.sum() for p in net.parameters()).backward()
    optimizer.step()
    state = {
        'optimizers': [optimizer.state_dict()],
        'iter': 1,
        'best': {'V': {'psnr': {'val': 30.5, 'better': 'higher'}}},
    }
    write_checkpoint(tmp_path / '1.state', state)
    back = read_checkpoint(tmp_path / '1.state')
    assert (
        back['best'] == state['best']
        and back['optimizers'][0]['param_groups'] == optimizer.state_dict()['param_groups']
    )
    assert all(
        torch.equal(back['optimizers'][0]['state'][0][k], v) for k, v in optimizer.state_dict()['state'][0].items()
    )
