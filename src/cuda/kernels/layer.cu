// The steps of a layer between its products: embedding, norms with the residual, rotation with the
// write to the cache, gated activations, caps.

// x[row] = table[tokens[row]] * scale. One block a row.
template <typename T>
INLINE void embed(const uint32* tokens, const T* table, float scale, int width, float* x) {
    const T* from = table + (uint64)tokens[blockIdx.x] * width;
    float* to = x + (uint64)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = to_float(from[i]) * scale;
}

// Row `rows[block]` of x (or row `block`, where `rows` is null):
//   x += y, or norm(y) * y_weight where that is given; nothing where y is null
//   h[block] = norm(x) * weight
// One block a row; what a sublayer adds and the norm of the next one are one pass over memory.
template <typename T>
INLINE void add_norm(float* x, const float* y, const float* y_weight, const float* weight,
                     const uint32* rows, float eps, int width, T* h) {
    SHARED float scratch[32];
    uint64 row = rows ? rows[blockIdx.x] : blockIdx.x;
    x += row * width;
    h += (uint64)blockIdx.x * width;
    float y_scale = 1.0f;
    if (y) {
        y += row * width;
        if (y_weight) {
            float square = 0.0f;
            for (int i = threadIdx.x; i < width; i += blockDim.x) square += y[i] * y[i];
            y_scale = inverse_root(block_sum(square, scratch) / width + eps);
        }
    }
    float square = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float v = x[i];
        if (y) {
            v += y_weight ? y[i] * y_scale * y_weight[i] : y[i];
            x[i] = v;
        }
        square += v * v;
    }
    float scale = inverse_root(block_sum(square, scratch) / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) h[i] = Element<T>::from(x[i] * scale * weight[i]);
}

// cos and sin of positions[row] * frequencies[i], (rows, half) each. One block a row.
KERNEL rope_table(const uint32* positions, const float* frequencies, int half, float* cosines, float* sines) {
    float position = (float)positions[blockIdx.x];
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        float angle = position * frequencies[i];
        cosines[(uint64)blockIdx.x * half + i] = cosf(angle);
        sines[(uint64)blockIdx.x * half + i] = sinf(angle);
    }
}
EXPORT(rope_table)

// The heads of a step: qkv is (rows, (heads + 2 kv_heads) * head_dim). Those of q are normalised
// where `q_norm` is given and rotated in place; those of k likewise, and go to the cache with those
// of v, at slots[row] of (slots, kv_heads * head_dim). One warp a head, grid (rows, heads / warps).
template <typename T>
INLINE void rope_write(float* qkv, const float* biases, const float* q_norm, const float* k_norm,
                       const float* cosines, const float* sines, const uint32* slots, float eps,
                       int heads, int kv_heads, int head_dim, T* keys, T* values) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = head_dim / 2;
    int head = blockIdx.y * (blockDim.x / 32) + warp;
    if (head >= heads + 2 * kv_heads) return;
    uint64 row = blockIdx.x;
    float* v = qkv + (row * (heads + 2 * kv_heads) + head) * head_dim;
    const float* bias = biases ? biases + head * head_dim : 0;
    uint64 slot = (uint64)slots[row] * kv_heads * head_dim;
    if (head >= heads + kv_heads) {
        T* to = values + slot + (head - heads - kv_heads) * head_dim;
        for (int i = lane; i < head_dim; i += 32) to[i] = Element<T>::from(bias ? v[i] + bias[i] : v[i]);
        return;
    }
    const float* norm = head < heads ? q_norm : k_norm;
    float scale = 1.0f;
    if (norm) {
        float square = 0.0f;
        for (int i = lane; i < head_dim; i += 32) {
            float value = bias ? v[i] + bias[i] : v[i];
            square += value * value;
        }
        scale = inverse_root(warp_sum(square) / head_dim + eps);
    }
    T* to = head < heads ? 0 : keys + slot + (head - heads) * head_dim;
    for (int i = lane; i < half; i += 32) {
        float low = v[i], high = v[i + half];
        if (bias) {
            low += bias[i];
            high += bias[i + half];
        }
        if (norm) {
            low *= scale * norm[i];
            high *= scale * norm[i + half];
        }
        float c = cosines[row * half + i], s = sines[row * half + i];
        float turned_low = low * c - high * s, turned_high = high * c + low * s;
        if (to) {
            to[i] = Element<T>::from(turned_low);
            to[i + half] = Element<T>::from(turned_high);
        } else {
            v[i] = turned_low;
            v[i + half] = turned_high;
        }
    }
}

INLINE float activated(float gate, int gelu) {
    if (!gelu) return gate / (1.0f + expf(-gate));
    // (1 + tanh u) / 2 = sigmoid(2u), u = sqrt(2/pi) * (x + 0.044715 x^3)
    return gate / (1.0f + expf(-1.5957691216f * gate * (1.0f + 0.044715f * gate * gate)));
}

// m = activation(gate) * up; gate and up lie side by side in each row of `both`, (rows, 2 * width).
template <typename T>
INLINE void gated(const float* both, int gelu, int width, T* m) {
    int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i >= width) return;
    const float* row = both + (uint64)blockIdx.x * 2 * width;
    m[(uint64)blockIdx.x * width + i] = Element<T>::from(activated(row[i], gelu) * row[width + i]);
}

// y += bias, (rows, width).
KERNEL add_bias(float* y, const float* bias, int width) {
    int i = blockIdx.y * blockDim.x + threadIdx.x;
    if (i < width) y[(uint64)blockIdx.x * width + i] += bias[i];
}
EXPORT(add_bias)

// v = cap * tanh(v / cap), over `count` values. An infinity, which comes from an overflow, becomes NaN:
// capped it would look like a number.
KERNEL soft_cap(float* v, float cap, uint64 count) {
    uint64 i = (uint64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) v[i] = cap * tanhf(v[i] / cap) + v[i] * 0.0f;
}
EXPORT(soft_cap)

#define LAYER(T, t) \
    KERNEL embed_##t(const uint32* tokens, const T* table, float scale, int width, float* x) { \
        embed<T>(tokens, table, scale, width, x); \
    } \
    EXPORT(embed_##t) \
    KERNEL add_norm_##t(float* x, const float* y, const float* y_weight, const float* weight, \
                        const uint32* rows, float eps, int width, T* h) { \
        add_norm<T>(x, y, y_weight, weight, rows, eps, width, h); \
    } \
    EXPORT(add_norm_##t) \
    KERNEL rope_write_##t(float* qkv, const float* biases, const float* q_norm, const float* k_norm, \
                          const float* cosines, const float* sines, const uint32* slots, float eps, \
                          int heads, int kv_heads, int head_dim, T* keys, T* values) { \
        rope_write<T>(qkv, biases, q_norm, k_norm, cosines, sines, slots, eps, heads, kv_heads, head_dim, keys, values); \
    } \
    EXPORT(rope_write_##t) \
    KERNEL gated_##t(const float* both, int gelu, int width, T* m) { gated<T>(both, gelu, width, m); } \
    EXPORT(gated_##t)
FOR_ELEMENTS(LAYER)
