//! A conversation with the kernel's netfilter: questions that it answers with a list, and transactions that it takes
//! whole or not at all.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    libc, setsockopt_impl, sockopt_impl,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
            socket, sockopt,
        },
        time::TimeVal,
    },
};

use super::attribute::{self, Attribute};

/// A message of nf_tables.
#[derive(Debug)]
pub(super) struct Message {
    /// NFT_MSG_*.
    pub(super) kind: libc::c_int,
    /// NLM_F_* besides NLM_F_REQUEST.
    pub(super) flags: libc::c_int,
    pub(super) family: u8,
    pub(super) attributes: Vec<Attribute>,
    /// The message as one would say it to nft, for whoever reads that it was refused.
    pub(super) what: String,
}

/// One thing that the kernel listed.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) family: u8,
    pub(super) attributes: Vec<u8>,
}

/// Why a conversation went wrong.
#[derive(Debug)]
pub(super) enum Failure {
    /// The kernel refused a question, or a transaction as a whole.
    Refused(Errno),
    /// The kernel refused a transaction for one of its messages, by index; `blamed` is the text in it that it pointed
    /// at, where it did (a kind of chain, the name of an expression).
    RefusedMessage {
        index: usize,
        errno: Errno,
        blamed: Option<String>,
    },
    /// Somebody changed the rules since they were read.
    Overtaken,
    /// The socket failed.
    Socket(io::Error),
    /// The answer is none.
    Garbled,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure::Socket(errno.into())
    }
}

/// A netlink socket bound to the calling thread's network namespace.
pub(super) struct Netfilter {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netfilter {
    pub(super) fn open() -> Result<Self, Errno> {
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // The kernel answers at once; a wait would mean that the answer was lost.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
        // Older kernels know no extended acknowledgements; then a refusal is told less precisely.
        let _ = setsockopt(&socket, ExtendedAcknowledgement, &true);
        Ok(Netfilter {
            socket,
            sequence: 0,
            buffer: vec![0; LONGEST_DATAGRAM],
        })
    }

    /// The number of the present generation of rules.
    pub(super) fn generation(&mut self) -> Result<u32, Failure> {
        let answer = self.ask(libc::NFT_MSG_GETGEN, libc::NLM_F_ACK, ALL_FAMILIES, &[])?;
        let entry = answer.first().ok_or(Failure::Garbled)?;
        attribute::find(&entry.attributes, super::message::NFTA_GEN_ID)
            .and_then(attribute::as_number)
            .ok_or(Failure::Garbled)
    }

    /// Everything of a kind (NFT_MSG_GETTABLE and the like) in tables of the family; what does not fit to the
    /// attributes may be left out.
    pub(super) fn list(&mut self, kind: libc::c_int, family: u8, fitting: &[Attribute]) -> Result<Vec<Entry>, Failure> {
        self.ask(kind, libc::NLM_F_DUMP, family, fitting)
    }

    /// Does all of it or nothing, if the rules are still of this generation.
    pub(super) fn transact(&mut self, messages: &[Message], generation: u32) -> Result<(), Failure> {
        let Some(last) = messages.len().checked_sub(1) else {
            return Ok(());
        };
        let mut batch = Vec::new();
        let about_batch = [ALL_FAMILIES, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8];
        let same_generation = [Attribute::number(libc::NFNL_BATCH_GENID as u16, generation)];
        let begin = self.append(&mut batch, libc::NFNL_MSG_BATCH_BEGIN, 0, about_batch, &same_generation);
        let mut bounds = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            // One acknowledgement tells the end: hundreds would not fit into the socket's buffer.
            let flags = message.flags | if index == last { libc::NLM_F_ACK } else { 0 };
            let start = batch.len();
            self.append(
                &mut batch,
                nf_tables(message.kind),
                flags,
                [message.family, 0, 0, 0],
                &message.attributes,
            );
            bounds.push(start..batch.len());
        }
        let end = self.append(&mut batch, libc::NFNL_MSG_BATCH_END, 0, about_batch, &[]);
        // It must leave in one piece. Not granted, the send itself says so.
        let _ = setsockopt(
            &self.socket,
            sockopt::SndBufForce,
            &(2 * batch.len() + SEND_BUFFER_OVERHEAD),
        );
        self.send(&batch)?;

