"""What BasicSR's users write in option files, and what this project reads it as."""

import logging
from typing import Any

from basicsr.utils.registry import DEGRADATION_REGISTRY, OptionError, argument_model

logger = logging.getLogger('basicsr')

# Model names of the published option files -> this project's model and the options that make it behave alike.
PUBLISHED_MODELS: dict[str, tuple[str, dict]] = {
    'ATDModel': ('SRModel', {}),
    'SwinIRModel': ('SRModel', {}),
    'SRGANModel': ('SRModel', {}),
    'ESRGANModel': ('SRModel', {'relativistic': True}),
}

# Keys of BasicSR's files that have no effect here -> what does their work.
REPLACED = {
    ('num_gpu',): '`accelerate launch --num_processes N` (or torchrun) chooses the devices',
    ('dist_params',): '`accelerate launch` (or torchrun) sets up the process group',
    ('bsz',): 'it only holds an anchor; batch sizes are read from the data sets',
    ('datasets', '*', 'prefetch_mode'): 'the loader always prefetches, from pinned memory on a GPU',
    ('datasets', '*', 'persistent_workers'): 'workers live as long as the run',
    ('datasets', '*', 'num_prefetch_queue'): 'the loader chooses its own queue',
    ('datasets', '*', 'use_shuffle'): 'training always shuffles, validation never does',
    ('datasets', '*', 'phase'): 'the name of the data set entry says it',
    ('datasets', '*', 'scale'): 'the scale at the top of the file is used',
    ('logger', 'save_latest_freq'): 'save_checkpoint_freq and keep_last say what is kept',
    ('logger', 'show_tf_imgs_freq'): 'val:save_img saves the images of validation',
}

MODEL_OPTIONS_OF_TRAIN = ('net_d_iters', 'net_d_init_iters')  # BasicSR's place of these options

GIVEN_TO_DEGRADATIONS = ('scale', 'seed', 'global_batch')  # arguments of a per-batch degradation that no file sets

# BasicSR's Real-ESRGAN models degrade by themselves, with options at the top of the file -> what is sharpened, and the
# options that go on to the model.
DEGRADING_MODELS: dict[str, tuple[bool | str, tuple[str, ...]]] = {
    'RealESRNetModel': (True, ()),
    'RealESRGANModel': ('both', ('l1_gt_usm', 'percep_gt_usm', 'gan_gt_usm')),
}

ITER_MODELS = {'SwinVQGANModel': 'CodebookLoss', 'ITERModel': 'TokenLoss'}  # -> the loss that its codebook_opt means
NO_EFFECT_ON_ITER = ('in_channel', 'gt_resolution', 'norm_type', 'act_type', 'codebook_params')


def published_model(tree: dict) -> tuple[Any, dict]:
    """This project's name of the model of an option file, and the options that make it behave as published.

    Moves the degradation's options of BasicSR's Real-ESRGAN files from the top of `tree` into its section.
    """
    name = tree.get('model_type')
    if name in ITER_MODELS:
        return name, iter_options(tree)
    if not isinstance(name, str) or name not in DEGRADING_MODELS:
        return PUBLISHED_MODELS.get(name, (name, {})) if isinstance(name, str) else (name, {})
    sharpened, of_model = DEGRADING_MODELS[name]
    if tree.pop('high_order_degradation', True) is not True:
        raise OptionError(
            'false reads lq from disk: then give model_type SRModel and a PairedImageDataset',
            ('high_order_degradation',),
        )
    options = {'l1_gt_usm': True, 'percep_gt_usm': True, 'gan_gt_usm': False} if of_model else {}
    options |= {key: tree.pop(key) for key in of_model if key in tree}
    if 'degradation' not in tree:
        entry = DEGRADATION_REGISTRY.get('RealESRGANDegradation')
        names = argument_model(entry, GIVEN_TO_DEGRADATIONS).model_fields
        moved = {key: tree.pop(key) for key in names if key in tree}
        tree['degradation'] = {'type': 'RealESRGANDegradation', 'gt_usm': sharpened, **moved}
    return 'SRModel', options


