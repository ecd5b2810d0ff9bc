"""What BasicSR's users write in option files, and what this project reads it as."""

from typing import Any

from basicsr.utils.registry import DEGRADATION_REGISTRY, OptionError, argument_model

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
}

MODEL_OPTIONS_OF_TRAIN = ('net_d_iters', 'net_d_init_iters')  # BasicSR's place of these options

GIVEN_TO_DEGRADATIONS = ('scale', 'seed', 'global_batch')  # arguments of a per-batch degradation that no file sets

# BasicSR's Real-ESRGAN models degrade by themselves, with options at the top of the file -> what is sharpened, and the
# options that go on to the model.
DEGRADING_MODELS: dict[str, tuple[bool | str, tuple[str, ...]]] = {
    'RealESRNetModel': (True, ()),
    'RealESRGANModel': ('both', ('l1_gt_usm', 'percep_gt_usm', 'gan_gt_usm')),
}


def published_model(tree: dict) -> tuple[Any, dict]:
    """This project's name of the model of an option file, and the options that make it behave as published.

    Moves the degradation's options of BasicSR's Real-ESRGAN files from the top of `tree` into its section.
    """
    name = tree.get('model_type')
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
