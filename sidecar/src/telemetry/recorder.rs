//! What one thread records with.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::method::{self, Direction, GrpcType, Method, Name};
use super::numbers::OneThread;
use super::registry::{RecorderId, Registry};
use super::{Family, Measure};
use crate::grpc::Code;

/// Records the facts of one thread; made by [`Registry::recorder`], and bound to the thread that made it.
#[derive(Debug)]
pub struct Recorder {
    registry: Arc<Registry>,
    id: RecorderId,
    /// Every method that this thread has met; the first two stand for all methods of a direction that have no name.
    methods: Vec<Arc<Method>>,
    ids: [HashMap<Arc<[u8]>, MethodId>; 2],
    /// Whether the registry has learned all that it will, and this recorder with it.
    complete: [bool; 2],
    thread: OneThread,
}

/// A method as its recorder knows it. Good for as long as the recorder lives, and for that recorder alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodId(u32);

impl MethodId {
    /// A number other than 0 that stands for it, small enough to hang on an interned path.
    pub fn tag(self) -> u16 {
        u16::try_from(self.0 + 1).unwrap_or(0)
    }

    /// What [`MethodId::tag`] stands for; `None` for 0.
    pub fn from_tag(tag: u16) -> Option<MethodId> {
        tag.checked_sub(1).map(|id| MethodId(id.into()))
    }
}

impl Recorder {
    pub(super) fn new(registry: Arc<Registry>, id: RecorderId) -> Recorder {
        let mut recorder = Recorder {
            registry,
            id,
            methods: Vec::new(),
            ids: Default::default(),
            complete: [false; 2],
            thread: PhantomData,
        };
        for direction in Direction::ALL {
            recorder.adopt(direction, Name::OTHER);
        }
        recorder
    }

    /// The number with these label values. Asking again for the same values gives the same number.
    ///
    /// This takes a lock: resolve where a thread or a connection starts, not for every RPC, and keep the handle.
    pub fn resolve<T: Measure, const N: usize>(&self, family: &'static Family<T, N>, values: [&str; N]) -> T {
        T::from_cell(self.registry.cell(self.id, family, values))
    }

    /// [`Recorder::resolve`] for each of a closed set, in the order of the set: index it by the enum that names the set.
    pub fn resolve_each<'a, T: Measure, const N: usize>(
        &self,
        family: &'static Family<T, N>,
        values: impl IntoIterator<Item = [&'a str; N]>,
    ) -> Box<[T]> {
        values.into_iter().map(|values| self.resolve(family, values)).collect()
    }

    /// The method that a `:path` names: learned when new, or the one that stands for all others, when the path is not of
    /// the form `/package.Service/Method` or as many as may be are known.
    ///
    /// Costs a hash of the path. An id may be kept beside an interned path; it never changes. Meant for paths of gRPC
    /// requests: other HTTP/2 has paths of this form by accident.
    pub fn method(&mut self, direction: Direction, path: &[u8]) -> MethodId {
        let other = MethodId(direction as u32);
        if path.len() > method::MAX_PATH {
            return other;
        }
        if let Some(id) = self.ids[direction as usize].get(path) {
            return *id;
        }
        if self.complete[direction as usize] {
            return other;
        }
        method::parse(path)
            .and_then(|path| self.learn(direction, path))
            .unwrap_or(other)
    }

    /// An RPC began.
    #[inline]
    pub fn started(&self, method: MethodId) {
        self.methods[method.0 as usize].started();
    }

    /// An RPC ended. `seen` is what its messages looked like; a call that was aborted ends with [`Code::Cancelled`].
    #[inline]
    pub fn handled(&self, method: MethodId, seen: GrpcType, code: Code, elapsed: Duration) {
        self.methods[method.0 as usize].handled(seen, code, elapsed);
    }

    /// Asks the registry. Once that is full, takes over all it knows, so as never to ask (and wait for its lock) again:
    /// strangers may send as many new paths as they like.
    #[cold]
    fn learn(&mut self, direction: Direction, path: &str) -> Option<MethodId> {
        let (name, all) = self.registry.learn(direction, path);
        if let Some(all) = all {
            for name in all {
                if !name
                    .path()
                    .is_some_and(|path| self.ids[direction as usize].contains_key(path.as_bytes()))
                {
                    self.adopt(direction, name);
                }
            }
            self.complete[direction as usize] = true;
            return self.ids[direction as usize].get(path.as_bytes()).copied();
        }
        name.map(|name| self.adopt(direction, name))
    }

    fn adopt(&mut self, direction: Direction, name: Name) -> MethodId {
        let id = MethodId(self.methods.len() as u32);
        if let Some(path) = name.path() {
            self.ids[direction as usize].insert(path.clone().into(), id);
        }
        let method = Arc::new(Method::new(direction, name));
        self.registry.add_method(method.clone());
        self.methods.push(method);
        id
    }
}
