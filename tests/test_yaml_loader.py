"""Option files as YAML: the published loader's values, readable faults, and nothing hostile gets through."""

import os

import pytest
from golden_case import load_case
from hypothesis import given
from hypothesis import strategies as st

from basicsr.utils.registry import OptionError
from basicsr.utils.yaml_loader import MAX_BYTES, apply_override, load_yaml, parse_value, parse_yaml

PUBLISHED = load_case('core', 'options_parse').spec
NUMBERS = {'-1': -1, '1e-4': 1e-4, '5e3': 5e3, '2e4': 2e4}  # text for the published loader, numbers for this one


def fault(text: str) -> str:
    with pytest.raises(OptionError) as caught:
        parse_yaml(text, 'file.yml')
    return str(caught.value)


def same(ours, published) -> bool:
    return type(ours) is type(published) and ours == published


@pytest.mark.parametrize('text', PUBLISHED['values'])
def test_a_command_line_value_is_what_basicsr_reads_or_the_number_that_it_looks_like(text):
    assert same(parse_value(text), NUMBERS.get(text, PUBLISHED['values'][text]['value']))


def test_a_file_is_what_basicsr_reads_with_exponents_as_numbers():
    tree, _ = parse_yaml(PUBLISHED['yaml']['text'])
    parsed = PUBLISHED['yaml']['parsed']
    assert tree.keys() == parsed.keys()
    for key, published in parsed.items():
        assert same(
            tree[key],
            NUMBERS.get(published['value'], published['value']) if published['type'] == 'str' else published['value'],
        ), key


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1e-4', 1e-4),
        ('-2E+3', -2e3),
        ('+.5e1', 5.0),
        ('1_0e2', 1e3),
        ('1e', '1e'),
        ('e5', 'e5'),
        ('1e5x', '1e5x'),
        ('!!float 5e3', 5e3),
        ('2020-01-01', '2020-01-01'),
        ('1.', 1.0),
    ],
)
def test_scalars_of_a_file(text, value):
    assert same(parse_yaml(f'key: {text}')[0]['key'], value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_python_float_is_read_back(value):
    assert parse_yaml(f'key: {value!r}')[0]['key'] == value
    assert parse_value(repr(value)) == value


def test_overrides_equal_basicsr():
    update = PUBLISHED['update']
    tree = update['base']
    for entry in update['entries']:
        apply_override(tree, entry)
    assert tree == update['result']


def test_an_override_splits_at_the_first_equals_sign_and_takes_dots():
    tree = {'path': None}
    assert apply_override(tree, 'path.pretrain_network_g=https://host/file?a=b') == ('path', 'pretrain_network_g')
    assert tree == {'path': {'pretrain_network_g': 'https://host/file?a=b'}}


@pytest.mark.parametrize('entry', ['scale', '=4', 'a::b=1', 'name:deep=1', 'train:x=[1,', 'lr=!!float abc'])
def test_a_faulty_override_is_repeated_in_the_message(entry):
    with pytest.raises(OptionError, match='command line'):
        apply_override({'name': 'x'}, entry)


def test_values_are_never_evaluated(tmp_path):
    canary = tmp_path / 'canary'
    for text in (
        f'[__import__("os").mkdir("{canary}")]',
        f'__import__("os").mkdir("{canary}")',
        f'[!!python/object/apply:os.mkdir ["{canary}"]]',
    ):
        try:
            value = parse_value(text)
        except OptionError:
            continue
        assert text.strip('[]') in value if isinstance(value, list) else value == text
    assert not canary.exists()


def test_the_line_of_every_key_is_known():
    _, lines = parse_yaml('a: 1\nb:\n  c: {d: 2}\n  e:\n    - f: 3\n')
    assert lines == {('a',): 1, ('b',): 2, ('b', 'c'): 3, ('b', 'c', 'd'): 3, ('b', 'e'): 4, ('b', 'e', '0', 'f'): 5}


def test_anchors_and_merge_keys():
    text = (
        'base: &base {lr: 1e-4, betas: [0.9, 0.99]}\nmore: &more {lr: 3, eps: 1}\n'
        'one:\n  lr: 2\n  <<: *base\ntwo:\n  <<: [*base, *more]\nthree: *base\n'
    )
    tree, lines = parse_yaml(text)
    assert tree['one'] == {'lr': 2, 'betas': [0.9, 0.99]}
    assert tree['two'] == {'lr': 1e-4, 'betas': [0.9, 0.99], 'eps': 1}
    assert tree['three'] == tree['base'] and tree['three'] is not tree['base']
    assert lines['one', 'lr'] == 4 and lines['one', 'betas'] == 1


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: 1\nb: 2\na: 3\n', 'file.yml:3: a: the key is already given in line 1'),
        ('a:\n  b: 1\n  b: 1\n', 'file.yml:3: a:b: the key is already given in line 2'),
        ('a: 1\n b: 2\n', 'file.yml:2: mapping values are not allowed here'),
        ('a: [1, 2\n', "file.yml:2: expected ',' or ']'"),
        ('a:\n\tb: 1\n', "file.yml:2: found character '\\t' that cannot start any token"),
        ('a: *missing\n', "file.yml:1: found undefined alias 'missing'"),
        ('1: x\n', "file.yml:1: an option name must be text, got '1'; quote it"),
        ('on: x\n', "file.yml:1: an option name must be text, got 'on'; quote it"),
        ('? [a]\n: x\n', 'file.yml:1: an option name must be text, got a sequence'),
        ('a: !!int abc\n', "file.yml:1: 'abc' is no value of the type int"),
        ('a: !!bool maybe\n', "file.yml:1: 'maybe' is no value of the type bool"),
        (f'a: {"9" * 5000}\n', 'is no value of the type int'),
        ('a: 1\n---\nb: 2\n', 'file.yml:2: but found another document'),
        ('- a\n- b\n', 'file.yml: an option file is a list of `key: value` lines, this one is a list'),
        ('just text\n', 'file.yml: an option file is a list of `key: value` lines, this one is a str'),
        ('a: "\x00"\n', 'file.yml: unacceptable character #x0000'),
        ('a: {<<: 3}\n', 'file.yml:1: `<<` merges mappings only'),
    ],
)
def test_a_fault_says_where_it_is(text, message):
    assert message in fault(text)


