import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from basicsr.archs.blocks.lora import LoRALayer, Projections, add_projected, fold, inject

EXACT = torch.float64
LAYERS = {
    'linear': (nn.Linear(5, 7), (6, 5)),
    'linear without bias': (nn.Linear(5, 3, bias=False), (4, 5)),
    'conv': (nn.Conv2d(4, 6, 3, padding=1), (4, 5, 6)),
    'conv 1x1': (nn.Conv2d(4, 6, 1), (4, 5, 6)),
    'conv of stride 2': (nn.Conv2d(4, 3, 3, stride=2), (4, 7, 9)),
    'dilated conv': (nn.Conv2d(4, 3, (3, 1), padding=(2, 0), dilation=(2, 1)), (4, 7, 9)),
}
every_layer = pytest.mark.parametrize('kind', LAYERS)


def adapted(kind: str, rank: int = 3, row: int = 1) -> LoRALayer:
    torch.manual_seed(0)
    layer = LoRALayer(copy.deepcopy(LAYERS[kind][0]).to(EXACT), rank, 'default', row, Projections(), 0)
    nn.init.normal_(layer.lora_B['default'].weight)
    return layer


def inputs(kind: str, b: int, seed: int = 1) -> Tensor:
    return torch.randn(b, *LAYERS[kind][1], dtype=EXACT, generator=torch.Generator().manual_seed(seed))


def matrices(n: int, rows: int = 3, rank: int = 3, seed: int = 2) -> Tensor:
    return torch.randn(n, rows, rank, rank, dtype=EXACT, generator=torch.Generator().manual_seed(seed))


def by_weights(layer: LoRALayer, x: Tensor, m: Tensor) -> Tensor:
    """Image by image: the layer with the weight that the addition is equal to, W + scaling * B M^T A."""
    base, down, up = layer.base_layer, layer.lora_A['default'].weight, layer.lora_B['default'].weight
    results = []
    for i, image in enumerate(x):
        change = 8 / len(down) * torch.einsum('oc,kc,kx->ox', up.flatten(1), m[i % len(m), layer.row], down.flatten(1))
        weight = base.weight + change.reshape(base.weight.shape)
        if isinstance(base, nn.Linear):
            results.append(F.linear(image, weight, base.bias))
        else:
            results.append(F.conv2d(image[None], weight, base.bias, base.stride, base.padding, base.dilation)[0])
    return torch.stack(results)


def modulated(layer: LoRALayer, x: Tensor, m: Tensor) -> Tensor:
    with layer.projections.using(fold([layer], m)):
        return layer(x)


# ---- what a layer computes


@every_layer
@pytest.mark.parametrize(('b', 'n'), [(1, 1), (3, 3), (3, 1), (6, 2)])
def test_a_layer_has_the_weight_that_the_matrix_of_its_image_makes(kind, b, n):
    """Also one matrix for all images, and as many times the images as a batch of prompts or tiles has."""
    layer, x, m = adapted(kind), inputs(kind, b), matrices(n)
    assert_close(modulated(layer, x, m), by_weights(layer, x, m))


@pytest.mark.parametrize('kind', [kind for kind in LAYERS if 'conv' in kind])
@pytest.mark.parametrize(('b', 'n'), [(4, 2), (2, 1)])
def test_the_order_of_memory_changes_nothing_and_is_kept(kind, b, n):
    layer, x, m = adapted(kind), inputs(kind, b), matrices(n)
    found = modulated(layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), m)
    assert_close(found, by_weights(layer, x, m))
    assert found.is_contiguous(memory_format=torch.channels_last)


@every_layer
@pytest.mark.parametrize(('b', 'n'), [(4, 2), (2, 1)])
def test_gradients_flow_through_the_fold(kind, b, n):
    layer, results = adapted(kind), []
    for compute in (modulated, by_weights):
        x, m = inputs(kind, b).requires_grad_(), matrices(n).requires_grad_()
        layer.zero_grad()
        y = compute(layer, x, m)
        (y * torch.linspace(-1, 1, y.numel(), dtype=EXACT).view_as(y)).sum().backward()
        results.append([x.grad, m.grad, layer.lora_A['default'].weight.grad, layer.lora_B['default'].weight.grad])
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)
    assert all(p.grad is None and not p.requires_grad for p in layer.base_layer.parameters())


def test_layers_of_several_rows_and_sizes_are_folded_each_by_its_own():
    kinds = [*LAYERS]
    layers = [adapted(kind, row=i % 3) for i, kind in enumerate(kinds)]
    m = matrices(2)
    together = fold(layers, m)
    for layer, up in zip(layers, together, strict=True):
        b = layer.lora_B['default'].weight.flatten(1)
        assert_close(up, layer.scaling * torch.einsum('oc,nkc->nok', b, m[:, layer.row]))


def test_projections_are_of_the_type_of_the_layer_and_made_in_that_of_the_matrices():
    layer = adapted('linear').to(torch.bfloat16)
    (up,) = fold([layer], matrices(1).float())
    exact = 8 / 3 * layer.lora_B['default'].weight.float() @ matrices(1).float()[0, 1].mT
    assert up.dtype == torch.bfloat16 and torch.equal(up[0], exact.to(torch.bfloat16))


