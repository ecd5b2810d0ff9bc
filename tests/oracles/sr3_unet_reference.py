"""SR3's and DDPM's UNet written down plainly from shared/spec/sr3.md 2, one formula after the other."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class LevelCode(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, level: Tensor) -> Tensor:
        count = self.dim // 2
        step = torch.arange(count, dtype=level.dtype, device=level.device) / count
        encoding = level[:, None] * torch.exp(-math.log(1e4) * step[None])
        return torch.cat([torch.sin(encoding), torch.cos(encoding)], -1)


class TimeCode(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer('inv_freq', torch.exp(torch.arange(0, dim, 2).float() * (-math.log(10000) / dim)))

    def forward(self, time: Tensor) -> Tensor:
        angles = torch.outer(time.float(), self.inv_freq)
        return torch.cat([angles.sin(), angles.cos()], -1)


class Upsample(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode='nearest'))


class Downsample(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Block(nn.Module):
    def __init__(self, dim: int, dim_out: int, groups: int, dropout: float = 0):
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(groups, dim), Swish(), nn.Dropout(dropout), nn.Conv2d(dim, dim_out, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class LevelLinear(nn.Module):
    def __init__(self, dim: int, dim_out: int):
        super().__init__()
        self.noise_func = nn.Sequential(nn.Linear(dim, dim_out))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return x + self.noise_func(embedding)[:, :, None, None]


class ResnetBlock(nn.Module):
    def __init__(self, dim: int, dim_out: int, emb_dim: int, groups: int, dropout: float, timed: bool):
        super().__init__()
        self.timed = timed
        if timed:
            self.mlp = nn.Sequential(Swish(), nn.Linear(emb_dim, dim_out))
        else:
            self.noise_func = LevelLinear(emb_dim, dim_out)
        self.block1 = Block(dim, dim_out, groups)
        self.block2 = Block(dim_out, dim_out, groups, dropout)
        self.res_conv = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.block1(x)
        h = h + self.mlp(embedding)[:, :, None, None] if self.timed else self.noise_func(h, embedding)
        h = self.block2(h)
        return h + self.res_conv(x)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim)
        self.qkv = nn.Conv2d(dim, dim * 3, 1, bias=False)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3 * c, h * w).chunk(3, 1)
        attention = torch.softmax(torch.einsum('bcn,bcm->bnm', q, k) / math.sqrt(c), -1)
        y = torch.einsum('bnm,bcm->bcn', attention, v)
        return self.out(y.view(b, c, h, w)) + x


class Unit(nn.Module):
    def __init__(self, dim: int, dim_out: int, emb_dim: int, groups: int, dropout: float, timed: bool, with_attn: bool):
        super().__init__()
        self.res_block = ResnetBlock(dim, dim_out, emb_dim, groups, dropout, timed)
        self.with_attn = with_attn
        if with_attn:
            self.attn = SelfAttention(dim_out, groups)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.res_block(x, embedding)
        return self.attn(x) if self.with_attn else x


class UNet(nn.Module):
    """`timed`: DDPM's, which is told the number of the step; otherwise SR3's, which is told the noise level."""

    timed = False

    def __init__(
        self,
        in_channel: int = 6,
        out_channel: int | None = 3,
        inner_channel: int = 32,
        norm_groups: int = 32,
        channel_mults: tuple[int, ...] = (1, 2, 4, 8, 8),
        attn_res: tuple[int, ...] = (8,),
        res_blocks: int = 3,
        dropout: float = 0,
        image_size: int = 128,
    ):
        super().__init__()
        c = inner_channel
        code = TimeCode(c) if self.timed else LevelCode(c)
        mlp = nn.Sequential(code, nn.Linear(c, c * 4), Swish(), nn.Linear(c * 4, c))
        if self.timed:
            self.time_mlp = mlp
        else:
            self.noise_level_mlp = mlp

        def unit(dim: int, dim_out: int, with_attn: bool) -> Unit:
            return Unit(dim, dim_out, c, norm_groups, dropout, self.timed, with_attn)

        levels, current, resolution, skips = len(channel_mults), c, image_size, [c]
        downs = [nn.Conv2d(in_channel, c, 3, padding=1)]
        for level, mult in enumerate(channel_mults):
            for _ in range(res_blocks):
                downs.append(unit(current, c * mult, resolution in attn_res))
                current = c * mult
                skips.append(current)
            if level < levels - 1:
                downs.append(Downsample(current))
                skips.append(current)
                resolution = resolution // 2
        self.downs = nn.ModuleList(downs)
        self.mid = nn.ModuleList([unit(current, current, True), unit(current, current, False)])
        ups = []
        for level, mult in reversed(list(enumerate(channel_mults))):
            for _ in range(res_blocks + 1):
                ups.append(unit(current + skips.pop(), c * mult, resolution in attn_res))
                current = c * mult
            if level > 0:
                ups.append(Upsample(current))
                resolution = resolution * 2
        self.ups = nn.ModuleList(ups)
        self.final_conv = Block(current, out_channel or in_channel, norm_groups)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        embedding = (self.time_mlp if self.timed else self.noise_level_mlp)(level.flatten())
        skips = []
        for layer in self.downs:
            x = layer(x, embedding) if isinstance(layer, Unit) else layer(x)
            skips.append(x)
        for layer in self.mid:
            x = layer(x, embedding)
        for layer in self.ups:
            x = layer(torch.cat([x, skips.pop()], 1), embedding) if isinstance(layer, Unit) else layer(x)
        return self.final_conv(x)


class SR3Reference(UNet):
    timed = False


class DDPMReference(UNet):
    timed = True
