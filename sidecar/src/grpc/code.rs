//! The status of a call (gRPC's `doc/statuscodes.md`).

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// The call succeeded.
    Ok = 0,
    /// The caller cancelled it.
    Cancelled = 1,
    /// An error that nobody named, or a status that is not a number of gRPC's.
    Unknown = 2,
    /// The caller's argument is wrong whatever the state of the server.
    InvalidArgument = 3,
    /// The deadline passed before the call was done.
    DeadlineExceeded = 4,
    /// What was asked for is not there.
    NotFound = 5,
    /// What was to be made is there already.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A quota, a limit or a memory is used up.
    ResourceExhausted = 8,
    /// The system is not in the state that the call needs.
    FailedPrecondition = 9,
    /// The call was given up, as after a conflict.
    Aborted = 10,
    /// Past the valid range.
    OutOfRange = 11,
    /// The server has no such method.
    Unimplemented = 12,
    /// An invariant is broken.
    Internal = 13,
    /// The service is not there now; the call may be tried again.
    Unavailable = 14,
    /// Data is lost or broken for good.
    DataLoss = 15,
    /// The caller did not say who it is.
    Unauthenticated = 16,
}

impl Code {
    /// Every code, in the order of its number.
    pub const ALL: [Code; 17] = [
        Code::Ok,
        Code::Cancelled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];

    /// Reads the value of a `grpc-status` field; what is not a known number is [`Code::Unknown`].
    pub fn parse(value: &[u8]) -> Code {
        let number = match value {
            [d @ b'0'..=b'9'] => (d - b'0') as usize,
            [b'1', d @ b'0'..=b'6'] => 10 + (d - b'0') as usize,
            _ => return Code::Unknown,
        };
        Code::ALL[number]
    }

    /// The value of a `grpc-status` field.
    pub fn as_str(self) -> &'static str {
        const TEXT: [&str; 17] = [
            "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16",
        ];
        TEXT[self as usize]
    }

    /// The name that metrics and people use, as grpc-go spells it: `OK`, `DeadlineExceeded`.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; 17] = [
            "OK",
            "Canceled",
            "Unknown",
            "InvalidArgument",
            "DeadlineExceeded",
            "NotFound",
            "AlreadyExists",
            "PermissionDenied",
            "ResourceExhausted",
            "FailedPrecondition",
            "Aborted",
            "OutOfRange",
            "Unimplemented",
            "Internal",
            "Unavailable",
            "DataLoss",
            "Unauthenticated",
        ];
        NAMES[self as usize]
    }

    /// The name as the constants of gRPC's protocol spell it, which OpenTelemetry uses: `OK`, `DEADLINE_EXCEEDED`.
    pub fn constant(self) -> &'static str {
        const CONSTANTS: [&str; 17] = [
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        ];
        CONSTANTS[self as usize]
    }

    /// What a response without `grpc-status` means by its HTTP status (gRPC's `doc/http-grpc-status-mapping.md`).
    pub fn from_http(status: u16) -> Code {
        match status {
            400 => Code::Internal,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::Unimplemented,
            429 | 502 | 503 | 504 => Code::Unavailable,
            _ => Code::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_from_its_own_text() {
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str().as_bytes()), code);
        }
    }

    #[test]
    fn what_is_not_a_code_is_unknown() {
        for text in ["", "17", "-1", "00", "1x", "256", "9999999999"] {
            assert_eq!(Code::parse(text.as_bytes()), Code::Unknown, "{text:?}");
        }
    }
}
