"""Encoders of point clouds: from ready groups of points, and from bare points with sampling and neighbours in the graph.

A newcomer's trap: the loop adds the position embedding before each block (``x = block(x + pos)``), so deleting a block deletes
one addition too; and features are tapped by the blocks' numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .parts import Block, images, redrawn

__all__ = ["build_cloud", "build_tokens"]


class GroupEncoder(nn.Module):
    """A small PointNet: each neighbourhood [S, 3] becomes one token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Conv1d(16, 16, 1))
        self.second_conv = nn.Sequential(
            nn.Conv1d(32, 32, 1), nn.BatchNorm1d(32), nn.ReLU(inplace=True), nn.Conv1d(32, width, 1)
        )

    def forward(self, point_groups: Tensor) -> Tensor:
        bs, g, n, _ = point_groups.shape
        feature = self.first_conv(point_groups.reshape(bs * g, n, 3).transpose(2, 1))
        feature_global = torch.max(feature, dim=2, keepdim=True)[0]
        feature = torch.cat([feature_global.expand(-1, -1, n), feature], dim=1)
        return torch.max(self.second_conv(feature), dim=2)[0].reshape(bs, g, -1)


class PointBlocks(nn.Module):
    """The loop: the position is added anew before each block; the blocks numbered in ``fetch_idx`` are tapped."""

    def __init__(self, width: int, depth: int, fetch_idx: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.fetch_idx = fetch_idx

    def forward(self, x: Tensor, pos: Tensor) -> list[Tensor]:
        feature_list = []
        for i, block in enumerate(self.blocks):
            x = block(x + pos)
            if i in self.fetch_idx:
                feature_list.append(x)
        return feature_list


class PointEncoder(nn.Module):
    """Groups and their centres to tokens, blocks, and a reconstruction of every group from the tapped features."""

    def __init__(self, width: int = 16, depth: int = 6, points: int = 8, fetch_idx: tuple[int, ...] = (1, 3, 5)) -> None:
        super().__init__()
        self.encoder = GroupEncoder(width)
        self.pos_embed = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, width))
        self.blocks = PointBlocks(width, depth, fetch_idx)
        self.norm = nn.LayerNorm(width)
        self.increase_dim = nn.Conv1d(width, 3 * points, 1)

    def forward(self, neighborhood: Tensor, center: Tensor) -> Tensor:
        tokens = self.encoder(neighborhood)
        features = self.blocks(tokens, self.pos_embed(center))
        x = torch.stack([self.norm(one) for one in features]).mean(0)
        return self.increase_dim(x.transpose(1, 2)).transpose(1, 2)


def farthest_points(xyz: Tensor, count: int) -> Tensor:
    """Return the numbers [B, count] of points far from each other, the first point first."""
    batch, points, _ = xyz.shape
    distance = torch.full((batch, points), 1e10, device=xyz.device)
    farthest = torch.zeros(batch, dtype=torch.long, device=xyz.device)
    chosen = []
    for _ in range(count):
        chosen.append(farthest)
        centroid = torch.gather(xyz, 1, farthest.view(batch, 1, 1).expand(-1, -1, 3))
        distance = torch.minimum(distance, ((xyz - centroid) ** 2).sum(-1))
        farthest = distance.argmax(-1)
    return torch.stack(chosen, 1)


class PointClassifier(nn.Module):
    """Bare points [B, N, 3]: sampled, grouped with their nearest neighbours, encoded, and classified by token and maximum."""

    def __init__(self, width: int = 16, depth: int = 4, groups: int = 6, points: int = 4) -> None:
        super().__init__()
        self.num_group, self.group_size = groups, points
        self.encoder = GroupEncoder(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, width))
        self.blocks = PointBlocks(width, depth, (depth - 1,))
        self.norm = nn.LayerNorm(width)
        self.cls_head_finetune = nn.Sequential(nn.Linear(2 * width, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))

    def group(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        batch = xyz.shape[0]
        sampled = farthest_points(xyz, self.num_group)
        center = torch.gather(xyz, 1, sampled.unsqueeze(-1).expand(-1, -1, 3))
        distance = ((center.unsqueeze(2) - xyz.unsqueeze(1)) ** 2).sum(-1)  # [B, G, N]
        idx = distance.topk(self.group_size, dim=-1, largest=False)[1]
        idx = idx + torch.arange(batch, device=xyz.device).view(-1, 1, 1) * xyz.shape[1]
        neighborhood = xyz.reshape(-1, 3)[idx.reshape(-1), :].reshape(batch, self.num_group, self.group_size, 3)
        return neighborhood - center.unsqueeze(2), center

    def forward(self, pts: Tensor) -> Tensor:
        neighborhood, center = self.group(pts)
        tokens = self.encoder(neighborhood)
        x = torch.cat((self.cls_token.expand(tokens.size(0), -1, -1), tokens), dim=1)
        pos = torch.cat((self.cls_pos.expand(tokens.size(0), -1, -1), self.pos_embed(center)), dim=1)
        x = self.norm(self.blocks(x, pos)[0])
        return self.cls_head_finetune(torch.cat([x[:, 0], x[:, 1:].max(1)[0]], dim=-1))


def build_tokens() -> tuple[nn.Module, dict[str, Any]]:
    """Return the encoder of ready groups."""
    return redrawn(PointEncoder()), {"neighborhood": images(6, 8, 3), "center": images(6, 3, seed=2)}


def build_cloud() -> tuple[nn.Module, dict[str, Any]]:
    """Return the whole classifier, from bare points."""
    return redrawn(PointClassifier()), {"pts": images(48, 3)}
