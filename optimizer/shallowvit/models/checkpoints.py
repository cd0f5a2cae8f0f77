"""Load a state dict by whatever names its repository used into a built module: recognised by its keys, mapped, checked, loaded.

Nothing is loaded unless every weight of the module is met and every weight of the file is either placed or of a part that the
map allows to be left out whole; what was left out is returned. A newcomer's trap: the layout is told by the names in the file,
never by the file's own name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ..errors import ShallowvitError
from .key_maps import CLASS_MAPS, HINTS, INFIXES, LAYOUTS, PREFIXES, ClassMap, Layout, Rule

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import torch

    from .weights import Checkpoint

__all__ = ["CheckpointFit", "load_checkpoint", "take_out_absent", "unchunked"]

_CHUNKED = re.compile(r"(|.*\.)blocks\.(\d+)\.(\d+)\.")


@dataclass(frozen=True)
class CheckpointFit:
    """How a file's weights went into a module: by which map, without which, and what the user should know."""

    map: str
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Trial:
    """One way to read the file: each of its names with its places in the module, and what doesn't fit."""

    label: str
    layout: Layout | None
    places: Mapping[str, tuple[str, ...]]
    missing: tuple[str, ...]
    unexpected: Mapping[str, str]  # to where the map would put them
    dropped: Mapping[str, tuple[str, ...]]  # by the part's name

    @property
    def misfits(self) -> int:
        return len(self.missing) + len(self.unexpected)


def load_checkpoint(module: torch.nn.Module, checkpoint: Checkpoint, source: str) -> CheckpointFit:
    """Load the weights into the module in place, by its own names or by those of a known repository.

    Args:
        module: Built for this file; a child that its class map calls optional is taken out, if the file has nothing for it.
        checkpoint: What the file holds.
        source: What messages call the file.

    Raises:
        ShallowvitError: the names are unknown or ambiguous; a weight is missing, has no place or another shape.
    """
    own = module.state_dict()
    levels = _stripped(tuple(checkpoint.state))
    for names in levels:
        if set(names.values()) == set(own):
            same = _Trial("as named", None, {name: (to,) for name, to in names.items()}, (), {}, {})
            return _fill(module, checkpoint, same, source, None)
    layout, class_map = _layout(levels[-1].values(), source), _class_map(module)
    if layout and class_map and layout.name not in class_map.layouts:
        raise ShallowvitError(
            f"load: {source} is a {layout.name} checkpoint, which doesn't go into {type(module).__name__} but into "
            f"{', '.join(_classes(layout)) or 'a module of your own'}. Check --arch"
        )
    best = min(_trials(module, levels, layout, class_map), key=lambda trial: trial.misfits)
    return _fill(module, checkpoint, best, source, class_map)


def take_out_absent(module: torch.nn.Module, names: Collection[str], source: str) -> list[str]:
    """Take optional children (ViT's pooler) for which there are no weights out of the module, in place; say so in notes."""
    children = _absent_children(module, names)
    for child in children:
        setattr(module, child, None)
    return [
        f"{source}: has no weights for the {child} of {type(module).__name__}, which is taken out of the model"
        for child in children
    ]


def unchunked(names: Iterable[str]) -> dict[str, str]:
    """Map names to those without the chunks that FSDP training of DINOv2 puts around blocks: ``blocks.1.3.x``, ``blocks.3.x``.

    Only where the second numbers count through all chunks; stages that each begin with 0 stay as they are.
    """
    names = list(names)
    found: dict[str, set[tuple[int, int]]] = {}
    for name in names:
        if chunk := _CHUNKED.match(name):
            found.setdefault(chunk[1], set()).add((int(chunk[2]), int(chunk[3])))
    through = {prefix for prefix, numbers in found.items() if _counts_through(sorted(numbers))}

    def plain(name: str) -> str:
        chunk = _CHUNKED.match(name)
        return f"{chunk[1]}blocks.{chunk[3]}.{name[chunk.end() :]}" if chunk and chunk[1] in through else name

    return {name: plain(name) for name in names}


def _counts_through(numbers: Sequence[tuple[int, int]]) -> bool:
    steps = all(after[0] - before[0] in (0, 1) for before, after in pairwise(numbers))
    return steps and len({chunk for chunk, _ in numbers}) > 1 and [block for _, block in numbers] == list(range(len(numbers)))


def _stripped(names: Sequence[str]) -> list[dict[str, str]]:
    """The file's names as they are, and after each prefix that all of them share is taken off."""
    levels = [{name: name for name in names}]
    bare = {name: _without_infixes(name) for name in names}
    while bare:
        levels.append(dict(bare))
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in bare.values())), None)
        if prefix is None:
            break
        bare = {name: to.removeprefix(prefix) for name, to in bare.items()}
    return levels


