"""The web demo without its page: models and controls on offer, what they override, restoring, stopping, files, errors.

tests/test_demo_browser.py looks at the page itself.
"""

import dataclasses
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
import demo
from demo_controls import (
    CONTROLS,
    LONGEST_PROMPT,
    choices_of,
    is_here,
    offer_of,
    offers,
    options_of,
    overrides_of,
    restoring_of,
    setting_of,
)
from demo_work import Stopped, Upload, Visits, Workshop, message, stoppable, warnings_kept

from basicsr.models.restorer import Restorer
from basicsr.models.sr3_model import SR3Model
from basicsr.restoring import load_model
from basicsr.utils.image import read_image, write_image
from basicsr.utils.image_codec import decode
from basicsr.utils.messages import LOGGER
from basicsr.utils.picture import Picture
from basicsr.utils.registry import UserError
from basicsr.utils.resize import imresize
from basicsr.utils.zoo import find_model, known_models

ROOT = Path(__file__).resolve().parents[1]
ATD, SR3, ITER, S3DIFF = 'ATD-demo_x2', 'SR3-demo_x4', 'ITER-demo_x4', 'S3Diff_x4'
CHANGED = {
    SR3: {'steps': 3, 'sampler': 'ddim', 'seed': 7},
    ITER: {'T': 2, 'threshold': 0.25, 'sampling': 'multinomial', 'seed': 8},
    S3DIFF: {
        'positive': 'a sharp photograph: really',
        'negative': 'blur',
        'guidance': 1.5,
        'color_fix': 'adain',
        'seed': 9,
    },
}


def offer(name: str):
    return offer_of(find_model(name))


def said_in(name: str) -> dict:
    """The section `model` of a model's option file, read by another reader."""
    return yaml.safe_load(find_model(name).option_file.read_text(encoding='utf-8')).get('model', {})


@pytest.fixture
def image(tmp_path):
    """A small picture."""
    path = tmp_path / 'upload' / 'small.png'
    write_image(path, np.random.default_rng(1).integers(0, 256, (9, 12, 3), np.uint8))
    return Upload(path, 'my small.png')


@pytest.fixture(scope='module')
def workshop():
    return Workshop({ATD: offer(ATD)}, torch.device('cpu'), 1000)


def restored(workshop, image, folder, values=None, stop=None, progress=None):
    folder.mkdir(exist_ok=True)
    return workshop.restore(ATD, values or {}, image, folder, stop or threading.Event(), progress)


def test_all_bundled_models_are_offered_and_no_model_whose_files_are_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path))
    found = offers()
    bundled = [name for name, one in known_models().items() if one.state() == 'bundled']
    assert list(found)[: len(bundled)] == bundled
    assert not {'ITER_x4', 'S3Diff_x4'} & found.keys()


def test_a_published_model_is_offered_once_its_file_was_fetched(tmp_path):
    known = dataclasses.replace(find_model('003_ATD_SRx4_finetune'), weights=str(tmp_path / 'atd.pth'))
    assert not is_here(known)
    (tmp_path / 'atd.pth').touch()
    assert is_here(known)


@pytest.mark.parametrize(
    ('name', 'controls'),
    [
        (ATD, ['color_fix', 'tile']),
        ('D2C-demo_x4', ['color_fix', 'tile']),
        (SR3, ['steps', 'sampler', 'color_fix', 'seed', 'tile']),
        ('SR3_16_128_x8', ['steps', 'sampler', 'color_fix', 'seed', 'tile']),
        (ITER, ['T', 'threshold', 'sampling', 'color_fix', 'seed', 'tile']),
        ('ITER_swinvqgan_x1', ['color_fix', 'tile']),
        (S3DIFF, ['positive', 'negative', 'guidance', 'color_fix', 'seed', 'tile']),
    ],
)
def test_a_model_has_the_controls_that_change_what_it_does(name, controls):
    assert list(offer(name).settings) == controls


def test_controls_stand_at_what_the_option_file_says():
    values = {name: {key: one.value for key, one in offer(name).settings.items()} for name in (SR3, ITER, S3DIFF)}
    sampler, refinement = said_in(SR3)['sampler'], said_in(ITER)['refinement']
    assert (values[SR3]['steps'], values[SR3]['sampler']) == (sampler['steps'], sampler['type'])
    for name in ('T', 'threshold', 'sampling'):
        assert values[ITER][name] == refinement[name]
    about = said_in(S3DIFF)
    assert values[S3DIFF]['positive'] == about['positive_prompt']
    assert values[S3DIFF]['guidance'] == about['guidance_scale']
    assert values[S3DIFF]['color_fix'] == about['color_fix']


