#!/bin/bash
# docker/secrets.sh: makes the passwords of the side services, each once, in docker/secrets (ignored by
# git, for this user only). Nothing has a default password. To change one: remove the file, run this again,
# and start the services again (RabbitMQ and Grafana keep the old one in their volumes).
set -euo pipefail
cd "$(dirname "$0")"

mkdir -p secrets
# Containers read the files under users of their own, so the folder is what keeps others out.
chmod 700 secrets

# 32 characters of a-z A-Z 0-9: about 190 bits.
random() { head -c 4096 /dev/urandom | LC_ALL=C tr -dc 'a-zA-Z0-9' | head -c 32; }

make() {
  [ -s "secrets/$1" ] && return
  printf '%s' "$2" >"secrets/$1.new"
  chmod 644 "secrets/$1.new"
  mv "secrets/$1.new" "secrets/$1"
}

make redis_password "$(random)"
make rabbitmq_password "$(random)"
make rabbitmq_cookie "$(random)"
make grafana_password "$(random)"
