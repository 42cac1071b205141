"""`python -m gpt_lightning`."""

from __future__ import annotations

import signal

from gpt_lightning.cli.main import main

if __name__ == "__main__":
    try:
        main()
    finally:  # another Ctrl-C while the interpreter ends: no traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
