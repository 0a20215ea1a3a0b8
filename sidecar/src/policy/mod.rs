//! What a workload accepts from the network: mTLS, plain, or both.

mod permit;

use std::collections::BTreeMap;
use std::fmt;

use portunus_proto::Declared;

pub use permit::{Caller, Permit, Refusal, authorize};

/// What a port takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// mTLS and nothing else.
    Strict,
    /// mTLS and plain.
    #[default]
    Permissive,
    /// Plain and nothing else.
    Disabled,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Strict => "strict",
            Mode::Permissive => "permissive",
            Mode::Disabled => "disabled",
        })
    }
}

/// The modes of a workload's ports, and what control says that they speak.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inbound {
    /// What holds for a port that is not named; `None` where nobody has said it.
    pub default: Option<Mode>,
    /// Ports with a mode of their own.
    pub ports: BTreeMap<u16, Mode>,
    /// Ports whose protocol is declared in the mesh.
    pub protocols: BTreeMap<u16, Declared>,
}

impl Inbound {
    /// What holds where there is no mesh.
    pub const PLAIN: Inbound = Inbound {
        default: Some(Mode::Disabled),
        ports: BTreeMap::new(),
        protocols: BTreeMap::new(),
    };

    /// The mode of a port, if this says one.
    pub fn mode(&self, port: u16) -> Option<Mode> {
        self.ports.get(&port).copied().or(self.default)
    }

    /// Of these settings, what holds before control has said anything: what is strict. Control may say so of the rest, too.
    pub fn before_control(&self) -> Inbound {
        let is_strict = |mode: &Mode| *mode == Mode::Strict;
        Inbound {
            default: self.default.filter(is_strict),
            ports: self
                .ports
                .iter()
                .filter(|(_, mode)| is_strict(mode))
                .map(|(port, mode)| (*port, *mode))
                .collect(),
            protocols: self.protocols.clone(),
        }
    }

    /// This, and where it says nothing what `settings` say.
    pub fn over(&self, settings: &Inbound) -> Inbound {
        let mut ports = match self.default {
            // What control says of the whole workload stands above what a setting says of a port.
            Some(_) => BTreeMap::new(),
            None => settings.ports.clone(),
        };
        ports.extend(&self.ports);
        Inbound {
            default: self.default.or(settings.default),
            ports,
            protocols: self.protocols.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_control_says_stands_above_the_settings() {
        let settings = Inbound {
            default: Some(Mode::Permissive),
            ports: BTreeMap::from([(1, Mode::Disabled), (2, Mode::Strict)]),
            ..Default::default()
        };
        let before = settings.before_control();
        assert_eq!(
            [1, 2, 3].map(|port| before.mode(port)),
            [None, Some(Mode::Strict), None]
        );
        let nothing = Inbound::default();
        assert_eq!(nothing.mode(1), None);
        assert_eq!(nothing.over(&settings), settings);
        let of_a_port = Inbound {
            default: None,
            ports: BTreeMap::from([(1, Mode::Strict)]),
            ..Default::default()
        };
        let both = of_a_port.over(&settings);
        let modes = [1, 2, 3].map(|port| both.mode(port));
        assert_eq!(modes, [Some(Mode::Strict), Some(Mode::Strict), Some(Mode::Permissive)]);
        let of_all = Inbound {
            default: Some(Mode::Strict),
            ..Default::default()
        };
        assert_eq!(of_all.over(&settings).mode(1), Some(Mode::Strict));
    }
}
