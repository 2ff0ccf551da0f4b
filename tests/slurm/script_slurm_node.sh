#!/bin/bash
# test: labels=slurm,netns,slow timeout=800
# A job on two hosts under a real Slurm loses one of them: the job goes back into the queue, runs on the one that is left
# with half the ranks, and ends as one that nothing came between.  Hosts are network namespaces (hosts-up.sh).
. "$BIRKHOFF_SOURCE/tests/slurm/jobs.inc" || exit 1
lab_up_on_hosts 2
listops_data listops.h5

set_steps 1000000
INTERFACE=e0 submit node nodes.sbatch -t 10 -N 1-2
wait_for has_line node/checkpoints/latest step-00000500
[ "$(field NumNodes)" -eq 2 ] || fail "not on two hosts: $(field NodeList)"
says node.log '4 ranks'
lose "${host}2"
wait_for is_requeued 1
ends_like_whole
[ "$(field NodeList)" = "${host}1" ] || fail "not on the host that is left: $(field NodeList)"
says node.log '2 ranks'
finish
