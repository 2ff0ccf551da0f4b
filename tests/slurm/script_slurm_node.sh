#!/bin/bash
# test: labels=slurm,netns,slow timeout=800
# A job on two hosts under a real Slurm loses one of them: the job goes back into the queue, runs on the one that is left
# with half the ranks, and ends as one that nothing came between.  Hosts are network namespaces (hosts-up.sh).
. "$BIRKHOFF_SOURCE/tests/slurm/jobs.inc" || exit 1
for program in ip nsenter unshare; do
    command -v $program >/dev/null || skip "$program is not installed: apt-get install iproute2 util-linux"
done
number=$((1 + $$ % 200)) # names of this test alone, beside other hosts on the machine
ip netns add bkprobe$$ 2>ip.err || skip "ip netns does not work here: $(cat ip.err)"
ip netns del bkprobe$$
HOSTS_PREFIX=n$number-h HOSTS_BRIDGE=bkn$number HOSTS_NET=10.79.$number bash "$here/hosts-up.sh" "$lab/hosts" 2 >up.out 2>&1 || {
    cat up.out
    fail 'the hosts did not start'
    finish
}
LAB_HOSTS=$lab/hosts LAB_SLURMD_TIMEOUT=10 lab_up 2
unset OMPI_MCA_btl_tcp_if_include OMPI_MCA_oob_tcp_if_include # the job alone runs on the hosts: INTERFACE below
listops_data listops.h5

# lose HOST: slurmd, step daemons and ranks end at once, with no chance to react; the host itself remains.
lose() {
    local keeper
    keeper=$(awk -v host="$1" '$1 == host { print $3 }' "$lab/hosts/hosts.list")
    ip netns pids "$1" | grep -vx "$keeper" | xargs kill -9
}

set_steps 1000000
INTERFACE=e0 submit node nodes.sbatch -t 10 -N 1-2
wait_for has_line node/checkpoints/latest step-00000500
[ "$(field NumNodes)" -eq 2 ] || fail "not on two hosts: $(field NodeList)"
says node.log '4 ranks'
lose n$number-h2
wait_for is_requeued 1
ends_like_whole
[ "$(field NodeList)" = n$number-h1 ] || fail "not on the host that is left: $(field NodeList)"
says node.log '2 ranks'
finish
