//! A real Jaeger in a pod: it takes traces by OTLP, and says what it has by its query API.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Pod, Program, User, http, tools, wait_until};

/// A running Jaeger; everything that it has is in its memory.
#[derive(Debug)]
pub struct Jaeger {
    pod: Pod,
    _program: Program,
}

/// Where it takes OTLP/gRPC.
pub const OTLP_GRPC: u16 = 4317;
/// Where it takes OTLP/HTTP.
pub const OTLP_HTTP: u16 = 4318;
/// Where it can be asked.
pub const QUERY: u16 = 16686;
const HEALTH: u16 = 14269;

impl Jaeger {
    /// Starts it in a pod, on every address, and waits until it takes traces.
    pub fn start(pod: &Pod) -> Result<Jaeger> {
        let mut command = pod.command(User::App, pod.place(&tools::jaeger()?)?);
        command.env("SPAN_STORAGE_TYPE", "memory");
        let program = pod.start("jaeger", command)?;
        let health = SocketAddr::from((Ipv4Addr::LOCALHOST, HEALTH));
        wait_until(Duration::from_secs(30), "Jaeger is ready", || {
            http::get(pod, health, "/").is_ok_and(|answer| answer.status == 200)
        })?;
        Ok(Jaeger {
            pod: pod.clone(),
            _program: program,
        })
    }

    /// The trace with this id (32 hexadecimal digits) as `/api/traces/ID` shows it, once it has that many spans.
    pub fn trace(&self, id: &str, spans: usize) -> Result<Value> {
        let mut trace = Value::Null;
        wait_until(
            Duration::from_secs(10),
            &format!("Jaeger has {spans} spans of {id}"),
            || {
                let answer = self.ask(&format!("/api/traces/{id}"));
                trace = answer.map_or(Value::Null, |mut answer| answer["data"][0].take());
                trace["spans"].as_array().is_some_and(|all| all.len() == spans)
            },
        )?;
        Ok(trace)
    }

    /// Asks a path of its query API.
    pub fn ask(&self, path: &str) -> Result<Value> {
        let answer = http::get(&self.pod, (Ipv4Addr::LOCALHOST, QUERY).into(), path)?;
        ensure!(
            answer.status == 200,
            "Jaeger answers {} to {path}: {}",
            answer.status,
            answer.body
        );
        serde_json::from_str(&answer.body).with_context(|| format!("Jaeger's answer to {path} is no JSON"))
    }
}
