"""The divergence of branches, against its formula written out pair by pair."""

import itertools

import pytest
import torch
from golden_case import load_case

from basicsr.utils.registry import LOSS_REGISTRY

PUBLISHED = {'type': 'TripletDivergenceLoss', 'loss_weight': 1.0, 'margin_same': 2e-5, 'margin_diff': 5e-5}
SETTINGS = [
    PUBLISHED,
    {**PUBLISHED, 'loss_weight': 3.0, 'margin_same': 0.1, 'margin_diff': 0.3},
    {**PUBLISHED, 'margin_same': 0.4, 'margin_diff': 0.1, 'same_parent_factor': 0.5},
]


def images(seed: int = 0, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Branches that resemble a gt: some hinges are open, some closed."""
    generator = torch.Generator().manual_seed(seed)
    gt = torch.rand(2, 3, 9, 7, generator=generator)
    noise = torch.randn(2, 4, 3, 9, 7, generator=generator)
    amount = torch.tensor([0.05, 0.1, 0.4, 0.2]).view(1, 4, 1, 1, 1)
    return (gt[:, None] + amount * noise).to(dtype), gt.to(dtype)


def plain(branches, gt, loss_weight, margin_same, margin_diff, same_parent_factor=0.8, **_) -> torch.Tensor:
    """d2c.md 4.2, term by term, on any number type."""

    def normalised(image):
        gray = (image[:, :1] + image[:, 1:2] + image[:, 2:3]) / 3
        return (gray - gray.mean()) / torch.std(gray, unbiased=False)

    errors = [(normalised(branches[:, k]) - normalised(gt)).abs() for k in range(4)]
    terms = []
    for i, j in itertools.permutations(range(4), 2):
        same = i // 2 == j // 2
        positive, negative = (errors[i] ** 2).mean(), ((errors[i] - errors[j]) ** 2).mean()
        hinge = torch.clamp(positive - negative + (margin_same if same else margin_diff), min=0)
        terms.append(hinge * (same_parent_factor if same else 1))
    return loss_weight * sum(terms) / len(terms)


@pytest.mark.parametrize('options', SETTINGS)
@pytest.mark.parametrize('seed', [0, 1])
def test_values_and_gradients_are_those_of_the_formula(options, seed):
    branches, gt = (x.requires_grad_() for x in images(seed))
    exact = [x.detach().double().requires_grad_() for x in (branches, gt)]
    loss = LOSS_REGISTRY.build(options)(branches, gt)
    expected = plain(*exact, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)
    assert loss.shape == () and loss > 0
    loss.backward()
    expected.backward()
    for ours, reference in zip((branches, gt), exact, strict=True):
        torch.testing.assert_close(
            ours.grad.double(), reference.grad, rtol=1e-4, atol=1e-5 * reference.grad.abs().max()
        )


def test_some_hinges_of_the_test_images_are_closed_and_some_open():
    hinges = LOSS_REGISTRY.build(PUBLISHED).hinges(*images())
    assert (hinges.diagonal() == 0).all()
    others = hinges[~torch.eye(4, dtype=torch.bool)]
    assert (others == 0).any() and (others > 0).any()


def test_brightness_and_contrast_of_a_branch_do_not_count():
    branches, gt = images()
    loss = LOSS_REGISTRY.build(PUBLISHED)
    changed = branches.clone()
    changed[:, 1] = 0.4 * changed[:, 1] + 0.2
    torch.testing.assert_close(loss(changed, gt), loss(branches, gt))


@pytest.mark.parametrize('constant', ['gt', 'branch', 'all'])
def test_constant_images_give_finite_values_and_gradients(constant):
    branches, gt = images()
    if constant != 'branch':
        gt = torch.full_like(gt, 0.3)
    if constant != 'gt':
        branches[:, 2 if constant == 'branch' else slice(None)] = 0.3
    branches.requires_grad_()
    loss = LOSS_REGISTRY.build(PUBLISHED)(branches, gt)
    loss.backward()
    assert loss.isfinite() and branches.grad.isfinite().all()


def test_it_computes_in_float32_under_autocast_and_of_half_precision_images():
    branches, gt = images()
    loss = LOSS_REGISTRY.build(PUBLISHED)
    expected = loss(branches.bfloat16().float(), gt)
    with torch.autocast('cpu', torch.bfloat16):
        result = loss(branches.bfloat16(), gt)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)


def test_the_golden_values_are_the_terms_divided_by_twelve():
    case = load_case('d2c', 'divergence_loss')
    branches = torch.stack([torch.tensor(case.arrays[f'out{k}']) for k in (11, 12, 21, 22)], 1)
    settings = case.args['settings'][2]
    options = {**PUBLISHED, 'loss_weight': settings['diver_w'], 'margin_same': 0.1, 'margin_diff': 0.3}
    loss = LOSS_REGISTRY.build(options)(branches, torch.tensor(case.arrays['hr']))
    assert loss.item() == pytest.approx(case.arrays['terms_2'].sum() / 12, rel=1e-4)


def test_other_shapes_are_refused():
    branches, gt = images()
    loss = LOSS_REGISTRY.build(PUBLISHED)
    for wrong in (branches[:, :3], branches[:, 0], branches[..., :-1]):
        with pytest.raises(ValueError, match=r'four branches needs \(b, 4, c, h, w\)'):
            loss(wrong, gt)
    assert not loss.state_dict()
