"""The models of the original repositories, with their names for the weights and their forward, written from their descriptions.

Each is as short as its state dict's names and its numbers allow; dropout, drop path and initialisation are left out.
"""

import torch
from torch import nn
from torch.nn import functional


def norm(width):
    return nn.LayerNorm(width, eps=1e-6)


class Attention(nn.Module):
    """``bias``: of ``qkv`` all three, of ``qv`` the two that VideoMAE and BEiT train, or none; ``window`` for BEiT's table."""

    def __init__(self, width, heads, bias="qkv", window=None):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias == "qkv")
        if bias == "qv":
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        if window:
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2 + 3, heads))
            self.register_buffer("relative_position_index", window_index(window))
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        bias = (
            torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias)) if hasattr(self, "q_bias") else self.qkv.bias
        )
        q, k, v = functional.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if hasattr(self, "relative_position_index"):
            scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def window_index(size):
    """Number the distances between patches of a square window, with three more for the class token (BEiT)."""
    places = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
    apart = places[:, :, None] - places[:, None, :] + size - 1
    count = (2 * size - 1) ** 2
    index = torch.full((size * size + 1, size * size + 1), count)
    index[1:, 1:] = apart[0] * (2 * size - 1) + apart[1]
    index[1:, 0] = count + 1
    index[0, 0] = count + 2
    return index


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * value)


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    """``scale``: none, ``ls`` as DINOv2, ``gamma`` as BEiT."""

    def __init__(self, width, heads, bias="qkv", scale=None, mlp=Mlp, window=None):
        super().__init__()
        self.norm1, self.attn = norm(width), Attention(width, heads, bias, window)
        self.norm2, self.mlp = norm(width), mlp(width, 2 * width if mlp is Mlp else 32)
        if scale == "ls":
            self.ls1, self.ls2 = LayerScale(width), LayerScale(width)
        if scale == "gamma":
            self.gamma_1, self.gamma_2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x):
        first = getattr(self, "ls1", lambda y: y * getattr(self, "gamma_1", 1))
        second = getattr(self, "ls2", lambda y: y * getattr(self, "gamma_2", 1))
        x = x + first(self.attn(self.norm1(x)))
        return x + second(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, width, patch, tubelet=None):
        super().__init__()
        kind, size = (nn.Conv3d, (tubelet, patch, patch)) if tubelet else (nn.Conv2d, patch)
        self.proj = kind(3, width, size, size)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """MAE's encoder and classifier, DINO, iBOT, DINOv2 (``scale="ls"``, registers, chunks); ``pool``: norm or fc_norm."""

    def __init__(self, classes=0, pool="norm", registers=0, chunks=0, masked=None, width=24, depth=4, heads=3, **block):
        super().__init__()
        self.patch_embed = PatchEmbed(width, 8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, width))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        if masked:
            setattr(self, masked, nn.Parameter(torch.zeros(1, width)))
        blocks = [Block(width, heads, **block) for _ in range(depth)]
        size = depth // chunks if chunks else 0
        # identities stand where earlier chunks' blocks would, so that the numbers count through
        places = (
            [nn.ModuleList([nn.Identity()] * at + blocks[at : at + size]) for at in range(0, depth, size)] if chunks else blocks
        )
        self.blocks = nn.ModuleList(places)
        setattr(self, pool, norm(width))
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def tokens(self, x):
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        if hasattr(self, "register_tokens"):
            x = torch.cat((x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]), dim=1)
        for entry in self.blocks:
            for block in entry if isinstance(entry, nn.ModuleList) else (entry,):
                x = block(x)
        return self.norm(x) if hasattr(self, "norm") else x

    def forward(self, x):
        x = self.tokens(x)
        return self.head(x[:, 0] if hasattr(self, "norm") else self.fc_norm(x[:, 1:].mean(1)))


class ProjectionHead(nn.Module):
    """DINO's: never run here, but in its training checkpoints."""

    def __init__(self, width, out):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, 8))
        self.last_layer = nn.utils.weight_norm(nn.Linear(8, out, bias=False))


