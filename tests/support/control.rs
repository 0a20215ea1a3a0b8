//! A control plane of a mesh's own: the real one, over a directory of manifests that a test writes as it goes.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::{
    Family, Metrics, Pod, Program, User, build,
    http::{self, Answer},
    mesh::open_folder,
    wait_until,
};

/// The trust domain of the meshes that tests make.
pub const TRUST_DOMAIN: &str = "mesh.test";
/// The namespace of their workloads.
pub const NAMESPACE: &str = "shop";

/// Control, in a pod of its own.
#[derive(Debug)]
pub struct Control {
    pod: Pod,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    program: Option<Program>,
    /// What those before wrote, that were killed.
    wrote: String,
    source: PathBuf,
    state: PathBuf,
}

/// What a test says of a workload.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Its service account.
    pub account: &'a str,
    /// What a service's selector finds it by: `app`.
    pub app: &'a str,
    /// The ports that it listens on.
    pub ports: &'a [u16],
}

impl Control {
    pub(crate) fn new(pod: Pod, arguments: &[&str]) -> Result<Control> {
        let (source, state) = (pod.folder().join("source"), pod.folder().join("state"));
        open_folder(&source)?;
        // A directory without any manifest is taken for a mistake.
        fs::write(source.join("nothing.yaml"), "# nothing\n")?;
        let mut control = Control {
            pod,
            arguments: Vec::new(),
            environment: Vec::new(),
            program: None,
            wrote: String::new(),
            source,
            state,
        };
        control.set_arguments(arguments);
        Ok(control)
    }

    /// Another one, in this pod, over the same manifests and the same authority. It does not run yet.
    pub fn beside(&self, pod: Pod) -> Control {
        Control {
            pod,
            arguments: self.arguments.clone(),
            environment: self.environment.clone(),
            program: None,
            wrote: String::new(),
            source: self.source.clone(),
            state: self.state.clone(),
        }
    }

