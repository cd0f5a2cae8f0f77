"""The table of families, second part: models of the papers' own coding styles, and what each should come to when it is pruned.

A newcomer's trap: ``Expected`` was derived from the models' code and held against a bypass by hand; where the tool differs,
it is wrong until somebody shows why. What an engine takes was tried.
"""

from __future__ import annotations

from ..cases import Case, Expected

__all__ = ["PAPERS"]

MASKED, VOLUMES, POINTS, TWO = "masked pretraining", "volumes", "point clouds", "two streams"
DENSE, MIXERS, TWIST, WIRED = "dense outputs", "convolution and FFT", "attention with a twist", "wired by number"

_NO_NON_ZERO = "NonZero"  # x[mask] = token finds the places first, which RTX can't take


def _case(
    name: str, family: str, builder: str, expect: Expected, note: str, blocks: str = "", remove: str | None = None
) -> Case:
    return Case(name, family, f"families.papers.{builder}", {}, (blocks,) if blocks else (), remove, note, expect)


def _deleted(stack: str, blocks: int, engine: str | None = "passes") -> Expected:
    return Expected(stack, blocks, "deleted", None, "passes", engine)


def _kept(stack: str, blocks: int, reason: str | None = None) -> Expected:
    return Expected(stack, blocks, "placeholder", reason, "passes", "passes")


