//! Keeps the authority: reads it from files, makes it where there is none, and looks again, so that issuer and roots can be
//! changed without a restart.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use portunus_proto::TrustDomain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::ageing::{Ageing, Renewing, ends};
use super::authority::{self, Authority, issuer_would_end, make_issuer, make_key, make_root};
use crate::control::seldom::Seldom;
use crate::control::times::moment;

/// Where the authority's files are.
#[derive(Clone, Debug)]
pub struct Files {
    /// The trust domain that it is for.
    pub trust_domain: TrustDomain,
    /// Whether control makes an authority of its own, or is given an issuer.
    pub origin: Origin,
    /// More certificates that are trusted, a PEM file each.
    pub extra_roots: Vec<PathBuf>,
}

/// Where an issuer comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A directory of control's own: `roots/*.pem` are trusted, `issuer.pem` has the issuer's certificate and key, and
    /// `root-key.pem` the key of `roots/root.pem`, with which control makes issuers as long as it is there.
    State(PathBuf),
    /// Files of somebody else's: the issuer's certificates and its key. The roots are the extra ones.
    Given {
        /// The issuer's certificate and what is between it and the root.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {verb} {path} as user {}: {source}", nix::unistd::geteuid())]
    File {
        /// What was tried: "read", "write", "make the directory".
        verb: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Files of those that control was given cannot be read: all of them, so that nobody mends one after the other.
    #[error("{}", .0.iter().map(Error::to_string).collect::<Vec<_>>().join("; "))]
    Files(Vec<Error>),
    /// Whoever owns it can put other keys there.
    #[error(
        "{path} belongs to user {owner}, who could put other keys there: give control (user {own}) a directory of its own"
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who control is.
        own: u32,
    },
    /// Another control has it, and does not give it back.
    #[error("{path} has been locked by another control for {patience:?}: does it hang?")]
    Locked {
        /// The lock.
        path: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// What the files say does not fit together.
    #[error("the certificate authority in {place}: {source}")]
    Authority {
        /// Where.
        place: PathBuf,
        /// What.
        source: authority::Error,
    },
}

/// Reads the authority, or makes one; then looks at the files, once in `look`, until `stop`. A bad change leaves the last good
/// one, and is tried again at a slower pace; so is another issuer for one that is old.
///
/// # Errors
/// When there is none to begin with.
pub fn keep(files: Files, look: Duration, stop: CancellationToken) -> Result<Kept, Error> {
    let Loaded {
        authority,
        renewing,
        exposed,
        contents,
    } = files.load_settled(SystemTime::now(), Unbegun::Replaced)?;
    say(renewing, None, &authority);
    warn_of_readers(&exposed, &[]);
    let mut ageing = Ageing::new(look * LOOKS_PER_TRY);
    ageing.warn(&authority, renewing, SystemTime::now(), moment());
    info!(
        trust_domain = %files.trust_domain,
        roots = authority.roots().len(),
        "the certificate authority is ready"
    );
    if let Some(domain) = authority.made_for_another() {
        warn!(
            of_root = domain,
            trust_domain = %files.trust_domain,
            "a root was made for another trust domain than --trust-domain: sidecars that were certified or set up for that one \
             are refused, and refuse"
        );
    }
    let (to, authorities) = watch::channel(Arc::new(authority));
    let (to_trouble, trouble) = watch::channel(None);
    let (mut seen, mut renewing, mut exposed) = (contents, renewing, exposed);
    let mut tried_again = Seldom::default();
    let files = Arc::new(files);
    let looking = async move {
        loop {
            tokio::time::sleep(look).await;
            // A disk may hang: nobody else waits for it.
            let reader = files.clone();
            let Ok(contents) = tokio::task::spawn_blocking(move || reader.contents()).await else {
                continue;
            };
            let now = SystemTime::now();
            ageing.warn(&to.borrow(), renewing, now, moment());
            let has_begun = to.borrow().has_begun(now);
            let changed = contents != seen;
            // What is wrong may be beside the files, and over: an owner, a lock, a clock.
            let in_trouble = to_trouble.borrow().is_some();
            let tries_again = in_trouble && tried_again.is_due((), look * LOOKS_PER_TRY, moment());
            if !changed && !tries_again && !ageing.is_due(&to.borrow(), now, moment()) {
                continue;
            }
            let reader = files.clone();
            // While the one in force is good, an issuer that has not begun is of a control whose clock is ahead.
            let unbegun = if has_begun { Unbegun::Refused } else { Unbegun::Replaced };
            let load = move || reader.load_settled(now, unbegun);
            let Ok(loaded) = tokio::task::spawn_blocking(load).await else {
                continue;
            };
            match loaded {
                // It was due, and nothing better could be made.
                Ok(loaded) if !changed && !in_trouble && loaded.contents == seen => {
                    renewing = loaded.renewing;
                    warn_of_readers(&loaded.exposed, &exposed);
                    exposed = loaded.exposed;
                }
                Ok(loaded) => {
                    let authority = loaded.authority;
                    say(loaded.renewing, Some(renewing), &authority);
                    warn_of_readers(&loaded.exposed, &exposed);
                    (renewing, exposed, seen) = (loaded.renewing, loaded.exposed, loaded.contents);
                    info!(
                        roots = authority.roots().len(),
                        "the certificate authority was read again"
                    );
                    to.send_replace(Arc::new(authority));
                    to_trouble.send_replace(None);
                }
                Err(why) => {
                    // These were judged; those that come are others.
                    seen = contents;
                    let why = why.to_string();
                    if to_trouble.borrow().as_ref() != Some(&why) {
                        error!(
                            why,
                            ends = %ends(&to.borrow()),
                            "the certificate authority cannot be read again or renewed: the one before signs on until it ends"
                        );
                    }
                    to_trouble.send_replace(Some(why));
                }
            }
        }
    };
    let task = tokio::spawn(async move {
        stop.run_until_cancelled(looking).await;
    });
    Ok(Kept {
        authorities,
        trouble,
        task,
    })
}

/// An authority that is being kept.
#[derive(Debug)]
pub struct Kept {
    /// The newest that is good.
    pub authorities: watch::Receiver<Arc<Authority>>,
    /// What is wrong with the files, if anything is.
    pub trouble: watch::Receiver<Option<String>>,
    /// Ends when it is told to stop.
    pub task: tokio::task::JoinHandle<()>,
}

/// What is done about an issuer whose life has not begun: one that was made while the clock was ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unbegun {
    /// It stays where it is, and is not used.
    Refused,
    /// Another is made in its place.
    Replaced,
}

