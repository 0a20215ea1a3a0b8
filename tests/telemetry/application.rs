//! An application that answers as it is told, and a caller that says what it likes: HTTP/2 by the h2 crate.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use parking_lot::Mutex;
use support::{Pod, in_netns};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// What an application answers.
#[derive(Clone, Default)]
pub(crate) struct Answer {
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// How often the body is sent, beside once.
    pub(crate) again: usize,
    pub(crate) trailers: Vec<(String, String)>,
}

/// What an application does with a call.
#[derive(Clone)]
pub(crate) enum Reply {
    Answer(Answer),
    Reset(h2::Reason),
    /// It never answers.
    Silence,
}

/// Chooses a reply by the path without its slash.
pub(crate) type Choose = Arc<dyn Fn(&str) -> Reply + Send + Sync>;

impl Reply {
    /// An answer with a message and this status.
    pub(crate) fn status(code: &str) -> Reply {
        Reply::Answer(Answer {
            trailers: vec![("grpc-status".to_owned(), code.to_owned())],
            ..Answer::default()
        })
    }
}

/// An application; it ends when this drops.
pub(crate) struct Application {
    heard: Heard,
    _runtime: Runtime,
}

/// All that somebody was sent.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    pub(crate) fn all(&self) -> Vec<u8> {
        self.0.lock().clone()
    }

    pub(crate) fn bytes(&self, bytes: &[u8]) {
        let mut heard = self.0.lock();
        heard.extend_from_slice(bytes);
        heard.push(b'\n');
    }

    fn fields(&self, fields: &HeaderMap) {
        for (name, value) in fields {
            self.bytes(&[name.as_str().as_bytes(), b": ", value.as_bytes()].concat());
        }
    }
}

impl Application {
    /// Listens at all addresses: speaks gRPC on `h2`, and on each of the other ports says the same to whoever comes, once that has said something.
    pub(crate) fn start(pod: &Pod, h2: u16, choose: Choose, others: Vec<(u16, Vec<u8>)>) -> Result<Application> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let heard = Heard::default();
        let ears = heard.clone();
        listen(pod, &runtime, h2, move |socket| {
            tokio::spawn(serve(socket, choose.clone(), ears.clone()));
        })?;
        for (port, says) in others {
            let (says, ears) = (Arc::new(says), heard.clone());
            listen(pod, &runtime, port, move |socket| {
                tokio::spawn(answer_bytes(socket, says.clone(), ears.clone()));
            })?;
        }
        Ok(Application {
            heard,
            _runtime: runtime,
        })
    }

    /// All that it was sent.
    pub(crate) fn heard(&self) -> Vec<u8> {
        self.heard.all()
    }
}

/// Listens at all addresses, and hands out who comes.
fn listen(pod: &Pod, runtime: &Runtime, port: u16, take: impl Fn(TcpStream) + Send + 'static) -> Result<()> {
    let listener = in_netns(pod, || {
        let listener = std::net::TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port))?;
        listener.set_nonblocking(true)?;
        anyhow::Ok(listener)
    })??;
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (socket, _) = listener.accept().await?;
            take(socket);
        }
        #[expect(unreachable_code, reason = "it gives the block its type")]
        Ok::<_, std::io::Error>(())
    });
    Ok(())
}

/// Says the same to whoever has said something, and hears the rest.
async fn answer_bytes(mut socket: TcpStream, says: Arc<Vec<u8>>, ears: Heard) {
    let mut buffer = vec![0; 16 << 10];
    let read = socket.read(&mut buffer).await.unwrap_or(0);
    ears.bytes(&buffer[..read]);
    let _ = socket.write_all(&says).await;
    let _ = socket.shutdown().await;
    while let Ok(read) = socket.read(&mut buffer).await
        && read > 0
    {
        ears.bytes(&buffer[..read]);
    }
}

async fn serve(socket: TcpStream, choose: Choose, ears: Heard) -> Result<()> {
    let mut connection = h2::server::handshake(socket).await?;
    while let Some(asked) = connection.accept().await {
        let (request, mut to) = asked?;
        let (choose, ears) = (choose.clone(), ears.clone());
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            ears.bytes(head.uri.to_string().as_bytes());
            ears.fields(&head.headers);
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                ears.bytes(&data);
            }
            if let Some(trailers) = body.trailers().await? {
                ears.fields(&trailers);
            }
            let answer = match choose(head.uri.path().trim_start_matches('/')) {
                Reply::Answer(answer) => answer,
                Reply::Reset(reason) => {
                    to.send_reset(reason);
                    return Ok(());
                }
                Reply::Silence => {
                    // Until the caller has gone.
                    let _ = poll_fn(|context| to.poll_reset(context)).await;
                    return Ok(());
                }
            };
            let mut response = Response::builder().header("content-type", "application/grpc");
            for (name, value) in &answer.headers {
                response = response.header(name, value);
            }
            let mut to = to.send_response(response.body(())?, false)?;
            for _ in 0..=answer.again {
                to.send_data(framed(&answer.body), false)?;
            }
            to.send_trailers(map(&answer.trailers)?)?;
            anyhow::Ok(())
        });
    }
    Ok(())
}

/// A message of gRPC's.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
    [&[0][..], &length, message].concat().into()
}

fn map(fields: &[(String, String)]) -> Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(http::HeaderName::try_from(name.as_str())?, value.parse()?);
    }
    Ok(map)
}

