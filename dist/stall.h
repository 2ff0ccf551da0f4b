/* dist/stall.h - what the ranks were doing when one of them stopped: the state that each keeps in a
 * small file of the run directory, and the line that says who holds up whom.  Not collective. */
#ifndef BK_DIST_STALL_H
#define BK_DIST_STALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One rank; the names are its own copies. */
typedef struct bk_stall_state {
    int rank;
    char host[64];
    bool known;                  /* it could be read */
    bool stale;                  /* its clock stands: the process is stopped, or gone */
    int64_t beat;                /* counts up while the process runs */
    double idle;                 /* seconds since its work last moved, as far as it ran itself */
    char phase[16], segment[64]; /* segment: "-" for none */
    int64_t step;
    bool waits; /* in a call of MPI: */
    char call[32], comm[16];
    int64_t bytes, sequence;
} bk_stall_state;

/* Writes the whole state to an open file in one piece; false: it could not be written. */
bool bk_stall_write(int file, const bk_stall_state *s);
/* DIRECTORY/rank-R.state; `known` says whether there is such a file and it is whole. */
void bk_stall_read(const char *directory, int rank, bk_stall_state *out);

/* "rank 3 on node h2 stands in forward of block2, step 812, for 600 s; ranks 0 1 2 wait in ...":
 * the lowest rank whose clock stands, else the lowest that waits for no other; when there is none,
 * what the ranks wait in.  Where a stopped process stands is up to a tick old.  `seconds`: for how
 * long the caller has been waiting.  Without directory and advice. */
void bk_stall_text(const bk_stall_state *all, int size, double seconds, char *text, size_t room);

#endif
