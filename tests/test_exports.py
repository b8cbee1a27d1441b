import subprocess
import sys

import compllm


def test_public_names_are_sorted_and_there() -> None:
    assert compllm.__all__ == sorted(compllm.__all__)
    for name in compllm.__all__:
        assert getattr(compllm, name).__name__ if name != "Event" else compllm.Event


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(compllm, "nonsense")


def test_importing_loads_nothing_heavy() -> None:
    # In a process of its own: the tests around this one have loaded everything.
    heavy = "{'torch', 'numpy', 'sentence_transformers', 'tritonclient', 'openvino', 'networkx'}"
    code = f"import sys, compllm; print({heavy} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (found.stdout.strip(), found.stderr) == ("set()", "")


def test_the_path_loads_neither_torch_nor_an_engine() -> None:
    heavy = "{'torch', 'sentence_transformers', 'tritonclient', 'openvino', 'networkx'}"
    code = f"import sys; from compllm import CompLLM; print({heavy} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (found.stdout.strip(), found.stderr) == ("set()", "")
