/* test: labels=unit,mpi ranks=1,2,3,4,8 timeout=300 */
/* Gradients on P ranks against the plain lane tree on one: bits, bytes, norm. */
#include "tests/support/check.h"
#include "tests/support/ranks.h"
#include "tests/support/slabs.h"

#include "dist/collective.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Element i of p lies in the part of its bucket that this rank owns. */
static bool owned(const bk_test_slab *s, const bk_parameter *p, int64_t i)
{
    bk_segment own = bk_reduction_segment(s->reduction, p->bucket);
    int64_t place = p->offset + i - s->slab->bucket[p->bucket].offset;
    return place >= own.lo && place < own.hi;
}

/* The gradients, of the own segments or of all, are the sums over all lanes. */
static void check_sums(const bk_test_slab *s, bool all)
{
    for (int k = 0; k < s->slab->parameters; k++) {
        const bk_parameter *p = s->slab->parameter[k];
        const float *own = s->slab->grad + p->grad_offset[0],
                    *want = s->whole->grad + bk_test_slab_twin(s, p)->grad_offset[0];
        for (int64_t i = 0; i < p->count; i++) {
            if (!all && !owned(s, p, i))
                continue;
            if (bk_test_slab_exact(s))
                assert_memory_equal(&own[i], &want[i], sizeof *own);
            else
                assert_true(fabs((double)own[i] - (double)want[i]) <= 1e-3);
        }
    }
}

/* n (P-1)/P for each bucket, over the ranks that it is reduced on. */
static int64_t formula(const bk_test_slab *s, bool second_uses)
{
    int64_t bytes = 0;
    for (int k = 0; k < s->slab->buckets; k++) {
        const bk_bucket *b = &s->slab->bucket[k];
        int64_t size = bk_comm_size(b->expert < 0 ? s->world->world : s->world->edp_buckets);
        if (b->use == 0 || second_uses)
            bytes += 4 * b->length * (size - 1) / size;
    }
    return bytes;
}

static double norm_of(const bk_test_slab *s, int64_t *nonfinite)
{
    int64_t n = bk_reduction_norm_records(s->reduction), size = s->world->size;
    double *own = calloc((size_t)n, sizeof *own), *all = calloc((size_t)(n * size), sizeof *all);
    int64_t *bytes = calloc((size_t)size, sizeof *bytes);
    assert_true(own && all && bytes);
    bk_reduction_squares(s->reduction, own, nonfinite);
    for (int64_t r = 0; r < size; r++)
        bytes[r] = n * (int64_t)sizeof *own;
    bk_allgather_bytes(s->world->ctl, own, bytes[0], bytes, all);
    double norm = bk_reduction_norm(s->reduction, all);
    free(own);
    free(all);
    free(bytes);
    return norm;
}

/* The same double for every P that divides the lanes, and on every rank. */
static void check_norm(const bk_test_slab *s)
{
    int64_t nonfinite;
    double norm = norm_of(s, &nonfinite), want = bk_test_slab_norm(s), first = norm;
    assert_int_equal(nonfinite, 0);
    if (bk_test_slab_exact(s))
        assert_memory_equal(&norm, &want, sizeof norm);
    else
        assert_true(fabs(norm - want) <= 1e-6 * want);
    bk_broadcast(s->world->ctl, 0, &first, sizeof first);
    assert_memory_equal(&norm, &first, sizeof norm);
}

static void check_formula(const bk_test_slab *s, bk_traffic sent, bk_traffic_part part)
{
    bk_traffic want = bk_reduction_formula(s->reduction, part);
    assert_int_equal(sent.bytes, want.bytes);
    assert_int_equal(sent.messages, want.messages);
}

