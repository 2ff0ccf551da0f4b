#include "dist/traffic.h"

#include "core/log.h"

static bk_traffic parts[BK_TRAFFIC_PARTS];

const char *bk_traffic_name(bk_traffic_part part)
{
    static const char *const names[BK_TRAFFIC_PARTS] = {"reduce", "gather", "agree",   "loss",
                                                        "route",  "expert", "teacher", "rest"};
    return names[part];
}

bk_traffic bk_traffic_of(bk_traffic_part part)
{
    return parts[part];
}

bk_traffic bk_traffic_now(void)
{
    return bk_traffic_sum(parts);
}

bk_traffic bk_traffic_sum(const bk_traffic part[BK_TRAFFIC_PARTS])
{
    bk_traffic sum = {0};
    for (int i = 0; i < BK_TRAFFIC_PARTS; i++)
        sum = bk_traffic_plus(sum, part[i]);
    return sum;
}

bk_traffic bk_traffic_plus(bk_traffic x, bk_traffic y)
{
    return (bk_traffic){.bytes = x.bytes + y.bytes,
                        .messages = x.messages + y.messages,
                        .far = x.far + y.far,
                        .blocked = x.blocked + y.blocked};
}

bk_traffic bk_traffic_minus(bk_traffic x, bk_traffic y)
{
    return (bk_traffic){.bytes = x.bytes - y.bytes,
                        .messages = x.messages - y.messages,
                        .far = x.far - y.far,
                        .blocked = x.blocked - y.blocked};
}

void bk_traffic_add(bk_traffic_part part, int64_t bytes)
{
    bk_traffic_add_all(part, (bk_traffic){.bytes = bytes, .messages = 1});
}

void bk_traffic_add_all(bk_traffic_part part, bk_traffic sent)
{
    parts[part] = bk_traffic_plus(parts[part], sent);
}

void bk_traffic_blocked(bk_traffic_part part, double start)
{
    parts[part].blocked += bk_seconds() - start;
}
