"""Model files on the Hugging Face hub: a repository holds model.safetensors, which describes itself, and its card.

`from_pretrained` reads one, `push_to_hub` writes one; `inference.py -m hf:OWNER/NAME` restores with it.
"""

import os
from pathlib import Path
from types import ModuleType

import yaml

from basicsr.model_file import Description, load_described, read_description
from basicsr.models.base_model import BaseModel
from basicsr.utils.download import DownloadError, cache_folder
from basicsr.utils.optional import optional
from basicsr.utils.registry import UserError
from basicsr.utils.sd_folder import hub_is_offline, is_hub_name

PREFIX = 'hf:'  # of what inference.py takes for a name on the hub: hf:OWNER/NAME or hf:OWNER/NAME@REVISION
FILE = 'model.safetensors'
CARD = 'README.md'
# Licences that the hub has a name for; others are named in the card's own words.
LICENCES = ('apache-2.0', 'mit', 'bsd-3-clause', 'cc0-1.0', 'cc-by-4.0', 'cc-by-sa-4.0', 'cc-by-nc-4.0', 'gpl-3.0')


def from_pretrained(name_or_path: str | Path, revision: str | None = None, offline: bool | None = None) -> BaseModel:
    """The model of a file, a folder or a repository of the hub, on the CPU and ready for Restorer.

    Args:
        name_or_path: a model file, a folder with a model.safetensors, or OWNER/NAME on the hub.
        revision: branch, tag or commit on the hub; by default its main branch.
        offline: use the cache only; None asks the environment (BASICSR_OFFLINE, HF_HUB_OFFLINE).
    Nothing of it is run: the file has weights, and describes networks of this project. Raises UserError.
    """
    return load_described(hub_file(name_or_path, revision, offline), asked=name_or_path)