@pytest.mark.parametrize(
    'tag',
    [
        '!!python/object/apply:os.mkdir',
        '!!python/name:os.system',
        '!!python/object/new:os.mkdir',
        '!!binary',
        '!!set',
        '!!omap',
        '!!pairs',
        '!!timestamp',
        '!unknown',
        '!!python/tuple',
    ],
)
@pytest.mark.parametrize('value', ['["{canary}"]', '{{x: "{canary}"}}', '"{canary}"'])
def test_a_tag_is_refused_with_its_line_and_nothing_runs(tag, value, tmp_path):
    canary = tmp_path / 'canary'
    text = f'a: 1\nb: {tag} {value.format(canary=canary)}\n'
    assert 'file.yml:2: ' in fault(text) and 'is not allowed in an option file' in fault(text)
    assert 'file.yml:2: ' in fault(f'a: 1\n? {tag} {value.format(canary=canary)}\n: 1\n')
    assert not canary.exists()


def bomb(levels: int, link: str, first: str) -> str:
    lines = [f'a0: &a0 {first}']
    return '\n'.join(lines + [f'a{n}: &a{n} {link.format(", ".join([f"*a{n - 1}"] * 9))}' for n in range(1, levels)])


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    'text',
    [
        bomb(12, '[{}]', '[x, x]'),
        bomb(12, '{{<<: [{}]}}', '{}'),
        bomb(12, '{{<<: [{}]}}', '{x: 1}'),
        'a: &a [*a]',
        'a: &a {b: *a}',
        'a: &a {<<: *a}',
        '[' * 200_000,
        '{' * 200_000,
        '- ' * 100_000,
        '? ' * 100_000,
        f'a: [{"1," * 100_000}]',
        '\n'.join(f'k{n}: 1' for n in range(30_000)),
    ],
    ids=[
        'lists',
        'empty merges',
        'merges',
        'own list',
        'own map',
        'own merge',
        'brackets',
        'braces',
        'dashes',
        'questions',
        'long list',
        'long map',
    ],
)
def test_a_bomb_is_refused_before_it_grows(text):
    message = fault(text)
    assert any(word in message for word in ('too many', 'too deeply')) and '\n' not in message


@pytest.mark.timeout(20)
def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / 'huge.yml'
    with path.open('wb') as file:
        file.truncate(50_000_000)
    with pytest.raises(OptionError, match=f'more than {MAX_BYTES >> 10} KiB is not read'):
        load_yaml(path)


def test_files_that_are_no_text_are_named(tmp_path):
    path = tmp_path / 'x.yml'
    with pytest.raises(OptionError, match='no such option file'):
        load_yaml(path)
    with pytest.raises(OptionError, match='no such option file'):
        load_yaml(tmp_path)
    path.write_bytes(b'a: \xff\xfe\n')
    with pytest.raises(OptionError, match='not a text file in UTF-8'):
        load_yaml(path)
    path.write_bytes(b'a: 1\n')
    path.chmod(0)
    if not os.access(path, os.R_OK):
        with pytest.raises(OptionError, match='cannot be read'):
            load_yaml(path)


def test_windows_files_with_byte_order_mark_and_empty_files_are_read(tmp_path):
    path = tmp_path / 'x.yml'
    path.write_bytes(b'\xef\xbb\xbfname: x\r\nscale: 2\r\n')
    assert load_yaml(path) == ({'name': 'x', 'scale': 2}, {('name',): 1, ('scale',): 2})
    path.write_bytes(b'# nothing\n')
    assert load_yaml(path) == ({}, {})


@given(st.text(st.sampled_from('ab:&*!-?[]{},<|>#%@`\'" \n\t0.e'), max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        tree, _ = parse_yaml(text, 'file.yml')
    except OptionError as error:
        assert str(error).startswith('file.yml') and '\n' not in str(error)
    else:
        assert isinstance(tree, dict)
