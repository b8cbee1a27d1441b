"""Which backend a server needs: by its URL, and of a Triton by the model's own configuration.

Stands before `openai.py`, `triton.py`, `llmapi.py` and `endpoints.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compllm.backend import Backend
from compllm.backends.attempts import ClientOptions
from compllm.backends.channel import CORE_MODEL, model_configs
from compllm.backends.llmapi import LlmApiBackend, is_llmapi, server_adapters
from compllm.backends.llmapi_wire import ServerAdapter
from compllm.backends.model_limits import batch_size_of, seq_len_of
from compllm.backends.triton import TritonBackend
from compllm.catalogue import Catalogue
from compllm.config import ServerConfig
from compllm.errors import ConfigError

if TYPE_CHECKING:
    from compllm.backends.openai import OpenAIBackend

_SCHEMES = ("http://", "https://")


def is_http(url: str) -> bool:
    """Whether `server.url` is that of an OpenAI-compatible server; Triton's has no scheme."""
    return url.startswith(_SCHEMES)


def key_of(variable: str, setting: str = "server.api_key_env") -> str:
    """The key in this environment variable; empty without a variable. Raises ConfigError where it
    is not set."""
    key = os.environ.get(variable, "") if variable else ""
    if variable and not key:
        raise ConfigError(
            f"{setting} names the environment variable {variable}, which is not set: set it for "
            "the client, and for `compllm up`"
        )
    return key


def endpoint_keys(catalogue: Catalogue) -> list[str]:
    """The keys of the experts' servers, in the catalogue's order. Raises ConfigError."""
    return [key_of(each.key_env, "an expert's key_env") for each in catalogue.endpoints]


async def connect_as_set(url: str, server: ServerConfig, catalogue: Catalogue) -> Backend:
    """`connect` by the settings, and the servers of the experts that have one: what the path uses.
    Raises BackendUnavailable, ConfigError."""
    if not catalogue.endpoints:
        return await connect_own(url, server, catalogue)
    from compllm.backends.endpoints import ChatEngine, WithEndpoints  # httpx is for these alone

    engines = list(map(ChatEngine, catalogue.endpoints, endpoint_keys(catalogue)))
    return WithEndpoints(await connect_own(url, server, catalogue), engines)


async def connect_own(
    url: str, server: ServerConfig, catalogue: Catalogue
) -> TritonBackend | LlmApiBackend | OpenAIBackend:
    """The backend of the base and its adapters. Raises BackendUnavailable, ConfigError."""
    root = server.adapters_dir
    if is_http(url):
        if not server.tokenizer:
            raise ConfigError(
                f"server.url is {url}, an OpenAI-compatible server, which names no tokenizer: set "
                "server.tokenizer to the directory of the base's tokenizer.json"
            )
        from compllm.backends.openai import OpenAIBackend  # httpx is for such servers alone

        return await OpenAIBackend.connect(
            url,
            server.tokenizer,
            {each.id: each.name for each in catalogue.adapters},
            base=server.model,
            adapters_dir=root,
            key=key_of(server.api_key_env),
            timeout_s=server.ready_timeout_s,
        )
    return await connect(
        url,
        server.tokenizer or None,
        adapters_dir=root or None,
        server_adapters=server_adapters(catalogue.adapters, root) if root else None,
        other_models=[
            expert.model
            for expert in (catalogue.base, *catalogue.experts)
            if expert.model not in {each.key for each in catalogue.endpoints}
        ],
        timeout_s=server.ready_timeout_s,
    )


async def connect(
    url: str,
    tokenizer_dir: str | Path | None = None,
    *,
    adapters_dir: str | Path | None = None,
    server_adapters: Mapping[int, ServerAdapter] | None = None,
    model: str = CORE_MODEL,
    other_models: Iterable[str] = (),
    options: ClientOptions | None = None,
    timeout_s: float = 10.0,
) -> TritonBackend | LlmApiBackend:
    """A backend for the `tensorrt_llm` model at `url`, which is ready.

    adapters_dir: weights to send, where the engine's cache lacks them. server_adapters: for llmapi,
    which reads them itself. other_models: whose engines are used too, where they are there. Raises
    BackendUnavailable, ConfigError.
    """
    configs = await model_configs(url, timeout_s, model, other_models)
    config = configs[model]
    if not is_llmapi(config):
        return await TritonBackend.for_model(
            url,
            config,
            tokenizer_dir,
            adapters_dir=adapters_dir,
            batch_sizes={name: batch_size_of(each) for name, each in configs.items()},
            seq_lens={name: seq_len_of(each) for name, each in configs.items()},
            options=options,
        )
    if not tokenizer_dir:
        raise ConfigError(
            f"the llmapi model at {url} names no tokenizer: give the directory of its "
            "tokenizer.json"
        )
    return await LlmApiBackend.for_model(
        url, config, tokenizer_dir, server_adapters, options=options
    )
