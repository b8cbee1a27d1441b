"""What a server records of its settings and its catalogue, and how a catalogue differs from that.

The user's own server (`compllm up`) keeps its settings in its state file. Any server's model
`comp_llm` has a summary of its catalogue among its parameters. For a client, `connect.py` reads
both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compllm.catalogue import Catalogue, load_catalogue
from compllm.config import Config, flat_values

MODEL = "comp_llm"
PARAMETER = "catalogue"  # of that model
_SHOWN = 8  # experts that a warning names


def settings_of(config: Config, catalogue: Catalogue) -> str:
    """A server's settings for its state file: JSON, with paths that hold in any directory."""
    server = replace(
        config.server,
        url="",  # the server's own way to the engine
        tokenizer=absolute(config.server.tokenizer),
        adapters_dir=absolute(config.server.adapters_dir),
    )
    gate = replace(config.gate, file=absolute(config.gate.file))
    whole = replace(config, server=server, gate=gate, catalogue=str(catalogue.path.resolve()))
    return json.dumps(flat_values(whole))


def summary_of(catalogue: Catalogue) -> str:
    """What a server says of its catalogue: the experts' adapter ids, and a hash of all that decides
    an answer. JSON."""
    head = catalogue.router.head
    decisive = (
        catalogue.base,
        catalogue.experts,
        catalogue.template,
        catalogue.examples,
        catalogue.router.threshold,
        catalogue.router.encoder,
        hashlib.sha256(head.read_bytes()).hexdigest() if head and head.is_file() else "",
        catalogue.generator and catalogue.generator.id,
        catalogue.aggregator and catalogue.aggregator.id,
    )
    experts = {expert.name: expert.adapter_id for expert in catalogue.experts}
    digest = hashlib.sha256(repr(decisive).encode()).hexdigest()
    return json.dumps({"experts": experts, "sha256": digest})


def difference_from(served: Mapping[str, Any], catalogue: Catalogue) -> str | None:
    """How a catalogue differs from the summary of a server's, to follow 'the server at URL'."""
    own = json.loads(summary_of(catalogue))
    if served.get("sha256") == own["sha256"]:
        return None
    theirs, ours = served.get("experts"), own["experts"]
    if not isinstance(theirs, dict):
        return None
    where = f"your catalogue ({catalogue.path})"
    if theirs.keys() != ours.keys():
        return f"serves the experts {listed(theirs)}; {where} has {listed(ours)}"
    others = [name for name in ours if theirs[name] != ours[name]]
    if others:
        return f"has other adapters than {where} for {listed(others)}"
    return f"differs from {where} in its prompts, examples, roles, models or router"


def catalogue_of(config: Config) -> Catalogue:
    """The catalogue that the settings name. Raises ConfigError."""
    return load_catalogue(config.catalogue or None)


def absolute(path: str) -> str:
    """A path that holds in any directory; an empty one stays empty."""
    return str(Path(path).resolve()) if path else ""


def listed(names: Any) -> str:
    """The first names, and how many more there are."""
    shown = sorted(names)[:_SHOWN]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
