#include "losses/loss.h"

#include <string.h>

#define LOSS(kind) extern const bk_loss_kind bk_loss_##kind;
#include "losses/kinds.def"
#undef LOSS

#define LOSS(kind) &bk_loss_##kind,
const bk_loss_kind *const bk_losses[] = {
#include "losses/kinds.def"
    NULL};
#undef LOSS

const bk_loss_kind *bk_loss_find(const char *name)
{
    for (int i = 0; bk_losses[i]; i++)
        if (strcmp(bk_losses[i]->name, name) == 0)
            return bk_losses[i];
    return NULL;
}
