"""Losses in the feature spaces of networks trained for classification."""

from typing import Literal

from torch import Tensor, nn

from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY


@LOSS_REGISTRY.register()
class PerceptualLoss(nn.Module):
    """Difference of VGG features, and of their correlations (Johnson et al., arXiv:1603.08155).

    Args:
        layer_weights: weight of each compared layer by its name, as in {'conv5_4': 1}; conv5_4 is before its ReLU,
            relu5_4 after.
        vgg_type: vgg11, vgg13, vgg16 or vgg19, with _bn for batch normalisation.
        use_input_norm: subtract ImageNet's mean and divide by its deviation.
        range_norm: the images are in [-1, 1].
        perceptual_weight, style_weight: of the two parts; 0 leaves one out.
        criterion: 'l1', 'l2' (mean squared error) or 'fro' (Frobenius norm).
        pretrained: ImageNet weights from torchvision (downloaded once to TORCH_HOME), or a file of them.
    """

    def __init__(
        self,
        layer_weights: dict[str, float],
        vgg_type: str = 'vgg19',
        use_input_norm: bool = True,
        range_norm: bool = False,
        perceptual_weight: float = 1.0,
        style_weight: float = 0.0,
        criterion: Literal['l1', 'l2', 'fro'] = 'l1',
        pretrained: bool | str = True,
    ):
        super().__init__()
        if criterion not in CRITERIA:
            raise ValueError(f'criterion {criterion!r} is not known; choose from {", ".join(CRITERIA)}')
        self.layer_weights, self.criterion = dict(layer_weights), CRITERIA[criterion]
        self.perceptual_weight, self.style_weight = perceptual_weight, style_weight
        self.vgg = ARCH_REGISTRY.build(
            {
                'type': 'VGGFeatureExtractor',
                'layer_name_list': list(layer_weights),
                'vgg_type': vgg_type,
                'use_input_norm': use_input_norm,
                'range_norm': range_norm,
                'pretrained': pretrained,
            }
        )

    def forward(self, sr: Tensor, gt: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(b, 3, h, w) in [0, 1] twice -> weighted perceptual loss and style loss, None for a part of weight 0."""
        sr_features, gt_features = self.vgg(sr), self.vgg(gt.detach())
        perceptual = style = None
        if self.perceptual_weight > 0:
            perceptual = self.perceptual_weight * self._difference(sr_features, gt_features)
        if self.style_weight > 0:
            grams = ({name: gram(x) for name, x in features.items()} for features in (sr_features, gt_features))
            style = self.style_weight * self._difference(*grams)
        return perceptual, style

    def _difference(self, sr: dict[str, Tensor], gt: dict[str, Tensor]) -> Tensor:
        return sum(weight * self.criterion(sr[name] - gt[name]) for name, weight in self.layer_weights.items())


@LOSS_REGISTRY.register()
class LPIPSLoss(nn.Module):
    """loss_weight * mean LPIPS distance (arXiv:1801.03924).

    Args:
        net: the network whose features are compared; its weights come from torchvision.
        pretrained: false starts it at random, for trying things out without a download.
    """

    def __init__(
        self, loss_weight: float = 1.0, net: Literal['alex', 'vgg', 'squeeze'] = 'vgg', pretrained: bool = True
    ):
        super().__init__()
        self.loss_weight = loss_weight
        self.distance = ARCH_REGISTRY.build({'type': 'LPIPS', 'net': net, 'pretrained': pretrained})

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        return self.loss_weight * self.distance(sr, gt).mean()


def gram(features: Tensor) -> Tensor:
    """Correlations of channels, divided by the number of values: (b, c, h, w) -> (b, c, c)."""
    flat = features.flatten(2)
    return flat @ flat.mT / flat[0].numel()


CRITERIA = {
    'l1': lambda difference: difference.abs().mean(),
    'l2': lambda difference: difference.square().mean(),
    'fro': lambda difference: difference.norm(),
}
