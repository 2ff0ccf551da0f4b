/* core/fault.h - faults on purpose, so that tests can show what a run survives.
 *
 *   BIRKHOFF_FAULT=POINT:RANK:ACTION[:NTH][,...]
 *
 * POINT is a name of core/faults.def, RANK a number or * for all, NTH counts the passes of that
 * rank (default 1).  ACTION: kill9 (SIGKILL), abort, stop (SIGSTOP), sleep=SECONDS; enospc, eio:
 * the call of the system at this point fails so; short: the file at this point loses its second
 * half; bitflip=OFFSET: one bit of its byte OFFSET (modulo its size) turns. */
#ifndef BK_CORE_FAULT_H
#define BK_CORE_FAULT_H

#include "core/status.h"

typedef enum bk_fault_point {
#define POINT(identifier, name) BK_FAULT_##identifier,
#include "core/faults.def"
#undef POINT
    BK_FAULT_POINTS
} bk_fault_point;

/* Not collective.  Reads BIRKHOFF_FAULT for this rank; BK_USAGE for an unknown point or action. */
BK_CHECKED bk_status bk_faults_read(int rank);

extern bool bk_faults_armed;

/* What the two below do when something is armed.  path: the file at this point; NULL: none. */
int bk_fault_pass(bk_fault_point point, const char *path);

/* Passes a point.  Any thread.  Returns 0, or the errno that the call of the system at this point
 * must be taken to have failed with. */
static inline int bk_fault(bk_fault_point point)
{
    return bk_faults_armed ? bk_fault_pass(point, NULL) : 0;
}
static inline int bk_fault_at(bk_fault_point point, const char *path)
{
    return bk_faults_armed ? bk_fault_pass(point, path) : 0;
}

#endif
