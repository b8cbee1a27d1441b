"""The KV cache's blocks: who owns which, and which prefixes are still there to be reused.

`executor.py` opens a `BlockTable` per admitted request, reserves room before each step, commits
what the step has computed, and releases the table at the end. A full block is registered under its
parent block and its own tokens: an exact trie, no hash to collide. Each adapter has its own root,
since the same tokens have other keys and values under another adapter. Released registered blocks
stay until room is needed, least recently used first.

A table holds its whole chain and gives it back leaf first, so a registered block is always used
less recently than its parent: what is evicted is always a leaf, nothing unreachable remains.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

_NodeKey = tuple[int, tuple[int, ...]]  # (node id of the parent, tokens of the block)


@dataclass(slots=True)
class BlockTable:
    """The blocks of one request, in the order of its tokens."""

    blocks: list[int] = field(default_factory=list)
    num_reused: int = 0  # blocks taken over from the cache when the table was opened
    num_new: int = 0  # blocks allocated since
    _key: Hashable = None
    _root: int = -1
    _node: int = -1  # node id of the last committed block
    _num_committed: int = 0  # blocks


class BlockPool:
    """Blocks 0 to num_blocks - 1. Not thread-safe: the engine's thread alone calls it."""

    def __init__(self, num_blocks: int, tokens_per_block: int) -> None:
        if num_blocks < 1 or tokens_per_block < 1:
            raise ValueError(
                f"{num_blocks} blocks of {tokens_per_block} tokens: both must be at least 1"
            )
        self.num_blocks = num_blocks
        self.tokens_per_block = tokens_per_block
        self.num_reused_total = 0  # blocks, since the start
        self.num_new_total = 0
        self._free = list(range(num_blocks - 1, -1, -1))
        self._refs = [0] * num_blocks
        # A node is one registration of a block; its id is never used again, so a child registered
        # under an evicted parent can never be mistaken for the child of the parent's successor.
        self._next_node = 0
        self._roots: dict[Hashable, int] = {}
        self._block_of: dict[_NodeKey, int] = {}
        self._node_of: list[int] = [-1] * num_blocks
        self._node_key_of: list[_NodeKey | None] = [None] * num_blocks
        self._root_of: list[int] = [-1] * num_blocks
        self._evictable: OrderedDict[int, None] = OrderedDict()  # registered, referenced by none

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now: free ones and cached ones that no sequence uses."""
        return len(self._free) + len(self._evictable)

    @property
    def num_used(self) -> int:
        """Blocks that tables hold."""
        return self.num_blocks - self.num_available

    @property
    def num_cached(self) -> int:
        """Blocks that no table holds, kept for reuse."""
        return len(self._evictable)

    def num_blocks_for(self, num_tokens: int) -> int:
        """The number of blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.tokens_per_block)

    def match_prefix(self, key: Hashable, tokens: Sequence[int]) -> list[int]:
        """The cached blocks that start these tokens under this adapter, without taking them.

        Never all tokens: the last one must be computed to give logits.
        """
        node = self._roots.get(key)
        matched: list[int] = []
        if node is None:
            return matched
        size = self.tokens_per_block
        for start in range(0, (len(tokens) - 1) // size * size, size):
            block = self._block_of.get((node, tuple(tokens[start : start + size])))
            if block is None:
                break
            matched.append(block)
            node = self._node_of[block]
        return matched

    def open(self, key: Hashable, tokens: Sequence[int]) -> BlockTable:
        """A table that already holds the cached prefix of these tokens; release it in any case.

        key: the adapter's identity; another one after each load, if a name can be loaded again
        without `drop` between. `len(table.blocks) * tokens_per_block` tokens need no computing.
        """
        if key not in self._roots:
            self._roots[key] = self._new_node()
        blocks = self.match_prefix(key, tokens)
        for block in blocks:
            self._evictable.pop(block, None)
            self._refs[block] += 1
        root = self._roots[key]
        self.num_reused_total += len(blocks)
        return BlockTable(
            blocks=blocks,
            num_reused=len(blocks),
            _key=key,
            _root=root,
            _node=self._node_of[blocks[-1]] if blocks else root,
            _num_committed=len(blocks),
        )

    def reserve(self, table: BlockTable, num_tokens: int) -> bool:
        """Make the table hold `num_tokens` tokens. False, and nothing changed, if blocks lack."""
        missing = self.num_blocks_for(num_tokens) - len(table.blocks)
        if missing <= 0:
            return True
        if missing > self.num_available:
            return False
        for _ in range(missing):
            block = self._free.pop() if self._free else self._evict()
            self._refs[block] = 1
            table.blocks.append(block)
        table.num_new += missing
        self.num_new_total += missing
        return True

    def commit(self, table: BlockTable, tokens: Sequence[int], num_computed: int) -> None:
        """Register the blocks that have become full, for others to reuse.

        tokens: prompt and output so far. num_computed: how many of them have their keys and values
        in the blocks. Where another request has registered the same content meanwhile, its block
        replaces this table's (same adapter, same tokens), so no content is held twice.
        """
        size = self.tokens_per_block
        if (table._num_committed + 1) * size > num_computed:
            return
        if self._roots.get(table._key) != table._root:
            return  # its adapter was dropped: no request may reuse these
        for place in range(table._num_committed, num_computed // size):
            node_key = (table._node, tuple(tokens[place * size : (place + 1) * size]))
            block = table.blocks[place]
            known = self._block_of.get(node_key)
            if known is None:
                self._register(block, node_key, table._root)
            else:
                self._evictable.pop(known, None)
                self._refs[known] += 1
                self._refs[block] = 0
                self._free.append(block)
                table.blocks[place] = block = known
            table._node = self._node_of[block]
            table._num_committed += 1

    def release(self, table: BlockTable) -> None:
        """Give the table's blocks back; a second time does nothing."""
        for block in reversed(table.blocks):
            self._refs[block] -= 1
            if self._refs[block] == 0:
                if self._node_of[block] >= 0:
                    self._evictable[block] = None
                else:
                    self._free.append(block)
        table.blocks = []

    def give_up(self, table: BlockTable) -> None:
        """Release a table that was opened in vain: what it found in the cache was not reused."""
        self.num_reused_total -= table.num_reused
        self.release(table)

    def drop(self, key: Hashable) -> None:
        """Forget an adapter's cached blocks; those still held become free when released."""
        root = self._roots.pop(key, None)
        if root is None:
            return
        for block, block_root in enumerate(self._root_of):
            if block_root == root:
                self._unregister(block)
                if self._refs[block] == 0:
                    del self._evictable[block]
                    self._free.append(block)

    def check(self, tables: Iterable[BlockTable]) -> None:
        """Raises AssertionError unless these are all open tables, every block has one owner, and
        the references are theirs."""
        held = Counter(block for table in tables for block in table.blocks)
        assert [held[block] for block in range(self.num_blocks)] == self._refs
        owned = [*held, *self._free, *self._evictable]
        assert sorted(owned) == list(range(self.num_blocks)), sorted(owned)

    def _evict(self) -> int:
        block, _ = self._evictable.popitem(last=False)
        self._unregister(block)
        return block

    def _register(self, block: int, node_key: _NodeKey, root: int) -> None:
        self._block_of[node_key] = block
        self._node_key_of[block] = node_key
        self._node_of[block] = self._new_node()
        self._root_of[block] = root

    def _unregister(self, block: int) -> None:
        node_key = self._node_key_of[block]
        assert node_key is not None
        del self._block_of[node_key]
        self._node_key_of[block] = None
        self._node_of[block] = self._root_of[block] = -1

    def _new_node(self) -> int:
        self._next_node += 1
        return self._next_node
