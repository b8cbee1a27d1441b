"""A replay's own work as a load for the simulator: what it would have predicted, had it known.

The requests are those that the engine reported, token by token, and the queries arrive when they
did; what is left between prediction and replay is the model's own error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compllm import _core
from compllm.errors import ConfigError
from compllm.lab.replay.drive import Ran
from compllm.lab.replay.ideal import Load as RequestLoad
from compllm.lab.replay.records import loads_of
from compllm.lab.simulate.workload import Load, Workload
from compllm.types import ANSWER_NODE, PLAN_NODE


def replayed(ran: Sequence[Ran], tokens_per_block: int) -> tuple[Workload, Load]:
    """Of the graphs that went well as dataflow. Raises ConfigError where none did."""
    well = sorted((each for each in ran if each.error is None), key=_due_s)
    if not well:
        raise ConfigError("no graph of the replay went well: there is nothing to predict")
    loads = [loads_of(each, tokens_per_block) for each in well]
    specs = tuple(spec_of(each) for each in loads)
    responses = tuple(_responses(each) for each in loads)
    arrivals_ms = np.array([1e3 * _due_s(each) for each in well])
    load = Load(arrivals_ms, np.arange(len(well), dtype=np.int32), np.concatenate(responses))
    return Workload(specs, responses, seed=0), load


def spec_of(loads: Mapping[int, RequestLoad]) -> _core.GraphSpec:
    """One query's requests. Their prompts are whole: what they quote is counted in them."""
    nodes = [loads[node_id] for node_id in _node_ids(loads)]
    index = {node_id: number for number, node_id in enumerate(_node_ids(loads))}
    plan, answer = loads.get(PLAN_NODE), loads.get(ANSWER_NODE)
    line_ends = [node.num_plan_tokens for node in nodes]
    return _core.GraphSpec(
        gates=[[index[parent] for parent in node.parents] for node in nodes],
        quotes=[()] * len(nodes),
        prompt_tokens=[node.num_prompt_tokens for node in nodes],
        quoted_tokens=[0] * len(nodes),
        leaves=(),
        # The last line ends with the plan.
        line_ends=[*line_ends[:-1], plan.num_new_tokens] if plan else (),
        plan_prompt_tokens=plan.num_prompt_tokens if plan else 0,
        answer_prompt_tokens=answer.num_prompt_tokens if answer else 0,
    )


def _responses(loads: Mapping[int, RequestLoad]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    answer = loads.get(ANSWER_NODE)
    lengths = [loads[node_id].num_new_tokens for node_id in _node_ids(loads)]
    return np.array([*lengths, answer.num_new_tokens if answer else 1], np.int32)


def _node_ids(loads: Mapping[int, RequestLoad]) -> list[int]:
    return sorted(loads.keys() - {PLAN_NODE, ANSWER_NODE})


def _due_s(ran: Ran) -> float:
    return ran.start_s - ran.late_s
