//! The kernels' own sources, compiled for the host and run there.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{Result, bail};
use half::{bf16, f16};

use crate::gpu::{Buffer, Element, Gpu, Graph, Launch, Product};
use crate::sources::{COMMON, UNITS};

const HOST: &str = include_str!("host.cpp");
/// Bytes before and after every allocation that nothing may write to.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;

type Emulate =
    unsafe extern "C" fn(*const c_char, *const u32, *const u32, *mut *mut c_void, u32) -> c_int;

/// Compiles the sources and loads them; `None`, with a line that says so, where there is no g++.
fn library() -> Option<Emulate> {
    static LOADED: OnceLock<Option<Emulate>> = OnceLock::new();
    *LOADED.get_or_init(|| {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
        if Command::new(&compiler).arg("--version").output().is_err() {
            println!("SKIPPED: no {compiler}, so the CUDA kernels' arithmetic is not tested here");
            return None;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let built = build(&compiler, folder.path());
        Some(load(&built))
    })
}

fn build(compiler: &str, folder: &Path) -> std::path::PathBuf {
    let (source, library) = (folder.join("kernels.cpp"), folder.join("kernels.so"));
    let mut text = format!("{HOST}\n{COMMON}\n");
    for unit in UNITS {
        text += &format!("#line 1 \"{}\"\n{}\n", unit.name, unit.text);
    }
    std::fs::write(&source, text).expect("the source is written");
    let warnings = ["-Wall", "-Wno-unknown-pragmas", "-Wno-sign-compare"];
    let done = Command::new(compiler)
        .args(["-std=c++17", "-O2", "-fPIC", "-shared"])
        .args(warnings)
        .arg(&source)
        .arg("-o")
        .arg(&library)
        .output()
        .expect("the compiler runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.is_empty(), "{said}");
    library
}

fn load(path: &Path) -> Emulate {
    let name = CString::new(path.to_str().expect("UTF-8")).expect("no NUL");
    // SAFETY: the library was just built; it has no initialiser but its table of kernels, and stays
    // loaded for the life of the process.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "the emulator loads");
        let symbol = libc::dlsym(handle, c"emulate".as_ptr());
        assert!(!symbol.is_null(), "it has its function");
        std::mem::transmute::<*mut c_void, Emulate>(symbol)
    }
}

/// A device whose kernels run on this processor, threads in step for seed 0; for others, warps run
/// ahead of each other in an order that the seed gives.
pub(crate) struct Emulator {
    emulate: Emulate,
    seed: u32,
    /// Launches that are recorded; `None` while they run.
    recording: Mutex<Option<Vec<Launch>>>,
}

impl Emulator {
    /// `None` where there is no compiler for it.
    pub(crate) fn new(seed: u32) -> Option<Self> {
        library().map(|emulate| Self {
            emulate,
            seed,
            recording: Mutex::default(),
        })
    }

    fn recording(&self) -> std::sync::MutexGuard<'_, Option<Vec<Launch>>> {
        self.recording
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A device refuses all but launches while it records.
    fn not_recording(&self, what: &str) -> Result<()> {
        match &*self.recording() {
            Some(_) => bail!("{what} cannot be recorded"),
            None => Ok(()),
        }
    }

    fn run(&self, launch: &Launch) -> Result<()> {
        // One kernel at a time: the emulator's blocks and shared memory are static.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let name = CString::new(launch.kernel).expect("no NUL");
        let mut args: Vec<u64> = launch.args.iter().map(|a| a.0).collect();
        let mut places: Vec<*mut c_void> = args
            .iter_mut()
            .map(|a| std::ptr::from_mut(a).cast())
            .collect();
        let block = [launch.threads, 1, 1];
        // SAFETY: the kernel's parameters are what the launch lists, which is what is under test;
        // addresses among them are of live buffers.
        let code = unsafe {
            (self.emulate)(
                name.as_ptr(),
                launch.grid.as_ptr(),
                block.as_ptr(),
                places.as_mut_ptr(),
                self.seed,
            )
        };
        match code {
            0 => Ok(()),
            1 => bail!("there is no kernel {}", launch.kernel),
            _ => bail!("threads of {} wait for each other for ever", launch.kernel),
        }
    }
}

/// An allocation between guards, which are looked at when it goes.
struct Guarded {
    memory: Vec<u8>,
    begin: usize,
    bytes: usize,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let (before, rest) = self.memory.split_at(self.begin);
        let guards = before.iter().chain(&rest[self.bytes..]);
        assert!(
            guards.into_iter().all(|b| *b == GUARD_BYTE),
            "a kernel wrote beyond a buffer of {} bytes",
            self.bytes
        );
    }
}

/// Values of one element type at an address.
pub(crate) fn read_as(element: Element, at: u64, index: usize) -> f32 {
    // SAFETY: tests pass addresses of live buffers and indices inside them.
    unsafe {
        match element {
            Element::F32 => *(at as *const f32).add(index),
            Element::F16 => (*(at as *const f16).add(index)).to_f32(),
            Element::Bf16 => (*(at as *const bf16).add(index)).to_f32(),
        }
    }
}

impl Gpu for Emulator {
    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        self.not_recording("an allocation")?;
        let mut memory = vec![GUARD_BYTE; bytes + 3 * GUARD];
        let begin = GUARD + memory.as_ptr().wrapping_add(GUARD).align_offset(GUARD);
        // What is read before it is written is a NaN in every element type.
        memory[begin..begin + bytes].fill(0xff);
        let address = memory.as_ptr() as u64 + begin as u64;
        let guarded = Guarded {
            memory,
            begin,
            bytes,
        };
        Ok(Buffer::new(address, bytes, Box::new(guarded)))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.not_recording("a copy")?;
        // SAFETY: callers pass an address inside a live buffer with room for the bytes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.not_recording("a copy")?;
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        self.not_recording("clearing")?;
        // SAFETY: as above.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        if let Some(recorded) = &mut *self.recording() {
            recorded.push(launch.clone());
            return Ok(());
        }
        self.run(launch)
    }

    fn begin_capture(&self) -> Result<()> {
        self.not_recording("a recording")?;
        *self.recording() = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph> {
        match self.recording().take() {
            Some(launches) => Ok(Graph::new(Box::new(launches))),
            None => bail!("nothing is recorded"),
        }
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        self.not_recording("a recorded step")?;
        let launches: &Vec<Launch> = graph.recording()?;
        launches.iter().try_for_each(|launch| self.run(launch))
    }

    fn product(&self, p: &Product) -> Result<()> {
        self.not_recording("a large product")?;
        let weight = p.floats()?;
        for row in 0..p.rows {
            for column in 0..p.out {
                let sum: f32 = (0..p.inner)
                    .map(|i| {
                        read_as(p.element, p.x, row * p.inner + i)
                            * read_as(p.element, weight, column * p.inner + i)
                    })
                    .sum();
                let at = p.y + ((row * p.stride + column) * 4) as u64;
                self.write(at, &sum.to_le_bytes())?;
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        self.not_recording("waiting")
    }

    fn blocks_to_fill(&self) -> usize {
        24
    }
}
