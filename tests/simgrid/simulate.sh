#!/bin/bash
# simulate.sh PROGRAM RANKS KEY=VALUE...: training steps on RANKS simulated nodes (cluster.xml); one line of JSON.
# Arithmetic takes the time that the program claims, so the figures depend on nothing but the arguments.  Protocol
# overhead is 6 % of the bandwidth; latency is that of the links.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
program=$1 ranks=$2
shift 2
hosts=$(mktemp)
trap 'rm -f "$hosts"' EXIT
seq -f 'node-%.0f' 0 511 >"$hosts"
smpirun -np "$ranks" -hostfile "$hosts" -platform "$here/cluster.xml" --cfg=smpi/simulate-computation:no \
    --cfg=smpi/host-speed:5Tf --cfg=smpi/coll-selector:ompi --cfg=smpi/shared-malloc:global --cfg=smpi/shared-malloc-blocksize:67108864 \
    --cfg=smpi/bw-factor:0:0.94 --cfg=smpi/lat-factor:0:1 --cfg=smpi/test:0 --cfg=network/crosstraffic:0 \
    --log=root.thres:error "$program" "$@" 2>&1 | grep -v -e '^/.*smpi/privatization' -e '^$'
