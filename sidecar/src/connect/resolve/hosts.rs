//! The hosts file: names that no name server is asked for (hosts(5)).

use std::{collections::HashMap, io, net::IpAddr, path::Path};

use super::{file, search::is_host_name, servers::can_be_listened_on};

/// What stands in the hosts file, or why it could not be read. One that is not there is empty: an image need not have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostsFile(Result<Vec<u8>, String>);

impl HostsFile {
    pub(super) fn read(path: &Path) -> Self {
        match file::read_at_most(path, MAX_HOSTS) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self(Ok(Vec::new())),
            read => Self(read.map_err(|error| format!("cannot read {}: {error}", path.display()))),
        }
    }

    /// The names in it; a sentence if it could not be read.
    pub(super) fn names(&self) -> Result<Hosts, String> {
        self.0.as_ref().map(|text| Hosts::parse(text)).map_err(Clone::clone)
    }
}

/// Names and their addresses, of both families.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hosts {
    addresses: HashMap<Box<str>, Vec<IpAddr>>,
    /// Lines, from 1, of which something was left out.
    pub(super) wrong: Vec<usize>,
}

impl Hosts {
    fn parse(text: &[u8]) -> Self {
        let mut hosts = Self::default();
        let whole = match text.iter().rposition(|byte| *byte == b'\n') {
            // Of a file that is too long the last line may be half of one.
            Some(end) if text.len() as u64 == MAX_HOSTS => &text[..end],
            Some(_) | None => text,
        };
        for (line, text) in whole.split(|byte| *byte == b'\n').enumerate() {
            let text = String::from_utf8_lossy(text);
            let said = text.split('#').next().unwrap_or_default();
            if !hosts.take(said) {
                hosts.wrong.push(line + 1);
            }
        }
        hosts
    }

    /// Takes a line without its comment; whether all of it is understood.
    fn take(&mut self, line: &str) -> bool {
        let mut words = line.split_ascii_whitespace();
        let Some(address) = words.next() else { return true };
        let Ok(address) = address.parse::<IpAddr>() else {
            return false;
        };
        let address = address.to_canonical();
        let (mut named, mut right) = (false, true);
        for word in words {
            named = true;
            let name = key(&word.to_ascii_lowercase()).to_owned();
            if !is_host_name(&name) {
                right = false;
                continue;
            }
            // A name that leads nowhere (0.0.0.0, say) is known all the same: no name server is asked for it.
            let addresses = self.addresses.entry(name.into()).or_default();
            if can_be_listened_on(&address) && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        named && right
    }

    /// The addresses of a lower-case name, with or without its last dot; nothing if it is not in the file.
    pub(super) fn get(&self, host: &str) -> Option<&[IpAddr]> {
        self.addresses.get(key(host)).map(Vec::as_slice)
    }
}

/// A name as it is kept. The file means a host by its name, whether whoever asks ends it with the root's dot or not.
fn key(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// More of a hosts file is not read.
const MAX_HOSTS: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_its_address_to_each_of_its_names_in_any_case() {
        let hosts = Hosts::parse(
            b"# the pod's own\n10.0.0.1\tDB.Example db # primary\r\nfd00::1 db\n  10.0.0.2 db.example.\n\n10.0.0.1 db",
        );
        assert_eq!(
            addresses(&hosts, "db"),
            ["10.0.0.1", "fd00::1"],
            "once each, both families"
        );
        assert_eq!(addresses(&hosts, "db.example"), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(addresses(&hosts, "db.example."), addresses(&hosts, "db.example"));
        assert_eq!(hosts.get("primary"), None);
        assert_eq!(hosts.get("10.0.0.1"), None);
        assert!(hosts.wrong.is_empty());
    }

    #[test]
    fn what_is_not_understood_is_left_out_and_its_line_is_told() {
        let hosts = Hosts::parse(
            b"10.0.0.1 good\n10.0.0.256 no-address\n10.0.0.2\nfe80::1%eth0 scoped\n10.0.0.3 bad/name also\n\xff\xfe x\n::1 good",
        );
        assert_eq!(hosts.wrong, [2, 3, 4, 5, 6]);
        assert_eq!(addresses(&hosts, "good"), ["10.0.0.1", "::1"]);
        assert_eq!(addresses(&hosts, "also"), ["10.0.0.3"]);
        assert_eq!(hosts.addresses.len(), 2, "{hosts:?}");
    }

    #[test]
    fn a_name_that_leads_nowhere_is_known_to() {
        let hosts = Hosts::parse(b"0.0.0.0 blocked\n:: blocked\n::ffff:10.0.0.1 mapped");
        assert_eq!(hosts.get("blocked"), Some(&[][..]));
        assert_eq!(addresses(&hosts, "mapped"), ["10.0.0.1"]);
        assert!(hosts.wrong.is_empty());
    }

    #[test]
    fn of_a_file_that_is_too_long_no_line_is_taken_by_half() {
        let mut text = b"10.0.0.1 first\n".to_vec();
        text.resize(MAX_HOSTS as usize - 12, b'#');
        text.extend(b"\n10.0.0.1 ab");
        assert_eq!(text.len() as u64, MAX_HOSTS);
        let hosts = Hosts::parse(&text);
        assert_eq!(addresses(&hosts, "first"), ["10.0.0.1"]);
        assert_eq!(hosts.get("ab"), None, "it may have been \"abroad\"");
    }

    #[test]
    fn a_file_that_is_not_there_is_empty_and_one_that_cannot_be_read_says_why() {
        let none = HostsFile::read(Path::new("/nowhere/hosts")).names();
        assert_eq!(none, Ok(Hosts::default()));
        let folder = HostsFile::read(Path::new("/"))
            .names()
            .expect_err("a folder has no text");
        assert!(folder.starts_with("cannot read /: "), "{folder}");
    }

    fn addresses(hosts: &Hosts, name: &str) -> Vec<String> {
        hosts
            .get(name)
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect()
    }
}
