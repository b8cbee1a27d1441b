"""Config and catalogue -> the parts that `pipeline.py` runs a query with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from compllm.backend import Backend, max_batch_size
from compllm.catalogue import Catalogue
from compllm.compose import Aggregator
from compllm.config import Config
from compllm.decompose import Generator
from compllm.execute import Engine, NodeSettings
from compllm.scheduling.admission import Admission, EngineLoad
from compllm.scheduling.query_admission import QueryAdmission, QueryLoad
from compllm.scheduling.single_flight import SharingStats, SingleFlight
from compllm.types import SamplingParams

LEAST_RUNNING = 8  # queries at once where the settings name no number
UNKNOWN_LIMIT = 64  # requests in flight at an engine that does not report how many it batches


@dataclass(frozen=True, slots=True)
class RuntimeStats:
    """What the runtime counts over all queries since it was opened."""

    engines: dict[str, EngineLoad]  # the queue in front of each, by the model's name
    sharing: SharingStats
    queries: QueryLoad
    num_fallbacks: int  # plans that were unusable


def make_engine(backend: Backend, catalogue: Catalogue, config: Config) -> Engine:
    """The engine's queue has the configured limit; without one, what the engine batches: requests
    beyond that would wait in the engine's own queue, first come, first served."""
    limits, timeouts, sharing = config.limits, config.timeouts, config.sharing
    experts = {expert.name: expert for expert in (catalogue.base, *catalogue.experts)}
    in_flight = {
        model: limits.max_in_flight or max_batch_size(backend, model) or UNKNOWN_LIMIT
        for model in dict.fromkeys(expert.model for expert in experts.values())
    }
    admission = Admission(in_flight, max_waiting=limits.max_waiting)
    return Engine(
        backend,
        admission,
        SingleFlight(
            backend,
            is_shared=sharing.is_on,
            cache_size=sharing.cache_size,
            cache_ttl_s=sharing.cache_ttl_s,
        ),
        experts,
        catalogue.base,
        NodeSettings(
            SamplingParams(max_tokens=limits.max_node_tokens),
            catalogue.template,
            timeouts.node_s,
            timeouts.retry_wait_s,
            config.answer.cut_loops,
        ),
    )


def make_query_admission(engine: Engine, config: Config) -> QueryAdmission:
    """A quarter of the requests that an engine batches: a query has one to four of them there.

    More queries at once raise the rate little, and each of them takes longer (docs/TRITON.md)."""
    limits = config.limits
    batched = engine.admission.loads()[engine.base.model].limit
    limit = limits.max_running or max(LEAST_RUNNING, batched // 4)
    return QueryAdmission(limit, limits.max_wait_s or math.inf)


def make_generator(catalogue: Catalogue, config: Config) -> Generator:
    settings, limits = config.generator, config.limits.plan
    return Generator(
        replace(limits, max_nodes=min(settings.max_nodes, limits.max_nodes)),
        catalogue.base.model,
        catalogue.role_id(settings.adapter, catalogue.generator),
        catalogue.template,
        settings.max_tokens,
        config.timeouts.plan_s,
        settings.is_guided,
        settings.num_draws,
    )


def make_aggregator(catalogue: Catalogue, config: Config) -> Aggregator:
    settings = config.compose
    return Aggregator(
        settings.policy,
        catalogue.base.model,
        catalogue.role_id(settings.adapter, catalogue.aggregator),
        catalogue.template,
        SamplingParams(max_tokens=config.limits.max_answer_tokens),
        config.answer.cut_loops,
        config.answer.keep_all,
    )
