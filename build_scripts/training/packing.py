"""Examples of one batch -> one packed row of tokens: no padding, and nothing computed twice.

The tokens of a batch form a trie: what two examples share from their start (the template's head,
"What is the ...") is one stretch of nodes. Causal attention makes a token's hidden state depend on
its predecessors alone, so one computation serves them all, in the forward and, since gradients add
up, in the backward pass. The linear layers (nearly all of the work) see each node once; only
attention works on blocks of whole examples, [rows, length], gathered by `paths`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from compllm.build_scripts.training.examples import Example


@dataclass(frozen=True, slots=True)
class Packed:
    """One batch. N nodes, R response tokens; `paths` are blocks of [rows, length], flattened."""

    tokens: torch.Tensor  # int64 [N]
    positions: torch.Tensor  # int64 [N]
    paths: torch.Tensor  # int64, the nodes of each example; padding repeats node 0
    owners: torch.Tensor  # int64 [N], where in `paths` a node stands first
    sources: torch.Tensor  # int64 [R], the node that predicts
    targets: torch.Tensor  # int64 [R], what it is to predict
    rows: torch.Tensor  # int64 [R], the example it belongs to
    blocks: tuple[tuple[int, int], ...]  # (rows, length), in the order of `paths`
    num_tokens: int  # of the examples, as if nothing were shared

    @property
    def num_nodes(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> Packed:
        if device.type == "cpu":
            return self
        names = ("tokens", "positions", "paths", "owners", "sources", "targets", "rows")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved)


def pack(examples: Sequence[Example]) -> Packed:
    """Pack a batch. `rows` count the examples as they are given."""
    trie: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    tokens: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    paths: list[int] = []
    order = sorted(range(len(examples)), key=lambda row: -examples[row].num_tokens)
    blocks = _blocks([examples[row].num_tokens - 1 for row in order])
    lengths = [length for num_rows, length in blocks for _ in range(num_rows)]
    for row, length in zip(order, lengths, strict=True):
        example = examples[row]
        path: list[int] = []
        node = -1
        # The last token is only a target.
        for position, token in enumerate((*example.prompt_ids, *example.response_ids[:-1])):
            key = (node, token)
            node = trie.get(key, -1)
            if node < 0:
                node = trie[key] = len(tokens)
                tokens.append(token)
                positions.append(position)
                owners.append(len(paths) + position)
            path.append(node)
        sources += path[len(example.prompt_ids) - 1 :]
        targets += example.response_ids
        rows += [row] * len(example.response_ids)
        paths += path + [0] * (length - len(path))
    return Packed(
        tokens=torch.tensor(tokens),
        positions=torch.tensor(positions),
        paths=torch.tensor(paths),
        owners=torch.tensor(owners),
        sources=torch.tensor(sources),
        targets=torch.tensor(targets),
        rows=torch.tensor(rows),
        blocks=blocks,
        num_tokens=sum(example.num_tokens for example in examples),
    )


def _blocks(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Rows of alike lengths (falling) in one block, so that attention pads little: a block ends
    where a row has less than three quarters of its length."""
    blocks: list[tuple[int, int]] = []
    for length in lengths:
        if blocks and length >= 0.75 * blocks[-1][1]:
            blocks[-1] = (blocks[-1][0] + 1, blocks[-1][1])
        else:
            blocks.append((1, length))
    return tuple(blocks)
