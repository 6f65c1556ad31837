// Attention of a step's rows over the paged cache, for decoding and for prompts alike.
//
// A tile is one or more consecutive rows of one sequence. A block takes a tile, one key/value head
// (or a part of the query heads that share it) and one split of the tokens, so keys and values are
// read once for all its (row, head) pairs: with grouped queries a decoding row has several. Every
// split leaves its sums, its maximum and its normaliser, which `attention_merge` joins.

struct Tile {
    int row, rows;     // in the step
    int cached;        // position of the first row
    int table;         // where the sequence's blocks begin in `blocks`
};

#define BLOCK_TOKENS 16
#define CHUNK 32
#define WARPS 4

// PER_WARP: pairs that a warp handles; a block handles up to 4 * PER_WARP of them.
template <typename T, int D, int PER_WARP>
INLINE void attention(const float* qkv, const T* keys, const T* values, const Tile* tiles, const uint32* blocks,
                      float scale, float cap, int window, int heads, int kv_heads, int part, int split_tokens,
                      float* partial) {
    constexpr int PAIRS = WARPS * PER_WARP, COLUMNS = D / 32;
    SHARED float q[PAIRS * D];
    SHARED float chunk[CHUNK * (D + 1)];
    SHARED uint32 slots[CHUNK];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Tile tile = tiles[blockIdx.x];
    int group = heads / kv_heads, parts = (group + part - 1) / part;
    int kv_head = blockIdx.y / parts, first_head = blockIdx.y % parts * part;
    int heads_here = min(part, group - first_head), pairs = tile.rows * heads_here;
    int width = (heads + 2 * kv_heads) * D;

    // Tokens that any row of the tile sees, and those of them that this split takes.
    int last = tile.cached + tile.rows;
    int begin = window > 0 ? max(0, tile.cached + 1 - window) : 0;
    begin = begin / CHUNK * CHUNK;
    int from = begin + blockIdx.z * split_tokens, to = min(last, from + split_tokens);

    for (int i = threadIdx.x; i < pairs * D; i += blockDim.x) {
        int pair = i / D, row = tile.row + pair / heads_here;
        int head = kv_head * group + first_head + pair % heads_here;
        q[i] = qkv[(uint64)row * width + head * D + i % D] * scale;
    }
    float sums[PER_WARP][COLUMNS], top[PER_WARP], norm[PER_WARP];
    for (int p = 0; p < PER_WARP; p++) {
        top[p] = -INFINITE;
        norm[p] = 0.0f;
        for (int c = 0; c < COLUMNS; c++) sums[p][c] = 0.0f;
    }
    for (int start = from; start < to; start += CHUNK) {
        int here = min(CHUNK, to - start);
        __syncthreads();
        if (threadIdx.x < here) {
            int token = start + threadIdx.x;
            slots[threadIdx.x] = blocks[tile.table + token / BLOCK_TOKENS] * BLOCK_TOKENS + token % BLOCK_TOKENS;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < here * D; i += blockDim.x)
            chunk[i / D * (D + 1) + i % D] = to_float(keys[((uint64)slots[i / D] * kv_heads + kv_head) * D + i % D]);
        __syncthreads();
        // A lane scores one token for each of its warp's pairs.
        float weights[PER_WARP];
#pragma unroll
        for (int p = 0; p < PER_WARP; p++) {
            int pair = warp + p * WARPS;
            float score = -INFINITE;
            int position = tile.cached + pair / heads_here, token = start + lane;
            bool seen = pair < pairs && lane < here && token <= position && (window <= 0 || token > position - window);
            if (seen) {
                score = 0.0f;
                const float* key = chunk + lane * (D + 1);
                for (int i = 0; i < D; i++) score += q[pair * D + i] * key[i];
                if (cap > 0.0f) score = cap * tanhf(score / cap);
            }
            float highest = fmaxf(top[p], warp_max(score));
            weights[p] = seen ? expf(score - highest) : 0.0f;
            // Where nothing was seen yet, there is nothing to rescale.
            float rescale = top[p] == -INFINITE ? 0.0f : expf(top[p] - highest);
            norm[p] = norm[p] * rescale + warp_sum(weights[p]);
            top[p] = highest;
            for (int c = 0; c < COLUMNS; c++) sums[p][c] *= rescale;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < here * D; i += blockDim.x)
            chunk[i / D * (D + 1) + i % D] = to_float(values[((uint64)slots[i / D] * kv_heads + kv_head) * D + i % D]);
        __syncthreads();
        // A lane sums D / 32 columns.
        for (int token = 0; token < here; token++) {
#pragma unroll
            for (int p = 0; p < PER_WARP; p++) {
                float weight = shuffle(weights[p], token);
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) sums[p][c] += weight * chunk[token * (D + 1) + c * 32 + lane];
            }
        }
    }
