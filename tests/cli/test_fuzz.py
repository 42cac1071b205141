"""Any settings either train a step or are refused in one line."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Result, tiny_settings
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

Command = Callable[..., Result]

BROKEN = ["", "two", "-1", "0", "1.5", "nan", "inf", "-inf", "null", "true", "[1]", "{a: 1}", "1e400", "9" * 30, "☃"]
VALUES = {
    "model.context_length": ["1", "8", "64", "100000"],
    "model.emb_dim": ["16", "15", "24"],
    "model.n_heads": ["1", "2", "4"],
    "model.n_layers": ["1", "2"],
    "model.drop_rate": ["0", "0.5", "1"],
    "model.qkv_bias": ["true", "false"],
    "model.tie_weights": ["true", "false"],
    "model.init": ["book", "gpt2", "zero"],
    "model.vocab_size": ["257", "300", "256"],
    "model.learning_rate": ["1e-3", "1e30"],
    "model.weight_decay": ["0", "0.1"],
    "model.warmup_steps": ["0", "1", "100"],
    "model.min_learning_rate": ["1e-5", "1"],
    "data.train_ratio": ["0.5", "0.999999"],
    "data.batch_size": ["1", "8", "1000"],
    "data.stride": ["1", "64", "1000000"],
    "data.clean": ["remove_empty_lines", "wash"],
    "data.tokenizer": ["bytes", "gpt2", "gpt9"],
    "seed_everything": ["1", "4294967296"],
    "evaluate_every": ["1", "7"],
    "evaluate_batches": ["1", "3"],
    "sample_every": ["1", "2"],
    "save_every": ["1"],
    "save_minutes": ["1", "0.0001"],
    "early_stopping_patience": ["1", "3"],
    "sampling.max_new_tokens": ["1", "5"],
    "sampling.temperature": ["0", "1", "1e-300", "1e300"],
    "sampling.top_k": ["1", "257", "258"],
    "sampling.eos_id": ["0", "256", "257"],
    "sampling.seed": ["1"],
    "trainer.max_epochs": ["1", "-5"],
    "trainer.accumulate_grad_batches": ["1", "2"],
    "trainer.gradient_clip_val": ["0.5", "1e-30"],
    "trainer.limit_train_batches": ["1", "0.5"],
    "trainer.limit_val_batches": ["1", "0.5"],
    "trainer.precision": ["32-true", "64-true", "bf16-true", "16-mixed", "bf61"],
    "trainer.accelerator": ["auto", "cuda", "gpuu"],
    "trainer.devices": ["1", "auto", "1000"],
    "trainer.strategy": ["auto", "ddp_spawn", "nope"],
    "trainer.max_time": ["00:00:00:30", "1"],
    "trainer.log_every_n_steps": ["1", "2"],
    "trainer.callbacks": ["[{class_path: EarlyStopping}]", "[{class_path: os.system}]"],
    "data.nmae": ["x"],
    "modle": ["x"],
}
FINE = b"Once upon a time there was a lamp. " * 60
ODD = st.one_of(
    st.text(max_size=300).map(str.encode),
    st.binary(max_size=300),
    st.sampled_from([b"", b" \n ", b"a" * 1000, b"\xef\xbb\xbf" + FINE, b"<|endoftext|>" * 100, b"\0" * 900]),
)
TEXTS = st.integers(0, 4).flatmap(lambda number: ODD if number == 4 else st.just(FINE))
OVERRIDES = st.lists(
    st.sampled_from(sorted(VALUES)).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from(VALUES[name] * 12 + BROKEN))
    ),
    max_size=3,
)


@pytest.mark.filterwarnings("ignore")  # warnings of libraries about settings that they accept
@settings(max_examples=int(os.environ.get("GPT_LIGHTNING_FUZZ", "40")), suppress_health_check=list(HealthCheck))
@given(OVERRIDES, TEXTS, st.text(max_size=20).map(lambda text: text or "a"))
def test_any_settings_train_a_step_or_are_refused_in_one_line(
    in_tmp: Path, command: Command, overrides: list[tuple[str, str]], text: bytes, prompt: str
) -> None:
    folder = Path(tempfile.mkdtemp(dir=in_tmp))
    config = tiny_settings()
    config["data"].update(text=str(folder / "text.txt"), batch_size=2)
    config["model"]["context_length"] = 16
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    (folder / "text.txt").write_bytes(text)
    arguments = [f"--{name}={value}" for name, value in overrides]
    before = sorted(os.listdir(folder))

    result = command(
        "fit", "--config", folder / "tiny.yaml", "--run_dir", folder / "run", "--trainer.max_steps=1",
        f"--prompt={prompt}", *arguments
    )  # fmt: skip

    event(f"exit code {result.code}")
    assert result.code in (0, 1, 2, 3), (arguments, result.err)
    errors = [line for line in result.err.splitlines() if line.startswith("gpt_lightning: error: ")]
    assert len(errors) == (result.code != 0), result.err
    assert "Traceback" not in result.err
    if result.code == 0:
        assert "Ep 1 (Step 000001): " in result.out
        assert (folder / "run/checkpoints/last.ckpt").is_file()
    elif result.code == 2:
        assert sorted(os.listdir(folder)) == before
    shutil.rmtree(folder)
