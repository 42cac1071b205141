"""Convert GPT-2 weights of other programs into a checkpoint.

    python -m gpt_lightning import --from SOURCE --output FILE.ckpt

SOURCE is a folder with Hugging Face's model.safetensors and config.json, a .safetensors file, the name of a repository
on the Hugging Face Hub (openai-community/gpt2; needs the extra hub), the book's model.pth or
model_and_optimizer.pth, or nanoGPT's ckpt.pt. The format is detected from the names and shapes of the weights, which
are read one at a time, so the memory needed is that of the model and its largest weight.
"""

from __future__ import annotations

from pathlib import Path

from gpt_lightning.checkpoints.conversion.importing import import_weights
from gpt_lightning.checkpoints.conversion.readers import open_weights
from gpt_lightning.cli.arguments import Parser
from gpt_lightning.console import say
from gpt_lightning.files import check_absent


def run(arguments: list[str]) -> None:
    """Run `import` with these arguments."""
    parser = Parser("import", __doc__)
    parser.add_argument("--from", required=True, dest="source", metavar="SOURCE", help="file, folder or repository")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--context_length", type=int, metavar="N", help="keep the first N positions only")
    parser.add_argument("--n_heads", type=int, metavar="N", help="attention heads, if SOURCE does not state them")
    parser.add_argument("--tokenizer", metavar="NAME", help="gpt2 (the default), bytes, or another of tiktoken")
    options = parser.parse_args(arguments)
    check_absent(options.output)
    reader = open_weights(options.source)
    for line in import_weights(reader, options.output, options.context_length, options.n_heads, options.tokenizer):
        say(line)
