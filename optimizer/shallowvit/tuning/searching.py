"""Which candidates are tried: all of a small space, else those that Optuna's TPE asks for; then rungs of longer trainings.

A generation is asked for whole before any of it is told, in a fixed order, and each question has a seed of its own, so neither
the number of workers nor a kill changes what is asked. A newcomer's trap: what can't meet latency, size or energy is never
trained, but the sampler learns that it is out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError
from ..workers.cells import Task, hash_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .candidates import Candidate, Space
    from .config import TuneConfig
    from .place import Bench, Place
    from .subject import Subject

__all__ = ["Ask", "Climbed", "Tried", "climb", "order", "search", "spread", "stand_in", "task_of"]

_SEARCH = "tune"


@dataclass(frozen=True)
class Tried:
    """A candidate with its top-1 on the items held out after so many epochs; ``item_ms`` is the least that fits the budgets."""

    candidate: Candidate
    top1: float
    item_ms: float
    epochs: int = 0


@dataclass(frozen=True)
class Climbed:
    """The finalists, the best first; the trainings that were done on the way, their epochs together; all of the last rung."""

    finalists: tuple[Tried, ...]
    trainings: int = 0
    epochs: int = 0
    trained: tuple[Tried, ...] = ()


@dataclass(frozen=True)
class Ask:
    """What a search goes by: the subject, how, what fits (milliseconds an item, or None) and who does the work."""

    subject: Subject
    config: TuneConfig
    fits: Callable[[Candidate], float | None]
    bench: Bench
    place: Place


def task_of(subject: Subject, config: TuneConfig, candidate: Candidate, epochs: int = 0, *, weights: bool = False) -> Task:
    """Return the task of a candidate: repaired, and trained for so many epochs; ``weights`` wants them back."""
    training = asdict(replace(config.training, epochs=epochs)) if epochs else None
    key = {
        "model": subject.identity,
        "removed": list(candidate.removed),
        "keep_tokens": candidate.keep_tokens,
        "train": subject.materials.train.sha256,
        "heldout": subject.materials.heldout.sha256,
        "method": config.method if epochs else config.closed_form,
        "samples": config.samples,
        "seed": config.seed,
        "training": training,
        "weights": weights,
    }
    work = len(subject.materials.heldout) + 2 * config.samples + 3 * epochs * len(subject.materials.train)
    return Task("candidate", 0, key, {"name": candidate.name}, work * candidate.size / subject.model.flops)


def search(ask: Ask, space: Space) -> tuple[Tried, ...]:
    """Repair and measure the candidates of the space that fit, at most ``config.trials``.

    Raises:
        MissingDependencyError: the space is too large to be tried whole, and Optuna isn't installed.
    """
    fitting = [one for one in space.distinct if ask.fits(one) is not None]
    if len(fitting) <= ask.config.trials:
        return _tried(ask, fitting, 0, f"trying all {len(fitting)} candidates that fit")
    return _sampled(ask, space)


def climb(ask: Ask, tried: Sequence[Tried], floor: float | None) -> Climbed:
    """Train survivors in rungs of more and more epochs for fewer and fewer.

    A candidate that is better as it was repaired than behind its training stays as it was repaired: few items to train on may
    cost more than they give.

    Args:
        ask: See ``Ask``.
        tried: What was repaired; the unpruned model is none to train.
        floor: The top-1 that is enough; None: the most accurate are looked for.
    """
    config = ask.config
    repaired = running = _changed(tried)
    places, trainings, spent = min(config.trained, len(running)), 0, 0
    for number, epochs in enumerate(config.rungs):
        chosen = spread(running, places) if floor is not None and not number else order(running, floor)[:places]
        running = _trained(ask, [one.candidate for one in chosen], epochs)
        trainings, spent = trainings + len(running), spent + epochs * len(running)
        places = max(config.finalists, -(-places // config.eta))
    trained = tuple(running) if config.rungs else ()
    finalists = order(_better(repaired, trained), floor)[: config.finalists]
    return Climbed(_kept(ask, finalists), trainings, spent, trained)


def stand_in(ask: Ask, tried: Sequence[Tried], climbed: Climbed, floor: float | None, *, cheaper: bool) -> Climbed | None:
    """Train one more for finalists that all miss a budget, when they were measured: a cheaper one, or a dearer one.

    Returns:
        With it among the finalists; None where there is none.
    """
    costs = [one.item_ms for one in climbed.finalists]
    known = _better(_changed(tried), climbed.trained)
    able = [one for one in known if (one.item_ms < min(costs) if cheaper else one.item_ms > max(costs))]
    if not able:
        return None
    chosen = order(able, None if cheaper else floor)[0]
    epochs = ask.config.rungs[-1] if ask.config.rungs else 0
    done = {one.candidate for one in climbed.trained}
    found = _trained(ask, [chosen.candidate], epochs) if epochs and chosen.candidate not in done else []
    more = _kept(ask, _better([chosen], found))
    if not more:
        return None
    return Climbed(
        (*climbed.finalists, *more),
        climbed.trainings + len(found),
        climbed.epochs + epochs * len(found),
        (*climbed.trained, *found),
    )


def order(tried: Sequence[Tried], floor: float | None) -> list[Tried]:
    """Order by promise.

    Without a floor the most accurate come first. With one: the cheapest that reaches it, then those that may yet (the least
    short first), then dearer ones that reach it too.
    """
    if floor is None:
        return sorted(tried, key=lambda one: (-one.top1, one.item_ms, one.candidate.name))
    enough = sorted((one for one in tried if one.top1 >= floor), key=lambda one: (one.item_ms, -one.top1, one.candidate.name))
    short = sorted((one for one in tried if one.top1 < floor), key=lambda one: (-one.top1, one.item_ms, one.candidate.name))
    # dearer ones than the cheapest that is enough can't win
    cheaper = [one for one in short if not enough or one.item_ms < enough[0].item_ms]
    rest = [one for one in short if one not in cheaper]
    return [*enough[:1], *cheaper, *enough[1:], *rest]


def spread(tried: Sequence[Tried], count: int) -> list[Tried]:
    """Choose candidates of evenly spread cost from those that no other beats, since training lifts the cheap ones too."""
    front: list[Tried] = []
    for one in sorted(tried, key=lambda one: (one.item_ms, -one.top1, one.candidate.name)):
        if not front or one.top1 > front[-1].top1:
            front.append(one)
    if len(front) > count:
        steps = [round(number * (len(front) - 1) / max(1, count - 1)) for number in range(count)]
        return [front[step] for step in dict.fromkeys(steps)] if count > 1 else [front[-1]]
    others = order([one for one in tried if one not in front], None)
    return [*front, *others][:count]


def _changed(tried: Sequence[Tried]) -> list[Tried]:
    return [one for one in tried if one.candidate.removed or one.candidate.keep_tokens < 1]


def _trained(ask: Ask, candidates: Sequence[Candidate], epochs: int) -> list[Tried]:
    """Train; what may become a bundle, as the last rung may, leaves its weights."""
    count = len(candidates)
    doing = f"training {count} candidate{'s' * (count > 1)} for {epochs} epoch{'s' * (epochs > 1)}"
    return list(_tried(ask, candidates, epochs, doing, weights=epochs == ask.config.rungs[-1]))


def _better(repaired: Sequence[Tried], trained: Sequence[Tried]) -> list[Tried]:
    """Each candidate once: trained, unless it was better as it was repaired."""
    found = {one.candidate: one for one in repaired}
    for one in trained:
        if one.top1 >= found[one.candidate].top1:
            found[one.candidate] = one
    return list(found.values())


def _kept(ask: Ask, finalists: Sequence[Tried]) -> tuple[Tried, ...]:
    """The finalists that have weights: what was only repaired has left none, and is repaired again."""
    again = [one.candidate for one in finalists if not one.epochs]
    found = _tried(ask, again, 0, "repairing finalists", weights=True) if again else ()
    there = {one.candidate for one in found}
    return tuple(one for one in finalists if one.epochs or one.candidate in there)


def _tried(ask: Ask, candidates: Sequence[Candidate], epochs: int, doing: str, *, weights: bool = False) -> tuple[Tried, ...]:
    tasks = [task_of(ask.subject, ask.config, one, epochs, weights=weights) for one in candidates]
    results = ask.bench.results(tasks, doing)
    return tuple(
        Tried(one, result["top1"], ask.fits(one) or 0.0, epochs)
        for one, result in zip(candidates, results, strict=True)
        if result is not None
    )


def _sampled(ask: Ask, space: Space) -> tuple[Tried, ...]:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as err:
        raise MissingDependencyError("tune: a search over more candidates than --trials", "optuna", "tune") from err
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(ask.place.state / "optuna.jsonl")))
    study = optuna.create_study(storage=storage, study_name=_SEARCH, directions=["maximize", "minimize"], load_if_exists=True)
    found: dict[Candidate, Tried] = {}
    # a space with few that fit would have the sampler ask for the same ones for ever
    for start in range(0, ask.config.trials, ask.config.generation):
        numbers = range(start, min(start + ask.config.generation, ask.config.trials))
        asked = [_asked(study, space, ask.config.seed, number) for number in numbers]
        fitting = list(dict.fromkeys(one for _, one in asked if one is not None and ask.fits(one) is not None))
        doing = f"trying candidates {numbers[0] + 1} to {numbers[-1] + 1} of {ask.config.trials}"
        found |= {one.candidate: one for one in _tried(ask, fitting, 0, doing)}
        for trial, candidate in asked:
            _tell(study, trial, found.get(candidate) if candidate else None)
    return tuple(found[one] for one in space.distinct if one in found)


def _asked(study: Any, space: Space, seed: int, number: int) -> tuple[Any, Candidate | None]:
    """Ask for a trial, or take up one that an interrupted run had asked for."""
    import optuna

    own = int(hash_of([seed, number])[:8], 16)
    study.sampler = optuna.samplers.TPESampler(seed=own)
    trials = study.get_trials(deepcopy=False)
    trial = optuna.trial.Trial(study, trials[number]._trial_id) if number < len(trials) else study.ask()
    choices = list(space.by_choice)
    wanted = []
    for name, place in (("criterion", 0), ("select", 1), ("depth", 2), ("keep_tokens", 3)):
        known = trials[number].params if number < len(trials) else {}
        values = sorted({choice[place] for choice in choices}, key=str)
        if name in known:
            wanted.append(known[name])
        elif name == "depth":
            wanted.append(trial.suggest_int(name, min(one[2] for one in choices), max(one[2] for one in choices)))
        else:
            wanted.append(trial.suggest_categorical(name, values))
    return trial, space.by_choice.get((wanted[0], wanted[1], wanted[2], wanted[3]))


def _tell(study: Any, trial: Any, tried: Tried | None) -> None:
    """Say what came of a trial; one of an earlier run has been told."""
    state = study.get_trials(deepcopy=False)[trial.number].state
    if state.is_finished():
        return
    trial.set_constraint("fits", 0.0 if tried else 1.0)  # above 0: out
    study.tell(trial, (tried.top1, tried.item_ms) if tried else (0.0, 1e9))
