/* dist/signal.h - requests to stop.  Handlers only set a flag; the trainer carries it in the
 * agreement message. */
#ifndef BK_DIST_SIGNAL_H
#define BK_DIST_SIGNAL_H

#include <stdbool.h>

/* First lines of main, before MPI_Init: SIGTERM, SIGUSR1, SIGINT set the flag.  A second SIGINT
 * within 2 s from a terminal ends the process at once with 75. */
void bk_signals_install(void);
/* What this rank saw since the start. */
bool bk_signals_term(void);
bool bk_signals_usr1(void);
bool bk_signals_any(void);

/* Gives the three signals back what they did before bk_signals_install, for commands that never
 * look at the flags; a request that came in between takes effect now. */
void bk_signals_restore(void);

#endif