        loop {
            let received = self.receive()?;
            for reply in replies(&self.buffer[..received]) {
                let reply = reply?;
                // What concerns no message concerns all of them: it is said about the begin of the batch.
                let Some(errno) = reply.error()? else { continue };
                let index = match reply.sequence {
                    sequence if sequence == begin || sequence == end => None,
                    sequence => usize::try_from(sequence.wrapping_sub(begin + 1)).ok(),
                };
                match (errno, index) {
                    (None, Some(index)) if index == last => return Ok(()),
                    (None, _) => {}
                    (Some(Errno::ERESTART | Errno::ESTALE), None) => return Err(Failure::Overtaken),
                    (Some(errno), Some(index)) if index <= last => {
                        let message = &batch[bounds[index].clone()];
                        let blamed = reply.offset(message.len()).and_then(|offset| name_at(message, offset));
                        return Err(Failure::RefusedMessage { index, errno, blamed });
                    }
                    (Some(errno), _) => return Err(Failure::Refused(errno)),
                }
            }
        }
    }

    fn ask(
        &mut self,
        kind: libc::c_int,
        flags: libc::c_int,
        family: u8,
        attributes: &[Attribute],
    ) -> Result<Vec<Entry>, Failure> {
        let mut question = Vec::new();
        let sequence = self.append(&mut question, nf_tables(kind), flags, [family, 0, 0, 0], attributes);
        self.send(&question)?;
        let mut entries = Vec::new();
        loop {
            let received = self.receive()?;
            for reply in replies(&self.buffer[..received]) {
                let reply = reply?;
                if reply.sequence != sequence {
                    continue;
                }
                if reply.flags & libc::NLM_F_DUMP_INTR as u16 != 0 {
                    return Err(Failure::Overtaken);
                }
                match reply.error()? {
                    Some(Some(errno)) => return Err(Failure::Refused(errno)),
                    Some(None) => return Ok(entries),
                    None if entries.len() == MOST_ENTRIES => return Err(Failure::Garbled),
                    None => entries.push(reply.entry()?),
                }
            }
        }
    }

    /// Appends a message and returns its sequence number.
    fn append(
        &mut self,
        to: &mut Vec<u8>,
        kind: libc::c_int,
        flags: libc::c_int,
        netfilter_header: [u8; NETFILTER_HEADER],
        attributes: &[Attribute],
    ) -> u32 {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let start = to.len();
        to.extend([0; 4]);
        to.extend((kind as u16).to_ne_bytes());
        to.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        to.extend(sequence.to_ne_bytes());
        to.extend([0; 4]);
        to.extend(netfilter_header);
        attributes.iter().for_each(|attribute| attribute.append_to(to));
        let length = u32::try_from(to.len() - start).expect("a message of ours is far below 4 GiB");
        to[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Failure> {
        sendto(
            self.socket.as_raw_fd(),
            bytes,
            &NetlinkAddr::new(0, 0),
            MsgFlags::empty(),
        )?;
        Ok(())
    }

    /// One datagram, in `self.buffer`; its length.
    fn receive(&mut self) -> Result<usize, Failure> {
        loop {
            // With MSG_TRUNC the kernel tells how long the datagram was, not how much of it fitted.
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) if length <= self.buffer.len() => return Ok(length),
                Ok(_) => return Err(Failure::Garbled),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

sockopt_impl!(
    /// NETLINK_EXT_ACK: a refusal says at which attribute of the message the kernel stopped.
    ExtendedAcknowledgement,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_EXT_ACK,
    bool
);

/// One message of the kernel's.
struct Reply<'a> {
    kind: libc::c_int,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Reply<'_> {
    /// Whether it ends a conversation, and with which error if any; `None` for an entry of a list.
    fn error(&self) -> Result<Option<Option<Errno>>, Failure> {
        match self.kind {
            libc::NLMSG_DONE => Ok(Some(None)),
            libc::NLMSG_ERROR => {
                let code: &[u8; 4] = self.payload.first_chunk().ok_or(Failure::Garbled)?;
                match i32::from_ne_bytes(*code) {
                    0 => Ok(Some(None)),
                    code => Ok(Some(Some(Errno::from_raw(code.wrapping_neg())))),
                }
            }
            libc::NLMSG_OVERRUN => Err(Failure::Garbled),
            _ => Ok(None),
        }
    }

    fn entry(&self) -> Result<Entry, Failure> {
        let (header, attributes) = self
            .payload
            .split_at_checked(NETFILTER_HEADER)
            .ok_or(Failure::Garbled)?;
        Ok(Entry {
            family: header[0],
            attributes: attributes.to_vec(),
        })
    }

    /// Where in the refused message, which was so long, the kernel stopped.
    fn offset(&self, message_length: usize) -> Option<usize> {
        if self.flags & libc::NLM_F_ACK_TLVS as u16 == 0 {
            return None;
        }
        // The refused message is repeated behind the code, or only its header is.
        let repeated = if self.flags & libc::NLM_F_CAPPED as u16 != 0 {
            NETLINK_HEADER
        } else {
            message_length
        };
        let attributes = self.payload.get(4 + repeated..)?;
        let offset: [u8; 4] = attribute::find(attributes, NLMSGERR_ATTR_OFFS)?.try_into().ok()?;
        usize::try_from(u32::from_ne_bytes(offset)).ok()
    }
}

/// The messages of a datagram.
fn replies(mut datagram: &[u8]) -> impl Iterator<Item = Result<Reply<'_>, Failure>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let Some((header, length)) = datagram.first_chunk::<NETLINK_HEADER>().and_then(|header| {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            (NETLINK_HEADER..=datagram.len())
                .contains(&length)
                .then_some((header, length))
        }) else {
            datagram = &[];
            return Some(Err(Failure::Garbled));
        };
        let reply = Reply {
            kind: u16::from_ne_bytes([header[4], header[5]]).into(),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload: &datagram[NETLINK_HEADER..length],
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(reply))
    })
}

