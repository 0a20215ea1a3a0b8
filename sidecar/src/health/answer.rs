//! What an answer to a health check means.

use http::{HeaderMap, Response};

use super::message::{self, Status};
use crate::balance::health::{Finding, Lack, Says};
use crate::grpc::{self, Code};

/// Bytes of an answer that are read; one that says more is none of health's.
const MOST: usize = 4_096;

/// An answer as it comes: head, data, trailers.
#[derive(Debug, Default)]
pub struct Pieces {
    http_status: u16,
    is_grpc: bool,
    /// A sidecar made the answer, because it did not reach the application.
    error: Option<String>,
    status: Option<Code>,
    bytes: Vec<u8>,
    is_odd: bool,
}

/// What the end of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// This was found.
    Found(Finding),
    /// Our own sidecar could not ask: nothing was learned.
    NotAsked,
}

impl Pieces {
    /// The head came.
    pub fn head(&mut self, head: &Response<()>) {
        let headers = head.headers();
        self.http_status = head.status().as_u16();
        let kind = headers.get("content-type");
        self.is_grpc = kind.is_some_and(|kind| grpc::is_content_type(kind.as_bytes()));
        self.trailers(headers);
    }

    /// Trailers came.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(status) = trailers.get("grpc-status") {
            self.status = Some(Code::parse(status.as_bytes()));
        }
        if let Some(error) = trailers.get("portunus-error") {
            self.error = Some(String::from_utf8_lossy(error.as_bytes()).into_owned());
        }
    }

    /// Data came. Returns the last that it says, if that is a whole message.
    pub fn data(&mut self, data: &[u8]) -> Option<Finding> {
        if self.http_status != 200 || !self.is_grpc || self.is_odd {
            return None;
        }
        if self.bytes.len() + data.len() > MOST {
            self.is_odd = true;
            return Some(Finding::Alive);
        }
        self.bytes.extend_from_slice(data);
        let mut last = None;
        loop {
            match message::take(&mut self.bytes) {
                Ok(Some(Status::Serving)) => last = Some(Finding::Serving),
                Ok(Some(Status::NotServing)) => last = Some(Finding::Refused(Says::NotServing)),
                // Who does not know whether it serves is no better than who does not (gRPC's health checking of channels).
                Ok(Some(Status::Other(status))) => last = Some(Finding::Refused(Says::Other(status))),
                Ok(Some(Status::ServiceUnknown)) => last = Some(Finding::Refused(Says::ServiceUnknown)),
                Ok(None) => return last,
                Err(message::NotHealth) => {
                    self.is_odd = true;
                    return Some(Finding::Alive);
                }
            }
        }
    }

    /// Whether it is no answer of health's, whatever comes.
    pub fn is_odd(&self) -> bool {
        self.is_odd
    }

    /// Whether the server has no such method.
    pub fn is_unimplemented(&self) -> bool {
        self.http_status == 200 && self.status == Some(Code::Unimplemented)
    }

    /// The answer is whole, and `said` is what its messages said last.
    pub fn ended(&self, said: Option<Finding>) -> Ended {
        Ended::Found(match (self.error.as_deref(), self.http_status, self.status) {
            // Where it was the sidecar there, ours says so in another word: the endpoint cannot be asked (`Failure::is_unsent`).
            (Some("memory_budget" | "too_many_waiting"), ..) => return Ended::NotAsked,
            // The question's own deadline, on the way or where it began.
            (Some("deadline"), ..) => Finding::Failed(Lack::Silent),
            (Some(_), ..) => Finding::Failed(Lack::Failed),
            (None, 429 | 500 | 502..=504, _) => Finding::Failed(Lack::Failed),
            // What is at another door lives, too: a proxy that wants a login, a server of web pages.
            (None, status, _) if status != 200 || !self.is_grpc => Finding::Alive,
            (None, _, Some(Code::Ok)) => said.unwrap_or(Finding::Alive),
            (None, _, Some(Code::Unimplemented)) => Finding::Unimplemented,
            (None, _, Some(Code::NotFound)) => Finding::Refused(Says::ServiceUnknown),
            (None, _, Some(Code::Unauthenticated | Code::PermissionDenied)) => Finding::Alive,
            (None, _, Some(Code::DeadlineExceeded)) => Finding::Failed(Lack::Silent),
            (
                None,
                _,
                Some(
                    Code::Cancelled
                    | Code::Unknown
                    | Code::ResourceExhausted
                    | Code::Aborted
                    | Code::Internal
                    | Code::Unavailable
                    | Code::DataLoss,
                )
                | None,
            ) => Finding::Failed(Lack::Failed),
            (
                None,
                _,
                Some(Code::InvalidArgument | Code::AlreadyExists | Code::FailedPrecondition | Code::OutOfRange),
            ) => Finding::Alive,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(http: u16, kind: &str, data: &[u8], status: Option<&str>) -> Ended {
        let mut pieces = Pieces::default();
        let head = Response::builder().status(http).header("content-type", kind);
        pieces.head(&head.body(()).expect("a head"));
        let said = pieces.data(data);
        let mut trailers = HeaderMap::new();
        if let Some(status) = status {
            trailers.insert("grpc-status", status.parse().expect("a value"));
        }
        pieces.trailers(&trailers);
        pieces.ended(said)
    }

    fn grpc(data: &[u8], status: &str) -> Ended {
        answer(200, "application/grpc+proto", data, Some(status))
    }

    #[test]
    fn an_answer_means_what_it_says() {
        for (data, finding) in [
            ([0, 0, 0, 0, 2, 8, 1], Finding::Serving),
            ([0, 0, 0, 0, 2, 8, 2], Finding::Refused(Says::NotServing)),
            ([0, 0, 0, 0, 2, 8, 3], Finding::Refused(Says::ServiceUnknown)),
            ([0, 0, 0, 0, 2, 8, 0], Finding::Refused(Says::Other(0))),
            ([0, 0, 0, 0, 2, 8, 7], Finding::Refused(Says::Other(7))),
        ] {
            assert_eq!(grpc(&data, "0"), Ended::Found(finding));
        }
        assert_eq!(grpc(&[], "12"), Ended::Found(Finding::Unimplemented));
        assert_eq!(grpc(&[], "5"), Ended::Found(Finding::Refused(Says::ServiceUnknown)));
        assert_eq!(grpc(&[], "14"), Ended::Found(Finding::Failed(Lack::Failed)));
        assert_eq!(grpc(&[], "4"), Ended::Found(Finding::Failed(Lack::Silent)));
    }

    #[test]
    fn another_kind_of_answer_means_that_somebody_lives_there() {
        for alive in [
            grpc(&[], "16"),
            grpc(&[], "7"),
            grpc(&[], "0"),
            grpc(&[1, 0, 0, 0, 0], "0"),
            answer(404, "text/html", b"<html>", None),
            answer(401, "application/json", b"{}", None),
            answer(200, "text/html", b"<html>", None),
        ] {
            assert_eq!(alive, Ended::Found(Finding::Alive));
        }
        assert_eq!(
            answer(503, "text/html", b"", None),
            Ended::Found(Finding::Failed(Lack::Failed))
        );
    }

    #[test]
    fn what_our_own_sidecar_refused_says_nothing_of_the_endpoint() {
        let mut pieces = Pieces::default();
        let head = Response::builder()
            .header("portunus-error", "memory_budget")
            .header("grpc-status", "8");
        pieces.head(&head.body(()).expect("a head"));
        assert_eq!(pieces.ended(None), Ended::NotAsked);
        let mut pieces = Pieces::default();
        let head = Response::builder()
            .header("portunus-error", "unreachable")
            .header("grpc-status", "14");
        pieces.head(&head.body(()).expect("a head"));
        assert_eq!(pieces.ended(None), Ended::Found(Finding::Failed(Lack::Failed)));
    }

    #[test]
    fn an_endpoint_whose_sidecar_stops_fails_its_check() {
        let mut pieces = Pieces::default();
        let head = Response::builder()
            .header("portunus-error", "stopping")
            .header("grpc-status", "14");
        pieces.head(&head.body(()).expect("a head"));
        assert_eq!(pieces.ended(None), Ended::Found(Finding::Failed(Lack::Failed)));
    }

    #[test]
    fn a_sidecar_that_waited_in_vain_for_an_answer_tells_of_silence() {
        let mut pieces = Pieces::default();
        let head = Response::builder()
            .header("portunus-error", "deadline")
            .header("grpc-status", "4");
        pieces.head(&head.body(()).expect("a head"));
        assert_eq!(pieces.ended(None), Ended::Found(Finding::Failed(Lack::Silent)));
    }
}
