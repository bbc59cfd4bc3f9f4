#!/usr/bin/env bash
# Asks a real API server, with Knative's CRDs and admission webhooks, what it would say to every object of every overlay. The
# platform, if it runs there, is left alone. Which cluster:
#
#   knative/check.sh                    the cluster kit's (LAB, or ../shared/knative-lab/lab), if it runs
#   CLUSTER=context knative/check.sh    kubectl's current context
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ "${CLUSTER:-}" != context ]]; then
  lab=${LAB:-../shared/knative-lab/lab}
  if [[ ! -x $lab ]]; then
    echo "no cluster kit at $lab; CLUSTER=context takes kubectl's current context" >&2
    exit 2
  fi
  eval "$("$lab" env)"
fi
kubectl version -o json >/dev/null || { echo "the cluster does not answer" >&2; exit 2; }

for crd in services.serving.knative.dev brokers.eventing.knative.dev sinkbindings.sources.knative.dev; do
  kubectl get crd "$crd" -o name >/dev/null || { echo "Knative Serving and Eventing must be installed" >&2; exit 2; }
done
# A dry run stores nothing, but Serving's webhook tries a pod, for which namespace and ServiceAccounts must be there. So the
# objects are tried in a namespace of their own, with the platform's Pod Security.
namespace=robofleet-check-$$
work=$(mktemp -d)
trap 'rm -rf "$work"; kubectl delete namespace "$namespace" --wait=false --ignore-not-found >/dev/null' EXIT
sed "s/^  name: robofleet\$/  name: $namespace/" knative/base/namespace.yaml | kubectl create -f - >/dev/null

failed=0
for overlay in knative/overlays/*/; do
  name=$(basename "$overlay")
  # What ko would make of the images; the digest is not looked up before a pod is started.
  kubectl kustomize "$overlay" |
    sed -E "s#^( *namespace:) robofleet\$#\1 $namespace#
      s#ko://[^ ]*/([a-z-]+)\$#registry.example.com/\1@sha256:$(printf '0%.0s' {1..64})#" >"$work/$name.yaml"
  for account in $(awk '/^kind: ServiceAccount$/,/^---$/ {if ($1 == "name:") print $2}' "$work/$name.yaml"); do
    kubectl -n "$namespace" get serviceaccount "$account" -o name >/dev/null 2>&1 ||
      kubectl -n "$namespace" create serviceaccount "$account" >/dev/null
  done
  if kubectl apply --server-side --dry-run=server --force-conflicts --field-manager=check -f "$work/$name.yaml" >"$work/out" 2>&1; then
    # The API server's warnings (Pod Security, deprecated fields) count as failures.
    if grep -i '^warning' "$work/out"; then
      failed=1
      continue
    fi
    printf '%-6s %s objects accepted\n' "$name" "$(grep -c 'server-side applied\|serverside-applied' "$work/out")"
  else
    printf '%-6s refused\n' "$name"
    grep -v 'serverside-applied' "$work/out"
    failed=1
  fi
done
exit "$failed"
