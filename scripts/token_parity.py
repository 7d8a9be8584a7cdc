"""`scripts/token_parity`: compare token ids and speed of tokenizers with Hugging Face's `tokenizers` library.

The reference is the library with the settings of tokenizer_config.json. It is compared with the tokenizer that a worker
loads, and with the plain conversion of openvino-tokenizers. All run on one CPU, and times are CPU times.
"""

import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from broker.shared.flags import FlagParser  # noqa: E402  after the path is set

#: No limit on the number of token ids or on the length of an input.
NO_LIMIT = 2**31 - 1
#: Texts in one call.
BATCHES = (1, 32)
SIGNS = (
    "",
    " ",
    "\n\t ",
    "\0",
    "a\0b",
    "e\u0301 \u0301 a\u0323\u0308 \u1100\u1161\u11a8",
    "\u0639\u064e\u0651 \u0634\u0651\u064e",  # a shadda before and after a vowel
    "👩\u200d👩\u200d👧 🇩🇪 ☕\ufe0f 🏴\U000e0067\U000e007f",
    "\u202eabc\u202c שלום\u200f مرحبا",
    "a\u200bb\ufeffc\u00ad \x85\xa0\u2028\u3000",
    "....",
    "!!!!????",
    "ﬁ ½ ① ㎏ ﷺ ｱ",
    "İ \u0131 ß ẞ \u039f\u0394\u039f\u03a3 \u03a3",
    "x" * 5000,
    "word " * 5000,
    " " * 5000,
    "\ue000 \U000f0000 \ufffd \uffff",
    "\r\n\r\n  a  b   c\t\td",
    "1234567 1,000.00 ٣٤٥",
)


def list_nasty_texts(library: Any) -> list[str]:
    """Return texts that tokenizers often treat differently, also around the tokenizer's own special tokens."""
    tokens = [token.content for token in library.get_added_tokens_decoder().values()]
    chosen = [*tokens[:8], *tokens[-8:]]
    mixed = [f"{before}{token}{after}" for token in chosen for before in ("", "a", " ") for after in ("", "b", " c")]
    letters = random.Random(0)
    points = [point for point in range(0x30000) if not 0xD800 <= point < 0xE000]
    noise = ["".join(map(chr, letters.choices(points, k=20))) for _ in range(300)]
    return [
        *SIGNS,
        *(f"a {sign} b" for sign in SIGNS),
        *mixed,
        *("".join(pair) for pair in zip(mixed, noise, strict=False)),
        *noise,
    ]


def convert_plainly(library: Any, into: Path) -> Path | None:
    """Return the IR that openvino-tokenizers makes of a tokenizer, or None if it fails."""
    import openvino as ov
    import openvino_tokenizers
    from transformers import PreTrainedTokenizerFast

    from workers.models.tokenizers import expose_ragged_ids

    path = into / "plain.xml"
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=library)  # type: ignore[no-untyped-call]
        converted = openvino_tokenizers.convert_tokenizer(tokenizer)
        ov.save_model(expose_ragged_ids(converted, path), path, compress_to_fp16=False)
    except Exception as error:  # whatever the converter raises is a result
        print(f"openvino-tokenizers: {error}", file=sys.stderr)
        return None
    return path


def measure_speed(tokenizer: Any, texts: Sequence[str], batch: int) -> float:
    """Return texts per second of CPU time, the best of three runs."""
    times = []
    for _ in range(3):
        started = time.process_time()
        for start in range(0, len(texts), batch):
            tokenizer.encode_texts(texts[start : start + batch])
        times.append(time.process_time() - started)
    return len(texts) / min(times)


def compare(folder: Path, texts: Sequence[str]) -> Iterable[str]:
    """Yield the table's rows of one model folder."""
    from workers.engine.tokenizer import Tokenizer
    from workers.models.library import Job, load_tokenizer
    from workers.models.tokenizer_files import write_from

    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch)
        job = Job(str(folder), str(into / "tokenizer.json"), NO_LIMIT, NO_LIMIT, special_tokens=True)
        library = load_tokenizer(job)
        library.save(str(into / "library.json"))
        everything = [*texts, *list_nasty_texts(library)]
        expected = [encoding.ids for encoding in library.encode_batch(everything)]
        served = write_from(job)
        paths = {"library": into / "library.json", "plain conversion": convert_plainly(library, into)}
        if served.suffix == ".xml":
            paths["Vecmill's conversion"] = served
        for name, path in paths.items():
            if path is None:
                continue
            started = time.process_time()
            tokenizer = Tokenizer(path)
            load_s = time.process_time() - started
            found = tokenizer.encode_texts(everything)
            differing = sum(ids.tolist() != wanted for ids, wanted in zip(found, expected, strict=True))
            speeds = " | ".join(f"{measure_speed(tokenizer, texts[::10], batch):,.0f}" for batch in BATCHES)
            yield f"| {folder.name} | {name} | {differing} of {len(everything)} | {speeds} | {load_s:.2f} |"


def main() -> None:
    """Run the command."""
    parser = FlagParser(prog="scripts/token_parity", description=__doc__.split("\n")[0].split(": ")[1])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="model folder with a tokenizer")
    default = [ROOT / "tests" / "data" / name for name in ("queries.jsonl", "mixed.jsonl")]
    parser.add_argument("--texts", type=Path, nargs="+", default=default, help="files of JSON lines with a field text")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    warnings.simplefilter("ignore")
    try:
        texts = [json.loads(line)["text"] for path in options.texts for line in path.read_text().splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"token_parity: could not read --texts: {error}; set files of JSON lines with a field text\n")
        sys.exit(2)
    if missing := [folder for folder in options.folders if not folder.is_dir()]:
        sys.stderr.write(f"token_parity: the model folder {missing[0]} does not exist\n")
        sys.exit(2)
    print("| folder | tokenizer | texts with other ids | texts per CPU second, one a call | 32 a call | load s |")
    print("|---|---|---|---|---|---|")
    for folder in options.folders:
        for row in compare(folder.absolute(), texts):
            print(row, flush=True)


if __name__ == "__main__":
    main()
