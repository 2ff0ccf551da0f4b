#include "models/attention.h"

#include <string.h>

#define ATTENTION(kind) extern const bk_attention_kind bk_attention_##kind;
#include "models/attention/kinds.def"
#undef ATTENTION

#define ATTENTION(kind) &bk_attention_##kind,
const bk_attention_kind *const bk_attentions[] = {
#include "models/attention/kinds.def"
    NULL};
#undef ATTENTION

const bk_attention_kind *bk_attention_find(const char *name)
{
    for (int i = 0; bk_attentions[i]; i++)
        if (strcmp(bk_attentions[i]->name, name) == 0)
            return bk_attentions[i];
    return NULL;
}

bk_status bk_attention_refuse_causal(const bk_attention_kind *kind, const char *where)
{
    return bk_fail(BK_USAGE, "attention kind '%s' cannot be causal (%s): %s", kind->name, where,
                   kind->not_causal);
}
