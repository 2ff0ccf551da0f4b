/* dist/messages.h - messages from rank to rank that are on their way while both compute: the poll
 * hook of core moves them. */
#ifndef BK_DIST_MESSAGES_H
#define BK_DIST_MESSAGES_H

#include "dist/comm.h"

/* Messages that are waited for together. */
typedef struct bk_messages bk_messages;

/* Not collective.  Empty, for at most `messages` messages, on `arena`, which must keep it until it
 * is finished. */
bk_messages *bk_messages_new(bk_arena *arena, const bk_comm *comm, int messages);

/* Not collective.  Begins a message of any size; 0 bytes are none.  `data` stays as it is (sent) or
 * is not looked at (received) until bk_messages_finish.  Messages from one rank to another of the
 * same tag arrive in the order in which they were begun, on both sides. */
void bk_messages_send(bk_messages *x, int to, int tag, const void *data, int64_t bytes);
void bk_messages_receive(bk_messages *x, int from, int tag, void *data, int64_t bytes);

/* Not collective.  Waits for all of them; NULL and one that is finished are fine. */
void bk_messages_finish(bk_messages *x);

/* Not collective.  Moves what is on its way; part of the poll hook. */
void bk_messages_poll(void);

#endif
