//! nghttpd: an HTTP/2 server that is no gRPC server, and knows nothing of a mesh.

use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, time::Duration};

use anyhow::Result;

use crate::{Pod, Program, User, http, wait_until};

/// Starts it in a pod, on every address, with one page: `/index.html`, which is `/` too.
pub fn start(pod: &Pod, port: u16) -> Result<Program> {
    let pages = pod.folder().join("pages");
    fs::create_dir(&pages)?;
    fs::set_permissions(&pages, fs::Permissions::from_mode(0o755))?;
    fs::write(pages.join("index.html"), "<p>a page</p>\n")?;
    let mut command = pod.command(User::App, "nghttpd");
    command.args(["--no-tls", "-d"]).arg(&pages).arg(port.to_string());
    let server = pod.start("nghttpd", command)?;
    // By loopback: by its own address the pod's sidecar would take any call.
    let address = (Ipv4Addr::LOCALHOST, port).into();
    wait_until(Duration::from_secs(10), "nghttpd listens", || {
        // It speaks no HTTP/1, and closes: that it takes the connection is enough.
        !matches!(http::get(pod, address, "/"), Err(error) if format!("{error:#}").contains("refused"))
    })?;
    Ok(server)
}
