#!/bin/bash
# test: labels=unit timeout=60
# The decisions of jobs/slurm/train.sbatch, with stand-ins for Slurm's programs and for birkhoff.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1

mkdir bin
cat >bin/squeue <<'S'
echo "$TIME_LEFT"
S
cat >bin/scontrol <<'S'
case $1 in
show) echo "RequeueExit             = $REQUEUE_EXIT" ;;
requeue) echo "$2" >>requeued ;;
esac
S
cat >bin/srun <<'S'
echo "srun $1 $2" >launched
shift 2
exec "$@"
S
cat >bin/mpirun <<'S'
echo "mpirun $*" >launched
shift 3
exec "$@"
S
cat >bin/birkhoff <<'S'
echo "$@" >arguments
[ -z "$STEP" ] || { mkdir -p "$RUN_DIR/checkpoints"; printf 'step-%08d\n' "$STEP" >"$RUN_DIR/checkpoints/latest"; }
exit "$ENDS"
S
for f in bin/*; do sed -i '1i#!/bin/bash' "$f"; done
chmod +x bin/*
export PATH=$PWD/bin:$PATH SLURM_JOB_ID=17 RUN_DIR=run BIRKHOFF=birkhoff TIME_LEFT=1-02:03:04 REQUEUE_EXIT=0 STEP= ENDS=0
unset SLURM_RESTART_COUNT LAUNCHER MPI RETRIES

# job STATUS REQUEUED ARGUMENTS...: the script ends with STATUS, having asked for REQUEUED (0 or 1) requeues.
job() {
    local wanted=$1 requeues=$2 status
    shift 2
    rm -f requeued
    bash "$BIRKHOFF_SOURCE/jobs/slurm/train.sbatch" "$@" >out 2>&1
    status=$?
    [ $status -eq "$wanted" ] || fail "status $status, not $wanted, with the program's $ENDS: $(cat out)"
    [ "$(cat requeued 2>/dev/null | wc -l)" -eq "$requeues" ] || fail "not $requeues requeues with the program's $ENDS"
}

job 2 0
job 0 0 c.yaml optim.lr=1
[ "$(cat launched)" = 'srun --mpi=pmix --kill-on-bad-exit=1' ] || fail "launched by $(cat launched)"
[ "$(cat arguments)" = 'train c.yaml optim.lr=1 run.dir=run run.time_limit=93784' ] || fail "called with $(cat arguments)"
for left in 5:00=300 1:00:00=3600 0:09=9 UNLIMITED=0 INVALID=0 2-00:00:00=172800; do
    TIME_LEFT=${left%=*} job 0 0 c.yaml
    says arguments "run.time_limit=${left#*=}"
done
LAUNCHER=mpirun job 0 0 c.yaml
says launched 'mpirun --mca odls_base_sigkill_timeout 10'
LAUNCHER=ssh job 2 0 c.yaml

# ---- statuses ----
ENDS=75 job 75 1 c.yaml
ENDS=75 REQUEUE_EXIT=75 job 75 0 c.yaml
ENDS=75 REQUEUE_EXIT=42,75 job 75 0 c.yaml
ENDS=75 REQUEUE_EXIT=175 job 75 1 c.yaml
for ends in 2 3 4; do ENDS=$ends job $ends 0 c.yaml; done

# ---- three restarts without progress; progress begins the count anew ----
rm -rf run
for i in 1 2 3; do ENDS=70 job 70 1 c.yaml; done
ENDS=70 job 70 0 c.yaml
says out 'giving up'
ENDS=137 STEP=8 job 137 1 c.yaml
[ "$(cat run/jobs/attempts)" = '1 8' ] || fail "counted $(cat run/jobs/attempts)"
ENDS=143 job 143 1 c.yaml
[ "$(cat run/jobs/attempts)" = '2 8' ] || fail "counted $(cat run/jobs/attempts)"
ENDS=76 STEP=9 RETRIES=1 job 76 1 c.yaml
ENDS=1 RETRIES=1 job 1 0 c.yaml
job 0 0 c.yaml
[ ! -e run/jobs/attempts ] || fail 'the count outlives the run'

# ---- a signal to the script reaches the launcher, and the script goes on waiting ----
cat >bin/srun <<'S'
#!/bin/bash
trap 'echo heard >heard; exit 75' USR1
touch ready
while :; do sleep 0.05; done
S
bash "$BIRKHOFF_SOURCE/jobs/slurm/train.sbatch" c.yaml >out 2>&1 &
script=$!
for ((i = 0; i < 400; i++)); do [ -e ready ] && break; sleep 0.05; done
rm -f requeued
kill -USR1 $script
wait $script
[ $? -eq 75 ] || fail "a signal: not 75: $(cat out)"
[ -e heard ] && [ -e requeued ] || fail "a signal was not handed on: $(cat out)"
finish
