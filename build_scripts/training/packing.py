"""Examples of one batch -> one packed row of tokens: no padding, and nothing computed twice.

The tokens of a batch form a trie: what two examples share from their start (the template's head,
"What is the ...") is one stretch of nodes. Causal attention makes a token's hidden state depend on
its predecessors alone, so one computation serves them all, in the forward and, since gradients add
up, in the backward pass. The linear layers (nearly all of the work) see each node once; only
attention works on a padded [examples, longest] view of them, gathered by `paths`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from compllm.build_scripts.training.examples import Example

_IGNORED = -100  # the target of a padding row, as torch's cross entropy has it


@dataclass(frozen=True, slots=True)
class Packed:
    """One batch. N nodes, B examples of at most L input tokens, R response tokens."""

    tokens: torch.Tensor  # int64 [N]
    positions: torch.Tensor  # int64 [N]
    paths: torch.Tensor  # int64 [B, L], the nodes of each example; padding repeats node 0
    owners: torch.Tensor  # int64 [N], where in the flattened paths a node stands first
    sources: torch.Tensor  # int64 [R], the node that predicts
    targets: torch.Tensor  # int64 [R], what it is to predict
    rows: torch.Tensor  # int64 [R], the example it belongs to; B is padding
    num_nodes: int  # without padding
    num_tokens: int  # of the examples, as if nothing were shared

    def to(self, device: torch.device) -> Packed:
        if device.type == "cpu":
            return self
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("tokens", "positions", "paths", "owners", "sources", "targets", "rows")
        }
        return Packed(**moved, num_nodes=self.num_nodes, num_tokens=self.num_tokens)


def pack(
    examples: Sequence[Example],
    *,
    node_multiple: int = 1,
    row_multiple: int = 8,
    response_multiple: int = 1,
) -> Packed:
    """Pack a batch; the multiples keep the number of different shapes small."""
    trie: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    tokens: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    # The last token is only a target.
    inputs = [(*example.prompt_ids, *example.response_ids[:-1]) for example in examples]
    length = _up(max(map(len, inputs)), row_multiple)
    paths = np.zeros((len(examples), length), np.int64)
    for row, (example, ids) in enumerate(zip(examples, inputs, strict=True)):
        node = -1
        for position, token in enumerate(ids):
            key = (node, token)
            node = trie.get(key, -1)
            if node < 0:
                node = trie[key] = len(tokens)
                tokens.append(token)
                positions.append(position)
                owners.append(row * length + position)
            paths[row, position] = node
        first = len(example.prompt_ids) - 1
        sources += paths[row, first : len(ids)].tolist()
        targets += example.response_ids
        rows += [row] * len(example.response_ids)
    num_nodes = len(tokens)
    nodes_missing = _up(num_nodes, node_multiple) - num_nodes
    for padded, value in ((tokens, 0), (positions, 0), (owners, 0)):
        padded += [value] * nodes_missing
    responses_missing = _up(len(targets), response_multiple) - len(targets)
    sources += [0] * responses_missing
    targets += [_IGNORED] * responses_missing
    rows += [len(examples)] * responses_missing
    return Packed(
        torch.tensor(tokens),
        torch.tensor(positions),
        torch.from_numpy(paths),
        torch.tensor(owners),
        torch.tensor(sources),
        torch.tensor(targets),
        torch.tensor(rows),
        num_nodes,
        sum(example.num_tokens for example in examples),
    )


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
