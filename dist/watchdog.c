#include "dist/watchdog.h"

#include "core/hooks.h"
#include "core/log.h"
#include "dist/backtrace.h"
#include "dist/internal.h"
#include "dist/stall.h"
#include "dist/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PATH_TEXT = 4096, LINE_TEXT = 1024 };

static const struct {
    const char *name;
    double factor; /* of the limit */
} phases[BK_PHASES] = {{"start", 2.0},    {"load", 2.0},   {"batch", 1.0}, {"forward", 1.0},
                       {"backward", 1.0}, {"reduce", 1.0}, {"agree", 1.0}, {"update", 1.0},
                       {"evaluate", 1.0}, {"save", 4.0},   {"wait", 8.0}};

/* ---- what the main thread says; any thread reads it ---- */

static struct {
    atomic_int phase;
    _Atomic int64_t step;
    _Atomic(const char *) segment;
    _Atomic uint64_t changes;
} place;

static void count_change(void)
{
    uint64_t changes = atomic_load_explicit(&place.changes, memory_order_relaxed);
    atomic_store_explicit(&place.changes, changes + 1, memory_order_relaxed);
}

static void enter_segment(const char *segment)
{
    atomic_store_explicit(&place.segment, segment, memory_order_relaxed);
    count_change();
}

void bk_watchdog_phase(bk_phase phase)
{
    atomic_store_explicit(&place.phase, (int)phase, memory_order_relaxed);
    enter_segment(NULL);
}

void bk_watchdog_step(int64_t step)
{
    atomic_store_explicit(&place.step, step, memory_order_relaxed);
    count_change();
}

static int phase_now(void)
{
    return atomic_load_explicit(&place.phase, memory_order_relaxed);
}

static const char *segment_now(void)
{
    const char *segment = atomic_load_explicit(&place.segment, memory_order_relaxed);
    return segment ? segment : "-";
}

static int64_t step_now(void)
{
    return atomic_load_explicit(&place.step, memory_order_relaxed);
}

/* ---- the same from a signal handler ---- */

static void put(int file, const char *text)
{
    ssize_t written = write(file, text, strlen(text));
    (void)written;
}

static void put_number(int file, const char *name, int64_t value)
{
    char digits[24], *at = digits + sizeof digits - 1;
    *at = '\0';
    do
        *--at = (char)('0' + value % 10);
    while ((value /= 10) > 0);
    put(file, name);
    put(file, at);
}

static void put_place(int file)
{
    bk_trace_entry e;
    bool waits = bk_trace_waits(&e);
    put_number(file, "rank ", bk_mpi_rank());
    put_number(file, ", second ", (int64_t)time(NULL));
    put(file, " since 1970: phase ");
    put(file, phases[phase_now()].name);
    put(file, ", segment ");
    put(file, segment_now());
    put_number(file, ", step ", step_now());
    if (waits) {
        put(file, ", in ");
        put(file, bk_call_name(e.call));
        put_number(file, " ", e.sequence);
        put(file, " on ");
        put(file, e.comm);
        put_number(file, ", bytes ", e.bytes);
    }
    put(file, "\n");
}

/* ---- the thread ---- */

static struct {
    pthread_t thread;
    bool running; /* the main thread's own knowledge */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop; /* under the lock */
    char directory[PATH_TEXT], found[PATH_TEXT];
    double seconds, tick;
    int file; /* of the state; -1: none */
} dog = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* What the thread alone knows. */
typedef struct watch {
    uint64_t changes;
    double woke;        /* bk_seconds() */
    bool halfway, told; /* half the limit is over; another rank's finding is known */
    bool warned;        /* that states cannot be written */
    int64_t *beat;      /* [size] of the ranks when half the limit was over; -1: no state */
    bk_stall_state own;
} watch;

