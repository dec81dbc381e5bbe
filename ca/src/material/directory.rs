//! A process's [`Material`] as files: `key.pem`, `cert.pem`, `bundles/*.pem`, `roots/*.pem`.
//!
//! Promises: a renewal killed at any point leaves a key and a certificate that fit; a bundle file
//! that is broken or refused is reported and costs no other, and if it was good before, what it
//! held stays until it is good again. A bundle file that is removed withdraws its trust: that is
//! how an operator cuts a region off. What is read again changes neither who the process is nor
//! its certificate to one that ends sooner: a renewal that could not be written stays in use.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tombolo_federation::names::MeshDomain;
use tracing::{info, warn};

use super::{Credential, Holder, IssueError, Material, MaterialError, Replaced};
use crate::bundle::{Bundle, BundleError, Bundles};
use crate::clock::Clock;
use crate::files::{self, FileError};
use crate::region::{Grant, RegionCa};
use crate::root::RootCertificate;
use crate::tls;
use crate::x509::{self, CertificateError};

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "cert.pem";
const BUNDLES: &str = "bundles";
const ROOTS: &str = "roots";

/// A bundle file that was not accepted.
#[derive(Debug)]
pub struct RefusedBundle {
    /// The file.
    pub file: PathBuf,
    /// Why.
    pub why: RefusedFile,
    /// Whether what the file held before is still in use.
    pub kept: bool,
}

/// Why a bundle file was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RefusedFile {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no bundle, or one that is not accepted.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

impl fmt::Display for RefusedBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = if self.kept { " (what it held before stays in use)" } else { "" };
        write!(f, "{} was not accepted: {}{kept}", self.file.display(), tls::causes(&self.why))
    }
}

/// What [`Directory::load`] found.
#[derive(Debug)]
pub struct Loaded {
    /// To be held.
    pub material: Material,
    /// To be reported.
    pub refused: Vec<RefusedBundle>,
}

/// The files, and what they looked like when last read.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    mesh: MeshDomain,
    seen: Vec<Stamp>,
    good: BTreeMap<PathBuf, Bundle>,
}

/// All files, read at one time and not in use yet.
struct Read {
    credential: Credential,
    bundles: Bundles,
    refused: Vec<RefusedBundle>,
    seen: Vec<Stamp>,
    good: BTreeMap<PathBuf, Bundle>,
}

#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    file: PathBuf,
    modified: Option<SystemTime>,
    size: u64,
}

impl Directory {
    /// The directory at `path`, of a process of `mesh`. Reads nothing yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, mesh: MeshDomain) -> Self {
        Self { path: path.into(), mesh, seen: Vec::new(), good: BTreeMap::new() }
    }

    /// Reads everything.
    ///
    /// # Errors
    /// Names the file that is missing or wrong. Bundles that are refused are no error, unless our
    /// own certificate is left without one that proves it.
    pub fn load(&mut self, now: Timestamp) -> Result<Loaded, MaterialError> {
        let read = self.read(now)?;
        match Material::new(read.credential, read.bundles, now) {
            Ok(material) => {
                (self.seen, self.good) = (read.seen, read.good);
                Ok(Loaded { material, refused: read.refused })
            }
            Err(error) => Err(because(error, read.refused)),
        }
    }

    fn read(&self, now: Timestamp) -> Result<Read, MaterialError> {
        // Before reading, so that a change while we read is seen as one the next time.
        let seen = self.stamps()?;
        let credential = self.credential()?;
        let mut bundles =
            Bundles::pinned(self.mesh.clone(), self.roots()?).map_err(MaterialError::Roots)?;
        let (mut good, mut refused) = (BTreeMap::new(), Vec::new());
        for file in files::pem_files(&self.path.join(BUNDLES))? {
            match accept(&mut bundles, &file, now) {
                Ok(bundle) => _ = good.insert(file, bundle),
                Err(why) => {
                    let before = self.good.get(&file).cloned();
                    let before = before.filter(|b| bundles.accept(b.clone(), now).is_ok());
                    refused.push(RefusedBundle { file: file.clone(), why, kept: before.is_some() });
                    good.extend(before.map(|bundle| (file, bundle)));
                }
            }
        }
        Ok(Read { credential, bundles, refused, seen, good })
    }

    /// Reads everything again if a file has changed, and lets `holder` hold it, as
    /// [`Holder::replace`]. `None` if not.
    ///
    /// # Errors
    /// As [`Directory::load`], and when the certificate is another's; `holder` then goes on with
    /// what it has, and the files are read again at the next call.
    pub fn reload_if_changed(
        &mut self,
        holder: &Holder,
        now: Timestamp,
    ) -> Result<Option<Vec<RefusedBundle>>, MaterialError> {
        if self.stamps()? == self.seen {
            return Ok(None);
        }
        let read = self.read(now)?;
        let in_files = read.credential.expires();
        match holder.replace(read.credential, read.bundles, now) {
            Ok(Replaced::Everything) => {}
            Ok(Replaced::Bundles) => {
                let expires = holder.current().credential().expires();
                let dir = self.path.display();
                warn!(%dir, %in_files, %expires, "the certificate in use ends later and is kept");
            }
            Err(error) => return Err(because(error, read.refused)),
        }
        (self.seen, self.good) = (read.seen, read.good);
        Ok(Some(read.refused))
    }

    /// Looks for changes `every` so often until `stop`. Polling rather than inotify: a mounted
    /// Secret changes by a symlink far away.
    pub async fn watch(
        mut self,
        holder: &Holder,
        clock: Clock,
        every: Duration,
        stop: CancellationToken,
    ) {
        let mut complaint = None;
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            match self.reload_if_changed(holder, clock.now()) {
                Ok(None) => {}
                Ok(Some(refused)) => {
                    info!(dir = %self.path.display(), "certificates and bundles read again");
                    report(&refused);
                    complaint = None;
                }
                // A broken file is broken at each look: say so once.
                Err(error) => {
                    let error = tls::causes(&error);
                    if complaint.as_ref() != Some(&error) {
                        warn!(dir = %self.path.display(), %error, "keeping the certificates held");
                    }
                    complaint = Some(error);
                }
            }
        }
    }

    fn credential(&self) -> Result<Credential, MaterialError> {
        let path = self.path.join(CERTIFICATE);
        let chain = x509::certificates(&files::read(&path)?).map_err(contents(&path))?;
        let path = self.path.join(KEY);
        let keys = x509::keys(&files::read_secret(&path)?).map_err(contents(&path))?;
        // Two while a renewal is being written; see `save`.
        let found = keys.len();
        let mut last = None;
        for key in keys {
            match Credential::new(chain.clone(), key, &self.mesh) {
                Ok(credential) => return Ok(credential),
                Err(error) => last = Some(error),
            }
        }
        let expected = "a private key";
        Err(last.unwrap_or_else(|| contents(&path)(CertificateError::Count { expected, found })))
    }

    fn roots(&self) -> Result<Vec<RootCertificate>, MaterialError> {
        let mut roots = Vec::new();
        for path in files::pem_files(&self.path.join(ROOTS))? {
            roots.push(RootCertificate::from_pem(&files::read(&path)?).map_err(contents(&path))?);
        }
        Ok(roots)
    }

    fn stamps(&self) -> Result<Vec<Stamp>, FileError> {
        let mut found = vec![self.path.join(KEY), self.path.join(CERTIFICATE)];
        found.extend(files::pem_files(&self.path.join(BUNDLES))?);
        found.extend(files::pem_files(&self.path.join(ROOTS))?);
        Ok(found.into_iter().map(stamp).collect())
    }
}

