# tests/style/checks.sh - the rules of the house as functions.  Each works on the tree in the current
# directory and prints one line a finding; nothing means clean.  script_style.sh runs them on the
# sources and, so that none of them is blind, on a tree that breaks every rule.

folders="core dist io losses models jobs tests"
c_files() { find $folders -name '*.[ch]' 2>/dev/null | sort; }
code() { c_files | xargs awk -f "$BIRKHOFF_SOURCE/tests/style/code.awk"; }

# ---- layers ----

# Which folders a folder includes from; libraries and the place that may see them.
check_includes() {
    code | awk -F: '
        BEGIN {
            split("core=core dist=core,dist io=core,dist,io losses=core,dist,losses " \
                  "models=core,dist,models jobs=core,dist,io,losses,models,jobs", rules, " ")
            for (i in rules) { split(rules[i], r, "="); allowed[r[1]] = "," r[2] "," }
            split("mpi.h=dist/ hwloc.h=dist/ hdf5.h=io/ libfyaml.h=io/ jansson.h=io/ zlib.h=io/ png.h=io/ " \
                  "xxhash.h=io/ openssl/=io/ protobuf-c/=io/ cblas.h=core/blas lapacke.h=core/blas " \
                  "oneapi/=core/blas dnnl=core/blas Random123/=core/", libraries, " ")
            for (i in libraries) { split(libraries[i], r, "="); home[r[1]] = r[2] }
        }
        $1 ~ /^tests\// { next }
        match($0, /#[ \t]*include[ \t]*"[^"]*"/) {
            name = substr($0, RSTART, RLENGTH); sub(/^[^"]*"/, "", name); sub(/"$/, "", name)
            split(name, to, "/"); split($1, from, "/")
            if (index(allowed[from[1]], "," to[1] ",") == 0)
                print $1 ":" $2 ": " from[1] " may not include \"" name "\""
        }
        match($0, /#[ \t]*include[ \t]*<[^>]*>/) {
            name = substr($0, RSTART, RLENGTH); sub(/^[^<]*</, "", name); sub(/>$/, "", name)
            for (library in home)
                if (index(name, library) == 1 && index($1, home[library]) != 1)
                    print $1 ":" $2 ": <" name "> is for " home[library] "* only"
        }'
}

# Raw calls of libraries, whoever declared them.
check_tokens() {
    code | awk -F: '
        function forbid(pattern, place) {
            line = $0; sub(/^[^:]*:[^:]*:/, "", line)
            if (index($1, place) != 1 && match(" " line, "[^A-Za-z0-9_]" pattern))
                print $1 ":" $2 ": " substr(" " line, RSTART + 1, RLENGTH - 1) "... is for " place "* only"
        }
        $1 ~ /^tests\// || $0 ~ /#[ \t]*include/ { next }
        {
            forbid("MPI_[A-Za-z]", "dist/"); forbid("PMPI_", "dist/"); forbid("hwloc_", "dist/")
            forbid("H5[A-Z]*[a-z][a-z_]*[ ]*\\(", "io/"); forbid("hid_t", "io/"); forbid("fy_[a-z]", "io/")
            forbid("cblas_", "core/blas"); forbid("LAPACKE_", "core/blas"); forbid("dnnl_", "core/blas")
            forbid("openblas_", "core/blas"); forbid("exit[ ]*\\(", "jobs/birkhoff.c")
        }'
}

# ---- sizes ----

check_lengths() {
    c_files | xargs wc -l | awk '$2 != "total" && $1 > 600 { print $2 ": " $1 " lines, at most 600" }'
    # A function begins and ends with a brace in the first column; everything else closes with "};".
    code | awk -F: '
        { line = $0; sub(/^[^:]*:[^:]*:/, "", line) }
        line ~ /^\{/ { from = $2 }
        line ~ /^\}[ \t]*$/ && from {
            if ($2 - from - 1 > 60) print $1 ":" from ": a function of " $2 - from - 1 " lines, at most 60"
            from = 0
        }'
}

# ---- words ----

check_words() {
    local marks='TO''DO|FIX''ME|XX''X|HA''CK' outside='\.\./sha''red|/wo''rk/'
    local places="$folders README.md CMakeLists.txt .ci"
    grep -rnIEw "$marks" $places 2>/dev/null | sed 's/:\([0-9]*\):.*/:\1: unfinished/'
    grep -rnIE "$outside" $places 2>/dev/null | sed 's/:\([0-9]*\):.*/:\1: a path outside the repository/'
}

# ---- tables ----

# names FILE: the entries of a table.
names() { sed -n 's/^[A-Z]*(\([a-z0-9_]*\))$/\1/p' "$1"; }

# table FILE FOLDER PREFIX ONE_FILE: every entry has its const object PREFIX_NAME below FOLDER, and every
# such object its entry; with ONE_FILE=yes each lives in FOLDER/NAME.c.
table() {
    local name defined
    [ -f "$1" ] || return
    for name in $(names "$1"); do
        grep -rqE "^const bk_[a-z]+(_kind)? $3_$name( =|\$)" "$2" --include='*.c' ||
            echo "$1: $name: no const object $3_$name in $2"
        [ "$4" = yes ] && [ ! -f "$2/$name.c" ] && echo "$1: $name: there is no $2/$name.c"
    done
    for defined in $(grep -rhoE "^const bk_[a-z]+(_kind)? $3_[a-z0-9_]+( =|\$)" "$2" --include='*.c' |
        sed -E "s/.* $3_([a-z0-9_]+).*/\1/"); do
        names "$1" | grep -qx "$defined" || echo "$1: $defined is defined in $2, but not in the table"
    done
}

check_tables() {
    table jobs/commands.def jobs bk_command yes
    table losses/kinds.def losses bk_loss yes
    table models/kinds.def models bk_model yes
    table models/attention/kinds.def models/attention bk_attention yes
    table models/router/kinds.def models/router bk_router yes
    table io/data/kinds.def io/data bk_data yes
    table core/ops/kinds.def core/ops bk_op no
}

# ---- the root ----

check_root() {
    local known=" .ci .clang-format .clang-tidy .editorconfig .gitignore CMakeLists.txt CMakePresets.json LICENSE README.md $folders "
    local entry entries
    if [ -e .git ]; then
        entries=$(git ls-files --cached --others --exclude-standard | cut -d/ -f1 | sort -u)
    else
        entries=$(ls -A | grep -vx build)
    fi
    for entry in $entries; do
        case $known in
        *" $entry "*) ;;
        *) echo "$entry: not one of the root's entries" ;;
        esac
    done
}

# ---- headers and layout ----

# Every header compiles alone.  FLAGS: where the libraries are.
check_headers() {
    local header
    for header in $(c_files | grep '\.h$'); do
        gcc -std=c17 -D_GNU_SOURCE -DBK_REAL=32 -fsyntax-only -I. $FLAGS -x c "$header" >/dev/null 2>&1 ||
            echo "$header: does not compile alone"
    done
}

check_format() {
    c_files | xargs clang-format --dry-run -Werror 2>&1 | sed -n 's/^\([^:]*:[0-9]*\):.*/\1: not as clang-format lays it out/p' | sort -u
}
