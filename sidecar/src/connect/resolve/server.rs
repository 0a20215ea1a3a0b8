//! One name server, and speaking with it.
//!
//! hickory speaks DNS: the messages, the random ports and ids, truncation and the second try by TCP, chains of CNAME.
//! How often to send is decided here: hickory would send a datagram every third of a second.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use hickory_resolver::{
    ConnectionProvider, PoolContext, Resolver,
    config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider, tcp::TcpClientStream, udp::UdpClientStream, xfer::DnsExchange},
};

use super::{Settings, question::Question};

/// A name server.
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    resolver: Resolver<Wire>,
}

impl Server {
    pub(super) fn new(addr: SocketAddr, timeout: Duration, settings: &Settings) -> Result<Self, String> {
        let mut udp = ConnectionConfig::udp();
        let mut tcp = ConnectionConfig::tcp();
        (udp.port, tcp.port) = (addr.port(), addr.port());
        let server = NameServerConfig::new(addr.ip(), true, vec![udp, tcp]);
        let config = ResolverConfig::from_parts(None, vec![], vec![server]);
        let wire = Wire {
            runtime: TokioRuntimeProvider::new(),
            resend: settings.ask_interval,
        };
        let mut builder = Resolver::builder_with_config(config, wire);
        let options = builder.options_mut();
        options.timeout = timeout;
        options.attempts = 0;
        options.num_concurrent_reqs = 1;
        options.max_active_requests = settings.max_in_flight.max(1);
        options.use_hosts_file = ResolveHosts::Never;
        // Time is kept by the questions: an answer from a cache would have lost part of its TTL.
        options.cache_size = 0;
        options.edns0 = true;
        let resolver = builder
            .build()
            .map_err(|error| format!("cannot ask the name server {addr}: {error}"))?;
        Ok(Self { addr, resolver })
    }

    /// Asks it. Its answer holds for no longer than the TTL from now on: nothing is kept here.
    pub(super) async fn lookup(&self, question: &Question) -> Result<Lookup, NetError> {
        let asked = self.resolver.lookup(question.name.clone(), question.kind.record_type());
        asked.await
    }
}

/// Sockets to name servers that send a datagram again no sooner than an interval later.
#[derive(Clone)]
struct Wire {
    runtime: TokioRuntimeProvider,
    resend: Duration,
}

impl ConnectionProvider for Wire {
    type Conn = DnsExchange<TokioRuntimeProvider>;
    type FutureConn = Pin<Box<dyn Future<Output = Result<Self::Conn, NetError>> + Send + 'static>>;
    type RuntimeProvider = TokioRuntimeProvider;

    fn new_connection(
        &self,
        ip: IpAddr,
        config: &ConnectionConfig,
        pool: &PoolContext,
    ) -> Result<Self::FutureConn, NetError> {
        let server = SocketAddr::new(ip, config.port);
        let (timeout, runtime) = (pool.options.timeout, self.runtime.clone());
        match &config.protocol {
            ProtocolConfig::Udp => {
                let millis = u64::try_from(self.resend.as_millis()).unwrap_or(u64::MAX);
                let sends = timeout.as_millis() / self.resend.as_millis().max(1);
                let exchange = UdpClientStream::builder(server, runtime)
                    .with_timeout(Some(timeout))
                    .with_retry_interval_floor(millis)
                    .with_max_retries(u8::try_from(sends.max(1)).unwrap_or(u8::MAX))
                    .exchange();
                Ok(Box::pin(async move { Ok(exchange) }))
            }
            ProtocolConfig::Tcp => {
                let most = Some(pool.options.max_active_requests);
                Ok(Box::pin(TcpClientStream::exchange(
                    server, None, timeout, most, runtime,
                )))
            }
            #[allow(unreachable_patterns)] // other protocols are features of hickory that are off
            _ => Err(NetError::from("only UDP and TCP are spoken here")),
        }
    }

    fn runtime_provider(&self) -> &TokioRuntimeProvider {
        &self.runtime
    }
}
