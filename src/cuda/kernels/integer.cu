// Matrices of integers: their products with few rows, their rows as an embedding, and their floats.
// How a row is stored, and what a warp touches of it, says src/model/integer.rs.

struct alignas(8) TwoWords { uint32 low, high; };

// A row: w[i] = factor * (scale * (q - zero) + minimum).
template <int BITS> struct IntegerRow {
    const uint8 *low, *high;
    const uint16* scales;
    // What a float of integer bits is too large by: 2^23 and the zero point.
    float factor, offset;
    int shift, minimum;
};

// Bits of eight elements above and below the fourth.
template <int BITS> INLINE constexpr int low_bytes() { return BITS == 8 ? 8 : 4; }
template <int BITS> INLINE constexpr int high_bytes() { return BITS == 5 ? 1 : BITS == 6 ? 2 : 0; }

// The row at an address that is a multiple of 32 bytes. A scale is shared by 1 << shift elements.
template <int BITS>
INLINE IntegerRow<BITS> integer_row(const uint8* at, int inner, int shift, int minimum, int zero) {
    IntegerRow<BITS> row;
    int high = inner / 8 * low_bytes<BITS>(), scales = high + inner / 8 * high_bytes<BITS>();
    int factor = (scales + (inner >> shift) * (minimum ? 4 : 2) + 3) / 4 * 4;
    row.low = at;
    row.high = at + high;
    row.scales = (const uint16*)(at + scales);
    row.factor = *(const float*)(at + factor);
    row.offset = 8388608.0f + zero;
    row.shift = shift;
    row.minimum = minimum;
    return row;
}

// Elements i to i + 7 without the row's factor; i is a multiple of eight, so they share a scale. The
// integers become floats as the low bits of 2^23, which costs no conversion.
template <int BITS>
INLINE void unpack8(const IntegerRow<BITS>& row, int i, float* v) {
    uint32 q[8];
    if (BITS == 8) {
        TwoWords words = *(const TwoWords*)(row.low + i);
        for (int j = 0; j < 4; j++) {
            q[j] = words.low >> 8 * j & 255;
            q[j + 4] = words.high >> 8 * j & 255;
        }
    } else {
        uint32 low = *(const uint32*)(row.low + i / 2), high = 0;
        if (BITS == 5) high = row.high[i / 8];
        if (BITS == 6) high = *(const uint16*)(row.high + i / 4);
        for (int j = 0; j < 8; j++) {
            q[j] = low >> 4 * j & 15;
            if (BITS == 5) q[j] |= (high >> j & 1) << 4;
            if (BITS == 6) q[j] |= (high >> 2 * j & 3) << 4;
        }
    }
    int group = i >> row.shift;
    float scale, minimum = 0.0f;
    if (row.minimum) {
        uint32 both = *(const uint32*)(row.scales + 2 * group);
        scale = half_to_float((uint16)(both & 0xffff));
        minimum = half_to_float((uint16)(both >> 16));
    } else {
        scale = half_to_float(row.scales[group]);
    }
    for (int j = 0; j < 8; j++) v[j] = (bits_to_float(0x4b000000u | q[j]) - row.offset) * scale + minimum;
}

// As few_rows, for integers. One warp a column: a lane takes eight elements of its row at a time, and
// the same eight of each row of x.
template <typename T, int ROWS, int BITS>
INLINE void few_integer_rows(const uint8* weight, int row_bytes, int shift, int minimum, int zero, const T* x,
                             int rows, int inner, int out, int stride, float* y) {
    int lane = threadIdx.x % 32;
    int column = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (column >= out) return;
    IntegerRow<BITS> w = integer_row<BITS>(weight + (uint64)column * row_bytes, inner, shift, minimum, zero);
    float sums[ROWS];
    for (int r = 0; r < ROWS; r++) sums[r] = 0.0f;
#pragma unroll (ROWS <= 2 ? 4 : 2)
    for (int i = lane * 8; i < inner; i += 256) {
        float a[8], b[8];
        unpack8<BITS>(w, i, a);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r < rows) {
                load8(x + (uint64)r * inner + i, b);
                for (int j = 0; j < 8; j++) sums[r] += a[j] * b[j];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float sum = warp_sum(sums[r]) * w.factor;
        if (lane == 0 && r < rows) y[(uint64)r * stride + column] = sum;
    }
}

