#!/bin/sh
# Makes a new cluster: authority, first member, the others. Once for each cluster: given again, it
# goes on where it was interrupted, and refuses when it was done.
#
#   CLOUD/kubernetes/bring-up.sh PKI_FOLDER
#
# PKI_FOLDER holds ca.pem and ca.key (`torc pki init --out PKI_FOLDER`); keep it, outside of the cluster.
# Wants kubectl with the right context.
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
[ "$#" -eq 1 ] || { echo "usage: $0 PKI_FOLDER" >&2; exit 2; }
pki=$1
for file in ca.pem ca.key; do
  [ -s "$pki/$file" ] || { echo "$pki/$file is missing: torc pki init --out $pki" >&2; exit 2; }
done
k() { kubectl --namespace torc "$@"; }

begun=$(k get configmap torc-bootstrap --ignore-not-found --output jsonpath='{.data.pod}')
case $begun in
  '')
    claims=$(k get persistentvolumeclaims --selector app.kubernetes.io/name=torc --output name)
    if [ -n "$claims" ]; then
      echo "there are volumes of an earlier cluster, and a new one wants empty ones: delete the claims first, if you mean it" >&2
      exit 1
    fi
    ;;
  none)
    echo "this cluster was brought up already. Changes of the manifests: kubectl apply --kustomize $here" >&2
    exit 1
    ;;
  *) echo "an earlier run began: continuing" ;;
esac
kubectl apply --filename "$here/namespace.yaml"
secret=$(k get secret torc-ca --ignore-not-found --output name)
[ -n "$secret" ] \
  || k create secret generic torc-ca --from-file=ca.pem="$pki/ca.pem" --from-file=ca.key="$pki/ca.key"
# From here on torc-0 may make a cluster, if its volume is empty.
[ -n "$begun" ] \
  || k create configmap torc-bootstrap --from-literal=pod=torc-0
kubectl apply --kustomize "$here"
k rollout status statefulset/torc --timeout=15m
# And from here on nobody may, ever again.
k patch configmap torc-bootstrap --type merge --patch '{"data":{"pod":"none"}}'
k exec torc-0 --container torc -- torc status --until healthy --timeout 2m
