//! A copy of the example manifests, and the one edit that is made to it again and again.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};

/// The edited service: exported by one cluster only, so that every region answers with its
/// endpoints and nothing else.
pub(crate) const SERVICE: &str = "payments.shop.svc.clusterset.local";
/// What the copy says; the second of its two endpoints is replaced.
const STAYS: Ipv4Addr = Ipv4Addr::new(127, 201, 1, 41);
const REPLACED: &str = "127.201.1.42";
/// Where the examples' backends listen, and those of the copies: a demo that runs beside the
/// measurement would hold the addresses of the one that is measured.
const MOVED: [(&str, &str); 2] = [("127.1.", "127.201."), ("127.2.", "127.202.")];

/// The manifests of a demo in a directory of their own.
pub(crate) struct Manifests {
    root: PathBuf,
    file: PathBuf,
    text: String,
    stamps: u32,
}

impl Manifests {
    /// Copies the examples below `dir`.
    pub(crate) fn copy_to(dir: &Path) -> anyhow::Result<Self> {
        let root = dir.join("manifests");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo"), &root)?;
        let file = root.join("us-west1/alpha/payments.yaml");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        ensure!(text.contains(REPLACED), "{} has no {REPLACED}", file.display());
        Ok(Self { root, file, text, stamps: 0 })
    }

    /// For `--dir`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Replaces one endpoint by an address that never was, in one rename. Returns when, which is
    /// just before, and what the service's addresses are from then on.
    pub(crate) fn edit(&mut self) -> anyhow::Result<(Instant, BTreeSet<Ipv4Addr>)> {
        self.stamps += 1;
        let stamp = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 100, 0, 0)) + self.stamps);
        // Beside the tree, so that the watcher is told of the rename alone.
        let new = self.root.with_extension("new");
        fs::write(&new, self.text.replace(REPLACED, &stamp.to_string()))?;
        let started = Instant::now();
        fs::rename(&new, &self.file)?;
        Ok((started, BTreeSet::from([STAYS, stamp])))
    }
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            let text = fs::read_to_string(entry.path())?;
            let moved = MOVED.iter().fold(text, |text, (from, to)| text.replace(from, to));
            fs::write(&to, moved)?;
        }
    }
    Ok(())
}