impl Files {
    /// Reads the authority; in a state directory it is made, or its issuer renewed, where that is needed and possible.
    ///
    /// # Errors
    /// When the files cannot be read or written, or do not fit together.
    pub fn load(&self, now: SystemTime) -> Result<Authority, Error> {
        self.load_anew(now, Unbegun::Replaced).map(|loaded| loaded.authority)
    }

    /// What is changed while it is read is read again.
    fn load_settled(&self, now: SystemTime, unbegun: Unbegun) -> Result<Loaded, Error> {
        let mut contents = self.contents();
        for _ in 1..MOST_READINGS {
            let loaded = self.load_anew(now, unbegun)?;
            let after = self.contents();
            if after == contents {
                return Ok(Loaded { contents, ..loaded });
            }
            contents = after;
        }
        // If that was not the last of it, the contents differ from these at the next look.
        let loaded = self.load_anew(now, unbegun)?;
        Ok(Loaded { contents, ..loaded })
    }

    fn load_anew(&self, now: SystemTime, unbegun: Unbegun) -> Result<Loaded, Error> {
        match &self.origin {
            Origin::State(directory) => self.load_state(directory, now, unbegun),
            Origin::Given {
                certificate: place,
                key,
            } => {
                let authority = match (read(place), read(key), self.trusted(&[])) {
                    (Ok(certificate), Ok(key), Ok(roots)) => self.assemble(place, &certificate, &key, &roots, now)?,
                    (certificate, key, roots) => {
                        let missing = [certificate.err(), key.err(), roots.err()];
                        return Err(Error::Files(missing.into_iter().flatten().collect()));
                    }
                };
                Ok(Loaded {
                    authority,
                    renewing: Renewing::NotOurs,
                    exposed: Vec::new(),
                    contents: Contents::new(),
                })
            }
        }
    }

