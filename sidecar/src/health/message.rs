//! The two messages of `grpc.health.v1`, and the five bytes before each on the wire.

use prost::Message;

/// `HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `HealthCheckResponse.ServingStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Serving,
    NotServing,
    /// Of `Watch` alone.
    ServiceUnknown,
    /// `UNKNOWN`, which is 0, and what no version of the protocol that we know says.
    Other(i32),
}

/// The request, as it stands on the wire.
pub(super) fn question(service: &str) -> Vec<u8> {
    let message = Question {
        service: service.to_owned(),
    };
    let mut bytes = vec![0];
    bytes.extend((message.encoded_len() as u32).to_be_bytes());
    bytes.extend(message.encode_to_vec());
    bytes
}

/// The longest message that is one of health's; it has two bytes, and room for fields to come.
const LONGEST: usize = 1_024;

/// Takes the first message off `bytes`: nothing if it is not whole yet, an error if it is none.
pub(super) fn take(bytes: &mut Vec<u8>) -> Result<Option<Status>, NotHealth> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if prefix[0] != 0 || length > LONGEST {
        return Err(NotHealth);
    }
    let Some(message) = rest.get(..length) else {
        return Ok(None);
    };
    let answer = Answer::decode(message).map_err(|_| NotHealth)?;
    bytes.drain(..5 + length);
    Ok(Some(match answer.status {
        1 => Status::Serving,
        2 => Status::NotServing,
        3 => Status::ServiceUnknown,
        other => Status::Other(other),
    }))
}

/// The bytes are no `HealthCheckResponse`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is no HealthCheckResponse")]
pub(super) struct NotHealth;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_question_is_what_the_protocol_says() {
        assert_eq!(question(""), [0, 0, 0, 0, 0]);
        assert_eq!(question("a.B"), [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'B']);
    }

    #[test]
    fn answers_are_read_however_they_are_cut() {
        let wire = [0, 0, 0, 0, 2, 8, 1, 0, 0, 0, 0, 2, 8, 2, 0, 0, 0, 0, 0];
        let mut bytes = Vec::new();
        let mut heard = Vec::new();
        for byte in wire {
            bytes.push(byte);
            heard.extend(take(&mut bytes).expect("it is one of health's"));
        }
        assert_eq!(heard, [Status::Serving, Status::NotServing, Status::Other(0)]);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            while let Ok(Some(_)) = take(&mut bytes) {}
        }
    }
}