static void check_layout(const bk_test_layout *layout)
{
    bk_test_slab s = bk_test_slab_open(layout);
    for (int64_t step = 0; step < 2; step++) {
        bk_traffic before = bk_traffic_now();
        bk_test_slab_backward(&s, step);
        bk_traffic reduced = bk_traffic_now();
        assert_int_equal(reduced.bytes - before.bytes, formula(&s, true));
        check_formula(&s, bk_traffic_minus(reduced, before), BK_TRAFFIC_REDUCE);
        check_sums(&s, false);
        check_norm(&s);
        before = bk_traffic_now();
        bk_reduction_allgather(s.reduction, s.slab->grad);
        reduced = bk_traffic_now();
        assert_int_equal(reduced.bytes - before.bytes, formula(&s, false));
        check_formula(&s, bk_traffic_minus(reduced, before), BK_TRAFFIC_GATHER);
        check_sums(&s, true);
    }
    bk_test_slab_close(&s);
}

static void sums_have_the_bits_of_the_lane_tree(void **state)
{
    (void)state;
    for (int64_t lanes = 1; lanes <= 16; lanes *= 2)
        check_layout(&(bk_test_layout){.lanes = lanes, .bucket_floats = 100});
}

/* What every rank must hold of parameter p, element i, after the gather of step `step`. */
static float updated(const bk_test_slab *s, const bk_parameter *p, int64_t i, int64_t step)
{
    return (float)(1000 * bk_test_slab_twin(s, p)->index + 7 * i + step);
}

/* An update of the own segments; what the others own is nowhere near. */
static void update_own(const bk_test_slab *s, int64_t step)
{
    for (int k = 0; k < s->slab->parameters; k++) {
        const bk_parameter *p = s->slab->parameter[k];
        for (int64_t i = 0; i < p->count; i++)
            s->slab->value[p->offset + i] = owned(s, p, i) ? updated(s, p, i, step) : NAN;
    }
}

static void check_value(const bk_test_slab *s, const bk_parameter *p, int64_t step)
{
    const float *value = bk_f32(bk_tape_parameter(s->tape, s->slab->parameter[p->index]));
    for (int64_t i = 0; i < p->count; i++)
        assert_true(value[i] == updated(s, p, i, step));
}

/* A use of a parameter finds it whole, in any order of use; those never used are there in the end,
 * and so are those whose next gradients come. */
static void parameters_are_there_when_they_are_used(void **state)
{
    (void)state;
    for (int variant = 0; variant < 4; variant++) {
        bk_test_slab s = bk_test_slab_open(&(bk_test_layout){.lanes = 8,
                                                             .bucket_floats = 60 + 100 * variant,
                                                             .experts = variant % 2 ? 4 : 0,
                                                             .overlap = variant < 3});
        int last = s.slab->parameters - 1;
        for (int64_t step = 0; step < 3; step++) {
            s.tape->recording = true;
            bk_test_slab_backward(&s, step);
            check_sums(&s, false);
            update_own(&s, step);
            bk_tape_begin(s.tape);
            s.tape->recording = false;
            bk_traffic before = bk_traffic_now();
            bk_reduction_gather_begin(s.reduction, s.tape);
            for (int k = 0; k <= last - 1; k++)
                check_value(&s, s.slab->parameter[step == 1 ? last - k : k], step);
            if (step < 2) /* the next backward finishes it */
                continue;
            bk_reduction_gather_finish(s.reduction);
            check_formula(&s, bk_traffic_minus(bk_traffic_now(), before), BK_TRAFFIC_GATHER);
            check_value(&s, s.slab->parameter[last], step);
        }
        bk_test_slab_close(&s);
    }
}

static void buckets_of_any_size(void **state)
{
    static const int64_t sizes[] = {1, 250, 100000};
    (void)state;
    for (int k = 0; k < 3; k++)
        for (int overlap = 0; overlap < 2; overlap++)
            check_layout(&(bk_test_layout){
                .lanes = 8, .bucket_floats = sizes[k], .overlap = overlap, .experts = 2});
}

