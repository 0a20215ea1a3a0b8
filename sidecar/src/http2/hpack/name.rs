//! What a field is, by its name; and what makes a field malformed.

use super::static_table;
use crate::edge::client_cert;

/// What a field is, decided once from its name. Names are compared as they stand on the wire: in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Name {
    /// `:method`
    Method,
    /// `:scheme`
    Scheme,
    /// `:path`
    Path,
    /// `:authority`
    Authority,
    /// `:protocol` (RFC 8441)
    Protocol,
    /// `:status`
    Status,
    /// Any other name that begins with a colon.
    OtherPseudo,
    /// `content-type`
    ContentType,
    /// `content-length`
    ContentLength,
    /// `te`
    Te,
    /// `connection`
    Connection,
    /// `keep-alive`
    KeepAlive,
    /// `proxy-connection`
    ProxyConnection,
    /// `transfer-encoding`
    TransferEncoding,
    /// `upgrade`
    Upgrade,
    /// `host`
    Host,
    /// `authorization`
    Authorization,
    /// `cookie`
    Cookie,
    /// `set-cookie`
    SetCookie,
    /// `grpc-timeout`
    GrpcTimeout,
    /// `grpc-status`
    GrpcStatus,
    /// `grpc-message`
    GrpcMessage,
    /// `grpc-encoding`
    GrpcEncoding,
    /// `user-agent`
    UserAgent,
    /// `x-forwarded-proto`
    ForwardedProto,
    /// `x-forwarded-client-cert` in any case, and with `_` for any `-`: what some server would take for it.
    ForwardedClientCert,
    /// `traceparent`
    Traceparent,
    /// `tracestate`
    Tracestate,
    /// `b3` and `x-b3-*`
    B3,
    /// `x-request-id`
    RequestId,
    /// `grpc-trace-bin`
    GrpcTraceBin,
    /// `portunus-error`
    PortunusError,
    /// `grpc-retry-pushback-ms`
    RetryPushback,
    /// `grpc-previous-rpc-attempts`
    PreviousAttempts,
    /// `date`
    Date,
    /// Every other name.
    Other,
}

impl Name {
    /// What a field of this name is.
    pub fn of(name_text: &[u8]) -> Name {
        judge(name_text).0.name
    }
}

/// A set of names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Names(u64);

impl Names {
    /// No name.
    pub const NONE: Names = Names(0);
    /// Those that begin with a colon.
    pub const PSEUDO: Names = Names::of(&[
        Name::Method,
        Name::Scheme,
        Name::Path,
        Name::Authority,
        Name::Protocol,
        Name::Status,
        Name::OtherPseudo,
    ]);

    /// The set of these.
    pub const fn of(names: &[Name]) -> Names {
        let mut set = Names::NONE;
        let mut at = 0;
        while at < names.len() {
            set.0 |= 1 << names[at] as u8;
            at += 1;
        }
        set
    }

    /// Whether `name` is in it.
    #[inline]
    pub const fn has(self, name: Name) -> bool {
        self.has_any(Names::of(&[name]))
    }

    /// Whether any of `others` is in it.
    #[inline]
    pub const fn has_any(self, others: Names) -> bool {
        self.0 & others.0 != 0
    }

    /// Whether all of `others` are in it.
    #[inline]
    pub const fn has_all(self, others: Names) -> bool {
        self.0 & others.0 == others.0
    }

    /// The names that are in both.
    #[inline]
    pub const fn and(self, others: Names) -> Names {
        Names(self.0 & others.0)
    }

    /// The names of this set alone.
    #[inline]
    pub const fn but(self, others: Names) -> Names {
        Names(self.0 & !others.0)
    }

    /// Whether there is none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether an ordinary name, without a colon, is in it.
    #[inline]
    pub const fn has_ordinary(self) -> bool {
        // Pseudo names have the lowest bits.
        self.0 > Names::PSEUDO.0
    }

    /// The names that are in either.
    #[inline]
    pub const fn or(self, others: Names) -> Names {
        Names(self.0 | others.0)
    }
}

