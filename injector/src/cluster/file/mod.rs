//! A directory of manifests in Kubernetes form, read as a whole: either every file is right, or there is no state.

pub mod duration;
mod ears;
mod fields;
mod finding;
mod judge;
mod kinds;
mod watch;
mod yaml;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod mistakes;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use super::{Name, Snapshot};
use finding::Findings;
pub use finding::{Finding, Severity};
pub use watch::{Health, Source, Watching};
use yaml::{At, Node};

/// The largest file that is read, in bytes.
const MOST_FILE: u64 = 4 << 20;
/// How much all files may be together, in bytes.
const MOST_TOTAL: u64 = 64 << 20;
/// How many files there may be.
const MOST_FILES: usize = 10_000;

/// How often a directory is read that changes while it is read.
const MOST_READINGS: usize = 5;
/// From one such reading to the next: who writes several files may be about to finish.
const BETWEEN_READINGS: Duration = Duration::from_millis(20);

/// Nothing is waited for when a file is opened (open(2)).
const O_NONBLOCK: i32 = 0o4_000;

/// What a directory says.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The state; `None` if there is any mistake.
    pub snapshot: Option<Snapshot>,
    /// All that was found, by file and line.
    pub findings: Vec<Finding>,
}

/// One object, and where it stands.
struct Object<T> {
    name: Name,
    file: Arc<str>,
    document: Arc<Node>,
    value: T,
}

/// The objects of all files, not yet judged.
struct Objects {
    /// Whether all that the files say stands here: what is missing may be in what could not be read.
    are_all: bool,
    services: Vec<Object<super::Service>>,
    workloads: Vec<Object<super::Workload>>,
    inbound: Vec<Object<super::InboundPolicy>>,
    outbound: Vec<Object<super::OutboundPolicy>>,
}

/// Reads the manifests in `directory`: files that end in `.yaml`, `.yml` or `.json`, not those that begin with a dot,
/// and none in folders below. Everything that is wrong in any of them is told at once. What changes while it is read is
/// read again, so that no state is made of files of two.
pub fn read(directory: &Path) -> Reading {
    read_settled(directory).0
}

/// The same, and what the directory looked like before and after; no stamp, and a mistake, if that was never the same.
fn read_settled(directory: &Path) -> (Reading, Option<Stamp>) {
    for tries in 0..MOST_READINGS {
        if tries > 0 {
            thread::sleep(BETWEEN_READINGS);
        }
        let before = stamp(directory);
        let reading = read_once(directory);
        if stamp(directory) == before {
            return (reading, Some(before));
        }
    }
    let mut findings = Findings::default();
    findings.enter_file(directory.display().to_string().into());
    let message = format!(
        "changes while it is read, {MOST_READINGS} times in a row; expected manifests that are written elsewhere and renamed \
         into it"
    );
    findings.mistake(At::default(), "", message);
    let reading = Reading {
        snapshot: None,
        findings: findings.into_sorted(),
    };
    (reading, None)
}

fn read_once(directory: &Path) -> Reading {
    let mut findings = Findings::default();
    let mut objects = Objects {
        are_all: true,
        services: Vec::new(),
        workloads: Vec::new(),
        inbound: Vec::new(),
        outbound: Vec::new(),
    };
    match list(directory, &mut findings) {
        Err(why) => {
            findings.enter_file(directory.display().to_string().into());
            let message = match why.kind() {
                io::ErrorKind::NotADirectory => {
                    "is no directory; expected the one that the manifests are in".to_owned()
                }
                _ => format!("cannot be read as a directory: {why}"),
            };
            findings.mistake(At::default(), "", message);
        }
        Ok(files) if files.is_empty() => {
            findings.enter_file(directory.display().to_string().into());
            let message =
                "has no manifest; expected files that end in .yaml, .yml or .json (one with a comment will do)";
            findings.mistake(At::default(), "", message);
        }
        Ok(files) => {
            let mut total = 0;
            for path in files {
                read_file(&path, &mut total, &mut objects, &mut findings);
            }
        }
    }
    let snapshot = judge::judge(objects, &mut findings);
    let fine = findings.mistakes() == 0;
    Reading {
        snapshot: fine.then_some(snapshot),
        findings: findings.into_sorted(),
    }
}

