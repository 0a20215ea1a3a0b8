//! The peers that are built for the tests: Go programs, a Rust program and a Python environment, each version pinned.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};

use crate::{cache, netns::remove_dir};

/// A program of `tools/go.mod`: `h2spec`, `coredns`, and grpc-go's interop `client` and `server`.
pub fn go(name: &str) -> Result<PathBuf> {
    let program = go_folder(&|_| ())?.join(name);
    if !program.exists() {
        bail!("tools/go.mod has no tool {name}");
    }
    Ok(program)
}

/// Jaeger, all in one: a collector of traces that can be asked what it has.
pub fn jaeger() -> Result<PathBuf> {
    jaeger_aloud(&|_| ())
}

/// httpwg-cli, a suite for RFC 9113.
pub fn httpwg() -> Result<PathBuf> {
    httpwg_aloud(&|_| ())
}

/// The Python environment of `tools/requirements.txt`.
#[derive(Debug, Clone)]
pub struct Python {
    /// What runs a script.
    pub interpreter: PathBuf,
    /// For PYTHONPATH: the modules generated from `apps/proto`.
    pub modules: PathBuf,
}

/// A Python interpreter that has py-spiffe, which judges certificates as we do, and is somebody else's.
pub fn spiffe() -> Result<PathBuf> {
    spiffe_aloud(&|_| ())
}

/// The environment, built where it is missing.
pub fn python() -> Result<Python> {
    python_aloud(&|_| ())
}

/// Builds what is missing of all of it; `say` hears of each step that takes time.
pub fn prepare(say: impl Fn(&str)) -> Result<()> {
    python_aloud(&say)?;
    spiffe_aloud(&say)?;
    httpwg_aloud(&say)?;
    jaeger_aloud(&say)?;
    go_folder(&say).map(drop)
}

fn python_aloud(say: &dyn Fn(&str)) -> Result<Python> {
    let folder = once(&PYTHON, || {
        let mut inputs = vec![fs::read(here("tools/requirements.txt"))?];
        for proto in PROTOS {
            inputs.push(fs::read(here("apps/proto").join(proto))?);
        }
        let inputs: Vec<_> = inputs.iter().map(Vec::as_slice).collect();
        cache::folder("python", &inputs, |folder| {
            say("building the Python environment, once, in about 20 seconds");
            build_python(folder)
        })
    })?;
    Ok(Python {
        interpreter: folder.join("venv/bin/python"),
        modules: folder.join("modules"),
    })
}

fn spiffe_aloud(say: &dyn Fn(&str)) -> Result<PathBuf> {
    let folder = once(&SPIFFE, || {
        let input = fs::read(here("tools/spiffe.txt"))?;
        cache::folder("spiffe", &[&input], |folder| {
            say("installing py-spiffe, once, in about 10 seconds");
            build_venv(folder, "tools/spiffe.txt").map(drop)
        })
    })?;
    Ok(folder.join("venv/bin/python"))
}

/// The entries of a list with comments.
pub fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn go_folder(say: &dyn Fn(&str)) -> Result<PathBuf> {
    once(&GO, || {
        let version = Command::new("go").arg("version").output();
        let version = version.context("there is no `go`: install Go 1.26 or later")?.stdout;
        let read = |file| fs::read(here("tools").join(file));
        let [module, sums, coredns] = ["go.mod", "go.sum", "coredns/main.go"].map(read);
        cache::folder("go", &[&module?, &sums?, &coredns?, &version], |folder| {
            say("building h2spec, CoreDNS and grpc-go's interop client and server, once, in one or two minutes");
            let mut go = Command::new("go");
            go.args(["build", "-p", "2", "-trimpath", "-ldflags=-s -w", "-mod=readonly", "-o"])
                .arg(folder)
                .args(["tool", "./coredns"]);
            go.current_dir(here("tools")).env("GOTOOLCHAIN", "local");
            run(&mut go)
        })
    })
}