/* True after a tick; false: it is time to end. */
static bool sleep_tick(void)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t ns = until.tv_nsec + (int64_t)(dog.tick * 1e9);
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    pthread_mutex_lock(&dog.lock);
    int late = 0;
    while (!dog.stop && late == 0)
        late = pthread_cond_timedwait(&dog.wake, &dog.lock, &until);
    bool stop = dog.stop;
    pthread_mutex_unlock(&dog.lock);
    return !stop;
}

/* A thread that slept for much longer than it asked was stopped with its process. */
static void count_time(watch *w)
{
    double now = bk_seconds(), passed = fmin(now - w->woke, 2.0 * dog.tick);
    uint64_t changes =
        atomic_load_explicit(&place.changes, memory_order_relaxed) + bk_trace_changes();
    w->woke = now;
    w->own.beat++;
    w->own.idle = changes == w->changes ? w->own.idle + passed : 0.0;
    w->changes = changes;
}

static void take_state(bk_stall_state *s)
{
    bk_trace_entry e;
    s->waits = bk_trace_waits(&e);
    s->step = step_now();
    s->bytes = e.bytes;
    s->sequence = e.sequence;
    snprintf(s->phase, sizeof s->phase, "%s", phases[phase_now()].name);
    snprintf(s->segment, sizeof s->segment, "%s", segment_now());
    snprintf(s->call, sizeof s->call, "%s", e.comm ? bk_call_name(e.call) : "-");
    snprintf(s->comm, sizeof s->comm, "%s", e.comm ? e.comm : "-");
}

static void mirror(watch *w)
{
    take_state(&w->own);
    if (dog.file < 0 || !bk_stall_write(dog.file, &w->own))
        bk_warn_once(&w->warned, "the watchdog cannot write its state (%s): %s", dog.directory,
                     strerror(errno));
}

static bool is_traced(void)
{
    char text[2048] = "";
    int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return false;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    const char *tracer = length > 0 ? strstr(text, "TracerPid:") : NULL;
    return tracer && atoi(tracer + strlen("TracerPid:")) > 0;
}

/* ---- past the limit ---- */

static void read_all(const watch *w, bk_stall_state *all)
{
    for (int r = 0; r < bk_mpi_size(); r++) {
        bk_stall_read(dog.directory, r, &all[r]);
        all[r].stale = all[r].known && all[r].beat == w->beat[r];
    }
    all[w->own.rank] = w->own;
}

static void note_beats(watch *w)
{
    for (int r = 0; r < bk_mpi_size(); r++) {
        bk_stall_state s;
        bk_stall_read(dog.directory, r, &s);
        w->beat[r] = s.known ? s.beat : -1;
    }
}

/* The first rank that gets here speaks for all; where no file can be made, rank 0. */
static int claim(bool *mine)
{
    int file = open(dog.found, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    *mine = file >= 0 || (errno != EEXIST && bk_mpi_rank() == 0);
    return file;
}

static void print(watch *w, int file)
{
    char text[LINE_TEXT], line[LINE_TEXT + PATH_TEXT + 64];
    bk_stall_state *all = calloc((size_t)bk_mpi_size(), sizeof *all);
    if (all) {
        read_all(w, all);
        bk_stall_text(all, bk_mpi_size(), w->own.idle, text, sizeof text);
        snprintf(line, sizeof line, "birkhoff: error: %s (%s): see the backtraces there\n", text,
                 dog.directory);
        put(STDERR_FILENO, line);
        if (file >= 0)
            put(file, line);
    }
    free(all);
}

static void *abort_job(void *unused)
{
    (void)unused;
    bk_mpi_abort(BK_STALLED);
}

static void pause_for(double seconds)
{
    struct timespec t = {.tv_sec = (time_t)seconds,
                         .tv_nsec = (long)(1e9 * (seconds - floor(seconds)))};
    nanosleep(&t, NULL);
}

/* MPI may be what is broken: it gets five seconds. */
static _Noreturn void leave(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, abort_job, NULL) == 0)
        pause_for(5.0);
    _exit(BK_STALLED);
}

