#include "tests/support/op.h"

#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static bk_test_op open_op(void)
{
    bk_test_op o = {.arena = bk_arena_new("op"), .directory = "/tmp/birkhoff-op-XXXXXX"};
    assert_non_null(mkdtemp(o.directory));
    snprintf(o.in, sizeof o.in, "%s/in.h5", o.directory);
    snprintf(o.out, sizeof o.out, "%s/out.h5", o.directory);
    snprintf(o.err, sizeof o.err, "%s/err", o.directory);
    return o;
}

static void close_file(bk_h5 **file)
{
    if (*file)
        assert_int_equal(bk_h5_close(*file), BK_OK);
    *file = NULL;
}

void bk_test_op_renew(bk_test_op *o)
{
    close_file(&o->file);
    close_file(&o->results);
    unlink(o->in);
}

static void close_op(bk_test_op *o)
{
    bk_test_op_renew(o);
    unlink(o->out);
    unlink(o->err);
    assert_int_equal(rmdir(o->directory), 0);
    json_decref(o->golden);
    bk_arena_free(o->arena);
}

/* ---- a program of tests ---- */

/* What cmocka calls has no other way to it. */
static struct {
    bk_test_op *op;
    const char *golden;
} group;

static int open_group(void **state)
{
    (void)state;
    *group.op = open_op();
    if (group.golden)
        group.op->golden = bk_test_golden(group.golden);
    return 0;
}

static int close_group(void **state)
{
    (void)state;
    close_op(group.op);
    return 0;
}

int bk_test_op_tests(bk_test_op *o, const char *golden, const struct CMUnitTest *tests,
                     size_t count)
{
    group.op = o;
    group.golden = golden;
    return _cmocka_run_group_tests("tests", tests, count, open_group, close_group);
}

/* ---- the input ---- */

static void put(bk_test_op *o, const char *name, bk_dtype dtype, int dims, const int64_t *shape,
                const void *data)
{
    if (!o->file)
        assert_int_equal(bk_h5_create(o->arena, o->in, &o->file), BK_OK);
    assert_int_equal(bk_h5_write(o->file, name, dtype, dims, shape, data), BK_OK);
}

void bk_test_op_reals(bk_test_op *o, const char *name, int dims, const int64_t *shape,
                      const double *values)
{
    put(o, name, BK_F64, dims, shape, values);
}

void bk_test_op_integers(bk_test_op *o, const char *name, int dims, const int64_t *shape,
                         const int64_t *values)
{
    put(o, name, BK_I64, dims, shape, values);
}

void bk_test_op_json(bk_test_op *o, const char *name, const json_t *array)
{
    int64_t shape[BK_MAX_DIMS], count;
    int dims = 0;
    for (const json_t *x = array; json_is_array(x); x = json_array_get(x, 0))
        shape[dims++] = (int64_t)json_array_size(x);
    double *numbers = bk_test_numbers(array, &count);
    bk_test_op_reals(o, name, dims, shape, numbers);
    free(numbers);
}

void bk_test_op_random(bk_test_op *o, const char *name, int dims, const int64_t *shape,
                       uint64_t tag, double least, double most)
{
    int64_t count = 1;
    for (int i = 0; i < dims; i++)
        count *= shape[i];
    double *x = BK_NEW(o->arena, double, count);
    for (int64_t i = 0; i < count; i++)
        x[i] = bk_fill((uint64_t)i, tag, least, most);
    bk_test_op_reals(o, name, dims, shape, x);
}

/* ---- the run ---- */

int bk_test_op_status(bk_test_op *o, int ranks, const char *arguments)
{
    const char *program = getenv("BIRKHOFF");
    char command[2048], call[1024], launcher[64] = "";
    assert_non_null(program);
    close_file(&o->file);
    close_file(&o->results);
    if (ranks > 1)
        snprintf(launcher, sizeof launcher, "mpirun --oversubscribe -n %d ", ranks);
    if (o->command)
        snprintf(call, sizeof call, "%s %s %s %s", o->command, o->in, o->out, arguments);
    else
        snprintf(call, sizeof call, "op %s --in %s --out %s", arguments, o->in, o->out);
    snprintf(command, sizeof command, "%s'%s' %s >/dev/null 2>%s </dev/null", launcher, program,
             call, o->err);
    int status = system(command);
    assert_true(status != -1 && WIFEXITED(status));
    return WEXITSTATUS(status);
}

