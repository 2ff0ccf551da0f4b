#include "tests/support/disk.h"

#include "io/files.h"
#include "tests/support/check.h"
#include "tests/support/files.h"

#include <string.h>
#include <xxhash.h>

enum { ENTRIES = 16, VERSIONS = 64, NAME = 64 };

typedef struct node node;

typedef struct entry {
    char name[NAME];
    node *node;
} entry;

typedef struct entries {
    int count;
    entry entry[ENTRIES];
} entries;

/* now: with every change; safe: as of the last sync. */
typedef struct content {
    char *data;
    int64_t bytes, room;
} content;

struct node {
    bool directory;
    content now, safe;
    bool dirty;
    entries *version; /* [VERSIONS] since the last sync, that one first */
    int changes;
};

struct bk_disk {
    bk_arena *arena;
    node *root;
};

/* ---- nodes ---- */

static node *node_new(bk_disk *d, bool directory)
{
    node *n = BK_ZNEW(d->arena, node, 1);
    n->directory = directory;
    n->version = directory ? BK_ZNEW(d->arena, entries, VERSIONS) : NULL;
    return n;
}

bk_disk *bk_disk_new(bk_arena *arena)
{
    bk_disk *d = BK_ZNEW(arena, bk_disk, 1);
    d->arena = arena;
    d->root = node_new(d, true);
    return d;
}

static const entries *newest(const node *directory)
{
    return &directory->version[directory->changes];
}

static int place_of(const entries *e, const char *name)
{
    for (int i = 0; i < e->count; i++)
        if (strcmp(e->entry[i].name, name) == 0)
            return i;
    return -1;
}

/* The directory that holds the path, and the name there. */
static node *parent_of(const bk_disk *d, const char *path, const char **name)
{
    const char *slash = strchr(path, '/');
    char first[NAME];
    *name = slash ? slash + 1 : path;
    if (!slash)
        return d->root;
    snprintf(first, sizeof first, "%.*s", (int)(slash - path), path);
    int at = place_of(newest(d->root), first);
    if (at < 0)
        fail_msg("no directory of %s", path);
    return newest(d->root)->entry[at].node;
}

static node *node_at(const bk_disk *d, const char *path)
{
    const char *name;
    if (!*path)
        return d->root;
    const entries *e = newest(parent_of(d, path, &name));
    int at = place_of(e, name);
    if (at < 0)
        fail_msg("no %s", path);
    return e->entry[at].node;
}

/* ---- changes ---- */

static entries *change(node *directory)
{
    assert_true(directory->changes + 1 < VERSIONS);
    directory->version[directory->changes + 1] = directory->version[directory->changes];
    return &directory->version[++directory->changes];
}

static void put(entries *e, const char *name, node *n)
{
    int at = place_of(e, name);
    if (at < 0)
        at = e->count++;
    assert_true(at < ENTRIES && strlen(name) < NAME);
    snprintf(e->entry[at].name, NAME, "%s", name);
    e->entry[at].node = n;
}

static void drop(entries *e, const char *name)
{
    int at = place_of(e, name);
    assert_true(at >= 0);
    e->entry[at] = e->entry[--e->count];
}

static void make(bk_disk *d, const char *path, bool directory)
{
    const char *name;
    node *parent = parent_of(d, path, &name);
    put(change(parent), name, node_new(d, directory));
}

static void move(bk_disk *d, const char *path, const char *to)
{
    const char *from_name, *to_name;
    node *n = node_at(d, path), *parent = parent_of(d, path, &from_name);
    assert_ptr_equal(parent, parent_of(d, to, &to_name));
    entries *e = change(parent);
    drop(e, from_name);
    put(e, to_name, n);
}

static void resize(bk_disk *d, content *c, int64_t bytes)
{
    if (bytes > c->room) {
        c->room = 2 * bytes;
        char *wider = bk_arena_zalloc(d->arena, (size_t)c->room);
        if (c->bytes > 0)
            memcpy(wider, c->data, (size_t)c->bytes);
        c->data = wider;
    }
    if (bytes > c->bytes)
        memset(c->data + c->bytes, 0, (size_t)(bytes - c->bytes));
    c->bytes = bytes;
}

