/* test: labels=unit timeout=60 */
/* QR in slots: orthogonal, upper triangular, the matrix again; and the normals of the noise. */
#include "tests/support/check.h"

#include "core/rng.h"
#include "models/qr_kernel.h"

#include <math.h>
#include <stdlib.h>

enum { N = 13, SLOTS64 = BK_SLOT_BYTES / 8 };

static double m[N * N * SLOTS64], given[N * N * SLOTS64], u[N * N * SLOTS64], diagonal[N * SLOTS64];

/* R of slot s: the diagonal apart, the rest above the diagonal of m. */
static double r_of(int64_t i, int64_t j, int64_t s)
{
    return i == j ? diagonal[i * SLOTS64 + s] : i < j ? m[(i * N + j) * SLOTS64 + s] : 0.0;
}

/* Slot 3 is singular (two equal columns), slot 4 all zeros. */
static void fill(void)
{
    for (int64_t i = 0; i < N * N * SLOTS64; i++) {
        int64_t s = i % SLOTS64, column = i / SLOTS64 % N;
        m[i] = bk_fill((uint64_t)i, 1, -1.0, 1.0);
        if (s == 3 && column == 5)
            m[i] = m[i - 2 * SLOTS64];
        if (s == 4)
            m[i] = 0.0;
        given[i] = m[i];
    }
}

static void factors_are_orthogonal_and_give_the_matrix_again(void **state)
{
    bk_qr_block k = {.n = N, .m = m, .u = u, .least = 1e-3, .diagonal = diagonal};
    (void)state;
    fill();
    for (int s = 0; s < SLOTS64; s++)
        k.order[s] = N;
    bk_qr_kernels_f64.forward(&k);
    for (int64_t s = 0; s < SLOTS64; s++)
        for (int64_t i = 0; i < N; i++)
            for (int64_t j = 0; j < N; j++) {
                double inner = 0.0, product = 0.0;
                for (int64_t l = 0; l < N; l++) {
                    inner += u[(l * N + i) * SLOTS64 + s] * u[(l * N + j) * SLOTS64 + s];
                    product += u[(i * N + l) * SLOTS64 + s] * r_of(l, j, s);
                }
                assert_true(fabs(inner - (i == j)) < 1e-13);
                assert_true(fabs(product - given[(i * N + j) * SLOTS64 + s]) < 1e-13);
            }
    assert_int_equal(k.clamped[0], 0);
    assert_int_equal(k.clamped[3], 1);
}

/* Mean 0, variance 1, fourth moment 3, neighbours without correlation. */
static void the_noise_is_normal(void **state)
{
    enum { ROUNDS = 400 };
    (void)state;
    for (int wide = 0; wide < 2; wide++) {
        double sum[4] = {0};
        for (int r = 0; r < ROUNDS; r++) {
            uint32_t word[BK_QR_NOISE];
            float x[BK_QR_NOISE] = {0};
            double y[BK_QR_NOISE] = {0};
            bk_philox_words(bk_philox_for(1, 0, BK_USE_ATTENTION_NOISE), 0, (uint64_t)r, 0,
                            BK_QR_NOISE / 8, word);
            if (wide)
                bk_qr_kernels_f64.noise(BK_QR_NOISE, word, 2.0, y);
            else
                BK_KERNEL_SELECT(bk_qr_kernels, BK_F32)->noise(BK_QR_NOISE, word, 2.0, x);
            for (int i = 0; i < BK_QR_NOISE; i++) {
                double z = wide ? y[i] / 2.0 : (double)x[i] / 2.0;
                double next = wide ? y[i ^ 1] / 2.0 : (double)x[i ^ 1] / 2.0;
                const double power[] = {z, z * z - 1.0, z * z * z * z - 3.0, z * next};
                for (int p = 0; p < 4; p++)
                    sum[p] += power[p] / (ROUNDS * BK_QR_NOISE);
            }
        }
        assert_true(fabs(sum[0]) < 0.015 && fabs(sum[1]) < 0.02 && fabs(sum[2]) < 0.15);
        assert_true(fabs(sum[3]) < 0.02);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(factors_are_orthogonal_and_give_the_matrix_again),
        cmocka_unit_test(the_noise_is_normal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
