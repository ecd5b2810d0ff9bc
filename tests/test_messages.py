"""Log lines as BasicSR's users and their scripts know them, and a log that survives a full disk."""

import logging

import pytest
from golden_case import load_case

from basicsr.utils.messages import (
    LOGGER,
    option_tree,
    remaining_time,
    start_logging,
    training_line,
    validation_block,
)

FORMAT = load_case('core', 'log_format').spec


@pytest.fixture
def logger():
    """The logger with no handlers, put back afterwards."""
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    LOGGER.handlers, LOGGER.propagate = [], True  # pytest hangs handlers of its own on a logger that does not propagate
    yield LOGGER
    for handler in LOGGER.handlers:
        handler.close()
    LOGGER.handlers, LOGGER.propagate = before[0], before[2]
    LOGGER.setLevel(before[1])


@pytest.mark.parametrize('line', FORMAT['training_lines'], ids=lambda line: line['config']['name'])
def test_a_training_line_equals_basicsr(line):
    config = line['config']
    values = dict(config['vars'])
    epoch, iteration, lrs, time, data_time = (values.pop(k) for k in ('epoch', 'iter', 'lrs', 'time', 'data_time'))
    eta = remaining_time(config['elapsed'], iteration, config['start_iter'], config['total_iter'])
    assert training_line(config['name'], epoch, iteration, lrs, eta, time, data_time, values) == line['message']


def test_a_validation_block_equals_basicsr():
    block = FORMAT['validation_block']
    assert (
        validation_block(block['dataset'], block['metric_results'], block['best'][block['dataset']]) == block['message']
    )
    assert validation_block('V', {'psnr': 1.0}, {}) == 'Validation V\n\t # psnr: 1.0000\n'


def test_nested_options_are_printed_as_basicsr_prints_them():
    options = {'name': 'n', 'datasets': {'train': {'io_backend': {'type': 'disk'}, 'gt_size': 128}}, 'val': None}
    assert option_tree(options) == load_case('core', 'options_parse').spec['dict2str']


def test_the_main_process_logs_to_terminal_and_file_with_basicsrs_prefix(logger, tmp_path, capsys):
    start_logging(True)
    start_logging(True, tmp_path / 'run.log')
    logger.info('a %s', 'line')
    text = (tmp_path / 'run.log').read_text()
    assert capsys.readouterr().err == text
    date, time, level, message = text.strip().split(' ', 3)
    assert len(date.split('-')) == 3 and len(time.split(':')) == 3 and (level, message) == ('INFO:', 'a line')


def test_other_processes_report_errors_only_and_write_no_file(logger, tmp_path, capsys):
    start_logging(False, tmp_path / 'run.log')
    logger.warning('hidden')
    logger.error('shown')
    assert capsys.readouterr().err.count('\n') == 1 and not (tmp_path / 'run.log').exists()


def test_a_full_disk_is_said_once_and_the_terminal_goes_on(logger, tmp_path, capsys):
    start_logging(True)
    start_logging(True, tmp_path / 'run.log')

    class Full:
        def write(self, _: str) -> None:
            raise OSError(28, 'No space left on device')

        flush = close = lambda self: None

    logger.handlers[1].stream = Full()
    for number in range(3):
        logger.info('line %d', number)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(': ', 1)[1] for line in lines if 'INFO' in line] == ['line 0', 'line 1', 'line 2']
    warnings = [line for line in lines if 'WARNING' in line]
    assert len(lines) == 4 and len(warnings) == 1
    assert warnings[0].endswith('run.log: No space left on device; the run goes on without it')


def test_a_mistake_in_a_log_call_still_shows_its_traceback(logger, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging, 'raiseExceptions', True)
    start_logging(True, tmp_path / 'run.log')
    logger.info('%d', 'text')
    assert 'Traceback' in capsys.readouterr().err
