"""`scripts/count_words`: print figures of names, docstrings and words, to compare Vecmill with other codebases.

Names: share of functions named by one word, and length of names. Docstrings: share of the functions that return or
raise something and document it. Words: frequency per 10,000 words of docstrings, comments and Markdown.
"""

import argparse
import ast
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ["broker", "workers", "frontend", "docs", "README.md", "ARCHITECTURE.md"]
#: Highest frequencies in h11, httpcore, uvicorn, dramatiq, mosec, distributed and sanic.
UPPER_BOUNDS = {
    "tell|told|tells": 6.2,
    "say|says|said": 6.2,
    "whom|whose": 1.0,
    "ask|asked": 2.9,
    "nothing": 2.6,
    "beside": 0.3,
    "(?<=[a-z], )for(?= (?:it|they|he|the|a|an|what|that|this|no|one|each)\\b)": 1.0,
    "so many|so long": 1.8,
    "anew|let in": 0.0,
}
#: Lowest frequencies in the same codebases.
LOWER_BOUNDS = {"return|returns": 11.8, "raise|raises": 6.6}
MAX_LINES = 350
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Print the figures of the given files and folders."""
    text = "Print figures of names and words."
    parser = argparse.ArgumentParser(prog="scripts/count_words", description=text, allow_abbrev=False)
    parser.add_argument(
        "paths", nargs="*", default=PRODUCT, help="files and folders (default: the product and its docs)"
    )
    roots = [ROOT / name for name in parser.parse_args().paths]
    files = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    modules = {path: path.read_text() for path in files if path.suffix == ".py"}
    print_names([node for source in modules.values() for node in list_functions(source)])
    texts = [text for source in modules.values() for text in list_prose(source)]
    texts += [path.read_text() for path in files if path.suffix == ".md"]
    print_frequencies("\n".join(texts))
    lines = {path.relative_to(ROOT): source.count("\n") for path, source in modules.items()}
    for path, number in lines.items():
        if number > MAX_LINES:
            print(f"{path} has {number} lines")
    print(f"{sum(lines.values())} lines of Python")


def list_functions(source: str) -> Iterator[Function]:
    """Yield all functions of a module except `__magic__` methods."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and not (node.name.startswith("__") and node.name.endswith("__")):
            yield node


def print_names(functions: list[Function]) -> None:
    """Print figures of the names and docstrings of functions."""
    names = [node.name.strip("_") for node in functions]
    if not names:
        return
    lengths = list(map(len, names))
    print(
        f"{len(names)} functions; names of one word {sum('_' not in name for name in names) / len(names):.0%}; ", end=""
    )
    print(f"length of names: median {statistics.median(lengths):.0f}, mean {statistics.mean(lengths):.1f}")
    for word, has_statement in (("return", returns_value), ("raise", raises_error)):
        docstrings = [ast.get_docstring(node) for node in functions if has_statement(node)]
        documented = [text for text in docstrings if text]
        count = sum(re.search(rf"\b{word}", text, re.IGNORECASE) is not None for text in documented)
        print(f"{len(documented)} functions with a docstring {word} something; {count} docstrings have the word")


def list_statements(function: Function) -> Iterator[ast.AST]:
    """Yield the nodes of a function's body without those of nested functions and classes."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def returns_value(function: Function) -> bool:
    """Return whether a function returns a value."""
    return any(isinstance(node, ast.Return) and node.value is not None for node in list_statements(function))


def raises_error(function: Function) -> bool:
    """Return whether a function raises a new error, which `raise` alone does not."""
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in list_statements(function))


def list_prose(source: str) -> Iterator[str]:
    """Yield all docstrings and comments of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and (text := ast.get_docstring(node)):
            yield text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def print_frequencies(text: str) -> None:
    """Print the frequencies of words and their bounds."""
    words = max(1, len(re.findall(r"[A-Za-z']+", text)))
    print(f"{words} words; per 10,000:")
    for pattern, bound in (UPPER_BOUNDS | LOWER_BOUNDS).items():
        count = len(re.findall(rf"\b(?:{pattern})\b", text, re.IGNORECASE))
        sign = "at least" if pattern in LOWER_BOUNDS else "at most"
        label = ", for the …" if pattern.startswith("(") else pattern
        print(f"  {label:<20} {count / words * 10_000:6.1f}  ({sign} {bound})")


if __name__ == "__main__":
    main()
