//! Getting the next certificate before the current one ends.
//!
//! Promises: each renewal has a new key, which is made here and never sent; the answer is used
//! only if it is for us, over that key, and proven by the bundles held; a failed renewal keeps
//! what is valid and is tried again, sooner or later depending on how often it failed; one that
//! could not be written is in use all the same, and writing is tried again at each check.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tracing::{error, info, warn};

use crate::clock::Clock;
use crate::files::FileError;
use crate::material::{Credential, Holder, IssueError, Material, MaterialError, directory};
use crate::proto::certificate_authority_client::CertificateAuthorityClient;
use crate::proto::sign_request::Proof;
use crate::proto::{CurrentCertificate, SignRequest};
use crate::region::{Grant, LEAF_LIFETIME, RegionCa};
use crate::tls::{self, Connector, causes};

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// No key or request could be made.
    #[error("no key and certificate request can be made")]
    Request(#[source] rcgen::Error),
    /// The CA is not there.
    #[error("cannot reach the CA")]
    Connect(#[source] tonic::transport::Error),
    /// The CA did not answer in time.
    #[error("the CA did not answer within {0:?}")]
    TimedOut(Duration),
    /// Who answered is the one expected, and has no CA.
    #[error("there is no CA where it was asked for")]
    NoCa,
    /// The CA refused.
    #[error("the CA refused")]
    Refused(#[source] Box<Status>),
    /// The CA in this process refused.
    #[error("the CA refused")]
    Local(#[source] IssueError),
    /// The CA answered with something that we cannot use.
    #[error("the CA's answer is not usable")]
    Answer(#[source] MaterialError),
    /// In use, but lost at the next start.
    #[error("the new certificate is in use, but could not be written")]
    NotSaved(#[source] FileError),
}

/// The whole of one renewal: connecting, asking, the answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Wall time is looked at this often, as timers stand still while a machine sleeps.
const CHECK: Duration = Duration::from_secs(30);
const SHORTEST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_mins(5);

/// Asks the CA at the other end of `channel` for a certificate over a new key. The channel's own
/// certificate is the proof, so it has to be one that was made with `current`.
///
/// # Errors
/// Says what failed; nothing has changed then.
pub async fn renew(
    channel: Channel,
    current: &Material,
    now: Timestamp,
) -> Result<Credential, RenewError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(RenewError::Request)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key).map_err(RenewError::Request)?;
    let request = SignRequest {
        csr: csr.der().to_vec().into(),
        proof: Some(Proof::CurrentCertificate(CurrentCertificate {})),
    };
    let mut client = CertificateAuthorityClient::new(channel).max_decoding_message_size(64 * 1024);
    let answer = client.sign(request).await.map_err(refused)?;
    let chain = answer.into_inner().chain;
    let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let credential =
        Credential::new(chain, key.into(), current.bundles().mesh()).map_err(RenewError::Answer)?;
    if !credential.valid_at(now) {
        let source = crate::CertificateError::Dates;
        return Err(RenewError::Answer(MaterialError::Certificate(source)));
    }
    Ok(credential)
}

/// A server without the service says so.
fn refused(status: Status) -> RenewError {
    match status.code() {
        Code::Unimplemented => RenewError::NoCa,
        _ => RenewError::Refused(Box::new(status)),
    }
}

/// Who issues to this process.
#[derive(Debug, Clone)]
pub enum Issuer {
    /// The region's CA over gRPC. A new connection is made for each renewal, as one that is open
    /// proves the certificate it was opened with.
    Remote {
        /// Where.
        endpoint: Box<Endpoint>,
        /// Who is expected there.
        connector: Connector,
    },
    /// The CA is in this process.
    Local(Arc<RegionCa>),
}

/// Keeps a process's certificate fresh.
#[derive(Debug)]
pub struct Renewer {
    holder: Arc<Holder>,
    issuer: Issuer,
    clock: Clock,
    directory: Option<PathBuf>,
    /// Why the certificate in use is not in `directory`, if it is not.
    unsaved: Mutex<Option<String>>,
    /// So many attempts in a row were answered by who has no CA.
    without_ca: AtomicUsize,
    nobody: watch::Sender<bool>,
    check: Duration,
}

impl Issuer {
    /// Asked so often in a row, everybody was.
    fn addresses(&self) -> usize {
        match self {
            Self::Remote { connector, .. } => connector.addresses(),
            Self::Local(_) => 1,
        }
    }
}

impl Renewer {
    /// Renews what `holder` holds at `issuer`.
    #[must_use]
    pub fn new(holder: Arc<Holder>, issuer: Issuer, clock: Clock) -> Self {
        Self {
            holder,
            issuer,
            clock,
            directory: None,
            unsaved: Mutex::new(None),
            without_ca: AtomicUsize::new(0),
            nobody: watch::Sender::new(false),
            check: CHECK,
        }
    }

    /// Whether everybody who is asked for renewals has answered, and has no CA. Not known before a
    /// renewal was due.
    #[must_use]
    pub fn nobody(&self) -> watch::Receiver<bool> {
        self.nobody.subscribe()
    }

    /// Also writes each new key and certificate to `directory`, for the next start.
    #[must_use]
    pub fn saving_to(self, directory: PathBuf) -> Self {
        Self { directory: Some(directory), ..self }
    }

    /// Looks at the wall time every `check` instead of every 30 s, and retries no sooner.
    #[must_use]
    pub fn checking_every(self, check: Duration) -> Self {
        Self { check, ..self }
    }

    /// Renews at half life, for ever; ends with `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut failures: u32 = 0;
        loop {
            let wait = if failures == 0 { self.check } else { retry_after(failures, self.check) };
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
            self.save_again();
            let due = self.holder.current().credential().renewal_due();
            if self.clock.now() < due {
                failures = 0;
                continue;
            }
            // May be dropped: a renewal that is not finished has changed nothing.
            match stop.run_until_cancelled(self.renew_now()).await {
                None => return,
                Some(outcome) => failures = self.judge(outcome.as_ref(), failures),
            }
        }
    }

    /// Says it once: the address of a CA may be among those of whom only others have answered.
    fn note_no_ca(&self, outcome: Result<&(), &RenewError>) {
        let no_ca = matches!(outcome, Err(RenewError::NoCa));
        let before = if no_ca { self.without_ca.load(Ordering::Relaxed) } else { 0 };
        let in_a_row = before + usize::from(no_ca);
        self.without_ca.store(in_a_row, Ordering::Relaxed);
        let nobody = in_a_row >= self.issuer.addresses();
        if self.nobody.send_replace(nobody) != nobody && nobody {
            error!("nobody renews this certificate: none of the addresses asked has the CA");
        }
    }

    fn judge(&self, outcome: Result<&(), &RenewError>, failures: u32) -> u32 {
        self.note_no_ca(outcome);
        let current = self.holder.current();
        let (id, expires) = (&current.credential().subject().id, current.credential().expires());
        match outcome {
            Ok(()) => {
                info!(%id, serial = current.credential().subject().serial, %expires, "renewed");
                0
            }
            // Nothing to renew again: what could not be written is tried at each check.
            Err(error @ RenewError::NotSaved(_)) => {
                warn!(%id, %expires, error = %causes(error), "renewed, but not written");
                0
            }
            Err(error) if current.credential().valid_at(self.clock.now()) => {
                let error = causes(error);
                warn!(%id, %expires, %error, "renewal failed, keeping the certificate");
                failures.saturating_add(1)
            }
            Err(error) => {
                let error = causes(error);
                error!(%id, %expires, %error, "renewal failed and the certificate is not valid");
                failures.saturating_add(1)
            }
        }
    }

    /// Renews now, whether it is due or not.
    ///
    /// # Errors
    /// Says what failed. Except for [`RenewError::NotSaved`] the old certificate stays in use.
    pub async fn renew_now(&self) -> Result<(), RenewError> {
        let current = self.holder.current();
        let credential = match &self.issuer {
            Issuer::Remote { endpoint, connector } => {
                let ask = self.ask(endpoint, connector.clone(), &current);
                match tokio::time::timeout(TIMEOUT, ask).await {
                    Ok(answer) => answer?,
                    Err(_) => return Err(RenewError::TimedOut(TIMEOUT)),
                }
            }
            Issuer::Local(ca) => self.issue(ca, &current)?,
        };
        self.holder.renew(credential, self.clock.now()).map_err(RenewError::Answer)?;
        self.save().map_err(RenewError::NotSaved)
    }

    fn save(&self) -> Result<(), FileError> {
        let Some(dir) = &self.directory else { return Ok(()) };
        let saved = directory::save(dir, self.holder.current().credential());
        *self.unsaved() = saved.as_ref().err().map(|error| causes(error));
        saved
    }

    /// Says only what is new: a full disk is full at each check.
    fn save_again(&self) {
        let Some(before) = self.unsaved().clone() else { return };
        let current = self.holder.current();
        let (id, expires) = (&current.credential().subject().id, current.credential().expires());
        match self.save() {
            Ok(()) => info!(%id, %expires, "the renewed certificate is written now"),
            Err(error) if causes(&error) == before => {}
            Err(error) => warn!(%id, %expires, error = %causes(&error), "still not written"),
        }
    }

    fn unsaved(&self) -> MutexGuard<'_, Option<String>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(
        &self,
        endpoint: &Endpoint,
        connector: Connector,
        current: &Material,
    ) -> Result<Credential, RenewError> {
        let channel =
            endpoint.connect_with_connector(connector).await.map_err(RenewError::Connect)?;
        renew(channel, current, self.clock.now()).await
    }

    fn issue(&self, ca: &RegionCa, current: &Material) -> Result<Credential, RenewError> {
        let subject = current.credential().subject();
        let grant = Grant {
            identity: subject.identity.clone(),
            origin: subject.origin.clone(),
            lifetime: LEAF_LIFETIME,
        };
        Credential::issue(ca, &grant, self.clock.now()).map_err(RenewError::Local)
    }
}

/// Doubles with each failure, and half of it is chance: those who lost the CA together shall not
/// come back together.
fn retry_after(failures: u32, at_least: Duration) -> Duration {
    let doubled = SHORTEST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(10));
    let longest = doubled.min(LONGEST_RETRY).min(at_least.saturating_mul(10));
    let mut chance = [0];
    // Without randomness everybody waits as long as possible.
    if tls::provider().secure_random.fill(&mut chance).is_err() {
        chance = [u8::MAX];
    }
    longest / 2 + longest / 2 * u32::from(chance[0]) / 255
}

#[cfg(test)]
#[path = "renew_tests.rs"]
mod tests;