static void put_bytes(bk_disk *d, node *n, const bk_disk_op *op)
{
    int64_t end = op->offset + op->bytes;
    if (end > n->now.bytes)
        resize(d, &n->now, end);
    memcpy(n->now.data + op->offset, op->data, (size_t)op->bytes);
    n->dirty = true;
}

static void cut(bk_disk *d, node *n, int64_t bytes)
{
    resize(d, &n->now, bytes);
    n->dirty = true;
}

static void sync_node(bk_disk *d, node *n)
{
    if (n->directory) {
        n->version[0] = n->version[n->changes];
        n->changes = 0;
        return;
    }
    resize(d, &n->safe, n->now.bytes);
    if (n->now.bytes > 0)
        memcpy(n->safe.data, n->now.data, (size_t)n->now.bytes);
    n->dirty = false;
}

void bk_disk_apply(bk_disk *d, const bk_disk_op *op)
{
    const char *name;
    switch (op->call) {
    case BK_DISK_CREATE:
    case BK_DISK_MKDIR:
        make(d, op->path, op->call == BK_DISK_MKDIR);
        break;
    case BK_DISK_WRITE:
        put_bytes(d, node_at(d, op->path), op);
        break;
    case BK_DISK_CUT:
        cut(d, node_at(d, op->path), op->bytes);
        break;
    case BK_DISK_SYNC:
        sync_node(d, node_at(d, op->path));
        break;
    case BK_DISK_RENAME:
        move(d, op->path, op->to);
        break;
    case BK_DISK_REMOVE: {
        node *parent = parent_of(d, op->path, &name);
        drop(change(parent), name);
    }
    }
}

/* ---- after a crash ---- */

int bk_disk_changes(const bk_disk *d)
{
    return d->root->changes;
}

typedef void visit(void *context, const char *path, const node *n, content left);

/* Torn: the right length, and the second half never came. */
static content left_of(const node *n, bk_disk_data data, bk_arena *arena)
{
    if (!n->dirty || data == BK_DISK_KEPT)
        return n->now;
    if (data == BK_DISK_LOST)
        return n->safe;
    content torn = {.data = bk_arena_zalloc(arena, (size_t)n->now.bytes + 1),
                    .bytes = n->now.bytes};
    memcpy(torn.data, n->now.data, (size_t)n->now.bytes / 2);
    return torn;
}

static void walk_below(const node *directory, const char *above, bk_disk_crash crash, visit *f,
                       void *context, bk_arena *arena)
{
    const entries *e = crash.names_lost ? &directory->version[0] : newest(directory);
    for (int i = 0; i < e->count; i++) {
        const node *n = e->entry[i].node;
        f(context, bk_arena_printf(arena, "%s/%s", above, e->entry[i].name), n,
          left_of(n, crash.data, arena));
    }
}

static void walk(const bk_disk *d, bk_disk_crash crash, visit *f, void *context)
{
    bk_arena *arena = bk_arena_new("walk");
    const entries *e = &d->root->version[crash.changes];
    for (int i = 0; i < e->count; i++) {
        const node *n = e->entry[i].node;
        f(context, e->entry[i].name, n,
          n->directory ? (content){0} : left_of(n, crash.data, arena));
        if (n->directory)
            walk_below(n, e->entry[i].name, crash, f, context, arena);
    }
    bk_arena_free(arena);
}

/* Entries come in any order. */
static void hash_one(void *context, const char *path, const node *n, content left)
{
    (void)n;
    uint64_t *sum = context;
    *sum += XXH64(left.data, (size_t)left.bytes, XXH64(path, strlen(path), 0));
}

uint64_t bk_disk_hash(const bk_disk *d, bk_disk_crash crash)
{
    uint64_t sum = 0;
    walk(d, crash, hash_one, &sum);
    return sum;
}

static void make_one(void *context, const char *path, const node *n, content left)
{
    char whole[4096];
    snprintf(whole, sizeof whole, "%s/%s", (const char *)context, path);
    if (n->directory)
        assert_int_equal(bk_make_directories(whole), BK_OK);
    else
        bk_test_write(whole, left.data ? left.data : "", (size_t)left.bytes);
}

void bk_disk_make(const bk_disk *d, bk_disk_crash crash, const char *directory)
{
    walk(d, crash, make_one, (void *)directory);
}
