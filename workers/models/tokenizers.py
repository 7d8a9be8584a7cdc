"""tokenizer.json to OpenVINO tokenizer IR. Imports transformers, which takes a second: only for a model's first use.

The IR takes texts and gives their ids, neither truncated nor padded: `begins` and `ends` [texts] say where each
text's ids are in `ids`.

openvino-tokenizers' own conversion of BERT's rules is not exact: it folds case where BERT lower-cases (a final sigma
becomes another letter, the micro sign a mu), takes other sets of ideographs and of punctuation, keeps private
characters, and counts the bytes of a word where BERT counts its characters. So the tokenizer itself is asked what it
does to each character of Unicode, and the converter is given the answers as a table.
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
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.models.folder import ModelError, ModelFolder

#: Runs of characters as long as this go into a regular expression, the others into the table.
_LONG_RUN = 256
#: Between characters that are normalised in one call. No other character becomes it.
_BETWEEN = "|"
#: What a word of too many characters becomes: a private character, which is in no vocabulary.
_UNKNOWN = "\ue000"

#: A node of a trie: children by the next byte of the key; under 0 the value's place, if a key ends here.
_Node = dict[int, Any]


def convert_tokenizer(folder: ModelFolder) -> ov.Model:
    """The tokenizer of a folder; ModelError when it is of a kind that openvino-tokenizers cannot convert."""
    # transformers warns that PyTorch is missing, which is as it should be.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino_tokenizers
        import tokenizers
        from transformers import PreTrainedTokenizerFast

        try:
            spec = json.loads(folder.tokenizer.read_bytes())
            if is_bert := _is_bert(spec):
                rules = json.dumps(spec["normalizer"], sort_keys=True)
                spec |= _rules_as_tables(rules, spec["model"]["max_input_chars_per_word"])
            exact = tokenizers.Tokenizer.from_str(json.dumps(spec))
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=exact)  # type: ignore[no-untyped-call]
            converted = openvino_tokenizers.convert_tokenizer(tokenizer)
        except Exception as error:  # a library's many kinds of refusal, all of which are about this one file
            raise ModelError(f"{folder.tokenizer} cannot be converted: {error}") from error
    if is_bert:
        _lift_byte_limit(converted, spec["model"]["max_input_chars_per_word"])
    return _ragged(converted, folder)


def _is_bert(spec: dict[str, Any]) -> bool:
    parts = [(spec.get(name) or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")]
    return parts == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and bool(spec["normalizer"]["clean_text"])


@functools.cache  # asking takes a second, and most models have the same rules
def _rules_as_tables(rules: str, max_characters: int) -> dict[str, Any]:
    """The normaliser (its JSON) and the splitter of BERT, said with a table and four regular expressions."""
    normal = _normalised(json.loads(rules))
    alone = _stand_alone(normal)
    # A NUL ends a key of the table, so it cannot be in one.
    dropped = _long_runs(point for point, text in normal.items() if not text) | {0}
    split = _long_runs(alone)
    elsewhere = dropped | split
    table = {
        chr(point): "".join(f" {one} " if ord(one) in alone else one for one in text)
        for point, text in normal.items()
        if (text != chr(point) or point in alone) and point not in elsewhere
    }
    word = f"[^ {_class(split)}]"
    normalizers = [
        _replace(f"[{_class(dropped)}]", ""),
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(compile_charsmap(table)).decode()},
        _replace(f"(?<!{word}){word}{{{max_characters + 1},}}", _UNKNOWN),
    ]
    splitters = [_split(" +", "Removed"), _split(f"[{_class(split)}]", "Isolated")]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitters},
    }


def _normalised(rules: dict[str, Any]) -> dict[int, str]:
    """What each character becomes."""
    from tokenizers.normalizers import BertNormalizer

    normalizer = BertNormalizer(**{name: value for name, value in rules.items() if name != "type"})
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000 and point != ord(_BETWEEN)]
    texts = normalizer.normalize_str(_BETWEEN.join(map(chr, points))).split(_BETWEEN)
    return dict(zip(points, texts, strict=True)) | {ord(_BETWEEN): _BETWEEN}


def _stand_alone(normal: Mapping[int, str]) -> set[int]:
    """The characters that are always a word of their own: ideographs by the normaliser, punctuation by the splitter."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    ideographs = {point for point, text in normal.items() if text == f" {chr(point)} "}
    # Letters outside of these and unassigned characters are never punctuation, and there are a million of them.
    maybe = (point for point, text in normal.items() if text == chr(point))
    words = (f"a{chr(point)}a" for point in maybe if unicodedata.category(chr(point)) not in ("Lo", "Cn"))
    pieces = (piece for piece, _ in BertPreTokenizer().pre_tokenize_str(" ".join(words)))
    return ideographs | {ord(piece) for piece in pieces if len(piece) == 1 and piece != "a"}