/// Why a field makes its message malformed, whatever else stands there (RFC 9113, 8.2 and 8.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u8)]
pub enum Malformed {
    /// The name is empty.
    #[error("a field without a name")]
    EmptyName,
    /// The name has an upper-case letter.
    #[error("a field name with an upper-case letter")]
    UpperCaseName,
    /// The name has a byte that no token has (RFC 9110, 5.6.2), or a colon that is not its first byte.
    #[error("a field name with a byte that no name has")]
    BadNameByte,
    /// `connection` and its like, which HTTP/2 does not have.
    #[error("a connection-specific field")]
    ConnectionField,
    /// The value has NUL, CR, LF, DEL or another control byte that is not a tab.
    #[error("a field value with a control byte")]
    BadValueByte,
    /// The value begins or ends with a space or a tab.
    #[error("a field value that begins or ends with a space")]
    ValueSpace,
    /// `:method`, `:scheme`, `:path` or `:status` without a value.
    #[error("a pseudo field without a value")]
    EmptyPseudo,
    /// A pseudo field with a byte that none of its values has (RFC 9113, 8.3.1).
    #[error("a pseudo field with a byte that it cannot have")]
    BadPseudoByte,
    /// `te` with something other than `trailers`.
    #[error("te other than trailers")]
    Te,
}

impl Malformed {
    pub(super) const ALL: [Malformed; 9] = [
        Malformed::EmptyName,
        Malformed::UpperCaseName,
        Malformed::BadNameByte,
        Malformed::ConnectionField,
        Malformed::BadValueByte,
        Malformed::ValueSpace,
        Malformed::EmptyPseudo,
        Malformed::BadPseudoByte,
        Malformed::Te,
    ];

    /// Whether every field of the same name is malformed.
    pub(super) fn is_of_the_name(self) -> bool {
        match self {
            Malformed::EmptyName | Malformed::UpperCaseName | Malformed::BadNameByte | Malformed::ConnectionField => {
                true
            }
            Malformed::BadValueByte
            | Malformed::ValueSpace
            | Malformed::EmptyPseudo
            | Malformed::BadPseudoByte
            | Malformed::Te => false,
        }
    }
}

/// All that follows from a field's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Class {
    pub(super) name: Name,
    /// The first entry of the static table with this name, 0 if there is none.
    pub(super) static_index: u8,
    pub(super) keep: Keep,
}

impl Class {
    pub(super) const OTHER: Class = Class {
        name: Name::Other,
        static_index: 0,
        keep: Keep::Shared,
    };
}

/// Where the text of a field may be kept that a peer has put into its table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Keep {
    /// In the worker's interning table: other calls have the same field.
    Shared,
    /// In the decoder of its connection alone: each call has another value.
    PerCall,
    /// The same, and it goes on as never-indexed: nobody may guess at it by the size of a block (RFC 7541, 7.1).
    Secret,
}

/// What the name is, and what is wrong with it.
pub(super) fn judge(text: &[u8]) -> (Class, Option<Malformed>) {
    if let Some(class) = known(text) {
        return (class, connection_field(class.name));
    }
    let malformed = name_malformed(text);
    let class = match text {
        [b':', ..] => Class {
            name: Name::OtherPseudo,
            ..Class::OTHER
        },
        [b'x', b'-', b'b', b'3', b'-', ..] => Class {
            name: Name::B3,
            keep: Keep::PerCall,
            ..Class::OTHER
        },
        _ if client_cert::is_taken_for(text) => Class {
            name: Name::ForwardedClientCert,
            ..Class::OTHER
        },
        _ => Class::OTHER,
    };
    (class, malformed)
}

fn connection_field(name: Name) -> Option<Malformed> {
    const NAMES: Names = Names::of(&[
        Name::Connection,
        Name::KeepAlive,
        Name::ProxyConnection,
        Name::TransferEncoding,
        Name::Upgrade,
    ]);
    NAMES.has(name).then_some(Malformed::ConnectionField)
}

/// What is wrong with a value of a field of this name.
#[inline]
pub(super) fn value_malformed(name: Name, value: &[u8]) -> Option<Malformed> {
    match name {
        Name::Method | Name::Scheme | Name::Path | Name::Status if value.is_empty() => Some(Malformed::EmptyPseudo),
        Name::Method | Name::Scheme | Name::Authority | Name::Path => {
            (!is_pseudo_value(name, value)).then_some(Malformed::BadPseudoByte)
        }
        Name::Te if value != b"trailers" => Some(Malformed::Te),
        _ => text_malformed(value),
    }
}

/// Servers end the connection over a `:method` that is no token, and a pseudo field that is not text: on a connection that
/// many share, one caller would end the calls of all. A path may have bytes that a URI has not, since clients send them.
fn is_pseudo_value(name: Name, value: &[u8]) -> bool {
    let plain = !has(value, |byte| !byte.is_ascii_graphic());
    match name {
        Name::Method => value.iter().all(|byte| is_token_byte(*byte)),
        Name::Path => plain || !has(value, |byte| byte <= b' ' || byte == 0x7f) && std::str::from_utf8(value).is_ok(),
        _ => plain,
    }
}

