//! What makes Portunus a member of a mesh in the benchmark: a control over manifests of its own.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::{
    identities::{Identities, TRUST_DOMAIN, Who},
    peers::free_address,
    process::Process,
};

/// A control plane for the sidecars of one peer. It ends when this drops.
pub(crate) struct Mesh {
    _control: Process,
    folder: PathBuf,
    control: SocketAddr,
    root: PathBuf,
    collector: SocketAddr,
}

/// What a mesh is made of.
pub(crate) struct Plan<'a> {
    pub(crate) injector: &'a Path,
    pub(crate) identities: &'a Identities,
    pub(crate) collector: SocketAddr,
    pub(crate) folder: PathBuf,
    /// Where the server is reached: its sidecar, or itself if it has none.
    pub(crate) server: SocketAddr,
    pub(crate) server_has_sidecar: bool,
    pub(crate) cpu: usize,
}

impl Mesh {
    /// Starts control; it is ready when this returns, and knows a caller, a server, a service over it, and policy for both.
    pub(crate) fn start(plan: &Plan<'_>) -> Result<Mesh> {
        let source = plan.folder.join("source");
        fs::create_dir_all(&source).with_context(|| format!("cannot make {}", source.display()))?;
        let mut hashes = Vec::new();
        for who in [Who::Caller, Who::Server] {
            let token: [u8; 32] = rand::random();
            fs::write(token_file(&plan.folder, who), hex(&token))?;
            hashes.push(hex(&Sha256::digest(token)));
        }
        fs::write(source.join("mesh.yaml"), manifests(plan, &hashes[0], &hashes[1]))?;
        let (control, admin) = (free_address()?, free_address()?);
        let mut command = Command::new(plan.injector);
        command.arg("control").arg("--source").arg(&source);
        command.arg("--issuer-certificate").arg(plan.identities.issuer());
        command.arg("--issuer-key").arg(plan.identities.issuer_key());
        command.arg("--extra-root").arg(plan.identities.root());
        command.args(["--trust-domain", TRUST_DOMAIN]);
        command.args(["--listen", &control.to_string(), "--admin-listen", &admin.to_string()]);
        let mut process = Process::start(&command, plan.cpu, plan.folder.join("control.log"))?;
        until_ready("control", &mut process, admin, Duration::from_secs(20))?;
        Ok(Mesh {
            _control: process,
            folder: plan.folder.clone(),
            control,
            root: plan.identities.root(),
            collector: plan.collector,
        })
    }

    /// Makes a sidecar's command a member's.
    pub(crate) fn admit(&self, who: Who, command: &mut Command) {
        command
            .args(["--control-address", &self.control.to_string()])
            .args([
                "--control-identity",
                &format!("spiffe://{TRUST_DOMAIN}/ns/portunus/sa/control"),
            ])
            .arg("--trust-bundle")
            .arg(&self.root)
            .arg("--join-token-file")
            .arg(token_file(&self.folder, who))
            .args(["--mtls", "strict"])
            .args(["--trace-collector", &format!("http://{}", self.collector)])
            .args(["--trace-sampling", "5"]);
    }
}

/// The address of the service, which nobody has: calls that come through prove that control was asked.
pub(crate) const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 96, 0, 10)), 80);

fn manifests(plan: &Plan<'_>, caller: &str, server: &str) -> String {
    let (address, port) = (plan.server.ip(), plan.server.port());
    let token = match plan.server_has_sidecar {
        true => format!(", joinTokenSha256: {server}"),
        false => String::new(),
    };
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: server, namespace: shop}}
spec:
  clusterIP: {}
  selector: {{app: server}}
  ports: [{{name: grpc, port: {}, targetPort: {port}}}]
---
apiVersion: portunus.dev/v1alpha1
kind: Workload
metadata: {{name: server-1, namespace: shop, labels: {{app: server}}}}
spec: {{serviceAccount: server, addresses: [\"{address}\"], ports: [{{name: grpc, port: {port}}}]{token}}}
---
apiVersion: portunus.dev/v1alpha1
kind: Workload
metadata: {{name: caller-1, namespace: shop, labels: {{app: caller}}}}
spec: {{serviceAccount: caller, addresses: [127.0.1.1], joinTokenSha256: {caller}}}
---
apiVersion: portunus.dev/v1alpha1
kind: InboundPolicy
metadata: {{name: strict, namespace: shop}}
spec: {{mtls: {{mode: strict}}}}
---
apiVersion: portunus.dev/v1alpha1
kind: OutboundPolicy
metadata: {{name: server, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: server}}]
  balancer: {{algorithm: P2cEwma}}
  healthCheck: {{mode: Check, interval: 5s}}
  outlier: {{mode: On}}
",
        SERVICE.ip(),
        SERVICE.port(),
    )
}

fn token_file(folder: &Path, who: Who) -> PathBuf {
    folder.join(format!("{}-token", who.name()))
}

/// Waits until `/ready` of an admin port says so.
pub(crate) fn until_ready(name: &str, process: &mut Process, admin: SocketAddr, patience: Duration) -> Result<()> {
    let until = Instant::now() + patience;
    while !is_ready(admin) {
        if process.has_ended() {
            bail!("{name} has ended{}", process.last_words());
        }
        ensure!(
            Instant::now() < until,
            "{name} is not ready after {patience:?}{}",
            process.last_words()
        );
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(())
}

fn is_ready(admin: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect(admin)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        socket.read_exact(&mut head)?;
        Ok(head == *b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
