// The next tokens of a step's rows, drawn where the logits are. It is the host sampler's rule step by
// step (engine/sampler.rs): the host brings each row's random number, so a seed draws the same text
// wherever its logits are computed, and only token ids leave the device.

struct Draw {
    double uniform;      // in [0, 1)
    float temperature;   // 0 takes the most probable token
    float top_p;         // 1 keeps all
    float min_p;         // 0 keeps all
    int top_k;           // 0 keeps all
};

#define THREADS 512

// In place of a token (`NOT_FINITE` in model/draw.rs).
#define NOT_FINITE 0xffffffffu

// Weights are summed as integers, in units of 2^-40 of the most probable token's: sums are the same
// in any order, so a draw does not depend on how threads interleave.
INLINE uint64 units(float weight) { return (uint64)((double)weight * 1099511627776.0 + 0.5); }

// What is left of the vocabulary: tokens above `key`, and of those at it the ids up to `last`.
struct Kept {
    uint32 key;
    int last;
    float least;         // weight
};

struct Row {
    const float* logits;
    int vocab;
    float top, temperature;
    INLINE float weight(int i) const {
        float scaled = (logits[i] - top) / temperature;
        return scaled > -30.0f ? expf(scaled) : 0.0f;
    }
};

INLINE bool is_kept(const Kept& kept, float weight, int i) {
    uint32 key = float_to_bits(weight);
    return weight > 0.0f && weight >= kept.least && (key > kept.key || (key == kept.key && i <= kept.last));
}

struct Scratch {
    uint64 bins[256];
    uint64 parts[THREADS];
    uint64 above, target;
    uint32 key;
    int id;
};

// Σ over the kept tokens of their units, or of 1; every thread gets it.
INLINE uint64 total(const Row& row, const Kept& kept, bool count, Scratch& s) {
    uint64 sum = 0;
    for (int i = threadIdx.x; i < row.vocab; i += THREADS) {
        float w = row.weight(i);
        if (is_kept(kept, w, i)) sum += count ? 1 : units(w);
    }
    s.parts[threadIdx.x] = sum;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) s.parts[threadIdx.x] += s.parts[threadIdx.x + half];
        __syncthreads();
    }
    uint64 all = s.parts[0];
    __syncthreads();
    return all;
}

// The key at which the kept tokens, best first, reach `target` units (or tokens, if `count`), digit by
// digit; s.above is what lies before it.
INLINE uint32 find_key(const Row& row, const Kept& kept, uint64 target, bool count, Scratch& s) {
    uint32 prefix = 0, mask = 0;
    if (threadIdx.x == 0) s.above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int b = threadIdx.x; b < 256; b += THREADS) s.bins[b] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < row.vocab; i += THREADS) {
            float w = row.weight(i);
            uint32 key = float_to_bits(w);
            if ((key & mask) == prefix && is_kept(kept, w, i)) add_shared(&s.bins[key >> shift & 255], count ? 1 : units(w));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int digit = 255, lowest = 255;
            uint64 above = s.above;
            for (; digit >= 0; digit--) {
                if (s.bins[digit] == 0) continue;
                lowest = digit;
                if (above + s.bins[digit] >= target) break;
                above += s.bins[digit];
            }
            // Only where the target exceeds the total: the last token takes it.
            if (digit < 0) {
                digit = lowest;
                above -= s.bins[digit];
            }
            s.above = above;
            s.key = prefix | (uint32)digit << shift;
        }
        __syncthreads();
        prefix = s.key;
        mask |= 255u << shift;
        __syncthreads();
    }
    return prefix;
}

