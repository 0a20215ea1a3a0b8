//! Sessions against plain rustls, in memory: every way in which records may come.

use std::io::{self, Read as _, Write as _};
use std::ops::DerefMut;

use proptest::prelude::*;
use rustls::ConnectionCommon;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};

use super::super::engine::{Engine, Step};
use super::super::output::Output;
use super::super::{Alpn, Credential, Error, LEAST_BUFFER, Opened, Peer, Session, Shown, sealed_len};
use super::*;
use crate::http2::BULK_BYTES;

/// Both ends of a finished handshake.
pub(super) struct Pair<C> {
    pub(super) session: Session,
    pub(super) other: C,
}

/// We are called by a plain client.
pub(super) fn called() -> Pair<ClientConnection> {
    let root = Authority::root("root");
    called_with(&root.credential(), client(client_config(Some(&root.leaf(|_| {})))))
}

pub(super) fn called_with(credential: &Credential, other: ClientConnection) -> Pair<ClientConnection> {
    let (config, verifier) = credential.for_caller();
    let engine = Engine::Server(Box::new(UnbufferedServerConnection::new(config).unwrap()));
    shaken(engine, other, || verifier.take_verdict().unwrap().unwrap())
}

/// We call a plain server.
pub(super) fn calling() -> Pair<ServerConnection> {
    let root = Authority::root("root");
    let (config, verifier) = root.credential().for_server(&id(PEERS));
    let name = ServerName::try_from("a.invalid").unwrap();
    let alpn = vec![b"portunus/h2".to_vec()];
    let engine = UnbufferedClientConnection::new_with_alpn(config, name, alpn).unwrap();
    let engine = Engine::Client(Box::new(engine));
    shaken(engine, server(server_config(&root.leaf(|_| {}))), || {
        verifier.take_verdict().unwrap().unwrap()
    })
}

fn shaken<C, S>(mut engine: Engine, mut other: C, peer: impl FnOnce() -> Peer) -> Pair<C>
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: rustls::SideData,
{
    let (mut incoming, mut output) = (Vec::new(), Output::default());
    for _ in 0..100 {
        while other.wants_write() {
            other.write_tls(&mut incoming).unwrap();
        }
        let (discard, step) = engine.step(&mut incoming, &mut output);
        incoming.drain(..discard);
        let step = step.unwrap();
        while !output.pending().is_empty() {
            let n = other.read_tls(&mut output.pending()).unwrap();
            output.sent(n);
            other.process_new_packets().unwrap();
        }
        if step == Step::Ready && !engine.state().is_handshaking() && !other.is_handshaking() {
            let peer = peer();
            let shown = shown(&peer);
            let session = Session::new(engine, peer, shown, Alpn::H2, Vec::new(), false, incoming);
            return Pair { session, other };
        }
    }
    panic!("the handshake does not end");
}

/// As if we had shown the same.
fn shown(peer: &Peer) -> Shown {
    Shown {
        id: peer.id().clone(),
        not_after: peer.not_after(),
    }
}

/// What the other end has to send.
fn taken<S: rustls::SideData>(other: &mut ConnectionCommon<S>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while other.wants_write() {
        other.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Sealed by the other end, in a record of its own.
fn sealed<S: rustls::SideData>(other: &mut ConnectionCommon<S>, plain: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for plain in plain.chunks(16_384) {
        other.writer().write_all(plain).unwrap();
        bytes.extend(taken(other));
    }
    bytes
}

/// Hands bytes to the session, a piece a read, and gathers the plaintext.
pub(super) fn read_all(session: &mut Session, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), Error> {
    let mut buffer = vec![0; LEAST_BUFFER];
    let mut plain = Vec::new();
    let mut ended = false;
    for piece in pieces {
        let mut piece = *piece;
        while !piece.is_empty() {
            let opened = session.read(&mut buffer, |room| piece.read(room))?;
            plain.extend_from_slice(&buffer[..opened.plain]);
            ended = opened.ended;
            if ended {
                return Ok((plain, true));
            }
        }
    }
    Ok((plain, ended))
}

/// What the other end reads of all that the session has to send.
fn heard<S: rustls::SideData>(other: &mut ConnectionCommon<S>, session: &mut Session) -> Vec<u8> {
    let mut plain = Vec::new();
    while !session.output().is_empty() {
        let n = other.read_tls(&mut session.output()).unwrap();
        session.sent(n);
        other.process_new_packets().unwrap();
        let mut room = [0; 20_000];
        while let Ok(n @ 1..) = other.reader().read(&mut room) {
            plain.extend_from_slice(&room[..n]);
        }
    }
    plain
}

fn some(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 % 251) as u8).collect()
}

