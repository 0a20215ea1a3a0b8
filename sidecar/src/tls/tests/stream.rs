//! Sessions as streams of bytes.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::{Alpn, Stream};
use super::handshake::both;
use super::*;

async fn streams() -> (Stream, Stream) {
    let ((one, session), (other, other_session)) = both(Alpn::Tcp).await;
    (Stream::new(one, session), Stream::new(other, other_session))
}

#[tokio::test]
async fn megabytes_go_both_ways_at_once() {
    let (one, other) = streams().await;
    let all: Arc<[u8]> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let speak = |stream: Stream, all: Arc<[u8]>, room: usize| async move {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let writing = async {
            writer.write_all(&all).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let reading = async {
            let (mut heard, mut buffer) = (Vec::new(), vec![0; room]);
            loop {
                match reader.read(&mut buffer).await.unwrap() {
                    0 => return heard,
                    n => heard.extend_from_slice(&buffer[..n]),
                }
            }
        };
        let ((), heard) = tokio::join!(writing, reading);
        assert!(heard == all[..]);
    };
    tokio::join!(speak(one, all.clone(), 1_000), speak(other, all, 64 * 1024));
}

#[tokio::test]
async fn one_side_may_end_and_still_hear_the_other() {
    let (mut one, mut other) = streams().await;
    one.write_all(b"question").await.unwrap();
    one.shutdown().await.unwrap();
    let mut heard = Vec::new();
    other.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"question");
    other.write_all(b"answer").await.unwrap();
    other.shutdown().await.unwrap();
    heard.clear();
    one.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"answer");
}

#[tokio::test]
async fn a_connection_that_is_cut_is_an_error_and_not_an_end() {
    let (mut one, other) = streams().await;
    drop(other);
    let mut heard = Vec::new();
    let error = one.read_to_end(&mut heard).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert!(error.to_string().contains("did not end its TLS"), "{error}");
}

#[tokio::test]
async fn single_bytes_pass() {
    let (mut one, mut other) = streams().await;
    for byte in 0..=255 {
        one.write_all(&[byte]).await.unwrap();
        assert_eq!(other.read_u8().await.unwrap(), byte);
    }
}
