//! Sockets to name servers, for answers that are shorter than hickory takes them.
//!
//! hickory knows an answer by the question that it repeats. A server that could not read the question (FORMERR), or does
//! not do what it asks for (NOTIMP), may answer by a header alone, and would seem to be silent. Such an answer can be to
//! nothing else but what this socket has asked, since each question has a socket of its own: it is completed.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use hickory_resolver::net::runtime::{DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime};
use parking_lot::Mutex;
use tokio::net::UdpSocket;

/// What hickory takes sockets from.
#[derive(Clone, Default)]
pub(super) struct Sockets(TokioRuntimeProvider);

impl RuntimeProvider for Sockets {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = Datagrams;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        from: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        self.0.connect_tcp(server, from, timeout)
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        let bound = self.0.bind_udp(local, server);
        Box::pin(async move {
            Ok(Datagrams {
                socket: bound.await?,
                asked: Mutex::default(),
            })
        })
    }
}

/// A socket that asks one question.
pub(super) struct Datagrams {
    socket: UdpSocket,
    /// The message that was sent last.
    asked: Mutex<Vec<u8>>,
}

impl DnsUdpSocket for Datagrams {
    type Time = TokioTime;

    fn poll_recv_from(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<(usize, SocketAddr)>> {
        let (length, from) = ready!(DnsUdpSocket::poll_recv_from(&self.socket, cx, buffer))?;
        Poll::Ready(Ok((complete(buffer, length, &self.asked.lock()), from)))
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, message: &[u8], to: SocketAddr) -> Poll<io::Result<usize>> {
        let sent = ready!(DnsUdpSocket::poll_send_to(&self.socket, cx, message, to));
        message.clone_into(&mut self.asked.lock());
        Poll::Ready(sent)
    }
}

/// Puts the question behind a header that came alone and says FORMERR or NOTIMP to what was asked; returns the length
/// of what stands in `answer` then. Everything else stays as it is (RFC 1035, 4.1.1).
fn complete(answer: &mut [u8], length: usize, asked: &[u8]) -> usize {
    let Some(question) = asked.get(HEADER..).and_then(first_question) else {
        return length;
    };
    let whole = HEADER + question.len();
    let is_refusal = length == HEADER
        && answer[..2] == asked[..2]
        && answer[2] & IS_ANSWER != 0
        && matches!(answer[3] & CODE, FORMERR | NOTIMP)
        && answer[4..HEADER].iter().all(|count| *count == 0);
    if !is_refusal || answer.len() < whole {
        return length;
    }
    answer[HEADER..whole].copy_from_slice(question);
    answer[5] = 1;
    whole
}

/// The question at the start of the sections: labels, type and class.
fn first_question(sections: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        match usize::from(*sections.get(at)?) {
            0 => return sections.get(..at + 1 + 4),
            label => at += 1 + label,
        }
    }
}

const HEADER: usize = 12;
const IS_ANSWER: u8 = 0x80;
const CODE: u8 = 0x0f;
const FORMERR: u8 = 1;
const NOTIMP: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x02ab\x01c\x00\x00\x01\x00\x01\x00\x00\x29";
    const QUESTION: &[u8] = b"\x02ab\x01c\x00\x00\x01\x00\x01";

    fn completed(answer: &[u8]) -> Vec<u8> {
        let mut buffer = [answer, &[0xee; 64]].concat();
        let length = complete(&mut buffer, answer.len(), ASKED);
        buffer.truncate(length);
        buffer
    }

    #[test]
    fn a_header_alone_that_refuses_the_question_gets_the_question() {
        for code in [FORMERR, NOTIMP] {
            let header = [0x12, 0x34, 0x81, 0x80 | code, 0, 0, 0, 0, 0, 0, 0, 0];
            let whole = completed(&header);
            assert_eq!(whole[..4], header[..4]);
            assert_eq!(whole[4..12], [0, 1, 0, 0, 0, 0, 0, 0]);
            assert_eq!(&whole[12..], QUESTION);
        }
    }

    #[test]
    fn every_other_answer_stays_as_it_came() {
        let others: [&[u8]; 7] = [
            b"\x12\x35\x81\x81\0\0\0\0\0\0\0\0", // to another question
            b"\x12\x34\x01\x81\0\0\0\0\0\0\0\0", // no answer at all
            b"\x12\x34\x81\x82\0\0\0\0\0\0\0\0", // SERVFAIL
            b"\x12\x34\x81\x80\0\0\0\0\0\0\0\0", // NOERROR
            b"\x12\x34\x81\x81\0\x01\0\0\0\0\0\0",
            b"\x12\x34\x81\x81\0\0\0\0\0\0\0\0\0",
            b"\x12\x34\x81",
        ];
        for other in others {
            assert_eq!(completed(other), other);
        }
        let mut narrow = *b"\x12\x34\x81\x81\0\0\0\0\0\0\0\0";
        assert_eq!(complete(&mut narrow, 12, ASKED), 12, "there is no room for it");
        for cut in 0..HEADER + QUESTION.len() {
            let mut buffer = [0; 64];
            buffer[..4].copy_from_slice(b"\x12\x34\x81\x81");
            assert_eq!(complete(&mut buffer, HEADER, &ASKED[..cut]), HEADER, "{cut}");
        }
    }
}
