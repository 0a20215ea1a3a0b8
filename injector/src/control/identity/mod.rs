//! Certifies keys: for whom a join token, or the certificate that is about to end, proves.

mod ageing;
mod attempts;
mod authority;
mod bucket;
pub mod csr;
mod keeper;
mod renewals;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use portunus_logbook::masked;
use portunus_proto::mesh::v1::{CertifyRequest, CertifyResponse};
use portunus_proto::{CONTROL_ACCOUNT, SpiffeId};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Code;

pub use attempts::{Attempts, Guess};
pub use authority::{Authority, Error as AuthorityError, Issued};
pub use keeper::{Error as KeeperError, Files, Kept, Origin, keep};
pub use renewals::Renewals;

use crate::cluster::{JoinToken, Name, NoToken, Snapshot, States, TokenHash, Workload};

/// Certifies keys.
pub struct Certifier {
    /// What is true of the cluster.
    pub states: States,
    /// Who signs.
    pub authorities: watch::Receiver<Arc<Authority>>,
    /// Control's own namespace: nobody else is certified as control.
    pub namespace: String,
    /// How long a certificate lasts, if the issuer lasts as long. 24 h by default.
    pub lifetime: Duration,
    /// Who tried.
    pub attempts: Attempts,
    /// Who renewed.
    pub renewals: Renewals,
}

/// The first bytes of a hash, of a token or a certificate: what is remembered is no use to whoever reads it.
pub type Mark = [u8; 8];

/// Who asks, as the connection tells it.
#[derive(Clone, Debug)]
pub struct Asker {
    /// From where.
    pub address: IpAddr,
    /// Who it proved to be in the handshake, if it did.
    pub proven: Option<Proven>,
}

/// What a client certificate proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Who holds it.
    pub id: SpiffeId,
    /// Which it is.
    pub certificate: Mark,
}

impl Proven {
    /// By a certificate in DER that was judged.
    pub fn by(id: SpiffeId, certificate: &[u8]) -> Proven {
        let certificate = mark(certificate);
        Proven { id, certificate }
    }
}

/// What was certified, for whom.
#[derive(Debug)]
pub struct Certified {
    /// The answer.
    pub response: CertifyResponse,
    /// Whose identity it is.
    pub id: SpiffeId,
    /// When the certificate ends.
    pub not_after: SystemTime,
    /// Whether a join token proved it.
    pub by_token: bool,
}

