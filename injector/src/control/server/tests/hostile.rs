//! Whoever asks control as no sidecar does: bytes that are no message, questions without end, answers that are never read,
//! guesses from everywhere. It gets nothing, and others get what they ask for.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const CERTIFY: &str = "/portunus.mesh.v1.Identity/Certify";
const FOLLOW: &str = "/portunus.mesh.v1.Discovery/Follow";
/// How long an innocent may have to wait, on a machine that others use, too.
const AT_MOST: Duration = Duration::from_secs(15);

/// A message as gRPC frames it.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a short one").to_be_bytes();
    [&[0][..], &length, message].concat()
}

/// What is no message, each by its name.
fn shapes() -> Vec<(String, Vec<u8>)> {
    let mut shapes: Vec<(String, Vec<u8>)> = [
        ("nothing", Vec::new()),
        ("half a prefix", vec![0, 0, 0]),
        ("a prefix alone", vec![0, 0, 0, 0, 9]),
        (
            "a message that is said to be 4 GiB long",
            [&[0, 0xff, 0xff, 0xff, 0xff], &[7; 100][..]].concat(),
        ),
        ("a message of 1 MiB", framed(&vec![0; 1 << 20])),
        ("one that is said to be compressed", vec![1, 0, 0, 0, 1, 0]),
        ("a flag that nobody knows", vec![7, 0, 0, 0, 1, 0]),
        ("a number without end", framed(&[0xff; 11])),
        ("a field without a number", framed(&[0, 1])),
        ("a number where bytes belong", framed(&[0x08, 1])),
        ("a group without end", framed(&[0x4b])),
        ("ten thousand groups, one in the other", framed(&vec![0x4b; 10_000])),
        ("the end of no group", framed(&[0x4c])),
        (
            "a field longer than its message",
            framed(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ),
        (
            "a field of 2 to the 64 bytes",
            framed(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        ),
        ("a text that is none", framed(&[0x12, 2, 0xff, 0xfe])),
        ("wire type 6", framed(&[0x0e, 1])),
        ("wire type 7", framed(&[0x0f, 1])),
    ]
    .into_iter()
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .collect();
    let mut random = StdRng::seed_from_u64(4);
    for round in 0..200 {
        let mut noise = vec![0; random.random_range(1..400)];
        random.fill(&mut noise[..]);
        shapes.push((format!("noise {round}"), framed(&noise)));
    }
    shapes
}

/// A connection of HTTP/2 to control, with windows of so many bytes.
async fn http2<B>(control: &Control, credential: Option<&Credential>, window: u32) -> SendRequest<B>
where
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let config = client(control.authority().roots().to_vec(), credential);
    let stream = TcpStream::connect(control.address).await.expect("it listens");
    stream.set_nodelay(true).expect("it is TCP");
    let name = ServerName::try_from("control").expect("a name");
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .expect("it is served");
    let mut builder = Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).initial_stream_window_size(window);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("a handshake");
    tokio::spawn(connection);
    sender
}

fn asked<B>(path: &str, body: B) -> Request<B> {
    let builder = Request::post(format!("https://control{path}")).header("te", "trailers");
    builder
        .header("content-type", "application/grpc")
        .body(body)
        .expect("a request")
}

/// The status of an answer to its end, soon; none if the stream or the connection broke.
async fn status(response: Result<Response<Incoming>, hyper::Error>) -> Option<String> {
    let (head, mut body) = response.ok()?.into_parts();
    let mut fields = head.headers;
    let end = async {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(trailers) = frame.into_trailers() {
                fields.extend(trailers);
            }
        }
        fields
            .get("grpc-status")
            .and_then(|status| status.to_str().ok())
            .map(str::to_owned)
    };
    timeout(SOON, end).await.expect("an answer ends")
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused_and_cost_their_sender_alone() {
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let (credential, _) = control.certify(None, &token.reveal(), "").await.expect("it joins");
    for (path, proof) in [
        (CERTIFY, None),
        (CERTIFY, Some(&credential)),
        (FOLLOW, None),
        (FOLLOW, Some(&credential)),
    ] {
        let mut sender = http2(&control, proof, 65_535).await;
        for (name, bytes) in shapes() {
            if sender.is_closed() || sender.ready().await.is_err() {
                sender = http2(&control, proof, 65_535).await;
            }
            let response = sender.send_request(asked(path, Full::new(Bytes::from(bytes))));
            let status = status(timeout(SOON, response).await.expect("it is answered")).await;
            // A stream that ends before its first message has said nothing, and is no mistake.
            let is_silence =
                path == FOLLOW && proof.is_some() && ["nothing", "a prefix alone"].contains(&name.as_str());
            assert!(status.as_deref() != Some("0") || is_silence, "{path}: {name} was taken");
        }
    }
    assert!(
        control.certify(None, &token.reveal(), "").await.is_ok(),
        "others are served"
    );
    control.page_says("/metrics", "portunus_control_streams 0").await;
    control.ends().await;
}

