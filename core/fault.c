#include "core/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

bool bk_faults_armed;

typedef enum action { KILL9, ABORT, STOP, SLEEP, ENOSPC_, EIO_, SHORT, BITFLIP, ACTIONS } action;

static const struct {
    const char *name;
    bool takes_number;
} actions[ACTIONS] = {{"kill9", false},  {"abort", false}, {"stop", false},  {"sleep", true},
                      {"enospc", false}, {"eio", false},   {"short", false}, {"bitflip", true}};

static const char *const points[BK_FAULT_POINTS] = {
#define POINT(identifier, name) name,
#include "core/faults.def"
#undef POINT
};

typedef struct fault {
    int point, action;
    double number;
    long nth;
    atomic_long passed;
} fault;

enum { MOST = 16, TEXT = 128, FIELDS = 4 };
static fault faults[MOST];
static int count;

/* ---- reading ---- */

static bk_status refuse(const char *text, const char *what)
{
    return bk_fail(BK_USAGE,
                   "BIRKHOFF_FAULT=%s: %s: POINT:RANK:ACTION[:NTH], as in "
                   "save.rename:0:kill9 (core/faults.def lists the points)",
                   text, what);
}

static int point_of(const char *name)
{
    for (int i = 0; i < BK_FAULT_POINTS; i++)
        if (strcmp(points[i], name) == 0)
            return i;
    return -1;
}

/* "sleep=2" -> SLEEP and 2. */
static int action_of(const char *text, double *number)
{
    size_t length = strcspn(text, "=");
    for (int i = 0; i < ACTIONS; i++) {
        if (strncmp(actions[i].name, text, length) != 0 || actions[i].name[length])
            continue;
        char *end = NULL;
        bool given = text[length] == '=';
        *number = given ? strtod(text + length + 1, &end) : 0.0;
        if (given != actions[i].takes_number || (given && (*end || end == text + length + 1)))
            return -1;
        return i;
    }
    return -1;
}

/* Cuts "a:b:c" at its colons; the number of fields. */
static int cut(char *text, char *field[FIELDS])
{
    int n = 0;
    for (char *at = text; at && n < FIELDS; at = strchr(at, ':')) {
        if (n > 0)
            *at++ = '\0';
        field[n++] = at;
    }
    return n;
}

static bk_status read_one(const char *whole, int rank)
{
    char text[TEXT], *field[FIELDS], *end;
    fault f = {.nth = 1};
    if (snprintf(text, sizeof text, "%s", whole) >= TEXT)
        return refuse(whole, "it is too long");
    int fields = cut(text, field);
    if (fields < 3)
        return refuse(whole, "three fields are needed");
    f.point = point_of(field[0]);
    f.action = action_of(field[2], &f.number);
    long only = strtol(field[1], &end, 10);
    bool all = strcmp(field[1], "*") == 0;
    if (f.point < 0)
        return refuse(whole, "there is no such point");
    if (!all && (*end || end == field[1] || only < 0))
        return refuse(whole, "the rank is no number and not *");
    if (f.action < 0)
        return refuse(whole, "there is no such action");
    if (fields == FIELDS && ((f.nth = strtol(field[3], &end, 10)) < 1 || *end))
        return refuse(whole, "the pass is no number from 1 on");
    if (!all && only != rank)
        return BK_OK;
    if (count == MOST)
        return refuse(whole, "there are too many");
    faults[count++] = f;
    bk_faults_armed = true;
    return BK_OK;
}

bk_status bk_faults_read(int rank)
{
    const char *wish = getenv("BIRKHOFF_FAULT");
    char text[MOST * TEXT], *rest = NULL;
    count = 0;
    bk_faults_armed = false;
    if (!wish || !*wish)
        return BK_OK;
    if (snprintf(text, sizeof text, "%s", wish) >= (int)sizeof text)
        return refuse("...", "it is too long");
    for (char *one = strtok_r(text, ",", &rest); one; one = strtok_r(NULL, ",", &rest))
        BK_TRY(read_one(one, rank));
    return BK_OK;
}

/* ---- happening ---- */

static void sleep_for(double seconds)
{
    struct timespec left = {.tv_sec = (time_t)seconds};
    left.tv_nsec = (long)(1e9 * (seconds - (double)left.tv_sec));
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
}

static void flip(int file, off_t at)
{
    unsigned char byte;
    if (pread(file, &byte, 1, at) != 1)
        return;
    byte ^= 0x10;
    if (pwrite(file, &byte, 1, at) != 1)
        perror("BIRKHOFF_FAULT: bitflip");
}

static void spoil(const fault *f, const char *path)
{
    struct stat s;
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    if (fstat(file, &s) == 0 && s.st_size > 0) {
        if (f->action == BITFLIP)
            flip(file, (off_t)f->number % s.st_size);
        else if (ftruncate(file, s.st_size / 2) != 0)
            perror("BIRKHOFF_FAULT: short");
    }
    close(file);
}

static int happen(const fault *f, const char *path)
{
    switch (f->action) {
    case KILL9:
        kill(getpid(), SIGKILL);
        pause(); /* it may take effect on another thread first */
        return 0;
    case ABORT:
        abort();
    case STOP:
        raise(SIGSTOP);
        return 0;
    case SLEEP:
        sleep_for(f->number);
        return 0;
    case ENOSPC_:
        return ENOSPC;
    case EIO_:
        return EIO;
    default:
        spoil(f, path);
        return 0;
    }
}

int bk_fault_pass(bk_fault_point point, const char *path)
{
    int error = 0;
    for (int i = 0; i < count; i++)
        if (faults[i].point == (int)point &&
            atomic_fetch_add(&faults[i].passed, 1) + 1 == faults[i].nth) {
            int given = happen(&faults[i], path);
            error = given ? given : error;
        }
    return error;
}
