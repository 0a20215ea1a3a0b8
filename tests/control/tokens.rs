//! What a token gives, and what it does not: one workload's identity, and no guesses.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use support::{Control, Member, Mesh, Pauses, Pod, Token};
use tonic::{Code, Status};

use crate::raw::{Asking, Certified};
use crate::shop::a_second;

#[test]
fn guesses_are_limited_by_address_and_harm_no_other_address() {
    support::test(|mesh| {
        let Cast { control, honest, thief } = Cast::of(mesh)?;
        let asking = Asking::of(&control)?;
        let right = token_of(&honest)?;
        let began = Instant::now();
        let (mut heard, mut tries) = (0, 0);
        // One more is allowed every three seconds: on a slow machine some come between.
        loop {
            tries += 1;
            ensure!(tries <= 1_000, "guesses are not limited");
            if is_refused(asking.certify(&thief, None, &Token::new().text, "")?)? {
                let allowed = 20 + began.elapsed().as_secs() / 3;
                ensure!((20..=allowed).contains(&heard), "{heard} guesses were heard");
                // Even the right one.
                match asking.certify(&thief, None, &right, "")? {
                    Err(status) if status.code() == Code::ResourceExhausted => break,
                    // There was room again: both once more.
                    _ => ensure!(began.elapsed().as_secs() >= 3, "the right token was heard at once"),
                }
            } else {
                heard += 1;
            }
        }
        let certified = asking.certify(&honest, None, &right, "")??;
        ensure!(
            certified.id() == Control::id("honest"),
            "the honest one is {}",
            certified.id()
        );
        let began = Instant::now();
        support::wait_until(
            Duration::from_secs(10),
            "one attempt more is allowed after a while",
            || matches!(asking.certify(&thief, None, &Token::new().text, ""), Ok(Err(status)) if status.code() == Code::Unauthenticated),
        )?;
        println!("after {:.1} s one guess more is heard", began.elapsed().as_secs_f64());
        let refused = control.metrics()?;
        let limited = refused.sum("portunus_control_refused_total", &[("reason", "too_many_attempts")]);
        ensure!(limited >= 2.0, "{limited} attempts were counted as too many");
        Ok(())
    });
}

#[test]
fn a_token_gives_the_identity_of_its_own_workload_and_nothing_else() {
    support::test(|mesh| {
        let Cast { control, honest, thief } = Cast::of(mesh)?;
        let asking = Asking::of(&control)?;
        // Whatever the request and its CSR say, and from wherever it comes.
        let stolen = asking.certify(&thief, None, &token_of(&honest)?, "shop/thief")??;
        ensure!(stolen.id() == Control::id("honest"), "it is {}", stolen.id());
        ensure!(stolen.workload == "shop/honest", "it is {}", stolen.workload);
        let own = asking.certify(&thief, None, &token_of(&thief)?, "")??;
        ensure!(own.id() == Control::id("thief"), "it is {}", own.id());

        let shown = Some(&own.credential);
        expect(
            asking.hello(&thief, shown, "shop/honest")?,
            Code::PermissionDenied,
            "another's name in Hello",
        )?;
        expect(
            asking.hello(&thief, shown, "shop/nobody")?,
            Code::PermissionDenied,
            "nobody's name in Hello",
        )?;
        expect(
            asking.hello(&thief, shown, "honest")?,
            Code::InvalidArgument,
            "no name in Hello",
        )?;
        expect(
            asking.hello(&thief, None, "shop/honest")?,
            Code::Unauthenticated,
            "Hello without a certificate",
        )?;
        asking.hello(&thief, shown, "shop/thief")??;
        expect(
            asking.certify(&thief, shown, "", "shop/honest")?,
            Code::PermissionDenied,
            "a renewal as another",
        )?;
        expect(
            asking.certify(&thief, None, "", "shop/thief")?,
            Code::Unauthenticated,
            "a renewal without proof",
        )?;
        let renewed = asking.certify(&thief, shown, "", "shop/thief")??;
        ensure!(renewed.id() == Control::id("thief"), "it is {}", renewed.id());
        Ok(())
    });
}

#[test]
fn a_removed_workload_loses_its_stream_at_once_and_can_neither_renew_nor_join() {
    support::test(|mesh| {
        let Cast { control, thief, .. } = Cast::of(mesh)?;
        let asking = Asking::of(&control)?;
        let token = token_of(&thief)?;
        let Certified { credential, .. } = asking.certify(&thief, None, &token, "")??;
        let (mut removed, mut pauses) = (Instant::now(), Pauses::watch());
        let end = asking.follow_to_the_end(&thief, &credential, "shop/thief", || {
            (removed, pauses) = (Instant::now(), Pauses::watch());
            control.remove("workload-thief")
        })?;
        let took = removed.elapsed();
        println!(
            "{:>8} ms until the stream of a removed workload ends: {}",
            took.as_millis(),
            end.message()
        );
        ensure!(end.code() == Code::PermissionDenied, "it ends with {end}");
        ensure!(took < a_second(&pauses), "that took {took:?}");
        let shown = Some(&credential);
        expect(
            asking.certify(&thief, shown, "", "shop/thief")?,
            Code::PermissionDenied,
            "a renewal",
        )?;
        expect(
            asking.certify(&thief, None, &token, "")?,
            Code::Unauthenticated,
            "the token",
        )?;
        expect(
            asking.hello(&thief, shown, "shop/thief")?,
            Code::PermissionDenied,
            "Hello",
        )?;
        Ok(())
    });
}

/// Control, and two workloads that ask it by hand.
struct Cast {
    control: Control,
    honest: Pod,
    thief: Pod,
}

impl Cast {
    fn of(mesh: &Mesh) -> Result<Cast> {
        let control = mesh.control(&[])?;
        let [honest, thief] = ["honest", "thief"].map(|name| {
            let pod = mesh.pod(name)?;
            let member = Member {
                account: name,
                app: name,
                ports: &[],
            };
            control.enrol(&pod, &member)?;
            Ok::<_, anyhow::Error>(pod)
        });
        let (honest, thief) = (honest?, thief?);
        let asking = Asking::of(&control)?;
        let is_known = |pod: &Pod| {
            let certified = token_of(pod).and_then(|token| asking.certify(&honest, None, &token, ""));
            certified.is_ok_and(|certified| certified.is_ok())
        };
        // Each was written by itself. All ask from one address: failures of the other are counted later.
        support::wait_until(Duration::from_secs(5), "control knows them", || {
            is_known(&honest) && is_known(&thief)
        })?;
        Ok(Cast { control, honest, thief })
    }
}

fn token_of(pod: &Pod) -> Result<String> {
    Ok(std::fs::read_to_string(pod.folder().join("join-token"))?)
}

/// Whether a guess was one too many, and was not heard.
fn is_refused<T>(answer: Result<T, Status>) -> Result<bool> {
    match answer {
        Ok(_) => anyhow::bail!("a guess was right"),
        Err(status) if status.code() == Code::Unauthenticated => Ok(false),
        Err(status) if status.code() == Code::ResourceExhausted => Ok(true),
        Err(status) => anyhow::bail!("a guess: {status}"),
    }
}

fn expect<T>(answer: Result<T, Status>, code: Code, what: &str) -> Result<()> {
    match answer {
        Ok(_) => anyhow::bail!("{what} was allowed"),
        Err(status) => {
            ensure!(status.code() == code, "{what}: {status}");
            Ok(())
        }
    }
}
