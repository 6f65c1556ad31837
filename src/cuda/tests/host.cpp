// Runs the CUDA kernels' own sources on the host, so that their arithmetic is tested without a GPU.
//
// Every CUDA thread of a block is a fibre; blocks run one after the other. A fibre runs until it needs
// the others: at a barrier of its block, or at a shuffle, where it waits for the threads of its warp.
// Every kernel runs with all threads in step, and with warps in a shuffled order that run ahead of each
// other as far as barriers let them (`seed`), so that a result that depends on a barrier that is not
// there comes out differently. Shared memory keeps what the block before left in it.
//
// The build appends the kernels' sources (see emulator.rs).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

typedef uint8_t uint8;
typedef uint16_t uint16;
typedef uint32_t uint32;
typedef unsigned long long uint64;

struct Dim { unsigned x, y, z; };
static Dim blockIdx, blockDim, gridDim;

enum State { READY, AT_BARRIER, AT_SHUFFLE, DONE };
struct Fibre {
    void* stack_pointer;
    std::vector<char> stack;
    State state;
    Dim index;
    // Shuffles so far, and what this thread offered at the last two.
    unsigned shuffles;
    float offered[2];
};
static std::vector<Fibre> fibres;
static void* scheduler;
static Fibre* current;
#define threadIdx (current->index)

