"""The path of a query: its overheads and its overlaps."""
