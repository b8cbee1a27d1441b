"""The tokenizer's files beside a checkpoint: are they usable, which tokens end a text, and does the
tokenizer have the special tokens of the chat template that prompts are written with?
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compllm.errors import ArtefactError, ConfigError
from compllm.formats.json_files import read_json
from compllm.formats.model_config import id_list
from compllm.prompts import TEMPLATES, ChatTemplate

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")  # always needed
OPTIONAL_TOKENIZER_FILES = ("chat_template.jinja", "special_tokens_map.json")  # copied when there


def check_tokenizer(directory: Path, vocab: int) -> None:
    """Raises ArtefactError unless the files hold a tokenizer whose ids the model has."""
    for file in TOKENIZER_FILES:
        read_json(directory / file)
    path = directory / "tokenizer.json"
    try:
        ids = _load(directory).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception
        raise ArtefactError(f"{path} is no tokenizer: {error}") from error
    largest = max(ids, key=lambda token: ids[token], default=None)
    if largest is None:
        raise ArtefactError(f"{path} has no tokens")
    if ids[largest] >= vocab:
        raise ArtefactError(
            f"{path} has the token {largest!r} with id {ids[largest]}, config.json's vocab_size is "
            f"{vocab}: remove such tokens, or resize the model's embedding"
        )
    end_ids(directory, vocab)


def end_ids(directory: Path, vocab: int) -> list[int]:
    """What ends a text, in order: tokenizer_config.json's eos token, which in chat models is the
    end of a turn, then the ids of generation_config.json and config.json. May be empty.

    Raises ArtefactError for a file that cannot be read and for ids that are none.
    """
    found = []
    token = _optional(directory / "tokenizer_config.json").get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    if isinstance(content, str) and (directory / "tokenizer.json").is_file():
        number = _load(directory).token_to_id(content)
        found += [] if number is None else [number]
    for name in ("generation_config.json", "config.json"):
        given = _optional(directory / name).get("eos_token_id")
        found += id_list(given, f"{directory / name}: eos_token_id", vocab)
    return list(dict.fromkeys(found))


def check_template(directory: Path, template: ChatTemplate) -> None:
    """Raises ConfigError where the tokenizer would spell the template's special tokens out as text,
    and where the checkpoint's own chat template marks turns with others."""
    tokenizer = _load(directory)
    missing = [each for each in template.tokens if tokenizer.token_to_id(each) is None]
    if missing:
        raise ConfigError(
            f"the catalogue's chat template writes {missing[0]}, which is no token of {directory}: "
            f"{_remedy(lambda other: all(map(tokenizer.token_to_id, other.tokens)))}"
        )
    own = _own_template(directory)
    if own is not None and any(token not in own for token in template.turn_tokens):
        raise ConfigError(
            f"the catalogue's chat template marks turns with {', '.join(template.turn_tokens)}, "
            f"the chat_template of {directory} does not: "
            f"{_remedy(lambda other: all(token in own for token in other.turn_tokens))}"
        )


def _remedy(fits: Any) -> str:
    names = [name for name, other in TEMPLATES.items() if fits(other)]
    if names:
        return f'set template = "{names[0]}" under [base] in the catalogue'
    return (
        f"known templates are {', '.join(TEMPLATES)}: fine-tune the base to one of them, or take "
        "another base"
    )


def _own_template(directory: Path) -> str | None:
    """Jinja text; None where the checkpoint names none. Several: the one that is named default."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    value = _optional(directory / "tokenizer_config.json").get("chat_template")
    if isinstance(value, list):
        named = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _load(directory: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
