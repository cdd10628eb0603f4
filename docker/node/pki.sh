#!/bin/sh
# One-shot: makes the cluster's certificate authority and the nodes' certificates, each once. The CA's key
# stays in a volume that no node mounts; each node gets a volume with its own certificate only.
set -eu
umask 0077
ca=/pki
if [ ! -e "$ca/ca.key" ]; then
  torc pki init --out "$ca"
  # Only a cluster that has just got its authority may be bootstrapped: see start.sh.
  touch /issued/node-1/bootstrap
fi
# Each a node's name, or NAME=FOLDER: its certificate goes into another folder of /issued than that of its name.
for node in "$@"; do
  into=/issued/${node#*=}
  node=${node%%=*}
  # Again in each run: whoever has the CA's key renews a certificate before it expires.
  torc pki issue "$node" --pki "$ca"
  cp "$ca/ca.pem" "$ca/$node.pem" "$ca/$node.key" "$into/"
done