def _without_infixes(name: str) -> str:
    for infix in INFIXES:
        name = name.replace(infix, "")
    return name


def _layout(names: Iterable[str], source: str) -> Layout | None:
    """Recognise the repository by the names; None for names of none."""
    names = list(names)

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    found = [layout for layout in LAYOUTS if all(map(has, layout.marks)) and not any(map(has, layout.without))]
    if len(found) > 1:
        raise ShallowvitError(
            f"load: the names in {source} could be those of {' or '.join(layout.name for layout in found)}. Rename them to the "
            "target's own names and save them as .safetensors"
        )
    return found[0] if found else None


def _class_map(module: torch.nn.Module) -> ClassMap | None:
    return CLASS_MAPS.get(f"{type(module).__module__.partition('.')[0]}.{type(module).__name__}")


def _absent_children(module: torch.nn.Module, names: Collection[str]) -> list[str]:
    """The children that the class can do without and that none of the names is of."""
    class_map = _class_map(module)
    return [
        child
        for child in (class_map.optional if class_map else ())
        if getattr(module, child, None) is not None and not any(name.startswith(f"{child}.") for name in names)
    ]


def _classes(layout: Layout) -> list[str]:
    return [name for name, class_map in CLASS_MAPS.items() if layout.name in class_map.layouts]


def _trials(
    module: torch.nn.Module, levels: Sequence[dict[str, str]], layout: Layout | None, class_map: ClassMap | None
) -> Iterable[_Trial]:
    """Every reading worth a try: by the class's map, or by the original names for a class without one."""
    if layout:
        names = levels[-1]
        inner = {name: _renamed(to, layout.renames) for name, to in names.items()}
        if class_map:
            yield _trial(module, layout, inner, {}, "", class_map.rules)
        else:
            for prefix in ("", _common_prefix(module.state_dict())):
                yield _trial(module, layout, inner, names, prefix)
                for view in ((), *layout.views):
                    yield _trial(module, layout, inner, {}, prefix, view)
    for names in levels:
        yield _trial(module, None, names, {}, "")


def _trial(
    module: torch.nn.Module,
    layout: Layout | None,
    inner: Mapping[str, str],
    placed: Mapping[str, str],
    prefix: str,
    rules: Sequence[Rule] = (),
) -> _Trial:
    """Place each weight. ``inner`` are the names that parts are told by, ``placed`` those in the module where they differ."""
    own = module.state_dict()
    places = {name: _places(placed.get(name, to), rules, prefix) for name, to in inner.items()}
    fitting = {name for name, targets in places.items() if all(target in own for target in targets)}
    dropped: dict[str, tuple[str, ...]] = {}
    for part in layout.parts if layout else ():
        members = [name for name, to in inner.items() if re.match(part.pattern, to)]
        if members and not fitting.intersection(members):
            taken = {name for names in dropped.values() for name in names}
            dropped[part.name] = tuple(name for name in members if name not in taken)
    left_out = {name for names in dropped.values() for name in names}
    met = {target for name in fitting for target in places[name]}
    computed = {name for name, _ in module.named_buffers() if layout and any(re.match(p, name) for p in layout.computed)}
    return _Trial(
        layout.name if layout else "as named",
        layout,
        {name: targets for name, targets in places.items() if name in fitting},
        tuple(sorted(set(own) - met - computed)),
        {name: places[name][0] for name in sorted(set(inner) - fitting - left_out)},
        {part: names for part, names in dropped.items() if names},
    )


def _renamed(name: str, rules: Sequence[Rule]) -> str:
    (to,) = _places(name, rules, "")
    return to


def _places(name: str, rules: Sequence[Rule], prefix: str) -> tuple[str, ...]:
    """Where a weight goes by the first rule that matches its name: one place, or several for one that is split."""
    for pattern, to in rules:
        if found := re.match(pattern, name):
            rest = name[found.end() :]
            return tuple(prefix + found.expand(part) + rest for part in ((to,) if isinstance(to, str) else to))
    return (prefix + name,)


def _common_prefix(names: Collection[str]) -> str:
    """The first part that all of a module's names share, as of an original model wrapped in one attribute."""
    first = {name.partition(".")[0] for name in names}
    return f"{first.pop()}." if len(first) == 1 else ""


