#!/bin/sh
# A server answers, and a replica has its master; a sentinel knows the master.
set -eu
REDISCLI_AUTH=$(cat /run/secrets/redis_password)
export REDISCLI_AUTH
if [ "$1" = sentinel ]; then
  redis-cli -p 26379 sentinel get-master-addr-by-name torc | grep -q .
  exit
fi
info=$(redis-cli info replication)
case $info in
  *role:master*) ;;
  *master_link_status:up*) ;;
  *) exit 1 ;;
esac
