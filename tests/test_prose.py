"""The language of documents, docstrings and comments, as far as a program can check it.

A document has lines of at most 100 columns and sentences of at most 25 words. Documents, docstrings
and comments use none of the words that hide who does what (`VAGUE`). Tables, code blocks and
headings are no sentences. A line of a table, or a command that shows a question, cannot be broken.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_COLUMNS = 100
MAX_WORDS = 25
DOCS = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", *DOCS)
# The folders whose docstrings and comments are checked, except the data sets'.
CODE = ("benchmarks", "build_scripts", "runtime/compllm", "tests")
VAGUE = re.compile(
    r"\b(?:nobody|somebody|whoever|at hand|so many|to be had|(?:come|came|comes) by"
    r"|(?:go|goes|going|went) on with|(?:tell|tells|told)(?!(?: \S+){0,3} apart))\b",
    re.IGNORECASE,
)
_UNBREAKABLE = re.compile(r"\||    .*\?")
_TABLE, _FENCE, _ITEM = (
    re.compile(r"\s*\|"),
    re.compile(r"\s*```"),
    re.compile(r"^\s*(?:[-*]|\d+\.) "),
)
_CODE_OR_LINK = re.compile(r"`[^`]*`|(?<=\])\([^)]*\)")
_SENTENCE_END = re.compile(r"(?<=[.?!:])[*\")]*\s+(?=[^a-z\s])")


def paragraphs(page: str) -> Iterator[tuple[int, str]]:
    """The paragraphs and list items of a page, each in one line, with the number of its first."""
    lines: list[str] = []
    first, is_fenced = 0, False
    for number, line in enumerate([*page.splitlines(), ""], 1):
        is_fence = bool(_FENCE.match(line))
        is_fenced ^= is_fence
        is_block = line.startswith("    ") and not lines
        is_text = not (is_fenced or is_fence or is_block or line.startswith(("#", "<!--")))
        is_text = is_text and bool(line.strip()) and not _TABLE.match(line)
        if lines and (not is_text or _ITEM.match(line)):
            yield first, " ".join(lines)
            lines = []
        if is_text:
            first = first if lines else number
            lines.append(_ITEM.sub("", line, count=1).strip())


def sentences(paragraph: str) -> list[str]:
    """Its sentences; a piece of code counts as one word."""
    return _SENTENCE_END.split(_CODE_OR_LINK.sub(_as_one_word, paragraph))


def _as_one_word(match: re.Match[str]) -> str:
    return "CODE" if match[0].startswith("`") else ""


def num_words(sentence: str) -> int:
    """Words and numbers, without signs that stand alone."""
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Every docstring of a module with the number of its first line."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and (text := ast.get_docstring(node, clean=False)) is not None:
            yield node.body[0].lineno, text


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Every comment of a module with the number of its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def vague_words(text: str, first: int) -> list[str]:
    """Each word of the list in a text, with the number of its line."""
    numbered = enumerate(text.splitlines(), first)
    return [f"{number}: {match[0]}" for number, line in numbered for match in VAGUE.finditer(line)]


def modules() -> list[Path]:
    found = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "datasets" not in path.relative_to(ROOT).parts]


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_a_document_fit_into_100_columns(page: str) -> None:
    lines = enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1)
    wide = [(number, line) for number, line in lines if len(line) > MAX_COLUMNS]
    assert [each for each in wide if not _UNBREAKABLE.match(each[1])] == []


@pytest.mark.parametrize("page", PAGES)
def test_sentences_of_a_document_have_at_most_25_words(page: str) -> None:
    long = [
        f"{number}: {num_words(sentence)} words: {sentence}"
        for number, text in paragraphs((ROOT / page).read_text(encoding="utf-8"))
        for sentence in sentences(text)
        if num_words(sentence) > MAX_WORDS
    ]
    assert long == []


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_documents_name_the_subject(page: str) -> None:
    assert vague_words((ROOT / page).read_text(encoding="utf-8"), 1) == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_comments_name_the_subject(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    texts = (*docstrings(source), *comments(source))
    assert [word for first, text in texts for word in vague_words(text, first)] == []


def test_sentences_are_found_across_lines_and_list_items() -> None:
    page = "# P\n\nOne is\nhere. `Two. x` is\n  too.\n\n- Three: it\n  ends.\n- Four\n\n    Code.\n"
    found = [(number, sentences(text)) for number, text in paragraphs(page)]
    assert found == [(3, ["One is here.", "CODE is too."]), (7, ["Three: it ends."]), (9, ["Four"])]


@pytest.mark.parametrize(
    ("text", "count"),
    [("It tells nobody.", 2), ("They cannot tell them apart.", 0), ("So many\ncame by.", 2)],
)
def test_vague_words_are_found(text: str, count: int) -> None:
    assert len(vague_words(text, 1)) == count
