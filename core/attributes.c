#include "core/attributes.h"

#include <string.h>

/* Its place, or a->entries. */
static int find(const bk_attributes *a, const char *name)
{
    int i = 0;
    while (i < a->entries && strcmp(a->entry[i].name, name) != 0)
        i++;
    return i;
}

static void set(bk_attributes *a, const char *name, double value, bool integer)
{
    if (!a)
        return;
    int i = find(a, name);
    BK_ASSERT(i < BK_ATTRIBUTES_MAX, "too many attributes: %s", name);
    a->entries = i == a->entries ? i + 1 : a->entries;
    a->entry[i].name = name;
    a->entry[i].value = value;
    a->entry[i].integer = integer;
}

void bk_attribute_set(bk_attributes *a, const char *name, double value)
{
    set(a, name, value, false);
}

void bk_attribute_set_integer(bk_attributes *a, const char *name, int64_t value)
{
    set(a, name, (double)value, true);
}

double bk_attribute_get(const bk_attributes *a, const char *name, double absent)
{
    int i = find(a, name);
    return i < a->entries ? a->entry[i].value : absent;
}
