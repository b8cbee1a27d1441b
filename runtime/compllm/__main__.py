"""`python -m compllm` is the `compllm` command."""

from compllm.cli.app import main

if __name__ == "__main__":
    main()
