"""What torchrun and SLURM say about this process."""

from __future__ import annotations

import os


def launched_externally() -> bool:
    """Whether torchrun or SLURM starts the processes of this run."""
    return "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("SLURM_NTASKS", "1") != "1"


def is_first_process() -> bool:
    """Whether this is rank 0, as far as torchrun or SLURM have said."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0
