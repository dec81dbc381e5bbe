//! A copy of `examples/demo` to edit, on loopback addresses that no other test uses.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::{EU, US};

/// Whoever holds this port on 127.N.0.1 owns 127.N.0.0/16; the kernel gives it back, however a
/// test ends.
const CLAIM: u16 = 7999;

/// The copy.
#[derive(Debug)]
pub(crate) struct Manifests {
    root: PathBuf,
    us: u8,
    eu: u8,
    _claims: [TcpListener; 2],
}

impl Manifests {
    /// Copies the examples to `DIR/manifests`.
    pub(crate) fn copy(dir: &Path) -> anyhow::Result<Self> {
        let ((us, us_claim), (eu, eu_claim)) = (claim()?, claim()?);
        let root = dir.join("manifests");
        let manifests = Self { root, us, eu, _claims: [us_claim, eu_claim] };
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo");
        for region in [US, EU] {
            for cluster in ["alpha", "beta"] {
                manifests.copy_cluster(&examples, &format!("{region}/{cluster}"))?;
            }
        }
        Ok(manifests)
    }

    fn copy_cluster(&self, examples: &Path, cluster: &str) -> anyhow::Result<()> {
        let to = self.root.join(cluster);
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(examples.join(cluster)).context("the examples are there")? {
            let from = entry?;
            let text = fs::read_to_string(from.path())?;
            let text = text.replace("[127.1.", &format!("[127.{}.", self.us));
            let text = text.replace("[127.2.", &format!("[127.{}.", self.eu));
            fs::write(to.join(from.file_name()), text)?;
        }
        Ok(())
    }

    /// The directory that `--dir` takes.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// One cluster's directory, or a file of it: `europe-west4/alpha/catalog.yaml`.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// `us(1, 11)` is what the examples call 127.1.1.11.
    pub(crate) fn us(&self, cluster: u8, pod: u8) -> String {
        format!("127.{}.{cluster}.{pod}", self.us)
    }

    /// `eu(1, 31)` is what the examples call 127.2.1.31.
    pub(crate) fn eu(&self, cluster: u8, pod: u8) -> String {
        format!("127.{}.{cluster}.{pod}", self.eu)
    }

    pub(crate) fn read(&self, file: &str) -> anyhow::Result<String> {
        fs::read_to_string(self.path(file)).with_context(|| file.to_owned())
    }

    /// Writes a file in place.
    pub(crate) fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        fs::write(self.path(file), text).with_context(|| file.to_owned())
    }

    /// Replaces every `from` in a file; there must be one.
    pub(crate) fn edit(&self, file: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let text = self.read(file)?;
        ensure!(text.contains(from), "{file} does not hold {from:?}: {text}");
        self.write(file, &text.replace(from, to))
    }

    /// Takes the last document off a file; it must be of `kind`. Written aside and renamed, as
    /// most editors save.
    pub(crate) fn drop_last_document(&self, file: &str, kind: &str) -> anyhow::Result<()> {
        let text = self.read(file)?;
        let (rest, last) = text.rsplit_once("\n---\n").context("a file of several documents")?;
        ensure!(last.contains(&format!("kind: {kind}\n")), "{file} ends with {last}");
        let aside = self.path(&format!("{file}~"));
        fs::write(&aside, rest)?;
        fs::rename(aside, self.path(file)).with_context(|| file.to_owned())
    }
}

/// A second octet that no other test has, whichever process it runs in.
fn claim() -> anyhow::Result<(u8, TcpListener)> {
    // 127.0 is everybody's, 127.1 and 127.2 are those of the examples as they stand. Starting
    // from the process id spreads processes out; the claim is what keeps them apart.
    let start = std::process::id() % 250;
    for step in 0..250 {
        let octet = u8::try_from(4 + (start + step) % 250)?;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::new(127, octet, 0, 1), CLAIM)) {
            return Ok((octet, listener));
        }
    }
    bail!("all of 127.4 to 127.253 are taken")
}

/// An `EndpointSlice` endpoint as YAML, ready and in `zone`, for adding to a slice of the examples.
pub(crate) fn endpoint(address: &str, zone: &str) -> String {
    format!("  - addresses: [{address}]\n    conditions:\n      ready: true\n    zone: {zone}\n")
}

/// Service, `EndpointSlice` and `ServiceExport` of one pod.
pub(crate) fn service(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  ports: [{{name: http, port: 8080}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-1
  namespace: shop
  labels: {{kubernetes.io/service-name: {name}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints:
{}---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {{name: {name}, namespace: shop}}
",
        endpoint(address, "zone-a")
    )
}