// Eight elements with 128-bit stores, at an address that is a multiple of 16 bytes.
INLINE void store8(float* to, const float* v) {
    for (int j = 0; j < 8; j++) to[j] = v[j];
}
template <typename T> INLINE void store8(T* to, const float* v) {
    uint32 w[4];
    for (int j = 0; j < 4; j++)
        w[j] = Element<T>::from(v[2 * j]).bits | (uint32)Element<T>::from(v[2 * j + 1]).bits << 16;
    AlignedWords words = {w[0], w[1], w[2], w[3]};
    *(AlignedWords*)to = words;
}

// y (rows, inner) = the matrix's floats. One thread eight elements, grid (rows, inner / 8 / threads).
template <typename T, int BITS>
INLINE void unpack_integers(const uint8* weight, int row_bytes, int shift, int minimum, int zero, int inner, T* y) {
    int i = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (i >= inner) return;
    uint64 row = blockIdx.x;
    IntegerRow<BITS> w = integer_row<BITS>(weight + row * row_bytes, inner, shift, minimum, zero);
    float v[8];
    unpack8<BITS>(w, i, v);
    for (int j = 0; j < 8; j++) v[j] *= w.factor;
    store8(y + row * inner + i, v);
}

// As embed, from a table of integers.
template <int BITS>
INLINE void embed_integers(const uint32* tokens, const uint8* table, int row_bytes, int shift, int minimum,
                           int zero, float scale, int width, float* x) {
    IntegerRow<BITS> row =
        integer_row<BITS>(table + (uint64)tokens[blockIdx.x] * row_bytes, width, shift, minimum, zero);
    float* to = x + (uint64)blockIdx.x * width;
    for (int i = threadIdx.x * 8; i < width; i += blockDim.x * 8) {
        float v[8];
        unpack8<BITS>(row, i, v);
        for (int j = 0; j < 8; j++) to[i + j] = v[j] * row.factor * scale;
    }
}

#define FEW_INTEGER(T, t, BITS, ROWS) \
    KERNEL few_integer_##BITS##_##ROWS##_##t(const uint8* weight, int row_bytes, int shift, int minimum, int zero, \
                                             const T* x, int rows, int inner, int out, int stride, float* y) { \
        few_integer_rows<T, ROWS, BITS>(weight, row_bytes, shift, minimum, zero, x, rows, inner, out, stride, y); \
    } \
    EXPORT(few_integer_##BITS##_##ROWS##_##t)

#define INTEGER(T, t, BITS) \
    FEW_INTEGER(T, t, BITS, 1) FEW_INTEGER(T, t, BITS, 2) FEW_INTEGER(T, t, BITS, 4) FEW_INTEGER(T, t, BITS, 8) \
    KERNEL unpack_integer_##BITS##_##t(const uint8* weight, int row_bytes, int shift, int minimum, int zero, \
                                       int inner, T* y) { \
        unpack_integers<T, BITS>(weight, row_bytes, shift, minimum, zero, inner, y); \
    } \
    EXPORT(unpack_integer_##BITS##_##t)

#define INTEGERS(T, t) INTEGER(T, t, 4) INTEGER(T, t, 5) INTEGER(T, t, 6) INTEGER(T, t, 8)
FOR_ELEMENTS(INTEGERS)

#define EMBED_INTEGER(BITS) \
    KERNEL embed_integer_##BITS(const uint32* tokens, const uint8* table, int row_bytes, int shift, int minimum, \
                                int zero, float scale, int width, float* x) { \
        embed_integers<BITS>(tokens, table, row_bytes, shift, minimum, zero, scale, width, x); \
    } \
    EXPORT(embed_integer_##BITS)
EMBED_INTEGER(4)
EMBED_INTEGER(5)
EMBED_INTEGER(6)
EMBED_INTEGER(8)
