"""Write a text as shards of tokens to an object store, for training on many machines.

    python -m gpt_lightning prepare --text SOURCE --output s3://BUCKET/PREFIX

SOURCE is a file, folder, quoted glob or .jsonl, as in data.text. Its documents are encoded, shuffled and written to an
address (s3://, gs:// or az://) or a folder. After that, `fit --data.text s3://BUCKET/PREFIX` trains on them, and
`--data.text https://HOST/PREFIX` if a web server serves them. The same command again writes only the shards that are
missing. Credentials are read from the environment. An address needs the extra s3.
"""

from __future__ import annotations

from pathlib import Path

from gpt_lightning.cli.arguments import Parser
from gpt_lightning.console import say
from gpt_lightning.data.corpus import CACHE_DIR
from gpt_lightning.data.shard_writer import SHARD_TOKENS, write_shards
from gpt_lightning.data.text import CLEANERS
from gpt_lightning.validation import require, require_integer

LEAST_TOKENS = 1000  # of --shard_tokens; smaller shards would be too many files


def run(arguments: list[str]) -> None:
    """Run `prepare` with these arguments."""
    parser = Parser("prepare", __doc__)
    parser.add_argument("--text", required=True, metavar="SOURCE", help="file, folder, quoted glob or .jsonl")
    parser.add_argument("--output", required=True, metavar="ADDRESS", help="s3://, gs:// or az:// address, or a folder")
    parser.add_argument("--tokenizer", default="gpt2", metavar="NAME", help="as data.tokenizer; default: gpt2")
    parser.add_argument("--clean", metavar="NAME", help=f"as data.clean: {', '.join(CLEANERS)}; default: not at all")
    parser.add_argument("--cache_dir", type=Path, default=Path(CACHE_DIR), metavar="FOLDER", help="as data.cache_dir")
    parser.add_argument("--seed", type=int, default=123, metavar="N", help="of the order of documents; default: 123")
    parser.add_argument(
        "--shard_tokens",
        type=int,
        default=SHARD_TOKENS,
        metavar="N",
        help=f"most tokens of a shard, about; default: {SHARD_TOKENS:,}",
    )
    options = parser.parse_args(arguments)
    require_integer("--seed", options.seed, 0)
    require_integer("--shard_tokens", options.shard_tokens, LEAST_TOKENS)
    require(options.clean is None or options.clean in CLEANERS, "--clean", f"be {' or '.join(CLEANERS)}", options.clean)
    lines = write_shards(
        options.text,
        options.output,
        tokenizer_name=options.tokenizer,
        clean=options.clean,
        cache_dir=options.cache_dir,
        seed=options.seed,
        shard_tokens=options.shard_tokens,
    )
    for line in lines:
        say(line)
