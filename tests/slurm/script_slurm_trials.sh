#!/bin/bash
# test: labels=slurm,netns,slow timeout=1200
# One job on two hosts under a real Slurm reaches its time limit twice, gives way to an urgent job, and loses a host while
# it saves: it goes on from the queue each time, at last with half the ranks, and ends as one that nothing came between.
. "$BIRKHOFF_SOURCE/tests/slurm/jobs.inc" || exit 1
lab_up_on_hosts 2
configure 's/^SlurmctldParameters=preempt_send_user_signal/# &/'
listops_data listops.h5
set_steps 1000000
sed -i 's/seed: 3/stop_margin: 100, &/' run.yaml # of two minutes; the signal comes in the last one

goes_on() { # from where the job was; it has a start after each requeue
    hasten
    [ "$(step_of trials)" -gt "$from" ]
}
is_saving() {
    hasten
    compgen -G 'trials/checkpoints/.tmp-*' >/dev/null
}

# The third rank, on the second host, takes five seconds over the first file of each start.
export BIRKHOFF_FAULT=save.write:2:sleep=5
INTERFACE=e0 submit trials nodes.sbatch -t 2 -N 1-2 --signal=B:USR1@1
unset BIRKHOFF_FAULT
wait_for was_requeued 1
wait_for was_requeued 2
[ "$(grep -c 'on the time limit' trials.log)" -eq 2 ] || fail "not stopped twice: $(tail -n 20 trials.log)"
scontrol update JobId="$id" TimeLimit=20

from=$(step_of trials)
wait_for goes_on
gives_way 3

wait_for is_saving
[ "$(field NumNodes)" -eq 2 ] || fail "not on two hosts: $(field NodeList)"
lose "${host}2"
wait_for is_requeued 4
compgen -G 'trials/checkpoints/.tmp-*' >/dev/null || fail 'the host was not lost in the middle of a save'
ends_like_whole
[ "$(field NodeList)" = "${host}1" ] || fail "not on the host that is left: $(field NodeList)"
says trials.log '4 ranks'
says trials.log '2 ranks'
[ -z "$(find trials/checkpoints -name '.*-*')" ] || fail "left behind: $(ls -A trials/checkpoints)"
finish
