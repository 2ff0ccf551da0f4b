/* The small groups of shard 0: step, data cursor, generators, schedule, best value, configuration,
 * machine. */
#include "io/checkpoint_internal.h"

#include <math.h>
#include <string.h>

static bk_status set_integer(bk_h5 *file, const char *group, const char *name, int64_t value)
{
    return bk_h5_set_attribute(file, group, name, BK_I64, 0, &value);
}

static bk_status set_number(bk_h5 *file, const char *group, const char *name, double value)
{
    return bk_h5_set_attribute(file, group, name, BK_F64, 0, &value);
}

static bk_status write_step(bk_h5 *file, const bk_run_state *s)
{
    BK_TRY(bk_h5_make_group(file, "/step"));
    BK_TRY(set_integer(file, "/step", "step", s->step));
    BK_TRY(set_integer(file, "/step", "samples_seen", s->samples_seen));
    BK_TRY(set_integer(file, "/step", "tokens_seen", s->tokens_seen));
    BK_TRY(set_integer(file, "/step", "updates_skipped", s->updates_skipped));
    BK_TRY(set_integer(file, "/step", "moments_from", s->moments_from));
    BK_TRY(set_number(file, "/step", "grad_norm_mean", s->spike.mean));
    BK_TRY(set_number(file, "/step", "grad_norm_variance", s->spike.variance));
    BK_TRY(set_integer(file, "/step", "grad_norms", s->spike.seen));
    BK_TRY(set_integer(file, "/step", "spikes", s->spike.row));
    return set_number(file, "/step", "loss_scale", 1.0);
}

static bk_status write_data(bk_h5 *file, const bk_run_state *s)
{
    BK_TRY(bk_h5_make_group(file, "/data"));
    BK_TRY(bk_h5_set_attribute_text(file, "/data", "path", s->data_path ? s->data_path : ""));
    BK_TRY(bk_h5_set_attribute_text(file, "/data", "digest", s->data_digest ? s->data_digest : ""));
    if (s->vocabulary_digest && *s->vocabulary_digest)
        BK_TRY(bk_h5_set_attribute_text(file, "/data", "vocabulary", s->vocabulary_digest));
    BK_TRY(set_integer(file, "/data", "epoch", s->epoch));
    BK_TRY(set_integer(file, "/data", "cursor", s->cursor));
    return set_integer(file, "/data", "seed", (int64_t)s->seed);
}

/* One attribute for each "key: value" line. */
static bk_status write_machine(bk_h5 *file, const bk_run_state *s)
{
    bk_status status = bk_h5_make_group(file, "/machine");
    bk_arena *scratch = bk_arena_new("machine");
    char *text = bk_arena_strdup(scratch, s->machine ? s->machine : ""), *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line && status == BK_OK;
         line = strtok_r(NULL, "\n", &rest)) {
        char *colon = strstr(line, ": ");
        if (!colon)
            continue;
        *colon = '\0';
        status = bk_h5_set_attribute_text(file, "/machine", line, colon + 2);
    }
    bk_arena_free(scratch);
    return status;
}

bk_status bk_state_write(bk_h5 *file, const bk_run_state *s, const char *run_id)
{
    BK_TRY(write_step(file, s));
    BK_TRY(write_data(file, s));
    BK_TRY(bk_h5_make_group(file, "/rng"));
    BK_TRY(set_integer(file, "/rng", "seed", (int64_t)s->seed));
    BK_TRY(set_integer(file, "/rng", "counter", s->step));
    BK_TRY(bk_h5_make_group(file, "/schedule"));
    BK_TRY(set_integer(file, "/schedule", "step", s->step));
    BK_TRY(bk_h5_make_group(file, "/metrics"));
    BK_TRY(set_number(file, "/metrics", "best_value", s->best_value));
    BK_TRY(set_integer(file, "/metrics", "best_step", s->best_step));
    BK_TRY(write_machine(file, s));
    BK_TRY(bk_h5_set_attribute_text(file, "/machine", "run_id", run_id));
    return bk_h5_write_text(file, "/config", s->config ? s->config : "");
}

