/* test: labels=unit,io,fault timeout=300 */
/* The order of the calls of the system that a save makes: the machine may stop behind any of them,
 * its disk may have lost whatever was not synced, and the last acknowledged checkpoint is found.
 * The calls below, which stand before those of the C library, write the journal. */
#include "core/log.h"
#include "io/checkpoint.h"
#include "io/files.h"
#include "tests/support/check.h"
#include "tests/support/checkpoint.h"
#include "tests/support/disk.h"
#include "tests/support/files.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CALLS = 4096, PATH = 4096, SAVES = 5 };

static bk_arena *arena; /* of the journal */
static char root[PATH]; /* what is recorded lies below; empty: nothing is */
static bk_disk_op journal[CALLS];
static int calls;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* A save: the calls from begun to acked. */
static struct {
    int64_t step;
    int version, begun, acked;
    char payload[65];
} saves[SAVES] = {
    {1, 1, 0, 0, ""}, {2, 2, 0, 0, ""}, {3, 3, 0, 0, ""}, {3, 4, 0, 0, ""}, {4, 5, 0, 0, ""}};

/* ---- the journal ---- */

static const char *below_root(const char *path)
{
    size_t length = strlen(root);
    return length > 0 && strncmp(path, root, length) == 0 && (path[length] == '/' || !path[length])
               ? path + length + (path[length] == '/')
               : NULL;
}

static void record(bk_disk_op op, const char *path, const char *to)
{
    const char *name = below_root(path);
    if (!name)
        return;
    pthread_mutex_lock(&lock);
    assert_true(calls < CALLS);
    op.path = bk_arena_strdup(arena, name);
    op.to = to ? bk_arena_strdup(arena, below_root(to)) : NULL;
    if (op.data) {
        char *copy = bk_arena_alloc(arena, (size_t)op.bytes + 1);
        memcpy(copy, op.data, (size_t)op.bytes);
        op.data = copy;
    }
    journal[calls++] = op;
    pthread_mutex_unlock(&lock);
}

static void record_file(bk_disk_op op, int file)
{
    char link[64], path[PATH];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = root[0] ? readlink(link, path, sizeof path - 1) : -1;
    if (length < 0)
        return;
    path[length] = '\0';
    record(op, path, NULL);
}

/* NAME of the C library, as NEXT. */
#define FIND(next, name) *(void **)&next = dlsym(RTLD_NEXT, name)

