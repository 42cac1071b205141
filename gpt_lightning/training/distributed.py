"""The environment variables that torchrun and SLURM set for each process."""

from __future__ import annotations

import os


def launched_externally() -> bool:
    """Return whether torchrun or SLURM starts the processes of this run."""
    return "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("SLURM_NTASKS", "1") != "1"


def is_first_process() -> bool:
    """Return whether this process is rank 0; True if neither torchrun nor SLURM has set a rank."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0
