"""The table of families, first part: small models of the classes that transformers, timm and torchvision have.

A newcomer's trap: iBOT, DINO and I-JEPA are ways to pretrain a plain ViT; their rows stand for that architecture in their
authors' proportions, not for their weights.
"""

from __future__ import annotations

from typing import Any

from .cases import Case

__all__ = ["STOCK"]

PLAIN, TWISTED, HIERARCHICAL, HYBRID = "plain ViT", "attention with a twist", "hierarchical", "convolutions and hybrids"
VIDEO, AUDIO, TWO, DENSE = "video", "audio", "image and text", "dense outputs"

_WIDTH: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
_IMAGE: dict[str, Any] = {**_WIDTH, "image_size": 32, "patch_size": 8}
_CLASSES = {"num_labels": 5}
_DECODER = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 3,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}
_DINO = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 4], "num_heads": [2, 4], "window_size": 4}
_STAGED = {"depths": [2, 3, 4, 2], "hidden_sizes": [8, 16, 32, 32]}
_SEGFORMER = {**_STAGED, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16, "image_size": 64, "num_labels": 5}
_TAPS = {"num_hidden_layers": 6, "out_indices": [1, 3, 5, 6], "reshape_hidden_states": False}
_TAPS_OF_STAGES = {"out_indices": [1, 2, 3, 4]}
_VIDEO = {**_IMAGE, "num_frames": 4}
_TIMM = "img_size=32&patch_size=8&depth=4&embed_dim=32&num_heads=2&num_classes=5"
_TIMM_SWIN = "img_size=32&patch_size=2&window_size=4&embed_dim=16&depths=(2,4)&num_heads=(2,4)&num_classes=5"

