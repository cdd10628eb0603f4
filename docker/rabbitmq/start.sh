#!/bin/sh
# Starts a broker with the secrets of this installation: the user's password, and the cookie by which the
# brokers of a cluster know each other.
set -eu
umask 0077
mkdir -p /tmp/torc /tmp/log
printf 'default_pass = %s\n' "$(cat /run/secrets/rabbitmq_password)" >/tmp/torc/password.conf
# The first broker starts before the others, so it asks for them only once; names that nobody has yet take
# seconds to be refused. The others wait for it as long as it takes.
if [ "$(hostname)" = rabbitmq-1 ]; then
  echo 'cluster_formation.discovery_retry_limit = 1' >>/tmp/torc/password.conf
fi
cookie=/var/lib/rabbitmq/.erlang.cookie
rm -f "$cookie"
cat /run/secrets/rabbitmq_cookie >"$cookie"
chmod 400 "$cookie"
exec docker-entrypoint.sh rabbitmq-server
