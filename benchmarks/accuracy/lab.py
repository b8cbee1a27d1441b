"""What all contestants share: the settings, the catalogue with the engine's adapters, the way to
the engine, and the arguments that the evaluation scripts have in common."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.accuracy.cache import AnswerCache, CachedBackend
from benchmarks.accuracy.engine import LocalEngine, open_engine
from benchmarks.accuracy.runner import Work
from benchmarks.store import ResultStore, content_hash, source_hash
from compllm.errors import ConfigError

if TYPE_CHECKING:
    from compllm.backend import Backend
    from compllm.catalogue import Adapter, Catalogue
    from compllm.config import Config
    from compllm.routing.embed import Encoder

_NEVER_S = 86_400.0  # an evaluation on a busy machine must not score a time-out


@dataclass(frozen=True, slots=True)
class Lab:
    """Everything that an answer depends on."""

    config: Config
    catalogue: Catalogue  # its adapter ids are the engine's
    encoder: Encoder
    backend: Backend
    adapters: Mapping[str, int]  # by name, all that the engine has
    identity: str  # of the engine
    folder: Path  # of the results that are kept between runs

    def store(self, name: str, **more: object) -> ResultStore:
        """Where the outcomes of a contestant are kept. `more`: what it depends on beside this."""
        settings = asdict(self.config)
        del settings["server"], settings["timeouts"]  # they decide when, not what
        configuration = content_hash(
            self.identity,
            self.encoder.id,
            settings,
            asdict(self.catalogue),
            _sources(self.catalogue.router.head),
            more,
        )
        return ResultStore(self.folder, name, configuration)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of every evaluation on the engine; `report.add_arguments` adds --seed and --out."""
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="what make_datasets.py wrote; default: in $COMPLLM_HOME",
    )
    add(
        "--split",
        default="test",
        choices=("train", "validation", "test"),
        help="the part of the data sets that is asked; default: test",
    )
    add("--limit", type=int, metavar="N", help="records of each file at most; default: all")
    add("--engine", type=Path, metavar="DIR", help="embedded engine; default: the one in use")
    add("--config", type=Path, metavar="FILE", help="a TOML file of settings; default: none")
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a PEFT adapter to load live; an expert's name, generator, aggregator or monolithic",
    )
    add(
        "--store",
        type=Path,
        metavar="DIR",
        help="where answers are kept between runs; default: in $COMPLLM_HOME",
    )
    add("--concurrency", type=int, default=32, metavar="N", help="questions in flight; default: 32")


def data_dir(arguments: argparse.Namespace) -> Path:
    from compllm.paths import home_dir

    chosen: Path | None = arguments.data
    return chosen or home_dir() / "datasets"


def work_of(arguments: argparse.Namespace) -> Work:
    if arguments.concurrency < 1:
        raise ConfigError(f"--concurrency is {arguments.concurrency}: it must be at least 1")
    return Work(arguments.concurrency)


@asynccontextmanager
async def open_lab(arguments: argparse.Namespace) -> AsyncIterator[tuple[Lab, LocalEngine]]:
    """The lab of these arguments, and the engine below its cache. Raises CompllmError."""
    from compllm.catalogue import load_catalogue
    from compllm.config import load_config
    from compllm.paths import encoder_dir, engine_dir, home_dir
    from compllm.routing.embed import SentenceEncoder

    endless = {f"timeouts.{name}_s": _NEVER_S for name in ("query", "plan", "node")}
    config = load_config(arguments.config, endless)
    catalogue = load_catalogue(Path(config.catalogue) if config.catalogue else None)
    encoder = await SentenceEncoder.load(encoder_dir())
    folder: Path = arguments.store or home_dir() / "evaluation"
    engine = open_engine(arguments.engine or engine_dir(), arguments.adapter)
    with closing(engine), closing(AnswerCache(folder / "answers.sqlite")) as cache:
        given = [argument.partition("=")[0] for argument in arguments.adapter]
        catalogue = with_adapters(catalogue, engine.adapters, given)
        backend = CachedBackend(engine.backend(), cache, engine.identity)
        lab = Lab(config, catalogue, encoder, backend, engine.adapters, engine.identity, folder)
        yield lab, engine


def with_adapters(
    catalogue: Catalogue, adapters: Mapping[str, int], given: Sequence[str] = ()
) -> Catalogue:
    """The catalogue with the engine's ids, and with the given adapters in the places that their
    names say. Raises ConfigError where the catalogue names an adapter that the engine lacks."""
    from compllm.catalogue import Adapter

    for adapter in catalogue.adapters:
        if adapter.name not in adapters:
            raise ConfigError(
                f"{catalogue.path} names adapter {adapter.name!r}, the engine has "
                f"{', '.join(adapters) or 'none'}: build it again or give --adapter NAME=DIR"
            )
    known = {adapter.name: adapter for adapter in catalogue.adapters}
    for name in given:
        known.setdefault(name, Adapter(name, adapters[name], None))
    here = {name: replace(adapter, id=adapters[name]) for name, adapter in known.items()}
    experts = []
    for expert in catalogue.experts:
        if expert.name in given:  # trained ones read no system text
            expert = replace(expert, adapter=expert.name, system="")
        adapter_id = adapters[expert.adapter] if expert.adapter else None
        experts.append(replace(expert, adapter_id=adapter_id))

    def role(name: str, default: Adapter | None) -> Adapter | None:
        chosen = name if name in given else default.name if default else ""
        return here[chosen] if chosen else None

    return replace(
        catalogue,
        experts=tuple(experts),
        adapters=tuple(here.values()),
        generator=role("generator", catalogue.generator),
        aggregator=role("aggregator", catalogue.aggregator),
    )


def role_name(setting: str, default: Adapter | None) -> str:
    """The adapter of a role as the pipeline chooses it; empty is the bare base."""
    if setting == "base":
        return ""
    return setting or (default.name if default else "")


def _sources(router: Path | None) -> str:
    """Of what decides answers beside the settings: the code of the path, how the contestants ask,
    and the file of a fitted router."""
    import compllm

    package, here = Path(compllm.__file__).parent, Path(__file__).parent
    path = (
        "prompts",
        "decompose",
        "plan",
        "routing/route",
        "execute",
        "compose",
        "pipeline",
        "assembly",
    )
    ours = ("contestants", "ladder", "nodes", "propagation")
    files = [package / f"{name}.py" for name in path] + [here / f"{name}.py" for name in ours]
    files.append(package / "routing" / "heads.py")
    return source_hash([*files, router] if router else files)