// Keeps what a call must keep, leaves the stack pointer at `from` and goes on where `to` left off.
// swapcontext would ask the system for its signal mask at each of a block's many thousand switches.
#if defined(__x86_64__)
extern "C" void switch_fibre(void** from, void* to);
asm(R"(
.text
.type switch_fibre, @function
switch_fibre:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#define KEPT_REGISTERS 6
#elif defined(__aarch64__)
extern "C" void switch_fibre(void** from, void* to);
asm(R"(
.text
.type switch_fibre, %function
switch_fibre:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#else
#error "the emulator knows no way to switch fibres on this processor"
#endif

static void wait_in(State state) {
    Fibre* self = current;
    self->state = state;
    switch_fibre(&self->stack_pointer, scheduler);
}
static void __syncthreads() { wait_in(AT_BARRIER); }

static float exchange(float v, unsigned lane) {
    // Two places: who takes late still finds this offer when others make their next.
    unsigned place = current->shuffles++ % 2;
    size_t first = (size_t)(current - fibres.data()) / 32 * 32;
    current->offered[place] = v;
    wait_in(AT_SHUFFLE);
    return fibres[first + lane].offered[place];
}
static float shuffle_xor(float v, int lanes) { return exchange(v, (threadIdx.x % 32) ^ lanes); }
static float shuffle(float v, int lane) { return exchange(v, lane); }

static float bits_to_float(uint32 bits) { float v; memcpy(&v, &bits, 4); return v; }
static uint32 float_to_bits(float v) { uint32 bits; memcpy(&bits, &v, 4); return bits; }
static void add_shared(uint64* at, uint64 v) { *at += v; }

static float half_to_float(uint16 bits) {
    uint32 sign = (uint32)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000 | mantissa << 13);
    float magnitude = exponent ? ldexpf(1024 + mantissa, (int)exponent - 25) : ldexpf(mantissa, -24);
    return sign ? -magnitude : magnitude;
}
static uint16 float_to_half(float v) {
    uint16 sign = float_to_bits(v) >> 16 & 0x8000;
    float magnitude = fabsf(v);
    if (magnitude == 0.0f) return sign;
    if (v != v) return sign | 0x7e00;
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    int exponent;
    frexpf(magnitude, &exponent);
    int scale = std::max(exponent - 11, -24);
    uint32 units = (uint32)nearbyintf(ldexpf(magnitude, -scale));
    // units is below 2048 and carries into the exponent by itself.
    return sign | (uint16)(units + ((uint32)(scale + 24) << 10));
}

using std::max;
using std::min;
#define REALIGN_HOST
#define __global__
#define __device__
#define __forceinline__ inline
#define SHARED static
#define INFINITE INFINITY

typedef void (*Call)(void** arguments);
static std::map<std::string, Call>& kernels() { static std::map<std::string, Call> all; return all; }

template <auto F> struct Caller;
template <typename... A, void (*F)(A...)> struct Caller<F> {
    template <size_t... I> static void spread(void** a, std::index_sequence<I...>) { F(*(A*)a[I]...); }
    static void call(void** a) { spread(a, std::index_sequence_for<A...>{}); }
};
struct Registered { Registered(const char* name, Call call) { kernels()[name] = call; } };
#define EXPORT(name) static Registered registered_##name(#name, Caller<name>::call);

static Call running;
static void** running_arguments;
static void body() {
    running(running_arguments);
    wait_in(DONE);
    // A fibre that is done is never resumed.
    abort();
}

static uint32 noise;
static uint32 random_below(uint32 n) {
    noise = noise * 1664525u + 1013904223u;
    return (uint32)(((unsigned long long)noise * n) >> 32);
}

static void run_fibre(Fibre& fibre) {
    current = &fibre;
    fibre.state = READY;
    switch_fibre(&scheduler, fibre.stack_pointer);
}

// A stack from which switch_fibre returns into `body`.
static void prepare(Fibre& fibre) {
    uintptr_t top = (uintptr_t)(fibre.stack.data() + fibre.stack.size()) & ~(uintptr_t)15;
#if defined(__x86_64__)
    void** words = (void**)top;
    *--words = nullptr;  // where body would return to
    *--words = (void*)body;
    for (int i = 0; i < KEPT_REGISTERS; i++) *--words = nullptr;
    fibre.stack_pointer = words;
#else
    void** words = (void**)(top - 160);
    memset(words, 0, 160);
    words[11] = (void*)body;  // x30
    fibre.stack_pointer = words;
#endif
}

// Whether all of [first, last) that have not ended wait in `state`.
static bool all_in(size_t first, size_t last, State state) {
    bool any = false;
    for (size_t i = first; i < last; i++) {
        if (fibres[i].state == DONE) continue;
        if (fibres[i].state != state) return false;
        any = true;
    }
    return any;
}

static std::vector<char> runnable;

static void shuffle_order(std::vector<size_t>& order) {
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
}

// Runs those of `order` that can, each until it waits or ends.
static void run_once(const std::vector<size_t>& order) {
    for (size_t i : order) {
        if (!runnable[i] || fibres[i].state == DONE) continue;
        runnable[i] = 0;
        run_fibre(fibres[i]);
    }
}

// Lets a warp go on whose living threads have all met at a shuffle.
static bool release_shuffle(size_t first, size_t last) {
    if (!all_in(first, last, AT_SHUFFLE)) return false;
    std::fill(runnable.begin() + first, runnable.begin() + last, 1);
    return true;
}

// Runs the block to its end. False if threads wait for what cannot come. In order, all threads go on
// together from wait to wait. Skewed, warps in a shuffled order each run as far as they can alone, so
// that one is a whole barrier ahead of the others: what it reads of theirs without one is not there.
static bool run_block(bool skewed) {
    size_t count = fibres.size();
    runnable.assign(count, 1);
    std::vector<size_t> all(count), warps((count + 31) / 32);
    for (size_t i = 0; i < count; i++) all[i] = i;
    for (size_t w = 0; w < warps.size(); w++) warps[w] = w;
    for (;;) {
        bool released = false;
        if (skewed) shuffle_order(warps);
        if (!skewed) run_once(all);
        for (size_t w : warps) {
            size_t first = 32 * w, last = std::min(first + 32, count);
            if (!skewed) {
                released = release_shuffle(first, last) || released;
                continue;
            }
            std::vector<size_t> own(all.begin() + first, all.begin() + last);
            do {
                shuffle_order(own);
                run_once(own);
            } while (release_shuffle(first, last));
        }
        if (released) continue;
        if (std::all_of(fibres.begin(), fibres.end(), [](const Fibre& f) { return f.state == DONE; })) return true;
        if (!all_in(0, count, AT_BARRIER)) return false;
        std::fill(runnable.begin(), runnable.end(), 1);
    }
}

#define STACK (64 << 10)

// Runs a kernel: 0 done, 1 no such kernel, 2 its threads wait for each other for ever.
extern "C" int emulate(const char* name, const unsigned* grid, const unsigned* block, void** arguments, uint32 seed) {
    auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    running = found->second;
    running_arguments = arguments;
    noise = seed;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    size_t threads = (size_t)block[0] * block[1] * block[2];
    if (fibres.size() != threads) fibres.assign(threads, Fibre());
    for (Fibre& f : fibres)
        if (f.stack.empty()) f.stack.resize(STACK);
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                for (size_t i = 0; i < threads; i++) {
                    Fibre& f = fibres[i];
                    f.state = READY;
                    f.index = {(unsigned)(i % block[0]), (unsigned)(i / block[0] % block[1]), (unsigned)(i / block[0] / block[1])};
                    f.shuffles = 0;
                    prepare(f);
                }
                if (!run_block(seed != 0)) return 2;
            }
    return 0;
}

// The names of all kernels, one a line.
extern "C" const char* kernel_names() {
    static std::string names;
    if (names.empty())
        for (auto& entry : kernels()) names += entry.first + "\n";
    return names.c_str();
}
