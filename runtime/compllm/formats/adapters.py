"""LoRA adapters: a PEFT directory in, validated factors out.

`read_peft` stands before the engine build and before loading an adapter live; the engine directory
keeps the result as one .npz per adapter. Nothing needs peft here, and torch only bfloat16 files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compllm.errors import ArtefactError
from compllm.formats.checkpoint import FLOATS
from compllm.formats.peft_config import LoraScales, read_lora_config
from compllm.formats.shape import ATTENTION_MODULES, BaseShape

WEIGHTS_FILE = "adapter_model.safetensors"
_FORMAT = "compllm-adapter/2"
_FORMATS = ("compllm-adapter/1", _FORMAT)  # in the first the scale is folded into b
_MAX_HALF = 65504.0  # engines hold factors in half precision
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TENSOR = re.compile(
    r"(?:base_model\.model\.)?model\.layers\.(?P<layer>\d{1,4})\.(?P<block>self_attn|mlp)"
    r"\.(?P<module>\w+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight"
)
# What trainers leave in names: torch.compile and data-parallel wrappers.
_WRAPPERS = re.compile(
    r"(?<![^.])(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)

Factor = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LoraWeights:
    """The two factors on one linear layer: y += scale (x a^T) b^T."""

    a: Factor  # [rank, inputs]
    b: Factor  # [outputs, rank]
    # alpha / rank. Kept apart, because engines hold b in half precision, where a product with it
    # would be rounded once more.
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def folded_b(self) -> Factor:
        """[outputs, rank], the scale in it."""
        # Infinities are reported by name (check_fits).
        with np.errstate(over="ignore", invalid="ignore"):
            product: Factor = self.b * np.float32(self.scale)
        return product


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One expert's factors. `(layer, module)` pairs that it leaves alone are not there."""

    name: str
    rank: int  # the largest of its modules
    modules: Mapping[tuple[int, str], LoraWeights]
    sha256: str  # of the factors, not of the name

    @property
    def task_id(self) -> int:
        """Its lora_task_id, of name and content: a changed adapter never meets old KV blocks.

        In [1, 2^53): exact in an int64 and in the floating-point numbers of JSON readers.
        """
        digest = hashlib.sha256(f"{self.name}:{self.sha256}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % (2**53 - 1) + 1


def check_adapter_name(name: str) -> str:
    """The name, when it can be a file name and a model name. Raises ArtefactError."""
    if not _NAME.fullmatch(name) or name == "base":
        raise ArtefactError(
            f"adapter name {name[:80]!r} cannot be used: letters, digits, '.', '_' and '-', "
            "at most 64, and not 'base'"
        )
    return name


def read_peft(
    directory: Path, base: BaseShape, name: str | None = None, *, is_same_base: bool = False
) -> Adapter:
    """Read and validate a PEFT LoRA directory for `base`. The name defaults to the directory's.

    is_same_base: take it as made for `base`, whatever name it records. Raises ArtefactError that
    names the adapter and what does not fit.
    """
    name = check_adapter_name(directory.resolve().name if name is None else name)
    if not directory.is_dir():
        raise ArtefactError(f"adapter {name}: {directory} is not a directory")
    try:
        scales = read_lora_config(directory, base, is_same_base=is_same_base)
        modules = _paired(_read_tensors(directory / WEIGHTS_FILE), scales)
        check_fits(modules, base)
    except ArtefactError as error:
        raise ArtefactError(f"adapter {name}: {error}") from error
    return make_adapter(name, modules)


def unwrapped(tensor: str) -> str:
    """A tensor's name without the wrappers of trainers."""
    return _WRAPPERS.sub("", tensor)


def make_adapter(name: str, modules: Mapping[tuple[int, str], LoraWeights]) -> Adapter:
    """An adapter of factors that are validated already, in a fixed order and with its hash."""
    ordered = {key: modules[key] for key in sorted(modules)}
    rank = max(weights.rank for weights in ordered.values())
    return Adapter(name, rank, ordered, _content_hash(ordered))


def check_fits(modules: Mapping[tuple[int, str], LoraWeights], base: BaseShape) -> None:
    """Raises ArtefactError unless every pair of factors fits its layer of `base` and is finite."""
    if not modules:
        raise ArtefactError("it changes no layer")
    shapes = base.module_shapes()
    for (layer, module), weights in modules.items():
        where = f"layer {layer} {module}"
        if module not in shapes:
            raise ArtefactError(f"{where}: only {', '.join(shapes)} can be adapted")
        if not 0 <= layer < base.num_layers:
            raise ArtefactError(f"{where}: the base has layers 0 to {base.num_layers - 1}")
        if weights.a.ndim != 2 or weights.b.ndim != 2:
            raise ArtefactError(
                f"{where}: factors have {weights.a.ndim} and {weights.b.ndim} axes, not 2"
            )
        if weights.rank == 0:
            raise ArtefactError(f"{where}: rank 0")
        num_out, num_in = shapes[module]
        fitting = ((weights.rank, num_in), (num_out, weights.rank))
        if (weights.a.shape, weights.b.shape) != fitting:
            raise ArtefactError(
                f"{where}: A {list(weights.a.shape)} and B {list(weights.b.shape)} do not fit "
                f"the base, which takes A [r, {num_in}] and B [{num_out}, r]"
            )
        for factor in (weights.a, weights.b, weights.folded_b):
            if not np.isfinite(factor).all():
                raise ArtefactError(f"{where}: holds NaN or infinity")
            if (largest := np.abs(factor).max()) > _MAX_HALF:
                raise ArtefactError(
                    f"{where}: a factor, or B times alpha / rank, reaches {largest:.3g}: beyond "
                    f"half precision ({_MAX_HALF:.0f}), in which engines hold adapters"
                )


def save_adapter_npz(path: Path, adapter: Adapter) -> None:
    """Write the converted form as a whole or not at all. OSError passes through."""
    arrays: dict[str, NDArray[Any]] = {
        "about": np.array(
            json.dumps({"format": _FORMAT, "name": adapter.name, "sha256": adapter.sha256})
        )
    }
    for (layer, module), weights in adapter.modules.items():
        arrays[f"{layer}.{module}.a"] = weights.a
        arrays[f"{layer}.{module}.b"] = weights.b
        arrays[f"{layer}.{module}.scale"] = np.array(weights.scale)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as handle:
            np.savez(handle, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_adapter_npz(path: Path, base: BaseShape) -> Adapter:
    """Read what `save_adapter_npz` wrote, all checked again. Raises ArtefactError."""
    try:
        # Opened here: np.load leaves a file it cannot read open.
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as archive:
            about = json.loads(str(archive["about"]))
            pairs: dict[tuple[int, str], dict[str, Factor]] = {}
            for key in archive.files:
                if key != "about":
                    layer, module, factor = key.split(".")
                    pairs.setdefault((int(layer), module), {})[factor] = archive[key]
        modules = {
            key: LoraWeights(pair["a"], pair["b"], float(pair.get("scale", 1.0)))
            for key, pair in pairs.items()
        }
        name, sha256, form = about["name"], about["sha256"], about["format"]
    # RuntimeError: zipfile's word for an encrypted or unknown kind of entry.
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
    ) as error:
        raise ArtefactError(f"{path} is damaged ({error}): build the engine again") from error
    if form not in _FORMATS:
        raise ArtefactError(
            f"{path} has format {form!r}, known is {_FORMAT!r}: build the engine again"
        )
    try:
        check_fits(modules, base)
    except ArtefactError as error:
        raise ArtefactError(f"adapter {name}: {error}") from error
    adapter = make_adapter(check_adapter_name(name), modules)
    if adapter.sha256 != sha256:
        raise ArtefactError(f"{path} is damaged (its hash differs): build the engine again")
    return adapter


def _content_hash(modules: Mapping[tuple[int, str], LoraWeights]) -> str:
    """Of what is computed: the same whether the scale is apart or folded in."""
    digest = hashlib.sha256()
    for (layer, module), weights in modules.items():
        for factor in (weights.a, weights.folded_b):
            digest.update(f"{layer}.{module}{factor.shape}".encode())
            digest.update(np.ascontiguousarray(factor, np.float32).tobytes())
    return digest.hexdigest()


def _paired(
    tensors: Iterator[tuple[str, Factor]], scales: LoraScales
) -> dict[tuple[int, str], LoraWeights]:
    """A with B by their tensor names, and the layer's alpha / rank."""
    pairs: dict[tuple[int, str], dict[str, Factor]] = {}
    blocks: dict[tuple[int, str], str] = {}
    for name, value in tensors:
        match = _TENSOR.fullmatch(unwrapped(name))
        if match is None:
            raise ArtefactError(
                f"tensor {name} is not a LoRA factor of an attention or MLP layer; "
                "embeddings, lm_head, biases and other trained modules are not served"
            )
        key = (int(match["layer"]), match["module"])
        block = "self_attn" if key[1] in ATTENTION_MODULES else "mlp"
        if match["factor"] in pairs.setdefault(key, {}) or match["block"] != block:
            raise ArtefactError(f"tensor {name} is there twice or in the wrong block")
        pairs[key][match["factor"]] = value
        blocks[key] = block
    paired = {}
    for (layer, module), pair in pairs.items():
        if len(pair) != 2:
            raise ArtefactError(
                f"layer {layer} {module}: lora_{'B' if 'A' in pair else 'A'} is missing"
            )
        a, b = pair["A"], pair["B"]
        if a.ndim != 2 or a.shape[0] == 0:
            raise ArtefactError(
                f"layer {layer} {module}: rank 0 or no matrix, A is {list(a.shape)}"
            )
        path = f"model.layers.{layer}.{blocks[layer, module]}.{module}"
        paired[layer, module] = LoraWeights(a, b, scales.scale(path, layer, int(a.shape[0])))
    return paired


def _read_tensors(path: Path) -> Iterator[tuple[str, Factor]]:
    """(name, float32 array) of each tensor of a safetensors file. Raises ArtefactError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as handle:
            dtypes = {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
        odd = {name: dtype for name, dtype in dtypes.items() if dtype not in FLOATS}
        if odd:
            raise ArtefactError(f"tensors of a type that is not served: {odd}")
        # numpy knows no bfloat16.
        framework = "pt" if "BF16" in dtypes.values() else "numpy"
        with safe_open(path, framework=framework) as handle:
            for name in dtypes:
                value = handle.get_tensor(name)
                array = value.float().numpy() if framework == "pt" else value
                with np.errstate(over="ignore"):
                    yield name, array.astype(np.float32)
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{path} is damaged: {error}") from error
