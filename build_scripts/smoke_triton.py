"""Try every assumption about a Triton that serves TensorRT-LLM: one line each, pass, fail or skip.

    python build_scripts/smoke_triton.py --url localhost:8001
    python build_scripts/smoke_triton.py --url HOST:8001 --http-url http://HOST:8000 \\
        --metrics-url http://HOST:8002/metrics --tokenizer DIR --adapters DIR --json FILE
    python build_scripts/smoke_triton.py --url EMBEDDED:8001 --record FILE    answers to compare,
    python build_scripts/smoke_triton.py --url HOST:8001 --reference FILE     and the comparison

For the first run on hardware, where nothing of this was ever tried, and after every change of
image. Runs against the embedded server too (`compllm up`), where everything that it can do has to
pass. The last line on stdout is the same as one JSON object; exit status 1 when a check failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from compllm.backends.adapter_files import converted_beside, is_embedded_engine, weights_in
from compllm.backends.tokenizer import Tokenizer
from compllm.backends.wire import AdapterTensors
from compllm.build_scripts.smoke import adapters, comp_llm, life, reference, tensors
from compllm.build_scripts.smoke.checks import Bench, Check, Result, run_check
from compllm.build_scripts.smoke.client import Client
from compllm.build_scripts.staging import run_script, write_atomically
from compllm.errors import BackendUnavailable, ConfigError
from compllm.formats.json_files import read_json
from compllm.formats.manifest import Manifest

CHECKS: tuple[Check, ...] = (
    *tensors.CHECKS,
    *life.CHECKS,
    *adapters.CHECKS,
    *reference.CHECKS,
    *comp_llm.CHECKS,
)


def open_bench(args: argparse.Namespace) -> Bench:
    """Everything that the checks need. Raises BackendUnavailable, ConfigError."""
    client = Client(args.url, args.timeout)
    try:
        question = service_pb2.ModelConfigRequest(name=args.model)
        config = client.stub.ModelConfig(question, timeout=args.timeout).config
    except grpc.RpcError as error:
        raise BackendUnavailable(
            f"no model {args.model} at {args.url}: {error.details()}: is the server up, and ready?"
        ) from error
    host = args.url.rpartition(":")[0]
    bench = Bench(
        client=client,
        config=config,
        tokenizer=None,
        adapters={},
        metrics_url=f"http://{host}:8002/metrics" if args.metrics_url is None else args.metrics_url,
        http_url=f"http://{host}:8000" if args.http_url is None else args.http_url,
        seed=time.time_ns() if args.seed is None else args.seed,
    )
    bench.reference = _reference(args.reference) if args.reference is not None else None
    bench.tokenizer = _tokenizer(args.tokenizer, bench.parameter("tokenizer_dir"))
    bench.adapters = _adapters(args.adapters, bench)
    return bench


def _reference(file: Path) -> dict[str, Any]:
    value = read_json(file)
    if value.get("format") != reference.FORMAT:
        raise ConfigError(
            f"{file} has format {value.get('format')!r}, read is {reference.FORMAT!r}: record it "
            "again with --record"
        )
    return value


def _tokenizer(given: Path | None, named: str) -> Tokenizer | None:
    """The given one; else the one that the model names, where this machine has it."""
    if given is not None:
        return Tokenizer.from_dir(given)
    return Tokenizer.from_dir(named) if named and Path(named, "tokenizer.json").is_file() else None


def _adapters(given: Path | None, bench: Bench) -> dict[int, AdapterTensors]:
    """By task id, out of the given folder, else out of those that the model names."""
    engine = Path(bench.parameter("gpt_model_path"))
    for folder in [given] if given is not None else [engine, converted_beside(engine)]:
        weights = weights_in(folder) if folder.is_dir() else None
        if weights is not None:
            found = {task_id: weights(task_id) for task_id in _task_ids(folder)}
            return {task_id: each for task_id, each in found.items() if each is not None}
    if given is not None:
        raise ConfigError(f"{given} holds no adapters: name what hf_lora_convert.py wrote")
    return {}


def _task_ids(folder: Path) -> list[int]:
    if is_embedded_engine(folder):
        return [entry.task_id for entry in Manifest.read(folder).adapters]
    return sorted(int(each.name) for each in folder.iterdir() if each.name.isdecimal())


def run_checks(bench: Bench, only: Sequence[str] = ()) -> list[Result]:
    """Every check, or those whose names begin with one of `only`; a line for each as it ends."""
    results = []
    for check in CHECKS:
        if only and not check.name.startswith(tuple(only)):
            continue
        result = run_check(check, bench)
        found = " ".join(result.found.split())
        print(f"{result.status.upper():4}  {result.name:20}  {found}", flush=True)
        if result.status == "fail":
            print(f"{'':28}assumed: {result.assumption}", flush=True)
        results.append(result)
    return results


def report(bench: Bench, results: Sequence[Result]) -> dict[str, Any]:
    counts = {status: 0 for status in ("pass", "fail", "skip")}
    for result in results:
        counts[result.status] += 1
    return {
        "model": bench.model,
        "backend": bench.config.backend,
        "seed": bench.seed,
        "counts": counts,
        "checks": [asdict(result) for result in results],
    }


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Try every assumption about a Triton.")
    parser.add_argument("--url", required=True, metavar="HOST:PORT", help="its gRPC")
    parser.add_argument("--http-url", metavar="URL", help="default: port 8000; '' for none")
    parser.add_argument("--metrics-url", metavar="URL", help="default: port 8002; '' for none")
    parser.add_argument("--model", default="tensorrt_llm", help="the core model to try")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="default: as the model says")
    parser.add_argument("--adapters", type=Path, metavar="DIR", help="default: as the model says")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, help="of the prompts; default: new ones each time")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="checks to run")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--reference", type=Path, metavar="FILE", help="answers to compare with")
    other.add_argument("--record", type=Path, metavar="FILE", help="write them, check nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    failed = 0

    def run() -> None:
        nonlocal failed
        bench = open_bench(args)
        try:
            if args.record is not None:
                made = json.dumps(reference.record(bench))
                write_atomically(args.record, made + "\n")
                print(args.record)
                return
            told = report(bench, run_checks(bench, args.only))
        finally:
            bench.client.close()
        failed = told["counts"]["fail"]
        if args.json is not None:
            write_atomically(args.json, json.dumps(told, indent=2) + "\n")
        print(json.dumps(told))

    return run_script(run) or int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