class MAE(nn.Module):
    def __init__(self, width=24, heads=3, inner=16, inner_heads=4):
        super().__init__()
        self.patch_embed = PatchEmbed(width, 8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(4))
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 17, inner), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(inner, inner_heads) for _ in range(2))
        self.decoder_norm = norm(inner)
        self.decoder_pred = nn.Linear(inner, 8 * 8 * 3)

    def encode(self, x, noise):
        x = self.patch_embed(x) + self.pos_embed[:, 1:]
        shuffle = noise.argsort(dim=1)
        keep = shuffle[:, : x.shape[1] // 4, None].expand(-1, -1, x.shape[2])
        x = torch.cat(((self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x.gather(1, keep)), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), shuffle.argsort(dim=1)

    def forward(self, x, noise):
        x, restore = self.encode(x, noise)
        x = self.decoder_embed(x)
        masks = self.mask_token.expand(len(x), restore.shape[1] + 1 - x.shape[1], -1)
        patches = torch.cat((x[:, 1:], masks), dim=1).gather(1, restore[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat((x[:, :1], patches), dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


def sinusoids(count, width):
    angles = torch.arange(count, dtype=torch.float64)[:, None] / 10000 ** (2 * (torch.arange(width) // 2) / width)
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos()).float()[None]


class VideoMAE(nn.Module):
    """The finetuned classifier: video as [B, C, T, H, W]."""

    def __init__(self, classes=5, width=24, heads=3):
        super().__init__()
        self.patch_embed = PatchEmbed(width, 8, tubelet=2)
        self.blocks = nn.ModuleList(Block(width, heads, "qv") for _ in range(4))
        self.fc_norm = norm(width)
        self.head = nn.Linear(width, classes)

    def tokens(self, x):
        x = self.patch_embed(x)
        x = x + sinusoids(x.shape[1], x.shape[2])
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x):
        return self.head(self.fc_norm(self.tokens(x).mean(1)))


class VideoMAEEncoder(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.patch_embed = PatchEmbed(width, 8, tubelet=2)
        self.blocks = nn.ModuleList(Block(width, heads, "qv") for _ in range(4))
        self.norm = norm(width)

    def forward(self, x, mask):
        x = self.patch_embed(x)
        x = x + sinusoids(x.shape[1], x.shape[2])
        x = x[~mask].reshape(len(x), -1, x.shape[2])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class VideoMAEDecoder(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, "qv") for _ in range(2))
        self.norm = norm(width)
        self.head = nn.Linear(width, 3 * 2 * 8 * 8)

    def forward(self, x, count):
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -count:]))


class VideoMAEPretraining(nn.Module):
    def __init__(self, width=24, heads=3, inner=16, inner_heads=4):
        super().__init__()
        self.encoder, self.decoder = VideoMAEEncoder(width, heads), VideoMAEDecoder(inner, inner_heads)
        self.encoder_to_decoder = nn.Linear(width, inner, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))

    def forward(self, x, mask):
        x = self.encoder_to_decoder(self.encoder(x, mask))
        places = sinusoids(mask.shape[1], x.shape[2]).expand(len(x), -1, -1)
        seen, hidden = (places[which].reshape(len(x), -1, x.shape[2]) for which in (~mask, mask))
        return self.decoder(torch.cat((x + seen, self.mask_token + hidden), dim=1), hidden.shape[1])


class BEiT(nn.Module):
    def __init__(self, classes=5, width=24, heads=3):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = PatchEmbed(width, 8)
        self.blocks = nn.ModuleList(Block(width, heads, "qv", "gamma", window=4) for _ in range(4))
        self.fc_norm = norm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.fc_norm(x[:, 1:].mean(1)))


class PointEncoder(nn.Module):
    """A small PointNet over each group of points: [B, groups, points, 3] to [B, groups, width]."""

    def __init__(self, width):
        super().__init__()
        self.first_conv = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 1))
        self.second_conv = nn.Sequential(nn.Conv1d(32, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, width, 1))

    def forward(self, groups):
        x = self.first_conv(groups.flatten(0, 1).transpose(1, 2))
        x = torch.cat((x.amax(2, keepdim=True).expand_as(x), x), dim=1)
        return self.second_conv(x).amax(2).unflatten(0, groups.shape[:2])


class PointBlocks(nn.Module):
    """Point-MAE adds the positions before each block."""

    def __init__(self, width, heads, depth):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, "none") for _ in range(depth))

    def forward(self, x, places):
        for block in self.blocks:
            x = block(x + places)
        return x


def places(width):
    return nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, width))


class PointMAEEncoder(nn.Module):
    def __init__(self, width=24, heads=3):
        super().__init__()
        self.encoder, self.pos_embed = PointEncoder(width), places(width)
        self.blocks = PointBlocks(width, heads, 4)
        self.norm = norm(width)

    def forward(self, groups, centers):
        return self.norm(self.blocks(self.encoder(groups), self.pos_embed(centers)))


class PointMAE(nn.Module):
    def __init__(self, width=24, heads=3):
        super().__init__()
        self.MAE_encoder = PointMAEEncoder(width, heads)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = places(width)
        self.MAE_decoder = nn.Module()
        self.MAE_decoder.blocks = nn.ModuleList(Block(width, heads, "none") for _ in range(2))
        self.MAE_decoder.norm = norm(width)
        self.increase_dim = nn.Sequential(nn.Conv1d(width, 3 * 8, 1))


class PointClassifier(nn.Module):
    def __init__(self, width=24, heads=3):
        super().__init__()
        self.encoder, self.pos_embed = PointEncoder(width), places(width)
        self.cls_token, self.cls_pos = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = PointBlocks(width, heads, 4)
        self.norm = norm(width)
        self.cls_head_finetune = nn.Sequential(nn.Linear(2 * width, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, groups, centers):
        x = torch.cat((self.cls_token.expand(len(groups), -1, -1), self.encoder(groups)), dim=1)
        at = torch.cat((self.cls_pos.expand(len(groups), -1, -1), self.pos_embed(centers)), dim=1)
        x = self.norm(self.blocks(x, at))
        return self.cls_head_finetune(torch.cat((x[:, 0], x[:, 1:].amax(1)), dim=-1))
