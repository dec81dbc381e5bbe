//! A copy of the example manifests, and the one edit that is made to it again and again.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};

/// The edited service: exported by one cluster only, so that every region answers with its
/// endpoints and nothing else.
pub(crate) const SERVICE: &str = "payments.shop.svc.clusterset.local";
/// Where the example's backends listen in the region that is edited, and in the other.
const EXAMPLES: [&str; 2] = ["127.1.", "127.2."];
/// Whoever holds this port on 127.N.0.1 owns 127.N.0.0/16, as in the end-to-end tests: a mesh that
/// runs beside the measurement must not answer for a backend that was stopped.
const CLAIM: u16 = 7999;

/// The manifests of a demo in a directory of their own.
pub(crate) struct Manifests {
    root: PathBuf,
    file: PathBuf,
    text: String,
    nets: [u8; 2],
    _claims: [TcpListener; 2],
    stamps: u8,
}

impl Manifests {
    /// Copies the examples below `dir`, to addresses that no other mesh uses.
    pub(crate) fn copy_to(dir: &Path) -> anyhow::Result<Self> {
        let (here, there) = (claim()?, claim()?);
        let (nets, claims) = ([here.0, there.0], [here.1, there.1]);
        let root = dir.join("manifests");
        let moved = |text: String| {
            let moves = EXAMPLES.iter().zip(nets);
            moves.fold(text, |text, (from, net)| {
                text.replace(&format!("[{from}"), &format!("[127.{net}."))
            })
        };
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo"), &root, &moved)?;
        let file = root.join("us-west1/alpha/payments.yaml");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let manifests = Self { root, file, text, nets, _claims: claims, stamps: 0 };
        let replaced = manifests.replaced().to_string();
        let has_it = manifests.text.contains(&replaced);
        ensure!(has_it, "{} has no {replaced}", manifests.file.display());
        Ok(manifests)
    }

    /// A backend of `checkout` in the first cluster of the edited region.
    pub(crate) fn backend(&self) -> SocketAddr {
        (Ipv4Addr::new(127, self.nets[0], 1, 11), 8080).into()
    }

    /// The same in the other region.
    pub(crate) fn far_backend(&self) -> SocketAddr {
        (Ipv4Addr::new(127, self.nets[1], 1, 11), 8080).into()
    }

    /// The edited service's second endpoint.
    fn replaced(&self) -> Ipv4Addr {
        Ipv4Addr::new(127, self.nets[0], 1, 42)
    }

    /// For `--dir`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Replaces one endpoint by an address that never was, in one rename. Returns when, which is
    /// just before, and what the service's addresses are from then on.
    pub(crate) fn edit(&mut self) -> anyhow::Result<(Instant, BTreeSet<Ipv4Addr>)> {
        self.stamps = self.stamps.checked_add(1).context("255 edits are enough")?;
        let net = self.nets[0];
        let (stays, stamp) =
            (Ipv4Addr::new(127, net, 1, 41), Ipv4Addr::new(127, net, 100, self.stamps));
        // Beside the tree, so that the watcher is told of the rename alone.
        let new = self.root.with_extension("new");
        fs::write(&new, self.text.replace(&self.replaced().to_string(), &stamp.to_string()))?;
        let started = Instant::now();
        fs::rename(&new, &self.file)?;
        Ok((started, BTreeSet::from([stays, stamp])))
    }
}

fn claim() -> anyhow::Result<(u8, TcpListener)> {
    let claims =
        (100..250).map(|net| (net, TcpListener::bind((Ipv4Addr::new(127, net, 0, 1), CLAIM))));
    let mut free = claims.filter_map(|(net, claim)| Some((net, claim.ok()?)));
    free.next().context("no 127.N.0.0/16 is free")
}

fn copy(from: &Path, to: &Path, moved: &impl Fn(String) -> String) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to, moved)?;
        } else {
            fs::write(&to, moved(fs::read_to_string(entry.path())?))?;
        }
    }
    Ok(())
}
