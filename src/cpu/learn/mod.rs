//! Learning on the CPU: forward passes that keep what gradients need, their backward, and
//! tangents, on flat buffers and straight from the packed weights that serve.
//!
//! Nothing is copied or unpacked for longer than one product needs it, so training beside serving
//! costs activations and no second model. With [`Precision::Mixed`](realign_model::Precision::Mixed), where the processor has the
//! instructions, values and tangents run in 16-bit fixed point, which is as good as f32 to five
//! digits, and gradients in bfloat16: they are means over many tokens. Candle's automatic
//! differentiation stays the slow twin.

mod attention;
mod backward;
mod factors;
mod forward;
mod head;
#[cfg(target_arch = "x86_64")]
mod limbs;
mod pass;
mod product;
mod rows;
mod small;
mod tangent;
mod tile;
mod unpack;

use std::sync::OnceLock;

use rayon::ThreadPool;

use realign_model::turns;

pub use pass::Differentiator;

/// How much the scheduler prefers other threads to learning ones. Learning has its turns; what it
/// does between two looks at whose turn it is should not hold a step up.
const NICE: i32 = 19;

/// The threads that learn: as many as there are cores.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let build = || {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("learn-{i}"))
            .start_handler(|_| stand_behind())
            .build()
            .ok()
    };
    POOL.get_or_init(build).as_ref()
}

/// Lowers the priority of this thread if there is a server. Where that cannot be done, learning is
/// less polite.
fn stand_behind() {
    if !turns::is_polite() {
        return;
    }
    #[cfg(target_os = "linux")]
    // SAFETY: no pointers are passed; 0 means the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE);
    }
}

/// Runs `f` on the learning threads, or here if the system gave none.
fn on_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let _turn = turns::learn();
    match pool() {
        Some(pool) => pool.install(f),
        None => f(),
    }
}