/// Bundles that were refused may be why ours does not verify.
fn because(error: MaterialError, refused: Vec<RefusedBundle>) -> MaterialError {
    match error {
        MaterialError::Unproven { source, .. } => MaterialError::Unproven { source, refused },
        other => other,
    }
}

fn stamp(file: PathBuf) -> Stamp {
    // A file that is not there is a state too.
    let metadata = file.metadata().ok();
    let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
    Stamp { file, modified, size: metadata.map_or(0, |metadata| metadata.len()) }
}

fn accept(bundles: &mut Bundles, file: &Path, now: Timestamp) -> Result<Bundle, RefusedFile> {
    let bundle = Bundle::from_pem(&files::read(file)?)?;
    bundles.accept(bundle.clone(), now)?;
    Ok(bundle)
}

/// Logs what was refused.
pub fn report(refused: &[RefusedBundle]) {
    for bundle in refused {
        warn!(
            file = %bundle.file.display(),
            error = %tls::causes(&bundle.why),
            kept = bundle.kept,
            "bundle not accepted"
        );
    }
}

fn contents(path: &Path) -> impl FnOnce(CertificateError) -> MaterialError {
    move |source| MaterialError::Contents { file: path.display().to_string(), source }
}

/// Writes key and certificate. Two files cannot be replaced at once, so for a moment the key file
/// holds both keys: at each point in time there is one that fits the certificate.
///
/// # Errors
/// When a file cannot be written.
pub fn save(dir: &Path, credential: &Credential) -> Result<(), FileError> {
    let path = dir.join(KEY);
    let new = x509::key_to_pem(&credential.key);
    match files::read_secret(&path) {
        Ok(old) => {
            // What is no key any more need not be kept.
            let old = x509::keys(&old).unwrap_or_default();
            let both: String =
                [new.clone()].into_iter().chain(old.iter().map(x509::key_to_pem)).collect();
            files::write_secret(&path, &both)?;
        }
        Err(error) if error.is_not_found() => files::write_secret(&path, &new)?,
        Err(error) => return Err(error),
    }
    files::write(&dir.join(CERTIFICATE), &x509::to_pem(&credential.certified.cert))?;
    files::write_secret(&path, &new)
}

/// Makes a key, has `ca` certify it, and writes everything that a process with `grant`'s identity
/// needs into `dir`, over what may be there.
///
/// # Errors
/// As [`RegionCa::issue`], or when a file cannot be written.
pub fn issue_files<'a>(
    dir: &Path,
    ca: &RegionCa,
    grant: &Grant,
    bundles: impl IntoIterator<Item = &'a Bundle>,
    roots: &[RootCertificate],
    now: Timestamp,
) -> Result<(), IssueError> {
    let credential = Credential::issue(ca, grant, now)?;
    let file = |error| IssueError::Material(MaterialError::File(error));
    files::create_private_dir(dir).map_err(file)?;
    for sub in [BUNDLES, ROOTS] {
        files::create_private_dir(&dir.join(sub)).map_err(file)?;
    }
    for (index, root) in roots.iter().enumerate() {
        let path = dir.join(ROOTS).join(format!("root-{}.pem", index + 1));
        files::write(&path, &root.to_pem()).map_err(file)?;
    }
    for bundle in bundles {
        save_bundle(dir, bundle).map_err(file)?;
    }
    save(dir, &credential).map_err(file)
}

/// Writes one bundle to where [`Directory`] looks for it.
///
/// # Errors
/// When the file cannot be written.
pub fn save_bundle(dir: &Path, bundle: &Bundle) -> Result<(), FileError> {
    let name = format!("{}.{}.pem", bundle.trust_domain(), bundle.generation());
    files::write(&dir.join(BUNDLES).join(name), &bundle.to_pem())
}
