"""The server's log: one file a start, the last few kept, and the reason of a failure out of it.

Lines are Triton's own; the header of a start has their form.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from pathlib import Path

from compllm.server.supervisor import LOG_FILE, LOG_KEPT, STARTED_AGAIN


def is_log(path: Path) -> bool:
    """Whether it is the log of this start or of an earlier one."""
    return re.fullmatch(rf"{re.escape(LOG_FILE)}(\.\d+)?", path.name) is not None


def rotate(directory: Path) -> Path:
    """The file for the next start's log, which is not there: earlier ones move up by a number."""
    log = directory / LOG_FILE
    kept = [log, *(directory / f"{LOG_FILE}.{number}" for number in range(1, LOG_KEPT + 1))]
    for older, newer in reversed(list(zip(kept[1:], kept, strict=False))):
        if newer.exists():
            newer.replace(older)
    return log


def write_header(log: Path, engine: Path, config_file: str, ports: Mapping[str, int]) -> None:
    """One line about the start: when, which engine, settings and ports."""
    now = datetime.datetime.now(datetime.UTC)
    listens = ", ".join(f"{name} {port}" for name, port in ports.items())
    line = (
        f'I{now:%m%d %H:%M:%S.%f} {os.getpid()} compllm] "start {now:%Y-%m-%dT%H:%M:%SZ}: engine '
        f'{engine}, settings {config_file or "of the environment"}, {listens}"\n'
    )
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
        file.write(line)


def read_log(log: Path) -> str:
    """The text; empty where there is none."""
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def reason_in(log: Path, *, since_restart: bool = False) -> str:
    """`: reason` out of the log; empty where it names none. since_restart: not that of a death
    after which the supervisor started the server again."""
    text = read_log(log)
    if since_restart and STARTED_AGAIN in text:
        text = text.rpartition(STARTED_AGAIN)[2].partition("\n")[2]
    # The supervisor's own line first: of a crash Triton leaves a stack trace.
    found = re.findall(r'^E\d{4} .*? compllm\] "(.*)"$', text, re.MULTILINE)[-1:]
    found = found or re.findall(r"failed to load '[^']*' version \d+: (.*)", text)
    if not found:
        found = re.findall(r"^(?:E\d{4} .*?\] |error: )(.*)", text, re.MULTILINE)
    if not found:
        # Not Triton's own reports and tables, which describe a server that was well.
        found = re.findall(r"^(?![IW]\d{4} |[+|])[ \t]*\S.*", text, re.MULTILINE)[-1:]
    if not found:
        return ""
    # Triton escapes line ends, and a Python model's error carries its traceback.
    reason = found[0].split("\\n\\nAt:")[0].replace("\\n", " ").strip().strip('"')
    return f": {reason.removeprefix('Internal: ')}"
