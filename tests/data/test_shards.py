from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_server import SECRET, FaultyServer, serve

from gpt_lightning.data import object_store
from gpt_lightning.data.corpus import Corpus, open_corpus
from gpt_lightning.data.object_store import ObjectStore
from gpt_lightning.data.shard_writer import shuffled_pieces, write_shards
from gpt_lightning.data.shards import ShardCache, ShardedTokens, read_index
from gpt_lightning.data.token_cache import EncodedDocuments, prepare
from gpt_lightning.data.tokenizer import load_tokenizer
from gpt_lightning.data.windows import ResumableSampler, Windows
from gpt_lightning.errors import InputError, MachineError

BUCKET = "texts"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    with serve(tmp_path_factory.mktemp("s3"), BUCKET) as one:
        yield one


@pytest.fixture
def s3(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> FaultyServer:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.faults, server.always = [], ""
    server.log.clear()
    return server


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(object_store, "FIRST_PAUSE", 0.01)
    monkeypatch.chdir(tmp_path)


def write_documents(count: int = 60) -> list[str]:
    documents = [f"document {i} " + "word " * (i % 7) for i in range(count)]
    Path("docs.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
    return documents


def write(address: str, **others: Any) -> list[str]:
    options: dict[str, Any] = {"tokenizer_name": "bytes", "clean": None, "seed": 1, "shard_tokens": 1 << 24, **others}
    return list(write_shards("docs.jsonl", address, cache_dir=Path("cache"), **options))


def opened(address: str, **others: Any) -> Corpus:
    options: dict[str, Any] = {"clean": None, "cache_dir": Path("cache"), **others}
    return open_corpus(address, load_tokenizer("bytes"), **options)


def test_shards_contain_each_document_once(s3: FaultyServer) -> None:
    documents = write_documents()
    address = f"s3://{BUCKET}/once"

    lines = write(address)

    corpus = opened(address)
    text = load_tokenizer("bytes").decode(corpus.token_ids[0 : len(corpus.token_ids)].tolist())
    found = text.split("<|endoftext|>")
    assert sorted(found[:-1]) == sorted(documents)
    assert found[:-1] != documents
    assert found[-1] == ""
    assert corpus.characters == sum(map(len, documents))
    assert lines[0] == f"shards      20 of 3.3 kB in {address}"
    assert lines[1].endswith("of 60 documents of 1 files, bytes")


def test_training_on_s3_a_folder_and_http_is_the_same(s3: FaultyServer) -> None:
    write_documents()
    write(f"s3://{BUCKET}/same")
    write("folder")

    windows = [
        [[x.tolist() for x, _ in map(split.__getitem__, range(len(split)))] for split in splits]
        for splits in (
            [Windows(part.token_ids, 8, 8) for part in opened(source).split(0.9)]
            for source in (f"s3://{BUCKET}/same", "folder")
        )
    ]

    assert windows[0] == windows[1]
    assert opened("folder").sha256 == opened(f"s3://{BUCKET}/same").sha256


def test_a_second_prepare_writes_only_what_is_missing(s3: FaultyServer) -> None:
    write_documents()
    address = f"s3://{BUCKET}/again"
    write(address)
    index = read_index(ObjectStore(address))
    assert index is not None
    s3.client().delete_object(Bucket=BUCKET, Key=f"again/{index.shards[3].name}")
    s3.client().delete_object(Bucket=BUCKET, Key="again/index.json")
    with pytest.raises(InputError, match=r"has shards but no index\.json; run prepare again, which continues"):
        opened(address)
    s3.log.clear()

    lines = write(address)

    assert [path for method, path in s3.log if method == "PUT"] == [
        f"/{BUCKET}/again/{index.shards[3].name}",
        f"/{BUCKET}/again/index.json",
    ]
    assert lines[-1] == f"kept        {len(index.shards) - 1} shards were there already"
    assert read_index(ObjectStore(address)) == index


def test_other_shards_are_not_overwritten(s3: FaultyServer) -> None:
    write_documents()
    address = f"s3://{BUCKET}/other"
    write(address)

    with pytest.raises(InputError, match="holds shards of another text or with other settings; choose another prefix"):
        write(address, seed=2)

    assert read_index(ObjectStore(address)) == read_index(ObjectStore(address))
    assert opened(address).split(0.9)[0].token_ids[0:5].dtype == np.uint16


def test_of_two_writers_with_other_texts_only_one_writes_the_index(s3: FaultyServer) -> None:
    store = ObjectStore(f"s3://{BUCKET}/two")

    assert store.write("index.json", b"one", overwrite=False)
    assert not store.write("index.json", b"two", overwrite=False)

    assert store.read("index.json") == b"one"


@pytest.mark.parametrize("fault", ["500", "503", "429", "close", "truncate", "flip"])
def test_a_request_that_fails_is_repeated(s3: FaultyServer, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_documents()
    address = f"s3://{BUCKET}/fault"
    write(address)
    expected = opened(address).token_ids[0:100].tolist()
    s3.faults = [fault, fault]

    found = opened(address, cache_dir=Path("other")).token_ids[0:100].tolist()

    assert found == expected
    assert s3.faults == []
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "trying again" in line]
    assert "could not be read (" in line


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "500 Internal Server Error"),
        ("503", "503 Service Unavailable"),
        ("404", "the shard is missing"),
        ("403", "403 Forbidden"),
        ("close", "no connection"),
        ("truncate", "incomplete answer"),
        ("flip", "checksum mismatch"),
    ],
)
def test_a_request_that_always_fails_is_one_line(
    s3: FaultyServer, fault: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_lightning.data.shards.PATIENCE", 0.2)
    write_documents()
    address = f"s3://{BUCKET}/fails"
    write(address)
    corpus = opened(address)
    s3.always = fault

    with pytest.raises(MachineError, match=rf"^{address}/00000-[0-9a-f]{{12}}\.tokens: .*{reason}"):
        corpus.token_ids[0:1]

    assert not list(Path("cache/shards").glob("*/*.tokens"))


def test_a_damaged_shard_in_the_cache_is_downloaded_again(s3: FaultyServer, capsys: pytest.CaptureFixture[str]) -> None:
    write_documents()
    address = f"s3://{BUCKET}/damaged"
    write(address)
    expected = opened(address).token_ids[0:9].tolist()
    (path,) = Path("cache/shards").glob("*/*.tokens")
    path.write_bytes(b"x" * path.stat().st_size)

    assert opened(address).token_ids[0:9].tolist() == expected

    assert f"{path.name}: is damaged; downloading it again" in capsys.readouterr().err


def test_the_cache_stays_below_its_limit(s3: FaultyServer) -> None:
    write_documents(400)
    address = f"s3://{BUCKET}/limit"
    write(address)
    probe = opened(address).token_ids
    assert isinstance(probe, ShardedTokens)
    largest = max(map(len, probe.pieces)) * 2

    tokens = opened(address, cache_dir=Path("small"), cache_gigabytes=3 * largest / 1e9).token_ids
    assert isinstance(tokens, ShardedTokens)
    for piece in tokens.pieces:
        assert len(tokens[piece.start : piece.stop]) == len(piece)
        assert sum(one.stat().st_size for one in Path("small/shards").glob("*/*.tokens")) <= 3 * largest

    with pytest.raises(
        InputError, match=r"data\.cache_gigabytes \(1e-09\) must be at least .*, the size of two shards"
    ):
        opened(address, cache_gigabytes=1e-9)


def test_the_next_shard_is_fetched_ahead_and_only_once(s3: FaultyServer) -> None:
    write_documents(400)
    address = f"s3://{BUCKET}/ahead"
    write(address)
    corpus = opened(address)
    windows = Windows(corpus.token_ids, 16, 16)
    s3.log.clear()

    sampler = ResumableSampler(windows, 2, seed=3)
    for index in sampler:
        windows[index]

    read = s3.shards_read()
    assert sorted(read) == sorted(one.name for one in cast(Any, corpus)._cache.index.shards)


def test_resuming_reads_only_the_shards_that_are_left(s3: FaultyServer) -> None:
    write_documents(400)
    address = f"s3://{BUCKET}/resume"
    write(address)
    tokens = opened(address, cache_dir=Path("empty")).token_ids
    anew = Windows(tokens, 16, 16)
    in_memory = Windows(sharded([len(piece) for piece in cast(ShardedTokens, tokens).pieces]), 16, 16)
    whole = list(ResumableSampler(in_memory, 2, seed=3))
    skip = len(whole) // 2 // 2 * 2
    s3.log.clear()

    found = []
    for index in ResumableSampler(anew, 2, seed=3, skip=skip):
        anew[index]
        found.append(index)

    assert found == whole[skip:]
    ends = np.cumsum(anew.groups)
    numbers = {int(np.searchsorted(ends, index, side="right")) for index in found}
    names = [cast(Any, anew.token_ids)._cache.index.shards[number].name for number in numbers]
    assert sorted(s3.shards_read()) == sorted(names)
    assert len(names) < len(anew.groups)


def test_no_secret_is_stored(s3: FaultyServer, capfd: pytest.CaptureFixture[str]) -> None:
    write_documents()
    address = f"s3://{BUCKET}/secret"
    write(address)
    corpus = opened(address)
    corpus.token_ids[0:9]
    s3.always = "403"
    with pytest.raises(MachineError) as caught:
        opened(address, cache_dir=Path("empty")).token_ids[0:9]

    stored = b"".join(path.read_bytes() for path in Path().rglob("*") if path.is_file())
    assert SECRET.encode() not in stored + pickle.dumps(corpus) + str(caught.value).encode()
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_killed_run_resumes_exactly_from_shards(s3: FaultyServer, command: Any, config: Path) -> None:
    write_documents(600)
    write(f"s3://{BUCKET}/killed")

    result = command("verify-resume", "--config", config, f"--data.text=s3://{BUCKET}/killed", "--data.batch_size=16")

    assert result.code == 0, result.err
    assert result.out.splitlines()[2].startswith("identical    weights, optimizer and random states, ")


def test_samples_are_compared_with_the_first_shard_and_other_commands_refuse(
    s3: FaultyServer, command: Any, config: Path
) -> None:
    write_documents(600)
    address = f"s3://{BUCKET}/searched"
    write(address)
    arguments = ("--config", config, f"--data.text={address}", "--trainer.max_steps=3", "--trainer.max_epochs=-1")

    fitted = command("fit", *arguments, "--run_dir=run", "--sampling.max_new_tokens=20")
    validated = command("validate", "--ckpt_path=run/checkpoints/last.ckpt")
    evaluated = command("evaluate", "--ckpt_path=run/checkpoints/last.ckpt")

    assert fitted.code == 0, fitted.err
    first = len(opened(address).split(0.9)[0].token_ids[0 : 1 << 30]) // 18  # about; the line has the exact number
    (line,) = [line for line in fitted.out.splitlines() if "; searched in the first " in line]
    assert int(line.split()[-3].replace(",", "")) == pytest.approx(first, rel=0.1)
    assert validated.out.startswith(f"validation split of {address}: loss ")
    assert (evaluated.code, evaluated.error) == (
        2,
        f"the training text of run/checkpoints/last.ckpt, {address}, consists of shards, which this command does not "
        "read; name a text file; --text evaluates another text",
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(0, 3), st.integers(1, 200))
def test_pieces_cover_all_tokens_once(lengths: list[int], seed: int, shard_tokens: int) -> None:
    ends = np.cumsum(lengths)
    encoded = cast(
        EncodedDocuments, SimpleNamespace(tokens=np.arange(ends[-1]), ends=ends, character_ends=3 * ends + 1)
    )

    pieces = shuffled_pieces(encoded, seed, shard_tokens)

    size = min(shard_tokens, -(-int(ends[-1]) // 20))
    covered = [
        i for begins, stops, _ in pieces for begin, stop in zip(begins, stops, strict=True) for i in range(begin, stop)
    ]
    assert sorted(covered) == list(range(ends[-1]))
    assert all(0 < sum(stops - begins) < 2 * size for begins, stops, _ in pieces)
    assert sum(characters for *_, characters in pieces) == encoded.character_ends[-1]


class FakeCache:
    """Shards in memory: shard i has tokens 1000 i, 1000 i + 1, ..."""

    def __init__(self, sizes: list[int]) -> None:
        self.index = SimpleNamespace(dtype="int64", shards=[SimpleNamespace(tokens=size) for size in sizes])

    def tokens(self, number: int) -> Any:
        return 1000 * number + np.arange(self.index.shards[number].tokens)

    def fetch_ahead(self, numbers: list[int]) -> None:
        pass


def sharded(sizes: list[int]) -> ShardedTokens:
    return ShardedTokens(cast(ShardCache, FakeCache(sizes)), range(len(sizes)))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_slices_equal_those_of_an_array(sizes: list[int], data: st.DataObject) -> None:
    tokens = sharded(sizes)
    whole = np.concatenate([1000 * i + np.arange(size) for i, size in enumerate(sizes)])
    begin, end = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, len(whole)))

    assert len(tokens) == len(whole)
    assert tokens[begin:end].tolist() == whole[begin:end].tolist()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 8), st.integers(1, 8))