/// Why a key is not certified. No sentence has a secret in it.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no state yet.
    #[error("control has not read any manifests yet; try again")]
    NotReady,
    /// Neither a token nor a certificate.
    #[error("neither a join token nor a client certificate proves who asks")]
    NoProof,
    /// What should be a token is none.
    #[error(transparent)]
    BadToken(#[from] NoToken),
    /// Nobody has this token.
    #[error("the join token is that of no Workload: is its joinTokenSha256 written, and taken by control?")]
    UnknownToken(Guess),
    /// Too many have failed from there.
    #[error("too many attempts from this address; wait some seconds")]
    TooManyAttempts,
    /// It was renewed, or one that it came from, by too many others.
    #[error("too many renewals by this certificate and by those that it came from; wait some seconds")]
    TooManyRenewals,
    /// The request is not one that is certified.
    #[error(transparent)]
    Request(#[from] csr::Error),
    /// A renewal must name its workload.
    #[error("a renewal names its workload as namespace/name")]
    NoWorkload,
    /// It is not there any more.
    #[error("Workload {0} does not exist, or not any more")]
    Gone(Name),
    /// It has no sidecar any more.
    #[error("Workload {0} has no joinTokenSha256, so it has no sidecar")]
    NoSidecar(Name),
    /// The certificate is that of another.
    #[error("the client certificate is that of {proven}, and Workload {workload} is {expected}")]
    OtherIdentity {
        /// Whom it names.
        workload: Name,
        /// Who that is now.
        expected: SpiffeId,
        /// Who asks.
        proven: SpiffeId,
    },
    /// It has the names of control, whom all sidecars believe.
    #[error("Workload {0} has control's own SPIFFE id: give it another serviceAccount or namespace")]
    IsControl(Name),
    /// The workload's names make no id.
    #[error("Workload {0} has no SPIFFE id: {1}")]
    NoIdentity(Name, portunus_proto::Invalid),
    /// The authority does not sign.
    #[error("{0}")]
    Authority(#[from] AuthorityError),
}

impl Certifier {
    /// Certifies the public key of a request for the workload that the asker proves to be.
    ///
    /// # Errors
    /// With the reason, which is also logged and counted by the caller.
    pub fn certify(&self, asker: &Asker, request: &CertifyRequest, now: SystemTime) -> Result<Certified, Refusal> {
        let snapshot = self.states.borrow().clone().ok_or(Refusal::NotReady)?;
        let authority = self.authorities.borrow().clone();
        let by_token = !request.join_token.is_empty();
        let (name, workload) = match (&asker.proven, by_token) {
            (_, true) => self.joins(asker.address, &request.join_token, &snapshot)?,
            (Some(proven), false) => {
                let found = renews(&proven.id, &request.workload, &snapshot, &authority)?;
                // Before the request is looked at: to verify its signature is work, too.
                if !self.renewals.may(proven.certificate, Instant::now()) {
                    return Err(Refusal::TooManyRenewals);
                }
                found
            }
            (None, false) => return Err(Refusal::NoProof),
        };
        let key = csr::public_key(&request.csr)?;
        let id = identity(&authority, name, workload)?;
        if id.service_account() == Some((self.namespace.as_str(), CONTROL_ACCOUNT)) {
            return Err(Refusal::IsControl(name.clone()));
        }
        let issued = authority.certify(&key, &id, self.lifetime, now)?;
        if let (Some(proven), false, Some(leaf)) = (&asker.proven, by_token, issued.chain.first()) {
            self.renewals.renewed(proven.certificate, mark(leaf), Instant::now());
        }
        Ok(Certified {
            response: CertifyResponse {
                chain: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
                bundle: Some(authority.bundle()),
                workload: name.to_string(),
            },
            id,
            not_after: issued.not_after,
            by_token,
        })
    }

    fn joins<'s>(
        &self,
        address: IpAddr,
        token: &str,
        snapshot: &'s Snapshot,
    ) -> Result<(&'s Name, &'s Workload), Refusal> {
        let now = Instant::now();
        if !self.attempts.may(address, now) {
            return Err(Refusal::TooManyAttempts);
        }
        let token = JoinToken::parse(token).inspect_err(|_| {
            self.attempts.failed(address, None, now);
        })?;
        let hash = token.hash();
        match holder(&hash, snapshot) {
            Some(found) => {
                self.attempts.succeeded(address, now);
                Ok(found)
            }
            None => {
                let mark = hash.0.first_chunk().copied();
                Err(Refusal::UnknownToken(self.attempts.failed(address, mark, now)))
            }
        }
    }

    /// The same as [`Certifier::certify`]; but a token that was refused before is kept waiting for its Workload: most often
    /// that is just being written. So its sidecar is certified at once, and need not ask again and again. Nobody waits once
    /// `leave` is cancelled.
    ///
    /// # Errors
    /// As those of [`Certifier::certify`].
    pub async fn certify_when_known(
        &self,
        asker: &Asker,
        request: &CertifyRequest,
        leave: &CancellationToken,
    ) -> Result<Certified, Refusal> {
        let refusal = match self.certify(asker, request, SystemTime::now()) {
            Err(refusal @ Refusal::UnknownToken(Guess::Again)) => refusal,
            other => return other,
        };
        let Ok(token) = JoinToken::parse(&request.join_token) else {
            return Err(refusal);
        };
        let Some(_place) = self.attempts.wait(asker.address) else {
            return Err(refusal);
        };
        let hash = token.hash();
        let is_known =
            |state: &Option<Arc<Snapshot>>| state.as_ref().is_some_and(|state| holder(&hash, state).is_some());
        let mut states = self.states.clone();
        let known = async { states.wait_for(is_known).await.is_ok() };
        let waited = tokio::time::timeout(WAIT_FOR_WORKLOAD, leave.run_until_cancelled(known)).await;
        if waited != Ok(Some(true)) {
            return Err(refusal);
        }
        self.certify(asker, request, SystemTime::now())
    }
}

/// How long a token that is not known yet waits for its Workload. Sidecars wait for 10 s for an answer.
const WAIT_FOR_WORKLOAD: Duration = Duration::from_secs(8);

/// The workload whose token has this hash. Every hash is compared, each in constant time.
fn holder<'s>(hash: &TokenHash, snapshot: &'s Snapshot) -> Option<(&'s Name, &'s Workload)> {
    let (mut found, mut place) = (Choice::from(0), 0u64);
    for (index, workload) in snapshot.workloads.values().enumerate() {
        let Some(expected) = &workload.join_token else { continue };
        let same = expected.0.ct_eq(&hash.0);
        place.conditional_assign(&(index as u64), same);
        found |= same;
    }
    if !bool::from(found) {
        return None;
    }
    snapshot.workloads.iter().nth(usize::try_from(place).ok()?)
}

