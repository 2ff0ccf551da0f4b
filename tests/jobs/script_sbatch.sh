#!/bin/bash
# test: labels=unit timeout=60
# The decisions of the job scripts in jobs/slurm, with stand-ins for Slurm's programs and for birkhoff.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
scripts=$BIRKHOFF_SOURCE/jobs/slurm

mkdir bin
cat >bin/scontrol <<'S'
case "$1 $2" in
'-o show') [ -e mute ] || echo "JobId=$SLURM_JOB_ID JobState=$STATE Reason=$REASON Requeue=1 Command=$SCRIPT WorkDir=$PWD" ;;
'show config') echo "RequeueExit             = $REQUEUE_EXIT" ;;
requeue*) echo "$2" >>requeued; exit "${CANNOT:-0}" ;;
esac
S
cat >bin/srun <<'S'
words=$*
words="srun ${words%%bash*}"
echo "${words% }" >launched
while [ "$1" != bash ]; do shift; done
exec "$@"
S
sed 's/srun/mpirun/' bin/srun >bin/mpirun
cat >bin/birkhoff <<'S'
echo "$@" >arguments
env | grep -E '^(SRUN_CPUS|OMPI_MCA_(btl|oob)_tcp)' | sort >exported
words=$*
run=${words##*run.dir=}
[ -z "$STEP" ] || { mkdir -p "$run/checkpoints"; printf 'step-%08d\n' "$STEP" >"$run/checkpoints/latest"; }
[ -z "$MUTE" ] || touch mute
exit "$ENDS"
S
cat >bin/sbatch <<'S'
echo "$*" >>submitted
echo "$((100 + $(wc -l <submitted)));cluster"
S
cat >bin/squeue <<'S'
printf '%s\n' "101 $CHAIN" '102 birkhoff-1-1' "103 $CHAIN" '104 (null)'
S
cat >bin/scancel <<'S'
echo "$*" >>cancelled
S
for f in bin/*; do sed -i '1i#!/bin/bash' "$f"; done
chmod +x bin/*
unset SLURM_RESTART_COUNT SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_CPUS_PER_TASK LAUNCHER LAUNCHER_OPTIONS MPI INTERFACE \
    RANKS RETRIES CHAIN RUNS SETTINGS OMPI_MCA_btl_tcp_if_include OMPI_MCA_oob_tcp_if_include
export PATH=$PWD/bin:$PATH SLURM_JOB_ID=17 RUN_DIR=run BIRKHOFF=birkhoff SLURM_CPUS_ON_NODE=12 REQUEUE_EXIT=0 STEP='' MUTE='' ENDS=0
export STATE=RUNNING REASON=None SCRIPT=$scripts/train.sbatch

# job STATUS REQUEUED ARGUMENTS...: SCRIPT ends with STATUS, having asked for the requeue of REQUEUED (a job or none).
job() {
    local wanted=$1 requeued=$2 status
    shift 2
    rm -f requeued cancelled arguments
    cp "$SCRIPT" copy # Slurm runs a copy, too
    bash copy "$@" >out 2>&1
    status=$?
    [ $status -eq "$wanted" ] || fail "status $status, not $wanted, with the program's $ENDS: $(cat out)"
    [ "$(cat requeued 2>/dev/null || echo none)" = "$requeued" ] ||
        fail "requeued $(cat requeued 2>&1), not $requeued, with the program's $ENDS: $(cat out)"
}
holds() { [ "$(cat "$1" 2>&1)" = "$2" ] || fail "$1 holds '$(cat "$1" 2>&1)', not '$2'"; }

# ---- launching ----
job 2 none
job 0 none c.yaml optim.lr=1
holds launched 'srun --mpi=pmix --kill-on-bad-exit=1'
holds arguments 'train c.yaml optim.lr=1 run.dir=run'
holds exported ''
SCRIPT=$scripts/nodes.sbatch
RANKS=4 job 0 none c.yaml optim.lr=1
holds launched 'srun --mpi=pmix --kill-on-bad-exit=1 --ntasks-per-node=4 --cpus-per-task=3'
holds arguments 'train c.yaml optim.lr=1 run.dir=run'
LAUNCHER=mpirun job 0 none c.yaml
holds launched 'mpirun --mca odls_base_sigkill_timeout 10 --map-by ppr:2:node --bind-to none'
SCRIPT=$scripts/train.sbatch
INTERFACE=ib0 SLURM_CPUS_PER_TASK=4 job 0 none c.yaml
holds exported 'OMPI_MCA_btl_tcp_if_include=ib0
OMPI_MCA_oob_tcp_if_include=ib0
SRUN_CPUS_PER_TASK=4'
LAUNCHER=mpirun LAUNCHER_OPTIONS='--bind-to none' job 0 none c.yaml
holds launched 'mpirun --mca odls_base_sigkill_timeout 10 --bind-to none'
LAUNCHER=ssh job 2 none c.yaml

# ---- statuses ----
ENDS=75 job 75 17 c.yaml
ENDS=75 REQUEUE_EXIT=75 job 75 none c.yaml
ENDS=75 REQUEUE_EXIT=42,75 job 75 none c.yaml
ENDS=75 REQUEUE_EXIT=175 job 75 17 c.yaml
ENDS=75 CANNOT=1 job 75 17 c.yaml
says out 'cannot requeue: submit the job again'
for ends in 2 3 4; do
    ENDS=$ends job $ends none c.yaml
    says out "status $ends: a restart would not help"
done
[ ! -e run/jobs/attempts ] || fail 'attempts are counted of what was none'

# ---- a job that its limit ends is requeued; one that was cancelled, or is in the queue again, is not ----
ENDS=75 STATE=COMPLETING REASON=TimeLimit REQUEUE_EXIT=75 job 75 17 c.yaml
for ends in 75 143; do
    ENDS=$ends STATE=COMPLETING job 143 none c.yaml
    says out 'ended by Slurm'
done
[ ! -e run/jobs/attempts ] || fail 'a job that was cancelled counts as a failure'
MUTE=1 ENDS=75 job 75 17 c.yaml
rm mute

# ---- three restarts without progress, whatever the failure; progress begins the count anew ----
for ends in 70 76 1; do ENDS=$ends job $ends 17 c.yaml; done
ENDS=70 job 70 none c.yaml
says out 'status 70 again, and no progress since step -1 in 3 restarts: giving up'
ENDS=137 STEP=8 job 137 17 c.yaml
holds run/jobs/attempts '1 8'
ENDS=143 job 143 17 c.yaml
holds run/jobs/attempts '2 8'
ENDS=76 REQUEUE_EXIT=75 job 75 none c.yaml
holds run/jobs/attempts '3 8'
ENDS=75 STEP=12 job 75 17 c.yaml
ENDS=76 RETRIES=1 job 76 17 c.yaml
holds run/jobs/attempts '1 12'
ENDS=1 RETRIES=1 job 1 none c.yaml
echo garbage >run/jobs/attempts
ENDS=1 job 1 17 c.yaml
holds run/jobs/attempts '1 12'
job 0 none c.yaml
[ ! -e run/jobs/attempts ] || fail 'the count outlives the run'

# ---- arrays: a directory, a seed or a line of settings, and a name for each task ----
SCRIPT=$scripts/array.sbatch
export SLURM_ARRAY_JOB_ID=20 SLURM_ARRAY_TASK_ID=2 RUNS=many
ENDS=75 job 75 20_2 c.yaml
holds arguments 'train c.yaml run.seed=2 run.dir=many/2'
printf '%s\n' 'optim.lr=1' 'optim.lr=2 model.layers=6' >grid.txt
export SETTINGS=grid.txt
ENDS=70 STEP=5 job 70 20_2 c.yaml run.steps=9
holds arguments 'train c.yaml run.steps=9 optim.lr=2 model.layers=6 run.dir=many/2'
holds many/2/jobs/attempts '1 5'
SLURM_ARRAY_TASK_ID=3 job 2 none c.yaml
says out 'grid.txt has no line 3'
CHAIN=birkhoff-2-2 job 0 none c.yaml
[ ! -e cancelled ] || fail 'a task cancels the chain of the whole array'
unset SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID RUNS SETTINGS
SCRIPT=$scripts/train.sbatch

# ---- chains: submitted in one go; the job that ends the run cancels the rest, and no other job ----
bash "$scripts/chain.sh" 3 -N 2 "$SCRIPT" c.yaml >out 2>&1 || fail "chain.sh: $(cat out)"
holds out 'job 101
job 102
job 103'
[ "$(grep -c -- '--parsable --no-requeue --comment=birkhoff-.* -N 2 .*train.sbatch c.yaml$' submitted)" -eq 3 ] ||
    fail "submitted: $(cat submitted)"
grep -o -- '--dependency=[^ ]*' submitted >after
holds after '--dependency=afterany:101
--dependency=afterany:102'
for bad in '' '0 a b' 'x a b' '2 a'; do
    # shellcheck disable=SC2086
    bash "$scripts/chain.sh" $bad >out 2>&1
    [ $? -eq 2 ] || fail "chain.sh $bad: $(cat out)"
done
export CHAIN=birkhoff-2-2
for ends in 0 2 3 4; do
    ENDS=$ends job $ends none c.yaml
    holds cancelled '101 103'
done
rm -rf run
for ends in 75 70 70 70; do
    ENDS=$ends job $ends none c.yaml
    [ ! -e cancelled ] || fail "a chain ends with status $ends"
done
ENDS=70 job 70 none c.yaml
holds cancelled '101 103'
unset CHAIN

# ---- a signal to the script reaches the launcher, and the script goes on waiting ----
cat >bin/srun <<'S'
#!/bin/bash
trap 'echo heard >heard; sleep 0.2; exit 75' USR1
touch ready
while :; do sleep 0.05; done
S
for signal in USR1 TERM; do
    rm -f ready heard requeued
    bash "$SCRIPT" c.yaml >out 2>&1 &
    script=$!
    for ((i = 0; i < 400; i++)); do [ -e ready ] && break; sleep 0.05; done
    kill -$signal $script
    wait $script
    [ $? -eq 75 ] || fail "$signal: not 75: $(cat out)"
    [ -e heard ] && [ -e requeued ] || fail "$signal was not handed on: $(cat out)"
done
finish