def test_windows_of_shards_are_those_of_each_shard(sizes: list[int], context: int, stride: int) -> None:
    windows = Windows(sharded(sizes), context, stride)

    alone = [Windows(1000 * i + np.arange(size), context, stride) for i, size in enumerate(sizes)]
    expected = [one[i] for one in alone for i in range(len(one))]
    found = [windows[i] for i in range(len(windows))]
    assert [x.tolist() for x, _ in found] == [x.tolist() for x, _ in expected]
    assert [y.tolist() for _, y in found] == [y.tolist() for _, y in expected]
    assert windows.unused_tokens == sum(one.unused_tokens for one in alone)
    if len(windows):
        counts = windows.times_predicted(len(windows))
        targets = [
            i for start in map(windows.start, range(len(windows))) for i in range(start + 1, start + context + 1)
        ]
        assert counts.tolist() == [targets.count(i) for i in range(len(counts))]


@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 3),
    st.data(),
)
def test_ranks_share_shards_and_resume_at_any_global_batch(
    sizes: list[int], batch_size: int, world_size: int, epoch: int, data: st.DataObject
) -> None:
    windows, size = Windows(sharded(sizes), 1, 1), batch_size * world_size
    batches = len(windows) // size
    skip = data.draw(st.integers(0, batches))

    alone = list(ResumableSampler(windows, size, 5, epoch))
    rows = [
        list(ResumableSampler(windows, size, 5, epoch, skip * size, rank, world_size)) for rank in range(world_size)
    ]

    assert len(set(alone)) == len(alone) == batches * size
    for batch in range(batches - skip):
        together = [index for row in rows for index in row[batch_size * batch : batch_size * (batch + 1)]]
        assert sorted(together) == sorted(alone[size * (skip + batch) : size * (skip + batch + 1)])
    shard_of = [next(i for i, group in enumerate(np.cumsum(windows.groups)) if index < group) for index in alone]
    assert sum(one != other for one, other in pairwise(shard_of)) == max(len(set(shard_of)) - 1, 0)


def test_the_order_of_one_text_has_not_changed() -> None:
    assert list(ResumableSampler(Windows(np.arange(8), 1, 1), 1, 123)) == list(
        ResumableSampler(Windows(sharded([8]), 1, 1), 1, 123)
    )


def test_encoded_documents_are_shuffled_by_the_seed() -> None:
    write_documents()
    encoded = prepare("docs.jsonl", "bytes", None, Path("cache"))

    orders = [[begins.tolist() for begins, *_ in shuffled_pieces(encoded, seed, 1 << 24)] for seed in (1, 1, 2)]

    assert orders[0] == orders[1] != orders[2]
