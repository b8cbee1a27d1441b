"""Finding adapters' weights on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compllm.backends.adapter_files import CONFIG_FILE, WEIGHTS_FILE, read_converted, weights_in
from compllm.errors import ConfigError


def write(directory: Path, weights: NDArray[Any], config: NDArray[Any]) -> Path:
    directory.mkdir(parents=True)
    np.save(directory / WEIGHTS_FILE, weights)
    np.save(directory / CONFIG_FILE, config)
    return directory


def test_converted_adapters_are_found_by_their_task_id(tmp_path: Path) -> None:
    write(tmp_path / "12", np.ones((1, 2, 6), np.float16), np.ones((1, 2, 4), np.int32))
    weights = weights_in(tmp_path)
    assert weights is not None
    tensors = weights(12)
    assert tensors is not None
    assert [each.shape for each in tensors] == [(2, 6), (2, 4)]
    assert weights(13) is None


def test_three_columns_become_four(tmp_path: Path) -> None:
    directory = write(tmp_path / "1", np.ones((1, 2, 6), np.float16), np.ones((1, 2, 3), np.int32))
    tensors = read_converted(directory)
    assert tensors is not None
    assert tensors[1].tolist() == [[1, 1, 1, 0]] * 2


@pytest.mark.parametrize(
    ("weights", "config", "message"),
    [
        (np.ones((2, 6), np.float32), np.ones((2, 4), np.int32), "--storage-type float16"),
        (np.ones((2, 6), np.float16), np.ones((3, 4), np.int32), r"int32 \[2, 4\]"),
        (np.ones((2, 6), np.float16), np.ones((2, 4), np.int64), r"int32 \[2, 4\]"),
        (np.ones((2, 2, 6), np.float16), np.ones((2, 4), np.int32), r"\[rows, width\]"),
    ],
)
def test_other_tensors_are_refused(
    tmp_path: Path, weights: NDArray[Any], config: NDArray[Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_converted(write(tmp_path / "1", weights, config))


def test_damaged_file_is_named(tmp_path: Path) -> None:
    directory = write(tmp_path / "1", np.ones((2, 6), np.float16), np.ones((2, 4), np.int32))
    (directory / CONFIG_FILE).write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=f"{CONFIG_FILE} is not readable"):
        read_converted(directory)


def test_other_directories_hold_no_adapters(tmp_path: Path) -> None:
    assert weights_in(tmp_path) is None
    (tmp_path / "manifest.json").write_text('{"format": "another/1"}', encoding="utf-8")
    assert weights_in(tmp_path) is None
    assert weights_in(tmp_path / "nowhere") is None
