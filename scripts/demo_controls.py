"""What the web demo offers: the models whose files are here, the controls that each really has, and what they override.

No web page in here: demo_page.py shows what this says.
"""

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from basicsr.models.diffusion_sampling import Sampler
from basicsr.models.restorer import SMALLEST_TILE
from basicsr.models.s3diff_model import needed_parts
from basicsr.models.sr3_model import SR3Model
from basicsr.models.token_refinement import Refinement
from basicsr.utils.color_fix import ColorFix
from basicsr.utils.download import local_path
from basicsr.utils.options import Options, load_options
from basicsr.utils.registry import MODEL_REGISTRY, OptionError, UserError
from basicsr.utils.sd_folder import sd_folder
from basicsr.utils.yaml_loader import parse_value
from basicsr.utils.zoo import KnownModel, known_models

RESTORING = {'tile': 0, 'color_fix': 'none'}  # what Restorer is told, of models that have no such setting themselves
SECTIONS = {'sampler': Sampler, 'refinement': Refinement}  # arguments of models that have arguments of their own
LARGEST_SEED = 2**31 - 1
LONGEST_PROMPT = 500


@dataclass(frozen=True)
class Control:
    """Something that a person can set.

    key: where an option file says it, below `model:`; '' for what Restorer is told.
    kind: a number is an 'integer' or a 'real' one from `least` to `most`; a 'choice' is one of what the constructor
        allows; a 'text' has at most LONGEST_PROMPT letters.
    """

    name: str
    key: str
    label: str
    info: str
    kind: Literal['integer', 'real', 'choice', 'text']
    least: float = 0
    most: float = 0


CONTROLS = {
    one.name: one
    for one in (
        Control('steps', 'sampler:steps', 'Steps', 'calls of the network; fewer are faster', 'integer', 1, 2000),
        Control('sampler', 'sampler:type', 'Sampler', 'how noise becomes an image', 'choice'),
        Control('T', 'refinement:T', 'Refinement steps (T)', 'fewer are faster', 'integer', 1, 64),
        Control(
            'threshold',
            'refinement:threshold',
            'Threshold',
            'how sure of a token to be, to keep it from the start',
            'real',
            0,
            1,
        ),
        Control(
            'sampling',
            'refinement:sampling',
            'Sampling',
            'greedy takes the likeliest tokens, multinomial draws',
            'choice',
        ),
        Control('positive', 'positive_prompt', 'Prompt', 'what the image should look like', 'text'),
        Control('negative', 'negative_prompt', 'Negative prompt', 'what it should not look like', 'text'),
        Control(
            'guidance', 'guidance_scale', 'Guidance', 'away from the negative prompt; 1 leaves it out', 'real', 1, 3
        ),
        Control('color_fix', 'color_fix', 'Colour fix', 'gives the result the colours of the input', 'choice'),
        Control('seed', 'seed', 'Seed', 'another one draws other details', 'integer', 0, LARGEST_SEED),
        Control(
            'tile',
            '',
            'Tile',
            'largest side, in input pixels, restored at once; 0: the whole image. Tiles need less memory',
            'integer',
            0,
            4096,
        ),
    )
}


@dataclass(frozen=True)
class Setting:
    """A control of one model: what it stands at, and how far it goes there."""

    control: Control
    value: Any
    most: float


@dataclass(frozen=True)
class Offer:
    """A model of the demo and its settings by the controls' names, in their order."""

    known: KnownModel
    scale: int
    settings: dict[str, Setting]


def offers() -> dict[str, Offer]:
    """The models that can be used without a download, by name: bundled ones first."""
    usable = sorted((one for one in known_models().values() if is_here(one)), key=lambda one: one.state() != 'bundled')
    found = {one.name: offer_of(one) for one in usable}
    return {name: offer for name, offer in found.items() if offer is not None}


def is_here(known: KnownModel) -> bool:
    """Whether all files that a model needs are on this machine."""
    if known.state() in ('by hand', 'missing'):
        return False
    try:
        known.weights_file(offline=True)
        opt = options_of(known)
        for label, source in opt.path.pretrained.items():
            if label != 'g':  # the weights file has it
                local_path(source.path, offline=True)
        if opt.model.get('sd_path'):
            sd_folder(opt.model['sd_path'], needed_parts(opt.model.get('prompt_embeddings')), offline=True)
    except UserError:
        return False
    return True


def options_of(known: KnownModel) -> Options:
    """A model's option file, read for restoring."""
    return load_options(known.option_file, is_train=False, overrides=known.overrides, check_files=False)


