"""Fixtures shared by all tests. They import heavy libraries themselves: collecting stays quick."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import MakeAdapter

from compllm import paths

if TYPE_CHECKING:
    from compllm.routing.embed import SentenceEncoder

_TOKENIZER_KEYS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    # Wider than the usual 0.02: with so few layers the logits would hardly differ.
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def base_dir() -> Path:
    """The fetched base checkpoint (SmolLM2-135M-Instruct). `make test` fetches it first."""
    if not (paths.default_base_dir() / "fetched.json").is_file():
        pytest.fail("no base model in the cache: run `python build_scripts/fetch_base.py` first")
    return paths.default_base_dir()


@pytest.fixture(scope="session")
def encoder_dir() -> Path:
    """The fetched sentence encoder (all-MiniLM-L6-v2). `make test` fetches it first."""
    if not (paths.encoder_dir() / "fetched.json").is_file():
        pytest.fail("no encoder in the cache: run `python build_scripts/fetch_base.py` first")
    return paths.encoder_dir()


@pytest.fixture(scope="session")
def encoder_model(encoder_dir: Path) -> tuple[Any, str]:
    """What `SentenceEncoder.load` loads and hashes, in a second: once for all tests."""
    from compllm.routing.embed import OpenVINOEncoder, encoder_id, find_ir, sentence_transformer

    source = encoder_id(encoder_dir)
    ir = find_ir(encoder_dir, source)
    return OpenVINOEncoder(ir) if ir else sentence_transformer(encoder_dir), source


@pytest.fixture
def encoder(encoder_model: tuple[Any, str]) -> SentenceEncoder:
    """The real encoder, without any vector kept."""
    from compllm.routing.embed import SentenceEncoder

    return SentenceEncoder(*encoder_model)


@pytest.fixture
def loaded_encoder(
    encoder_model: tuple[Any, str], encoder_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SentenceEncoder.load` takes the model that the tests have loaded."""
    from compllm.routing.embed import SentenceEncoder

    def again(path: Path) -> SentenceEncoder:
        assert path.samefile(encoder_dir)
        return SentenceEncoder(*encoder_model)

    async def load(path: Path) -> SentenceEncoder:
        return again(path)

    monkeypatch.setattr(SentenceEncoder, "load", load)


@pytest.fixture(scope="session")
def tiny_checkpoint(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers with random fp32 weights (seed 0) and the real base's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
    ids: dict[str, Any] = {key: config[key] for key in _TOKENIZER_KEYS}
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny-llama"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**_TINY, **ids))  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base_dir / name, directory / name)
    return directory


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """Make a PEFT LoRA directory with non-zero random factors:

        make_adapter(checkpoint, "chemistry", rank=8, modules=("q_proj",), alpha=16, seed=1)

    `scale` is the standard deviation of B (A keeps peft's own start): raise it until tokens change.
    Further keywords go to peft's LoraConfig (rank_pattern, use_rslora, ...).
    """

    def make(
        checkpoint: Path,
        name: str = "adapter",
        *,
        rank: int = 4,
        modules: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
        alpha: int | None = None,
        seed: int = 0,
        scale: float = 0.05,
        **lora: Any,
    ) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        directory = tmp_path_factory.mktemp("adapters") / name
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's own, about odd configurations
            torch.manual_seed(seed)
            model = get_peft_model(
                AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
                LoraConfig(
                    r=rank,
                    lora_alpha=2 * rank if alpha is None else alpha,
                    target_modules=list(modules),
                    task_type="CAUSAL_LM",
                    **lora,
                ),
            )
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    torch.nn.init.normal_(parameter, std=scale)
        model.save_pretrained(str(directory))
        return directory

    return make


@pytest.fixture(scope="session")
def engine_dir(
    tiny_checkpoint: Path,
    make_adapter: MakeAdapter,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Adapters `chemistry` and `biology` on a tiny Llama with the real base's tokenizer."""
    from compllm.build_scripts.build_openvino import AdapterSource, build_engine

    out = tmp_path_factory.mktemp("engines") / "tiny"
    sources = [
        AdapterSource(make_adapter(tiny_checkpoint, name, seed=seed, scale=1.0), name)
        for seed, name in enumerate(("chemistry", "biology"))
    ]
    # fp16 weights are computed with in float32: the same tokens alone and in any batch.
    build_engine(tiny_checkpoint, sources, out, "fp16")
    return out


@pytest.fixture(scope="session")
def task_ids(engine_dir: Path) -> dict[str, int]:
    """lora_task_id by adapter name."""
    from compllm.formats.manifest import Manifest

    return {entry.name: entry.task_id for entry in Manifest.read(engine_dir).adapters}


@pytest.fixture
def fresh_home(engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user of their own, whose server is stopped in the end. After `engine_dir`, which reads the
    real one's cache."""
    from compllm.errors import ServerError
    from compllm.server import triton_server

    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    yield tmp_path
    with contextlib.suppress(ServerError):
        triton_server.down()
