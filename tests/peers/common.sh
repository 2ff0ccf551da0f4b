# tests/peers/common.sh - what the comparisons with PyTorch share; sourced by them, with `here` set to this folder.
# Sets birkhoff, python and results (a file of one line a run), installs Debian's python3-torch when it is missing.
# BIRKHOFF names the program (default build/release/birkhoff).
birkhoff=${BIRKHOFF:-$here/../../build/release/birkhoff}
python=/usr/bin/python3
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
unset OMP_NUM_THREADS OPENBLAS_NUM_THREADS OPENBLAS_CORETYPE OMPI_MCA_btl_vader_single_copy_mechanism

[ -x "$birkhoff" ] || { echo "no program at $birkhoff: build it, or set BIRKHOFF" >&2; exit 2; }

# Messages between two ranks are copied once where a rank may read the other's memory, else twice: a fortieth of a step.
case $(mpirun --oversubscribe -n 2 "$birkhoff" doctor 2>&1 || true) in
*process_vm_readv*) export OMPI_MCA_btl_vader_single_copy_mechanism=none ;;
esac

if ! $python -c 'import torch' 2>/dev/null; then
    sudo=
    [ "$(id -u)" -eq 0 ] || sudo=sudo
    $sudo apt-get install -y -q python3-torch
fi

# An OpenBLAS older than the processor takes it for a Prescott and runs at a tenth of its speed: the peer is to be at
# its best.  What it takes the processor for is asked of the library that PyTorch loaded.
coretype() {
    $python - <<'END'
import ctypes, re, torch
names = {line.split()[-1] for line in open("/proc/self/maps") if re.search(r"openblas|/libblas", line)}
for name in names:
    try:
        ask = ctypes.CDLL(name).openblas_get_corename
    except (AttributeError, OSError):
        continue
    ask.restype = ctypes.c_char_p
    print(ask().decode())
    break
END
}
if [ "$(coretype)" = Prescott ]; then
    if grep -qw avx512bw /proc/cpuinfo; then
        export OPENBLAS_CORETYPE=SkylakeX
    elif grep -qw avx2 /proc/cpuinfo; then
        export OPENBLAS_CORETYPE=Haswell
    fi
fi

results=$(mktemp)
trap 'rm -f "$results"' EXIT

# run NAME COMMAND...: one line "NAME {json}" in the results.
run() {
    local name=$1 line
    shift
    line=$("$@") || { echo "failed: $*" >&2; exit 1; }
    echo "$name $line" >>"$results"
}

# take_keys KEY=VALUE...: overlays the map `key`; sets ours (key=value ...) and theirs (--key value ...).
take_keys() {
    local word name
    for word; do
        [[ $word == *=* && -n ${key[${word%%=*}]:-} ]] || { echo "unknown key $word: ${!key[*]}" >&2; exit 2; }
        key[${word%%=*}]=${word#*=}
    done
    ours=() theirs=()
    for name in "${!key[@]}"; do
        ours+=("$name=${key[$name]}")
        theirs+=("--$name" "${key[$name]}")
    done
}
