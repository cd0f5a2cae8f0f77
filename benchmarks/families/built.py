"""Small models of classes that no name builds small, or at all: torchvision's, and those that take more than one picture.

A newcomer's trap: what is here is stock code of those libraries; models from papers that no library has stand in ``papers.py``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from families.cases import redraw

if TYPE_CHECKING:
    from collections.abc import Callable

__all__: list[str] = []  # called by name, as FILE:function of a source

Built = tuple[nn.Module, dict[str, Any]]
_SIDE = 32


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Build with a seed, since not all start values are drawn anew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return redraw(make()).eval()


def _image(make: Callable[[], nn.Module], side: int = _SIDE) -> Built:
    return _seeded(make), {"x": _pictures(1, 3, side, side)}


def _pictures(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def vit_torchvision() -> Built:
    """Torchvision's plain ViT, an ``nn.MultiheadAttention`` in each block."""
    from torchvision.models.vision_transformer import VisionTransformer

    return _image(lambda: VisionTransformer(_SIDE, 8, 4, 2, 32, 64, num_classes=5))


def swin_torchvision() -> Built:
    """Torchvision's Swin of two stages."""
    from torchvision.models.swin_transformer import SwinTransformer

    return _image(lambda: SwinTransformer([2, 2], 32, [2, 4], [2, 2], [4, 4], num_classes=5))


def swin_v2_torchvision() -> Built:
    """Torchvision's Swin V2 of two stages."""
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    make = partial(SwinTransformer, num_classes=5, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)
    return _image(lambda: make([2, 2], 32, [2, 4], [2, 2], [4, 4]))


def swin3d_torchvision() -> Built:
    """Torchvision's Video Swin of two stages."""
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    module = _seeded(lambda: SwinTransformer3d([2, 4, 4], 32, [2, 4], [2, 4], [2, 4, 4], num_classes=5))
    return module, {"x": _pictures(1, 3, 4, _SIDE, _SIDE)}


def mvit_torchvision() -> Built:
    """Torchvision's video MViT: five blocks, of which the third pools its queries."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    def block(inputs: int, outputs: int, heads: int, stride_q: list[int]) -> MSBlockConfig:
        return MSBlockConfig(heads, inputs, outputs, [3, 3, 3], [3, 3, 3], stride_q, [1, 2, 2])

    blocks = [
        block(16, 16, 1, [1, 1, 1]),
        block(16, 16, 1, [1, 1, 1]),
        block(16, 32, 2, [1, 2, 2]),
        block(32, 32, 2, [1, 1, 1]),
        block(32, 32, 2, [1, 1, 1]),
    ]
    make = partial(MViT, num_classes=5, residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True)
    module = _seeded(lambda: make((_SIDE, _SIDE), 4, blocks, proj_after_attn=True))
    return module, {"x": _pictures(1, 3, 4, _SIDE, _SIDE)}


def convnext_torchvision() -> Built:
    """Torchvision's ConvNeXt of two stages."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return _image(lambda: ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 4)], num_classes=5))


def maxvit_torchvision() -> Built:
    """Torchvision's MaxViT of two stages."""
    from torchvision.models.maxvit import MaxVit

    return _image(lambda: MaxVit((_SIDE, _SIDE), 16, 4, [16, 32], [2, 3], 16, 0.0, num_classes=5))


def volo() -> Built:
    """VOLO of timm: outlook attention, then attention, then two blocks in which the class token alone attends."""
    from timm.models.volo import VOLO

    make = partial(
        VOLO, num_classes=5, embed_dims=[16, 32, 32, 32], num_heads=[2, 2, 2, 2], stem_hidden_dim=16, use_aux_head=False
    )
    return _image(lambda: make([2, 4, 2, 2], 64), 64)


def _metaformer(**settings: Any) -> Built:
    from timm.models.metaformer import MetaFormer

    return _image(lambda: MetaFormer(num_classes=5, depths=(2, 2, 4, 2), dims=(8, 16, 32, 32), **settings), 64)


def poolformer() -> Built:
    """PoolFormer of timm: average pooling where attention stands elsewhere."""
    from timm.models.metaformer import GroupNorm1

    return _metaformer(
        downsample_norm=None,
        mlp_act=nn.GELU,
        mlp_bias=True,
        norm_layers=GroupNorm1,
        layer_scale_init_values=0.5,
        res_scale_init_values=None,
        use_mlp_head=False,
    )


