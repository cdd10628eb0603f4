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
# A queue lives on the brokers that were members when it was declared, which can be the first one alone: it
# is there, and used, before the others are. So each broker, once it is a member, takes up a copy of every
# queue; of those that it has already nothing changes.
take_up_queues() {
  attempts=0
  until bash /etc/torc/health.sh 2>/dev/null; do sleep 2; done
  until report=$(rabbitmq-queues --timeout 60 grow "rabbit@$(hostname)" all 2>&1) &&
    case $report in *error*) false ;; esac
  do
    attempts=$((attempts + 1))
    if [ "$attempts" -ge 20 ]; then
      echo "this broker has no copy of some queues: $report" >&2
      return
    fi
    sleep 5
  done
}
take_up_queues &
exec docker-entrypoint.sh rabbitmq-server