fn renews<'s>(
    proven: &SpiffeId,
    workload: &str,
    snapshot: &'s Snapshot,
    authority: &Authority,
) -> Result<(&'s Name, &'s Workload), Refusal> {
    let (namespace, name) = workload.split_once('/').ok_or(Refusal::NoWorkload)?;
    let name = Name::new(namespace, name);
    let found = snapshot.workloads.get_key_value(&name);
    let (name, workload) = found.ok_or_else(|| Refusal::Gone(shortened(&name)))?;
    if workload.join_token.is_none() {
        return Err(Refusal::NoSidecar(name.clone()));
    }
    let expected = identity(authority, name, workload)?;
    if expected != *proven {
        return Err(Refusal::OtherIdentity {
            workload: name.clone(),
            expected,
            proven: proven.clone(),
        });
    }
    Ok((name, workload))
}

fn mark(certificate: &[u8]) -> Mark {
    let hash: [u8; 32] = Sha256::digest(certificate).into();
    hash.first_chunk().copied().unwrap_or_default()
}

/// A name that a stranger sent, fit for a sentence. Somebody may have sent a token: cut, it would not look like one any more.
pub fn shortened(name: &Name) -> Name {
    let short = |text: &str| {
        let graphic: String = text.chars().filter(char::is_ascii_graphic).collect();
        masked(&graphic).chars().take(63).collect::<String>()
    };
    Name::new(short(&name.namespace), short(&name.name))
}

fn identity(authority: &Authority, name: &Name, workload: &Workload) -> Result<SpiffeId, Refusal> {
    SpiffeId::of(authority.trust_domain(), &name.namespace, &workload.service_account)
        .map_err(|why| Refusal::NoIdentity(name.clone(), why))
}

impl Refusal {
    /// The status that the asker gets.
    pub fn code(&self) -> Code {
        match self {
            Refusal::NotReady => Code::Unavailable,
            Refusal::NoProof | Refusal::BadToken(_) | Refusal::UnknownToken(_) => Code::Unauthenticated,
            Refusal::TooManyAttempts | Refusal::TooManyRenewals => Code::ResourceExhausted,
            Refusal::Request(_) | Refusal::NoWorkload => Code::InvalidArgument,
            Refusal::Gone(_) | Refusal::NoSidecar(_) | Refusal::OtherIdentity { .. } => Code::PermissionDenied,
            Refusal::IsControl(_) | Refusal::NoIdentity(..) => Code::FailedPrecondition,
            Refusal::Authority(_) => Code::Unavailable,
        }
    }

    /// The word that it is counted by.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::NotReady => "not_ready",
            Refusal::NoProof => "no_proof",
            Refusal::BadToken(_) => "bad_token",
            Refusal::UnknownToken(_) => "unknown_token",
            Refusal::TooManyAttempts => "too_many_attempts",
            Refusal::TooManyRenewals => "too_many_renewals",
            Refusal::Request(_) => "bad_request",
            Refusal::NoWorkload => "no_workload",
            Refusal::Gone(_) => "gone",
            Refusal::NoSidecar(_) => "no_sidecar",
            Refusal::OtherIdentity { .. } => "other_identity",
            Refusal::IsControl(_) => "is_control",
            Refusal::NoIdentity(..) => "no_identity",
            Refusal::Authority(_) => "authority",
        }
    }
}
