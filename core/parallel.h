/* core/parallel.h - loops shared out over the threads of core/blas. */
#ifndef BK_CORE_PARALLEL_H
#define BK_CORE_PARALLEL_H

#include <stdint.h>

/* Works on the indices [first, last). */
typedef void bk_parallel_body(void *context, int64_t first, int64_t last);

/* Pieces begin at multiples of this where an index is one element: vector loops then treat an
 * element alike however many pieces there are. */
enum { BK_PARALLEL_VECTOR = 16 };

/* Runs `body` on pieces that cover [0, n), side by side on bk_blas_threads() threads.  Pieces begin
 * at multiples of `unit`; `cost` is the number of elements that one index touches: small loops stay
 * on the calling thread.  Only for bodies whose result for an index does not depend on the piece it
 * stands in, so that bits do not depend on the number of threads. */
void bk_parallel(int64_t n, int64_t unit, int64_t cost, bk_parallel_body *body, void *context);

#endif
