"""S3Diff's training on plain networks in the place of SD-Turbo's and DINO's, without files."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from option_files import with_changes
from torch import Tensor, nn
from training_fixture import forget_accelerate

from basicsr.models.base_model import BaseModel
from basicsr.models.optimizer_step import optimizer_step
from basicsr.models.s3diff_training import S3DiffTraining, check_training
from basicsr.utils.options import parse_options
from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

SGD = {'type': 'SGD', 'lr': 0.05}
TREE = {
    'name': 'plain',
    'model_type': 'PlainS3DiffModel',
    'scale': 4,
    'device': 'cpu',
    'datasets': {'train': {'type': 'PairedImageDataset', 'dataroot_gt': '.', 'dataroot_lq': '.', 'gt_size': 16}},
    'network_g': {'type': 'PlainGenerator'},
    'train': {'total_iter': 10, 'optim_g': SGD, 'pixel_opt': {'type': 'MSELoss', 'loss_weight': 2.0}},
}
ADVERSARY = {
    'network_d': {'type': 'PlainJudge'},
    'train:optim_d': SGD,
    'train:gan_opt': {'type': 'MultiLevelGANLoss', 'loss_weight': 0.5},
}


@ARCH_REGISTRY.register()
class PlainGenerator(nn.Module):
    """A convolution whose result depends on all that S3Diff is given."""

    downscale, size_multiple = 8, 16

    def __init__(self):
        super().__init__()
        self.conv, self.of_score, self.of_prompt = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(2, 3), nn.Linear(5, 3)
        self.of_noise = nn.Conv2d(4, 3, 1)
        self.vae = SimpleNamespace(config=SimpleNamespace(latent_channels=4))
        self.checkpointed, self.prompts, self.scores = False, [], []

    def gradient_checkpointing(self, on: bool) -> None:
        self.checkpointed = on

    def forward(self, x: Tensor, score: Tensor, prompt: Tensor, noise: Tensor | None) -> Tensor:
        self.prompts.append(prompt)
        self.scores.append(score)
        shift = self.of_score(score) + self.of_prompt(prompt.mean(1))
        y = self.conv(x) + shift[:, :, None, None]
        if noise is not None:
            y = y + F.interpolate(self.of_noise(noise), scale_factor=self.downscale)
        return y.clamp(-1, 1)


@ARCH_REGISTRY.register()
class PlainJudge(nn.Module):
    """Two levels of judgements."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 1, 3, stride=2), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fine(x)[:, 0], self.coarse(x.tanh().mean((2, 3)))


@MODEL_REGISTRY.register()
class PlainS3DiffModel(BaseModel):
    """What S3DiffTraining needs of its model; a score is the mean and the deviation of lq."""

    loss_names = ('pixel', 'perceptual', 'gan')
    averaged = ()

    def __init__(self, opt, neg_prob: float = 0.0, generator_steps: str = 'two', sample_posterior: bool = False):
        check_training(opt, neg_prob)
        super().__init__(opt)
        torch.manual_seed(5)
        self.prompts = torch.randn(1, 4, 5), torch.randn(1, 4, 5)
        self.sample_posterior = sample_posterior
        self.training = S3DiffTraining(self, neg_prob, generator_steps, gradient_checkpointing=True)

    def scores(self, lq: Tensor) -> Tensor:
        return torch.stack([lq.mean((1, 2, 3)), lq.std((1, 2, 3))], 1)

    def enlarged(self, lq: Tensor) -> Tensor:
        return F.interpolate(lq, scale_factor=self.scale, mode='bilinear')

    def training_step(self, batch: dict) -> dict[str, Tensor]:
        return self.training.step(batch)


def plain_options(*changes: dict[str, Any]):
    """Options of TREE with changes such as {'model:neg_prob': 1}."""
    batch = {'datasets:train:batch_size_per_gpu': 2}
    return parse_options(with_changes(TREE | {'model': {}}, batch, *changes), is_train=True)


def plain_model(*changes: dict[str, Any]) -> BaseModel:
    """The model of TREE with these changes, ready to train, always with the same weights."""
    opt = plain_options(*changes)
    forget_accelerate()  # it keeps the precision of the first Accelerator of a process
    torch.manual_seed(0)
    accelerator = Accelerator(
        cpu=True,
        mixed_precision=opt.train.mixed_precision or 'no',
        gradient_accumulation_steps=opt.train.gradient_accumulation_steps,
    )
    return MODEL_REGISTRY.build({'type': opt.model_type, **opt.model}, opt=opt).prepare(accelerator)


def batch(count: int = 2, side: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """A smooth gt and its mean over squares of 4 x 4 pixels."""
    gt = torch.rand(count, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    gt = F.interpolate(gt, scale_factor=4, mode='bicubic').clamp(0, 1)
    return {'lq': F.avg_pool2d(gt, 4), 'gt': gt}


def parts(whole: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The batch in `count` batches."""
    split = {name: value.chunk(count) for name, value in whole.items()}
    return [{name: value[number] for name, value in split.items()} for number in range(count)]


def learn(model: BaseModel, *batches: dict[str, Tensor], first: int = 1) -> list[dict[str, Tensor]]:
    """Iterations as train.py makes them; returns the logged losses of each."""
    source, logged = iter(batches), []
    for iteration in range(first, first + len(batches) // model.accelerator.gradient_accumulation_steps):
        logged.append(optimizer_step(model, source, iteration))
        model.after_step(iteration)
    return logged


def weights(model: BaseModel) -> dict[str, Tensor]:
    """Copies of the entries of all networks."""
    return {
        f'{label}.{name}': value.detach().clone()
        for label in model.nets
        for name, value in model.bare(label).state_dict().items()
    }
