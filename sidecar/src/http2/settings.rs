//! What an HTTP/2 connection of ours announces, and what it tolerates of its peer.

use std::time::Duration;

/// The limits of one HTTP/2 connection. Every field is a setting with a default, listed in `docs/operations.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many streams the peer may have open at once (SETTINGS_MAX_CONCURRENT_STREAMS). Default 1,000.
    pub max_concurrent_streams: u32,
    /// Bytes a stream may send before the first update (SETTINGS_INITIAL_WINDOW_SIZE). Default 65,535.
    pub first_stream_window: u32,
    /// The most credit of its reader that a stream's sender gets without measured need; it may be ahead of its reader by as
    /// much again. Default 256 KiB.
    pub stream_window: u32,
    /// The most credit a connection's sender ever has without measured need. Default 1 MiB.
    pub connection_window: u32,
    /// The most credit a stream's sender ever has over a long path. Default 4 MiB.
    pub stream_window_ceiling: u32,
    /// The most credit a connection's sender ever has over a long path. Default 16 MiB.
    pub connection_window_ceiling: u32,
    /// The most bytes of a header list, counted as RFC 9113, 6.5.2 counts them. Default 64 KiB.
    pub max_header_list_bytes: u32,
    /// The most fields of a header list. Default 256.
    pub max_header_fields: u32,
    /// CONTINUATION frames that one header block may take. Default 64.
    pub max_continuations: u32,
    /// Bytes of a header block as it comes on the wire, compressed. Default 256 KiB.
    pub max_header_block_bytes: u32,
    /// Bytes of the HPACK table that the peer may use (SETTINGS_HEADER_TABLE_SIZE). Default 4,096.
    pub header_table_bytes: u32,
    /// How long the preface and the first SETTINGS may take. Default 10 s.
    pub preface_timeout: Duration,
    /// How long a header block may take from its first frame to its last. Default 10 s.
    pub headers_timeout: Duration,
    /// How long a connection without streams stays open. Default 15 min.
    pub idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_concurrent_streams: 1_000,
            first_stream_window: 65_535,
            stream_window: 256 << 10,
            connection_window: 1 << 20,
            stream_window_ceiling: 4 << 20,
            connection_window_ceiling: 16 << 20,
            max_header_list_bytes: 64 << 10,
            max_header_fields: 256,
            max_continuations: 64,
            max_header_block_bytes: 256 << 10,
            header_table_bytes: 4_096,
            preface_timeout: Duration::from_secs(10),
            headers_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(900),
        }
    }
}
