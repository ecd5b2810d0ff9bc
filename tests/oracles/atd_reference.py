"""ATD written the plain way, from the formulas alone: the tests' oracle and the baseline of the speed table.

Every attention matrix is formed explicitly, the mask is built in every forward, the bias is gathered in every layer,
rows are moved by gather, and the category order is undone by a second sort. Nothing here is shared with `basicsr`,
so a fault there cannot hide. Its state-dict names are the published ones; mean is not stored.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mirrored(x: Tensor, size: int, dim: int) -> Tensor:
    """`x` extended along `dim` to `size` by mirrors that repeat the edge."""
    while x.shape[dim] < size:
        known = x.shape[dim]
        # A multiple of the mirrored pair (n, n reversed) is its own continuation, so flipping the whole is right.
        x = torch.cat([x, x.flip(dim).narrow(dim, 0, min(known, size - known))], dim)
    return x


def partition(x: Tensor, ws: int) -> Tensor:
    """(b, h, w, c) -> (b * windows, ws * ws, c), windows in raster order."""
    b, h, w, c = x.shape
    return x.view(b, h // ws, ws, w // ws, ws, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, ws * ws, c)


def merge(windows: Tensor, ws: int, h: int, w: int) -> Tensor:
    """The inverse of `partition`."""
    c = windows.shape[-1]
    return windows.view(-1, h // ws, w // ws, ws, ws, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, c)


def position_index(ws: int) -> Tensor:
    """Row of the bias table for every pair of pixels of a window."""
    y, x = torch.meshgrid(torch.arange(ws), torch.arange(ws), indexing='ij')
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y[None] + ws - 1) * (2 * ws - 1) + (x[:, None] - x[None] + ws - 1)


def attention_mask(h: int, w: int, ws: int) -> Tensor:
    """(windows, ws * ws, ws * ws): 0 inside a region of the rolled image, -100 between regions."""
    region = torch.zeros(1, h, w, 1)
    slices = (slice(0, -ws), slice(-ws, -(ws // 2)), slice(-(ws // 2), None))
    for i, rows in enumerate(slices):
        for j, columns in enumerate(slices):
            region[:, rows, columns] = 3 * i + j
    labels = partition(region, ws).squeeze(-1)
    return torch.where(labels[:, :, None] == labels[:, None], 0.0, -100.0)


class WindowAttention(nn.Module):
    """Window attention with relative position bias: (windows, n, 3c) -> (windows, n, c)."""

    def __init__(self, dim, ws, heads):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * ws - 1) ** 2, heads))
        self.proj = nn.Linear(dim, dim)

    def forward(self, qkv, index, mask):
        windows, n, c3 = qkv.shape
        q, k, v = qkv.reshape(windows, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        attention = attention + bias.unsqueeze(0)
        if mask is not None:
            count = mask.shape[0]
            attention = attention.view(windows // count, count, self.heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
            attention = attention.view(-1, self.heads, n, n)
        attention = attention.softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(windows, n, c3 // 3))


class DictionaryAttention(nn.Module):
    """Cross-attention of tokens to the dictionary: (b, n, c), (b, M, c) -> (b, n, c) and the similarities (b, n, M)."""

    def __init__(self, dim, num_tokens, reduced, bias):
        super().__init__()
        self.num_tokens = num_tokens
        self.scale = nn.Parameter(torch.ones(num_tokens) * 0.5)
        self.wq = nn.Linear(dim, reduced, bias=bias)
        self.wk = nn.Linear(dim, reduced, bias=bias)
        self.wv = nn.Linear(dim, dim, bias=bias)

    def forward(self, x, dictionary):
        q, k, v = self.wq(x), self.wk(dictionary), self.wv(dictionary)
        similarity = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        similarity = similarity * (1 + self.scale.clamp(0, 1) * math.log(self.num_tokens))
        similarity = similarity.softmax(-1)
        return similarity @ v, similarity


class CategoryAttention(nn.Module):
    """Attention inside groups of tokens sorted by category: (b, n, 3c), (b, n, M) -> (b, n, c)."""

    def __init__(self, dim, heads, category_size, bias):
        super().__init__()
        self.heads, self.category_size = heads, category_size
        self.logit_scale = nn.Parameter(torch.full((1, 1), math.log(10)))
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, qkv, similarity):
        b, n, c3 = qkv.shape
        gs = min(n, self.category_size)
        groups = -(-n // gs)
        order = similarity.argmax(-1).argsort(dim=-1, stable=True)
        back = order.argsort(-1)
        rows = torch.gather(qkv, 1, order.unsqueeze(-1).expand(-1, -1, c3))
        padding = groups * gs - n
        rows = torch.cat([rows, rows[:, n - padding :].flip(1)], 1)
        rows = rows.reshape(b, groups, gs, 3, self.heads, c3 // 3 // self.heads)
        q, k, v = rows.permute(3, 0, 1, 4, 2, 5)
        attention = q @ k.transpose(-2, -1)
        attention = attention * self.logit_scale.clamp(max=math.log(100)).exp()
        attention = attention.softmax(-1)
        out = (attention @ v).permute(0, 1, 3, 2, 4).reshape(b, groups * gs, c3 // 3)[:, :n]
        return self.proj(torch.gather(out, 1, back.unsqueeze(-1).expand(-1, -1, c3 // 3)))


class DepthwiseConv(nn.Module):
    """Depthwise convolution of tokens and GELU."""

    def __init__(self, dim, kernel):
        super().__init__()
        self.depthwise_conv = nn.Sequential(
            nn.Conv2d(dim, dim, kernel, padding=(kernel - 1) // 2, groups=dim), nn.GELU()
        )

    def forward(self, x, size):
        image = x.transpose(1, 2).contiguous().view(x.shape[0], x.shape[2], *size)
        return self.depthwise_conv(image).flatten(2).transpose(1, 2).contiguous()


class ConvFFN(nn.Module):
    """fc2(u + depthwise(u)), u = gelu(fc1(x))."""

    def __init__(self, dim, hidden, kernel):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseConv(hidden, kernel)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x, size):
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x, size))


class Layer(nn.Module):
    """One transformer layer: tokens and dictionary in, tokens and refined dictionary out."""

    def __init__(self, dim, heads, ws, shift, category_size, num_tokens, reduced, kernel, ratio, bias, last):
        super().__init__()
        self.ws, self.shift, self.last = ws, shift, last
        if not last:
            self.sigma = nn.Parameter(torch.zeros(num_tokens, 1))
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        if not last:
            self.norm3 = nn.InstanceNorm1d(num_tokens, affine=True)
        self.wqkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.attn_win = WindowAttention(dim, ws, heads)
        self.attn_atd = DictionaryAttention(dim, num_tokens, reduced, bias)
        self.attn_aca = CategoryAttention(dim, heads, category_size, bias)
        self.convffn = ConvFFN(dim, int(dim * ratio), kernel)

    def refine(self, dictionary, similarity, x):
        weights = self.norm3(similarity.transpose(1, 2)).softmax(-1)
        gate = self.sigma.sigmoid()
        return gate * dictionary + (1 - gate) * (weights @ x)

    def forward(self, x, dictionary, size, index, mask):
        h, w = size
        b, n, c = x.shape
        y = self.norm1(x)
        qkv = self.wqkv(y)
        from_dictionary, similarity = self.attn_atd(y, dictionary)
        from_category = self.attn_aca(qkv, similarity)
        image = qkv.reshape(b, h, w, 3 * c)
        if self.shift:
            image = image.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn_win(partition(image, self.ws), index, mask if self.shift else None)
        image = merge(windows, self.ws, h, w)
        if self.shift:
            image = image.roll((self.shift, self.shift), (1, 2))
        x = x + image.reshape(b, n, c) + from_dictionary + from_category
        x = x + self.convffn(self.norm2(x), size)
        return x, dictionary if self.last else self.refine(dictionary, similarity, x)


class Group(nn.Module):
    """The layers of a block and its dictionary."""

    def __init__(self, dim, depth, heads, ws, num_tokens, **options):
        super().__init__()
        self.td = nn.Parameter(torch.randn(num_tokens, dim))
        self.layers = nn.ModuleList(
            Layer(dim, heads, ws, ws // 2 if i % 2 else 0, num_tokens=num_tokens, last=i == depth - 1, **options)
            for i in range(depth)
        )

    def forward(self, x, size, index, mask):
        dictionary = self.td.repeat(x.shape[0], 1, 1)
        for layer in self.layers:
            x, dictionary = layer(x, dictionary, size, index, mask)
        return x


def residual_conv(dim, kind):
    if kind == '1conv':
        return nn.Conv2d(dim, dim, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(dim, dim // 4, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(dim // 4, dim // 4, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(dim // 4, dim, 3, padding=1),
    )


class Block(nn.Module):
    """Layers, a convolution, and a shortcut over both."""

    def __init__(self, dim, resi_connection, **options):
        super().__init__()
        self.residual_group = Group(dim, **options)
        self.conv = residual_conv(dim, resi_connection)

    def forward(self, x, size, index, mask):
        u = self.residual_group(x, size, index, mask).transpose(1, 2)
        return self.conv(u.reshape(*u.shape[:2], *size)).flatten(2).transpose(1, 2) + x


class PatchEmbed(nn.Module):
    """(b, c, h, w) -> (b, h * w, c), normalised."""

    def __init__(self, dim, norm):
        super().__init__()
        if norm:
            self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return self.norm(x) if hasattr(self, 'norm') else x


class ATDReference(nn.Module):
    """(b, in_chans, h, w) -> (b, in_chans, h * scale, w * scale); the arguments are those of `ATD`."""

    def __init__(
        self,
        img_size=64,
        patch_size=1,
        in_chans=3,
        embed_dim=90,
        depths=(6, 6, 6, 6),
        num_heads=(6, 6, 6, 6),
        window_size=8,
        category_size=128,
        num_tokens=64,
        reducted_dim=4,
        convffn_kernel_size=5,
        mlp_ratio=2.0,
        qkv_bias=True,
        ape=False,
        patch_norm=True,
        use_checkpoint=False,
        upscale=2,
        img_range=1.0,
        upsampler='',
        resi_connection='1conv',
    ):
        super().__init__()
        self.ws, self.img_range, self.upsampler = window_size, img_range, upsampler
        self.scale = upscale if upsampler in ('pixelshuffle', 'pixelshuffledirect', 'nearest+conv') else 1
        self.mean = (
            torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1) if in_chans == 3 else torch.zeros(1, 1, 1, 1)
        )
        self.register_buffer('relative_position_index_SA', position_index(window_size))
        if ape:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, (img_size // patch_size) ** 2, embed_dim))
        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.patch_embed = PatchEmbed(embed_dim, patch_norm)
        self.layers = nn.ModuleList(
            Block(
                embed_dim,
                resi_connection,
                depth=depth,
                heads=heads,
                ws=window_size,
                num_tokens=num_tokens,
                category_size=category_size,
                reduced=reducted_dim,
                kernel=convffn_kernel_size,
                ratio=mlp_ratio,
                bias=qkv_bias,
            )
            for depth, heads in zip(depths, num_heads)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = residual_conv(embed_dim, resi_connection)
        if upsampler == 'pixelshuffle':
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, 64, 3, padding=1), nn.LeakyReLU(0.01))
            factors = [3] if upscale == 3 else [2] * int(math.log2(upscale))
            steps = [(nn.Conv2d(64, 64 * f * f, 3, padding=1), nn.PixelShuffle(f)) for f in factors]
            self.upsample = nn.Sequential(*[module for step in steps for module in step])
            self.conv_last = nn.Conv2d(64, in_chans, 3, padding=1)
        elif upsampler == 'pixelshuffledirect':
            self.upsample = nn.Sequential(
                nn.Conv2d(embed_dim, upscale**2 * in_chans, 3, padding=1), nn.PixelShuffle(upscale)
            )
        elif upsampler == 'nearest+conv':
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(embed_dim, 64, 3, padding=1), nn.LeakyReLU(0.01))
            self.conv_up1 = nn.Conv2d(64, 64, 3, padding=1)
            self.conv_up2 = nn.Conv2d(64, 64, 3, padding=1)
            self.conv_hr = nn.Conv2d(64, 64, 3, padding=1)
            self.conv_last = nn.Conv2d(64, in_chans, 3, padding=1)
        else:
            self.conv_last = nn.Conv2d(embed_dim, in_chans, 3, padding=1)

    def body(self, x):
        size = x.shape[-2:]
        mask = attention_mask(*size, self.ws).to(x)
        t = self.patch_embed(x)
        if hasattr(self, 'absolute_pos_embed'):
            t = t + self.absolute_pos_embed
        for block in self.layers:
            t = block(t, size, self.relative_position_index_SA, mask)
        t = self.norm(t).transpose(1, 2)
        return t.reshape(*t.shape[:2], *size)

    def forward(self, x):
        h, w = x.shape[-2:]
        x = mirrored(mirrored(x, -(-h // self.ws) * self.ws, 2), -(-w // self.ws) * self.ws, 3)
        mean = self.mean.to(x)
        x = (x - mean) * self.img_range
        f = self.conv_first(x)
        f = self.conv_after_body(self.body(f)) + f
        if self.upsampler == 'pixelshuffle':
            out = self.conv_last(self.upsample(self.conv_before_upsample(f)))
        elif self.upsampler == 'pixelshuffledirect':
            out = self.upsample(f)
        elif self.upsampler == 'nearest+conv':
            f = self.conv_before_upsample(f)
            for conv in (self.conv_up1, self.conv_up2):
                f = F.leaky_relu(conv(F.interpolate(f, scale_factor=2, mode='nearest')), 0.2)
            out = self.conv_last(F.leaky_relu(self.conv_hr(f), 0.2))
        else:
            out = x + self.conv_last(f)
        out = out / self.img_range + mean
        return out[:, :, : h * self.scale, : w * self.scale]