def _fill(
    module: torch.nn.Module, checkpoint: Checkpoint, trial: _Trial, source: str, class_map: ClassMap | None
) -> CheckpointFit:
    """Check a reading as a whole, then load it."""
    notes = []
    if checkpoint.others:
        notes.append(f"{source}: took {'.'.join(checkpoint.taken)}, left {' and '.join(checkpoint.others)}")
    notes += [
        f"{source}: left out {len(names)} weight{'s' * (len(names) > 1)} of the {part}, for which "
        f"{type(module).__name__} has no place (first: {names[0]})"
        for part, names in trial.dropped.items()
    ]
    absent = _absent_children(module, {target for targets in trial.places.values() for target in targets})
    missing = tuple(name for name in trial.missing if name.partition(".")[0] not in absent)
    _check_names(module, trial, missing, source)
    values = _values(module, checkpoint.state, trial, source, class_map)
    notes += take_out_absent(module, values, source)  # nothing is touched before all is checked
    module.load_state_dict(values, strict=False)
    if trial.layout and class_map:
        notes += _heads_notes(module, trial.layout, source)
    dropped = tuple(name for names in trial.dropped.values() for name in names)
    return CheckpointFit(trial.label, dropped, tuple(notes))


def _check_names(module: torch.nn.Module, trial: _Trial, missing: Sequence[str], source: str) -> None:
    if not missing and not trial.unexpected:
        return
    first = f"{missing[0]} is missing" if missing else f"{next(iter(trial.unexpected))} has no place"
    read = (
        f"read as {trial.label}" + "".join(f" without its {part}" for part in trial.dropped)
        if trial.layout
        else f"the names are of no known repository ({', '.join(layout.name for layout in LAYOUTS)})"
    )
    raise ShallowvitError(
        f"load: the weights of {source} don't fit {type(module).__name__}: {len(missing)} missing, {len(trial.unexpected)} "
        f"without a place; the first: {first}; {read}. {_hint([*missing, *trial.unexpected.values()][0])}"
    )


def _hint(name: str) -> str:
    return next((hint for pattern, hint in HINTS if re.match(pattern, name)), "Check --arch")


def _values(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], trial: _Trial, source: str, class_map: ClassMap | None
) -> dict[str, torch.Tensor]:
    """The module's state dict out of the file's, each tensor of the module's own shape."""
    own = module.state_dict()
    values: dict[str, torch.Tensor] = {}
    came_from: dict[str, str] = {}
    for name, targets in trial.places.items():
        if state[name].ndim and state[name].shape[0] % len(targets):
            raise ShallowvitError(
                f"load: {name} in {source} has {state[name].shape[0]} rows, which don't split into {len(targets)} equal parts. "
                "Check --arch"
            )
        for target, value in zip(targets, state[name].chunk(len(targets)) if len(targets) > 1 else (state[name],), strict=True):
            if target in values:
                raise ShallowvitError(f"load: {came_from[target]} and {name} in {source} both go to {target}. Save one of them")
            values[target], came_from[target] = value, name
    if class_map and class_map.fold:
        _fold(values, own, *class_map.fold)
    for target, value in values.items():
        if value.shape != own[target].shape:
            place = "" if target == came_from[target] else f"'s {target}"
            raise ShallowvitError(
                f"load: {came_from[target]} in {source} has shape {tuple(value.shape)}, but {type(module).__name__}{place} has "
                f"{tuple(own[target].shape)}. {_hint(target)}"
            )
    return values


def _fold(values: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor], token: str, table: str, given: str) -> None:
    """Add the token's own position to it and take that out of the table, where the module's table has none for it."""
    if given in own and own[table].shape[1] == values[table].shape[1] - 1:
        values[token] = values[token] + values[table][:, :1]
        values[table] = values[table][:, 1:]


def _heads_notes(module: torch.nn.Module, layout: Layout, source: str) -> list[str]:
    """No weight tells the number of heads; another one than the repository's at this width gives other outputs."""
    config = getattr(module, "config", None)
    first = next(iter(getattr(module, "blocks", ())), None)
    counts = [
        ("", layout.heads, getattr(config, "hidden_size", 0), getattr(config, "num_attention_heads", 0)),
        ("", layout.heads, getattr(module, "embed_dim", 0), getattr(getattr(first, "attn", None), "num_heads", 0)),
    ]
    if hasattr(module, "decoder"):
        width, heads = getattr(config, "decoder_hidden_size", 0), getattr(config, "decoder_num_attention_heads", 0)
        counts.append((" of the decoder", layout.decoder_heads, width, heads))
    return [
        f"{source}: no weight tells how many attention heads{which} there are; {type(module).__name__} has {heads}, but "
        f"{layout.name} at width {width} officially {official[width]}; with another number the outputs are wrong"
        for which, official, width, heads in counts
        if heads and official.get(width, heads) != heads
    ]
