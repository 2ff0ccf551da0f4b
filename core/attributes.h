/* core/attributes.h - named figures that are not arrays: iterations, residuals, counts.  `birkhoff
 * op` writes them as root attributes, training logs them. */
#ifndef BK_CORE_ATTRIBUTES_H
#define BK_CORE_ATTRIBUTES_H

#include "core/status.h"

enum { BK_ATTRIBUTES_MAX = 48 };

typedef struct bk_attributes {
    struct {
        const char *name; /* borrowed */
        double value;
        bool integer; /* written as int64 */
    } entry[BK_ATTRIBUTES_MAX];
    int entries;
} bk_attributes;

/* Set or replace; `a` may be NULL (then nothing happens). */
void bk_attribute_set(bk_attributes *a, const char *name, double value);
void bk_attribute_set_integer(bk_attributes *a, const char *name, int64_t value);
/* `absent` when there is none of that name. */
double bk_attribute_get(const bk_attributes *a, const char *name, double absent);

#endif
