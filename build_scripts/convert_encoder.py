"""Convert the fetched sentence encoder for OpenVINO: beside it, in `openvino/`, once.

    python build_scripts/convert_encoder.py

`embed.py` runs what is written here: the whole of the encoder, pooling and unit length included, in
fp32, and its tokenizer as sentence-transformers sets it up. After fetch_base.py, which calls it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compllm.build_scripts.staging import (
    exclusive,
    require_free_space,
    run_script,
    say,
    staged_directory,
)
from compllm.errors import ConfigError
from compllm.paths import encoder_dir
from compllm.routing.embed import (
    IR_FORM,
    IR_INPUTS,
    IR_MODEL,
    IR_RECORD,
    IR_TOKENIZER,
    encoder_id,
    find_ir,
    ir_dir,
    sentence_transformer,
)

_EXAMPLES = ["a question", "a question of another length, so that one row is padded"]


def ensure_ir(encoder: Path) -> Path | None:
    """The encoder's OpenVINO form, made where it is missing, of other weights or of another
    OpenVINO.

    None where OpenVINO is not installed: sentence-transformers runs the encoder then. Raises
    ConfigError when the encoder cannot be converted, OSError for the disk.
    """
    if importlib.util.find_spec("openvino") is None:
        return None
    made_of = {
        "source": encoder_id(encoder),
        "form": IR_FORM,
        "openvino": importlib.metadata.version("openvino"),
    }
    if _is_current(encoder, made_of):
        return ir_dir(encoder)
    with exclusive(encoder):  # the encoder's own lock: no process fetches it anew meanwhile
        if _is_current(encoder, made_of):
            return ir_dir(encoder)
        size = sum(path.stat().st_size for path in encoder.glob("*.safetensors"))
        require_free_space(encoder, size, "converting the sentence encoder")
        say("converting the sentence encoder for OpenVINO (once, under a minute)")
        with staged_directory(ir_dir(encoder)) as partial:
            try:
                _convert(encoder, partial)
            except Exception as error:
                raise ConfigError(
                    f"cannot convert the sentence encoder in {encoder} for OpenVINO "
                    f"{made_of['openvino']}: {error}"
                ) from error
            sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
            record = {**made_of, "sizes": sizes}
            (partial / IR_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return ir_dir(encoder)


def _is_current(encoder: Path, made_of: dict[str, str]) -> bool:
    found = find_ir(encoder, made_of["source"])
    if found is None:
        return False
    record = json.loads((found / IR_RECORD).read_text(encoding="utf-8"))
    return bool(record.get("openvino") == made_of["openvino"])


def _convert(encoder: Path, into: Path) -> None:
    import openvino
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    model = sentence_transformer(encoder).eval()

    class Sentence(torch.nn.Module):
        """Plain tensors in and out: what can be exported."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            token_type_ids: torch.Tensor | None = None,
        ) -> torch.Tensor:
            given = zip(IR_INPUTS, (input_ids, attention_mask, token_type_ids), strict=True)
            features = self.model({name: each for name, each in given if each is not None})
            return torch.nn.functional.normalize(features["sentence_embedding"], dim=-1)

    features = model.preprocess(_EXAMPLES)
    examples = {name: features[name] for name in IR_INPUTS if name in features}
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    # The steps of openvino.convert_model, which would report each use to a server of its makers.
    frontend = FrontEndManager().load_by_framework("pytorch")
    with _quiet(), torch.no_grad():
        shapes = dict.fromkeys(examples, any_size)
        program = torch.export.export(Sentence(), (), examples, dynamic_shapes=shapes)
        decoder = TorchFXPythonDecoder.from_exported_program(program)
        converted = frontend.convert(frontend.load(decoder))
    openvino.save_model(converted, into / IR_MODEL, compress_to_fp16=False)
    tokenizer = model.tokenizer
    fast = tokenizer.backend_tokenizer
    fast.enable_truncation(model.max_seq_length)
    fast.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token,
    )
    fast.save(str(into / IR_TOKENIZER))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch and OpenVINO print about each other's versions: nothing to act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def main() -> int:
    return run_script(lambda: print(ensure_ir(encoder_dir()) or "OpenVINO is not installed"))


if __name__ == "__main__":
    sys.exit(main())
