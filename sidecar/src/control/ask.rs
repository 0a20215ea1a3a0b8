//! One request for a certificate: what is sent, and what is made of the answer.

use std::time::Duration;

use portunus_proto::mesh::v1;
use portunus_proto::mesh::v1::identity_client::IdentityClient;
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

use super::holder::Trust;
use super::pace::Came;
use super::token::{NoToken, Token};
use super::wire::{self, Refused};
use crate::identity::{self, Key};
use crate::telemetry::{cut, sentence};
use crate::tls::{Bundle, Credential, Unusable};

/// The longest answer, in bytes: a chain and a bundle at their longest.
const MOST_ANSWER: usize = 1 << 20;

/// What proves to control who we are.
pub(super) enum Proof {
    /// The join token.
    Token(Token),
    /// The certificate that the connection was made with, and the workload that it is of.
    Certificate(String),
}

/// What was certified.
pub(super) struct Certified {
    pub(super) credential: Credential,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) bundle: Bundle,
    /// How often the stream had brought other roots when this was asked for.
    pub(super) brought: u64,
    pub(super) workload: String,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// Nobody was asked.
    #[error(transparent)]
    NoToken(#[from] NoToken),
    /// Nobody was reached.
    #[error("{0}")]
    Unreached(String),
    /// Nobody was asked: control may not be called again yet, for what it said before.
    #[error("control may not be called again yet")]
    Resting,
    /// There is no key to certify.
    #[error(transparent)]
    Key(#[from] identity::Failed),
    /// Control says no, or the connection broke.
    #[error("{}", of_status(.0))]
    Status(#[from] Box<tonic::Status>),
    /// Control does not answer.
    #[error("control does not answer the request for a certificate within {0:?}")]
    Late(Duration),
    /// The answer is none.
    #[error("control's answer cannot be taken: {0}")]
    Answer(#[from] Refused),
    /// The answer has a certificate or a bundle that cannot be used.
    #[error("what control certified cannot be used: {0}")]
    Unusable(#[from] Unusable),
    /// The certificate does not serve now.
    #[error("the certificate that control gave is not valid by this machine's clock: one of the two clocks is wrong")]
    Clock,
}

impl Failed {
    /// What control said, if it said something.
    pub(super) fn code(&self) -> Option<Code> {
        match self {
            Failed::Status(status) if !is_broken(status) => Some(status.code()),
            _ => None,
        }
    }

    /// What that means for the next call, if it came after so long; `by_token` if that was to prove us.
    pub(super) fn came(&self, took: Duration, by_token: bool) -> Came {
        match self {
            Failed::Status(status) if is_broken(status) => Came::Broken,
            Failed::Status(status) if status.code() == Code::Unauthenticated => Came::Unproven(took),
            // Many join from behind one address, and each is about to be known.
            Failed::Status(status) if by_token && status.code() == Code::ResourceExhausted => Came::Unproven(took),
            _ => Came::Failed,
        }
    }
}

/// Asks. The key is new, and lives on in the credential alone.
pub(super) async fn ask(channel: Channel, proof: Proof, trust: &Trust, within: Duration) -> Result<Certified, Failed> {
    let key = Key::generate()?;
    let csr = key.request(None)?;
    let (join_token, workload) = match proof {
        Proof::Token(token) => (token.into_text(), String::new()),
        Proof::Certificate(workload) => (String::new(), workload),
    };
    let request = v1::CertifyRequest {
        csr,
        join_token,
        workload,
    };
    let mut client = IdentityClient::new(channel).max_decoding_message_size(MOST_ANSWER);
    let answer = match timeout(within, client.certify(request)).await {
        Ok(answer) => answer.map_err(Box::new)?.into_inner(),
        Err(_) => return Err(Failed::Late(within)),
    };
    let ours = trust.bundle.trust_domain();
    let roots = wire::roots(answer.bundle.ok_or(Refused::Missing("bundle"))?, ours)?;
    let bundle = Bundle::new(ours.clone(), &roots)?;
    let workload = wire::workload(answer.workload)?;
    let credential = Credential::new(wire::chain(answer.chain)?, key.into_private(), bundle.clone())?;
    Ok(Certified {
        credential,
        roots,
        bundle,
        brought: trust.brought,
        workload,
    })
}

/// Whether the connection broke, and control said nothing: what broke has a cause.
pub(super) fn is_broken(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// What control said, or what broke.
pub(super) fn of_status(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => format!("the connection to control broke: {}", sentence(cause)),
        None => format!("control says {:?}: {}", status.code(), cut(status.message())),
    }
}