def hub_file(name_or_path: str | Path, revision: str | None = None, offline: bool | None = None) -> Path:
    """The model file that from_pretrained's arguments name, downloaded once. Raises UserError in one line."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / FILE).is_file():
            raise UserError(f'{path}: a folder without {FILE}, which scripts/export_model.py writes')
        return path / FILE
    name = _checked_name(str(name_or_path))
    hub, offline = optional('huggingface_hub', 'hub'), hub_is_offline(offline)
    cache, endpoint = cache_folder() / 'hub', _endpoint()
    try:
        if not (offline or isinstance(hub.try_to_load_from_cache(name, FILE, cache, revision), str)):
            # Asks once: downloading asks seven times for what is not there, in half a minute and with a line for each.
            hub.get_hf_file_metadata(hub.hf_hub_url(name, FILE, revision=revision, endpoint=endpoint))
        return Path(
            hub.hf_hub_download(
                name, FILE, revision=revision, cache_dir=cache, endpoint=endpoint, local_files_only=offline
            )
        )
    except Exception as error:  # the library and its client raise a dozen types; all mean that the file is not here
        if offline:
            raise DownloadError(f'{name}: not in the cache ({cache}) and downloads are off (offline)') from None
        raise DownloadError(f'{name}: {_reason(error)}') from None


def prefixed_file(name: str, offline: bool | None = None) -> Path:
    """As hub_file, of what programs call hf:OWNER/NAME or hf:OWNER/NAME@REVISION."""
    place, _, revision = name.removeprefix(PREFIX).partition('@')
    return hub_file(place, revision or None, offline)


def push_to_hub(
    file: str | Path, name: str, private: bool = False, token: str | None = None, replace_card: bool = False
) -> str:
    """Put a model file on the hub, as OWNER/NAME, with a model card; returns its page.

    Args:
        private: of a repository that does not exist yet.
        token: by default that of `hf auth login` or of the environment variable HF_TOKEN.
        replace_card: write the card anew; without, a card that is there stays as it is.
    Raises UserError in one line.
    """
    about, name = read_description(file), _checked_name(name)
    if about is None:
        raise UserError(f'{file} does not describe its network: scripts/export_model.py writes files that do')
    hub = optional('huggingface_hub', 'hub')
    token = token or hub.get_token()
    if not token:
        raise UserError(f'{name}: the hub takes files with a token only: `hf auth login`, or HF_TOKEN=...')
    api = hub.HfApi(endpoint=_endpoint(), token=token)
    try:
        page = str(api.create_repo(name, private=private, exist_ok=True))
        files = [hub.CommitOperationAdd(FILE, str(file))]
        if replace_card or not api.file_exists(name, CARD):
            files.append(hub.CommitOperationAdd(CARD, model_card(name, about).encode()))
        api.create_commit(name, files, commit_message=f'{_title(about, name)}: {FILE}')
    except Exception as error:  # as above
        raise UserError(f'{name}: {_reason(error, writes=True)}') from None
    return page


def model_card(name: str, about: Description) -> str:
    """The README.md of a repository: licence and tags as the hub reads them, results, how it is used."""
    licence = about.licence.lower()
    head = {'library_name': 'basicsr', 'pipeline_tag': 'image-to-image', 'tags': ['super-resolution']}
    if licence in LICENCES:
        head['license'] = licence
    elif licence:
        head |= {'license': 'other', 'license_name': about.licence}
    parts = [f'---\n{yaml.safe_dump(head, sort_keys=False)}---\n', f'# {_title(about, name)}\n']
    parts += [f'{text}\n' for text in (about.note,) if text]
    if about.card:
        parts += ['## Results\n', _results(about.card)]
    parts += [
        '## Use\n',
        f'```bash\npython inference.py -m {PREFIX}{name} -i photo.jpg\n```\n',
        '```python\nfrom basicsr.hub import from_pretrained\nfrom basicsr.models.restorer import Restorer\n\n'
        f"sr = Restorer(from_pretrained('{name}'))(lq)  # (b, 3, h, w) RGB in [0, 1]\n```\n",
        f'`{FILE}` describes its network itself:\n\n```yaml\n{about.options.rstrip()}\n```\n',
    ]
    origin = [f'Licence: {about.licence}.'] if about.licence else []
    origin += [f'Source: {about.source}.'] if about.source else []
    parts += [' '.join(origin) + '\n'] if origin else []
    return '\n'.join(parts)


def _results(card: dict[str, dict[str, float]]) -> str:
    """The results as a table: a row for each data set."""
    metrics = list(dict.fromkeys(metric for row in card.values() for metric in row))
    lines = [f'| Data | {" | ".join(metrics)} |', '|---' * (len(metrics) + 1) + '|']
    for dataset, row in card.items():
        lines.append(f'| {dataset} | {" | ".join(f"{row[m]:.4f}" if m in row else "" for m in metrics)} |')
    return '\n'.join(lines) + '\n'


def _title(about: Description, name: str) -> str:
    """What the model calls itself."""
    options = yaml.safe_load(about.options)
    return str(options.get('name') or name) if isinstance(options, dict) else name


def _checked_name(name: str) -> str:
    if not is_hub_name(name):
        raise UserError(f'{name}: no such file or folder, and no name on the hub such as OWNER/NAME')
    return name


def _endpoint() -> str | None:
    return os.environ.get('HF_ENDPOINT') or None


def _reason(error: Exception, writes: bool = False) -> str:
    """Why the hub gave or took nothing, in one line."""
    errors: ModuleType = optional('huggingface_hub.errors', 'hub')
    if isinstance(error, errors.HFValidationError):
        return 'no name on the hub: letters, digits, -, _ and . on both sides of the /'
    if isinstance(error, errors.RevisionNotFoundError):
        return 'the hub has no such revision'
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f'no model of this project: its repository has no {FILE}'
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, 'response', None), 'status_code', None)
        if status in (401, 403) and writes:
            return f'the hub answers {status}: the token may not write there (`hf auth login` takes another)'
        if status in (401, 403):
            return f'the hub answers {status}: there is no such name, or it asks for a login (`hf auth login`)'
        if status == 404:
            return 'the hub answers 404: there is no such name'
        if status is not None:
            return f'the hub answers {status}'
        if cause.__cause__ is None and (isinstance(cause, OSError) or type(cause).__module__.startswith('http')):
            return f'the hub cannot be reached ({next(iter(str(cause).splitlines()), "") or type(cause).__name__})'
        cause = cause.__cause__
    return next(iter(str(error).splitlines()), '') or type(error).__name__
