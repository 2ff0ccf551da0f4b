/* jobs/peak.h - the arithmetic limit of one rank, measured. */
#ifndef BK_JOBS_PEAK_H
#define BK_JOBS_PEAK_H

#include <stdbool.h>

/* FLOP/s of multiply-adds in registers on this rank's threads, best of a few short runs (about
 * 20 ms): fp32, or bf16 where the machine has it (else fp32 again). */
double bk_measure_peak(bool bf16);

#endif
