"""Print figures of the code's language, to compare Vecmill with other codebases.

Names: functions whose name is one word, and the median length of a function's name. Docstrings: how many of the
functions that return or raise something say so. Words: frequencies per 10,000 words of docstrings, comments and pages.
"""

import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = ["broker", "workers", "frontend"]
#: The highest figures of seven codebases: h11, httpcore, uvicorn, dramatiq, mosec, distributed, sanic.
WORDS = {
    r"tell|told|tells": 6.2,
    r"say|says|said": 6.2,
    r"whom|whose": 1.0,
    r"ask|asked": 2.9,
    r"nothing": 2.6,
    r"beside": 0.3,
    r"(?<=[a-z]), for(?= (?:it|they|he|the|a|an|what|that|this|no|one|each)\b)": 1.0,
    r"so many|so long": 1.8,
    r"anew|let in": 0.0,
}
#: Their lowest figures.
EXPECTED = {r"return|returns": 11.8, r"raise|raises": 6.6}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Print the figures of the folders and pages given, or of the whole product."""
    roots = [ROOT / name for name in sys.argv[1:] or [*PRODUCT, "docs", "README.md", "ARCHITECTURE.md"]]
    files = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    sources = [path for path in files if path.suffix == ".py"]
    print_names([node for path in sources for node in list_functions(path)])
    texts = [text for path in sources for text in list_prose(path)]
    texts += [path.read_text() for path in files if path.suffix == ".md"]
    print_frequencies("\n".join(texts))
    for path in sources:
        if (lines := len(path.read_text().splitlines())) > 350:
            print(f"{path.relative_to(ROOT)} has {lines} lines")
    print(f"{sum(len(path.read_text().splitlines()) for path in sources)} lines of Python")


def list_functions(path: Path) -> Iterator[Function]:
    """Yield all functions of a module, without `__magic__` ones."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function) and not (node.name.startswith("__") and node.name.endswith("__")):
            yield node


def print_names(functions: list[Function]) -> None:
    """Print figures of the functions' names and docstrings."""
    names = [node.name.strip("_") for node in functions]
    if not names:
        return
    single = sum("_" not in name for name in names)
    print(f"{len(names)} functions; names of one word {single / len(names):.0%}; ", end="")
    print(
        f"length of names: median {statistics.median(map(len, names)):.0f}, mean {statistics.mean(map(len, names)):.1f}"
    )
    for word, kind in (("return", ast.Return), ("raise", ast.Raise)):
        documented = [node for node in functions if ast.get_docstring(node) and does(node, kind)]
        said = sum(word in (ast.get_docstring(node) or "").lower() for node in documented)
        print(f"{len(documented)} documented functions {word} something; {said} docstrings have the word")


def does(function: Function, kind: type[ast.Return] | type[ast.Raise]) -> bool:
    """Return whether a function returns a value, or raises, itself."""
    found = [node for node in ast.walk(function) if isinstance(node, kind)]
    return any(not isinstance(node, ast.Return) or node.value is not None for node in found)


def list_prose(path: Path) -> Iterator[str]:
    """Yield all docstrings and comments of a module."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and (text := ast.get_docstring(node)):
            yield text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def print_frequencies(text: str) -> None:
    """Print how often words occur, beside the bound that the figures of other codebases give."""
    words = max(1, len(re.findall(r"[A-Za-z']+", text)))
    print(f"{words} words; per 10,000:")
    for pattern, bound in (WORDS | EXPECTED).items():
        expression = rf"\b(?:{pattern})\b" if pattern[0].isalpha() else pattern
        count = len(re.findall(expression, text, re.IGNORECASE))
        sign = "at least" if pattern in EXPECTED else "at most"
        label = pattern.split("(?= ")[0].removeprefix("(?<=[a-z])")
        print(f"  {label:<20} {count / words * 10_000:6.1f}  ({sign} {bound})")


if __name__ == "__main__":
    main()
