#!/bin/bash
# test: labels=netns,slow timeout=300
# A short training on 8 ranks over four namespace hosts (hosts-up.sh), two a host, messages between hosts over TCP: the
# bits of one rank on the plain machine, dense and with experts over the hosts.  Prints tokens per second.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/support/train.sh" || exit 1
here=$BIRKHOFF_SOURCE/tests/slurm
export PATH=$PATH:/usr/sbin:/sbin
[ "$(id -u)" = 0 ] || skip 'namespace hosts need root'
for program in ip nsenter unshare; do
    command -v $program >/dev/null || skip "$program is not installed: apt-get install iproute2 util-linux"
done
probe=bkprobe$$
ip netns add $probe 2>ip.err || skip "ip netns does not work here: $(cat ip.err)"
ip netns del $probe

# Names of this test alone, beside other hosts on the machine.
number=$((1 + $$ % 200))
lab=$(mktemp -d /tmp/hosts.XXXXXX)
trap 'bash "$here/hosts-down.sh" "$lab" --force >/dev/null 2>&1; rm -rf "$lab" "$work"' EXIT
HOSTS_PREFIX=t$number-h HOSTS_BRIDGE=bkt$number HOSTS_NET=10.78.$number bash "$here/hosts-up.sh" "$lab" 4 >up.out 2>&1 ||
    { cat up.out; fail 'the hosts did not start'; finish; }
hosts=$(awk '{ print $1 ":2" }' "$lab/hosts.list" | paste -sd,)
first=$(awk 'NR == 1 { print $1 }' "$lab/hosts.list")

# on_hosts ARGUMENTS...: birkhoff on 8 ranks; mpirun stands on the first host, as on a cluster.
on_hosts() {
    local set='' name
    for name in $(compgen -e | grep -E '^(OMPI_|OMP_|OPENBLAS_|LSAN_|TSAN_)'); do
        set="$set export $name='${!name}';"
    done
    "$lab/nsrsh" "$first" "$set cd '$PWD' && mpirun --mca plm_rsh_agent '$lab/nsrsh' --mca btl_tcp_if_include e0 \
        --mca oob_tcp_if_include e0 --mca pml ob1 --oversubscribe --host $hosts -np 8 '$BIRKHOFF' $*" >out 2>err </dev/null ||
        fail "status $? of birkhoff $* on the hosts: $(cat out err)"
}

cat >run.yaml <<'Y'
run: {seed: 3, steps: 6}
data: {train: listops.h5, batch: 16}
model: {kind: encoder, layers: 2, width: 32, heads: 2, ffn: 64}
schedule: {kind: constant}
parallel: {lanes: 8, threads: 1}
log: {interval: 2}
Y
listops_data listops.h5
moe='model.moe.every=1 model.moe.experts=8 model.moe.k=2 model.moe.router.kind=topk'

expect 0 1 train run.yaml run.dir=one
on_hosts train run.yaml run.dir=hosts
says err '8 ranks'
same_run one hosts
rate=$(number hosts 6 tokens_per_second)
expect 0 1 train run.yaml run.dir=one-moe $moe
for expert in 2 8; do # experts within a host, and over all of them
    on_hosts train run.yaml run.dir=moe-$expert "$moe" parallel.expert=$expert
    same_run one-moe moe-$expert
done
for way in flat two_level; do # rows between hosts straight, or by way of one rank a host
    on_hosts train run.yaml run.dir=moe-$way "$moe" parallel.expert=8 model.moe.hierarchy=$way model.moe.chunks=2
    same_run one-moe moe-$way
    grep -q 'rows go straight' err && fail "no two levels on the hosts: $(cat err)"
    on_hosts bench moe tokens=512 width=64 threads=1 hierarchy=$way
    echo "bench moe over the hosts, $way: $(sed -n 's/^tokens_per_second *//p' out) tokens/s, $(
        sed -n 's/^communication messages_between_nodes *//p' out) messages between hosts a run"
done

# The hosts are hosts: doctor counts four of them, two ranks on each.
on_hosts doctor --json
grep -qE '"nodes": 4' out || fail "not four hosts: $(cat out)"
echo "8 ranks on 4 hosts: $rate tokens/s dense, $(number moe-8 6 tokens_per_second) with experts over the hosts; $(number one 6 tokens_per_second) on one rank"
finish