/// The name of what stands at the offset: a text, or an expression of a rule.
fn name_at(message: &[u8], offset: usize) -> Option<String> {
    let (_, value) = attribute::each(message.get(offset..)?).next()?;
    let value = attribute::find(value, super::message::NFTA_EXPR_NAME).unwrap_or(value);
    let text = attribute::as_text(value)?;
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| text.to_owned())
}

fn nf_tables(kind: libc::c_int) -> libc::c_int {
    libc::NFNL_SUBSYS_NFTABLES << 8 | kind
}

const ALL_FAMILIES: u8 = libc::AF_UNSPEC as u8;
const NETLINK_HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;
const NLMSGERR_ATTR_OFFS: u16 = 2;
/// The kernel fills at most 32 KiB for a list; an acknowledgement repeats one of our messages.
const LONGEST_DATAGRAM: usize = 64 << 10;
/// More rules than anybody has in a pod; a bound all the same.
const MOST_ENTRIES: usize = 100_000;
/// What the kernel's bookkeeping of a datagram takes besides its bytes.
const SEND_BUFFER_OVERHEAD: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_that_lies_about_its_length_is_an_error_and_not_a_panic() {
        let mut datagram = vec![0; 20];
        for length in [0, 15, 21, u32::MAX] {
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            let read: Vec<_> = replies(&datagram).collect();
            assert!(matches!(read.as_slice(), [Err(Failure::Garbled)]), "{length}");
        }
        assert!(matches!(replies(&[1, 2, 3]).next(), Some(Err(Failure::Garbled))));
        assert!(replies(&[]).next().is_none());
    }

    #[test]
    fn an_error_without_a_code_is_garbled() {
        let said = |payload: &[u8]| {
            Reply {
                kind: libc::NLMSG_ERROR,
                flags: 0,
                sequence: 0,
                payload,
            }
            .error()
        };
        assert!(matches!(said(&[1, 2]), Err(Failure::Garbled)));
        assert!(matches!(said(&(-2i32).to_ne_bytes()), Ok(Some(Some(Errno::ENOENT)))));
        assert!(matches!(said(&0i32.to_ne_bytes()), Ok(Some(None))));
        assert!(said(&i32::MIN.to_ne_bytes()).is_ok());
    }

    #[test]
    fn where_the_kernel_stopped_is_told_whether_or_not_it_repeats_the_message() {
        let message = [7; 36];
        let mut where_it_stopped = Vec::new();
        Attribute::Value(NLMSGERR_ATTR_OFFS, 20_u32.to_ne_bytes().to_vec()).append_to(&mut where_it_stopped);
        let with_tlvs = libc::NLM_F_ACK_TLVS as u16;
        let capped = libc::NLM_F_CAPPED as u16;
        for (flags, repeated, told) in [
            (with_tlvs, &message[..], Some(20)),
            (with_tlvs | capped, &message[..NETLINK_HEADER], Some(20)),
            (0, &message[..], None),
        ] {
            let payload = [&(-2i32).to_ne_bytes(), repeated, &where_it_stopped].concat();
            let reply = Reply {
                kind: libc::NLMSG_ERROR,
                flags,
                sequence: 0,
                payload: &payload,
            };
            assert_eq!(reply.offset(message.len()), told);
            let short = Reply {
                payload: &payload[..10],
                ..reply
            };
            assert_eq!(short.offset(message.len()), None);
        }
    }

    #[test]
    fn the_name_that_the_kernel_points_at_is_found() {
        let expression = Attribute::Nest(1, vec![Attribute::text(1, "redir"), Attribute::Nest(2, vec![])]);
        let mut message = vec![0; 20];
        Attribute::text(7, "nat").append_to(&mut message);
        let second = message.len();
        expression.append_to(&mut message);
        assert_eq!(name_at(&message, 20).as_deref(), Some("nat"));
        assert_eq!(name_at(&message, second).as_deref(), Some("redir"));
        assert_eq!(name_at(&message, message.len()), None);
        assert_eq!(name_at(&message, usize::MAX), None);
    }
}
