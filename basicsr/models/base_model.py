"""What every model shares: networks, averages, losses and optimizers by the labels of the option file."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from basicsr.models.ema import WeightAverage
from basicsr.models.optimizers import LearningRates, build_optimizer
from basicsr.utils.checkpoint import load_network, load_pretrained
from basicsr.utils.options import Options
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY

if TYPE_CHECKING:
    from basicsr.models.sharding import Sharding


class NonFiniteLoss(ArithmeticError):
    """A loss was NaN or infinite; nothing was updated by it."""


class BaseModel:
    """`network_g` of the option file is `nets['g']`, `optim_g` its optimizer, `pixel_opt` is `losses['pixel']`.

    A model offers `training_step(batch) -> losses` and `restore(lq) -> sr`; scale and size_multiple (the sides that its
    networks accept are multiples of it) are read by Restorer.
    """

    loss_names: tuple[str, ...] = ()
    training_only: tuple[str, ...] = ('d',)  # networks that restoring does not need
    always_trained: tuple[str, ...] = ('g',)  # networks that every training needs an optimizer for
    averaged: tuple[str, ...] = ('g',)  # networks that ema_decay averages, where they are trained
    unsaved: tuple[str, ...] = ()  # networks that stay what a file has, of which checkpoints have no copy
    size_multiple = 1
    tiles_itself = False  # restore is given whole images, and the tiles to work in (see Restorer)
    maps: tuple[str, ...] = ()  # what `restore_with_maps` gives beside the image

    def __init__(self, opt: Options):
        self.opt, self.scale, self.device = opt, opt.scale, torch.device('cpu')
        labels = [label for label in opt.networks if opt.is_train or label not in self.training_only]
        self.nets: dict[str, nn.Module] = {label: ARCH_REGISTRY.build(opt.networks[label]) for label in labels}
        self.averages: dict[str, WeightAverage] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.losses: dict[str, nn.Module] = {}
        self.rates: LearningRates | None = None
        self.accelerator = None
        self.sharding: Sharding | None = None
        self._load_pretrained()

    @classmethod
    def check_needs(cls, opt: Options, offline: bool | None) -> None:
        """Fetch what restoring needs beside the weights, before these; raises UserError for what cannot be had.

        Args:
            offline: download nothing; None asks the environment.
        """

    def prepare(self, accelerator, sharding: Sharding | None = None) -> BaseModel:
        """Put everything where it trains: device, memory format, losses, optimizers, wrapping for several processes."""
        self.accelerator, train = accelerator, self.opt.train
        self.sharding = sharding
        if sharding is not None:
            sharding.apply(self.nets, accelerator.device.type, accelerator.num_processes)
        self.to(accelerator.device)
        for label, section in train.losses.items():
            self.losses[label] = LOSS_REGISTRY.build(section).to(self.device)
        for label, net in self.nets.items():
            if label in train.optims:
                self.optimizers[label] = build_optimizer(train.optims[label], net.parameters(), self.device)
                net.train()
            else:
                net.requires_grad_(False).eval()
        self.rates = LearningRates(train.scheduler, self.optimizers, train.warmup_iter)
        for label in self.optimizers:
            if train.compile:
                self.nets[label].compile()
            if sharding is None:
                self.nets[label], self.optimizers[label] = accelerator.prepare(self.nets[label], self.optimizers[label])
            else:
                self.nets[label] = sharding.wrapped(self.nets[label], accelerator)
                self.optimizers[label] = accelerator.prepare(self.optimizers[label])
            if accelerator.num_processes > 1:  # d runs twice before a backward pass, which needs its buffers unchanged
                self.nets[label].broadcast_buffers = False
        return self

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> BaseModel:
        """Move the networks and their averages; a `dtype` casts them too (for restoring)."""
        self.device = torch.device(device)
        memory_format = (
            torch.channels_last if self.opt.train and self.opt.train.channels_last else torch.preserve_format
        )
        for net in (*self.nets.values(), *(average.net for average in self.averages.values())):
            net.to(device=self.device, dtype=dtype, memory_format=memory_format)
        return self

    @property
    def trained(self) -> list[nn.Module]:
        """The networks that have an optimizer, as accelerate wrapped them."""
        return [self.nets[label] for label in self.optimizers]

    def training_step(self, batch: dict) -> dict[str, Tensor]:
        """Learn from one batch; returns the losses by their names in the log."""
        raise NotImplementedError(f'{type(self).__name__} does not train')

    def restore(self, lq: Tensor, **context: Tensor) -> Tensor:
        """Super-resolve images or tiles: (b, 3, h, w) in [0, 1] -> (b, 3, h * scale, w * scale), not clamped."""
        return self.eval_net('g')(lq)

    def context(self, lq: Tensor) -> dict:
        """What `restore` needs to know of the whole image when it is called on tiles of it."""
        return {}

    def eval_net(self, label: str) -> nn.Module:
        """The network to restore with: its average where there is one, in evaluation mode."""
        if label in self.averages:
            return self.averages[label].net
        return self.bare(label).eval()

    def bare(self, label: str) -> nn.Module:
        """The network without what accelerate wrapped around it for several processes."""
        net = self.nets[label]
        return net if self.accelerator is None else self.accelerator.unwrap_model(net)

    def before_step(self, iteration: int) -> None:
        """Training mode and the learning rates of `iteration`, counted from 1."""
        self.rates.set(iteration)
        for net in self.trained:
            net.train()

    def after_step(self, iteration: int) -> None:
        """Let the averages follow, after optimizer step number `iteration`."""
        for label, average in self.averages.items():
            average.update(self.bare(label))

    def update(self, label: str, loss: Tensor) -> None:
        """The only backward pass and optimizer step: accumulates, clips, steps and clears network `label`.

        Raises NonFiniteLoss, on all processes alike, before anything was updated.
        """
        accelerator, optimizer = self.accelerator, self.optimizers[label]
        accelerator.backward(loss)
        finite = torch.isfinite(loss.detach()).float()  # read after the backward pass was queued: a GPU goes on working
        if accelerator.num_processes > 1:
            finite = accelerator.reduce(finite, reduction='mean')
        if finite.item() < 1 and accelerator.scaler is None:
            raise NonFiniteLoss(f'the loss of network_{label} is {loss.item()}')
        if accelerator.sync_gradients:
            self._clip(label)
        optimizer.step()
        optimizer.zero_grad()

    def _clip(self, label: str) -> None:
        """Limit the gradient norm to grad_clip. Raises NonFiniteLoss: a finite loss may have gradients that are not."""
        accelerator, limit = self.accelerator, self.opt.train.grad_clip
        if accelerator.scaler is not None and not limit:
            return  # the scaler looks for overflows itself
        accelerator.unscale_gradients(
            self.optimizers[label]
        )  # accelerate's clip_grad_norm_ would unscale the others' too
        parameters = [p for p in self.nets[label].parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if accelerator.scaler is None and not norm.isfinite():
            raise NonFiniteLoss(f'the gradient of network_{label} is {norm.item()}')
        if limit:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def discard(self) -> None:
        """Forget gradients that were not applied."""
        for net in self.trained:
            net.zero_grad(set_to_none=True)

    def networks(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """What a checkpoint holds of each network: {label: {'params': ..., 'params_ema': ...}}, tensors on the CPU."""
        contents = {}
        for label in (one for one in self.nets if one not in self.unsaved):
            contents[label] = {'params': _on_cpu(self.bare(label))}
            if label in self.averages:
                contents[label]['params_ema'] = _on_cpu(self.averages[label].net)
        return contents

    def load_networks(self, contents: dict[str, dict], labels: Iterable[str]) -> None:
        """Continue from what `networks` gave, for the named labels."""
        for label in labels:
            load_network(self.bare(label), contents[label]['params'], f'network_{label}')
            if label in self.averages:
                average = contents[label].get('params_ema', contents[label]['params'])
                load_network(self.averages[label].net, average, f'average of network_{label}')

    def training_state(self) -> dict:
        """The optimizers and schedules, in BasicSR's order: g, then the others."""
        state = {
            'optimizers': [o.state_dict() for o in self.optimizers.values()],
            'schedulers': [s.state_dict() for s in self.rates.schedulers],
        }
        if self.accelerator.scaler is not None:
            state['scaler'] = self.accelerator.scaler.state_dict()
        return state

    def load_training_state(self, state: dict) -> None:
        """Continue from what `training_state` gave. Raises ValueError if it belongs to another set of networks."""
        for kind, mine in (('optimizers', list(self.optimizers.values())), ('schedulers', self.rates.schedulers)):
            if len(state[kind]) != len(mine):
                raise ValueError(f'the state has {len(state[kind])} {kind}, this option file {len(mine)}')
            for one, content in zip(mine, state[kind], strict=True):
                one.load_state_dict(content)
        if self.accelerator.scaler is not None and 'scaler' in state:
            self.accelerator.scaler.load_state_dict(state['scaler'])

    def _load_pretrained(self) -> None:
        """First weights as the option file names them; the averages start from `params_ema` where the file has it."""
        for label, net in self.nets.items():
            source, complete = self.opt.path.pretrained.get(label), partial(self._completed, label)
            if source:
                load_pretrained(net, source, source.param_key, complete=complete)
            train = self.opt.train
            if label in self.averaged and train is not None and train.ema_decay and label in train.optims:
                self.averages[label] = WeightAverage(net, self.opt.train.ema_decay)
                if source:  # what the file lacks was drawn once, by the network: the average starts from the same
                    load_pretrained(self.averages[label].net, source, 'params_ema', like=net, complete=complete)

    def _completed(self, label: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a file of first weights, and those that it leaves to other files."""
        return state


def _on_cpu(net: nn.Module) -> dict[str, Tensor]:
    """The entries of a network, its own ones if it has others that belong to another file."""
    entries = net.state_dict()
    names = net.own_names() if hasattr(net, 'own_names') else entries
    return {name: value.detach().cpu() for name, value in entries.items() if name in names}
