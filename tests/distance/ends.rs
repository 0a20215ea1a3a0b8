//! Who sends and who receives: raw TCP by threads, gRPC messages by the `h2` crate.

use std::{
    future::poll_fn,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use support::{Distance, Pod, distance::Path, in_netns};
use tokio::runtime::Runtime;

use crate::{Way, at_home};

/// As many bytes as a TCP connection carries over a path.
pub(crate) struct Raw {
    received: Arc<AtomicU64>,
    ends: [TcpStream; 2],
    threads: Vec<JoinHandle<()>>,
    _path: Distance,
}

impl Raw {
    /// In the network of the calling thread.
    pub(crate) fn start(way: Way, path: Path) -> Result<Raw> {
        let listener = TcpListener::bind(at_home(0))?;
        let path = Distance::start(at_home(0), listener.local_addr()?, path)?;
        let caller = TcpStream::connect(path.address())?;
        let (server, _) = listener.accept()?;
        let (from, to) = match way {
            Way::Down => (&server, &caller),
            Way::Up => (&caller, &server),
        };
        let received = Arc::new(AtomicU64::new(0));
        let (mut from, mut to, count) = (from.try_clone()?, to.try_clone()?, Arc::clone(&received));
        let sending = thread::spawn(move || while from.write_all(&[0; 64 << 10]).is_ok() {});
        let receiving = thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(read @ 1..) = to.read(&mut buffer) {
                count.fetch_add(read as u64, Relaxed);
            }
        });
        Ok(Raw {
            received,
            ends: [caller, server],
            threads: vec![sending, receiving],
            _path: path,
        })
    }

    pub(crate) fn received(&self) -> &AtomicU64 {
        &self.received
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What an application lets others send it: on a stream, and in all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows {
    stream: u32,
    connection: u32,
}

impl Windows {
    /// What every application begins with, and what does for a near one.
    pub(crate) const FIRST: Windows = Windows {
        stream: 65_535,
        connection: 65_535,
    };
    /// Far more than the path holds. What a far reader takes is its own business: no proxy can send it more.
    pub(crate) const LARGE: Windows = Windows {
        stream: 16 << 20,
        connection: 64 << 20,
    };
}

/// One streaming call whose messages have no end, until it drops.
pub(crate) struct Bulk {
    received: Arc<AtomicU64>,
    _runtime: Runtime,
}

impl Bulk {
    /// The server listens in its pod, and the caller dials in its own.
    pub(crate) fn start(
        way: Way,
        windows: Windows,
        server: (&Pod, SocketAddr),
        caller: (&Pod, SocketAddr),
    ) -> Result<Bulk> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let listener = in_netns(server.0, || TcpListener::bind(server.1))??;
        let socket = in_netns(caller.0, || TcpStream::connect(caller.1))??;
        for end in [
            listener.set_nonblocking(true),
            socket.set_nonblocking(true),
            socket.set_nodelay(true),
        ] {
            end.context("a TCP socket")?;
        }
        let received = Arc::new(AtomicU64::new(0));
        runtime.spawn(serve(listener, windows, Arc::clone(&received)));
        runtime.spawn(call(way, windows, socket, caller.1, Arc::clone(&received)));
        Ok(Bulk {
            received,
            _runtime: runtime,
        })
    }

    pub(crate) fn received(&self) -> &AtomicU64 {
        &self.received
    }
}

/// Answers each call with messages, and counts those of the request.
async fn serve(listener: TcpListener, windows: Windows, received: Arc<AtomicU64>) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let received = Arc::clone(&received);
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder
                .initial_window_size(windows.stream)
                .initial_connection_window_size(windows.connection);
            let mut connection = builder.handshake::<_, Bytes>(socket).await?;
            while let Some(call) = connection.accept().await {
                let (request, mut respond) = call?;
                let head = Response::builder()
                    .header("content-type", "application/grpc")
                    .body(())?;
                let answer = respond.send_response(head, false)?;
                if request.uri().path() == DOWN {
                    tokio::spawn(pour(answer));
                } else {
                    let received = Arc::clone(&received);
                    tokio::spawn(async move {
                        let _open = answer;
                        drink(request.into_body(), received).await
                    });
                }
            }
            anyhow::Ok(())
        });
    }
}

async fn call(
    way: Way,
    windows: Windows,
    socket: TcpStream,
    authority: SocketAddr,
    received: Arc<AtomicU64>,
) -> Result<()> {
    let socket = tokio::net::TcpStream::from_std(socket)?;
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(windows.stream)
        .initial_connection_window_size(windows.connection);
    let (sender, connection) = builder.handshake::<_, Bytes>(socket).await?;
    tokio::spawn(connection);
    let path = match way {
        Way::Down => DOWN,
        Way::Up => UP,
    };
    let request = Request::post(format!("http://{authority}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (response, body) = sender.ready().await?.send_request(request, false)?;
    match way {
        Way::Down => {
            let _open = body;
            drink(response.await?.into_body(), received).await?;
        }
        Way::Up => pour(body).await?,
    }
    Ok(())
}

/// Messages of 16 KiB, one after the other.
async fn pour(mut body: SendStream<Bytes>) -> Result<(), h2::Error> {
    let mut message = vec![0; 5 + MESSAGE];
    message[1..5].copy_from_slice(&(MESSAGE as u32).to_be_bytes());
    let message = Bytes::from(message);
    loop {
        let mut left = message.clone();
        while !left.is_empty() {
            body.reserve_capacity(left.len());
            let Some(room) = poll_fn(|cx| body.poll_capacity(cx)).await else {
                return Err(Reason::CANCEL.into());
            };
            let piece = left.split_to(room?.min(left.len()));
            body.send_data(piece, false)?;
        }
    }
}

async fn drink(mut body: RecvStream, received: Arc<AtomicU64>) -> Result<(), h2::Error> {
    while let Some(piece) = body.data().await {
        let piece = piece?;
        received.fetch_add(piece.len() as u64, Relaxed);
        body.flow_control().release_capacity(piece.len())?;
    }
    Ok(())
}

const DOWN: &str = "/bulk.Test/Down";
const UP: &str = "/bulk.Test/Up";
const MESSAGE: usize = 16 << 10;