/// Jaeger is built in its own module, as it was released: with its own `go.mod` and `go.sum`, some of whose entries no
/// other module can get. Its source is checked against the sum that stands here.
fn jaeger_aloud(say: &dyn Fn(&str)) -> Result<PathBuf> {
    let folder = once(&JAEGER, || {
        cache::folder(
            "jaeger",
            &[JAEGER_VERSION.as_bytes(), JAEGER_SUM.as_bytes()],
            |folder| {
                say("building Jaeger, once, in about four minutes");
                let go = |folder: &Path| {
                    let mut go = Command::new("go");
                    go.current_dir(folder).env("GOTOOLCHAIN", "local");
                    go
                };
                let module = format!("github.com/jaegertracing/jaeger@{JAEGER_VERSION}");
                let output = go(folder).args(["mod", "download", "-json", &module]).output();
                let output = output.context("there is no `go`: install Go 1.26 or later")?;
                let module: GoModule = serde_json::from_slice(&output.stdout)
                    .with_context(|| format!("`go mod download` says: {}", String::from_utf8_lossy(&output.stderr)))?;
                if module.sum != JAEGER_SUM {
                    bail!(
                        "Jaeger {JAEGER_VERSION} has the sum {}, and not {JAEGER_SUM}",
                        module.sum
                    );
                }
                let mut build = go(&module.dir);
                build.args(["build", "-p", "2", "-trimpath", "-ldflags=-s -w", "-mod=readonly", "-o"]);
                run(build.arg(folder.join("jaeger")).arg("./cmd/all-in-one"))
            },
        )
    })?;
    Ok(folder.join("jaeger"))
}

/// What `go mod download -json` says of a module.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GoModule {
    dir: PathBuf,
    sum: String,
}

fn httpwg_aloud(say: &dyn Fn(&str)) -> Result<PathBuf> {
    let folder = once(&HTTPWG, || {
        cache::folder("httpwg-cli", &[HTTPWG_CLI.as_bytes()], |folder| {
            say("building httpwg-cli, once, in about two minutes");
            let build = folder.join("build");
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo
                .args(["install", "httpwg-cli", "--quiet", "--locked", "--version", HTTPWG_CLI])
                .arg("--root")
                .arg(folder)
                .arg("--target-dir")
                .arg(&build);
            run(&mut cargo)?;
            remove_dir(&build)
        })
    })?;
    Ok(folder.join("bin/httpwg"))
}

/// An environment with what a list names, and nothing else.
fn build_venv(folder: &Path, requirements: &str) -> Result<PathBuf> {
    // Debian's, wherever there is one: another user's version of Python may be closed to the users of a pod.
    let system = Path::new("/usr/bin/python3");
    let venv = folder.join("venv");
    run(
        Command::new(if system.exists() { system } else { Path::new("python3") })
            .args(["-m", "venv"])
            .arg(&venv),
    )?;
    let python = venv.join("bin/python");
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--requirement",
    ];
    run(Command::new(&python).args(pip).arg(here(requirements)))?;
    run(Command::new(&python).args(["-m", "pip", "check"]))?;
    Ok(python)
}

fn build_python(folder: &Path) -> Result<()> {
    let python = build_venv(folder, "tools/requirements.txt")?;
    let (modules, protos) = (folder.join("modules"), here("apps/proto"));
    fs::create_dir(&modules)?;
    let mut protoc = Command::new(&python);
    protoc.args(["-m", "grpc_tools.protoc", "--proto_path"]).arg(&protos);
    protoc
        .arg("--python_out")
        .arg(&modules)
        .arg("--grpc_python_out")
        .arg(&modules)
        .args(PROTOS);
    run(protoc.current_dir(&protos))?;
    // `grpc` is the name of grpcio's own package: the generated ones move below a name of their own.
    move_generated(&modules)
}

/// The generator names its modules after the protocol's folders; `grpc.testing` would hide the library `grpc`.
fn move_generated(modules: &Path) -> Result<()> {
    let target = modules.join("interop");
    fs::rename(modules.join("grpc/testing"), &target)?;
    fs::remove_dir(modules.join("grpc"))?;
    for entry in fs::read_dir(&target)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?.replace("from grpc.testing import", "from interop import");
        fs::write(&path, text)?;
    }
    Ok(())
}

/// Runs a build step, and fails with the end of what it wrote.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        bail!(
            "{program} failed ({}): {tail}\n(the command was {command:?})",
            output.status
        );
    }
    Ok(())
}

/// A path of this package.
pub(crate) fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Finds out once a process; what failed once fails again with the same words.
pub(crate) fn once<T: Clone>(cell: &OnceLock<Result<T, String>>, find: impl FnOnce() -> Result<T>) -> Result<T> {
    cell.get_or_init(|| find().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)
}

static GO: OnceLock<Result<PathBuf, String>> = OnceLock::new();
static JAEGER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
static HTTPWG: OnceLock<Result<PathBuf, String>> = OnceLock::new();
static SPIFFE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
const JAEGER_VERSION: &str = "v1.76.0";
const JAEGER_SUM: &str = "h1:sWCOOF1dr+NL0PLil7mFo3BqqQL8k4WiM7aguFbc14g=";
const HTTPWG_CLI: &str = "0.2.5";
const PROTOS: [&str; 3] = [
    "grpc/testing/messages.proto",
    "grpc/testing/test.proto",
    "helloworld/greeter.proto",
];
