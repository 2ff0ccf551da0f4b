/* jobs/start.h - what must stand in the environment before the libraries are loaded. */
#ifndef BK_JOBS_START_H
#define BK_JOBS_START_H

/* First line of main.  libgomp reads once, while it is loaded, how long a thread of a team spins
 * before it sleeps: 3 ms by default, in which a thread of the same team that shares its core with
 * another program stands still (16 times slower beside a one-core job).  OpenBLAS chooses its
 * kernels while it is loaded, and takes a processor that is newer for an old one.  Unless the user
 * has chosen (GOMP_SPINCOUNT, OMP_WAIT_POLICY, or one thread by OMP_NUM_THREADS=1;
 * OPENBLAS_CORETYPE), sets GOMP_SPINCOUNT and OPENBLAS_CORETYPE and executes this program again;
 * the process stays the same.  Returns when nothing is to be done or it cannot be done. */
void bk_start_again_if_needed(char **argv);

#endif