/* Replicas of an expert are summed, never averaged; 3 and 5 experts are dealt out unevenly. */
static void experts_over_their_replicas(void **state)
{
    static const int64_t experts[] = {3, 4, 5};
    (void)state;
    for (int ep = 1; ep <= bk_mpi_size() && ep <= 4; ep++)
        for (int k = 0; k < 3 && bk_mpi_size() % ep == 0; k++)
            if (ep <= experts[k])
                check_layout(&(bk_test_layout){.lanes = 8,
                                               .bucket_floats = 60,
                                               .expert = ep,
                                               .experts = experts[k],
                                               .overlap = k != 1});
}

/* The own segments of all ranks tile every bucket. */
static void segments_tile_a_bucket(void **state)
{
    bk_test_slab s = bk_test_slab_open(&(bk_test_layout){.lanes = 8, .bucket_floats = 100});
    (void)state;
    for (int k = 0; k < s.slab->buckets; k++) {
        int64_t length = s.slab->bucket[k].length;
        bk_segment own = bk_reduction_segment(s.reduction, k);
        int64_t *owners = calloc((size_t)length, sizeof *owners);
        assert_non_null(owners);
        for (int64_t i = own.lo; i < own.hi; i++)
            owners[i] = 1;
        bk_sum_i64(s.world->ctl, length, owners);
        for (int64_t i = 0; i < length; i++)
            assert_true(owners[i] == 1);
        free(owners);
    }
    bk_test_slab_close(&s);
}

/* Values that are not finite are counted once in the whole job. */
static void nonfinite_values_are_counted(void **state)
{
    bk_test_slab s = bk_test_slab_open(&(bk_test_layout){.lanes = 8, .bucket_floats = 100});
    int64_t nonfinite;
    (void)state;
    bk_test_slab_backward(&s, 0);
    bk_reduction_allgather(s.reduction, s.slab->grad);
    float *grad = s.slab->grad + s.slab->parameter[1]->grad_offset[0];
    grad[0] = NAN;
    grad[50] = INFINITY;
    grad[96] = -INFINITY;
    assert_true(!isfinite(norm_of(&s, &nonfinite)));
    bk_sum_i64(s.world->ctl, 1, &nonfinite);
    assert_int_equal(nonfinite, 3);
    bk_test_slab_close(&s);
}

/* A parameter that no op used is ready too, with zeros. */
static void unused_parameters_do_not_hang(void **state)
{
    bk_test_slab s =
        bk_test_slab_open(&(bk_test_layout){.lanes = 8, .bucket_floats = 100, .overlap = true});
    (void)state;
    for (int k = 0; k < s.slab->parameters; k++) /* what the step before has left */
        for (int use = 0; use < s.slab->parameter[k]->uses; use++)
            memset(s.slab->grad + s.slab->parameter[k]->grad_offset[use], 0x7f,
                   (size_t)s.slab->parameter[k]->count * sizeof(float));
    bk_tape_begin(s.tape);
    bk_reduction_begin(s.reduction, s.tape);
    for (int k = 0; k < s.slab->parameters; k++)
        for (int use = 0; use < s.slab->parameter[k]->uses; use++)
            bk_tape_parameter(s.tape, s.slab->parameter[k]);
    bk_tape_backward_seeded(s.tape);
    bk_reduction_finish(s.reduction);
    int64_t nonfinite;
    assert_true(norm_of(&s, &nonfinite) == 0.0);
    bk_test_slab_close(&s);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_have_the_bits_of_the_lane_tree),
        cmocka_unit_test(buckets_of_any_size),
        cmocka_unit_test(experts_over_their_replicas),
        cmocka_unit_test(parameters_are_there_when_they_are_used),
        cmocka_unit_test(segments_tile_a_bucket),
        cmocka_unit_test(nonfinite_values_are_counted),
        cmocka_unit_test(unused_parameters_do_not_hang),
    };
    bk_test_ranks_start(&argc, &argv);
    return bk_test_ranks_stop(cmocka_run_group_tests(tests, NULL, NULL));
}
