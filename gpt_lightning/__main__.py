"""Entry point of `python -m gpt_lightning`."""

from __future__ import annotations

import signal

from gpt_lightning.cli.main import main

if __name__ == "__main__":
    try:
        main()
    finally:  # a Ctrl-C during interpreter shutdown then prints no traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