#[test]
fn records_cut_at_every_byte_are_opened_whole() {
    let mut pair = calling();
    for at in 1..2 * (5 + 40 + 17) {
        let mut bytes = sealed(&mut pair.other, &some(40));
        bytes.extend(sealed(&mut pair.other, &some(40)));
        let (one, two) = bytes.split_at(at);
        let (plain, ended) = read_all(&mut pair.session, &[one, two]).unwrap();
        assert_eq!(plain, [some(40), some(40)].concat(), "cut at {at}");
        assert!(!ended);
    }
}

#[test]
fn records_that_come_byte_by_byte_are_opened_whole() {
    let mut pair = called();
    let bytes = sealed(&mut pair.other, &some(300));
    let pieces: Vec<_> = bytes.chunks(1).collect();
    assert_eq!(read_all(&mut pair.session, &pieces).unwrap(), (some(300), false));
}

#[test]
fn many_records_of_one_read_are_one_piece() {
    let mut pair = called();
    let mut bytes = Vec::new();
    for n in 0..100 {
        bytes.extend(sealed(&mut pair.other, &some(n)));
    }
    let mut buffer = vec![0; LEAST_BUFFER];
    let opened = pair.session.read(&mut buffer, |mut room| room.write(&bytes)).unwrap();
    let all: Vec<u8> = (0..100).flat_map(some).collect();
    assert_eq!((opened.plain, opened.more, opened.ended), (all.len(), false, false));
    assert_eq!(&buffer[..opened.plain], all);
}

#[test]
fn a_megabyte_goes_each_way() {
    fn megabyte<C, S>(mut pair: Pair<C>)
    where
        C: DerefMut<Target = ConnectionCommon<S>>,
        S: rustls::SideData,
    {
        let all = some(1 << 20);
        let bytes = sealed(&mut pair.other, &all);
        let pieces: Vec<_> = bytes.chunks(9_999).collect();
        let (plain, _) = read_all(&mut pair.session, &pieces).unwrap();
        assert!(plain == all);
        for part in all.chunks(100_000) {
            pair.session.seal(part).unwrap();
        }
        assert!(heard(&mut pair.other, &mut pair.session) == all);
    }
    megabyte(called());
    megabyte(calling());
}

#[test]
fn bytes_are_sealed_into_as_few_records_as_they_fit_into() {
    let mut pair = calling();
    pair.session.seal(&some(3 * 16_384 + 1)).unwrap();
    let mut rest = pair.session.output();
    let mut lengths = Vec::new();
    while let [23, 3, 3, high, low, tail @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        lengths.push(length - 17);
        rest = &tail[length..];
    }
    assert_eq!(lengths, [16_384, 16_384, 16_384, 1]);
    assert!(rest.is_empty());
}

#[test]
fn what_the_socket_took_in_part_goes_on_from_there() {
    let mut pair = called();
    let mut sent = Vec::new();
    let mut said = Vec::new();
    for n in 1..200 {
        pair.session.seal(&some(n * 7)).unwrap();
        said.extend(some(n * 7));
        let part = pair.session.output().len() / 2;
        sent.extend_from_slice(&pair.session.output()[..part]);
        pair.session.sent(part);
    }
    sent.extend_from_slice(pair.session.output());
    pair.session.sent(usize::MAX - 1_000_000);
    assert!(pair.session.output().is_empty());
    let mut sent = &sent[..];
    let mut plain = Vec::new();
    while !sent.is_empty() {
        pair.other.read_tls(&mut sent).unwrap();
        pair.other.process_new_packets().unwrap();
        let mut room = [0; 20_000];
        while let Ok(n @ 1..) = pair.other.reader().read(&mut room) {
            plain.extend_from_slice(&room[..n]);
        }
    }
    assert!(plain == said);
}

