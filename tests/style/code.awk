# tests/style/code.awk - C without comments, texts and characters: "FILE:LINE:code".
# Includes keep their names, and the number of lines stays.
FNR == 1 { inside = 0 }
!inside && /^[ \t]*#[ \t]*include/ { print FILENAME ":" FNR ":" $0; next }
{
    rest = $0
    code = ""
    while (rest != "") {
        if (inside) {
            end = index(rest, "*/")
            rest = end ? substr(rest, end + 2) : ""
            if (end) inside = 0
            continue
        }
        if (!match(rest, /\/\*|\/\/|"([^"\\]|\\.)*"|'([^'\\]|\\.)+'/)) {
            code = code rest
            break
        }
        begins = substr(rest, RSTART, 2)
        code = code substr(rest, 1, RSTART - 1)
        if (begins == "/*") {
            inside = 1
            rest = substr(rest, RSTART + 2)
        } else if (begins == "//") {
            rest = ""
        } else {
            code = code "\"\""
            rest = substr(rest, RSTART + RLENGTH)
        }
    }
    print FILENAME ":" FNR ":" code
}
