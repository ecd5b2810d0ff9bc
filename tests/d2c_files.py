"""What checkpoint_tiny.pkl, written by MegEngine, holds, by another way; and networks that fit it."""

from collections import OrderedDict

import numpy as np
from golden_case import GOLDEN, filled, load_case

from basicsr.archs.d2c_arch import D2CBranches, D2CFusion

TINY = GOLDEN / 'd2c' / 'checkpoint_tiny.pkl'
KEYS = ('state_dict_D', 'state_dict_C')


def published() -> dict[str, OrderedDict]:
    """What checkpoint_tiny.pkl holds, made from its JSON."""
    spec = load_case('d2c', 'checkpoint_tiny').spec
    layouts = zip(KEYS, (spec['layout'], spec['layout_C']), strict=True)
    return {k: OrderedDict((n, filled(n, s).numpy()) for n, s in layout.items()) for k, layout in layouts}


def nets() -> tuple[D2CBranches, D2CFusion]:
    return D2CBranches(scale=2, n_resblocks=1, n_feats=4, reduction=2), D2CFusion()


def equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, state in expected.items():
        assert list(found[key]) == list(state)
        for name, array in state.items():
            assert found[key][name].shape == array.shape
            np.testing.assert_array_equal(found[key][name].numpy(), array)