/// RFC 9110, 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[inline]
fn text_malformed(value: &[u8]) -> Option<Malformed> {
    if has(value, |byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
        Some(Malformed::BadValueByte)
    } else {
        spaces_malformed(value)
    }
}

/// What is wrong with a value that is known to have no control byte.
#[inline]
pub(super) fn plain_malformed(name: Name, value: &[u8]) -> Option<Malformed> {
    match name {
        Name::Method | Name::Scheme | Name::Authority | Name::Path | Name::Status | Name::Te => {
            value_malformed(name, value)
        }
        _ => spaces_malformed(value),
    }
}

#[inline]
fn spaces_malformed(value: &[u8]) -> Option<Malformed> {
    let space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    (space(value.first()) || space(value.last())).then_some(Malformed::ValueSpace)
}

/// Whether some byte is such a one. Sixteen bytes at a time, since each call has long values of its own.
#[inline(always)]
fn has(value: &[u8], such: impl Fn(u8) -> bool) -> bool {
    let mut found = [0u8; 16];
    let mut look = |chunk: &[u8; 16]| {
        for (found, byte) in found.iter_mut().zip(chunk) {
            *found |= u8::from(such(*byte));
        }
    };
    let Some(last) = value.last_chunk() else {
        return value.iter().any(|byte| such(*byte));
    };
    look(last);
    for chunk in value.as_chunks().0 {
        look(chunk);
    }
    found != [0; 16]
}

fn name_malformed(text: &[u8]) -> Option<Malformed> {
    let token = match text {
        [] => return Some(Malformed::EmptyName),
        [b':', token @ ..] if !token.is_empty() => token,
        _ => text,
    };
    token.iter().find_map(|byte| match byte {
        b'A'..=b'Z' => Some(Malformed::UpperCaseName),
        byte if is_token_byte(*byte) => None,
        _ => Some(Malformed::BadNameByte),
    })
}

/// The names that are known, found by one look-up: [`place`] is different for each of them.
fn known(text: &[u8]) -> Option<Class> {
    let (first, last) = (*text.first()?, *text.last()?);
    let entry = PLACES[place(text.len(), first, last, text[text.len() / 2])];
    let (known, class) = KNOWN.get(usize::from(entry))?;
    (*known == text).then_some(*class)
}

const fn place(len: usize, first: u8, last: u8, middle: u8) -> usize {
    (len * 139 + first as usize * 152 + last as usize * 106 + middle as usize * 38) % PLACES_LEN
}

const PLACES_LEN: usize = 512;
const NO_NAME: u8 = u8::MAX;

static PLACES: [u8; PLACES_LEN] = {
    let mut places = [NO_NAME; PLACES_LEN];
    let mut at = 0;
    while at < KNOWN.len() {
        let text = KNOWN[at].0;
        let place = place(text.len(), text[0], text[text.len() - 1], text[text.len() / 2]);
        assert!(
            places[place] == NO_NAME,
            "two names have one place: choose other factors"
        );
        places[place] = at as u8;
        at += 1;
    }
    places
};

static KNOWN: [(&[u8], Class); LISTED.len() + STATIC_OTHERS] = {
    let mut known: [(&[u8], Class); LISTED.len() + STATIC_OTHERS] = [(b"", Class::OTHER); _];
    let mut len = 0;
    while len < LISTED.len() {
        let (text, name, keep) = LISTED[len];
        known[len] = (
            text,
            Class {
                name,
                static_index: static_index(text),
                keep,
            },
        );
        len += 1;
    }
    let mut index = 1;
    while index <= static_table::LEN as usize {
        let text = static_table::ENTRIES[index - 1].0;
        if is_other(text) && static_index(text) == index as u8 {
            known[len] = (
                text,
                Class {
                    static_index: index as u8,
                    ..Class::OTHER
                },
            );
            len += 1;
        }
        index += 1;
    }
    assert!(len == known.len());
    known
};

/// How many names of the static table are not listed.
const STATIC_OTHERS: usize = {
    let mut count = 0;
    let mut index = 1;
    while index <= static_table::LEN as usize {
        let text = static_table::ENTRIES[index - 1].0;
        count += (is_other(text) && static_index(text) == index as u8) as usize;
        index += 1;
    }
    count
};

const fn is_other(text: &[u8]) -> bool {
    let mut at = 0;
    while at < LISTED.len() {
        if equal(LISTED[at].0, text) {
            return false;
        }
        at += 1;
    }
    true
}