def caformer() -> Built:
    """CAFormer of timm: separable convolutions in two stages, attention in two."""
    from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, SepConv

    # heads are 32 wide
    return _metaformer(
        token_mixers=[SepConv, SepConv, Attention, Attention],
        norm_layers=[LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
    )


def gcvit() -> Built:
    """GCViT of timm: windows that attend to themselves and windows that attend to the whole take turns."""
    from timm.models.gcvit import GlobalContextVit

    make = partial(GlobalContextVit, num_classes=5, img_size=64, window_size=(4, 4, 4, 2), embed_dim=16)
    return _image(lambda: make(depths=(2, 2, 4, 2), num_heads=(1, 1, 2, 2)), 64)


def mvit_v2() -> Built:
    """MViTv2 of timm: the first block of a stage pools, and stands in the list with the others."""
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    return _image(lambda: MultiScaleVit(MultiScaleVitCfg((1, 2, 4, 1), 16), (64, 64), num_classes=5), 64)


def mixer() -> Built:
    """MLP-Mixer of timm."""
    from timm.models.mlp_mixer import MlpMixer

    return _image(lambda: MlpMixer(5, _SIDE, patch_size=8, num_blocks=4, embed_dim=32))


_TOKENS = {"input_ids": torch.tensor([[1, 5, 9, 4, 7, 2]]), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
_TEXT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": _SIDE,
    "patch_size": 8,
}


def _transformers(name: str, **settings: Any) -> nn.Module:
    import transformers

    cls = getattr(transformers, name)
    return _seeded(lambda: cls(cls.config_class(**settings)))


def _picture_and_text(name: str, **settings: Any) -> Built:
    module = _transformers(name, **settings)
    return module, {"pixel_values": _pictures(1, 3, _SIDE, _SIDE), **_TOKENS}


def siglip2_vision() -> Built:
    """SigLIP 2, which takes flattened patches, which of them are real, and the grid they come from."""
    settings = {key: value for key, value in _VISION.items() if key != "image_size"}
    module = _transformers("Siglip2VisionModel", **settings, num_patches=16)
    return module, {
        "pixel_values": _pictures(1, 16, 3 * 8 * 8),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]]),
    }


def clip() -> Built:
    """CLIP whole: vision and text towers."""
    text = _TEXT | {"max_position_embeddings": 16, "eos_token_id": 2}
    return _picture_and_text("CLIPModel", vision_config=_VISION, text_config=text, projection_dim=16)


def siglip() -> Built:
    """SigLIP whole: vision and text towers."""
    text = _TEXT | {"max_position_embeddings": 16, "projection_size": 32}
    return _picture_and_text("SiglipModel", vision_config=_VISION, text_config=text)


def vilt() -> Built:
    """ViLT: one encoder over words and patches."""
    module, example = _picture_and_text("ViltModel", **_VISION, vocab_size=50, max_position_embeddings=16, max_image_length=-1)
    return module, example | {"pixel_mask": torch.ones(1, _SIDE, _SIDE, dtype=torch.long)}


def blip() -> Built:
    """BLIP's retrieval: words attend to patches."""
    text = _TEXT | {"max_position_embeddings": 16, "encoder_hidden_size": 32, "projection_dim": 16}
    return _picture_and_text(
        "BlipForImageTextRetrieval", vision_config=_VISION, text_config=text, projection_dim=16, image_text_hidden_size=16
    )


def flava() -> Built:
    """FLAVA: two towers and an encoder over both."""
    text = _TEXT | {"max_position_embeddings": 16}
    fusion = {key: value for key, value in _TEXT.items() if key != "vocab_size"}
    return _picture_and_text(
        "FlavaModel",
        image_config=_VISION,
        text_config=text,
        multimodal_config=fusion,
        hidden_size=32,
        projection_dim=16,
    )


def bridgetower() -> Built:
    """BridgeTower: cross-modal layers walk the last layers of both towers in step."""
    vision = {"hidden_size": 64, "num_hidden_layers": 5, "patch_size": 8, "image_size": _SIDE}
    text = _TEXT | {"num_hidden_layers": 5, "max_position_embeddings": 20}
    return _picture_and_text(
        "BridgeTowerModel",
        vision_config=vision,
        text_config=text,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
    )