#pragma unroll
    for (int p = 0; p < PER_WARP; p++) {
        int pair = warp + p * WARPS;
        if (pair >= pairs) continue;
        int row = tile.row + pair / heads_here, head = kv_head * group + first_head + pair % heads_here;
        float* at = partial + (((uint64)row * heads + head) * gridDim.z + blockIdx.z) * (D + 2);
        for (int c = 0; c < COLUMNS; c++) at[c * 32 + lane] = sums[p][c];
        if (lane == 0) {
            at[D] = top[p];
            at[D + 1] = norm[p];
        }
    }
}

// m[row, head] = the splits' sums, each scaled to the highest of their maxima. One warp a head, grid
// (rows, heads / warps).
template <typename T>
INLINE void attention_merge(const float* partial, int splits, int heads, int head_dim, T* m) {
    int lane = threadIdx.x % 32, head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    if (head >= heads) return;
    uint64 at = (uint64)blockIdx.x * heads + head;
    const float* parts = partial + at * splits * (head_dim + 2);
    float top = -INFINITE, norm = 0.0f;
    for (int s = 0; s < splits; s++) top = fmaxf(top, parts[s * (head_dim + 2) + head_dim]);
    for (int s = 0; s < splits; s++) {
        const float* part = parts + s * (head_dim + 2);
        if (part[head_dim] != -INFINITE) norm += part[head_dim + 1] * expf(part[head_dim] - top);
    }
    for (int i = lane; i < head_dim; i += 32) {
        float sum = 0.0f;
        for (int s = 0; s < splits; s++) {
            const float* part = parts + s * (head_dim + 2);
            if (part[head_dim] != -INFINITE) sum += part[i] * expf(part[head_dim] - top);
        }
        m[at * head_dim + i] = Element<T>::from(norm > 0.0f ? sum / norm : 0.0f);
    }
}

#define ATTENTION_OF(T, t, D, PER_WARP) \
    KERNEL attention_##D##_##t(const float* qkv, const T* keys, const T* values, const Tile* tiles, \
                               const uint32* blocks, float scale, float cap, int window, int heads, \
                               int kv_heads, int part, int split_tokens, float* partial) { \
        attention<T, D, PER_WARP>(qkv, keys, values, tiles, blocks, scale, cap, window, heads, kv_heads, part, split_tokens, partial); \
    } \
    EXPORT(attention_##D##_##t)

#define ATTENTION(T, t) \
    ATTENTION_OF(T, t, 32, 4) ATTENTION_OF(T, t, 64, 4) ATTENTION_OF(T, t, 96, 4) \
    ATTENTION_OF(T, t, 128, 4) ATTENTION_OF(T, t, 256, 2) \
    KERNEL attention_merge_##t(const float* partial, int splits, int heads, int head_dim, T* m) { \
        attention_merge<T>(partial, splits, heads, head_dim, m); \
    } \
    EXPORT(attention_merge_##t)
FOR_ELEMENTS(ATTENTION)
