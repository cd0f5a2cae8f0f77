"""Models in stages, of attention, convolutions or both.

A newcomer's trap: what changes the size stands in some lists beside the blocks and outside the list in others.
"""

from __future__ import annotations

from .cases import Case
from .settings import CLASSES, SWIN, deleted

__all__ = ["STOCK_STAGED"]

HIERARCHICAL, HYBRID = "hierarchical", "convolutions and hybrids"

_STAGED = {"depths": [2, 3, 4, 2], "hidden_sizes": [16, 16, 32, 32]}
_TIMM_SWIN = "img_size=32&patch_size=2&window_size=4&embed_dim=32&depths=(2,4)&num_heads=(2,4)&num_classes=5"

STOCK_STAGED: tuple[Case, ...] = (
    # hierarchical
    Case("swin-timm", HIERARCHICAL, f"timm:swin_tiny_patch4_window7_224?{_TIMM_SWIN}", expect=deleted("layers.1.blocks", 4)),
    Case(
        "swin-transformers",
        HIERARCHICAL,
        "hf:SwinForImageClassification",
        SWIN | CLASSES,
        expect=deleted("swin.encoder.layers.1.blocks", 4),
    ),
    Case("swin-torchvision", HIERARCHICAL, "families.built:swin_torchvision", expect=deleted("features.3", 4)),
    Case("swin-v2-timm", HIERARCHICAL, f"timm:swinv2_tiny_window8_256?{_TIMM_SWIN}", expect=deleted("layers.1.blocks", 4)),
    Case(
        "swin-v2-transformers",
        HIERARCHICAL,
        "hf:Swinv2ForImageClassification",
        SWIN | CLASSES,
        expect=deleted("swinv2.encoder.layers.1.blocks", 4),
    ),
    Case("swin-v2-torchvision", HIERARCHICAL, "families.built:swin_v2_torchvision", expect=deleted("features.3", 4)),
    Case(
        "hiera-timm",
        HIERARCHICAL,
        "timm:hiera_tiny_224?img_size=(64,64)&embed_dim=16&num_heads=1&stages=(2,3,4,2)&num_classes=5",
        expect=deleted("blocks[6-8]", 3),
    ),
    Case(
        "hiera-transformers",
        HIERARCHICAL,
        "hf:HieraForImageClassification",
        {"image_size": [64, 64], "embed_dim": 16, "depths": [2, 3, 4, 2], "num_heads": [1, 2, 4, 8], **CLASSES},
        expect=deleted("hiera.encoder.stages.2.layers[1-3]", 3),
    ),
    Case(
        "pvt-transformers",
        HIERARCHICAL,
        "hf:PvtForImageClassification",
        {**_STAGED, "image_size": 64, "num_attention_heads": [1, 1, 2, 2], **CLASSES},
        expect=deleted("pvt.encoder.block.2", 4),
    ),
    Case(
        "pvt-v2-transformers",
        HIERARCHICAL,
        "hf:PvtV2ForImageClassification",
        {**_STAGED, "image_size": 64, "num_attention_heads": [1, 1, 2, 2], **CLASSES},
        expect=deleted("pvt_v2.encoder.layers.2.blocks", 4),
    ),
    Case(
        "pvt-v2-timm",
        HIERARCHICAL,
        "timm:pvt_v2_b0?depths=(2,3,4,2)&embed_dims=(16,16,32,32)&num_heads=(1,1,2,2)&num_classes=5",
        expect=deleted("stages.2.blocks", 4),
    ),
    Case(
        "mvit-v2-timm",
        HIERARCHICAL,
        "families.built:mvit_v2",
        note="blocks that pool stand in the lists",
        expect=deleted("stages.2.blocks[1-3]", 3),
    ),
    Case(
        "maxvit-timm",
        HIERARCHICAL,
        "timm:maxvit_rmlp_pico_rw_256?img_size=64&num_classes=5",
        expect=deleted("stages.2.blocks[1-4]", 4),
    ),
    Case("maxvit-torchvision", HIERARCHICAL, "families.built:maxvit_torchvision", expect=deleted("blocks.1.layers[1-2]", 2)),
    Case(
        "twins-timm",
        HIERARCHICAL,
        "timm:twins_svt_small?img_size=64&embed_dims=(16,16,32,32)&depths=(2,2,4,2)&num_heads=(1,1,2,2)&wss=(4,4,2,2)",
        note="local and global attention take turns",
        expect=deleted("blocks.2", 4),
    ),
    Case(
        "davit-timm",
        HIERARCHICAL,
        "timm:davit_tiny?depths=(1,1,3,1)&embed_dims=(16,16,32,32)&num_heads=(1,1,2,2)&window_size=4&num_classes=5",
        note="attention over windows and over channels in one block",
        expect=deleted("stages.2.blocks", 3),
    ),
    Case("gcvit-timm", HIERARCHICAL, "families.built:gcvit", expect=deleted("stages.2.blocks", 4)),
    # convolutions and hybrids
    Case(
        "convnext-transformers",
        HYBRID,
        "hf:ConvNextForImageClassification",
        {"hidden_sizes": [8, 16, 32, 32], "depths": [2, 2, 4, 2], "image_size": 64, **CLASSES},
        expect=deleted("convnext.encoder.stages.2.layers", 4),
    ),
    Case(
        "convnext-timm",
        HYBRID,
        "timm:convnext_atto?depths=(2,2,4,2)&dims=(8,16,32,32)&num_classes=5",
        expect=deleted("stages.2.blocks", 4),
    ),
    Case("convnext-torchvision", HYBRID, "families.built:convnext_torchvision", expect=deleted("features.3", 4)),
    Case(
        "convnext-v2-transformers",
        HYBRID,
        "hf:ConvNextV2ForImageClassification",
        {"hidden_sizes": [8, 16, 32, 32], "depths": [2, 2, 4, 2], "image_size": 64, **CLASSES},
        expect=deleted("convnextv2.encoder.stages.2.layers", 4),
    ),
    Case(
        "convnext-v2-timm",
        HYBRID,
        "timm:convnextv2_atto?depths=(2,2,4,2)&dims=(8,16,32,32)&num_classes=5",
        expect=deleted("stages.2.blocks", 4),
    ),
    Case(
        "dinov3-convnext",
        HYBRID,
        "hf:DINOv3ConvNextModel",
        {"hidden_sizes": [8, 16, 32, 32], "depths": [2, 2, 4, 2], "image_size": 64},
        expect=deleted("model.stages.2.layers", 4),
    ),
    Case("poolformer-timm", HYBRID, "families.built:poolformer", expect=deleted("stages.2.blocks", 4)),
    Case(
        "focalnet-transformers",
        HYBRID,
        "hf:FocalNetForImageClassification",
        {
            "image_size": 32,
            "embed_dim": 16,
            "depths": [2, 4],
            "hidden_sizes": [16, 32],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
            **CLASSES,
        },
        expect=deleted("focalnet.encoder.stages.1.layers", 4),
    ),
    Case(
        "levit-timm",
        HYBRID,
        "timm:levit_128s?img_size=64&embed_dim=(16,32,32)&num_heads=(1,2,2)&depth=(2,3,3)&num_classes=5",
        expect=deleted("stages.1.blocks", 3),
    ),
    Case(
        "efficientformer-timm",
        HYBRID,
        "timm:efficientformer_l1?depths=(2,2,3,4)&embed_dims=(16,16,32,32)&num_classes=5",
        expect=deleted("stages.2.blocks", 3),
    ),
    Case(
        "tnt-timm",
        HYBRID,
        "timm:tnt_s_patch16_224?img_size=32&patch_size=8&depth=4&embed_dim=32&inner_dim=32&num_heads_inner=2&num_heads_outer=2&num_classes=5",
        expect=deleted("blocks", 4),
    ),
    Case(
        "pit-timm",
        HYBRID,
        "timm:pit_ti_224?img_size=64&patch_size=8&stride=4&base_dims=(16,16,16)&depth=(2,4,2)&heads=(1,2,2)&num_classes=5",
        expect=deleted("transformers.1.blocks", 4),
    ),
    Case(
        "coat-timm",
        HYBRID,
        "timm:coat_lite_tiny?img_size=64&embed_dims=(16,16,32,32)&serial_depths=(2,2,3,2)&num_heads=8&num_classes=5",
        expect=deleted("serial_blocks3", 3),
    ),
    Case("mixer-timm", HYBRID, "families.built:mixer", expect=deleted("blocks", 4)),
    Case("caformer-timm", HYBRID, "families.built:caformer", expect=deleted("stages.2.blocks", 4)),
    Case(
        "cvt-transformers",
        HYBRID,
        "hf:CvtForImageClassification",
        {"depth": [1, 2, 4], "embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "image_size": 64, **CLASSES},
        expect=deleted("cvt.encoder.stages.2.layers", 4),
    ),
    Case("mobilevit-timm", HYBRID, "timm:mobilevitv2_050?num_classes=5", expect=deleted("stages.3.1.transformer", 4)),
)
