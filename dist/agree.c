#include "dist/agree.h"

#include "dist/collective.h"
#include "dist/internal.h"
#include "dist/trace.h"

#include <stdio.h>
#include <string.h>

bk_status bk_agree(const bk_comm *comm, bk_status status)
{
    if (bk_comm_size(comm) == 1)
        return status;
    /* highest status first, then the lowest rank that has it; highest and lowest hash of the calls
     */
    int64_t hash = comm->all_ranks ? bk_trace_now().hash : 0;
    int64_t worst[3] = {(int64_t)status * comm->size + (comm->size - 1 - comm->rank), hash, -hash};
    bk_max_i64(comm, 3, worst);
    bk_status agreed = (bk_status)(worst[0] / comm->size);
    if (agreed == BK_OK)
        return worst[1] == -worst[2] ? BK_OK : bk_trace_compare(comm);
    int speaker = comm->size - 1 - (int)(worst[0] % comm->size);
    struct {
        char text[2048], trail[4096];
    } said;
    snprintf(said.text, sizeof said.text, "%s", bk_status_text());
    snprintf(said.trail, sizeof said.trail, "%s", bk_status_trail());
    bk_broadcast(comm, speaker, &said, sizeof said);
    bk_status_set_text(said.text);
    return said.trail[0] ? bk_within(agreed, "%s", said.trail) : agreed;
}
