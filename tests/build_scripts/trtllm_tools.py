"""Stand-ins for the programs of NVIDIA's image, for tests of what runs them.

TensorRT-LLM cannot be installed without a GPU, so these check nothing about it: they take the same
arguments, fail in the same ways and leave files of the same names. hf_lora_convert packs adapters
as upstream documents it, without our code. A line in `calls` records each run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_COMMON = """
import argparse, json, os, pathlib, signal, sys
calls = pathlib.Path(os.environ["TRTLLM_CALLS"])
me = os.path.basename(sys.argv[0])
with open(calls, "a") as sink:
    sink.write(me + "\\n")
trouble = os.environ.get("TRTLLM_TROUBLE", "").partition(":")
trouble = trouble[2] if trouble[0] == me else ""
parser = argparse.ArgumentParser()
for flag in {flags}:
    parser.add_argument(flag)
options, _ = parser.parse_known_args()
out = pathlib.Path(options.{out})
out.mkdir(parents=True, exist_ok=True)
(out / "half").write_text("half")
if trouble == "disk-full":
    with open("/dev/full", "w") as sink:
        sink.write("x" * 100000)
if trouble == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if trouble == "fails":
    sys.exit("ValueError: upstream's own words")
if trouble == "hangs":
    with open(calls.parent / "hanging", "w") as pipe:  # tells the test that it may go on
        pipe.write(str(os.getpid()))
    signal.pause()
(out / "half").unlink()
"""

_CONVERT = """
world = int(options.tp_size) * int(options.pp_size)
source = json.loads((pathlib.Path(options.model_dir) / "config.json").read_text())
# As TensorRT-LLM reads a config with transformers 4.57: it knows no rope_parameters.
config = {
    "dtype": options.dtype,
    "mapping": {"world_size": world},
    "rotary_base": source.get("rope_theta", 10000.0),
    "rotary_scaling": source.get("rope_scaling"),
}
(out / "config.json").write_text(json.dumps(config))
for rank in range(world):
    (out / f"rank{rank}.safetensors").write_bytes(b"weights")
"""

_BUILD = """
checkpoint = json.loads((pathlib.Path(options.checkpoint_dir) / "config.json").read_text())
limits = ("max_batch_size", "max_num_tokens", "max_seq_len")
built = {key: int(getattr(options, key)) for key in limits}
built["lora_config"] = {"max_lora_rank": int(options.max_lora_rank or 64)}
config = {"version": "1.2.1", "pretrained_config": checkpoint, "build_config": built}
(out / "config.json").write_text(json.dumps(config))
for rank in range(checkpoint["mapping"]["world_size"] - (trouble == "half-built")):
    (out / f"rank{rank}.engine").write_bytes(b"engine %d" % rank)
pathlib.Path("model.cache").write_text("upstream leaves it where it stands")
"""

# Without numpy, whose import would take most of a test's time.
_LORA = """
import re, struct
source = pathlib.Path(options.in_file)
alpha = json.loads((source / "adapter_config.json").read_text())["lora_alpha"]
ids = {"q_proj": 1, "k_proj": 2, "v_proj": 3, "o_proj": 4}
ids |= {"gate_proj": 5, "down_proj": 6, "up_proj": 7}
data = (source / "adapter_model.safetensors").read_bytes()
start = 8 + struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:start])
def values(name):
    begin, end = header[name]["data_offsets"]
    kind, size = {"F16": ("e", 2), "F32": ("f", 4)}[header[name]["dtype"]]
    return struct.unpack(f"<{(end - begin) // size}{kind}", data[start + begin : start + end])
rows, config = [], []
for name in header:
    match = re.match(r".*\\.layers\\.(\\d+)\\.(?:self_attn|mlp)\\.(\\w+)\\.lora_A\\.weight", name)
    if match:
        rank = header[name]["shape"][0]
        scale = alpha / rank
        b = (value * scale for value in values(name.replace("lora_A", "lora_B")))
        rows.append([*values(name), *b])
        config.append([ids[match[2]], int(match[1]), rank, 0])
width = max(map(len, rows))
factor = 2 if trouble == "other-numbers" else 1
flat = [factor * value for row in rows for value in [*row, *[0.0] * (width - len(row))]]
def save(path, descr, shape, body):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape})
    text = text.ljust(-(10 + len(text) + 1) % 64 + len(text)) + "\\n"
    head = b"\\x93NUMPY\\x01\\x00" + struct.pack("<H", len(text)) + text.encode()
    path.write_bytes(head + body)
