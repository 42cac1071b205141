"""The verdict follows from the numbers of a run, and its advice from an order of rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from gpt_lightning.evaluation.verdict import Verdict, count_spikes, judge
from gpt_lightning.runs.records import EvaluationRow, RunRecord, StepRow, read_evaluations

REFERENCE = ROOT / "configs" / "reference"
BASELINES = {"uniform": 10.825, "unigram": 6.652, "bigram": 5.819, "trigram": 5.947, "training_tokens": 4612.0}
FALLING, TURNED, EARLY, FLAT = [9.0, 7.0, 6.0, 5.0], [9.0, 6.0, 5.0, 5.2], [9.0, 5.0, 5.2, 5.4], [9.0, 6.0, 5.0, 5.001]
NOISE = np.random.default_rng(0).normal(0, 0.3, 20)
SPIKES = [1.0] * 12 + [6.0] + [1.0] * 10 + [7.0] + [1.0] * 10 + [8.0] + [1.0] * 10


def evaluations(
    val: Sequence[float], train: Sequence[float] | None = None, *, has_blocks: bool = True
) -> list[EvaluationRow]:
    """Return evaluations every 10 steps from step 0, with training losses that halve and noisy blocks."""
    train = [val[0] / 2**place for place in range(len(val))] if train is None else train
    differences = np.random.default_rng(1).normal(0, 0.01, (len(val), 20))
    return [
        EvaluationRow(
            step=10 * place,
            epoch=place / 2,
            tokens_seen=640 * place,
            train_eval_loss=train[place],
            val_loss=loss,
            val_blocks=tuple(loss + NOISE + differences[place]) if has_blocks else (),
        )
        for place, loss in enumerate(val)
    ]


def verdict_of(rows: list[EvaluationRow], **options: Any) -> Verdict:
    norms, copied = options.pop("gradient_norms", []), options.pop("copied", None)
    record = RunRecord(
        Path("run"),
        steps=[StepRow(step, step / 10, step, {"gradient_norm": norm}) for step, norm in enumerate(norms, start=1)],
        evaluations=rows,
        samples=[{"step": 1, "copied": {"tokens": copied, "of": 1000}}] if copied is not None else [],
        baselines=options.pop("baselines", {}),
    )
    found = judge(record, **options)
    assert found is not None
    return found


# ---- the turn


@pytest.mark.parametrize(
    ("name", "printed", "steps_after", "gap"), [("verdict", 60, 30, 5.545), ("world_war", 160, 400, 8.254)]
)
def test_the_tables_of_the_reference_notes_turn_at_their_best_losses(
    name: str, printed: int, steps_after: int, gap: float
) -> None:
    found = verdict_of(read_evaluations(REFERENCE / f"{name}.jsonl"))

    counted_from_0 = name == "verdict"  # notes A print one step more than the table has
    assert found.turn.step == found.best.step == printed - counted_from_0
    assert found.memorizing_steps == steps_after
    assert found.gap_at_last == pytest.approx(gap, abs=5e-4)
    assert (found.turn.certain, found.untrained) == (False, None)
    assert found.turn.reason.endswith("(too few validation windows to say how sure that is)")


def test_a_rise_above_the_noise_is_a_certain_turn() -> None:
    found = verdict_of(evaluations(TURNED))

    assert (found.turn.step, found.turn.certain, found.memorizing_steps) == (20, True, 10)
    assert found.turn.reason.startswith("the last, 5.200, is higher by 0.200 (95 %: 0.1")
    assert found.best.val_loss == 5.0
    assert (found.gap_at_best, found.gap_at_last) == (5.0 - 9 / 4, 5.2 - 9 / 8)


def test_a_rise_within_the_noise_is_no_turn() -> None:
    found = verdict_of(evaluations(FLAT))

    assert (found.turn.step, found.turn.certain, found.memorizing_steps) == (None, False, 0)
    assert found.turn.reason.startswith("the last, 5.001, is within its noise (difference 95 %: -0.0")
    assert found.best.step == 20


def test_a_loss_that_still_falls_has_not_turned() -> None:
    found = verdict_of(evaluations(FALLING))

    assert (found.turn.step, found.turn.certain, found.memorizing_steps) == (None, False, 0)
    assert found.verdict[0] == "Val loss was lowest, 5.000, at the end, step 30"
    assert found.gap_at_best == found.gap_at_last == 5.0 - 9 / 8


def test_evaluations_on_different_windows_are_not_paired() -> None:
    rows = evaluations(TURNED)
    rows[-1] = EvaluationRow(30, 1.5, 1920, 1.0, 5.2, rows[-1].val_blocks[:15])

    turn = verdict_of(rows).turn

    assert (turn.step, turn.certain) == (20, False)
    assert turn.reason == "the last, 5.200, is higher by 0.200, but on other validation windows"


@pytest.mark.parametrize("change", [{"val_windows": 400}, {"val_tokens": 3200}])
def test_as_many_groups_of_other_windows_are_not_paired(change: dict[str, int]) -> None:
    rows = [replace(row, val_windows=100, val_tokens=6400) for row in evaluations(TURNED)]

    assert verdict_of(rows).turn.certain
    rows[-1] = replace(rows[-1], **change)
    assert not verdict_of(rows).turn.certain


def test_a_training_loss_above_the_validation_loss_is_not_memorization() -> None:
    rows = [replace(row, train_eval_loss=9.0 - 0.1 * i) for i, row in enumerate(evaluations(TURNED))]

    found = verdict_of(rows)

    assert (found.turn.step, found.memorizing_steps) == (20, 0)
    assert found.verdict[1].startswith("Train loss ended at 8.700, Val loss at 5.200, lower by 3.500")


@pytest.mark.parametrize("windows", [0, 15])  # too few, and others than those of the lowest loss
@pytest.mark.parametrize(("last", "step"), [(6.0005, None), (6.0595, None), (6.0605, 20)])
def test_without_an_interval_a_turn_is_a_rise_of_a_hundredth(windows: int, last: float, step: int | None) -> None:
    rows = evaluations([9.0, 6.5, 6.0, last])
    rows[-1] = replace(rows[-1], val_blocks=rows[-1].val_blocks[:windows])

    found = verdict_of(rows)

    assert (found.turn.step, found.turn.certain, found.memorizing_steps) == (step, False, 10 if step else 0)
    reason = f"the last, {last:.3f}, is higher by {last - 6:.3f}, which is too small to be sure of without an interval"
    assert (found.turn.reason == reason) == (step is None)
    assert ("memorized" in found.verdict[1]) == (step is not None)


@given(st.lists(st.floats(0.5, 12), min_size=2, max_size=9), st.booleans())
def test_a_turn_is_never_certain_without_an_interval(losses: list[float], has_blocks: bool) -> None:
    found = verdict_of(evaluations(losses, has_blocks=has_blocks))

    after = losses[1:]
    assert found.best.val_loss == min(after)
    assert found.turn.step in (None, found.best.step)
    assert not found.turn.certain or (has_blocks and after[-1] > min(after))
    if not has_blocks:
        assert (found.turn.step is None) == (after[-1] == min(after) or after[-1] - min(after) < 0.01 * min(after))
    assert len(found.verdict) <= 3
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


def test_steps_after_the_turn_memorize_only_if_the_training_loss_falls() -> None:
    found = verdict_of(evaluations(TURNED, train=[9.0, 6.0, 5.0, 5.1]))

    assert (found.turn.step, found.memorizing_steps) == (20, 0)
    assert found.verdict[1] == "Train loss ended at 5.100, Val loss at 5.200, a gap of 0.100"
    assert found.advice == "lower model.learning_rate: Train loss rose as well"


def test_a_run_of_one_evaluation_and_of_none() -> None:
    found = verdict_of(evaluations([9.0, 6.0])[1:])

    assert found.verdict[0] == "Val loss was 6.000 at step 10, the only evaluation"
    assert found.advice == (
        "evaluate more often (evaluate_every): one evaluation does not show whether Val loss still falls"
    )
    assert judge(RunRecord(Path("run"), evaluations=evaluations([9.0]))) is None
    assert judge(RunRecord(Path("run"))) is None


# ---- in words


def test_the_verdict_of_a_run_that_memorizes_in_words() -> None:
    expected = {"untrained_val_loss": [8, 10], "best_val_loss": [5, 6], "last_train_eval_loss": [1, 2]}
    rows = evaluations([9.0, 6.1, 6.0, 7.0], has_blocks=False)

    found = verdict_of(rows, baselines=BASELINES, copied=836, expected=expected)

    assert found.verdict == [
        "Val loss was lowest, 6.000, at step 20 of 30 (epoch 1.0); the last, 7.000, is higher by 1.000 "
        "(too few validation windows to say how sure that is)",
        "the last 10 steps memorized: Train loss fell from 2.250 to 1.125 while Val loss rose; "
        "the gap between them grew from 3.750 to 5.875; 84 % of the tokens of the last samples are copied",
        "the lowest Val loss, 6.000, is better than the counting models uniform (10.825) and unigram (6.652), "
        "worse than bigram (5.819) and trigram (5.947)",
        "losses as expected of this config",
    ]
    assert found.advice == (
        "use more text, a smaller model, or GPT-2's weights (import, init_from): "
        "counting pairs of tokens predicts this text better"
    )


@pytest.mark.parametrize(
    ("baselines", "words"),
    [
        ({"uniform": 5.1}, "the lowest Val loss, 5.000, is better than the counting model uniform (5.100)"),
        (
            {"bigram": 4.0, "trigram": 3.0},
            "the lowest Val loss, 5.000, is worse than the counting models bigram (4.000) and trigram (3.000)",
        ),
        (
            {"uniform": 9.0, "unigram": 8.0, "bigram": 7.0, "trigram": 5.0},
            "the lowest Val loss, 5.000, is better than the counting models uniform (9.000), unigram (8.000) and "
            "bigram (7.000), worse than trigram (5.000)",
        ),
    ],
)
def test_the_baselines_in_words(baselines: dict[str, float], words: str) -> None:
    assert verdict_of(evaluations(TURNED), baselines=baselines).verdict[2:] == [words]


def test_losses_outside_of_their_ranges_are_named() -> None:
    expected = {"untrained_val_loss": [8.5, 9.5], "best_val_loss": [3, 4], "last_train_eval_loss": [2.0, 3.0]}

    found = verdict_of(evaluations(TURNED), expected=expected)

    assert found.to_dict()["expected"] == {
        "untrained_val_loss": {"range": [8.5, 9.5], "value": 9.0, "inside": True},
        "best_val_loss": {"range": [3, 4], "value": 5.0, "inside": False},
        "last_train_eval_loss": {"range": [2.0, 3.0], "value": 1.125, "inside": False},
    }
    assert found.verdict[2] == "best Val loss 5.000 is not in 3 to 4; last Train loss 1.125 is not in 2 to 3"


def test_an_unrecorded_loss_is_not_compared() -> None:
    found = verdict_of(evaluations(TURNED)[1:], expected={"untrained_val_loss": [1, 2]})

    assert (found.untrained, found.expected) == (None, {})
    assert len(found.verdict) == 2


# ---- the advice: each case also meets the conditions of rules below it

ABOVE_BIGRAM = {"baselines": BASELINES | {"bigram": 4.0}, "gradient_norms": SPIKES}


@pytest.mark.parametrize(
    ("val", "train", "options", "advice"),
    [
        (
            [5.0, 6.0, 7.0],
            [5.0, 6.0, 7.0],
            ABOVE_BIGRAM | {"expected": {"best_val_loss": [1, 2]}},
            "check the installation (pip install -c constraints.txt -e '.[dev]' && pytest), unless you changed the "
            "config",
        ),
        (
            [5.0, 6.0, 7.0],
            [5.0, 6.0, 7.0],
            ABOVE_BIGRAM | {"expected": {"best_val_loss": [1, 9]}},
            "lower model.learning_rate: no evaluation is below the Val loss before training",
        ),
        (EARLY, [9.0, 6.0, 6.5, 7.0], ABOVE_BIGRAM, "lower model.learning_rate: Train loss rose as well"),
        (
            EARLY,
            None,
            ABOVE_BIGRAM,
            "use more text, a smaller model, or GPT-2's weights (import, init_from): counting pairs of tokens predicts "
            "this text better",
        ),
        (
            FLAT,
            None,
            ABOVE_BIGRAM | {"is_pretrained": True},
            "use more text or a smaller model: counting pairs of tokens predicts this text better",
        ),
        (
            FALLING,
            None,
            ABOVE_BIGRAM,
            "set trainer.gradient_clip_val 1.0 or raise model.warmup_steps: in 3 logged steps the gradient norm was 5 "
            "times that of the logged steps around",
        ),
        (
            FALLING,
            None,
            ABOVE_BIGRAM | {"is_clipped": True},
            "train longer (trainer.max_epochs or trainer.max_steps): the last Val loss is the lowest",
        ),
        (EARLY, None, {}, "train on more text, or stop after epoch 0.5: most steps came after the best one"),
        (TURNED, None, {}, "use best.ckpt; more text would let Val loss fall for longer"),
        (FLAT, None, {}, "more epochs would hardly lower Val loss; more text or a larger model may"),
    ],
)
def test_the_advice_is_that_of_the_first_rule_that_holds(
    val: list[float], train: list[float] | None, options: dict[str, Any], advice: str
) -> None:
    assert verdict_of(evaluations(val, train), **options).advice == advice


def test_spikes_are_counted_against_the_steps_around_them() -> None:
    assert count_spikes(SPIKES) == 3
    assert count_spikes([100.0 * 0.9**step for step in range(60)]) == 0  # a fast decline is none
    assert count_spikes([1.0] * 12 + [4.9] + [1.0] * 12) == 0
    assert count_spikes([1.0, 9.0, 1.0]) == 0  # too few steps around it
    assert count_spikes([30.0, 25.0, 20.0, 12.0, 8.0, *[1.0] * 60]) == 0  # the beginning of an ordinary run
    assert count_spikes([1.0] * 60 + [9.0] * 3) == 0