def _runs(points: Iterable[int]) -> list[tuple[int, int]]:
    """The first and the last of each run of neighbours."""
    ordered = enumerate(sorted(points))
    groups = [list(group) for _, group in itertools.groupby(ordered, lambda pair: pair[1] - pair[0])]
    return [(group[0][1], group[-1][1]) for group in groups]


def _long_runs(points: Iterable[int]) -> set[int]:
    """Those in long runs, and those of ASCII, which a regular expression finds fastest."""
    runs = ((first, last) for first, last in _runs(points) if last < 128 or last - first >= _LONG_RUN)
    return {point for first, last in runs for point in range(first, last + 1)}


def _class(points: Iterable[int]) -> str:
    return "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in _runs(points))


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def compile_charsmap(table: Mapping[str, str]) -> bytes:
    """A table of replacements in sentencepiece's compiled form: the size of a double array over the UTF-8 of the
    keys, the array, then the values, each ended by a NUL. No key or value has a NUL in it."""
    tree: _Node = {}
    values = bytearray()
    for key, value in table.items():
        node = tree
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = len(values)
        values += value.encode() + b"\0"
    units = _double_array(tree)
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + values


def _double_array(tree: _Node) -> list[int]:
    """Darts-clone's layout: the child for byte b of a node whose children start at s is the unit at s xor b; a unit
    holds its byte, whether a key ends here (bit 8), and from bit 10 its own place xor the start of its children. As
    only the byte is compared, no two nodes have the same start."""
    units, taken, starts = [0] * 256, {0}, set[int]()
    lowest, waiting = 1, [(tree, 0)]
    while waiting:
        node, place = waiting.pop()
        while lowest in taken or lowest in starts:
            lowest += 1
        # Room for a large node is sought near the end only: the small ones fill the gaps.
        sought = itertools.count(lowest if len(node) == 1 else max(lowest, len(units) - 1024))
        start = next(at for at in sought if at not in starts and all(at ^ byte not in taken for byte in node))
        starts.add(start)
        taken.update(start ^ byte for byte in node)
        units.extend([0] * ((start | 255) + 1 - len(units)))
        units[place] |= (place ^ start) << 10 | (0 in node) << 8
        for byte, child in node.items():
            units[start ^ byte] = byte if byte else child | 1 << 31
        waiting.extend((child, start ^ byte) for byte, child in node.items() if byte)
    return units


def _lift_byte_limit(converted: ov.Model, max_characters: int) -> None:
    """The limit in characters is the normaliser's; the limit in bytes must not come before it."""
    for node in converted.get_ordered_ops():
        if node.get_type_name() == "WordpieceTokenizer":
            node.set_attribute("max_bytes_per_word", 4 * max_characters)


def _ragged(converted: ov.Model, folder: ModelFolder) -> ov.Model:
    """Take the ids where they are still ragged, and never truncate."""
    by_type: dict[str, list[Any]] = {}
    for node in converted.get_ordered_ops():
        by_type.setdefault(node.get_type_name(), []).append(node)
    combined, truncations = by_type.get("CombineSegments", []), by_type.get("Truncate", [])
    if len(combined) != 1 or len(truncations) > 1:
        raise ModelError(f"{folder.tokenizer} is converted to a graph of an unknown shape")
    for truncation in truncations:
        truncation.input(3).replace_source_output(op.constant(np.int32(2**31 - 1)).output(0))
    results = []
    for name, number in (("begins", 0), ("ends", 1), ("ids", 2)):
        result = op.result(combined[0].output(number))
        result.output(0).set_names({name})
        results.append(result)
    return ov.Model(results, converted.get_parameters(), "tokenizer")
