"""The names in official checkpoints as data: what their repositories call each weight, and what the stock classes call it.

A ``Layout`` is one form of original state dict, recognised by the names in it; a ``ClassMap`` says where its weights go in one
stock class. A newcomer's trap: equal shapes don't make equal models. The number of attention heads is in no weight, so the
heads that a repository uses at each width stand here too, and a target that has others is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CLASS_MAPS", "HINTS", "INFIXES", "LAYOUTS", "PREFIXES", "WRAPPERS", "ClassMap", "Layout", "Part", "Rule"]

# A pattern at the start of a name and what stands there instead. Several replacements: the tensor is split into as many equal
# parts along its first dimension. The first rule that matches counts; a name that none matches stays as it is.
Rule = tuple[str, str | tuple[str, ...]]

# Keys under which files keep their state dict; of several, the first is taken (a teacher is what DINO and iBOT evaluate).
WRAPPERS = (
    "state_dict",
    "model",
    "module",
    "model_state_dict",
    "base_model",
    "teacher",
    "target_encoder",
    "model_ema",
    "ema",
    "ema_state_dict",
    "student",
    "net",
    "network",
    "backbone",
    "encoder",
)
# Taken off where all names start with one of them, again and again.
PREFIXES = ("module.", "_orig_mod.", "model.", "base_model.", "teacher.", "student.", "backbone.", "encoder.", "net.")
# Left by wrappers in the middle of names: torch.compile, FSDP, activation checkpointing.
INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24}


@dataclass(frozen=True)
class Part:
    """A part of the original model that a target may do without: dropped as a whole, or not at all."""

    name: str
    pattern: str


@dataclass(frozen=True)
class Layout:
    """One form of original state dict. ``marks`` and ``without`` are patterns that match a name's start.

    ``renames`` lead to the names that parts, class maps and views work on. ``views`` are further names by which a user's own
    module may know its weights. ``computed`` are buffers that the file needn't hold, since the module computes them.
    """

    name: str
    marks: tuple[str, ...]
    without: tuple[str, ...] = ()
    renames: tuple[Rule, ...] = ()
    parts: tuple[Part, ...] = ()
    views: tuple[tuple[Rule, ...], ...] = ()
    computed: tuple[str, ...] = ()
    heads: Mapping[int, int] = field(default_factory=lambda: dict(_HEADS))
    decoder_heads: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassMap:
    """Where the weights of some layouts go in one stock class.

    ``optional`` are children of the module that the originals don't have: taken out, where the file has nothing for them.
    ``fold`` names a token and a table whose first row is added to the token where the module has the third (timm's tokens carry
    no positions beside registers).
    """

    layouts: tuple[str, ...]
    rules: tuple[Rule, ...]
    optional: tuple[str, ...] = ()
    fold: tuple[str, str, str] | None = None


_CLASSIFIER = Part("classifier", r"head\.")
_CLASSIFIER_AND_NORM = Part("classifier with its norm", r"(fc_norm|head)\.")  # the norm goes only if the head does
_MASK_TOKEN = Part("mask token", r"(mask_token|masked_embed)$")
_PROJECTION = Part("projection head", r"projection_head\.")

LAYOUTS = (
    Layout(
        "VideoMAE pretraining",
        marks=(r"encoder\.blocks\.0\.attn\.qkv\.weight", r"encoder_to_decoder\.weight"),
        renames=((r"encoder\.", ""),),
        parts=(Part("decoder", r"(decoder\.|encoder_to_decoder\.|mask_token$)"),),
        computed=(r"(.*\.)?pos_embed$",),
        decoder_heads={192: 3, 384: 6, 512: 8, 640: 8},
    ),
    Layout(
        "VideoMAE classifier",
        marks=(r"blocks\.0\.attn\.q_bias", r"blocks\.0\.attn\.qkv\.weight"),
        without=(r"cls_token", r"encoder_to_decoder\."),
        parts=(_CLASSIFIER, _CLASSIFIER_AND_NORM),
        computed=(r"pos_embed$",),
    ),
    Layout(
        "MAE pretraining",
        marks=(r"cls_token", r"decoder_embed\.weight", r"decoder_blocks\.0\.attn\.qkv\.weight"),
        parts=(Part("decoder", r"(decoder_|mask_token$)"),),
        decoder_heads={512: 16},
    ),
    Layout(
        "DINO or iBOT training",
        marks=(r"backbone\.cls_token", r"head\.(mlp|last_layer)"),
        without=(r"backbone\.blocks\.(\d+\.)+ls1\.",),
        renames=((r"backbone\.", ""), (r"head\.", "projection_head.")),
        parts=(_PROJECTION, _MASK_TOKEN),
    ),
    Layout(
        "plain ViT",  # MAE's encoder and its classifiers, DINO, iBOT, DeiT, supervised
        marks=(r"cls_token", r"pos_embed", r"blocks\.0\.attn\.qkv\.weight"),
        without=(r"decoder_", r"blocks\.\d+\.ls1\.", r"blocks\.\d+\.attn\.q_bias", r"rope", r"blocks\.\d+\.gamma_1"),
        parts=(_CLASSIFIER, _CLASSIFIER_AND_NORM, _MASK_TOKEN),
    ),
    Layout(
        "DINOv2",
        marks=(r"(backbone\.)?cls_token", r"(backbone\.)?pos_embed", r"(backbone\.)?blocks\.(\d+\.)+ls1\.gamma"),
        without=(r"(backbone\.)?(storage_tokens|rope|reg_token)",),  # DINOv3; timm's own names
        renames=(
            (r"backbone\.blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # chunked for FSDP: the second number counts through
            (r"blocks\.\d+\.(\d+)\.", r"blocks.\1."),
            (r"backbone\.", ""),
            (r"(dino|ibot)_head\.", r"projection_head.\1."),
        ),
        parts=(_PROJECTION, _MASK_TOKEN, Part("classifier", r"(linear_head|head)\.")),
    ),
    Layout(
        "BEiT or data2vec",
        marks=(r"cls_token", r"blocks\.0\.attn\.q_bias", r"blocks\.0\.attn\.qkv\.weight"),
        parts=(
            Part("table of indices", r".*relative_position_index$"),
            Part("token classifier", r"lm_head\."),
            _CLASSIFIER,
            _CLASSIFIER_AND_NORM,
            _MASK_TOKEN,
        ),
    ),
    Layout(
        "Point-MAE pretraining",
        marks=(r"MAE_encoder\.blocks\.blocks\.0\.attn\.qkv\.weight", r"MAE_encoder\.encoder\.first_conv\."),
        renames=((r"MAE_encoder\.", ""),),
        parts=(Part("decoder", r"(MAE_decoder\.|decoder_pos_embed\.|increase_dim\.|mask_token$)"),),
        views=(((r"blocks\.blocks\.", "blocks."),),),
        decoder_heads={384: 6},
    ),
    Layout(
        "Point-MAE classifier",
        marks=(r"cls_token", r"blocks\.blocks\.0\.attn\.qkv\.weight", r"encoder\.first_conv\."),
        without=(r"MAE_encoder\.",),
        parts=(Part("classifier", r"cls_head_finetune\."),),
        views=(((r"blocks\.blocks\.", "blocks."),),),
    ),
)


def _blocks(source: str, target: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules of one block for each block of a list."""

    def placed(name: str) -> str:
        return rf"{target}.\1.{name}"

    return tuple(
        (rf"{source}\.(\d+)\.{pattern}", placed(to) if isinstance(to, str) else tuple(map(placed, to))) for pattern, to in rules
    )


