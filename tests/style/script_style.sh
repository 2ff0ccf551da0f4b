#!/bin/bash
# test: labels=style timeout=120
# The rules of the house (checks.sh): layers, sizes, tables, words, headers, layout.
build=$PWD
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1
. "$BIRKHOFF_SOURCE/tests/style/checks.sh"
FLAGS=$(grep -ohE -- '-(I|isystem) ?[^ "]+' "$build/compile_commands.json" | sort -u | tr '\n' ' ')
checks="includes tokens lengths words tables root headers"
case $(clang-format --version 2>/dev/null) in
*"version 14."*) checks="$checks format" ;;
*) echo "note: clang-format 14 is not here, so layout is not checked" ;;
esac

# ---- the sources are clean ----

cd "$BIRKHOFF_SOURCE" || exit 1
for check in $checks; do
    "check_$check" >"$work/found"
    [ ! -s "$work/found" ] || fail "$check: $(cat "$work/found")"
done

# ---- a tree that breaks every rule: no check is blind ----

cp "$BIRKHOFF_SOURCE/.clang-format" "$work" || exit 1
cd "$work" || exit 1
rm found
mkdir -p core/ops dist io losses models/attention models/router io/data jobs tests notes
cat >core/bad.c <<'EOF'
#include "dist/comm.h"
#include <mpi.h>
#include <cblas.h>
/* "a comment /* MPI_Send, cblas_sgemm: no finding" */
static const char text[] = "MPI_Send(hid_t) \" /* ";
static const char quote = '"';
void f(void) { MPI_Send(); cblas_sgemm(1); }
EOF
cat >models/bad.c <<'EOF'
#include "io/hdf5.h"
#include "local.h"
#include <hdf5.h>
hid_t f(void) { return H5Fopen(0); }
void g(void) { exit(1); }
EOF
printf '#include "losses/loss.h"\n#include <jansson.h>\n' >dist/bad.c
printf '#include "models/model.h"\nvoid f(void) { dnnl_sgemm(); LAPACKE_dposv(); }\n' >losses/bad.c
printf '#include <mpi.h>\nint MPI_is_fine_in_tests;\n' >tests/good.c
{ printf 'void long_one(void)\n{\n'; for i in $(seq 61); do echo "    f();"; done; printf '}\n'; } >jobs/bad.c
{ printf 'void just_fits(void)\n{\n'; for i in $(seq 60); do echo "    f();"; done; printf '}\n'; } >jobs/good.c
for i in $(seq 601); do echo "int x$i;"; done >io/long.c
printf '/* TO''DO: more, as in ../sha''red/plan */\n' >io/words.c
printf 'COMMAND(ghost)\n' >jobs/commands.def
printf 'const bk_loss_kind bk_loss_hidden = {0};\n' >losses/hidden.c
printf 'LOSS(kl)\n' >losses/kinds.def
printf 'extern missing_type x;\n' >io/bad.h
printf 'int   ugly ( void ) ;\n' >io/ugly.c

finds() { # CHECK TEXT...: the check names each of them
    local check=$1 text
    shift
    "check_$check" >found
    for text in "$@"; do grep -qF -- "$text" found || fail "check_$check is blind to $text: $(cat found)"; done
}
finds includes 'core/bad.c:1: core may not include "dist/comm.h"' 'core/bad.c:2: <mpi.h>' 'core/bad.c:3: <cblas.h>' \
    'models/bad.c:1: models may not include "io/hdf5.h"' 'models/bad.c:2: models may not include "local.h"' \
    'models/bad.c:3: <hdf5.h>' 'dist/bad.c:1: dist may not include' 'dist/bad.c:2: <jansson.h>' \
    'losses/bad.c:1: losses may not include "models/model.h"'
grep -q tests/ found && fail "tests may include anything: $(cat found)"
finds tokens 'core/bad.c:7: MPI_S' 'core/bad.c:7: cblas_' 'models/bad.c:4: H5Fopen(' 'models/bad.c:4: hid_t' \
    'models/bad.c:5: exit(' 'losses/bad.c:2: dnnl_' 'losses/bad.c:2: LAPACKE_'
grep -qE 'core/bad.c:[456]:' found && fail "comments and texts are no code: $(cat found)"
finds lengths 'io/long.c: 601 lines' 'jobs/bad.c:2: a function of 61 lines'
grep -q good found && fail "60 lines are allowed: $(cat found)"
finds words 'io/words.c:1: unfinished' 'io/words.c:1: a path outside'
finds tables 'ghost: no const object bk_command_ghost' 'there is no jobs/ghost.c' 'losses/kinds.def: kl: no const object' \
    'losses/kinds.def: hidden is defined in losses, but not in the table'
finds root 'notes: not one of'
finds headers 'io/bad.h: does not compile alone'
case $checks in
*format*) finds format 'io/ugly.c:1: not as clang-format' ;;
esac

finish
