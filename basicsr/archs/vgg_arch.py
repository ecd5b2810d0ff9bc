"""VGG (Simonyan and Zisserman, arXiv:1409.1556) as a source of features, with BasicSR's layer names."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from basicsr.utils.checkpoint import read_checkpoint
from basicsr.utils.download import local_path
from basicsr.utils.registry import ARCH_REGISTRY, OptionError

# Convolutions of each of the five stages; a stage ends with pooling.
STAGES = {'vgg11': (1, 1, 2, 2, 2), 'vgg13': (2, 2, 2, 2, 2), 'vgg16': (2, 2, 3, 3, 3), 'vgg19': (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


@ARCH_REGISTRY.register()
class VGGFeatureExtractor(nn.Module):
    """Features of chosen VGG layers: conv1_1 is a convolution's own output, relu1_1 what follows, then pool1, ...

    Args:
        layer_name_list: the layers; what lies behind the last of them is not built.
        vgg_type: vgg11, vgg13, vgg16 or vgg19, with _bn for batch normalisation.
        use_input_norm: subtract ImageNet's mean and divide by its deviation.
        range_norm: the input is in [-1, 1].
        pretrained: ImageNet weights from torchvision (downloaded once to TORCH_HOME), or a file of them.
    Shape: (b, 3, h, w) in [0, 1] -> {name: (b, channels, h / 2^k, w / 2^k)}. Frozen, in evaluation mode.
    """

    def __init__(
        self,
        layer_name_list: list[str],
        vgg_type: str = 'vgg19',
        use_input_norm: bool = True,
        range_norm: bool = False,
        pretrained: bool | str = True,
    ):
        super().__init__()
        if vgg_type.removesuffix('_bn') not in STAGES:
            known = ', '.join(STAGES)
            raise OptionError(f'{vgg_type!r} is not known; choose from {known}, with or without _bn', ('vgg_type',))
        layers = dict(vgg_layers(vgg_type))
        unknown = [name for name in layer_name_list if name not in layers]
        if unknown or not layer_name_list:
            raise OptionError(f'{unknown or "no layer"} given for {vgg_type}, which has {", ".join(layers)}')
        self.layer_names, self.range_norm, self.use_input_norm = list(layer_name_list), range_norm, use_input_norm
        depth = 1 + max(list(layers).index(name) for name in layer_name_list)
        self.vgg_net = nn.Sequential()
        for name, layer in list(layers.items())[:depth]:
            self.vgg_net.add_module(name, layer)
        if use_input_norm:
            self.register_buffer('mean', torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
            self.register_buffer('std', torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        if pretrained:
            self.vgg_net.load_state_dict(_imagenet_weights(vgg_type, list(layers)[:depth], pretrained))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> 'VGGFeatureExtractor':
        """Stays in evaluation mode: the features are a fixed measure."""
        return super().train(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.range_norm:
            x = (x + 1) / 2
        if self.use_input_norm:
            x = (x - self.mean) / self.std
        features = {}
        for name, layer in self.vgg_net.named_children():
            x = layer(x)
            if name in self.layer_names:
                features[name] = x
        return features


def vgg_layers(vgg_type: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of the convolutional part with their names, in order."""
    channels = 3
    for stage, (count, width) in enumerate(zip(STAGES[vgg_type.removesuffix('_bn')], WIDTHS, strict=True), start=1):
        for number in range(1, count + 1):
            yield f'conv{stage}_{number}', nn.Conv2d(channels, width, 3, padding=1)
            if vgg_type.endswith('_bn'):
                yield f'bn{stage}_{number}', nn.BatchNorm2d(width)
            yield f'relu{stage}_{number}', nn.ReLU()  # not in place: the convolution's output is a feature of its own
            channels = width
        yield f'pool{stage}', nn.MaxPool2d(2)


def _imagenet_weights(vgg_type: str, names: list[str], source: bool | str) -> dict[str, Tensor]:
    """torchvision's entries of the named layers, features.0.weight, under their names here, conv1_1.weight."""
    state = _torchvision_weights(vgg_type) if source is True else read_checkpoint(local_path(source))
    renamed = {}
    for entry, value in state.items():
        part, _, rest = entry.partition('.')
        index, _, leaf = rest.partition('.')
        if part == 'features' and int(index) < len(names):
            renamed[f'{names[int(index)]}.{leaf}'] = value
    return renamed


def _torchvision_weights(vgg_type: str) -> dict[str, Tensor]:
    try:
        from torchvision.models import get_model_weights
    except ImportError:
        raise OptionError(f'the weights of {vgg_type} come from torchvision: pip install torchvision') from None
    weights = get_model_weights(vgg_type).DEFAULT
    try:
        return weights.get_state_dict(progress=False)
    except OSError as error:
        folder = Path(torch.hub.get_dir(), 'checkpoints')
        raise OptionError(
            f'cannot get the ImageNet weights of {vgg_type} from {weights.url}: {error}; put the file in '
            f'{folder} or name it by `pretrained`'
        ) from None
