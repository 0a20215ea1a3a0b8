//! How things stand between us and control, for `/ready`, `/metrics` and the log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use portunus_proto::SpiffeId;
use tokio::sync::watch;

/// How things stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Our certificate.
    pub certificate: Certificate,
    /// The stream from control.
    pub stream: Stream,
}

/// Whether we have a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// There never was one.
    None {
        /// Why, in a sentence.
        why: Arc<str>,
    },
    /// There is one, and the wall clock stands within its life.
    Valid {
        /// Who we are.
        id: SpiffeId,
        /// When it ends.
        expires: SystemTime,
        /// Why the next one that is due did not come yet, in a sentence.
        overdue: Option<Arc<str>>,
    },
    /// There was one, and by the wall clock its life is over, or has not begun.
    Over {
        /// Who we were.
        id: SpiffeId,
        /// When it ended.
        expires: SystemTime,
        /// Why there is no other, in a sentence.
        why: Arc<str>,
    },
}

/// Whether control tells us what changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// It does.
    Connected {
        /// Since when.
        since: SystemTime,
        /// From where.
        to: SocketAddr,
    },
    /// It does not: what was known is still believed.
    Away {
        /// Since when.
        since: SystemTime,
        /// Why, in a sentence.
        why: Arc<str>,
    },
}

impl Certificate {
    /// Whether there is one that serves.
    pub fn serves(&self) -> bool {
        matches!(self, Certificate::Valid { .. })
    }

    /// When it ends, or ended.
    pub fn expires(&self) -> Option<SystemTime> {
        match self {
            Certificate::None { .. } => None,
            Certificate::Valid { expires, .. } | Certificate::Over { expires, .. } => Some(*expires),
        }
    }

    /// What is missing, in a sentence, if something is.
    pub fn missing(&self) -> Option<String> {
        match self {
            Certificate::None { why } => Some(format!("this workload has no certificate yet: {why}")),
            Certificate::Over { why, .. } => Some(format!("this workload's certificate is over: {why}")),
            Certificate::Valid { .. } => None,
        }
    }
}

impl Stream {
    /// Whether it is there.
    pub fn is_connected(&self) -> bool {
        matches!(self, Stream::Connected { .. })
    }
}

/// The status, for those who write it and those who look.
#[derive(Clone, Debug)]
pub(super) struct Shown(Arc<watch::Sender<Status>>);

impl Shown {
    pub(super) fn new() -> Shown {
        Shown(Arc::new(watch::Sender::new(Status {
            certificate: Certificate::None {
                why: "none was asked for yet".into(),
            },
            stream: Stream::Away {
                since: SystemTime::now(),
                why: "there is no certificate to call control with".into(),
            },
        })))
    }

    pub(super) fn now(&self) -> Status {
        self.0.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }

    /// Whether that was news.
    pub(super) fn certificate(&self, certificate: Certificate) -> bool {
        self.0.send_if_modified(|status| {
            let is_news = status.certificate != certificate;
            status.certificate = certificate;
            is_news
        })
    }

    pub(super) fn connected(&self, to: SocketAddr) {
        let since = SystemTime::now();
        self.0
            .send_modify(|status| status.stream = Stream::Connected { since, to });
    }

    /// Whether that was news. Since when it is away is not changed by another reason.
    pub(super) fn away(&self, reason: &str) -> bool {
        self.0.send_if_modified(|status| match &mut status.stream {
            Stream::Away { why, .. } if **why == *reason => false,
            Stream::Away { why, .. } => {
                *why = reason.into();
                true
            }
            Stream::Connected { .. } => {
                status.stream = Stream::Away {
                    since: SystemTime::now(),
                    why: reason.into(),
                };
                true
            }
        })
    }
}