int open(const char *path, int flags, ...)
{
    int (*next)(const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    FIND(next, "open");
    bool there = root[0] && faccessat(AT_FDCWD, path, F_OK, 0) == 0;
    int file = next(path, flags, mode);
    if (file >= 0 && flags & O_CREAT && !there)
        record((bk_disk_op){.call = BK_DISK_CREATE}, path, NULL);
    else if (file >= 0 && flags & O_TRUNC)
        record((bk_disk_op){.call = BK_DISK_CUT}, path, NULL);
    return file;
}

ssize_t write(int file, const void *data, size_t bytes)
{
    ssize_t (*next)(int, const void *, size_t);
    FIND(next, "write");
    off_t at = root[0] ? lseek(file, 0, SEEK_CUR) : 0;
    ssize_t wrote = next(file, data, bytes);
    if (wrote > 0)
        record_file((bk_disk_op){BK_DISK_WRITE, .offset = at, .bytes = wrote, .data = data}, file);
    return wrote;
}

ssize_t pwrite(int file, const void *data, size_t bytes, off_t at)
{
    ssize_t (*next)(int, const void *, size_t, off_t);
    FIND(next, "pwrite");
    ssize_t wrote = next(file, data, bytes, at);
    if (wrote > 0)
        record_file((bk_disk_op){BK_DISK_WRITE, .offset = at, .bytes = wrote, .data = data}, file);
    return wrote;
}

int ftruncate(int file, off_t bytes)
{
    int (*next)(int, off_t);
    FIND(next, "ftruncate");
    int failed = next(file, bytes);
    if (!failed)
        record_file((bk_disk_op){.call = BK_DISK_CUT, .bytes = bytes}, file);
    return failed;
}

int fsync(int file)
{
    int (*next)(int);
    FIND(next, "fsync");
    int failed = next(file);
    if (!failed)
        record_file((bk_disk_op){.call = BK_DISK_SYNC}, file);
    return failed;
}

int rename(const char *from, const char *to)
{
    int (*next)(const char *, const char *);
    FIND(next, "rename");
    int failed = next(from, to);
    if (!failed)
        record((bk_disk_op){.call = BK_DISK_RENAME}, from, to);
    return failed;
}

int mkdir(const char *path, mode_t mode)
{
    int (*next)(const char *, mode_t);
    FIND(next, "mkdir");
    int failed = next(path, mode);
    if (!failed)
        record((bk_disk_op){.call = BK_DISK_MKDIR}, path, NULL);
    return failed;
}

static int remove_by(const char *call, const char *path)
{
    int (*next)(const char *);
    FIND(next, call);
    int failed = next(path);
    if (!failed)
        record((bk_disk_op){.call = BK_DISK_REMOVE}, path, NULL);
    return failed;
}

int unlink(const char *path)
{
    return remove_by("unlink", path);
}

int rmdir(const char *path)
{
    return remove_by("rmdir", path);
}

/* ---- the saves ---- */

static void save(int i, const char *directory)
{
    bk_piece list[BK_TEST_TENSORS];
    bk_run_state state = bk_test_state(saves[i].step);
    bk_save_options options = bk_test_options(1);
    bk_saved saved;
    options.keep = 2;
    int64_t count = bk_test_pieces(arena, 0, 1, saves[i].version, list);
    saves[i].begun = calls;
    if (bk_checkpoint_save(NULL, directory, list, count, &state, &options, &saved) != BK_OK)
        fail_msg("save: %s", bk_status_text());
    saves[i].acked = calls;
    snprintf(saves[i].payload, sizeof saves[i].payload, "%s", saved.payload);
}

static int record_saves(void **state)
{
    if (bk_test_directory_make_in_memory(state) != 0)
        return -1;
    const char *directory = bk_arena_strdup(arena, bk_test_path("run/x"));
    directory = bk_arena_printf(arena, "%.*s", (int)strlen(directory) - 2, directory);
    snprintf(root, sizeof root, "%s", directory);
    for (int i = 0; i < SAVES; i++)
        save(i, directory);
    root[0] = '\0';
    return 0;
}

/* ---- the order ---- */

static bool starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

/* Synced in calls [from, to). */
static bool is_synced(const char *path, int from, int to)
{
    for (int i = from; i < to; i++)
        if (journal[i].call == BK_DISK_SYNC && strcmp(journal[i].path, path) == 0)
            return true;
    return false;
}

static bool is_within(const char *path, const char *directory)
{
    size_t length = strlen(directory);
    return length == 0 ? !strchr(path, '/') : starts_with(path, directory) && path[length] == '/';
}

/* Each file below is synced behind its last change, each directory behind that of its entries. */
static void check_durable(const char *directory, int before)
{
    for (int i = 0; i < before; i++) {
        const bk_disk_op *op = &journal[i];
        bool data = op->call <= BK_DISK_CUT, names = op->call != BK_DISK_WRITE &&
                                                     op->call != BK_DISK_CUT &&
                                                     op->call != BK_DISK_SYNC;
        if (!is_within(op->path, directory))
            continue;
        if (data && !is_synced(op->path, i + 1, before))
            fail_msg("%s is not synced before call %d", op->path, before);
        if (names && !is_synced(directory, i + 1, before))
            fail_msg("%s is not synced before call %d", directory, before);
    }
}

static void no_rename_before_what_it_depends_on(void **state)
{
    (void)state;
    int commits = 0, files = 0;
    for (int i = 0; i < calls; i++) {
        const bk_disk_op *op = &journal[i];
        if (op->call != BK_DISK_RENAME)
            continue;
        if (starts_with(op->to, "step-")) {
            check_durable(op->path, i);
            commits++;
        } else if (op->to[0] != '.' || strchr(op->to, '/')) { /* latest, manifest.json */
            int made = i;
            while (made > 0 && (journal[made].call != BK_DISK_WRITE ||
                                strcmp(journal[made].path, op->path) != 0))
                made--;
            assert_true(is_synced(op->path, made + 1, i));
            files++;
        }
    }
    assert_int_equal(commits, SAVES);
    assert_int_equal(files, 2 * SAVES);
}

/* The commit is durable before anything of an older checkpoint goes and before anyone hears of it.
 */
static void a_commit_is_durable_before_it_counts(void **state)
{
    (void)state;
    int removed = 0;
    for (int s = 0; s < SAVES; s++) {
        int commit = saves[s].begun;
        while (commit < calls && (journal[commit].call != BK_DISK_RENAME ||
                                  !starts_with(journal[commit].to, "step-")))
            commit++;
        assert_true(commit < saves[s].acked);
        assert_true(is_synced("", commit, saves[s].acked));
        for (int i = saves[s].begun; i < saves[s].acked; i++) {
            const bk_disk_op *op = &journal[i];
            bool trash = op->call == BK_DISK_RENAME && starts_with(op->to, ".trash-");
            if (!trash && op->call != BK_DISK_REMOVE)
                continue;
            removed++;
            assert_true(is_synced("", commit, i));
        }
    }
    assert_true(removed >= 3 * 3); /* two checkpoints by age and one that was replaced */
}

/* ---- the replay ---- */

static bool is_save(const bk_checkpoint *c, int i)
{
    return i >= 0 && i < SAVES && bk_checkpoint_state(c)->step == saves[i].step &&
           strcmp(bk_checkpoint_payload(c), saves[i].payload) == 0;
}

/* A disk and a start that could be worse: syncs of paths with this end do nothing (NULL: all do);
 * what was set aside is not put back, which readers never do. */
typedef struct weakness {
    const char *unsynced;
    bool keeps_aside;
} weakness;

/* Trees that were found good, each with what was acknowledged. */
typedef struct replay {
    weakness weak;
    bk_arena *arena;
    bk_disk *disk;
    int acked; /* the newest acknowledged save, -1: none yet */
    uint64_t seen[CALLS * 4];
    int trees;
} replay;

/* What the crash leaves holds the newest acknowledged save or the next one. */
static bool survives(const replay *r, bk_disk_crash crash)
{
    const char *directory = bk_test_path("crash");
    bk_arena *scratch = bk_arena_new("crash");
    bk_checkpoint *c = NULL;
    bk_test_remove_tree(directory);
    assert_int_equal(bk_make_directories(directory), BK_OK);
    bk_disk_make(r->disk, crash, directory);
    if (!r->weak.keeps_aside)
        bk_checkpoint_restore(directory);
    bk_status status = bk_checkpoint_find(NULL, scratch, directory, (bk_find_options){0}, &c);
    bool good =
        status == BK_OK && (c ? is_save(c, r->acked) || is_save(c, r->acked + 1) : r->acked < 0);
    bk_arena_free(scratch);
    return good;
}

static bool is_seen(replay *r, uint64_t hash)
{
    for (int i = 0; i < r->trees; i++)
        if (r->seen[i] == hash)
            return true;
    assert_true((size_t)r->trees < sizeof r->seen / sizeof *r->seen);
    r->seen[r->trees++] = hash;
    return false;
}

/* All that a crash now may leave. */
static bool survives_all(replay *r)
{
    for (int changes = 0; changes <= bk_disk_changes(r->disk); changes++)
        for (int lost = 0; lost < 2; lost++)
            for (int data = 0; data < BK_DISK_DATA; data++) {
                bk_disk_crash crash = {changes, lost, (bk_disk_data)data};
                uint64_t hash = bk_disk_hash(r->disk, crash) + (uint64_t)r->acked;
                if (!is_seen(r, hash) && !survives(r, crash))
                    return false;
            }
    return true;
}

static bool is_lost(const weakness *w, const bk_disk_op *op)
{
    size_t length = strlen(op->path), end = w->unsynced ? strlen(w->unsynced) : 0;
    if (!w->unsynced || op->call != BK_DISK_SYNC)
        return false;
    return end == 0 ? length == 0
                    : length >= end && strcmp(op->path + length - end, w->unsynced) == 0;
}

/* The first number of calls behind which a crash loses something; -1: there is none. */
static int first_loss(weakness weak, int *trees)
{
    replay *r = BK_ZNEW(arena, replay, 1);
    *r = (replay){.weak = weak, .arena = bk_arena_new("disk"), .acked = -1};
    r->disk = bk_disk_new(r->arena);
    int loss = -1;
    for (int i = 0; i <= calls && loss < 0; i++) {
        while (r->acked + 1 < SAVES && i >= saves[r->acked + 1].acked)
            r->acked++;
        if (!survives_all(r))
            loss = i;
        if (i < calls && !is_lost(&weak, &journal[i]))
            bk_disk_apply(r->disk, &journal[i]);
    }
    *trees = r->trees;
    bk_arena_free(r->arena);
    return loss;
}

static void the_last_acknowledged_one_survives(void **state)
{
    (void)state;
    for (int reader = 0; reader < 2; reader++) {
        int trees, loss = first_loss((weakness){.keeps_aside = reader}, &trees);
        if (loss >= 0)
            fail_msg("lost by a crash behind call %d of %d (%d %s), reader %d", loss, calls,
                     journal[loss > 0 ? loss - 1 : 0].call, journal[loss > 0 ? loss - 1 : 0].path,
                     reader);
        assert_true(trees > calls);
    }
}

/* Each of them is there for a reason, and the replay sees it. */
static void nothing_survives_a_weakness(void **state)
{
    (void)state;
    static const weakness weak[] = {{.unsynced = "shard-00000.h5"},
                                    {.unsynced = "manifest.json.tmp"},
                                    {.unsynced = ".0"}, /* .tmp-step-00000001.RUN.0 */
                                    {.unsynced = ""}};
    for (size_t i = 0; i < sizeof weak / sizeof *weak; i++) {
        int trees;
        if (first_loss(weak[i], &trees) < 0)
            fail_msg("no loss with weakness %zu", i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_rename_before_what_it_depends_on),
        cmocka_unit_test(a_commit_is_durable_before_it_counts),
        cmocka_unit_test(the_last_acknowledged_one_survives),
        cmocka_unit_test(nothing_survives_a_weakness),
    };
    arena = bk_arena_new("test");
    bk_log_setup(BK_LOG_QUIET, false, false);
    int failed = cmocka_run_group_tests(tests, record_saves, bk_test_directory_remove);
    bk_arena_free(arena);
    return failed;
}
