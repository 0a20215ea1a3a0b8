//! The ways into a sidecar's engine for suites that judge HTTP/2: through outbound, through inbound, and through inbound in
//! mTLS. Behind each is nghttpd.

use std::net::SocketAddr;

use anyhow::Result;

use crate::{Control, Family, Member, Mesh, Pod, Program, Sidecar, WayIn, nghttpd, way_in};

/// Where nghttpd listens, and the suite calls.
const PORT: u16 = 8080;

/// A way in, open for as long as this lives.
pub struct Conformance {
    // They end in this order.
    /// What shows a certificate for a suite that has none.
    in_mtls: Option<(WayIn, Control)>,
    _backend: Program,
    sidecar: Sidecar,
    direction: &'static str,
    server: Pod,
    /// Where the suite runs.
    pub client: Pod,
}

impl Conformance {
    /// The suite is the application; the backend knows nothing of a mesh. The port is declared, so that what is no HTTP/2 is
    /// refused as such rather than tunnelled past the engine.
    ///
    /// # Errors
    /// As of all that starts programs.
    pub fn through_outbound(mesh: &Mesh) -> Result<Conformance> {
        let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
        let sidecar = client.sidecar_with(&[("PORTUNUS_OUTBOUND_PROTOCOL", &format!("{PORT}=h2c"))])?;
        Conformance::before(client, server, sidecar, "outbound", None)
    }

    /// The caller is the suite, from a pod without a sidecar.
    ///
    /// # Errors
    /// As of all that starts programs.
    pub fn through_inbound(mesh: &Mesh) -> Result<Conformance> {
        let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
        let sidecar = server.sidecar_with(&[("PORTUNUS_PROTOCOL", &format!("{PORT}=h2c"))])?;
        Conformance::before(client, server, sidecar, "inbound", None)
    }

    /// The same where nothing comes in plain. Suites have no certificate to show: a relay of ours shows one for them.
    ///
    /// # Errors
    /// As of all that starts programs.
    pub fn through_inbound_in_mtls(mesh: &Mesh) -> Result<Conformance> {
        let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
        let control = mesh.control(&[])?;
        let member = Member {
            account: "server",
            app: "server",
            ports: &[PORT],
        };
        let sidecar = server.member(&control, &member, &[("PORTUNUS_MTLS", "strict")])?;
        let way_in = WayIn::open(&client, &control, &server, "server", PORT)?;
        Conformance::before(client, server, sidecar, "inbound", Some((way_in, control)))
    }

    fn before(
        client: Pod,
        server: Pod,
        sidecar: Sidecar,
        direction: &'static str,
        in_mtls: Option<(WayIn, Control)>,
    ) -> Result<Conformance> {
        let backend = nghttpd::start(&server, PORT)?;
        Ok(Conformance {
            client,
            server,
            sidecar,
            direction,
            in_mtls,
            _backend: backend,
        })
    }

    /// Where the suite is to call.
    ///
    /// # Errors
    /// When the pod has no address of this family.
    pub fn address(&self, family: Family) -> Result<SocketAddr> {
        match self.in_mtls {
            Some(_) => Ok(way_in::loopback(family, PORT)),
            None => self.server.at(family, PORT),
        }
    }

    /// How many connections the engine has taken in.
    ///
    /// # Errors
    /// When the sidecar does not say.
    pub fn connections(&self) -> Result<f64> {
        let labels = [("direction", self.direction), ("side", "downstream")];
        let metrics = self.sidecar.metrics()?;
        Ok(metrics.sum("portunus_connections_opened_total", &labels))
    }
}
