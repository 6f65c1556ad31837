// Products of few rows with a large matrix, bound by the matrix's bytes; and adapters.

// y[row * stride + column] = W[column] . x[row] for up to ROWS rows of x (rows, inner). One warp a
// column: it reads its row of W once, 16 bytes a lane, and all rows of x from the caches.
template <typename T, int ROWS>
INLINE void few_rows(const T* weight, const T* x, int rows, int inner, int out, int stride, float* y) {
    int lane = threadIdx.x % 32;
    int column = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (column >= out) return;
    const T* w = weight + (uint64)column * inner;
    float sums[ROWS];
    for (int r = 0; r < ROWS; r++) sums[r] = 0.0f;
    int whole = inner / 256 * 256;
#pragma unroll 2
    for (int i = lane * 8; i < whole; i += 256) {
        float a[8], b[8];
        load8(w + i, a);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r < rows) {
                load8(x + (uint64)r * inner + i, b);
                for (int j = 0; j < 8; j++) sums[r] += a[j] * b[j];
            }
        }
    }
    for (int i = whole + lane; i < inner; i += 32) {
        float a = to_float(w[i]);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (r < rows) sums[r] += a * to_float(x[(uint64)r * inner + i]);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float sum = warp_sum(sums[r]);
        if (lane == 0 && r < rows) y[(uint64)r * stride + column] = sum;
    }
}

// A of shape (rank, inner) and B of shape (out, rank) of one adapter at one site; rank 0 for none.
struct Site {
    uint64 a, b;
    int rank;
    float scale;
};

// shrunk[row, site, r] = A[r] . h[row] for the rows that carry an adapter: owners[row] is its number,
// negative for none, and sites[number * site_count + site] its factors. `first` is the site that
// blockIdx.z = 0 stands for; `places` the room for ranks in a row of `shrunk`. One warp a product.
template <typename T>
INLINE void lora_shrink(const T* h, const int* owners, const Site* sites, int site_count, int first,
                        int inner, int places, float* shrunk) {
    int row = blockIdx.x, lane = threadIdx.x % 32;
    int r = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    if (owners[row] < 0) return;
    Site site = sites[owners[row] * site_count + first + blockIdx.z];
    if (r >= site.rank) return;
    const T* a = (const T*)site.a + (uint64)r * inner;
    const T* x = h + (uint64)row * inner;
    float sum = 0.0f;
    for (int i = lane; i < inner; i += 32) sum += to_float(a[i]) * to_float(x[i]);
    sum = warp_sum(sum);
    if (lane == 0) shrunk[((uint64)row * gridDim.z + blockIdx.z) * places + r] = sum;
}

// y[row, offset + column] += scale * B[column] . shrunk[row, site]. One thread a column; the columns
// of site z are widths[z] many and begin at offsets[z].
struct Columns { int offset[3], width[3]; };

template <typename T>
INLINE void lora_expand(const float* shrunk, const int* owners, const Site* sites, int site_count,
                        int first, Columns columns, int places, int stride, float* y) {
    int row = blockIdx.x, column = blockIdx.y * blockDim.x + threadIdx.x, z = blockIdx.z;
    if (owners[row] < 0 || column >= columns.width[z]) return;
    Site site = sites[owners[row] * site_count + first + z];
    if (site.rank == 0) return;
    const T* b = (const T*)site.b + (uint64)column * site.rank;
    const float* from = shrunk + ((uint64)row * gridDim.z + z) * places;
    float sum = 0.0f;
    for (int r = 0; r < site.rank; r++) sum += to_float(b[r]) * from[r];
    y[(uint64)row * stride + columns.offset[z] + column] += site.scale * sum;
}

#define FEW(T, t, ROWS) \
    KERNEL few_rows_##ROWS##_##t(const T* weight, const T* x, int rows, int inner, int out, int stride, float* y) { \
        few_rows<T, ROWS>(weight, x, rows, inner, out, stride, y); \
    } \
    EXPORT(few_rows_##ROWS##_##t)

#define LINEAR(T, t) \
    FEW(T, t, 1) FEW(T, t, 2) FEW(T, t, 4) FEW(T, t, 8) \
    KERNEL lora_shrink_##t(const T* h, const int* owners, const Site* sites, int site_count, int first, \
                           int inner, int places, float* shrunk) { \
        lora_shrink<T>(h, owners, sites, site_count, first, inner, places, shrunk); \
    } \
    EXPORT(lora_shrink_##t) \
    KERNEL lora_expand_##t(const float* shrunk, const int* owners, const Site* sites, int site_count, int first, \
                           int offset0, int offset1, int offset2, int width0, int width1, int width2, \
                           int places, int stride, float* y) { \
        Columns columns = {{offset0, offset1, offset2}, {width0, width1, width2}}; \
        lora_expand<T>(shrunk, owners, sites, site_count, first, columns, places, stride, y); \
    } \
    EXPORT(lora_expand_##t)
FOR_ELEMENTS(LINEAR)