weights = struct.pack(f"<{len(flat)}e", *flat)
numbers = [number for row in config for number in row]
save(out / "model.lora_weights.npy", "<f2", (1, len(rows), width), weights)
table = struct.pack(f"<{len(numbers)}i", *numbers)
save(out / "model.lora_config.npy", "<i4", (1, len(rows), 4), table)
"""

_CHECKPOINT_FLAGS = ("--model_dir", "--output_dir", "--dtype", "--tp_size", "--pp_size")
_BUILD_FLAGS = (
    "--checkpoint_dir",
    "--output_dir",
    "--max_batch_size",
    "--max_num_tokens",
    "--max_seq_len",
    "--max_lora_rank",
)


def _script(path: Path, flags: tuple[str, ...], out: str, body: str, first: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = _COMMON.replace("{flags}", repr(flags)).replace("{out}", out)
    path.write_text(first + head + body, encoding="utf-8")
    path.chmod(0o755)


class Tools:
    """The image's programs on PATH, below `home`."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._home, self._monkeypatch = home, monkeypatch
        self.examples = home / "app" / "examples"
        self.calls_file = home / "calls"
        self.bin = home / "bin"
        self.bin.mkdir(parents=True)
        models = self.examples / "models" / "core"
        for family in ("llama", "qwen"):
            path = models / family / "convert_checkpoint.py"
            _script(path, _CHECKPOINT_FLAGS, "output_dir", _CONVERT)
        quantize = self.examples / "quantization" / "quantize.py"
        _script(quantize, _CHECKPOINT_FLAGS, "output_dir", _CONVERT)
        lora = self.examples / "hf_lora_convert.py"
        _script(lora, ("--in-file", "--out-dir"), "out_dir", _LORA)
        first = f"#!{sys.executable}\n"
        _script(self.bin / "trtllm-build", _BUILD_FLAGS, "output_dir", _BUILD, first)
        self.command("python3", f'exec {sys.executable} "$@"')
        self.gpus("0, NVIDIA H100 80GB HBM3, 9.0, 81559, 590.44.01")
        self.versions(tensorrt_llm="1.2.1", tensorrt="10.14.1.48")
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")
        monkeypatch.setenv("PYTHONPATH", str(home / "site"))
        monkeypatch.setenv("TRTLLM_CALLS", str(self.calls_file))
        monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "26.07")

    def command(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def gpus(self, *lines: str) -> None:
        """What nvidia-smi prints: index, name, compute capability, MiB, driver."""
        self.command("nvidia-smi", "cat <<'END'\n" + "\n".join(lines) + "\nEND")

    def versions(self, **versions: str) -> None:
        """What is installed, as importlib.metadata finds it."""
        for name, version in versions.items():
            for old in (self._home / "site").glob(f"{name}-*.dist-info/METADATA"):
                old.unlink()
                old.parent.rmdir()
            folder = self._home / "site" / f"{name}-{version}.dist-info"
            folder.mkdir(parents=True)
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (folder / "METADATA").write_text(text, encoding="utf-8")

    def trouble(self, tool: str, kind: str) -> None:
        self._monkeypatch.setenv("TRTLLM_TROUBLE", f"{tool}:{kind}")

    def no_trouble(self) -> None:
        self._monkeypatch.delenv("TRTLLM_TROUBLE", raising=False)

    def calls(self) -> list[str]:
        """The programs that ran since the last time this was asked."""
        lines = self.calls_file.read_text().split() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return lines


CATALOGUE = """
[base]
system = "Answer."

[router]
threshold = 0.3
encoder = "sha256:0"
{adapters}
{experts}
"""


def write_catalogue(path: Path, adapters: dict[str, tuple[Path, int]], *experts: str) -> Path:
    """adapters: name -> PEFT directory and id; each expert is of the adapter of its own name, if
    there is one."""
    tables = "\n".join(
        f'[adapters.{name}]\nid = {number}\npath = "{folder}"'
        for name, (folder, number) in adapters.items()
    )
    entries = ""
    for name in experts:
        entries += (
            f'\n[[experts]]\nname = "{name}"\ndomain = "x"\nsystem = "y"\nexamples = ["z?"]\n'
        )
        if name in adapters:
            entries += f'adapter = "{name}"\n'
    path.write_text(CATALOGUE.format(adapters=tables, experts=entries), encoding="utf-8")
    return path
