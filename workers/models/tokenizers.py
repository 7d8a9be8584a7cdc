"""Conversion of tokenizer.json to OpenVINO tokenizer IR.

The first use of a model imports transformers, which takes a second.

The IR takes texts and returns three int32 arrays: `begins` and `ends` `[texts]`, the bounds of each text's ids in `ids`
`[tokens]`. The ids are neither truncated nor padded.

openvino-tokenizers converts BERT's rules only approximately. It folds case where BERT lower-cases (a final sigma
becomes another letter, and the micro sign a mu), uses other sets of ideographs and of punctuation, keeps private
characters, and limits a word in bytes where BERT limits it in characters. Therefore this module runs Hugging Face's
normalizer on each character of Unicode, and gives the results to the converter as a table.
"""

import base64
import functools
import itertools
import json
import os
import struct
import unicodedata
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.models.json_files import REMEDY, ModelError, summarize_error

#: Shortest run of consecutive characters that goes into a regular expression; shorter runs go into the table.
_LONG_RUN = 256
#: Separates characters that one call normalizes, because no other character becomes this one.
_SEPARATOR = "|"
#: Flags of added tokens that change how they are found in a text.
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
#: Replaces a word with too many characters: a private character, which is in no vocabulary.
_UNKNOWN = "\ue000"

#: Node of a trie: children by the next byte of the key, and under 0 the value's offset if a key ends here.
_Node = dict[int, Any]


def convert_bert(path: Path, spec: dict[str, Any]) -> ov.Model:
    """Return the IR of a tokenizer.json for which `is_bert` holds. Raise `ModelError` if the file is damaged."""
    return expose_ragged_ids(convert_padded(path, spec), path)


def convert_padded(path: Path, spec: dict[str, Any], **settings: Any) -> ov.Model:
    """Return the IR of a tokenizer.json as openvino-tokenizers makes it, with padded `input_ids` and `attention_mask`.

    The ids are exact if `is_bert` holds. `settings` are those of transformers, such as `pad_token`. Raise `ModelError`
    if the file is damaged.
    """
    is_exact = is_bert(spec)
    # transformers warns about the missing PyTorch, which Vecmill does not need.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino_tokenizers
        import tokenizers
        from transformers import PreTrainedTokenizerFast

        try:
            if is_exact:
                max_characters = spec["model"]["max_input_chars_per_word"]
                spec = spec | _build_rules(json.dumps(spec["normalizer"], sort_keys=True), max_characters)
            exact = tokenizers.Tokenizer.from_str(json.dumps(spec))
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=exact, **settings)  # type: ignore[no-untyped-call]
            converted = openvino_tokenizers.convert_tokenizer(tokenizer)
        except Exception as error:  # the libraries raise many kinds, all because of this file
            raise ModelError(f"could not convert {path}: {summarize_error(error)}; {REMEDY}") from error
    if is_exact:
        _lift_byte_limit(converted, max_characters)
    return converted


def is_bert(spec: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json has BERT's rules, which this module converts exactly."""
    parts = [spec.get(name) for name in ("normalizer", "pre_tokenizer", "model")]
    types = [part.get("type") if isinstance(part, dict) else None for part in parts]
    if types != ["BertNormalizer", "BertPreTokenizer", "WordPiece"] or spec["normalizer"]["clean_text"] is not True:
        return False
    vocabulary = spec["model"]["vocab"]
    return all(
        token["special"] and vocabulary.get(token["content"]) == token["id"] and not any(token[flag] for flag in _FLAGS)
        for token in spec["added_tokens"]
    )


@functools.cache  # takes a second, and most models have the same rules
def _build_rules(rules: str, max_characters: int) -> dict[str, Any]:
    """Return BERT's normalizer and pre-tokenizer as a table and four regular expressions.

    `rules` is the JSON of the normalizer.
    """
    normal = _normalize_characters(json.loads(rules))
    isolated = _find_isolated(normal)
    # NUL ends a key of the table and therefore cannot be a key.
    dropped = _find_long_runs(point for point, text in normal.items() if not text) | {0}
    split = _find_long_runs(isolated)
    matched = dropped | split
    table = {
        chr(point): "".join(f" {letter} " if ord(letter) in isolated else letter for letter in text)
        for point, text in normal.items()
        if (text != chr(point) or point in isolated) and point not in matched
    }
    word = f"[^ {_format_class(split)}]"
    normalizers = [
        _make_replace(f"[{_format_class(dropped)}]", ""),
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(compile_charsmap(table)).decode()},
        _make_replace(f"(?<!{word}){word}{{{max_characters + 1},}}", _UNKNOWN),
    ]
    splitters = [_make_split(" +", "Removed"), _make_split(f"[{_format_class(split)}]", "Isolated")]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitters},
    }


def _normalize_characters(rules: dict[str, Any]) -> dict[int, str]:
    """Return what BERT's normalizer makes of each code point."""
    from tokenizers.normalizers import BertNormalizer

    normalizer = BertNormalizer(**{name: value for name, value in rules.items() if name != "type"})
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000 and point != ord(_SEPARATOR)]
    texts = normalizer.normalize_str(_SEPARATOR.join(map(chr, points))).split(_SEPARATOR)
    return dict(zip(points, texts, strict=True)) | {ord(_SEPARATOR): _SEPARATOR}


