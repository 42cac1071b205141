"""Judge a run by its records: when its validation loss turned, what it is worth, and what to change.

`judge` is a pure function of the tables in a run folder; `fit` writes its result to summary.json and prints it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpt_lightning.evaluation.intervals import FEWEST, bootstrap_interval
from gpt_lightning.runs.records import BASELINE_MODELS, EXPECTED_LOSSES, EvaluationRow, RunRecord

EARLY = 0.5  # of the run's steps
SMALLEST_RISE = 0.01  # of the lowest validation loss; a smaller one is no turn without an interval
# A step is a spike if the norm of its gradient is above SPIKE times the median of the NEIGHBOURS before and after it.
SPIKE, NEIGHBOURS, MANY_SPIKES = 5, 10, 3


@dataclass(frozen=True)
class Losses:
    """The losses of one evaluation, in nats per token."""

    step: int
    epoch: float
    train_eval_loss: float
    val_loss: float


@dataclass(frozen=True)
class Turn:
    """Whether and when the validation loss began to rise.

    Attributes:
        step: Optimizer step of the lowest validation loss, if the last one is higher by more than the noise or, where
            that is unknown, by at least 1 %, else None.
        certain: Whether the rise is more than the noise of the validation windows.
        reason: How the last loss compares with the lowest one.
    """

    step: int | None
    certain: bool
    reason: str


@dataclass(frozen=True)
class Expectation:
    """A value of the run, and the range that its config expects.

    Attributes:
        range: The lowest and the highest value expected.
        value: The value of the run.
        inside: Whether the value is within the range.
    """

    range: list[float]
    value: float
    inside: bool


@dataclass(frozen=True)
class Verdict:
    """What a run is worth; the contents of summary.json.

    Attributes:
        steps: Optimizer steps.
        epochs: Epochs, with a fraction.
        minutes: Time in optimizer steps; None if it was not logged.
        untrained: Losses before training; None if they are not recorded.
        best: Losses at the lowest validation loss.
        last: Losses at the end.
        turn: Whether and when the validation loss began to rise.
        memorizing_steps: Optimizer steps after the turn, if the training loss fell further and is below the validation
            loss.
        gap_at_best: Validation loss minus training loss at the best step.
        gap_at_last: The same at the end.
        baselines: See `RunRecord`; None if unknown.
        copied: See `RunRecord`.
        expected: Comparison with the ranges that the config expects, by name; None without such ranges.
        advice: What to change, in one sentence.
        verdict: The other attributes in words, at most four lines.
    """

    steps: int
    epochs: float
    minutes: float | None
    untrained: Losses | None
    best: Losses
    last: Losses
    turn: Turn
    memorizing_steps: int
    gap_at_best: float
    gap_at_last: float
    baselines: dict[str, float] | None
    copied: float | None
    expected: dict[str, Expectation] | None
    advice: str
    verdict: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of summary.json as plain data."""
        return asdict(self)


def judge(
    record: RunRecord,
    expected: Mapping[str, Sequence[float]] | None = None,
    *,
    is_pretrained: bool = False,
    is_clipped: bool = False,
) -> Verdict | None:
    """Judge a run.

    Args:
        record: The run.
        expected: Lowest and highest value by a name of `EXPECTED_LOSSES`; None if nothing is expected of this run.
        is_pretrained: Whether the run started from pretrained weights.
        is_clipped: Whether its gradients were clipped.

    Returns:
        The verdict, or None if the run was not evaluated after its first optimizer step.
    """
    rows = [row for row in record.evaluations if row.step > 0]
    if not rows:
        return None
    before = [row for row in record.evaluations if row.step == 0]
    untrained = _losses(before[0]) if before else None
    lowest, last = min(rows, key=lambda row: row.val_loss), rows[-1]
    best, end = _losses(lowest), _losses(last)
    turn = find_turn(lowest, last)
    memorized = turn.step is not None and end.train_eval_loss < min(best.train_eval_loss, end.val_loss)
    memorizing_steps = end.step - best.step if memorized else 0
    compared = compare(expected, untrained, best, end)
    return Verdict(
        steps=end.step,
        epochs=end.epoch,
        minutes=record.training_minutes,
        untrained=untrained,
        best=best,
        last=end,
        turn=turn,
        memorizing_steps=memorizing_steps,
        gap_at_best=best.val_loss - best.train_eval_loss,
        gap_at_last=end.val_loss - end.train_eval_loss,
        baselines=record.baselines or None,
        copied=record.copied,
        expected=compared,
        advice=advise(
            untrained,
            best,
            end,
            turn,
            record.baseline_losses,
            compared or {},
            0 if is_clipped else count_spikes([norm for _, norm in record.metric("gradient_norm")]),
            is_alone=len(rows) == 1,
            is_pretrained=is_pretrained,
        ),
        verdict=[
            _describe_turn(best, end, turn, is_alone=len(rows) == 1),
            _describe_gap(best, end, memorizing_steps, record.copied),
            *_describe_worth(best, record.baseline_losses, compared),
        ],
    )


