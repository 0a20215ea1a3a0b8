//! The sidecar of a pod, started as an injected pod starts it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::{Deref, DerefMut},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    Metrics, Pod, Program, User, build,
    http::{self, Answer},
};

/// A sidecar that carries the pod's traffic; the program's own handle is what it dereferences to.
#[derive(Debug)]
pub struct Sidecar {
    pod: Pod,
    user: User,
    settings: Vec<(String, String)>,
    program: Program,
}

impl Sidecar {
    pub(crate) fn start(pod: &Pod, settings: &[(&str, &str)]) -> Result<Sidecar> {
        let mut sidecar = Sidecar::begin(pod, settings)?;
        sidecar.await_ready()?;
        Ok(sidecar)
    }

    /// Starts it, with its rules, and does not wait until it is ready.
    pub(crate) fn begin(pod: &Pod, settings: &[(&str, &str)]) -> Result<Sidecar> {
        Sidecar::begin_as(pod, User::Sidecar, settings)
    }

    /// The same, run by another user.
    pub(crate) fn begin_as(pod: &Pod, user: User, settings: &[(&str, &str)]) -> Result<Sidecar> {
        let settings: Vec<_> = settings
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        let mut redirect = pod.command(User::Root, pod.place(&build::sidecar()?)?);
        let heeded = settings.iter().filter(|(key, _)| key != "LD_PRELOAD");
        redirect.arg("redirect").envs(heeded.cloned());
        pod.run("redirect", redirect)?;
        let program = launch(pod, user, &settings)?;
        Ok(Sidecar {
            pod: pod.clone(),
            user,
            settings,
            program,
        })
    }

    /// Starts the proxy again, with the rules as they are: after a crash, say.
    pub fn restart(&mut self) -> Result<()> {
        self.begin_again()?;
        self.await_ready()
    }

    /// The same, without waiting until it is ready.
    pub fn begin_again(&mut self) -> Result<()> {
        self.program.kill()?;
        self.program = launch(&self.pod, self.user, &self.settings)?;
        Ok(())
    }

    fn await_ready(&mut self) -> Result<()> {
        let (pod, program) = (&self.pod, &mut self.program);
        let mut last = String::from("nothing");
        let mut running = true;
        let ready = crate::wait_until(Duration::from_secs(15), "the sidecar is ready", || {
            running = program.is_running();
            match http::get(pod, ADMIN, "/ready") {
                Ok(answer) if answer.status == 200 => return true,
                Ok(answer) => last = format!("{} {}", answer.status, answer.body),
                Err(error) => last = format!("{error:#}"),
            }
            !running
        });
        if !running {
            bail!(
                "the sidecar of {} ended before it was ready:\n{}",
                pod.name(),
                program.output()
            );
        }
        ready.with_context(|| {
            format!(
                "pod {}: its last answer was: {last}; it wrote:\n{}",
                pod.name(),
                program.output()
            )
        })
    }

    /// What its metrics say now.
    pub fn metrics(&self) -> Result<Metrics> {
        let answer = self.admin("/metrics")?;
        if answer.status != 200 {
            bail!(
                "the sidecar of {} answers {} to /metrics: {}",
                self.pod.name(),
                answer.status,
                answer.body
            );
        }
        Ok(Metrics::parse(&answer.body))
    }

    /// Asks its admin port, on loopback.
    pub fn admin(&self, path: &str) -> Result<Answer> {
        http::get(&self.pod, ADMIN, path)
    }
}

impl Deref for Sidecar {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Sidecar {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

fn launch(pod: &Pod, user: User, settings: &[(String, String)]) -> Result<Program> {
    // A library that is loaded first is for the proxy alone, not for the programs that lead to it as root.
    let (preload, settings): (Vec<_>, Vec<_>) = settings.iter().cloned().partition(|(key, _)| key == "LD_PRELOAD");
    let program = match preload[..] {
        [] => pod.place(&build::sidecar()?),
        [..] => pod.place_as(&build::sidecar_shared()?, "sidecar-shared"),
    }?;
    let mut command = pod.command(user, "env");
    command.args(preload.iter().map(|(key, value)| format!("{key}={value}")));
    command.arg(program).arg("proxy").envs(settings);
    pod.start("sidecar", command)
}

const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4191);
