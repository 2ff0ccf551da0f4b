#!/bin/bash
# test: labels=unit timeout=400
# The command line as a user meets it: every error is one line with the right status, results go to
# standard output, everything else to standard error.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1

# ---- pages ----

expect 0 1 --version
grep -qxE 'birkhoff [0-9]+\.[0-9]+\.[0-9]+' out || fail "--version prints $(cat out)"
expect 0 1 help
cp out all
commands=$(sed -n 's/^COMMAND(\(.*\))$/\1/p' "$BIRKHOFF_SOURCE/jobs/commands.def")
for command in $commands; do
    says all "  $command "
    expect 0 1 help "$command"
    says out "usage: birkhoff $command"
    cp out page
    expect 0 1 "$command" --help
    cmp -s out page || fail "$command --help is not help $command"
done
expect 0 1 data listops --help
says out 'usage: birkhoff data listops'
expect 0 1 data text --help
grep -q '()' out && fail "a data kind without a source prints ()"

# ---- words ----

refuses 2 1 "no command is given"
refuses 2 1 "unknown command 'trian' (did you mean train?)" trian a.yaml
refuses 2 1 "unknown command 'trian' (did you mean train?)" help trian
refuses 2 1 "help takes one command" help help help
refuses 2 1 "unknown option --jsn of kinds (did you mean --json?)" kinds --jsn
refuses 2 1 "unknown option --json of train" train --json a.yaml
refuses 2 1 "--json is given twice" kinds --json --json
refuses 2 1 "--json takes no value" kinds --json=1
refuses 2 1 "optim.lr=1 is not read by kinds" kinds optim.lr=1
refuses 2 1 "(0 given)" train
refuses 2 1 "(2 given)" train a.yaml b.yaml
refuses 2 1 "(0 given)" eval
refuses 2 1 "(2 given)" inspect a b
refuses 2 1 "(0 given)" verify
refuses 2 1 "doctor takes no arguments" doctor now
refuses 2 1 "(2 given)" kinds router ssr
refuses 2 1 "data names no kind" data
refuses 2 1 "unknown data kind 'listop': did you mean listops?" data listop x.h5
refuses 2 1 "names no output" data listops
refuses 2 1 "unknown key data.listops.trian (command line): did you mean train?" data listops x.h5 trian=5

# ---- configurations ----

refuses 2 1 "the configuration cannot be read (none.yaml)" train none.yaml
printf 'run: {dir: run}\ndata:\n  train: a.h5\n  bach: 4\n' >a.yaml
refuses 2 1 "unknown key data.bach (a.yaml:4): did you mean batch?" train a.yaml
printf 'run: {dir: run, steps: none}\ndata: {train: a.h5}\n' >a.yaml
refuses 2 1 "run.steps is 'none' (a.yaml:1): write an integer" train a.yaml
printf 'run: {dir: run}\ndata: {train: a.h5}\n' >a.yaml
refuses 2 1 "unknown section 'optimm'" kinds config.optimm
refuses 2 1 "unknown key optim.lrr (command line): did you mean lr?" train a.yaml optim.lrr=3
refuses 2 1 "is given twice on the command line" train a.yaml optim.lr=3 optim.lr=4
refuses 2 1 "unknown optimizer kind 'adam' (command line): did you mean adamw?" train a.yaml optim.kind=adam
refuses 3 1 "a.h5 does not exist" train a.yaml
[ ! -e run ] || fail "a refused training wrote its run directory"

# ---- outputs that cannot be written ----

refuses 2 1 "directory does not exist" data listops nowhere/x.h5 preset=tiny
mkdir folder
refuses 2 1 "is a directory" data listops folder preset=tiny
if [ -w /dev/full ]; then
    "$BIRKHOFF" kinds >/dev/full 2>err
    [ $? -eq 70 ] || fail "results lost to a full disk, yet status is not 70"
    says err "the results cannot be written"
fi

# ---- who prints, and in which colours ----

expect 0 3 kinds
[ "$(grep -c '^attention' out)" -eq 1 ] || fail "kinds prints more than once under mpirun"
refuses 2 3 "unknown command 'trian'" trian
refuses 2 3 "the configuration cannot be read" train none.yaml
expect 0 1 --quiet kinds --json
[ ! -s err ] || fail "--quiet kinds writes to standard error: $(cat err)"

# On a terminal that is 80 columns wide.
on_terminal() { script -qec "stty cols 80; $*" /dev/null </dev/null 2>/dev/null; }
if command -v script >/dev/null && on_terminal "$BIRKHOFF" trian | grep -q "$(printf '\033')"; then
    on_terminal "$BIRKHOFF" --no-color trian | grep -q "$(printf '\033')" && fail "colours in spite of --no-color"
    on_terminal env NO_COLOR=1 "$BIRKHOFF" trian | grep -q "$(printf '\033')" && fail "colours in spite of NO_COLOR"
    on_terminal env NO_COLOR= "$BIRKHOFF" trian | grep -q "$(printf '\033')" || fail "an empty NO_COLOR takes colours away"
elif command -v script >/dev/null; then
    fail "no colours on a terminal"
fi
"$BIRKHOFF" trian 2>&1 | grep -q "$(printf '\033')" && fail "colours in a pipe"

finish
