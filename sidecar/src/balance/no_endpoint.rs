//! Why an RPC can go nowhere.

use std::time::Duration;

use super::health::Says;

/// Why there is no endpoint to pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// Discovery has named none.
    #[error("no endpoint is known")]
    NoneKnown,
    /// This RPC has been to each of them.
    #[error("all {count} endpoints were tried and none could be reached")]
    AllTried {
        /// How many there are.
        count: usize,
    },
    /// Those that this RPC has not tried say of themselves that they do not serve.
    #[error("{refusing} of {count} endpoints say {says}{}{}", hint(.says), if .refusing < .count {
        ", and the others were tried and could not be reached"
    } else {
        ""
    })]
    NotServing {
        /// How many there are.
        count: usize,
        /// How many of them say so.
        refusing: usize,
        /// What they say: [`Says::ServiceUnknown`] only if all of them do.
        says: Says,
    },
    /// Those that this RPC has not tried could not be reached a moment ago.
    #[error("none of {count} endpoints can be reached{}; the next attempt is in {retry_in:?}", match .refusing {
        0 => String::new(),
        refusing => format!(" ({refusing} of them say that they do not serve)"),
    })]
    AllInBackoff {
        /// How many there are, tried by this RPC or not.
        count: usize,
        /// How many of them say that they do not serve.
        refusing: usize,
        /// When one may be tried again, from now.
        retry_in: Duration,
    },
}

fn hint(says: &Says) -> &'static str {
    match says {
        Says::NotServing | Says::Other(_) => "",
        Says::ServiceUnknown => ": is the name right that health checks ask for?",
    }
}
