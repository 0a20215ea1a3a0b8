//! Identities for proxies of all kinds, and the files in which they find theirs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use portunus_proto::SpiffeId;
use support::pki::Pki;

/// Who is who in the benchmark's trust domain. All keys are of P-256.
pub(crate) struct Identities {
    pki: Pki,
    folder: PathBuf,
}

/// Who a proxy is: the caller's or the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Caller,
    Server,
}

impl Who {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Who::Caller => "caller",
            Who::Server => "server",
        }
    }

    pub(crate) fn other(self) -> Who {
        match self {
            Who::Caller => Who::Server,
            Who::Server => Who::Caller,
        }
    }
}

impl Identities {
    /// A root, an issuer under it, and a certificate for either side, in this folder.
    pub(crate) fn make(folder: &Path) -> Result<Identities> {
        let identities = Identities {
            pki: Pki::new(TRUST_DOMAIN),
            folder: folder.to_owned(),
        };
        let write = |file: PathBuf, text: &str| {
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
        };
        write(identities.root(), &identities.pki.root_pem())?;
        let (issuer, key) = identities.pki.issuer_pem();
        write(identities.issuer(), &issuer)?;
        write(identities.issuer_key(), &key)?;
        for who in [Who::Caller, Who::Server] {
            let (chain, key) = identities.pki.certify_pem(&identities.id(who), LIFETIME);
            write(identities.chain(who), &chain)?;
            write(identities.key(who), &key)?;
            write(identities.both(who), &(chain + &key))?;
        }
        Ok(identities)
    }

    pub(crate) fn id(&self, who: Who) -> SpiffeId {
        self.pki.id(who.name())
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.file("root.pem")
    }

    pub(crate) fn issuer(&self) -> PathBuf {
        self.file("issuer.pem")
    }

    pub(crate) fn issuer_key(&self) -> PathBuf {
        self.file("issuer-key.pem")
    }

    /// The certificate and its issuer's.
    pub(crate) fn chain(&self, who: Who) -> PathBuf {
        self.file(&format!("{}.pem", who.name()))
    }

    pub(crate) fn key(&self, who: Who) -> PathBuf {
        self.file(&format!("{}-key.pem", who.name()))
    }

    /// Chain and key in one file.
    pub(crate) fn both(&self, who: Who) -> PathBuf {
        self.file(&format!("{}-both.pem", who.name()))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

pub(crate) const TRUST_DOMAIN: &str = "measure.test";
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
