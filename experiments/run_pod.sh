#!/usr/bin/env bash
# Train on many hosts: one process a host with all its devices, the same command on each.
#
#   experiments/run_pod.sh tpu POD ZONE node18_cifar10 --run-dir /shared/runs/node18
#   experiments/run_pod.sh tpu POD ZONE node18_cifar10 --run-dir gs://my-bucket/runs/node18
#   experiments/run_pod.sh hosts "gpu0 gpu1" node18_cifar10 --run-dir /shared/runs/node18
#   experiments/run_pod.sh local 2 digits --run-dir runs/two
#
# `tpu` runs on every worker of a TPU pod, through gcloud; `hosts` on hosts that ssh reaches; `local` starts so many
# processes here, to try it out. Hosts have this repository in the same place (set REPOSITORY where it differs from
# here), the package installed, and --run-dir on a file system that all of them share, or in a bucket. PYTHON and PORT
# can be set. Ends with the status of the first process that fails; --resume goes on, with any number of hosts.
set -euo pipefail

usage() { sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -ge 3 ] || usage
repository=${REPOSITORY:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
python=${PYTHON:-python}
port=${PORT:-8476}
kind=$1
target=$2
shift 2

# One command for all; a host adds which process it is.
train() { printf 'cd %q && exec %q -m experiments.train' "$repository" "$python" && printf ' %q' "$@" --distributed; }

case $kind in
  tpu)
    zone=$1 && shift
    exec gcloud compute tpus tpu-vm ssh "$target" --zone "$zone" --worker=all --command "$(train "$@")" ;;
  hosts) read -ra hosts <<<"$target" ;;
  local) mapfile -t hosts < <(seq "$target") ;;
  *) usage ;;
esac

first=${hosts[0]}
[ "$kind" = hosts ] || first=127.0.0.1
# The address of user@host is the host. At the end, whatever ends it, the processes save and are waited for.
first=${first#*@}
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
for i in "${!hosts[@]}"; do
  command="$(train "$@") --coordinator $first:$port --n-processes ${#hosts[@]} --process-id $i"
  if [ "$kind" = hosts ]; then ssh -tt "${hosts[$i]}" "$command" & else bash -c "$command" & fi
done
for _ in "${hosts[@]}"; do wait -n; done