#[test]
fn nothing_is_read_from_a_socket_while_bytes_are_at_hand() {
    let pair = calling();
    let (peer, shown) = (pair.session.peer().clone(), pair.session.shown().clone());
    // As after a handshake whose last read brought the server's first bytes, and its end, too.
    let mut session = Session::new(
        pair.session.engine,
        peer,
        shown,
        Alpn::H2,
        some(50_000),
        true,
        Vec::new(),
    );
    let mut buffer = vec![0; LEAST_BUFFER];
    let mut plain = Vec::new();
    let never = |_: &mut [u8]| -> io::Result<usize> { panic!("there are bytes at hand") };
    for _ in 0..4 {
        let opened = session.read(&mut buffer, never).unwrap();
        assert!(opened.more && !opened.ended);
        plain.extend_from_slice(&buffer[..opened.plain]);
    }
    assert!(plain == some(50_000));
    assert!(session.read(&mut buffer, never).unwrap().ended);
    assert!(session.partial.capacity() == 0 && session.early.capacity() == 0);
}

#[test]
fn an_empty_socket_is_no_error() {
    let mut pair = called();
    let nothing = pair
        .session
        .read(&mut vec![0; LEAST_BUFFER], |_| Err(io::ErrorKind::WouldBlock.into()));
    assert_eq!(nothing.unwrap(), Opened::default());
    let interrupted = pair
        .session
        .read(&mut vec![0; LEAST_BUFFER], |_| Err(io::ErrorKind::Interrupted.into()));
    assert!(interrupted.unwrap().more);
    let broken = pair.session.read(&mut vec![0; LEAST_BUFFER], |_| {
        Err(io::ErrorKind::ConnectionReset.into())
    });
    assert_eq!(broken.unwrap_err().reason(), "broken");
}

#[test]
fn a_full_read_says_that_there_may_be_more() {
    let mut pair = called();
    let bytes = sealed(&mut pair.other, &some(64_000));
    let mut buffer = vec![0; LEAST_BUFFER];
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let opened = pair.session.read(&mut buffer, |room| rest.read(room)).unwrap();
        assert_eq!(opened.more, !rest.is_empty());
    }
}

#[test]
fn the_peers_new_keys_are_taken_and_answered() {
    fn update<C, S>(mut pair: Pair<C>)
    where
        C: DerefMut<Target = ConnectionCommon<S>>,
        S: rustls::SideData,
    {
        for round in 1..20 {
            pair.session.seal(b"before").unwrap();
            pair.other.refresh_traffic_keys().unwrap();
            let mut bytes = taken(&mut pair.other);
            bytes.extend(sealed(&mut pair.other, &some(round)));
            assert_eq!(read_all(&mut pair.session, &[&bytes]).unwrap().0, some(round));
            // The answer leaves before the next bytes, under the old key, and these under the new one.
            pair.session.seal(b"after").unwrap();
            assert_eq!(heard(&mut pair.other, &mut pair.session), b"beforeafter");
        }
    }
    update(called());
    update(calling());
}

/// A suite whose keys may serve for so few records that they are changed again and again.
fn short_lived() -> rustls::crypto::CryptoProvider {
    let suite = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
    let suite: &'static Tls13CipherSuite = Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: RECORDS_A_KEY,
        },
        hkdf_provider: suite.hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: None,
    }));
    rustls::crypto::CryptoProvider {
        cipher_suites: vec![SupportedCipherSuite::Tls13(suite)],
        ..aws_lc_rs::default_provider()
    }
}

const RECORDS_A_KEY: u64 = 16;

