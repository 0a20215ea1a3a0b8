//! Who we are and whom we believe: one place, from which every change reaches all who need it.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tokio::sync::{Notify, watch};

use crate::tls::{Bundle, Credential, SKEW, Unusable};

/// What is held, and those who are shown it.
pub(super) struct Holder {
    held: Mutex<Held>,
    published: Arc<ArcSwapOption<Credential>>,
    current: watch::Sender<Option<Current>>,
    disbelief: Notify,
}

/// Whom we believe, and since when: bundles have no number of their own.
pub(super) struct Trust {
    pub(super) bundle: Bundle,
    /// How often the stream had brought other roots.
    pub(super) brought: u64,
}

/// Where roots come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// The stream, which brings them in their order.
    Stream,
    /// The answer to a question that was asked when the stream had brought so many. Where it has brought others since, nobody
    /// knows which are newer. The stream's hold: if they are the older ones, the stream is about to say so.
    Answer { brought: u64 },
}

struct Held {
    roots: Vec<CertificateDer<'static>>,
    bundle: Bundle,
    /// How often the stream has brought other roots.
    brought: u64,
    credential: Option<Current>,
    /// Control does not believe it.
    is_disbelieved: bool,
}

/// A certificate that serves, for calls to control.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) credential: Credential,
    /// `namespace/name` of the workload that it is of.
    pub(super) workload: String,
    /// The how manieth it is: another bundle does not make it another.
    pub(super) serial: u64,
}

impl Holder {
    pub(super) fn new(roots: Vec<CertificateDer<'static>>, bundle: Bundle) -> Holder {
        let held = Held {
            roots,
            bundle,
            brought: 0,
            credential: None,
            is_disbelieved: false,
        };
        Holder {
            held: Mutex::new(held),
            published: Arc::default(),
            current: watch::Sender::new(None),
            disbelief: Notify::new(),
        }
    }

    /// What the workers load at each handshake.
    pub(super) fn published(&self) -> Arc<ArcSwapOption<Credential>> {
        self.published.clone()
    }

    /// The certificate that serves, and every change of it.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Current>> {
        self.current.subscribe()
    }

    /// Whom we believe.
    pub(super) fn trust(&self) -> Trust {
        let held = self.held.lock();
        Trust {
            bundle: held.bundle.clone(),
            brought: held.brought,
        }
    }

    /// The certificate that we have, whether it serves or not.
    pub(super) fn held(&self) -> Option<Current> {
        self.held.lock().credential.clone()
    }

    /// Believes others from now on, unless they may be older than those that are believed. Whether that was news.
    ///
    /// # Errors
    /// When the bundle is not for the certificate that we have.
    pub(super) fn believe(
        &self,
        roots: Vec<CertificateDer<'static>>,
        bundle: Bundle,
        from: Source,
        wall: SystemTime,
    ) -> Result<bool, Unusable> {
        let mut held = self.held.lock();
        let is_older = matches!(from, Source::Answer { brought } if brought != held.brought);
        if held.roots == roots || is_older {
            return Ok(false);
        }
        if let Some(current) = &mut held.credential {
            current.credential = current.credential.with_bundle(bundle.clone())?;
        }
        (held.roots, held.bundle) = (roots, bundle);
        held.brought += u64::from(matches!(from, Source::Stream));
        self.publish(&held, wall);
        Ok(true)
    }

    /// Holds another certificate from now on, with the roots that are believed; the one before is dropped, and its key with it.
    ///
    /// # Errors
    /// When those roots are not for this certificate.
    pub(super) fn hold(&self, credential: Credential, workload: String, wall: SystemTime) -> Result<(), Unusable> {
        let mut held = self.held.lock();
        let credential = credential.with_bundle(held.bundle.clone())?;
        let serial = held.credential.as_ref().map_or(1, |before| before.serial + 1);
        held.credential = Some(Current {
            credential,
            workload,
            serial,
        });
        held.is_disbelieved = false;
        self.publish(&held, wall);
        Ok(())
    }

    /// Control does not believe the certificate of this serial, though it serves. It may have been replaced since.
    pub(super) fn disbelieve(&self, serial: u64) {
        let mut held = self.held.lock();
        if held.credential.as_ref().is_some_and(|current| current.serial == serial) {
            held.is_disbelieved = true;
            self.disbelief.notify_one();
        }
    }

    /// Waits until that is said.
    pub(super) async fn disbelief(&self) {
        self.disbelief.notified().await;
    }

    /// Whether it was said of the certificate that is held; once for each time.
    pub(super) fn take_disbelief(&self) -> bool {
        std::mem::take(&mut self.held.lock().is_disbelieved)
    }

    /// Looks at the clock: a certificate whose life is over serves nobody, until the clock is set back.
    pub(super) fn look(&self, wall: SystemTime) {
        let held = self.held.lock();
        let serves = held
            .credential
            .as_ref()
            .is_some_and(|current| serves(&current.credential, wall));
        if serves != self.current.borrow().is_some() {
            self.publish(&held, wall);
        }
    }

    fn publish(&self, held: &Held, wall: SystemTime) {
        let serving = held
            .credential
            .clone()
            .filter(|current| serves(&current.credential, wall));
        self.published
            .store(serving.as_ref().map(|current| Arc::new(current.credential.clone())));
        self.current.send_replace(serving);
    }
}

/// Whether a peer whose clock is near this one would take it.
pub(super) fn serves(credential: &Credential, wall: SystemTime) -> bool {
    let (earlier, later) = (wall.checked_sub(SKEW), wall.checked_add(SKEW));
    later.is_some_and(|later| credential.not_before() <= later)
        && earlier.is_none_or(|earlier| earlier <= credential.not_after())
}
