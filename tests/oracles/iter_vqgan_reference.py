"""ITER's image autoencoder written down plainly from shared/spec/iter.md 2.1 to 2.6, one formula after the other.

Masks are made in every forward pass and every attention matrix is formed. Nothing here is shared with `basicsr`.
State-dict names are the published ones, without the second name of the decoder (`generator`) and without what is
computed (`attn_mask`, `relative_position_index`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(c: int) -> nn.GroupNorm:
    return nn.GroupNorm(32 if c >= 32 else c // 4, c, eps=1e-6)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class ResBlock(nn.Module):
    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(cin), nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2, self.conv2 = group_norm(cout), nn.Conv2d(cout, cout, 3, padding=1)
        self.conv_out = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(swish(self.norm1(x)))
        y = self.conv2(swish(self.norm2(y)))
        return y + self.conv_out(x)


class Downsample(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode='nearest'))


class AttnBlock(nn.Module):
    """The published `mhsa`: at each pixel the heads attend to one another."""

    def __init__(self, c: int, heads: int = 8, mid_ch: int = 64):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(4, c, eps=1e-6)
        self.qkv = nn.Conv2d(c, 3 * heads * mid_ch, 1)
        self.proj_out = nn.Conv2d(heads * mid_ch, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (
            part.view(b, self.heads, -1, h * w).permute(0, 3, 1, 2) for part in self.qkv(self.norm(x)).chunk(3, 1)
        )
        attention = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1)
        y = (attention @ v).permute(0, 2, 3, 1).reshape(b, -1, h, w)
        return x + self.proj_out(y)


def partition(x: Tensor, ws: int) -> Tensor:
    """(b, h, w, c) -> (b * windows, ws * ws, c), windows in raster order."""
    b, h, w, c = x.shape
    return x.view(b, h // ws, ws, w // ws, ws, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, ws * ws, c)


def merge(windows: Tensor, ws: int, h: int, w: int) -> Tensor:
    """The inverse of `partition`."""
    c = windows.shape[-1]
    return windows.view(-1, h // ws, w // ws, ws, ws, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, c)


def attention_mask(h: int, w: int, ws: int, shift: int) -> Tensor:
    """(windows, ws * ws, ws * ws): 0 inside a region of the rolled image, -100 between regions; all 0 unshifted."""
    region = torch.zeros(1, h, w, 1)
    if shift:
        slices = (slice(0, -ws), slice(-ws, -shift), slice(-shift, None))
        for i, rows in enumerate(slices):
            for j, columns in enumerate(slices):
                region[:, rows, columns] = 3 * i + j
    labels = partition(region, ws).squeeze(-1)
    return torch.where(labels[:, :, None] == labels[:, None], 0.0, -100.0)


class WindowAttention(nn.Module):
    def __init__(self, dim: int, ws: int, heads: int):
        super().__init__()
        self.heads, self.ws = heads, ws
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * ws - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        y, x = torch.meshgrid(torch.arange(ws), torch.arange(ws), indexing='ij')
        y, x = y.flatten(), x.flatten()
        index = (y[:, None] - y[None] + ws - 1) * (2 * ws - 1) + (x[:, None] - x[None] + ws - 1)
        self.register_buffer('relative_position_index', index, persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        windows, n, c = x.shape
        q, k, v = self.qkv(x).reshape(windows, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(n, n, -1)
        attention = attention + bias.permute(2, 0, 1).contiguous()[None]
        count = len(mask)
        attention = attention.view(windows // count, count, self.heads, n, n) + mask[None, :, None]
        attention = torch.softmax(attention.view(-1, self.heads, n, n), -1)
        return self.proj((attention @ v).transpose(1, 2).reshape(windows, n, c))


class Mlp(nn.Module):
    """With a gate from the mean over all tokens."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = 4 * dim
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.attn = nn.Sequential(nn.Linear(hidden, hidden // 16), nn.SiLU(), nn.Linear(hidden // 16, hidden))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x))
        x = x * torch.sigmoid(self.attn(x.mean(1, keepdim=True)))
        return self.fc2(x)


class SwinTransformerBlock(nn.Module):
    def __init__(self, dim: int, resolution: tuple[int, int], heads: int, ws: int, shift: int):
        super().__init__()
        if min(resolution) <= ws:
            ws, shift = min(resolution), 0
        self.ws, self.shift = ws, shift
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, ws, heads)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        b, n, c = x.shape
        y = self.norm1(x).view(b, h, w, c)
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        mask = attention_mask(h, w, self.ws, self.shift).to(x)
        y = merge(self.attn(partition(y, self.ws), mask), self.ws, h, w)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + y.reshape(b, n, c)
        return x + self.mlp(self.norm2(x))


class ResidualGroup(nn.Module):
    def __init__(self, dim: int, resolution: tuple[int, int], depth: int, heads: int, ws: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(dim, resolution, heads, ws, 0 if j % 2 == 0 else ws // 2) for j in range(depth)
        )

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        for block in self.blocks:
            x = block(x, h, w)
        return x


class RSTB(nn.Module):
    def __init__(self, dim: int, resolution: tuple[int, int], depth: int, heads: int, ws: int):
        super().__init__()
        self.residual_group = ResidualGroup(dim, resolution, depth, heads, ws)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        image = self.residual_group(x, h, w).transpose(1, 2).reshape(len(x), -1, h, w)
        return x + self.conv(image).flatten(2).transpose(1, 2)


class SwinLayers(nn.Module):
    def __init__(
        self,
        embed_dim: int,
        swin_dim: int = 256,
        blk_num: int = 1,
        blk_depth: int = 6,
        window_size: int = 8,
        num_heads: int = 8,
        input_resolution: tuple[int, int] = (32, 32),
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(embed_dim, swin_dim, 3, padding=1)
        self.swin_blks = nn.ModuleList(
            RSTB(swin_dim, input_resolution, blk_depth, num_heads, window_size) for _ in range(blk_num)
        )
        self.conv_out = nn.Conv2d(swin_dim, embed_dim, 3, padding=1)

    def forward(self, x_in: Tensor) -> Tensor:
        h, w = x_in.shape[-2:]
        x = self.conv_in(x_in).flatten(2).transpose(1, 2)
        for group in self.swin_blks:
            x = group(x, h, w)
        return self.conv_out(x.transpose(1, 2).reshape(len(x), -1, h, w)) + x_in


class Encoder(nn.Module):
    def __init__(self, in_channels, emb_dim, resolution, nf, ch_mult, num_res_blocks=2, **swin):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(in_channels, nf, 3, padding=1)])
        c = nf
        for level, mult in enumerate(ch_mult):
            for _ in range(num_res_blocks):
                self.blocks.append(ResBlock(c, nf * mult))
                c = nf * mult
            if level < len(ch_mult) - 1:
                self.blocks.append(Downsample(c))
        self.blocks.extend(middle(c, [side // 2 ** (len(ch_mult) - 1) for side in resolution], **swin))
        self.blocks.extend([group_norm(c), nn.Conv2d(c, emb_dim, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Decoder(nn.Module):
    def __init__(self, emb_dim, resolution, nf, ch_mult, res_blocks=2, **swin):
        super().__init__()
        c = nf * ch_mult[-1]
        self.blocks = nn.ModuleList([nn.Conv2d(emb_dim, c, 3, padding=1)])
        self.blocks.extend(middle(c, [side // 2 ** (len(ch_mult) - 1) for side in resolution], **swin))
        for level in reversed(range(len(ch_mult))):
            for _ in range(res_blocks):
                self.blocks.append(ResBlock(c, nf * ch_mult[level]))
                c = nf * ch_mult[level]
            if level > 0:
                self.blocks.append(Upsample(c))
        self.blocks.extend([group_norm(c), nn.Conv2d(c, 3, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def middle(c, resolution, global_blks='swin', swin_dim=256, swin_window=8, swin_blk_depth=6, swin_blk_num=1, heads=8):
    if global_blks == 'mhsa':
        return [ResBlock(c, c), AttnBlock(c), ResBlock(c, c), AttnBlock(c)]
    swin = SwinLayers(c, swin_dim, swin_blk_num, swin_blk_depth, swin_window, heads, resolution)
    return [ResBlock(c, c), swin, ResBlock(c, c)]


class Quantizer(nn.Module):
    def __init__(self, n_e: int, e_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(n_e, e_dim)

    def forward(self, z: Tensor) -> Tensor:
        """The index of the nearest code, (b, h, w)."""
        rows, e = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]), self.embedding.weight
        d = (rows**2).sum(1, keepdim=True) + (e**2).sum(1) - 2 * rows @ e.t()
        return d.argmin(1).view(len(z), *z.shape[2:])


class VQModel(nn.Module):
    """Also the reference of a benchmark's rows, so the arguments are those of SwinVQGAN."""

    def __init__(self, ddconfig: dict, n_embed: int, embed_dim: int, beta: float = 0.25):
        super().__init__()
        encoder = {key: value for key, value in ddconfig.items() if key not in ('num_heads', 'res_blocks')}
        decoder = {key: value for key, value in ddconfig.items() if key not in ('num_heads', 'num_res_blocks')}
        del decoder['in_channels']
        self.encoder = Encoder(**encoder, heads=ddconfig.get('num_heads', 8))
        self.decoder = Decoder(**decoder)
        self.quantize = Quantizer(n_embed, embed_dim)
        self.beta = beta

    def prequant(self, x: Tensor) -> Tensor:
        return self.encoder(x.clamp(0, 1) * 2 - 1)

    def indices(self, x: Tensor) -> Tensor:
        return self.quantize(self.prequant(x))

    def decode(self, codes: Tensor) -> Tensor:
        return ((self.decoder(codes) + 1) / 2).clamp(0, 1)

    def decode_indices(self, indices: Tensor) -> Tensor:
        return self.decode(self.quantize.embedding(indices).permute(0, 3, 1, 2))

    def decode_onehot(self, onehot: Tensor) -> Tensor:
        return self.decode((onehot.permute(0, 2, 3, 1) @ self.quantize.embedding.weight.detach()).permute(0, 3, 1, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.prequant(x)
        indices = self.quantize(z)
        z_q = self.quantize.embedding(indices).permute(0, 3, 1, 2)
        loss = ((z_q.detach() - z) ** 2).mean() + self.beta * ((z_q - z.detach()) ** 2).mean()
        return self.decode(z + (z_q - z).detach()), loss, indices

    def test(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        return self(mirrored(x, (h // 64 + 1) * 64, (w // 64 + 1) * 64))[0][:, :, :h, :w]


def mirrored(x: Tensor, height: int, width: int) -> Tensor:
    """Extended downwards and to the right by its mirror image, whose edge is repeated."""
    x = torch.cat([x, x.flip(2)], 2)[:, :, :height]
    return torch.cat([x, x.flip(3)], 3)[:, :, :, :width]
