//! Header compression (RFC 7541) over interned fields.
//!
//! A field that a peer refers to by its index is an id of the worker's [`Interner`] and nothing more: from the decoder of
//! one connection, through a list of [`Fields`], to the encoder of another, its text is not touched.
//!
//! ```text
//!              Decoder                        Fields                      Encoder
//!  block -> [ids | texts of its own] -> [ids | texts of literals] -> [ids] -> block
//!               \                          |                           /
//!                `------------------- Interner: id -> text -----------'
//! ```
//!
//! A short block that comes again is the list that it was, and a list that goes out again the block that was made of it
//! (`known.rs`): then none of the fields is looked at.
//!
//! What stays out of the interner: secrets (`authorization`, cookies, what a sender marked never-indexed), values that each
//! call has for itself (`traceparent`, `grpc-timeout`), and every literal that its sender did not index.

mod coded;
mod decoder;
mod encoder;
mod entries;
mod fields;
pub mod huffman;
mod huffman_codes;
mod integer;
mod intern;
mod known;
mod name;
mod private;
mod static_table;

#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Limits};
pub use encoder::Encoder;
pub use fields::{FieldView, Fields};
pub use intern::{FieldId, Interner};
pub use known::{ListId, Lists};
pub use name::{Malformed, Name, Names};

/// The bytes of dynamic table that both ends begin with, and the most that our encoder uses (RFC 9113, 6.5.2).
pub const DEFAULT_TABLE_BYTES: u32 = 4_096;

/// What an entry counts beside its text (RFC 7541, 4.1; RFC 9113, 6.5.2).
const OVERHEAD: u32 = 32;

/// Why a header block cannot be decoded. The tables are then out of step: all of these are COMPRESSION_ERROR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The block ended in the middle of a field.
    #[error("the header block ends in the middle of a field")]
    Truncated,
    /// Index 0 (RFC 7541, 6.1).
    #[error("the header block refers to index 0, which is no field")]
    IndexZero,
    /// An index beyond the dynamic table (RFC 7541, 2.3.3).
    #[error("the header block refers to index {index}, but the tables end at {last}")]
    NoSuchIndex {
        /// What the peer asked for.
        index: u32,
        /// The last index that there is.
        last: u32,
    },
    /// An integer of more than 32 bits, or in more than six bytes (RFC 7541, 5.1).
    #[error("the header block has an integer that is too long")]
    IntegerTooLong,
    /// Padding that is not at most seven ones (RFC 7541, 5.2).
    #[error("a Huffman-coded string ends in padding that is not the beginning of EOS, or is longer than 7 bits")]
    HuffmanPadding,
    /// EOS inside a string (RFC 7541, 5.2).
    #[error("a Huffman-coded string contains EOS")]
    HuffmanEos,
    /// A size update beyond what our SETTINGS allows (RFC 7541, 6.3).
    #[error("the peer's encoder wants a table of {asked} bytes where {allowed} are allowed")]
    SizeUpdateTooLarge {
        /// What the peer wants.
        asked: u32,
        /// What it may have.
        allowed: u32,
    },
    /// No size update, though our SETTINGS lowered the limit below the peer's table (RFC 7541, 4.2).
    #[error("the peer's encoder did not say that it shrank its table to the {allowed} bytes that are allowed now")]
    SizeUpdateMissing {
        /// What the peer may have.
        allowed: u32,
    },
    /// A size update behind a field, or a third one (RFC 7541, 4.2).
    #[error("the header block has a table size update where none may stand")]
    SizeUpdateMisplaced,
}