/// The manifests of a directory, in the order of their names.
fn list(directory: &Path, findings: &mut Findings) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        let name = name.to_string_lossy();
        let is_manifest = [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending));
        if !name.starts_with('.') && !is_manifest && is_meant_as_manifest(&name) {
            findings.enter_file(name.clone().into_owned().into());
            let message = "is left out by its name; expected one that ends in .yaml, .yml or .json";
            findings.warning(At::default(), "", message);
        }
        if name.starts_with('.') || !is_manifest {
            continue;
        }
        if files.len() == MOST_FILES {
            findings.enter_file(directory.display().to_string().into());
            findings.mistake(
                At::default(),
                "",
                format!("has too many manifests; expected at most {MOST_FILES}"),
            );
            break;
        }
        files.push(path);
    }
    files.sort();
    Ok(files)
}

/// Whether a name ends nearly as those of manifests do: in capitals, or with letters in another order.
fn is_meant_as_manifest(name: &str) -> bool {
    let sorted = |text: &str| {
        let mut letters = text.to_ascii_lowercase().into_bytes();
        letters.sort_unstable();
        letters
    };
    let ending = name.rsplit_once('.').map(|(_, ending)| sorted(ending));
    ending.is_some_and(|ending| ["yaml", "yml", "json"].into_iter().any(|meant| sorted(meant) == ending))
}

fn read_file(path: &Path, total: &mut u64, objects: &mut Objects, findings: &mut Findings) {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    findings.enter_file(name.unwrap_or_default().into());
    let text = match text(path, total) {
        Ok(text) => text,
        Err(why) => {
            objects.are_all = false;
            return findings.mistake(At::default(), "", why);
        }
    };
    let before = findings.mistakes();
    let (documents, trouble) = yaml::documents(&text);
    for document in &documents {
        for object in kinds::objects(document, findings) {
            findings.enter_object(kinds::title(object));
            objects.add(object, findings);
        }
    }
    findings.enter_object(String::new());
    if let Some(trouble) = trouble {
        findings.mistake(
            trouble.at,
            "",
            format!("this is no YAML that can be read: {}", trouble.sentence),
        );
    }
    objects.are_all &= findings.mistakes() == before;
}

fn text(path: &Path, total: &mut u64) -> Result<String, String> {
    let cannot = |why: io::Error| format!("cannot be read: {why}");
    let no_file = || "is no file; expected a manifest".to_owned();
    // A pipe would be waited for without end. A device may do something when it is opened, so it is asked first.
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err(no_file());
    }
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(cannot)?;
    // It may have become another since.
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err(no_file());
    }
    // What is too much is not read to its end either.
    let most = MOST_FILE.min(MOST_TOTAL.saturating_sub(*total));
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(cannot)?;
    let length = bytes.len() as u64;
    if length == 0 {
        return Err(
            "is empty, as a file is that is just being written; expected manifests (a comment will do where there are none)"
                .to_owned(),
        );
    }
    if length > MOST_FILE {
        return Err(format!("is too long; expected at most {MOST_FILE} bytes"));
    }
    *total += length;
    if *total > MOST_TOTAL {
        return Err(format!(
            "is too much with the files before it; expected at most {MOST_TOTAL} bytes in all"
        ));
    }
    let text = String::from_utf8(bytes).map_err(|why| {
        let line = 1 + why.as_bytes()[..why.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        format!("is not UTF-8: line {line} has other bytes")
    })?;
    match text.strip_prefix('\u{feff}') {
        Some(rest) => Ok(rest.to_owned()),
        None => Ok(text),
    }
}

/// What a directory looks like from outside: when nothing of this changed, no file did.
type Stamp = Vec<(PathBuf, Option<Facts>)>;

/// What tells a file from another in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    device: u64,
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

fn stamp(directory: &Path) -> Stamp {
    let files = list(directory, &mut Findings::default()).unwrap_or_default();
    let stamp = |path: PathBuf| {
        let facts = fs::metadata(&path).ok().map(|metadata| Facts {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: metadata.modified().ok(),
        });
        let real = fs::canonicalize(&path).unwrap_or(path);
        (real, facts)
    };
    files.into_iter().map(stamp).collect()
}

impl Objects {
    fn add(&mut self, document: &Node, findings: &mut Findings) {
        let Some((name, read)) = kinds::read(document, findings) else {
            return;
        };
        let place = (name, findings.file(), Arc::new(document.clone()));
        match read {
            kinds::Read::Service(value) => self.services.push(Object::at(place, value)),
            kinds::Read::Workload(value) => self.workloads.push(Object::at(place, value)),
            kinds::Read::InboundPolicy(value) => self.inbound.push(Object::at(place, value)),
            kinds::Read::OutboundPolicy(value) => self.outbound.push(Object::at(place, value)),
        }
    }
}

impl<T> Object<T> {
    fn at((name, file, document): (Name, Arc<str>, Arc<Node>), value: T) -> Object<T> {
        Object {
            name,
            file,
            document,
            value,
        }
    }
}
