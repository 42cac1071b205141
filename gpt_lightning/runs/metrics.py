"""TensorBoard's tags, and its event files, truncated to a checkpoint when a run is resumed."""

from __future__ import annotations

import io
from pathlib import Path

from gpt_lightning.files import replace_bytes

BY_TOKENS = "loss_by_tokens/"  # prefix of the TensorBoard tags whose step is the number of tokens seen
FINAL = "loss_final/"  # prefix of the losses that TensorBoard's HPARAMS page shows beside the settings


def tensorboard_tag(metric: str) -> str:
    """Return the TensorBoard tag of a metric: its group, by which TensorBoard sorts its page, and its name."""
    if metric in ("learning_rate", "gradient_norm"):
        return f"optimizer/{metric}"
    if metric == "copied_share":
        return f"memorization/{metric}"
    kind = metric.rpartition("_")[2]
    return f"{kind if kind in ('loss', 'perplexity') else 'throughput'}/{metric}"


def cut_events(path: Path, step: int, tokens_seen: int) -> None:
    """Remove the events after a step from a TensorBoard event file.

    Args:
        path: An event file; if it is truncated, its complete events are read.
        step: Last optimizer step to keep.
        tokens_seen: Last step to keep of the tags that are logged by tokens seen.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader  # takes seconds to import
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    kept = io.BytesIO()
    writer = RecordWriter(kept)
    for record in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(record)
        tags = [value.tag for value in event.summary.value]
        limit = tokens_seen if any(tag.startswith(BY_TOKENS) for tag in tags) else step
        if event.step <= limit and not any(tag.startswith("_hparams_/") for tag in tags):  # logged again at the end
            writer.write(record)
    replace_bytes(path, kept.getvalue())
