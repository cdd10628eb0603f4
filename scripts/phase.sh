#!/bin/sh
# scripts/phase.sh TITLE COMMAND...   runs the command and prints when it began, when it ended, and how.
set -eu
title=$1
shift
begin=$(date +%s)
printf '[%s] %s ...\n' "$(date +%H:%M:%S)" "$title"
status=0
"$@" || status=$?
took=$(($(date +%s) - begin))
if [ "$status" -eq 0 ]; then
  printf '[%s] %s: ok after %d s\n' "$(date +%H:%M:%S)" "$title" "$took"
else
  printf '[%s] %s: FAILED after %d s (exit code %d): %s\n' "$(date +%H:%M:%S)" "$title" "$took" "$status" "$*" >&2
fi
exit "$status"
