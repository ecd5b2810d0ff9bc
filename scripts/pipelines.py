"""The degradation that an option file trains with, applied to whole images one by one: for scripts."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from basicsr.data.degradations.kernels import KernelOptions, kernels_of
from basicsr.data.degradations.kernels import parameters as kernel_parameters
from basicsr.utils.plugins import import_plugins
from basicsr.utils.published_options import published_model
from basicsr.utils.registry import DATASET_REGISTRY, DEGRADATION_REGISTRY, OptionError, check_arguments
from basicsr.utils.seeding import derived_seed
from basicsr.utils.yaml_loader import apply_override, load_yaml


class Pipeline:
    """gt -> lq as in training, but of whole images, without flips and pair pool, each with decisions of its own.

    sections: what it depends on: `scale`, `degradation`, `kernels` (None where the degradation needs none) and
    `custom_imports`. Pickled, it travels as these.
    """

    def __init__(self, sections: dict):
        self.sections, self.scale = sections, sections['scale']
        import_plugins(sections['custom_imports'])
        given: dict[str, Any] = {'scale': self.scale}
        self.kernels = None
        if sections['kernels'] is not None:
            given |= {'seed': 0, 'global_batch': 1}  # so that the number of an image decides all
            self.kernels = KernelOptions(**sections['kernels'])
        self.degradation = DEGRADATION_REGISTRY.build(sections['degradation'], **given)

    @classmethod
    def load(cls, path: str, overrides: Sequence[str] = ()) -> 'Pipeline':
        """Of an option file, of which `scale`, `datasets: train:` and `degradation:` matter here.

        Raises OptionError, with the file's name, if these sections describe no degradation.
        """
        tree, _ = load_yaml(path)
        for entry in overrides:
            apply_override(tree, entry)
        try:
            published_model(tree)  # BasicSR's Real-ESRGAN files have the options of the degradation at their top
            return cls.of(tree)
        except OptionError as error:
            place = ':'.join(error.key)
            raise OptionError(f'{path}: {f"{place}: " if place else ""}{error}', error.key) from None

    @classmethod
    def of(cls, tree: dict) -> 'Pipeline':
        """Of the tree of an option file."""
        scale, data = tree.get('scale'), tree.get('datasets')
        train = data.get('train') if isinstance(data, dict) else None
        if not isinstance(scale, int) or scale < 1:
            raise OptionError(f'should be a whole number of at least 1, got {scale!r}', ('scale',))
        if not isinstance(train, dict):
            raise OptionError('is missing: how the training data is made is what is asked for', ('datasets', 'train'))
        plugins = tree.get('custom_imports') or []
        import_plugins(plugins)
        sections = {'scale': scale, 'custom_imports': plugins, 'kernels': None}
        if tree.get('degradation') is None:
            sections['degradation'] = _of_samples(train)
        else:  # of batches, whose images decide for themselves here
            sections['degradation'] = {**tree['degradation'], 'groups': 0}
            sections['kernels'] = _kernels(train)
        try:
            return _pipeline(json.dumps(sections))
        except OptionError as error:
            place = ('datasets', 'train', 'degradation') if sections['kernels'] is None else ('degradation',)
            raise OptionError(str(error), (*place, *error.key)) from None

    def __reduce__(self) -> tuple:
        return _pipeline, (json.dumps(self.sections),)

    def degrade(self, gt: np.ndarray, *numbers: int) -> tuple[np.ndarray, np.ndarray, dict[str, float | str]]:
        """(gt, lq, what was drawn) of a float32 RGB (h, w, 3) in [0, 1]: a function of the image and the numbers.

        The gt that comes back is cut to multiples of the scale, and sharpened where that is part of the degradation.
        Raises ValueError for an image that is too small.
        """
        seed = derived_seed(*numbers)
        rng = np.random.default_rng(seed)
        if self.kernels is not None:
            plan = self.kernels.plan(rng)
            gt, lq, drawn = self.degradation.degrade_image(gt, kernels_of(plan), seed)
            return gt, lq, kernel_parameters(plan) | drawn
        plan = self.degradation.draw(*gt.shape[:2], rng)
        gt, lq = self.degradation.apply(gt, plan)
        return gt, lq, self.degradation.parameters(plan)


def number_of(name: str) -> int:
    """A number of 63 bits that stands for a file name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'little') >> 1


@lru_cache(maxsize=4)
def _pipeline(sections: str) -> Pipeline:
    """Workers get the pipeline with each of their images, but build it once."""
    return Pipeline(json.loads(sections))


def _arguments(data: dict, wanted: str, otherwise: str) -> dict[str, Any]:
    """The arguments of a data set, with its defaults. Raises OptionError unless it has the one that is wanted."""
    entry: Any = DATASET_REGISTRY.get(data.get('type', ''))
    defaults = {name: parameter.default for name, parameter in inspect.signature(entry).parameters.items()}
    if wanted not in defaults:
        raise OptionError(f'{data["type"]} {otherwise}', ('datasets', 'train'))
    return {**defaults, **data}


def _of_samples(data: dict) -> dict:
    """The degradation of a data set that makes lq itself."""
    section = _arguments(data, 'degradation', 'has no degradation, and the file no section `degradation:`')[
        'degradation'
    ]
    if not isinstance(section, dict):
        raise OptionError("option 'degradation' is missing", ('datasets', 'train'))
    return section


def _kernels(data: dict) -> dict:
    """The options of the blur kernels that a data set draws for a degradation of batches."""
    arguments = _arguments(data, 'kernel_list', 'draws no kernels, which the section `degradation:` needs')
    names = [name for name in inspect.signature(KernelOptions).parameters if name in arguments]
    options = {name: arguments[name] for name in names if arguments[name] is not inspect.Parameter.empty}
    options = json.loads(json.dumps(options))
    try:
        check_arguments(KernelOptions, options)
        KernelOptions(**options)
    except OptionError as error:
        raise OptionError(str(error), ('datasets', 'train', *error.key)) from None
    return options
