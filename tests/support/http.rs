//! One plain HTTP request from inside a pod, for admin ports and for servers beyond the tunnel.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{Pod, in_netns};

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 200, unless something is wrong.
    pub status: u16,
    /// All that followed the header.
    pub body: String,
}

/// Asks `path` of an address as it is seen from inside the pod.
pub fn get(pod: &Pod, address: SocketAddr, path: &str) -> Result<Answer> {
    ask(pod, address, "GET", path)
}

/// Asks with another method.
pub fn ask(pod: &Pod, address: SocketAddr, method: &str, path: &str) -> Result<Answer> {
    let asked = in_netns(pod, || exchange(address, method, path))?;
    asked.with_context(|| format!("{method} http://{address}{path} from inside pod {}", pod.name()))
}

fn exchange(address: SocketAddr, method: &str, path: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection, in one piece.
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no header")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("the answer has no status")?;
    Ok(Answer {
        status,
        body: body.to_string(),
    })
}

const PATIENCE: Duration = Duration::from_secs(5);
