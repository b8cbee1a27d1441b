"""What the tests of the path share: a small catalogue and ways to build things from it."""

from __future__ import annotations

from pathlib import Path

from compllm.catalogue import Adapter, Catalogue, RouterSettings
from compllm.config import Config, load_config
from compllm.pipeline import CompLLM
from compllm.prompts import CHATML
from compllm.testing import HashingEncoder, Reply, ScriptedBackend
from compllm.types import Expert

BASE = Expert("base", "anything", "You answer.")
CHEMISTRY = Expert("chemistry", "elements", "You are a chemist.", adapter="chem", adapter_id=7)
MATHEMATICS = Expert("mathematics", "numbers", "You calculate.", adapter="math", adapter_id=8)

CATALOGUE = Catalogue(
    path=Path("experts.toml"),
    base=BASE,
    template=CHATML,
    adapters=(Adapter("chem", 7, None), Adapter("math", 8, None)),
    experts=(CHEMISTRY, MATHEMATICS),
    examples=(
        ("What is the atomic number of iron?", "What is the atomic number of neon?"),
        ("What is #1 plus #2?", "What is 3 plus 4?"),
    ),
    router=RouterSettings(0.5, HashingEncoder.id),
    out_of_domain=("Who painted the Mona Lisa?", "Where do elephants sleep?"),
)

# The generator's reply of most tests, line by line: two independent nodes and their join.
DIAMOND = (
    "1 | What is the atomic number of iron?\n",
    "2 | What is the atomic number of neon?\n",
    "3 <1,2> | What is #1 plus #2?",
)


def settings(**overrides: object) -> Config:
    """The defaults with `section__name` values replaced."""
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(overrides={"timeouts.retry_wait_s": 0, **named}, environ={})


def make_llm(backend: ScriptedBackend, **overrides: object) -> CompLLM:
    return CompLLM(backend, HashingEncoder(), CATALOGUE, settings(**overrides))


def plan_reply(*lines: str, **more: object) -> Reply:
    """The generator's reply."""
    return Reply(lines, is_guided=True, **more)  # type: ignore[arg-type]


def node_reply(question: str, response: str = "", **more: object) -> Reply:
    """The reply to the node with this question, whatever its parents said."""
    head = f"user\n{question}"
    return Reply(response, contains=head, is_guided=False, **more)  # type: ignore[arg-type]


# The questions of DIAMOND, and the replies to its nodes.
IRON, NEON, SUM = (
    "What is the atomic number of iron?",
    "What is the atomic number of neon?",
    "#1 plus",
)
NODES = (
    node_reply(IRON, "26"),
    node_reply(NEON, "10"),
    Reply("36", contains="user\nWhat is 26 plus"),
)
TWO_LEAVES = (f"1 | {IRON}\n", f"2 | {NEON}\n")
