"""The models that can be had by name: options, weights, licence and source of each (basicsr/pretrained/models.yml)."""

from dataclasses import dataclass
from pathlib import Path

from basicsr.utils.download import DownloadError, local_path
from basicsr.utils.registry import UserError, suggestion
from basicsr.utils.yaml_loader import load_yaml

FOLDER = Path(__file__).resolve().parents[1] / 'pretrained'
PROJECT = FOLDER.parents[1]


@dataclass(frozen=True)
class KnownModel:
    """One entry of models.yml, which says what each field means."""

    name: str
    options: str
    weights: str
    licence: str
    source: str
    note: str
    sha256: str | None = None
    page: str | None = None
    sd_path: str | None = None

    @property
    def option_file(self) -> Path:
        return PROJECT / self.options

    @property
    def overrides(self) -> list[str]:
        """What replaces values of the option file, wherever a program is started."""
        return [f'model:sd_path={FOLDER / self.sd_path}'] if self.sd_path else []

    def weights_file(self, offline: bool | None = None) -> Path:
        """The weights on this machine, downloaded if need be. Raises DownloadError that says how to get them."""
        checksum = f'#sha256={self.sha256}' if self.sha256 else ''
        if '://' in self.weights:
            return local_path(self.weights + checksum, offline)
        place = self._place()
        if not place.is_file():
            if self.page:
                raise DownloadError(
                    f'{self.name}: the publisher gives no direct link. Fetch {place.name} from {self.page} '
                    f'and put it at {place}'
                )
            raise DownloadError(f'{self.name}: {place} is missing; it belongs to this project, fetch it again')
        return local_path(f'{place}{checksum}')

    def state(self) -> str:
        """Whether the weights are here: 'bundled', 'here', 'by hand' (to be fetched from `page`) or 'download'."""
        if '://' in self.weights:
            return 'download'
        if not self._place().is_file():
            return 'by hand' if self.page else 'missing'
        return 'here' if self.page else 'bundled'

    def _place(self) -> Path:
        return PROJECT / self.weights if self.page else FOLDER / self.weights


def known_models() -> dict[str, KnownModel]:
    """All models of models.yml by name."""
    entries, _ = load_yaml(FOLDER / 'models.yml')
    return {name: KnownModel(name=name, **fields) for name, fields in entries.items()}


def find_model(name: str) -> KnownModel:
    """The model of that name, in capitals or not; its scale may be left out where there is one only.

    Raises UserError with the nearest name, or with all scales.
    """
    models = known_models()
    asked, found = name.lower(), [one for one in models if one.lower() == name.lower()]
    found = found or [one for one in models if one.lower().rpartition('_x')[0] == asked]
    if len(found) > 1:
        raise UserError(f'{name!r} has several scales: {", ".join(found)}')
    if not found:
        raise UserError(f'{name!r} is not a known model; {suggestion(name, models)} (inference.py --list shows all)')
    return models[found[0]]
