"""The training loop: AdamW on the LoRA factors, checkpoints, validation, an end in time.

What a step computes follows from settings, data and step number alone. With `max_minutes` the
learning rate also follows the clock, so that it always comes down to its end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from compllm.build_scripts.staging import say
from compllm.build_scripts.training.batches import Batches
from compllm.build_scripts.training.checkpoint import State, save_state
from compllm.build_scripts.training.examples import Example
from compllm.build_scripts.training.packed_model import PackedModel
from compllm.build_scripts.training.packing import pack
from compllm.build_scripts.training.scoring import sample, score
from compllm.build_scripts.training.settings import TrainSettings
from compllm.errors import ConfigError

_LOG_EVERY_S = 15.0
_SAVE_EVERY_S = 60.0
_LONGEST_STEP_S = 60.0  # more is a process that stood still: not counted
_LONGEST_EVALUATION_S = 1800.0  # likewise


@dataclass(frozen=True, slots=True)
class Run:
    """What the loop works on."""

    model: PackedModel
    factors: dict[str, nn.Parameter]  # what is trained, as PEFT names it
    train: Sequence[Example]
    validation: Sequence[Example]
    settings: TrainSettings
    device: torch.device
    path: Path  # of the checkpoint


def train(run: Run, state: State, is_stopped: Callable[[], bool] = lambda: False) -> bool:
    """Train from `state` on, in place, and write checkpoints. True at the end of the run, False
    when it was stopped before."""
    settings = run.settings
    batches = Batches(run.train, settings.batch_size, settings.seed, settings.group_size)
    num_steps = batches.num_steps(settings.epochs)
    held_out = sample(run.validation, settings.validation_tokens, settings.seed)
    optimizer = _optimizer(run, state)
    progress = _Progress(run, state, num_steps)
    saved_s = time.monotonic()
    while (done := _share_done(run, state, num_steps)) < 1:
        rate = learning_rate(settings, state.step, done)
        take_step(run, state, optimizer, batches[state.step], rate)
        progress.tick(rate)
        done = _share_done(run, state, num_steps)
        if int(done * settings.num_evaluations) > len(state.curve):
            _evaluate(run, state, held_out)
            progress.skip()
            if len(state.curve) > state.best_place + settings.patience:
                say(f"not better in {settings.patience} evaluations: this is the end")
                break
        is_over = is_stopped()
        if is_over or time.monotonic() - saved_s > _SAVE_EVERY_S:
            _save(run, state, optimizer)
            saved_s = time.monotonic()
        if is_over:
            return False
    _save(run, state, optimizer)
    return True


def learning_rate(settings: TrainSettings, step: int, done: float) -> float:
    """Linear warm-up by steps, then a cosine down to zero over the share of the run that is
    done."""
    warm = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _share_done(run: Run, state: State, num_steps: int) -> float:
    """In [0, 1]: by steps or, where there is a limit, by time; whichever ends first."""
    budget_s = 60 * run.settings.max_minutes
    # By the clock, since the first start: a run that was stopped keeps the time that it has spent.
    by_time = state.seconds / budget_s if budget_s else 0.0
    return min(1.0, max(state.step / num_steps, by_time))


def take_step(
    run: Run, state: State, optimizer: AdamW, examples: Sequence[Example], rate: float
) -> None:
    """One forward, backward and update. Raises ConfigError for a loss that is not finite."""
    clock = _Clock()
    for group in optimizer.param_groups:
        group["lr"] = rate
    batch = pack(examples).to(run.device)
    loss = run.model.loss(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.model.parameters(), run.settings.max_norm)
    optimizer.step()
    optimizer.zero_grad()
    value = loss.item()
    if not math.isfinite(value):
        raise ConfigError(
            f"the loss is {value} at step {state.step + 1}: give a lower learning rate than "
            f"{run.settings.learning_rate:g}"
        )
    state.loss = value if state.step == 0 else 0.95 * state.loss + 0.05 * value
    state.step += 1
    state.num_tokens += batch.num_tokens
    state.num_nodes += batch.num_nodes
    clock.stop(state)


def _evaluate(run: Run, state: State, examples: Sequence[Example]) -> None:
    clock = _Clock()
    result = score(run.model, examples, run.device)
    state.curve.append(
        {
            "step": state.step,
            "train_loss": round(state.loss, 5),
            "loss": round(result.loss, 5),
            "exact": round(result.exact, 5),
            "by_kind": {kind: round(share, 4) for kind, share in result.by_kind.items()},
        }
    )
    is_best = state.best_place < 0 or _is_better(state.curve[-1], state.curve[state.best_place])
    if is_best:
        state.best_place = len(state.curve) - 1
        state.best = _copies(run)
    clock.stop(state, _LONGEST_EVALUATION_S)
    weak = sorted(result.by_kind.items(), key=lambda item: item[1])[:3]
    say(
        f"validation at step {state.step}: exact {result.exact:.1%}, loss {result.loss:.4f}"
        f"{' (best)' if is_best else ''}; weakest: "
        + ", ".join(f"{kind} {share:.0%}" for kind, share in weak)
    )


def _is_better(point: dict[str, Any], best: dict[str, Any]) -> bool:
    """By exact match, then by loss; a loss that is lower by noise is not better."""
    if point["exact"] != best["exact"]:
        return bool(point["exact"] > best["exact"])
    return bool(point["loss"] < 0.999 * best["loss"])


def _optimizer(run: Run, state: State) -> AdamW:
    settings = run.settings
    with torch.no_grad():
        for name, value in state.adapter.items():
            run.factors[name].copy_(value)
    optimizer = AdamW(
        run.model.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    if state.optimizer:
        optimizer.load_state_dict(state.optimizer)
    if state.rng is not None:
        torch.set_rng_state(state.rng)
    return optimizer


def _save(run: Run, state: State, optimizer: AdamW) -> None:
    state.adapter = _copies(run)
    state.optimizer = optimizer.state_dict()
    state.rng = torch.get_rng_state()
    save_state(run.path, state)


def _copies(run: Run) -> dict[str, torch.Tensor]:
    return {name: factor.detach().cpu().clone() for name, factor in run.factors.items()}


class _Clock:
    """Adds what a step takes to the state's times."""

    def __init__(self) -> None:
        self._start_s, self._cpu_start_s = time.monotonic(), time.process_time()

    def stop(self, state: State, longest_s: float = _LONGEST_STEP_S) -> None:
        state.seconds += min(time.monotonic() - self._start_s, longest_s)
        state.cpu_seconds += time.process_time() - self._cpu_start_s