    fn load_state(&self, directory: &Path, now: SystemTime, unbegun: Unbegun) -> Result<Loaded, Error> {
        let state = State(directory);
        // Two controls over one directory make one authority. Held until this function ends.
        let _lock = state.lock(PATIENCE)?;
        let root = state.path("roots/root.pem");
        let issuer = state.path("issuer.pem");
        let no_authority = |source| Error::Authority {
            place: directory.to_owned(),
            source,
        };
        if !exists(&issuer)? && state.roots()?.is_empty() {
            // The key first: where the disk is full, or power fails, between the two, the certificate is made the next time.
            let key = match exists(&state.root_key())? {
                true => String::from_utf8_lossy(&read(&state.root_key())?).into_owned(),
                false => make_key().map_err(no_authority)?,
            };
            let certificate = make_root(&self.trust_domain, &key, now).map_err(no_authority)?;
            state.write(&state.root_key(), &key)?;
            state.write(&root, &certificate)?;
            info!(directory = %directory.display(), "a root was made");
        }
        if !exists(&issuer)? {
            self.renew(&state, now)?;
        }
        let exposed = state.exposed();
        let mut renewing = self.renewing(&state)?;
        let authority = self.load_issuer(&state, now);
        let is_due = match &authority {
            // One that ends with the root is as good as any that could be made.
            Ok(authority) if authority.is_old(now) && renewing == Renewing::Ours => {
                let root = text(&root)?;
                let is_better = issuer_would_end(&root, now).map_err(no_authority)? > authority.not_after();
                if !is_better {
                    renewing = Renewing::RootEnds;
                }
                is_better
            }
            Ok(_) => false,
            Err(Error::Authority { source, .. }) => match source {
                authority::Error::Ended => true,
                authority::Error::NotYet => unbegun == Unbegun::Replaced,
                _ => false,
            },
            Err(Error::File { .. } | Error::Files(_) | Error::Owner { .. } | Error::Locked { .. }) => false,
        };
        let authority = if is_due && renewing == Renewing::Ours {
            self.renew(&state, now)?;
            self.load_issuer(&state, now)
        } else {
            authority
        };
        Ok(Loaded {
            authority: authority?,
            renewing,
            exposed,
            contents: Contents::new(),
        })
    }

    /// Whether the issuer is one that control may put another in the place of: it is under the root that control has the key
    /// of. An operator's own, under another root, is his to renew.
    fn renewing(&self, state: &State<'_>) -> Result<Renewing, Error> {
        let root = state.path("roots/root.pem");
        if !exists(&state.root_key())? {
            return Ok(Renewing::NotOurs);
        }
        if !exists(&root)? {
            return Ok(Renewing::OtherRoot);
        }
        let issuer = read(&state.path("issuer.pem"))?;
        let is_ours = authority::is_under(&self.trust_domain, &issuer, &read(&root)?);
        // One that cannot be read is refused with its reason.
        Ok(match is_ours.unwrap_or(false) {
            true => Renewing::Ours,
            false => Renewing::OtherRoot,
        })
    }

    fn load_issuer(&self, state: &State<'_>, now: SystemTime) -> Result<Authority, Error> {
        let issuer = read(&state.path("issuer.pem"))?;
        self.assemble(state.0, &issuer, &issuer, &self.trusted(&state.roots()?)?, now)
    }

    /// What these files and the extra roots say, one after the other.
    fn trusted(&self, roots: &[PathBuf]) -> Result<Vec<u8>, Error> {
        let (mut trusted, mut missing) = (Vec::new(), Vec::new());
        for path in roots.iter().chain(&self.extra_roots) {
            match read(path) {
                Ok(text) => {
                    trusted.extend(text);
                    trusted.push(b'\n');
                }
                Err(why) => missing.push(why),
            }
        }
        match missing.is_empty() {
            true => Ok(trusted),
            false => Err(Error::Files(missing)),
        }
    }

    fn renew(&self, state: &State<'_>, now: SystemTime) -> Result<(), Error> {
        let root = text(&state.path("roots/root.pem"))?;
        let root_key = text(&state.root_key())?;
        let made = make_issuer(&self.trust_domain, &root, &root_key, now).map_err(|source| Error::Authority {
            place: state.0.to_owned(),
            source,
        })?;
        // One file, so that nobody reads the certificate of one issuer and the key of another.
        state.write(&state.path("issuer.pem"), &format!("{}{}", made.certificate, made.key))?;
        info!(directory = %state.0.display(), "an issuer was made");
        Ok(())
    }

