"""Write the golden folders of `tests/data/sentences`: whole models, and their vectors by sentence-transformers.

`python scripts/make_golden_sentences.py` needs torch and sentence-transformers, in a virtual environment of its own.
The stored set was made with torch 2.13.0 and sentence-transformers 6.2.0, which does not strip white space from texts.

Each folder is one that sentence-transformers saves, with the weights of a golden model of `tests/data/families` (a
link) and a small tokenizer that was trained on the texts. `vectors.json` has the texts, and the vectors by prompt.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from make_goldens import FAMILIES
from sentence_transformers import SentenceTransformer, models
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import PreTrainedTokenizerFast

SENTENCES = FAMILIES.parent / "sentences"
TEXTS = [
    "a",
    "The cat sat on the mat.",
    "Die Katze sitzt auf der Matte, und der Hund schläft.",
    "What is the capital of France? Paris is the capital of France.",
    "SHOUTING and whispering: MiXeD case",
    "numbers 1234567890 and signs (a+b)*c",
    "line one\nline two",
    "the cat and the dog and the mat and the hat " * 12 + "end",
]


class Sentence(NamedTuple):
    """How a golden folder is made."""

    family: str
    pooling: str
    train: Callable[[], tuple[Tokenizer, dict[str, str]]]
    max_tokens: int
    #: Output size and activation of each Dense module, which has no bias if it has no activation.
    dense: tuple[tuple[int, str], ...] = ()
    normalize: bool = True
    prompts: dict[str, str] | None = None
    include_prompt: bool = True
    padding_side: str = "right"


def train_word_piece() -> tuple[Tokenizer, dict[str, str]]:
    """Return BERT's tokenizer, uncased."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer, {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def train_unigram() -> tuple[Tokenizer, dict[str, str]]:
    """Return a tokenizer with the special tokens of XLM-RoBERTa, where padding is 1."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=190, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    return tokenizer, {"pad_token": "<pad>", "unk_token": "<unk>", **names}


def train_byte_pairs() -> tuple[Tokenizer, dict[str, str]]:
    """Return a tokenizer like Qwen3-Embedding's: the token at the end of each text is also the padding."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<a>", "<b>", "<c>", "<|endoftext|>"]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", 3)]
    )
    return tokenizer, {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}


def train_gemma() -> tuple[Tokenizer, dict[str, str]]:
    """Return a tokenizer like EmbeddingGemma's: blanks become another character, one token before and one after."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return tokenizer, {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}


FOLDERS = {
    "labse": Sentence("bert", "cls", train_word_piece, 32, dense=((64, "Tanh"),)),
    "distiluse": Sentence("distilbert", "mean", train_word_piece, 24, dense=((48, "Tanh"),), normalize=False),
    "multilingual-e5": Sentence("xlm-roberta", "mean", train_unigram, 512),
    "instructor": Sentence(
        "xlm-roberta", "mean", train_unigram, 64, prompts={"query": "the cat: ", "none": ""}, include_prompt=False
    ),
    "qwen3-embedding": Sentence(
        "qwen3",
        "lasttoken",
        train_byte_pairs,
        40,
        prompts={"query": "What is the capital\nquery:", "document": ""},
        padding_side="left",
    ),
    "embeddinggemma": Sentence(
        "gemma3_text",
        "mean",
        train_gemma,
        12,
        dense=((96, ""), (64, "")),
        prompts={"query": "the mat | query: ", "document": "title: none | text: "},
    ),
    "gte-modernbert": Sentence("modernbert", "cls", train_byte_pairs, 128, normalize=False),
}  # fmt: skip


def make_folder(name: str, recipe: Sentence) -> None:
    """Write one golden folder."""
    folder = SENTENCES / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        for file in ("config.json", "model.safetensors"):
            shutil.copy(FAMILIES / recipe.family / file, source / file)
        tokenizer, special = recipe.train()
        side = recipe.padding_side
        fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizer, padding_side=side, **special
        )
        fast.save_pretrained(source)
        transformer = models.Transformer(scratch, max_seq_length=recipe.max_tokens)
        for module in transformer.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = "eager"
        model = SentenceTransformer(modules=[transformer, *_make_modules(recipe)], device="cpu", prompts=recipe.prompts)
        model.float()  # the stored type is the default
        model.save(str(folder), create_model_card=False)
        shutil.copy(source / "config.json", folder / "config.json")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(f"../../families/{recipe.family}/model.safetensors")
    vectors = {
        prompt: model.encode(TEXTS, batch_size=1, prompt=text).astype(float).round(9).tolist()
        for prompt, text in {"": "", **(recipe.prompts or {})}.items()
    }
    (folder / "vectors.json").write_text(json.dumps({"texts": TEXTS, "vectors": vectors}) + "\n")


def _make_modules(recipe: Sentence) -> list[Any]:
    modules: list[Any] = [models.Pooling(64, recipe.pooling, include_prompt=recipe.include_prompt)]
    size = 64
    for out, activation in recipe.dense:
        function = getattr(torch.nn, activation or "Identity")()
        dense = models.Dense(size, out, bias=bool(activation), activation_function=function)
        with torch.no_grad():
            for parameter in dense.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        modules.append(dense)
        size = out
    return [*modules, models.Normalize()] if recipe.normalize else modules


def main() -> None:
    """Make all golden folders."""
    torch.set_num_threads(1)
    for name, recipe in FOLDERS.items():
        make_folder(name, recipe)
        print(name, flush=True)


if __name__ == "__main__":
    main()
