#!/bin/sh
# start.sh master|replica|sentinel ADDRESS MASTER: starts Redis or Sentinel with a configuration that it may rewrite.
# The copy is made once; from then on what Sentinel has written into it counts. (One without a password is of an
# earlier version of this file.)
set -eu
umask 0077
role=$1
address=$2
first_master=$3
password=$(cat /run/secrets/redis_password)
if [ "$role" = sentinel ]; then
  if ! grep -qs '^requirepass ' /data/sentinel.conf; then
    {
      # By this password the sentinels know each other, too.
      echo "requirepass $password"
      echo "sentinel monitor torc $first_master 6379 2"
      cat /etc/torc/sentinel.conf
      echo "sentinel announce-ip $address"
      echo "sentinel auth-pass torc $password"
    } >/data/sentinel.new
    mv /data/sentinel.new /data/sentinel.conf
  fi
  exec redis-server /data/sentinel.conf --sentinel
fi
if [ ! -s /data/redis.conf ]; then
  {
    cat /etc/torc/redis.conf
    echo "replica-announce-ip $address"
    echo "requirepass $password"
    echo "masterauth $password"
    [ "$role" = master ] || echo "replicaof $first_master 6379"
  } >/data/redis.new
  mv /data/redis.new /data/redis.conf
fi
exec redis-server /data/redis.conf