static char *read_errors(bk_test_op *o)
{
    char *text = bk_arena_zalloc(o->arena, 4096);
    FILE *file = fopen(o->err, "r");
    assert_non_null(file);
    text[fread(text, 1, 4095, file)] = '\0';
    fclose(file);
    return text;
}

bool bk_test_op_says(bk_test_op *o, const char *text)
{
    return strstr(read_errors(o), text) != NULL;
}

int bk_test_op_error_lines(bk_test_op *o)
{
    int lines = 0;
    for (const char *at = read_errors(o); (at = strstr(at, "birkhoff: error: ")); at++)
        lines++;
    return lines;
}

void bk_test_op_refuses(bk_test_op *o, int status, int ranks, const char *says,
                        const char *arguments)
{
    unlink(o->out);
    int found = bk_test_op_status(o, ranks, arguments);
    if (found != status || !bk_test_op_says(o, says) || access(o->out, F_OK) == 0)
        fail_msg("birkhoff op %s on %d ranks: status %d, %d expected, with '%s' and no output: %s",
                 arguments, ranks, found, status, says, read_errors(o));
    assert_int_equal(bk_test_op_error_lines(o), 1);
}

void bk_test_op_run(bk_test_op *o, int ranks, const char *arguments)
{
    int status = bk_test_op_status(o, ranks, arguments);
    if (status != 0)
        fail_msg("birkhoff op %s on %d ranks: status %d: %s", arguments, ranks, status,
                 read_errors(o));
    assert_int_equal(bk_h5_open(o->arena, o->out, &o->results), BK_OK);
}

/* ---- the results ---- */

bool bk_test_op_has(bk_test_op *o, const char *name)
{
    return bk_h5_exists(o->results, name);
}

bk_tensor *bk_test_op_array(bk_test_op *o, const char *name)
{
    bk_tensor *x;
    if (bk_h5_read(o->results, name, BK_F64, o->arena, &x) != BK_OK)
        fail_msg("no %s in the output: %s", name, bk_status_text());
    return x;
}

double *bk_test_op_numbers(bk_test_op *o, const char *name)
{
    return bk_test_op_array(o, name)->data;
}

double bk_test_op_attribute(bk_test_op *o, const char *name)
{
    double value = NAN;
    if (bk_h5_attribute(o->results, "/", name, BK_F64, 0, &value) != BK_OK)
        fail_msg("no attribute %s in the output: %s", name, bk_status_text());
    return value;
}

double bk_test_op_error(bk_test_op *o, const char *name, const json_t *reference, double floor)
{
    return bk_test_data_error(bk_test_op_array(o, name), reference, floor);
}

static double difference(const bk_tensor *a, const bk_tensor *b)
{
    assert_true(bk_same_shape(a, b));
    return bk_test_error(bk_count(a), a->data, b->data, 1e-30);
}

double bk_test_op_compare(bk_test_op *o, int ranks, const char *arguments, const char *more,
                          bool *same)
{
    enum { MOST = 24 };
    bk_tensor *lead[MOST];
    char **paths;
    double worst = 0.0;
    int count = 0;
    bk_test_op_run(o, 1, arguments);
    assert_int_equal(bk_h5_walk(o->results, o->arena, &paths), BK_OK);
    for (; paths[count]; count++)
        lead[count] = bk_test_op_array(o, paths[count]);
    assert_in_range(count, 1, MOST);
    bk_test_op_run(o, ranks, bk_arena_printf(o->arena, "%s %s", arguments, more));
    *same = true;
    for (int i = 0; i < count; i++) {
        const bk_tensor *other = bk_test_op_array(o, paths[i]);
        worst = fmax(worst, difference(other, lead[i]));
        *same = *same &&
                memcmp(other->data, lead[i]->data, (size_t)bk_count(other) * sizeof(double)) == 0;
    }
    return worst;
}
