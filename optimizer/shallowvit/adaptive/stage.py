"""The stage *adapt*: two or three nested depths of a model in, a bundle with a gate that chooses among them for each input out.

After ECO-M2F (Yao et al., arXiv 2404.15244) in spirit: a small gate behind early features decides how deep an input goes, with
no control flow in any graph. A newcomer's trap: half the items train the gate, and what is promised comes from a quarter that
neither trained it nor set its thresholds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shallowvit_bench.datasets import open_dataset
from shallowvit_bench.errors import BenchError

from ..bundle import export
from ..errors import ShallowvitError
from ..exporting import deployable
from ..files import check_out, folder_when_whole
from ..recovery.items import TrainItems
from ..scoring.calibration import taker_of
from .checking import AdaptiveBundle
from .gate import gate_body, train_head, with_gate_head
from .manifest import ADAPTIVE_FILE, SCHEMA_VERSION, AdaptiveManifest
from .readme import readme_text
from .settings import FEWEST
from .sources import check_depths
from .thresholds import Outcomes, judge, set_thresholds, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..bundle import Manifest
    from ..exporting import ExportConfig
    from ..models import LoadedModel
    from ..pruning import PrunedModel
    from .settings import AdaptConfig

__all__ = ["adapt"]

_DRAWN_FROM = 4  # clips of demo to draw from for each that is wanted, since all of them take seconds to make
GATE = "gate"
# what the shipped models were finetuned on
_TRAINED_ON = {"demo": "demo:train", "demo:finetuned": "demo:train"}


def adapt(
    models: Sequence[PrunedModel],
    out: str | Path,
    config: AdaptConfig,
    exporting: ExportConfig | None = None,
    *,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> AdaptiveBundle:
    """Train a gate over the depths, set its thresholds, and write the adaptive bundle ``out``.

    Args:
        models: Two or three depths of one model, each a subset of the next one's blocks, in any order.
        out: The folder to write. It appears under this name only when whole.
        config: See ``AdaptConfig``.
        exporting: How the gate and each depth are exported.
        force: Replace ``out`` if it exists.
        progress: Told what is going on, a line at a time.

    Raises:
        ShallowvitError: the models aren't nested depths, the data doesn't fit or is too small, or the budget can't be met.
    """
    out = Path(out)
    check_out(out, force, "adapt")
    depths = check_depths(models)
    body, path = gate_body(depths[0], config.gate_blocks)
    items = _read_items(depths[-1].model, config)
    found = _outcomes(depths, body, items, config, progress)
    progress("training the gate")
    names = tuple(f"depth-{len(one.plan.kept)}" for one in depths)
    half, last = len(items) // 2, len(items) // 4
    right = torch.from_numpy(found.right)
    head = train_head(found.features[:half], right[:half], found.costs, config)
    with torch.no_grad():
        logits = head(found.features).numpy()
    outcomes = Outcomes(logits, found.confidence, found.right, found.costs, body.model.flops / depths[-1].model.flops)
    thresholds = set_thresholds(outcomes.part(slice(half, len(items) - last)), config)
    judged = judge(outcomes.part(slice(len(items) - last, None)), thresholds)
    measure = "top1" if items.labelled else "agreement"
    remarks = (*_remarks(depths, items, measure), *verdict(judged, names, measure))
    facts = {
        "gate": {"blocks": config.gate_blocks, "hidden": config.gate_width, "cost": outcomes.gate_cost},
        "thresholds": thresholds.gate,
        "cascade_thresholds": thresholds.cascade,
        "measure": measure,
        "expected": {_named(way, names): asdict(mix) for way, mix in judged.items()},
        "items": {"trained": half, "thresholds": len(items) - half - last, "judged": last},
        "settings": asdict(config) | {"data": items.name},
        "remarks": remarks,
    }
    with folder_when_whole(out, "adapt", force) as folder:
        exported = {}
        for name, model in zip((GATE, *names), (with_gate_head(body, path, head, names), *depths), strict=True):
            progress(f"exporting {name}")
            exported[name] = export(model, folder / name, exporting).manifest
        manifest = _manifest(out.name, exported, found.costs, facts)
        (folder / ADAPTIVE_FILE).write_text(manifest.model_dump_json(indent=1) + "\n")
        (folder / "README.md").write_text(readme_text(manifest))
    return AdaptiveBundle(out, manifest)


def _manifest(name: str, exported: dict[str, Manifest], costs: Sequence[float], facts: dict[str, Any]) -> AdaptiveManifest:
    """``exported`` are the gate and the depths, from the shallowest, by their folders."""
    gate, *depths = ({"path": path, "sha256": one.files["model.onnx"].sha256} for path, one in exported.items())
    kept = [one.plan.kept for one in exported.values()][1:]
    deepest = list(exported.values())[-1]
    own = {
        "schema_version": SCHEMA_VERSION,
        "kind": "adaptive",
        "name": name,
        "gate": gate | facts["gate"],
        "depths": tuple(one | {"kept": k, "cost": cost} for one, k, cost in zip(depths, kept, costs, strict=True)),
        "source": deepest.source.model_dump(),
        "tools": deepest.tools,
    }
    return AdaptiveManifest.model_validate(facts | own)


@dataclass(frozen=True)
class _Found:
    """What the depths and the gate's body made of all items, depths from the shallowest."""

    features: torch.Tensor
    confidence: np.ndarray[Any, Any]
    right: np.ndarray[Any, Any]
    costs: tuple[float, ...]


