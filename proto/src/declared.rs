//! What a port is declared to speak: `appProtocol` first, else the prefix of the port's name. The words are the same in a
//! manifest, on the wire and in a sidecar's settings.

/// The declared protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Declared {
    /// Nothing: the connection itself has to tell.
    #[default]
    Nothing,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// HTTP of either version, which the client's first bytes tell apart.
    Http,
    /// gRPC-Web over HTTP of either version.
    GrpcWeb,
    /// TLS of the application's own.
    Tls,
    /// Bytes.
    Opaque,
}

/// The words of `appProtocol`, the one that we use ourselves before others of its meaning. To add one is a change of the
/// protocol: a sidecar that does not know it detects.
pub const PROTOCOLS: [(&str, Declared); 9] = [
    ("h2c", Declared::Http2),
    ("kubernetes.io/h2c", Declared::Http2),
    ("grpc", Declared::Http2),
    ("http2", Declared::Http2),
    ("grpc-web", Declared::GrpcWeb),
    ("http", Declared::Http),
    ("tls", Declared::Tls),
    ("https", Declared::Tls),
    ("tcp", Declared::Opaque),
];

/// A declared protocol that is not known here. The connection has to tell, as if nothing had been declared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is {value:?}, which is not known: the protocol is told by the first bytes; known are {}",
    PROTOCOLS.map(|(word, _)| word).join(", ")
)]
pub struct UnknownProtocol {
    /// What was declared.
    pub value: String,
}

impl Declared {
    /// What `appProtocol` and the name of a port declare together; `appProtocol` wins.
    ///
    /// # Errors
    /// When `appProtocol` has a value that is not known. A port's name may be anything and is never an error.
    pub fn of(app_protocol: Option<&str>, port_name: Option<&str>) -> Result<Declared, UnknownProtocol> {
        match app_protocol.filter(|value| !value.is_empty()) {
            Some(value) => Declared::from_app_protocol(value),
            None => Ok(port_name.map(Declared::from_port_name).unwrap_or_default()),
        }
    }

    /// What a value of `appProtocol` means, whatever its case.
    ///
    /// # Errors
    /// When it is not known.
    pub fn from_app_protocol(value: &str) -> Result<Declared, UnknownProtocol> {
        let known = PROTOCOLS.iter().find(|(word, _)| word.eq_ignore_ascii_case(value));
        known.map(|(_, meaning)| *meaning).ok_or_else(|| UnknownProtocol {
            value: value.to_owned(),
        })
    }

    /// What a port's name declares: `grpc`, `http2`, `h2c`, `grpc-web` and `tcp`, alone or before a `-`.
    pub fn from_port_name(name: &str) -> Declared {
        let begins_with = |word: &str| {
            name.strip_prefix(word)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        if begins_with("grpc-web") {
            Declared::GrpcWeb
        } else if ["grpc", "http2", "h2c"].into_iter().any(begins_with) {
            Declared::Http2
        } else if begins_with("tcp") {
            Declared::Opaque
        } else {
            Declared::Nothing
        }
    }

    /// The word that says it; none for nothing.
    pub fn word(self) -> Option<&'static str> {
        let found = PROTOCOLS.iter().find(|(_, meaning)| *meaning == self);
        found.map(|(word, _)| *word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_value_is_understood() {
        let cases = [
            ("kubernetes.io/h2c", Declared::Http2),
            ("grpc", Declared::Http2),
            ("http2", Declared::Http2),
            ("grpc-web", Declared::GrpcWeb),
            ("http", Declared::Http),
            ("tcp", Declared::Opaque),
            ("https", Declared::Tls),
            ("tls", Declared::Tls),
            ("HTTP2", Declared::Http2),
        ];
        for (value, meaning) in cases {
            assert_eq!(Declared::from_app_protocol(value), Ok(meaning), "{value}");
            let word = meaning.word().expect("there is a word for everything but nothing");
            assert_eq!(Declared::from_app_protocol(word), Ok(meaning), "{word}");
        }
        assert_eq!(Declared::Nothing.word(), None);
    }

    #[test]
    fn an_unknown_value_is_reported_with_its_name() {
        let error = Declared::of(Some("example.com/mystery"), Some("grpc-api")).expect_err("not known");
        assert_eq!(error.value, "example.com/mystery");
        assert!(error.to_string().contains("example.com/mystery"));
    }

    #[test]
    fn every_documented_prefix_of_a_port_name_is_understood() {
        let cases = [
            ("grpc-api", Declared::Http2),
            ("http2-api", Declared::Http2),
            ("h2c-api", Declared::Http2),
            ("grpc-web-api", Declared::GrpcWeb),
            ("grpc-web", Declared::GrpcWeb),
            ("tcp-db", Declared::Opaque),
            ("grpc", Declared::Http2),
            ("grpcish", Declared::Nothing),
            ("metrics", Declared::Nothing),
            ("", Declared::Nothing),
        ];
        for (name, meaning) in cases {
            assert_eq!(Declared::from_port_name(name), meaning, "{name}");
        }
    }

    #[test]
    fn app_protocol_wins_over_the_name() {
        assert_eq!(Declared::of(Some("tcp"), Some("grpc-api")), Ok(Declared::Opaque));
        assert_eq!(Declared::of(Some(""), Some("grpc-api")), Ok(Declared::Http2));
        assert_eq!(Declared::of(None, None), Ok(Declared::Nothing));
    }
}
