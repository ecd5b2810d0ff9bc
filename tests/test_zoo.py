"""The models that have names: every entry can be used, or says how to get it."""

import pytest
import torch

from basicsr.restoring import load_model
from basicsr.utils import zoo
from basicsr.utils.download import DownloadError
from basicsr.utils.options import load_options
from basicsr.utils.registry import UserError


@pytest.mark.parametrize('name', zoo.known_models())
def test_every_option_file_describes_the_scale_in_the_name(name):
    opt = load_options(zoo.find_model(name).option_file, is_train=False, check_files=False)
    assert name.partition('_x' if '_x' in name else '_SRx')[2].startswith(str(opt.scale))
    assert 'g' in opt.networks


@pytest.mark.parametrize(
    'name', [k for k, model in zoo.known_models().items() if model.state() in ('bundled', 'missing')]
)
def test_bundled_weights_are_there(name):
    assert zoo.find_model(name).weights_file(offline=True).is_file()


def test_weights_without_a_link_say_what_to_fetch_from_where_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, 'PROJECT', tmp_path)
    model = zoo.find_model('001_ATD_SRx2_finetune')
    place = tmp_path / 'experiments' / 'pretrained_models' / '001_ATD_SRx2_finetune.pth'
    assert model.state() == 'by hand'
    with pytest.raises(DownloadError) as caught:
        model.weights_file()
    for part in ('Fetch 001_ATD_SRx2_finetune.pth from https://drive.google.com/drive/folders/', str(place)):
        assert part in str(caught.value)
    place.parent.mkdir(parents=True)
    place.write_bytes(b'weights')
    assert model.weights_file() == place and model.state() == 'here'


def test_a_checksum_in_the_table_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, 'FOLDER', tmp_path)
    (tmp_path / 'models.yml').write_text(
        'one: {options: a.yml, weights: one.pth, licence: L, source: S, note: N, sha256: "' + '0' * 64 + '"}'
    )
    (tmp_path / 'one.pth').write_bytes(b'weights')
    with pytest.raises(DownloadError, match='wrong file'):
        zoo.find_model('one').weights_file()


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"did you mean 'ATD-demo_x4'\?"):
        zoo.find_model('ATD-demo_4x')


def test_capitals_and_an_only_scale_need_not_be_given():
    assert zoo.find_model('d2c-demo').name == zoo.find_model('D2C-DEMO_X4').name == 'D2C-demo_x4'
    with pytest.raises(UserError, match="'atd-demo' has several scales: ATD-demo_x2, ATD-demo_x4"):
        zoo.find_model('atd-demo')


def test_models_of_two_files_are_downloaded_both(tmp_path, monkeypatch):
    """The published files of ITER lack its VQGAN, which has a file of its own; none is there, and downloads are off."""
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path))
    monkeypatch.setenv('BASICSR_OFFLINE', '1')
    assert zoo.find_model('iter_swinvqgan').name == 'ITER_swinvqgan_x1'
    with pytest.raises(DownloadError, match=r'releases/download/v0.1.0/ITER_x4.pth: not in the cache'):
        load_model('ITER_x4', None, None, offline=True)
    monkeypatch.setattr(zoo.KnownModel, 'weights_file', lambda *_: weights)
    weights = tmp_path / 'ITER_x4.pth'
    torch.save({'params': {'lq_encoder.model.0.bias': torch.zeros(64)}}, weights)
    with pytest.raises(DownloadError, match=r'releases/download/v0.1.0/ITER_swinvqgan.pth: not in the cache'):
        load_model('ITER_x4', None, None, offline=True)
