//! Holds the files of the repository to what they promise each other: the lock file to the floors
//! below which a dependency has a known hole, the documents to the workspace, CI to the README.

mod documents;
mod lockfile;

use std::fs;
use std::path::Path;

use anyhow::Context as _;

/// A file of the repository as text.
fn read(path: &str) -> anyhow::Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(file).with_context(|| format!("{path} cannot be read"))
}
