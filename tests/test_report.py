"""scripts/report.py: its numbers are right, its page stands alone, and nothing that it shows can become markup."""

import base64
import hashlib
import io
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_files import Page, made, make_results, make_training, noise
from scipy.stats import bootstrap

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
import report
from reporting_curves import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, binned, is_logarithmic, plot, read_training
from reporting_images import Pictures
from reporting_runs import read_runs

from basicsr.utils.image import write_image

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = np.random.default_rng(5)
PSNR = {f'i{n}': (28 + 2 * NUMBERS.normal(), 0.6 + 0.5 * NUMBERS.normal()) for n in range(12)}  # a, b - a


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs():
    """Two models, b better in psnr and (lower) lpips on most images; results folders."""
    a = {k: {'psnr': v, 'lpips': 0.3 + v / 1000} for k, (v, _) in PSNR.items()}
    b = {k: {'psnr': v + gap, 'lpips': 0.3 + v / 1000 - gap / 10} for k, (v, gap) in PSNR.items()}
    return make_results(Path('results/a'), {'set': a}), make_results(Path('results/b'), {'set': b})


def refused(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        report.main([*map(str, arguments), '-o', 'report.html'])
    assert stopped.value.code in (1, 2)
    text = capsys.readouterr().err
    assert text.count('\n') == 1 and 'Traceback' not in text and not Path('report.html').exists()
    return text


def floats(cell: str) -> list[float]:
    return [float(text) for text in re.findall(r'[-+]?\d+\.\d+', cell.replace('\u2212', '-'))]


def scipy_interval(values: list[float]) -> tuple[float, float]:
    found = bootstrap((values,), np.mean, n_resamples=20_000, method='percentile', rng=np.random.default_rng(1))
    return found.confidence_interval.low, found.confidence_interval.high


# ---- numbers


def test_means_and_intervals_are_those_of_scipys_bootstrap(runs):
    _, row_a, row_b = made(*runs).tables['set: means']
    for row, values in ((row_a, [v for v, _ in PSNR.values()]), (row_b, [v + gap for v, gap in PSNR.values()])):
        mean, low, high = floats(row[2])
        assert row[1] == '12' and mean == pytest.approx(sum(values) / len(values), abs=0.006)
        assert (low, high) == pytest.approx(scipy_interval(values), abs=0.05)


def test_a_difference_is_taken_image_by_image_with_an_interval_of_its_own(runs):
    _, row = made(*runs).tables['set: paired differences']
    gaps = [gap for _, gap in PSNR.values()]
    mean, low, high = floats(row[1])
    assert row[0] == 'b \u2212 a' and mean == pytest.approx(np.mean(gaps), abs=0.006)
    assert (low, high) == pytest.approx(scipy_interval(gaps), abs=0.02)
    assert low > 0 and row[1].endswith(f'better, better on {sum(gap > 0 for gap in gaps)} of 12')


def test_a_lower_lpips_is_the_better_one(runs):
    (head, row), page = made(*runs).tables['set: paired differences'], made(*runs, '--metric', 'lpips')
    assert [cell[-1] for cell in head[1:]] == ['↑', '↓']
    assert floats(row[2])[0] < 0 and 'better, better on' in row[2]
    smallest = min(PSNR, key=lambda key: PSNR[key][0])
    assert page.lists['a: best'][0].split()[0] == smallest


def test_equal_models_do_not_differ():
    scores = {'set': {'x': {'psnr': math.inf}, 'y': {'psnr': 30.0}}}
    runs = make_results(Path('a'), scores), make_results(Path('b'), scores)
    assert made(*runs).tables['set: paired differences'][1][1] == '0.00 [0.00, 0.00]undecided, better on 0 of 2'


def test_best_and_worst_images_and_largest_gains_come_in_order(runs):
    lists = made(*runs, '--extremes', 2).lists
    order = sorted(PSNR, key=lambda key: PSNR[key][0])
    gains = sorted(PSNR, key=lambda key: PSNR[key][1])
    named = {title: [item.split()[0] for item in items] for title, items in lists.items()}
    assert named['a: best'] == order[:-3:-1] and named['a: worst'] == order[:2]
    assert named['b \u2212 a: largest gains'] == gains[:-3:-1]
    assert named['b \u2212 a: largest losses'] == [key for key in gains[:2] if PSNR[key][1] < 0]


def test_every_image_is_in_a_table_with_the_scores_of_all_models(runs):
    head, *rows = made(*runs).tables['set: every image']
    assert len(head) == 5 and [row[0] for row in rows] == list(PSNR)
    assert all(float(row[1]) == pytest.approx(PSNR[row[0]][0], abs=0.006) for row in rows)


def test_models_that_were_not_tested_alike_are_pointed_out():
    one, two = {'x': {'psnr': 30.0}}, {'x': {'psnr': 31.0}, 'y': {'psnr': 25.0}}
    a = make_results(Path('a'), {'set': one})
    b = make_results(Path('b'), {'set': two, 'other': one}, scale=2)
    page = made(a, b)
    assert 'The models enlarge by different factors (a: 4, b: 2).' in page.text
    assert 'The models were tested on different images (a: 1, b: 2; 1 in common).' in page.text
    assert 'Not tested on this set: a.' in page.text
    assert page.tables['set: paired differences'][1][1] == '+1.00undecided, better on 1 of 1'


def test_images_of_different_scales_are_matched_by_the_name_of_their_gt():
    a = make_results(Path('a'), {'set': {'baby': {'psnr': 30.0}}}, template='{}x4')
    b = make_results(Path('b'), {'set': {'baby': {'psnr': 36.0}}}, template='{}x2', scale=2)
    assert made(a, b).tables['set: paired differences'][1][1].startswith('+6.00')


# ---- images


def pictures(page: Page) -> dict[str, np.ndarray]:
    """The panels, by label."""
    found = {}
    for tag, attributes in page.tags:
        if tag == 'img' and attributes['alt']:
            data = base64.b64decode(attributes['src'].partition(',')[2])
            found[attributes['alt']] = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
    return found


def test_images_are_embedded_without_loss_beside_gt_and_lq_enlarged():
    a = make_results(Path('a'), {'set': {'x': {'psnr': 30.0}}}, {'x': noise(1)})
    b = make_results(Path('b'), {'set': {'x': {'psnr': 31.0}}}, {'x': noise(2)})
    write_image('gt/x.png', noise(3, 26, 33))  # no multiple of the scale: what is beyond lq's reach is not compared
    write_image('lq/x.png', noise(4, 6, 8))
    shown = pictures(made(a, b))
    assert list(shown) == ['lq, bicubic', 'a', 'b', 'gt']
    assert (shown['a'] == noise(1)).all() and (shown['b'] == noise(2)).all()
    assert (shown['gt'] == noise(3, 26, 33)[:24, :32]).all()
    channels = [Image.fromarray(noise(4, 6, 8)[..., c].astype(np.float32)) for c in range(3)]
    enlarged = [np.asarray(c.resize((32, 24), Image.Resampling.BICUBIC)).clip(0, 255) for c in channels]
    inner = np.s_[8:-8, 8:-8]  # at the border Pillow leaves taps out where MATLAB mirrors
    np.testing.assert_allclose(shown['lq, bicubic'][inner], np.stack(enlarged, -1)[inner], atol=0.51)


def test_folders_of_gt_and_lq_can_be_given():
    a = make_results(Path('a'), {'set': {'x': {'psnr': 30.0}}}, {'x': noise(1)})
    write_image('there/x.webp', noise(3))
    write_image('here/x.png', noise(4, 6, 8))
    assert list(pictures(made(a, '--gt', 'there', '--lq', 'here'))) == ['lq, bicubic', 'a', 'gt']
    page = made(a)
    assert list(pictures(page)) == ['a']
    assert '1 image is shown without lq, bicubic.' in page.text and '1 image is shown without gt.' in page.text


def test_images_beyond_the_limit_are_left_out_and_counted_those_that_tell_most_stay():
    scores = {f'i{n:02}': {'psnr': 20.0 + n} for n in range(20)}
    a = make_results(Path('a'), {'set': scores}, {key: noise(n) for n, key in enumerate(scores)})
    everything = Pictures(read_runs([a]), None, None, 1).gallery({'set': 'psnr'}, 3)
    assert len(everything.shots) == 20 and not everything.left_out
    size = sum(len(panel.uri) for shot in everything.shots for panel in shot.panels)
    size += sum(len(shot.thumbnail) for shot in everything.shots)
    some = Pictures(read_runs([a]), None, None, size / 1e6 * 0.35).gallery({'set': 'psnr'}, 3)
    kept = {shot.key for shot in some.shots}
    assert {'i00', 'i01', 'i02', 'i17', 'i18', 'i19'} <= kept and 6 <= len(kept) < 8
    assert sum(some.left_out.values()) == 20 - len(kept)
    page = made(a, '--max-megabytes', 0)
    assert '20 images are left out: no room within 0 MB (--max-megabytes).' in page.text
    assert page.values('img', 'src') == []


def test_a_run_without_images_and_a_broken_image_are_said():
    a = make_results(Path('a'), {'set': {'x': {'psnr': 30.0}}})
    assert '1 image is left out: no model saved it (val:save_img).' in made(a).text
    target = Path('a/visualization/set/x_a.png')
    target.parent.mkdir(parents=True)
    target.write_bytes(b'no image')
    assert '1 image is left out: a/visualization/set/x_a.png' in made(a).text


def test_no_name_in_a_results_folder_leads_out_of_it():
    write_image('secret/x_a.png', noise(1))
    a = make_results(Path('a'), {'../../secret': {'x': {'psnr': 30.0}}})
    assert pictures(made(a)) == {}


# ---- the page


EVIL = '<img src=x onerror=alert(1)>"\'&'


def test_the_page_refers_to_nothing_outside_itself(runs):
    training = make_training(Path('t'), [{'iter': n, 'l_pix': 1 / n} for n in range(1, 5)])
    write_image('gt/i0.png', noise(3))
    write_image('results/a/visualization/set/i0_a.png', noise(1))
    page = made(*runs, '--train', training)
    links = page.values('a', 'href') + page.values('img', 'src')
    assert links and all(link.startswith(('#', 'data:image/')) for link in links)
    assert not {'link', 'iframe', 'object', 'embed', 'base', 'form'} & {tag for tag, _ in page.tags}
    targets = {attributes['id'] for _, attributes in page.tags if 'id' in attributes}
    assert {link[1:] for link in links if link.startswith('#')} <= targets
    assert not re.search(r'url\(|@import|https?:|//[a-z]+\.', page.source.replace('// ', ''))


def test_only_the_pages_own_script_and_style_may_run(runs):
    page = made(*runs)
    policy = next(a['content'] for tag, a in page.tags if tag == 'meta' and 'http-equiv' in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for kind in ('style', 'script'):
        content = re.search(f'<{kind}>(.*?)</{kind}>', page.source, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not any(name == 'style' or name.startswith('on') for _, attributes in page.tags for name in attributes)


def test_no_name_becomes_markup():
    scores = {EVIL: {EVIL: {EVIL: 1.0}}, 'set': {EVIL: {EVIL: 2.0}}}
    options = f'# CMD: {EVIL}\nname: x\nval: {{metrics: {{"</pre><script>": {{type: "<script>"}}}}}}\n# </pre><script>'
    a = make_results(Path(EVIL), scores, {EVIL: noise(1)}, options=options)
    b = make_results(Path('b'), scores)
    (a / 'test_x.log').write_text('INFO: environment: <script>\x00\x1b\n</pre><script>')
    training = make_training(Path('t') / EVIL, [{'iter': 1, EVIL: 1, '</title><script>': 2, 'dataset': EVIL}])
    page = made(a, b, '--train', training, '--metric', EVIL)
    assert [tag for tag, _ in page.tags].count('script') == 1
    assert not any(name.startswith('on') for _, attributes in page.tags for name in attributes)
    assert all(src.startswith('data:') for src in page.values('img', 'src'))
    assert f'{EVIL}: means' in page.tables and EVIL in page.text and '\x1b' not in page.source


def test_the_origin_of_a_folder_is_shown_or_said_not_to_be_known(runs):
    page = made(*runs)
    assert page.text.count('python basicsr/test.py -opt options/test/a.yml') == 2
    assert page.text.count('Environmenttorch 9; cpu') == 2 and 'not recorded' not in page.text
    for file in (*Path('results/a').glob('*.yml'), *Path('results/a').glob('*.log')):
        file.unlink()
    assert made(*runs).text.count('not recorded in this folder') == 4


def test_what_test_py_writes_is_found(tmp_path):
    for name in ('basicsr', 'options', 'testset'):
        (tmp_path / name).symlink_to(ROOT / name)
    words = ['basicsr/test.py', '-opt', 'options/test/ATD/ATD-demo_x4.yml', 'val:suffix=new', 'datasets:test:max_num=1']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, check=True, capture_output=True)
    page = made('results/ATD-demo_x4')
    assert list(pictures(page)) == ['lq, bicubic', 'ATD-demo_x4', 'gt'] and 'left out' not in page.text
    assert f'python {" ".join(words)}' in page.text and 'Environmentbasicsr ' in page.text
    assert page.tables['testset: means'][1][2] in (tmp_path / 'results/ATD-demo_x4/table.md').read_text()


# ---- training curves


def polyline(svg: str) -> np.ndarray:
    points = re.search(r'<polyline class="line s1" points="([^"]*)"', svg)[1]
    return np.array([[float(number) for number in point.split(',')] for point in points.split()])


def test_a_torn_last_line_is_passed_over_and_said():
    records = [{'iter': n, 'epoch': 0, 'lr': [1e-4], 'time': 0.5, 'l_pix': 1 / n} for n in range(1, 6)]
    training = read_training(make_training(Path('t'), records, '{"iter": 6, "l_p'))
    assert training.curves['l_pix'] == [(n, 1 / n) for n in range(1, 6)]
    assert set(training.curves) == {'l_pix', 'learning rate', 'seconds per iteration'}
    assert training.notices == ['t/metrics.jsonl: its last line is torn and was passed over']


def test_other_lines_that_are_no_records_and_values_that_are_not_finite_are_counted():
    folder = make_training(Path('t'), [{'iter': 1, 'l_pix': math.nan}, {'no': 1}, {'iter': 2, 'l_pix': 1}], '[1]\n\n{}')
    training = read_training(folder)
    assert training.curves == {'l_pix': [(2, 1.0)]}
    assert training.notices == [
        't/metrics.jsonl: lines that are no records: 4, the first is line 2',
        't/metrics.jsonl: values that are not finite: 1',
    ]


def test_validation_scores_and_several_learning_rates_are_curves_of_their_own():
    records = [{'iter': 1, 'lr': [1, 2], 'l_g': 3}, {'iter': 1, 'dataset': 'Set5', 'psnr': 30.5}]
    curves = read_training(make_training(Path('t'), records)).curves
    assert {label: line[0][1] for label, line in curves.items()} == {
        'learning rate 1': 1, 'learning rate 2': 2, 'l_g': 3, 'psnr, Set5': 30.5,
    }  # fmt: skip


@pytest.mark.parametrize('logarithmic', [False, True])
def test_a_line_is_drawn_where_its_values_are(logarithmic):
    values = [4.0, 1.5, 2.0, 1.0] if not logarithmic else [100.0, 5.0, 20.0, 1.0]
    training = read_training(make_training(Path('t'), [{'iter': 10 * n, 'l': v} for n, v in enumerate(values)]))
    svg = plot('l', [training])
    heights = np.log(values) if logarithmic else np.array(values)
    part = (heights - heights.min()) / (heights.max() - heights.min())
    expected = np.stack(
        [LEFT + (WIDTH - RIGHT - LEFT) * np.arange(4) / 3, HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * part], 1
    )
    np.testing.assert_allclose(polyline(svg), expected, atol=0.06)
    assert ('log scale' in svg) == logarithmic == is_logarithmic([training.curves['l']])
    assert '>iterations</text>' in svg and '>l' in svg


def test_small_rates_are_marked_in_few_characters():
    training = read_training(make_training(Path('t'), [{'iter': n, 'lr': [n * 5e-5]} for n in range(1, 5)]))
    assert re.findall(r'text-anchor="end">([^<]*)<', plot('learning rate', [training])) == [
        '5e-5',
        '1e-4',
        '1.5e-4',
        '2e-4',
    ]


def test_long_runs_are_averaged_within_a_band_of_their_extremes():
    values = np.random.default_rng(0).normal(size=3000)
    bins = binned([(n, v) for n, v in enumerate(values)])
    assert bins.count == 10 and len(bins.points) == 300
    parts = values.reshape(300, 10)
    expected = np.stack([np.arange(300) * 10 + 4.5, parts.mean(1), parts.min(1), parts.max(1)], 1)
    np.testing.assert_allclose(bins.points, expected)


def test_several_runs_share_a_plot():
    a, b = (make_training(Path(name), [{'iter': n, 'l': n + 1} for n in range(3)]) for name in 'ab')
    page = made(make_results(Path('r'), {'set': {'x': {'psnr': 1.0}}}), '--train', a, b)
    lines = [attributes['class'] for tag, attributes in page.tags if tag == 'polyline']
    assert lines == ['line s1', 'line s2'] and 'l over iterations: a, b' in page.text


@given(
    st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6),
    st.floats(1e-6, 1e6),
    st.booleans(),
)
def test_an_axis_is_marked_at_a_few_round_values_within_it(least, span, logarithmic):
    least = abs(least) + 1e-9 if logarithmic else least
    largest = least * (20 + span) if logarithmic else least + max(span, abs(least) * 1e-6)
    axis = Axis(least, largest, 0, 100, logarithmic)
    marks = axis.ticks()
    assert 2 <= len(marks) <= 8 and marks == sorted(set(marks))
    assert all(-0.001 <= axis(mark) <= 100.001 for mark in marks)


def test_a_curve_that_does_not_change_is_drawn():
    for values in ([0, 0], [2, 2], [3]):
        folder = make_training(Path(str(values)), [{'iter': n, 'l': v} for n, v in enumerate(values)])
        assert 'nan' not in plot('l', [read_training(folder)])


# ---- mistakes


@pytest.mark.parametrize(
    ('name', 'content', 'said'),
    [
        ('scores.csv', None, 'a: has no scores.csv'),
        ('scores.csv', 'psnr\n1\n', "a/scores.csv: should begin with the line 'dataset,image,METRIC,...'"),
        ('scores.csv', 'dataset,image,psnr\nset,x\n', 'a/scores.csv, line 2: has 2 values, not 3'),
        ('scores.csv', 'dataset,image,psnr\nset,x,1\nset,y,high\n', 'a/scores.csv, line 3: could not convert'),
        ('scores.csv', 'dataset,image,psnr\n', 'a/scores.csv: has no line for any image'),
        ('run.yml', 'name: [', 'a/run.yml'),
    ],
)
def test_a_broken_results_folder_is_one_line(name, content, said, capsys):
    a = make_results(Path('a'), {'set': {'x': {'psnr': 30.0}}})
    (a / name).unlink()
    if content is not None:
        (a / name).write_text(content)
    assert said in refused(capsys, a)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['b'], 'b: no such folder; test.py writes results/NAME'),
        (['a', './a'], 'the same results folder is given twice'),
        (['a', '--gt', 'nowhere'], 'nowhere: no such folder'),
        (['a', '--metric', 'niqe'], '--metric niqe: not among the scores; known: psnr'),
        (['a', '--train', 'nowhere'], 'nowhere: no such folder; train.py writes experiments/NAME'),
        (['a', '--train', 'a'], 'a: has no metrics.jsonl'),
        (['a', '--train', 'empty'], 'empty/metrics.jsonl: has no record yet'),
        (['a', '--train', *7 * ['a']], '--train: 7 runs; at most 6 can be told apart in one plot'),
        (['a', '--max-megabytes', 'many'], "'many' should be a whole number of at least 0"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, capsys):
    make_results(Path('a'), {'set': {'x': {'psnr': 30.0}}})
    make_training(Path('empty'), [])
    assert said in refused(capsys, *arguments)
