"""What an OpenAI-compatible server can do for this path: the checks of `compllm doctor --url`.

With the same kind of answers as doctor.py. The settings name the base, the tokenizer and the
adapters, as they do for `ask`.
"""

from __future__ import annotations

import asyncio

from compllm.backends import openai_probe
from compllm.backends.select import connect_own, is_http
from compllm.cli.doctor import Check
from compllm.cli.shared import found_config
from compllm.config import Config, load_config
from compllm.errors import BackendError, ConfigError
from compllm.served import catalogue_of


def examine_url(url: str) -> tuple[Check, ...]:
    """Every check. A server that cannot be used is one missing check, with its error."""
    if not is_http(url):
        remedy = "give http://host:port; `compllm status` shows a Triton"
        return (Check("server", "missing", f"{url} is no http URL", remedy),)
    try:
        config = load_config(found_config(None), {"server.url": url})
        return tuple(asyncio.run(_checks(url, config)))
    except (ConfigError, BackendError) as error:
        return (Check("server", "missing", str(error)),)


async def _checks(url: str, config: Config) -> list[Check]:
    from compllm.backends.openai import OpenAIBackend

    catalogue = catalogue_of(config)
    backend = await connect_own(url, config.server, catalogue)
    assert isinstance(backend, OpenAIBackend)  # is_http
    await backend.aclose()
    names = ", ".join(each.name for each in catalogue.adapters) or "none"
    return [
        *(Check(name, "ok", found) for name, found in openai_probe.rows(backend.can).items()),
        Check("adapters", "ok", f"{names}: all are models there"),
    ]
