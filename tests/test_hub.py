"""Model files on the hub: fetched, put there with a card, refused in one line. A stand-in answers for the hub."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
import yaml
from hub_server import COMMIT, HubHandler, serving
from safetensors.torch import save_file
from training_fixture import ROOT

from basicsr.hub import from_pretrained, model_card, push_to_hub
from basicsr.model_file import FORMAT, Description, described_options, read_description, write_model_file
from basicsr.models import build_model
from basicsr.models.restorer import Restorer
from basicsr.restoring import load_model
from basicsr.utils.registry import UserError

sys.path.insert(0, str(ROOT / 'scripts'))
import export_model

NAME = 'somebody/tiny'
NETWORK = '{type: RCAN, upscale: 2, num_feat: 16, num_group: 1, num_block: 1}'
OPTIONS = f'name: tiny\nmodel_type: SRModel\nscale: 2\nnetwork_g: {NETWORK}\n'
ABOUT = Description(OPTIONS, {'Set5': {'psnr': 30.25, 'ssim': 0.9}, 'Own': {'psnr': 25.0}}, 'CC-BY-4.0', 'us', 'small')


@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('model') / 'model.safetensors'
    torch.manual_seed(0)
    model = build_model(described_options(ABOUT, path, ['path:pretrain_network_g=~']))
    write_model_file(path, {'g': model.networks()['g']['params']}, ABOUT)
    return path


class Hub(HubHandler):
    """What huggingface_hub asks of the hub to read and to write a repository that is a folder."""

    def do_GET(self) -> None:
        path = self.path.partition('?')[0]
        self.asked.append(f'{self.command} {path}')
        name = path.rpartition('/')[2]
        file = self.folder / name
        if self.status != 200:
            return self.answer(self.status, b'{"error": "no"}')
        if f'/{NAME}/resolve/' not in path:
            return self.answer(404, b'', {'X-Error-Code': 'RepoNotFound'})
        if path.split('/')[-2] not in ('main', COMMIT):
            return self.answer(404, b'', {'X-Error-Code': 'RevisionNotFound'})
        if not file.is_file():
            return self.answer(404, b'', {'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': COMMIT})
        return self.answer(200, file.read_bytes(), {'ETag': f'"{name}"', 'X-Repo-Commit': COMMIT})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers['Content-Length']))
        self.asked.append(f'POST {self.path}')
        if self.status != 200:
            self.answer(self.status, b'{"error": "no"}')
        elif self.path == '/api/repos/create':
            name = '{organization}/{name}'.format_map(json.loads(body))
            self.answer_json({'url': f'http://{self.headers["Host"]}/{name}', 'id': name})
        elif self.path == '/api/validate-yaml':
            self.answer_json({'errors': [], 'warnings': []})
        elif '/preupload/' in self.path:
            files = [{'path': one['path'], 'uploadMode': 'regular'} for one in json.loads(body)['files']]
            self.answer_json({'files': [one | {'shouldIgnore': False} for one in files]})
        else:
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file':
                    (self.folder / line['value']['path']).write_bytes(base64.b64decode(line['value']['content']))
            self.answer_json(
                {
                    'commitUrl': f'http://{self.headers["Host"]}/{NAME}/commit/{COMMIT}',
                    'commitOid': COMMIT,
                    'success': True,
                }
            )


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv('BASICSR_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
    for name in ('BASICSR_OFFLINE', 'HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    return tmp_path / 'cache'


@pytest.fixture
def hub(tmp_path, cache, monkeypatch):
    """Starts a stand-in whose one repository has these files; gives its folder and what it was asked."""

    def start(*files: Path, status: int = 200) -> tuple[Path, list[str]]:
        folder, asked = tmp_path / 'hub', []
        folder.mkdir()
        for file in files:
            shutil.copy(file, folder)
        monkeypatch.setenv('HF_ENDPOINT', servers.enter_context(serving(Hub, folder, asked, status)))
        return folder, asked

    with ExitStack() as servers:
        yield start


def restored(model) -> torch.Tensor:
    return Restorer(model)(torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0)))


def test_a_repository_a_folder_and_a_file_give_the_same_model(hub, tiny, cache):
    hub(tiny)
    wanted = restored(load_model(None, None, str(tiny), True))
    named = load_model(f'hf:{NAME}@{COMMIT}', None, None, False)
    for model in (from_pretrained(tiny), from_pretrained(tiny.parent), from_pretrained(NAME), named):
        assert torch.equal(restored(model), wanted)
    assert any(cache.rglob('model.safetensors'))


def test_what_was_fetched_once_is_there_without_a_network(hub, tiny, monkeypatch):
    _, asked = hub(tiny)
    wanted = restored(from_pretrained(NAME))
    asked.clear()
    assert torch.equal(restored(from_pretrained(NAME, offline=True)), wanted) and not asked
    monkeypatch.setenv('BASICSR_OFFLINE', '1')
    assert torch.equal(restored(from_pretrained(NAME)), wanted) and not asked
    monkeypatch.delenv('BASICSR_OFFLINE')
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    assert torch.equal(restored(from_pretrained(NAME)), wanted)


def test_a_model_that_is_pushed_can_be_had_again_with_its_card(hub, tiny, monkeypatch):
    folder, _ = hub()
    monkeypatch.setenv('HF_TOKEN', 'hf_x')
    assert push_to_hub(tiny, NAME).endswith(NAME)
    assert (folder / 'model.safetensors').read_bytes() == tiny.read_bytes()
    assert (folder / 'README.md').read_text() == model_card(NAME, ABOUT)
    assert torch.equal(restored(from_pretrained(NAME)), restored(from_pretrained(tiny)))


def test_a_card_that_somebody_wrote_stays_unless_asked(hub, tiny, monkeypatch):
    folder, _ = hub()
    (folder / 'README.md').write_text('mine')
    monkeypatch.setenv('HF_TOKEN', 'hf_x')
    push_to_hub(tiny, NAME)
    assert (folder / 'README.md').read_text() == 'mine'
    push_to_hub(tiny, NAME, replace_card=True)
    assert (folder / 'README.md').read_text() == model_card(NAME, ABOUT)


def test_the_export_command_pushes_what_it_wrote(hub, tmp_path, monkeypatch, capsys):
    folder, _ = hub()
    monkeypatch.setenv('HF_TOKEN', 'hf_x')
    path = tmp_path / 'mine.safetensors'
    monkeypatch.setattr(sys, 'argv', ['export_model.py', '-m', 'ATD-demo_x2', '-o', str(path), '--push-to', NAME])
    assert export_model.main() == 0
    assert (folder / 'model.safetensors').read_bytes() == path.read_bytes()
    assert NAME in capsys.readouterr().out.splitlines()[-1]


def test_a_card_tells_the_hub_the_licence_and_people_the_results():
    _, head, text = model_card(NAME, ABOUT).split('---\n', 2)
    entries = yaml.safe_load(head)
    assert (entries['license'], entries['pipeline_tag']) == ('cc-by-4.0', 'image-to-image')
    assert '| Data | psnr | ssim |\n|---|---|---|\n| Set5 | 30.2500 | 0.9000 |\n| Own | 25.0000 |  |' in text
    assert f"from_pretrained('{NAME}')" in text and f'-m hf:{NAME}' in text and OPTIONS.strip() in text
    other = yaml.safe_load(model_card(NAME, Description(OPTIONS, licence='Own words')).split('---\n')[1])
    assert (other['license'], other['license_name']) == ('other', 'Own words')
    assert 'license' not in yaml.safe_load(model_card(NAME, Description(OPTIONS)).split('---\n')[1])


@pytest.mark.parametrize(
    ('status', 'name', 'revision', 'words'),
    [
        (200, NAME, None, 'no model of this project: its repository has no model.safetensors'),
        (200, NAME, 'other', 'the hub has no such revision'),
        (200, 'some body/x', None, 'no name on the hub'),
        (200, 'nobody/tiny', None, 'there is no such name'),
        (401, NAME, None, 'the hub answers 401: there is no such name, or it asks for a login'),
        (400, NAME, None, 'the hub answers 400'),
    ],
)
def test_what_the_hub_cannot_give_is_one_line(hub, status, name, revision, words):
    hub(status=status)
    with pytest.raises(UserError) as caught:
        from_pretrained(name, revision)
    message = str(caught.value)
    assert message.startswith(f'{name}: ') and words in message and '\n' not in message


def test_no_network_is_one_line(cache):
    with pytest.raises(UserError, match=rf'^{NAME}: the hub cannot be reached \(.*refused.*\)$'):
        from_pretrained(NAME)
    with pytest.raises(UserError, match=rf'^{NAME}: not in the cache \({cache}/hub\) and downloads are off'):
        from_pretrained(NAME, offline=True)


def test_a_hub_that_does_not_answer_is_asked_once_and_said_in_the_command_s_one_line(hub, tmp_path):
    _, asked = hub(status=503)
    for endpoint, reason in (
        (os.environ['HF_ENDPOINT'], 'the hub answers 503'),
        ('http://127.0.0.1:9', r'the hub cannot be reached \(.*refused.*\)'),
    ):
        environment = {**os.environ, 'HF_ENDPOINT': endpoint, 'OMP_NUM_THREADS': '1', 'BASICSR_OFFLINE': ''}
        command = [sys.executable, str(ROOT / 'inference.py'), '-m', f'hf:{NAME}', '-i', str(ROOT / 'testset/lq_x2')]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and not done.stdout
        assert re.fullmatch(f'Error: {NAME}: {reason}\n', done.stderr)
    assert [one for one in asked if NAME in one] == [f'HEAD /{NAME}/resolve/main/model.safetensors']


@pytest.mark.parametrize('name', ['nowhere', './a', 'a/b/c', '~/x'])
def test_what_is_neither_here_nor_a_name_is_refused(cache, name):
    with pytest.raises(UserError, match='no such file or folder, and no name on the hub such as OWNER/NAME'):
        from_pretrained(name)


def test_files_that_describe_nothing_or_too_much_are_refused(hub, tmp_path, monkeypatch):
    path = tmp_path / 'model.safetensors'
    save_file({'w': torch.zeros(1)}, path)
    folder, _ = hub(path)
    with pytest.raises(UserError, match=rf'^{NAME}: model.safetensors does not describe its network'):
        from_pretrained(NAME)
    with pytest.raises(UserError, match='does not describe its network'):
        push_to_hub(path, NAME)
    save_file({'w': torch.zeros(1)}, path, {'format': FORMAT, 'options': OPTIONS + 'custom_imports: [evil.py]'})
    assert read_description(path) is not None
    with pytest.raises(UserError, match="a model file describes networks, not 'custom_imports'"):
        from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r'a folder without model\.safetensors'):
        from_pretrained(folder.parent / 'cache')


def test_pushing_needs_a_token_that_may_write(hub, tiny, monkeypatch):
    _, asked = hub(status=403)
    with pytest.raises(UserError, match=rf'^{NAME}: the hub takes files with a token only: `hf auth login`'):
        push_to_hub(tiny, NAME)
    assert not asked
    monkeypatch.setenv('HF_TOKEN', 'hf_x')
    with pytest.raises(UserError, match=rf'^{NAME}: the hub answers 403: the token may not write there'):
        push_to_hub(tiny, NAME)


def test_the_package_that_is_missing_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UserError, match=r"The Hugging Face hub needs .*: pip install -e '\.\[hub\]'"):
        from_pretrained(NAME)