    fn assemble(
        &self,
        place: &Path,
        issuer: &[u8],
        key: &[u8],
        trusted: &[u8],
        now: SystemTime,
    ) -> Result<Authority, Error> {
        Authority::from_pem(&self.trust_domain, issuer, key, trusted, now).map_err(|source| Error::Authority {
            place: place.to_owned(),
            source,
        })
    }

    /// All that `load` would read, to see whether it changed.
    fn contents(&self) -> Contents {
        let mut paths = self.extra_roots.clone();
        match &self.origin {
            Origin::State(directory) => {
                paths.push(directory.join("issuer.pem"));
                paths.extend(State(directory).roots().unwrap_or_default());
            }
            Origin::Given { certificate, key } => paths.extend([certificate.clone(), key.clone()]),
        }
        paths.iter().map(|path| read(path).ok()).collect()
    }
}

/// The contents of all files; nothing of those that cannot be read.
type Contents = Vec<Option<Vec<u8>>>;

/// What is secret and can be looked at by others, and its mode.
type Exposed = (PathBuf, u32);

/// An authority that was read, and what it was read from.
struct Loaded {
    authority: Authority,
    renewing: Renewing,
    exposed: Vec<Exposed>,
    contents: Contents,
}

/// Says once, as long as it is so, that control does not renew though it has a key.
fn say(renewing: Renewing, before: Option<Renewing>, authority: &Authority) {
    if renewing == Renewing::OtherRoot && before != Some(renewing) {
        warn!(
            ends = %ends(authority),
            "issuer.pem is not under roots/root.pem, the root that control has the key of: it is used as it is, and \
             control does not renew it"
        );
    }
}

/// What others may read is said once, and used all the same: a group of the operator's may be meant to.
fn warn_of_readers(exposed: &[Exposed], before: &[Exposed]) {
    for one in exposed.iter().filter(|one| !before.contains(one)) {
        let (path, mode) = one;
        warn!(path = %path.display(), mode = format!("{mode:o}"), "others than control can look at what is secret");
    }
}

/// So many looks at the files come on one try to get another issuer in the place of one that is old, or to read anew what
/// could not be used though nothing in it has changed.
const LOOKS_PER_TRY: u32 = 30;
/// How often files are read that change while they are read.
const MOST_READINGS: usize = 3;

/// Control's own directory.
struct State<'a>(&'a Path);

impl State<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn root_key(&self) -> PathBuf {
        self.path("root-key.pem")
    }

    fn lock(&self, patience: Duration) -> Result<File, Error> {
        let roots = self.path("roots");
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&roots)
            .map_err(at("make the directory", &roots))?;
        let metadata = fs::metadata(self.0).map_err(at("look at", self.0))?;
        check_owner(self.0, metadata.uid(), nix::unistd::geteuid().as_raw())?;
        let path = self.path("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path);
        let lock = lock.map_err(at("open for writing", &path))?;
        let until = Instant::now() + patience;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOOK_AT_LOCK),
                Err(TryLockError::WouldBlock) => return Err(Error::Locked { path, patience }),
                Err(TryLockError::Error(why)) => return Err(at("lock", &path)(why)),
            }
        }
    }

    /// What others may read of what is secret.
    fn exposed(&self) -> Vec<Exposed> {
        let secrets = [self.0.to_owned(), self.root_key(), self.path("issuer.pem")];
        let mode = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
        let modes = secrets.map(|path| (mode(&path) & 0o777, path));
        let exposed = modes.into_iter().filter(|(mode, _)| mode & 0o077 != 0);
        exposed.map(|(mode, path)| (path, mode)).collect()
    }

    /// The files of roots, in the order of their names.
    fn roots(&self) -> Result<Vec<PathBuf>, Error> {
        let directory = self.path("roots");
        let mut files = Vec::new();
        for entry in fs::read_dir(&directory).map_err(at("read the directory", &directory))? {
            let path = entry.map_err(at("read the directory", &directory))?.path();
            if path.extension().is_some_and(|extension| extension == "pem") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Writes a file whole or not at all, for its owner alone.
    fn write(&self, path: &Path, text: &str) -> Result<(), Error> {
        let new = path.with_extension("new");
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&new)
            .map_err(at("write", &new))?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        let placed = written.and_then(|()| fs::rename(&new, path));
        if placed.is_err() {
            // Half a key is no use to anybody.
            let _ = fs::remove_file(&new);
        }
        placed.map_err(at("write", path))
    }
}

