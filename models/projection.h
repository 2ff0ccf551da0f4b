/* models/projection.h - how far a matrix is from a doubly stochastic one, and the nearest. */
#ifndef BK_MODELS_PROJECTION_H
#define BK_MODELS_PROJECTION_H

#include "core/arena.h"

/* Not collective.  x[n,n] = argmin |X - A|_F over X >= 0 with rows and columns that sum to 1, by
 * the semismooth Newton method on the dual (Li, Sun and Toh 2020): X = max(A + f 1' + 1 g', 0),
 * where min over f, g of  |X|^2 / 2 - sum f - sum g has the gradient (X 1 - 1, X' 1 - 1).  Ends
 * when no sum is off by more than 1e-9.  Returns the Frobenius distance, NaN when A is not finite
 * or the method does not converge.  O(n^3) an iteration, a handful of them; (2n)^2 doubles on
 * `scratch`, given back. */
double bk_birkhoff_project(int64_t n, const double *a, double *x, bk_arena *scratch);

/* Not collective.  Raises *row to the largest |sum - 1| of a row of a[n,n], *column to that of a
 * column; a sum of NaN counts as infinity. */
void bk_birkhoff_errors(int64_t n, const double *a, double *row, double *column);

#endif
