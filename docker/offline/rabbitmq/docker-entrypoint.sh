#!/bin/sh
# As in the official image: root becomes rabbitmq.
set -e
case "$1" in
  rabbitmq*)
    if [ "$(id -u)" = 0 ]; then
      find /var/lib/rabbitmq \! -user rabbitmq -exec chown rabbitmq {} +
      exec setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups "$0" "$@"
    fi
    ;;
esac
exec "$@"