def _losses(row: EvaluationRow) -> Losses:
    return Losses(row.step, row.epoch, row.train_eval_loss, row.val_loss)


# ---- findings


def find_turn(best: EvaluationRow, last: EvaluationRow) -> Turn:
    """Return whether the validation loss turned: a paired bootstrap of last minus best over the validation windows.

    The noise is that of the choice of windows. Neither another seed nor the choice of the best among all evaluations
    is part of it. Without an interval, a rise of less than 1 % of the lowest loss is no turn.

    Args:
        best: The evaluation with the lowest validation loss.
        last: The last evaluation.
    """
    if last.val_loss <= best.val_loss:
        return Turn(None, False, "no evaluation was lower than the last one")
    end = f"the last, {last.val_loss:.3f}"
    rise = f"{end}, is higher by {last.val_loss - best.val_loss:.3f}"
    has_few_windows = min(len(best.val_blocks), len(last.val_blocks)) < FEWEST
    parts = [(len(row.val_blocks), row.val_windows, row.val_tokens) for row in (best, last)]
    if has_few_windows or parts[0] != parts[1]:  # a resumed run may have other limits or another number of devices
        if last.val_loss - best.val_loss < SMALLEST_RISE * best.val_loss:
            return Turn(None, False, f"{rise}, which is too small to be sure of without an interval")
        unsure = " (too few validation windows to say how sure that is)"
        return Turn(best.step, False, rise + (unsure if has_few_windows else ", but on other validation windows"))
    low, high = bootstrap_interval(np.array(last.val_blocks) - np.array(best.val_blocks))
    interval = f"95 %: {low:.3f} to {high:.3f}"
    if low > 0:
        return Turn(best.step, True, f"{rise} ({interval})")
    return Turn(None, False, f"{end}, is within its noise (difference {interval})")


def compare(
    expected: Mapping[str, Sequence[float]] | None, untrained: Losses | None, best: Losses, last: Losses
) -> dict[str, Expectation] | None:
    """Compare the losses with the ranges that the config expects."""
    if expected is None:
        return None
    values = {
        "untrained_val_loss": None if untrained is None else untrained.val_loss,
        "best_val_loss": best.val_loss,
        "last_train_eval_loss": last.train_eval_loss,
    }
    return {
        name: Expectation(list(expected[name]), value, expected[name][0] <= value <= expected[name][1])
        for name, value in values.items()
        if name in expected and value is not None
    }


def count_spikes(norms: Sequence[float]) -> int:
    """Return the number of gradient norms that are far above those of the logged steps around them.

    The first and the last steps are not counted: norms fall at the beginning of a run, so that the first ones are far
    above those after them.
    """
    count = 0
    for place in range(NEIGHBOURS, len(norms) - NEIGHBOURS):
        around = [*norms[place - NEIGHBOURS : place], *norms[place + 1 : place + 1 + NEIGHBOURS]]
        count += norms[place] > SPIKE * statistics.median(around)
    return count


# ---- in words


