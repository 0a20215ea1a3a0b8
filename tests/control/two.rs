//! Two controls over one directory and one authority: either is enough.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use support::traffic::now;
use support::{Control, Family, Mesh, Pauses, lent};

use crate::shop::{CALLER, Shop, a_second, certified, none_failed, timed};

#[test]
fn two_controls_that_start_together_make_one_authority_and_sidecars_of_one_that_dies_go_to_the_other() {
    support::test(|mesh| {
        let (first, mut second) = two(mesh)?;
        let made = |what: &str| first.output().matches(what).count() + second.output().matches(what).count();
        // Nobody waits for the log, so it may come a moment later.
        timed(SOON, "one of them has said what it made", || {
            made("a root was made") > 0 && made("an issuer was made") > 0
        })?;
        ensure!(
            made("a root was made") == 1,
            "{} roots were made",
            made("a root was made")
        );
        ensure!(
            made("an issuer was made") == 1,
            "{} issuers were made",
            made("an issuer was made")
        );
        ensure!(
            fs::read_dir(first.state().join("roots"))?.count() == 1,
            "there are several roots"
        );

        let both = format!("{},{}", first.at(Family::V4)?, second.at(Family::V4)?);
        let settings = settings_of(&both);
        let mut shop = Shop::open(mesh, first, 2, &settings, &[])?;
        let traffic = shop.calls(100, Duration::from_secs(120))?;
        timed(SOON, "all have a stream", || {
            streams(&shop.control) + streams(&second) == 3.0
        })?;
        println!("streams: {} and {}", streams(&shop.control), streams(&second));

        let pauses = Pauses::watch();
        shop.control.kill()?;
        let moved = timed(SOON, "all streams are at the second", || streams(&second) == 3.0)?;
        let soon = Duration::from_secs(1) + a_second(&pauses);
        ensure!(moved < soon, "that took {moved:?}");
        let before: Vec<_> = shop.sidecars().map(certified).collect();
        timed(
            Duration::from_secs(50),
            "every certificate was renewed by the second",
            || {
                shop.sidecars()
                    .zip(&before)
                    .all(|(sidecar, before)| certified(sidecar) > *before)
            },
        )?;
        shop.control.launch()?;
        let pauses = Pauses::watch();
        // It says goodbye, and waits until all have heard it.
        second.stop()?;
        let moved = timed(SOON, "all streams are at the first", || streams(&shop.control) == 3.0)?;
        let soon = Duration::from_secs(1) + a_second(&pauses);
        ensure!(moved < soon, "that took {moved:?}");
        none_failed(&traffic.calls(), 2_000, "while controls came and went")
    });
}

#[test]
fn a_control_that_hangs_beside_one_that_does_not_keeps_no_sidecar_from_its_stream_its_renewal_and_its_first_certificate()
 {
    support::test(|mesh| {
        let (first, second) = two(mesh)?;
        let both = format!("{},{}", first.at(Family::V4)?, second.at(Family::V4)?);
        let settings = settings_of(&both);
        let shop = Shop::open(mesh, first, 2, &settings, &[])?;
        let traffic = shop.calls(100, Duration::from_secs(200))?;
        timed(SOON, "all have a stream", || {
            streams(&shop.control) + streams(&second) == 3.0
        })?;
        println!("streams: {} and {}", streams(&shop.control), streams(&second));
        let (hangs, goes_on) = match streams(&shop.control) {
            0.0 => (&second, &shop.control),
            _ => (&shop.control, &second),
        };

        hangs.program()?.pause()?;
        timed(HANGS, "all streams are at the one that does not hang", || {
            streams(goes_on) == 3.0
        })?;
        // Nobody goes back: it still takes connections, and says nothing on them.
        let certificates: Vec<_> = shop.sidecars().map(certified).collect();
        timed(
            Duration::from_secs(50),
            "every certificate was renewed beside the one that hangs",
            || {
                let mut all = shop.sidecars().zip(&certificates);
                all.all(|(sidecar, before)| certified(sidecar) > *before)
            },
        )?;
        // One with a renewed certificate is opened anew, there.
        timed(SOON, "each has its stream at the one that does not hang", || {
            streams(goes_on) == 3.0
        })?;

        // Whoever comes now has never been certified, and gets what it needs.
        let mut newcomers = Vec::new();
        for number in 1..=3 {
            let pod = mesh.pod(&format!("newcomer-{number}"))?;
            let enrolled = shop.control.enrol(&pod, &CALLER)?;
            let mut settings = lent(&enrolled);
            settings.extend(settings_of(&both));
            let sidecar = pod.sidecar_unready(&settings)?;
            timed(HANGS, "one who comes while one control hangs is ready", || {
                sidecar.admin("/ready").is_ok_and(|ready| ready.status == 200)
            })?;
            newcomers.push(sidecar);
        }
        // A change is told by the one that can.
        shop.control.remove("workload-hello-2")?;
        let (removed, pauses) = (now(), Pauses::watch());
        traffic.flow(Duration::from_secs(3));
        let late = removed + a_second(&pauses).as_secs_f64();
        let late = traffic.calls().between(late, f64::MAX);
        ensure!(
            late.answered_by() == BTreeSet::from(["hello-1"]),
            "a change was not told while one control hung: {:?} answer",
            late.answered_by()
        );

        hangs.program()?.resume()?;
        timed(
            SOON,
            "each of three newcomers, a greeter and a caller has one stream",
            || streams(hangs) + streams(goes_on) == 5.0,
        )?;
        none_failed(&traffic.calls(), 2_000, "while one of two controls hung")
    });
}

fn settings_of(addresses: &str) -> [(&str, &str); 1] {
    [("PORTUNUS_CONTROL_ADDRESS", addresses)]
}

/// Two of them, begun at the same moment where nothing was.
fn two(mesh: &Mesh) -> Result<(Control, Control)> {
    let mut first = mesh.control_to_be(&["--certificate-lifetime", "1m"])?;
    let mut second = first.beside(mesh.pod("control-2")?);
    first.begin()?;
    second.begin()?;
    for control in [&first, &second] {
        let ready = || control.admin("/ready").is_ok_and(|ready| ready.status == 200);
        support::wait_until(SOON, "both are ready", ready)?;
    }
    Ok((first, second))
}

fn streams(control: &Control) -> f64 {
    control
        .metrics()
        .map_or(-1.0, |metrics| metrics.sum("portunus_control_streams", &[]))
}

const SOON: Duration = Duration::from_secs(15);
/// As long as it may take until a control that hangs counts as away, and a little more.
const HANGS: Duration = Duration::from_secs(20);
