//! The engine and h2 hear the same conversation, frame by frame, and are asked after each frame what they make of it.

use super::conversation::Line;
use super::differences::{self, Difference};
use super::ours::{At, Ours, Scene};
use super::theirs::Theirs;
use super::{Verdict, verdict};
use crate::http2::connection::Role;
use crate::http2::frame::kind;
use crate::http2::settings::Settings;

/// What came of a conversation.
pub(super) struct Heard {
    pub(super) ours: Ours,
    /// Each frame that the engine heard, and its place among the lines.
    pub(super) scenes: Vec<(usize, Scene)>,
    pub(super) difference: Option<Differs>,
}

/// Where the two stopped to agree.
pub(super) struct Differs {
    /// The place among the scenes.
    pub(super) scene: usize,
    pub(super) theirs: Verdict,
    /// What the table has to say of it.
    pub(super) known: Option<&'static Difference>,
}

/// Both hear the lines. After a difference the engine hears the rest alone.
pub(super) fn hear(role: Role, settings: &Settings, lines: &[Line]) -> Heard {
    let mut heard = Heard {
        ours: Ours::new(role, settings),
        scenes: Vec::new(),
        difference: None,
    };
    let mut theirs = Some(Theirs::new(role, settings));
    // h2 judges the pieces of a header block as they come, the engine the whole (RFC 9113, 4.3).
    let mut early = None;
    for (line, what) in lines.iter().enumerate() {
        if heard.ours.is_over() {
            break;
        }
        // A peer that went away, and has no stream any more, is left alone by h2.
        theirs = theirs.filter(|h2| early.is_some() || !h2.is_over());
        let bytes = match what {
            Line::Say(bytes) => bytes,
            Line::Act(act) => {
                if heard.ours.act(*act)
                    && let Some(h2) = &mut theirs
                {
                    h2.act(*act);
                }
                continue;
            }
        };
        let scene = heard.ours.hear(bytes);
        if scene.frame.kind == kind::PUSH_PROMISE && scene.at == At::WeReset {
            // An assertion of h2's own fails at a push on a stream that its user has reset.
            theirs = None;
        }
        if let Some(h2) = &mut theirs {
            let waited = early.is_some();
            let says = early.take().unwrap_or_else(|| verdict(&scene.frame, &h2.hear(bytes)));
            if scene.leaves_block_open() && scene.verdict == Verdict::Fine {
                early = Some(says).filter(|says| *says != Verdict::Fine);
            } else {
                let broken_off = waited && scene.block.is_none();
                if says != scene.verdict && !broken_off {
                    heard.difference = Some(Differs {
                        scene: heard.scenes.len(),
                        theirs: says,
                        known: differences::find(&scene, says),
                    });
                }
                // What h2 has judged too early, or by the priority alone, it has not decoded: it is out of step.
                if heard.difference.is_some() || waited || scene.depends_on_itself() {
                    theirs = None;
                }
            }
        }
        heard.scenes.push((line, scene));
    }
    heard
}