def offer_of(known: KnownModel) -> Offer | None:
    """A model and its settings; None for a model that restores no image (SR3's unconditional networks)."""
    opt = options_of(known)
    model = MODEL_REGISTRY.get(opt.model_type)
    if issubclass(model, SR3Model) and opt.networks['g'].get('in_channel') == opt.networks['g'].get('out_channel'):
        return None
    found = {name: setting_of(control, model, opt) for name, control in CONTROLS.items()}
    return Offer(known, opt.scale, {name: setting for name, setting in found.items() if setting is not None})


def setting_of(control: Control, model: type, opt: Options) -> Setting | None:
    """A control of a model with what its option file says, or else its constructor; None where it has no effect."""
    argument, _, inner = control.key.partition(':')
    if not control.key or (control.name == 'color_fix' and argument not in inspect.signature(model).parameters):
        return Setting(replace(control, key=''), RESTORING[control.name], control.most)
    if argument not in inspect.signature(model).parameters:
        return None
    if argument == 'refinement' and opt.networks['g'].get('refine') is False:
        return None
    if control.kind == 'text' and opt.model.get('prompt_embeddings'):
        return None
    section, owner = (opt.model.get(argument) or {}, SECTIONS[argument]) if inner else (opt.model, model)
    name = inner or argument
    value = section.get(name, inspect.signature(owner).parameters[name].default)
    if control.name == 'steps':
        chain = (opt.model.get('val_schedule') or opt.model['schedule'])['n_timestep']
        return Setting(control, chain if value is None else value, chain)
    return Setting(control, value, control.most)


def choices_of(control: Control) -> list[str]:
    """What a control of the kind 'choice' can be, as the constructor that takes it says."""
    if control.name == 'color_fix':
        return list(typing.get_args(ColorFix))
    argument, _, inner = control.key.partition(':')
    return list(typing.get_args(typing.get_type_hints(SECTIONS[argument])[inner]))


def overrides_of(offer: Offer, values: Mapping[str, Any]) -> list[str]:
    """What replaces values of the model's option file, for `load_model`; only what differs from it.

    Args:
        values: by names of controls; those that the model does not have are passed over, None leaves a setting.
    Raises UserError for a value that a control cannot have.
    """
    lines = []
    for name, setting in offer.settings.items():
        value = checked(setting, values.get(name))
        if setting.control.key and value != setting.value:
            lines.append(f'model:{setting.control.key}={value}')
    return lines


def restoring_of(offer: Offer, values: Mapping[str, Any]) -> dict[str, Any]:
    """What Restorer is told. Raises UserError."""
    mine = {name: one for name, one in offer.settings.items() if not one.control.key}
    settings = {name: checked(one, values.get(name)) for name, one in mine.items()}
    if 0 < settings['tile'] < SMALLEST_TILE:
        raise UserError(f'Tile should be 0 (the whole image) or at least {SMALLEST_TILE}, got {settings["tile"]}')
    return settings


def checked(setting: Setting, value: Any) -> Any:
    """The value as the control means it. Raises UserError for what it cannot be."""
    control = setting.control
    if value is None:
        return setting.value
    if control.kind == 'choice':
        if value not in (known := choices_of(control)):
            raise UserError(f'{control.label} should be one of {", ".join(known)}, got {str(value)[:40]!r}')
        return value
    return _text(control, value) if control.kind == 'text' else _number(setting, value)


def _number(setting: Setting, value: Any) -> float:
    control, whole = setting.control, setting.control.kind == 'integer'
    # A slider's 8 may come as 8.0, and NaN is neither above nor below anything.
    fits = isinstance(value, (int, float)) and control.least <= value <= setting.most and (not whole or value % 1 == 0)
    if not fits or isinstance(value, bool):
        kind = 'whole number' if whole else 'number'
        raise UserError(
            f'{control.label} should be a {kind} from {control.least:g} to {setting.most:.10g}, got {str(value)[:40]}'
        )
    return int(value) if whole else float(value)


def _text(control: Control, value: Any) -> str:
    text = ' '.join(str(value).split())
    if len(text) > LONGEST_PROMPT:
        raise UserError(f'{control.label} should have at most {LONGEST_PROMPT} letters, got {len(text)}')
    try:
        plain = parse_value(text) == text
    except OptionError:
        plain = False
    if not plain:  # an override would become a number or a list
        raise UserError(f'{control.label} should be words, got {text[:40]!r}')
    return text
