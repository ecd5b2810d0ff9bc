"""Registries: names resolve without importing the rest, mistakes are answered with what would be right."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from basicsr.utils import registry
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METRIC_REGISTRY,
    MODEL_REGISTRY,
    SCHEDULER_REGISTRY,
    OptionError,
    Registry,
    check_arguments,
    reject_unknown,
    suggestion,
)

ALL = [ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY, SCHEDULER_REGISTRY]


def function(
    a: int,
    b: tuple[float, float] = (1, 2),
    c: list[int] | None = None,
    d: Literal['x', 'y'] = 'x',
    e: bool = False,
    f: str | float = '',
    g: dict | None = None,
    h: float | torch.Tensor = 1.0,
):
    return a, b, c, d, e, f, g, h


@pytest.mark.parametrize('one', ALL, ids=lambda one: one.kind)
def test_every_registered_name_resolves_to_what_bears_it(one):
    assert one.names() == sorted(one.names())
    in_tree = Registry(one.kind, one.folder).names()
    assert in_tree and set(in_tree) <= set(one.names())
    for name in in_tree:
        entry = one.get(name)
        assert callable(entry) and entry.__module__.startswith(f'basicsr.{one.folder}')


def test_asking_for_names_imports_nothing_and_one_network_not_the_others():
    code = (
        'import sys\nfrom basicsr.utils.registry import ARCH_REGISTRY as a\na.names()\n'
        'print("torch" in sys.modules)\na.get("ATD")\n'
        'print(sorted(m for m in sys.modules if m.startswith("basicsr.archs.") and m.endswith("_arch")))'
    )
    output = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    ).stdout.splitlines()
    assert output == ['False', "['basicsr.archs.atd_arch']"]


def test_a_typo_in_a_name_lists_the_nearest():
    with pytest.raises(OptionError, match=r"'ATDD' is not a known arch \(see basicsr/archs/\); did you mean 'ATD'\?"):
        ARCH_REGISTRY.get('ATDD')
    with pytest.raises(OptionError, match=r'known: .*SRModel'):
        MODEL_REGISTRY.get('Nothing like it')


def test_suggestions():
    assert suggestion('lrr', ['lr', 'eps']) == "did you mean 'lr'?"
    assert suggestion('zzz', ['lr', 'eps']) == 'known: eps, lr'
    assert suggestion('zzz', []) == 'known: none'
    with pytest.raises(OptionError) as caught:
        reject_unknown(['lr', 'epss'], ['lr', 'eps'], 'option of X')
    assert str(caught.value) == "'epss' is not a known option of X; did you mean 'eps'?" and caught.value.key == (
        'epss',
    )


def test_code_outside_the_tree_registers_and_a_second_definition_is_refused():
    one = Registry('thing', 'nowhere')

    @one.register()
    class Mine:
        def __init__(self, width: int = 3):
            self.width = width

    assert one.register()(Mine) is Mine, 'the same definition again is no fault'
    one.register('Other')(Mine)
    assert one.names() == ['Mine', 'Other']
    assert one.build({'type': 'Other', 'width': 5}).width == 5

    space = {}
    exec('class Mine: pass', space)
    for other in (space['Mine'], function):
        with pytest.raises(ValueError, match="thing 'Mine' is registered twice"):
            one.register('Mine')(other)


def test_values_that_a_constructor_refuses_are_faults_of_the_options():
    with pytest.raises(OptionError, match=r'^depths has 1 blocks but num_heads has 2 \(ATD\)$'):
        ARCH_REGISTRY.build({'type': 'ATD', 'depths': [2], 'num_heads': [2, 2]})


def test_given_arguments_are_no_options():
    one = Registry('thing', 'nowhere')
    one.register('f')(function)
    assert one.build({'type': 'f', 'd': 'y'}, a=7)[3] == 'y'
    with pytest.raises(OptionError, match="'a' is not a known option"):
        one.build({'type': 'f', 'a': 1}, a=7)
    with pytest.raises(OptionError, match="option 'a' is missing"):
        one.build({'type': 'f'})


@pytest.mark.parametrize('section', [None, [], 3, {}, {'type': None}, {'type': 3}, {'type': ['ATD']}])
def test_a_section_without_a_type_lists_the_types(section):
    with pytest.raises(OptionError, match=r"option 'type' is missing: the name of the arch; known: ATD"):
        ARCH_REGISTRY.check(section)


@pytest.mark.parametrize(
    'options',
    [
        {'a': 1},
        {'a': 1, 'b': [1, 2.5]},
        {'a': 1, 'c': [1, 2]},
        {'a': 1, 'c': None},
        {'a': 1, 'd': 'y'},
        {'a': 1, 'e': True},
        {'a': 1, 'f': 'x'},
        {'a': 1, 'f': 2},
        {'a': 1, 'g': {'x': [1]}},
        {'a': 1, 'h': 3},
    ],
)
def test_right_values_are_accepted(options):
    check_arguments(function, options)


@pytest.mark.parametrize(
    ('options', 'key', 'message'),
    [
        ({}, 'a', "option 'a' is missing"),
        ({'a': 1.0}, 'a', 'should be a whole number, got 1.0'),
        ({'a': '1'}, 'a', "should be a whole number, got '1'"),
        ({'a': True}, 'a', 'should be a whole number, got True'),
        ({'a': None}, 'a', 'should be a whole number, got None'),
        ({'a': 1, 'b': [1]}, 'b', 'the list has too many or too few values'),
        ({'a': 1, 'b': [1, 2, 3]}, 'b', 'the list has too many or too few values'),
        ({'a': 1, 'b': 'ab'}, 'b', "should be a list, got 'ab'"),
        ({'a': 1, 'b': [1, 'x']}, 'b', "should be a number, got 'x'"),
        ({'a': 1, 'c': [1.5]}, 'c', 'should be a whole number, got 1.5'),
        ({'a': 1, 'c': {}}, 'c', 'should be a list, got {}'),
        ({'a': 1, 'd': 'z'}, 'd', "should be 'x' or 'y', got 'z'"),
        ({'a': 1, 'e': 'yes'}, 'e', "should be true or false, got 'yes'"),
        ({'a': 1, 'e': 0}, 'e', 'should be true or false, got 0'),
        ({'a': 1, 'f': [1]}, 'f', 'should be text or a number, got [1]'),
        ({'a': 1, 'g': [1]}, 'g', 'should be a section of `key: value` lines, got [1]'),
        ({'a': 1, 'h': 'x'}, 'h', "should be a number, got 'x'"),
        ({'a': 1, 'c': 'x' * 500}, 'c', 'xxx...'),
        ({'a': 1, 'bb': 1}, 'bb', "'bb' is not a known option of function"),
    ],
)
def test_wrong_values_are_answered_in_plain_words(options, key, message):
    with pytest.raises(OptionError) as caught:
        check_arguments(function, options)
    text = str(caught.value)
    assert message in text and caught.value.key == (key,) and len(text) < 200
    assert not any(word in text.lower() for word in ('pydantic', 'input', 'validation', 'array'))


def test_the_message_names_the_component():
    with pytest.raises(OptionError, match=r'\(function\)$'):
        check_arguments(function, {})
    with pytest.raises(OptionError, match=r'\(ATD\)$'):
        ARCH_REGISTRY.check({'type': 'ATD', 'upscale': 'four'})


def test_the_tree_is_read_without_running_it(tmp_path, monkeypatch):
    (tmp_path / 'rooms').mkdir()
    (tmp_path / 'rooms/one.py').write_text(
        'raise RuntimeError("run")\n@ROOM_REGISTRY.register()\nclass A: pass\n'
        '@ROOM_REGISTRY.register("b name")\ndef b(): pass\n@other.register()\nclass C: pass\nclass D: pass\n'
    )
    monkeypatch.setattr(registry, 'ROOT', tmp_path)
    assert Registry('room', 'rooms').names() == ['A', 'b name']
