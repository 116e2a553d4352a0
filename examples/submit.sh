#!/usr/bin/env bash
# One picture to one answer, with curl alone: submit, poll, print the answer as JSON.
#
#   RUNPOD_API_KEY=... examples/submit.sh ENDPOINT_ID photo.jpg > answer.json
set -euo pipefail
endpoint=$1 picture=$2
api=${RUNPOD_ENDPOINT_BASE_URL:-https://api.runpod.ai/v2}/$endpoint
key=${RUNPOD_API_KEY:?set it to your API key}

ask() { curl --fail-with-body --silent --show-error -H "Authorization: Bearer $key" "$@"; }
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }

# The picture goes over a pipe: base64 of a photograph is longer than a command line may be.
job=$({ printf '{"input": {"image": "'; base64 < "$picture" | tr -d '\n'; printf '", "preset": "fast"}}'; } |
  ask -H 'Content-Type: application/json' --data-binary @- "$api/run" | field id)
while :; do
  answer=$(ask "$api/status/$job")
  case $(field status <<< "$answer") in
    COMPLETED) printf '%s\n' "$answer"; exit 0 ;;
    FAILED | CANCELLED | TIMED_OUT) printf '%s\n' "$answer" >&2; exit 1 ;;
  esac
  sleep 1
done