#[test]
fn our_own_keys_are_changed_before_they_have_served_for_too_many_records() {
    fn serve<C, S>(mut pair: Pair<C>)
    where
        C: DerefMut<Target = ConnectionCommon<S>>,
        S: rustls::SideData,
    {
        let mut records = 0;
        for round in 0..400 {
            pair.session.seal(&some(round + 1)).unwrap();
            records += count_records(pair.session.output());
            // Whoever kept the old key could open nothing of it.
            assert!(
                heard(&mut pair.other, &mut pair.session) == some(round + 1),
                "round {round}"
            );
            // What the peer says meanwhile changes nothing.
            let bytes = sealed(&mut pair.other, &some(round));
            assert_eq!(read_all(&mut pair.session, &[&bytes]).unwrap().0, some(round));
        }
        // A KeyUpdate is one of the records that a key serves for.
        let updates = records - 400;
        let least = 400 / usize::try_from(RECORDS_A_KEY).unwrap();
        assert!((least..least + 4).contains(&updates), "{updates} updates");
        // As many at once as the old key could not have served for to the end.
        for _ in 0..20 {
            pair.session.seal(&some(160_000)).unwrap();
            assert!(heard(&mut pair.other, &mut pair.session) == some(160_000));
        }
        pair.session.close();
        assert_eq!(heard(&mut pair.other, &mut pair.session), b"");
        assert!(pair.other.process_new_packets().unwrap().peer_has_closed());
    }
    let root = Authority::root("root");
    let shown = root.leaf(|_| {});
    let peer = || Peer {
        id: id(PEERS),
        hash: [0; 32],
        not_after: soon(60),
    };
    let mut config = server_config_by(short_lived(), &shown);
    config.send_tls13_tickets = 0;
    let engine = UnbufferedServerConnection::new(Arc::new(config)).unwrap();
    let other = client(client_config(Some(&shown)));
    serve(shaken(Engine::Server(Box::new(engine)), other, peer));
    let name = ServerName::try_from("a.invalid").unwrap();
    let config = Arc::new(client_config_by(short_lived(), Some(&shown)));
    let engine = UnbufferedClientConnection::new(config, name).unwrap();
    let mut config = server_config(&shown);
    config.send_tls13_tickets = 0;
    serve(shaken(Engine::Client(Box::new(engine)), server(config), peer));
}

fn count_records(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let [_, 3, 3, high, low, tail @ ..] = bytes {
        bytes = &tail[usize::from(u16::from_be_bytes([*high, *low]))..];
        count += 1;
    }
    assert!(bytes.is_empty(), "a record is cut off");
    count
}

#[test]
fn a_storm_of_key_updates_ends_the_session() {
    let mut pair = called();
    let failed = (0..1_000).find_map(|_| {
        pair.other.refresh_traffic_keys().unwrap();
        let bytes = taken(&mut pair.other);
        read_all(&mut pair.session, &[&bytes]).err()
    });
    assert_eq!(failed.unwrap().reason(), "protocol");
}

#[test]
fn close_notify_is_the_end_of_one_direction_only() {
    let mut pair = called();
    let mut bytes = sealed(&mut pair.other, b"last words");
    pair.other.send_close_notify();
    bytes.extend(taken(&mut pair.other));
    bytes.extend_from_slice(b"rubbish behind the end");
    assert_eq!(
        read_all(&mut pair.session, &[&bytes]).unwrap(),
        (b"last words".to_vec(), true)
    );
    let never = |_: &mut [u8]| -> io::Result<usize> { panic!("nothing comes after the end") };
    assert!(pair.session.read(&mut vec![0; LEAST_BUFFER], never).unwrap().ended);
    pair.session.seal(b"the answer").unwrap();
    pair.session.close();
    pair.session.close();
    assert!(pair.session.seal(b"more").is_err());
    assert_eq!(heard(&mut pair.other, &mut pair.session), b"the answer");
    assert!(pair.other.process_new_packets().unwrap().peer_has_closed());
}

#[test]
fn we_may_close_first_and_still_read() {
    let mut pair = calling();
    pair.session.close();
    assert_eq!(heard(&mut pair.other, &mut pair.session), b"");
    let mut bytes = sealed(&mut pair.other, b"the rest");
    pair.other.send_close_notify();
    bytes.extend(taken(&mut pair.other));
    assert_eq!(
        read_all(&mut pair.session, &[&bytes]).unwrap(),
        (b"the rest".to_vec(), true)
    );
}

#[test]
fn an_end_without_close_notify_is_a_truncation() {
    for kept in [0, 3, 20] {
        let mut pair = called();
        let bytes = sealed(&mut pair.other, &some(100));
        let (plain, _) = read_all(&mut pair.session, &[&bytes, &sealed(&mut pair.other, b"half")[..kept]]).unwrap();
        assert_eq!(plain, some(100));
        let mut buffer = vec![0; LEAST_BUFFER];
        assert!(matches!(
            pair.session.read(&mut buffer, |_| Ok(0)),
            Err(Error::Truncated)
        ));
        assert!(matches!(
            pair.session.read(&mut buffer, |_| Ok(0)),
            Err(Error::Truncated)
        ));
    }
}

