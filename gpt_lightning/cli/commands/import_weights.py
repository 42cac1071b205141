"""`import`: GPT-2's weights from other programs' files, as a checkpoint of this one.

    python -m gpt_lightning import --from SOURCE --output FILE.ckpt

SOURCE is a folder with model.safetensors and config.json as Hugging Face has them, one such file, the name of
a repository there (openai-community/gpt2; needs the extra hub), the book's model.pth or
model_and_optimizer.pth, or nanoGPT's ckpt.pt. The format is known by its names and shapes. One weight is read
at a time: the memory is that of the model and its largest weight.
"""

from __future__ import annotations

from pathlib import Path

from gpt_lightning.checkpoints.conversion.importing import import_weights
from gpt_lightning.checkpoints.conversion.readers import open_source
from gpt_lightning.cli.arguments import Parser
from gpt_lightning.files import check_absent


def run(arguments: list[str]) -> None:
    """`import --from SOURCE --output FILE.ckpt [--context_length N] [--n_heads N] [--tokenizer NAME]`."""
    parser = Parser("import", __doc__)
    parser.add_argument("--from", required=True, dest="source", metavar="SOURCE", help="file, folder or repository")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--context_length", type=int, metavar="N", help="keep the first N positions only")
    parser.add_argument("--n_heads", type=int, metavar="N", help="attention heads, where SOURCE does not say")
    parser.add_argument("--tokenizer", metavar="NAME", help="gpt2 (the default), bytes, or another of tiktoken")
    typed = parser.parse_args(arguments)
    check_absent(typed.output)
    source = open_source(typed.source)
    for line in import_weights(source, typed.output, typed.context_length, typed.n_heads, typed.tokenizer):
        print(line, flush=True)
