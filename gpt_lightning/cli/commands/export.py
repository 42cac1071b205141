"""Write a checkpoint's weights in another program's format, then read them back and compare the logits.

python -m gpt_lightning export --ckpt_path CKPT --format FORMAT --output PATH

hf           a folder for GPT2LMHeadModel.from_pretrained and AutoTokenizer.from_pretrained
book         a folder with the book's model.pth and, from a last.ckpt, its model_and_optimizer.pth
safetensors  one file with this program's names
gguf         one file for llama.cpp; needs the extra gguf
"""

from __future__ import annotations

from pathlib import Path

from gpt_lightning.checkpoints.conversion.exporting import FORMATS, export_weights
from gpt_lightning.checkpoints.loading import open_checkpoint
from gpt_lightning.cli.arguments import Parser
from gpt_lightning.console import say
from gpt_lightning.files import check_absent


def run(arguments: list[str]) -> None:
    """Run `export` with these arguments."""
    parser = Parser("export", __doc__)
    parser.add_argument("--ckpt_path", required=True, metavar="CKPT", help="checkpoint to export")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, type=Path, metavar="PATH", help="file or folder to write")
    options = parser.parse_args(arguments)
    check_absent(options.output)
    for line in export_weights(open_checkpoint(options.ckpt_path), options.format, options.output):
        say(line)