def iter_options(tree: dict) -> dict:
    """Rewrite in `tree` what ITER's files spell otherwise; returns the options that make its model behave as published.

    Published are files whose network_g is a VQModel, or has LQ_stage. Only in those do iterations count batches.
    """
    path, train, network = _own_section(tree, 'path'), _own_section(tree, 'train'), tree.get('network_g')
    for key, kind in (('codebook_opt', ITER_MODELS[tree['model_type']]), ('struct_opt', 'SSIMLoss')):
        value = train.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            train[key] = {'type': kind, 'loss_weight': value}
        elif isinstance(value, dict) and value.get('type') in (None, 'ssimc'):
            train[key] = {**value, 'type': kind}
    if not isinstance(network, dict) or (network.get('type') != 'VQModel' and 'LQ_stage' not in network):
        return {}
    for section in (tree, train):
        if 'gradient_accumulation_steps' in section:
            train['gradient_accumulation_steps'] = section.pop('gradient_accumulation_steps')
    if train.pop('net_d_iters', 1) != 1:
        raise OptionError('both networks learn in every iteration here: should be 1', ('train', 'net_d_iters'))
    for label, dataset in _own_section(tree, 'datasets').items():
        if isinstance(dataset, dict) and dataset.get('type') == 'PairedImageDataset' and label.startswith('train'):
            dataset.setdefault('filter_key', 'full')
            if 'use_flip' in dataset:
                dataset['use_hflip'] = dataset.pop('use_flip')
    _count_steps(tree, train)
    if network['type'] == 'VQModel':
        network['type'] = 'SwinVQGAN'
        _move_checkpoint(network, path, 'g')
        return {}
    return _iter_network(network, path)


def _iter_network(network: dict, path: dict) -> dict:
    """The part of `iter_options` about the network of the later stages."""
    if network.pop('LQ_stage') is not True:
        raise OptionError(
            'false is the VQGAN alone: then give model_type SwinVQGANModel and its network', ('network_g', 'LQ_stage')
        )
    phase = network.pop('LQ_train_phase', 'refine')
    if phase not in ('refine', 'token_pred'):
        raise OptionError(f"should be 'refine' or 'token_pred', got {phase!r}", ('network_g', 'LQ_train_phase'))
    for key in NO_EFFECT_ON_ITER:
        if key in network:
            network.pop(key)
            logger.info('network_g:%s is not used: it has no effect in the published code either', key)
    if isinstance(network.get('vqgan_opt'), dict):
        _move_checkpoint(network['vqgan_opt'], path, 'hq')
    network['refine'] = phase == 'refine'
    if phase == 'token_pred':
        return {'stages': 'tokens'}
    return {'stages': 'joint', 'refinement': {'schedule': 'cosine', 'threshold': 0.5}}


def _move_checkpoint(options: dict, path: dict, label: str) -> None:
    """A network's own ckpt_path as the pretrain_network_X of path, which may name the same file too."""
    file, key = options.pop('ckpt_path', None), f'pretrain_network_{label}'
    if file is not None and path.setdefault(key, file) != file:
        raise OptionError(f"{path[key]!r} is another file than the network's ckpt_path {file!r}", ('path', key))


def _count_steps(tree: dict, train: dict) -> None:
    """Divide counts of batches by gradient_accumulation_steps; see that states are saved before the end."""
    steps, log, val = train.get('gradient_accumulation_steps', 1), *(_own_section(tree, k) for k in ('logger', 'val'))
    counts = [(train, 'total_iter'), (train, 'net_d_init_iters'), (val, 'val_freq')]
    counts += [(log, 'print_freq'), (log, 'save_checkpoint_freq')]
    if isinstance(steps, int) and steps > 1:
        for section, key in counts:
            if key in section and isinstance(section[key], int | float):
                section[key] = int(section[key] // steps)
        schedule = train.get('scheduler') or {}
        for key in ('milestones', 'periods', 'restarts'):
            if key in schedule:
                schedule[key] = [count // steps for count in schedule[key]]
        logger.info('iterations are optimizer steps here: all counts of batches are divided by %d', steps)
    if log.get('save_checkpoint_freq', 0) >= train.get('total_iter', float('inf')):
        log['save_checkpoint_freq'] = 5000
        log.setdefault('keep_last', 2)
        logger.info('logger:save_checkpoint_freq: no state would be saved before the end; it is set to 5000')


def _own_section(tree: dict, key: str) -> dict:
    """A section of a file, made if it is not there; a section that is none is left to the checks that follow."""
    section = tree.setdefault(key, {})
    return section if isinstance(section, dict) else {}
