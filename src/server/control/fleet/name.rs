//! The name of a server in a store, which it keeps across restarts.

use std::io;
use std::path::Path;

use realign_core::files::{self, Limit};

const LIMIT: Limit = Limit::bytes(256);

/// Eight hex digits.
pub(super) fn random() -> String {
    format!("{:08x}", rand::random::<u32>())
}

/// The name in the file, which is made if there is none.
pub(super) fn read_or_make(path: &Path) -> io::Result<String> {
    if let Some(text) = files::read_text_if_there(path, LIMIT)? {
        return Ok(text.trim().to_owned());
    }
    let name = format!("realign-{}", random());
    std::fs::write(path, format!("{name}\n"))?;
    Ok(name)
}