    /// Gives it other arguments beside the defaults, from its next start on.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(ToString::to_string).collect();
    }

    /// Gives it variables of the environment, from its next start on.
    pub fn set_environment(&mut self, variables: &[(&str, &str)]) {
        let owned = variables
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()));
        self.environment = owned.collect();
    }

    /// Starts it, or starts it again after [`Control::kill`], as it was; and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn launch(&mut self) -> Result<()> {
        self.begin()?;
        let admin = SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT));
        wait_until(Duration::from_secs(15), "control is ready", || {
            http::get(&self.pod, admin, "/ready").is_ok_and(|answer| answer.status == 200)
        })
        .with_context(|| self.output())
    }

    /// Starts it, and does not wait.
    ///
    /// # Errors
    /// When there is no program to start.
    pub fn begin(&mut self) -> Result<()> {
        let mut command = self.pod.command(User::Root, self.pod.place(&build::injector()?)?);
        command.arg("control").arg("--source").arg(&self.source);
        // One that is given an issuer makes none of its own.
        if !self.arguments.iter().any(|argument| argument == "--issuer-certificate") {
            command.arg("--state").arg(&self.state);
        }
        command.args(["--trust-domain", TRUST_DOMAIN, "--log-level", "debug"]);
        command.args(&self.arguments);
        command.envs(self.environment.iter().cloned());
        self.program = Some(self.pod.start("control", command)?);
        Ok(())
    }

    /// Ends it without a word.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn kill(&mut self) -> Result<()> {
        match self.program.take() {
            Some(mut program) => {
                program.kill()?;
                self.wrote += &program.output();
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Tells it to stop, and waits until it has.
    ///
    /// # Errors
    /// When it does not end, or not well.
    pub fn stop(&mut self) -> Result<()> {
        let mut program = self.program.take().context("control does not run")?;
        let status = program.stop(Duration::from_secs(15))?;
        self.wrote += &program.output();
        if !status.success() {
            bail!("control ended with {status}");
        }
        Ok(())
    }

    /// Its process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn program(&self) -> Result<&Program> {
        self.program.as_ref().context("control does not run")
    }

    /// The pod that it is in.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// The directory of manifests.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The directory of its authority.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What it wrote, since its first start.
    pub fn output(&self) -> String {
        let now = self.program.as_ref().map(Program::output).unwrap_or_default();
        self.wrote.clone() + &now
    }

    /// Where sidecars reach it.
    ///
    /// # Errors
    /// When its pod has no address of this family.
    pub fn at(&self, family: Family) -> Result<SocketAddr> {
        self.pod.at(family, PORT)
    }

    /// Writes a file of manifests, whole.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn apply(&self, name: &str, manifests: &str) -> Result<()> {
        let file = self.source.join(format!("{name}.yaml"));
        let unfinished = self.source.join(format!(".{name}.unfinished"));
        fs::write(&unfinished, manifests)?;
        fs::rename(&unfinished, &file).context("cannot write a manifest")
    }

    /// Removes a file of manifests.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.source.join(format!("{name}.yaml"))).context("cannot remove a manifest")
    }

    /// A service of `shop`, over all members whose `app` is its name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn service(&self, name: &str, port: u16) -> Result<()> {
        self.apply(
            &format!("service-{name}"),
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
                 spec:\n  clusterIP: None\n  selector: {{app: {name}}}\n  ports: [{{name: grpc-main, port: {port}}}]\n"
            ),
        )
    }

    /// Makes a pod a member of the mesh: its `Workload`, with a join token. Returns what its sidecar has to be told.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn enrol(&self, pod: &Pod, member: &Member<'_>) -> Result<Vec<(String, String)>> {
        let token = Token::new();
        self.workload(pod, member, Some(&token.hash))?;
        let (token_file, bundle) = (pod.folder().join("join-token"), pod.folder().join("bundle.pem"));
        fs::write(&token_file, token.text)?;
        fs::write(&bundle, fs::read_to_string(self.root())?)?;
        let mut settings = vec![
            (
                "PORTUNUS_CONTROL_IDENTITY".to_owned(),
                format!("spiffe://{TRUST_DOMAIN}/ns/portunus/sa/control"),
            ),
            ("PORTUNUS_TRUST_BUNDLE".to_owned(), bundle.display().to_string()),
            ("PORTUNUS_JOIN_TOKEN_FILE".to_owned(), token_file.display().to_string()),
        ];
        let family = if pod.address(Family::V4).is_ok() {
            Family::V4
        } else {
            Family::V6
        };
        let address = self.pod.at(family, PORT)?;
        settings.push(("PORTUNUS_CONTROL_ADDRESS".to_owned(), address.to_string()));
        Ok(settings)
    }

    /// Waits until every `Workload` that was written is known: a token that control does not know yet is refused, and its
    /// sidecar asks again only after some seconds. A control that does not run is not waited for.
    ///
    /// # Errors
    /// When it does not take them.
    pub fn until_known(&self) -> Result<()> {
        if self.program.is_none() {
            return Ok(());
        }
        let files = fs::read_dir(&self.source)?.filter_map(Result::ok);
        let written = files.filter(|file| file.file_name().to_string_lossy().starts_with("workload-"));
        let written = written.count();
        let all = [format!("workloads={written} "), format!("\"workloads\":{written},")];
        wait_until(Duration::from_secs(10), "control has taken every workload", || {
            let output = self.output();
            output
                .lines()
                .rfind(|line| line.contains("a state was taken"))
                .is_some_and(|line| all.iter().any(|all| format!("{line} ").contains(all)))
        })
    }

    /// Says something else of a pod that was enrolled; its token stays.
    ///
    /// # Errors
    /// When it was not, or the file cannot be written.
    pub fn revise(&self, pod: &Pod, member: &Member<'_>) -> Result<()> {
        let token = fs::read_to_string(pod.folder().join("join-token")).context("it was not enrolled")?;
        self.workload(pod, member, Some(&Token::of(&token)?.hash))
    }

    /// A pod's `Workload`; without a token's hash, it is one without a sidecar.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn workload(&self, pod: &Pod, member: &Member<'_>, hash: Option<&str>) -> Result<()> {
        let name = pod.name();
        let mut text = format!(
            "apiVersion: portunus.dev/v1alpha1\nkind: Workload\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\n  \
             labels: {{app: {}}}\nspec:\n  serviceAccount: {}\n  addresses:\n",
            member.app, member.account
        );
        for address in pod.addresses() {
            let _ = writeln!(text, "  - \"{address}\"");
        }
        if !member.ports.is_empty() {
            text.push_str("  ports:\n");
        }
        for port in member.ports {
            let _ = writeln!(text, "  - {{name: p{port}, port: {port}}}");
        }
        if let Some(hash) = hash {
            let _ = writeln!(text, "  joinTokenSha256: {hash}");
        }
        self.apply(&format!("workload-{name}"), &text)
    }

    /// Says of a pod that was enrolled whether it is given new calls.
    ///
    /// # Errors
    /// When it was not, or the file cannot be written.
    pub fn set_ready(&self, pod: &Pod, ready: bool) -> Result<()> {
        self.set(pod, "ready", &ready.to_string())
    }

    /// Says of a pod that was enrolled where it stands.
    ///
    /// # Errors
    /// When it was not, or the file cannot be written.
    pub fn set_zone(&self, pod: &Pod, zone: &str) -> Result<()> {
        self.set(pod, "zone", zone)
    }

    /// Says of a pod that was enrolled how much it weighs beside others.
    ///
    /// # Errors
    /// When it was not, or the file cannot be written.
    pub fn set_weight(&self, pod: &Pod, weight: u32) -> Result<()> {
        self.set(pod, "weight", &weight.to_string())
    }

    fn set(&self, pod: &Pod, field: &str, value: &str) -> Result<()> {
        let name = format!("workload-{}", pod.name());
        let text = fs::read_to_string(self.source.join(format!("{name}.yaml"))).context("it was not enrolled")?;
        let begins = format!("  {field}:");
        let others = text.lines().filter(|line| !line.starts_with(&begins));
        let others: String = others.map(|line| format!("{line}\n")).collect();
        self.apply(&name, &format!("{others}{begins} {value}\n"))
    }

    /// The id of a service account of the mesh.
    pub fn id(account: &str) -> String {
        format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{account}")
    }

    /// Control's root, in PEM.
    pub fn root(&self) -> PathBuf {
        self.state.join("roots/root.pem")
    }

    /// Control's root, in DER.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn root_der(&self) -> Result<CertificateDer<'static>> {
        CertificateDer::from_pem_file(self.root()).context("control's root cannot be read")
    }

    /// What its metrics say now.
    ///
    /// # Errors
    /// When they are not there.
    pub fn metrics(&self) -> Result<Metrics> {
        let answer = self.admin("/metrics")?;
        if answer.status != 200 {
            bail!("control answers {} to /metrics: {}", answer.status, answer.body);
        }
        Ok(Metrics::parse(&answer.body))
    }

    /// Asks its admin port.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn admin(&self, path: &str) -> Result<Answer> {
        http::get(&self.pod, SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT)), path)
    }
}

/// A join token.
#[derive(Debug, Clone)]
pub struct Token {
    /// As the sidecar has it.
    pub text: String,
    /// As its `Workload` has it.
    pub hash: String,
}

impl Token {
    /// 256 random bits.
    pub fn new() -> Token {
        Token::of_bits(std::array::from_fn(|_| rand::random()))
    }

    /// From a sidecar's file.
    ///
    /// # Errors
    /// When there is none in it.
    pub fn of(text: &str) -> Result<Token> {
        portunus_proto::token::bits(text)
            .map(Token::of_bits)
            .context("this is no join token")
    }

    fn of_bits(bits: [u8; 32]) -> Token {
        Token {
            text: hex(&bits),
            hash: hex(&<sha2::Sha256 as sha2::Digest>::digest(bits)),
        }
    }
}

impl Default for Token {
    fn default() -> Token {
        Token::new()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

const PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9995;
