#!/bin/bash
# chain.sh - for sites where a job may not be requeued: submits COUNT jobs of one run, each to begin when the one before
# has ended, whatever became of it.  The job that ends the run cancels those behind it.
#
#   jobs/slurm/chain.sh COUNT [SBATCH OPTION ...] jobs/slurm/train.sbatch CONFIG.yaml [key=value ...]
set -eu
if [ $# -lt 3 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    echo 'usage: chain.sh COUNT [SBATCH OPTION ...] SCRIPT CONFIG.yaml [key=value ...]' >&2
    exit 2
fi
count=$1
shift
CHAIN=birkhoff-$(date +%s)-$$
export CHAIN
after=()
for ((i = 0; i < count; i++)); do
    job=$(sbatch --parsable --no-requeue --comment="$CHAIN" "${after[@]}" "$@")
    job=${job%%;*} # the name of the cluster may stand behind it
    echo "job $job"
    after=(--dependency="afterany:$job")
done