/* The others see the finding at their next tick, and write their backtraces before the end; should
 * the rank that speaks be lost meanwhile, they end the job. */
static _Noreturn void report(watch *w)
{
    bool mine;
    if (!w->told)
        bk_backtrace_ask();
    int file = claim(&mine);
    pause_for(mine ? 2.0 * dog.tick + 0.5 : 15.0);
    mirror(w);
    if (mine)
        print(w, file);
    leave();
}

static void warn_halfway(const watch *w, double limit)
{
    bk_warn(
        "nothing moves for %.0f s (%s of step %lld): at %.0f s the run ends (run.stall_seconds)",
        w->own.idle, phases[phase_now()].name, (long long)step_now(), limit);
}

static void judge(watch *w)
{
    double limit = dog.seconds * phases[phase_now()].factor;
    bool halfway = w->own.idle >= limit / 2.0;
    if (halfway && is_traced()) {
        w->own.idle = 0.0;
        return;
    }
    if (halfway && !w->halfway) {
        note_beats(w);
        warn_halfway(w, limit);
    }
    w->halfway = halfway;
    if (w->own.idle >= limit)
        report(w);
}

static void *run(void *context)
{
    watch *w = context;
    w->woke = bk_seconds();
    while (sleep_tick()) {
        count_time(w);
        mirror(w);
        if (!w->told && access(dog.found, F_OK) == 0) {
            w->told = true;
            bk_backtrace_ask();
        }
        judge(w);
    }
    free(w->beat);
    free(w);
    return NULL;
}

/* ---- begin and end ---- */

static void init_wake(void)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&dog.wake, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* Handlers are for the main thread. */
static bool create_thread(watch *w)
{
    sigset_t all, kept;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &kept);
    bool made = pthread_create(&dog.thread, NULL, run, w) == 0;
    pthread_sigmask(SIG_SETMASK, &kept, NULL);
    return made;
}

static void start_thread(void)
{
    char path[PATH_TEXT + 32];
    watch *w = calloc(1, sizeof *w);
    int64_t *beat = calloc((size_t)bk_mpi_size(), sizeof *beat);
    if (!w || !beat)
        bk_fatal("out of memory: watchdog");
    w->beat = beat;
    w->own.rank = bk_mpi_rank();
    w->own.known = true;
    gethostname(w->own.host, sizeof w->own.host - 1);
    snprintf(path, sizeof path, "%s/rank-%d.state", dog.directory, w->own.rank);
    dog.file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    dog.tick = fmin(1.0, fmax(0.05, dog.seconds / 8.0));
    dog.stop = false;
    init_wake();
    mirror(w);
    dog.running = create_thread(w);
    if (!dog.running)
        bk_warn("the watchdog could not be started: a rank that stalls will not be noticed");
}

void bk_watchdog_start(const bk_watchdog_options *o)
{
    char path[PATH_TEXT + 32];
    snprintf(dog.directory, sizeof dog.directory, "%s", o->directory);
    snprintf(dog.found, sizeof dog.found, "%s/found-%s.txt", o->directory, o->run_id);
    snprintf(path, sizeof path, "%s/rank-%d.txt", dog.directory, bk_mpi_rank());
    bk_backtrace_install(path, put_place);
    bk_set_place(enter_segment);
    dog.seconds = o->seconds;
    if (dog.seconds > 0.0)
        start_thread();
}

static void stop_thread(void)
{
    pthread_mutex_lock(&dog.lock);
    dog.stop = true;
    pthread_cond_signal(&dog.wake);
    pthread_mutex_unlock(&dog.lock);
    pthread_join(dog.thread, NULL);
    pthread_cond_destroy(&dog.wake);
    if (dog.file >= 0)
        close(dog.file);
    dog.running = false;
}

void bk_watchdog_stop(void)
{
    if (dog.running)
        stop_thread();
    bk_set_place(NULL);
    bk_watchdog_phase(BK_PHASE_START); /* no segment any more */
}
