"""Plain vision transformers: blocks of one size, one after the other, and those whose attention is of another kind.

A newcomer's trap: iBOT, DINO and I-JEPA are ways to pretrain a plain ViT; their rows stand for that architecture, not for their
weights.
"""

from __future__ import annotations

from .cases import Case
from .settings import CLASSES, DECODER, DINO, IMAGE, TIMM, deleted, kept

__all__ = ["STOCK_PLAIN"]

PLAIN, TWISTED = "plain ViT", "attention with a twist"


STOCK_PLAIN: tuple[Case, ...] = (
    # plain ViT
    Case("vit-timm", PLAIN, f"timm:vit_tiny_patch16_224?{TIMM}", expect=deleted("blocks", 4)),
    Case("vit-transformers", PLAIN, "hf:ViTForImageClassification", IMAGE | CLASSES, expect=deleted("vit.layers", 4)),
    Case("vit-torchvision", PLAIN, "families.built:vit_torchvision", expect=deleted("encoder.layers", 4)),
    Case(
        "deit-timm",
        PLAIN,
        f"timm:deit_tiny_distilled_patch16_224?{TIMM}",
        note="two tokens, two heads",
        expect=deleted("blocks", 4),
    ),
    Case(
        "deit-transformers",
        PLAIN,
        "hf:DeiTForImageClassificationWithTeacher",
        IMAGE | CLASSES,
        expect=deleted("deit.layers", 4),
    ),
    Case("deit3-timm", PLAIN, f"timm:deit3_small_patch16_224?{TIMM}", note="layer scale", expect=deleted("blocks", 4)),
    Case(
        "mae-encoder",
        PLAIN,
        "hf:ViTMAEModel",
        IMAGE | DECODER,
        note="75 % of the tokens are dropped at random",
        expect=deleted("layers", 4),
    ),
    Case(
        "mae-pretraining",
        PLAIN,
        "hf:ViTMAEForPreTraining",
        IMAGE | DECODER,
        note="encoder and decoder",
        expect=deleted("vit.layers", 4),
    ),
    Case(
        "dino-timm",
        PLAIN,
        f"timm:vit_small_patch8_224?{TIMM}",
        note="features of the ViT-S/8 without a head",
        expect=deleted("blocks", 4),
    ),
    Case(
        "dinov2-transformers",
        PLAIN,
        "hf:Dinov2ForImageClassification",
        DINO | CLASSES,
        expect=deleted("dinov2.encoder.layer", 4),
    ),
    Case(
        "dinov2-swiglu",
        PLAIN,
        "hf:Dinov2Model",
        DINO | {"use_swiglu_ffn": True},
        note="SwiGLU, as in the giant",
        expect=deleted("encoder.layer", 4),
    ),
    Case("dinov2-timm", PLAIN, f"timm:vit_small_patch14_dinov2?{TIMM}", expect=deleted("blocks", 4)),
    Case(
        "dinov2-registers-transformers",
        PLAIN,
        "hf:Dinov2WithRegistersForImageClassification",
        DINO | CLASSES,
        expect=deleted("dinov2_with_registers.encoder.layer", 4),
    ),
    Case("dinov2-registers-timm", PLAIN, f"timm:vit_small_patch14_reg4_dinov2?{TIMM}", expect=deleted("blocks", 4)),
    Case("dinov3-transformers", PLAIN, "hf:DINOv3ViTModel", IMAGE, note="RoPE, registers", expect=deleted("model.layer", 4)),
    Case("dinov3-timm", PLAIN, f"timm:vit_small_patch16_dinov3?{TIMM}", note="RoPE, registers", expect=deleted("blocks", 4)),
    Case(
        "ibot-transformers",
        PLAIN,
        "hf:ViTForMaskedImageModeling",
        IMAGE | {"encoder_stride": 8},
        note="ViT, mask tokens",
        expect=deleted("vit.layers", 4),
    ),
    Case(
        "beit-timm",
        PLAIN,
        f"timm:beit_base_patch16_224?{TIMM}",
        note="relative position bias in each block",
        expect=deleted("blocks", 4),
    ),
    Case(
        "beit-transformers",
        PLAIN,
        "hf:BeitForImageClassification",
        IMAGE | CLASSES | {"use_relative_position_bias": True},
        expect=deleted("beit.layers", 4),
    ),
    Case(
        "beit-shared-bias",
        PLAIN,
        "hf:BeitModel",
        IMAGE | {"use_shared_relative_position_bias": True},
        note="one relative position bias handed to every block",
        expect=deleted("layers", 4),
    ),
    Case(
        "beit-masked",
        PLAIN,
        "hf:BeitForMaskedImageModeling",
        IMAGE | {"use_shared_relative_position_bias": True, "use_mask_token": True, "vocab_size": 40},
        expect=deleted("beit.layers", 4),
    ),
    Case(
        "data2vec-vision",
        PLAIN,
        "hf:Data2VecVisionForImageClassification",
        IMAGE | CLASSES | {"use_shared_relative_position_bias": True},
        expect=deleted("data2vec_vision.encoder.layer", 4),
    ),
    Case("vit-msn", PLAIN, "hf:ViTMSNForImageClassification", IMAGE | CLASSES, expect=deleted("vit.layers", 4)),
    Case("ijepa", PLAIN, "hf:IJepaForImageClassification", IMAGE | CLASSES, expect=deleted("ijepa.layers", 4)),
    Case("siglip-vision", PLAIN, "hf:SiglipVisionModel", IMAGE, note="attention pooling", expect=deleted("encoder.layers", 4)),
    Case(
        "siglip-timm",
        PLAIN,
        f"timm:vit_base_patch16_siglip_224?{TIMM}",
        note="attention pooling",
        expect=deleted("blocks", 4),
    ),
    Case(
        "siglip2-vision",
        PLAIN,
        "families.built:siglip2_vision",
        note="flattened patches, their mask and grid are inputs",
        expect=deleted("encoder.layers", 4),
    ),
    Case(
        "clip-vision",
        PLAIN,
        "hf:CLIPVisionModelWithProjection",
        IMAGE | {"projection_dim": 16},
        expect=deleted("vision_model.encoder.layers", 4),
    ),
    Case("clip-timm", PLAIN, f"timm:vit_base_patch16_clip_224?{TIMM}", expect=deleted("blocks", 4)),
    Case("metaclip2-vision", PLAIN, "hf:MetaClip2VisionModel", IMAGE, expect=deleted("encoder.layers", 4)),
    Case(
        "mlcd-vision",
        PLAIN,
        "hf:MLCDVisionModel",
        IMAGE,
        note="RoPE over rows and columns",
        expect=deleted("encoder.layers", 4),
    ),
    Case("aimv2-vision", PLAIN, "hf:Aimv2VisionModel", IMAGE, note="RMSNorm, SwiGLU", expect=deleted("encoder.layers", 4)),
    Case("pixio", PLAIN, "hf:PixioModel", IMAGE, note="several class tokens", expect=deleted("layers", 4)),
    Case("eva02-timm", PLAIN, f"timm:eva02_tiny_patch14_224?{TIMM}", note="SwiGLU, RoPE", expect=deleted("blocks", 4)),
    Case("eva-timm", PLAIN, f"timm:eva_large_patch14_196?{TIMM}", expect=deleted("blocks", 4)),
    Case("registers-timm", PLAIN, f"timm:vit_medium_patch16_reg4_gap_256?{TIMM}", expect=deleted("blocks", 4)),
    Case(
        "parallel-things-timm",
        PLAIN,
        f"timm:vit_small_patch16_18x2_224?{TIMM}",
        note="two attentions side by side",
        expect=deleted("blocks", 4),
    ),
    Case(
        "parallel-scaling-timm",
        PLAIN,
        f"timm:vit_base_patch16_xp_224?{TIMM}",
        note="attention beside the MLP",
        expect=deleted("blocks", 4),
    ),
    # attention with a twist
    Case(
        "relpos-timm",
        TWISTED,
        f"timm:vit_relpos_base_patch16_224?{TIMM}",
        note="MLP of relative positions",
        expect=deleted("blocks", 4),
    ),
    Case(
        "rope-mixed-timm",
        TWISTED,
        f"timm:vit_small_patch16_rope_mixed_224?{TIMM}",
        note="a RoPE table of each block's own",
        expect=kept("blocks", 4, "differ"),
    ),
    Case(
        "convit-timm",
        TWISTED,
        f"timm:convit_tiny?{TIMM}&local_up_to_layer=2",
        note="class token enters at a fixed block",
        expect=deleted("blocks[0-1]", 2),
    ),
    Case(
        "xcit-timm",
        TWISTED,
        f"timm:xcit_nano_12_p8_224?{TIMM}&cls_attn_layers=2",
        note="attention across channels",
        expect=deleted("blocks", 4),
    ),
    Case("cait-timm", TWISTED, f"timm:cait_xxs24_224?{TIMM}", note="talking heads", expect=deleted("blocks", 4)),
    Case("volo-timm", TWISTED, "families.built:volo", expect=deleted("network.2", 4)),
    Case(
        "vitdet",
        TWISTED,
        "hf:VitDetModel",
        IMAGE | {"window_block_indices": [0, 2], "window_size": 2, "pretrain_image_size": 32},
        expect=deleted("encoder.layer", 4),
    ),
    Case(
        "samvit-timm",
        TWISTED,
        f"timm:samvit_base_patch16?{TIMM}&window_size=2&global_attn_indexes=(1,3)",
        expect=deleted("blocks", 4),
    ),
)
