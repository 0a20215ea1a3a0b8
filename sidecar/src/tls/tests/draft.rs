//! A certificate in the making: what it says, who signs it, and what is shown with it. The `identity` tests of the whole
//! sidecar use this file, too.

use std::sync::LazyLock;

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, Issuer, KeyPair, SigningKey as _};
use rustls::pki_types::CertificateDer;

use super::authority::{Authority, PEERS, Shown, authority_params, issuer_params, leaf_params};

/// Classes of names (RFC 5280, 4.2.1.6).
pub(super) const MAIL: u8 = 0x81;
pub(super) const DNS: u8 = 0x82;
pub(super) const URI: u8 = 0x86;
pub(super) const IP: u8 = 0x87;

/// Nothing is wrong with one that is new.
pub(super) struct Draft {
    /// What the leaf says, but for its names.
    pub(super) leaf: CertificateParams,
    /// Its names, each with its class.
    pub(super) names: Vec<(u8, Vec<u8>)>,
    pub(super) key: KeyKind,
    /// Who stands between it and the root, its own issuer first.
    pub(super) issuers: Vec<CertificateParams>,
    pub(super) issuers_key: KeyKind,
    pub(super) root: Top,
    pub(super) signer: Signer,
    pub(super) shows: Shows,
    /// Whether its extensions stand in another order.
    pub(super) is_backwards: bool,
    /// What is done to the chain last; the root is at hand.
    pub(super) arrange: fn(&mut Vec<CertificateDer<'static>>, &Authority),
    /// What is done to all that is shown, after that.
    pub(super) forge: fn(&mut Shown),
}

#[derive(Clone, Copy)]
pub(super) enum KeyKind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

/// Which root stands above all.
#[derive(Clone, Copy)]
pub(super) enum Top {
    /// The one that is believed.
    Ours,
    /// Another.
    Stranger,
    /// Another, with the name of ours.
    Namesake,
}

/// Who signs the leaf, and under whose name.
#[derive(Clone, Copy)]
pub(super) enum Signer {
    Issuer,
    Itself(Named),
    /// Somebody who has no certificate at all.
    Impostor(Named),
}

#[derive(Clone, Copy)]
pub(super) enum Named {
    /// As the leaf's holder.
    Subject,
    Issuer,
    Other(&'static str),
}

/// Which issuers are shown.
#[derive(Clone, Copy)]
pub(super) enum Shows {
    All,
    /// All but its own.
    ButOne,
    /// One of ours, whoever the issuer is.
    Ours,
    /// The issuer shows itself instead of the leaf, and has the key.
    IssuerItself,
}

impl Draft {
    pub(super) fn new() -> Draft {
        let mut leaf = leaf_params(PEERS);
        leaf.subject_alt_names.clear();
        Draft {
            leaf,
            names: vec![(URI, PEERS.into())],
            key: KeyKind::P256,
            issuers: vec![issuer_params()],
            issuers_key: KeyKind::P256,
            root: Top::Ours,
            signer: Signer::Issuer,
            shows: Shows::All,
            is_backwards: false,
            arrange: |_, _| {},
            forge: |_| {},
        }
    }

    /// An issuer, counted from the leaf upwards from 0, made where there is none.
    pub(super) fn issuer(&mut self, number: usize) -> &mut CertificateParams {
        while self.issuers.len() <= number {
            self.issuers.push(issuer_params());
        }
        &mut self.issuers[number]
    }

    /// Puts other bytes for its id.
    pub(super) fn identify(&mut self, id: &[u8]) {
        for name in self.names.iter_mut().filter(|name| name.0 == URI) {
            name.1 = id.to_vec();
        }
    }

    /// An extension of the leaf, by the last number of its OID (RFC 5280, 4.2.1).
    pub(super) fn extend(&mut self, number: u64, is_critical: bool, content: &[u8]) {
        self.leaf
            .custom_extensions
            .push(extension(number, is_critical, content));
    }