#[test]
fn a_forged_record_comes_to_an_error_and_an_alert_after_what_came_before() {
    let mut pair = calling();
    let mut bytes = sealed(&mut pair.other, b"good");
    let mut forged = sealed(&mut pair.other, b"bad");
    *forged.last_mut().unwrap() ^= 1;
    bytes.extend(forged);
    let mut buffer = vec![0; LEAST_BUFFER];
    let opened = pair.session.read(&mut buffer, |mut room| room.write(&bytes)).unwrap();
    assert_eq!((&buffer[..opened.plain], opened.more), (&b"good"[..], true));
    let never = |_: &mut [u8]| -> io::Result<usize> { panic!("the session has failed") };
    assert_eq!(pair.session.read(&mut buffer, never).unwrap_err().reason(), "protocol");
    let told = pair.other.read_tls(&mut pair.session.output());
    assert!(told.unwrap() > 0);
    let told = pair.other.process_new_packets().unwrap_err();
    assert_eq!(
        told,
        rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac)
    );
    assert!(pair.session.seal(b"more").is_err());
}

#[test]
fn rubbish_after_the_handshake_is_an_error() {
    let mut random = 1u32;
    for length in 1..100 {
        let mut pair = called();
        let rubbish: Vec<u8> = (0..length * 50)
            .map(|_| {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (random >> 24) as u8
            })
            .collect();
        // It may look like the beginning of a record that is still to come.
        if let Ok((plain, ended)) = read_all(&mut pair.session, &[&rubbish]) {
            assert!(plain.is_empty() && !ended);
        }
    }
}

/// In a buffer that has just room for it, as a worker's has.
#[test]
fn bulk_that_was_sealed_at_once_is_opened_at_once_also_behind_a_part_of_it() {
    let mut pair = called();
    let bulk = some(BULK_BYTES);
    let mut buffer = vec![0; sealed_len(BULK_BYTES)];
    for first in [1, 5, 1_000, 16_405, 16_406, 100_000, buffer.len() - 1, buffer.len()] {
        let mut bytes = sealed(&mut pair.other, &bulk);
        assert_eq!(bytes.len(), buffer.len());
        bytes.extend(sealed(&mut pair.other, &bulk));
        let (mut plain, mut rest, mut most) = (Vec::new(), &bytes[..], first);
        let mut reads = 0;
        while !rest.is_empty() {
            let read = pair.session.read(&mut buffer, |room| {
                let most = room.len().min(most);
                rest.read(&mut room[..most])
            });
            plain.extend_from_slice(&buffer[..read.unwrap().plain]);
            (reads, most) = (reads + 1, bytes.len());
        }
        assert!(plain == [&bulk[..], &bulk].concat(), "behind {first}");
        assert_eq!(reads, if first < buffer.len() { 3 } else { 2 }, "behind {first}");
        assert_eq!(pair.session.partial.capacity(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn however_records_are_made_and_cut_the_same_bytes_come(
        parts in prop::collection::vec(0usize..20_000, 1..12),
        cuts in prop::collection::vec(1usize..30_000, 1..12),
        updates in prop::collection::vec(any::<bool>(), 12),
        room in prop_oneof![LEAST_BUFFER..100_000, Just(sealed_len(BULK_BYTES))],
    ) {
        let mut pair = called();
        let (mut bytes, mut all) = (Vec::new(), Vec::new());
        for (part, update) in parts.iter().zip(updates) {
            if update {
                pair.other.refresh_traffic_keys().unwrap();
            }
            bytes.extend(sealed(&mut pair.other, &some(*part)));
            all.extend(some(*part));
        }
        pair.other.send_close_notify();
        bytes.extend(taken(&mut pair.other));
        let mut buffer = vec![0; room];
        let (mut plain, mut rest, mut cuts) = (Vec::new(), &bytes[..], cuts.iter().cycle());
        loop {
            let mut calls = 0;
            let opened = pair.session.read(&mut buffer, |room| {
                calls += 1;
                let most = room.len().min(*cuts.next().unwrap());
                rest.read(&mut room[..most])
            }).unwrap();
            prop_assert!(calls <= 1);
            plain.extend_from_slice(&buffer[..opened.plain]);
            pair.session.seal(&buffer[..opened.plain]).unwrap();
            if opened.ended {
                break;
            }
        }
        prop_assert!(plain == all);
        prop_assert!(heard(&mut pair.other, &mut pair.session) == all);
        prop_assert_eq!(pair.session.partial.capacity(), 0);
    }
}
