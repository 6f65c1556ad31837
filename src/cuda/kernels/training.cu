// What training differentiates, in f32: each forward with its backward. One block a row unless said.

// y = x / rms(x) * weight
KERNEL norm_forward(const float* x, const float* weight, float eps, int width, float* y) {
    SHARED float scratch[32];
    x += (uint64)blockIdx.x * width;
    y += (uint64)blockIdx.x * width;
    float square = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) square += x[i] * x[i];
    float scale = inverse_root(block_sum(square, scratch) / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) y[i] = x[i] * scale * weight[i];
}
EXPORT(norm_forward)

// dx = r * (g w - x * r^2 * mean(g w x)), r = 1 / rms(x)
KERNEL norm_backward(const float* x, const float* weight, const float* g, float eps, int width, float* dx) {
    SHARED float scratch[32];
    uint64 at = (uint64)blockIdx.x * width;
    float square = 0.0f, product = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        square += x[at + i] * x[at + i];
        product += g[at + i] * weight[i] * x[at + i];
    }
    float r = inverse_root(block_sum(square, scratch) / width + eps);
    float along = block_sum(product, scratch) * r * r / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        dx[at + i] = r * (g[at + i] * weight[i] - x[at + i] * along);
}
EXPORT(norm_backward)

// Rotates every head of x (rows, heads * 2 * half) by its row's angles, times `direction`.
// One thread a pair, grid (rows, pairs / threads).
KERNEL rotate(const float* x, const float* cosines, const float* sines, float direction, int half, int width, float* y) {
    int pair = blockIdx.y * blockDim.x + threadIdx.x;
    if (pair >= width / 2) return;
    uint64 at = (uint64)blockIdx.x * width + pair / half * 2 * half + pair % half;
    uint64 angle = (uint64)blockIdx.x * half + pair % half;
    float c = cosines[angle], s = sines[angle] * direction, low = x[at], high = x[at + half];
    y[at] = low * c - high * s;
    y[at + half] = high * c + low * s;
}
EXPORT(rotate)

// sigmoid's argument and twice its slope: silu is x * sigmoid(x), gelu x * sigmoid(2u(x)).
INLINE void gate_of(float x, int gelu, float* open, float* slope) {
    float argument = gelu ? 1.5957691216f * x * (1.0f + 0.044715f * x * x) : x;
    *open = 1.0f / (1.0f + expf(-argument));
    *slope = gelu ? 1.5957691216f * (1.0f + 3.0f * 0.044715f * x * x) : 1.0f;
}

// One thread an element.
KERNEL gate_forward(const float* gate, const float* up, int gelu, uint64 count, float* y) {
    uint64 i = (uint64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float open, slope;
    gate_of(gate[i], gelu, &open, &slope);
    y[i] = gate[i] * open * up[i];
}
EXPORT(gate_forward)

KERNEL gate_backward(const float* gate, const float* up, const float* g, int gelu, uint64 count,
                     float* d_gate, float* d_up) {
    uint64 i = (uint64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float open, slope;
    gate_of(gate[i], gelu, &open, &slope);
    d_up[i] = g[i] * gate[i] * open;
    d_gate[i] = g[i] * up[i] * (open + gate[i] * open * (1.0f - open) * slope);
}
EXPORT(gate_backward)

// log Σ exp(x), stable.
INLINE float log_sum(const float* x, int width, float* scratch) {
    float top = -INFINITE;
    for (int i = threadIdx.x; i < width; i += blockDim.x) top = fmaxf(top, x[i]);
    top = block_max(top, scratch);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += expf(x[i] - top);
    return top + logf(block_sum(sum, scratch));
}

// out[row] = log p(targets[row]); sums[row] = log Σ exp, for the backward.
KERNEL logprob_forward(const float* logits, const uint32* targets, int vocab, float* out, float* sums) {
    SHARED float scratch[32];
    const float* row = logits + (uint64)blockIdx.x * vocab;
    float z = log_sum(row, vocab, scratch);
    if (threadIdx.x == 0) {
        out[blockIdx.x] = row[targets[blockIdx.x]] - z;
        sums[blockIdx.x] = z;
    }
}
EXPORT(logprob_forward)

// d[row, i] = g[row] * ([i is the target] - p(i))
KERNEL logprob_backward(const float* logits, const uint32* targets, const float* sums, const float* g,
                        int vocab, float* d) {
    uint64 at = (uint64)blockIdx.x * vocab;
    uint32 target = targets[blockIdx.x];
    float z = sums[blockIdx.x], upstream = g[blockIdx.x];
    for (int i = threadIdx.x; i < vocab; i += blockDim.x)
        d[at + i] = upstream * (((uint32)i == target ? 1.0f : 0.0f) - expf(logits[at + i] - z));
}
EXPORT(logprob_backward)

// out[row] = KL(q || p) of two rows of logits; sums[row] = their log Σ exp, p's first.
KERNEL kl_forward(const float* p, const float* q, int vocab, float* out, float* sums) {
    SHARED float scratch[32];
    p += (uint64)blockIdx.x * vocab;
    q += (uint64)blockIdx.x * vocab;
    float zp = log_sum(p, vocab, scratch), zq = log_sum(q, vocab, scratch), sum = 0.0f;
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        float log_q = q[i] - zq;
        sum += expf(log_q) * (log_q - (p[i] - zp));
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        out[blockIdx.x] = sum;
        sums[2 * blockIdx.x] = zp;
        sums[2 * blockIdx.x + 1] = zq;
    }
}
EXPORT(kl_forward)

// d[row, i] = g[row] * (p(i) - q(i)), the gradient in p's logits
KERNEL kl_backward(const float* p, const float* q, const float* sums, const float* g, int vocab, float* d) {
    uint64 at = (uint64)blockIdx.x * vocab;
    float zp = sums[2 * blockIdx.x], zq = sums[2 * blockIdx.x + 1], upstream = g[blockIdx.x];
    for (int i = threadIdx.x; i < vocab; i += blockDim.x)
        d[at + i] = upstream * (expf(p[at + i] - zp) - expf(q[at + i] - zq));
}
EXPORT(kl_backward)
