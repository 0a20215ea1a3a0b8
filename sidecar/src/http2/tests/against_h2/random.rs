//! Random conversations, made illegal at a random place: the engine and h2 hear the same bytes and say the same of them, but
//! for the differences in the table; and whatever came, the engine's books are in order.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::peer::{Frame, Seen, push};
use super::both::{Heard, hear};
use super::conversation::{Author, Line, Step, step};
use super::mutation::{Broken, Mutation, damage, damaged, mutation};
use super::ours::{Ours, Scene};
use super::{Verdict, times};
use crate::http2::connection::Role;
use crate::http2::settings::Settings;

/// A conversation, and one in which a rule is broken.
struct Play {
    good: Vec<Line>,
    bad: Vec<Line>,
    /// The place of the last illegal frame among the lines, what the RFC answers to it, and who may pay for it.
    expected: Option<(usize, Verdict)>,
    victim: u32,
}

/// Breaks a rule at the place, or behind it at the first that has what it takes.
fn write(role: Role, settings: &Settings, steps: &[Step], place: &Index, mutation: &Mutation) -> Option<Play> {
    let places = steps.len() + 1;
    let first = place.index(places);
    (first..first + places).find_map(|place| write_at(role, settings, steps, place % places, mutation))
}

fn write_at(role: Role, settings: &Settings, steps: &[Step], place: usize, mutation: &Mutation) -> Option<Play> {
    let mut author = Author::new(role, settings);
    let (before, after) = steps.split_at(place);
    before.iter().for_each(|step| author.play(step));
    let Broken {
        frames,
        instead,
        victim,
        verdict,
    } = mutation.apply(&mut author)?;
    let mut bad = author.lines.clone();
    author.say(&instead);
    let common = author.lines.len();
    after.iter().for_each(|step| author.play(step));
    let good = author.lines.clone();
    author.lines.clear();
    author.say(&frames);
    bad.append(&mut author.lines);
    let last = bad.len() - 1;
    bad.extend_from_slice(&good[common..]);
    Some(Play {
        good,
        bad,
        expected: mutation.is_aimed().then_some((last, verdict)),
        victim,
    })
}

/// All that was told of each stream: to the owner, and to the peer.
fn by_stream(ours: &Ours) -> BTreeMap<u64, (Vec<Seen>, Vec<Frame>)> {
    let mut streams: BTreeMap<u64, (Vec<Seen>, Vec<Frame>)> = BTreeMap::new();
    for seen in &ours.seen {
        let id = match seen {
            Seen::Headers { id, .. } | Seen::Data { id, .. } | Seen::Reset { id, .. } | Seen::Room(id) => *id,
            Seen::Settings { .. } | Seen::Lowered | Seen::GoAway { .. } | Seen::Pong(_) => 0,
            Seen::Refused { .. } | Seen::Fatal(_) => continue,
        };
        streams.entry(id).or_default().0.push(seen.clone());
    }
    for frame in ours.told.iter().filter(|frame| frame.stream != 0) {
        streams.entry(frame.stream.into()).or_default().1.push(frame.clone());
    }
    streams
}

/// What the engine sees and says when its input comes in pieces that end anywhere.
fn in_pieces(role: Role, settings: &Settings, lines: &[Line], cuts: &[usize]) -> (Vec<Seen>, Vec<Frame>) {
    let mut ours = Ours::new(role, settings);
    let mut cuts = cuts.iter().cycle();
    let (mut seen, mut told) = (Vec::new(), Vec::new());
    let mut lines = lines.iter().peekable();
    while lines.peek().is_some() && !ours.is_over() {
        let mut bytes = Vec::new();
        while let Some(Line::Say(frame)) = lines.next_if(|line| matches!(line, Line::Say(_))) {
            bytes.extend_from_slice(frame);
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(rest.len().min(*cuts.next().expect("it cycles")));
            ours.end.feed_into(piece, &mut seen);
            rest = later;
        }
        told.extend(ours.end.said());
        if let Some(Line::Act(act)) = lines.next()
            && !ours.is_over()
        {
            ours.try_to(*act);
            told.extend(ours.end.said());
        }
    }
    (seen, told)
}

