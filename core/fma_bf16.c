/* The arithmetic limit in bf16: AMX tiles or AVX-512 dot products, whichever the machine has.  One
 * file with the instruction sets named by function, because no other code needs them. */
#include "core/fma.h"

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CHAINS = 12, PAIR = 2, FLOATS = 16 };

__attribute__((target("avx512f,avx512bf16"))) static double run_avx512(int64_t rounds)
{
    __m512 sum[CHAINS];
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3F7F3F7F); /* pairs of 0.996 */
    for (int j = 0; j < CHAINS; j++)
        sum[j] = _mm512_setzero_ps();
    for (int64_t n = 0; n < rounds; n++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++)
            sum[j] = _mm512_dpbf16_ps(sum[j], a, a);
    }
    __m512 all = sum[0];
    for (int j = 1; j < CHAINS; j++)
        all = _mm512_add_ps(all, sum[j]);
    volatile float keep = all[0];
    (void)keep;
    return 2.0 * (double)rounds * CHAINS * PAIR * FLOATS;
}

/* Eight tiles of 16 rows of 64 bytes: four sums, two left, two right. */
enum { ROWS = 16, ROW_BYTES = 64, TILE_FLOPS = 2 * ROWS * ROWS * ROW_BYTES / 2 };

typedef struct tile_palette {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_palette;

static const tile_palette eight_tiles = {.palette = 1,
                                         .row_bytes = {ROW_BYTES, ROW_BYTES, ROW_BYTES, ROW_BYTES,
                                                       ROW_BYTES, ROW_BYTES, ROW_BYTES, ROW_BYTES},
                                         .rows = {ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS}};

__attribute__((target("amx-tile,amx-bf16"))) static double run_amx(int64_t rounds)
{
    _tile_loadconfig(&eight_tiles);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t n = 0; n < rounds; n++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return 4.0 * (double)rounds * TILE_FLOPS;
}

/* Linux hands out the tiles on request (arch_prctl, since 5.16). */
static bool may_use_amx(void)
{
    enum { REQUEST = 0x1023, TILE_DATA = 18, LEAF = 7, BF16 = 1 << 22, TILE = 1 << 24 };
    unsigned int a = 0, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(LEAF), "c"(0));
    return (d & BF16) && (d & TILE) && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

double bk_fma_bf16_run(int64_t rounds)
{
    static int amx = -1;
    if (!bk_cpu_avx512())
        return 0.0;
    if (amx < 0)
        amx = may_use_amx();
    if (amx)
        return run_amx(rounds);
    return __builtin_cpu_supports("avx512bf16") ? run_avx512(rounds) : 0.0;
}
