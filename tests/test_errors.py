from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
import torch

from gpt_lightning.errors import (
    DivergedError,
    InputError,
    MachineError,
    describe_os_error,
    report_errors,
    why_out_of_memory,
)
from gpt_lightning.files import find_os_error
from gpt_lightning.validation import require, require_integer


class MisconfigurationException(Exception):  # recognized by its name, as Lightning's is
    pass


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a.b must be 1,\n got 2"), 2, "a.b must be 1, got 2"),
        (MachineError("no disk"), 1, "no disk"),
        (DivergedError("nan"), 3, "nan"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"), 2, "a.txt: no such file"),
        (PermissionError(errno.EACCES, "Permission denied", "a.txt"), 1, "a.txt: permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "no space left on device"),
        (MisconfigurationException("no such strategy"), 2, "no such strategy"),
        (ModuleNotFoundError("needs psutil"), 2, "needs psutil; install the missing package with pip"),
        (InputError(f"a/{'b' * 255}/c: no such file"), 2, f"a/{'b' * 40}...{'b' * 40}/c: no such file"),
        (InputError("d" * 120), 2, "d" * 120),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            MemoryError("4 GB"),
            1,
            "out of memory (4 GB); use a smaller batch_size or model",
        ),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, report_errors():
        raise error

    assert ended.value.code == code
    assert capsys.readouterr().err == f"gpt_lightning: error: {line}\n"


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="compares with /proc/meminfo of Linux")
def test_running_out_of_memory_on_a_cpu_is_a_machine_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, report_errors():
        torch.empty(10**18, dtype=torch.int8)

    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])  # MemTotal
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "gpt_lightning: error: out of memory (tried to allocate 1000000000.0 GB, "
        f"this machine has {kilobytes * 1024 / 1e9:.1f} GB); use a smaller batch_size or model\n"
    )


def test_a_memory_error_without_message_names_the_machines_memory() -> None:
    assert re.fullmatch(r"this machine has [\d.]+ GB", why_out_of_memory(MemoryError()) or "")
    assert why_out_of_memory(RuntimeError("other")) is None


def test_a_full_disk_is_found_in_the_context_of_torchs_error() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    raised = RuntimeError("unexpected pos")
    raised.__context__ = full

    assert find_os_error(raised) is full
    assert find_os_error(RuntimeError("other")) is None


def test_os_errors_name_their_file() -> None:
    assert describe_os_error(IsADirectoryError(errno.EISDIR, "Is a directory", "x")) == ("x: is a directory", 2)
    assert describe_os_error(OSError("strange")) == ("strange", 1)


def test_require_names_the_setting_and_its_value() -> None:
    require(True, "a", "be 1", 1)
    require_integer("a", 3, 1, 3)
    with pytest.raises(InputError, match="^a must be one, got 'b'$"):
        require(False, "a", "be one", "b")
    for value in (0, 4, 2.0, True, None):
        with pytest.raises(InputError, match=f"^a must be an int from 1 to 3, got {value}$"):
            require_integer("a", value, 1, 3)