/// What asks for so many names, behind its hello.
fn questions(names: usize) -> Vec<Result<Frame<Bytes>, io::Error>> {
    let hello = Ask::Hello(Hello {
        workload: "shop/a".to_owned(),
        version: "test".to_owned(),
    });
    let name = |number: usize| {
        let host = format!("name-{number}.shop.svc.cluster.local");
        Ask::Subscribe(Subject {
            what: Some(subject::What::Name(NamePort { host, port: 80 })),
        })
    };
    let asks = std::iter::once(hello).chain((0..names).map(name));
    let bytes: Vec<u8> = asks
        .flat_map(|ask| framed(&FollowRequest { ask: Some(ask) }.encode_to_vec()))
        .collect();
    // In large pieces, as sidecars send them: very many small ones are cut by HTTP/2 itself.
    bytes
        .chunks(8_000)
        .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
        .collect()
}

#[tokio::test]
async fn answers_that_nobody_reads_wait_for_their_reader_alone() {
    let token = JoinToken::generate();
    let manifests = format!("{}---\n{SERVICE}", workload("a", "web", "10.0.0.1", Some(&token)));
    let control = Control::over(&manifests).await;
    control.page_says("/ready", "200 OK").await;
    let (credential, _) = control.certify(None, &token.reveal(), "").await.expect("it joins");
    let mut unread = Vec::new();
    for _ in 0..7 {
        let (asks_on, asks) = mpsc::channel(1);
        let before = tokio_stream::iter(questions(3_000));
        let mut sender = http2(&control, Some(&credential), 0).await;
        let body = StreamBody::new(tokio_stream::StreamExt::chain(before, ReceiverStream::new(asks)));
        let response = timeout(SOON, sender.send_request(asked(FOLLOW, body))).await;
        unread.push((asks_on, response.expect("heads need no window").expect("it is let in")));
    }
    control.page_says("/metrics", "portunus_control_streams 7").await;

    let mut following = Following::begin(&control, Some(&credential), "shop/a")
        .await
        .expect("it is let in");
    for _ in 0..2 {
        assert!(following.next().await.is_ok());
    }
    following.subscribe("web.shop.svc.cluster.local", 80).await;
    assert_eq!(timeout(AT_MOST, following.endpoints()).await.expect("soon"), 1);
    for round in 0..5 {
        let more = workload(&format!("more{round}"), "web", &format!("10.0.1.{round}"), None);
        fs::write(control.manifests.0.join(format!("more{round}.yaml")), more).expect("it is written");
        assert_eq!(timeout(AT_MOST, following.endpoints()).await.expect("soon"), 2 + round);
    }
    drop(unread);
    control.page_says("/metrics", "portunus_control_streams 1").await;
    control.ends().await;
}

#[tokio::test]
async fn guesses_from_everywhere_keep_nobody_from_joining() {
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let config = Arc::new(client(control.authority().roots().to_vec(), None));
    let guess = async |origin: u8| {
        let mut refused = 0;
        for last in 1..=40_u8 {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(([127, 9, origin, last], 0).into())?;
            let stream = socket.connect(control.address).await?;
            let name = ServerName::try_from("control").expect("a name");
            let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
            let builder = Builder::new(TokioExecutor::new());
            let (mut sender, connection) = builder
                .handshake(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
            let connection = tokio::spawn(connection);
            for _ in 0..3 {
                let request = CertifyRequest {
                    csr: Vec::new(),
                    join_token: JoinToken::generate().reveal(),
                    workload: "shop/a".to_owned(),
                };
                let body = Full::new(Bytes::from(framed(&request.encode_to_vec())));
                let response = sender.send_request(asked(CERTIFY, body));
                let status = status(timeout(SOON, response).await.expect("it is answered")).await;
                assert_ne!(status.as_deref(), Some("0"), "a guess was right");
                refused += 1;
            }
            connection.abort();
        }
        io::Result::Ok(refused)
    };
    let innocent = async {
        let mut longest = Duration::ZERO;
        for _ in 0..10 {
            let began = std::time::Instant::now();
            let joined = control.certify(None, &token.reveal(), "").await;
            assert!(joined.is_ok(), "{:?}", joined.err());
            longest = longest.max(began.elapsed());
        }
        longest
    };
    let (a, b, c, longest) = tokio::join!(guess(1), guess(2), guess(3), innocent);
    let refused: u32 = [a, b, c].map(|guesses| guesses.expect("it is served")).iter().sum();
    eprintln!("{refused} guesses of 120 addresses; an innocent waited {longest:?} at most");
    assert_eq!(refused, 360);
    assert!(longest < AT_MOST, "an innocent waited {longest:?}");
    control.ends().await;
}
