#!/usr/bin/env bash
# test: labels=unit,mpi timeout=300
# Every configuration in jobs/configs runs two steps on two ranks, on small data of its own kind.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh"

# big_endian NUMBER ...: four bytes each.
big_endian() {
    local number
    for number in "$@"; do
        printf "\\x$(printf %02x $((number >> 24 & 255)))\\x$(printf %02x $((number >> 16 & 255)))"
        printf "\\x$(printf %02x $((number >> 8 & 255)))\\x$(printf %02x $((number & 255)))"
    done
}

# idx NAME COUNT: images of 28 x 28 (the bytes of a program serve as pixels) and labels 0..9.
idx() {
    { big_endian 2051 "$2" 28 28; head -c $(($2 * 784)) "$BIRKHOFF"; } >"$1-images"
    { big_endian 2049 "$2"; for ((i = 0; i < $2; i++)); do printf "\\x0$((i % 10))"; done; } >"$1-labels"
}

mnist() {
    idx train 320 && idx test 40
    expect 0 1 data images train-images train-labels test-images test-labels mnist.h5 \
        layout=patches patch=7 values=real validation=40
}

stripes() {
    expect 0 1 data images stripes.h5 glyphs=true layout=stripes train=220
}

eureka() {
    expect 0 1 data eureka eureka.h5 train=600 validation=40 test=10
}

listops() {
    expect 0 1 data listops listops.h5 preset=tiny train=300 validation=50 test=50
}

spam() {
    local i
    mkdir -p mails/ham mails/spam
    for ((i = 0; i < 60; i++)); do
        printf 'Subject: %d\n\nletter number %d\n' "$i" "$i" >mails/ham/$i.txt
        printf 'Subject: %d\n\nbuy %d now!\n' "$i" "$i" >mails/spam/$i.txt
    done
    expect 0 1 data text mails spam.h5 mail=body max_length=1024
}

shakespeare() {
    seq 20000 >lines.txt
    expect 0 1 data lines lines.txt shakespeare.h5
    cp shakespeare.h5 shakespeare-parts.h5
}

# rows FORMAT: 60 of them, of a label and a number.
rows() { awk -v f="$1" 'BEGIN { for (i = 0; i < 60; i++) printf f "\n", i % 2, i }'; }

sst2() {
    rows '%d film number %d' >films.txt
    expect 0 1 data text films.txt sst2.h5 layout=label_first
}

cola() {
    rows 'xy\t%d\t\tSentence %d.' >sentences.tsv
    expect 0 1 data glue sentences.tsv cola.h5 layout=cola
}

mrpc() {
    { printf 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n'; rows '%d\t-\t-\tNumber %d.\tThat number.'; } >same.txt
    expect 0 1 data glue same.txt mrpc.h5 layout=mrpc
}

# two_steps CONFIG: its data set and teacher are those of this folder.
two_steps() {
    local config=$1 name data teacher=""
    name=$(basename "$config" .yaml)
    data=$(sed -n 's#.*train: .*/\([a-z0-9-]*\.h5\).*#\1#p' "$config")
    grep -q '^distill:' "$config" && teacher="distill.teacher=$(sed -n 's#^distill:.*/\([a-z-]*\)}.*#\1#p' "$config")"
    expect 0 2 train "$config" run.dir="$name" data.train="$data" run.steps=2 log.eval_interval=0 $teacher || return
    [ -n "$(payload "$name")" ] || fail "$name left no checkpoint"
}

for data in listops mnist stripes eureka spam shakespeare sst2 cola mrpc; do
    $data
done
configs=$BIRKHOFF_SOURCE/jobs/configs
for config in "$configs"/*-teacher.yaml $(ls "$configs"/*.yaml | grep -v -e '-teacher.yaml$'); do
    two_steps "$config"
done
finish