def advise(
    untrained: Losses | None,
    best: Losses,
    last: Losses,
    turn: Turn,
    baselines: Mapping[str, float],
    expected: Mapping[str, Expectation],
    spikes: int,
    *,
    is_alone: bool,
    is_pretrained: bool,
) -> str:
    """Return the first of these sentences whose condition holds: from what makes a run worthless to refinements.

    Args:
        untrained: Losses before training, if they are recorded.
        best: Losses at the lowest validation loss.
        last: Losses at the end.
        turn: Whether the validation loss turned.
        baselines: Losses of counting models; may be empty.
        expected: Comparison with the ranges of the config; may be empty.
        spikes: Number of spikes of the gradient norm that clipping would have prevented.
        is_alone: Whether `last` is the only evaluation after the first optimizer step.
        is_pretrained: Whether the run started from pretrained weights.
    """
    is_falling = best.step == last.step
    bigram = baselines.get("bigram")
    remedy = "use more text, a smaller model, or GPT-2's weights (import, init_from)"
    if is_pretrained:
        remedy = "use more text or a smaller model"
    rules = [
        (
            not all(one.inside for one in expected.values()),
            "check the installation (pip install -c constraints.txt -e '.[dev]' && pytest), "
            "unless you changed the config",
        ),
        (
            untrained is not None and best.val_loss >= untrained.val_loss,
            "lower model.learning_rate: no evaluation is below the Val loss before training",
        ),
        (
            turn.step is not None and last.train_eval_loss >= best.train_eval_loss,
            "lower model.learning_rate: Train loss rose as well",
        ),
        (
            not is_falling and bigram is not None and best.val_loss >= bigram,
            f"{remedy}: counting pairs of tokens predicts this text better",
        ),
        (
            spikes >= MANY_SPIKES,
            f"set trainer.gradient_clip_val 1.0 or raise model.warmup_steps: in {spikes} logged steps the gradient "
            f"norm was {SPIKE} times that of the logged steps around",
        ),
        (is_alone, "evaluate more often (evaluate_every): one evaluation does not show whether Val loss still falls"),
        (is_falling, "train longer (trainer.max_epochs or trainer.max_steps): the last Val loss is the lowest"),
        (
            turn.step is not None and best.step < EARLY * last.step,
            f"train on more text, or stop after epoch {best.epoch:.1f}: most steps came after the best one",
        ),
        (turn.step is not None, "use best.ckpt; more text would let Val loss fall for longer"),
        (True, "more epochs would hardly lower Val loss; more text or a larger model may"),
    ]
    return next(sentence for holds, sentence in rules if holds)


def _describe_turn(best: Losses, last: Losses, turn: Turn, *, is_alone: bool) -> str:
    if is_alone:
        return f"Val loss was {last.val_loss:.3f} at step {last.step}, the only evaluation"
    if best.step == last.step:
        return f"Val loss was lowest, {best.val_loss:.3f}, at the end, step {last.step}"
    place = f"step {best.step} of {last.step} (epoch {best.epoch:.1f})"
    return f"Val loss was lowest, {best.val_loss:.3f}, at {place}; {turn.reason}"


def _describe_gap(best: Losses, last: Losses, memorizing_steps: int, copied: float | None) -> str:
    gap = last.val_loss - last.train_eval_loss
    if memorizing_steps:
        text = (
            f"the last {memorizing_steps} steps memorized: Train loss fell from {best.train_eval_loss:.3f} to "
            f"{last.train_eval_loss:.3f} while Val loss rose; the gap between them grew from "
            f"{best.val_loss - best.train_eval_loss:.3f} to {gap:.3f}"
        )
    else:
        difference = f"a gap of {gap:.3f}" if gap >= 0 else f"lower by {-gap:.3f}"
        text = f"Train loss ended at {last.train_eval_loss:.3f}, Val loss at {last.val_loss:.3f}, {difference}"
    return text if copied is None else f"{text}; {100 * copied:.0f} % of the tokens of the last samples are copied"


def _describe_worth(
    best: Losses, baselines: Mapping[str, float], expected: Mapping[str, Expectation] | None
) -> Iterator[str]:
    """Yield a line about the baselines and one about the expected ranges, if there are any."""
    parts: list[str] = []
    for word, is_beaten in (("better", True), ("worse", False)):
        named = [
            f"{name} ({baselines[name]:.3f})"
            for name in BASELINE_MODELS
            if name in baselines and (best.val_loss < baselines[name]) == is_beaten
        ]
        if named:
            models = "" if parts else "the counting models " if len(named) > 1 else "the counting model "
            parts.append(f"{word} than {models}{_enumerate(named)}")
    if parts:
        yield f"the lowest Val loss, {best.val_loss:.3f}, is {', '.join(parts)}"
    if expected:
        outside = [
            f"{EXPECTED_LOSSES[name]} {one.value:.3f} is not in {one.range[0]:g} to {one.range[1]:g}"
            for name, one in expected.items()
            if not one.inside
        ]
        yield "; ".join(outside) if outside else "losses as expected of this config"


def _enumerate(words: Sequence[str]) -> str:
    """Return words as in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
