"""The project's own model on the networks of a reference case, without files: what training cases are run through."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from basicsr.utils.options import Options, parse_options
from basicsr.utils.registry import ARCH_REGISTRY

DATASET = {'type': 'PairedImageDataset', 'dataroot_gt': '.', 'dataroot_lq': '.', 'gt_size': 8, 'batch_size_per_gpu': 1}


def options(networks: dict, train: dict, scale: int, model_type: str = 'SRModel', **sections: dict) -> Options:
    """Options as an option file would give them; the data set that they name is never read."""
    return parse_options(
        {
            'name': 'reference',
            'model_type': model_type,
            'scale': scale,
            'num_gpu': 0,
            'datasets': {'train': DATASET},
            'train': {'total_iter': 1000, **train},
            **networks,
            **sections,
        },
        is_train=True,
    )


def prepared(opt: Options) -> BaseModel:
    """The model ready to train in float32 on the CPU."""
    return build_model(opt).prepare(Accelerator(cpu=True, mixed_precision='no'))


def learn(model: BaseModel, iteration: int, lq: Tensor, gt: Tensor) -> dict[str, Tensor]:
    """One iteration as train.py makes it; returns the logged losses."""
    model.before_step(iteration)
    losses = model.training_step({'lq': lq, 'gt': gt})
    model.after_step(iteration)
    return losses


@ARCH_REGISTRY.register()
class ReferenceGenerator(nn.Module):
    """The tiny generator of the GAN and checkpoint cases: two 3x3 convolutions and a pixel shuffle."""

    def __init__(self, num_in_ch: int, num_feat: int, num_out_ch: int):
        super().__init__()
        self.scale = round((num_out_ch / num_in_ch) ** 0.5)
        self.c1 = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.c2 = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.c2(F.leaky_relu(self.c1(x), 0.2)), self.scale)


@ARCH_REGISTRY.register()
class ReferenceDiscriminator(nn.Module):
    """The tiny discriminator of those cases: two 3x3 convolutions, the first with stride 2."""

    def __init__(self, num_in_ch: int, num_feat: int, num_out_ch: int):
        super().__init__()
        self.c1 = nn.Conv2d(num_in_ch, num_feat, 3, stride=2, padding=1)
        self.c2 = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c2(F.leaky_relu(self.c1(x), 0.2))


def tiny_networks(shapes: dict[str, list[int] | torch.Size]) -> dict[str, dict]:
    """Sections of the tiny networks, from the shapes of g_c1.weight and g_c2.weight, and of d_c1... if there is a d."""
    sections = {}
    for label, kind in (('g', 'ReferenceGenerator'), ('d', 'ReferenceDiscriminator')):
        if f'{label}_c1.weight' not in shapes:
            continue
        first, second = shapes[f'{label}_c1.weight'], shapes[f'{label}_c2.weight']
        sections[f'network_{label}'] = {
            'type': kind,
            'num_in_ch': first[1],
            'num_feat': first[0],
            'num_out_ch': second[0],
        }
    return sections