/// A state directory is control's own, or root's, as volumes of containers are. Root itself is warned only: it may have been
/// given the directory of a service that it runs for.
fn check_owner(path: &Path, owner: u32, own: u32) -> Result<(), Error> {
    if owner == own || owner == 0 {
        return Ok(());
    }
    if own == 0 {
        warn!(directory = %path.display(), owner, "the state directory is somebody else's, who could put other keys there");
        return Ok(());
    }
    let path = path.to_owned();
    Err(Error::Owner { path, owner, own })
}

/// How long another control may make an authority.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const LOOK_AT_LOCK: Duration = Duration::from_millis(20);
/// Nothing is waited for when a file is opened (open(2)).
const O_NONBLOCK: i32 = 0o4_000;
/// No file of the authority's is longer than this.
const MOST_BYTES: u64 = 1 << 20;

/// Whether it is there. That this cannot be told is no reason to make another.
fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(at("look at", path))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    // A pipe would be waited for without end.
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(at("read", path))?;
    if !file.metadata().map_err(at("read", path))?.is_file() {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "is no file");
        return Err(at("read", path)(source));
    }
    io::Read::read_to_end(&mut io::Read::take(file, MOST_BYTES), &mut bytes).map_err(at("read", path))?;
    Ok(bytes)
}

fn text(path: &Path) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(&read(path)?).into_owned())
}

/// An error that says who tried what.
fn at<'p>(verb: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> Error + 'p {
    move |source| Error::File {
        verb,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_another_does_not_give_back_is_waited_for_and_named() {
        let directory = crate::testing::Directory::new();
        let state = State(&directory.0);
        let held = state.lock(PATIENCE).expect("it is free");
        let patience = Duration::from_millis(100);
        let began = Instant::now();
        let why = state.lock(patience).expect_err("it is held").to_string();
        assert!(
            began.elapsed() >= patience && why.contains("locked by another control for 100ms"),
            "{why}"
        );
        drop(held);
        // A process that another test starts may have it for a moment.
        state.lock(PATIENCE).expect("it is free again");
    }

    #[test]
    fn a_root_that_was_made_for_another_trust_domain_is_known() {
        let directory = crate::testing::Directory::new();
        let mut files = crate::testing::state_files(&directory.0);
        let now = SystemTime::now();
        let made_for = |files: &Files| files.load(now).expect("it is there").made_for_another();
        assert_eq!(made_for(&files), None);
        let first = files.trust_domain.to_string();
        files.trust_domain = TrustDomain::parse("another.test").expect("it is one");
        assert_eq!(made_for(&files), Some(first));
    }

    #[test]
    fn a_state_directory_is_controls_own_or_roots() {
        let judged = |owner, own| check_owner(Path::new("/var/lib/portunus"), owner, own);
        for (owner, own) in [(2102, 2102), (0, 2102), (0, 0), (1000, 0)] {
            assert!(judged(owner, own).is_ok(), "{owner} {own}");
        }
        let why = judged(1000, 2102).expect_err("it is somebody else's").to_string();
        assert!(why.contains("/var/lib/portunus belongs to user 1000"), "{why}");
    }

    #[test]
    fn all_files_that_are_not_there_are_named_at_once() {
        let directory = crate::testing::Directory::new();
        let path = |name: &str| directory.0.join(name);
        let given = Files {
            origin: Origin::Given {
                certificate: path("issuer.pem"),
                key: path("issuer-key.pem"),
            },
            extra_roots: vec![path("root-a.pem"), path("root-b.pem")],
            ..crate::testing::state_files(&directory.0)
        };
        let refused = |files: &Files| files.load(SystemTime::now()).expect_err("they are missing").to_string();
        let why = refused(&given);
        for name in ["issuer.pem", "issuer-key.pem", "root-a.pem", "root-b.pem"] {
            assert!(
                why.contains(&format!("cannot read {}", path(name).display())),
                "{name} in {why}"
            );
        }
        directory.write("issuer-key.pem", "");
        let why = refused(&given);
        assert!(!why.contains("issuer-key.pem") && why.contains("root-b.pem"), "{why}");

        let own = crate::testing::Directory::new();
        let own = Files {
            extra_roots: given.extra_roots,
            ..crate::testing::state_files(&own.0)
        };
        let why = refused(&own);
        assert!(why.contains("root-a.pem") && why.contains("root-b.pem"), "{why}");
    }
}