class _Progress:
    """A line every few seconds: loss, speed, time left."""

    def __init__(self, run: Run, state: State, num_steps: int) -> None:
        self._run = run
        self._state = state
        self._num_steps = num_steps
        self._logged_s = time.monotonic()
        self.skip()

    def skip(self) -> None:
        """Begin counting anew: what went by was no training."""
        state = self._state
        self._done = _share_done(self._run, state, self._num_steps)
        self._from = (state.num_tokens, state.seconds, state.cpu_seconds)

    def tick(self, rate: float) -> None:
        if time.monotonic() - self._logged_s < _LOG_EVERY_S:
            return
        self._logged_s = time.monotonic()
        state = self._state
        tokens, seconds, cpu_seconds = self._from
        spent = max(state.seconds - seconds, 1e-9)
        cpu_spent = max(state.cpu_seconds - cpu_seconds, 1e-9)
        done = _share_done(self._run, state, self._num_steps)
        left_s = (1 - done) * spent / max(done - self._done, 1e-9)
        say(
            f"step {state.step} ({done:.1%})  loss {state.loss:.4f}  lr {rate:.2e}  "
            f"{(state.num_tokens - tokens) / spent:.0f} tokens/s "
            f"({(state.num_tokens - tokens) / cpu_spent:.0f} per CPU second)  "
            f"{state.seconds / 60:.1f} min, {left_s / 60:.1f} left"
        )
