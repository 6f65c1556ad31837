// What all kernels share. The sources need no header of the toolkit, so that NVRTC compiles them on
// a machine that has the driver and its own library alone, and no CUDA type or intrinsic outside this
// file, so that a host compiler can run them as they are (see tests/host.cpp).

#ifndef REALIGN_HOST
typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;
#define EXPORT(name)
#define SHARED __shared__
#define DYNAMIC_SHARED(name) extern __shared__ uint64 name[]
#define INFINITE __int_as_float(0x7f800000)
#define WARP_ALL 0xffffffffu

__device__ __forceinline__ float shuffle_xor(float v, int lanes) { return __shfl_xor_sync(WARP_ALL, v, lanes); }
__device__ __forceinline__ float shuffle(float v, int lane) { return __shfl_sync(WARP_ALL, v, lane); }
__device__ __forceinline__ float bits_to_float(uint32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32 float_to_bits(float v) { return __float_as_uint(v); }
__device__ __forceinline__ void add_shared(uint64* at, uint64 v) { atomicAdd(at, v); }
__device__ __forceinline__ float half_to_float(uint16 bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
}
__device__ __forceinline__ uint16 float_to_half(float v) {
    uint16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}
#endif

#define KERNEL extern "C" __global__ void
#define INLINE __device__ __forceinline__

// The two 16-bit element types as their bits; arithmetic is always in f32.
struct f16 { uint16 bits; };
struct bf16 { uint16 bits; };

// 1 / sqrt(mean); NaN where the mean overflows, as 1 / infinity would turn a row into zeros.
INLINE float inverse_root(float mean) { return mean < INFINITE ? 1.0f / sqrtf(mean) : bits_to_float(0x7fc00000u); }

INLINE float to_float(float v) { return v; }
INLINE float to_float(f16 v) { return half_to_float(v.bits); }
INLINE float to_float(bf16 v) { return bits_to_float((uint32)v.bits << 16); }

template <typename T> struct Element;
template <> struct Element<float> {
    static INLINE float from(float v) { return v; }
};
template <> struct Element<f16> {
    static INLINE f16 from(float v) { f16 r; r.bits = float_to_half(v); return r; }
};
template <> struct Element<bf16> {
    // To the nearest, ties to even; a NaN stays one.
    static INLINE bf16 from(float v) {
        uint32 bits = float_to_bits(v);
        bf16 r;
        r.bits = v != v ? (uint16)0x7fc0 : (uint16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        return r;
    }
};

// Eight elements, read with 128-bit loads: what a thread takes of a weight at a time. The address is
// a multiple of 16 bytes.
struct Words { uint32 w[4]; };
struct alignas(16) AlignedWords { uint32 x, y, z, t; };

INLINE Words load_words(const void* at) {
    AlignedWords a = *(const AlignedWords*)at;
    Words r = {{a.x, a.y, a.z, a.t}};
    return r;
}

INLINE void load8(const float* at, float* v) {
    Words low = load_words(at), high = load_words(at + 4);
    for (int i = 0; i < 4; i++) {
        v[i] = bits_to_float(low.w[i]);
        v[i + 4] = bits_to_float(high.w[i]);
    }
}
INLINE void load8(const bf16* at, float* v) {
    Words words = load_words(at);
    for (int i = 0; i < 4; i++) {
        v[2 * i] = bits_to_float(words.w[i] << 16);
        v[2 * i + 1] = bits_to_float(words.w[i] & 0xffff0000u);
    }
}
INLINE void load8(const f16* at, float* v) {
    Words words = load_words(at);
    for (int i = 0; i < 4; i++) {
        v[2 * i] = half_to_float((uint16)(words.w[i] & 0xffff));
        v[2 * i + 1] = half_to_float((uint16)(words.w[i] >> 16));
    }
}

INLINE float warp_sum(float v) {
    for (int lanes = 16; lanes > 0; lanes /= 2) v += shuffle_xor(v, lanes);
    return v;
}
INLINE float warp_max(float v) {
    for (int lanes = 16; lanes > 0; lanes /= 2) v = fmaxf(v, shuffle_xor(v, lanes));
    return v;
}

// Over a block of up to 1024 threads, a multiple of 32; every thread gets the result. `scratch` is
// shared memory for 32 floats, free again when the function returns.
INLINE float block_sum(float v, float* scratch) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    v = warp_sum(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = warp_sum(lane < warps ? scratch[lane] : 0.0f);
    __syncthreads();
    return v;
}
INLINE float block_max(float v, float* scratch) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    v = warp_max(v);
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = warp_max(lane < warps ? scratch[lane] : -INFINITE);
    __syncthreads();
    return v;
}

// Defines `name_f32`, `name_f16` and `name_bf16` as the instances of the template `name`.
#define FOR_ELEMENTS(INSTANCE) INSTANCE(float, f32) INSTANCE(f16, f16) INSTANCE(bf16, bf16)
