//! OTLP/HTTP: a POST with protobuf over HTTP/1, by hyper.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::call::{MAX_ANSWER, Refused};
use super::{Endpoint, Headers, Target};

/// A collector that speaks HTTP.
#[derive(Debug)]
pub(super) struct Http {
    endpoint: Endpoint,
    path: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    requests: http1::SendRequest<Full<Bytes>>,
    _task: AbortOnDropHandle<()>,
}

impl Http {
    pub(super) fn new(target: &Target, Headers(headers): &Headers) -> Http {
        // What no header can be was refused where the settings were read.
        let header = |(name, value): &(String, String)| {
            let mut value = HeaderValue::from_str(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
        };
        Http {
            endpoint: target.endpoint.clone(),
            path: target.path.clone(),
            headers: headers.iter().filter_map(header).collect(),
            connection: None,
        }
    }

    pub(super) async fn send(&mut self, message: Bytes) -> Result<Bytes, Refused> {
        let mut request = Request::post(&*self.path)
            .header(header::HOST, self.endpoint.authority())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(
                header::USER_AGENT,
                concat!("portunus-sidecar/", env!("CARGO_PKG_VERSION")),
            )
            .body(Full::new(message))
            .map_err(|why| Refused::Never(why.to_string()))?;
        request.headers_mut().extend(self.headers.iter().cloned());
        // A collector that was away has closed the connection.
        let connection = match self.connection.take() {
            Some(connection) if !connection.requests.is_closed() => connection,
            _ => self.connect().await?,
        };
        let connection = self.connection.insert(connection);
        let broken = |why: hyper::Error| Refused::later(format!("the connection broke: {why}"));
        connection.requests.ready().await.map_err(broken)?;
        let answer = connection.requests.send_request(request).await.map_err(broken)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(|why| Refused::later(format!("the answer broke off: {why}")))?;
        if head.status.is_success() {
            return Ok(body.to_bytes());
        }
        let after = head
            .headers
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok());
        Err(refused(head.status, after))
    }

    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// The name is resolved anew each time.
    async fn connect(&self) -> Result<Connection, Refused> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let unreachable = |why: std::io::Error| Refused::later(format!("it cannot be reached: {why}"));
        let socket = TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let handshake = http1::handshake(TokioIo::new(socket)).await;
        let (requests, connection) = handshake.map_err(|why| Refused::later(why.to_string()))?;
        let task = tokio::spawn(async move {
            // How it ended, the request that was on it has heard.
            let _ = connection.await;
        });
        Ok(Connection {
            requests,
            _task: AbortOnDropHandle::new(task),
        })
    }
}

/// Which statuses are worth another try (OTLP's specification, "Retryable response codes").
fn refused(status: StatusCode, after: Option<&str>) -> Refused {
    let why = format!("it answered {status}");
    match status.as_u16() {
        429 | 502 | 503 | 504 => Refused::Later {
            why,
            // A date, which it may be too, is as good as nothing: clocks differ.
            after: after.and_then(|text| text.parse().ok()).map(Duration::from_secs),
        },
        _ => Refused::Never(why),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn what_the_specification_names_is_tried_again_and_nothing_else() {
        for status in [400, 401, 404, 413, 429, 500, 501, 502, 503, 504] {
            let code = StatusCode::from_u16(status).expect("a status");
            let again = matches!(refused(code, None), Refused::Later { .. });
            assert_eq!(again, matches!(status, 429 | 502..=504), "{status}");
        }
    }

    #[test]
    fn a_collector_that_says_when_is_asked_again_then() {
        let after = |text| match refused(StatusCode::SERVICE_UNAVAILABLE, Some(text)) {
            Refused::Later { after, .. } => after,
            Refused::Never(_) => None,
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Fri, 31 Dec 1999 23:59:59 GMT"), None);
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_left_once_it_is_longer_than_any_honest_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let answering = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let asked = socket.read(&mut [0; 1_024]).await.expect("a request");
            assert!(asked > 0);
            let mut all: u64 = 0;
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n";
            let mut words = socket.write_all(head).await;
            while words.is_ok() && all < 256 << 20 {
                words = socket.write_all(&[b'x'; 16 << 10]).await;
                all += 16 << 10;
            }
            all
        });
        let endpoint = Endpoint::parse(&format!("http://{addr}"), addr.port()).expect("an endpoint");
        let mut http = Http::new(&Target::traces(endpoint), &Headers::default());
        let refused = http
            .send(Bytes::from_static(b"spans"))
            .await
            .expect_err("it is too long");
        assert!(refused.to_string().contains("the answer broke off"), "{refused}");
        http.disconnect();
        let said = answering.await.expect("it held");
        // What the kernels keep of a connection, and not what it would have said.
        assert!(said < 64 << 20, "{said} bytes were taken");
    }
}
