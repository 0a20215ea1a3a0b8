//! Hears of changes in a directory, and of another directory in its place: the kernel tells.
//!
//! ```text
//!  --source /etc/mesh/manifests      watched                    for
//!           /etc/mesh/manifests ─▶ ..data/m      /etc/mesh      manifests, ..data
//!           /etc/mesh/..data ─▶ ..2026           /etc/mesh/..2026   m
//!           /etc/mesh/..2026/m                   itself         everything
//! ```

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::warn;

/// Hears of changes. Where the kernel says nothing, the poll is what remains.
pub struct Ears {
    changes: mpsc::Receiver<()>,
    way: Way,
    /// Whether something that is watched was moved or removed: then it is watched no longer, also if it came back since.
    is_deaf: Arc<AtomicBool>,
    /// It stops when it is dropped; `None` where the kernel does not take it.
    watcher: Option<RecommendedWatcher>,
}

/// How a directory is reached: as long as this stays, it is the same directory.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Way {
    /// The symlinks on the way, whose swap leads to another.
    links: Vec<PathBuf>,
    /// Where the way ends.
    end: PathBuf,
    /// Device and inode of what is there.
    node: Option<(u64, u64)>,
}

/// More links than these are a loop (path_resolution(7)).
const MOST_LINKS: usize = 40;

impl Ears {
    /// Listens to a directory from now on, and to whatever leads there.
    pub fn at(directory: &Path) -> Ears {
        let way = Way::to(directory);
        let (to, changes) = mpsc::channel(1);
        let is_deaf = Arc::new(AtomicBool::new(false));
        let (of_interest, deafens) = (way.clone(), is_deaf.clone());
        let heard = move |event: notify::Result<Event>| {
            if event.as_ref().is_ok_and(|event| of_interest.is_lost_by(event)) {
                deafens.store(true, Relaxed);
            }
            if event.map_or(true, |event| of_interest.is_changed_by(&event)) {
                let _ = to.try_send(());
            }
        };
        let watcher = notify::recommended_watcher(heard).and_then(|mut watcher| {
            // Of a folder on the way that cannot be watched the poll is left.
            for parent in way.turns().filter_map(Path::parent) {
                let _ = watcher.watch(parent, RecursiveMode::NonRecursive);
            }
            match watcher.watch(&way.end, RecursiveMode::NonRecursive) {
                // It is not there: that it comes is heard of.
                Err(_) if way.node.is_none() => Ok(watcher),
                watched => watched.map(|()| watcher),
            }
        });
        if let Err(why) = &watcher {
            warn!(directory = %directory.display(), %why, "changes are not heard of, only looked for");
        }
        Ears {
            changes,
            way,
            is_deaf,
            watcher: watcher.ok(),
        }
    }

    /// Waits for a change. Changes in quick succession are one.
    pub async fn hear(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending().await
        }
    }

    /// Whether something is watched no longer, so that others are needed.
    pub fn are_deaf(&self) -> bool {
        self.is_deaf.load(Relaxed)
    }

    /// These, as long as they hear, and are at the directory that is there now; or else others.
    pub fn turned_to(self, directory: &Path) -> Ears {
        if self.watcher.is_some() && !self.are_deaf() && Way::to(directory) == self.way {
            self
        } else {
            Ears::at(directory)
        }
    }
}

impl Way {
    fn to(directory: &Path) -> Way {
        let whole = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        let mut rest: VecDeque<OsString> = parts(&whole);
        let (mut links, mut end) = (Vec::new(), PathBuf::from("/"));
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                end.pop();
                continue;
            }
            let next = end.join(part);
            match fs::read_link(&next) {
                Ok(target) if links.len() < MOST_LINKS => {
                    if target.is_absolute() {
                        end = PathBuf::from("/");
                    }
                    for part in parts(&target).into_iter().rev() {
                        rest.push_front(part);
                    }
                    links.push(next);
                }
                Ok(_) | Err(_) => end = next,
            }
        }
        let node = fs::metadata(&end).ok().map(|found| (found.dev(), found.ino()));
        Way { links, end, node }
    }

    /// What leads elsewhere if it becomes another: the links, and the end itself.
    fn turns(&self) -> impl Iterator<Item = &Path> {
        self.links.iter().chain([&self.end]).map(PathBuf::as_path)
    }

    /// Whether something went away that is watched.
    fn is_lost_by(&self, event: &Event) -> bool {
        let goes = matches!(
            event.kind,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
        );
        let watched = |path: &PathBuf| *path == self.end || self.turns().any(|turn| turn.parent() == Some(path));
        goes && event.paths.iter().any(watched)
    }

    /// Whether anything changed that is in the directory, or leads to it. To read a file is no change.
    fn is_changed_by(&self, event: &Event) -> bool {
        let counts = |path: &PathBuf| path.parent() == Some(&self.end) || self.turns().any(|turn| turn == path);
        !event.kind.is_access() && (event.paths.is_empty() || event.paths.iter().any(counts))
    }
}

/// The names that a path is made of, `..` among them.
fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::Directory;

    #[test]
    fn a_way_has_all_links_and_no_loop_has_no_end() {
        let directory = Directory::new();
        let at = |name: &str| fs::canonicalize(&directory.0).expect("it is there").join(name);
        fs::create_dir_all(at("..1/m")).expect("a directory can be made");
        for (to, link) in [("..1", "..data"), ("..data/m/../m", "manifests"), ("loop", "loop")] {
            symlink(to, at(link)).expect("a link can be made");
        }
        let way = Way::to(&at("manifests"));
        assert_eq!((way.links, way.end), (vec![at("manifests"), at("..data")], at("..1/m")));
        assert!(way.node.is_some());
        let lost = Way::to(&at("loop"));
        assert_eq!((lost.links.len(), lost.node), (MOST_LINKS, None));
        let nowhere = Way::to(&at("nowhere/m"));
        assert_eq!(
            (nowhere.links, nowhere.end, nowhere.node),
            (vec![], at("nowhere/m"), None)
        );
    }
}
