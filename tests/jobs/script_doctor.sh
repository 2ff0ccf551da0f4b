#!/bin/bash
# test: labels=unit,mpi timeout=400
# birkhoff doctor: what it finds, and that each trouble it looks for is named when it is there.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1

expect 0 1 doctor
for line in birkhoff machine job binding MPI HDF5 BLAS oneDNN products subwords Slurm directory /dev/shm network; do
    grep -q "^$line  " out || fail "doctor has no line $line: $(cat out)"
done
says out 'not inside a job'
says out 'fsync and rename work'
[ -z "$(ls -A | grep probe)" ] || fail "doctor leaves files: $(ls -A)"

# Threads that wait spin briefly, unless the user has chosen.
env -u OMP_NUM_THREADS -u GOMP_SPINCOUNT "$BIRKHOFF" doctor >out 2>err || fail "doctor with threads: $(cat err)"
says out 'which spin 2000 times before they sleep'
env -u OMP_NUM_THREADS GOMP_SPINCOUNT=77 "$BIRKHOFF" doctor >out 2>err || fail "doctor with threads: $(cat err)"
says out 'which spin 77 times'
env -u OMP_NUM_THREADS -u GOMP_SPINCOUNT OMP_WAIT_POLICY=active "$BIRKHOFF" doctor >out 2>err || fail "doctor with threads: $(cat err)"
grep -q 'which spin' out && fail "the user has chosen to wait actively: $(cat out)"

# As many threads as training would have.
env OMP_NUM_THREADS=300 "$BIRKHOFF" doctor >out 2>err || fail "doctor with 300 threads: $(cat err)"
says out 'cores a rank, 300 threads a rank'
says out 'a rank has 300 threads but is bound to'

expect 0 1 doctor --json
says out '"problems": ['
says out '"slurm": null'
says out '"syncs": true'
[ "$(wc -l <out)" -eq 1 ] || fail "more than one document"
cores=$(sed -n 's/.*"cores": \([0-9]*\).*/\1/p' out)

expect 0 3 doctor
[ "$(grep -c '^machine  ' out)" -eq 1 ] || fail "doctor prints more than once"
says out '3 ranks on 1 node'

# ---- troubles ----

# A launcher of another MPI: every process is alone.
OMPI_COMM_WORLD_SIZE=4 expect 0 1 doctor
says out 'the launcher started 4 processes, but MPI sees 1'
SLURM_STEP_NUM_TASKS=4 expect 0 1 doctor
says out 'srun --mpi=pmix'

if grep -qw avx2 /proc/cpuinfo; then
    OPENBLAS_CORETYPE=Prescott expect 0 1 doctor
    says out 'OPENBLAS_CORETYPE=Prescott runs products at a tenth'
    OPENBLAS_CORETYPE=Haswell expect 0 1 doctor
    grep -q 'OPENBLAS_CORETYPE' out && fail "narrower vectors may be the user's choice: $(cat out)"
    env -u OPENBLAS_CORETYPE "$BIRKHOFF" doctor >out 2>err || fail "doctor: $(cat err)"
    grep -q 'OPENBLAS_CORETYPE' out && fail "what is chosen for the processor is no trouble: $(cat out)"
fi

ranks=$((cores + 1))
if [ "$ranks" -le 5 ]; then
    OMPI_MCA_mpi_yield_when_idle=0 expect 0 "$ranks" doctor
    says out "$ranks ranks share $cores cores of a node and do not yield"
    OMPI_MCA_mpi_yield_when_idle=1 expect 0 "$ranks" doctor
    grep -q yield out && fail "ranks that yield are no trouble: $(cat out)"
fi
if [ "$cores" -gt 1 ]; then
    mpirun --bind-to core -n 1 "$BIRKHOFF" doctor >out 2>err </dev/null
    says out "the binding lets the ranks of a node run on 1 of its"
    mpirun --bind-to none -n 1 "$BIRKHOFF" doctor >out 2>err </dev/null
    grep -q 'the binding' out && fail "no binding is no trouble: $(cat out)"
fi

# The current directory cannot be written (root can write anywhere but there).
(cd /proc && "$BIRKHOFF" doctor >"$work/out" 2>"$work/err" </dev/null) || fail "doctor fails in /proc"
says out 'no file can be committed here (/proc)'

# ---- Slurm, by commands of its names ----

mkdir bin
cat >bin/squeue <<'EOF'
#!/bin/sh
[ -z "$LEFT" ] || echo "$LEFT"
EOF
cat >bin/scontrol <<'EOF'
#!/bin/sh
case "$*" in
*write*) printf '#!/bin/bash\n# sbatch --signal=HUP@1\n#SBATCH --requeue %s\n' "$DIRECTIVES" ;;
*) echo "JobId=12 JobName=x Requeue=$REQUEUE Restarts=2 BatchFlag=1" ;;
esac
EOF
chmod +x bin/*

# in_job TEXT...: doctor inside job 12 says each of them.
in_job() {
    local text
    PATH=$work/bin:$PATH SLURM_JOB_ID=12 SLURM_JOB_NODELIST='n[1-2]' SLURM_RESTART_COUNT=2 expect 0 1 doctor
    for text; do says out "$text"; done
}
export LEFT=29:12 REQUEUE=1 DIRECTIVES='--signal=USR1@300 --open-mode=append'
in_job 'job 12 on n[1-2], restarted 2 times' 'time left 1752 s, requeue yes, signal USR1@300, open mode append'
grep -q 'job script\|put back\|ends this job' out && fail "a good job is no trouble: $(cat out)"
SLURM_JOB_END_TIME=$(($(date +%s) + 5999)) in_job 'time left 59' 'requeue yes'
LEFT=UNLIMITED in_job 'time left unlimited'
LEFT= in_job 'time left unknown' 'Slurm does not say when it ends this job'
LEFT=INVALID in_job 'time left unknown'
REQUEUE=0 in_job 'requeue no' 'a stopped job is not put back in the queue'
DIRECTIVES='--open-mode append' in_job 'signal none, open mode append'
DIRECTIVES='--signal=B:SIGTERM@60' in_job 'signal B:SIGTERM@60, open mode default' 'does not ask for --open-mode=append'
grep -q 'signal that kills' out && fail "SIGTERM is no trouble: $(cat out)"
DIRECTIVES='--signal=R:USR2' in_job 'the job script asks for a signal that kills'
PATH=$work/bin:$PATH SLURM_JOB_ID='12; touch evil' expect 0 1 doctor
[ ! -e evil ] || fail "a job number is run as a command"

# ---- train warns of the same, once ----

if [ "$cores" -gt 1 ]; then
    expect 0 1 data listops a.h5 preset=tiny train=20 validation=10 test=0
    printf 'run: {dir: run, steps: 2}\ndata: {train: a.h5, batch: 4}\nmodel: {layers: 1, width: 8, heads: 1}\n' >c.yaml
    mpirun --bind-to core -n 1 "$BIRKHOFF" train c.yaml >out 2>err </dev/null || fail "train: $(cat err)"
    [ "$(grep -c 'warning: the binding lets' err)" -eq 1 ] || fail "train does not warn once: $(cat err)"
fi

finish
