/* tests/simgrid/machine.h - the machine that the simulated ranks stand on: time passes by
 * arithmetic and by memory traffic that are only claimed, and all large arrays of all ranks are the
 * same piece of memory.  The rest of core/ that dist/ calls is replaced by machine.c. */
#ifndef BK_TESTS_SIMGRID_MACHINE_H
#define BK_TESTS_SIMGRID_MACHINE_H

#include <stdbool.h>
#include <stddef.h>

/* What a rank is: one node of a cluster. */
typedef struct bk_machine {
    double flops;  /* a second, of matrix products */
    double memory; /* bytes a second */
    double poll;   /* seconds between two calls of the poll hook during products */
    void *payload; /* the large arrays; from SMPI_SHARED_MALLOC: messages in it are not copied */
    size_t bytes;  /* of payload */
} bk_machine;

/* For all calls below; set before the first. */
void bk_machine_set(const bk_machine *machine);

/* Lets the time of so many operations pass; polls: with a call of the hook after each
 * `machine.poll` seconds. */
void bk_machine_multiply(double flops, bool polls);
/* Lets the time of so many bytes of memory traffic pass; short times are collected until 20 us. */
void bk_machine_stream(double bytes);
/* Lets what was collected pass. */
void bk_machine_flush(void);

#endif
