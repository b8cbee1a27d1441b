"""`python -m compllm` is the `compllm` command."""

from compllm.cli import main

if __name__ == "__main__":
    main()