// The id at which the kept tokens that match, by ascending id, reach `target`: those at `key` counted
// one each, or all of them by their units where `key` is 0. Threads take consecutive ids.
INLINE int find_id(const Row& row, const Kept& kept, uint32 key, uint64 target, Scratch& s) {
    int span = (row.vocab + THREADS - 1) / THREADS, from = min(row.vocab, (int)threadIdx.x * span);
    int to = min(row.vocab, from + span);
    uint64 sum = 0;
    int last = -1;
    for (int i = from; i < to; i++) {
        float w = row.weight(i);
        if (!is_kept(kept, w, i) || (key && float_to_bits(w) != key)) continue;
        sum += key ? 1 : units(w);
        last = i;
    }
    s.parts[threadIdx.x] = sum;
    if (threadIdx.x == 0) s.id = -1;
    __syncthreads();
    uint64 before = 0;
    for (int t = 0; t < (int)threadIdx.x; t++) before += s.parts[t];
    if (sum > 0 && before < target && before + sum >= target) {
        for (int i = from; i < to; i++) {
            float w = row.weight(i);
            if (!is_kept(kept, w, i) || (key && float_to_bits(w) != key)) continue;
            before += key ? 1 : units(w);
            last = i;
            if (before >= target) break;
        }
        s.id = last;
    }
    __syncthreads();
    int id = s.id;
    __syncthreads();
    return id;
}

INLINE uint64 share(double part, uint64 of) {
    double units = ceil(part * (double)of);
    return units < 1.0 ? 1 : (uint64)units;
}

// Index of the largest logit, the lowest of equals.
INLINE int most_probable(const float* logits, int vocab, Scratch& s) {
    int best = threadIdx.x < vocab ? threadIdx.x : 0;
    for (int i = threadIdx.x; i < vocab; i += THREADS)
        if (logits[i] > logits[best]) best = i;
    s.parts[threadIdx.x] = best;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            int a = (int)s.parts[threadIdx.x], b = (int)s.parts[threadIdx.x + half];
            if (logits[b] > logits[a] || (logits[b] == logits[a] && b < a)) s.parts[threadIdx.x] = b;
        }
        __syncthreads();
    }
    best = (int)s.parts[0];
    __syncthreads();
    return best;
}

// Whether a row cannot be drawn from: a logit is NaN or +infinity, or none is above -infinity.
INLINE bool is_broken(const float* logits, int vocab, float top, Scratch& s) {
    if (threadIdx.x == 0) s.id = !(top > -INFINITE);
    __syncthreads();
    for (int i = threadIdx.x; i < vocab; i += THREADS)
        if (!(logits[i] < INFINITE)) s.id = 1;
    __syncthreads();
    bool broken = s.id != 0;
    __syncthreads();
    return broken;
}

// tokens[row] = a draw from logits[row], (rows, vocab), or NOT_FINITE. One block of THREADS a row.
KERNEL sample(const float* logits, const Draw* draws, int vocab, uint32* tokens) {
    SHARED Scratch s;
    Draw draw = draws[blockIdx.x];
    logits += (uint64)blockIdx.x * vocab;
    int best = most_probable(logits, vocab, s), id = best;
    bool broken = is_broken(logits, vocab, logits[best], s);
    if (draw.temperature > 0.0f && !broken) {
        Row row = {logits, vocab, logits[best], draw.temperature};
        Kept kept = {0, vocab, 0.0f};
        bool sorted = false;
        if (draw.top_k > 0 && (uint64)draw.top_k < total(row, kept, true, s)) {
            uint32 key = find_key(row, kept, draw.top_k, true, s);
            uint64 ties = (uint64)draw.top_k - s.above;
            int last = find_id(row, kept, key, ties, s);
            kept.key = key;
            kept.last = last;
            sorted = true;
        }
        kept.least = draw.min_p;
        uint64 all = total(row, kept, false, s);
        if (draw.top_p < 1.0f) {
            uint64 limit = share(draw.top_p, all);
            uint32 key = find_key(row, kept, limit, false, s);
            uint64 each = units(bits_to_float(key)), ties = each ? (limit - s.above + each - 1) / each : 1;
            int last = find_id(row, kept, key, ties, s);
            if (last >= 0) {
                kept.key = key;
                kept.last = last;
            }
            all = total(row, kept, false, s);
            sorted = true;
        }
        uint64 target = share(draw.uniform, all);
        int drawn;
        if (sorted) {
            uint32 key = find_key(row, kept, target, false, s);
            uint64 each = units(bits_to_float(key)), ties = each ? (target - s.above + each - 1) / each : 1;
            drawn = find_id(row, kept, key, ties, s);
        } else {
            drawn = find_id(row, kept, 0, target, s);
        }
        if (drawn >= 0) id = drawn;
    }
    if (threadIdx.x == 0) tokens[blockIdx.x] = broken ? NOT_FINITE : id;
}
EXPORT(sample)
