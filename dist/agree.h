/* dist/agree.h - errors meet here.  At load, step and save all ranks leave with the same status and
 * text. */
#ifndef BK_DIST_AGREE_H
#define BK_DIST_AGREE_H

#include "dist/comm.h"

/* Collective.  Returns the highest status of all ranks; the text and trail of the lowest rank that
 * has it become this rank's.  Every rank must call it, whatever its own status.  BK_FAULT when all
 * is well but ranks have made other collective calls than rank 0 (dist/trace.h). */
BK_CHECKED bk_status bk_agree(const bk_comm *comm, bk_status status);

#endif