/// What a call is made of.
#[derive(Clone, Default)]
pub(crate) struct Call {
    /// `http://AUTHORITY/PATH`.
    pub(crate) url: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// How often the body is sent, beside once.
    pub(crate) again: usize,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Call {
    /// A call of a method by a name and a port, with nothing more.
    pub(crate) fn of(authority: &str, method: &str) -> Call {
        Call {
            url: format!("http://{authority}/{method}"),
            ..Call::default()
        }
    }

    /// With a field more.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Call {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Makes calls one after the other from inside a pod, over one connection to `to`; returns all that was answered. Calls that
/// fail are as good as others: why they do stands there too.
pub(crate) fn call(from: &Pod, to: SocketAddr, calls: &[Call]) -> Result<Vec<u8>> {
    let heard = Heard::default();
    let ears = heard.clone();
    in_netns(from, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            for of in calls {
                // Each has a connection of its own: a call may end it.
                if let Err(why) = timeout(PATIENCE, one(to, of, &ears)).await.context("nobody answers")? {
                    ears.bytes(format!("{why:#}").as_bytes());
                }
            }
            anyhow::Ok(())
        })
    })??;
    Ok(heard.all())
}

async fn one(to: SocketAddr, call: &Call, ears: &Heard) -> Result<()> {
    let socket = TcpStream::connect(to).await?;
    let (client, connection) = h2::client::handshake(socket).await?;
    let connection = tokio::spawn(connection);
    let ended = ask(client, call, ears).await;
    connection.abort();
    ended
}

/// Makes the same call so often, some at once, over one connection. None may fail; returns how long the longest took.
pub(crate) fn flood(from: &Pod, to: SocketAddr, of: &Call, times: usize) -> Result<Duration> {
    const AT_ONCE: usize = 20;
    in_netns(from, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (client, connection) = h2::client::handshake(TcpStream::connect(to).await?).await?;
            let _connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
            let lane = async |lane: usize| {
                let mut longest = Duration::ZERO;
                for _ in (lane..times).step_by(AT_ONCE) {
                    let (began, ears) = (Instant::now(), Heard::default());
                    timeout(PATIENCE, ask(client.clone(), of, &ears))
                        .await
                        .context("nobody answers")??;
                    ensure!(
                        ears.all().ends_with(b"grpc-status: 0\n"),
                        "{}",
                        ears.all().escape_ascii()
                    );
                    longest = longest.max(began.elapsed());
                }
                anyhow::Ok(longest)
            };
            let mut lanes: Vec<_> = (0..AT_ONCE).map(|number| Box::pin(lane(number))).collect();
            let mut longest = Duration::ZERO;
            for ended in join_all(&mut lanes).await {
                longest = longest.max(ended?);
            }
            Ok(longest)
        })
    })?
}

/// All of them at once.
async fn join_all<T>(lanes: &mut [Pin<Box<impl Future<Output = T>>>]) -> Vec<T> {
    let mut ended: Vec<Option<T>> = lanes.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut is_all = true;
        for (lane, ended) in lanes.iter_mut().zip(&mut ended) {
            if ended.is_none() {
                match lane.as_mut().poll(context) {
                    Poll::Ready(end) => *ended = Some(end),
                    Poll::Pending => is_all = false,
                }
            }
        }
        if is_all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    ended.into_iter().flatten().collect()
}

async fn ask(client: h2::client::SendRequest<Bytes>, call: &Call, ears: &Heard) -> Result<()> {
    let mut request = Request::post(call.url.as_str()).header("te", "trailers");
    if !call.headers.iter().any(|(name, _)| name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in &call.headers {
        request = request.header(name, value);
    }
    let mut client = client.ready().await?;
    let (answer, mut body) = client.send_request(request.body(())?, false)?;
    let ends = call.trailers.is_empty();
    for left in (0..=call.again).rev() {
        body.send_data(framed(&call.body), ends && left == 0)?;
    }
    if !ends {
        body.send_trailers(map(&call.trailers)?)?;
    }
    let (head, mut body) = answer.await?.into_parts();
    ears.bytes(head.status.as_str().as_bytes());
    ears.fields(&head.headers);
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        ears.bytes(&data);
    }
    if let Some(trailers) = body.trailers().await? {
        ears.fields(&trailers);
    }
    Ok(())
}

/// Says bytes to an address from inside a pod, where nothing need be answered: returns what is until the end of it, or until
/// nothing has come for a while.
pub(crate) fn say(from: &Pod, to: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    exchange(from, to, bytes, Duration::from_millis(700), |_| false)
}

/// The same where an answer is expected: it is waited for until it is whole.
pub(crate) fn say_until(
    from: &Pod,
    to: SocketAddr,
    bytes: &[u8],
    is_whole: impl Fn(&[u8]) -> bool + Send,
) -> Result<Vec<u8>> {
    exchange(from, to, bytes, PATIENCE, is_whole)
}

fn exchange(
    from: &Pod,
    to: SocketAddr,
    bytes: &[u8],
    patience: Duration,
    is_whole: impl Fn(&[u8]) -> bool + Send,
) -> Result<Vec<u8>> {
    use std::io::{Read as _, Write as _};
    in_netns(from, move || {
        let mut socket = std::net::TcpStream::connect_timeout(&to, PATIENCE)?;
        socket.set_read_timeout(Some(patience))?;
        let _ = socket.write_all(bytes);
        let (mut answer, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
        // That it ends badly is a good end here.
        while !is_whole(&answer)
            && let Ok(read) = socket.read(&mut buffer)
            && read > 0
        {
            answer.extend_from_slice(&buffer[..read]);
        }
        Ok(answer)
    })?
}

const PATIENCE: Duration = Duration::from_secs(10);