    pub(super) fn show(self, ours: &Authority) -> Shown {
        let top = match self.root {
            Top::Ours | Top::Namesake => "root",
            Top::Stranger => "another mesh",
        };
        let other = Authority::root(top);
        let root = match self.root {
            Top::Ours => ours,
            Top::Stranger | Top::Namesake => &other,
        };
        let mut made: Vec<Authority> = Vec::new();
        for params in self.issuers.iter().rev() {
            let above = made.last().unwrap_or(root);
            made.push(above.certify_issuer(params.clone(), self.issuers_key.make(Holder::Issuer)));
        }
        let issuer = made.last().unwrap_or(root);

        let (key, another) = (self.key.make(Holder::Peer), self.issuers_key.make(Holder::Impostor));
        let named = |named| match named {
            Named::Subject => self.leaf.distinguished_name.clone(),
            Named::Issuer => match self.issuers.first() {
                Some(params) => params.distinguished_name.clone(),
                None => common_name(top),
            },
            Named::Other(name) => common_name(name),
        };
        let (name, signing) = match self.signer {
            Signer::Issuer => (named(Named::Issuer), issuer.issuer.key()),
            Signer::Itself(as_whom) => (named(as_whom), &key),
            Signer::Impostor(as_whom) => (named(as_whom), &another),
        };
        let mut signer = authority_params("");
        signer.distinguished_name = name;
        let mut leaf = self.leaf.clone();
        if !self.names.is_empty() {
            leaf.custom_extensions.push(names(&self.names));
        }
        let signer = Issuer::from_params(&signer, signing);
        let mut leaf = leaf.signed_by(&key, &signer).unwrap().der().clone();
        if self.is_backwards {
            leaf = backwards(&leaf, signing).into();
        }

        let mut chain = vec![leaf];
        let mut key = key.serialize_der();
        match self.shows {
            Shows::All => chain.extend_from_slice(&issuer.chain),
            Shows::ButOne => chain.extend(issuer.chain.iter().skip(1).cloned()),
            Shows::Ours => chain.extend(ours.below(|_| {}).chain),
            Shows::IssuerItself => {
                chain = vec![issuer.issuer.der().clone()];
                key = issuer.issuer.key().serialize_der();
            }
        }
        (self.arrange)(&mut chain, root);
        let mut shown = Shown { chain, key };
        (self.forge)(&mut shown);
        shown
    }
}

/// Whose a key is.
#[derive(Clone, Copy)]
pub(super) enum Holder {
    Issuer,
    Peer,
    Impostor,
}

impl KeyKind {
    pub(super) fn make(self, holder: Holder) -> KeyPair {
        // To make one takes long: each holder has always the same.
        static RSA: LazyLock<[Vec<u8>; 3]> =
            LazyLock::new(|| [(); 3].map(|()| KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap().serialize_der()));
        match self {
            KeyKind::P256 => KeyPair::generate().unwrap(),
            KeyKind::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
            KeyKind::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
            KeyKind::Rsa => KeyPair::try_from(&RSA[holder as usize][..]).unwrap(),
        }
    }
}

/// Chains of no certificate, with the key that proves that one has none.
pub(super) fn bare() -> Vec<Shown> {
    let kinds = [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519, KeyKind::Rsa].into_iter();
    let bare = kinds.map(|kind| Shown {
        chain: Vec::new(),
        key: kind.make(Holder::Peer).serialize_der(),
    });
    bare.collect()
}

pub(super) fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

pub(super) fn extension(number: u64, is_critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, number], content.to_vec());
    extension.set_criticality(is_critical);
    extension
}

/// The names of a certificate, with whatever bytes. Critical, as where the subject is empty (RFC 5280, 4.2.1.6).
pub(super) fn names(names: &[(u8, Vec<u8>)]) -> CustomExtension {
    let names: Vec<_> = names.iter().map(|(class, name)| der(*class, &[name])).collect();
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    extension(17, true, &der(0x30, &names))
}

/// One value in DER.
pub(super) fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut bytes = vec![tag];
    match content.len() {
        short @ 0..128 => bytes.push(short as u8),
        more @ 128..256 => bytes.extend([0x81, more as u8]),
        many => {
            bytes.push(0x82);
            bytes.extend(u16::try_from(many).unwrap().to_be_bytes());
        }
    }
    bytes.extend(content);
    bytes
}

/// The same certificate with its extensions in the opposite order, signed anew.
fn backwards(certificate: &[u8], signer: &KeyPair) -> Vec<u8> {
    let fields = values(content(certificate));
    let [to_be_signed, algorithm, _] = fields[..] else {
        panic!("a certificate has three parts");
    };
    let mut fields = values(content(to_be_signed));
    let extensions = fields.pop().unwrap();
    let mut extensions = values(content(content(extensions)));
    extensions.reverse();
    let extensions = der(0xa3, &[&der(0x30, &extensions)]);
    fields.push(&extensions);
    let to_be_signed = der(0x30, &fields);
    let signature = signer.sign(&to_be_signed).unwrap();
    der(0x30, &[&to_be_signed, algorithm, &der(3, &[&[0], &signature])])
}

/// The values that stand one behind the other.
fn values(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        let (head, length) = measure(bytes);
        let (value, rest) = bytes.split_at(head + length);
        values.push(value);
        bytes = rest;
    }
    values
}

fn content(value: &[u8]) -> &[u8] {
    let (head, length) = measure(value);
    &value[head..head + length]
}

/// How long the head of a value is, and how long its content.
fn measure(value: &[u8]) -> (usize, usize) {
    match value[1] {
        0x81 => (3, usize::from(value[2])),
        0x82 => (4, usize::from(u16::from_be_bytes([value[2], value[3]]))),
        short => (2, usize::from(short)),
    }
}