def _find_isolated(normal: Mapping[int, str]) -> set[int]:
    """Return the code points that are always a word: the normalizer isolates ideographs, the splitter punctuation."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    ideographs = {point for point, text in normal.items() if text == f" {chr(point)} "}
    # Other letters (Lo) and unassigned characters (Cn) are never punctuation, and there are a million of them.
    candidates = (point for point, text in normal.items() if text == chr(point))
    words = (f"a{chr(point)}a" for point in candidates if unicodedata.category(chr(point)) not in ("Lo", "Cn"))
    pieces = (piece for piece, _ in BertPreTokenizer().pre_tokenize_str(" ".join(words)))
    return ideographs | {ord(piece) for piece in pieces if len(piece) == 1 and piece != "a"}


def _find_runs(points: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and last code point of each run of consecutive code points."""
    ordered = enumerate(sorted(points))
    groups = [list(group) for _, group in itertools.groupby(ordered, lambda pair: pair[1] - pair[0])]
    return [(group[0][1], group[-1][1]) for group in groups]


def _find_long_runs(points: Iterable[int]) -> set[int]:
    """Return the code points in long runs, and those of ASCII, which a regular expression finds fastest."""
    runs = ((first, last) for first, last in _find_runs(points) if last < 128 or last - first >= _LONG_RUN)
    return {point for first, last in runs for point in range(first, last + 1)}


def _format_class(points: Iterable[int]) -> str:
    return "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in _find_runs(points))


def _make_replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _make_split(pattern: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def compile_charsmap(table: Mapping[str, str]) -> bytes:
    """Return a table of replacements in the compiled form of sentencepiece's normalizer.

    The form is the size of a double array in bytes (uint32), the array over the UTF-8 bytes of the keys, and the
    values, each with a NUL at its end. Keys and values must not contain NUL.
    """
    tree: _Node = {}
    values = bytearray()
    for key, value in table.items():
        node = tree
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = len(values)
        values += value.encode() + b"\0"
    units = _build_double_array(tree)
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + values


def _build_double_array(tree: _Node) -> list[int]:
    """Return the units, uint32, of a trie in the layout of Darts-clone (github.com/s-yata/darts-clone).

    If the children of a node start at s, the child for byte b is the unit at s xor b. A unit holds its byte, whether a
    key ends here (bit 8), and from bit 10 its own index xor the start of its children. No two nodes have the same
    start, because a lookup compares only the byte.
    """
    units, taken, starts = [0] * 256, {0}, set[int]()
    lowest, pending = 1, [(tree, 0)]
    while pending:
        node, index = pending.pop()
        while lowest in taken or lowest in starts:
            lowest += 1
        # A large node goes near the end; small nodes fill the gaps.
        candidates = itertools.count(lowest if len(node) == 1 else max(lowest, len(units) - 1024))
        start = next(at for at in candidates if at not in starts and all(at ^ byte not in taken for byte in node))
        starts.add(start)
        taken.update(start ^ byte for byte in node)
        units.extend([0] * ((start | 255) + 1 - len(units)))
        units[index] |= (index ^ start) << 10 | (0 in node) << 8
        for byte, child in node.items():
            units[start ^ byte] = byte if byte else child | 1 << 31
        pending.extend((child, start ^ byte) for byte, child in node.items() if byte)
    return units


def _lift_byte_limit(converted: ov.Model, max_characters: int) -> None:
    """Raise the limit of a word in bytes above the normalizer's limit in characters."""
    for node in converted.get_ordered_ops():
        if node.get_type_name() == "WordpieceTokenizer":
            node.set_attribute("max_bytes_per_word", 4 * max_characters)


def expose_ragged_ids(converted: ov.Model, path: Path) -> ov.Model:
    """Return the part of a converted tokenizer before padding, without truncation.

    A tokenizer that pads at once, as those of sentencepiece do, keeps its outputs `input_ids` and `attention_mask`.
    Raise `ModelError` if the graph has an unknown shape.
    """
    combined = [node for node in converted.get_ordered_ops() if node.get_type_name() == "CombineSegments"]
    if not combined:
        return _expose_padded_ids(converted, path)
    last = combined[-1]
    for node in (port.get_source_output().get_node() for port in last.inputs()):
        _lift_truncation(node)
    return _make_model(converted, {"begins": last.output(0), "ends": last.output(1), "ids": last.output(2)})


def _lift_truncation(node: ov.Node) -> None:
    """Remove the limit of tokens at a node before CombineSegments, where converters since 2024 put it."""
    if node.get_type_name() == "Truncate":
        node.input(3).replace_source_output(op.constant(np.int32(2**31 - 1)).output(0))
    elif node.get_type_name() == "Add":
        # Up to 2025: the end is the begin plus the minimum of the length and the limit.
        for limited in (port.get_source_output().get_node() for port in node.inputs()):
            if limited.get_type_name() == "Minimum":
                limited.input(1).replace_source_output(op.constant(np.int32(2**31 - 1)).output(0))


def _expose_padded_ids(converted: ov.Model, path: Path) -> ov.Model:
    outputs = {name: output for output in converted.outputs for name in output.get_names()}
    if not {"input_ids", "attention_mask"} <= set(outputs):
        raise ModelError(f"could not convert {path} because Vecmill does not support this kind")
    sources = {name: outputs[name].get_node().input_value(0) for name in ("input_ids", "attention_mask")}
    return _make_model(converted, sources)


def _make_model(converted: ov.Model, outputs: dict[str, Any]) -> ov.Model:
    """Return a part of a graph."""
    results = []
    for name, output in outputs.items():
        result = op.result(output)
        result.output(0).set_names({name})
        results.append(result)
    return ov.Model(results, converted.get_parameters(), "tokenizer")
