#!/bin/sh
# The GPUs of this machine, as Spark wants to hear of them.
set -e
indices=$(nvidia-smi --query-gpu=index --format=csv,noheader)
printf '{"name": "gpu", "addresses": [%s]}\n' "$(echo "$indices" | sed 's/.*/"&"/' | paste -sd, -)"
