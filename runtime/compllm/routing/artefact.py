"""A fitted router on disk: one .npz with its head's arrays and a record in JSON beside them.

`build_scripts/train_router.py` writes it, `route.Router` reads it. Nothing in it is executed and
every number is checked: a file that was cut, edited or made for other experts or another encoder is
an error that says so, and never a router that answers anyhow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compllm.errors import ConfigError
from compllm.paths import home_dir, resource_dir
from compllm.routing.archive import read_archive, told_as, write_archive
from compllm.routing.heads import Head, Layer, Neighbours, Similarity, Softmax

FORMAT = 1
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}\Z")
_MAX_BYTES = 512_000_000  # a head of a hundred thousand questions is half of that


@dataclass(frozen=True, slots=True)
class Artefact:
    """A head, the floor below which the base answers, and what both belong to."""

    head: Head
    floor: float
    encoder: str  # id of the encoder whose vectors the head reads
    record: Mapping[str, Any] = field(default_factory=dict)  # how it was made; not read here


def router_folders() -> tuple[Path, ...]:
    """Where routers are looked up by name: the user's own first, then those that are shipped."""
    return (home_dir() / "routers", resource_dir("engines") / "routers")


def router_names() -> tuple[str, ...]:
    """Names of the routers there are."""
    return tuple(
        sorted({path.stem for folder in router_folders() for path in folder.glob("*.npz")})
    )


def find_router(name: str) -> Path:
    """The file of a router: a path to one, or a name. Raises ConfigError with the names."""
    if name.endswith(".npz"):
        return Path(name)
    for folder in router_folders() if _NAME.match(name) else ():
        if (path := folder / f"{name}.npz").is_file():
            return path
    raise ConfigError(f"no router {name!r}: there are {', '.join(router_names()) or 'none'}")


def save(path: Path, artefact: Artefact) -> None:
    """Write it whole, or leave what was there."""
    kind, arrays, settings = _take_apart(artefact.head)
    about = {
        "format": FORMAT,
        "kind": kind,
        "experts": list(artefact.head.experts),
        "encoder": artefact.encoder,
        "floor": artefact.floor,
        "settings": settings,
        "record": dict(artefact.record),
    }
    write_archive(path, about, arrays)


def load(path: Path) -> Artefact:
    """Read and check a router. Raises ConfigError."""
    with told_as("router", path, "router"):
        about, arrays = read_archive(path, FORMAT, _MAX_BYTES)
        experts, encoder, floor = tuple(about["experts"]), about["encoder"], about["floor"]
        if not (experts and all(isinstance(name, str) for name in (*experts, encoder))):
            raise ValueError("its experts or its encoder are not names")
        if isinstance(floor, bool) or not isinstance(floor, int | float) or not -1 <= floor <= 1:
            raise ValueError(f"its floor is {floor!r}, expected a number from -1 to 1")
        head = _put_together(about["kind"], experts, arrays, about["settings"])
        return Artefact(head, float(floor), encoder, about["record"])


def _take_apart(head: Head) -> tuple[str, dict[str, Any], dict[str, Any]]:
    match head:
        case Similarity():
            return "similarity", {"vectors": head.vectors, "owners": head.owners}, {}
        case Softmax():
            arrays: dict[str, Any] = {}
            for number, layer in enumerate(head.layers):
                arrays |= {
                    f"weights{number}": layer.weights,
                    f"bias{number}": layer.bias,
                    f"groups{number}": layer.groups,
                }
            return "softmax", arrays, {"num_layers": len(head.layers)}
        case Neighbours():
            settings = {"num_neighbours": head.num_neighbours, "sharpness": head.sharpness}
            # Half precision: the order of the neighbours hardly changes, the file halves.
            vectors = head.vectors.astype(np.float16)
            return "neighbours", {"vectors": vectors, "owners": head.owners}, settings
    raise TypeError(f"no form on disk for {type(head).__name__}")


def _put_together(
    kind: str, experts: tuple[str, ...], arrays: dict[str, Any], settings: dict[str, Any]
) -> Head:
    if kind == "softmax":
        layers = tuple(
            _layer(arrays, number, len(experts)) for number in range(int(settings["num_layers"]))
        )
        if not layers or len({layer.weights.shape[0] for layer in layers}) != 1:
            raise ValueError("its layers do not fit together")
        return Softmax(experts, layers)
    if kind not in ("similarity", "neighbours"):
        raise ValueError(f"its kind is {kind!r}, expected softmax, similarity or neighbours")
    vectors, owners = _floats(arrays, "vectors", 2), _groups(arrays, "owners", len(experts))
    if len(vectors) != len(owners) or not len(owners):
        raise ValueError(f"it has {len(vectors)} vectors and {len(owners)} owners")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (abs(lengths - 1) < 0.01).all():
        raise ValueError("its vectors are not of unit length")
    vectors = vectors / lengths  # what half precision took
    if kind == "similarity":
        if owners.min() < 0:
            raise ValueError("a vector has no owner")
        return Similarity(experts, vectors, owners)
    num_neighbours, sharpness = int(settings["num_neighbours"]), float(settings["sharpness"])
    if num_neighbours < 1 or not 0 <= sharpness < 1000:
        raise ValueError(f"it has {num_neighbours} neighbours and sharpness {sharpness}")
    return Neighbours(experts, vectors, owners, num_neighbours, sharpness)


def _layer(arrays: dict[str, Any], number: int, num_experts: int) -> Layer:
    weights, bias = _floats(arrays, f"weights{number}", 2), _floats(arrays, f"bias{number}", 1)
    groups = _groups(arrays, f"groups{number}", num_experts)
    if not weights.shape[1] == len(bias) == len(groups) > 0:
        raise ValueError(f"the shapes of layer {number} do not fit together")
    return Layer(weights, bias, groups)


def _floats(arrays: dict[str, Any], name: str, num_dims: int) -> Any:
    values = arrays[name]
    if values.ndim != num_dims or values.dtype.kind != "f" or not np.isfinite(values).all():
        raise ValueError(f"{name} is not {num_dims}-dimensional finite numbers")
    return np.ascontiguousarray(values, np.float32)


def _groups(arrays: dict[str, Any], name: str, num_experts: int) -> Any:
    values = arrays[name]
    if values.ndim != 1 or values.dtype.kind != "i" or not len(values):
        raise ValueError(f"{name} is not a row of integers")
    if values.min() < -1 or values.max() >= num_experts:
        raise ValueError(f"{name} names experts that are not there")
    return values.astype(np.int64)
