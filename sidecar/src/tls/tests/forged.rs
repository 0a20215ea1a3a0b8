//! Sessions against one that seals what no honest end would.

use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::{ConnectionTrafficSecrets, ContentType};

use super::super::{Error, LEAST_BUFFER, Session};
use super::records::{Pair, called_with, read_all};
use super::*;

/// Seals whatever a peer may seal, which rustls would not: it has the keys of a plain client.
struct Forger {
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
}

impl Forger {
    fn of(pair: Pair<ClientConnection>) -> (Session, Forger) {
        let suite = pair.other.negotiated_cipher_suite().unwrap().tls13().unwrap();
        let secrets = pair.other.dangerous_extract_secrets().unwrap();
        let (sequence, keys) = secrets.tx;
        let (ConnectionTrafficSecrets::Aes128Gcm { key, iv } | ConnectionTrafficSecrets::Aes256Gcm { key, iv }) = keys
        else {
            panic!("AES is preferred");
        };
        let encrypter = suite.aead_alg.encrypter(key, iv);
        (pair.session, Forger { encrypter, sequence })
    }

    fn seal(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let message = OutboundPlainMessage {
            typ,
            version: rustls::ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(payload),
        };
        let sealed = self.encrypter.encrypt(message, self.sequence).unwrap();
        self.sequence += 1;
        sealed.encode()
    }
}

fn forged() -> (Session, Forger) {
    let root = Authority::root("root");
    let mut config = client_config(Some(&root.leaf(|_| {})));
    config.enable_secret_extraction = true;
    Forger::of(called_with(&root.credential(), client(config)))
}

#[test]
fn records_of_no_bytes_bring_nothing_and_may_not_go_on_for_ever() {
    let (mut session, mut forger) = forged();
    for _ in 0..20 {
        let bytes = [
            forger.seal(ContentType::ApplicationData, b""),
            forger.seal(ContentType::ApplicationData, b"a"),
        ];
        assert_eq!(
            read_all(&mut session, &[&bytes.concat()]).unwrap(),
            (b"a".to_vec(), false)
        );
    }
    let storm: Vec<u8> = (0..1_000)
        .flat_map(|_| forger.seal(ContentType::ApplicationData, b""))
        .collect();
    assert_eq!(read_all(&mut session, &[&storm]).unwrap_err().reason(), "protocol");
}

#[test]
fn a_message_in_pieces_after_the_handshake_breaks_nothing_that_is_said_meanwhile() {
    // KeyUpdate, with an answer wanted (RFC 8446, 4.6.3).
    let message = [24, 0, 0, 1, 1];
    for at in 1..message.len() {
        let (mut session, mut forger) = forged();
        let (one, two) = message.split_at(at);
        let one = forger.seal(ContentType::Handshake, one);
        let two = forger.seal(ContentType::Handshake, two);
        assert_eq!(read_all(&mut session, &[&one]).unwrap(), (Vec::new(), false));
        session.seal(b"meanwhile").unwrap();
        assert_eq!(read_all(&mut session, &[&two[..7]]).unwrap(), (Vec::new(), false));
        session.seal(b"and now").unwrap();
        assert_eq!(read_all(&mut session, &[&two[7..]]).unwrap(), (Vec::new(), false));
        session.seal(b"after").unwrap();
        session.close();
        assert_eq!(session.partial.capacity(), 0);
    }
}

#[test]
fn bytes_between_the_pieces_of_a_message_are_an_error() {
    let (mut session, mut forger) = forged();
    let mut bytes = forger.seal(ContentType::Handshake, &[24, 0]);
    bytes.extend(forger.seal(ContentType::ApplicationData, b"between"));
    assert_eq!(read_all(&mut session, &[&bytes]).unwrap_err().reason(), "protocol");
    assert!(session.seal(b"more").is_err());
    session.close();
}

#[test]
fn a_message_without_end_after_the_handshake_is_cut() {
    let (mut session, mut forger) = forged();
    // A NewSessionTicket that says it has 60,000 bytes; nobody awaits one.
    let mut all = vec![4, 0, 234, 96];
    all.resize(60_000, 0);
    let pieces: Vec<_> = all
        .chunks(1_000)
        .map(|piece| forger.seal(ContentType::Handshake, piece))
        .collect();
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    assert_eq!(read_all(&mut session, &pieces).unwrap_err().reason(), "too_long");
    assert!(session.partial.len() <= LEAST_BUFFER);
}

#[test]
fn every_alert_after_the_handshake_is_named() {
    for code in 0..=255 {
        let (mut session, mut forger) = forged();
        let alert = forger.seal(ContentType::Alert, &[2, code]);
        let error = match read_all(&mut session, &[&alert]) {
            // close_notify, and user_canceled, which close_notify is to follow.
            Ok((plain, ended)) => {
                assert!(plain.is_empty() && [0, 90].contains(&code), "{code}");
                assert_eq!(ended, code == 0);
                continue;
            }
            Err(error) => error,
        };
        assert!(
            matches!(&error, Error::ByPeer(alert) if alert.code() == code),
            "{code}: {error}"
        );
        assert!(error.reason().starts_with("peer_"));
    }
}
