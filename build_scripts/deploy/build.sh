#!/bin/bash
# Checkpoint -> engines -> repository, in the image, on the GPUs that serve. Run again, it continues
# or finds nothing to do.
#
#   CHECKPOINT  directory of the base, a Hugging Face checkpoint; default: the project's own base
#   SETTINGS    a gpu.toml; default: the shipped one
#   CATALOGUE   an experts.toml; default: the shipped one
#   CONFIG      settings of comp_llm as TOML; default: none
# Further arguments go to build_trtllm.py: --gpu l4, --num-gpus 2, --topology per-expert, ...
set -euo pipefail

scripts=compllm.build_scripts
engines="$COMPLLM_HOME/engines/trtllm"

is_dry=false
[[ " $* " != *" --dry-run "* ]] || is_dry=true
if ! $is_dry; then  # a dry run downloads nothing
    if [[ -n "${CHECKPOINT:-}" ]]; then
        python3 -m "$scripts.fetch_base" --encoder-only
    else
        python3 -m "$scripts.fetch_base"
    fi
fi
python3 -m "$scripts.build_trtllm" --out "$engines" \
    ${CHECKPOINT:+--checkpoint "$CHECKPOINT"} ${SETTINGS:+--settings "$SETTINGS"} \
    ${CATALOGUE:+--catalogue "$CATALOGUE"} "$@"
if $is_dry; then  # there are no engines to make a repository of
    exit 0
fi
python3 -m "$scripts.make_triton_repo" --engines "$engines" --out "$COMPLLM_HOME/repository" \
    ${CATALOGUE:+--catalogue "$CATALOGUE"} ${CONFIG:+--config "$CONFIG"}