def _named(way: str, names: Sequence[str]) -> str:
    return names[int(way.removeprefix("depth "))] if way.startswith("depth ") else way


def _read_items(model: LoadedModel, config: AdaptConfig) -> TrainItems:
    try:
        dataset = open_dataset(config.data, taker_of(model), labelled=False, enough=_DRAWN_FROM * config.items)
    except BenchError as err:
        raise ShallowvitError(str(err)) from err
    if dataset.beside or dataset.views != 1 or dataset.kind != "classes":
        raise ShallowvitError(
            f"adapt: {dataset.name} has {dataset.views} views an item, {len(dataset.beside)} inputs beside the main one and is "
            f"for {dataset.kind}; a gate takes one view of the main input, and classes"
        )
    numbers = np.random.default_rng(config.seed).permutation(dataset.count)[: config.items]
    if len(numbers) < FEWEST:
        raise ShallowvitError(
            f"adapt: {dataset.name} holds {len(numbers)} items, too few to hold any out: half train the gate, a quarter sets "
            f"its thresholds, a quarter judges it; give at least {FEWEST}"
        )
    return TrainItems(dataset, numbers, model.input_spec, labelled=bool(len(dataset.labels)))


def _outcomes(
    depths: Sequence[PrunedModel], body: PrunedModel, items: TrainItems, config: AdaptConfig, progress: Callable[[str], None]
) -> _Found:
    """Run every depth and the gate's body once on each item."""
    modules = [deployable(one.model) for one in (*depths, body)]
    outputs: list[list[torch.Tensor]] = [[] for _ in modules]
    with torch.no_grad():
        for start in range(0, len(items), config.batch):
            inputs = items.batch(range(start, min(start + config.batch, len(items)))).inputs
            for module, kept in zip(modules, outputs, strict=True):
                kept.append(module(inputs))
            progress(f"{start + len(inputs):,} of {len(items):,} items through {len(depths)} depths and the gate")
    *answers, features = (torch.cat(parts) for parts in outputs)
    if features.ndim != 2 or not all(bool(torch.isfinite(one).all()) for one in (*answers, features)):
        raise ShallowvitError(
            f"adapt: what the gate reads is {list(features.shape)}, expected a finite row an item, and answers without NaN; "
            "check the models with shallowvit inspect"
        )
    predicted = torch.stack([one.argmax(dim=1) for one in answers], dim=1)
    wanted = items.labels if items.labelled else predicted[:, -1]
    confidence = torch.stack([one.softmax(dim=1).amax(dim=1) for one in answers], dim=1)
    costs = tuple(one.model.flops / depths[-1].model.flops for one in depths)
    return _Found(features.float(), confidence.numpy(), (predicted == wanted[:, None]).numpy(), costs)


def _remarks(depths: Sequence[PrunedModel], items: TrainItems, measure: str) -> tuple[str, ...]:
    """What is to know before the figures."""
    said = []
    if measure == "agreement":
        said.append(f"{items.name} has no labels, so that drops are in agreement with the deepest model, not in accuracy")
    for one in depths:
        on = {str(step["data"]) for step in one.recovery if step.get("epochs")}
        on |= {data for source, data in _TRAINED_ON.items() if one.model.origin.spec == source}
        if items.name in on:
            said.append(
                f"the depth of {len(one.plan.kept)} blocks was trained on {items.name} too, whose items may look easier to it "
                "than others"
            )
    return tuple(said)
