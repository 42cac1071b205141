"""Reading damaged checkpoints, and writes that fail."""

from __future__ import annotations

import errno
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gpt_lightning.checkpoints.compare import first_difference
from gpt_lightning.checkpoints.io import load_plain, read_checkpoint, write_checkpoint
from gpt_lightning.errors import InputError, MachineError

DIRECTORY_ENTRY = b"PK\x01\x02"  # signature of a record in the central directory of a zip file
FLAGS, METHOD, ATTRIBUTES, OFFSET = 8, 10, 38, 42  # byte offsets in such an entry


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), is_in_directory=st.booleans())
@example(place=0.0, bit=0, is_in_directory=False)
def test_a_flipped_bit_is_refused_or_has_no_effect(
    trained: Path, place: float, bit: int, is_in_directory: bool
) -> None:
    path = trained / "checkpoints/best.ckpt"
    content = bytearray(path.read_bytes())
    start = content.index(DIRECTORY_ENTRY) if is_in_directory else 0
    content[start + int(place * (len(content) - start))] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder, "damaged.ckpt")
        damaged.write_bytes(content)
        for mmap in (True, False):
            try:
                read = read_checkpoint(damaged, mmap=mmap)
            except InputError:
                continue
            assert first_difference(torch.load(path), read, "content") is None


