"""TensorBoard's event files of a run, cut back to a checkpoint on resume."""

from __future__ import annotations

import io
from pathlib import Path

from gpt_lightning.files import replace_bytes

BY_TOKENS = "by_tokens/"  # TensorBoard: before the names of what is logged against tokens seen


def cut_events(path: Path, step: int, tokens_seen: int) -> None:
    """Removes from one file of TensorBoard what was logged after a step.

    Args:
        path: An events file; one cut short by a kill is read as far as it goes.
        step: The last to stay.
        tokens_seen: The last to stay of what is logged by tokens.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader  # seconds
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    kept = io.BytesIO()
    writer = RecordWriter(kept)
    for record in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(record)
        tags = [value.tag for value in event.summary.value]
        limit = tokens_seen if any(tag.startswith(BY_TOKENS) for tag in tags) else step
        if event.step <= limit and not any(tag.startswith("_hparams_/") for tag in tags):  # those come at the end
            writer.write(record)
    replace_bytes(path, kept.getvalue())
