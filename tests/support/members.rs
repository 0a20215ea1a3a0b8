//! Two members of a mesh whose ports take mTLS alone: a client that serves nothing, and a server.

use anyhow::Result;

use crate::{Control, Member, Mesh, Pod, Sidecar};

/// Their sidecars, and the mesh's control. None of them is in the pods of the two.
pub struct Members {
    /// Beside the client.
    pub client: Sidecar,
    /// Beside the server.
    pub server: Sidecar,
    /// It has to live as long.
    pub control: Control,
}

impl Members {
    /// Whether tests that run in plain and in mTLS are asked to run in mTLS (`PORTUNUS_TEST_MTLS=1`).
    pub fn are_asked_for() -> bool {
        std::env::var_os("PORTUNUS_TEST_MTLS").is_some_and(|value| value == "1")
    }

    /// Both, ready. The server serves `ports`, and its sidecar has `settings` beside the defaults.
    ///
    /// # Errors
    /// When one does not become ready.
    pub fn join(mesh: &Mesh, client: &Pod, server: &Pod, ports: &[u16], settings: &[(&str, &str)]) -> Result<Members> {
        let control = mesh.control(&[])?;
        let member = |account, ports| Member {
            account,
            app: account,
            ports,
        };
        let strict = [("PORTUNUS_MTLS", "strict")];
        Ok(Members {
            client: client.member(&control, &member("client", &[]), &strict)?,
            server: server.member(&control, &member("server", ports), &[&strict, settings].concat())?,
            control,
        })
    }
}