/// Everything that must hold of a conversation, whoever broke what in it.
fn play(role: Role, settings: &Settings, lines: &[Line], cuts: &[usize]) -> (Ours, Vec<(usize, Scene)>) {
    let Heard {
        mut ours,
        scenes,
        difference,
    } = hear(role, settings, lines);
    if let Some(differs) = difference {
        let (line, scene) = &scenes[differs.scene];
        assert!(
            differs.known.is_some(),
            "line {line}: h2 says {:?} to {scene:#?}\nof {lines:#?}",
            differs.theirs
        );
    }
    let mut seen = Vec::new();
    ours.seen.iter().cloned().for_each(|event| push(&mut seen, event));
    let (seen_in_pieces, told_in_pieces) = in_pieces(role, settings, lines, cuts);
    assert_eq!(seen_in_pieces, seen, "however the bytes are cut");
    assert_eq!(told_in_pieces, ours.told, "however the bytes are cut");
    ours.finish();
    (ours, scenes)
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Server), Just(Role::Client)]
}

fn settings() -> impl Strategy<Value = Settings> {
    let window = prop_oneof![Just(100u32), Just(1_000), Just(20_000), Just(65_535), Just(100_000)];
    let streams = prop_oneof![Just(2u32), Just(5), Just(1_000)];
    (window, streams).prop_map(|(first_stream_window, max_concurrent_streams)| Settings {
        first_stream_window,
        max_concurrent_streams,
        ..Settings::default()
    })
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![Just(1usize), 1..12usize, 1..3_000usize], 1..20)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: times(cases),
        max_global_rejects: times(cases) / 2,
        // What is found becomes a case of `scripted.rs`, with its section of the RFC.
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(600))]

    /// Without a broken rule neither has anything to say.
    #[test]
    fn a_legal_conversation_is_fine_for_both(
        role in role(), settings in settings(), steps in vec(step(), 0..60), cuts in cuts(),
    ) {
        let mut author = Author::new(role, &settings);
        steps.iter().for_each(|step| author.play(step));
        let (_, scenes) = play(role, &settings, &author.lines, &cuts);
        for (at, scene) in scenes {
            prop_assert_eq!(scene.verdict, Verdict::Fine, "line {}: {:?}", at, scene);
        }
    }
}

proptest! {
    #![proptest_config(config(2_000))]

    /// One rule is broken at a random place: the RFC's answer, h2's unless the table says why not, and nobody else pays.
    #[test]
    fn a_broken_rule_is_answered_as_the_rfc_and_h2_answer_it(
        role in role(), settings in settings(), steps in vec(step(), 0..50), cuts in cuts(),
        place in any::<Index>(), mutation in mutation(),
    ) {
        let written = write(role, &settings, &steps, &place, &mutation);
        // Some need what no place of the conversation has.
        prop_assume!(written.is_some());
        let written = written.expect("it was just asked");
        let (bad, scenes) = play(role, &settings, &written.bad, &cuts);
        if let Some((last, expected)) = written.expected {
            for (at, scene) in scenes.iter().take_while(|(at, _)| *at <= last) {
                let expected = if *at == last { expected } else { Verdict::Fine };
                prop_assert_eq!(scene.verdict, expected, "line {}: {:#?} of {:#?}", at, scene, &written.bad);
            }
        }
        if bad.is_over() || !mutation.is_aimed() {
            return Ok(());
        }
        let (good, _) = play(role, &settings, &written.good, &cuts);
        let (mut good, mut bad) = (by_stream(&good), by_stream(&bad));
        for streams in [&mut good, &mut bad] {
            streams.remove(&written.victim.into());
        }
        prop_assert_eq!(good, bad, "only stream {} pays, of {:#?}", written.victim, &written.bad);
    }

    /// Bytes flipped, frames lost, doubled and in another order, on top of it.
    #[test]
    fn damaged_bytes_are_answered_as_h2_answers_them(
        role in role(), settings in settings(), steps in vec(step(), 0..50), cuts in cuts(),
        place in any::<Index>(), mutation in prop::option::weighted(0.3, mutation()), damage in vec(damage(), 1..4),
    ) {
        let mut author = Author::new(role, &settings);
        let lines = match mutation.and_then(|mutation| write(role, &settings, &steps, &place, &mutation)) {
            Some(written) => written.bad,
            None => {
                steps.iter().for_each(|step| author.play(step));
                author.lines
            }
        };
        play(role, &settings, &damaged(&lines, &damage), &cuts);
    }
}
