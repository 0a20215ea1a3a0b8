//! Many connections at once: who has to go for whom.

use super::*;
use crate::edge::http1::crowd::EACH;

/// A crowd in which there is room for so many.
fn room_for(connections: u64) -> Crowd {
    let mut crowd = Crowd::new(0, |_| {});
    crowd.most = connections * EACH;
    crowd
}

/// One more connection.
fn join(crowd: &Crowd) -> (Ends, impl Future<Output = Summary>) {
    let facts = Facts { crowd, ..facts(false) };
    open(facts, Settings::default(), CancellationToken::new())
}

/// Whatever a fault keeps from ending ends the test.
async fn in_time<T>(all: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(100), all).await.expect("ends")
}

async fn is_asked(ends: &mut Ends, said: &str) {
    say(&mut ends.caller, said).await;
    let heard = head(&mut ends.application).await;
    assert!(heard.starts_with("GET / HTTP/1.1\r\nhost: a\r\n"), "{heard}");
}

async fn is_served(ends: &mut Ends, said: &str) {
    is_asked(ends, said).await;
    say(&mut ends.application, OK).await;
    until(&mut ends.caller, "ok").await;
}

const ASKED: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn who_has_been_at_rest_for_longest_goes_for_who_comes_and_nobody_who_is_at_work() {
    let crowd = room_for(2);
    let [first, second, third, fourth, fifth] = [(); 5].map(|()| join(&crowd));
    let talk = async {
        let [mut first, mut second, mut third, mut fourth, mut fifth] = [first.0, second.0, third.0, fourth.0, fifth.0];
        is_served(&mut first, ASKED).await;
        is_served(&mut second, ASKED).await;
        is_served(&mut first, ASKED).await;
        assert_eq!(crowd.kept.get(), crowd.most);

        // The second has been at rest for longer.
        is_asked(&mut third, ASKED).await;
        assert_eq!(rest(&mut second.caller).await, "");
        is_asked(&mut first, ASKED).await;
        assert_eq!(crowd.kept.get(), crowd.most);

        say(&mut fourth.caller, ASKED).await;
        let answer = rest(&mut fourth.caller).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("portunus-error: memory_budget\r\n"), "{answer}");

        for ends in [&mut first, &mut third] {
            say(&mut ends.application, OK).await;
            until(&mut ends.caller, "ok").await;
        }
        is_served(&mut fifth, ASKED).await;
        drop((third, fifth));
        assert_eq!(rest(&mut first.caller).await, "");
    };
    let all = async { tokio::join!(first.1, second.1, third.1, fourth.1, fifth.1, talk) };
    let (first, second, third, fourth, fifth, ()) = in_time(all).await;
    assert_eq!([first.end, second.end], [End::Crowded; 2]);
    assert_eq!([third.end, fourth.end, fifth.end], [End::Finished; 3]);
    assert_eq!(answered_here(&fourth), ["memory_budget"]);
    assert_eq!(crowd.kept.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_large_head_counts_for_as_long_as_its_connection_lasts() {
    let crowd = room_for(10);
    let [large, other, again] = [(); 3].map(|()| join(&crowd));
    let much = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(50_000));
    let talk = async {
        let [mut large, mut other, mut again] = [large.0, other.0, again.0];
        is_served(&mut large, &much).await;
        let kept = crowd.kept.get();
        assert!(kept > 200_000, "{kept}");
        is_served(&mut large, ASKED).await;
        is_asked(&mut large, &much).await;
        assert_eq!(crowd.kept.get(), kept);

        is_asked(&mut other, &much).await;
        say(&mut again.caller, &much).await;
        let answer = rest(&mut again.caller).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    };
    let all = async { tokio::join!(large.1, other.1, again.1, talk) };
    in_time(all).await;
    assert_eq!(crowd.kept.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_rests_with_half_a_head_or_an_unread_answer_is_sent_away_and_nobody_for_itself() {
    let crowd = room_for(2);
    let began = Instant::now();
    let [half, unread, third, fourth] = [(); 4].map(|()| join(&crowd));
    let much = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(30_000));
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 90000\r\n\r\n{}", "a".repeat(90_000));
    let talk = async {
        let [mut half, mut unread, mut third, mut fourth] = [half.0, unread.0, third.0, fourth.0];
        is_served(&mut half, ASKED).await;
        say(&mut half.caller, "G").await;
        is_asked(&mut unread, ASKED).await;
        say(&mut unread.application, &answer).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(crowd.kept.get(), crowd.most);

        for ends in [&mut third, &mut fourth] {
            is_served(ends, ASKED).await;
            assert_eq!(crowd.kept.get(), crowd.most);
        }
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(rest(&mut half.caller).await, "");
        // It could have read it within a second.
        assert_eq!(rest(&mut unread.application).await, "");
        assert!(began.elapsed() < Duration::from_millis(1_100));

        // There is no room for this one, even if the other went.
        say(&mut third.caller, &much).await;
        let answer = rest(&mut third.caller).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        is_served(&mut fourth, ASKED).await;
    };
    let all = async { tokio::join!(half.1, unread.1, third.1, fourth.1, talk) };
    let (half, unread, third, fourth, ()) = in_time(all).await;
    assert_eq!([half.end, unread.end], [End::Crowded; 2]);
    assert_eq!([third.end, fourth.end], [End::Finished; 2]);
    assert_eq!(crowd.kept.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_while_its_connection_is_sent_away_is_answered_and_a_switch_is_carried() {
    const SWITCHES: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n";
    const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n";
    for switches in [false, true] {
        let crowd = room_for(2);
        let [first, second, third] = [(); 3].map(|()| join(&crowd));
        let talk = async {
            let [mut first, mut second, mut third] = [first.0, second.0, third.0];
            is_served(&mut first, ASKED).await;
            is_served(&mut second, ASKED).await;
            // Both are there before anybody is polled, and the third is polled first: the first is sent away for it.
            say(&mut third.caller, ASKED).await;
            is_asked(&mut first, if switches { SWITCHES } else { ASKED }).await;
            assert_eq!(crowd.kept.get(), crowd.most);
            if switches {
                say(&mut first.application, SWITCHED).await;
                assert!(until(&mut first.caller, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
                tokio::time::sleep(Duration::from_secs(10)).await;
                say(&mut first.caller, "as it likes").await;
                until(&mut first.application, "as it likes").await;
            } else {
                tokio::time::sleep(Duration::from_secs(10)).await;
                say(&mut first.application, OK).await;
                let answer = rest(&mut first.caller).await;
                assert!(
                    answer.ends_with("ok") && answer.contains("connection: close"),
                    "{answer}"
                );
            }
            // There was room for it since this one went.
            assert_eq!(rest(&mut second.caller).await, "");
            head(&mut third.application).await;
            say(&mut third.application, OK).await;
            until(&mut third.caller, "ok").await;
        };
        let all = async { tokio::join!(biased; third.1, first.1, second.1, talk) };
        let (third, first, second, ()) = in_time(all).await;
        assert_eq!([second.end, third.end], [End::Crowded, End::Finished]);
        match switches {
            true => assert!(matches!(first.end, End::Switched(_)), "{first:?}"),
            false => assert_eq!(first.end, End::Crowded),
        }
        assert_eq!(crowd.kept.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_read_for_a_head_counts_whatever_is_left_of_it() {
    let facts = facts(false);
    let long = "x".repeat(50_000);
    for head in [
        format!("GET / HTTP/1.1\r\nhost: a\r\nx:{}\r\n\r\n", " ".repeat(50_000)),
        format!("{long} / HTTP/1.1\r\nhost: a\r\n\r\n"),
        format!("GET http://{long}/ HTTP/1.1\r\nhost: a\r\n\r\n"),
    ] {
        let crowd = facts.crowd;
        with(facts.clone(), Settings::default(), async |mut ends| {
            say(&mut ends.caller, &head).await;
            until(&mut ends.application, "\r\n\r\n").await;
            let kept = crowd.kept.get();
            assert!(kept > EACH + 90_000, "{kept} for {:.10}", head);
        })
        .await;
        assert_eq!(crowd.kept.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn one_head_too_many_ends_the_one_that_has_been_coming_for_longest() {
    let mut crowd = Crowd::new(0, |_| {});
    crowd.heads = Waiting::new(2);
    let heads = &crowd.heads;
    let began = Instant::now();
    let (first, second, third, whole) = (join(&crowd), join(&crowd), join(&crowd), join(&crowd));
    let (slow, others, at_once) = (first.0, [second.0, third.0], whole.0);
    let talk = async {
        let mut all = (slow, others, at_once);
        let (slow, others, at_once) = (&mut all.0, &mut all.1, &mut all.2);
        say(&mut slow.caller, "GET / HTTP/1.1\r\nhos").await;
        for ends in others.iter_mut() {
            while heads.count() == 0 {
                tokio::task::yield_now().await;
            }
            say(&mut ends.caller, "GET / HTTP/1.1\r\nhos").await;
        }
        let answer = rest(&mut slow.caller).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("portunus-error: slow_head\r\n"), "{answer}");
        assert_eq!(began.elapsed(), Duration::ZERO);

        is_served(at_once, ASKED).await;
        assert_eq!(heads.count(), 2);
        for ends in others.iter_mut() {
            is_served(ends, "t: a\r\n\r\n").await;
        }
        assert_eq!(heads.count(), 0);
    };
    let all = async { tokio::join!(first.1, second.1, third.1, whole.1, talk) };
    let (slow, second, third, at_once, ()) = in_time(all).await;
    let ends = [slow, second, third, at_once].map(|summary| summary.end);
    assert_eq!(ends, [End::SlowHead, End::Finished, End::Finished, End::Finished]);
}
