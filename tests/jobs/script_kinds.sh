#!/bin/bash
# test: labels=unit timeout=60
# birkhoff kinds against the kinds.def files: every plug-in and every section is listed, each with
# its keys, as text and as JSON.
. "$BIRKHOFF_SOURCE/tests/support/lib.sh" || exit 1

names() { sed -n 's/^[A-Z]*(\(.*\))$/\1/p' "$BIRKHOFF_SOURCE/$1"; }

expect 0 1 kinds
cp out all
expect 0 1 kinds --json
cp out all.json
listed() { # CLASS NAME: in both forms
    says all "  $2 "
    says all.json "{\"name\": \"$2\", \"summary\": "
    expect 0 1 kinds "$1.$2"
    says out "$1.$2: "
}
for name in $(names models/attention/kinds.def); do listed attention "$name"; done
for name in $(names models/router/kinds.def); do listed router "$name"; done
for name in $(names losses/kinds.def); do listed loss "$name"; done
for name in $(names models/kinds.def); do listed model "$name"; done
for name in $(names io/data/kinds.def); do listed data "$name"; done
for name in official default; do listed preset "$name"; done
for name in adamw sgd; do listed optimizer "$name"; done
for name in constant linear cosine drop; do listed schedule "$name"; done

expect 0 1 data eureka --help
says out '2.8 GB at the defaults' # of memory, on every rank

expect 0 1 kinds router.ssr
says out '  probability   number'
says out '[0, 1]'
says out 'birkhoff kinds config.model.moe.router'
expect 0 1 kinds router
grep -q softmax out && fail "kinds router lists other classes"

# ---- the configuration ----

expect 0 1 kinds config
cp out config
for section in run data model model.attention model.moe model.moe.upcycle model.moe.router distill loss optim schedule \
    parallel checkpoint log; do
    grep -qx "$section" config || fail "kinds config has no section $section"
    expect 0 1 kinds "config.$section"
    [ "$(head -1 out)" = "$section" ] || fail "kinds config.$section prints $(head -1 out)"
done
expect 0 1 kinds config.optim
says out '  lr              number   0.0003   >= 0'
says out 'birkhoff kinds optimizer'
expect 0 1 kinds config.run --json
says out '{"section": "run", "options": [{"name": "dir", "type": "text", "default": null, "help": '

refuses 2 1 "unknown class 'rooter': did you mean router?" kinds rooter
refuses 2 1 "unknown router kind 'srr': did you mean ssr?" kinds router.srr
refuses 2 1 "unknown section 'modl': did you mean model?" kinds config.modl
refuses 2 1 "unknown class ''" kinds ''

finish