def test_half_precision_by_autocast_is_that_of_the_layers():
    layer, m = adapted('linear').float(), matrices(2).float()
    x = inputs('linear', 2).float()
    with torch.autocast('cpu', torch.bfloat16):
        found = modulated(layer, x, m)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), by_weights(layer, x, m), atol=0.2, rtol=0.05)


# ---- how a layer begins, and what it refuses


@every_layer
def test_at_first_nothing_is_added(kind):
    layer = LoRALayer(copy.deepcopy(LAYERS[kind][0]), 2, 'default', 0, Projections(), 0)
    x = inputs(kind, 2).float()
    assert torch.equal(modulated(layer, x, matrices(2, 1, 2).float()), LAYERS[kind][0](x))


def test_fresh_matrices_are_spread_by_the_rank_and_scaled_by_it():
    layer = LoRALayer(nn.Linear(2000, 10), 4, 'default', 0, Projections(), 0)
    assert layer.scaling == 2
    assert_close(layer.lora_A['default'].weight.std().item(), 1 / 4, rtol=0.05, atol=0)
    layer.set_rank(16)
    assert layer.scaling == 0.5 and layer.lora_A['default'].weight.shape == (16, 2000)
    assert_close(layer.lora_A['default'].weight.std().item(), 1 / 16, rtol=0.05, atol=0)
    assert layer.lora_B['default'].weight.shape == (10, 16) and not layer.lora_B['default'].weight.any()


def test_names_are_those_of_published_files_and_the_base_shows_through():
    layer = LoRALayer(nn.Conv2d(3, 4, 3), 2, 'vae_skip', 0, Projections(), 0)
    named = ['base_layer.weight', 'base_layer.bias', 'lora_A.vae_skip.weight', 'lora_B.vae_skip.weight']
    assert [*layer.state_dict()] == named
    assert layer.weight is layer.base_layer.weight and layer.bias is layer.base_layer.bias


def test_a_layer_without_matrices_or_with_those_of_another_number_of_images_says_so():
    layer = adapted('linear')
    with pytest.raises(RuntimeError, match='works inside `modulated`'):
        layer(inputs('linear', 1))
    with pytest.raises(ValueError, match='a batch of 3 cannot be of 2 images'):
        modulated(layer, inputs('linear', 3), matrices(2))


def test_leaving_the_context_gives_back_what_was_there_also_after_an_error():
    projections = Projections()
    outer, inner = [torch.zeros(1)], [torch.ones(1)]
    with projections.using(outer):
        with pytest.raises(ZeroDivisionError), projections.using(inner):
            assert projections.current is inner
            raise ZeroDivisionError
        assert projections.current is outer
    assert projections.current is None


def test_one_product_for_all_images_is_that_of_each():
    y, low, up = (torch.randn(*shape, dtype=EXACT) for shape in ((2, 3, 4), (2, 3, 5), (1, 4, 5)))
    assert_close(add_projected(y, low, up), add_projected(y, low, up.repeat(2, 1, 1)))


# ---- inside networks


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_out, self.norm, self.mix = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(0)]), nn.LayerNorm(4), mixed()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.to_out[0](self.norm(x)))


def mixed() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


def adapted_block() -> tuple[Block, list[LoRALayer]]:
    torch.manual_seed(0)
    block = Block().to(EXACT)
    rows = {'to_out.0': 0, 'mix.2': 1}
    layers = inject(block, rows.__contains__, rows.__getitem__, 3, 'default', Projections())
    for layer in layers:
        nn.init.normal_(layer.lora_B['default'].weight)
    return block, layers


def test_only_the_layers_that_are_named_are_adapted():
    block, layers = adapted_block()
    assert {name for name, module in block.named_modules() if isinstance(module, LoRALayer)} == {'to_out.0', 'mix.2'}
    assert block.to_out[0] is layers[0] and block.mix[2] is layers[1]
    assert [(layer.row, layer.index) for layer in layers] == [(0, 0), (1, 1)]
    assert layers[0].projections is layers[1].projections
    assert inject(block, lambda name: False, len, 3, 'default', Projections()) == []


def test_copies_and_pickled_networks_have_projections_of_their_own():
    block, layers = adapted_block()
    x, m = torch.randn(2, 5, 4, dtype=EXACT), matrices(2)
    with layers[0].projections.using(fold(layers, m)):
        expected = block(x)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        theirs = [other.to_out[0], other.mix[2]]
        assert theirs[0].projections is theirs[1].projections is not layers[0].projections
        with theirs[0].projections.using(fold(theirs, m)):
            assert torch.equal(other(x), expected)
            with pytest.raises(RuntimeError):
                block(x)


def test_a_checkpointed_part_is_computed_again_with_the_projections_that_it_had():
    """Two calls with other matrices come before the backward pass, which runs outside of both contexts."""
    block, layers = adapted_block()
    projections, x = layers[0].projections, torch.randn(2, 5, 4, dtype=EXACT)
    results = []
    for checkpointed in (False, True):
        given = [matrices(2, seed=seed).requires_grad_() for seed in (3, 4)]
        block.zero_grad()
        total = 0
        for m in given:
            with projections.using(fold(layers, m)):
                y = projections.checkpointed(block, x) if checkpointed else block(x)
            total = total + y.square().sum()
        total.backward()
        results.append([m.grad for m in given] + [p.grad.clone() for p in block.parameters() if p.grad is not None])
    for plain, again in zip(*results, strict=True):
        assert_close(plain, again)
