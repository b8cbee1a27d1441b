#!/bin/bash
# Serves the repository that build.sh made. Arguments go to Triton.
set -euo pipefail
repository="$COMPLLM_HOME/repository"
if [[ ! -x "$repository/launch.sh" ]]; then
    echo "error: no repository in $repository: run build.sh with this volume first" >&2
    exit 1
fi
exec "$repository/launch.sh" "$@"
