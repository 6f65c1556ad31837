//! Finished cells on disk, one file each: a run that is stopped loses only its current cell.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::CliError;
use realign_lab::evaluation::{Cell, Variant};

/// The cells of an output directory.
pub(super) struct CellStore {
    dir: PathBuf,
}

impl CellStore {
    /// Opens or creates `out`; without `resume` it must hold no cell.
    pub(crate) fn open(out: &Path, resume: bool) -> Result<Self, CliError> {
        let dir = out.join("cells");
        fs::create_dir_all(&dir)?;
        let store = Self { dir };
        if !resume && fs::read_dir(&store.dir)?.next().is_some() {
            return Err(CliError::Eval(format!(
                "{} holds cells of an earlier run; go on with --resume or choose another --out",
                out.display()
            )));
        }
        Ok(store)
    }

    fn path(&self, variant: Variant, seed: u64) -> PathBuf {
        self.dir.join(format!("{}-{seed}.json", variant.name()))
    }

    /// A finished cell; `None` for one that failed or is incomplete, which has to run again.
    ///
    /// # Errors
    /// If the cell was computed from other inputs: its figures cannot be compared with these.
    pub(crate) fn get(
        &self,
        variant: Variant,
        seed: u64,
        fingerprint: &str,
    ) -> Result<Option<Cell>, CliError> {
        let path = self.path(variant, seed);
        let Ok(text) = fs::read(&path) else {
            return Ok(None);
        };
        let cell: Cell = match serde_json::from_slice(&text) {
            Ok(cell) => cell,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "running an unreadable cell again");
                return Ok(None);
            }
        };
        if cell.fingerprint != fingerprint {
            return Err(CliError::Eval(format!(
                "{} was computed from another model, data, recipe or other options; choose another \
                 --out",
                path.display()
            )));
        }
        Ok(Some(cell).filter(|cell| cell.failure.is_none()))
    }

    /// Stores a cell atomically.
    pub(crate) fn put(&self, variant: Variant, cell: &Cell) -> Result<(), CliError> {
        let path = self.path(variant, cell.seed);
        write(&path, &serde_json::to_vec_pretty(cell)?)
    }
}

/// Writes a file atomically: to a temporary one, which is then renamed.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    Ok(())
}
