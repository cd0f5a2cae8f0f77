"""How to recover: which methods, one after another, on which items, and how a training among them goes.

Light enough for the command line to read its defaults here. A newcomer's trap: the closed forms and ``distill`` need inputs
without labels, ``finetune`` labels, and ``pretrain`` a model with the decoder it was pretrained with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ..errors import ShallowvitError

__all__ = ["CLOSED_FORM", "PRECISIONS", "RecoverConfig", "RecoverMethod", "RepairMethod", "TrainConfig", "methods_from_text"]

PRECISIONS = ("fp32", "bf16", "fp16")


class RepairMethod(StrEnum):
    """What is fitted in front of a gap; each folds into the layer's own weights.

    ``PROJECTION`` fits the whole layer on its own inputs. ``LINEAR`` fits one map of its answers, as ReplaceMe does (Shopkhoev
    et al., NeurIPS 2025, arXiv 2505.02819). ``SCALE`` fits a factor and an offset a channel.
    """

    PROJECTION = "projection"
    LINEAR = "linear"
    SCALE = "scale"


class RecoverMethod(StrEnum):
    """A step of the recovery: one of ``RepairMethod``, or a training.

    ``DISTILL`` has the states and the output of the unpruned model as its aim (FitNets, arXiv 1412.6550; Hinton et al., arXiv
    1503.02531), ``PRETRAIN`` goes on with masked pretraining (VideoMAE, arXiv 2203.12602; MAE, arXiv 2111.06377), ``FINETUNE``
    has labels.
    """

    PROJECTION = "projection"
    LINEAR = "linear"
    SCALE = "scale"
    DISTILL = "distill"
    PRETRAIN = "pretrain"
    FINETUNE = "finetune"


CLOSED_FORM = tuple(RecoverMethod(method) for method in RepairMethod)


@dataclass(frozen=True)
class TrainConfig:
    """How a pruned model is trained, by the recipe of BEiT, MAE and VideoMAE (layer-wise decay, warm-up and cosine).

    Args:
        epochs: Times that each item is seen.
        batch: Items a step of the optimiser sees at a time, on each device.
        accumulate: Such batches a step.
        optimizer: As timm calls it.
        learning_rate: At the peak, of the last block and the head.
        layer_decay: Factor of the learning rate a block towards the input; 1 for none.
        weight_decay: Of matrices; vectors (biases, norms) don't decay.
        warmup_share: The share of the steps in which the learning rate rises.
        clip_norm: The most that the norm of a step's gradient may be.
        label_smoothing: Of labels; none where mixup softens them already by as much.
        mixup: The alpha of mixup (arXiv 1710.09412); 0 for none.
        cutmix: The alpha of CutMix (arXiv 1905.04899); 0 for none.
        drop_path: The last block's chance to be skipped for an item, rising from 0 at the first (arXiv 1603.09382).
        ema_decay: Of a running mean of the weights, which is what is kept then; 0 for none.
        augment: ``none``, ``flip``, or timm's RandAugment by its text (``rand-m7-n4-mstd0.5-inc1``); one draw a clip.
        precision: What forwards and gradients are computed in: fp32, bf16 or fp16.
        lora_rank: Train matrices of this rank beside the frozen weights (arXiv 2106.09685), and fold them in; 0 for none.
        teacher_weight: Of finetuning: how much the unpruned model's states and output count beside the labels; 0 for none.
        output_weight: Of the output in what the teacher teaches.
        hidden_weight: Of the states behind kept blocks in what the teacher teaches.
        temperature: That softens both outputs.
        mask_ratio: Of masked pretraining; the model's own by default.
        patience: Epochs without a better validation after which it ends; 0 for never.
        validation_share: The share of items that judges epochs instead of training, where no validation data is named.
        checkpoint_steps: Steps between checkpoints; by default one an epoch.
        workers: Processes that read and augment items ahead; 0 for none.
    """

    epochs: int = 3
    batch: int = 64
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 5e-4
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    warmup_share: float = 0.1
    clip_norm: float = 1.0
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0
    ema_decay: float = 0.0
    augment: str = "none"
    precision: str = "fp32"
    lora_rank: int = 0
    teacher_weight: float = 0.0
    output_weight: float = 1.0
    hidden_weight: float = 1.0
    temperature: float = 2.0
    mask_ratio: float | None = None
    patience: int = 0
    validation_share: float = 0.1
    checkpoint_steps: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("accumulate", 1), ("patience", 0), ("lora_rank", 0), ("workers", 0)):
            self._check(name, getattr(self, name) >= least, f"at least {least}")
        for name in ("learning_rate", "clip_norm", "layer_decay", "temperature"):
            self._check(name, getattr(self, name) > 0, "more than 0")
        for name in ("warmup_share", "label_smoothing", "drop_path", "ema_decay", "validation_share"):
            self._check(name, 0 <= getattr(self, name) < 1, "0 or more and less than 1")
        for name in ("weight_decay", "mixup", "cutmix", "teacher_weight", "output_weight", "hidden_weight"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        self._check("mask_ratio", self.mask_ratio is None or 0 < self.mask_ratio < 1, "between 0 and 1")
        self._check("checkpoint_steps", self.checkpoint_steps >= 0, "0 or more")
        self._check("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")

    def _check(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise ShallowvitError(f"recover: {name.replace('_', ' ')} {getattr(self, name)}; give {expected}")


@dataclass(frozen=True)
class RecoverConfig:
    """How to recover.

    Args:
        data: ``demo:train``, a ``.npz``, a folder, any form that ``open_dataset`` takes; not what accuracy is measured on.
        method: One of ``RecoverMethod``, or several with commas, done in this order.
        samples: Of the closed forms: items to fit on; a quarter of them or a little more only judges the fit.
        items: Of trainings: items of ``data`` at most, drawn once; by default all.
        validation: Labelled items that judge a training's epochs; by default a share of ``data``.
        seed: Of all that is drawn.
        batch: Of the closed forms: items a forward.
        training: How trainings go.
    """

    data: str
    method: str = RecoverMethod.PROJECTION.value
    samples: int = 256
    items: int | None = None
    validation: str | None = None
    seed: int = 0
    batch: int = 16
    training: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        methods_from_text(self.method)
        if self.batch < 1 or self.samples < 2:
            raise ShallowvitError(
                f"recover: {self.samples} items in batches of {self.batch}; give 2 items or more in batches of 1 up"
            )
        if self.seed < 0:
            raise ShallowvitError(f"recover: seed {self.seed}; give 0 or more")
        if self.items is not None and self.items < 2:
            raise ShallowvitError(f"recover: items {self.items} is too few to train on; give at least 2")

    @property
    def methods(self) -> tuple[RecoverMethod, ...]:
        """The steps in order."""
        return methods_from_text(self.method)


def methods_from_text(text: str) -> tuple[RecoverMethod, ...]:
    """Return the steps that a text such as ``projection,finetune`` names.

    Raises:
        ShallowvitError: an unknown method, one twice, or a closed form behind a training, which it would undo.
    """
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in list(RecoverMethod):
            raise ShallowvitError(f"recover: unknown method {name!r}; choose from {', '.join(RecoverMethod)}")
    methods = tuple(map(RecoverMethod, names))
    if len(set(methods)) < len(methods) or sum(method in CLOSED_FORM for method in methods) > 1:
        raise ShallowvitError(f"recover: --method {text}: give each method once, and one closed form at most")
    if any(method in CLOSED_FORM for method in methods[1:]):
        raise ShallowvitError(f"recover: --method {text}: the closed form comes first, what is trained would be fitted over")
    return methods
