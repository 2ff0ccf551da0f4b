#!/bin/bash
# Entropic transport problems over a sweep of epsilon: Birkhoff's methods against POT (Python Optimal Transport), to an
# L1 marginal error of 1e-9, both on the same cost matrices and in alternation.
#   tests/peers/transport.sh [--sizes 500,2000] [--etas 10,50,200,600,1200] [--problems assignment,mnist-l2,mnist-l1]
#                            [--rounds 1] [--seconds 60] [--threads 2]
# assignment: costs uniform in [0,1); mnist-*: distances between two sets of MNIST images, as points of 784 numbers,
# divided by the largest (needs BIRKHOFF_DATA).  A solver of POT that would take longer than --seconds is stopped after
# as many sweeps as fit.  Prints one row a solver: how it ended, sweeps and Newton steps, marginal error recomputed from
# the plan, median seconds, and the seconds of the fastest solver of POT that converged / its own.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
if ! $python -c 'import ot, h5py, scipy' 2>/dev/null; then
    sudo=
    [ "$(id -u)" -eq 0 ] || sudo=sudo
    $sudo apt-get install -y -q python3-pot python3-h5py python3-scipy
fi
exec $python "$here/transport.py" --birkhoff "$birkhoff" "$@"
