#!/bin/bash
# test: labels=unit,mpi timeout=120
# birkhoff data from the command line: the same file for any number of ranks, one line for trouble.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh"

digest_of() { sed -n 's/^sha256 *//p' out; }

# ---- the same bytes for 1 and 3 ranks ----
small="preset=tiny train=300 validation=40 test=40"
expect 0 1 data listops one.h5 $small
one=$(digest_of)
says out "ladder of shortcuts by visible depth"
expect 0 3 data listops three.h5 $small
[ -n "$one" ] && [ "$one" = "$(digest_of)" ] || fail "listops differs between 1 and 3 ranks"
expect 0 1 data listops other.h5 $small seed=2
[ "$one" != "$(digest_of)" ] || fail "the seed changes nothing"
[ "$(grep -c '' out)" -gt 3 ] || fail "no summary"

# ---- texts ----
mkdir -p tree/spam tree/ham
for i in 1 2 3 4 5 6 7 8 9 10; do
    echo "buy $i" >tree/spam/$i
    echo "hello $i" >tree/ham/$i
done
cp tree/ham/1 tree/ham/11
expect 0 1 data text tree text.h5
says out "classes      0 ham, 1 spam"
says out "note         1 duplicates dropped"
says out "20 samples"
expect 0 2 data text tree text.h5 # an existing file is replaced
printf 'Source,Target\n"a, b",1\nc,2\n' >t.csv
expect 0 1 data text t.csv csv.h5 validation=0 test=0
refuses 3 1 "t.csv:1" data text t.csv csv.h5 text=words
refuses 3 3 "two classes" data text tree/ham text.h5

# ---- lines and images ----
printf 'to be, or not to be' >hamlet
expect 0 1 data lines hamlet lines.h5 'separator=, ' validation=0
says out "2 samples, language_model"
head -c 5000 /dev/urandom >noise
refuses 3 1 "magic" data images noise noise images.h5
refuses 2 1 "glyphs=true" data images noise noise images.h5 train=3
refuses 2 1 "limit is for files" data images images.h5 glyphs=true limit=3
refuses 2 1 "10 classes" data images images.h5 glyphs=true classes=3
[ -e images.h5 ] && fail "a file was left after a failure"
expect 0 2 data images glyphs.h5 glyphs=true layout=stripes train=60
says out "7 positions x 112 channels"
refuses 3 1 "noise" data text noise noise.h5 layout=tsv

# ---- usage: nothing is made ----
refuses 2 1 "did you mean" data listop x.h5
refuses 2 1 "data.listops.trains" data listops x.h5 trains=3
refuses 2 1 "tiny" data listops x.h5 preset=tinny
refuses 2 1 "directory" data lines hamlet nowhere/x.h5
refuses 2 1 "OUT.h5" data listops
refuses 3 1 "missing" data lines missing x.h5
[ -z "$(find . -name 'x.h5*' -o -name '*.tmp.*')" ] || fail "files were left: $(ls)"
finish
