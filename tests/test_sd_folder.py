"""SD-Turbo's folder: local ones are checked, the hub's are downloaded after its licence is accepted. No network."""

import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import diffusers
import huggingface_hub
import pytest
from hub_server import COMMIT, HubHandler, serving

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from make_tiny_sd import TINY_UNET, TINY_VAE, write_tiny_sd

from basicsr.utils.registry import UserError
from basicsr.utils.sd_folder import accept_licence, check_config, sd_folder, weights_file

ALL = ('unet', 'vae', 'text_encoder', 'tokenizer')
HUB = 'stabilityai/sd-turbo'


@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> Path:
    return write_tiny_sd(tmp_path_factory.mktemp('sd') / 'tiny')


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Empty caches, and neither a licence accepted nor a terminal."""
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'other'))
    for name in ('BASICSR_OFFLINE', 'BASICSR_ACCEPT_LICENSE', 'HF_ENDPOINT'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(sys, 'stdin', None)
    return tmp_path / 'cache'


class Hub(HubHandler):
    """What huggingface_hub asks of the hub, answered from a folder."""

    def do_GET(self) -> None:
        path = self.path.partition('?')[0]
        self.asked.append(f'{self.command} {path}')
        files = [one.relative_to(self.folder).as_posix() for one in self.folder.rglob('*') if one.is_file()]
        if self.status != 200:
            self.answer(self.status, b'{"error": "no"}')
        elif path == f'/api/models/{HUB}/revision/main':
            self.answer_json({'id': HUB, 'sha': COMMIT, 'siblings': [{'rfilename': name} for name in files]})
        elif path == f'/api/models/{HUB}/tree/{COMMIT}':
            sizes = {name: (self.folder / name).stat().st_size for name in files}
            self.answer_json(
                [{'type': 'file', 'path': n, 'size': size, 'oid': f'{n}{size}'} for n, size in sizes.items()]
            )
        elif path.startswith(f'/{HUB}/resolve/{COMMIT}/'):
            name = path.removeprefix(f'/{HUB}/resolve/{COMMIT}/')
            content = (self.folder / name).read_bytes() if name in files else b''
            headers = {'ETag': f'"{abs(hash(name)):x}"', 'X-Repo-Commit': COMMIT, 'Accept-Ranges': 'bytes'}
            self.answer(200 if name in files else 404, content, headers)
        else:
            self.answer(404, b'')

    do_HEAD = do_GET


@pytest.fixture
def hub(tiny, tmp_path, cache, monkeypatch):
    """Starts a stand-in for the hub with a tiny SD-Turbo and a large file beside it; gives what it was asked."""

    def start(status: int = 200, lacking: str = '') -> list[str]:
        folder, asked = tmp_path / 'hub', []
        shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns(lacking))
        (folder / 'sd_turbo.safetensors').write_bytes(bytes(1000))
        monkeypatch.setenv('HF_ENDPOINT', servers.enter_context(serving(Hub, folder, asked, status)))
        return asked

    with ExitStack() as servers:
        yield start


def test_a_local_folder_is_taken_as_it_is(tiny, cache):
    assert sd_folder(str(tiny), ALL) == tiny
    assert not cache.exists()


@pytest.mark.parametrize(
    ('part', 'file'),
    [('unet', 'config.json'), ('vae', 'diffusion_pytorch_model.safetensors'), ('tokenizer', 'vocab.json')],
)
def test_a_missing_file_is_named(tiny, tmp_path, part, file):
    folder = shutil.copytree(tiny, tmp_path / 'sd')
    (folder / part / file).unlink()
    with pytest.raises(UserError) as caught:
        sd_folder(str(folder), ALL)
    assert str(caught.value).startswith(f'{folder / part / file}: no such file; sd_path should name SD-Turbo')
    assert sd_folder(str(folder), [one for one in ALL if one != part]) == folder, 'what is not needed may be missing'


def test_whole_precision_comes_before_half_and_safetensors_before_others(tmp_path):
    (tmp_path / 'vae').mkdir()
    for name in ('diffusion_pytorch_model.bin', 'diffusion_pytorch_model.fp16.safetensors'):
        (tmp_path / 'vae' / name).touch()
        assert weights_file(tmp_path, 'vae').name == name
    (tmp_path / 'vae' / 'diffusion_pytorch_model.safetensors').touch()
    assert weights_file(tmp_path, 'vae').name == 'diffusion_pytorch_model.safetensors'


@pytest.mark.parametrize('location', ['/nowhere/sd-turbo', './models', '~/sd', 'a/b/c', 'sd-turbo'])
def test_what_is_neither_a_folder_nor_a_name_is_refused(location, cache):
    with pytest.raises(UserError, match=f'^{location}: no such folder, and no name on the hub'):
        sd_folder(location, ALL)


def test_only_what_is_needed_is_downloaded_and_only_once(hub, tiny, cache, monkeypatch):
    asked = hub()
    monkeypatch.setenv('BASICSR_ACCEPT_LICENSE', '1')
    folder = sd_folder(HUB, ALL)
    assert folder.is_relative_to(cache)
    for part in ALL:
        for file in (tiny / part).iterdir():
            assert (folder / part / file.name).read_bytes() == file.read_bytes()
    assert not (folder / 'sd_turbo.safetensors').exists() and not (folder / 'scheduler').exists()
    asked.clear()
    monkeypatch.delenv('BASICSR_ACCEPT_LICENSE')
    assert sd_folder(HUB, ALL) == folder and sd_folder(HUB, ALL, offline=True) == folder
    assert not asked


def test_parts_that_are_not_needed_are_not_downloaded(hub, cache, monkeypatch):
    asked = hub()
    monkeypatch.setenv('BASICSR_ACCEPT_LICENSE', '1')
    folder = sd_folder(HUB, ('unet', 'vae'))
    assert {one.name for one in folder.iterdir()} == {'unet', 'vae'}
    assert not any('text_encoder/' in one for one in asked)


def test_a_licence_that_nobody_accepts_ends_it_before_anything_is_asked_of_the_hub(hub):
    asked = hub()
    with pytest.raises(UserError) as caught:
        sd_folder(HUB, ALL)
    message = str(caught.value)
    assert message.count('\n') == 0 and not asked
    for part in (HUB, 'Community License', 'https://huggingface.co/stabilityai/sd-turbo/', '--accept-license'):
        assert part in message


@pytest.mark.parametrize(
    ('answer', 'accepted'), [('y', True), ('Yes ', True), ('', False), ('n', False), ('no', False)]
)
def test_a_terminal_is_asked(answer, accepted, cache, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(sys, 'stdin', SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr('builtins.input', lambda text: shown.append(text) or answer)
    if accepted:
        accept_licence(HUB)
    else:
        with pytest.raises(UserError, match='licence was not accepted, and nothing was downloaded'):
            accept_licence(HUB)
    assert 'Community License' in shown[0] and '[y/N]' in shown[0]


def test_other_names_of_the_hub_have_licences_of_their_own(cache):
    with pytest.raises(
        UserError, match=r'somebody/model: no such folder, .* a licence .* https://huggingface.co/somebody/model'
    ):
        accept_licence('somebody/model')


def test_offline_nothing_is_asked(hub, cache, monkeypatch):
    asked = hub()
    monkeypatch.setenv('BASICSR_OFFLINE', '1')
    with pytest.raises(UserError, match=rf'^{HUB}: not in the cache \({cache}.* downloads are off \(offline\)$'):
        sd_folder(HUB, ALL)
    assert not asked


def test_no_network_is_one_line(cache, monkeypatch):
    monkeypatch.setenv('BASICSR_ACCEPT_LICENSE', '1')
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(UserError, match=rf'^{HUB}: the hub cannot be reached \(.*refused.*\)$'):
        sd_folder(HUB, ALL)


@pytest.mark.parametrize(('status', 'words'), [(401, 'hf auth login'), (404, '404'), (400, '400')])
def test_what_the_hub_answers_is_said(hub, monkeypatch, status, words):
    hub(status)
    monkeypatch.setenv('BASICSR_ACCEPT_LICENSE', '1')
    with pytest.raises(UserError, match=rf'^{HUB}: the hub answers {status}.*{words}|^{HUB}: the hub answers {words}'):
        sd_folder(HUB, ALL)


def test_a_repository_without_a_needed_file_is_refused(hub, monkeypatch):
    hub(lacking='diffusion_pytorch_model.safetensors')
    monkeypatch.setenv('BASICSR_ACCEPT_LICENSE', '1')
    with pytest.raises(UserError, match=rf'^{HUB}: the hub has no unet/diffusion_pytorch_model.safetensors'):
        sd_folder(HUB, ALL)


def test_a_missing_package_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UserError, match=r"needs the package huggingface_hub: pip install -e '\.\[s3diff\]'"):
        sd_folder(HUB, ALL)


@pytest.fixture(scope='module')
def unet():
    return diffusers.UNet2DConditionModel.from_config(TINY_UNET)


def changed(folder: Path, tiny: Path, part: str, **entries) -> Path:
    copy = shutil.copytree(tiny, folder / 'changed')
    file = copy / part / 'config.json'
    file.write_text(json.dumps({k: v for k, v in (json.loads(file.read_text()) | entries).items() if v != 'left out'}))
    return copy


def test_a_folder_of_the_same_shape_is_taken(tiny, tmp_path, unet):
    check_config(tiny, 'unet', unet, 'network_g: unet')
    check_config(tiny, 'vae', diffusers.AutoencoderKL.from_config(TINY_VAE), 'network_g: vae')
    other = changed(tmp_path, tiny, 'unet', sample_size=64, _diffusers_version='0.25.1', norm_eps='left out', new=1)
    check_config(other, 'unet', unet, 'network_g: unet')


@pytest.mark.parametrize(
    ('entries', 'words'),
    [
        ({'cross_attention_dim': 768}, 'cross_attention_dim is 768, network_g: unet has 32'),
        ({'block_out_channels': [32, 96]}, r'block_out_channels is \[32, 96\], network_g: unet has \[32, 64\]'),
        ({'layers_per_block': 'left out'}, 'layers_per_block is 2, network_g: unet has 1'),
        ({'_class_name': 'UNet2DModel'}, "_class_name is 'UNet2DModel' instead of 'UNet2DConditionModel'"),
    ],
)
def test_the_first_entry_that_differs_is_named_with_its_file(tiny, tmp_path, unet, entries, words):
    folder = changed(tmp_path, tiny, 'unet', **entries)
    with pytest.raises(UserError, match=rf'changed/unet/config.json: .*{words}'):
        check_config(folder, 'unet', unet, 'network_g: unet')


def test_a_configuration_that_is_none_is_refused(tiny, tmp_path, unet):
    folder = changed(tmp_path, tiny, 'unet')
    for text, words in (('{', 'cannot be read'), ('[]', 'holds a list')):
        (folder / 'unet' / 'config.json').write_text(text)
        with pytest.raises(UserError, match=rf'unet/config.json: {words}'):
            check_config(folder, 'unet', unet, 'network_g: unet')