/* ---- reading ---- */

static bk_status get_integer(bk_h5 *file, const char *group, const char *name, int64_t *out)
{
    return bk_h5_attribute(file, group, name, BK_I64, 0, out);
}

static bk_status get_text(bk_h5 *file, const char *group, const char *name, bk_arena *arena,
                          const char **out)
{
    char *text;
    BK_TRY(bk_h5_attribute_text(file, group, name, arena, &text));
    *out = text;
    return BK_OK;
}

static bk_status read_machine(bk_h5 *file, bk_arena *arena, bk_run_state *s)
{
    char **names;
    char *text = bk_arena_strdup(arena, "");
    BK_TRY(bk_h5_attributes(file, "/machine", arena, &names));
    for (; *names; names++) {
        const char *value;
        BK_TRY(get_text(file, "/machine", *names, arena, &value));
        text = bk_arena_printf(arena, "%s%s%s: %s", text, *text ? "\n" : "", *names, value);
    }
    s->machine = text;
    return BK_OK;
}

/* Older checkpoints have none: their moments began with the run. */
static bk_status read_moments_from(bk_h5 *file, bk_run_state *s)
{
    return bk_h5_has_attribute(file, "/step", "moments_from")
               ? get_integer(file, "/step", "moments_from", &s->moments_from)
               : BK_OK;
}

/* Older checkpoints have none: the statistics begin anew. */
static bk_status read_spike(bk_h5 *file, bk_spike_state *s)
{
    if (!bk_h5_has_attribute(file, "/step", "grad_norms"))
        return BK_OK;
    BK_TRY(bk_h5_attribute(file, "/step", "grad_norm_mean", BK_F64, 0, &s->mean));
    BK_TRY(bk_h5_attribute(file, "/step", "grad_norm_variance", BK_F64, 0, &s->variance));
    BK_TRY(get_integer(file, "/step", "grad_norms", &s->seen));
    return get_integer(file, "/step", "spikes", &s->row);
}

/* Models of bytes, features and other symbols have none. */
static bk_status read_vocabulary(bk_h5 *file, bk_arena *arena, bk_run_state *s)
{
    s->vocabulary_digest = "";
    return bk_h5_has_attribute(file, "/data", "vocabulary")
               ? get_text(file, "/data", "vocabulary", arena, &s->vocabulary_digest)
               : BK_OK;
}

bk_status bk_state_read(bk_h5 *file, bk_arena *arena, bk_run_state *s)
{
    int64_t seed;
    char *config;
    BK_TRY(get_integer(file, "/step", "step", &s->step));
    BK_TRY(get_integer(file, "/step", "samples_seen", &s->samples_seen));
    BK_TRY(get_integer(file, "/step", "tokens_seen", &s->tokens_seen));
    BK_TRY(get_integer(file, "/step", "updates_skipped", &s->updates_skipped));
    BK_TRY(read_moments_from(file, s));
    BK_TRY(read_spike(file, &s->spike));
    BK_TRY(get_integer(file, "/data", "epoch", &s->epoch));
    BK_TRY(get_integer(file, "/data", "cursor", &s->cursor));
    BK_TRY(get_integer(file, "/data", "seed", &seed));
    BK_TRY(get_text(file, "/data", "path", arena, &s->data_path));
    BK_TRY(get_text(file, "/data", "digest", arena, &s->data_digest));
    BK_TRY(read_vocabulary(file, arena, s));
    BK_TRY(bk_h5_attribute(file, "/metrics", "best_value", BK_F64, 0, &s->best_value));
    BK_TRY(get_integer(file, "/metrics", "best_step", &s->best_step));
    BK_TRY(read_machine(file, arena, s));
    BK_TRY(bk_h5_read_text(file, "/config", arena, &config));
    s->seed = (uint64_t)seed;
    s->config = config;
    return BK_OK;
}
