"""`compllm ask`: answer one question. The graph is drawn on stderr, the answer goes to stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from compllm.cli.explain import print_answer
from compllm.cli.shared import (
    Compose,
    ConfigOption,
    DeadlineOption,
    GateOption,
    JsonOption,
    PlanOption,
    QueryArgument,
    UrlOption,
    connected,
    read_plan,
    read_query,
    read_settings,
    run_work,
    with_server,
)
from compllm.errors import ConfigError

if TYPE_CHECKING:
    from compllm.config import Config
    from compllm.types import Answer, Plan, Query


NoPlanOption = Annotated[
    bool,
    typer.Option(
        "--no-plan", help="Write no plan: send the whole question to one expert or the base."
    ),
]
ComposeOption = Annotated[
    Compose | None,
    typer.Option(
        help="When a model writes the answer out of the sub-queries' responses; auto: where "
        "there are several. Default: compose.policy."
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Tokens of the answer at most; default: limits.max_answer_tokens (192).",
    ),
]
TemperatureOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="T",
        help="How freely the answer's tokens are drawn; 0 always takes the likeliest.",
    ),
]
DrawSeedOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Of the random draws, where the temperature is not 0. Default: another each time.",
    ),
]
ExplainOption = Annotated[
    bool,
    typer.Option("--explain", help="Report where the time went, on stderr or in the JSON."),
]


def ask(
    query: QueryArgument = None,
    plan: PlanOption = None,
    url: UrlOption = None,
    is_whole: NoPlanOption = False,
    gate: GateOption = None,
    compose: ComposeOption = None,
    deadline: DeadlineOption = None,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 0.0,
    seed: DrawSeedOption = None,
    is_explained: ExplainOption = False,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Answer a question.

    The graph is shown live on stderr, the answer is streamed on stdout.
    """
    from compllm.plan import direct_plan
    from compllm.types import Query, SamplingParams

    if is_whole and plan is not None:
        raise ConfigError("give --plan FILE or --no-plan, not both")
    overrides: dict[str, object] = {
        "compose.policy": compose and compose.value,
        "gate.mode": gate and gate.value,
    }
    settings = read_settings(config, url, overrides)
    given = read_plan(plan, settings) if plan else None
    sampling = SamplingParams(
        max_tokens=max_tokens or settings.limits.max_answer_tokens,
        temperature=temperature,
        seed=seed,
    )
    text = read_query(query, plan)
    given = direct_plan(text) if is_whole else given
    answer_query = Query(text, deadline_s=deadline, sampling=sampling)
    answer = run_work(_ask(answer_query, given, with_server(settings)[0], is_live=not is_json))
    print_answer(answer, is_explained=is_explained, is_json=is_json)


async def _ask(query: Query, plan: Plan | None, settings: Config, *, is_live: bool) -> Answer:
    from rich.console import Console

    from compllm.cli.view import footer, show

    console = Console(stderr=True)
    async with await connected(settings, console) as llm:
        if not is_live:
            return await llm.ask(query, plan=plan)
        answer = await show(llm.stream(query, plan=plan), console)
    console.print(footer(answer), style="dim", markup=False, highlight=False, soft_wrap=True)
    return answer