def test_a_sampler_without_steps_takes_all_of_the_chain_and_no_more_are_offered():
    opt = options_of(find_model(SR3))
    section = {key: value for key, value in opt.model.items() if key != 'sampler'}
    setting = setting_of(CONTROLS['steps'], SR3Model, opt.model_copy(update={'model': section}))
    assert setting.value == setting.most == said_in(SR3)['schedule']['n_timestep']


def test_choices_are_those_that_the_constructors_take():
    assert choices_of(CONTROLS['sampler']) == ['ancestral', 'ddim', 'dpmpp_2m']
    assert sorted(choices_of(CONTROLS['sampling'])) == ['greedy', 'multinomial']
    assert sorted(choices_of(CONTROLS['color_fix'])) == ['adain', 'none', 'wavelet']


@pytest.mark.parametrize('name', [ATD, SR3, ITER, S3DIFF])
def test_values_that_were_left_alone_override_nothing(name):
    one = offer(name)
    assert overrides_of(one, {key: setting.value for key, setting in one.settings.items()}) == []
    assert overrides_of(one, {}) == []
    others = dict.fromkeys(CONTROLS.keys() - one.settings.keys(), 'ddim')
    assert overrides_of(one, others) == [], "another model's controls have no say"


def test_changed_values_reach_the_model():
    sr3 = load_model(SR3, None, None, True, overrides_of(offer(SR3), CHANGED[SR3]))
    assert (sr3.sampler.steps, sr3.sampler.type, sr3.seed) == (3, 'ddim', 7)
    assert sr3.sampler.spacing == 'trailing', 'the rest of the section stays'
    iteration = load_model(ITER, None, None, True, overrides_of(offer(ITER), CHANGED[ITER]))
    refinement = iteration.refinement
    assert (refinement.T, refinement.threshold, refinement.sampling) == (2, 0.25, 'multinomial')
    assert iteration.seed == 8


def test_prompts_guidance_and_colour_fix_are_options_of_s3diff():
    from basicsr.utils.options import load_options

    known = find_model(S3DIFF)
    overrides = overrides_of(offer(S3DIFF), CHANGED[S3DIFF])
    model = load_options(known.option_file, is_train=False, overrides=overrides, check_files=False).model
    assert model['positive_prompt'] == 'a sharp photograph: really'
    assert (model['negative_prompt'], model['guidance_scale'], model['color_fix']) == ('blur', 1.5, 'adain')


@pytest.mark.parametrize(
    ('name', 'values', 'words'),
    [
        (SR3, {'steps': 0}, 'Steps should be a whole number from 1 to 2000, got 0'),
        (SR3, {'steps': 2001}, 'Steps should be'),
        (SR3, {'steps': 2.5}, 'Steps should be'),
        (SR3, {'steps': 'many'}, 'Steps should be'),
        (SR3, {'steps': True}, 'Steps should be'),
        (SR3, {'seed': -1}, 'Seed should be a whole number from 0 to 2147483647, got -1'),
        (SR3, {'sampler': 'euler'}, "Sampler should be one of ancestral, ddim, dpmpp_2m, got 'euler'"),
        (ITER, {'threshold': float('nan')}, 'Threshold should be a number from 0 to 1, got nan'),
        (S3DIFF, {'positive': 'x' * (LONGEST_PROMPT + 1)}, 'Prompt should have at most 500 letters, got 501'),
        (S3DIFF, {'negative': '[1, 2]'}, "Negative prompt should be words, got '[1, 2]'"),
        (S3DIFF, {'negative': 'none'}, 'Negative prompt should be words'),
    ],
)
def test_a_value_that_a_control_cannot_have_is_refused_in_words(name, values, words):
    with pytest.raises(UserError) as error:
        overrides_of(offer(name), values)
    assert str(error.value).startswith(words)


