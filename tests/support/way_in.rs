//! A way into the mesh for callers that have no certificate: plain TCP comes in at its loopback, and goes on in mTLS.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portunus_proto::SpiffeId;
use portunus_sidecar::{
    connect::resolve::{self, Names},
    control::{self, Address},
    tls::{self, Alpn, Credential},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Control, Family, Member, Pod, netns};

/// How long control may take to certify, and a handshake to finish.
const PATIENCE: Duration = Duration::from_secs(15);

/// A relay in a pod, a member of the mesh. It ends when this drops.
#[derive(Debug)]
pub struct WayIn {
    stop: CancellationToken,
    thread: Option<JoinHandle<Result<()>>>,
}

impl WayIn {
    /// Listens on `port` of the pod's loopback, as a member without a sidecar, and leads each connection to the same port of
    /// `server`, by the same family. It speaks the mesh's HTTP/2 to it (ALPN), and to nobody but `account`.
    ///
    /// # Errors
    /// When control does not certify it, or it cannot listen.
    pub fn open(pod: &Pod, control: &Control, server: &Pod, account: &str, port: u16) -> Result<WayIn> {
        let member = Member {
            account: "way-in",
            app: "way-in",
            ports: &[],
        };
        let told = control.enrol(pod, &member)?;
        control.until_known()?;
        let said = |name: &str| told.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let address: Address = said("PORTUNUS_CONTROL_ADDRESS")
            .context("control has an address")?
            .parse()?;
        let identity: SpiffeId = said("PORTUNUS_CONTROL_IDENTITY")
            .context("control has an identity")?
            .parse()?;
        let mut settings = control::Settings::new(vec![address], identity, vec![control.root_der()?]);
        settings.join_token = said("PORTUNUS_JOIN_TOKEN_FILE").map(Into::into);

        let lanes = Family::ALL
            .map(|family| Ok((loopback(family, port), server.at(family, port)?)))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let expected: SpiffeId = Control::id(account).parse()?;
        let stop = CancellationToken::new();
        let heard = stop.clone();
        let (ready, is_ready) = mpsc::channel();
        let namespace = pod.namespace().to_owned();
        let thread = thread::spawn(move || {
            netns::inside(&namespace, || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(lead(settings, lanes, expected, heard, ready))
            })?
        });
        let mut way = WayIn {
            stop,
            thread: Some(thread),
        };
        if is_ready.recv_timeout(2 * PATIENCE).is_err() {
            way.end().context("the way into the mesh")?;
        }
        Ok(way)
    }

    fn end(&mut self) -> Result<()> {
        self.stop.cancel();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => anyhow::bail!("it panicked"),
            None => Ok(()),
        }
    }
}

impl Drop for WayIn {
    fn drop(&mut self) {
        if let Err(why) = self.end() {
            eprintln!("the way into the mesh: {why:#}");
        }
    }
}

/// Where it listens.
pub fn loopback(family: Family, port: u16) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    (address, port).into()
}

async fn lead(
    settings: control::Settings,
    lanes: Vec<(SocketAddr, SocketAddr)>,
    expected: SpiffeId,
    stop: CancellationToken,
    ready: mpsc::Sender<()>,
) -> Result<()> {
    let tracker = TaskTracker::new();
    let names = Names::start(resolve::Settings::default(), &tracker, stop.clone());
    let control = control::start(settings, &names, &tracker, stop.clone())?;
    let mut statuses = control.statuses();
    let own = control.credential();
    // What it returns is a lock that control would wait for: not kept.
    let certified = async { statuses.wait_for(|_| own.load().is_some()).await.is_ok() };
    let certified = tokio::time::timeout(PATIENCE, certified).await;
    ensure!(
        certified == Ok(true),
        "control does not certify it: {:?}",
        control.status()
    );

    for (from, to) in lanes {
        let listener = TcpListener::bind(from)
            .await
            .with_context(|| format!("cannot listen on {from}"))?;
        let (own, expected) = (own.clone(), expected.clone());
        let accept = async move {
            while let Ok((caller, _)) = listener.accept().await {
                let (Some(credential), expected) = (own.load_full(), expected.clone()) else {
                    continue;
                };
                tokio::spawn(async move {
                    if let Err(why) = carry(caller, to, &credential, &expected).await {
                        eprintln!("the way into the mesh, to {to}: {why:#}");
                    }
                });
            }
        };
        tracker.spawn(stop.clone().run_until_cancelled_owned(accept));
    }
    let _ = ready.send(());
    stop.cancelled().await;
    Ok(())
}

async fn carry(mut caller: TcpStream, to: SocketAddr, credential: &Credential, expected: &SpiffeId) -> Result<()> {
    caller.set_nodelay(true)?;
    let socket = TcpStream::connect(to).await.context("cannot connect")?;
    socket.set_nodelay(true)?;
    let (socket, session) = tls::connect(socket, credential, expected, Alpn::H2, PATIENCE).await?;
    let mut server = tls::Stream::new(socket, session);
    // How a connection ends is between its ends.
    let _ = copy_bidirectional(&mut caller, &mut server).await;
    Ok(())
}
