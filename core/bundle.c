#include "core/bundle.h"

#include <string.h>

static int find(const bk_bundle *bundle, const char *name)
{
    for (int i = 0; i < bundle->entries; i++)
        if (strcmp(bundle->entry[i].name, name) == 0)
            return i;
    return -1;
}

void bk_bundle_set(bk_bundle *bundle, const char *name, bk_tensor *tensor)
{
    int i = find(bundle, name);
    if (i < 0) {
        BK_ASSERT(bundle->entries < BK_BUNDLE_MAX, "too many tensors in a bundle: %s", name);
        i = bundle->entries++;
    }
    bundle->entry[i].name = name;
    bundle->entry[i].tensor = tensor;
}

bk_tensor *bk_bundle_get(const bk_bundle *bundle, const char *name)
{
    int i = find(bundle, name);
    return i < 0 ? NULL : bundle->entry[i].tensor;
}

bk_tensor *bk_bundle_need(const bk_bundle *bundle, const char *name)
{
    bk_tensor *x = bk_bundle_get(bundle, name);
    BK_ASSERT(x, "no tensor %s in the bundle", name);
    return x;
}