def test_a_tile_is_none_or_large_enough():
    assert restoring_of(offer(ATD), {'tile': 64.0})['tile'] == 64
    assert restoring_of(offer(ATD), {'tile': 0})['tile'] == 0
    with pytest.raises(UserError, match=r'Tile should be 0 \(the whole image\) or at least 32, got 8'):
        restoring_of(offer(ATD), {'tile': 8})


def test_a_colour_fix_is_the_models_own_or_that_of_restorer():
    values = {'color_fix': 'adain', 'tile': 64}
    assert (
        restoring_of(offer(ATD), values) == {'color_fix': 'adain', 'tile': 64}
        and overrides_of(offer(ATD), values) == []
    )
    own = dict(values, color_fix='none')
    assert restoring_of(offer(S3DIFF), own) == {'tile': 64} and overrides_of(offer(S3DIFF), own) == [
        'model:color_fix=none'
    ]
    with pytest.raises(UserError, match='Colour fix should be one of none, wavelet, adain'):
        restoring_of(offer(ATD), {'color_fix': 'paint'})


def test_the_result_is_what_restorer_gives_and_lies_beside_the_enlarged_input(workshop, image, tmp_path):
    told = []
    result = restored(workshop, image, tmp_path / 'r', progress=lambda done, total: told.append((done, total)))
    lq = Picture.read(image.path).lq
    expected = Restorer(load_model(ATD, None, None, True))(lq)
    for path, tensor in ((result.after, expected), (result.before, imresize(lq, 2))):
        levels = (tensor.clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255).round()
        np.testing.assert_array_equal(read_image(path) * 255, levels)
    assert result.after.name == 'my small_x2.png'
    assert (result.size, told) == ((24, 18), [(1, 1)])
    assert result.summary.startswith('12 \u00d7 9 \u2192 24 \u00d7 18 pixels by ATD-demo_x2 in ')


def test_alpha_and_sixteen_bits_are_kept(workshop, tmp_path):
    source = np.random.default_rng(2).integers(0, 2**16, (8, 8, 4), np.uint16)
    write_image(tmp_path / 'deep.png', source)
    result = restored(workshop, Upload(tmp_path / 'deep.png', 'deep.png'), tmp_path / 'r')
    pixels = decode(result.after.read_bytes(), 'after')
    assert (pixels.array.shape, pixels.array.dtype) == ((16, 16, 4), np.uint16)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', 'my.png is empty'),
        (b'not an image', 'my.png is not a readable image'),
        (b'\x89PNG\r\n\x1a\n', 'cannot read image my.png|my.png is not a readable image'),
    ],
)
def test_what_is_no_image_is_said_by_its_own_name(workshop, tmp_path, content, words):
    (tmp_path / 'my.png').write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        restored(workshop, Upload(tmp_path / 'my.png', 'my.png'), tmp_path / 'r')
    assert str(tmp_path) not in str(error.value)


