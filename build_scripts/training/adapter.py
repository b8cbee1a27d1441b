"""The base with LoRA factors on it, and the finished adapter as files: PEFT's layout in fp16, with
a manifest of how it was made.
"""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compllm.build_scripts.manifest import weights_sha256
from compllm.build_scripts.staging import exclusive, saving, staged_directory
from compllm.build_scripts.training.settings import TrainSettings
from compllm.errors import ConfigError
from compllm.formats.adapters import read_peft
from compllm.formats.checkpoint import validate_checkpoint
from compllm.formats.json_files import read_json
from compllm.formats.shape import model_name

MANIFEST_FILE = "manifest.json"
_FORMAT = "compllm-lora/1"


def fast_precision(device: torch.device) -> str:
    """ "bfloat16" on a GPU and on a processor that multiplies it in tiles (AMX), else "float32".

    With tiles a product takes a quarter of the time.
    """
    is_fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if is_fast else "float32"


def load_trainable(checkpoint: Path, settings: TrainSettings, device: torch.device) -> Any:
    """The frozen base with fresh factors in float32. Raises ArtefactError for a checkpoint that no
    engine could serve."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # A log file would hold a line for each of its strokes.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    validate_checkpoint(checkpoint)
    dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    torch.manual_seed(settings.seed)
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scale_alpha,
        target_modules=list(settings.modules),
        layers_to_transform=(
            list(range(settings.first_layer, base.config.num_hidden_layers))
            if settings.first_layer
            else None
        ),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, about a base that it cannot look up
        model = get_peft_model(base, config)
    model.eval()  # nothing random in the pass: the factors have no dropout
    for parameter in trainable(model).values():
        parameter.data = parameter.data.float()
    return model.to(device)


def start_from(model: Any, adapter: Path, settings: TrainSettings, checkpoint: Path) -> str:
    """Set the factors to a trained adapter's, to go on from there; returns its sha256.

    Raises ArtefactError for a folder that holds no adapter of this base, ConfigError where the
    settings ask for other factors than it has.
    """
    from safetensors.torch import load_file

    shape = replace(validate_checkpoint(checkpoint), sha256=weights_sha256(checkpoint))
    found = read_peft(adapter, shape, adapter.resolve().name)
    config = read_json(adapter / "adapter_config.json")
    if (config["r"], config["lora_alpha"]) != (settings.rank, settings.scale_alpha):
        raise ConfigError(
            f"{adapter} has rank {config['r']} and alpha {config['lora_alpha']}: start from it "
            f"with --rank {config['r']} --alpha {config['lora_alpha']}"
        )
    given = load_file(adapter / "adapter_model.safetensors")
    factors = {name.replace(".default.", "."): value for name, value in trainable(model).items()}
    if given.keys() != factors.keys():
        name = min(given.keys() ^ factors.keys())
        raise ConfigError(f"{adapter} has other factors than these settings train, such as {name}")
    with torch.no_grad():
        for name, value in given.items():
            factors[name].copy_(value)
    return found.sha256


def trainable(model: Any) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def write_adapter(
    out: Path,
    model: Any,
    factors: Mapping[str, Tensor],
    checkpoint: Path,
    record: Mapping[str, Any],
    *,
    name: str = "",
) -> dict[str, Any]:
    """Replace `out` by the adapter and its manifest; returns the manifest. `name`: of the adapter,
    where it is not the folder's.

    It is read back as an engine build reads it, so what is written can be served.
    """
    from safetensors.torch import save_file

    out = out.resolve()
    config = model.peft_config["default"]
    tensors = {
        name.replace(".default.", "."): value.detach().half().contiguous()
        for name, value in factors.items()
    }
    with exclusive(out), staged_directory(out) as partial:
        shape = validate_checkpoint(checkpoint)
        config.base_model_name_or_path = model_name(str(checkpoint))  # no path of this machine
        config.inference_mode = True
        config.save_pretrained(str(partial))
        with saving("writing the adapter", partial):
            save_file(tensors, str(partial / "adapter_model.safetensors"), {"format": "pt"})
        (partial / "adapter_model.safetensors").chmod(0o644)
        adapter = read_peft(partial, shape, name or out.name)
        manifest = {
            "format": _FORMAT,
            "name": adapter.name,
            "lora_task_id": adapter.task_id,
            "sha256": adapter.sha256,
            "base": {"name": shape.name, "sha256": weights_sha256(checkpoint)},
            **record,
            "versions": _versions(),
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (partial / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return manifest


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "peft", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