def _under(prefix: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(
        (pattern, prefix + to if isinstance(to, str) else tuple(prefix + part for part in to)) for pattern, to in rules
    )


_PATCHES: tuple[Rule, ...] = ((r"patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),)
_EMBEDDINGS: tuple[Rule, ...] = (
    *_PATCHES,
    (r"cls_token$", "embeddings.cls_token"),
    (r"pos_embed$", "embeddings.position_embeddings"),
)
_TOKENS: tuple[Rule, ...] = (
    (r"mask_token$", "embeddings.mask_token"),
    (r"register_tokens$", "embeddings.register_tokens"),
)
_QKV: tuple[Rule, ...] = (
    (r"attn\.qkv\.", ("attention.q_proj.", "attention.k_proj.", "attention.v_proj.")),
    (r"attn\.q_bias$", "attention.q_proj.bias"),
    (r"attn\.v_bias$", "attention.v_proj.bias"),
    (r"attn\.proj\.", "attention.o_proj."),
)
# ViT, ViTMAE and BEiT of transformers 5
_VIT_BLOCK: tuple[Rule, ...] = (
    (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."),
    *_QKV,
    (r"mlp\.", "mlp."),
    (r"gamma_(\d)$", r"lambda_\2"),  # the block's number is group 1
    (r"attn\.relative_position_bias_table$", "relative_position_bias.relative_position_bias_table"),
)
_DINOV2_BLOCK: tuple[Rule, ...] = (
    (r"norm(\d)\.", r"norm\2."),
    *_QKV,
    (r"ls(\d)\.gamma$", r"layer_scale\2.lambda1"),
    (r"mlp\.w12\.", ("mlp.gate_proj.", "mlp.up_proj.")),
    (r"mlp\.w3\.", "mlp.down_proj."),
    (r"mlp\.", "mlp."),
)
# VideoMAE and Data2VecVision, which kept the names of transformers 4
_OLDER_BLOCK: tuple[Rule, ...] = (
    (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."),
    (r"attn\.qkv\.", ("attention.attention.query.", "attention.attention.key.", "attention.attention.value.")),
    (r"attn\.q_bias$", "attention.attention.query.bias"),
    (r"attn\.v_bias$", "attention.attention.value.bias"),
    (r"attn\.proj\.", "attention.output.dense."),
    (r"mlp\.fc1\.", "intermediate.dense."),
    (r"mlp\.fc2\.", "output.dense."),
    (r"gamma_(\d)$", r"lambda_\2"),
    (
        r"attn\.relative_position_bias_table$",
        "attention.attention.relative_position_bias.relative_position_bias_table",
    ),
)
_NORM: tuple[Rule, ...] = ((r"norm\.", "layernorm."),)
_POOLED: tuple[Rule, ...] = ((r"fc_norm\.", "pooler.layernorm."),)
_SHARED = r"rel_pos_bias\.relative_position_bias_table$"
_HEAD: tuple[Rule, ...] = ((r"head\.", "classifier."),)

_VIT = _EMBEDDINGS + _blocks("blocks", "layers", _VIT_BLOCK) + _NORM
_MAE_DECODER: tuple[Rule, ...] = (
    *_blocks("decoder_blocks", "decoder.decoder_layers", _VIT_BLOCK),
    (r"decoder_(pos_embed|embed|norm|pred)", r"decoder.decoder_\1"),
    (r"mask_token$", "decoder.mask_token"),
)
_DINOV2 = _EMBEDDINGS + _TOKENS + _blocks("blocks", "encoder.layer", _DINOV2_BLOCK) + _NORM
_LINEAR_HEAD: tuple[Rule, ...] = ((r"linear_head\.", "classifier."),)
_VIDEOMAE = _PATCHES + _blocks("blocks", "encoder.layer", _OLDER_BLOCK) + _NORM
_VIDEOMAE_DECODER = _blocks(r"decoder\.blocks", "decoder.decoder_layers", _OLDER_BLOCK)
_BEIT = (
    _EMBEDDINGS
    + _TOKENS
    + _blocks("blocks", "layers", _VIT_BLOCK)
    + ((_SHARED, "shared_position_bias.relative_position_bias_table"),)
    + _NORM
    + _POOLED
)
_DATA2VEC = (
    _EMBEDDINGS
    + _TOKENS
    + _blocks("blocks", "encoder.layer", _OLDER_BLOCK)
    + ((_SHARED, "encoder.relative_position_bias.relative_position_bias_table"),)
    + _NORM
    + _POOLED
)
_VIDEOMAE_FILES = ("VideoMAE pretraining", "VideoMAE classifier")
_IMAGE_FILES = ("plain ViT", "MAE pretraining", "DINO or iBOT training")

# By the class's library and name, since the original code has a VisionTransformer of its own.
CLASS_MAPS: Mapping[str, ClassMap] = {
    "transformers.VideoMAEModel": ClassMap(_VIDEOMAE_FILES, _VIDEOMAE),
    "transformers.VideoMAEForVideoClassification": ClassMap(_VIDEOMAE_FILES, _under("videomae.", _VIDEOMAE) + _HEAD),
    "transformers.VideoMAEForPreTraining": ClassMap(_VIDEOMAE_FILES, _under("videomae.", _VIDEOMAE) + _VIDEOMAE_DECODER),
    "transformers.ViTMAEModel": ClassMap(_IMAGE_FILES, _VIT),
    "transformers.ViTMAEForPreTraining": ClassMap(_IMAGE_FILES, _under("vit.", _VIT) + _MAE_DECODER),
    "transformers.ViTModel": ClassMap(_IMAGE_FILES, _VIT, optional=("pooler",)),
    "transformers.ViTForImageClassification": ClassMap(_IMAGE_FILES, _under("vit.", _VIT) + _HEAD),
    "transformers.Dinov2Model": ClassMap(("DINOv2",), _DINOV2),
    "transformers.Dinov2ForImageClassification": ClassMap(("DINOv2",), _under("dinov2.", _DINOV2) + _LINEAR_HEAD),
    "transformers.Dinov2WithRegistersModel": ClassMap(("DINOv2",), _DINOV2),
    "transformers.Dinov2WithRegistersForImageClassification": ClassMap(
        ("DINOv2",), _under("dinov2_with_registers.", _DINOV2) + _LINEAR_HEAD
    ),
    "transformers.BeitModel": ClassMap(("BEiT or data2vec",), _BEIT),
    "transformers.BeitForImageClassification": ClassMap(("BEiT or data2vec",), _under("beit.", _BEIT) + _HEAD),
    "transformers.Data2VecVisionModel": ClassMap(("BEiT or data2vec",), _DATA2VEC),
    "transformers.Data2VecVisionForImageClassification": ClassMap(
        ("BEiT or data2vec",), _under("data2vec_vision.", _DATA2VEC) + _HEAD
    ),
    "timm.VisionTransformer": ClassMap(
        (*_IMAGE_FILES, "DINOv2"),
        (
            (r"register_tokens$", "reg_token"),
            (r"blocks\.(\d+)\.mlp\.w12\.", r"blocks.\1.mlp.fc1."),
            (r"blocks\.(\d+)\.mlp\.w3\.", r"blocks.\1.mlp.fc2."),
        ),
        fold=("cls_token", "pos_embed", "reg_token"),
    ),
    "timm.Beit": ClassMap(("BEiT or data2vec",), ()),
}

# What to do, by the name that is missing, has no place or has another shape; the first that matches.
HINTS = (
    (r"(videomae\.)?layernorm\.", "Set use_mean_pooling in the target's config.json to what the original was built with"),
    (r"(.*\.)?(pos_embed|position_embeddings|.*relative_position_bias_table)$", "Build the target for the file's image size"),
    (
        r"(.*\.)?(classifier|head)\.",
        "Build the target with the classifier that the file has: none (a ...Model class, timm's num_classes=0), or one of as "
        "many classes",
    ),
    (r"(.*\.)?embeddings\.mask_token$", "Set use_mask_token to false in the target's config.json"),
    (r"(.*\.)?decoder", "The file lacks the decoder: build the encoder alone (ViTMAEModel, VideoMAEModel)"),
)