_SELF_SUPERVISED = (
    _case("vit-paper", MASKED, "self_supervised:build_vit", _deleted("blocks", 5), "hand-written attention, packed qkv"),
    _case("mae-paper", MASKED, "self_supervised:build_mae", _deleted("blocks", 5), "draws its mask within forward"),
    _case(
        "videomae-paper", MASKED, "self_supervised:build_videomae", _deleted("blocks", 5), "position table as a plain tensor"
    ),
    _case("dino-paper", MASKED, "self_supervised:build_dino", _deleted("blocks[0-3]", 4), "the last block returns attention"),
    _case(
        "ibot-paper",
        MASKED,
        "self_supervised:build_ibot",
        _deleted("blocks", 5, _NO_NON_ZERO),
        "overwrites tokens by a second input",
    ),
)
_VOLUMES_AND_POINTS = (
    _case("vit3d", VOLUMES, "volumes:build_vit3d", _deleted("transformer.layers", 5), "pairs of attention and MLP in the list"),
    _case("swin3d", VOLUMES, "volumes:build_swin3d", _deleted("stages.1[0-5]", 6), "a downsampling layer in the list"),
    _case("swin3d-one", VOLUMES, "volumes:build_swin3d", _deleted("stages.1[0-5]", 6), "one of a pair of windows", remove="3"),
    # x = block(x + pos): what a deleted block would take with it is one addition
    _case("points-tokens", POINTS, "points:build_tokens", _kept("blocks.blocks", 6), "adds positions before each block"),
    _case("points-cloud", POINTS, "points:build_cloud", _kept("blocks.blocks", 4), "samples and groups the points itself"),
)
_STREAMS = (
    _case("cross-view-encoder", TWO, "streams:build_cross_view", _deleted("enc_blocks", 5), "blk(x, pos)", "enc_blocks"),
    _case("cross-view-decoder", TWO, "streams:build_cross_view", _deleted("dec_blocks", 4), "(x, y) in and out", "dec_blocks"),
    _case("alternating-decoder", TWO, "streams:build_alternating_decoder", _kept("decoder", 6), "role by parity", remove="2"),
    _case(
        "alternating-decoder-two",
        TWO,
        "streams:build_alternating_decoder",
        _deleted("decoder", 6),
        "two in a row",
        remove="2,3",
    ),
    _case("fusion", TWO, "streams:build_fusion", _kept("cross_modal_image_layers", 5), "zip() of two lists"),
    # the same layer of both lists
    Case(
        "fusion-both",
        TWO,
        "families.papers.streams:build_fusion",
        blocks=("cross_modal_image_layers", "cross_modal_text_layers"),
        remove="2,7",
        note="zip() of two lists, cut alike",
        expect=_deleted("cross_modal_image_layers", 5),
    ),
)
_DENSE = (
    # hooks hang on modules, so a block without one may go
    _case("hooks", DENSE, "segmentation:build_hooks", _deleted("backbone.blocks", 6), "hooks on four blocks", remove="3"),
    _case("hooks-tapped", DENSE, "segmentation:build_hooks", _kept("backbone.blocks", 6), "a block with a hook", remove="2"),
    # a copy's hooks write into the original's dictionary, so that no copy is the model
    _case(
        "hooks-closure",
        DENSE,
        "segmentation:build_closure_hooks",
        Expected("backbone.blocks", 6, "refused", "copy", None, None),
        "hooks that close over a dictionary",
        remove="3",
    ),
    # the numbers run on from the encoder's outputs to the decoder's, past the end of either list
    _case("cross-view-dense", DENSE, "segmentation:build_cross_view_dense", _kept("enc_blocks", 5), "taps over two lists"),
    _case("pyramid", DENSE, "segmentation:build_pyramid", _deleted("backbone.blocks", 6), "out_indices, moved", remove="4"),
    _case("pyramid-tapped", DENSE, "segmentation:build_pyramid", _kept("backbone.blocks", 6), "a tapped block", remove="3"),
    _case(
        "multi-level", DENSE, "segmentation:build_multi_level", _kept("backbone.blocks", 6), "taps by another name", remove="1"
    ),
    _case("mask-encoder", DENSE, "segmentation:build_mask_transformer", _deleted("encoder.layers", 5), "", "encoder.layers"),
    _case(
        "mask-decoder",
        DENSE,
        "segmentation:build_mask_transformer",
        _kept("transformer_cross_attention_layers", 6),
        "two lists walked by number, the scale by its remainder",
        "transformer_cross_attention_layers",
        "2",
    ),
)
_MIXERS = (
    _case("hornet", MIXERS, "mixers:build_hornet", _deleted("stages.1", 5), "recursive gates"),
    _case("convnext-paper", MIXERS, "mixers:build_convnext", _deleted("stages.1", 5), "stages apart from downsampling"),
    _case("hyena", MIXERS, "mixers:build_hyena", _deleted("blocks", 5), "FFT of twice the length"),
    _case("gfnet", MIXERS, "mixers:build_gfnet", _deleted("blocks", 5), "complex weights"),
    _case("afno", MIXERS, "mixers:build_afno", _deleted("blocks", 5), "complex MLP, shrinkage"),
)
_TWISTS = (
    _case("convit", TWIST, "twists:build_convit", _deleted("blocks[0-4]", 5), "class token enters at a number, moved"),
    _case("convit-plain", TWIST, "twists:build_convit", _deleted("blocks[5-6]", 2), "behind the token", "blocks[5-6]", "1"),
    _case("mixture-mask", TWIST, "twists:build_mixture_mask", _deleted("blocks", 5), "masks times probabilities"),
    _case("soft", TWIST, "twists:build_soft", _deleted("blocks", 5), "iterates until it converges; post-norm"),
    _case("strips", TWIST, "twists:build_strips", _deleted("blocks", 5), "rows and columns"),
    _case("shared-bias", TWIST, "twists:build_shared_bias", _deleted("blocks", 5), "blk(x, rel_pos_bias=bias)"),
    _case("polyline", TWIST, "twists:build_polyline", _deleted("layers", 5), "mask from a second input"),
    _case("pvt-paper", TWIST, "twists:build_pyramid_transformer", _deleted("block2", 5), "blk(x, H, W), siblings"),
)
_WIRED = (
    _case("early-exit", WIRED, "wiring:build_early_exit", _kept("layers", 5), "the gate has an output a layer"),
    _case("camera", WIRED, "wiring:build_camera", _deleted("blocks", 5), "camera number as second input"),
    _case("parts-head", WIRED, "wiring:build_parts_head", _deleted("base.blocks[0-3]", 4), "two copies of the last block"),
    _case("macaron", WIRED, "wiring:build_macaron", _deleted("blocks", 5), "half MLP, attention, half MLP"),
    _case("parallel", WIRED, "wiring:build_parallel", _deleted("blocks", 5), "attention beside the MLP"),
    _case("post-norm", WIRED, "wiring:build_post_norm", _deleted("blocks", 5), "norms on the stream"),
    _case("tuples", WIRED, "wiring:build_tuples", _deleted("blocks", 5), "blk(x) -> (x, attention)"),
    # a skipped block has no attention map to give
    _case(
        "rollout",
        WIRED,
        "wiring:build_rollout",
        Expected("blocks", 5, "refused", None, "passes", "passes"),
        "multiplies the attention of all blocks",
    ),
)

PAPERS: tuple[Case, ...] = (
    *_SELF_SUPERVISED,
    *_VOLUMES_AND_POINTS,
    *_STREAMS,
    *_DENSE,
    *_MIXERS,
    *_TWISTS,
    *_WIRED,
)
