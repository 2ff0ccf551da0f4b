/* jobs/peak.h - the arithmetic limit of one rank, measured. */
#ifndef BK_JOBS_PEAK_H
#define BK_JOBS_PEAK_H

/* FLOP/s of fp32 fused multiply-adds in registers on this rank's threads, best of a few short runs
 * (about 20 ms). */
double bk_measure_peak(void);

#endif
