//! Which images were loaded by starts that were not heard of again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use super::SaveError;
use super::files;

pub(super) const NAME: &str = "unproven.json";
/// Two generations with a count each take less than 100 bytes.
const MAX_BYTES: u64 = 4096;

/// Generation -> starts with it that ended unproven, this one included.
#[derive(Debug, Default)]
pub(super) struct Loads(BTreeMap<u64, u32>);

impl Loads {
    /// One that cannot be read counts nothing: at worst three more starts fail.
    pub(super) fn read(dir: &Path) -> Self {
        let text = read(&dir.join(NAME)).unwrap_or_default();
        Self(serde_json::from_slice(&text).unwrap_or_default())
    }

    pub(super) fn of(&self, generation: u64) -> u32 {
        self.0.get(&generation).copied().unwrap_or(0)
    }

    /// One more start with it.
    pub(super) fn note(&mut self, dir: &Path, generation: u64) -> io::Result<()> {
        let count = self.0.entry(generation).or_default();
        *count = count.saturating_add(1);
        let text = serde_json::to_vec(&self.0)?;
        files::replace(&dir.join(NAME), MAX_BYTES, |out| out.write_all(&text))
            .map(|_| ())
            .map_err(io_error)
    }

    pub(super) fn forget(&mut self, dir: &Path) -> io::Result<()> {
        self.0.clear();
        match fs::remove_file(dir.join(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    // To open a pipe would wait for its other end.
    if fs::metadata(path)?.is_file() {
        File::open(path)?.take(MAX_BYTES).read_to_end(&mut text)?;
    }
    Ok(text)
}

fn io_error(error: SaveError) -> io::Error {
    match error {
        SaveError::Io { source, .. } => source,
        too_large @ SaveError::TooLarge { .. } => io::Error::other(too_large),
    }
}
