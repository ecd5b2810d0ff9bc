import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[1] / 'scripts'
sys.path.insert(0, str(SCRIPTS))
import make_procedural_images as maker  # noqa: E402 - scripts/ is no package
import procedural_drawings as drawings  # noqa: E402 - as above


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize('kind', drawings.KINDS)
def test_every_kind_draws_a_picture_with_detail_and_the_same_one_again(kind):
    image = drawings.render(3, 48, seed=1, kinds=[kind])
    assert image.shape == (48, 48, 3)
    assert image.dtype == np.uint8
    assert image.std() > 2
    assert np.abs(np.diff(image.astype(int), axis=1)).max() > 5
    assert np.array_equal(image, drawings.render(3, 48, seed=1, kinds=[kind]))


def test_index_and_seed_each_change_the_picture():
    first = drawings.render(0, 48, kinds=['lines'])
    assert not np.array_equal(first, drawings.render(1, 48, kinds=['lines']))
    assert not np.array_equal(first, drawings.render(0, 48, seed=1, kinds=['lines']))


def test_a_picture_does_not_depend_on_its_folders_other_pictures_or_on_the_number_of_workers(tmp_path):
    maker.make_images(tmp_path / 'one', 6, 32, seed=7, workers=1)
    maker.make_images(tmp_path / 'two', 9, 32, seed=7, workers=2)
    one, two = pictures(tmp_path / 'one'), pictures(tmp_path / 'two')
    assert list(one) == [f'procedural_{index:06d}.png' for index in range(6)]
    assert len(two) == 9
    assert equal(one, {name: two[name] for name in one})
    for index, image in enumerate(one.values()):
        assert np.array_equal(image, drawings.render(index, 32, 7))


def test_a_second_run_keeps_whole_files_and_makes_torn_missing_and_foreign_ones_again(tmp_path):
    maker.make_images(tmp_path, 4, 32, seed=2, kinds=['text', 'clouds'])
    good = pictures(tmp_path)
    kept, torn, missing, foreign = sorted(tmp_path.iterdir())
    stamp = kept.stat().st_mtime_ns
    torn.write_bytes(torn.read_bytes()[:-200])
    missing.unlink()
    Image.new('RGB', (32, 32)).save(foreign)
    maker.make_images(tmp_path, 4, 32, seed=2, kinds=['text', 'clouds'])
    assert equal(good, pictures(tmp_path))
    assert kept.stat().st_mtime_ns == stamp


def test_another_seed_in_the_same_folder_replaces_the_pictures(tmp_path):
    maker.make_images(tmp_path, 2, 32, seed=0, kinds=['clouds'])
    maker.make_images(tmp_path, 2, 32, seed=1, kinds=['clouds'])
    assert np.array_equal(pictures(tmp_path)['procedural_000001.png'], drawings.render(1, 32, 1, ['clouds']))


def test_an_edge_is_sampled_with_levels_between_the_two_colours():
    image = drawings.render(0, 64, seed=4, kinds=['leaves']).astype(int)
    steps = np.abs(np.diff(image.sum(2), axis=1))
    assert steps.max() > 60  # sharp edges are there, and
    rises = image.sum(2)
    between = (rises[:, 1:-1] - rises[:, :-2]) * (rises[:, 2:] - rises[:, 1:-1]) > 0
    strong = np.abs(rises[:, 2:] - rises[:, :-2]) > 100
    assert (between & strong).sum() > 0.5 * strong.sum()  # most pixels at them hold a share of both sides


@pytest.mark.parametrize(
    'options, word',
    [
        (['--kinds', 'leaves', 'unicorns'], 'unicorns'),
        (['--num', '0'], '--num'),
        (['--size', '8'], '--size'),
        (['--seed', '-1'], '--seed'),
        (['--workers', '0'], '--workers'),
        (['--sise', '64'], '--sise'),
        (['--num', 'many'], 'many'),
    ],
)
def test_bad_usage_is_one_line_that_names_the_option_and_makes_nothing(options, word, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_status:
        maker.main(['--out', str(tmp_path / 'out'), *options])
    message = capsys.readouterr().err
    assert exit_status.value.code == 2
    assert word in message
    assert message.count('\n') == 1
    assert not (tmp_path / 'out').exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / 'file').write_text('not a folder')
    with pytest.raises(SystemExit) as exit_status:
        maker.main(['--out', str(tmp_path / 'file' / 'out'), '--num', '1', '--size', '32'])
    assert exit_status.value.code == 1
    assert capsys.readouterr().err.count('\n') == 1
