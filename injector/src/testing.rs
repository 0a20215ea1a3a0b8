//! The words that tests of this crate are written in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use portunus_proto::TrustDomain;

use crate::cluster::{JoinToken, Snapshot, file};
use crate::control::identity::{Files, Origin};

/// A directory of its own, gone when it is dropped.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "portunus-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a directory can be made");
        Directory(path)
    }

    pub fn with(self, file: &str, text: &str) -> Directory {
        self.write(file, text);
        self
    }

    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).expect("a file can be written");
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The state that a text says.
pub fn state(manifests: &str) -> Arc<Snapshot> {
    let directory = Directory::new().with("all.yaml", manifests);
    let reading = file::read(&directory.0);
    Arc::new(reading.snapshot.unwrap_or_else(|| panic!("{:#?}", reading.findings)))
}

/// A workload of namespace `shop` with a sidecar that has this token.
pub fn workload(name: &str, account: &str, address: &str, token: Option<&JoinToken>) -> String {
    let hash = token.map(|token| format!("\n  joinTokenSha256: {}", token.hash().to_hex()));
    format!(
        "---\napiVersion: portunus.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {account}}}}}\n\
         spec:\n  serviceAccount: {account}\n  addresses: [{address}]\n  ports: [{{name: api, port: 50051}}]{}\n",
        hash.unwrap_or_default()
    )
}

/// The trust domain of all tests.
pub fn domain() -> TrustDomain {
    TrustDomain::parse("mesh.test").expect("it is one")
}

/// An authority's own directory.
pub fn state_files(directory: &Path) -> Files {
    Files {
        trust_domain: domain(),
        origin: Origin::State(directory.to_owned()),
        extra_roots: Vec::new(),
    }
}

/// What this thread logs, as long as it stands.
pub struct Log {
    lines: Lines,
    _guard: tracing::subscriber::DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn begin() -> Log {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let _guard = tracing::subscriber::set_default(subscriber.finish());
        Log { lines, _guard }
    }

    pub fn said(&self) -> String {
        String::from_utf8(self.lines.0.lock().clone()).expect("text")
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