const fn static_index(text: &[u8]) -> u8 {
    let mut index = 1;
    while index <= static_table::LEN as usize {
        if equal(static_table::ENTRIES[index - 1].0, text) {
            return index as u8;
        }
        index += 1;
    }
    0
}

const fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// What a name of the static table is, while that table is being built.
pub(super) const fn known_or_other(text: &[u8]) -> Class {
    let mut at = 0;
    while at < KNOWN.len() {
        if equal(KNOWN[at].0, text) {
            return KNOWN[at].1;
        }
        at += 1;
    }
    Class::OTHER
}

/// The names that mean something here, or whose values are not kept for others.
const LISTED: [(&[u8], Name, Keep); 46] = [
    (b":method", Name::Method, Keep::Shared),
    (b":scheme", Name::Scheme, Keep::Shared),
    (b":path", Name::Path, Keep::Shared),
    (b":authority", Name::Authority, Keep::Shared),
    (b":protocol", Name::Protocol, Keep::Shared),
    (b":status", Name::Status, Keep::Shared),
    (b"content-type", Name::ContentType, Keep::Shared),
    (b"content-length", Name::ContentLength, Keep::PerCall),
    (b"te", Name::Te, Keep::Shared),
    (b"connection", Name::Connection, Keep::Shared),
    (b"keep-alive", Name::KeepAlive, Keep::Shared),
    (b"proxy-connection", Name::ProxyConnection, Keep::Shared),
    (b"transfer-encoding", Name::TransferEncoding, Keep::Shared),
    (b"upgrade", Name::Upgrade, Keep::Shared),
    (b"host", Name::Host, Keep::Shared),
    (b"authorization", Name::Authorization, Keep::Secret),
    (b"proxy-authorization", Name::Other, Keep::Secret),
    (b"cookie", Name::Cookie, Keep::Secret),
    (b"set-cookie", Name::SetCookie, Keep::Secret),
    (b"grpc-timeout", Name::GrpcTimeout, Keep::PerCall),
    (b"grpc-status", Name::GrpcStatus, Keep::Shared),
    (b"grpc-message", Name::GrpcMessage, Keep::PerCall),
    (b"grpc-status-details-bin", Name::Other, Keep::PerCall),
    (b"grpc-encoding", Name::GrpcEncoding, Keep::Shared),
    (b"grpc-accept-encoding", Name::Other, Keep::Shared),
    (b"user-agent", Name::UserAgent, Keep::Shared),
    (b"x-forwarded-proto", Name::ForwardedProto, Keep::Shared),
    (b"x-forwarded-client-cert", Name::ForwardedClientCert, Keep::Shared),
    (b"traceparent", Name::Traceparent, Keep::PerCall),
    (b"tracestate", Name::Tracestate, Keep::PerCall),
    (b"b3", Name::B3, Keep::PerCall),
    (b"x-request-id", Name::RequestId, Keep::PerCall),
    (b"x-cloud-trace-context", Name::Other, Keep::PerCall),
    (b"x-amzn-trace-id", Name::Other, Keep::PerCall),
    (b"uber-trace-id", Name::Other, Keep::PerCall),
    (b"grpc-trace-bin", Name::GrpcTraceBin, Keep::PerCall),
    (b"grpc-tags-bin", Name::Other, Keep::PerCall),
    (b"portunus-error", Name::PortunusError, Keep::Shared),
    (b"grpc-retry-pushback-ms", Name::RetryPushback, Keep::Shared),
    (b"grpc-previous-rpc-attempts", Name::PreviousAttempts, Keep::Shared),
    (b"date", Name::Date, Keep::PerCall),
    (b"etag", Name::Other, Keep::PerCall),
    (b"if-none-match", Name::Other, Keep::PerCall),
    (b"last-modified", Name::Other, Keep::PerCall),
    (b"if-modified-since", Name::Other, Keep::PerCall),
    (b"age", Name::Other, Keep::PerCall),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_known_and_its_neighbours_are_not() {
        for (text, name, keep) in LISTED {
            let (class, malformed) = judge(text);
            assert_eq!((class.name, class.keep), (name, keep));
            assert_eq!(malformed, connection_field(name));
            let longer = [text, b"x"].concat();
            assert_eq!(known(&longer), None);
            let mut other = text.to_vec();
            other[0] = b'q';
            assert_eq!(known(&other), None, "{}", other.escape_ascii());
        }
        assert_eq!(known(b""), None);
    }

    #[test]
    fn a_set_knows_whether_a_name_without_a_colon_is_in_it() {
        for (text, name, _) in LISTED {
            assert_eq!(Names::of(&[name]).has_ordinary(), text[0] != b':');
            assert_eq!(Names::PSEUDO.has(name), text[0] == b':');
        }
        assert!(!Names::PSEUDO.has_ordinary() && !Names::NONE.has_ordinary());
    }

    #[test]
    fn names_that_a_pattern_finds() {
        assert_eq!(Name::of(b":foo"), Name::OtherPseudo);
        assert_eq!(Name::of(b"x-b3-traceid"), Name::B3);
        assert_eq!(Name::of(b"x-b3"), Name::Other);
        assert_eq!(Name::of(b"custom"), Name::Other);
        assert_eq!(Name::of(b"Content-Type"), Name::Other);
    }

    #[test]
    fn a_client_cert_is_recognised_in_any_spelling_that_a_server_would_take_for_it() {
        for text in [
            "x-forwarded-client-cert",
            "X-Forwarded-Client-Cert",
            "x_forwarded-client_cert",
            "X_FORWARDED_CLIENT_CERT",
            "x.forwarded.client.cert",
            "x~forwarded-client!cert",
        ] {
            assert_eq!(Name::of(text.as_bytes()), Name::ForwardedClientCert);
        }
        for text in [
            "x-forwarded-client-certs",
            "xxforwarded-client-cert",
            "x-forwarded-clientxcert",
        ] {
            assert_eq!(Name::of(text.as_bytes()), Name::Other);
        }
    }

    #[test]
    fn what_is_malformed_is_named() {
        let name = |text: &[u8]| judge(text).1;
        assert_eq!(name(b""), Some(Malformed::EmptyName));
        assert_eq!(name(b"Te"), Some(Malformed::UpperCaseName));
        for bad in [
            b"a b".as_slice(),
            b"a:b",
            b":",
            b"::a",
            b"a\0",
            b"a\x7f",
            b"a\xff",
            b"a(b",
            b"caf\xc3\xa9",
        ] {
            assert_eq!(name(bad), Some(Malformed::BadNameByte), "{}", bad.escape_ascii());
        }
        for good in [b"a".as_slice(), b":a", b"a_b.c-d!~", b"9"] {
            assert_eq!(name(good), None);
        }
        for byte in 0..=255u8 {
            let bad = (byte < 0x20 && byte != b'\t') || byte == 0x7f;
            for value in [
                vec![b'x', byte, b'x'],
                [&[b'x'; 40], [byte].as_slice(), &[b'x'; 25]].concat(),
            ] {
                assert_eq!(
                    value_malformed(Name::Other, &value),
                    bad.then_some(Malformed::BadValueByte)
                );
            }
        }
        for spaced in [b" a".as_slice(), b"a ", b"\ta", b"a\t", b" "] {
            assert_eq!(value_malformed(Name::Other, spaced), Some(Malformed::ValueSpace));
        }
        assert_eq!(value_malformed(Name::Other, b""), None);
        assert_eq!(value_malformed(Name::Other, b"a b\tc \xe9"), None);
        assert_eq!(value_malformed(Name::Path, b""), Some(Malformed::EmptyPseudo));
        assert_eq!(value_malformed(Name::Te, b"gzip"), Some(Malformed::Te));
        assert_eq!(value_malformed(Name::Te, b"trailers"), None);
        assert_eq!(name(b"upgrade"), Some(Malformed::ConnectionField));
    }

    #[test]
    fn a_pseudo_field_has_fewer_bytes_to_choose_from() {
        use Name::*;
        for (name, value) in [
            (Method, b"PO ST".as_slice()),
            (Method, b"G(T"),
            (Method, b"G\xe9T"),
            (Scheme, b"ht tp"),
            (Scheme, "h\u{e9}".as_bytes()),
            (Authority, b"a b"),
            (Authority, "b\u{fc}cher".as_bytes()),
            (Path, b"/a b"),
            (Path, b"/a\tb"),
            (Path, b"/a\x7f"),
            (Path, b"/a\x98"),
            (Path, b" /a"),
        ] {
            for malformed in [value_malformed(name, value), plain_malformed(name, value)] {
                assert_eq!(
                    malformed,
                    Some(Malformed::BadPseudoByte),
                    "{name:?}: {}",
                    value.escape_ascii()
                );
            }
        }
        for (name, value) in [
            (Method, b"M-SEARCH".as_slice()),
            (Scheme, b"coap+tcp"),
            (Authority, b""),
            (Authority, b"[::1%25eth0]:80"),
            (Path, b"*"),
            (Path, "/caf\u{e9}?<\"{}|".as_bytes()),
        ] {
            assert_eq!(value_malformed(name, value), None, "{name:?}: {}", value.escape_ascii());
        }
    }
}