def test_a_truncated_image_is_refused_when_it_is_decoded(workshop, image, tmp_path):
    cut = image.path.read_bytes()
    image.path.write_bytes(cut[: len(cut) // 2])
    with pytest.raises(UserError, match=r'my small\.png') as error:
        restored(workshop, image, tmp_path / 'r')
    assert str(image.path) not in str(error.value)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(workshop, tmp_path):
    write_image(tmp_path / 'large.png', np.zeros((25, 41, 3), np.uint8))
    with pytest.raises(
        UserError, match=r'large\.png has 41 \u00d7 25 pixels, 1,025 in all: this demo takes at most 1,000'
    ):
        workshop.examine(Upload(tmp_path / 'large.png', 'large.png'))


def test_only_models_on_offer_are_taken(workshop, image, tmp_path):
    with pytest.raises(UserError, match='is not a model of this demo'):
        workshop.restore('../secret', {}, image, tmp_path, threading.Event())


def test_work_that_was_cancelled_stops_between_two_layers(workshop, image, tmp_path):
    class SoonSet(threading.Event):
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 20

    stop = SoonSet()
    with pytest.raises(Stopped):
        restored(workshop, image, tmp_path / 'r', stop=stop)
    assert stop.asked == 21
    assert list((tmp_path / 'r').iterdir()) == []
    assert restored(workshop, image, tmp_path / 'r').after.is_file(), 'the network works on for others'


def test_networks_are_watched_only_while_they_can_be_stopped():
    net, stop = torch.nn.Sequential(torch.nn.Identity()), threading.Event()
    with stoppable([net], stop):
        stop.set()
        with pytest.raises(Stopped):
            net(torch.zeros(1))
    assert net(torch.ones(1)) == 1


def test_a_model_stays_loaded_until_other_options_are_asked_for(workshop):
    first = workshop._model(ATD, [])
    assert workshop._model(ATD, []) is first
    assert workshop._model(ATD, ['val:save_img=false']) is not first


def test_what_memory_made_smaller_is_told_to_whoever_waits():
    with warnings_kept() as kept:
        LOGGER.warning('out of memory: going on with tiles of %d', 64)
        thread = threading.Thread(target=LOGGER.warning, args=['of another thread'])
        thread.start()
        thread.join()
    LOGGER.warning('later')
    assert kept == ['out of memory: going on with tiles of 64']


def test_a_page_that_is_closed_leaves_nothing_and_stops_its_work(tmp_path):
    visits, upload = Visits(tmp_path), tmp_path / 'sent.png'
    upload.touch()
    visits.uploaded('a', upload)
    visits.uploaded('b', upload)
    stop, folder = visits.begin('a'), visits.result_folder('a')
    (folder / 'x.png').touch()
    visits.end('a')
    assert stop.is_set() and not folder.exists()
    assert upload.exists(), 'another page has sent the same'
    visits.close()
    assert list(tmp_path.iterdir()) == []
    visits.end('never seen')


def test_a_new_result_takes_the_place_of_the_old_one_whatever_a_page_calls_itself(tmp_path):
    visits = Visits(tmp_path)
    first, stop = visits.result_folder('../../etc'), visits.begin('../../etc')
    second, again = visits.result_folder('../../etc'), visits.begin('../../etc')
    assert not first.exists() and second.parent == tmp_path
    assert stop.is_set() and not again.is_set()
    visits.cancel('../../etc')
    assert again.is_set()


def test_old_files_go_and_examples_stay(tmp_path):
    visits = Visits(tmp_path)
    old, example = visits.result_folder('a') / 'x.png', tmp_path / 'examples' / 'e.png'
    example.parent.mkdir()
    for path in (old, example):
        path.touch()
        os.utime(path, (0, 0))
    (tmp_path / 'new.png').touch()
    visits.sweep(60)
    assert {path.name for path in tmp_path.rglob('*.png')} == {'e.png', 'new.png'}


def test_names_of_files_cannot_become_markup_or_paths():
    assert '<img' not in message('<img src=x onerror=alert(1)> is no image', 'error')
    assert Upload(Path('x'), '../../etc/<b>passwd.png').stem == '_b_passwd'
    assert Upload(Path('x'), '.png').stem == '_png'
    assert len(Upload(Path('x'), 'n' * 300 + '.png').stem) == 80


@pytest.mark.parametrize(
    ('host', 'local'),
    [
        ('127.0.0.1', True),
        ('::1', True),
        ('localhost', True),
        ('0.0.0.0', False),
        ('192.168.1.2', False),
        ('box', False),
    ],
)
def test_a_warning_is_due_where_others_can_reach_the_page(host, local):
    assert demo.is_local(host) == local


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--model', 'ITER_x4'], 'its files are not on this machine; here are ATD-demo_x2, '),
        (['--model', 'ATD-dmo_x2'], "did you mean 'ATD-demo_x2'"),
        (['--device', 'abacus'], '--device abacus: '),
        (['--port', '0'], 'should be a whole number of at least 1'),
        (['--max-mb', 'much'], 'should be a whole number of at least 1'),
    ],
)
def test_a_command_line_that_cannot_be_served_is_one_line(arguments, words, capsys, monkeypatch, tmp_path):
    pytest.importorskip('gradio', reason="gradio is missing: pip install -e '.[demo]'")
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        demo.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count('\n') == 1 and words in error


def test_without_gradio_it_says_what_to_install(capsys, monkeypatch):
    for name in [one for one in sys.modules if one.partition('.')[0] == 'gradio']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, 'meta_path', [Without('gradio'), *sys.meta_path])
    with pytest.raises(SystemExit):
        demo.main([])
    assert "pip install -e '.[demo]'" in capsys.readouterr().err


class Without:
    """An importer for which a package is not installed."""

    def __init__(self, name: str):
        self.name = name

    def find_spec(self, name: str, *_):
        if name == self.name:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
