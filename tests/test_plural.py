import pytest

from compllm.plural import counted


@pytest.mark.parametrize(
    ("number", "noun", "says"),
    [
        (0, "node", "0 nodes"),
        (1, "node", "1 node"),
        (2, "node", "2 nodes"),
        (1, "sub-query", "1 sub-query"),
        (3, "sub-query", "3 sub-queries"),
        (2, "new expert", "2 new experts"),
        (2, "key", "2 keys"),
        (2, "batch", "2 batches"),
    ],
)
def test_one_of_a_kind_has_no_plural(number: int, noun: str, says: str) -> None:
    assert counted(number, noun) == says