@pytest.mark.parametrize("mmap", [True, False])
def test_a_flipped_bit_in_a_tensor_is_refused(tmp_path: Path, mmap: bool) -> None:
    weights = torch.arange(100.0)
    write_checkpoint({"first": torch.zeros(3), "weights": weights}, tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(content.replace(weights.numpy().tobytes(), (weights + 1).numpy().tobytes()))

    with pytest.raises(InputError, match="a.ckpt: checksum mismatch in data/1"):
        load_plain(str(tmp_path / "a.ckpt"), "a checkpoint", mmap)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(("offset", "bit"), [(FLAGS, 1), (METHOD, 8), (ATTRIBUTES, 0x10), (OFFSET + 3, 0x80)])
def test_a_flipped_bit_in_the_directory_is_refused(tmp_path: Path, offset: int, bit: int, mmap: bool) -> None:
    """Marked as encrypted, of another method, a folder (which torch.load does not initialize), or past the end."""
    write_checkpoint({"weights": torch.ones(3, 2)}, tmp_path / "a.ckpt")
    content = bytearray((tmp_path / "a.ckpt").read_bytes())
    places = [i for i in range(len(content)) if content.startswith(DIRECTORY_ENTRY, i)]
    for place in places:
        damaged = content.copy()
        damaged[place + offset] ^= bit
        (tmp_path / "a.ckpt").write_bytes(damaged)

        with pytest.raises(InputError, match="a.ckpt: (is not a complete checkpoint|checksum mismatch in )"):
            load_plain(str(tmp_path / "a.ckpt"), "a checkpoint", mmap)
    assert len(places) > 4


def test_a_flipped_bit_in_the_offset_of_the_directory_is_refused(tmp_path: Path) -> None:
    """Python seeks to a negative offset, which raises EINVAL."""
    write_checkpoint({"weights": torch.ones(3, 2)}, tmp_path / "a.ckpt")
    content = bytearray((tmp_path / "a.ckpt").read_bytes())
    content[content.index(b"PK\x06\x06") + 48] ^= 1
    (tmp_path / "a.ckpt").write_bytes(content)

    with pytest.raises(InputError, match="a.ckpt: is not a complete checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(trained: Path, tmp_path: Path, share: float) -> None:
    good = (trained / "checkpoints/last.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(good[: int(share * len(good))])

    with pytest.raises(InputError, match="a.ckpt: is not a complete checkpoint"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a.ckpt", ""),
        ("model.pth", "; convert it with `import --from model.pth --output NEW.ckpt`"),
        ("ckpt.pt", "; convert it with `import --from ckpt.pt --output NEW.ckpt`"),
        ("pytorch_model.bin", "; convert it with `import --from pytorch_model.bin --output NEW.ckpt`"),
        ("model.safetensors", "; convert it with `import --from model.safetensors --output NEW.ckpt`"),
    ],
)
def test_weights_of_other_programs_are_refused_with_the_command_that_converts_them(
    in_tmp: Path, name: str, hint: str
) -> None:
    Path(name).write_bytes(b"not a zip archive")
    with pytest.raises(InputError, match=f"^{name}: is not a checkpoint{hint}$"):
        read_checkpoint(name)

    torch.save({"tok_emb.weight": torch.ones(2)}, name)
    with pytest.raises(InputError, match=f"^{name}: is not a checkpoint( of gpt_lightning)?{hint}$"):
        read_checkpoint(name)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_code_in_a_checkpoint_does_not_run(in_tmp: Path) -> None:
    torch.save({"gpt_lightning": {"format": 1}, "bomb": Bomb()}, "bomb.ckpt")
    Path("raw.ckpt").write_bytes(pickle.dumps(Bomb()))

    with pytest.raises(InputError, match="bomb.ckpt: refused, because it contains more than tensors and plain data"):
        read_checkpoint("bomb.ckpt")
    with pytest.raises(InputError, match="raw.ckpt: is not a checkpoint$"):
        read_checkpoint("raw.ckpt")
    assert not Path("exploded").exists()


def changed(trained: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    checkpoint = torch.load(trained / "checkpoints/best.ckpt")
    change(checkpoint)
    torch.save(checkpoint, target)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["gpt_lightning"].update(format=2), "has checkpoint format 2; this program reads format 1"),
        (lambda c: c.pop("gpt_lightning"), "a.ckpt: is not a checkpoint of gpt_lightning$"),
        (lambda c: c["gpt_lightning"].update(format=torch.ones(2)), "has checkpoint format"),
        (lambda c: c.pop("state_dict"), "state_dict is missing or of the wrong type"),
        (lambda c: c["gpt_lightning"].pop("fit"), "gpt_lightning.fit is missing or of the wrong type"),
        (
            lambda c: c["gpt_lightning"]["text"].update(sha256=3),
            "gpt_lightning.text.sha256 is missing or of the wrong type",
        ),
        (lambda c: c["state_dict"].update(a=3), "state_dict.a must be a name and a dense tensor"),
        (lambda c: c["state_dict"].update({3: torch.ones(1)}), "state_dict.3 must be a name and a dense tensor"),
        (
            lambda c: c["state_dict"].update(b=torch.eye(2).to_sparse()),
            "state_dict.b must be a name and a dense tensor|is not a checkpoint$",  # torch 2.11 cannot load it
        ),
        (lambda c: c["state_dict"].update(a=torch.ones(1, device="meta")), "state_dict.a must be a name and a dense t"),
        (lambda c: c["hyper_parameters"].update({3: 3}), "setting 3 must be a name and plain data"),
    ],
)
def test_other_formats_are_refused(
    trained: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_checkpoint(changed(trained, tmp_path / "a.ckpt", change))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nope.ckpt", "nope.ckpt: no such file"),
        ("https://example.org/a.ckpt", "a.ckpt: must be a local file"),
        (".", "is a folder, not a checkpoint"),
    ],
)
def test_paths_that_are_not_files_are_refused(in_tmp: Path, path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_checkpoint(path)


def test_a_run_folder_is_refused_and_its_checkpoint_suggested(trained: Path) -> None:
    best = trained / "checkpoints/best.ckpt"
    for folder in (trained, trained / "checkpoints"):
        with pytest.raises(InputError, match=f"is a folder, not a checkpoint; it contains {best}$"):
            read_checkpoint(folder)


def test_saving_keeps_the_previous_file(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "prev.ckpt"
    for step in range(3):
        write_checkpoint({"step": step}, last, previous)

    assert (torch.load(last)["step"], torch.load(previous)["step"]) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "prev.ckpt"]


def test_a_full_disk_leaves_only_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    def full(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos") from None

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MachineError, match="no space left on device while saving; the previous last.ckpt is intact"):
        write_checkpoint({"step": 2}, tmp_path / "last.ckpt")

    assert torch.load(tmp_path / "last.ckpt") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "no space left on device"),
        (errno.EIO, "input/output error"),
        (errno.EROFS, "read-only file system"),
        (errno.EACCES, "permission denied"),
        (errno.EFBIG, "file too large"),
    ],
)
def test_errors_of_the_disk_while_saving_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    write_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(number, os.strerror(number))))

    with pytest.raises(MachineError, match=f"last.ckpt: {reason} while saving; the previous last.ckpt is intact$"):
        write_checkpoint({"step": 2}, tmp_path / "last.ckpt")

    assert torch.load(tmp_path / "last.ckpt") == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]
