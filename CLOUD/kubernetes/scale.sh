#!/bin/sh
# Brings the cluster to COUNT nodes, one at a time: a new one joins the ring and takes its share; one that goes
# leaves the ring first, and only then its pod and its volume go.
#
#   CLOUD/kubernetes/scale.sh COUNT
#
# After an interruption, at whatever point, give the same command again.
set -eu
count=${1:-}
case $count in
  '' | *[!0-9]*) echo "usage: $0 COUNT" >&2; exit 2 ;;
esac
[ "$count" -ge 3 ] || { echo "with fewer than 3 nodes a key has fewer than 3 replicas" >&2; exit 2; }

k() { kubectl --namespace torc "$@"; }
on() { k exec torc-0 --container torc -- torc "$@"; }
replicas() { k get statefulset torc --output jsonpath='{.spec.replicas}'; }
has_claim() {
  claim=$(k get persistentvolumeclaim "data-$1" --ignore-not-found --output name) || exit 1
  [ -n "$claim" ]
}
# Whether a node of that name is in the ring, or on its way in or out. A cluster that does not answer ends the
# script: it must not be taken for one that does not know the node.
is_member() {
  ring=$(on ring show) || exit 1
  printf '%s\n' "$ring" | grep -qw -- "$1"
}

# What an earlier run, or a hand, has left behind: a claim without a pod.
finish() {
  left=torc-$1
  has_claim "$left" || return 0
  if is_member "$left"; then
    echo "$left was taken away without having left the ring: bring it back (kubectl --namespace torc scale statefulset torc --replicas=$(($1 + 1))), then give this command again" >&2
    exit 1
  fi
  k wait --for=delete "pod/$left" --timeout=2m
  k delete persistentvolumeclaim "data-$left"
}

now=$(replicas)
finish "$now"
while [ "$now" -lt "$count" ]; do
  new=torc-$now
  on status --until healthy --timeout 2m
  k scale statefulset torc --current-replicas="$now" --replicas=$((now + 1))
  k wait --for=create "pod/$new" --timeout=2m
  # Ready as soon as it is taken in; its share may still be on its way.
  k wait --for=condition=Ready "pod/$new" --timeout=15m
  on ring follow
  now=$((now + 1))
done
while [ "$now" -gt "$count" ]; do
  leaver=torc-$((now - 1))
  if is_member "$leaver"; then
    # Follows until the data is elsewhere and a majority has stored the new ring; fails when it was taken back.
    on ring leave "$leaver" --yes
  fi
  # The node has stopped by itself. Kubernetes starts its container again, which says that it was removed.
  k scale statefulset torc --current-replicas="$now" --replicas=$((now - 1))
  now=$((now - 1))
  finish "$now"
done
on status --until healthy --timeout 10m