STOCK: tuple[Case, ...] = (
    # plain ViT
    Case("vit-timm", PLAIN, f"timm:vit_tiny_patch16_224?{_TIMM}"),
    Case("vit-transformers", PLAIN, "hf:ViTForImageClassification", _IMAGE | _CLASSES),
    Case("vit-torchvision", PLAIN, "families.built:vit_torchvision"),
    Case("deit-timm", PLAIN, f"timm:deit_tiny_distilled_patch16_224?{_TIMM}", note="two tokens, two heads"),
    Case("deit-transformers", PLAIN, "hf:DeiTForImageClassificationWithTeacher", _IMAGE | _CLASSES),
    Case("deit3-timm", PLAIN, f"timm:deit3_small_patch16_224?{_TIMM}", note="layer scale"),
    Case("mae-encoder", PLAIN, "hf:ViTMAEModel", _IMAGE | _DECODER, note="75 % of the tokens are dropped at random"),
    Case("mae-pretraining", PLAIN, "hf:ViTMAEForPreTraining", _IMAGE | _DECODER, note="encoder and decoder"),
    Case("dino-timm", PLAIN, f"timm:vit_small_patch8_224?{_TIMM}", note="features of the ViT-S/8 without a head"),
    Case("dinov2-transformers", PLAIN, "hf:Dinov2ForImageClassification", _DINO | _CLASSES),
    Case("dinov2-swiglu", PLAIN, "hf:Dinov2Model", _DINO | {"use_swiglu_ffn": True}, note="SwiGLU, as in the giant"),
    Case("dinov2-timm", PLAIN, f"timm:vit_small_patch14_dinov2?{_TIMM}"),
    Case("dinov2-registers-transformers", PLAIN, "hf:Dinov2WithRegistersForImageClassification", _DINO | _CLASSES),
    Case("dinov2-registers-timm", PLAIN, f"timm:vit_small_patch14_reg4_dinov2?{_TIMM}"),
    Case("dinov3-transformers", PLAIN, "hf:DINOv3ViTModel", _IMAGE, note="RoPE, registers"),
    Case("dinov3-timm", PLAIN, f"timm:vit_small_patch16_dinov3?{_TIMM}", note="RoPE, registers"),
    Case("ibot-transformers", PLAIN, "hf:ViTForMaskedImageModeling", _IMAGE | {"encoder_stride": 8}, note="ViT, mask tokens"),
    Case("beit-timm", PLAIN, f"timm:beit_base_patch16_224?{_TIMM}", note="relative position bias in each block"),
    Case("beit-transformers", PLAIN, "hf:BeitForImageClassification", _IMAGE | _CLASSES | {"use_relative_position_bias": True}),
    Case(
        "beit-shared-bias",
        PLAIN,
        "hf:BeitModel",
        _IMAGE | {"use_shared_relative_position_bias": True},
        note="one relative position bias handed to every block",
    ),
    Case(
        "beit-masked",
        PLAIN,
        "hf:BeitForMaskedImageModeling",
        _IMAGE | {"use_shared_relative_position_bias": True, "use_mask_token": True, "vocab_size": 40},
    ),
    Case(
        "data2vec-vision",
        PLAIN,
        "hf:Data2VecVisionForImageClassification",
        _IMAGE | _CLASSES | {"use_shared_relative_position_bias": True},
    ),
    Case("vit-msn", PLAIN, "hf:ViTMSNForImageClassification", _IMAGE | _CLASSES),
    Case("ijepa", PLAIN, "hf:IJepaForImageClassification", _IMAGE | _CLASSES),
    Case("siglip-vision", PLAIN, "hf:SiglipVisionModel", _IMAGE, note="attention pooling"),
    Case("siglip-timm", PLAIN, f"timm:vit_base_patch16_siglip_224?{_TIMM}", note="attention pooling"),
    Case("siglip2-vision", PLAIN, "families.built:siglip2_vision", note="flattened patches, their mask and grid are inputs"),
    Case("clip-vision", PLAIN, "hf:CLIPVisionModelWithProjection", _IMAGE | {"projection_dim": 16}),
    Case("clip-timm", PLAIN, f"timm:vit_base_patch16_clip_224?{_TIMM}"),
    Case("metaclip2-vision", PLAIN, "hf:MetaClip2VisionModel", _IMAGE),
    Case("mlcd-vision", PLAIN, "hf:MLCDVisionModel", _IMAGE, note="RoPE over rows and columns"),
    Case("aimv2-vision", PLAIN, "hf:Aimv2VisionModel", _IMAGE, note="RMSNorm, SwiGLU"),
    Case("pixio", PLAIN, "hf:PixioModel", _IMAGE, note="several class tokens"),
    Case("eva02-timm", PLAIN, f"timm:eva02_tiny_patch14_224?{_TIMM}", note="SwiGLU, RoPE"),
    Case("eva-timm", PLAIN, f"timm:eva_large_patch14_196?{_TIMM}"),
    Case("registers-timm", PLAIN, f"timm:vit_medium_patch16_reg4_gap_256?{_TIMM}"),
    Case("parallel-things-timm", PLAIN, f"timm:vit_small_patch16_18x2_224?{_TIMM}", note="two attentions side by side"),
    Case("parallel-scaling-timm", PLAIN, f"timm:vit_base_patch16_xp_224?{_TIMM}", note="attention beside the MLP"),
    # attention with a twist
    Case("relpos-timm", TWISTED, f"timm:vit_relpos_base_patch16_224?{_TIMM}", note="MLP of relative positions"),
    Case("rope-mixed-timm", TWISTED, f"timm:vit_small_patch16_rope_mixed_224?{_TIMM}", note="a RoPE table of each block's own"),
    Case("convit-timm", TWISTED, f"timm:convit_tiny?{_TIMM}&local_up_to_layer=2", note="class token enters at a fixed block"),
    Case("xcit-timm", TWISTED, f"timm:xcit_nano_12_p8_224?{_TIMM}&cls_attn_layers=2", note="attention across channels"),
    Case("cait-timm", TWISTED, f"timm:cait_xxs24_224?{_TIMM}", note="talking heads"),
    Case("volo-timm", TWISTED, "families.built:volo"),
    Case(
        "vitdet",
        TWISTED,
        "hf:VitDetModel",
        _IMAGE | {"window_block_indices": [0, 2], "window_size": 2, "pretrain_image_size": 32},
    ),
    Case("samvit-timm", TWISTED, f"timm:samvit_base_patch16?{_TIMM}&window_size=2&global_attn_indexes=(1,3)"),
    # hierarchical
    Case("swin-timm", HIERARCHICAL, f"timm:swin_tiny_patch4_window7_224?{_TIMM_SWIN}"),
    Case("swin-transformers", HIERARCHICAL, "hf:SwinForImageClassification", _SWIN | _CLASSES),
    Case("swin-torchvision", HIERARCHICAL, "families.built:swin_torchvision"),
    Case("swin-v2-timm", HIERARCHICAL, f"timm:swinv2_tiny_window8_256?{_TIMM_SWIN}"),
    Case("swin-v2-transformers", HIERARCHICAL, "hf:Swinv2ForImageClassification", _SWIN | _CLASSES),
    Case("swin-v2-torchvision", HIERARCHICAL, "families.built:swin_v2_torchvision"),
    Case(
        "hiera-timm",
        HIERARCHICAL,
        "timm:hiera_tiny_224?img_size=(64,64)&embed_dim=16&num_heads=1&stages=(2,3,4,2)&num_classes=5",
    ),
    Case(
        "hiera-transformers",
        HIERARCHICAL,
        "hf:HieraForImageClassification",
        {"image_size": [64, 64], "embed_dim": 16, "depths": [2, 3, 4, 2], "num_heads": [1, 2, 4, 8], **_CLASSES},
    ),
    Case(
        "pvt-transformers",
        HIERARCHICAL,
        "hf:PvtForImageClassification",
        {**_STAGED, "image_size": 64, "num_attention_heads": [1, 1, 2, 2], **_CLASSES},
    ),
    Case(
        "pvt-v2-transformers",
        HIERARCHICAL,
        "hf:PvtV2ForImageClassification",
        {**_STAGED, "image_size": 64, "num_attention_heads": [1, 1, 2, 2], **_CLASSES},
    ),
    Case(
        "pvt-v2-timm",
        HIERARCHICAL,
        "timm:pvt_v2_b0?depths=(2,3,4,2)&embed_dims=(8,16,32,32)&num_heads=(1,1,2,2)&num_classes=5",
    ),
    Case(
        "mvit-v2-timm",
        HIERARCHICAL,
        "families.built:mvit_v2",
        note="blocks that pool stand in the lists",
    ),
    Case("maxvit-timm", HIERARCHICAL, "timm:maxvit_rmlp_pico_rw_256?img_size=64&num_classes=5"),
    Case("maxvit-torchvision", HIERARCHICAL, "families.built:maxvit_torchvision"),
    Case(
        "twins-timm",
        HIERARCHICAL,
        "timm:twins_svt_small?img_size=64&embed_dims=(16,16,32,32)&depths=(2,2,4,2)&num_heads=(1,1,2,2)&wss=(4,4,2,2)",
        note="local and global attention take turns",
    ),
    Case(
        "davit-timm",
        HIERARCHICAL,
        "timm:davit_tiny?depths=(1,1,3,1)&embed_dims=(16,16,32,32)&num_heads=(1,1,2,2)&window_size=4&num_classes=5",
        note="attention over windows and over channels in one block",
    ),
    Case(
        "gcvit-timm",
        HIERARCHICAL,
        "families.built:gcvit",
    ),
    # convolutions and hybrids
    Case(
        "convnext-transformers",
        HYBRID,
        "hf:ConvNextForImageClassification",
        {"hidden_sizes": [8, 16, 32, 32], "depths": [2, 2, 4, 2], "image_size": 64, **_CLASSES},
    ),
    Case("convnext-timm", HYBRID, "timm:convnext_atto?depths=(2,2,4,2)&dims=(8,16,32,32)&num_classes=5"),
    Case("convnext-torchvision", HYBRID, "families.built:convnext_torchvision"),
    Case(
        "convnext-v2-transformers",
        HYBRID,
        "hf:ConvNextV2ForImageClassification",
        {"hidden_sizes": [8, 16, 32, 32], "depths": [2, 2, 4, 2], "image_size": 64, **_CLASSES},
    ),
    Case("convnext-v2-timm", HYBRID, "timm:convnextv2_atto?depths=(2,2,4,2)&dims=(8,16,32,32)&num_classes=5"),
    Case(
        "dinov3-convnext",
        HYBRID,
        "hf:DINOv3ConvNextModel",
        {"hidden_sizes": [8, 16, 32, 32], "depths": [2, 2, 4, 2], "image_size": 64},
    ),
    Case("poolformer-timm", HYBRID, "families.built:poolformer"),
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
            **_CLASSES,
        },
    ),
    Case(
        "levit-timm", HYBRID, "timm:levit_128s?img_size=64&embed_dim=(16,32,32)&num_heads=(1,2,2)&depth=(2,3,3)&num_classes=5"
    ),
    Case("efficientformer-timm", HYBRID, "timm:efficientformer_l1?depths=(2,2,3,4)&embed_dims=(16,16,32,32)&num_classes=5"),
    Case(
        "tnt-timm",
        HYBRID,
        "timm:tnt_s_patch16_224?img_size=32&patch_size=8&depth=4&embed_dim=32&inner_dim=8&num_heads_inner=2&num_heads_outer=2&num_classes=5",
    ),
    Case(
        "pit-timm",
        HYBRID,
        "timm:pit_ti_224?img_size=64&patch_size=8&stride=4&base_dims=(16,16,16)&depth=(2,4,2)&heads=(1,2,2)&num_classes=5",
    ),
    Case(
        "coat-timm",
        HYBRID,
        "timm:coat_lite_tiny?img_size=64&embed_dims=(16,16,32,32)&serial_depths=(2,2,3,2)&num_heads=8&num_classes=5",
    ),
    Case("mixer-timm", HYBRID, "families.built:mixer"),
    Case("caformer-timm", HYBRID, "families.built:caformer"),
    Case(
        "cvt-transformers",
        HYBRID,
        "hf:CvtForImageClassification",
        {"depth": [1, 2, 4], "embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "image_size": 64, **_CLASSES},
    ),
    Case("mobilevit-timm", HYBRID, "timm:mobilevitv2_050?num_classes=5"),
    # video
    Case("videomae", VIDEO, "hf:VideoMAEForVideoClassification", _VIDEO | _DECODER | _CLASSES),
    Case("videomae-pretraining", VIDEO, "hf:VideoMAEForPreTraining", _VIDEO | _DECODER),
    Case(
        "vjepa2",
        VIDEO,
        "hf:VJEPA2Model",
        {
            **_WIDTH,
            "crop_size": 32,
            "patch_size": 8,
            "frames_per_clip": 4,
            "tubelet_size": 2,
            "mlp_ratio": 2,
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 3,
            "pred_num_mask_tokens": 2,
            "pred_mlp_ratio": 2,
        },
        note="encoder and predictor",
    ),
    Case(
        "vjepa2-classifier",
        VIDEO,
        "hf:VJEPA2ForVideoClassification",
        {
            **_WIDTH,
            "crop_size": 32,
            "patch_size": 8,
            "frames_per_clip": 4,
            "tubelet_size": 2,
            "mlp_ratio": 2,
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 3,
            "pred_num_mask_tokens": 2,
            "pred_mlp_ratio": 2,
            "num_pooler_layers": 2,
            **_CLASSES,
        },
    ),
    Case("vivit", VIDEO, "hf:VivitForVideoClassification", _VIDEO | _CLASSES | {"tubelet_size": [2, 8, 8]}),
    Case("timesformer", VIDEO, "hf:TimesformerForVideoClassification", _VIDEO | _CLASSES, note="time, then space"),
    Case("video-swin-torchvision", VIDEO, "families.built:swin3d_torchvision"),
    Case("mvit-torchvision", VIDEO, "families.built:mvit_torchvision"),
    # audio
    Case(
        "ast",
        AUDIO,
        "hf:ASTForAudioClassification",
        {**_WIDTH, "patch_size": 8, "max_length": 32, "num_mel_bins": 16, "frequency_stride": 4, "time_stride": 4, **_CLASSES},
    ),
    # image and text
    Case("clip", TWO, "families.built:clip", note="two towers"),
    Case("siglip", TWO, "families.built:siglip", note="two towers"),
    Case("vilt", TWO, "families.built:vilt", note="one encoder over words and patches"),
    Case("blip", TWO, "families.built:blip", note="cross-attention from words to patches"),
    Case("flava", TWO, "families.built:flava", note="two towers and a fusion of both"),
    Case("bridgetower", TWO, "families.built:bridgetower", note="layers of both towers walked in step"),
    # dense outputs
    Case(
        "dpt",
        DENSE,
        "hf:DPTForSemanticSegmentation",
        {
            **_IMAGE,
            "patch_size": 8,
            "num_hidden_layers": 6,
            "backbone_out_indices": [0, 2, 4, 5],
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
            "num_labels": 5,
            "is_hybrid": False,
            "use_auxiliary_head": False,
        },
        note="four taps by number",
    ),
    Case(
        "dpt-dinov2",
        DENSE,
        "hf:DPTForDepthEstimation",
        {
            "backbone_config": {"model_type": "dinov2", **_DINO, **_TAPS},
            "backbone": None,
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
            "image_size": 32,
            "patch_size": 8,
            "reassemble_factors": [4, 2, 1, 0.5],
        },
        note="DINOv2 with four taps",
    ),
    Case(
        "depth-anything",
        DENSE,
        "hf:DepthAnythingForDepthEstimation",
        {
            "backbone_config": {"model_type": "dinov2", **_DINO, **_TAPS},
            "patch_size": 8,
            "neck_hidden_sizes": [8, 8, 16, 16],
            "fusion_hidden_size": 16,
            "head_hidden_size": 8,
            "reassemble_hidden_size": 32,
        },
    ),
    Case("dinov2-backbone", DENSE, "hf:Dinov2Backbone", {**_DINO, "num_hidden_layers": 6, "out_indices": [2, 4, 6]}),
    Case("dinov3-backbone", DENSE, "hf:DINOv3ViTBackbone", {**_IMAGE, "num_hidden_layers": 6, "out_indices": [2, 4, 6]}),
    Case(
        "upernet-swin",
        DENSE,
        "hf:UperNetForSemanticSegmentation",
        {
            "backbone_config": {
                "model_type": "swin",
                **_SWIN,
                "image_size": 96,
                "depths": [2, 2, 4, 2],
                "num_heads": [1, 2, 2, 4],
                **_TAPS_OF_STAGES,
            },
            "hidden_size": 16,
            "auxiliary_channels": 8,
            "auxiliary_in_channels": 64,
            "num_labels": 5,
        },
    ),
    Case(
        "upernet-convnext",
        DENSE,
        "hf:UperNetForSemanticSegmentation",
        {
            "backbone_config": {
                "model_type": "convnext",
                "image_size": 192,
                "hidden_sizes": [8, 16, 32, 32],
                "depths": [2, 2, 4, 2],
                **_TAPS_OF_STAGES,
            },
            "hidden_size": 16,
            "auxiliary_channels": 8,
            "auxiliary_in_channels": 32,
            "num_labels": 5,
        },
    ),
    Case("segformer", DENSE, "hf:SegformerForSemanticSegmentation", _SEGFORMER),
    Case("segformer-classifier", DENSE, "hf:SegformerForImageClassification", _SEGFORMER),
    Case(
        "beit-segmentation",
        DENSE,
        "hf:BeitForSemanticSegmentation",
        {
            **_IMAGE,
            "out_indices": [1, 2, 3, 4],
            "use_relative_position_bias": True,
            "num_labels": 5,
            "pool_scales": [1, 2],
            "auxiliary_channels": 16,
            "use_auxiliary_head": False,
        },
    ),
    Case(
        "mask2former-swin",
        DENSE,
        "hf:Mask2FormerForUniversalSegmentation",
        {
            "backbone_config": {
                "model_type": "swin",
                **_SWIN,
                "depths": [2, 2, 4, 2],
                "num_heads": [1, 2, 2, 4],
                "image_size": 64,
                **_TAPS_OF_STAGES,
            },
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "encoder_layers": 2,
            "decoder_layers": 4,
            "num_attention_heads": 2,
            "dim_feedforward": 32,
            "num_queries": 6,
            "num_labels": 5,
        },
    ),
    Case(
        "maskformer-swin",
        DENSE,
        "hf:MaskFormerForInstanceSegmentation",
        {
            "backbone_config": {
                "model_type": "swin",
                **_SWIN,
                "depths": [2, 2, 4, 2],
                "num_heads": [1, 2, 2, 4],
                "image_size": 64,
            },
            "decoder_config": {
                "model_type": "detr",
                "d_model": 32,
                "decoder_layers": 3,
                "encoder_layers": 2,
                "decoder_ffn_dim": 32,
                "encoder_ffn_dim": 32,
                "decoder_attention_heads": 2,
                "encoder_attention_heads": 2,
                "num_queries": 6,
            },
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
            "num_labels": 5,
        },
    ),
    Case(
        "eomt",
        DENSE,
        "hf:EomtForUniversalSegmentation",
        {
            "hidden_size": 32,
            "num_hidden_layers": 5,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "num_blocks": 2,
            "num_queries": 6,
            "num_upscale_blocks": 1,
            "num_labels": 5,
        },
        note="queries enter before the last blocks",
    ),
    Case(
        "yolos", DENSE, "hf:YolosForObjectDetection", {**_IMAGE, "image_size": [32, 32], "num_detection_tokens": 6, **_CLASSES}
    ),
)
