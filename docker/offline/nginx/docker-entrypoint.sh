#!/bin/sh
# As in the official image: the executable scripts of /docker-entrypoint.d run before nginx does.
set -e
if [ "$1" = nginx ]; then
  for script in /docker-entrypoint.d/*.sh; do
    [ ! -x "$script" ] || "$script"
  done
fi
exec "$@"
